//! The life of a push, named once: used in code, metrics, logs and the message trace API.

use serde::{Deserialize, Serialize};

/// A step on the way of a push. `Accepted`, `Stored`, `Acked` and the other ends are durable; what lies between
/// is soft state of the shard leader and may be missing after a failover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// A node took the publisher's request.
    Accepted,
    /// On disk on a majority of the group's replicas; the publisher has its 201.
    Stored,
    /// A notification was sent to the offline terminal.
    Notified,
    /// The terminal's session became its current one.
    Attached,
    /// The shard leader gave the push to the node of that session.
    HandedOff,
    /// The push was written to the terminal's connection.
    Delivered,
    /// The terminal confirmed it.
    Acked,
    /// Its TTL ended first.
    Expired,
    /// The publisher took it back.
    Cancelled,
    /// A later push with the same topic took its place.
    Replaced,
    /// The terminal refused it.
    Refused,
    /// The terminal was unregistered.
    Gone,
}

impl Stage {
    /// Every stage, in the order of the way.
    pub const ALL: [Stage; 12] = [
        Stage::Accepted,
        Stage::Stored,
        Stage::Notified,
        Stage::Attached,
        Stage::HandedOff,
        Stage::Delivered,
        Stage::Acked,
        Stage::Expired,
        Stage::Cancelled,
        Stage::Replaced,
        Stage::Refused,
        Stage::Gone,
    ];

    /// The name in traces, metrics and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Accepted => "accepted",
            Stage::Stored => "stored",
            Stage::Notified => "notified",
            Stage::Attached => "attached",
            Stage::HandedOff => "handed_off",
            Stage::Delivered => "delivered",
            Stage::Acked => "acked",
            Stage::Expired => "expired",
            Stage::Cancelled => "cancelled",
            Stage::Replaced => "replaced",
            Stage::Refused => "refused",
            Stage::Gone => "gone",
        }
    }
}

/// How a push ended. Stored: append only, never reorder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum End {
    /// See [`Stage::Acked`].
    Acked,
    /// See [`Stage::Expired`].
    Expired,
    /// See [`Stage::Cancelled`].
    Cancelled,
    /// See [`Stage::Replaced`].
    Replaced,
    /// See [`Stage::Refused`].
    Refused,
    /// See [`Stage::Gone`].
    Gone,
}

impl End {
    /// The stage that this end is.
    pub fn stage(self) -> Stage {
        match self {
            End::Acked => Stage::Acked,
            End::Expired => Stage::Expired,
            End::Cancelled => Stage::Cancelled,
            End::Replaced => Stage::Replaced,
            End::Refused => Stage::Refused,
            End::Gone => Stage::Gone,
        }
    }
}
