//! Who belongs to the cluster: each node's standing and data folder, how many replicas a group should have, and the
//! format version that all nodes share. Where replicas are is not here: see `placement`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Refused;
use crate::id::*;
use crate::time::GroupTime;

/// The highest format version that this build reads and writes. 1: the first. 2: nodes join and leave. 3: anchors notify.
pub const FORMAT: u32 = 3;
/// The format since which nodes have terminals' anchors notify.
pub const NOTIFY_ANCHORS: u32 = 3;
/// Replicas that a new cluster gives each group, at most; more cost writes and survive what hardly happens.
const MOST_AT_FIRST: usize = 5;
/// Replicas that may be asked for.
const MOST: u8 = 7;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roster {
    /// Format version of what is stored and sent; raised when every node can.
    pub format: u32,
    /// Replicas that each group should have, as far as there are nodes.
    pub replicas: u8,
    /// The highest id that was ever given to a node; none is given twice.
    pub last_node: NodeId,
    /// The nodes that belong, or are invited.
    pub records: BTreeMap<NodeId, Record>,
}

/// What the roster knows of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// How it belongs.
    pub standing: Standing,
    /// Random name of its data folder; zero until it has told. A node with another one has lost what it promised.
    pub store: u64,
}

/// How a node belongs to the cluster. Stored: append only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// Replicates and serves.
    #[default]
    Member,
    /// May join, with this token.
    Invited {
        /// SHA-256 of the token.
        token: KeyFingerprint,
        /// When the token ends.
        expires: GroupTime,
        /// The node that leaves as this one joins.
        replaces: Option<NodeId>,
    },
    /// Serves, but is to replicate nothing.
    Draining,
    /// As draining; when it replicates nothing, it belongs no more.
    Leaving,
}

impl Standing {
    /// It may join, and has not.
    pub fn is_invited(&self) -> bool {
        matches!(self, Standing::Invited { .. })
    }

    /// Its name in status and messages.
    pub fn name(&self) -> &'static str {
        match self {
            Standing::Member => "member",
            Standing::Invited { .. } => "invited",
            Standing::Draining => "draining",
            Standing::Leaving => "leaving",
        }
    }
}

impl Roster {
    /// The roster of a new cluster.
    pub fn founded(nodes: impl Iterator<Item = NodeId>) -> Roster {
        let records: BTreeMap<_, _> = nodes.map(|node| (node, Record::default())).collect();
        let last_node = records.keys().last().copied().unwrap_or_default();
        Roster { format: 1, replicas: records.len().min(MOST_AT_FIRST) as u8, last_node, records }
    }

    /// The nodes that replicate.
    pub fn replicating(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.records.iter().filter(|(_, record)| record.standing == Standing::Member).map(|(node, _)| *node)
    }

    /// A node that belongs to the cluster names its data folder.
    pub(super) fn enter(&mut self, node: NodeId, store: u64) -> Result<(), Refused> {
        let record = self.records.get_mut(&node).ok_or(Refused::UnknownNode(node))?;
        if record.standing.is_invited() {
            return Err(Refused::NotJoined(node));
        }
        if record.store != 0 && record.store != store {
            return Err(Refused::OtherStore(node));
        }
        record.store = store;
        Ok(())
    }

    /// `same` has the address that the invited node shall have.
    pub(super) fn invite(
        &mut self,
        same: Option<NodeId>,
        token: KeyFingerprint,
        expires: GroupTime,
        replaces: Option<NodeId>,
    ) -> Result<NodeId, Refused> {
        if let Some(replaced) = replaces {
            let record = self.records.get(&replaced).ok_or(Refused::UnknownNode(replaced))?;
            if record.standing.is_invited() {
                return Err(Refused::NotJoined(replaced));
            }
        }
        let invited = |record: &Record| record.standing.is_invited();
        let node = match same {
            Some(same) if self.records.get(&same).is_some_and(invited) => same,
            Some(same) => return Err(Refused::AddressTaken(same)),
            None => NodeId(self.last_node.0 + 1),
        };
        self.last_node = self.last_node.max(node);
        let standing = Standing::Invited { token, expires, replaces };
        self.records.insert(node, Record { standing, store: 0 });
        Ok(node)
    }

    pub(super) fn join(
        &mut self,
        node: NodeId,
        token: KeyFingerprint,
        store: u64,
        now: GroupTime,
    ) -> Result<(), Refused> {
        let record = self.records.get_mut(&node).ok_or(Refused::UnknownNode(node))?;
        let replaces = match &record.standing {
            Standing::Invited { token: known, expires, replaces } if *known == token && now <= *expires => {
                *replaces
            }
            Standing::Invited { .. } => return Err(Refused::Token(node)),
            // It had joined, and did not hear of it.
            _ if record.store == store => return Ok(()),
            _ => return Err(Refused::OtherStore(node)),
        };
        *record = Record { standing: Standing::Member, store };
        if let Some(replaced) = replaces.and_then(|replaced| self.records.get_mut(&replaced)) {
            replaced.standing = Standing::Leaving;
        }
        Ok(())
    }

    /// A node goes, by way of `standing`.
    pub(super) fn leave(&mut self, node: NodeId, standing: Standing, fewer: bool) -> Result<(), Refused> {
        let record = self.records.get(&node).ok_or(Refused::UnknownNode(node))?;
        match (&record.standing, &standing) {
            (Standing::Invited { .. }, Standing::Leaving) => {
                self.records.remove(&node);
                return Ok(());
            }
            (Standing::Invited { .. }, _) => return Err(Refused::NotJoined(node)),
            // What is on its way out goes on its way out.
            (Standing::Leaving, _) => return Ok(()),
            _ => {}
        }
        let left = self.replicating().filter(|other| *other != node).count() as u8;
        let replicates = record.standing == Standing::Member;
        if replicates && (left == 0 || (left < self.replicas && !fewer)) {
            return Err(Refused::TooFew { left, replicas: self.replicas });
        }
        self.records.insert(node, Record { standing, store: record.store });
        Ok(())
    }

    pub(super) fn resume(&mut self, node: NodeId) -> Result<(), Refused> {
        let record = self.records.get_mut(&node).ok_or(Refused::UnknownNode(node))?;
        if record.standing.is_invited() {
            return Err(Refused::NotJoined(node));
        }
        record.standing = Standing::Member;
        Ok(())
    }

    pub(super) fn removed(&mut self, node: NodeId) -> Result<(), Refused> {
        match self.records.get(&node) {
            Some(record) if record.standing == Standing::Leaving => {
                self.records.remove(&node);
                Ok(())
            }
            Some(_) => Err(Refused::NotLeaving(node)),
            None => Ok(()),
        }
    }

    pub(super) fn set_replicas(&mut self, replicas: u8) -> Result<(), Refused> {
        let possible =
            replicas % 2 == 1 && replicas <= MOST && usize::from(replicas) <= self.replicating().count();
        if !possible {
            return Err(Refused::Replicas(replicas));
        }
        self.replicas = replicas;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TOKEN: KeyFingerprint = KeyFingerprint([7; 32]);
    const NOW: GroupTime = GroupTime(1000);
    const LATER: GroupTime = GroupTime(2000);

    fn three() -> Roster {
        Roster { format: 2, ..Roster::founded((1..=3).map(NodeId)) }
    }

    fn invite(
        roster: &mut Roster,
        same: Option<NodeId>,
        replaces: Option<NodeId>,
    ) -> Result<NodeId, Refused> {
        roster.invite(same, TOKEN, LATER, replaces)
    }

    #[test]
    fn a_token_admits_one_folder_once_and_in_its_time() {
        let mut roster = three();
        let node = invite(&mut roster, None, None).unwrap();
        assert_eq!(node, NodeId(4));
        assert_eq!(roster.enter(node, 9), Err(Refused::NotJoined(node)));
        assert_eq!(roster.join(node, KeyFingerprint([8; 32]), 9, NOW), Err(Refused::Token(node)));
        assert_eq!(roster.join(node, TOKEN, 9, GroupTime(2001)), Err(Refused::Token(node)), "ended");
        assert_eq!(roster.join(node, TOKEN, 9, LATER), Ok(()));
        assert_eq!(roster.join(node, TOKEN, 9, GroupTime(9000)), Ok(()), "it did not hear of it");
        assert_eq!(roster.join(node, TOKEN, 10, NOW), Err(Refused::OtherStore(node)), "used");
        assert_eq!(roster.enter(node, 9), Ok(()));
        assert_eq!(roster.enter(node, 10), Err(Refused::OtherStore(node)));
        assert_eq!(roster.replicating().count(), 4);
    }

    #[test]
    fn an_id_is_given_once_whatever_becomes_of_its_node() {
        let mut roster = three();
        assert_eq!(invite(&mut roster, None, None), Ok(NodeId(4)));
        assert_eq!(
            invite(&mut roster, Some(NodeId(4)), None),
            Ok(NodeId(4)),
            "the same address, still invited"
        );
        assert_eq!(invite(&mut roster, Some(NodeId(2)), None), Err(Refused::AddressTaken(NodeId(2))));
        assert_eq!(
            roster.leave(NodeId(4), Standing::Leaving, false),
            Ok(()),
            "an invitation is just taken back"
        );
        assert!(!roster.records.contains_key(&NodeId(4)));
        assert_eq!(invite(&mut roster, None, None), Ok(NodeId(5)));
    }

    #[test]
    fn who_goes_must_leave_enough() {
        let mut roster = three();
        let few = Refused::TooFew { left: 2, replicas: 3 };
        assert_eq!(roster.leave(NodeId(3), Standing::Leaving, false), Err(few));
        assert_eq!(roster.leave(NodeId(3), Standing::Draining, true), Ok(()));
        assert_eq!(
            roster.leave(NodeId(3), Standing::Leaving, false),
            Ok(()),
            "it replicates nothing any more"
        );
        assert_eq!(roster.leave(NodeId(3), Standing::Draining, false), Ok(()), "stays on its way out");
        assert_eq!(roster.records[&NodeId(3)].standing, Standing::Leaving);
        assert_eq!(roster.removed(NodeId(2)), Err(Refused::NotLeaving(NodeId(2))));
        assert_eq!(roster.resume(NodeId(3)), Ok(()));
        assert_eq!(roster.removed(NodeId(3)), Err(Refused::NotLeaving(NodeId(3))), "taken back in time");
        roster.leave(NodeId(3), Standing::Leaving, true).unwrap();
        roster.leave(NodeId(2), Standing::Leaving, true).unwrap();
        let last = Refused::TooFew { left: 0, replicas: 3 };
        assert_eq!(roster.leave(NodeId(1), Standing::Leaving, true), Err(last), "the last one stays");
        assert_eq!(roster.removed(NodeId(3)), Ok(()));
        assert_eq!(roster.removed(NodeId(3)), Ok(()), "repeated");
    }

    #[test]
    fn a_replacement_takes_the_place_of_the_other_when_it_joins() {
        let mut roster = three();
        assert_eq!(invite(&mut roster, None, Some(NodeId(2))), Ok(NodeId(4)));
        assert_eq!(roster.records[&NodeId(2)].standing, Standing::Member, "not yet");
        roster.join(NodeId(4), TOKEN, 9, NOW).unwrap();
        assert_eq!(roster.replicating().collect::<Vec<_>>(), [NodeId(1), NodeId(3), NodeId(4)]);
        assert_eq!(roster.records[&NodeId(2)].standing, Standing::Leaving);
        assert_eq!(invite(&mut roster, None, Some(NodeId(9))), Err(Refused::UnknownNode(NodeId(9))));
    }

    #[test]
    fn replicas_are_odd_and_there_are_nodes_for_them() {
        let mut roster = three();
        for wrong in [0, 2, 5, 9] {
            assert_eq!(roster.set_replicas(wrong), Err(Refused::Replicas(wrong)));
        }
        assert_eq!(roster.set_replicas(1), Ok(()));
    }
}
