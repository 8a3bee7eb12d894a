//! What is replicated: raft groups, the log, the tables, the links between nodes, and the shard leader's shell.
//!
//! In the order of a push's way through it: [`member`] takes commands from any node to the shard's leader
//! (`route`), `propose` makes log entries of them, `raft` replicates those over [`link`] into [`wal`] and applies
//! them to [`tables`], and `shard` carries out what dispatch decides. [`mod@env`] names what all of it stands on:
//! production's disks, sockets and clock, or the simulator's.

mod admission;
pub mod backup;
pub mod clock;
pub mod door;
pub mod env;
mod fail;
mod folder;
pub mod ground;
pub mod guard;
mod handle;
pub mod host;
pub mod link;
pub mod member;
pub mod overview;
mod propose;
pub mod pull;
pub mod query;
pub mod raft;
mod rpc;
pub mod shape;
mod shard;
pub mod status;
pub mod tables;
pub mod trace;
pub mod wal;

pub use admission::NotAdmitted;
pub use folder::{FolderError, Starts};
pub use handle::{ClusterConfig, ClusterHandle, Production, StartError};
pub use member::{FIRST, Unavailable};
