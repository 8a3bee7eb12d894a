//! Who drives the engine in simulation: whoever submits, at once or when a sync has taken its time. No thread and no clock
//! of its own.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::engine::Engine;
use super::writer::{Inner, Op, finish};

/// A piece of work of the writer.
pub type Work = Box<dyn FnOnce() + Send>;

/// In simulation: takes what is to be done once a sync has taken its time, or gives it back to be done at once.
pub type Pace = Box<dyn Fn(Work) -> Option<Work> + Send + Sync>;

pub(super) struct Inline {
    engine: Mutex<Engine>,
    pace: Pace,
    batch: Mutex<Batch>,
}

/// What is on its way to a simulated disk.
#[derive(Default)]
struct Batch {
    /// Of the latest.
    number: u64,
    /// How many of the queued operations it has; 0: none is on its way.
    ops: usize,
}

impl Inline {
    pub(super) fn new(engine: Engine, pace: Pace) -> Inline {
        Inline { engine: Mutex::new(engine), pace, batch: Mutex::default() }
    }

    fn batch(&self) -> MutexGuard<'_, Batch> {
        self.batch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Carries an operation out, if that is not the writer's thread to do: then it is given back.
    pub(super) fn commit_inline(self: &Arc<Self>, op: Op) -> io::Result<Option<Op>> {
        let Some(inline) = &self.inline else { return Ok(Some(op)) };
        {
            let mut queue = self.queue();
            queue.check_alive()?;
            queue.ops.push(op);
        }
        if inline.batch().ops == 0 {
            self.begin_batch(inline);
        }
        Ok(None)
    }

    /// What is queued is a batch now, and on the disk once its time is over.
    fn begin_batch(self: &Arc<Self>, inline: &Inline) {
        let queued = self.queue().ops.len();
        let number = {
            let mut batch = inline.batch();
            *batch = Batch { number: batch.number + 1, ops: queued };
            batch.number
        };
        if queued == 0 {
            return;
        }
        let inner = self.clone();
        let end = Box::new(move || {
            if let Some(inline) = &inner.inline {
                inner.end_batch(inline, Some(number));
            }
        });
        if let Some(at_once) = (inline.pace)(end) {
            at_once();
        }
    }

    /// Writes a batch, if it is the latest, and goes on with what came meanwhile. Without a number: all that is queued.
    pub(super) fn end_batch(self: &Arc<Self>, inline: &Inline, number: Option<u64>) {
        let count = match (number, inline.batch()) {
            (Some(number), batch) if number != batch.number => return,
            (Some(_), batch) => batch.ops,
            (None, _) => usize::MAX,
        };
        let ops: Vec<Op> = {
            let mut queue = self.queue();
            let count = count.min(queue.ops.len());
            queue.ops.drain(..count).collect()
        };
        {
            let mut engine = inline.engine.lock().unwrap_or_else(PoisonError::into_inner);
            finish(self, ops, |ops| engine.commit(ops));
        }
        self.begin_batch(inline);
    }
}
