//! The control file of a node's shim: what it is told while its node runs, and what it has counted. The layout is that of
//! `shim.c`, which has the file mapped; what is written here is seen there at once.

use std::fs::File;
use std::io;
use std::ops::Add;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

const MAGIC: u64 = u64::from_ne_bytes(*b"CHSHIM01");
/// A page.
const LEN: u64 = 4096;

/// Places of the numbers, eight bytes each.
mod at {
    pub(super) const MAGIC: u64 = 0;
    pub(super) const SEED: u64 = 1;
    pub(super) const JOURNAL: u64 = 2;
    pub(super) const SHARE: u64 = 3;
    pub(super) const SYNC_ERRORS: u64 = 4;
    pub(super) const FULL: u64 = 5;
    pub(super) const SLOW_US: u64 = 6;
    pub(super) const LIES: u64 = 7;
    pub(super) const AHEAD_NS: u64 = 8;
    /// From here on the shim's.
    pub(super) const LOADS: u64 = 10;
}

/// What a shim is to do from now on.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Orders {
    /// Of reads and writes, so many fail.
    pub(super) share: f64,
    /// There is no room.
    pub(super) full: bool,
    /// Each sync takes so much longer.
    pub(super) slow: Duration,
    /// Nanoseconds that the wall clock is ahead.
    pub(super) ahead_ns: i64,
}

/// What a shim has done since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    /// Processes that have loaded it.
    pub(super) loads: u64,
    /// Reads and writes that could have failed.
    pub(super) drawn: u64,
    /// Those that did.
    pub(super) failed: u64,
    /// What there was no room for.
    pub(super) refused: u64,
    /// Syncs that took longer.
    pub(super) slowed: u64,
    pub(super) syncs_failed: u64,
    /// Times that a wrong wall clock was told.
    pub(super) told: u64,
    /// What it should have kept in its journal and could not.
    pub(super) trouble: u64,
}

impl Add for Counts {
    type Output = Counts;

    fn add(self, other: Counts) -> Counts {
        Counts {
            loads: self.loads + other.loads,
            drawn: self.drawn + other.drawn,
            failed: self.failed + other.failed,
            refused: self.refused + other.refused,
            slowed: self.slowed + other.slowed,
            syncs_failed: self.syncs_failed + other.syncs_failed,
            told: self.told + other.told,
            trouble: self.trouble + other.trouble,
        }
    }
}

impl Counts {
    /// What its process was told that failed.
    pub(super) fn errors(&self) -> u64 {
        self.failed + self.refused + self.syncs_failed
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Control {
    file: File,
    told: Orders,
}

impl Control {
    /// Makes it, new. With `journal` the shim keeps what is not synced; with `lies` it syncs nothing, and says that it did.
    pub(super) fn make(path: &Path, seed: u64, journal: bool, lies: bool) -> io::Result<Control> {
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        file.set_len(LEN)?;
        let control = Control { file, told: Orders::default() };
        control.set(at::SEED, seed)?;
        control.set(at::JOURNAL, journal.into())?;
        control.set(at::LIES, lies.into())?;
        control.set(at::MAGIC, MAGIC)?;
        Ok(control)
    }

    fn set(&self, at: u64, value: u64) -> io::Result<()> {
        self.file.write_all_at(&value.to_ne_bytes(), at * 8)
    }

    /// From now on this.
    pub(super) fn tell(&mut self, orders: Orders) -> io::Result<()> {
        if orders == self.told {
            return Ok(());
        }
        self.set(at::SHARE, (orders.share * (1u64 << 32) as f64) as u64)?;
        self.set(at::FULL, orders.full.into())?;
        self.set(at::SLOW_US, orders.slow.as_micros() as u64)?;
        self.set(at::AHEAD_NS, orders.ahead_ns as u64)?;
        self.told = orders;
        Ok(())
    }

    /// So many of the next syncs fail.
    pub(super) fn fail_syncs(&self, count: u64) -> io::Result<()> {
        self.set(at::SYNC_ERRORS, count)
    }

    pub(super) fn counts(&self) -> io::Result<Counts> {
        let mut bytes = [0; 64];
        self.file.read_exact_at(&mut bytes, at::LOADS * 8)?;
        let (numbers, _) = bytes.as_chunks::<8>();
        let mut numbers = numbers.iter().map(|number| u64::from_ne_bytes(*number));
        let mut next = || numbers.next().unwrap_or_default();
        Ok(Counts {
            loads: next(),
            drawn: next(),
            failed: next(),
            refused: next(),
            slowed: next(),
            syncs_failed: next(),
            told: next(),
            trouble: next(),
        })
    }
}
