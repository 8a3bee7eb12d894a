//! What a group's log promises to whoever keeps its entries there. No format, no files.

use std::future::Future;
use std::io;

use bytes::Bytes;

/// How much of the node's log one group holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Bytes of its entries.
    pub live: u64,
    /// Bytes of the segments, other groups' entries among them, that cannot be freed because of its oldest entry.
    pub span: u64,
    /// Bytes that the log may have, for all groups.
    pub capacity: u64,
}

/// One group's part of a node's log.
pub trait LogStore: Clone + Send + Sync + 'static {
    /// The stored vote.
    fn vote(&self) -> Option<Bytes>;
    /// The stored committed log id; may be older than what was committed.
    fn committed(&self) -> Option<Bytes>;
    /// The log id up to which entries were purged, with its index.
    fn purged(&self) -> Option<(u64, Bytes)>;
    /// Index of the last entry, if any is left after the purge.
    fn last_index(&self) -> Option<u64>;
    /// How much of the node's log this group holds.
    fn held(&self) -> Held;
    /// The index up to which must be purged so that at most `keep` bytes of entries are left and they hold at most
    /// `span` bytes of segments. `None`: that is so.
    fn excess(&self, keep: u64, span: u64) -> Option<u64>;
    /// Stores the vote; durable when it returns.
    fn save_vote(&self, vote: Bytes) -> impl Future<Output = io::Result<()>> + Send;
    /// Stores the committed log id, durable some time later.
    fn save_committed(&self, committed: Bytes) -> impl Future<Output = io::Result<()>> + Send;
    /// Appends entries. They can be read when this returns; `done` is called when they are durable, in the order
    /// of the appends.
    fn append(
        &self,
        entries: Vec<(u64, Bytes)>,
        done: Box<dyn FnOnce(io::Result<()>) + Send>,
    ) -> impl Future<Output = io::Result<()>> + Send;
    /// Removes the entries after `last`.
    fn truncate_after(&self, last: Option<u64>) -> impl Future<Output = io::Result<()>> + Send;
    /// Removes the entries up to `index`, whose log id is `id`.
    fn purge(&self, index: u64, id: Bytes) -> impl Future<Output = io::Result<()>> + Send;
    /// Entries with `from <= index < to`, as many as fit `max_bytes` but at least one. Those that were purged are
    /// not among them, also when that happens meanwhile.
    fn read(
        &self,
        from: u64,
        to: u64,
        max_bytes: usize,
    ) -> impl Future<Output = io::Result<Vec<(u64, Bytes)>>> + Send;
}
