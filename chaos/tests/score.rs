//! `chaos score` as its user sees it: two cells of the grid on the simulation, what it leaves, and that nothing is drawn
//! where there is no terminal.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test stops where it is surprised")]

use std::path::Path;
use std::process::Command;

/// Its exit code and output; it prints nothing else.
fn score(arguments: &[&str], out: &Path) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chaos"));
    let ran = command.arg("score").args(arguments).arg("--out").arg(out).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&ran.stderr), "", "no terminal, no live view");
    (ran.status.code().unwrap(), String::from_utf8(ran.stdout).unwrap())
}

fn json(out: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(out.join("score.json")).unwrap()).unwrap()
}

#[test]
fn two_cells_make_a_score_and_the_same_one_again() {
    let folder = tempfile::tempdir().unwrap();
    let (first, again) = (folder.path().join("first"), folder.path().join("again"));
    let cells = ["--cells", "none/push,kill/push", "--seeds", "1", "--budget", "1h"];
    let (code, said) = score(&cells, &first);
    assert_eq!(code, 0, "{said}");
    let last = said.lines().find(|line| line.starts_with("SAFE ")).unwrap();
    assert!(last.contains("1 faults · 2 seeds · worst gap"), "{said}");
    assert!(std::fs::read_to_string(first.join("badge.svg")).unwrap().contains(last), "{said}");
    let score_of = json(&first);
    assert_eq!((score_of["version"].as_u64(), score_of["safety"].as_str()), (Some(1), Some("SAFE")));
    let row = |at: usize| &score_of["grid"][at];
    assert_eq!((row(0)["fault"].as_str(), row(1)["fault"].as_str()), (Some("none"), Some("kill")));
    assert_eq!(row(0)["points"].as_u64(), Some(1000), "{said}");
    assert!(row(1)["fired"]["kill"].as_u64().unwrap() >= 2, "{said}");
    // Of every kind it is said whether it struck.
    let kinds = |key: &str| score_of[key].as_object().unwrap().len();
    assert_eq!(kinds("fired") + kinds("not_fired"), reveille_chaos::scenario::KINDS.len());
    assert!(!first.join("kill-push-1").exists(), "what passed is not kept");
    let before = first.join("score.json");
    let (code, said) = score(&[&cells[..], &["--baseline", before.to_str().unwrap()]].concat(), &again);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("\ntrend: ") && !said.contains("changed: "), "{said}");
    let mut now = json(&again);
    assert_eq!(now["earlier"][0]["score"], score_of["score"]);
    now["earlier"] = score_of["earlier"].clone();
    assert_eq!(now, score_of);
}

#[test]
fn nodes_that_come_and_go_are_known_and_well() {
    let folder = tempfile::tempdir().unwrap();
    let cells = ["--cells", "add-node/push,drain/push,remove/push", "--seeds", "1", "--budget", "1h"];
    let (code, said) = score(&cells, &folder.path().join("out"));
    assert!(code == 0 && said.contains("\nSAFE "), "{said}");
}

#[test]
fn what_is_not_run_is_unknown_and_what_is_not_there_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("late");
    let (code, said) = score(&["--cells", "kill/push", "--budget", "0s"], &out);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("UNKNOWN  kill/push") && said.contains("it was not run"), "{said}");
    assert!(said.contains("UNKNOWN 0 · 0 faults · 0 seeds · 1 unknown"), "{said}");
    assert_eq!(json(&out)["not_fired"]["kill"].as_str(), Some("it did not come to it"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_chaos"));
    let ran = command.args(["score", "--cells", "kil/push"]).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(ran.status.code() == Some(3) && said.contains("did you mean \"kill/push\"?"), "{said}");
}
