//! Writing a history: line by line, and by one recorder for everything that goes on at once.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::event::{Begin, End, Event, VERSION, What};

/// A history that is being written.
#[derive(Debug)]
pub struct Writer<W: Write>(W);

impl<W: Write> Writer<W> {
    /// Onto this.
    pub fn new(out: W) -> Writer<W> {
        Writer(out)
    }

    /// Adds an event as it is: whoever calls numbers them.
    pub fn write(&mut self, event: &Event) -> io::Result<()> {
        serde_json::to_writer(&mut self.0, event)?;
        self.0.write_all(b"\n")
    }

    /// What it was written to.
    pub fn into_inner(self) -> W {
        self.0
    }

    /// Everything so far is given to the system.
    pub fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Whoever looks at what a recorder is told, as it is told: at so many microseconds of the run, this.
pub type Watch = Box<dyn Fn(u64, &What) + Send + Sync>;

/// The one recorder of a run in real time: numbers and dates what threads and tasks tell it. Each line is written whole
/// under its lock, so the order of the lines is the order of the numbers and of the times.
pub struct Recorder<W: Write> {
    began: Instant,
    inner: Mutex<Inner<W>>,
    watch: Option<Watch>,
}

#[derive(Debug)]
struct Inner<W: Write> {
    out: Writer<W>,
    next: u64,
    ops: u64,
    /// The first write that failed; what comes later is not written.
    broken: Option<io::Error>,
}

impl<W: Write> Recorder<W> {
    /// Begins a history; the version is filled in.
    pub fn new(out: W, begin: Begin) -> Recorder<W> {
        let inner = Inner { out: Writer::new(out), next: 0, ops: 0, broken: None };
        let recorder = Recorder { began: Instant::now(), inner: Mutex::new(inner), watch: None };
        recorder.tell(What::Begin(Begin { version: VERSION, ..begin }));
        recorder
    }

    /// From now on somebody looks, or nobody.
    pub fn watched(self, watch: Option<Watch>) -> Recorder<W> {
        Recorder { watch, ..self }
    }

    /// A number for an operation.
    pub fn op(&self) -> u64 {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.ops += 1;
        inner.ops
    }

    /// This happened now.
    pub fn tell(&self, what: What) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.broken.is_some() {
            return;
        }
        let event = Event { n: inner.next, at: self.began.elapsed().as_micros() as u64, what };
        if let Some(watch) = &self.watch {
            watch(event.at, &event.what);
        }
        inner.next += 1;
        inner.broken = inner.out.write(&event).err();
    }

    /// How long the run has been going on.
    pub fn elapsed(&self) -> std::time::Duration {
        self.began.elapsed()
    }

    /// What it was written to, when nobody tells it anything any more.
    pub fn into_inner(self) -> W {
        self.inner.into_inner().unwrap_or_else(PoisonError::into_inner).out.into_inner()
    }

    /// The run came to its end.
    ///
    /// # Errors
    /// The first write of the whole run that failed.
    pub fn finish(&self) -> io::Result<()> {
        self.tell(What::End(End {}));
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        match inner.broken.take() {
            Some(error) => Err(error),
            None => inner.out.flush(),
        }
    }
}
