//! How the whole cluster stands: who belongs to it, where each group's replicas are and should be, and what is on its way.
//! Asked of every group's leader; for operators and their tools.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use reveille_protocol::directory::{Directory, FORMAT, Node, Record, Standing};
use reveille_protocol::id::*;
use serde::{Deserialize, Serialize};

use crate::env::{Env, Transport};
use crate::member::Member;
use crate::shape::Shape;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overview {
    /// The cluster's id.
    pub cluster: String,
    /// Format version of what is stored and sent.
    pub format: u32,
    /// Shard groups, beside meta.
    pub shards: u16,
    /// Replicas that each group should have.
    pub replicas: u8,
    /// The nodes that belong, or are invited.
    pub nodes: Vec<NodeOverview>,
    /// The groups, meta first.
    pub groups: Vec<GroupOverview>,
    /// Pairs of nodes that have not heard each other for some time, though others hear both. A node of an earlier version says
    /// nothing of them.
    #[serde(default)]
    pub torn: BTreeSet<(NodeId, NodeId)>,
    /// Every node is up, every group has a leader and as many replicas as wanted where they should be, all of them heard
    /// of and hearing each other, nobody is coming or going, no restore is open, and the cluster has the latest format that this node knows.
    pub settled: bool,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeOverview {
    /// Its id.
    pub node: NodeId,
    /// `member`, `invited`, `draining` or `leaving`.
    pub standing: String,
    /// Running, as far as the cluster has noticed, and heard of by the node that is asked.
    pub up: bool,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Where its peers reach it.
    pub peer: String,
    /// Where terminals reach it.
    pub session: String,
    /// Where publishers reach it.
    pub http: String,
    /// Groups that it leads.
    pub leads: usize,
    /// Groups that it has a vote in.
    pub votes: usize,
    /// The node that it replaces when it joins.
    pub replaces: Option<NodeId>,
}

/// One group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupOverview {
    /// Which.
    pub group: GroupId,
    /// Who leads it; none while nobody answers for it.
    pub leader: Option<NodeId>,
    /// Who votes.
    pub voters: BTreeSet<NodeId>,
    /// Who has a copy and no vote.
    pub learners: BTreeSet<NodeId>,
    /// Who should vote.
    pub wanted: BTreeSet<NodeId>,
    /// Members that are not heard of.
    pub silent: BTreeSet<NodeId>,
    /// Log entries that the member furthest behind of those that are there has yet to get.
    pub behind: u64,
    /// The name of a restore that is not finished: the group serves nobody. A node of an earlier version says nothing of it.
    #[serde(default)]
    pub restoring: Option<String>,
}

impl<E: Env> Member<E> {
    /// How the whole cluster stands.
    pub async fn overview(self: &Arc<Self>) -> Overview {
        let (shapes, restores) = futures::join!(self.shapes(), self.open_restores());
        // What was asked for a moment ago is in the directory before it is told how all stands.
        if let Some((_, Some(meta))) = shapes.first() {
            self.hear_of_meta(meta.last).await;
        }
        let directory = self.directory();
        // A process that ends breaks its links at once; that it is silent shows only in time.
        let linked = |node: NodeId| self.shared.calls.transport().format(node).is_some();
        let heard = |node: NodeId| node == self.config.node || (linked(node) && self.heard_lately(node));
        let groups: Vec<GroupOverview> = shapes
            .into_iter()
            .map(|(group, shape)| of_group(&directory, group, shape, &restores, heard))
            .collect();
        let nodes: Vec<NodeOverview> = directory
            .roster
            .records
            .iter()
            .map(|(node, record)| of_node(*node, record, directory.nodes.get(node), &groups, heard(*node)))
            .collect();
        let replicas = usize::from(directory.roster.replicas);
        let placed = groups.iter().all(|group| {
            let whole = group.voters == group.wanted && group.wanted.len() == replicas;
            group.leader.is_some() && whole && group.silent.is_empty()
        });
        let torn = self.torn();
        let staying = |record: &Record| matches!(record.standing, Standing::Member | Standing::Draining);
        Overview {
            cluster: format!("{:016x}", self.config.cluster),
            format: directory.roster.format,
            shards: self.config.groups,
            replicas: directory.roster.replicas,
            settled: placed
                && torn.is_empty()
                && groups.iter().all(|group| group.restoring.is_none())
                && nodes.iter().all(|node| node.up)
                && directory.roster.format >= FORMAT
                && directory.roster.records.values().all(staying),
            nodes,
            groups,
            torn,
        }
    }
}

fn of_group(
    directory: &Directory,
    group: GroupId,
    shape: Option<Shape>,
    restores: &BTreeMap<GroupId, RestoreId>,
    heard: impl Fn(NodeId) -> bool,
) -> GroupOverview {
    let wanted: BTreeSet<NodeId> = directory.replicas_of(group).into_iter().collect();
    // Nobody answers for it: who is missing is what this node itself does not hear of.
    let silent = || wanted.iter().copied().filter(|node| !heard(*node)).collect();
    let shape = shape.unwrap_or_else(|| Shape { silent: silent(), ..Shape::default() });
    let there = shape.matched.iter().filter(|(node, _)| !shape.silent.contains(node));
    GroupOverview {
        group,
        leader: Some(shape.leader).filter(|leader| *leader != NodeId(0)),
        voters: shape.all_voters(),
        behind: there.map(|(_, matched)| shape.last.saturating_sub(*matched)).max().unwrap_or(0),
        learners: shape.learners,
        silent: shape.silent,
        wanted,
        restoring: restores.get(&group).map(ToString::to_string),
    }
}

fn of_node(
    node: NodeId,
    record: &Record,
    known: Option<&Node>,
    groups: &[GroupOverview],
    heard: bool,
) -> NodeOverview {
    let nobody = Node::default();
    let known = known.unwrap_or(&nobody);
    let replaces = match record.standing {
        Standing::Invited { replaces, .. } => replaces,
        _ => None,
    };
    NodeOverview {
        node,
        standing: record.standing.name().to_owned(),
        up: heard && !known.is_down(),
        incarnation: known.incarnation,
        peer: known.peer.clone(),
        session: known.session.clone(),
        http: known.http.clone(),
        leads: groups.iter().filter(|group| group.leader == Some(node)).count(),
        votes: groups.iter().filter(|group| group.voters.contains(&node)).count(),
        replaces,
    }
}
