//! openraft's adapters: what it replicates, and how it reaches the log, the tables and its peers. The only files
//! that name openraft's storage and network traits.

pub mod log;
pub(crate) mod machine;
pub(crate) mod network;
pub mod types;
