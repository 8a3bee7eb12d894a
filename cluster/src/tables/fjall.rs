//! Tables on disk: one fjall database per node, every group in it under its own prefix. Nothing here knows what
//! keys and values mean.
//!
//! Everything is written as whole sorted tables (ingestion): a flush is one, durable and in place in one step. fjall's
//! journal and memtables stay empty, so that nothing depends on how a damaged journal is read, no row is sorted or
//! written twice, and memory is that of the caches.
//!
//! Stored key: `group u16 | generation u32 | key`, big endian. The generation makes replacing a group's tables
//! one small write: a snapshot is written under a new generation, then the record of the group's generation is
//! changed in the batch that completes it. Rows of other generations are garbage, removed at the next start.
#![allow(
    clippy::disallowed_methods,
    reason = "tables on disk are production only; the simulator has tables in memory"
)]

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fjall::compaction::Leveled;
use fjall::config::{
    BlockSizePolicy, BloomConstructionPolicy, FilterPolicy, FilterPolicyEntry, PinningPolicy,
};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, Readable};
use reveille_protocol::service_list::{Table, TableError, TableMut};
use reveille_protocol::wire::codec;

use super::cache::Cache;
use super::overlay::{Found, Overlay, merge};
use super::{Installer, Snapshot, Tables};
use crate::wal::Owner;

/// Format of the folder.
const FORMAT: u32 = 1;
/// Rows that are removed at once while garbage is: bounds its memory.
const BATCH: usize = 4096;
/// New tables that wait before they are compacted, and beyond which a flush waits for that. Each is one more place to
/// look for a key of its group; the more are merged at once, the less often a row is written again.
const UNCOMPACTED: (u8, usize) = (12, 32);
/// The longest that a flush waits for compaction. One that has died is told by the next use of the store.
const COMPACTION_WAIT: Duration = Duration::from_secs(10);

/// How much memory the tables of a node may take.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The cluster and node that the folder belongs to.
    pub owner: Owner,
    /// Bytes of the block cache, shared by all groups.
    pub cache_bytes: u64,
    /// Bytes of one group's overlay; writers wait for a flush when it is full.
    pub overlay_bytes: usize,
}

/// The tables cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// fjall refuses.
    #[error(
        "tables in {folder} cannot be opened: {error}; if the disk is damaged, remove this node and let it rejoin under a new id"
    )]
    Open {
        /// The folder.
        folder: PathBuf,
        /// Why.
        error: fjall::Error,
    },
    /// Another process has it open.
    #[error("tables in {0} are in use by another process; stop it first")]
    Locked(PathBuf),
    /// Made for another node or cluster.
    #[error("tables in {folder} belong to node {} of cluster {:016x}; point this node at its own folder", found.node, found.cluster)]
    Owner {
        /// The folder.
        folder: PathBuf,
        /// Whose they are.
        found: Owner,
    },
    /// Made by another version.
    #[error(
        "tables in {folder} have format {found}, this build reads {FORMAT}; use the version that wrote them"
    )]
    Format {
        /// The folder.
        folder: PathBuf,
        /// Their format.
        found: u32,
    },
    /// Something in them cannot be read.
    #[error(transparent)]
    Damaged(#[from] TableError),
}

/// The tables of one node.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    folder: PathBuf,
    db: Database,
    rows: Keyspace,
    overlay_bytes: usize,
    poisoned: AtomicBool,
}

impl Store {
    /// Opens the tables in `folder`, or makes them.
    pub fn open(folder: &Path, config: &StoreConfig) -> Result<Store, StoreError> {
        let failed = |error| match error {
            fjall::Error::Locked => StoreError::Locked(folder.to_owned()),
            error => StoreError::Open { folder: folder.to_owned(), error },
        };
        let db = Database::builder(folder)
            .cache_size(config.cache_bytes)
            .worker_threads(1)
            .open()
            .map_err(failed)?;
        // Points are looked up by key, and many keys do not exist, so all levels have filters. Filters and indexes live
        // in the cache and under its bound: memory does not grow with the number of rows.
        let bits = FilterPolicyEntry::Bloom(BloomConstructionPolicy::BitsPerKey(10.0));
        let options = || {
            KeyspaceCreateOptions::default()
                .data_block_size_policy(BlockSizePolicy::all(4 << 10))
                .filter_policy(FilterPolicy::all(bits))
                .compaction_strategy(Arc::new(
                    Leveled::default().with_table_target_size(8 << 20).with_l0_threshold(UNCOMPACTED.0),
                ))
                .filter_block_pinning_policy(PinningPolicy::all(false))
                .index_block_pinning_policy(PinningPolicy::all(false))
        };
        let about = db.keyspace("about", options).map_err(failed)?;
        let rows = db.keyspace("rows", options).map_err(failed)?;
        match about.get("owner").map_err(failed)? {
            None => {
                let mut owner = about.start_ingestion().map_err(failed)?;
                owner.write("owner", codec::encode(&(FORMAT, config.owner))).map_err(failed)?;
                owner.finish().map_err(failed)?;
            }
            Some(bytes) => {
                let (found, owner) = codec::decode::<(u32, Owner), 64>(&bytes)
                    .map_err(|error| TableError(format!("owner of {}: {error}", folder.display())))?;
                if found != FORMAT {
                    return Err(StoreError::Format { folder: folder.to_owned(), found });
                }
                if owner != config.owner {
                    return Err(StoreError::Owner { folder: folder.to_owned(), found: owner });
                }
            }
        }
        let inner = Inner {
            folder: folder.to_owned(),
            db,
            rows,
            overlay_bytes: config.overlay_bytes,
            poisoned: AtomicBool::new(false),
        };
        Ok(Store(Arc::new(inner)))
    }

    /// One group's tables. Call it once per group and start: it removes what an unfinished install left.
    pub fn group(&self, group: u16) -> Result<FjallTables, StoreError> {
        let generation = match self.0.checked(self.0.rows.get(generation_key(group)))? {
            None => 0,
            Some(bytes) => codec::decode::<u32, 16>(&bytes)
                .map_err(|error| TableError(format!("generation of group {group}: {error}")))?,
        };
        let tables = GroupInner {
            store: self.clone(),
            group,
            state: RwLock::new(State { overlay: Overlay::default(), generation }),
            cache: Mutex::new(Cache::new(self.0.overlay_bytes / 4)),
            flushing: Mutex::new(()),
            ahead: AtomicBool::new(false),
        };
        let tables = FjallTables(Arc::new(tables));
        tables.remove_other_generations(generation)?;
        Ok(tables)
    }
}

impl Inner {
    /// The first error poisons the store: what follows it cannot be trusted.
    fn checked<T>(&self, result: fjall::Result<T>) -> Result<T, TableError> {
        if self.poisoned.load(Ordering::Acquire) {
            return Err(TableError(format!("{} failed before", self.folder.display())));
        }
        result.map_err(|error| {
            self.poisoned.store(true, Ordering::Release);
            TableError(format!("{}: {error}", self.folder.display()))
        })
    }

    /// Writes rows, or for `None` their tombstones, as one table: all of them or none, and durable when it returns.
    /// Their keys must ascend.
    fn ingest(&self, rows: impl Iterator<Item = (Vec<u8>, Option<Bytes>)>) -> Result<(), TableError> {
        self.wait_for_compaction();
        let mut table = self.checked(self.rows.start_ingestion())?;
        for (key, value) in rows {
            self.checked(match value {
                Some(value) => table.write(key, value),
                None => table.write_tombstone(key),
            })?;
        }
        self.checked(table.finish())
    }

    fn wait_for_compaction(&self) {
        let began = Instant::now();
        while self.rows.l0_table_count() > UNCOMPACTED.1 && began.elapsed() < COMPACTION_WAIT {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Where the record of a group's generation is: before every row of the group.
fn generation_key(group: u16) -> [u8; 2] {
    group.to_be_bytes()
}

fn prefix(group: u16, generation: u32) -> [u8; 6] {
    let mut prefix = [0; 6];
    prefix[..2].copy_from_slice(&group.to_be_bytes());
    prefix[2..].copy_from_slice(&generation.to_be_bytes());
    prefix
}

fn stored(prefix: [u8; 6], key: &[u8]) -> Vec<u8> {
    [&prefix[..], key].concat()
}

/// One group's tables on disk.
#[derive(Clone)]
pub struct FjallTables(Arc<GroupInner>);

struct GroupInner {
    store: Store,
    group: u16,
    state: RwLock<State>,
    /// Taken only while `state` is held, so that it changes with the overlay.
    cache: Mutex<Cache>,
    /// One flush or install at a time.
    flushing: Mutex<()>,
    /// A flush ahead of need is on its way.
    ahead: AtomicBool,
}

struct State {
    overlay: Overlay,
    generation: u32,
}

/// A shared view of [`FjallTables`].
pub struct FjallReader<'a>(&'a GroupInner, RwLockReadGuard<'a, State>);

/// The right to change [`FjallTables`].
pub struct FjallWriter<'a>(&'a GroupInner, RwLockWriteGuard<'a, State>);

impl GroupInner {
    fn get(&self, state: &State, key: &[u8]) -> Result<Option<Bytes>, TableError> {
        let mut cache = self.cache();
        if let Some(known) = cache.get(key) {
            return Ok(known);
        }
        let found = match state.overlay.get(key) {
            Found::Here(value) => value,
            Found::Below => self.below(state.generation, key)?,
        };
        cache.insert(key, found.clone());
        Ok(found)
    }

    /// What is on disk under a key; copied, because it would hold on to the block that it came in.
    fn below(&self, generation: u32, key: &[u8]) -> Result<Option<Bytes>, TableError> {
        let store = &self.store.0;
        let found = store.rows.get(stored(prefix(self.group, generation), key));
        Ok(store.checked(found)?.as_deref().map(Bytes::copy_from_slice))
    }

    /// Those of the keys that only the disk knows of, and the generation that they are of there.
    fn unknown(&self, mut keys: Vec<Vec<u8>>) -> (Vec<Vec<u8>>, u32) {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let cache = self.cache();
        keys.retain(|key| !cache.knows(key) && matches!(state.overlay.get(key), Found::Below));
        (keys, state.generation)
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn scan(
        &self,
        state: &State,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), TableError> {
        if from >= to {
            return Ok(());
        }
        let prefix = prefix(self.group, state.generation);
        let mut failed = None;
        let below = self.store.0.rows.range(stored(prefix, from)..stored(prefix, to));
        let below = below.map_while(|pair| match self.store.0.checked(pair.into_inner()) {
            Ok((key, value)) => Some((Bytes::from(key).slice(prefix.len()..), Some(Bytes::from(value)))),
            Err(error) => {
                failed = Some(error);
                None
            }
        });
        let above = state.overlay.range(from, to);
        let above = above.map(|(key, value)| (Bytes::copy_from_slice(key), value.cloned()));
        for (key, value) in merge(above, below) {
            if let Some(value) = value
                && !visit(&key, &value)
            {
                break;
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

impl Table for FjallReader<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TableError> {
        self.0.get(&self.1, key)
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), TableError> {
        self.0.scan(&self.1, from, to, visit)
    }
}

impl Table for FjallWriter<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TableError> {
        self.0.get(&self.1, key)
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), TableError> {
        self.0.scan(&self.1, from, to, visit)
    }
}

impl TableMut for FjallWriter<'_> {
    fn put(&mut self, key: &[u8], value: Bytes) {
        self.0.cache().update(key, Some(&value));
        self.1.overlay.put(key, value, false);
    }

    fn put_new(&mut self, key: &[u8], value: Bytes) {
        self.0.cache().update(key, Some(&value));
        self.1.overlay.put(key, value, true);
    }

    fn delete(&mut self, key: &[u8]) {
        self.0.cache().update(key, None);
        self.1.overlay.delete(key);
    }
}

impl FjallTables {
    fn state(&self) -> RwLockWriteGuard<'_, State> {
        self.0.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`Tables::flush`]; blocks the thread for the time of the disk.
    pub fn flush_blocking(&self) -> Result<(), TableError> {
        let _one = self.0.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        self.flush_locked()
    }

    fn flush_locked(&self) -> Result<(), TableError> {
        let (frozen, generation) = {
            let mut state = self.state();
            (state.overlay.freeze(), state.generation)
        };
        if let Some(frozen) = frozen {
            let began = Instant::now();
            let prefix = prefix(self.0.group, generation);
            let rows = frozen.iter().map(|(key, slot)| (stored(prefix, key), slot.value.clone()));
            self.0.store.0.ingest(rows)?;
            metrics::histogram!("reveille_tables_flush_seconds").record(began.elapsed().as_secs_f64());
            let flushed = self.state().overlay.thaw();
            // Freeing ten thousands of rows takes a while: not under the lock.
            drop((frozen, flushed));
        }
        Ok(())
    }

    /// Removes the rows of generations other than this one, some at a time.
    fn remove_other_generations(&self, generation: u32) -> Result<(), TableError> {
        let store = &self.0.store.0;
        let group = self.0.group;
        let ranges = [
            (prefix(group, 0).to_vec(), prefix(group, generation).to_vec()),
            (prefix(group, generation.saturating_add(1)).to_vec(), (group + 1).to_be_bytes().to_vec()),
        ];
        for (mut from, to) in ranges {
            while from < to {
                let some = store.rows.range(from.clone()..to.clone()).take(BATCH);
                let keys = some.map(|pair| store.checked(pair.key())).collect::<Result<Vec<_>, _>>()?;
                let Some(last) = keys.last() else { break };
                from = [&last[..], &[0]].concat();
                store.ingest(keys.iter().map(|key| (key.to_vec(), None)))?;
            }
        }
        Ok(())
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&FjallTables) -> Result<T, TableError> + Send + 'static,
    ) -> Result<T, TableError> {
        let tables = self.clone();
        match tokio::task::spawn_blocking(move || work(&tables)).await {
            Ok(result) => result,
            Err(error) => {
                Err(TableError(format!("work on the tables of group {} ended: {error}", self.0.group)))
            }
        }
    }
}

impl Tables for FjallTables {
    type Reader<'a> = FjallReader<'a>;
    type Writer<'a> = FjallWriter<'a>;
    type Snapshot = FjallSnapshot;
    type Installer = FjallInstaller;

    fn read(&self) -> FjallReader<'_> {
        FjallReader(&self.0, self.0.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self) -> FjallWriter<'_> {
        FjallWriter(&self.0, self.state())
    }

    /// Must not run beside a writer: what it finds on disk must still count when it is remembered.
    async fn fetch(&self, keys: Vec<Vec<u8>>) -> Result<(), TableError> {
        let (unknown, generation) = self.0.unknown(keys);
        if unknown.is_empty() {
            return Ok(());
        }
        self.blocking(move |tables| {
            for key in unknown {
                let found = tables.0.below(generation, &key)?;
                let state = tables.0.state.read().unwrap_or_else(PoisonError::into_inner);
                let mut cache = tables.0.cache();
                if state.generation == generation && !cache.knows(&key) {
                    cache.insert(&key, found);
                }
            }
            Ok(())
        })
        .await
    }

    async fn wait_for_room(&self) -> Result<(), TableError> {
        let limit = self.0.store.0.overlay_bytes;
        if self.unflushed() > limit / 2 && !self.0.ahead.swap(true, Ordering::Relaxed) {
            // Before it is needed and beside the work, so that nothing has to wait for it. Its error poisons the store;
            // whoever uses that next learns of it.
            let tables = self.clone();
            tokio::task::spawn_blocking(move || {
                let _ = tables.flush_blocking();
                tables.0.ahead.store(false, Ordering::Relaxed);
            });
        }
        while self.unflushed() > limit {
            // Half of the bound may be the frozen generation: this flush or the one under way frees it.
            self.flush().await?;
        }
        Ok(())
    }

    fn unflushed(&self) -> usize {
        self.0.state.read().unwrap_or_else(PoisonError::into_inner).overlay.bytes()
    }

    async fn flush(&self) -> Result<(), TableError> {
        self.blocking(FjallTables::flush_blocking).await
    }

    async fn snapshot(&self) -> Result<FjallSnapshot, TableError> {
        self.blocking(|tables| {
            let _one = tables.0.flushing.lock().unwrap_or_else(PoisonError::into_inner);
            tables.flush_locked()?;
            // No flush can come between: the lock is held.
            let generation = tables.0.state.read().unwrap_or_else(PoisonError::into_inner).generation;
            Ok(FjallSnapshot {
                view: Arc::new(tables.0.store.0.db.snapshot()),
                store: tables.0.store.clone(),
                prefix: prefix(tables.0.group, generation),
                after: Vec::new(),
            })
        })
        .await
    }

    fn installer(&self) -> Result<FjallInstaller, TableError> {
        let now = self.0.state.read().unwrap_or_else(PoisonError::into_inner).generation;
        // A generation that no unfinished install has written to: those count on from here as well, and what
        // they left goes at the first push.
        Ok(FjallInstaller { tables: self.clone(), generation: now + 1, begun: false })
    }
}

/// A view of [`FjallTables`] at one moment.
pub struct FjallSnapshot {
    view: Arc<fjall::Snapshot>,
    store: Store,
    prefix: [u8; 6],
    after: Vec<u8>,
}

impl Table for FjallSnapshot {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TableError> {
        let store = &self.store.0;
        let found = self.view.get(&store.rows, stored(self.prefix, key));
        Ok(store.checked(found)?.map(Bytes::from))
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), TableError> {
        if from >= to {
            return Ok(());
        }
        let store = &self.store.0;
        for pair in self.view.range(&store.rows, stored(self.prefix, from)..stored(self.prefix, to)) {
            let (key, value) = store.checked(pair.into_inner())?;
            if !visit(&key[self.prefix.len()..], &value) {
                break;
            }
        }
        Ok(())
    }
}

impl Snapshot for FjallSnapshot {
    async fn next_chunk(&mut self, max_bytes: usize) -> Result<Option<Vec<(Bytes, Bytes)>>, TableError> {
        let (view, store, prefix, after) =
            (self.view.clone(), self.store.clone(), self.prefix, self.after.clone());
        let read = move || {
            let mut end = prefix;
            // The next generation begins where this one ends; generations do not reach the last number.
            end[2..].copy_from_slice(
                &(u32::from_be_bytes([prefix[2], prefix[3], prefix[4], prefix[5]]) + 1).to_be_bytes(),
            );
            let (mut bytes, mut chunk) = (0, Vec::new());
            for pair in view.range(&store.0.rows, stored(prefix, &after)..end.to_vec()) {
                let (key, value) = store.0.checked(pair.into_inner())?;
                let (key, value) = (Bytes::from(key).slice(prefix.len()..), Bytes::from(value));
                bytes += key.len() + value.len();
                chunk.push((key, value));
                if bytes >= max_bytes {
                    break;
                }
            }
            Ok(chunk)
        };
        let chunk: Vec<(Bytes, Bytes)> = match tokio::task::spawn_blocking(read).await {
            Ok(chunk) => chunk?,
            Err(error) => return Err(TableError(format!("reading a snapshot ended: {error}"))),
        };
        let Some((last, _)) = chunk.last() else { return Ok(None) };
        self.after = [&last[..], &[0]].concat();
        Ok(Some(chunk))
    }
}

/// Tables on the way to take the place of [`FjallTables`].
pub struct FjallInstaller {
    tables: FjallTables,
    generation: u32,
    begun: bool,
}

impl Installer for FjallInstaller {
    async fn push(&mut self, pairs: Vec<(Bytes, Bytes)>) -> Result<(), TableError> {
        let (generation, begun) = (self.generation, std::mem::replace(&mut self.begun, true));
        self.tables
            .blocking(move |tables| {
                if !begun {
                    tables.remove_other_generations(generation - 1)?;
                }
                if !pairs.is_sorted_by(|(one, _), (other, _)| one < other) {
                    return Err(TableError(
                        "the rows of a snapshot are not in the order of their keys".to_owned(),
                    ));
                }
                let prefix = prefix(tables.0.group, generation);
                let rows = pairs.into_iter().map(|(key, value)| (stored(prefix, &key), Some(value)));
                tables.0.store.0.ingest(rows)
            })
            .await
    }

    async fn finish(self) -> Result<(), TableError> {
        let generation = self.generation;
        self.tables
            .blocking(move |tables| {
                let _one = tables.0.flushing.lock().unwrap_or_else(PoisonError::into_inner);
                // Writers wait until the new tables are in place: they must not write to the old ones any more.
                let mut state = tables.state();
                let record =
                    (generation_key(tables.0.group).to_vec(), Some(codec::encode(&generation).into()));
                tables.0.store.0.ingest(std::iter::once(record))?;
                let old = std::mem::replace(&mut state.generation, generation);
                state.overlay.clear();
                tables.0.cache().clear();
                drop(state);
                debug_assert!(old < generation, "generations only rise");
                tables.remove_other_generations(generation)
            })
            .await
    }
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> io::Error {
        io::Error::other(error.to_string())
    }
}
