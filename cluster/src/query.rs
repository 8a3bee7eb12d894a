//! What nodes ask a shard's leader about the service list, and its answers. Formats, and reading the tables.

use std::time::Duration;

use reveille_protocol::dispatch::Notifying;
use reveille_protocol::id::*;
use reveille_protocol::service_list::row::{Row, Settings};
use reveille_protocol::service_list::view::{self, MessageState, Restoring};
use reveille_protocol::service_list::{Table, TableError};
use reveille_protocol::stage::End;
use reveille_protocol::time::GroupTime;
use serde::{Deserialize, Serialize};

use crate::shape::Shape;
use crate::trace::Traced;

/// Terminals on one page of a listing.
pub const MAX_PAGE: usize = 1000;
/// The longest that a [`Query::Message`] may ask the leader to wait: a publisher's connection, and a place among the
/// leader's waiters, are held that long.
pub const MAX_WAIT: Duration = Duration::from_secs(60);

/// A question to a shard's leader. Sent between nodes: append only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Query {
    /// A terminal's entry in the service list.
    Terminal {
        /// Who asks; sees its own terminals only.
        tenant: TenantId,
        /// Which.
        terminal: TerminalId,
    },
    /// What became of a push.
    Message {
        /// Who asks.
        tenant: TenantId,
        /// Which.
        message: MessageId,
        /// Wait so many milliseconds for its end, if it has not ended; at most [`MAX_WAIT`].
        wait: u64,
    },
    /// A tenant's terminals, in the order of their ids, at most [`MAX_PAGE`].
    Terminals {
        /// Who asks.
        tenant: TenantId,
        /// Only ids above this.
        after: Option<TerminalId>,
        /// How many at most.
        limit: u32,
    },
    /// How the group is made up; since format 2.
    Shape,
    /// The group's limits; since format 2.
    Limits,
    /// The restore that the group came by, or is coming by. A node that does not know this gives no answer.
    Restore,
    /// What has come of the notifications for a terminal that something waits for; since format 3.
    Notifying {
        /// Who asks.
        tenant: TenantId,
        /// Which.
        terminal: TerminalId,
    },
}

/// An answer. Sent between nodes: append only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Query::Terminal`].
    Terminal(Option<Row>),
    /// To [`Query::Message`].
    Message(Option<MessageView>),
    /// To [`Query::Terminals`].
    Terminals(Vec<(TerminalId, Row)>),
    /// Ask that node, or any, again.
    NotLeader(Option<NodeId>),
    /// It cannot be answered now: too many wait.
    Unavailable,
    /// To [`Query::Shape`].
    Shape(Box<Shape>),
    /// To [`Query::Limits`].
    Limits(Box<Settings>),
    /// The tables there cannot be read, and why. A node that does not know this answer takes it for `Unavailable`.
    Unreadable(String),
    /// To [`Query::Restore`].
    Restore(Option<RestoreState>),
    /// To [`Query::Notifying`]: none while nothing waits, or it is online.
    Notifying(Option<Notifying>),
}

/// How far a restore is in one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreState {
    /// Its name.
    pub restore: RestoreId,
    /// It is not finished: the group serves nobody.
    pub open: bool,
    /// Terminals are there.
    pub terminals: bool,
}

impl From<Restoring> for RestoreState {
    fn from(Restoring { restore, open, terminals }: Restoring) -> RestoreState {
        RestoreState { restore, open, terminals }
    }
}

/// A push as its publisher sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageView {
    /// Group time at which it was accepted.
    pub accepted: GroupTime,
    /// When it expires, or would have.
    pub deadline: GroupTime,
    /// How and when it ended.
    pub end: Option<(End, GroupTime)>,
    /// The terminal confirmed it after it had ended otherwise.
    pub seen: Option<GroupTime>,
    /// What the shard's leader saw of it.
    pub trace: Vec<Traced>,
}

impl MessageView {
    pub(crate) fn new(state: MessageState, trace: Vec<Traced>) -> MessageView {
        match state {
            MessageState::Pending(message) => MessageView {
                accepted: message.accepted,
                deadline: message.deadline,
                end: None,
                seen: None,
                trace,
            },
            MessageState::Ended(ended) => MessageView {
                accepted: ended.accepted,
                deadline: ended.deadline,
                end: Some((ended.end, ended.at)),
                seen: ended.seen,
                trace,
            },
        }
    }
}

/// Answers what needs no waiting.
pub(crate) fn terminals<T: Table>(
    table: &T,
    tenant: TenantId,
    after: Option<TerminalId>,
    limit: u32,
) -> Result<Vec<(TerminalId, Row)>, TableError> {
    // One more than a page: whoever asks knows by it that there is another.
    let limit = (limit as usize).min(MAX_PAGE + 1);
    let mut rows = Vec::new();
    for terminal in view::terminals_of(table, tenant, after, limit)? {
        rows.extend(view::terminal(table, &terminal)?.map(|row| (terminal, row)));
    }
    Ok(rows)
}
