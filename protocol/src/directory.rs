//! The directory: what the meta group (group 0) replicates. Nodes and their incarnations, the slot map, tenants
//! and their tokens, secrets. Pure; small enough to be one value that every node keeps in memory.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::id::*;
use crate::service_list::{Table, TableError, key};
use crate::time::GroupTime;
use crate::wire::codec;

/// Bytes of a whole directory: some ten thousand tokens.
const MAX_DIRECTORY: usize = 4 * 1024 * 1024;
/// Tokens and tenants together: with names of [`MAX_TEXT`] about a megabyte, within the directory's size and within one
/// chunk of a snapshot.
const MAX_RECORDS: usize = 10_000;
/// Bytes of a tenant's or token's name.
const MAX_TEXT: usize = 64;
/// Secrets that are valid at once: the current one and those that outlive a rotation.
const MAX_SECRETS: usize = 3;

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

/// A change of the directory. Stored: append only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// The first entry of a cluster's life; repeated with the same cluster it changes nothing.
    Create {
        /// Its random name.
        cluster: u64,
        /// Shard groups.
        groups: u16,
        /// Its first nodes.
        nodes: BTreeMap<NodeId, Node>,
        /// Its first tenants.
        tenants: BTreeMap<TenantId, Tenant>,
        /// Its first tokens.
        tokens: BTreeMap<KeyFingerprint, Token>,
        /// Its first secret.
        secret: [u8; 32],
    },
    /// A node started, or read its own Down mark: it takes a new incarnation.
    Start {
        /// Which.
        node: NodeId,
        /// Which start; repeated with the same number it gets the same incarnation.
        boot: u64,
        /// Where it is now. Its incarnation fields are ignored.
        addresses: Node,
    },
    /// A node has been silent too long: its sessions are fenced.
    Down {
        /// Which.
        node: NodeId,
        /// The incarnation that was silent; a later one is not touched.
        incarnation: Incarnation,
    },
    /// A new or changed tenant.
    PutTenant {
        /// Which.
        tenant: TenantId,
        /// What it is from now on.
        value: Tenant,
    },
    /// A new or changed token.
    PutToken {
        /// SHA-256 of its text.
        hash: KeyFingerprint,
        /// What it allows from now on.
        value: Token,
    },
    /// A token ends.
    RevokeToken {
        /// SHA-256 of its text.
        hash: KeyFingerprint,
    },
    /// A new secret; the oldest goes when there are more than three.
    Rotate {
        /// Random.
        secret: [u8; 32],
    },
}

/// What a change came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Done, or had been so before.
    Done,
    /// The node runs under this incarnation.
    Started(Incarnation),
}

/// Why a change was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refused {
    /// The directory belongs to another cluster.
    #[error("this is cluster {0:016x}, created before")]
    OtherCluster(u64),
    /// No such node.
    #[error("node {0} is not a member of this cluster")]
    UnknownNode(NodeId),
    /// No such tenant.
    #[error("tenant {0} does not exist")]
    UnknownTenant(TenantId),
    /// Another tenant has this name.
    #[error("tenant {0} already has this name")]
    NameTaken(TenantId),
    /// The directory is full.
    #[error(
        "the directory has {0} tenants and tokens already, or the name is too long; revoke some, or shorten it"
    )]
    Full(usize),
}

/// Reads the directory from the meta group's tables; an empty one if there is none yet.
pub fn read<T: Table>(table: &T) -> Result<Directory, TableError> {
    match table.get(&key::DIRECTORY)? {
        None => Ok(Directory::default()),
        Some(bytes) => codec::decode::<Directory, MAX_DIRECTORY>(&bytes)
            .map_err(|error| TableError(format!("the directory is damaged: {error}"))),
    }
}

impl Directory {
    pub(crate) fn encode(&self) -> Bytes {
        codec::encode(self).into()
    }

    /// The group that keeps a terminal.
    pub fn group_of(&self, terminal: &TerminalId) -> GroupId {
        group_of_slot(terminal.slot(), self.groups)
    }

    /// A node's latest incarnation.
    pub fn incarnation(&self, node: NodeId) -> Incarnation {
        self.nodes.get(&node).map_or(Incarnation(0), |known| known.incarnation)
    }

    /// Is a session of this node and incarnation fenced? A view that lags behind fences nothing newer.
    pub fn fenced(&self, node: NodeId, incarnation: Incarnation) -> bool {
        self.nodes.get(&node).is_none_or(|known| incarnation < known.incarnation || incarnation <= known.down)
    }

    /// The secret that new derivations use.
    pub fn secret(&self) -> Option<&Secret> {
        self.secrets.last()
    }

    /// Takes one change in.
    pub(crate) fn apply(&mut self, change: &Change) -> Result<Outcome, Refused> {
        match change {
            Change::Create { cluster, groups, nodes, tenants, tokens, secret } => {
                if self.cluster == *cluster {
                    return Ok(Outcome::Done);
                }
                if self.cluster != 0 {
                    return Err(Refused::OtherCluster(self.cluster));
                }
                *self = Directory {
                    cluster: *cluster,
                    groups: *groups,
                    nodes: nodes.clone(),
                    tenants: tenants.clone(),
                    tokens: tokens.clone(),
                    secrets: vec![Secret { generation: 1, key: *secret }],
                };
            }
            Change::Start { node, boot, addresses } => {
                let known = self.nodes.get_mut(node).ok_or(Refused::UnknownNode(*node))?;
                if known.boot != *boot || known.incarnation <= known.down {
                    let next = Incarnation(known.incarnation.max(known.down).0 + 1);
                    *known = Node { incarnation: next, boot: *boot, down: known.down, ..addresses.clone() };
                }
                return Ok(Outcome::Started(known.incarnation));
            }
            Change::Down { node, incarnation } => {
                let known = self.nodes.get_mut(node).ok_or(Refused::UnknownNode(*node))?;
                if *incarnation == known.incarnation {
                    known.down = *incarnation;
                }
            }
            Change::PutTenant { tenant, value } => {
                if let Some((taken, _)) =
                    self.tenants.iter().find(|(id, other)| *id != tenant && other.name == value.name)
                {
                    return Err(Refused::NameTaken(*taken));
                }
                self.room_for(self.tenants.contains_key(tenant), value.name.len())?;
                self.tenants.insert(*tenant, value.clone());
            }
            Change::PutToken { hash, value } => {
                if !self.tenants.contains_key(&value.tenant) {
                    return Err(Refused::UnknownTenant(value.tenant));
                }
                self.room_for(self.tokens.contains_key(hash), value.name.len())?;
                self.tokens.insert(*hash, value.clone());
            }
            Change::RevokeToken { hash } => {
                self.tokens.remove(hash);
            }
            Change::Rotate { secret } => {
                let generation = self.secrets.last().map_or(0, |last| last.generation) + 1;
                self.secrets.push(Secret { generation, key: *secret });
                let old = self.secrets.len().saturating_sub(MAX_SECRETS);
                self.secrets.drain(..old);
            }
        }
        Ok(Outcome::Done)
    }

    /// May one more record be put, of which so many bytes are text?
    fn room_for(&self, known: bool, text: usize) -> Result<(), Refused> {
        let records = self.tenants.len() + self.tokens.len();
        let fits = text <= MAX_TEXT && (known || records < MAX_RECORDS);
        if fits { Ok(()) } else { Err(Refused::Full(records)) }
    }
}

/// The shard group (1 to `groups`) of a slot: equal, contiguous ranges.
pub fn group_of_slot(slot: Slot, groups: u16) -> GroupId {
    let groups = u32::from(groups.max(1));
    GroupId((u32::from(slot.0) * groups / u32::from(SLOTS)) as u16 + 1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn created() -> Directory {
        let mut directory = Directory::default();
        let nodes = BTreeMap::from([(NodeId(1), Node::default())]);
        let create = Change::Create {
            cluster: 7,
            groups: 3,
            nodes,
            tenants: BTreeMap::new(),
            tokens: BTreeMap::new(),
            secret: [1; 32],
        };
        assert_eq!(directory.apply(&create), Ok(Outcome::Done));
        directory
    }

    fn start(boot: u64) -> Change {
        Change::Start { node: NodeId(1), boot, addresses: Node::default() }
    }

    #[test]
    fn a_start_raises_the_incarnation_once_and_fences_the_earlier_one() {
        let mut directory = created();
        assert_eq!(directory.apply(&start(11)), Ok(Outcome::Started(Incarnation(1))));
        assert_eq!(directory.apply(&start(11)), Ok(Outcome::Started(Incarnation(1))), "repeated request");
        assert!(!directory.fenced(NodeId(1), Incarnation(1)));
        assert_eq!(directory.apply(&start(12)), Ok(Outcome::Started(Incarnation(2))));
        assert!(directory.fenced(NodeId(1), Incarnation(1)));
    }

    #[test]
    fn a_down_mark_fences_the_incarnation_it_names_and_no_later_one() {
        let mut directory = created();
        let first = Change::Down { node: NodeId(1), incarnation: Incarnation(1) };
        directory.apply(&start(11)).unwrap();
        directory.apply(&first).unwrap();
        assert!(directory.fenced(NodeId(1), Incarnation(1)));
        assert_eq!(
            directory.apply(&start(11)),
            Ok(Outcome::Started(Incarnation(2))),
            "same boot, marked down"
        );
        directory.apply(&first).unwrap();
        assert!(!directory.fenced(NodeId(1), Incarnation(2)), "a late mark touches nothing newer");
        assert!(!directory.fenced(NodeId(1), Incarnation(9)), "a lagging view fences nothing newer");
    }

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
