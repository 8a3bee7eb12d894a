//! The terminal's memory on disk: which attempt, which stream, what was confirmed last. Survives kill -9 and power
//! loss at any moment. Keys are in `identity`.
//!
//! One file with two slots of 52 bytes, each in a block of its own. The slot that is on the disk for certain is not
//! written before the other one is, so that a torn write leaves it whole. Slot, little endian: magic `RVTM`, format
//! u32, number u64, attempt u64, stream u64, epoch u64, last u64, checksum u32.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut};
use reveille_protocol::id::{Attempt, Epoch, Seq, Stream};
use reveille_protocol::session::terminal::Memory;

const MAGIC: &[u8; 4] = b"RVTM";
const FORMAT: u32 = 1;
const SLOT: usize = 52;
/// From one slot to the next: no disk in use writes a sector larger than this, and a sector that a power cut spoils
/// must not hold both slots.
const BLOCK: usize = 4096;
const NAME: &str = "memory";

/// The memory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk refuses.
    #[error("{path}: {error}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Another process has it.
    #[error("{0} is in use by another process; a terminal's state cannot be shared")]
    Locked(PathBuf),
    /// Neither slot is valid.
    #[error("{0} is damaged; delete it to go on: pushes that were received but not confirmed come again")]
    Damaged(PathBuf),
}

/// A terminal's memory on disk, locked for this process.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    file: File,
    number: u64,
    /// The slot that is on the disk for certain.
    durable: usize,
    memory: Memory,
}

impl Store {
    /// Opens the memory in a folder, which is made if it is not there.
    pub fn open(folder: &Path) -> Result<Store, StoreError> {
        let path = folder.join(NAME);
        let io = |error| StoreError::Io { path: path.clone(), error };
        fs::create_dir_all(folder).map_err(io)?;
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::Locked(folder.to_owned())),
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        let mut bytes = [0; BLOCK + SLOT];
        let len = file.metadata().map_err(io)?.len().min(bytes.len() as u64) as usize;
        file.read_exact_at(&mut bytes[..len], 0).map_err(io)?;
        let slots = bytes.chunks(BLOCK).map(|block| parse(&block[..SLOT])).enumerate();
        let found =
            slots.filter_map(|(slot, found)| Some((slot, found?))).max_by_key(|(_, (number, _))| *number);
        // No file, or one of which a power cut at the first start left only the length. Nothing can be lost by taking
        // it for new: once a save has been durable one slot is never zeros again. Even if a disk forgot both, the
        // cluster names the last attempt and the last ack, and what was confirmed but not acked comes again.
        let new = found.is_none() && bytes.iter().all(|byte| *byte == 0);
        let (durable, (number, memory)) = match found {
            Some(found) => {
                // A process that was killed may have left it in the page cache only.
                file.sync_data().map_err(io)?;
                found
            }
            None if new => (0, (0, Memory::default())),
            None => return Err(StoreError::Damaged(path)),
        };
        let mut store = Store { path, file, number, durable, memory };
        if new {
            store.save(Memory::default(), true)?;
            File::open(folder)
                .and_then(|folder| folder.sync_all())
                .map_err(|error| StoreError::Io { path: folder.to_owned(), error })?;
        }
        Ok(store)
    }

    /// What it holds.
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// Saves. A process that is killed after this has it; with `durable`, so has one whose machine loses power.
    pub fn save(&mut self, memory: Memory, durable: bool) -> Result<(), StoreError> {
        let number = self.number + 1;
        let slot = 1 - self.durable;
        let written = self.file.write_all_at(&format(number, &memory), (slot * BLOCK) as u64);
        let written = if durable { written.and_then(|()| self.file.sync_data()) } else { written };
        written.map_err(|error| StoreError::Io { path: self.path.clone(), error })?;
        self.number = number;
        self.memory = memory;
        if durable {
            self.durable = slot;
        }
        Ok(())
    }
}

fn format(number: u64, memory: &Memory) -> [u8; SLOT] {
    let mut slot = [0; SLOT];
    let mut out = &mut slot[..];
    out.put_slice(MAGIC);
    out.put_u32_le(FORMAT);
    out.put_u64_le(number);
    out.put_u64_le(memory.attempt.0);
    out.put_u64_le(memory.stream.0);
    out.put_u64_le(memory.epoch.0);
    out.put_u64_le(memory.last.0);
    let sum = checksum(&slot[..SLOT - 4]);
    slot[SLOT - 4..].copy_from_slice(&sum);
    slot
}

fn parse(slot: &[u8]) -> Option<(u64, Memory)> {
    let (body, sum) = slot.split_at(SLOT - 4);
    if sum != checksum(body) {
        return None;
    }
    let mut rest = body.strip_prefix(MAGIC)?;
    if rest.get_u32_le() != FORMAT {
        return None;
    }
    let number = rest.get_u64_le();
    let attempt = Attempt(rest.get_u64_le());
    let (stream, epoch) = (Stream(rest.get_u64_le()), Epoch(rest.get_u64_le()));
    Some((number, Memory { attempt, stream, epoch, last: Seq(rest.get_u64_le()) }))
}

fn checksum(bytes: &[u8]) -> [u8; 4] {
    let digest = reveille_protocol::hash::sha256(bytes);
    [digest[0], digest[1], digest[2], digest[3]]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn memory(last: u64) -> Memory {
        Memory { attempt: Attempt(3), stream: Stream(4), epoch: Epoch(5), last: Seq(last) }
    }

    fn spoil(folder: &std::path::Path, slot: usize) {
        let file = OpenOptions::new().write(true).open(folder.join(NAME)).unwrap();
        file.write_all_at(&[0xff; 20], (slot * BLOCK + 10) as u64).unwrap();
    }

    #[test]
    fn remembers_the_latest_and_survives_a_torn_write() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        store.save(memory(1), true).unwrap();
        let durable = store.durable;
        store.save(memory(2), false).unwrap();
        store.save(memory(3), false).unwrap();
        drop(store);
        assert_eq!(Store::open(folder.path()).unwrap().memory(), memory(3));
        spoil(folder.path(), 1 - durable);
        assert_eq!(Store::open(folder.path()).unwrap().memory(), memory(1), "the last durable one");
        spoil(folder.path(), durable);
        assert!(matches!(Store::open(folder.path()), Err(StoreError::Damaged(_))));
    }

    #[test]
    fn what_was_found_at_the_start_is_not_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        store.save(memory(1), false).unwrap();
        drop(store);
        let mut store = Store::open(folder.path()).unwrap();
        let found = store.durable;
        store.save(memory(2), false).unwrap();
        drop(store);
        spoil(folder.path(), 1 - found);
        assert_eq!(Store::open(folder.path()).unwrap().memory(), memory(1));
    }

    #[test]
    fn zeros_of_a_first_start_that_lost_power_are_new() {
        for len in [0, 10, BLOCK + SLOT, 3 * BLOCK] {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(NAME), vec![0; len]).unwrap();
            let mut store = Store::open(folder.path()).unwrap();
            assert_eq!(store.memory(), Memory::default(), "{len}");
            store.save(memory(1), true).unwrap();
            drop(store);
            assert_eq!(Store::open(folder.path()).unwrap().memory(), memory(1), "{len}");
        }
    }

    #[test]
    fn two_processes_cannot_share_it() {
        let folder = tempfile::tempdir().unwrap();
        let _store = Store::open(folder.path()).unwrap();
        assert!(matches!(Store::open(folder.path()), Err(StoreError::Locked(_))));
    }
}
