//! Terminals behind routers: how they are reached is found out, and stays true when the router forgets, the anchor dies
//! or datagrams are lost. In network namespaces of the test's own; skipped with a message where there can be none.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

mod support;

use std::time::{Duration, Instant};

use support::lab::{self, KEEPALIVE, Lab, Router};
use support::{Lines, Running};

/// The laboratory, unless it cannot be here.
fn laboratory(nodes: u64) -> Option<Lab> {
    if let Some(why) = lab::missing() {
        eprintln!("skipped: {why}");
        return None;
    }
    Some(Lab::start(nodes))
}

/// A terminal that has found out how it is reached, and sleeps.
fn asleep(lab: &Lab, name: &str, class: &str, more: &[&str]) -> (Running, Lines, String) {
    let (child, lines) = lab.terminal(name, more);
    let reachable = loop {
        let Some(event) = lines.next_within(Duration::from_secs(20)) else {
            panic!("{name} does not find out: {}\n{}", lab.terminal_log(name), lab.log(1));
        };
        if event["event"] == "reachable" {
            break event;
        }
    };
    assert_eq!(reachable["class"], class, "{name}");
    let terminal = reachable["terminal"].as_str().unwrap().to_owned();
    if more.is_empty() {
        lines.next_event("disconnected");
    }
    (child, lines, terminal)
}

/// Publishes, and waits for the push; how long that took, and the node by which it came.
fn wakes(lab: &Lab, by: u64, terminal: &str, lines: &Lines, body: &str) -> (Duration, u64) {
    let began = Instant::now();
    let said = lab.publish(by, terminal, body);
    assert!(said.contains("message"), "{said}");
    lines.next_event("notified");
    let push = lines.next_event("received");
    let took = began.elapsed();
    lines.next_event("disconnected");
    (took, push["node"].as_u64().unwrap())
}

#[test]
fn a_terminal_finds_out_how_it_is_reached_and_is_woken_that_way() {
    let Some(lab) = laboratory(1) else { return };
    for (router, name, class) in [
        (Router::Open, "open", "direct"),
        (Router::Random, "random", "pinned"),
        (Router::Preserving, "preserving", "pinned"),
    ] {
        lab.router(router);
        let (_child, lines, terminal) = asleep(&lab, name, class, &[]);
        for body in ["one", "two"] {
            let (took, _) = wakes(&lab, 1, &terminal, &lines, body);
            eprintln!("{name}: woken by push {body} after {took:?}");
            assert!(took < Duration::from_secs(5), "{name}: {took:?}");
        }
    }
    lab.router(Router::Blocked);
    let (_child, lines, terminal) = asleep(&lab, "blocked", "none", &["--stay-if-unreachable"]);
    lines.next_event("disconnected");
    lines.next_event("connected");
    assert!(lab.publish(1, &terminal, "by a session").contains("message"));
    lines.next_event("received");
}

#[test]
fn a_binding_that_the_router_forgot_is_back_with_the_next_keepalive() {
    let Some(lab) = laboratory(1) else { return };
    lab.router(Router::Random);
    let (_child, lines, terminal) = asleep(&lab, "t", "pinned", &[]);
    for round in 0..3 {
        lab.rebind();
        let (took, _) = wakes(&lab, 1, &terminal, &lines, "hello");
        eprintln!("round {round}: woken {took:?} after the router forgot");
        assert!(took < Duration::from_secs(2 * KEEPALIVE + 5), "{took:?}");
    }
}

#[test]
fn a_terminal_notices_by_itself_that_its_address_is_another() {
    let Some(lab) = laboratory(1) else { return };
    for (router, name, class, from) in
        [(Router::Open, "open", "direct", 2), (Router::Random, "random", "pinned", 3)]
    {
        lab.router(router);
        let (_child, lines, terminal) = asleep(&lab, name, class, &[]);
        let began = Instant::now();
        lab.readdress(from, from + 1);
        // Nothing was pushed: what makes it connect is what it has noticed itself.
        lines.next_event("connected");
        eprintln!("{name}: noticed after {:?}", began.elapsed());
        lines.next_event("disconnected");
        let (took, _) = wakes(&lab, 1, &terminal, &lines, "at the new address");
        eprintln!("{name}: woken after {took:?}");
        assert!(took < Duration::from_secs(5), "{name}: {took:?}");
    }
}

#[test]
fn another_node_takes_the_place_of_an_anchor_that_died() {
    let Some(mut lab) = laboratory(3) else { return };
    lab.router(Router::Random);
    let (_child, lines, terminal) = asleep(&lab, "t", "pinned", &[]);
    let (_, anchor) = wakes(&lab, 1, &terminal, &lines, "first");
    let other = anchor % 3 + 1;
    lab.kill_node(anchor);
    let began = Instant::now();
    let said = lab.publish(other, &terminal, "second");
    assert!(said.contains("message"), "{said}");
    let push = lines.next_event("received");
    eprintln!("the push came {:?} after its anchor was killed", began.elapsed());
    assert_ne!(push["node"], anchor);
    assert!(began.elapsed() < Duration::from_secs(4 * KEEPALIVE + 10), "{:?}", began.elapsed());
    lines.next_event("disconnected");
    let (took, _) = wakes(&lab, other, &terminal, &lines, "third");
    eprintln!("woken through the new anchor after {took:?}");
}

#[test]
#[ignore = "it waits for silences of half a minute and more: four minutes"]
fn a_terminal_measures_its_network_and_remembers_it() {
    let Some(lab) = laboratory(1) else { return };
    lab.router(Router::Random);
    lab.forget_after(45);
    let (_child, lines) = lab.terminal("t", &["doctor", "--measure"]);
    let found = lines.next_within(Duration::from_secs(400)).expect("an answer of the doctor");
    eprintln!("{found}");
    // It outlived 30 s and not 60 s.
    assert_eq!((&found["keepalive_seconds"], &found["class"]), (&24.into(), &"pinned".into()), "{found}");
    let (_child, lines) = lab.terminal("t", &["doctor"]);
    let again = lines.next_within(Duration::from_secs(60)).expect("an answer of the doctor");
    assert_eq!(again["keepalive_seconds"], 24, "{again}");
}

#[test]
fn every_push_comes_although_a_third_of_all_datagrams_is_lost() {
    let Some(lab) = laboratory(1) else { return };
    lab.router(Router::Random);
    let (_child, lines, terminal) = asleep(&lab, "t", "pinned", &[]);
    lab.lose(30);
    for number in 0..5 {
        let began = Instant::now();
        let said = lab.publish(1, &terminal, "hello");
        assert!(said.contains("message"), "{said}");
        // It may come by a session that was open already: only that it comes counts.
        lines.next_event("received");
        eprintln!("push {number}: {:?}", began.elapsed());
    }
}
