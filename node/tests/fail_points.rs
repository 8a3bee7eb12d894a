//! A build with fail points says so, and takes no orders that it cannot read. What happens at them is the chaos suite's:
//! `chaos/tests/fail_points.rs` has this binary's nodes end at some. Needs the feature `canary`:
//! `cargo test --workspace --features chaos/canary,reveille/canary --test fail_points`.
#![cfg(feature = "canary")]
#![allow(clippy::unwrap_used, missing_docs, reason = "a test stops where it is surprised")]

use std::process::Command;

#[test]
fn a_build_with_fail_points_says_so_and_refuses_orders_that_it_cannot_read() {
    let folder = tempfile::tempdir().unwrap();
    let (orders, data) = (folder.path().join("orders.json"), folder.path().join("data"));
    let reveille = || Command::new(env!("CARGO_BIN_EXE_reveille"));
    let said = reveille().arg("--version").output().unwrap();
    assert!(String::from_utf8_lossy(&said.stdout).contains("with fail points: for tests alone"), "{said:?}");
    let order = r#"[{"id":1,"nodes":[1],"point":"log.sync.befor","action":"Kill","share":1.0,"hits":1,"starting":false}]"#;
    std::fs::write(&orders, order).unwrap();
    let ran = reveille()
        .args(["dev", "--no-demo", "--json", "--nodes", "1", "--groups", "1", "--data"])
        .arg(&data)
        .env("REVEILLE_FAIL_POINTS", &orders)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(!ran.status.success() && said.contains("there is no fail point \"log.sync.befor\""), "{said}");
    let log = std::fs::read_to_string(data.join("node-1.log")).unwrap();
    assert!(log.contains("THIS BUILD HAS FAIL POINTS"), "{log}");
}
