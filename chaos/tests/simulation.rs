//! Runs on the simulation: exact by their seed, judged by the same checkers, and refused where they cannot be.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test stops where it is surprised")]

use std::path::Path;
use std::process::{Command, Output};

use reveille_chaos::check;
use reveille_chaos::facts;

const CHAOS: &str = env!("CARGO_BIN_EXE_chaos");

/// Something of everything that the world can do, in little time.
const SCENARIO: &str = r#"
name = "much"
about = "something of everything"
claims = ["safety", "convergence", "coverage", "logs"]
[workload]
terminals = 8
connected = 0.5
rate = 10
[phases]
warmup = "1s"
chaos = "12s"
heal = "5s"
drain = "60s"
[[fault]]
at = "500ms"
kind = "cut-one-way"
from = "leader"
to = "all"
for = "2s"
[[fault]]
at = "1s"
kind = "loss"
from = "all"
to = "all"
share = 0.1
[[fault]]
at = "3s"
kind = "power"
target = "leader"
for = "1s"
[[fault]]
at = "6s"
kind = "pause"
target = "n2"
for = "2s"
[[fault]]
at = "9s"
kind = "sync-error"
target = "follower"
[[fault]]
at = "5s"
kind = "clock-step"
target = "n1"
by = "1h"
for = "2s"
[[fault]]
every = "2s"
kind = "terminal-kill"
target = "t"
for = "200ms"
[[fault]]
every = "3s"
kind = "rebind"
target = "t"
[[fault]]
every = "4s"
kind = "snapshot"
target = "any"
[expect]
cover = { "fault.power" = 1, "fault.pause" = 1, "fault.sync-error" = 1, "fault.terminal-kill" = 3 }
"#;

fn run(folder: &Path, out: &str, more: &[&str]) -> Output {
    let file = folder.join("much.toml");
    std::fs::write(&file, SCENARIO).unwrap();
    let mut command = Command::new(CHAOS);
    command.arg("run").arg(&file).args(["--backend", "sim", "--out"]).arg(folder.join(out)).args(more);
    command.output().unwrap()
}

#[test]
fn a_seed_gives_the_same_history_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let first = run(folder.path(), "first", &["--seed", "3"]);
    let said = String::from_utf8_lossy(&first.stdout).into_owned();
    assert_eq!(first.status.code(), Some(0), "{said}");
    assert!(said.contains("virtual s in"), "{said}");
    let again = Command::new(CHAOS)
        .args(["replay", "--quiet"])
        .arg(folder.path().join("first"))
        .arg("--out")
        .arg(folder.path().join("again"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&again.stdout).into_owned();
    assert_eq!(again.status.code(), Some(0), "{said}");
    assert!(said.contains("as before: PASS") && said.contains("the same, byte for byte"), "{said}");
    let history = |run: &str| std::fs::read(folder.path().join(run).join("history.jsonl")).unwrap();
    let (one, two) = (history("first"), history("again"));
    assert!(one == two, "the second run differs from the first");

    let facts = facts::read(&one[..]).unwrap();
    let judgement = check::judge(&facts, &[]);
    let said = |id: &str| {
        let judged = judgement.judged.iter().find(|judged| judged.checker.id == id).unwrap();
        judged.outcome.summary.clone()
    };
    // The inside is seen: the log's positions, and what replicas hold.
    assert!(!said("C5").contains("not in this history"), "{}", said("C5"));
    assert!(said("C10").contains("comparisons"), "{}", said("C10"));
    assert!(!facts.notifying.is_empty());
}

#[test]
fn a_replay_says_what_is_not_as_before_and_only_what_failed_is_made_small() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("short.toml");
    let short = "name = \"short\"\nabout = \"a test\"\nclaims = [\"delivery\"]\n[workload]\nterminals = 2\nrate = 5\n\
                 [phases]\nwarmup = \"1s\"\nchaos = \"1s\"\nheal = \"0s\"\ndrain = \"20s\"\n";
    std::fs::write(&file, short).unwrap();
    let chaos = |arguments: &[&str]| {
        let ran = Command::new(CHAOS).args(arguments).current_dir(folder.path()).output().unwrap();
        let said =
            format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        (ran.status.code().unwrap(), said)
    };
    let (code, said) = chaos(&["run", "short.toml", "--backend", "sim", "--seed", "1", "--out", "run"]);
    assert_eq!(code, 0, "{said}");
    let (code, said) = chaos(&["shrink", "run"]);
    assert!(code == 3 && said.contains("its verdict is PASS"), "{said}");

    // Another history under the same build: the simulation would not be exact.
    let history = folder.path().join("run/history.jsonl");
    let text = std::fs::read_to_string(&history).unwrap();
    std::fs::write(&history, text.replace("\"seq\":2", "\"seq\":9")).unwrap();
    let (code, said) = chaos(&["replay", "run", "--out", "again", "--quiet"]);
    assert!(
        said.contains("not as before: it was FAIL, and is PASS") && said.contains("C4 FAIL -> PASS"),
        "{said}"
    );
    assert!(code == 3 && said.contains("HARNESS the history differs from line "), "{said}");
    // What failed then does not any more.
    let (code, said) = chaos(&["shrink", "run", "--out", "small"]);
    assert!(code == 2 && said.contains("it does not fail again in 1 runs"), "{said}");
    // Under another build it may.
    let json = folder.path().join("run/run.json");
    let text = std::fs::read_to_string(&json).unwrap();
    std::fs::write(&json, text.replace("\"build\": \"", "\"build\": \"x")).unwrap();
    let (code, said) = chaos(&["replay", "run", "--out", "third", "--quiet"]);
    assert!(code == 0 && said.contains("it is of another build"), "{said}");
}

#[test]
fn seeds_are_run_one_by_one_and_the_worst_of_them_counts() {
    let folder = tempfile::tempdir().unwrap();
    let ran = run(folder.path(), "seeds", &["--seed", "5", "--seeds", "2"]);
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert_eq!(ran.status.code(), Some(0), "{said}");
    assert!(said.contains("2 seeds") && said.contains("2 pass"), "{said}");
}

/// Each seed does something else, so that nothing that is left to chance anywhere passes by.
#[test]
fn each_of_twenty_seeds_gives_the_same_history_twice() {
    let folder = tempfile::tempdir().unwrap();
    let ran = run(folder.path(), "twice", &["--seed", "1", "--seeds", "20", "--twice"]);
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert_eq!(ran.status.code(), Some(0), "{said}");
    assert!(said.contains("20 seeds") && said.contains("20 pass"), "{said}");
}

#[test]
fn what_it_cannot_do_is_said_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let ran = Command::new(CHAOS)
        .args(["run", "mixed-version", "--backend", "sim", "--out"])
        .arg(&out)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert_eq!(ran.status.code(), Some(3), "{said}");
    assert!(said.contains("upgrade"), "{said}");
    assert!(!out.exists());
}

#[test]
fn a_build_without_the_feature_has_no_bugs_to_plant() {
    if cfg!(feature = "canary") {
        return;
    }
    let ran = Command::new(CHAOS).args(["canary", "drop-one-in-thousand"]).output().unwrap();
    assert_eq!(ran.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&ran.stderr).contains("no bugs to plant"));
    let by = ["run", "baseline", "--backend", "sim", "--canary", "drop-one-in-thousand"];
    let ran = Command::new(CHAOS).args(by).output().unwrap();
    assert_eq!(ran.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&ran.stderr).contains("no bugs to plant"));
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (folder.path().join("point.toml"), folder.path().join("out"));
    std::fs::write(
        &file,
        "name = \"point\"\nabout = \"a fail point\"\n[phases]\nwarmup = \"1s\"\nchaos = \"5s\"\nheal = \"1s\"\n\
         drain = \"5s\"\n[[fault]]\nat = \"1s\"\nkind = \"fail-point\"\ntarget = \"leader\"\n\
         point = \"apply.before\"\naction = \"kill\"\n",
    )
    .unwrap();
    let by = ["run", file.to_str().unwrap(), "--backend", "sim", "--out", out.to_str().unwrap()];
    let ran = Command::new(CHAOS).args(by).output().unwrap();
    assert_eq!(ran.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&ran.stderr).contains("no fail points"));
    assert!(!out.exists());
    let ran = Command::new(CHAOS).arg("fail-points").output().unwrap();
    assert_eq!(ran.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&ran.stderr).contains("no fail points"));
}
