//! The files under the log: a small trait, the real disk, and a simulated one that loses, tears and fails. No
//! format here.

mod real;
mod simulated;

use std::io;

pub use self::real::RealDisk;
pub use self::simulated::{Fault, SimDisk};

/// One folder of files. Names are plain file names.
pub trait Disk: Send + Sync + 'static {
    /// The names of all files.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Bytes in a file.
    fn len(&self, name: &str) -> io::Result<u64>;
    /// Makes a file of `len` zero bytes, durable, with its name.
    fn create(&self, name: &str, len: u64) -> io::Result<()>;
    /// Gives a file another name, durably.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file, durably.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Reads exactly `buffer.len()` bytes.
    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Writes all of `bytes`; durable only after `sync`.
    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes what was written to a file durable.
    fn sync(&self, name: &str) -> io::Result<()>;
    /// For messages: where this is.
    fn location(&self) -> String;
}
