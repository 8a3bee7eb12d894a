//! Runs against real nodes whose power, disks and clocks fail. Skipped, with a word, where there is no `reveille` beside
//! `chaos`, or no `cc` that makes the library that they fail by.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

use std::process::Command;

#[path = "support/real.rs"]
mod real;

use real::{CHAOS, Ran, turn, with_faults};

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

/// A run with these faults. `None` where it cannot be tried.
fn run(faults: &[&str], more: &[&str]) -> Option<Ran> {
    real::reveille()?;
    if !Command::new("cc").arg("--version").output().is_ok_and(|cc| cc.status.success()) {
        eprintln!("skipped: there is no `cc`");
        return None;
    }
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (folder.path().join("disks.toml"), folder.path().join("out"));
    // What a lying disk has lost never comes: no use to wait for it as long as for what is only late.
    let drain = if more.is_empty() { "90s" } else { "15s" };
    std::fs::write(&file, with_faults(SCENARIO, faults).replace("DRAIN", drain)).unwrap();
    let run = real::run(&file, &out, more);
    eprintln!("{}", run.said);
    Some(run)
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
    let Some(run) = run(&POWER, &[]) else { return };
    run.passes();
    assert!(run.done("power", "unsynced") + run.done("power", "unsynced-names") > 0, "{:#?}", run.faults);
}

#[test]
fn disks_that_lie_are_found_by_the_power() {
    let Some(Ran { code, said, .. }) = run(&POWER, &["--canary", "lying-disk"]) else { return };
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
    let Some(run) = run(&faults, &[]) else { return };
    run.passes();
    assert!(run.said.contains("has ended by its disk"), "{}", run.said);
    for (kind, what) in
        [("clock-step", "told"), ("clock-strobe", "told"), ("io-error", "failed"), ("slow-disk", "slowed")]
    {
        assert!(run.done(kind, what) > 0, "{kind}: {:#?}", run.faults);
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
