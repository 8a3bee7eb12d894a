//! A node's data folder: the log's disk as one life of the node has it, copies that it is put back from, and the damage
//! that is done to it while the node is down. What the node makes of that is the product's.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use reveille_cluster::Starts;
use reveille_cluster::tables::MemoryTables;
use reveille_cluster::wal::disk::{Disk, SimDisk};
use reveille_protocol::id::GroupId;
use reveille_protocol::service_list::MemoryTable;

use crate::node::SimNode;
use crate::world::lock;

/// What segments of the log are called.
const SEGMENT: &str = ".wal";

/// The disk as one life of a node has it.
pub(crate) struct OwnDisk(pub(crate) SimDisk, pub(crate) Arc<AtomicBool>);

impl OwnDisk {
    fn check(&self) -> io::Result<&SimDisk> {
        match self.1.load(Ordering::Relaxed) {
            true => Ok(&self.0),
            false => Err(io::Error::other("the process that wanted this is gone")),
        }
    }
}

impl Disk for OwnDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        self.check()?.list()
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        self.check()?.len(name)
    }

    fn create(&self, name: &str, len: u64) -> io::Result<()> {
        self.check()?.create(name, len)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.check()?.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.check()?.remove(name)
    }

    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.check()?.read_at(name, offset, buffer)
    }

    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.check()?.write_at(name, offset, bytes)
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        self.check()?.sync(name)
    }

    fn location(&self) -> String {
        self.0.location()
    }
}

/// Which of a folder's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum File {
    Log,
    /// All groups' are one store.
    Tables,
}

/// A data folder as it was.
#[derive(Clone)]
pub struct FolderCopy {
    disk: SimDisk,
    tables: BTreeMap<GroupId, MemoryTable>,
    starts: Starts,
}

impl SimNode {
    /// What a copy of its folder would have now: of the tables, what was flushed.
    pub fn copy_folder(&self) -> FolderCopy {
        let tables = lock(&self.tables).iter().map(|(group, tables)| (*group, tables.durable())).collect();
        FolderCopy { disk: self.disk.fork(), tables, starts: lock(&self.state).starts }
    }

    /// The folder is as it was then. Not while the node runs, as all below.
    pub fn put_back(&self, copy: &FolderCopy) {
        self.disk.put_back(&copy.disk);
        let tables = copy.tables.iter().map(|(group, held)| (*group, MemoryTables::of(held.clone())));
        *lock(&self.tables) = tables.collect();
        lock(&self.state).starts = copy.starts;
    }

    /// The folder is empty, and made anew under this name at the next start: then the others must let it in.
    pub fn empty_folder(&self, store: u64) {
        self.disk.put_back(&SimDisk::default());
        self.empty_tables();
        let state = &mut *lock(&self.state);
        (state.starts, state.has_log, state.admitted, state.store) = (Starts::default(), false, false, store);
    }

    /// As a store of tables is made anew that is gone, or is found damaged.
    fn empty_tables(&self) {
        lock(&self.tables).values_mut().for_each(|tables| *tables = MemoryTables::default());
    }

    /// A bit is turned. `None`: nothing was written yet that could be damaged.
    pub fn flip_bit(&self, file: File, draw: u64) -> Option<String> {
        self.damage(file, draw, |disk, name, at| disk.flip(name, at, (draw >> 60) as u8 % 8))
    }

    /// A file ends too early.
    pub fn truncate(&self, file: File, draw: u64) -> Option<String> {
        self.damage(file, draw, SimDisk::truncate)
    }

    /// Tables in memory have no checksums that could find what was changed: found is what the store on a disk would find.
    fn damage(&self, file: File, draw: u64, how: impl Fn(&SimDisk, &str, usize)) -> Option<String> {
        match file {
            File::Tables => {
                self.empty_tables();
                Some("tables".to_owned())
            }
            File::Log => {
                let (name, at) = self.disk.place(SEGMENT, draw)?;
                how(&self.disk, &name, at);
                Some(format!("{name} at {at}"))
            }
        }
    }
}
