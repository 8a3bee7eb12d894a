//! Who the other nodes are: those of the configuration until the directory is here, those of the directory ever after.
//! Keeps links and clocks in step with it, and notices that this node belongs no more.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use reveille_protocol::directory::{Directory, FORMAT};
use reveille_protocol::id::*;

use super::{Group, Member};
use crate::env::{Env, Transport};

const META: GroupId = GroupId::META;

/// What a node has to say that the cluster removed.
pub(crate) fn was_removed(node: NodeId) -> String {
    format!(
        "node {node} is not a member of this cluster: it was removed, or replaced. Its data folder is of no more use, and \
         its id is never given again. To bring the machine back: reveille cluster add"
    )
}

impl<E: Env> Member<E> {
    /// The other nodes, and where they are.
    pub(super) fn others(&self) -> BTreeMap<NodeId, String> {
        let directory = self.directory();
        let mut configured = self.config.nodes.clone();
        let mut nodes = BTreeMap::new();
        if directory.cluster != 0 {
            nodes = self.known_to(&directory);
            // An old directory does not know who came later, but it does know who has gone.
            configured.retain(|node, _| {
                *node > directory.roster.last_node || directory.roster.records.contains_key(node)
            });
        }
        // An operator who writes an address down means it.
        nodes.extend(configured);
        nodes.remove(&self.config.node);
        nodes
    }

    fn known_to(&self, directory: &Directory) -> BTreeMap<NodeId, String> {
        // Who is on its way out hears of it over its links.
        let leaving = self.groups.get(&META).map(|meta| {
            let membership = meta.raft.server_metrics().borrow_watched().membership_config.clone();
            let nodes = membership.nodes().map(|(node, at)| (NodeId(*node), at.addr.clone()));
            nodes.collect::<Vec<_>>()
        });
        let mut nodes: BTreeMap<NodeId, String> = leaving.into_iter().flatten().collect();
        for (node, known) in &directory.nodes {
            if !known.peer.is_empty() {
                nodes.insert(*node, known.peer.clone());
            }
        }
        nodes
    }

    /// Brings links, clocks and routes up to what is known now.
    pub(super) fn mind_nodes(&self) {
        let others = self.others();
        let transport = self.shared.calls.transport();
        let directory = self.directory();
        // Whose clocks count: not of nodes that were only invited, or are going.
        let counted = match directory.cluster {
            0 => self.config.nodes.len(),
            _ => directory.roster.replicating().count(),
        };
        self.shared.peers.store(counted.saturating_sub(1), Ordering::Relaxed);
        let known = others.keys().copied().max().unwrap_or_default();
        transport.set_peers(others, known.max(self.config.node).max(directory.roster.last_node));
        if directory.cluster == 0 {
            return;
        }
        transport.set_format(directory.roster.format);
        transport.set_members(directory.roster.records.keys().copied().collect(), directory.roster.last_node);
        let groups = self.groups.keys().map(|group| (*group, directory.replicas_of(*group)));
        *self.placed.write().unwrap_or_else(PoisonError::into_inner) = groups.collect();
        let me = self.config.node;
        if me <= directory.roster.last_node && !directory.roster.records.contains_key(&me) {
            self.shared.host.dismissed(was_removed(me));
        }
    }

    /// A leader that its group left behind before it heard of the next one takes itself for the leader for ever: nobody
    /// talks to it any more. Its decisions would be about the past. One that its group only did not reach for a while
    /// leads on, and raft does not tell of that: nothing changed there.
    pub(super) fn retire_left_behind(&self) {
        for (group, Group { raft, shard, .. }) in &self.groups {
            if self.replicates(*group) {
                continue;
            }
            let metrics = raft.server_metrics().borrow_watched().clone();
            if metrics.state == ServerState::Leader {
                match self.quorum_acked(*group) {
                    Some(true) => shard.leadership(Some(metrics.vote.leader_id.term)),
                    Some(false) => shard.leadership(None),
                    None => {}
                }
            }
        }
    }

    /// The nodes that should replicate a group; none before that is known.
    pub(super) fn replicas_of(&self, group: GroupId) -> Vec<NodeId> {
        let placed = self.placed.read().unwrap_or_else(PoisonError::into_inner);
        placed.get(&group).cloned().unwrap_or_default()
    }

    /// Should this node replicate the group?
    pub(super) fn replicates(&self, group: GroupId) -> bool {
        let placed = self.placed.read().unwrap_or_else(PoisonError::into_inner);
        placed.get(&group).is_none_or(|nodes| nodes.contains(&self.config.node))
    }

    /// The lowest format that this node has in common with all others; `None` while one of them is not linked, unless that
    /// is the one that is given up.
    pub(super) fn common_format(&self, given_up: Option<NodeId>) -> Option<u32> {
        let transport = self.shared.calls.transport();
        let directory = self.directory();
        let invited = |node: &NodeId| {
            directory.roster.records.get(node).is_some_and(|record| record.standing.is_invited())
        };
        let others = self.others().into_keys().filter(|node| !invited(node));
        let known = others.map(|node| (node, transport.format(node)));
        let formats = known.filter(|(node, format)| format.is_some() || given_up != Some(*node));
        let formats = formats.map(|(_, format)| format);
        formats.chain([Some(FORMAT)]).min().flatten()
    }
}
