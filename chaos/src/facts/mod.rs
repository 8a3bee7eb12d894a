//! What a history says, sorted by what checkers ask for: pushes, terminals, nodes, faults. Small enough for a million
//! operations in memory. Holds no rule: contradictions are kept as they are, for the checkers to find.

mod build;
mod names;

use std::collections::BTreeMap;

pub use self::build::{Builder, read};
pub use self::names::{Name, Names};
use crate::history::{Begin, Phase, Problem};

/// When: which line, and its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Moment {
    /// The number of the line, from 0: the logical time.
    pub n: u32,
    /// Microseconds since the run began.
    pub at: u64,
}

impl Moment {
    /// The number of the line as an editor shows it.
    pub fn line(self) -> u32 {
        self.n + 1
    }
}

/// What a publisher heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Nothing yet.
    Open,
    /// It is stored.
    Stored {
        /// When that was heard.
        when: Moment,
        /// Under which name.
        message: Name,
        /// Where in the terminal's stream.
        seq: u64,
        /// By which log entry: group and index.
        position: Option<(u64, u64)>,
    },
    /// It certainly is not.
    Failed(Moment),
    /// Nobody knows.
    Unknown(Moment),
}

/// A push that somebody wanted delivered.
#[derive(Debug, Clone)]
pub struct Push {
    /// The name of its bytes.
    pub payload: Name,
    /// For which terminal: an index into [`Facts::terminals`].
    pub terminal: u32,
    /// When it was asked for.
    pub asked: Moment,
    /// To be kept for so many milliseconds.
    pub ttl_ms: Option<u64>,
    /// What came of it.
    pub answer: Answer,
}

/// What was heard of a push later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Of which push: an index into [`Facts::pushes`]; `None` if nobody published it.
    pub push: Option<u32>,
    /// When it was asked.
    pub asked: Moment,
    /// When the answer came.
    pub when: Moment,
    /// The answer.
    pub state: Name,
    /// It was asked to be taken back, too.
    pub cancel: bool,
}

/// A push given to an application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    /// The name of its bytes.
    pub payload: Name,
    /// Which push that is; `None` if nobody published it before.
    pub push: Option<u32>,
    /// Its place.
    pub seq: u64,
    /// The place before it, as it was told.
    pub prev: Option<u64>,
    /// Marked as perhaps seen.
    pub maybe_seen: bool,
    /// By which node.
    pub node: u64,
    /// In the session of which epoch.
    pub epoch: Option<u64>,
}

/// Something that happened to a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Its process began.
    Started,
    /// Its process is no more.
    Stopped,
    /// A notification came.
    Notified,
    /// A session is open.
    Connected {
        /// With whom.
        node: u64,
        /// Its epoch.
        epoch: u64,
    },
    /// The session is closed.
    Disconnected,
    /// A new stream.
    Reset {
        /// The first seq that is to come.
        next: u64,
    },
    /// A push.
    Delivered(Delivery),
    /// Confirmed up to here.
    Confirmed {
        /// That.
        seq: u64,
    },
    /// So says the terminal's disk.
    Saved {
        /// Up to here.
        seq: u64,
    },
}

/// A step, when, and of which of the processes that have the terminal's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stepped {
    /// When.
    pub when: Moment,
    /// Of which process.
    pub copy: u64,
    /// What.
    pub step: Step,
}

/// An answered status query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// When it was asked.
    pub asked: Moment,
    /// When it was answered.
    pub when: Moment,
    /// Whether there was a session.
    pub online: bool,
    /// With which node.
    pub node: Option<u64>,
    /// The latest epoch.
    pub epoch: u64,
    /// Confirmed up to here.
    pub acked: u64,
}

/// A terminal.
#[derive(Debug, Clone)]
pub struct Terminal {
    /// Its name.
    pub name: Name,
    /// What happened to it, in order.
    pub steps: Vec<Stepped>,
    /// What was read of it, in the order of the answers.
    pub reads: Vec<Status>,
    /// What was published to it, in the order of the asking: indices into [`Facts::pushes`].
    pub pushes: Vec<u32>,
}

/// A notification that a node sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notifying {
    /// When.
    pub when: Moment,
    /// To whom.
    pub terminal: u32,
    /// By which node.
    pub node: u64,
    /// The terminal had a session.
    pub online: bool,
    /// What waited for it.
    pub pending: u64,
    /// Its address had been proven.
    pub proven: bool,
}

/// An operation of whatever kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Op {
    /// Who asked.
    pub by: Name,
    /// When.
    pub asked: Moment,
    /// When the answer came, of whatever kind.
    pub done: Option<Moment>,
    /// Within how many milliseconds it had to.
    pub deadline_ms: Option<u64>,
}

/// A fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faulted {
    /// Its kind.
    pub kind: Name,
    /// On what.
    pub target: Name,
    /// When it began; `None` for one that was over at once.
    pub began: Option<Moment>,
    /// When it was over.
    pub ended: Option<Moment>,
}

impl Faulted {
    /// When it was first there.
    pub fn first(&self) -> Moment {
        self.began.or(self.ended).unwrap_or_default()
    }
}

/// A replica's state at an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replica {
    /// When it was looked at.
    pub when: Moment,
    /// On which node.
    pub node: u64,
    /// Of which group.
    pub group: u64,
    /// After which entry.
    pub index: u64,
    /// Hash of everything.
    pub hash: Name,
}

/// What a node took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// When it was looked at.
    pub when: Moment,
    /// Which node.
    pub node: u64,
    /// Resident bytes.
    pub rss: u64,
    /// Open files.
    pub fds: u64,
    /// Bytes on disk.
    pub disk: Option<u64>,
}

/// A whole history.
#[derive(Debug, Default)]
pub struct Facts {
    /// Its first line.
    pub begin: Begin,
    /// Why it is not whole; `None` if it is.
    pub cut: Option<String>,
    /// Every name in it.
    pub names: Names,
    /// Pushes, in the order of the asking.
    pub pushes: Vec<Push>,
    /// Terminals, in the order in which they were met.
    pub terminals: Vec<Terminal>,
    /// What became of pushes, in the order of the answers.
    pub looks: Vec<Look>,
    /// All operations, in the order of the asking.
    pub ops: Vec<Op>,
    /// All faults, in the order in which they began.
    pub faults: Vec<Faulted>,
    /// All phases, in order.
    pub phases: Vec<(Moment, Phase)>,
    /// Notifications that were sent.
    pub notifying: Vec<Notifying>,
    /// Nodes that turned ready, or unready.
    pub ready: Vec<(Moment, u64, bool)>,
    /// Nodes that belong no more.
    pub left: Vec<(Moment, u64)>,
    /// Replicas that have gone from a node: node and group.
    pub moved: Vec<(Moment, u64, u64)>,
    /// Whether the cluster had come to rest when that was looked at last, and what it waited for.
    pub settled: Option<(Moment, bool, Name)>,
    /// Who led which group: group, node, term.
    pub leaders: Vec<(Moment, u64, u64, u64)>,
    /// States of replicas.
    pub replicas: Vec<Replica>,
    /// What nodes took.
    pub taken: Vec<Taken>,
    /// Logs that were read: node and lines.
    pub logs: Vec<(Moment, u64, u64)>,
    /// What was found in them.
    pub log_problems: Vec<(Moment, u64, Problem, Name)>,
    /// Points of coverage.
    pub cover: BTreeMap<String, u64>,
    /// Trouble of the harness, and lines that contradict what a harness may write.
    pub trouble: Vec<(Moment, String)>,
    /// The last line.
    pub last: Moment,
}

impl Facts {
    /// A terminal's name.
    pub fn terminal(&self, at: u32) -> &str {
        self.terminals.get(at as usize).map_or("", |terminal| self.names.text(terminal.name))
    }

    /// The name of a push's bytes.
    pub fn payload(&self, push: u32) -> &str {
        self.pushes.get(push as usize).map_or("", |push| self.names.text(push.payload))
    }

    /// The faults that were there at some time between these two.
    pub fn faults_within(&self, from: u64, to: u64) -> impl Iterator<Item = &Faulted> {
        self.faults
            .iter()
            .filter(move |fault| fault.first().at <= to && fault.ended.is_none_or(|ended| ended.at >= from))
    }
}
