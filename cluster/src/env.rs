//! The world of a node as type parameters: production's, or the simulator's. No behaviour of either.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use reveille_protocol::id::NodeId;

use crate::link::{Lane, SendError};
use crate::raft::log::LogStore;
use crate::raft::types::Cfg;
use crate::tables::Tables;

/// What a node stands on.
pub trait Env: Send + Sync + 'static {
    /// openraft's parameters, with the runtime that gives time, tasks and randomness.
    type Cfg: Cfg;
    /// One group's log.
    type Log: LogStore;
    /// One group's tables.
    type Tables: Tables;
    /// Frames to other nodes.
    type Transport: Transport;
}

/// Sends frames to other nodes: in order per lane, lossy, never blocking.
pub trait Transport: Clone + Send + Sync + 'static {
    /// Queues a frame; an error says that it will certainly not arrive.
    fn send(&self, to: NodeId, lane: Lane, frame: Bytes) -> Result<(), SendError>;
    /// From now on these are the other nodes, and where they are; links to others end, except to ids above `known`: those
    /// may be nodes that this one has not heard of yet.
    fn set_peers(&self, peers: BTreeMap<NodeId, String>, known: NodeId);
    /// Who belongs to the cluster, as far as this node has heard: ids up to `last` that are not among them were removed,
    /// and are never given again. A transport may tell them so.
    fn set_members(&self, _members: BTreeSet<NodeId>, _last: NodeId) {}
    /// The format version that a peer and this node have in common; `None` while there is no link.
    fn format(&self, peer: NodeId) -> Option<u32>;
    /// Ends the control link to a peer, which learns of it even where nothing that it says arrives here. Only makes others
    /// notice sooner what they notice anyway; so a transport need not.
    fn abandon(&self, _peer: NodeId) {}
    /// The cluster has this format from now on: no link of a lower version is made.
    fn set_format(&self, format: u32);
}
