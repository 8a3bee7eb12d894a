//! A history as a cluster without faults of its own would leave it, of any size, by seed: everything that checkers look at
//! is in it, and nothing that they may find.
#![allow(dead_code, missing_docs, reason = "shared by tests and the example")]

use std::collections::BTreeMap;

use reveille_chaos::check::CHECKERS;
use reveille_chaos::history::*;

/// How big.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub seed: u64,
    pub terminals: u64,
    /// Sessions of each terminal.
    pub sessions: u64,
    /// Pushes in each session.
    pub burst: u64,
}

impl Size {
    /// Publishes and status queries.
    pub fn operations(&self) -> u64 {
        self.terminals * self.sessions * (self.burst + 1)
    }
}

struct Device {
    name: String,
    seq: u64,
    epoch: u64,
}

struct Story<'a> {
    out: &'a mut dyn FnMut(Event),
    n: u64,
    at: u64,
    op: u64,
    index: u64,
    draw: u64,
}

impl Story<'_> {
    fn tell(&mut self, after_us: u64, what: What) {
        self.at += after_us;
        (self.out)(Event { n: self.n, at: self.at, what });
        self.n += 1;
    }

    fn see(&mut self, after_us: u64, seen: Observation) {
        self.tell(after_us, What::Observe(seen));
    }

    fn invoke(&mut self, by: &str, call: Call) -> u64 {
        self.op += 1;
        let (op, node) = (self.op, Some(self.op % 3 + 1));
        self.tell(40, What::Invoke(Invoke { op, by: by.to_owned(), node, deadline_ms: Some(30_000), call }));
        op
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.draw = self.draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.draw >> 33) % limit
    }

    /// A burst for a sleeping terminal, its session, and what the service list says then.
    fn session(&mut self, device: &mut Device, burst: u64) {
        let terminal = device.name.clone();
        let first = device.seq + 1;
        let asked: Vec<(u64, String)> = (first..first + burst)
            .map(|seq| {
                let payload = format!("{terminal}.{seq}");
                let call =
                    Call::Publish { terminal: terminal.clone(), payload: payload.clone(), ttl_ms: None };
                (self.invoke("publisher", call), payload)
            })
            .collect();
        for (op, _) in &asked {
            device.seq += 1;
            self.index += 1;
            let (seq, position) = (device.seq, Some((1, self.index)));
            let message = format!("{terminal}-0000001f-{seq}");
            self.tell(300, What::Ok { op: *op, got: Result::Published { message, seq, position } });
        }
        let node = self.below(3) + 1;
        let sent = Observation::Notifying {
            terminal: terminal.clone(),
            node,
            online: false,
            pending: burst,
            proven: true,
        };
        self.see(100, sent);
        self.see(900, Observation::Notified { terminal: terminal.clone(), copy: 0 });
        self.connect(device, node);
        let restarts = (self.index / burst) % 5 == 2;
        self.deliver(device, node, first, &asked, false);
        if restarts {
            self.see(500, Observation::Started { terminal: terminal.clone(), copy: 0 });
            self.connect(device, node % 3 + 1);
            self.deliver(device, node % 3 + 1, first, &asked, true);
        }
        let seq = device.seq;
        self.see(50, Observation::Confirmed { terminal: terminal.clone(), copy: 0, seq });
        self.see(50, Observation::Saved { terminal: terminal.clone(), copy: 0, seq });
        self.see(2000, Observation::Disconnected { terminal: terminal.clone(), copy: 0 });
        let op = self.invoke("observer", Call::Status { terminal });
        let (epoch, next_seq) = (device.epoch, seq + 1);
        let got = Result::Status { online: false, node: None, epoch, acked: seq, next_seq };
        self.tell(700, What::Ok { op, got });
    }

    fn connect(&mut self, device: &mut Device, node: u64) {
        device.epoch += 1;
        let (terminal, epoch) = (device.name.clone(), device.epoch);
        self.see(4000, Observation::Connected { terminal, copy: 0, node, epoch });
    }

    fn deliver(&mut self, device: &Device, node: u64, first: u64, asked: &[(u64, String)], maybe_seen: bool) {
        for (seq, (_, payload)) in (first..).zip(asked) {
            let given = Observation::Delivered {
                terminal: device.name.clone(),
                copy: 0,
                payload: payload.clone(),
                seq,
                prev: Some(seq - 1),
                maybe_seen,
                node,
                epoch: Some(device.epoch),
            };
            self.see(60, given);
        }
    }

    fn replicas(&mut self) {
        for group in 0..2 {
            for node in 1..=3 {
                let (index, hash) = (self.index, format!("{:08x}", self.index * 7 + group));
                self.see(10, Observation::State { node, group, index, hash });
            }
        }
    }

    fn nodes(&mut self) {
        for node in 1..=3 {
            let (rss_bytes, fds) = (60_000_000 + self.below(1_000_000), 40 + self.below(20));
            self.see(10, Observation::Resources { node, rss_bytes, fds, disk_bytes: Some(1 << 24) });
        }
    }

    fn fault(&mut self, step: FaultStep) {
        let (kind, target) = ("kill".to_owned(), "node 2".to_owned());
        self.tell(1000, What::Fault(Fault { id: 1, step, kind, target, detail: String::new() }));
    }
}

fn expect() -> Expect {
    Expect {
        claims: CHECKERS.iter().map(|checker| checker.id.to_owned()).collect(),
        publish_gap_ms: Some(2000),
        deliver_ms: Some(5000),
        ready_ms: Some(3000),
        notify_ms: Some(1000),
        rss_bytes: Some(200_000_000),
        fds: Some(200),
        disk_bytes: Some(1 << 30),
        cover: BTreeMap::from([("fault.kill".to_owned(), 1), ("restart".to_owned(), 1)]),
    }
}

/// The history, event by event.
pub fn generate(size: Size, out: &mut dyn FnMut(Event)) {
    let mut story = Story { out, n: 0, at: 0, op: 0, index: 0, draw: size.seed };
    let begin = Begin {
        version: VERSION,
        run: "generated".to_owned(),
        seed: size.seed,
        backend: "generated".to_owned(),
        scenario: String::new(),
        planted: String::new(),
        unix_ms: 1_764_000_000_000,
        expect: expect(),
    };
    story.tell(0, What::Begin(begin));
    let mut devices: Vec<Device> =
        (0..size.terminals).map(|at| Device { name: format!("t{at}"), seq: 0, epoch: 0 }).collect();
    story.see(10, Observation::Phase { phase: Phase::Warmup });
    for node in 1..=3 {
        story.see(10, Observation::Ready { node, ready: true });
        story.see(10, Observation::Leader { group: node - 1, node, term: 1 });
    }
    for device in &devices {
        story.see(10, Observation::Started { terminal: device.name.clone(), copy: 0 });
    }
    for session in 0..size.sessions {
        // The fault is about in the first third; the rest is quiet enough to be judged for time.
        if session == size.sessions / 3 {
            story.see(10, Observation::Phase { phase: Phase::Chaos });
            story.fault(FaultStep::Began);
            story.see(10, Observation::Ready { node: 2, ready: false });
        }
        for device in &mut devices {
            story.session(device, size.burst);
        }
        if session == size.sessions / 3 {
            story.fault(FaultStep::Ended);
            story.see(800_000, Observation::Ready { node: 2, ready: true });
            story.see(10, Observation::Cover { point: "restart".to_owned(), count: 1 });
            story.see(12_000_000, Observation::Phase { phase: Phase::Heal });
        }
        story.nodes();
        story.replicas();
    }
    story.see(10, Observation::Phase { phase: Phase::Drain });
    let payload = format!("t0.{}", size.burst);
    let op = story.invoke("observer", Call::Look { payload });
    story.tell(900, What::Ok { op, got: Result::Looked { state: "acked".to_owned() } });
    story.replicas();
    for node in 1..=3 {
        story.see(10, Observation::LogRead { node, lines: 100 });
    }
    story.tell(10, What::End(End {}));
}

/// The same in memory.
pub fn good(size: Size) -> Vec<Event> {
    let mut events = Vec::new();
    generate(size, &mut |event| events.push(event));
    events
}
