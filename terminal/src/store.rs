//! The terminal's memory on disk: which attempt, which stream, what was confirmed last. Survives kill -9 and power
//! loss at any moment. Keys are in `identity`.
//!
//! One file with two slots of 52 bytes, written in turn, so that a torn write leaves the other one; each at the start of
//! a block of 4096, so that no disk tears both at once. Slot, little endian: magic `RVTM`, format u32, number u64,
//! attempt u64, stream u64, epoch u64, last u64, the first 4 bytes of the SHA-256 of all before.

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
/// From one slot to the other: the largest block that disks write as one.
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
        let mut bytes = vec![0; BLOCK + SLOT];
        let len = file.metadata().map_err(io)?.len().min(bytes.len() as u64) as usize;
        file.read_exact_at(&mut bytes[..len], 0).map_err(io)?;
        let found = [0, BLOCK]
            .iter()
            .filter_map(|at| parse(&bytes[*at..*at + SLOT]))
            .max_by_key(|(number, _)| *number);
        // Zeros are a file whose first save was cut short by a loss of power: nothing depends on it yet, because the
        // first attempt is made only when that save is durable.
        let empty = bytes.iter().all(|byte| *byte == 0);
        let (number, memory) = match found {
            Some(found) => found,
            None if empty => (0, Memory::default()),
            None => return Err(StoreError::Damaged(path)),
        };
        let new = found.is_none();
        let mut store = Store { path, file, number, memory };
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
        let slot = format(number, &memory);
        let offset = (number % 2) * BLOCK as u64;
        let written = self.file.write_all_at(&slot, offset);
        let written = if durable { written.and_then(|()| self.file.sync_data()) } else { written };
        written.map_err(|error| StoreError::Io { path: self.path.clone(), error })?;
        self.number = number;
        self.memory = memory;
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

    #[test]
    fn remembers_the_latest_and_survives_a_torn_write() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        store.save(memory(1), true).unwrap();
        store.save(memory(2), false).unwrap();
        let latest = (store.number % 2) * BLOCK as u64;
        drop(store);
        assert_eq!(Store::open(folder.path()).unwrap().memory(), memory(2));
        let file = OpenOptions::new().write(true).open(folder.path().join(NAME)).unwrap();
        file.write_all_at(&[0xff; 20], latest + 10).unwrap();
        assert_eq!(Store::open(folder.path()).unwrap().memory(), memory(1), "the slot before");
        file.write_all_at(&[0xff; BLOCK + SLOT], 0).unwrap();
        assert!(matches!(Store::open(folder.path()), Err(StoreError::Damaged(_))));
        file.write_all_at(&[0; BLOCK + SLOT], 0).unwrap();
        assert_eq!(
            Store::open(folder.path()).unwrap().memory(),
            Memory::default(),
            "its first save was cut short"
        );
    }

    #[test]
    fn two_processes_cannot_share_it() {
        let folder = tempfile::tempdir().unwrap();
        let _store = Store::open(folder.path()).unwrap();
        assert!(matches!(Store::open(folder.path()), Err(StoreError::Locked(_))));
    }
}
