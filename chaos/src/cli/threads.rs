//! Work that many threads share. Says nothing of what it is.

use std::thread;

use anyhow::anyhow;

/// As many threads as there are processors.
pub(super) fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Does this on so many threads, each until it says that nothing is left.
///
/// # Errors
/// The first of theirs, by their order; a panic is one, of a thread of `whose`.
pub(super) fn share(
    threads: usize,
    whose: &str,
    work: impl Fn() -> anyhow::Result<()> + Sync,
) -> anyhow::Result<()> {
    thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(&work)).collect();
        all.into_iter().try_for_each(|one| one.join().map_err(|_| anyhow!("a thread of {whose} panicked"))?)
    })
}
