//! What is replicated: raft groups, the log, the tables, the links between nodes.

pub mod link;
pub mod tables;
pub mod wal;
