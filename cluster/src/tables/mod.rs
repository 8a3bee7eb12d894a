//! The tables of the replicated state machine: fjall under a write-back overlay, and the same in memory for the
//! simulation. Keys and values are the state machine's; nothing here knows what they mean.
//!
//! The raft log is the durable journal. Apply changes only the overlay, an ordered map in memory; from a
//! megabyte on, or each minute, what still differs goes to fjall as one sorted file (ADR 4), the applied log id
//! in it, and is durable before the log is purged. A push that is stored, delivered and acked in between never touches the disk here.
//! After a crash the tables are those of the last flush, and the log is applied from there.

mod cache;
mod fjall;
mod key;
mod memory;
mod overlay;

use std::future::Future;

use bytes::Bytes;
use reveille_protocol::service_list::{Table, TableError, TableMut};

pub(crate) use self::fjall::set_aside;
pub use self::fjall::{FjallInstaller, FjallSnapshot, FjallTables, Store, StoreConfig, StoreError};
pub use self::memory::{MemoryInstaller, MemorySnapshot, MemoryTables};

/// One group's tables.
pub trait Tables: Clone + Send + Sync + 'static {
    /// A shared view; writers wait while one is held.
    type Reader<'a>: Table;
    /// The exclusive right to change them, for the time of applying one entry. A flush begins only between two.
    type Writer<'a>: TableMut;
    /// A consistent view that outlives later changes.
    type Snapshot: Snapshot;
    /// Other tables on the way to take the place of these.
    type Installer: Installer;

    /// Reads.
    fn read(&self) -> Self::Reader<'_>;

    /// Writes.
    fn write(&self) -> Self::Writer<'_>;

    /// What was changed last is there in part: from now on nothing of these tables becomes durable. The next start has them
    /// as they were flushed last, and the log from there.
    fn spoil(&self);

    /// Fetches what is under these keys, so that applying an entry does not wait for the disk while it holds the tables.
    fn fetch(&self, keys: Vec<Vec<u8>>) -> impl Future<Output = Result<(), TableError>> + Send;

    /// Waits until the overlay has room for more changes: it is bounded, and a flush may be behind.
    fn wait_for_room(&self) -> impl Future<Output = Result<(), TableError>> + Send;

    /// About how many bytes a flush would free.
    fn unflushed(&self) -> usize;

    /// Makes everything that was written before this call durable. Writing goes on meanwhile.
    fn flush(&self) -> impl Future<Output = Result<(), TableError>> + Send;

    /// Flushes, and gives a consistent view of what is durable then.
    fn snapshot(&self) -> impl Future<Output = Result<Self::Snapshot, TableError>> + Send;

    /// Begins to replace the tables. Dropped before `finish`, it leaves them as they are.
    fn installer(&self) -> Result<Self::Installer, TableError>;
}

/// Why tables that are spoiled are not flushed.
const SPOILED: &str = "not flushed: an entry was applied in part, and is whole in the log";

/// A consistent view of one group's tables.
pub trait Snapshot: Table + Send + Sync + 'static {
    /// The next pairs in key order, about `max_bytes` of them; `None` at the end.
    fn next_chunk(
        &mut self,
        max_bytes: usize,
    ) -> impl Future<Output = Result<Option<Vec<(Bytes, Bytes)>>, TableError>> + Send;
}

/// Tables that are written beside the present ones and then take their place in one step.
pub trait Installer: Send + 'static {
    /// Adds pairs.
    fn push(&mut self, pairs: Vec<(Bytes, Bytes)>) -> impl Future<Output = Result<(), TableError>> + Send;

    /// Takes the place of the present tables: durably, and all at once, also for a crash in the middle.
    fn finish(self) -> impl Future<Output = Result<(), TableError>> + Send;
}
