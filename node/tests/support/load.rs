//! Terminals and careful publishers that go on while something is done to the cluster, and the judgement of what they
//! saw: the chaos suite's checkers of delivery.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use base64::Engine;
use reveille_chaos::check::{DELIVERY, Verdict, judge_events};
use reveille_chaos::history::{
    Begin, Call, End, Event, Fault, FaultStep, Invoke, Observation, Result as Got, VERSION, What, Writer,
};

use super::{Dev, Lines, Running, http_try};

/// A publisher gets here a push through in some 10 ms, on a machine that does much else in ten times that.
const ENOUGH_WITHIN: Duration = Duration::from_secs(60);

pub fn body(event: &serde_json::Value) -> String {
    let bytes = base64::engine::general_purpose::STANDARD.decode(event["body"].as_str().unwrap()).unwrap();
    String::from_utf8(bytes).unwrap()
}

/// What several threads write while a run goes on.
#[derive(Clone)]
struct Story(Arc<Mutex<Vec<Event>>>, Instant);

impl Story {
    fn begin() -> Story {
        let story = Story(Arc::default(), Instant::now());
        let backend = "node tests".to_owned();
        story.tell(What::Begin(Begin { version: VERSION, backend, ..Begin::default() }));
        story
    }

    /// The number of the line, which no other has.
    fn tell(&self, what: What) -> u64 {
        let mut events = self.0.lock().unwrap();
        let n = events.len() as u64;
        events.push(Event { n, at: self.1.elapsed().as_micros() as u64, what });
        n
    }

    fn see(&self, seen: Observation) {
        self.tell(What::Observe(seen));
    }
}

fn is_acknowledgement(event: &&Event) -> bool {
    matches!(event.what, What::Ok { got: Got::Published { .. }, .. })
}

/// See the module.
pub struct Load {
    story: Story,
    stop: Arc<AtomicBool>,
    publishers: Vec<JoinHandle<()>>,
    terminals: BTreeMap<String, (String, Running, Lines)>,
    urls: Arc<RwLock<Vec<String>>>,
    servers: String,
}

impl Load {
    /// Starts terminals by these names, and two publishers to them through every node of the cluster.
    pub fn start(dev: &Dev, names: &[&str]) -> Load {
        Load::start_at(dev, &dev.servers(), names)
    }

    /// The same with terminals that connect to these servers.
    pub fn start_at(dev: &Dev, servers: &str, names: &[&str]) -> Load {
        Load::start_with(dev, servers, names, &[])
    }

    /// The same with terminals that stay connected beside them.
    pub fn start_with(dev: &Dev, servers: &str, asleep: &[&str], connected: &[&str]) -> Load {
        let story = Story::begin();
        let mut terminals = BTreeMap::new();
        for name in asleep.iter().chain(connected) {
            let stays = connected.contains(name);
            let more: &[&str] = if stays { &["--linger", "forever"] } else { &[] };
            let (child, lines) = dev.terminal_of(servers, name, more);
            let id = lines.next_event("listening")["terminal"].as_str().unwrap().to_owned();
            lines.next_event(if stays { "connected" } else { "disconnected" });
            story.see(Observation::Started { terminal: id.clone(), copy: 0 });
            terminals.insert((*name).to_owned(), (id, child, lines));
        }
        let ids: Vec<String> = terminals.values().map(|(id, _, _)| id.clone()).collect();
        let urls = Arc::new(RwLock::new((1..=3).map(|node| dev.url(node).to_owned()).collect()));
        let stop = Arc::new(AtomicBool::new(false));
        let publishers: Vec<_> = (0..2u64)
            .map(|publisher| {
                let work = Publisher {
                    number: publisher,
                    story: story.clone(),
                    terminals: ids.clone(),
                    urls: urls.clone(),
                    token: format!("Bearer {}", dev.token()),
                    stop: stop.clone(),
                };
                std::thread::spawn(move || work.run())
            })
            .collect();
        Load { story, publishers, stop, terminals, urls, servers: servers.to_owned() }
    }

    /// From now on publishers use these nodes.
    pub fn publish_through(&self, urls: &[&str]) {
        *self.urls.write().unwrap() = urls.iter().map(|url| (*url).to_owned()).collect();
    }

    /// Something is done to the cluster now.
    pub fn fault(&self, what: impl Into<String>) {
        let (kind, target, detail) = (what.into(), "the cluster".to_owned(), String::new());
        // The tests say when the next thing is done, not when this one is over.
        let id = self.story.0.lock().unwrap().len() as u64;
        self.story.tell(What::Fault(Fault { id, step: FaultStep::Ended, kind, target, detail }));
    }

    /// Pushes acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        let events = self.story.0.lock().unwrap();
        events.iter().filter(is_acknowledgement).count()
    }

    /// Pushes whose publisher was refused or got no answer, with all its tries.
    pub fn not_acknowledged(&self) -> Vec<What> {
        let events = self.story.0.lock().unwrap();
        let failed = |what: &&What| matches!(what, What::Fail { .. } | What::Unknown { .. });
        events.iter().map(|event| &event.what).filter(failed).cloned().collect()
    }

    /// Takes what comes for at least this long, and until nothing comes any more.
    #[track_caller]
    pub fn take(&self, wait: Duration) {
        let until = Instant::now() + wait;
        let mut quiet = false;
        while !quiet || Instant::now() < until {
            assert!(Instant::now() < until + ENOUGH_WITHIN, "it does not become quiet");
            quiet = true;
            for (id, _, lines) in self.terminals.values() {
                // Of each some in turn: they may come as fast as they are taken.
                for _ in 0..100 {
                    let Some(event) = lines.next_within(Duration::from_millis(1)) else { break };
                    quiet = false;
                    self.delivered(id, &event);
                }
            }
        }
    }

    fn delivered(&self, terminal: &str, event: &serde_json::Value) {
        if event["event"] == "received" {
            self.story.see(Observation::Delivered {
                terminal: terminal.to_owned(),
                copy: 0,
                payload: body(event),
                seq: event["seq"].as_u64().unwrap(),
                prev: None,
                epoch: None,
                maybe_seen: event["maybe_seen"].as_bool().unwrap(),
                node: event["node"].as_u64().unwrap(),
            });
        }
    }

    /// A terminal dies and comes back on its state.
    pub fn restart_terminal(&mut self, dev: &Dev, name: &str) {
        let (id, child, lines) = self.terminals.remove(name).unwrap();
        drop(child);
        while let Some(event) = lines.next_within(Duration::from_millis(200)) {
            self.delivered(&id, &event);
        }
        self.story.see(Observation::Started { terminal: id.clone(), copy: 0 });
        let (child, lines) = dev.terminal_of(&self.servers, name, &[]);
        self.terminals.insert(name.to_owned(), (id, child, lines));
    }

    /// Goes on until this many pushes are acknowledged, ends the publishers, waits for what is still on its way, and
    /// judges. How fast the machine is decides how long that takes, never how it ends.
    #[track_caller]
    pub fn end(mut self, at_least: usize) {
        let until = Instant::now() + ENOUGH_WITHIN;
        while self.acknowledged() < at_least && Instant::now() < until {
            self.take(Duration::from_millis(100));
        }
        self.stop.store(true, Ordering::Relaxed);
        for publisher in self.publishers.drain(..) {
            publisher.join().unwrap();
        }
        self.take(Duration::from_secs(10));
        let acknowledged = self.acknowledged();
        assert!(acknowledged >= at_least, "too few pushes for the run to mean anything: {acknowledged}");
        self.story.tell(What::End(End {}));
        let events = self.story.0.lock().unwrap();
        let judgement = judge_events(&events, DELIVERY);
        if judgement.verdict != Verdict::Pass {
            let path = std::env::temp_dir().join("reveille-end-to-end.jsonl");
            let mut writer = Writer::new(std::fs::File::create(&path).unwrap());
            events.iter().for_each(|event| writer.write(event).unwrap());
            let claimed = judgement.judged.iter().filter(|judged| judged.claimed);
            let bad: Vec<_> = claimed.filter(|judged| judged.outcome.verdict != Verdict::Pass).collect();
            panic!(
                "{}: {bad:#?} {:?}; see `chaos check {}`",
                judgement.verdict,
                judgement.trouble,
                path.display()
            );
        }
    }
}

struct Publisher {
    number: u64,
    story: Story,
    terminals: Vec<String>,
    urls: Arc<RwLock<Vec<String>>>,
    token: String,
    stop: Arc<AtomicBool>,
}

impl Publisher {
    fn run(&self) {
        for number in 0u64.. {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            self.publish(number);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// As a careful publisher: the same key until there is an answer, at the next node each time.
    fn publish(&self, number: u64) {
        let terminal = &self.terminals[(number % self.terminals.len() as u64) as usize];
        let payload = format!("p{}-{number}", self.number);
        let first = number + self.number;
        let call = Call::Publish { terminal: terminal.clone(), payload: payload.clone(), ttl_ms: None };
        // Unique: two publishers, each with numbers of its own.
        let op = number * 2 + self.number;
        let (by, node) = (format!("publisher {}", self.number), Some(first % 3 + 1));
        self.story.tell(What::Invoke(Invoke { op, by, node, deadline_ms: None, call }));
        let path = format!("/v1/terminals/{terminal}/messages");
        let headers = [("Authorization", self.token.as_str()), ("Idempotency-Key", payload.as_str())];
        let answer = (first..first + 30).find_map(|node| {
            let urls = self.urls.read().unwrap().clone();
            let url = &urls[node as usize % urls.len()];
            let answer = http_try(url, "POST", &path, &headers, payload.as_bytes());
            let answer = answer.filter(|answer| answer.status != 503);
            if answer.is_none() {
                std::thread::sleep(Duration::from_millis(20));
            }
            answer
        });
        self.story.tell(match answer {
            Some(answer) if answer.status == 201 => {
                let value = answer.json();
                let message = value["message"].as_str().unwrap().to_owned();
                let seq = value["seq"].as_u64().unwrap();
                What::Ok { op, got: Got::Published { message, seq, position: None } }
            }
            Some(answer) => What::Fail { op, why: format!("{}", answer.status) },
            None => What::Unknown { op, why: "no answer".to_owned() },
        });
    }
}
