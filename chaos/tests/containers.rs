//! `chaos run --backend compose`: containers that a run starts, strikes and takes down; also those of a run that was killed.
//! Needs Docker; `.ci/run` runs it where there is one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

#[allow(dead_code, reason = "the nodes' test uses more of it")]
#[path = "../../node/tests/support/compose.rs"]
mod compose;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use compose::{Compose, docker};

const CHAOS: &str = env!("CARGO_BIN_EXE_chaos");
const SCENARIO: &str = r#"
name = "short"
about = "a node dies, another stands still, two do not hear each other, one is slow, a link loses"
claims = ["safety", "coverage", "resources", "logs"]
[workload]
terminals = 6
connected = 0.5
rate = 20
[phases]
warmup = "2s"
chaos = "22s"
heal = "3s"
drain = "60s"
[[fault]]
at = "1s"
kind = "kill"
target = "n3"
for = "1s"
[[fault]]
at = "2s"
kind = "cut"
from = "n1"
to = "n2"
for = "6s"
[[fault]]
at = "10s"
kind = "pause"
target = "n2"
for = "1s"
[[fault]]
at = "14s"
kind = "cpu"
target = "n1"
share = 0.3
for = "5s"
[[fault]]
at = "15s"
kind = "loss"
from = "n2"
to = "n3"
share = 0.3
for = "4s"
[expect]
memory = "512MiB"
cover = { "fault.kill" = 1, "fault.cut" = 1, "fault.pause" = 1, "fault.cpu" = 1, "fault.loss" = 1 }
"#;

/// Everything in Docker that a run has labelled.
fn left() -> String {
    let of =
        |list: &[&str]| docker(&[list, &["--quiet", "--filter", "label=reveille.chaos"]].concat()).unwrap();
    [&["ps", "--all"][..], &["network", "ls"], &["volume", "ls"]].map(of).concat()
}

#[test]
#[ignore = "starts containers; .ci/run runs it where there is Docker"]
fn containers_of_a_run_are_struck_and_gone_at_its_end() {
    let image = Compose::build(&Path::new(CHAOS).with_file_name("reveille"));
    let folder = tempfile::tempdir().unwrap();
    let scenario = folder.path().join("short.toml");
    std::fs::write(&scenario, SCENARIO).unwrap();
    let run = |out: &str| {
        let mut run = Command::new(CHAOS);
        run.arg("run").arg(&scenario).args(["--backend", "compose", "--seed", "3", "--out"]);
        run.arg(folder.path().join(out)).env("REVEILLE_IMAGE", &image.project);
        run
    };

    // One that dies while a node is away leaves everything as it was then.
    let mut dies = run("dies").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(dies.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("FAULT cut")), "it ended before it could be killed");
    dies.kill().unwrap();
    dies.wait().unwrap();
    assert!(!left().is_empty(), "there is nothing to be taken down");

    let output = run("whole").output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    eprintln!("{said}");
    assert_eq!(output.status.code(), Some(0));
    assert!(said.contains("a run that is dead left containers"));
    assert_eq!(left(), "", "something is left in Docker");
    let history = std::fs::read_to_string(folder.path().join("whole/history.jsonl")).unwrap();
    for seen in ["\"resources\"", "\"log_read\""] {
        assert!(history.contains(seen), "nothing is seen of {seen}");
    }
}
