//! The service list: the replicated table of terminals and their pushes, as a pure state machine. The source's
//! sending side calls this module "service list" and its look-up "status determination".
//!
//! The way of an entry: [`apply`] takes the commands one by one: `status` (who is online and where),
//! `enqueue` (pushes in and back out), `ends` (confirmed, expired, remembered), `import` (restored from a backup). [`view`] reads.

mod apply;
mod command;
mod ends;
mod enqueue;
mod import;
mod imported;
pub mod key;
pub mod row;
mod status;
mod table;
pub mod view;

pub use apply::{Applied, apply, next_deadline, settings, time};
pub use command::*;
pub use imported::*;
pub use table::{MemoryTable, Table, TableError, TableMut};
