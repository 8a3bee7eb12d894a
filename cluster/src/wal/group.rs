//! One group's part of the log: the index of its entries, a bounded cache of the latest, and the handle that the
//! group's raft uses. Reads never wait for the writer.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use reveille_protocol::canary::{Canary, canary};

use super::store::{Held, LogStore};
use super::writer::{Action, Inner, Op};
use super::written::{Place, Written};

/// Times that a read begins again because its segment was freed. Once is rare: it takes as long as writing a segment.
const READS: usize = 10;

#[derive(Debug)]
struct Slot {
    /// Cached bytes; always there while the entry is not in the files yet.
    payload: Option<Bytes>,
    /// Tells this entry from an earlier one with its index that was still being written when it was replaced.
    version: u64,
}

/// What is known of one group's log, in memory: the entries as raft sees them, which is at once, and as the files
/// have them, which is when the writer got to it.
#[derive(Debug, Default)]
pub(super) struct Index {
    first: u64,
    slots: VecDeque<Slot>,
    cached: usize,
    /// Entries before this one have left the cache.
    evicted: u64,
    version: u64,
    pub(super) written: Written,
    pub(super) vote: Option<Bytes>,
    pub(super) committed: Option<Bytes>,
    pub(super) purged: Option<(u64, Bytes)>,
}

impl Index {
    fn next(&self) -> u64 {
        match self.slots.is_empty() {
            true => self.purged.as_ref().map_or(self.first, |(index, _)| index + 1),
            false => self.first + self.slots.len() as u64,
        }
    }

    fn last(&self) -> Option<u64> {
        (!self.slots.is_empty()).then(|| self.first + self.slots.len() as u64 - 1)
    }

    /// Adds an entry, removing those from its index on; its version.
    fn push(&mut self, index: u64, payload: Bytes) -> io::Result<u64> {
        if self.slots.is_empty() {
            self.first = index;
            self.evicted = index;
        }
        if index < self.first || index > self.next().max(self.first) {
            let message = format!("entry {index} does not follow entry {}", self.next());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        self.truncate(index);
        self.version += 1;
        self.cached += payload.len();
        self.slots.push_back(Slot { payload: Some(payload), version: self.version });
        Ok(self.version)
    }

    /// An entry found by recovery.
    pub(super) fn restore(&mut self, index: u64, place: Place) {
        if self.slots.is_empty() {
            self.first = index;
        }
        self.slots.push_back(Slot { payload: None, version: 0 });
        self.written.put(index, 0, place);
        self.evicted = index + 1;
    }

    /// Removes the entries from `keep` on; they stay in the files until the writer has said so there, too.
    fn truncate(&mut self, keep: u64) {
        let keep = keep.saturating_sub(self.first) as usize;
        for slot in self.slots.drain(keep.min(self.slots.len())..) {
            self.cached -= slot.payload.map_or(0, |payload| payload.len());
        }
        self.evicted = self.evicted.min(self.first + self.slots.len() as u64);
    }

    /// A purge was put.
    pub(super) fn purge(&mut self, upto: u64, id: Bytes) {
        while !self.slots.is_empty() && self.first <= upto {
            let slot = self.slots.pop_front();
            self.cached -= slot.and_then(|slot| slot.payload).map_or(0, |payload| payload.len());
            self.first += 1;
        }
        self.evicted = self.evicted.max(self.first);
        self.written.purge(upto);
        self.purged = Some((upto, id));
    }

    /// Drops the oldest cached bytes until at most `limit` are left; what is not written yet stays.
    pub(super) fn evict(&mut self, limit: usize) {
        while self.cached > limit {
            let at = self.evicted.saturating_sub(self.first) as usize;
            let Some(slot) = self.slots.get_mut(at) else { break };
            if self.written.place(self.first + at as u64, slot.version).is_none() {
                break;
            }
            self.cached -= slot.payload.take().map_or(0, |payload| payload.len());
            self.evicted += 1;
        }
    }
}

/// One group's log.
#[derive(Clone)]
pub struct WalGroup {
    pub(super) wal: Arc<Inner>,
    pub(super) group: u16,
}

impl WalGroup {
    fn index(&self) -> MutexGuard<'_, Index> {
        lock(&self.wal.groups[usize::from(self.group)])
    }

    /// Reads; `None` if the files were changed meanwhile, which leaves nothing half old, half new.
    fn try_read(&self, from: u64, to: u64, max_bytes: usize) -> io::Result<Option<Vec<(u64, Bytes)>>> {
        let mut bytes = 0;
        let mut found = Vec::new();
        let mut cold = Vec::new();
        {
            let index = self.index();
            let from = from.max(index.first);
            let slots = index.slots.iter().skip((from - index.first) as usize);
            for (number, slot) in (from..to).zip(slots) {
                let place = index.written.place(number, slot.version);
                let len = match (&slot.payload, place) {
                    (Some(payload), _) => payload.len(),
                    (None, Some(place)) => place.len as usize,
                    (None, None) => return Err(io::Error::other(format!("entry {number} is nowhere"))),
                };
                bytes += len;
                if bytes > max_bytes && !found.is_empty() {
                    break;
                }
                if slot.payload.is_none() {
                    cold.extend(place.map(|place| (found.len(), slot.version, place)));
                }
                found.push((number, slot.payload.clone().unwrap_or_default()));
            }
        }
        // Outside the lock, so that the writer never waits for the disk here. Until the bytes are read, their
        // segment may have been freed and become another: they were purged, or are elsewhere.
        for (at, version, place) in cold {
            let number = found[at].0;
            match self.wal.read_entry(self.group, number, place) {
                Ok(payload) => found[at].1 = payload,
                Err(error) if self.index().written.place(number, version) == Some(place) => {
                    return Err(error);
                }
                Err(_) => return Ok(None),
            }
        }
        Ok(Some(found))
    }
}

pub(super) fn lock(index: &Mutex<Index>) -> MutexGuard<'_, Index> {
    index.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LogStore for WalGroup {
    fn vote(&self) -> Option<Bytes> {
        self.index().vote.clone()
    }

    fn committed(&self) -> Option<Bytes> {
        self.index().committed.clone()
    }

    fn purged(&self) -> Option<(u64, Bytes)> {
        self.index().purged.clone()
    }

    fn last_index(&self) -> Option<u64> {
        self.index().last()
    }

    fn held(&self) -> Held {
        self.wal.held(&self.index().written)
    }

    fn excess(&self, keep: u64, span: u64) -> Option<u64> {
        self.wal.excess(&self.index().written, keep, span)
    }

    async fn save_vote(&self, vote: Bytes) -> io::Result<()> {
        if canary(Canary::VoteNotDurable) {
            self.index().vote = Some(vote);
            return Ok(());
        }
        self.wal.submit_and_wait(self.group, Action::Vote(vote)).await
    }

    async fn save_committed(&self, committed: Bytes) -> io::Result<()> {
        self.wal.submit(Op { group: self.group, action: Action::Committed(committed), done: None }).await
    }

    async fn append(
        &self,
        entries: Vec<(u64, Bytes)>,
        done: Box<dyn FnOnce(io::Result<()>) + Send>,
    ) -> io::Result<()> {
        self.wal.check_alive()?;
        let mut versioned = Vec::with_capacity(entries.len());
        {
            let mut index = self.index();
            for (number, payload) in entries {
                let version = index.push(number, payload.clone())?;
                versioned.push((number, version, payload));
            }
        }
        self.wal.submit(Op { group: self.group, action: Action::Entries(versioned), done: Some(done) }).await
    }

    async fn truncate_after(&self, last: Option<u64>) -> io::Result<()> {
        let keep = last.map_or(0, |last| last + 1);
        self.index().truncate(keep);
        self.wal.submit(Op { group: self.group, action: Action::Truncate(keep), done: None }).await
    }

    async fn purge(&self, index: u64, id: Bytes) -> io::Result<()> {
        self.wal.submit_and_wait(self.group, Action::Purge(index, id)).await
    }

    async fn read(&self, from: u64, to: u64, max_bytes: usize) -> io::Result<Vec<(u64, Bytes)>> {
        for _ in 0..READS {
            if let Some(found) = self.try_read(from, to, max_bytes)? {
                return Ok(found);
            }
        }
        Err(io::Error::other(format!("entries from {from} on were moved {READS} times while they were read")))
    }
}
