//! A disk in memory that does what disks do at their worst: loses what was not synced, tears a write at any byte,
//! keeps a later write and loses an earlier one, fails once, is full, flips a bit. In front of it a page cache that
//! outlives the process, not the power. Deterministic.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Disk;

/// What goes wrong at the next operation that can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The `n`-th write from now (0: the next) fails, and leaves this many bytes of it.
    Write {
        /// Writes that succeed before.
        after: usize,
        /// Bytes of it that are written all the same.
        keep: usize,
    },
    /// The `n`-th sync from now fails. What it should have made durable can still be read, and no later sync makes
    /// it so, as the page cache of a real system has it: the pages count as clean.
    Sync {
        /// Syncs that succeed before.
        after: usize,
    },
    /// There is no room for another file, until the fault is taken away.
    Full,
    /// The power goes, or the process, at the `n`-th write or sync from now: it and everything after fail until
    /// `crash` or `kill`.
    Power {
        /// Operations that succeed before.
        after: usize,
    },
}

#[derive(Debug, Clone, Default)]
struct Contents {
    durable: Vec<u8>,
    /// What a read sees: the page cache.
    cached: Vec<u8>,
    /// Writes since the last sync.
    pending: Vec<(u64, Vec<u8>)>,
    /// Where the last write begins.
    last: usize,
}

fn apply(bytes: &mut Vec<u8>, offset: u64, write: &[u8]) {
    let end = offset as usize + write.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset as usize..end].copy_from_slice(write);
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<String, Contents>,
    fault: Option<Fault>,
    dead: bool,
    operations: usize,
    written: usize,
    /// Microseconds that each sync takes longer.
    slow: u64,
}

/// A simulated folder; clones share it.
#[derive(Debug, Clone, Default)]
pub struct SimDisk(Arc<Mutex<State>>);

impl SimDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something will go wrong.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.state().fault = fault;
    }

    /// Writes and syncs so far.
    pub fn operations(&self) -> usize {
        self.state().operations
    }

    /// Bytes written so far.
    pub fn written(&self) -> usize {
        self.state().written
    }

    /// The process is gone, the power is not: the next one reads what this one wrote, synced or not.
    pub fn kill(&self) {
        let mut state = self.state();
        state.dead = false;
        state.fault = None;
    }

    /// The power goes and comes back. Of each write that was not synced, `keep(write's number, its length)` says
    /// how many of its first bytes the disk had taken.
    pub fn crash(&self, mut keep: impl FnMut(usize, usize) -> usize) {
        let mut state = self.state();
        let mut number = 0;
        for contents in state.files.values_mut() {
            for (offset, write) in std::mem::take(&mut contents.pending) {
                let kept = keep(number, write.len()).min(write.len());
                apply(&mut contents.durable, offset, &write[..kept]);
                number += 1;
            }
            contents.cached.clone_from(&contents.durable);
        }
        state.dead = false;
        state.fault = None;
    }

    /// From now on each sync takes so many microseconds longer. Whoever drives the log has to wait for them.
    pub fn set_slow(&self, micros: u64) {
        self.state().slow = micros;
    }

    /// See [`SimDisk::set_slow`].
    pub fn slow(&self) -> u64 {
        self.state().slow
    }

    /// A file whose name ends so, and a place in what was written to it before its last write, both by the draw; `None` if
    /// there is none. A log's last write is its last batch, of which damage cannot be told from a torn write.
    pub fn place(&self, ending: &str, draw: u64) -> Option<(String, usize)> {
        let state = self.state();
        let files: Vec<(&String, usize)> = state
            .files
            .iter()
            .filter(|(name, contents)| name.ends_with(ending) && contents.last > 0)
            .map(|(name, contents)| (name, contents.last))
            .collect();
        let places: usize = files.iter().map(|(_, places)| places).sum();
        let mut at = (draw % places.max(1) as u64) as usize;
        for (name, places) in files {
            match at.checked_sub(places) {
                Some(rest) => at = rest,
                None => return Some((name.clone(), at)),
            }
        }
        None
    }

    /// A file loses all from there on.
    pub fn truncate(&self, name: &str, len: usize) {
        if let Some(contents) = self.state().files.get_mut(name) {
            contents.durable.truncate(len);
            contents.cached.truncate(len);
            contents.pending.clear();
        }
    }

    /// Flips one bit of a file.
    pub fn flip(&self, name: &str, offset: usize, bit: u8) {
        if let Some(contents) = self.state().files.get_mut(name) {
            for bytes in [&mut contents.durable, &mut contents.cached] {
                if let Some(byte) = bytes.get_mut(offset) {
                    *byte ^= 1 << bit;
                }
            }
        }
    }

    /// A copy that shares nothing with this one.
    pub fn fork(&self) -> SimDisk {
        let files = self.state().files.clone();
        SimDisk(Arc::new(Mutex::new(State { files, ..State::default() })))
    }

    /// Its files are what the other's are, durably; the other stays as it is.
    pub fn put_back(&self, of: &SimDisk) {
        let mut files = of.state().files.clone();
        for contents in files.values_mut() {
            contents.durable.clone_from(&contents.cached);
            contents.pending.clear();
        }
        self.state().files = files;
    }

    /// Removes a file, as an operator's mistake would.
    pub fn lose(&self, name: &str) {
        self.state().files.remove(name);
    }
}

impl State {
    /// Counts an operation down; `Some(keep)` if it fails after so many bytes.
    fn fails(&mut self, write: bool) -> Option<usize> {
        self.operations += 1;
        if self.dead {
            return Some(0);
        }
        let (fires, keep) = match &mut self.fault {
            Some(Fault::Write { after, keep }) if write => (count(after), *keep),
            Some(Fault::Sync { after }) if !write => (count(after), 0),
            Some(Fault::Power { after }) => {
                let fires = count(after);
                self.dead = fires;
                (fires, usize::MAX)
            }
            _ => (false, 0),
        };
        if fires && !self.dead {
            self.fault = None;
        }
        fires.then_some(keep)
    }
}

fn count(after: &mut usize) -> bool {
    let fires = *after == 0;
    *after = after.saturating_sub(1);
    fires
}

fn missing(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no file {name}"))
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.state().files.keys().cloned().collect())
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        self.state().files.get(name).map(|contents| contents.cached.len() as u64).ok_or_else(|| missing(name))
    }

    fn create(&self, name: &str, len: u64) -> io::Result<()> {
        let mut state = self.state();
        if state.fault == Some(Fault::Full) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if state.fails(true).is_some() {
            return Err(io::Error::other("simulated: create failed"));
        }
        let zeros = vec![0; len as usize];
        let contents = Contents { durable: zeros.clone(), cached: zeros, ..Contents::default() };
        state.files.insert(name.to_owned(), contents);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        if state.fails(true).is_some() {
            return Err(io::Error::other("simulated: rename failed"));
        }
        let contents = state.files.remove(from).ok_or_else(|| missing(from))?;
        state.files.insert(to.to_owned(), contents);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        if state.fails(true).is_some() {
            return Err(io::Error::other("simulated: remove failed"));
        }
        state.files.remove(name).map(drop).ok_or_else(|| missing(name))
    }

    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        let contents = state.files.get(name).ok_or_else(|| missing(name))?;
        let from = offset as usize;
        let found = contents.cached.get(from..from + buffer.len());
        buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let failed = state.fails(true);
        let kept = failed.unwrap_or(bytes.len()).min(bytes.len());
        state.written += kept;
        let contents = state.files.get_mut(name).ok_or_else(|| missing(name))?;
        apply(&mut contents.cached, offset, &bytes[..kept]);
        contents.last = offset as usize;
        contents.pending.push((offset, bytes[..kept].to_vec()));
        match failed {
            None => Ok(()),
            Some(_) => Err(io::Error::other("simulated: write failed")),
        }
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        let failed = state.fails(false);
        let dead = state.dead;
        let contents = state.files.get_mut(name).ok_or_else(|| missing(name))?;
        if failed.is_some() {
            if !dead {
                contents.pending.clear();
            }
            return Err(io::Error::other("simulated: sync failed"));
        }
        for (offset, write) in std::mem::take(&mut contents.pending) {
            apply(&mut contents.durable, offset, &write);
        }
        Ok(())
    }

    fn location(&self) -> String {
        "simulated disk".to_owned()
    }
}
