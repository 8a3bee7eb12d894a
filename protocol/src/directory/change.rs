//! What may be asked of the directory, and what becomes of it. Total and deterministic, as all of apply.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::roster::{Roster, Standing};
use super::{Directory, FORMAT, Node, Secret, Tenant, Token};
use crate::id::*;
use crate::time::GroupTime;

/// Tokens and tenants together: with names of [`MAX_TEXT`] about a megabyte, within the directory's size and within one
/// chunk of a snapshot.
pub(super) const MAX_RECORDS: usize = 10_000;
/// Bytes of a tenant's or token's name.
pub(super) const MAX_TEXT: usize = 64;
/// Secrets that are valid at once: the current one and those that outlive a rotation.
pub(super) const MAX_SECRETS: usize = 3;
/// Nodes of a cluster: each keeps links to every other.
const MAX_NODES: usize = 64;
/// Bytes of a node's peer address: a DNS name and a port.
const MAX_ADDRESS: usize = 262;

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
    /// Every node can read and write this format now. Never lower than before. What follows here came with format 2.
    SetFormat {
        /// The version.
        format: u32,
    },
    /// As [`Change::Start`], by a node that names its data folder.
    Enter {
        /// Which.
        node: NodeId,
        /// Which start.
        boot: u64,
        /// The random name of its data folder: another one means that it lost what it had promised.
        store: u64,
        /// Where it is now.
        addresses: Node,
    },
    /// A node may join: it gets the next id. Repeated for the same address, it gets the same one with a new token.
    Invite {
        /// Where its peers will reach it.
        peer: String,
        /// SHA-256 of its join token.
        token: KeyFingerprint,
        /// When the token ends.
        expires: GroupTime,
        /// Whose replicas it takes over.
        replaces: Option<NodeId>,
    },
    /// An invited node takes its place, once: its token is bound to its data folder by this.
    Join {
        /// Which.
        node: NodeId,
        /// SHA-256 of its join token.
        token: KeyFingerprint,
        /// The random name of its data folder.
        store: u64,
    },
    /// A node's replicas go elsewhere; it goes on serving sessions and requests.
    Drain {
        /// Which.
        node: NodeId,
        /// Also if groups have fewer replicas than they should by it.
        fewer: bool,
    },
    /// Takes a drain or a removal back that is not done yet.
    Resume {
        /// Which.
        node: NodeId,
    },
    /// A node's replicas go elsewhere, and when it has none, it belongs to the cluster no more.
    Remove {
        /// Which.
        node: NodeId,
        /// Also if groups have fewer replicas than they should by it.
        fewer: bool,
    },
    /// A node that was to be removed has no replicas any more.
    Removed {
        /// Which.
        node: NodeId,
    },
    /// How many replicas each group should have.
    SetReplicas {
        /// 1 to 7; odd, since an even number survives no more losses than the one before it.
        replicas: u8,
    },
    /// What a backup knows of tenants, beside what a new cluster was created with. Its nodes stay its own.
    Restore {
        /// Names the restore: repeated, it changes nothing.
        restore: RestoreId,
        /// The tenants.
        tenants: BTreeMap<TenantId, Tenant>,
        /// Their tokens.
        tokens: BTreeMap<KeyFingerprint, Token>,
        /// The secrets, in place of those of the new cluster: what terminals were given derives from them.
        secrets: Vec<Secret>,
    },
    /// As [`Change::Enter`], by a node whose data folder knows which start was its last. Came with format 3.
    Return {
        /// Which.
        node: NodeId,
        /// Which start.
        boot: u64,
        /// The start before it on this data folder, 0 if it does not know: another one since then was on another copy.
        before: u64,
        /// The random name of its data folder.
        store: u64,
        /// Where it is now.
        addresses: Node,
    },
}

/// The format since which a node tells which start of its data folder was the last.
const RETURNS: u32 = 3;

impl Change {
    /// The format version that a cluster must have before this may be in its log.
    pub fn since(&self) -> u32 {
        match self {
            Change::Create { .. }
            | Change::Start { .. }
            | Change::Down { .. }
            | Change::PutTenant { .. }
            | Change::PutToken { .. }
            | Change::RevokeToken { .. }
            | Change::Rotate { .. }
            // A node that knows none but format 1 stops at it, which is what it is for.
            | Change::SetFormat { .. } => 1,
            Change::Return { .. } => RETURNS,
            _ => 2,
        }
    }
}

/// What a change came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Done, or had been so before.
    Done,
    /// The node runs under this incarnation.
    Started(Incarnation),
    /// The invited node's id.
    Invited(NodeId),
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
    /// The cluster's format is older than what was asked.
    #[error("the cluster still runs format {0}; upgrade every node first")]
    Format(u32),
    /// Another data folder has this id.
    #[error(
        "node {0} had a data folder before, and this is another one: what it had promised is lost. Replace it: reveille cluster replace {0}"
    )]
    OtherStore(NodeId),
    /// The join token is not this node's, was used by another folder, or has ended.
    #[error("the join token of node {0} is wrong or has ended; get another one: reveille cluster add")]
    Token(NodeId),
    /// A node of the cluster has this peer address.
    #[error("node {0} has this peer address already")]
    AddressTaken(NodeId),
    /// There would be too few nodes for the replicas that each group should have.
    #[error(
        "{left} nodes would be left for {replicas} replicas: add a node first, or replace this one, or accept fewer replicas: --force-fewer-replicas"
    )]
    TooFew {
        /// Nodes that would be left.
        left: u8,
        /// Replicas that each group should have.
        replicas: u8,
    },
    /// It was invited, and has not joined.
    #[error("node {0} has not joined yet")]
    NotJoined(NodeId),
    /// It is not on its way out.
    #[error("node {0} is not being removed")]
    NotLeaving(NodeId),
    /// A number of replicas that cannot be.
    #[error("{0} replicas cannot be: an odd number up to 7 that there are nodes for")]
    Replicas(u8),
    /// There are as many nodes as there may be, or an address is too long.
    #[error("the cluster has {0} nodes already, or the address is too long")]
    TooManyNodes(usize),
    /// A backup can only be restored into a new cluster.
    #[error("this cluster is not new: its secrets were changed, or another backup was restored into it")]
    NotFresh,
    /// Secrets that no cluster has.
    #[error("the backup's secrets cannot be: 1 to {MAX_SECRETS}, the newest last")]
    Secrets,
    /// The data folder is not what its node's last start left.
    #[error(
        "node {0} was started since on another copy of this data folder: this one is older (a copy, or a snapshot of the disk), and lacks what the node promised since. Start it on the later one, or replace it: reveille cluster replace {0}"
    )]
    OlderCopy(NodeId),
    /// It asks as in an earlier format: it has not caught up with the log yet, and will ask again.
    #[error("this node's copy of the directory is behind")]
    Behind,
}

impl Directory {
    /// Would this be done, once the cluster has the latest format?
    pub fn would_do(&self, change: &Change) -> Result<(), Refused> {
        let mut trial = self.clone();
        trial.roster.format = FORMAT;
        trial.apply(change, GroupTime::default()).map(drop)
    }

    /// Takes one change in.
    pub(crate) fn apply(&mut self, change: &Change, now: GroupTime) -> Result<Outcome, Refused> {
        if change.since() > self.roster.format.max(1) {
            return Err(Refused::Format(self.roster.format.max(1)));
        }
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
                    roster: Roster::founded(nodes.keys().copied()),
                    counted: BTreeSet::new(),
                };
            }
            // Of a node whose copy of the directory is older than that: as it tells nothing of its data folder, the folder may be
            // older, too.
            Change::Start { .. } | Change::Enter { .. } if self.roster.format >= RETURNS => {
                return Err(Refused::Behind);
            }
            Change::Start { node, boot, addresses } => {
                return self.start(*node, *boot, addresses);
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
            Change::SetFormat { format } => self.roster.format = self.roster.format.max(*format),
            Change::Enter { node, boot, store, addresses } => {
                self.roster.enter(*node, *store)?;
                return self.start(*node, *boot, addresses);
            }
            Change::Return { node, boot, before, store, addresses } => {
                self.roster.enter(*node, *store)?;
                let last = self.nodes.get(node).map_or(0, |known| known.boot);
                let follows = match *before {
                    // It was last started by a version that kept no account, or is as old as that.
                    0 => !self.counted.contains(node),
                    before => last == 0 || last == before,
                };
                if !follows && last != *boot {
                    return Err(Refused::OlderCopy(*node));
                }
                self.counted.insert(*node);
                return self.start(*node, *boot, addresses);
            }
            Change::Invite { peer, token, expires, replaces } => {
                return self.invite(peer, *token, *expires, *replaces);
            }
            Change::Join { node, token, store } => self.roster.join(*node, *token, *store, now)?,
            Change::Drain { node, fewer } => self.roster.leave(*node, Standing::Draining, *fewer)?,
            Change::Resume { node } => self.roster.resume(*node)?,
            Change::Remove { node, fewer } => {
                // Removed before: a repeated request finds what it wanted.
                let gone = !self.roster.records.contains_key(node) && *node <= self.roster.last_node;
                if !gone {
                    self.roster.leave(*node, Standing::Leaving, *fewer)?;
                    self.nodes.retain(|node, _| self.roster.records.contains_key(node));
                    self.counted.retain(|node| self.roster.records.contains_key(node));
                }
            }
            Change::Removed { node } => {
                self.roster.removed(*node)?;
                self.nodes.remove(node);
                self.counted.remove(node);
            }
            Change::SetReplicas { replicas } => self.roster.set_replicas(*replicas)?,
            Change::Restore { tenants, tokens, secrets, .. } => self.restore(tenants, tokens, secrets)?,
        }
        Ok(Outcome::Done)
    }

    fn start(&mut self, node: NodeId, boot: u64, addresses: &Node) -> Result<Outcome, Refused> {
        let known = self.nodes.get_mut(&node).ok_or(Refused::UnknownNode(node))?;
        if known.boot != boot || known.is_down() {
            let next = Incarnation(known.incarnation.max(known.down).0 + 1);
            *known = Node { incarnation: next, boot, down: known.down, ..addresses.clone() };
        }
        Ok(Outcome::Started(known.incarnation))
    }

    fn invite(
        &mut self,
        peer: &str,
        token: KeyFingerprint,
        expires: GroupTime,
        replaces: Option<NodeId>,
    ) -> Result<Outcome, Refused> {
        // A replacement may have the address of the node that it replaces.
        let mut others = self.nodes.iter().filter(|(node, _)| Some(**node) != replaces);
        let same = others.find(|(_, known)| known.peer == peer).map(|(node, _)| *node);
        if same.is_none() && (self.nodes.len() >= MAX_NODES || peer.len() > MAX_ADDRESS) {
            return Err(Refused::TooManyNodes(self.nodes.len()));
        }
        let node = self.roster.invite(same, token, expires, replaces)?;
        self.nodes.entry(node).or_insert_with(|| Node { peer: peer.to_owned(), ..Node::default() });
        Ok(Outcome::Invited(node))
    }

    /// May one more record be put, of which so many bytes are text?
    fn room_for(&self, known: bool, text: usize) -> Result<(), Refused> {
        let records = self.tenants.len() + self.tokens.len();
        let fits = text <= MAX_TEXT && (known || records < MAX_RECORDS);
        if fits { Ok(()) } else { Err(Refused::Full(records)) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const NOW: GroupTime = GroupTime(1000);

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
        assert_eq!(directory.apply(&create, NOW), Ok(Outcome::Done));
        directory
    }

    fn start(boot: u64) -> Change {
        Change::Start { node: NodeId(1), boot, addresses: Node::default() }
    }

    #[test]
    fn a_start_raises_the_incarnation_once_and_fences_the_earlier_one() {
        let mut directory = created();
        assert_eq!(directory.apply(&start(11), NOW), Ok(Outcome::Started(Incarnation(1))));
        assert_eq!(
            directory.apply(&start(11), NOW),
            Ok(Outcome::Started(Incarnation(1))),
            "repeated request"
        );
        assert!(!directory.fenced(NodeId(1), Incarnation(1)));
        assert_eq!(directory.apply(&start(12), NOW), Ok(Outcome::Started(Incarnation(2))));
        assert!(directory.fenced(NodeId(1), Incarnation(1)));
    }

    #[test]
    fn an_older_copy_of_a_data_folder_does_not_return() {
        let mut directory = created();
        let started = |incarnation| Ok(Outcome::Started(Incarnation(incarnation)));
        assert_eq!(directory.apply(&start(10), NOW), started(1), "no account is asked for");
        directory.roster.format = 3;
        let enter = |boot, before| Change::Return {
            node: NodeId(1),
            boot,
            before,
            store: 7,
            addresses: Node::default(),
        };
        assert_eq!(directory.apply(&enter(10, 0), NOW), started(1), "from now on it keeps one");
        assert_eq!(directory.apply(&enter(11, 10), NOW), started(2));
        assert_eq!(directory.apply(&enter(12, 11), NOW), started(3));
        assert_eq!(directory.apply(&enter(12, 11), NOW), started(3), "it did not hear of it");
        assert_eq!(directory.apply(&enter(13, 11), NOW), Err(Refused::OlderCopy(NodeId(1))), "as 11 left it");
        assert_eq!(directory.apply(&enter(14, 12), NOW), started(4));
        assert_eq!(directory.apply(&enter(12, 11), NOW), Err(Refused::OlderCopy(NodeId(1))), "two at once");
        assert_eq!(directory.apply(&enter(15, 0), NOW), Err(Refused::OlderCopy(NodeId(1))), "as before 11");
        assert_eq!(directory.apply(&enter(14, 0), NOW), started(4), "it has not written it down yet");
        assert_eq!(directory.apply(&start(16), NOW), Err(Refused::Behind), "as old as the older formats");
    }

    #[test]
    fn a_down_mark_fences_the_incarnation_it_names_and_no_later_one() {
        let mut directory = created();
        let first = Change::Down { node: NodeId(1), incarnation: Incarnation(1) };
        directory.apply(&start(11), NOW).unwrap();
        directory.apply(&first, NOW).unwrap();
        assert!(directory.fenced(NodeId(1), Incarnation(1)));
        assert_eq!(
            directory.apply(&start(11), NOW),
            Ok(Outcome::Started(Incarnation(2))),
            "same boot, marked down"
        );
        directory.apply(&first, NOW).unwrap();
        assert!(!directory.fenced(NodeId(1), Incarnation(2)), "a late mark touches nothing newer");
        assert!(!directory.fenced(NodeId(1), Incarnation(9)), "a lagging view fences nothing newer");
    }

    #[test]
    fn a_node_that_was_removed_is_fenced_and_one_not_heard_of_yet_is_not() {
        let mut directory = created();
        directory.roster.format = 2;
        let invite = |peer: &str| Change::Invite {
            peer: peer.to_owned(),
            token: KeyFingerprint([3; 32]),
            expires: GroupTime(2000),
            replaces: None,
        };
        let behind = directory.clone();
        assert_eq!(directory.apply(&invite("a"), NOW), Ok(Outcome::Invited(NodeId(2))));
        let session = (NodeId(2), Incarnation(1));
        assert!(!behind.fenced(session.0, session.1), "it may have joined since");
        assert!(!Directory::default().fenced(session.0, session.1), "nothing is known yet");
        directory.apply(&Change::Remove { node: NodeId(2), fewer: false }, NOW).unwrap();
        assert!(directory.fenced(session.0, session.1));
    }
}
