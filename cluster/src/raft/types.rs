//! What openraft replicates for us, and the one place that pins its type parameters. No behaviour.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use openraft::alias::DefaultEntryOf;
use openraft::impls::{BasicNode, Vote, leader_id_adv};
use openraft::{EntryPayload, RaftTypeConfig};
use reveille_protocol::service_list::Reply;
use reveille_protocol::wire::entry::Entry;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One log entry's data: the encoded [`Entry`], and at the leader that made it also the entry itself, so that it
/// need not decode its own words.
#[derive(Debug, Clone)]
pub struct Batch {
    pub(crate) bytes: Bytes,
    pub(crate) entry: Option<Arc<Entry>>,
}

impl Batch {
    pub(crate) fn new(entry: Entry) -> Batch {
        Batch { bytes: entry.encode().into(), entry: Some(Arc::new(entry)) }
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch of {} bytes", self.bytes.len())
    }
}

impl Serialize for Batch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.bytes)
    }
}

impl<'de> Deserialize<'de> for Batch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Bytes::deserialize(deserializer).map(|bytes| Batch { bytes, entry: None })
    }
}

/// What an entry came to: one reply for each of its commands.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Replies(pub(crate) Vec<Reply>);

impl fmt::Display for Replies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} replies", self.0.len())
    }
}

/// openraft's parameters as we use them; what is left open is the runtime: tokio, or the simulator.
pub trait Cfg:
    RaftTypeConfig<
        D = Batch,
        R = Replies,
        NodeId = u64,
        Node = BasicNode,
        Term = u64,
        LeaderId = leader_id_adv::LeaderId<u64, u64>,
        Vote = Vote<leader_id_adv::LeaderId<u64, u64>>,
        Entry = DefaultEntryOf<Self>,
        Payload = EntryPayload<Batch, u64, BasicNode>,
    >
{
}

impl<C> Cfg for C where
    C: RaftTypeConfig<
            D = Batch,
            R = Replies,
            NodeId = u64,
            Node = BasicNode,
            Term = u64,
            LeaderId = leader_id_adv::LeaderId<u64, u64>,
            Vote = Vote<leader_id_adv::LeaderId<u64, u64>>,
            Entry = DefaultEntryOf<Self>,
            Payload = EntryPayload<Batch, u64, BasicNode>,
        >
{
}

openraft::declare_raft_types!(
    /// openraft on tokio.
    pub Tokio: D = Batch, R = Replies, AsyncRuntime = openraft::impls::TokioRuntime
);
