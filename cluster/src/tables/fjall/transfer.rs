//! Tables as a whole: a view that is read out for a peer, and a peer's that take the place of ours.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use fjall::Readable;
use reveille_protocol::service_list::{Table, TableError};
use reveille_protocol::wire::codec;

use super::{FjallTables, Store, generation_key, prefix, stored};
use crate::tables::{Installer, Snapshot};

/// A view of [`FjallTables`] at one moment.
pub struct FjallSnapshot {
    view: Arc<fjall::Snapshot>,
    store: Store,
    prefix: [u8; 6],
    /// Where the rows of the next generation would begin.
    end: [u8; 6],
    after: Vec<u8>,
}

impl FjallSnapshot {
    /// What is on disk now of a group's generation; generations do not reach the last number.
    pub(super) fn new(store: Store, group: u16, generation: u32) -> FjallSnapshot {
        let (prefix, end) = (prefix(group, generation), prefix(group, generation + 1));
        FjallSnapshot { view: Arc::new(store.0.db.snapshot()), store, prefix, end, after: Vec::new() }
    }
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
        let (view, store, prefix) = (self.view.clone(), self.store.clone(), self.prefix);
        let rows = stored(prefix, &self.after)..self.end.to_vec();
        let read = move || {
            let (mut bytes, mut chunk) = (0, Vec::new());
            for pair in view.range(&store.0.rows, rows) {
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

/// Bytes of rows that are gathered before they are written: each write is a table of its own and a sync, and compaction
/// must merge them all.
const GATHERED: usize = 4 << 20;

/// Tables on the way to take the place of [`FjallTables`].
pub struct FjallInstaller {
    tables: FjallTables,
    generation: u32,
    begun: bool,
    /// Rows that are not written yet.
    gathered: Vec<(Bytes, Bytes)>,
    bytes: usize,
}

impl FjallInstaller {
    /// Writes under this generation until it is finished.
    pub(super) fn new(tables: FjallTables, generation: u32) -> FjallInstaller {
        FjallInstaller { tables, generation, begun: false, gathered: Vec::new(), bytes: 0 }
    }

    /// Runs a step of the install, one at a time, unless a later install has begun: that one counts.
    async fn step<T: Send + 'static>(
        &self,
        step: impl FnOnce(&FjallTables, u32) -> Result<T, TableError> + Send + 'static,
    ) -> Result<T, TableError> {
        let generation = self.generation;
        let work = move |tables: &FjallTables| {
            // Before the locks: whoever needs them must not wait for compaction.
            tables.0.store.0.wait_for_compaction();
            let _one = tables.0.flushing.lock().unwrap_or_else(PoisonError::into_inner);
            check_latest(tables, generation)?;
            step(tables, generation)
        };
        self.tables.blocking(work).await
    }
}

fn check_latest(tables: &FjallTables, generation: u32) -> Result<(), TableError> {
    match tables.0.newest.load(Ordering::Acquire) == generation {
        true => Ok(()),
        false => Err(TableError("a later snapshot is being installed".to_owned())),
    }
}

impl FjallInstaller {
    /// Writes what was gathered.
    async fn write(&mut self) -> Result<(), TableError> {
        let pairs = std::mem::take(&mut self.gathered);
        self.bytes = 0;
        if pairs.is_empty() {
            return Ok(());
        }
        let begun = std::mem::replace(&mut self.begun, true);
        self.step(move |tables, generation| {
            if !begun {
                let live = tables.0.state.read().unwrap_or_else(PoisonError::into_inner).generation;
                tables.remove_generations_but([live, generation])?;
            }
            let prefix = prefix(tables.0.group, generation);
            let rows = pairs.into_iter().map(|(key, value)| (stored(prefix, &key), Some(value)));
            tables.0.store.0.ingest(rows)
        })
        .await
    }
}

impl Installer for FjallInstaller {
    async fn push(&mut self, pairs: Vec<(Bytes, Bytes)>) -> Result<(), TableError> {
        check_latest(&self.tables, self.generation)?;
        let last = self.gathered.last().map(|(key, _)| key);
        let keys = last.into_iter().chain(pairs.iter().map(|(key, _)| key));
        if !keys.is_sorted_by(|one, other| one < other) {
            return Err(TableError("the rows of a snapshot are not in the order of their keys".to_owned()));
        }
        self.bytes += pairs.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
        self.gathered.extend(pairs);
        if self.bytes >= GATHERED { self.write().await } else { Ok(()) }
    }

    async fn finish(mut self) -> Result<(), TableError> {
        self.write().await?;
        self.step(|tables, generation| {
            {
                // Writers wait until the new tables are in place: they must not write to the old ones any more.
                let mut state = tables.state();
                let record =
                    (generation_key(tables.0.group).to_vec(), Some(codec::encode(&generation).into()));
                tables.0.store.0.ingest(std::iter::once(record))?;
                state.generation = generation;
                state.overlay.clear();
                tables.0.cache().clear();
            }
            tables.remove_generations_but([generation; 2])
        })
        .await
    }
}
