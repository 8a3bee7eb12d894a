//! Reads a log folder back. Tells a torn tail, which a crash leaves and which was never acknowledged, apart from
//! damage, which is refused.
//!
//! The records of a segment must follow each other without a gap. The first place where none is valid is the end
//! if nothing valid of a later batch comes behind it: then it is where a batch was torn that was never synced, or
//! just the end. A valid record of a *later* batch proves that everything before it had been synced: then what is
//! missing was acknowledged, and the log is damaged. The seal that the writer adds when it goes idle is such a
//! later record. What remains is the last batch before a crash within 10 ms of it: damage there looks like a torn
//! tail. A file that was cut short is told by its length, which its header has.
//!
//! What was read is not yet durable: a process that was killed before its sync leaves its last batch in the system's
//! cache. So that batch is written again, synced and sealed before anyone hears of it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};

use reveille_protocol::fail_point::{Point, try_pass};
use reveille_protocol::wire::codec;

use super::disk::Disk;
use super::engine::{Checkpoint, Engine, begin_segment, segment_name};
use super::group::Index;
use super::record::{self, FORMAT, HEADER, Header, Kind, Owner, Record};
use super::writer::WalConfig;
use super::written::Place;

/// The log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// There is none.
    #[error(
        "no log in {folder}; if this node is new, create it with --create; if its disk was lost, replace it: reveille cluster replace"
    )]
    Missing {
        /// The folder.
        folder: String,
    },
    /// There is one already.
    #[error("{folder} already holds a log; start the node without --create")]
    Exists {
        /// The folder.
        folder: String,
    },
    /// Made for another node or cluster.
    #[error("log in {folder} belongs to node {} of cluster {:016x}; point this node at its own folder", found.node, found.cluster)]
    Owner {
        /// The folder.
        folder: String,
        /// Whose it is.
        found: Owner,
    },
    /// Made by another version.
    #[error("log in {folder} has format {found}, this build reads {FORMAT}; use the version that wrote it")]
    Format {
        /// The folder.
        folder: String,
        /// Its format.
        found: u32,
    },
    /// What was acknowledged is not there any more.
    #[error(
        "log file {folder}/{file} is damaged at byte {offset}: {what}; its peers have its data: replace this node: reveille cluster replace {node}"
    )]
    Damaged {
        /// Whose log it is.
        node: u64,
        /// The folder.
        folder: String,
        /// The file.
        file: String,
        /// Where in it.
        offset: usize,
        /// What is wrong.
        what: String,
    },
    /// The disk refuses.
    #[error("log in {folder}: {error}")]
    Io {
        /// The folder.
        folder: String,
        /// Why.
        error: io::Error,
    },
}

/// The last batch of a segment, to be written again.
struct Batch {
    segment: u64,
    offset: usize,
    bytes: Vec<u8>,
}

/// Where the log ends, and what of it may not be durable.
struct End {
    segment: u64,
    offset: usize,
    seq: u64,
    unsure: Vec<Batch>,
}

/// The records of one segment.
struct Records {
    /// Where they end.
    offset: usize,
    /// Seq of the next one.
    seq: u64,
    /// The last of them is the segment's `End`.
    ended: bool,
    /// Where the last batch begins.
    batch: usize,
}

/// One group while its log is read.
#[derive(Default)]
struct Found {
    entries: BTreeMap<u64, Place>,
    state: Checkpoint,
}

struct Reader<'a> {
    disk: &'a dyn Disk,
    config: &'a WalConfig,
    groups: Vec<Found>,
}

/// Opens the log in a folder, or creates it, and gives the engine that goes on writing it.
pub(super) fn open(disk: Arc<dyn Disk>, config: WalConfig) -> Result<Engine, WalError> {
    let folder = disk.location();
    let io = |error| WalError::Io { folder: disk.location(), error };
    let names = disk.list().map_err(io)?;
    let (mut spares, mut unfit) = (Vec::new(), Vec::new());
    for name in names.iter().filter(|name| name.starts_with("spare-")) {
        match disk.len(name) {
            Ok(len) if len == config.segment_bytes as u64 => spares.push(name.clone()),
            // Not made to its end, or of other settings.
            Ok(_) => unfit.push(name),
            // Of no use, and nothing depends on it.
            Err(_) => {}
        }
    }
    let mut segments: BTreeSet<u64> =
        names.iter().filter_map(|name| name.strip_suffix(".wal")?.parse().ok()).collect();
    match (segments.is_empty(), config.create) {
        (true, false) => return Err(WalError::Missing { folder }),
        (false, true) => return Err(WalError::Exists { folder }),
        (true, true) => {
            begin_segment(&*disk, &config, &mut spares, 1, 1).map_err(io)?;
            segments.insert(1);
        }
        (false, false) => {}
    }
    let groups = (0..config.groups).map(|_| Found::default()).collect();
    let mut reader = Reader { disk: &*disk, config: &config, groups };
    let end = reader.read(&mut segments, &mut spares)?;
    let found = reader.groups;
    let mut indexes = Vec::with_capacity(found.len());
    for (group, found) in found.into_iter().enumerate() {
        let index = index(found).map_err(|(missing, at)| WalError::Damaged {
            node: config.owner.node,
            folder: disk.location(),
            file: segment_name(at),
            offset: 0,
            what: format!("entry {missing} of group {group} is missing"),
        })?;
        indexes.push(Arc::new(Mutex::new(index)));
    }
    try_pass(Point::LogOpen).map_err(io)?;
    make_durable(&*disk, &end.unsure).map_err(io)?;
    let end = (end.segment, end.offset, end.seq);
    let mut engine = Engine::new(disk.clone(), config, Arc::new(indexes), segments, spares, end);
    engine.seal().map_err(io)?;
    engine.watch();
    // Only now: the folder is this node's, and sound.
    unfit.iter().try_for_each(|name| disk.remove(name)).map_err(io)?;
    engine.trim().map_err(io)?;
    try_pass(Point::LogOpened).map_err(io)?;
    Ok(engine)
}

/// Writes batches again and syncs them. To sync alone is not enough: after a sync that failed, the system takes
/// for clean what the disk never had.
fn make_durable(disk: &dyn Disk, batches: &[Batch]) -> io::Result<()> {
    for Batch { segment, offset, bytes } in batches {
        let name = segment_name(*segment);
        disk.write_at(&name, *offset as u64, bytes)?;
        disk.sync(&name)?;
    }
    Ok(())
}

impl Reader<'_> {
    fn damaged(&self, segment: u64, offset: usize, what: impl Into<String>) -> WalError {
        let (folder, file) = (self.disk.location(), segment_name(segment));
        WalError::Damaged { node: self.config.owner.node, folder, file, offset, what: what.into() }
    }

    fn io(&self, error: io::Error) -> WalError {
        WalError::Io { folder: self.disk.location(), error }
    }

    /// Reads every segment.
    fn read(&mut self, segments: &mut BTreeSet<u64>, spares: &mut Vec<String>) -> Result<End, WalError> {
        let mut expected = None;
        // Of the last two segments: the first record of one is written after the last of the one before was synced.
        let mut unsure = Vec::new();
        let numbers: Vec<u64> = segments.iter().copied().collect();
        for (at, &number) in numbers.iter().enumerate() {
            if at > 0 && number != numbers[at - 1] + 1 {
                return Err(self.damaged(numbers[at - 1] + 1, 0, "the file is missing"));
            }
            let bytes = self.load(number)?;
            let first = self.header(number, &bytes)?;
            let seq = expected.unwrap_or(first);
            if seq != first {
                return Err(self.damaged(number, 0, format!("begins with record {first}, expected {seq}")));
            }
            let Records { offset, seq, ended, batch } = self.records(number, &bytes, seq)?;
            unsure.drain(..unsure.len().saturating_sub(1));
            unsure.push(Batch { segment: number, offset: batch, bytes: bytes[batch..offset].to_vec() });
            if ended {
                expected = Some(seq);
                continue;
            }
            // Not ended: this is the tail, and only an empty segment may follow, made for the rotation that the
            // crash cut short.
            if let Some(&next) = numbers.get(at + 1) {
                let bytes = self.load(next)?;
                let first = self.header(next, &bytes)?;
                let stray = self.find(next, &bytes, (HEADER, first), |_| true);
                if stray.is_some() || numbers.len() > at + 2 {
                    return Err(self.damaged(number, offset, "its records end, but a later file goes on"));
                }
                let spare = super::engine::spare_name(next);
                self.disk.rename(&segment_name(next), &spare).map_err(|error| self.io(error))?;
                spares.push(spare);
                segments.remove(&next);
            }
            self.erase_tail(number, offset, &bytes)?;
            return Ok(End { segment: number, offset, seq, unsure });
        }
        // Every segment is ended: the crash came before the next one was begun, which is made before the End.
        let last = numbers.last().copied().unwrap_or(0);
        Err(self.damaged(last + 1, 0, "the file is missing"))
    }

    fn load(&self, number: u64) -> Result<Vec<u8>, WalError> {
        let name = segment_name(number);
        let len = self.disk.len(&name).map_err(|error| self.io(error))? as usize;
        if len < HEADER || len > u32::MAX as usize {
            return Err(self.damaged(number, 0, format!("the file has {len} bytes")));
        }
        let mut bytes = vec![0; len];
        self.disk.read_at(&name, 0, &mut bytes).map_err(|error| self.io(error))?;
        Ok(bytes)
    }

    fn header(&self, number: u64, bytes: &[u8]) -> Result<u64, WalError> {
        let header = bytes.first_chunk::<HEADER>().and_then(record::parse_header);
        let Some(Header { format, owner, segment, first_seq, bytes: made }) = header else {
            return Err(self.damaged(number, 0, "its header is not valid"));
        };
        if format != FORMAT {
            return Err(WalError::Format { folder: self.disk.location(), found: format });
        }
        if owner != self.config.owner {
            return Err(WalError::Owner { folder: self.disk.location(), found: owner });
        }
        if segment != number {
            return Err(self.damaged(number, 0, format!("its header is of segment {segment}")));
        }
        if (bytes.len() as u64) < made {
            return Err(self.damaged(number, bytes.len(), format!("the file ends here, of {made} bytes")));
        }
        Ok(first_seq)
    }

    /// Reads the records of a segment.
    fn records(&mut self, number: u64, bytes: &[u8], first: u64) -> Result<Records, WalError> {
        let (mut offset, mut seq, mut batch) = (HEADER, first, HEADER);
        while let Some(record) = record::parse(&bytes[offset..], number).filter(|record| record.seq == seq) {
            self.take(number, offset, &record)?;
            if record.back == 0 {
                batch = offset;
            }
            offset += record.size();
            seq += 1;
            if record.kind == Kind::End {
                return Ok(Records { offset, seq, ended: true, batch });
            }
        }
        // Valid records behind the first invalid one: of the same batch, a torn write; of a later one, damage.
        let later = |record: &Record<'_>| record.seq - u64::from(record.back) > seq;
        if let Some(found) = self.find(number, bytes, (offset, seq), later) {
            let what = format!("record {seq} is not valid, but record {found} behind it is");
            return Err(self.damaged(number, offset, what));
        }
        Ok(Records { offset, seq, ended: false, batch })
    }

    /// Seq of a valid record at or behind `from`, the place of record `first`. Tries every byte, and what is there
    /// may be a publisher's: only what can be a record by its header is worth a CRC. Each record before it takes
    /// some bytes, so its place bounds its seq, and a batch does not begin in another segment.
    fn find(
        &self,
        number: u64,
        bytes: &[u8],
        (from, first): (usize, u64),
        wanted: impl Fn(&Record<'_>) -> bool,
    ) -> Option<u64> {
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        (from..used).find_map(|at| {
            let most = ((at - from) / record::RECORD) as u64;
            let record = record::parse_if(&bytes[at..], number, |record| {
                usize::from(record.group) < self.groups.len()
                    && record.seq >= first
                    && record.seq - first <= most
                    && u64::from(record.back) <= record.seq
                    && wanted(record)
            })?;
            Some(record.seq)
        })
    }

    fn take(&mut self, number: u64, offset: usize, record: &Record<'_>) -> Result<(), WalError> {
        let malformed = |reader: &Self| reader.damaged(number, offset, "a valid record that cannot be read");
        let indexed = || {
            record.payload.split_first_chunk::<8>().map(|(index, rest)| (u64::from_le_bytes(*index), rest))
        };
        let group = usize::from(record.group);
        if group >= self.groups.len() {
            let what = format!("it has a record of group {group}, but this node has {}", self.groups.len());
            return Err(self.damaged(number, offset, what));
        }
        match record.kind {
            Kind::Entry | Kind::Copy => {
                let Some((index, rest)) = indexed() else { return Err(malformed(self)) };
                let place = Place {
                    segment: number,
                    offset: (offset + record.size() - rest.len()) as u32,
                    len: rest.len() as u32,
                };
                let entries = &mut self.groups[group].entries;
                if record.kind == Kind::Entry {
                    entries.split_off(&index);
                }
                entries.insert(index, place);
            }
            Kind::Truncate => {
                let Some((keep, _)) = indexed() else { return Err(malformed(self)) };
                self.groups[group].entries.split_off(&keep);
            }
            Kind::Purge => {
                let Some((index, id)) = indexed() else { return Err(malformed(self)) };
                let found = &mut self.groups[group];
                found.entries = found.entries.split_off(&(index + 1));
                found.state.2 = Some((index, id.to_vec().into()));
            }
            Kind::Vote => self.groups[group].state.0 = Some(record.payload.to_vec().into()),
            Kind::Committed => self.groups[group].state.1 = Some(record.payload.to_vec().into()),
            Kind::Checkpoint => {
                let Ok(state) = codec::decode::<Checkpoint, { 64 * 1024 }>(record.payload) else {
                    return Err(malformed(self));
                };
                let found = &mut self.groups[group];
                if let Some((index, _)) = &state.2 {
                    found.entries = found.entries.split_off(&(index + 1));
                }
                found.state = state;
            }
            Kind::Seal | Kind::End => {}
        }
        Ok(())
    }

    /// Zeroes what a torn batch left, so that it is never read as the continuation of a later one.
    fn erase_tail(&self, number: u64, offset: usize, bytes: &[u8]) -> Result<(), WalError> {
        const STEP: usize = 1 << 20;
        let name = segment_name(number);
        let mut erased = false;
        for (at, chunk) in bytes[offset..].chunks(STEP).enumerate() {
            if chunk.iter().any(|byte| *byte != 0) {
                let zeros = vec![0; chunk.len()];
                let at = (offset + at * STEP) as u64;
                self.disk.write_at(&name, at, &zeros).map_err(|error| self.io(error))?;
                erased = true;
            }
        }
        if erased {
            self.disk.sync(&name).map_err(|error| self.io(error))?;
        }
        Ok(())
    }
}

/// The index of a group, if its entries follow each other; else the entry that is missing and the segment after.
fn index(found: Found) -> Result<Index, (u64, u64)> {
    let (vote, committed, purged) = found.state;
    let mut next = purged.as_ref().map(|(index, _)| index + 1);
    let mut index = Index::default();
    (index.vote, index.committed, index.purged) = (vote, committed, purged);
    for (number, place) in found.entries {
        if next.is_some_and(|next| number != next) {
            return Err((next.unwrap_or(number), place.segment));
        }
        index.restore(number, place);
        next = Some(number + 1);
    }
    Ok(index)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops where it is surprised")]
    use super::super::disk::SimDisk;
    use super::super::engine::spare_name;
    use super::*;

    const SEGMENT: usize = 1 << 20;

    fn config(create: bool) -> WalConfig {
        let owner = Owner { cluster: 1, node: 1 };
        WalConfig { segment_bytes: SEGMENT, create, ..WalConfig::new(owner, 2) }
    }

    /// Opens a log whose one segment was another before, full of `junk`; bytes that the CRC was run over.
    fn checked_with(junk: &[u8]) -> usize {
        let disk = SimDisk::default();
        disk.create(&spare_name(1), SEGMENT as u64).unwrap();
        disk.write_at(&spare_name(1), 0, &junk.repeat(SEGMENT / junk.len())).unwrap();
        disk.sync(&spare_name(1)).unwrap();
        drop(open(Arc::new(disk.clone()), config(true)).map_err(|error| error.to_string()).unwrap());
        // Torn: the seal that a new log begins with is gone, and with it the zeros behind it.
        disk.write_at(&segment_name(1), HEADER as u64, &junk.repeat(SEGMENT / junk.len() - HEADER)).unwrap();
        disk.sync(&segment_name(1)).unwrap();
        record::CHECKED.set(0);
        let engine = open(Arc::new(disk), config(false)).map_err(|error| error.to_string()).unwrap();
        assert_eq!((engine.current, engine.seq), (1, 2), "nothing of it is a record");
        record::CHECKED.get()
    }

    #[test]
    fn what_a_publisher_wrote_costs_recovery_no_more_than_a_pass() {
        // A length that fits and a kind, at a third of all places.
        let dense = checked_with(&[0, 1, 7]);
        assert!(dense <= 2 * SEGMENT, "{dense} bytes checked of a segment of {SEGMENT}");
        // Whole headers, only the seq is not known.
        let mut guess = Vec::new();
        record::put(&mut guess, 9, 1 << 32, 0, 1, Kind::Entry, &[&[0; 8]]);
        guess[..4].copy_from_slice(&(SEGMENT as u32 / 2).to_le_bytes());
        let guessed = checked_with(&guess);
        assert!(guessed <= 2 * SEGMENT, "{guessed} bytes checked of a segment of {SEGMENT}");
    }
}
