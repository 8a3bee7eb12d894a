//! The face of the log, and who drives its engine: a thread of its own in production, the caller in simulation.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::channel::oneshot;
use reveille_protocol::fail_point::{Point, delay};
use tokio::sync::Notify;

use super::disk::Disk;
use super::engine::{self, Engine};
use super::group::{Index, WalGroup};
use super::inline::{Inline, Pace};
use super::record::Owner;
use super::recovery::{self, WalError};
use super::store::Held;
use super::written::{Place, Written};
use crate::guard;

/// Bytes that may wait for the writer; appenders wait beyond that. A few batches: more would only add delay.
const QUEUE_BYTES: usize = 16 << 20;
/// After this long without work the writer seals the last batch.
const IDLE: Duration = Duration::from_millis(10);

/// How the log is kept.
#[derive(Debug, Clone)]
pub struct WalConfig {
    /// Whose log it is; another's is refused.
    pub owner: Owner,
    /// Groups on this node, numbered from 0.
    pub groups: u16,
    /// Bytes of a segment; at least twice the largest record. Files are made of this size, full of zeros.
    pub segment_bytes: usize,
    /// Segments that the log is meant to have at most. Above, what few live entries hold an old segment are written
    /// again; if they are many, the log grows and an alarm is raised.
    pub max_segments: usize,
    /// Bytes of the latest entries that stay in memory, over all groups.
    pub cache_bytes: usize,
    /// Make a new log; refused where one is. Without it, a missing log is refused.
    pub create: bool,
}

impl WalConfig {
    /// Production's sizes.
    pub fn new(owner: Owner, groups: u16) -> WalConfig {
        WalConfig {
            owner,
            groups,
            segment_bytes: 64 << 20,
            max_segments: 16,
            cache_bytes: 8 << 20,
            create: false,
        }
    }
}

/// Called with the outcome once it is durable, or certainly is not.
pub(super) type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// One thing to write.
pub(super) struct Op {
    pub(super) group: u16,
    pub(super) action: Action,
    pub(super) done: Option<Done>,
}

pub(super) enum Action {
    /// Index, version in the index, bytes.
    Entries(Vec<(u64, u64, Bytes)>),
    Vote(Bytes),
    Truncate(u64),
    Purge(u64, Bytes),
    Committed(Bytes),
    /// Nothing to write: done when everything before it is.
    Barrier,
}

impl Action {
    fn bytes(&self) -> usize {
        let small = 64;
        match self {
            Action::Entries(entries) => entries.iter().map(|(_, _, payload)| payload.len() + small).sum(),
            Action::Vote(bytes) | Action::Committed(bytes) | Action::Purge(_, bytes) => bytes.len() + small,
            Action::Truncate(_) | Action::Barrier => small,
        }
    }
}

#[derive(Default)]
pub(super) struct Queue {
    pub(super) ops: Vec<Op>,
    bytes: usize,
    /// Something among them wants to be written now; a committed log id does not, it goes with what comes next.
    urgent: bool,
    closed: bool,
    /// What went wrong; nothing is written after it.
    failed: Option<String>,
}

impl Queue {
    pub(super) fn check_alive(&self) -> io::Result<()> {
        match &self.failed {
            Some(failed) => Err(stopped(failed)),
            None if self.closed => Err(stopped("the log is closed")),
            None => Ok(()),
        }
    }
}

pub(super) struct Inner {
    queue: Mutex<Queue>,
    work: Condvar,
    room: Notify,
    disk: Arc<dyn Disk>,
    pub(super) groups: Arc<Vec<Arc<Mutex<Index>>>>,
    newest: Arc<AtomicU64>,
    segment_bytes: u64,
    capacity: u64,
    /// In simulation the engine is driven by whoever submits.
    pub(super) inline: Option<Inline>,
}

/// A node's log.
pub struct Wal {
    inner: Arc<Inner>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Wal {
    /// Opens or creates the log, with a writer thread.
    pub fn open(disk: Arc<dyn Disk>, config: WalConfig) -> Result<Wal, WalError> {
        let location = disk.location();
        let engine = recovery::open(disk.clone(), config)?;
        let inner = Arc::new(Inner::new(disk, &engine));
        let writer = inner.clone();
        let thread = std::thread::Builder::new().name("wal".to_owned()).spawn(move || run(&writer, engine));
        let thread = thread.map_err(|error| WalError::Io { folder: location, error })?;
        Ok(Wal { inner, thread: Some(thread) })
    }

    /// Opens or creates the log without a thread: every operation is done before it returns. For simulation.
    pub fn open_inline(disk: Arc<dyn Disk>, config: WalConfig) -> Result<Wal, WalError> {
        Self::open_paced(disk, config, Box::new(Some))
    }

    /// The same, with batches that take the time that `pace` gives them: nobody learns before it is over, and what comes
    /// meanwhile is the next batch. A [`Wal::barrier`] has no time to wait, and ends the batch that is on its way.
    pub fn open_paced(disk: Arc<dyn Disk>, config: WalConfig, pace: Pace) -> Result<Wal, WalError> {
        let engine = recovery::open(disk.clone(), config)?;
        let inner = Inner::new(disk, &engine);
        Ok(Wal { inner: Arc::new(Inner { inline: Some(Inline::new(engine, pace)), ..inner }), thread: None })
    }

    /// One group's part; `None` if there is no such group.
    pub fn group(&self, group: u16) -> Option<WalGroup> {
        let known = usize::from(group) < self.inner.groups.len();
        known.then(|| WalGroup { wal: self.inner.clone(), group })
    }

    /// Blocks the thread until everything that was submitted before is durable.
    pub fn barrier(&self) -> io::Result<()> {
        let (done, outcome) = std::sync::mpsc::sync_channel(1);
        let done: Done = Box::new(move |result| {
            // Whoever waited has ended: nothing depends on it any more.
            let _ = done.send(result);
        });
        self.inner.submit_now(Op { group: 0, action: Action::Barrier, done: Some(done) })?;
        if let Some(inline) = &self.inner.inline {
            self.inner.end_batch(inline, None);
        }
        outcome.recv().unwrap_or_else(|_| Err(stopped("the log is closed")))
    }

    /// Why the log stopped, if it did. The node must stop, too.
    pub fn failed(&self) -> Option<String> {
        self.inner.queue().failed.clone()
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        self.inner.queue().closed = true;
        self.inner.work.notify_all();
        if let Some(thread) = self.thread.take() {
            // A writer that panicked has nothing more to write.
            let _ = thread.join();
        }
    }
}

impl Inner {
    fn new(disk: Arc<dyn Disk>, engine: &Engine) -> Inner {
        Inner {
            queue: Mutex::default(),
            work: Condvar::new(),
            room: Notify::new(),
            disk,
            groups: engine.groups.clone(),
            newest: engine.newest.clone(),
            segment_bytes: engine.config.segment_bytes as u64,
            capacity: (engine.config.segment_bytes * engine.config.max_segments) as u64,
            inline: None,
        }
    }

    pub(super) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How much of the log a group holds.
    pub(super) fn held(&self, written: &Written) -> Held {
        let newest = self.newest.load(Ordering::Relaxed);
        let span = written.oldest().map_or(0, |oldest| newest.saturating_sub(oldest) + 1);
        Held { live: written.bytes(), span: span * self.segment_bytes, capacity: self.capacity }
    }

    /// The last entry that must go for a group to hold no more than this.
    pub(super) fn excess(&self, written: &Written, keep: u64, span: u64) -> Option<u64> {
        let beyond = self.newest.load(Ordering::Relaxed) + 1;
        written.excess(keep, beyond.saturating_sub(span / self.segment_bytes))
    }

    pub(super) fn check_alive(&self) -> io::Result<()> {
        self.queue().check_alive()
    }

    /// Queues an operation; waits while too much is queued. It is done in the order of the calls.
    pub(super) async fn submit(self: &Arc<Self>, op: Op) -> io::Result<()> {
        let Some(op) = self.commit_inline(op)? else { return Ok(()) };
        loop {
            let room = self.room.notified();
            {
                let mut queue = self.queue();
                queue.check_alive()?;
                if queue.bytes < QUEUE_BYTES {
                    self.put(&mut queue, op);
                    return Ok(());
                }
            }
            room.await;
        }
    }

    /// Queues an operation that takes hardly any room, however much is queued.
    fn submit_now(self: &Arc<Self>, op: Op) -> io::Result<()> {
        let Some(op) = self.commit_inline(op)? else { return Ok(()) };
        let mut queue = self.queue();
        queue.check_alive()?;
        self.put(&mut queue, op);
        Ok(())
    }

    fn put(&self, queue: &mut Queue, op: Op) {
        queue.bytes += op.action.bytes();
        let urgent = !matches!(op.action, Action::Committed(_));
        queue.ops.push(op);
        if urgent && !std::mem::replace(&mut queue.urgent, true) {
            self.work.notify_one();
        }
    }

    /// Queues an operation and waits until it is durable.
    pub(super) async fn submit_and_wait(self: &Arc<Self>, group: u16, action: Action) -> io::Result<()> {
        let (done, outcome) = oneshot::channel();
        let done: Done = Box::new(move |result| {
            // The caller may have stopped waiting; what it asked for is done all the same.
            let _ = done.send(result);
        });
        self.submit(Op { group, action, done: Some(done) }).await?;
        outcome.await.unwrap_or_else(|_| Err(stopped("the log is closed")))
    }

    /// Reads the bytes of an entry from its file.
    pub(super) fn read_entry(&self, group: u16, index: u64, place: Place) -> io::Result<Bytes> {
        engine::read_entry(&*self.disk, group, index, place).map_err(|error| {
            io::Error::new(error.kind(), format!("log in {}: {error}", self.disk.location()))
        })
    }
}

fn stopped(why: &str) -> io::Error {
    io::Error::other(format!("the log has stopped: {why}"))
}

/// What an operator can do about an error of the engine: its kind says whose it is.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        // The engine's own: see `Engine::put`.
        io::ErrorKind::InvalidInput => "restart this node with larger log segments",
        // The engine's own: see `engine::read_entry`.
        io::ErrorKind::InvalidData => {
            "the log is damaged; its peers have its data: replace this node: reveille cluster replace"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "make room on its disk, then restart this node"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "let this node's user write there, then restart it"
        }
        io::ErrorKind::NotFound => "someone removed files of the log: put them back, then restart this node",
        _ => "restart this node once its disk is sound",
    }
}

/// A writer that panicked writes nothing more; without this everyone would wait for it for ever.
fn caught(commit: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let done = catch_unwind(AssertUnwindSafe(commit));
    done.unwrap_or_else(|panic| Err(io::Error::other(format!("its writer panicked: {}", guard::said(panic)))))
}

/// Carries operations out and tells everyone; the first failure is the last thing that happens to the log.
pub(super) fn finish(inner: &Inner, ops: Vec<Op>, commit: impl FnOnce(&[Op]) -> io::Result<()>) {
    let failed = inner.queue().failed.clone();
    let result = match failed {
        Some(failed) => Err(failed),
        None => caught(|| commit(&ops)).map_err(|error| {
            let failed = format!("{}: {error}; {}", inner.disk.location(), advice(&error));
            tracing::error!(%failed, "writing the log failed; nothing more is written");
            inner.queue().failed = Some(failed.clone());
            failed
        }),
    };
    for done in ops.into_iter().filter_map(|op| op.done) {
        let told = caught(|| {
            done(result.clone().map_err(|failed| stopped(&failed)));
            Ok(())
        });
        if let Err(error) = told {
            tracing::error!(%error, "somebody who waited for the log panicked; nothing more is written");
            inner.queue().failed.get_or_insert_with(|| error.to_string());
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "a thread of production's own, and only to measure the disk")]
fn run(inner: &Inner, mut engine: Engine) {
    let sync_seconds = metrics::histogram!("reveille_log_sync_seconds");
    let written = metrics::counter!("reveille_log_bytes_total");
    loop {
        let (ops, idle) = {
            let mut queue = inner.queue();
            let mut idle = false;
            while !queue.urgent && !queue.closed && !idle {
                if engine.sealed && queue.ops.is_empty() {
                    queue = inner.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
                } else {
                    let (guard, waited) =
                        inner.work.wait_timeout(queue, IDLE).unwrap_or_else(PoisonError::into_inner);
                    queue = guard;
                    idle = waited.timed_out();
                }
            }
            queue.bytes = 0;
            queue.urgent = false;
            if queue.closed && queue.ops.is_empty() && (engine.sealed || queue.failed.is_some()) {
                return;
            }
            (std::mem::take(&mut queue.ops), idle)
        };
        inner.room.notify_waiters();
        if !ops.is_empty() {
            let began = Instant::now();
            std::thread::sleep(delay(Point::LogSync));
            let bytes: usize = ops.iter().map(|op| op.action.bytes()).sum();
            finish(inner, ops, |ops| engine.commit(ops));
            sync_seconds.record(began.elapsed().as_secs_f64());
            written.increment(bytes as u64);
        }
        // Committed log ids that were waiting are a later batch themselves, but not one whose loss would be noticed.
        if idle || inner.queue().closed {
            finish(inner, Vec::new(), |_| engine.seal());
            // After a failure nothing is written any more, so there is nothing to seal.
            engine.sealed = true;
        }
    }
}
