//! Fail points: named places at which a test has a node end, panic, fail or wait, to see what is between one step and the
//! next. They are there in the builds with the feature `canary` alone, beside the bugs that can be planted: without it every
//! place is nothing when it is compiled, and `reveille` does not compile with it. Nothing of a configuration or of the
//! environment reaches them: whoever runs nodes on its own thread says there what happens at which.

use std::any::Any;
use std::time::Duration;

/// What happens at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The node ends there, as by kill -9.
    Kill,
    /// The task panics there.
    Panic,
    /// The step fails.
    Error,
    /// The step takes so much longer.
    Sleep(Duration),
}

macro_rules! points {
    ($($name:literal $point:ident $can:tt $about:literal)*) => {
        /// A place. In the order of a push's way: the log, what raft does with it, the shard, its beats.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Point { $(#[doc = $about] $point),* }

        impl Point {
            /// All of them.
            pub const ALL: &[Point] = &[$(Point::$point),*];

            /// As it is written.
            pub fn name(self) -> &'static str {
                match self { $(Point::$point => $name),* }
            }

            /// What stands there, in a sentence.
            pub fn about(self) -> &'static str {
                match self { $(Point::$point => $about),* }
            }

            /// Whether the step can fail there, and whether it can wait.
            fn can(self) -> (bool, bool) {
                match self { $(Point::$point => points!($can)),* }
            }
        }
    };
    (neither) => { (false, false) };
    (fails) => { (true, false) };
    (waits) => { (false, true) };
    (both) => { (true, true) };
}

points! {
    "append.before" Append both "raft has entries for the log, and the log does not have them"
    "append.after" Appended both "entries wait for the log's writer"
    "log.write.before" LogWrite fails "a batch is encoded, and nothing of it written"
    "log.sync.before" LogSync both "a batch is written, and not synced"
    "log.sync.after" LogSynced fails "a batch is synced, and nobody knows"
    "log.rotate.before" LogRotate fails "a segment is full, and no other one is begun"
    "log.rotate.begun" LogBegun fails "the next segment has its name, and the one before no end"
    "log.rotate.ended" LogEnded fails "a segment has its end, and the next one no checkpoint"
    "log.free.before" LogFree fails "the oldest segment is needed no more, and has its name"
    "log.free.after" LogFreed fails "the oldest segment is a spare"
    "vote.before" Vote both "a vote is given, and not written"
    "vote.after" Voted both "a vote is durable, and nobody was told"
    "committed.before" Committed both "entries are committed, and the log does not say so"
    "truncate.before" Truncate both "a tail that another leader has replaced is to go"
    "truncate.after" Truncated both "the tail is gone, and what replaces it is not there"
    "purge.before" Purge both "a snapshot covers entries, and the log has them"
    "purge.after" Purged both "the log says that the entries are gone"
    "log.read" Read both "a follower wants entries, and they are not read"
    "append.send" AppendSend fails "entries are to go to a follower"
    "append.answer" AppendAnswer both "a follower has entries, and its leader does not know"
    "elect.before" Elect waits "the link to a leader broke, and its follower has not asked for votes"
    "transfer.before" Transfer both "a leader is to give a group away"
    "propose.before" Propose waits "commands are an entry, and raft does not have it"
    "apply.before" Apply both "an entry is committed, and not applied"
    "status-write.before" StatusWrite fails "in the middle of an entry: a terminal's status is decided, and not in the table"
    "status-write.after" StatusWritten fails "in the middle of an entry: a terminal's status is in the table, the rest is not"
    "apply.after" Applied both "an entry is in the tables, and the shard was not told"
    "ack.before" Ack both "the shard knows of an entry, and who proposed it does not"
    "ack.after" Acked both "who proposed an entry was told, and the next one waits"
    "propose.after" Proposed waits "an entry came to something, and whoever asked does not know"
    "answer.before" Answer waits "a peer's question is answered, and the answer not sent"
    "hand-off.offer.before" Offer fails "pushes are read out for a session, and not sent to its node"
    "hand-off.offer.after" Offered fails "pushes were sent to a session's node, and the leader has not noted it"
    "hand-off.accept.before" Accept fails "pushes came to a session's node, and the session does not have them"
    "hand-off.accept.after" Accepted neither "a session has the pushes that came for it"
    "ring.before" Ring fails "a terminal is to be notified, and nobody was told to"
    "ring.after" Rung fails "a notification was ordered, and the leader has not noted it"
    "ring.accept" RingAccept fails "an order to notify came to an anchor, which has not taken it"
    "lead.before" Lead waits "raft says that this node leads or follows, and the shard does not know"
    "rebuild.step" Rebuild waits "a new leader takes up what waits, step by step"
    "timers.tick" Timers waits "a shard's timers are looked at"
    "expire.look" Expire waits "a leader looks for what has ended by time"
    "snapshot.before" Snapshot both "a snapshot of the tables is to be made"
    "snapshot.after" Snapshotted both "a snapshot is durable, and raft does not know"
    "snapshot.send" SnapshotSend both "a part of a snapshot is to be sent"
    "snapshot.take" SnapshotTake both "a part of a peer's snapshot came"
    "install.before" Install both "a peer's tables are whole, and not in the place of this node's"
    "install.after" Installed both "a peer's tables are this node's"
    "flush.before" Flush both "tables are to be flushed"
    "flush.after" Flushed both "a group's tables were flushed, the others' not"
    "incarnation.before" Incarnation waits "a node asks for its incarnation"
    "incarnation.after" Incarnated waits "a node was given its incarnation, and does not have it"
    "directory.changed" Directory waits "a node has a new directory, and has not looked what it means"
    "upkeep.clocks" Clocks waits "a node tells its peers the time"
    "upkeep.silence" Silence waits "a node looks who is silent"
    "upkeep.groups" Groups waits "a node looks whether its groups live"
    "upkeep.disks" Disks waits "a node looks whether tables want a flush, and logs a cut"
    "quorum.look" Quorum waits "a leader looks whether it hears a majority"
    "steward.look" Steward waits "the steward looks where replicas should be"
}

impl Point {
    /// The one of this name.
    pub fn find(name: &str) -> Option<Point> {
        Point::ALL.iter().copied().find(|point| point.name() == name)
    }

    /// Can the step fail there?
    pub fn fails(self) -> bool {
        self.can().0
    }

    /// Can the step wait there?
    pub fn waits(self) -> bool {
        self.can().1
    }
}

/// Whether the thread unwinds because a node ends at a point: nothing of that node may do anything about it.
pub fn is_kill(panic: &(dyn Any + Send)) -> bool {
    #[cfg(feature = "canary")]
    return panic.is::<watched::Killed>();
    #[cfg(not(feature = "canary"))]
    {
        let _ = panic;
        false
    }
}

/// A point where a step can neither fail nor wait.
#[cfg(not(feature = "canary"))]
#[inline(always)]
pub fn pass(_: Point) {}

/// A point where a step can fail.
///
/// # Errors
/// If it is to.
#[cfg(not(feature = "canary"))]
#[inline(always)]
pub fn try_pass(_: Point) -> std::io::Result<()> {
    Ok(())
}

/// How much longer a step takes there. Whoever can wait asks before it passes.
#[cfg(not(feature = "canary"))]
#[inline(always)]
pub fn delay(_: Point) -> Duration {
    Duration::ZERO
}

#[cfg(feature = "canary")]
pub use self::watched::{Watch, delay, pass, try_pass, watch};

#[cfg(feature = "canary")]
mod watched {
    use std::cell::RefCell;
    use std::io;
    use std::panic::resume_unwind;
    use std::rc::Rc;
    use std::time::Duration;

    use super::{Action, Point};

    /// Says what happens at a point that somebody on this thread comes to, if it is one of those that can happen there.
    pub type Watch = Rc<dyn Fn(Point, fn(Action) -> bool) -> Option<Action>>;

    thread_local! {
        static WATCH: RefCell<Option<Watch>> = const { RefCell::new(None) };
    }

    /// What a thread unwinds with when its node ends. No panic: nobody is told.
    pub(super) struct Killed;

    /// From now on this is asked on this thread.
    pub fn watch(watch: Option<Watch>) {
        WATCH.set(watch);
    }

    fn happens(point: Point, can: fn(Action) -> bool) -> Option<Action> {
        let watch = WATCH.with_borrow(Clone::clone)?;
        watch(point, can)
    }

    /// Ends what must end, without the panic hook: this is no defect, and not to be told as one.
    fn end(point: Point, action: Action) {
        match action {
            Action::Kill => resume_unwind(Box::new(Killed)),
            Action::Panic => resume_unwind(Box::new(format!("fail point {}", point.name()))),
            Action::Error | Action::Sleep(_) => {}
        }
    }

    /// A point where a step can neither fail nor wait.
    pub fn pass(point: Point) {
        if let Some(action) = happens(point, |action| matches!(action, Action::Kill | Action::Panic)) {
            end(point, action);
        }
    }

    /// A point where a step can fail.
    ///
    /// # Errors
    /// If it is to.
    pub fn try_pass(point: Point) -> io::Result<()> {
        match happens(point, |action| !matches!(action, Action::Sleep(_))) {
            Some(Action::Error) => Err(io::Error::other(format!("fail point {}", point.name()))),
            Some(action) => {
                end(point, action);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// How much longer a step takes there. Whoever can wait asks before it passes.
    pub fn delay(point: Point) -> Duration {
        match happens(point, |action| matches!(action, Action::Sleep(_))) {
            Some(Action::Sleep(time)) => time,
            _ => Duration::ZERO,
        }
    }
}
