//! What the application hears of its terminal. Data, and the confirmation of a push.

use std::net::SocketAddr;

use bytes::Bytes;
use reveille_protocol::id::*;
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
    /// Nothing was heard for the check-in period: it connects by itself.
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
    /// The stream that `seq` counts in.
    pub(crate) stream: Stream,
    pub(crate) confirmed: watch::Sender<Confirmation>,
}

/// The highest seq that the application has confirmed in the terminal's present stream. Seqs of another stream count
/// other pushes: streams have no order, so the session that meets a new one sets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Confirmation {
    pub(crate) stream: Stream,
    pub(crate) seq: Seq,
}

impl Received {
    /// Confirms this push and every one before it. A push that is not confirmed comes again after a restart. Does
    /// nothing once the registration has begun anew ([`Event::Reset`]): the push is over.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn push(stream: u64, seq: u64, confirmed: &watch::Sender<Confirmation>) -> Received {
        Received {
            message: MessageId {
                terminal: TerminalId([1; 16]),
                check: Stream(stream).check(),
                seq: Seq(seq),
            },
            seq: Seq(seq),
            channel: Channel(0),
            headers: Vec::new(),
            body: Bytes::new(),
            maybe_seen: false,
            lives_for: 1000,
            node: NodeId(1),
            stream: Stream(stream),
            confirmed: confirmed.clone(),
        }
    }

    #[test]
    fn only_the_present_streams_pushes_can_be_confirmed() {
        let confirmed = watch::Sender::new(Confirmation { stream: Stream(7), seq: Seq(0) });
        let now = |seq| Confirmation { stream: Stream(7), seq: Seq(seq) };
        push(7, 3, &confirmed).confirm();
        push(7, 2, &confirmed).confirm();
        assert_eq!(*confirmed.borrow(), now(3), "cumulative");
        push(9, 50, &confirmed).confirm();
        assert_eq!(*confirmed.borrow(), now(3), "of another stream");
    }
}
