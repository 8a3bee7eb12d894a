//! What nodes ask a shard's leader about the service list, and its answers. Formats, and reading the tables.

use std::time::Duration;

use reveille_protocol::id::*;
use reveille_protocol::service_list::row::{Row, Settings};
use reveille_protocol::service_list::view::{self, MessageState};
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
    /// It cannot be answered now: too many wait, or the tables cannot be read.
    Unavailable,
    /// To [`Query::Shape`].
    Shape(Box<Shape>),
    /// To [`Query::Limits`].
    Limits(Box<Settings>),
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
