//! Writes batches: encodes what all groups have, one write, one sync, then everyone learns. Rotates segments and
//! frees old ones. Single-threaded; who calls it, and when, is the writer's.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use reveille_protocol::canary::{Canary, canary};
use reveille_protocol::fail_point::{Point, try_pass};
use reveille_protocol::wire::codec;

use super::disk::Disk;
use super::group::{Index, lock};
use super::record::{self, FORMAT, HEADER, Header, Kind, RECORD};
use super::writer::{Action, Op, WalConfig};
use super::written::Place;

/// Only what is less than this part of a segment is written again to free the rest of it.
const REWRITTEN: u64 = 4;
/// Files beyond `max_segments`, spares included, that stay: a segment is begun before an old one is freed. What a log had
/// besides while it was too long, its disk gets back.
const BEYOND: usize = 2;

/// A group's state at a segment's head: vote, committed, purge.
pub(super) type Checkpoint = (Option<Bytes>, Option<Bytes>, Option<(u64, Bytes)>);

pub(super) struct Engine {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) config: WalConfig,
    pub(super) groups: Arc<Vec<Arc<Mutex<Index>>>>,
    /// The segments on disk, the last one being written.
    pub(super) segments: BTreeSet<u64>,
    /// Files to make segments of.
    pub(super) spares: Vec<String>,
    pub(super) current: u64,
    /// The same, for those who ask how far behind a group is.
    pub(super) newest: Arc<AtomicU64>,
    pub(super) offset: usize,
    /// Seq of the next record.
    pub(super) seq: u64,
    /// The last batch is followed by a seal.
    pub(super) sealed: bool,
    /// There are more segments than there may be, and someone was told.
    over: bool,
    /// Looked up once, not at each commit.
    live_bytes: metrics::Gauge,
    /// Encoded and not yet written, to go at `offset`.
    buffer: Vec<u8>,
    batch_start: u64,
}

pub(super) fn segment_name(number: u64) -> String {
    format!("{number:010}.wal")
}

pub(super) fn spare_name(number: u64) -> String {
    format!("spare-{number:010}")
}

impl Engine {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        config: WalConfig,
        groups: Arc<Vec<Arc<Mutex<Index>>>>,
        segments: BTreeSet<u64>,
        spares: Vec<String>,
        (current, offset, seq): (u64, usize, u64),
    ) -> Engine {
        Engine {
            disk,
            config,
            groups,
            segments,
            spares,
            current,
            newest: Arc::new(AtomicU64::new(current)),
            offset,
            seq,
            sealed: false,
            over: false,
            live_bytes: metrics::gauge!("reveille_log_live_bytes"),
            buffer: Vec::new(),
            batch_start: seq,
        }
    }

    /// Writes what the operations say and makes it durable. An error means that nothing more may be written.
    pub(super) fn commit(&mut self, ops: &[Op]) -> io::Result<()> {
        self.batch_start = self.seq;
        let before = self.seq;
        for Op { group, action, .. } in ops {
            match action {
                Action::Entries(entries) => {
                    for (index, version, payload) in entries {
                        let place = self.put(*group, Kind::Entry, &[&index.to_le_bytes(), payload])?;
                        lock(&self.groups[usize::from(*group)]).written.put(*index, *version, place);
                    }
                }
                Action::Vote(vote) => {
                    self.put(*group, Kind::Vote, &[vote])?;
                    lock(&self.groups[usize::from(*group)]).vote = Some(vote.clone());
                }
                Action::Committed(committed) => {
                    self.put(*group, Kind::Committed, &[committed])?;
                    lock(&self.groups[usize::from(*group)]).committed = Some(committed.clone());
                }
                Action::Truncate(keep) => {
                    self.put(*group, Kind::Truncate, &[&keep.to_le_bytes()])?;
                    lock(&self.groups[usize::from(*group)]).written.truncate(*keep);
                }
                Action::Barrier => {}
                Action::Purge(index, id) => {
                    self.put(*group, Kind::Purge, &[&index.to_le_bytes(), id])?;
                    lock(&self.groups[usize::from(*group)]).purge(*index, id.clone());
                }
            }
        }
        self.write()?;
        self.sealed &= self.seq == before;
        let mut live = 0;
        for index in self.groups.iter() {
            let mut index = lock(index);
            index.evict(self.config.cache_bytes / self.groups.len().max(1));
            live += index.written.bytes();
        }
        self.live_bytes.set(live as f64);
        Ok(())
    }

    /// Says that everything before is durable, so that damage to it is known as damage.
    pub(super) fn seal(&mut self) -> io::Result<()> {
        if !self.sealed {
            self.batch_start = self.seq;
            self.put(0, Kind::Seal, &[])?;
            self.write()?;
            self.sealed = true;
        }
        Ok(())
    }

    /// Encodes one record, in the next segment if this one has no room; where its payload after an index is.
    fn put(&mut self, group: u16, kind: Kind, parts: &[&[u8]]) -> io::Result<Place> {
        let len: usize = RECORD + parts.iter().map(|part| part.len()).sum::<usize>();
        // Room for this record and for the End that must come after the last.
        if self.offset + self.buffer.len() + len + RECORD > self.config.segment_bytes {
            self.rotate()?;
            if self.offset + self.buffer.len() + len + RECORD > self.config.segment_bytes {
                let message = format!("a record of {len} bytes does not fit a segment");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            }
        }
        let back = (self.seq - self.batch_start) as u32;
        record::put(&mut self.buffer, self.current, self.seq, back, group, kind, parts);
        self.seq += 1;
        let index_len = if parts.len() > 1 { parts[0].len() } else { 0 };
        let payload = len - RECORD - index_len;
        let end = self.offset + self.buffer.len();
        Ok(Place { segment: self.current, offset: (end - payload) as u32, len: payload as u32 })
    }

    /// One write, one sync.
    fn write(&mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            let name = segment_name(self.current);
            try_pass(Point::LogWrite)?;
            self.disk.write_at(&name, self.offset as u64, &self.buffer)?;
            try_pass(Point::LogSync)?;
            if !canary(Canary::AckBeforeSync) {
                self.disk.sync(&name)?;
            }
            try_pass(Point::LogSynced)?;
            self.offset += self.buffer.len();
            self.buffer.clear();
        }
        Ok(())
    }

    /// Ends this segment and begins the next one. The next one's file is whole before the End is written, so a
    /// crash in between leaves an empty segment behind an unfinished one, which recovery knows.
    fn rotate(&mut self) -> io::Result<()> {
        let next = self.current + 1;
        let back = (self.seq - self.batch_start) as u32;
        try_pass(Point::LogRotate)?;
        begin_segment(&*self.disk, &self.config, &mut self.spares, next, self.seq + 1)?;
        try_pass(Point::LogBegun)?;
        record::put(&mut self.buffer, self.current, self.seq, back, 0, Kind::End, &[]);
        self.write()?;
        self.seq += 1;
        self.segments.insert(next);
        self.current = next;
        self.newest.store(next, Ordering::Relaxed);
        self.offset = HEADER;
        self.batch_start = self.seq;
        try_pass(Point::LogEnded)?;
        for group in 0..self.groups.len() {
            let checkpoint: Checkpoint = {
                let index = lock(&self.groups[group]);
                (index.vote.clone(), index.committed.clone(), index.purged.clone())
            };
            self.put(group as u16, Kind::Checkpoint, &[&codec::encode(&checkpoint)])?;
        }
        self.write()?;
        self.batch_start = self.seq;
        self.free()
    }

    /// Frees the oldest segments that no live entry needs. If there are too many, a few live entries in the oldest
    /// are written again; many are not, since then each rotation would fill the new segment with them: the log grows
    /// instead, until raft has purged.
    fn free(&mut self) -> io::Result<()> {
        while let Some(oldest) = self.segments.first().copied().filter(|oldest| *oldest != self.current) {
            let live: u64 = self.groups.iter().map(|index| lock(index).written.bytes_in(oldest)).sum();
            if live > 0 {
                let few = live < self.config.segment_bytes as u64 / REWRITTEN;
                // Half of the new segment stays for what is new: the largest record fits that.
                let fit = self.offset as u64 + live <= self.config.segment_bytes as u64 / 2;
                if self.segments.len() <= self.config.max_segments || !few || !fit {
                    break;
                }
                self.rewrite(oldest)?;
            }
            try_pass(Point::LogFree)?;
            self.segments.remove(&oldest);
            let spare = spare_name(oldest);
            self.disk.rename(&segment_name(oldest), &spare)?;
            try_pass(Point::LogFreed)?;
            self.spares.push(spare);
        }
        self.watch();
        self.trim()
    }

    /// Removes the spares that a log of the length that it may have would never use.
    pub(super) fn trim(&mut self) -> io::Result<()> {
        let most = (self.config.max_segments + BEYOND).saturating_sub(self.segments.len());
        while self.spares.len() > most
            && let Some(spare) = self.spares.pop()
        {
            self.disk.remove(&spare)?;
        }
        Ok(())
    }

    /// Tells how long the log is, and once whenever it becomes too long or is so no more.
    pub(super) fn watch(&mut self) {
        let (segments, most) = (self.segments.len(), self.config.max_segments);
        metrics::gauge!("reveille_log_segments").set(segments as f64);
        if self.over == (segments > most) {
            return;
        }
        self.over = segments > most;
        let location = self.disk.location();
        if self.over {
            tracing::error!(
                segments,
                most,
                %location,
                "the log is longer than it may be and takes more of the disk; a group is not purged: see whether \
                 its tables are flushed and its replicas are reached"
            );
        } else {
            tracing::info!(segments, %location, "the log is no longer than it may be");
        }
    }

    /// Copies the live entries of a segment into the current one. Bounded: the caller saw that they are few.
    fn rewrite(&mut self, segment: u64) -> io::Result<()> {
        let mut moved = Vec::new();
        for group in 0..self.groups.len() {
            let live = lock(&self.groups[group]).written.in_segment(segment);
            for (index, from) in live {
                // Checked: a copy has a checksum of its own, which must not vouch for damage.
                let payload = read_entry(&*self.disk, group as u16, index, from)?;
                let to = self.put(group as u16, Kind::Copy, &[&index.to_le_bytes(), &payload])?;
                moved.push((group, index, from, to));
            }
        }
        self.write()?;
        self.batch_start = self.seq;
        for (group, index, from, to) in moved {
            lock(&self.groups[group]).written.moved(index, from, to);
        }
        Ok(())
    }
}

/// Reads the payload of an entry from its file.
pub(super) fn read_entry(disk: &dyn Disk, group: u16, index: u64, place: Place) -> io::Result<Bytes> {
    let head = RECORD + 8;
    let mut bytes = vec![0; head + place.len as usize];
    let file = segment_name(place.segment);
    disk.read_at(&file, u64::from(place.offset) - head as u64, &mut bytes)?;
    let record = record::parse(&bytes, place.segment).filter(|record| {
        matches!(record.kind, Kind::Entry | Kind::Copy)
            && record.group == group
            && record.payload.get(..8) == Some(&index.to_le_bytes())
    });
    if record.is_none() {
        let message = format!("entry {index} of group {group} in {file} cannot be read");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(Bytes::from(bytes).slice(head..))
}

/// Makes the file of a segment: header first, under a name that recovery does not read, then its own name.
pub(super) fn begin_segment(
    disk: &dyn Disk,
    config: &WalConfig,
    spares: &mut Vec<String>,
    number: u64,
    first_seq: u64,
) -> io::Result<()> {
    let spare = match spares.pop() {
        Some(spare) => spare,
        None => {
            let spare = spare_name(number);
            disk.create(&spare, config.segment_bytes as u64)?;
            spare
        }
    };
    let (owner, bytes) = (config.owner, disk.len(&spare)?);
    let header = Header { format: FORMAT, owner, segment: number, first_seq, bytes };
    disk.write_at(&spare, 0, &record::header(&header))?;
    disk.sync(&spare)?;
    disk.rename(&spare, &segment_name(number))
}
