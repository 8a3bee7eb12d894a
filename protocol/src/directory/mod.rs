//! The directory: what the meta group (group 0) replicates. Nodes and their incarnations, who of them belongs to the
//! cluster and which replicates what, tenants and their tokens, secrets. Pure; small enough to be one value that every
//! node keeps in memory.
//!
//! [`Change`] is what may be asked of it (`change`; what a backup brings: `restore`), [`Roster`] who belongs to the cluster
//! (`roster`), and where each group's replicas should be follows from both (`placement`).

mod change;
mod placement;
mod restore;
mod roster;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use self::change::{Change, Outcome, Refused};
pub use self::roster::{FORMAT, NOTIFY_ANCHORS, Record, Roster, Standing};
use crate::id::*;
use crate::service_list::{Table, TableError, key};
use crate::time::GroupTime;
use crate::wire::codec;

/// Bytes of a whole directory: some ten thousand tokens.
pub const MAX_DIRECTORY: usize = 4 * 1024 * 1024;
/// Everything the meta group knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// Random name of the cluster, in every certificate and data folder. Zero before [`Change::Create`].
    pub cluster: u64,
    /// Number of groups beside meta; fixed at creation. Shard groups are 1 to this number.
    pub groups: u16,
    /// The nodes.
    pub nodes: BTreeMap<NodeId, Node>,
    /// The tenants.
    pub tenants: BTreeMap<TenantId, Tenant>,
    /// Publisher tokens by the SHA-256 of their text.
    pub tokens: BTreeMap<KeyFingerprint, Token>,
    /// Secrets of the cluster, newest last. Notify secrets and session tickets derive from them.
    pub secrets: Vec<Secret>,
    /// Who belongs to the cluster. Stored behind the rest, since format 2.
    #[serde(skip)]
    pub roster: Roster,
    /// The nodes whose data folders keep an account of their starts: one that knows of none is an older copy. Stored behind
    /// the roster, since format 3.
    #[serde(skip)]
    pub counted: BTreeSet<NodeId>,
}

/// A node as the cluster knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Where its peers reach it.
    pub peer: String,
    /// Where terminals reach it.
    pub session: String,
    /// Where publishers reach it (URL).
    pub http: String,
    /// Failure domain.
    pub zone: String,
    /// Highest incarnation given out; sessions of lower ones are fenced.
    pub incarnation: Incarnation,
    /// Which start of the process got it, so that a repeated request gets the same one.
    pub boot: u64,
    /// Incarnations up to this one are marked down.
    pub down: Incarnation,
}

impl Node {
    /// Has no incarnation that is not marked down: it never ran, or is taken for gone.
    pub fn is_down(&self) -> bool {
        self.incarnation <= self.down
    }
}

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    /// Its name, unique.
    pub name: String,
    /// Ed25519 public key that its enrolment tokens are signed with.
    pub enrolment_key: Option<[u8; 32]>,
    /// Unknown keys are enrolled without a token; only `reveille dev` sets it.
    pub open: bool,
}

/// What a token allows. Each right includes only itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rights {
    /// Publish and cancel.
    pub publish: bool,
    /// Read messages and terminals.
    pub read: bool,
    /// Register and unregister terminals; everything on the admin listener.
    pub admin: bool,
}

/// A publisher token; its text is never stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// What people call it.
    pub name: String,
    /// Whose terminals it reaches.
    pub tenant: TenantId,
    /// What it allows.
    pub rights: Rights,
    /// When it ends; `None`: never.
    pub expires: Option<GroupTime>,
}

/// A secret of the cluster.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// Names it in what derives from it.
    pub generation: u32,
    /// Random.
    pub key: [u8; 32],
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret(generation {}, key not shown)", self.generation)
    }
}

/// Reads the directory from the meta group's tables; an empty one if there is none yet.
pub fn read<T: Table>(table: &T) -> Result<Directory, TableError> {
    let Some(bytes) = table.get(&key::DIRECTORY)? else { return Ok(Directory::default()) };
    Directory::decode(&bytes).map_err(|error| TableError(format!("the directory is damaged: {error}")))
}

impl Directory {
    /// Reads the stored form, of any format.
    pub fn decode(bytes: &[u8]) -> Result<Directory, codec::CodecError> {
        match bytes.first() {
            // Format 1 knew only the nodes that the cluster was created with.
            Some(1) => codec::decode::<Directory, MAX_DIRECTORY>(bytes).map(|directory| {
                let roster = Roster::founded(directory.nodes.keys().copied());
                Directory { roster, ..directory }
            }),
            Some(2) => codec::decode_as::<(Directory, Roster), MAX_DIRECTORY>(2, bytes)
                .map(|(directory, roster)| Directory { roster, ..directory }),
            _ => codec::decode_as::<(Directory, Roster, BTreeSet<NodeId>), MAX_DIRECTORY>(3, bytes)
                .map(|(directory, roster, counted)| Directory { roster, counted, ..directory }),
        }
    }

    /// In the form of the cluster's format version, so that a node that knows no later one can read it.
    pub fn encode(&self) -> Bytes {
        match self.roster.format {
            0 | 1 => codec::encode(self).into(),
            2 => codec::encode_as(2, &(self, &self.roster)).into(),
            _ => codec::encode_as(3, &(self, &self.roster, &self.counted)).into(),
        }
    }

    /// A node's latest incarnation.
    pub fn incarnation(&self, node: NodeId) -> Incarnation {
        self.nodes.get(&node).map_or(Incarnation(0), |known| known.incarnation)
    }

    /// Is a session of this node and incarnation fenced? If so, for ever: a view that lags behind fences nothing newer, and no
    /// node that it has not heard of.
    pub fn fenced(&self, node: NodeId, incarnation: Incarnation) -> bool {
        match self.nodes.get(&node) {
            Some(known) => incarnation < known.incarnation || incarnation <= known.down,
            None => node <= self.roster.last_node,
        }
    }

    /// The secret that new derivations use.
    pub fn secret(&self) -> Option<&Secret> {
        self.secrets.last()
    }
}

/// The shard group (1 to `groups`) of a slot: equal, contiguous ranges.
pub fn group_of_slot(slot: Slot, groups: u16) -> GroupId {
    let groups = u32::from(groups.max(1));
    GroupId((u32::from(slot.0) * groups / u32::from(SLOTS)) as u16 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_split_into_equal_ranges() {
        assert_eq!(group_of_slot(Slot(0), 3), GroupId(1));
        assert_eq!(group_of_slot(Slot(SLOTS - 1), 3), GroupId(3));
        let counts = (0..SLOTS).fold([0; 4], |mut counts, slot| {
            counts[usize::from(group_of_slot(Slot(slot), 3).0)] += 1;
            counts
        });
        assert!(counts[1..].iter().all(|count| (5461..=5462).contains(count)), "{counts:?}");
    }
}
