//! Sorts the events of a history into facts, one after the other.

use std::collections::HashMap;
use std::io::BufRead;

use super::*;
use crate::history::{Call, Event, FaultStep, Invoke, Observation, ReadError, Reader, Result as Got, What};

/// Reads a whole history.
///
/// # Errors
/// If a line other than the last is damaged, or the file cannot be read.
pub fn read(input: impl BufRead) -> Result<Facts, ReadError> {
    let mut reader = Reader::new(input)?;
    let mut builder = Builder::new(reader.begin().clone());
    for event in &mut reader {
        builder.add(&event?);
    }
    let cut = reader.cut().map(str::to_owned);
    Ok(builder.finish(cut))
}

/// What an open operation is about.
#[derive(Debug, Clone, Copy)]
enum About {
    Publish(u32),
    Status(u32),
    Look(Option<u32>),
    Cancel(Option<u32>),
    GivenUp,
}

/// Facts that are being collected.
#[derive(Debug)]
pub struct Builder {
    facts: Facts,
    terminals: HashMap<Name, u32>,
    pushes: HashMap<Name, u32>,
    /// Operations without an answer, by number: which one, and what it is about.
    open: HashMap<u64, (u32, About)>,
    faults: HashMap<u64, usize>,
    ended: bool,
}

impl Builder {
    /// Begins with the first line.
    pub fn new(begin: Begin) -> Builder {
        Builder {
            facts: Facts { begin, ..Facts::default() },
            terminals: HashMap::new(),
            pushes: HashMap::new(),
            open: HashMap::new(),
            faults: HashMap::new(),
            ended: false,
        }
    }

    /// Events that are in memory, the first of them the `begin`: whole if the last is the `end`.
    pub fn of(events: &[Event]) -> Facts {
        let begin = match events.first().map(|event| &event.what) {
            Some(What::Begin(begin)) => begin.clone(),
            _ => Begin::default(),
        };
        let mut builder = Builder::new(begin);
        events.iter().for_each(|event| builder.add(event));
        let cut = (!builder.ended).then(|| "it has no `end`".to_owned());
        builder.finish(cut)
    }

    /// The next event.
    pub fn add(&mut self, event: &Event) {
        let when = Moment { n: event.n as u32, at: event.at };
        self.facts.last = when;
        match &event.what {
            What::Begin(_) => {}
            What::End(_) => self.ended = true,
            What::Invoke(invoke) => self.invoke(when, invoke),
            What::Ok { op, got } => self.ok(when, *op, got),
            What::Fail { op, .. } => self.not_done(when, *op, Answer::Failed(when)),
            What::Unknown { op, .. } => self.not_done(when, *op, Answer::Unknown(when)),
            What::Fault(fault) => self.fault(when, fault),
            What::Observe(seen) => self.observe(when, seen),
        }
    }

    /// No more events.
    pub fn finish(mut self, cut: Option<String>) -> Facts {
        // A push that somebody wants back and has no answer may be taken back: as if the answer were that nobody knows.
        let mut open: Vec<(u32, About)> = std::mem::take(&mut self.open).into_values().collect();
        open.sort_unstable_by_key(|(number, _)| *number);
        for (number, about) in open {
            if let About::Cancel(push) = about {
                let asked = self.facts.ops[number as usize].asked;
                let state = self.facts.names.of("unknown");
                self.facts.looks.push(Look { push, asked, when: self.facts.last, state, cancel: true });
            }
        }
        self.facts.cut = cut;
        self.facts
    }

    fn trouble(&mut self, when: Moment, what: String) {
        self.facts.trouble.push((when, what));
    }

    fn terminal(&mut self, name: &str) -> u32 {
        let name = self.facts.names.of(name);
        *self.terminals.entry(name).or_insert_with(|| {
            let terminal = Terminal { name, steps: Vec::new(), reads: Vec::new(), pushes: Vec::new() };
            self.facts.terminals.push(terminal);
            self.facts.terminals.len() as u32 - 1
        })
    }

    fn push_of(&mut self, payload: &str) -> Option<u32> {
        let name = self.facts.names.find(payload)?;
        self.pushes.get(&name).copied()
    }

    fn invoke(&mut self, when: Moment, invoke: &Invoke) {
        let about = match &invoke.call {
            Call::Publish { terminal, payload, ttl_ms } => {
                let terminal = self.terminal(terminal);
                let name = self.facts.names.of(payload);
                let push = self.facts.pushes.len() as u32;
                if self.pushes.insert(name, push).is_some() {
                    self.trouble(when, format!("the payload name {payload:?} is used a second time"));
                }
                let new =
                    Push { payload: name, terminal, asked: when, ttl_ms: *ttl_ms, answer: Answer::Open };
                self.facts.pushes.push(new);
                self.facts.terminals[terminal as usize].pushes.push(push);
                About::Publish(push)
            }
            Call::Status { terminal } => About::Status(self.terminal(terminal)),
            Call::Look { payload } => About::Look(self.push_of(payload)),
            Call::Cancel { payload } => About::Cancel(self.push_of(payload)),
            Call::GivenUp => About::GivenUp,
        };
        let by = self.facts.names.of(&invoke.by);
        let number = self.facts.ops.len() as u32;
        self.facts.ops.push(Op { by, asked: when, done: None, deadline_ms: invoke.deadline_ms });
        if self.open.insert(invoke.op, (number, about)).is_some() {
            self.trouble(when, format!("operation {} begins while one of that number is open", invoke.op));
        }
    }

    fn done(&mut self, when: Moment, op: u64) -> Option<(Moment, About)> {
        let Some((number, about)) = self.open.remove(&op) else {
            self.trouble(when, format!("operation {op} is answered, and is not open"));
            return None;
        };
        let op = &mut self.facts.ops[number as usize];
        op.done = Some(when);
        Some((op.asked, about))
    }

    fn ok(&mut self, when: Moment, op: u64, got: &Got) {
        let Some((asked, about)) = self.done(when, op) else { return };
        match (about, got) {
            (About::Publish(push), Got::Published { message, seq, position }) => {
                let message = self.facts.names.of(message);
                self.facts.pushes[push as usize].answer =
                    Answer::Stored { when, message, seq: *seq, position: *position };
            }
            (About::Status(terminal), Got::Status { online, node, epoch, acked, .. }) => {
                let read = Status { asked, when, online: *online, node: *node, epoch: *epoch, acked: *acked };
                self.facts.terminals[terminal as usize].reads.push(read);
            }
            (About::Look(push), Got::Looked { state }) => {
                let state = self.facts.names.of(state);
                self.facts.looks.push(Look { push, asked, when, state, cancel: false });
            }
            (About::Cancel(push), Got::Cancelled { state }) => {
                let state = self.facts.names.of(state);
                self.facts.looks.push(Look { push, asked, when, state, cancel: true });
            }
            _ => self.trouble(when, format!("operation {op} is answered with what was not asked for")),
        }
    }

    fn not_done(&mut self, when: Moment, op: u64, answer: Answer) {
        match self.done(when, op) {
            Some((_, About::Publish(push))) => self.facts.pushes[push as usize].answer = answer,
            // That a push may have been taken back must be known; that it certainly was not, need not.
            Some((asked, About::Cancel(push))) if matches!(answer, Answer::Unknown(_)) => {
                let state = self.facts.names.of("unknown");
                self.facts.looks.push(Look { push, asked, when, state, cancel: true });
            }
            _ => {}
        }
    }

    fn fault(&mut self, when: Moment, fault: &crate::history::Fault) {
        let (kind, target) = (self.facts.names.of(&fault.kind), self.facts.names.of(&fault.target));
        match (fault.step, self.faults.get(&fault.id)) {
            (FaultStep::Began, None) => {
                self.faults.insert(fault.id, self.facts.faults.len());
                self.facts.faults.push(Faulted { kind, target, began: Some(when), ended: None });
            }
            (FaultStep::Began, Some(_)) => self.trouble(when, format!("fault {} begins twice", fault.id)),
            (FaultStep::Ended, Some(at)) => self.facts.faults[*at].ended = Some(when),
            (FaultStep::Ended, None) => {
                self.facts.faults.push(Faulted { kind, target, began: None, ended: Some(when) });
            }
        }
    }

    fn step(&mut self, when: Moment, terminal: &str, copy: u64, step: Step) {
        let terminal = self.terminal(terminal);
        self.facts.terminals[terminal as usize].steps.push(Stepped { when, copy, step });
    }

    fn observe(&mut self, when: Moment, seen: &Observation) {
        match seen {
            Observation::Started { terminal, copy } => self.step(when, terminal, *copy, Step::Started),
            Observation::Stopped { terminal, copy } => self.step(when, terminal, *copy, Step::Stopped),
            Observation::Notified { terminal, copy } => self.step(when, terminal, *copy, Step::Notified),
            Observation::Connected { terminal, copy, node, epoch } => {
                self.step(when, terminal, *copy, Step::Connected { node: *node, epoch: *epoch });
            }
            Observation::Disconnected { terminal, copy } => {
                self.step(when, terminal, *copy, Step::Disconnected);
            }
            Observation::Reset { terminal, copy, next } => {
                self.step(when, terminal, *copy, Step::Reset { next: *next });
            }
            Observation::Delivered { terminal, copy, payload, seq, prev, maybe_seen, node, epoch } => {
                let push = self.push_of(payload);
                let delivery = Delivery {
                    payload: self.facts.names.of(payload),
                    push,
                    seq: *seq,
                    prev: *prev,
                    maybe_seen: *maybe_seen,
                    node: *node,
                    epoch: *epoch,
                };
                self.step(when, terminal, *copy, Step::Delivered(delivery));
            }
            Observation::Confirmed { terminal, copy, seq } => {
                self.step(when, terminal, *copy, Step::Confirmed { seq: *seq });
            }
            Observation::Saved { terminal, copy, seq } => {
                self.step(when, terminal, *copy, Step::Saved { seq: *seq });
            }
            Observation::Notifying { terminal, node, online, pending, proven } => {
                let terminal = self.terminal(terminal);
                let (node, online, pending, proven) = (*node, *online, *pending, *proven);
                self.facts.notifying.push(Notifying { when, terminal, node, online, pending, proven });
            }
            seen => self.observe_node(when, seen),
        }
    }

    fn observe_node(&mut self, when: Moment, seen: &Observation) {
        let facts = &mut self.facts;
        match seen {
            Observation::Phase { phase } => facts.phases.push((when, *phase)),
            Observation::Ready { node, ready } => facts.ready.push((when, *node, *ready)),
            Observation::Left { node } => facts.left.push((when, *node)),
            Observation::Moved { node, group } => facts.moved.push((when, *node, *group)),
            Observation::Settled { settled, why } => {
                facts.settled = Some((when, *settled, facts.names.of(why)));
            }
            Observation::Leader { group, node, term } => facts.leaders.push((when, *group, *node, *term)),
            Observation::State { node, group, index, hash } => {
                let (node, group, index, hash) = (*node, *group, *index, facts.names.of(hash));
                facts.replicas.push(Replica { when, node, group, index, hash });
            }
            Observation::Resources { node, rss_bytes, fds, disk_bytes } => {
                let (node, rss, fds, disk) = (*node, *rss_bytes, *fds, *disk_bytes);
                facts.taken.push(Taken { when, node, rss, fds, disk });
            }
            Observation::LogRead { node, lines } => facts.logs.push((when, *node, *lines)),
            Observation::LogFound { node, problem, line } => {
                let line = facts.names.of(line);
                facts.log_problems.push((when, *node, *problem, line));
            }
            Observation::Cover { point, count } => {
                *facts.cover.entry(point.clone()).or_default() += count;
            }
            Observation::Harness { what } => facts.trouble.push((when, what.clone())),
            // The rest are of terminals, and were taken there.
            _ => {}
        }
    }
}
