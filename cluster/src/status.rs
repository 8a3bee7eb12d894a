//! How a node's groups stand: for operators and their tools. Reads only.

use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::errors::Fatal;
use openraft::type_config::TypeConfigExt;
use reveille_protocol::id::*;
use serde::{Deserialize, Serialize};

use crate::env::Env;
use crate::member::{Group, Member};

/// A group that does not answer within this is busy, not dead.
const ALIVE: Duration = Duration::from_secs(1);

/// A node's view of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// This node.
    pub node: NodeId,
    /// The cluster.
    pub cluster: String,
    /// Its incarnation; zero while it has none.
    pub incarnation: Incarnation,
    /// Its groups, meta first.
    pub groups: Vec<GroupStatus>,
    /// The nodes of the cluster.
    pub nodes: Vec<NodeStatus>,
}

/// One group on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// Which.
    pub group: GroupId,
    /// Who leads it, as far as this node knows.
    pub leader: Option<NodeId>,
    /// Raft's term.
    pub term: u64,
    /// Last log entry here.
    pub last_log: Option<u64>,
    /// Last entry applied here.
    pub applied: Option<u64>,
    /// Entry up to which the log may be cut.
    pub snapshot: Option<u64>,
    /// Last entry that the log here holds no more.
    pub purged: Option<u64>,
    /// At its leader: terminals that something waits for.
    pub waiting: usize,
    /// At its leader: those of them that no notification reaches.
    pub unreachable: usize,
}

/// A node as the directory knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Which.
    pub node: NodeId,
    /// Where terminals reach it.
    pub session: String,
    /// Where publishers reach it.
    pub http: String,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Marked down.
    pub down: bool,
}

impl<E: Env> Member<E> {
    /// How this node's groups stand.
    pub fn status(&self) -> Status {
        let groups = self.groups.iter().map(|(group, Group { raft, shard, .. })| {
            let metrics = raft.metrics().borrow_watched().clone();
            let (waiting, unreachable) = shard.waiting();
            GroupStatus {
                group: *group,
                // One that no majority hears is none.
                leader: metrics
                    .current_leader
                    .map(NodeId)
                    .filter(|leader| *leader != self.config.node || self.quorum_acked(*group) != Some(false)),
                term: metrics.current_term,
                last_log: metrics.last_log_index,
                applied: metrics.last_applied.map(|id| id.index),
                snapshot: metrics.snapshot.map(|id| id.index),
                purged: metrics.purged.map(|id| id.index),
                waiting,
                unreachable,
            }
        });
        let directory = self.directory();
        let nodes = directory.nodes.iter().map(|(node, known)| NodeStatus {
            node: *node,
            session: known.session.clone(),
            http: known.http.clone(),
            incarnation: known.incarnation,
            down: known.is_down(),
        });
        Status {
            node: self.config.node,
            cluster: format!("{:016x}", self.config.cluster),
            incarnation: self.incarnation(),
            groups: groups.collect(),
            nodes: nodes.collect(),
        }
    }

    /// Why this node must stop, if it must: a group that stopped, tables that cannot be read.
    pub(crate) fn stopped(&self) -> Option<String> {
        self.groups.iter().find_map(|(group, Group { raft, shard, .. })| {
            let running = raft.metrics().borrow_watched().running_state.clone();
            let stopped = running.err().filter(|fatal| !matches!(fatal, Fatal::Stopped));
            let stopped = stopped.map(|fatal| fatal.to_string());
            let broken = shard.broken().map(|error| error.to_string());
            broken.or(stopped).map(|why| format!("group {group} stopped: {why}"))
        })
    }

    /// Why a group has died without a word, if one has: of one that panicked nobody is told, so each is asked.
    pub(crate) async fn dead(&self) -> Option<String> {
        for (group, Group { raft, .. }) in &self.groups {
            let asked = E::Cfg::timeout(ALIVE, raft.with_raft_state(|_| ())).await;
            if let Ok(Err(fatal @ Fatal::Panicked)) = asked {
                return Some(format!("group {group} died: {fatal}; what it said last is in this log"));
            }
        }
        None
    }
}
