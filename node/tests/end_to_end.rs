//! The user's view, end to end: `reveille dev`, terminals and publishers as processes, a node killed under load. The
//! history is judged by the chaos suite's delivery checker.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use reveille_chaos::check::{Verdict, delivery};
use reveille_chaos::history::{Event, What};
use support::{Dev, http_try};

fn body(event: &serde_json::Value) -> String {
    let bytes = base64::engine::general_purpose::STANDARD.decode(event["body"].as_str().unwrap()).unwrap();
    String::from_utf8(bytes).unwrap()
}

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
        let event = terminal.next();
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

/// What several threads write while a run goes on.
#[derive(Clone)]
struct Story(Arc<Mutex<Vec<Event>>>, Instant);

impl Story {
    fn tell(&self, what: What) {
        let mut events = self.0.lock().unwrap();
        events.push(Event { at: self.1.elapsed().as_micros() as u64, what });
    }
}

/// kill -9 of each node in turn under load, terminals killed as well: nothing acknowledged is lost, none comes twice
/// without its mark, order is kept.
#[test]
fn killed_nodes_and_terminals_lose_and_repeat_nothing() {
    let mut dev = Dev::start();
    let story = Story(Arc::default(), Instant::now());
    let names = ["t1", "t2", "t3"];
    let mut terminals = BTreeMap::new();
    for name in names {
        let (child, lines) = dev.terminal(name, &[]);
        let id = lines.next_event("listening")["terminal"].as_str().unwrap().to_owned();
        lines.next_event("disconnected");
        story.tell(What::TerminalStarted { terminal: id.clone() });
        terminals.insert(name, (id, child, lines));
    }
    let ids: Vec<String> = terminals.values().map(|(id, _, _)| id.clone()).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let publishers: Vec<_> = (0..2u64)
        .map(|publisher| {
            let (story, ids, stop) = (story.clone(), ids.clone(), stop.clone());
            let urls: Vec<String> = (1..=3).map(|node| dev.url(node).to_owned()).collect();
            let token = format!("Bearer {}", dev.token());
            std::thread::spawn(move || {
                for number in 0u64.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let terminal = &ids[(number % 3) as usize];
                    let payload = format!("p{publisher}-{number}");
                    let node = (number + publisher) % 3;
                    story.tell(What::Publish {
                        terminal: terminal.clone(),
                        payload: payload.clone(),
                        node: node + 1,
                    });
                    let path = format!("/v1/terminals/{terminal}/messages");
                    // As a careful publisher: the same key until there is an answer, at the next node each time.
                    let headers = [("Authorization", token.as_str()), ("Idempotency-Key", payload.as_str())];
                    let answer = (node..node + 30).find_map(|node| {
                        let answer =
                            http_try(&urls[(node % 3) as usize], "POST", &path, &headers, payload.as_bytes());
                        let answer = answer.filter(|answer| answer.status != 503);
                        if answer.is_none() {
                            std::thread::sleep(Duration::from_millis(20));
                        }
                        answer
                    });
                    story.tell(match answer {
                        Some(answer) if answer.status == 201 => {
                            let value = answer.json();
                            let message = value["message"].as_str().unwrap().to_owned();
                            What::Published { payload, message, seq: value["seq"].as_u64().unwrap() }
                        }
                        Some(answer) => What::Failed { payload, why: format!("{}", answer.status) },
                        None => What::Unknown { payload, why: "no answer".to_owned() },
                    });
                    std::thread::sleep(Duration::from_millis(5));
                }
            })
        })
        .collect();
    let take = |terminals: &BTreeMap<&str, (String, support::Running, support::Lines)>, wait: Duration| {
        let until = Instant::now() + wait;
        let mut quiet = false;
        while !quiet || Instant::now() < until {
            quiet = true;
            for (id, _, lines) in terminals.values() {
                while let Some(event) = lines.next_within(Duration::from_millis(1)) {
                    quiet = false;
                    if event["event"] != "received" {
                        continue;
                    }
                    let seq = event["seq"].as_u64().unwrap();
                    story.tell(What::Delivered {
                        terminal: id.clone(),
                        payload: body(&event),
                        seq,
                        maybe_seen: event["maybe_seen"].as_bool().unwrap(),
                        node: event["node"].as_u64().unwrap(),
                    });
                }
            }
        }
    };
    for victim in 1..=3 {
        take(&terminals, Duration::from_millis(700));
        story.tell(What::Fault { what: format!("kill -9 node {victim}") });
        dev.kill_node(victim);
        take(&terminals, Duration::from_millis(1500));
        dev.start_node(victim);
        dev.wait_ready(victim);
    }
    // A terminal dies and comes back on its state.
    let (id, child, lines) = terminals.remove("t2").unwrap();
    drop(child);
    while let Some(event) = lines.next_within(Duration::from_millis(200)) {
        if event["event"] == "received" {
            story.tell(What::Delivered {
                terminal: id.clone(),
                payload: body(&event),
                seq: event["seq"].as_u64().unwrap(),
                maybe_seen: event["maybe_seen"].as_bool().unwrap(),
                node: event["node"].as_u64().unwrap(),
            });
        }
    }
    story.tell(What::TerminalStarted { terminal: id.clone() });
    let (child, lines) = dev.terminal("t2", &[]);
    terminals.insert("t2", (id, child, lines));
    take(&terminals, Duration::from_millis(1000));
    stop.store(true, Ordering::Relaxed);
    for publisher in publishers {
        publisher.join().unwrap();
    }
    take(&terminals, Duration::from_secs(10));
    let events = story.0.lock().unwrap();
    let acknowledged = events.iter().filter(|event| matches!(event.what, What::Published { .. })).count();
    assert!(acknowledged > 100, "too few pushes for the run to mean anything: {acknowledged}");
    match delivery(&events) {
        Verdict::Pass => {}
        Verdict::Fail(found) => {
            let path = std::env::temp_dir().join("reveille-end-to-end.jsonl");
            let mut writer =
                reveille_chaos::history::Writer::new(std::fs::File::create(&path).unwrap()).unwrap();
            events.iter().for_each(|event| writer.write(event).unwrap());
            panic!(
                "{} findings, the first: {:#?}\nhistory: {}",
                found.len(),
                &found[..found.len().min(5)],
                path.display()
            );
        }
        Verdict::Unknown(why) => panic!("unknown: {why}"),
    }
}
