//! Tables on disk: one fjall database per node, every group in it under its own prefix. Nothing here knows what
//! keys and values mean.
//!
//! Everything is written as whole sorted tables (ingestion): a flush is one, durable and in place in one step. fjall's
//! journal and memtables stay empty, so that nothing depends on how a damaged journal is read, no row is sorted or
//! written twice, and memory is that of the caches.
//!
//! Stored key: `group u16 | generation u32 | key`, big endian. The generation makes replacing a group's tables
//! one small write: a snapshot is written under a new generation, then the record of the group's generation is
//! changed by the table that completes it. Rows of other generations are garbage, removed at the next start.
#![allow(
    clippy::disallowed_methods,
    reason = "tables on disk are production only; the simulator has tables in memory"
)]

pub(crate) mod set_aside;
mod store;
mod transfer;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use bytes::Bytes;
use reveille_protocol::service_list::{Table, TableError, TableMut};
use reveille_protocol::wire::codec;

pub use self::store::{Store, StoreConfig, StoreError};
use self::store::{generation_key, prefix, stored};
pub use self::transfer::{FjallInstaller, FjallSnapshot};
use super::cache::Cache;
use super::overlay::{Found, Overlay, merge};
use super::{SPOILED, Tables};

/// Rows that are removed at once while garbage is: bounds its memory.
const BATCH: usize = 4096;

impl Store {
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
            newest: AtomicU32::new(generation),
            ahead: AtomicBool::new(false),
            spoiled: AtomicBool::new(false),
        };
        let tables = FjallTables(Arc::new(tables));
        tables.remove_generations_but([generation; 2])?;
        Ok(tables)
    }
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
    /// One flush, or one step of an install, at a time.
    flushing: Mutex<()>,
    /// The generation that the latest installer writes to: only that one may go on.
    newest: AtomicU32,
    /// A flush ahead of need is on its way.
    ahead: AtomicBool,
    /// Set while `state` is held.
    spoiled: AtomicBool,
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
        if let Some(known) = self.cache().get(key) {
            return Ok(known);
        }
        let found = match state.overlay.get(key) {
            Found::Here(value) => value,
            // Others may look into the cache meanwhile; nobody changes the tables while `state` is held.
            Found::Below => self.below(state.generation, key)?,
        };
        self.cache().insert(key, found.clone());
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
            if self.0.spoiled.load(Ordering::Relaxed) {
                return Err(TableError(SPOILED.to_owned()));
            }
            (state.overlay.freeze(), state.generation)
        };
        if let Some(frozen) = frozen {
            let began = Instant::now();
            let prefix = prefix(self.0.group, generation);
            let rows = frozen.iter().map(|(key, slot)| (stored(prefix, key), slot.value.clone()));
            self.0.store.0.wait_for_log()?;
            self.0.store.0.wait_for_compaction();
            self.0.store.0.ingest(rows)?;
            metrics::histogram!("reveille_tables_flush_seconds").record(began.elapsed().as_secs_f64());
            let flushed = self.state().overlay.thaw();
            // Freeing ten thousands of rows takes a while: not under the lock.
            drop((frozen, flushed));
        }
        Ok(())
    }

    /// Removes the rows of every generation but these two, which ascend; some at a time.
    fn remove_generations_but(&self, [one, other]: [u32; 2]) -> Result<(), TableError> {
        let store = &self.0.store.0;
        let group = self.0.group;
        let after = |generation: u32| prefix(group, generation.saturating_add(1)).to_vec();
        let ranges = [
            (prefix(group, 0).to_vec(), prefix(group, one).to_vec()),
            (after(one), prefix(group, other).to_vec()),
            (after(other), (group + 1).to_be_bytes().to_vec()),
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

/// A flush ahead of need: over when it is dropped, also by a panic.
struct Early(FjallTables);

impl Drop for Early {
    fn drop(&mut self) {
        self.0.0.ahead.store(false, Ordering::Relaxed);
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

    fn spoil(&self) {
        self.0.spoiled.store(true, Ordering::Relaxed);
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
            // Before it is needed and beside the work, so that nothing has to wait for it.
            let early = Early(self.clone());
            tokio::task::spawn_blocking(move || {
                // The one that is needed does the same again, and what that comes to counts.
                if let Err(error) = early.0.flush_blocking() {
                    tracing::warn!(group = early.0.0.group, %error, "an early flush failed");
                }
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
            Ok(FjallSnapshot::new(tables.0.store.clone(), tables.0.group, generation))
        })
        .await
    }

    fn installer(&self) -> Result<FjallInstaller, TableError> {
        // One that no other installer writes to. What unfinished ones left goes at the first push.
        let generation = self.0.newest.fetch_add(1, Ordering::AcqRel) + 1;
        Ok(FjallInstaller::new(self.clone(), generation))
    }
}
