//! What the application hears of its terminal. Data, and the confirmation of a push.

use std::net::SocketAddr;

use bytes::Bytes;
use reveille_protocol::id::*;
use reveille_protocol::session::terminal::Memory;
use reveille_protocol::wire::session::Class;
use tokio::sync::watch;

/// Something that happened to a terminal.
#[derive(Debug)]
pub enum Event {
    /// It listens for notifications here.
    Listening {
        /// The UDP address.
        address: SocketAddr,
    },
    /// A notification came.
    Notified {
        /// Its number.
        id: u64,
        /// Pushes that wait.
        pending: u32,
    },
    /// Nothing was heard for the check-in period, or no session found a way by which the terminal is reached: it connects by
    /// itself.
    CheckIn,
    /// A session is open: the terminal is online.
    Connected {
        /// The node.
        node: NodeId,
        /// Where it is.
        address: SocketAddr,
        /// The session's epoch.
        epoch: Epoch,
        /// Pushes that wait.
        pending: u32,
    },
    /// A push.
    Received(Received),
    /// What came before `next` is over: the registration began anew, or another copy of this terminal's state
    /// confirmed it.
    Reset {
        /// The first seq that is to come.
        next: Seq,
    },
    /// It was found out how notifications reach the terminal from this network.
    Reachable {
        /// How.
        class: Class,
    },
    /// The session is closed: the terminal is offline.
    Disconnected {
        /// Why.
        reason: String,
    },
    /// Something that the application or its operator must know.
    Problem {
        /// What, and what to do.
        what: String,
    },
}

/// A push, given to the application.
#[derive(Debug)]
pub struct Received {
    /// Its name.
    pub message: MessageId,
    /// Its place in the terminal's stream.
    pub seq: Seq,
    /// The place that was named as the one before it: lower ones that lack in between have ended without being given.
    pub prev: Seq,
    /// The application it is for.
    pub channel: Channel,
    /// Application headers.
    pub headers: Vec<(String, String)>,
    /// Payload.
    pub body: Bytes,
    /// It was given to an earlier run of this terminal, which may have shown it and ended before it confirmed.
    pub maybe_seen: bool,
    /// Milliseconds until it expires, when it was sent.
    pub lives_for: u64,
    /// The node that delivered it.
    pub node: NodeId,
    pub(crate) stream: Stream,
    pub(crate) confirmed: watch::Sender<Confirmed>,
}

/// How far the application has confirmed. A seq says nothing without the stream that it counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Confirmed {
    /// The terminal's present stream.
    pub(crate) stream: Stream,
    pub(crate) seq: Seq,
}

impl Confirmed {
    /// What this says of the stream that `memory` is of, if it is more than it knows.
    pub(crate) fn beyond(self, memory: &Memory) -> Option<Seq> {
        (self.stream == memory.stream && self.seq > memory.last).then_some(self.seq)
    }
}

impl Received {
    /// Confirms this push and every one before it. A push that is not confirmed comes again after a restart. One of a
    /// stream that is over ([`Event::Reset`]) is over with it: confirming it confirms nothing of the new one.
    pub fn confirm(self) {
        self.confirmed.send_if_modified(|confirmed| {
            let higher = self.stream == confirmed.stream && self.seq > confirmed.seq;
            if higher {
                confirmed.seq = self.seq;
            }
            higher
        });
    }
}
