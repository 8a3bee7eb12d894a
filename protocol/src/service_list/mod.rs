//! The service list: the replicated table of terminals and their pushes, as a pure state machine.

mod table;

pub use table::{MemoryTable, Table, TableError, TableMut};
