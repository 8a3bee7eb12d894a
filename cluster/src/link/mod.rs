//! Links between nodes: mutual TLS 1.3 over TCP, ordered one-way frames, and word of a break as soon as the socket
//! tells. Requests, answers and their meaning are others' (`rpc`); here are only bytes.
//!
//! One connection per pair of nodes and [`Lane`]; the node with the smaller id dials, and the other one
//! where that does not happen. Each has a coalescing writer:
//! whatever waits goes out in one write, which is what makes many small frames cheap (reference: a write per frame
//! costs twelve times the CPU at 64 in flight).
#![allow(
    clippy::disallowed_methods,
    reason = "links are production only: sockets, tokio and its clock; the simulator has its own transport"
)]

mod connection;
mod handshakes;
mod hello;
pub mod identity;
pub mod limits;
mod links;
mod metrics;

use reveille_protocol::id::NodeId;

pub use self::identity::{Identity, IdentityError, node_name};
pub use self::links::{LinkConfig, Links};
pub use self::metrics::Refusal;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Lane {
    /// Votes, heartbeats, clocks. Small, never behind anything large; its break says that the peer died.
    Control = 0,
    /// Appends, forwarded commands, hand-offs.
    Data = 1,
    /// Snapshots.
    Bulk = 2,
}

impl Lane {
    /// All of them.
    pub const ALL: [Lane; 3] = [Lane::Control, Lane::Data, Lane::Bulk];

    fn of(byte: u8) -> Option<Lane> {
        Lane::ALL.into_iter().find(|lane| *lane as u8 == byte)
    }
}

/// A frame that will certainly not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// There is no connection now.
    #[error("the link is down")]
    Down,
    /// Too much waits to be sent.
    #[error("the link's queue is full")]
    Full,
    /// The lane takes no frame of this length.
    #[error("the frame is too long for its lane")]
    TooLong,
}

/// Why a node is not let in any more. Dialling again does not change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnedAway {
    /// It was removed from the cluster.
    NotMember,
    /// The cluster has left the formats behind that its build knows.
    Old,
}

/// What takes frames and news of links. Called from the link's tasks: must return at once.
pub trait Inbound: Send + Sync + 'static {
    /// A frame, in the order in which it was sent.
    fn frame(&self, from: NodeId, lane: Lane, frame: bytes::Bytes);
    /// The link is there.
    fn up(&self, peer: NodeId, lane: Lane);
    /// It broke; once for each `up`.
    fn down(&self, peer: NodeId, lane: Lane);
    /// A peer says for the whole cluster that this node is not let in any more, and why.
    fn turned_away(&self, _peer: NodeId, _why: TurnedAway) {}
    /// What makes or takes links has panicked: without it this node would be linked less and less.
    fn panicked(&self, _why: String) {}
}
