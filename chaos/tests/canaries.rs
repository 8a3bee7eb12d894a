//! Each bug that can be planted is found by the checker that it is for. Needs the feature `canary`:
//! `cargo test --workspace --features chaos/canary --test canaries`.
#![cfg(feature = "canary")]
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

use std::process::Command;

fn chaos(arguments: &[&str]) {
    let ran = Command::new(env!("CARGO_BIN_EXE_chaos")).arg("canary").args(arguments).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    println!("{said}");
    assert_eq!(ran.status.code(), Some(0), "{said}");
}

#[test]
fn each_bug_is_found_by_the_checker_that_it_is_for() {
    chaos(&["--seeds", "50"]);
}

#[test]
fn nothing_is_found_where_nothing_is_planted() {
    chaos(&["--without"]);
}
