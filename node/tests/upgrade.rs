//! From one version to the next without a pause: a mixed cluster of the previously landed binary and this one under load,
//! in both directions; and data that the first format wrote.
//!
//! The previous binary is `target/previous/reveille`, which `.ci/run` builds; where it is missing its test says so.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    missing_docs,
    reason = "a test stops where it is surprised, and says what it leaves out"
)]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use reveille_protocol::directory::FORMAT;
use serde_json::Value;
use support::load::Load;
use support::{Dev, REVEILLE, Running, http_try};

fn previous() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/previous/reveille");
    match path.exists() {
        true => Some(path),
        false => {
            eprintln!("skipped: {} is not there; .ci/run builds it", path.display());
            None
        }
    }
}

fn start(dev: &Dev, reveille: &Path, node: usize) -> Running {
    let log = dev.folder.path().join(format!("node-{node}.log"));
    let log = std::fs::File::options().append(true).create(true).open(log).unwrap();
    let child = Command::new(reveille)
        .args(["node", "--log-level", "warn,reveille=info,reveille_cluster=info", "--config"])
        .arg(dev.node(node)["config"].as_str().unwrap())
        .stderr(log)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    Running(child)
}

/// As an operator stops a node: gently. Waits until it has ended.
fn stop(pid: u32) {
    let told = Command::new("kill").args(["-TERM", &pid.to_string()]).status().unwrap();
    assert!(told.success());
    let deadline = Instant::now() + Duration::from_secs(20);
    // One that has ended stays for its parent to look at, which may not come soon.
    let runs =
        || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    while runs() {
        assert!(Instant::now() < deadline, "process {pid} does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn overview(dev: &Dev, node: usize) -> Option<Value> {
    let admin = dev.node(node)["admin"].as_str().unwrap();
    let answer = http_try(admin, "GET", "/cluster", &[], b"")?;
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    Some(answer.json())
}

#[test]
fn a_mixed_cluster_serves_and_takes_the_new_format_when_all_can() {
    let Some(previous) = previous() else { return };
    let current = PathBuf::from(REVEILLE);
    let dev = Dev::start_by(&previous, tempfile::tempdir().unwrap());
    let load = Load::start(&dev, &["t1", "t2", "t3"]);
    load.take(Duration::from_millis(500));
    let mut running: Vec<Option<Running>> = vec![None, None, None];
    let mut change = |node: usize, to: &Path| {
        load.fault(format!("node {node} becomes {}", to.display()));
        let first = dev.node(node)["pid"].as_u64().unwrap() as u32;
        stop(running[node - 1].as_ref().map_or(first, |child| child.0.id()));
        running[node - 1] = Some(start(&dev, to, node));
        dev.wait_ready(node);
        load.take(Duration::from_secs(1));
    };
    change(1, &current);
    change(2, &current);
    let mixed = overview(&dev, 1).unwrap();
    assert_eq!((&mixed["format"], &mixed["settled"]), (&(FORMAT - 1).into(), &false.into()), "{mixed}");
    // Back again: nothing that only the new version reads was written.
    change(2, &previous);
    change(1, &previous);
    for node in 1..=3 {
        change(node, &current);
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    while overview(&dev, 1).is_none_or(|overview| overview["settled"] != true) {
        assert!(Instant::now() < deadline, "the new format is not taken: {:?}", overview(&dev, 1));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(overview(&dev, 3).unwrap()["format"], FORMAT);
    load.take(Duration::from_millis(500));

    // One that is too old now cannot take part, and harms nobody.
    let child = running[2].take().unwrap();
    stop(child.0.id());
    load.fault("node 3 is too old");
    load.publish_through(&[dev.url(1), dev.url(2)]);
    let too_old = start(&dev, &previous, 3);
    load.take(Duration::from_secs(2));
    let admin = dev.node(3)["admin"].as_str().unwrap();
    let ready = http_try(admin, "GET", "/readyz", &[], b"").is_some_and(|answer| answer.status == 200);
    assert!(!ready, "it serves although it cannot read the log");
    drop(too_old);
    running[2] = Some(start(&dev, &current, 3));
    dev.wait_ready(3);
    load.publish_through(&[dev.url(1), dev.url(2), dev.url(3)]);
    load.take(Duration::from_millis(500));
    load.end(200);
}
