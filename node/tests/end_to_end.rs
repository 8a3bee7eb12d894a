//! The user's view, end to end: `reveille dev`, terminals and publishers as processes, a node killed under load. The
//! history is judged by the chaos suite's checkers of delivery.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

mod support;

use std::time::Duration;

use support::Dev;
use support::load::{Load, body};

/// The seven steps: offline, notified, connected, received, disconnected; through each node.
#[test]
fn a_push_wakes_a_sleeping_terminal_through_any_node() {
    let dev = Dev::start();
    let (_child, terminal) = dev.terminal("t1", &[]);
    let listening = terminal.next_event("listening");
    let id = listening["terminal"].as_str().unwrap().to_owned();
    terminal.next_event("disconnected");
    for node in 1..=3 {
        let payload = format!("through {node}");
        let published = dev.publish(node, &id, &[("TTL", "60")], payload.as_bytes());
        assert_eq!(published.status, 201, "{published:?}");
        assert_eq!(published.header("TTL"), Some("60"));
        let message = published.json()["message"].as_str().unwrap().to_owned();
        assert_eq!(published.header("Location"), Some(format!("/v1/messages/{message}").as_str()));
        terminal.next_event("notified");
        terminal.next_event("connected");
        let received = terminal.next_event("received");
        assert_eq!(received["message"], message.as_str());
        assert_eq!(received["seq"], node as u64);
        assert_eq!(body(&received), payload);
        terminal.next_event("disconnected");
        let path = format!("/v1/messages/{message}?wait=acked&timeout=10s");
        let status = dev.request(1 + node % 3, "GET", &path, &[], b"").json();
        assert_eq!(status["state"], "acked", "{status}");
        let entry = dev.request(node, "GET", &format!("/v1/terminals/{id}"), &[], b"").json();
        assert_eq!((&entry["state"], &entry["pending"]), (&"offline".into(), &0.into()), "{entry}");
    }
}

#[test]
fn a_lingering_terminal_gets_pushes_without_a_notification() {
    let dev = Dev::start();
    let (_child, terminal) = dev.terminal("t1", &["--linger", "forever"]);
    let id = terminal.next_event("connected")["terminal"].as_str().unwrap().to_owned();
    for seq in 1..=5 {
        assert_eq!(dev.publish(1 + seq % 3, &id, &[], b"hello").status, 201);
        // It may find out meanwhile how it is reached.
        let event =
            std::iter::repeat_with(|| terminal.next()).find(|event| event["event"] != "reachable").unwrap();
        assert_eq!((&event["event"], &event["seq"]), (&"received".into(), &(seq as u64).into()), "{event}");
    }
    let entry = dev.request(2, "GET", &format!("/v1/terminals/{id}"), &[], b"").json();
    assert_eq!(entry["state"], "online");
}

/// The application confirms after its session broke and before the next one stands.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_confirmed_between_two_sessions_is_acknowledged() {
    let dev = Dev::start();
    let servers: Vec<String> = dev.servers().split(',').map(str::to_owned).collect();
    let mut terminal = reveille_terminal::Builder::new(servers, dev.ca(), dev.folder.path().join("t1"))
        .listen("127.0.0.1:0".parse().unwrap())
        .linger(reveille_terminal::Linger::Forever)
        .start()
        .await
        .unwrap();
    while !matches!(terminal.next().await.unwrap(), reveille_terminal::Event::Connected { .. }) {}
    let id = terminal.id().to_string();
    let published = dev.publish(1, &id, &[], b"slow application").json();
    let push = loop {
        if let reveille_terminal::Event::Received(push) = terminal.next().await.unwrap() {
            break push;
        }
    };
    let node = push.node.0 as usize;
    dev.kill_node(node);
    while !matches!(terminal.next().await.unwrap(), reveille_terminal::Event::Disconnected { .. }) {}
    push.confirm();
    let path = format!("/v1/messages/{}?wait=acked&timeout=20s", published["message"].as_str().unwrap());
    let alive = 1 + node % 3;
    let status = tokio::task::block_in_place(|| dev.request(alive, "GET", &path, &[], b"").json());
    assert_eq!(status["state"], "acked", "{status}");
    terminal.shutdown().await;
}

/// kill -9 of each node in turn under load, terminals killed as well: nothing acknowledged is lost, none comes twice
/// without its mark, order is kept.
#[test]
fn killed_nodes_and_terminals_lose_and_repeat_nothing() {
    let mut dev = Dev::start();
    let mut load = Load::start(&dev, &["t1", "t2", "t3"]);
    for victim in 1..=3 {
        load.take(Duration::from_millis(700));
        load.fault(format!("kill -9 node {victim}"));
        dev.kill_node(victim);
        load.take(Duration::from_millis(1500));
        dev.start_node(victim);
        dev.wait_ready(victim);
    }
    load.restart_terminal(&dev, "t2");
    load.take(Duration::from_millis(1000));
    load.end(100);
}
