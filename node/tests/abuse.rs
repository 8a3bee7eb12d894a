//! An address that a terminal left, and that somebody else has now: what arrives there from a node, counted by the kernel,
//! and what the node says of it. In network namespaces of the test's own; skipped with a message where there can be none.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

mod support;

use std::time::{Duration, Instant};

use serde_json::Value;
use support::lab::{self, Lab, Router};

const PATIENCE: Duration = Duration::from_secs(60);

/// What its leader says of the notifications for a terminal, once that is so.
fn notifying(lab: &Lab, terminal: &str, so: impl Fn(&Value) -> bool) -> Value {
    let until = Instant::now() + PATIENCE;
    loop {
        let notifying = lab.entry(1, terminal)["notifying"].clone();
        if so(&notifying) {
            return notifying;
        }
        assert!(Instant::now() < until, "{notifying}; node 1 says: {}", lab.log(1));
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn an_address_where_nobody_answers_hears_one_dial_and_a_forbidden_one_none() {
    if let Some(why) = lab::missing() {
        eprintln!("skipped: {why}");
        return;
    }
    let mut lab = Lab::start(1);
    lab.router(Router::Open);
    let (child, lines) = lab.terminal("t", &[]);
    let reachable = lines.next_event("reachable");
    assert_eq!(reachable["class"], "direct");
    let terminal = reachable["terminal"].as_str().unwrap().to_owned();
    lines.next_event("disconnected");
    drop(child);

    // A node that remembers no answer.
    lab.kill_node(1);
    lab.start_node(1);
    lab.wait_settled();
    lab.count_at_home();
    assert!(lab.publish(1, &terminal, "nobody is there").contains("message"));
    notifying(&lab, &terminal, |now| now["failed"] == "no_answer");
    // And is not asked again before a minute is over.
    let now = notifying(&lab, &terminal, |now| now["failed"] == "budget");
    std::thread::sleep(Duration::from_secs(10));
    assert_eq!(notifying(&lab, &terminal, |_| true)["tries"], now["tries"], "{now}");
    let (datagrams, bytes) = lab.heard_at_home();
    eprintln!("{now}: {datagrams} datagrams, {bytes} bytes");
    assert!((1..=8).contains(&datagrams), "one dial and its repeats: {datagrams}");

    lab.kill_node(1);
    lab.configure(1, "forbid = [\"192.168.77.0/24\"]");
    lab.start_node(1);
    lab.wait_settled();
    assert!(lab.publish(1, &terminal, "nor here").contains("message"));
    let now = notifying(&lab, &terminal, |now| now["tries"].as_u64() >= Some(2) && !now["failed"].is_null());
    assert_eq!(now["failed"], "forbidden", "{now}");
    assert_eq!(lab.heard_at_home(), (datagrams, bytes));
}
