//! Which nodes should replicate a group: the highest scores of a hash over group and node (rendezvous hashing, Thaler
//! and Ravishankar 1998). So a node that comes takes over its share and nothing else moves, a node that goes gives its
//! share to the others, and everyone who knows the roster knows the answer.

use super::Directory;
use crate::hash::sha256;
use crate::id::*;

impl Directory {
    /// The nodes that should replicate a group, in the order of their ids. None before the cluster is created.
    pub fn replicas_of(&self, group: GroupId) -> Vec<NodeId> {
        let mut scored: Vec<_> =
            self.roster.replicating().map(|node| (score(self.cluster, group, node), node)).collect();
        scored.sort_unstable_by(|one, other| other.cmp(one));
        let mut nodes: Vec<_> =
            scored.into_iter().take(usize::from(self.roster.replicas)).map(|(_, node)| node).collect();
        nodes.sort_unstable();
        nodes
    }
}

fn score(cluster: u64, group: GroupId, node: NodeId) -> [u8; 32] {
    let mut bytes = [0; 18];
    bytes[..8].copy_from_slice(&cluster.to_be_bytes());
    bytes[8..10].copy_from_slice(&group.0.to_be_bytes());
    bytes[10..].copy_from_slice(&node.0.to_be_bytes());
    sha256(&bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::directory::{Record, Roster, Standing};

    const GROUPS: u16 = 64;

    fn directory(nodes: u64, replicas: u8) -> Directory {
        let roster = Roster { replicas, ..Roster::founded((1..=nodes).map(NodeId)) };
        Directory { cluster: 7, groups: GROUPS, roster, ..Directory::default() }
    }

    #[test]
    fn each_group_has_its_replicas_on_different_nodes_and_each_node_its_share() {
        assert_eq!(Directory::default().replicas_of(GroupId(1)), []);
        assert_eq!(
            directory(2, 3).replicas_of(GroupId(1)),
            [NodeId(1), NodeId(2)],
            "as far as there are nodes"
        );
        let directory = directory(6, 3);
        let mut shares: BTreeMap<NodeId, u32> = BTreeMap::new();
        for group in 0..=GROUPS {
            let nodes = directory.replicas_of(GroupId(group));
            assert!(nodes.len() == 3 && nodes.is_sorted(), "{nodes:?}");
            nodes.iter().for_each(|node| *shares.entry(*node).or_default() += 1);
        }
        assert!(shares.values().all(|share| (20..=45).contains(share)), "{shares:?}");
        assert_eq!(
            directory.replicas_of(GroupId(5)),
            [NodeId(4), NodeId(5), NodeId(6)],
            "pinned: nodes must agree"
        );
    }

    #[test]
    fn a_node_that_comes_or_goes_moves_its_own_share_only() {
        let (five, six) = (directory(5, 3), directory(6, 3));
        let mut without = six.clone();
        without.roster.records.insert(NodeId(2), Record { standing: Standing::Leaving, store: 0 });
        for group in (0..=GROUPS).map(GroupId) {
            let (before, after) = (five.replicas_of(group), six.replicas_of(group));
            let stay = before.iter().filter(|node| after.contains(node)).count();
            assert_eq!(stay, if after.contains(&NodeId(6)) { 2 } else { 3 });
            let left = without.replicas_of(group);
            assert!(
                !left.contains(&NodeId(2))
                    && after.iter().all(|node| *node == NodeId(2) || left.contains(node))
            );
        }
    }
}
