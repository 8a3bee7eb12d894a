//! The ordered key-value interface that `apply` reads and writes; no implementation for production lives here.
//!
//! Keys are local to one group. Production keeps them in an LSM tree under a write-back overlay, tests and
//! simulation in a `BTreeMap` ([`MemoryTable`]). Because the state machine sees nothing else, equal entries
//! on equal tables give equal tables on every node.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

/// The tables could not be read or written: the disk failed or is full, or what it holds is damaged.
///
/// Whoever meets it stops the group on this node; the other replicas go on. It is never a statement about
/// the data ("no such terminal"), so nothing may be decided from it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "tables cannot be used: {0}; if the disk is full, make room; then start this node again: damaged tables are taken \
     from its peers. If the disk is bad, replace the node: reveille cluster replace"
)]
pub struct TableError(pub String);

/// Reading one group's tables.
pub trait Table {
    /// The value under `key`, if there is one.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TableError>;

    /// Visits the pairs with `from <= key < to` in ascending order of their keys until `visit` returns `false`.
    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), TableError>;
}

/// Writing one group's tables. Writes are buffered in memory, so they cannot fail.
pub trait TableMut: Table {
    /// Sets `key`, whatever it held before.
    fn put(&mut self, key: &[u8], value: Bytes);

    /// Sets a `key` of which the caller knows that it holds nothing.
    ///
    /// A hint with no meaning of its own: a key that is set and deleted between two flushes then never
    /// reaches the disk, not even as a tombstone.
    fn put_new(&mut self, key: &[u8], value: Bytes) {
        self.put(key, value);
    }

    /// Removes `key`; no matter if it holds nothing.
    fn delete(&mut self, key: &[u8]);
}

/// Tables in memory: for tests, simulation, and as the reference that other implementations are compared with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryTable(pub BTreeMap<Bytes, Bytes>);

impl Table for MemoryTable {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TableError> {
        Ok(self.0.get(key).cloned())
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
        for (key, value) in self.0.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to))) {
            if !visit(key, value) {
                break;
            }
        }
        Ok(())
    }
}

impl TableMut for MemoryTable {
    fn put(&mut self, key: &[u8], value: Bytes) {
        self.0.insert(Bytes::copy_from_slice(key), value);
    }

    fn delete(&mut self, key: &[u8]) {
        self.0.remove(key);
    }
}
