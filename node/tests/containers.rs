//! `docker-compose.yml` as its user starts it: the image, the names, terminals woken across the containers' network, and
//! nodes killed, paused and cut off while publishers go on. Needs Docker; `.ci/run` runs it where there is one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

mod support;

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reveille_chaos::check::{DELIVERY, Verdict, judge_events};
use reveille_chaos::history::{
    Begin, Call, End, Event, Fault, FaultStep, Invoke, Observation, Result as Got, VERSION, What,
};
use serde_json::Value;
use support::compose::{COMMAND, Compose, docker};
use support::{Lines, REVEILLE, Running};

/// How long each fault lasts: the others notice a silent node after 3 s.
const FAULT: Duration = Duration::from_secs(5);

/// A terminal's container, followed by its log.
struct Terminal {
    id: String,
    lines: Lines,
    _log: Running,
}

impl Terminal {
    fn follow(compose: &Compose, service: &str) -> Terminal {
        let mut log = Command::new("docker")
            .args(["logs", "--follow", &compose.container(service)])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = Lines::of(&mut log);
        let log = Running(log);
        let id = lines.next_event("listening")["terminal"].as_str().unwrap().to_owned();
        lines.next_event("connected");
        lines.next_event("disconnected");
        Terminal { id, lines, _log: log }
    }
}

/// The run: who publishes, to whom, and what happened.
struct Run {
    publisher: String,
    terminals: Vec<Terminal>,
    began: Instant,
    history: Vec<Event>,
    pushes: u64,
}

impl Run {
    fn tell(&mut self, what: What) {
        let n = self.history.len() as u64;
        self.history.push(Event { n, at: self.began.elapsed().as_micros() as u64, what });
    }

    fn see(&mut self, seen: Observation) {
        self.tell(What::Observe(seen));
    }

    /// Publishes to the terminals in turn and waits for the acknowledgement; as a careful publisher, through the next
    /// of these nodes under the same key while there is none. Says how often it tried.
    fn publish(&mut self, nodes: &[u64]) -> u64 {
        self.pushes += 1;
        let terminal = self.terminals[(self.pushes % 2) as usize].id.clone();
        let payload = format!("push {}", self.pushes);
        let deadline = Instant::now() + COMMAND;
        for tries in 1.. {
            let node = nodes[((self.pushes + tries) % nodes.len() as u64) as usize];
            if tries == 1 {
                let call =
                    Call::Publish { terminal: terminal.clone(), payload: payload.clone(), ttl_ms: None };
                let (op, by) = (self.pushes, "publisher".to_owned());
                self.tell(What::Invoke(Invoke { op, by, node: Some(node), deadline_ms: None, call }));
            }
            let url = format!("https://node-{node}:8080");
            let publish =
                ["exec", &self.publisher, "entry.sh", "publish", "--json", "--url", &url, "--ca", "ca.pem"];
            let push = ["--to", &terminal, "--idempotency-key", &payload, "--wait", "acked", &payload];
            match docker(&[&publish[..], &push[..]].concat()) {
                Ok(status) => {
                    let status: Value = serde_json::from_str(&status).unwrap();
                    let message = status["message"].as_str().unwrap().to_owned();
                    let seq = status["seq"].as_u64().unwrap();
                    let got = Got::Published { message, seq, position: None };
                    self.tell(What::Ok { op: self.pushes, got });
                    return tries;
                }
                Err(why) => assert!(Instant::now() < deadline, "{payload} is not acknowledged: {why:?}"),
            }
        }
        unreachable!("a loop without an end")
    }

    /// Takes what the terminals were given, until they have been silent for this long.
    fn take(&mut self, silence: Duration) {
        for at in 0..self.terminals.len() {
            while let Some(event) = self.terminals[at].lines.next_within(silence) {
                self.given(at, &event);
            }
        }
    }

    fn given(&mut self, at: usize, event: &Value) {
        if event["event"] != "received" {
            return;
        }
        let terminal = self.terminals[at].id.clone();
        let seq = event["seq"].as_u64().unwrap();
        self.see(Observation::Delivered {
            terminal: terminal.clone(),
            copy: 0,
            payload: String::from_utf8(STANDARD.decode(event["body"].as_str().unwrap()).unwrap()).unwrap(),
            seq,
            prev: None,
            epoch: None,
            maybe_seen: event["maybe_seen"].as_bool().unwrap(),
            node: event["node"].as_u64().unwrap(),
        });
        self.see(Observation::Confirmed { terminal, copy: 0, seq });
    }

    fn fault(&mut self, what: &str, survivors: &[u64]) {
        let began = Instant::now();
        let (id, target, detail) = (self.history.len() as u64, "the cluster".to_owned(), String::new());
        self.tell(What::Fault(Fault { id, step: FaultStep::Ended, kind: what.to_owned(), target, detail }));
        let (mut pushes, mut tries, mut slowest) = (0, 0, Duration::ZERO);
        while began.elapsed() < FAULT {
            let push = Instant::now();
            tries += self.publish(survivors);
            pushes += 1;
            slowest = slowest.max(push.elapsed());
        }
        eprintln!("{what}: {pushes} pushes acknowledged with {tries} tries, the slowest in {slowest:.1?}");
    }
}

fn state(container: &str) -> String {
    docker(&["inspect", "--format", "{{.State.Status}}", container]).unwrap()
}

/// CI gives the image a binary; who has a registry compiles it in there.
#[test]
fn the_image_has_every_folder_of_the_workspace_to_compile_from() {
    let read = |file: &str| {
        std::fs::read_to_string(format!("{}/../{file}", env!("CARGO_MANIFEST_DIR")))
            .expect("the clone has it")
    };
    let workspace: toml::Table = read("Cargo.toml").parse().expect("a manifest");
    let members = workspace["workspace"]["members"].as_array().expect("a list");
    let given = read(".dockerignore");
    for member in members.iter().map(|member| member.as_str().expect("a folder")) {
        assert!(given.lines().any(|line| line == format!("!{member}")), "{member} is not in .dockerignore");
    }
}

#[test]
#[ignore = "starts containers; .ci/run runs it where there is Docker"]
fn containers_that_are_killed_paused_and_cut_off_lose_and_repeat_nothing() {
    let began = Instant::now();
    let compose = Compose::build(REVEILLE.as_ref());
    let stands = |what: &str| eprintln!("{what} after {:.1?}", began.elapsed());
    stands("the image is made");
    // Waits for the founding, then for three healthy nodes.
    compose.up(&["terminal-1", "terminal-2"]);
    let publisher = compose.idle("publisher");
    stands("three nodes are healthy");
    let [node1, node2, node3] = ["node-1", "node-2", "node-3"].map(|node| compose.container(node));

    let addresses = docker(&["exec", &publisher, "getent", "ahostsv4", "push"]).unwrap();
    let addresses: BTreeSet<_> = addresses.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(addresses.len(), 3, "push stands for three nodes: {addresses:?}");
    assert_eq!(docker(&["exec", &node1, "id", "-u"]).unwrap(), "10001");
    assert!(docker(&["exec", &node1, "touch", "/new"]).is_err());

    let terminals = ["terminal-1", "terminal-2"].map(|service| Terminal::follow(&compose, service)).into();
    let mut run = Run { publisher: publisher.clone(), terminals, began, history: Vec::new(), pushes: 0 };
    run.tell(What::Begin(Begin { version: VERSION, backend: "containers".to_owned(), ..Begin::default() }));
    for at in 0..2 {
        let terminal = run.terminals[at].id.clone();
        run.see(Observation::Started { terminal, copy: 0 });
    }
    // Asleep, a terminal is woken by a datagram; through each node, at the first try.
    for node in [1, 2, 3, 1, 2, 3] {
        assert_eq!(run.publish(&[node]), 1, "node {node} refused a push");
        let at = (run.pushes % 2) as usize;
        for name in ["notified", "connected", "received", "disconnected"] {
            let event = run.terminals[at].lines.next();
            assert_eq!(event["event"], name, "{event}");
            run.given(at, &event);
        }
    }
    stands("terminals were woken through each node");

    docker(&["kill", &node1]).unwrap();
    run.fault("node 1 killed", &[2, 3]);
    assert_eq!(state(&node1), "exited");
    docker(&["start", &node1]).unwrap();
    compose.wait_ready("node-1");

    docker(&["pause", &node2]).unwrap();
    run.fault("node 2 paused", &[1, 3]);
    assert_eq!(state(&node2), "paused");
    docker(&["unpause", &node2]).unwrap();
    compose.wait_ready("node-2");

    let network = format!("{}_default", compose.project);
    docker(&["network", "disconnect", &network, &node3]).unwrap();
    run.fault("node 3 cut off", &[1, 2]);
    docker(&["network", "connect", "--alias", "node-3", "--alias", "push", &network, &node3]).unwrap();
    compose.wait_ready("node-3");

    run.fault("all healthy again", &[1, 2, 3]);
    run.take(Duration::from_secs(2));
    run.tell(What::End(End {}));
    let judgement = judge_events(&run.history, DELIVERY);
    assert_eq!(judgement.verdict, Verdict::Pass, "{:#?}\nhistory: {:#?}", judgement.judged, run.history);
    stands("every push was given once and in order");

    // The service as it is: a line for each push.
    docker(&["rm", "--force", &publisher]).unwrap();
    compose.up(&["publisher"]);
    let publisher = compose.container("publisher");
    let deadline = Instant::now() + COMMAND;
    loop {
        let log = docker(&["logs", &publisher]).unwrap();
        let acked = log.lines().filter(|line| line.starts_with("push ") && line.contains(": acked "));
        if acked.count() >= 2 {
            break;
        }
        assert!(Instant::now() < deadline, "the publisher printed no acknowledged pushes:\n{log}");
        std::thread::sleep(Duration::from_millis(200));
    }
    stands("the publisher printed its pushes");
}
