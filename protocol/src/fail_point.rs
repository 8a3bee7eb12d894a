//! Fail points: named places at which a test has a node end, panic, fail or wait, to see what is between one step and the
//! next. They are there in the builds with the feature `canary` alone, beside the bugs that can be planted: without it every
//! place is nothing when it is compiled, and a release of `reveille` does not compile with it. Nothing here looks at a
//! configuration or at the environment: whoever runs nodes says what happens at which, on its own thread or for a process.

mod order;

use std::any::Any;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::order::{FILE, Order};

/// What happens at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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

/// When nodes come to a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// It is not on the way of a start, though one that is not over may come there, too.
    Runs,
    /// Only while they start.
    Starts,
    /// It is on the way of a start and of what follows.
    Always,
    /// They help another one there that starts.
    Helps,
}

macro_rules! points {
    ($($name:literal $point:ident $error:tt $wait:tt $when:tt $about:literal)*) => {
        /// A place. In the order of a push's way: the log, what raft does with it, the shard, a node's start, its beats.
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

            /// Whether the step can fail there: then whether its node ends by it.
            fn error(self) -> Option<bool> {
                match self { $(Point::$point => points!($error)),* }
            }

            /// Can the step wait there?
            pub fn waits(self) -> bool {
                match self { $(Point::$point => points!($wait)),* }
            }

            fn when(self) -> When {
                match self { $(Point::$point => points!($when)),* }
            }
        }
    };
    (ends) => { Some(true) };
    (lives) => { Some(false) };
    (whole) => { None };
    (waits) => { true };
    (goes) => { false };
    (runs) => { When::Runs };
    (starts) => { When::Starts };
    (always) => { When::Always };
    (helps) => { When::Helps };
}

// Its name; whether a step that fails there `ends` its node, or the node `lives`, or it is `whole`: it cannot fail; whether it
// `waits` if it is to, or `goes` on; and when nodes come there.
points! {
    "append.before" Append ends waits always "raft has entries for the log, and the log does not have them"
    "append.after" Appended ends waits always "entries wait for the log's writer"
    "log.write.before" LogWrite ends goes always "a batch is encoded, and nothing of it written"
    "log.sync.before" LogSync ends waits always "a batch is written, and not synced"
    "log.sync.after" LogSynced ends goes always "a batch is synced, and nobody knows"
    "log.rotate.before" LogRotate ends goes runs "a segment is full, and no other one is begun"
    "log.rotate.begun" LogBegun ends goes runs "the next segment has its name, and the one before no end"
    "log.rotate.ended" LogEnded ends goes runs "a segment has its end, and the next one no checkpoint"
    "log.free.before" LogFree ends goes runs "the oldest segment is needed no more, and has its name"
    "log.free.after" LogFreed ends goes runs "the oldest segment is a spare"
    "vote.before" Vote ends waits always "a vote is given, and not written"
    "vote.after" Voted ends waits always "a vote is durable, and nobody was told"
    "committed.before" Committed ends waits runs "entries are committed, and the log does not say so"
    "truncate.before" Truncate ends waits runs "a tail that another leader has replaced is to go"
    "truncate.after" Truncated ends waits runs "the tail is gone, and what replaces it is not there"
    "purge.before" Purge ends waits runs "a snapshot covers entries, and the log has them"
    "purge.after" Purged ends waits runs "the log says that the entries are gone"
    "log.read" Read ends waits runs "a follower wants entries, and they are not read"
    "append.send" AppendSend lives goes runs "entries are to go to a follower"
    "append.answer" AppendAnswer lives waits runs "a follower has entries, and its leader does not know"
    "elect.before" Elect whole waits runs "the link to a leader broke, and its follower has not asked for votes"
    "transfer.before" Transfer lives waits runs "a leader is to give a group away"
    "propose.before" Propose whole waits runs "commands are an entry, and raft does not have it"
    "apply.before" Apply ends waits always "an entry is committed, and not applied"
    "status-write.before" StatusWrite ends goes always "in the middle of an entry: a terminal's status is decided, and not in the table"
    "status-write.after" StatusWritten ends goes always "in the middle of an entry: a terminal's status is in the table, the rest is not"
    "apply.after" Applied ends waits always "an entry is in the tables, and the shard was not told"
    "ack.before" Ack ends waits runs "the shard knows of an entry, and who proposed it does not"
    "ack.after" Acked ends waits runs "who proposed an entry was told, and the next one waits"
    "propose.after" Proposed whole waits runs "an entry came to something, and whoever asked does not know"
    "answer.before" Answer whole waits runs "a peer's question is answered, and the answer not sent"
    "hand-off.offer.before" Offer lives goes runs "pushes are read out for a session, and not sent to its node"
    "hand-off.offer.after" Offered lives goes runs "pushes were sent to a session's node, and the leader has not noted it"
    "hand-off.accept.before" Accept lives goes runs "pushes came to a session's node, and the session does not have them"
    "hand-off.accept.after" Accepted whole goes runs "a session has the pushes that came for it"
    "ring.before" Ring lives goes runs "a terminal is to be notified, and nobody was told to"
    "ring.after" Rung lives goes runs "a notification was ordered, and the leader has not noted it"
    "ring.accept" RingAccept lives goes runs "an order to notify came to an anchor, which has not taken it"
    "lead.before" Lead whole waits always "raft says that this node leads or follows, and the shard does not know"
    "rebuild.step" Rebuild whole waits runs "a new leader takes up what waits, step by step"
    "timers.tick" Timers whole waits runs "a shard's timers are looked at"
    "expire.look" Expire whole waits runs "a leader looks for what has ended by time"
    "snapshot.before" Snapshot ends waits always "a snapshot of the tables is to be made"
    "snapshot.after" Snapshotted ends waits always "a snapshot is durable, and raft does not know"
    "snapshot.send" SnapshotSend lives waits runs "a part of a snapshot is to be sent"
    "snapshot.take" SnapshotTake lives waits runs "a part of a peer's snapshot came"
    "install.before" Install ends waits runs "a peer's tables are whole, and not in the place of this node's"
    "install.after" Installed ends waits runs "a peer's tables are this node's"
    "flush.before" Flush lives waits runs "tables are to be flushed"
    "flush.after" Flushed lives waits runs "a group's tables were flushed, the others' not"
    "log.open.before" LogOpen ends goes starts "a log was read back, and what may not be durable of it is not written again"
    "log.open.after" LogOpened ends goes starts "a log is whole and durable, and nothing stands on it"
    "admit.answered" Admit whole waits starts "the others have answered a node with a new folder, and it has made nothing of that"
    "pull.give" PullGive lives waits helps "a peer asks for tables, and nothing was read of them"
    "pull.take" PullTake lives waits starts "a part of a peer's tables came to a node that starts"
    "pull.before" Pull lives waits starts "a peer's tables are whole, and not in the place of those of a node that starts"
    "pull.after" Pulled ends waits starts "a peer's tables are those of a node that starts, and its log follows another leader"
    "begin.before" Begin ends waits starts "tables are as far as the log, and no group runs on them"
    "begin.group" BeginGroup ends waits starts "a group runs, and not the next one"
    "incarnation.before" Incarnation whole waits always "a node asks for its incarnation"
    "incarnation.after" Incarnated whole waits always "a node was given its incarnation, and does not have it"
    "directory.changed" Directory whole waits runs "a node has a new directory, and has not looked what it means"
    "upkeep.clocks" Clocks whole waits runs "a node tells its peers the time"
    "upkeep.silence" Silence whole waits runs "a node looks who is silent"
    "upkeep.groups" Groups whole waits runs "a node looks whether its groups live"
    "upkeep.disks" Disks whole waits runs "a node looks whether tables want a flush, and logs a cut"
    "quorum.look" Quorum whole waits runs "a leader looks whether it hears a majority"
    "steward.look" Steward whole waits runs "the steward looks where replicas should be"
}

impl Point {
    /// The one of this name.
    pub fn find(name: &str) -> Option<Point> {
        Point::ALL.iter().copied().find(|point| point.name() == name)
    }

    /// Can the step fail there?
    pub fn fails(self) -> bool {
        self.error().is_some()
    }

    /// Must a node end by what happens to it there?
    pub fn ends(self, by: Action) -> bool {
        match by {
            Action::Kill => true,
            // Who asks for a transfer is an operator, on a task of its own: there is nothing that would be left undone.
            Action::Panic => self != Point::Transfer,
            Action::Error => self.error() == Some(true),
            Action::Sleep(_) => false,
        }
    }

    /// Do nodes come there that take part?
    pub fn is_of_running(self) -> bool {
        self.when() != When::Starts
    }

    /// Is it on the way of a node that starts?
    pub fn is_of_starting(self) -> bool {
        matches!(self.when(), When::Starts | When::Always)
    }

    /// Do nodes that take part come there only because another one starts?
    pub fn is_of_helping(self) -> bool {
        self.when() == When::Helps
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
pub use self::watched::{Watch, delay, pass, try_pass, watch, watch_process};

#[cfg(feature = "canary")]
mod watched {
    use std::cell::RefCell;
    use std::io;
    use std::panic::resume_unwind;
    use std::rc::Rc;
    use std::sync::OnceLock;
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

    /// The same, of a process that is one node.
    type OfProcess = Box<dyn Fn(Point, fn(Action) -> bool) -> Option<Action> + Send + Sync>;

    static PROCESS: OnceLock<OfProcess> = OnceLock::new();

    /// From now on this is asked on every thread that has no watch of its own. Only the first one counts.
    pub fn watch_process(
        watch: impl Fn(Point, fn(Action) -> bool) -> Option<Action> + Send + Sync + 'static,
    ) {
        PROCESS.get_or_init(|| Box::new(watch));
    }

    fn happens(point: Point, can: fn(Action) -> bool) -> Option<Action> {
        match WATCH.with_borrow(Clone::clone) {
            Some(watch) => watch(point, can),
            None => PROCESS.get()?(point, can),
        }
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
