//! What nodes tell each other about sessions, beside raft: hand-offs from the shard leader to the node that holds
//! the terminal's session, orders to its anchor, and these nodes' reports. One way, may be lost: the dispatcher's timers
//! repair it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::codec::{self, CodecError};
use crate::id::*;
use crate::limits;
use crate::service_list::row::{Reachability, Urgency};

/// A message about one terminal's session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionMessage {
    /// Leader to session: pushes to deliver.
    HandOff(HandOff),
    /// Leader to session: another session took over.
    Supersede {
        /// Whose.
        terminal: TerminalId,
        /// The epoch that is over.
        epoch: Epoch,
    },
    /// Session to leader.
    Report(Report),
    /// Leader to anchor: notify a terminal through its binding. Since format 3; answered by a report.
    Notify(NotifyOrder),
}

/// A notification that the shard leader wants sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotifyOrder {
    /// The shard.
    pub group: GroupId,
    /// To whom.
    pub terminal: TerminalId,
    /// Its life.
    pub stream: Stream,
    /// Its last granted epoch.
    pub epoch: Epoch,
    /// How to reach it.
    pub reachability: Reachability,
    /// Generation of the cluster secret that its notify secret derives from.
    pub secret: u32,
    /// Pushes that wait.
    pub pending: u32,
    /// The highest urgency among them.
    pub urgency: Urgency,
    /// Tries made before for the same pushes.
    pub attempt: u32,
}

/// What a notification came to. Append only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notified {
    /// The terminal acknowledged it.
    Answered,
    /// It did not.
    Unanswered(Why),
    /// It could not go out now; that says nothing of the terminal.
    NotTried,
}

/// Why a notification did not reach its terminal. Append only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Why {
    /// Nothing came back in time.
    NoAnswer,
    /// Something answered, with another key than the terminal's.
    WrongKey,
    /// Nothing was heard of its binding lately.
    NoBinding,
    /// Its anchor cannot be told.
    AnchorGone,
    /// No proof of this cluster's that it would take is known any more.
    NoProof,
    /// Its address is one that is never dialled.
    Forbidden,
    /// The node's own socket refused.
    Socket,
    /// Nobody answered at its address lately, and the address has had what it gets for now.
    Budget,
}

impl Why {
    /// Its name in APIs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Why::NoAnswer => "no_answer",
            Why::WrongKey => "wrong_key",
            Why::NoBinding => "no_binding",
            Why::AnchorGone => "anchor_gone",
            Why::NoProof => "no_proof",
            Why::Forbidden => "forbidden",
            Why::Socket => "socket",
            Why::Budget => "budget",
        }
    }
}

/// Pushes for the session of a terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandOff {
    /// The shard.
    pub group: GroupId,
    /// The leader's term; a session refuses a lower one than it has seen.
    pub term: u64,
    /// For whom.
    pub terminal: TerminalId,
    /// Its life.
    pub stream: Stream,
    /// The session's epoch; another one is refused.
    pub epoch: Epoch,
    /// The attempt that got the epoch: names the session before it knows its epoch.
    pub attempt: Attempt,
    /// In the order of their seqs.
    pub pushes: Vec<HandedPush>,
    /// Every seq up to here that is not among `pushes` has ended; answers a Resend.
    pub covers: Seq,
}

/// A push in a hand-off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedPush {
    /// Its place.
    pub seq: Seq,
    /// See `wire::session::Push::prev`.
    pub prev: Seq,
    /// See `wire::session::Push::maybe_seen`.
    pub maybe_seen: bool,
    /// See `wire::session::Push::remaining`.
    pub remaining: u32,
    /// Milliseconds until it expires.
    pub lives_for: u64,
    /// The application it is for.
    pub channel: Channel,
    /// Application headers.
    pub headers: Vec<(String, String)>,
    /// Payload.
    pub body: Bytes,
}

/// What a session's node tells the shard leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The shard.
    pub group: GroupId,
    /// Whose session.
    pub terminal: TerminalId,
    /// Its epoch.
    pub epoch: Epoch,
    /// What happened.
    pub what: Reported,
}

/// See [`Report`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reported {
    /// There is no such session here, under this incarnation of the node.
    NoSuchSession {
        /// The node's incarnation.
        incarnation: Incarnation,
    },
    /// Written to the terminal's connection up to here.
    Delivered {
        /// The last seq.
        upto: Seq,
    },
    /// The terminal misses what comes from here on.
    Resend {
        /// The first missing seq.
        from: Seq,
    },
    /// An anchor's notification is over. Since format 3.
    Notified(Notified),
}

impl SessionMessage {
    /// The session that a hand-off is for, with its shard. Nobody waits to hear whether anything else found its session.
    pub fn session(&self) -> Option<(GroupId, TerminalId, Epoch)> {
        match self {
            SessionMessage::HandOff(hand_off) => Some((hand_off.group, hand_off.terminal, hand_off.epoch)),
            SessionMessage::Supersede { .. } | SessionMessage::Report(_) | SessionMessage::Notify(_) => None,
        }
    }

    /// The frame's body.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Reads a frame's body.
    pub fn decode(bytes: &[u8]) -> Result<SessionMessage, CodecError> {
        codec::decode::<SessionMessage, { limits::MAX_PEER_MESSAGE }>(bytes)
    }
}
