//! The write-ahead log: one per node, shared by all raft groups. One writer, one `fdatasync` per batch of whatever
//! all groups have to write. Knows nothing of raft beyond indexes and opaque bytes.
//!
//! What it promises: an entry whose `done` was called, and a vote whose save returned, are there after any crash,
//! in order. A write that was under way when the power went may be there or not. Damage is refused, never read as
//! "no data": see `recovery`.
//!
//! [`LogStore`] is what a group sees; [`disk`] are the files; [`record`] the format; `engine` writes batches and keeps the index; `recovery` reads
//! a folder back; [`Wal`] is the face, with a thread of its own or, in simulation, without (`inline`).

pub mod disk;
mod engine;
mod group;
mod inline;
pub mod record;
mod recovery;
mod store;
mod writer;
mod written;

pub use self::group::WalGroup;
pub use self::inline::{Pace, Work};
pub use self::record::Owner;
pub use self::recovery::WalError;
pub use self::store::{Held, LogStore};
pub use self::writer::{Wal, WalConfig};
