//! What is seen in a run without having been asked for: the schema of `observe` lines. Data only.

use serde::{Deserialize, Serialize};

/// A phase of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Load without faults, until all is as it should be.
    Warmup,
    /// Load and faults.
    Chaos,
    /// Load, and the faults taken back.
    Heal,
    /// No load: what is on its way arrives.
    Drain,
}

impl Phase {
    /// What is said when it begins.
    pub fn words(self) -> &'static str {
        match self {
            Phase::Warmup => "warmup",
            Phase::Chaos => "chaos",
            Phase::Heal => "heal: faults are taken back",
            Phase::Drain => "drain: what is on its way arrives",
        }
    }
}

/// What a log should not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Problem {
    /// The program came to where it should not.
    Panic,
    /// A token, key or payload in clear.
    Secret,
}

/// Something was seen. `copy` tells apart processes that have the same terminal's identity; it is 0 for the first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Observation {
    /// A phase began.
    Phase {
        /// Which.
        phase: Phase,
    },
    /// A process of a terminal began.
    Started {
        /// Whose.
        terminal: String,
        /// Which process.
        #[serde(default, skip_serializing_if = "none")]
        copy: u64,
    },
    /// A process of a terminal is no more.
    Stopped {
        /// Whose.
        terminal: String,
        /// Which process.
        #[serde(default, skip_serializing_if = "none")]
        copy: u64,
    },
    /// A notification came to a terminal.
    Notified {
        /// To whom.
        terminal: String,
        /// To which process.
        #[serde(default, skip_serializing_if = "none")]
        copy: u64,
    },
    /// A terminal's session is open.
    Connected {
        /// Whose.
        terminal: String,
        /// Of which process.
        #[serde(default, skip_serializing_if = "none")]
        copy: u64,
        /// With which node.
        node: u64,
        /// Its epoch.
        epoch: u64,
    },
    /// It is closed.
    Disconnected {
        /// Whose.
        terminal: String,
        /// Of which process.
        #[serde(default, skip_serializing_if = "none")]
        copy: u64,
    },
    /// The terminal's stream began anew: seqs and epochs of before count no more.
    Reset {
        /// Whose.
        terminal: String,
        /// Of which process.
        #[serde(default, skip_serializing_if = "none")]
        copy: u64,
        /// The first seq that is to come.
        next: u64,
    },
    /// A push was given to the application.
    Delivered {
        /// To whom.
        terminal: String,
        /// To which process.
        #[serde(default, skip_serializing_if = "none")]
        copy: u64,
        /// The name of its bytes as they came out.
        payload: String,
        /// Its place.
        seq: u64,
        /// The place that was named as the one before it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        prev: Option<u64>,
        /// Marked as perhaps seen before.
        #[serde(default, skip_serializing_if = "is_false")]
        maybe_seen: bool,
        /// By which node.
        node: u64,
        /// In the session of this epoch.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        epoch: Option<u64>,
    },
    /// The application confirms; written before it is told to the terminal.
    Confirmed {
        /// Who.
        terminal: String,
        /// Which process.
        #[serde(default, skip_serializing_if = "none")]
        copy: u64,
        /// Up to where.
        seq: u64,
    },
    /// The terminal's disk says so: from now on nothing up to here may come to it again.
    Saved {
        /// Who.
        terminal: String,
        /// Which process.
        #[serde(default, skip_serializing_if = "none")]
        copy: u64,
        /// Up to where.
        seq: u64,
    },
    /// A node sent a notification.
    Notifying {
        /// To whom.
        terminal: String,
        /// Which node.
        node: u64,
        /// What the service list said of the terminal.
        online: bool,
        /// Pushes that waited.
        pending: u64,
        /// The address had been proven to be the terminal's.
        proven: bool,
    },
    /// Whether a node serves.
    Ready {
        /// Which.
        node: u64,
        /// Whether.
        ready: bool,
    },
    /// A node was told to belong to the cluster no more: nothing is expected of it.
    Left {
        /// Which.
        node: u64,
    },
    /// A replica has gone from a node that belongs: nothing is expected of what it held.
    Moved {
        /// From which node.
        node: u64,
        /// Of which group.
        group: u64,
    },
    /// Whether the cluster came to rest after nodes had come and gone: who belongs is there, and every replica where it should
    /// be.
    Settled {
        /// Whether.
        settled: bool,
        /// What it waits for, if it did not.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        why: String,
    },
    /// Who leads a group.
    Leader {
        /// Which group.
        group: u64,
        /// Who.
        node: u64,
        /// In which term.
        term: u64,
    },
    /// What a replica's state came to.
    State {
        /// Whose.
        node: u64,
        /// Of which group.
        group: u64,
        /// After which log index.
        index: u64,
        /// Hash of the replica's state.
        hash: String,
    },
    /// What a node takes.
    Resources {
        /// Which.
        node: u64,
        /// Resident memory, in bytes.
        rss_bytes: u64,
        /// Open files.
        fds: u64,
        /// Its data folder, in bytes; missing where it was not looked at.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        disk_bytes: Option<u64>,
    },
    /// A node's log was read to its end.
    LogRead {
        /// Whose.
        node: u64,
        /// How many lines it has.
        lines: u64,
    },
    /// A log holds what it should not.
    LogFound {
        /// Whose.
        node: u64,
        /// What.
        problem: Problem,
        /// The line, cut to what is needed; of a secret, only where it is.
        line: String,
    },
    /// A point of coverage was passed so many times more.
    Cover {
        /// Its name.
        point: String,
        /// How often.
        count: u64,
    },
    /// The harness itself is in trouble: a port taken, a clock that jumped.
    Harness {
        /// What, in words.
        what: String,
    },
}

fn none(number: &u64) -> bool {
    *number == 0
}

fn is_false(yes: &bool) -> bool {
    !yes
}
