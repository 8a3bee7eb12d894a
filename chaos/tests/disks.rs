//! Runs against real nodes whose power, disks and clocks fail. Skipped, with a word, where there is no `reveille` beside
//! `chaos`, or no `cc` that makes the library that they fail by.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use serde_json::Value;

const CHAOS: &str = env!("CARGO_BIN_EXE_chaos");
/// One cluster at a time.
static TURN: Mutex<()> = Mutex::new(());

const SCENARIO: &str = r#"
name = "disks"
about = "power, disks and clocks of real nodes fail"
claims = ["safety", "coverage", "logs"]
[workload]
terminals = 8
connected = 0.5
[phases]
warmup = "1s"
chaos = "20s"
heal = "5s"
drain = "DRAIN"
FAULTS
[blast]
max_dead = "all"
[expect]
cover = { COVER }
"#;

/// The exit code of a run, what it said, and the lines of its faults. `None` where it cannot be tried.
fn run(faults: &[&str], more: &[&str]) -> Option<(i32, String, Vec<Value>)> {
    let there = Path::new(CHAOS).with_file_name("reveille").is_file();
    let cc = Command::new("cc").arg("--version").output().is_ok_and(|cc| cc.status.success());
    if !there || !cc {
        eprintln!("skipped: there is no `reveille` beside {CHAOS}, or no `cc`");
        return None;
    }
    let _turn = TURN.lock().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (folder.path().join("disks.toml"), folder.path().join("out"));
    let lines: String =
        faults.iter().map(|fault| format!("[[fault]]\n{}\n", fault.replace("; ", "\n"))).collect();
    let kinds = faults.iter().filter_map(|fault| fault.split("kind = \"").nth(1)?.split('"').next());
    let cover: BTreeSet<String> = kinds.map(|kind| format!("\"fault.{kind}\" = 1")).collect();
    let cover = cover.into_iter().collect::<Vec<_>>().join(", ");
    // What a lying disk has lost never comes: no use to wait for it as long as for what is only late.
    let drain = if more.is_empty() { "90s" } else { "15s" };
    let text = SCENARIO.replace("FAULTS", &lines).replace("COVER", &cover).replace("DRAIN", drain);
    std::fs::write(&file, text).unwrap();
    let mut run = Command::new(CHAOS);
    run.arg("run").arg(&file).args(["--seed", "5", "--out"]).arg(&out).args(more);
    let run = run.output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    eprintln!("{said}");
    let history = std::fs::read_to_string(out.join("history.jsonl")).unwrap_or_default();
    let lines = history.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    Some((run.status.code().unwrap(), said, lines.filter_map(|line| line.get("fault").cloned()).collect()))
}

/// It passes, or would on a machine that has less to do.
fn passes(code: i32, said: &str) {
    let late = code == 3 && said.contains("the machine stood still");
    let failed = said.lines().any(|line| line.starts_with("FAIL"));
    assert!(code == 0 || (late && !failed), "{said}");
}

/// What a fault of this kind did, as its last line says.
fn done(faults: &[Value], kind: &str, what: &str) -> u64 {
    let ended = faults.iter().filter(|fault| fault["kind"] == kind && fault["step"] == "ended");
    let counts = ended.filter_map(|fault| fault["detail"].as_str()).flat_map(|detail| detail.split(", "));
    let counts = counts.filter_map(|count| count.split_once(' ')).filter(|(name, _)| *name == what);
    counts.filter_map(|(_, count)| count.parse::<u64>().ok()).sum()
}

/// Power cuts of all nodes, and of one with others well.
const POWER: [&str; 4] = [
    "at = \"2s\"; kind = \"power\"; target = \"all\"; for = \"1s\"",
    "at = \"8s\"; kind = \"power\"; target = \"all\"; for = \"1s\"",
    "at = \"14s\"; kind = \"torn-write\"; target = \"all\"; file = \"log\"; for = \"5s\"",
    "at = \"15s\"; kind = \"kill\"; target = \"all\"; for = \"1s\"",
];

#[test]
fn what_was_acknowledged_outlives_the_power() {
    let Some((code, said, faults)) = run(&POWER, &[]) else { return };
    passes(code, &said);
    assert!(done(&faults, "power", "unsynced") + done(&faults, "power", "unsynced-names") > 0, "{faults:#?}");
}

#[test]
fn disks_that_lie_are_found_by_the_power() {
    let Some((code, said, _)) = run(&POWER, &["--canary", "lying-disk"]) else { return };
    let found = |checker: &str| said.lines().any(|line| line.starts_with(&format!("FAIL    {checker} ")));
    assert!(code == 1 && (found("C1") || found("C16")), "{said}");
}

#[test]
fn nodes_whose_disks_fail_end_and_come_back_and_clocks_are_not_believed() {
    let faults = [
        "at = \"1s\"; kind = \"sync-error\"; target = \"leader\"",
        "at = \"6s\"; kind = \"disk-full\"; target = \"n1\"; for = \"3s\"",
        "at = \"1s\"; kind = \"clock-step\"; target = \"n2\"; by = \"1h\"; for = \"4s\"",
        "at = \"6s\"; kind = \"clock-strobe\"; target = \"n2\"; by = \"5s\"; for = \"4s\"",
        "at = \"1s\"; kind = \"clock-drift\"; target = \"n3\"; share = 0.2; for = \"15s\"",
        "at = \"10s\"; kind = \"io-error\"; target = \"follower\"; share = 0.5; for = \"3s\"",
        "at = \"15s\"; kind = \"slow-disk\"; target = \"all\"; by = \"20ms\"; for = \"4s\"",
        "at = \"16s\"; kind = \"lose-unsynced\"; target = \"n3\"",
        "at = \"17s\"; kind = \"restart\"; target = \"n3\"",
    ];
    let Some((code, said, faults)) = run(&faults, &[]) else { return };
    passes(code, &said);
    assert!(said.contains("has ended by its disk"), "{said}");
    for (kind, what) in
        [("clock-step", "told"), ("clock-strobe", "told"), ("io-error", "failed"), ("slow-disk", "slowed")]
    {
        assert!(done(&faults, kind, what) > 0, "{kind}: {faults:#?}");
    }
}

#[test]
fn without_a_compiler_it_is_said_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = Command::new(CHAOS);
    run.args(["run", "power-all", "--out"]).arg(folder.path().join("out")).env("PATH", folder.path());
    let run = run.output().unwrap();
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(run.status.code() == Some(3) && said.contains("there is no C compiler"), "{said}");
    assert!(!folder.path().join("out").exists());
}
