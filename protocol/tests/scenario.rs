//! Scenarios as text: commands, and below each the full trace of what followed. A newcomer can read them; change a
//! trace only if you can explain the difference.
//!
//! `UPDATE_SCENARIOS=1 cargo test -p reveille-protocol --test scenario` writes the traces anew.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

#[path = "scenario/command.rs"]
mod command;
#[path = "scenario/show.rs"]
mod show;
#[path = "scenario/world.rs"]
mod world;

use std::fs;
use std::path::Path;

/// Runs a scenario and renders it again, with the traces that came.
fn play(text: &str) -> String {
    let mut world = world::World::new();
    let mut out = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        out.push_str(line);
        out.push('\n');
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        // The old trace goes, up to the next empty line.
        while lines.peek().is_some_and(|line| !line.is_empty()) {
            lines.next();
        }
        command::run(&mut world, line);
        for traced in world.take_trace() {
            out.push_str("  ");
            out.push_str(&traced);
            out.push('\n');
        }
    }
    out
}

#[test]
fn every_scenario_gives_its_trace() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    let mut different = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let played = play(&text);
        if std::env::var("UPDATE_SCENARIOS").is_ok() {
            fs::write(&file, &played).unwrap();
        } else if played != text {
            let at = played.lines().zip(text.lines()).position(|(now, was)| now != was).unwrap_or(0);
            let (now, was) = (played.lines().nth(at).unwrap_or(""), text.lines().nth(at).unwrap_or(""));
            different.push(format!("{}:{}\n  was: {was}\n  now: {now}", file.display(), at + 1));
        }
    }
    assert!(different.is_empty(), "\n{}", different.join("\n"));
}
