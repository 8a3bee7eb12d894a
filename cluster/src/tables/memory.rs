//! Tables in memory with the semantics of the ones on disk, what is durable included: for the simulation and as
//! the reference of tests. No threads, no clock, no disk.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use reveille_protocol::service_list::{MemoryTable, Table, TableError, TableMut};

use super::{Installer, SPOILED, Snapshot, Tables};

/// One group's tables in memory.
#[derive(Clone, Default)]
pub struct MemoryTables {
    held: Arc<RwLock<Held>>,
    behind: Arc<RwLock<Option<Barrier>>>,
    watch: Arc<RwLock<Option<Watch>>>,
    spoiled: Arc<AtomicBool>,
}

/// What they hold, and what a crash takes back: neither a flush nor a view copies all of it.
#[derive(Default)]
struct Held {
    /// Copied when it changes while a view of it is there.
    now: Arc<MemoryTable>,
    /// What was durable under the keys that have changed since; `None`: nothing.
    undo: BTreeMap<Bytes, Option<Bytes>>,
}

impl Held {
    fn of(contents: MemoryTable) -> Held {
        Held { now: Arc::new(contents), undo: BTreeMap::new() }
    }

    fn note(&mut self, key: &[u8]) {
        if !self.undo.contains_key(key) {
            self.undo.insert(Bytes::copy_from_slice(key), self.now.0.get(key).cloned());
        }
    }

    fn durable(&self) -> MemoryTable {
        let mut durable = MemoryTable::clone(&self.now);
        for (key, value) in &self.undo {
            match value {
                Some(value) => drop(durable.0.insert(key.clone(), value.clone())),
                None => drop(durable.0.remove(key)),
            }
        }
        durable
    }
}

/// Told of each pair that is put, in order.
type Watch = Arc<dyn Fn(&[u8], &[u8]) + Send + Sync>;

/// Succeeds once the log is durable up to everything that was applied.
type Barrier = Box<dyn Fn() -> io::Result<()> + Send + Sync>;

fn read(held: &RwLock<Held>) -> RwLockReadGuard<'_, Held> {
    held.read().unwrap_or_else(PoisonError::into_inner)
}

fn write(held: &RwLock<Held>) -> RwLockWriteGuard<'_, Held> {
    held.write().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryTables {
    /// Tables that hold this, durably.
    pub fn of(contents: MemoryTable) -> MemoryTables {
        MemoryTables { held: Arc::new(RwLock::new(Held::of(contents))), ..MemoryTables::default() }
    }

    /// Keeps what is durable of them behind the log, as the tables on disk are; each start gives its own log.
    pub fn keep_behind(&self, barrier: impl Fn() -> io::Result<()> + Send + Sync + 'static) {
        *self.behind.write().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(barrier));
    }

    /// From now on this is told of each pair that is put: a simulation sees by it which log entry stored what.
    pub fn watch(&self, watch: impl Fn(&[u8], &[u8]) + Send + Sync + 'static) {
        *self.watch.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(watch));
    }

    /// The machine lost power: what was not flushed is gone.
    pub fn crash(&self) {
        let mut held = write(&self.held);
        *held = Held::of(held.durable());
        self.spoiled.store(false, Ordering::Relaxed);
    }

    /// Everything they hold, as it is now.
    pub fn contents(&self) -> Arc<MemoryTable> {
        read(&self.held).now.clone()
    }

    /// Everything that a flush has made durable.
    pub fn durable(&self) -> MemoryTable {
        read(&self.held).durable()
    }
}

/// A shared view of [`MemoryTables`].
pub struct MemoryReader<'a>(RwLockReadGuard<'a, Held>);

/// The right to change [`MemoryTables`].
pub struct MemoryWriter<'a>(RwLockWriteGuard<'a, Held>, Option<Watch>);

macro_rules! delegate_table {
    ($name:ty, $($field:tt).+) => {
        impl Table for $name {
            fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TableError> {
                self.$($field).+.get(key)
            }

            fn scan(
                &self,
                from: &[u8],
                to: &[u8],
                visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
            ) -> Result<(), TableError> {
                self.$($field).+.scan(from, to, visit)
            }
        }
    };
}

delegate_table!(MemoryReader<'_>, 0.now);
delegate_table!(MemoryWriter<'_>, 0.now);
delegate_table!(MemorySnapshot, table);

impl TableMut for MemoryWriter<'_> {
    fn put(&mut self, key: &[u8], value: Bytes) {
        if let Some(watch) = &self.1 {
            watch(key, &value);
        }
        self.0.note(key);
        Arc::make_mut(&mut self.0.now).put(key, value);
    }

    fn delete(&mut self, key: &[u8]) {
        self.0.note(key);
        Arc::make_mut(&mut self.0.now).delete(key);
    }
}

impl Tables for MemoryTables {
    type Reader<'a> = MemoryReader<'a>;
    type Writer<'a> = MemoryWriter<'a>;
    type Snapshot = MemorySnapshot;
    type Installer = MemoryInstaller;

    fn read(&self) -> MemoryReader<'_> {
        MemoryReader(read(&self.held))
    }

    fn write(&self) -> MemoryWriter<'_> {
        let watch = self.watch.read().unwrap_or_else(PoisonError::into_inner).clone();
        MemoryWriter(write(&self.held), watch)
    }

    fn spoil(&self) {
        self.spoiled.store(true, Ordering::Relaxed);
    }

    async fn fetch(&self, _keys: Vec<Vec<u8>>) -> Result<(), TableError> {
        Ok(())
    }

    async fn wait_for_room(&self) -> Result<(), TableError> {
        Ok(())
    }

    /// Always worth a flush: simulated crashes then find tables of many ages.
    fn unflushed(&self) -> usize {
        usize::MAX
    }

    async fn flush(&self) -> Result<(), TableError> {
        // What is written while the log is made durable waits for the next flush.
        let changed = {
            let mut held = write(&self.held);
            if self.spoiled.load(Ordering::Relaxed) {
                return Err(TableError(SPOILED.to_owned()));
            }
            std::mem::take(&mut held.undo)
        };
        if let Some(barrier) = &*self.behind.read().unwrap_or_else(PoisonError::into_inner)
            && let Err(error) = barrier()
        {
            // As it was: what was there before a change counts, not what came in between.
            write(&self.held).undo.extend(changed);
            return Err(TableError(format!("not flushed: {error}")));
        }
        Ok(())
    }

    async fn snapshot(&self) -> Result<MemorySnapshot, TableError> {
        self.flush().await?;
        Ok(MemorySnapshot { table: self.contents(), after: None })
    }

    fn installer(&self) -> Result<MemoryInstaller, TableError> {
        Ok(MemoryInstaller { tables: self.clone(), incoming: BTreeMap::new() })
    }
}

/// A copy of [`MemoryTables`] at one moment.
#[derive(Debug)]
pub struct MemorySnapshot {
    table: Arc<MemoryTable>,
    after: Option<Bytes>,
}

impl Snapshot for MemorySnapshot {
    async fn next_chunk(&mut self, max_bytes: usize) -> Result<Option<Vec<(Bytes, Bytes)>>, TableError> {
        let from = self.after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut bytes = 0;
        let mut chunk = Vec::new();
        for (key, value) in self.table.0.range::<Bytes, _>((from, Bound::Unbounded)) {
            bytes += key.len() + value.len();
            chunk.push((key.clone(), value.clone()));
            if bytes >= max_bytes {
                break;
            }
        }
        self.after = chunk.last().map(|(key, _)| key.clone()).or(self.after.take());
        Ok((!chunk.is_empty()).then_some(chunk))
    }
}

/// Tables on the way to take the place of [`MemoryTables`].
pub struct MemoryInstaller {
    tables: MemoryTables,
    incoming: BTreeMap<Bytes, Bytes>,
}

impl Installer for MemoryInstaller {
    async fn push(&mut self, pairs: Vec<(Bytes, Bytes)>) -> Result<(), TableError> {
        self.incoming.extend(pairs);
        Ok(())
    }

    async fn finish(self) -> Result<(), TableError> {
        *write(&self.tables.held) = Held::of(MemoryTable(self.incoming));
        Ok(())
    }
}
