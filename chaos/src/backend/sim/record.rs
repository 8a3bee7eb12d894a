//! The recorder of a run on virtual time: numbers what it is told and dates it by the virtual clock, in memory.

use std::sync::{Mutex, MutexGuard, PoisonError};

use reveille_chaos::history::{Begin, End, Event, VERSION, Watch, What, Writer};

/// See the module.
pub(super) struct Record(Mutex<Inner>);

struct Inner {
    out: Writer<Vec<u8>>,
    next: u64,
    ops: u64,
    last: u64,
    /// Who looks, until the history is taken.
    watch: Option<Watch>,
}

impl Record {
    pub(super) fn new(begin: Begin, watch: Option<Watch>) -> Record {
        let out = Writer::new(Vec::new());
        let record = Record(Mutex::new(Inner { out, next: 0, ops: 0, last: 0, watch }));
        record.tell(0, What::Begin(Begin { version: VERSION, ..begin }));
        record
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number for an operation.
    pub(super) fn op(&self) -> u64 {
        let mut inner = self.inner();
        inner.ops += 1;
        inner.ops
    }

    /// This happened at so many microseconds of the run.
    pub(super) fn tell(&self, at: u64, what: What) {
        let mut inner = self.inner();
        // What is said after the world has ended is of its last moment.
        inner.last = inner.last.max(at);
        let event = Event { n: inner.next, at: inner.last, what };
        inner.next += 1;
        if let Some(watch) = &inner.watch {
            watch(event.at, &event.what);
        }
        // Memory takes every write.
        let _ = inner.out.write(&event);
    }

    /// When something was told last.
    pub(super) fn last(&self) -> u64 {
        self.inner().last
    }

    /// The run came to its end.
    pub(super) fn end(&self) {
        let last = self.last();
        self.tell(last, What::End(End {}));
    }

    /// The history so far.
    pub(super) fn take(&self) -> Vec<u8> {
        let mut inner = self.inner();
        inner.watch = None;
        std::mem::replace(&mut inner.out, Writer::new(Vec::new())).into_inner()
    }
}
