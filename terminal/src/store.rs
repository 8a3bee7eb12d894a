//! The terminal's memory on disk: which attempt, which stream, what was confirmed last. Survives kill -9 and power
//! loss at any moment. Keys are in `identity`.
//!
//! One file of two blocks of 4096 bytes with a slot of 52 bytes at the front of each. A save never touches the slot that
//! was last made durable, so whatever a crash tears, that one is left; what was confirmed is always in it. Slot, little
//! endian: magic `RVTM`, format u32, number u64, attempt u64, stream u64, epoch u64, last u64, the first four bytes of
//! the SHA-256 of what is before them.

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
/// What a disk writes as one, or tears as one: the largest sector in use.
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
    /// The block whose slot is on the disk for certain, 0 or 1.
    durable: usize,
    memory: Memory,
}

impl Store {
    /// Opens the memory in a folder, which is made if it is not there.
    pub fn open(folder: &Path) -> Result<Store, StoreError> {
        let path = folder.join(NAME);
        let io = |error| StoreError::Io { path: path.clone(), error };
        make_folder(folder)?;
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::Locked(folder.to_owned())),
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        let mut bytes = [0; 2 * BLOCK];
        let len = file.metadata().map_err(io)?.len().min(bytes.len() as u64) as usize;
        file.read_exact_at(&mut bytes[..len], 0).map_err(io)?;
        let slots = bytes.chunks_exact(BLOCK).map(|block| parse(&block[..SLOT])).enumerate();
        let found = slots.filter_map(|(block, slot)| Some((block, slot?))).max_by_key(|(_, slot)| slot.0);
        if let Some((durable, (number, memory))) = found {
            // An earlier process may have written it and been killed before it was on the disk.
            file.sync_data().map_err(io)?;
            return Ok(Store { path, file, number, durable, memory });
        }
        // Empty, or zeros: power was lost at the first start, before the sync below came back. Nothing can depend on
        // it: until then no session was begun, and after it one of the slots is never zeros again.
        if bytes.iter().any(|byte| *byte != 0) {
            return Err(StoreError::Damaged(path));
        }
        // Both blocks are taken now, so that a disk which fills up later does not end a running terminal.
        file.write_all_at(&bytes, 0).map_err(io)?;
        let mut store = Store { path, file, number: 0, durable: 0, memory: Memory::default() };
        store.save(Memory::default(), true)?;
        sync_folder(folder)?;
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
        let block = 1 - self.durable;
        let written = self.file.write_all_at(&slot, (block * BLOCK) as u64);
        let written = if durable { written.and_then(|()| self.file.sync_data()) } else { written };
        written.map_err(|error| StoreError::Io { path: self.path.clone(), error })?;
        if durable {
            self.durable = block;
        }
        self.number = number;
        self.memory = memory;
        Ok(())
    }
}

/// Makes the folder, durably: the keys in it are the terminal.
fn make_folder(folder: &Path) -> Result<(), StoreError> {
    let missing: Vec<&Path> = folder.ancestors().take_while(|ancestor| !ancestor.exists()).collect();
    fs::create_dir_all(folder).map_err(|error| StoreError::Io { path: folder.to_owned(), error })?;
    let mut parents = missing.into_iter().filter_map(Path::parent);
    // The parent of a relative path's first part is the working folder, written as an empty path.
    parents.try_for_each(|parent| {
        sync_folder(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
    })
}

/// Makes the names in a folder durable.
fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| StoreError::Io { path: folder.to_owned(), error })
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

    /// Writes behind the store's back.
    fn overwrite(folder: &Path, bytes: &[u8], at: u64) {
        let file = OpenOptions::new().write(true).open(folder.join(NAME)).unwrap();
        file.write_all_at(bytes, at).unwrap();
    }

    #[test]
    fn remembers_the_latest() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        for last in 1..10 {
            store.save(memory(last), last % 3 == 0).unwrap();
            drop(store);
            store = Store::open(folder.path()).unwrap();
            assert_eq!(store.memory(), memory(last));
        }
    }

    /// Loss of power tears whatever was written since the last sync: what was confirmed is in neither.
    #[test]
    fn what_was_saved_durably_survives_the_loss_of_all_that_was_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        let mut store = Store::open(folder.path()).unwrap();
        for reopened in [false, true, false, true] {
            store.save(memory(1), true).unwrap();
            let synced = fs::read(&path).unwrap();
            if reopened {
                drop(store);
                store = Store::open(folder.path()).unwrap();
            }
            for last in 2..5 {
                store.save(memory(last), false).unwrap();
            }
            let written = fs::read(&path).unwrap();
            drop(store);
            for (block, (old, new)) in synced.chunks(4096).zip(written.chunks(4096)).enumerate() {
                if old != new {
                    overwrite(folder.path(), &[0xff; 52], block as u64 * 4096);
                }
            }
            store = Store::open(folder.path()).unwrap();
            assert_eq!(store.memory(), memory(1), "reopened before: {reopened}");
        }
    }

    #[test]
    fn a_torn_disk_block_leaves_the_other_slot() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        store.save(memory(1), true).unwrap();
        store.save(memory(2), true).unwrap();
        drop(store);
        let before = fs::read(folder.path().join(NAME)).unwrap();
        let mut left = Vec::new();
        for block in 0..2 {
            overwrite(folder.path(), &before, 0);
            overwrite(folder.path(), &vec![0xff; 4096], block * 4096);
            left.push(Store::open(folder.path()).unwrap().memory().last);
        }
        left.sort();
        assert_eq!(left, [Seq(1), Seq(2)]);
        overwrite(folder.path(), &vec![0xff; 8192], 0);
        assert!(matches!(Store::open(folder.path()), Err(StoreError::Damaged(_))));
    }

    #[test]
    fn zeros_are_a_first_start_that_lost_power_and_anything_else_is_damage() {
        let folder = tempfile::tempdir().unwrap();
        for len in [0, 1, 52, 104, 4096, 4148, 8192] {
            fs::write(folder.path().join(NAME), vec![0; len]).unwrap();
            let mut store = Store::open(folder.path()).unwrap();
            assert_eq!(store.memory(), Memory::default(), "{len} zeros");
            store.save(memory(1), true).unwrap();
            drop(store);
            assert_eq!(Store::open(folder.path()).unwrap().memory(), memory(1));
        }
        fs::write(folder.path().join(NAME), [0, 0, 1]).unwrap();
        assert!(matches!(Store::open(folder.path()), Err(StoreError::Damaged(_))));
    }

    #[test]
    fn two_processes_cannot_share_it() {
        let folder = tempfile::tempdir().unwrap();
        let _store = Store::open(folder.path()).unwrap();
        assert!(matches!(Store::open(folder.path()), Err(StoreError::Locked(_))));
    }
}
