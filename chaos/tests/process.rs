//! Runs against real nodes. The binary `reveille` is looked for beside `chaos`, where `cargo test --workspace` puts it;
//! where it is not, these say so and skip.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use reveille_chaos::facts;

#[path = "support/real.rs"]
mod real;

use real::{CHAOS, Ran, turn, with_faults};

const SCENARIO: &str = r#"
name = "short"
about = "a leader dies, another is stopped, terminals die, confirm late and connect anew"
claims = ["safety", "coverage", "logs"]
[workload]
terminals = 8
connected = 0.5
[phases]
warmup = "1s"
chaos = "10s"
heal = "3s"
drain = "60s"
[[fault]]
at = "1s"
kind = "kill"
target = "leader"
for = "1s"
[[fault]]
at = "6s"
kind = "pause"
target = "n2"
for = "1s"
[[fault]]
every = "1s"
kind = "terminal-kill"
target = "t"
for = "200ms"
[[fault]]
at = "3s"
kind = "ack-withheld"
target = "t1"
for = "1s"
[[fault]]
at = "3s"
kind = "move-leaders"
target = "any"
[[fault]]
at = "4s"
kind = "reconnect"
target = "terminals"
[expect]
cover = { "fault.kill" = 1, "fault.terminal-kill" = 5, "fault.ack-withheld" = 1, "fault.reconnect" = 1 }
"#;

const LINKS: &str = r#"
name = "links"
about = "everything that can be wrong on the way, one after the other"
claims = ["safety", "coverage", "logs"]
[workload]
terminals = 8
connected = 0.5
[phases]
warmup = "1s"
chaos = "16s"
heal = "3s"
drain = "60s"
FAULTS
[expect]
cover = { COVER }
"#;

/// A run that goes on, and the lines that it says.
fn begun(file: &Path, out: &Path) -> (Child, impl Iterator<Item = String> + use<>) {
    let mut run = Command::new(CHAOS)
        .arg("run")
        .arg(file)
        .arg("--out")
        .arg(out)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(run.stdout.take().unwrap()).lines().map_while(Result::ok);
    (run, lines)
}

/// No process names this folder.
fn nothing_is_left(folder: &Path) -> bool {
    let name = folder.to_str().unwrap();
    std::fs::read_dir("/proc").unwrap().flatten().all(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        !String::from_utf8_lossy(&line).contains(name)
    })
}

#[test]
fn a_run_leaves_a_history_that_passes_and_nothing_else() {
    if real::reveille().is_none() {
        return;
    }
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (folder.path().join("short.toml"), folder.path().join("out"));
    std::fs::write(&file, SCENARIO).unwrap();
    let run = real::run(&file, &out, &[]);
    let late = run.passes();
    let history = std::fs::read(out.join("history.jsonl")).unwrap();
    let facts = facts::read(&history[..]).unwrap();
    assert_eq!((facts.cut.as_ref(), facts.begin.seed), (None, 5));
    assert!(!facts.pushes.is_empty());
    assert!(facts.faults.iter().all(|fault| fault.ended.is_some()), "every fault was taken back");
    assert!(
        facts.terminals.iter().all(|terminal| !terminal.reads.is_empty()),
        "each was asked for at the end"
    );
    assert!(run.said.contains(&format!("replay: chaos replay {}", out.display())), "{}", run.said);
    let made: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("run.json")).unwrap()).unwrap();
    assert_eq!(made["seed"], 5);
    assert_eq!(std::fs::read_to_string(out.join("scenario.toml")).unwrap(), SCENARIO);
    assert!(late || !out.join("terminals").exists());
    assert!(out.join("cluster/run-1.log").exists());
    assert!(nothing_is_left(folder.path()));
}

/// Runs a scenario, which passes and leaves nothing behind.
fn passed(scenario: &str) -> Ran {
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (folder.path().join("links.toml"), folder.path().join("out"));
    std::fs::write(&file, scenario).unwrap();
    let run = real::run(&file, &out, &[]);
    run.passes();
    assert!(nothing_is_left(folder.path()));
    run
}

#[test]
fn links_between_nodes_and_to_terminals_are_made_worse_and_nothing_is_lost() {
    if real::reveille().is_none() {
        return;
    }
    let _turn = turn();
    let run = passed(&with_faults(
        LINKS,
        &[
            "at = \"1s\"; kind = \"cut\"; from = \"n1\"; to = \"n2+n3\"; for = \"3s\"",
            "at = \"4s\"; kind = \"cut-one-way\"; from = \"n2\"; to = \"all\"; for = \"2s\"",
            "at = \"6s\"; kind = \"jam\"; from = \"n3\"; to = \"n1\"; for = \"2s\"",
            "at = \"8s\"; kind = \"delay\"; from = \"terminals\"; to = \"all\"; by = \"20ms\"; for = \"6s\"",
            "at = \"8s\"; kind = \"loss\"; from = \"all\"; to = \"all\"; share = 0.05; for = \"4s\"",
            "at = \"9s\"; kind = \"corrupt\"; from = \"all\"; to = \"all\"; share = 0.5; for = \"2s\"",
            "at = \"12s\"; kind = \"bandwidth\"; from = \"n2\"; to = \"n3\"; share = 0.01; for = \"2s\"",
            "at = \"13s\"; kind = \"reset\"; from = \"n2\"; to = \"n3\"",
            "at = \"13s\"; kind = \"half-open\"; from = \"n1\"; to = \"n3\"",
            "at = \"10s\"; kind = \"notification-loss\"; target = \"terminals\"; share = 0.5; for = \"4s\"",
            "at = \"2s\"; kind = \"notification-replay\"; target = \"terminals\"; by = \"3s\"; for = \"4s\"",
            "at = \"2s\"; kind = \"notification-forged\"; target = \"t1\"; for = \"4s\"",
        ],
    ));
    for (kind, what) in [
        ("cut", "held"),
        ("cut-one-way", "held"),
        ("jam", "held"),
        ("loss", "lost"),
        ("corrupt", "corrupted"),
        ("notification-loss", "lost"),
        ("notification-replay", "replayed"),
    ] {
        assert!(run.done(kind, what) > 0, "{kind}: {:#?}", run.faults);
    }
    let faults = run.faults;
    assert_eq!(faults[0]["target"], "link 1 -> 2, 3", "{faults:#?}");
    assert!(
        faults.iter().any(|fault| fault["kind"] == "delay" && fault["detail"] == "by 20ms"),
        "{faults:#?}"
    );
}

/// On a busy machine a terminal may be found not to be reached at all: then it comes by itself after half a minute, or a minute
/// and a half.
#[test]
fn terminals_behind_a_nat_are_reached_through_their_anchors() {
    if real::reveille().is_none() {
        return;
    }
    let _turn = turn();
    let run = passed(
        &with_faults(
            LINKS,
            &[
                "at = \"1s\"; kind = \"rebind\"; target = \"terminals\"",
                "at = \"2s\"; kind = \"nat-timeout\"; target = \"t1\"; by = \"1s\"; for = \"10s\"",
                "at = \"3s\"; kind = \"kill\"; target = \"anchor(t2)\"; for = \"2s\"",
            ],
        )
        .replace("drain = \"60s\"", "drain = \"150s\""),
    );
    assert!(run.done("nat-timeout", "mapped") > 0, "{:#?}", run.faults);
}

#[test]
fn nodes_lose_their_files_come_and_go_and_starve_and_replicas_are_the_same_at_the_end() {
    if real::reveille().is_none() {
        return;
    }
    let _turn = turn();
    let scenario = with_faults(
        LINKS,
        &[
            "at = \"1s\"; kind = \"bit-flip\"; target = \"n1\"; file = \"tables\"",
            "at = \"1s\"; kind = \"slow-reader\"; target = \"t1\"; for = \"3s\"",
            "at = \"1s\"; kind = \"twin\"; target = \"t2\"; for = \"4s\"",
            "at = \"5s\"; kind = \"wipe\"; target = \"n2\"",
            "at = \"5s\"; kind = \"retry-storm\"; target = \"publishers\"; for = \"4s\"",
            "at = \"9s\"; kind = \"replace\"; target = \"n2\"",
            "at = \"11s\"; kind = \"cpu\"; target = \"n3\"; share = 0.5; for = \"2s\"",
            "at = \"11s\"; kind = \"few-files\"; target = \"n1\"; for = \"1s\"",
        ],
    );
    let scenario = scenario
        .replace("\"safety\",", "\"safety\", \"convergence\",")
        .replace("cover = {", "cover = { \"node.refused\" = 1,");
    let faults = passed(&scenario).faults;
    let flipped = faults.iter().filter(|fault| fault["kind"] == "bit-flip" && fault["step"] == "ended");
    assert!(
        flipped.map(|fault| fault["detail"].to_string()).any(|what| what.contains("tables/")),
        "{faults:#?}"
    );
}

#[test]
fn an_interrupted_run_is_no_pass_and_leaves_nothing() {
    if real::reveille().is_none() {
        return;
    }
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (folder.path().join("short.toml"), folder.path().join("out"));
    // Interrupted while a node is stopped.
    std::fs::write(
        &file,
        SCENARIO.replace("\"6s\"", "\"10ms\"").replace("chaos = \"10s\"", "chaos = \"10m\""),
    )
    .unwrap();
    let (mut run, mut lines) = begun(&file, &out);
    assert!(lines.any(|line| line.contains("FAULT pause node 2")), "it ended");
    signal("INT", &run.id().to_string());
    let said: Vec<String> = lines.collect();
    assert_eq!(run.wait().unwrap().code(), Some(3), "{said:#?}");
    assert!(said.iter().any(|line| line.contains("HEAL  pause node 2")), "{said:#?}");
    assert!(said.iter().any(|line| line.starts_with("HARNESS") && line.contains("interrupted")), "{said:#?}");
    assert!(nothing_is_left(folder.path()));
}

/// The process of a run's node.
fn pid_of(folder: &Path, node: &str) -> String {
    let is_it = |pid: &String| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains(folder.to_str().unwrap()) && line.contains(node)
    };
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.map(|entry| entry.file_name().to_str().unwrap().to_owned()).find(is_it).unwrap()
}

fn signal(signal: &str, pid: &str) {
    assert!(Command::new("kill").args(["-s", signal, pid]).status().unwrap().success());
}

#[test]
fn a_machine_that_stood_still_and_a_node_that_ended_by_itself_are_noticed() {
    if real::reveille().is_none() {
        return;
    }
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (folder.path().join("short.toml"), folder.path().join("out"));
    let quiet = SCENARIO.split("[[fault]]").next().unwrap().replace("\"coverage\", ", "");
    std::fs::write(&file, quiet).unwrap();
    let (mut run, mut lines) = begun(&file, &out);
    assert!(lines.any(|line| line.ends_with(" chaos")), "it ended");
    // As if the machine had: its own clock goes on.
    signal("STOP", &run.id().to_string());
    std::thread::sleep(Duration::from_secs(3));
    signal("CONT", &run.id().to_string());
    signal("KILL", &pid_of(folder.path(), "node-2.toml"));
    let said: Vec<String> = lines.collect();
    assert_eq!(run.wait().unwrap().code(), Some(3), "{said:#?}");
    let facts = facts::read(&std::fs::read(out.join("history.jsonl")).unwrap()[..]).unwrap();
    assert!(facts.trouble.iter().any(|(_, what)| what.contains("the machine stood still")), "{said:#?}");
    assert!(facts.log_problems.iter().any(|(_, node, _, _)| *node == 2), "{said:#?}");
    assert!(nothing_is_left(folder.path()));
}

#[test]
fn what_cannot_be_run_is_said_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let run = |arguments: &[&str]| {
        let output = Command::new(CHAOS).arg("run").args(arguments).arg("--out").arg(&out).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = run(&["handoff-pingpong"]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("it does not see handoff.started"), "{said}");
    let (code, said) = run(&["mixed-version"]);
    assert!(code == Some(3) && said.contains("say with --other where the version before is"), "{said}");
    let (code, said) = run(&["baseline", "--bin", "/nowhere/reveille"]);
    assert!(code == Some(3) && said.contains("there is no /nowhere/reveille: build it"), "{said}");
    let points = concat!(env!("CARGO_MANIFEST_DIR"), "/fail-points/nodes.toml");
    let (code, said) = run(&[points, "--bin", "/bin/false"]);
    assert!(code == Some(3) && said.contains("/bin/false has no fail points; one that has"), "{said}");
    assert!(said.contains("cargo build -p reveille --features canary"), "{said}");
    assert!(!out.exists());
    // A binary that is none of ours.
    let (code, said) = run(&["baseline", "--bin", "/bin/false"]);
    assert!(code == Some(3) && said.contains("`reveille dev` made no cluster"), "{said}");
}
