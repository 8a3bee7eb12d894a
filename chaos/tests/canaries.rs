//! Each bug that can be planted is found by the checker that it is for. Needs the feature `canary`:
//! `cargo test --workspace --features chaos/canary --test canaries`.
#![cfg(feature = "canary")]
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

use std::path::Path;

#[path = "support/planted.rs"]
mod planted;

use planted::chaos;
use reveille_chaos::scenario::{Scenario, load};

#[test]
fn each_bug_is_found_by_the_checker_that_it_is_for() {
    chaos(0, &["canary", "--seeds", "50"]);
}

/// A line that runs as it stands, where `chaos` is this build's; its folder is this one.
fn as_it_stands(line: &str, folder: &str) -> String {
    let words: Vec<&str> = line.strip_prefix("chaos ").unwrap().split(' ').chain(["--out", folder]).collect();
    chaos(1, &words)
}

#[test]
fn what_was_found_is_seen_again_by_the_last_line() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let said = chaos(0, &["canary", "drop-one-in-thousand"]);
    let again = said.lines().last().unwrap().strip_prefix("again: ").unwrap();
    let said = as_it_stands(again, run.to_str().unwrap());
    let head = said.lines().next().unwrap();
    assert!(head.starts_with("canary-load: ") && head.contains("planted: drop-one-in-thousand"), "{said}");
    assert!(said.contains("FAIL    C1"), "{said}");
    let page = std::fs::read_to_string(run.join("report.html")).unwrap();
    assert!(page.contains("\"planted\":\"drop-one-in-thousand\""), "the report says it");
}

#[test]
fn one_lost_push_makes_the_score_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("score");
    let by = ["score", "--cells", "none/push,kill/push", "--seeds", "1", "--budget", "1h"];
    let planted = ["--canary", "skip-in-hand-off", "--out", out.to_str().unwrap()];
    let said = chaos(1, &[&by[..], &planted].concat());
    assert!(said.lines().next().unwrap().contains("planted: skip-in-hand-off"), "{said}");
    assert!(said.contains("UNSAFE   none/push") && said.contains("\nUNSAFE 0 · "), "{said}");
    let score: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("score.json")).unwrap()).unwrap();
    assert_eq!((score["safety"].as_str(), score["score"].as_u64()), (Some("UNSAFE"), Some(0)));
    let badge = std::fs::read_to_string(out.join("badge.svg")).unwrap();
    assert!(badge.contains("UNSAFE 0"), "{badge}");
}

#[test]
fn nothing_is_found_where_nothing_is_planted() {
    chaos(0, &["canary", "--without"]);
}

fn scenario(run: &str) -> Scenario {
    let file = Path::new(run).join("scenario.toml");
    load("scenario.toml", &std::fs::read_to_string(file).unwrap()).unwrap()
}

/// Of which the bug needs one.
const OTHERS: &str = r#"
[[fault]]
every = "1s"
kind = "terminal-kill"
target = "t"
for = "200ms"
[[fault]]
at = "2s"
kind = "move-leaders"
target = "any"
[[fault]]
every = "2s"
kind = "reconnect"
target = "t"
"#;

#[test]
fn a_planted_bug_is_made_small_and_told() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (file, run, small, again) = (at("much.toml"), at("run"), at("small"), at("again"));
    let power = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/canaries/power.toml")).unwrap();
    std::fs::write(&file, power + OTHERS).unwrap();
    let by = ["--backend", "sim", "--seed", "1", "--canary", "ack-before-sync"];
    let said = chaos(1, &[&["run", &file, "--quiet", "--out", &run], &by[..]].concat());
    assert!(said.contains("FAIL    C1") && said.contains("chaos shrink"), "{said}");
    // Cut off: that it finds is looked at, not how far it comes.
    let said = chaos(0, &["shrink", &run, "--out", &small, "--most", "20"]);
    assert!(said.contains("before: faults 4, strikes "), "{said}");
    assert!(said.contains("now:    faults 1, strikes 1, nodes 3"), "{said}");
    let least = scenario(&small);
    assert_eq!(least.faults().next().unwrap().kind.name(), "power", "{said}");
    assert!(least.faults().all(|fault| fault.at.is_some()), "{said}");
    assert_eq!(least.claims, ["no-acked-loss"]);
    let story = std::fs::read_to_string(Path::new(&small).join("story.txt")).unwrap();
    assert!(story.lines().count() <= 15 && story.contains("FAULT power, node 1, 2, 3"), "{story}");
    assert!(story.lines().next().unwrap().ends_with("backend sim, planted: ack-before-sync"), "{story}");
    // The scenario's first line runs it.
    let text = std::fs::read_to_string(Path::new(&small).join("scenario.toml")).unwrap();
    let said = as_it_stands(text.lines().next().unwrap().strip_prefix("# ").unwrap(), &at("once-more"));
    assert!(said.contains("FAIL    C1"), "{said}");
    // The story's own last line does it again, exactly.
    let command = story.lines().last().unwrap().strip_prefix("Again: chaos ").unwrap();
    let words: Vec<&str> = command.split(' ').chain(["--quiet", "--out", &again]).collect();
    let said = chaos(1, &words);
    assert!(said.contains("as before: FAIL, and each checker says the same"), "{said}");
    assert!(said.contains("the same, byte for byte"), "{said}");
}
