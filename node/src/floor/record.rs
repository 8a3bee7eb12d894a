//! The history of a run, dated by virtual time, and what of it is still awaited. Judges nothing.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use reveille_chaos::history::{Begin, End, Event, Observation, VERSION, What};

/// See the module. All hosts of a run share it, in one thread.
pub struct Record(RefCell<Inner>);

#[derive(Default)]
struct Inner {
    events: Vec<Event>,
    last: u64,
    ops: u64,
    /// Terminals that have had a session: their ids, by the names of their hosts.
    met: BTreeMap<String, String>,
    /// Acknowledged and not given yet: the push's payload, and its name in the cluster.
    waiting: BTreeMap<String, String>,
    given: BTreeSet<String>,
}

impl Record {
    /// Begins a history.
    pub fn new(begin: Begin) -> Record {
        let record = Record(RefCell::default());
        record.tell(Duration::ZERO, What::Begin(Begin { version: VERSION, ..begin }));
        record
    }

    /// This happened at that time of the run. Hosts have their turns within a tick, one after the other: the later one's time is
    /// not before the earlier one's.
    pub fn tell(&self, at: Duration, what: What) {
        let mut inner = self.0.borrow_mut();
        inner.last = inner.last.max(at.as_micros() as u64);
        let event = Event { n: inner.events.len() as u64, at: inner.last, what };
        inner.events.push(event);
    }

    /// A host tells what happens there now.
    pub fn now(&self, what: What) {
        self.tell(turmoil::sim_elapsed().unwrap_or_default(), what);
    }

    /// A host saw this now.
    pub fn see(&self, seen: Observation) {
        self.now(What::Observe(seen));
    }

    /// A number for an operation.
    pub fn op(&self) -> u64 {
        let mut inner = self.0.borrow_mut();
        inner.ops += 1;
        inner.ops
    }

    /// The terminal of this host has a session.
    pub fn meet(&self, host: &str, terminal: &str) {
        self.0.borrow_mut().met.insert(host.to_owned(), terminal.to_owned());
    }

    /// The id of the terminal of this host, if it has had a session.
    pub fn who(&self, host: &str) -> Option<String> {
        self.0.borrow().met.get(host).cloned()
    }

    /// The terminals that have had a session, by their ids.
    pub fn met(&self) -> Vec<String> {
        self.0.borrow().met.values().cloned().collect()
    }

    /// A push was acknowledged to its publisher.
    pub fn stored(&self, payload: &str, message: &str) {
        let mut inner = self.0.borrow_mut();
        if !inner.given.contains(payload) {
            inner.waiting.insert(payload.to_owned(), message.to_owned());
        }
    }

    /// A push was given to its application.
    pub fn given(&self, payload: &str) {
        let mut inner = self.0.borrow_mut();
        inner.waiting.remove(payload);
        inner.given.insert(payload.to_owned());
    }

    /// What was acknowledged and not given yet.
    pub fn waiting(&self) -> Vec<(String, String)> {
        self.0.borrow().waiting.iter().map(|(payload, message)| (payload.clone(), message.clone())).collect()
    }

    /// The whole history; the run has come to its end.
    pub fn end(&self, at: Duration) -> Vec<Event> {
        self.tell(at, What::End(End {}));
        std::mem::take(&mut self.0.borrow_mut().events)
    }
}
