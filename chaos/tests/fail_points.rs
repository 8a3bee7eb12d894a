//! At each fail point each thing happens once that can happen there, and nothing is lost by it: in simulation at all of them,
//! in real nodes at some. Needs the feature `canary`, and a `reveille` that has it, too:
//! `cargo test --workspace --features chaos/canary,reveille/canary --test fail_points`.
#![cfg(feature = "canary")]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

use std::path::Path;

#[path = "support/planted.rs"]
mod planted;
#[path = "support/real.rs"]
#[allow(dead_code, reason = "shared by tests, and not all of it is for each")]
mod real;

use planted::chaos;

#[test]
fn nothing_is_lost_at_any_point() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("runs");
    chaos(0, &["fail-points", "--out", out.to_str().unwrap()]);
}

/// Killed in the log, by a panic in the dispatcher, slowed, and by an error while one starts. The binary beside `chaos` has fail
/// points, since the same command has built it with them.
#[test]
fn real_nodes_end_at_fail_points_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/fail-points/nodes.toml");
    real::run(Path::new(file), &folder.path().join("out"), &[]).passes();
}

/// One part in a thousand was the least that could be told apart from nothing, and of several at a point only the first was
/// drawn.
const SHARES: &str = r#"
name = "shares"
about = "two things at one point, the first of them seldom"
claims = ["safety", "convergence", "no-hang", "logs", "coverage"]
[workload]
terminals = 8
connected = 0.5
rate = 60
[phases]
warmup = "1s"
chaos = "20s"
heal = "2s"
drain = "60s"
[blast]
max_dead = "all"
[[fault]]
at = "0s"
kind = "fail-point"
target = "all"
point = "append.answer"
action = "sleep"
by = "1ms"
share = 0.0009
hits = 1000
[[fault]]
at = "0s"
kind = "fail-point"
target = "all"
point = "append.answer"
action = "panic"
share = 0.000000001
[[fault]]
at = "0s"
kind = "fail-point"
target = "all"
point = "append.answer"
action = "error"
[expect]
cover = { "fail-point.append.answer.sleep" = 1, "fail-point.append.answer.error" = 1 }
"#;

#[test]
fn what_is_seldom_happens_seldom_and_hides_nothing_behind_it() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("shares.toml"), SHARES).unwrap();
    let by = ["run", &at("shares.toml"), "--quiet", "--backend", "sim", "--seed", "1", "--out", &at("out")];
    chaos(0, &by);
}

/// Of six seeds two had a replica that differed from the others for ever, as long as what was there in part could be flushed.
#[test]
fn an_entry_that_fails_in_its_middle_never_becomes_durable() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("runs");
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/fail-points/half-applied.toml");
    chaos(0, &["run", file, "--backend", "sim", "--seeds", "6", "--out", out.to_str().unwrap()]);
}

/// A log that says of a write that it is durable before it is: then its node ends between the two.
const POWER: &str = r#"
name = "early"
about = "an ack before the sync"
claims = ["no-acked-loss", "coverage"]
[workload]
terminals = 6
connected = 0.5
rate = 60
[phases]
warmup = "1s"
chaos = "10s"
heal = "3s"
drain = "60s"
[blast]
max_dead = "all"
[[fault]]
at = "1s"
kind = "lose-unsynced"
target = "all"
[[fault]]
every = "1500ms"
kind = "fail-point"
target = "all"
for = "1s"
point = "ack.after"
action = "kill"
hits = 3
[expect]
cover = { "fail-point.ack.after.kill" = 6 }
"#;

#[test]
fn a_promise_that_is_broken_between_two_points_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("early.toml"), POWER).unwrap();
    let run = |code, out: &str, more: &[&str]| {
        let by = ["run", &at("early.toml"), "--quiet", "--backend", "sim", "--seed", "1", "--out", &at(out)];
        chaos(code, &[&by[..], more].concat())
    };
    run(0, "sound", &[]);
    let said = run(1, "early", &["--canary", "ack-before-sync"]);
    assert!(said.contains("FAIL    C1"), "{said}");
    // What happened at the point is in the history, and the same run again has the same.
    let history = std::fs::read_to_string(Path::new(&at("early")).join("history.jsonl")).unwrap();
    assert!(history.contains("fail-point.ack.after.kill"), "{history}");
    let said = chaos(1, &["replay", &at("early"), "--quiet", "--out", &at("again")]);
    assert!(said.contains("the same, byte for byte"), "{said}");
}
