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
    // Its own last line does it again, exactly.
    let command = story.lines().last().unwrap().strip_prefix("Again: chaos ").unwrap();
    let words: Vec<&str> = command.split(' ').chain(["--quiet", "--out", &again]).collect();
    let said = chaos(1, &words);
    assert!(said.contains("as before: FAIL, and each checker says the same"), "{said}");
    assert!(said.contains("the same, byte for byte"), "{said}");
}
