//! One node as a member of the cluster: its groups, the frames that come in, and the ways out. Assembly; each
//! part's rules are in its own module.

mod elsewhere;
mod fence;
mod inbound;
mod incarnation;
mod limits;
mod nodes;
mod route;
mod steward;
mod tears;
mod tether;
mod upkeep;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver;
use openraft::impls::BasicNode;
use openraft::type_config::TypeConfigExt;
use openraft::{Config, Raft, ServerState, SnapshotPolicy};
use reveille_protocol::canary::{Canary, canary};
use reveille_protocol::directory::{Directory, Node, Roster};
use reveille_protocol::fail_point::Point;
use reveille_protocol::id::*;
use reveille_protocol::service_list::row::Reachability;
use reveille_protocol::wire::peer::{Notified, NotifyOrder, Report, Reported};
use tokio::sync::mpsc;

use crate::clock::{Clocks, WallClock};
use crate::env::Env;
use crate::host::Host;
use crate::propose::{GroupRaft, Proposer};
use crate::pull::Views;
use crate::raft::log::GroupLog;
use crate::raft::machine::Machine;
use crate::raft::network::{AppendStreams, Appended, Network};
use crate::rpc::Calls;
use crate::shard::{Shard, Shared};
use crate::{fail, guard};

pub use self::incarnation::JoinError;
pub use self::limits::FIRST;
pub(crate) use self::nodes::was_removed;
pub use self::route::Unavailable;

/// How the cluster begins; used once, by the node that creates the meta group.
#[derive(Debug, Clone)]
pub struct Beginning {
    /// The first nodes and where they are.
    pub nodes: BTreeMap<NodeId, Node>,
    /// The first tenants.
    pub tenants: BTreeMap<TenantId, reveille_protocol::directory::Tenant>,
    /// The first tokens, by the SHA-256 of their text.
    pub tokens: BTreeMap<KeyFingerprint, reveille_protocol::directory::Token>,
    /// The first secret, random.
    pub secret: [u8; 32],
}

/// One start of a node, as its data folder knows it.
#[derive(Clone)]
pub struct Start {
    /// The number by which the directory knows it.
    pub number: u64,
    /// That of the last start on this folder; 0 if it is new, or not known.
    pub before: u64,
    /// Writes down, durably, that the cluster knows of this start and will hold the next one against that.
    pub keep: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
}

impl Start {
    /// One that no folder keeps an account of, or not yet.
    pub fn unaccounted(number: u64) -> Start {
        Start { number, before: 0, keep: Arc::new(|| Ok(())) }
    }
}

/// What a member must know of itself.
#[derive(Clone)]
pub struct MemberConfig {
    /// Its id.
    pub node: NodeId,
    /// The cluster's random name.
    pub cluster: u64,
    /// Shard groups, beside meta.
    pub groups: u16,
    /// The nodes to begin with, and where their peers reach them: all of a new cluster, or some of one that this node
    /// joins. The directory knows better once it is here, except for addresses that are written down here.
    pub nodes: BTreeMap<NodeId, String>,
    /// Where this node is reached.
    pub addresses: Node,
    /// A random number for this process: what it asks is numbered from there.
    pub boot: u64,
    /// How the directory knows this start.
    pub start: Start,
    /// Random name of the node's data folder, made with it.
    pub store: u64,
    /// How to begin, on the first start of the first nodes. A node that joined begins nothing.
    pub beginning: Option<Beginning>,
    /// This node's wall clock.
    pub wall: WallClock,
}

/// What one group stands on.
pub struct GroupStorage<E: Env> {
    /// Its log.
    pub log: E::Log,
    /// Its tables.
    pub tables: E::Tables,
}

pub(crate) struct Group<E: Env> {
    pub(crate) raft: GroupRaft<E>,
    pub(crate) shard: Arc<Shard<E>>,
    pub(crate) proposer: Proposer,
    pub(crate) log: E::Log,
}

/// A running member.
pub struct Member<E: Env> {
    pub(crate) config: MemberConfig,
    pub(crate) shared: Arc<Shared<E>>,
    pub(crate) groups: BTreeMap<GroupId, Group<E>>,
    streams: Arc<Streams>,
    inbound: Mutex<inbound::Streams<E>>,
    incarnation: AtomicU64,
    /// The groups have stopped, or are about to.
    stopping: AtomicBool,
    heard: Mutex<BTreeMap<NodeId, reveille_protocol::time::Instant>>,
    tears: tears::Tears,
    /// Where the replicas of each group should be.
    placed: RwLock<BTreeMap<GroupId, Vec<NodeId>>>,
    /// Leaders of groups that are not on this node, as others named them.
    found: Mutex<BTreeMap<GroupId, NodeId>>,
    pub(crate) views: Views<E>,
}

/// Answers of append streams, by peer and stream.
#[derive(Default)]
struct Streams(Mutex<BTreeMap<(NodeId, u64), Appended>>);

impl AppendStreams for Streams {
    fn open(&self, to: NodeId, stream: u64, answers: Appended) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert((to, stream), answers);
    }

    fn close(&self, to: NodeId, stream: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&(to, stream));
    }
}

impl Streams {
    fn answered(&self, from: NodeId, stream: u64, body: Bytes) {
        let streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answers) = streams.get(&(from, stream)) {
            // The stream is being dropped: its answers have no reader any more.
            let _ = answers.unbounded_send(body);
        }
    }

    fn broken(&self, peer: NodeId) {
        let mut streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        streams.retain(|(to, _), _| *to != peer);
    }
}

/// openraft's settings. A heartbeat each 40 ms; a leader's lease and the wait for an election make 340 to 440 ms of
/// silence before a follower asks for votes, so that a stall of a few heartbeats costs no election. Breaks of links move
/// leadership before (`tether`).
fn raft_config(group: GroupId) -> io::Result<Arc<Config>> {
    let slow = if canary(Canary::SlowElection) { 100 } else { 1 };
    let config = Config {
        cluster_name: format!("group-{group}"),
        heartbeat_interval: 40,
        heartbeat_min_interval: Some(30),
        election_timeout_min: 120 * slow,
        election_timeout_max: 220 * slow,
        enable_pre_vote: Some(true),
        backoff: "20ms".to_owned(),
        // A leader sends entries before its own disk has them. One that came back as the leader of its old term could give
        // their places to others, which the followers would take for the same.
        enable_leader_restore: Some(false),
        // An older copy of a node's folder is refused when it asks for its incarnation. Until then it takes part, and what it
        // lacks must be sent again, not be the end of those who have it.
        allow_log_reversion: Some(true),
        snapshot_policy: SnapshotPolicy::Never,
        install_snapshot_timeout: 30_000,
        max_payload_entries: 512,
        replication_lag_threshold: 200_000,
        max_in_snapshot_log_to_keep: upkeep::KEEP_ENTRIES,
        api_channel_size: Some(8192),
        ..Config::default()
    };
    config.validate().map(Arc::new).map_err(|error| io::Error::other(format!("raft settings: {error}")))
}

impl<E: Env> Member<E> {
    /// Starts every group on its storage, over `transport`; the caller hands what arrives to
    /// [`Member::received`] and tells of broken links.
    pub async fn start(
        config: MemberConfig,
        storage: BTreeMap<GroupId, GroupStorage<E>>,
        transport: E::Transport,
        host: Arc<dyn Host>,
    ) -> io::Result<Arc<Member<E>>> {
        let calls = Arc::new(Calls::new(transport, config.boot));
        Self::start_over(config, storage, calls, host).await
    }

    /// The same, for a node that has asked its peers before.
    pub(crate) async fn start_over(
        config: MemberConfig,
        mut storage: BTreeMap<GroupId, GroupStorage<E>>,
        calls: Arc<Calls<E>>,
        host: Arc<dyn Host>,
    ) -> io::Result<Arc<Member<E>>> {
        let (changed, directory_changes) = mpsc::channel(1);
        let (missed, misses) = mpsc::channel(MISSES);
        let shared = Arc::new(Shared {
            me: config.node,
            calls: calls.clone(),
            clocks: Arc::new(Clocks::new(config.wall.clone())),
            host,
            directory: RwLock::new(Arc::new(Directory::default())),
            torn_off: RwLock::default(),
            peers: AtomicUsize::new(config.nodes.len().saturating_sub(1)),
            led: AtomicUsize::new(0),
            changed,
            missed,
        });
        let streams = Arc::new(Streams::default());
        let mut groups = BTreeMap::new();
        for group in (0..=config.groups).map(GroupId) {
            let storage = storage
                .remove(&group)
                .ok_or_else(|| io::Error::other(format!("no storage was given for group {group}")))?;
            let (calls, streams, host) = (calls.clone(), streams.clone(), shared.host.clone());
            let network = Network { group, calls, streams, host };
            groups.insert(group, start_group(group, &config, &shared, storage, network).await?);
            fail::try_at::<E::Cfg>(Point::BeginGroup).await?;
        }
        let member = Arc::new(Member {
            config,
            shared,
            groups,
            streams,
            inbound: Mutex::default(),
            incarnation: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            heard: Mutex::default(),
            tears: tears::Tears::default(),
            placed: RwLock::default(),
            found: Mutex::default(),
            views: Views::default(),
        });
        if let Some(meta) = member.groups.get(&GroupId::META) {
            meta.shard.publish_directory();
        }
        member.mind_nodes();
        let (host, weak) = (&member.shared.host, || Arc::downgrade(&member));
        guard::spawn::<E>(
            host.clone(),
            "what follows the directory",
            follow_directory(weak(), directory_changes),
        );
        guard::spawn::<E>(host.clone(), "what follows lost sessions", follow_misses(weak(), misses));
        guard::spawn::<E>(host.clone(), "the upkeep", upkeep::run(weak()));
        guard::spawn::<E>(host.clone(), "the steward", steward::run(weak()));
        guard::spawn::<E>(host.clone(), "what minds the quorum", tether::mind_quorum(weak()));
        guard::spawn::<E>(host.clone(), "what minds torn links", elsewhere::mind_leaders(weak()));
        Ok(member)
    }

    /// Makes the groups of a new cluster that this node is to initialise: the one who does becomes the first
    /// leader, so they are spread over the nodes. Does nothing to a group that has members, so it is called until it was
    /// through once: a start may end before. Not after: the list of nodes may have been edited, and a group that this node
    /// left, or never had, lives elsewhere.
    pub async fn initialise(&self) -> io::Result<()> {
        if self.config.beginning.is_none() {
            return Ok(());
        }
        let roster = Roster::founded(self.config.nodes.keys().copied());
        let founded = Directory { cluster: self.config.cluster, roster, ..Directory::default() };
        for (group, Group { raft, .. }) in &self.groups {
            let nodes = founded.replicas_of(*group);
            let address = |node: &NodeId| self.config.nodes.get(node).cloned().unwrap_or_default();
            let members: BTreeMap<u64, BasicNode> =
                nodes.iter().map(|node| (node.0, BasicNode::new(address(node)))).collect();
            let Some(first) = nodes.get(usize::from(group.0) % nodes.len().max(1)).copied() else { continue };
            let begun = raft.is_initialized().await.map_err(|error| io::Error::other(error.to_string()))?;
            if first == self.config.node && !begun {
                // Refused if a peer's first entries came in between: then the group has begun, which is the aim.
                if let Err(error) = raft.initialize(members).await {
                    tracing::info!(group = group.0, %error, "group was begun elsewhere");
                }
            }
        }
        Ok(())
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.config.node
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// This node's incarnation; zero until the meta group has granted one.
    pub fn incarnation(&self) -> Incarnation {
        Incarnation(self.incarnation.load(Ordering::Acquire))
    }

    /// The directory as this node last saw it.
    pub fn directory(&self) -> Arc<Directory> {
        self.shared.directory()
    }

    /// Who leads a group, as far as this node knows.
    pub fn leader(&self, group: GroupId) -> Option<NodeId> {
        let group = self.groups.get(&group)?;
        let metrics = group.raft.server_metrics().borrow_watched().clone();
        metrics.current_leader.map(NodeId)
    }

    /// Groups without a leader that this node knows and has heard of lately. One that lost its quorum still takes itself
    /// for a leader; it does not count.
    pub fn leaderless(&self) -> Vec<GroupId> {
        let alive = |group: &GroupId| match self.leader(*group) {
            // What this node's idle copy thinks of the leader does not matter.
            _ if !self.replicates(*group) => {
                self.replicas_of(*group).iter().any(|node| self.heard_lately(*node))
            }
            Some(leader) if leader == self.config.node => self.has_quorum(*group),
            Some(leader) => self.heard_lately(leader),
            None => false,
        };
        self.groups.keys().copied().filter(|group| !alive(group)).collect()
    }

    fn has_quorum(&self, group: GroupId) -> bool {
        self.quorum_acked(group) == Some(true)
    }

    /// At a group's leader: was it heard by a majority lately? `None`: it has only begun to lead.
    pub(crate) fn quorum_acked(&self, group: GroupId) -> Option<bool> {
        let metrics = self.groups.get(&group)?.raft.metrics().borrow_watched().clone();
        let voters = metrics.membership_config.voter_ids().count();
        if voters == 1 {
            return Some(true);
        }
        // Of a heartbeat openraft takes no answer that needs longer than until the next one: on links of that length nothing but
        // pushes would show that the others are there.
        let heard = metrics.membership_config.voter_ids().map(NodeId);
        let heard = heard.filter(|voter| *voter == self.config.node || self.heard_lately(*voter)).count();
        let acked = |at| E::Cfg::now() - at < incarnation::SILENT;
        metrics.last_quorum_acked.map(|at| acked(*at) || 2 * heard > voters)
    }

    /// Flushes every group's tables, and lets their logs be cut up to there.
    pub async fn snapshot(&self) -> Result<(), String> {
        upkeep::cut_all(self).await
    }

    /// A notification that this node sent is over: the leader that ordered it is told.
    pub fn notified(self: &Arc<Self>, order: &NotifyOrder, notified: Notified) {
        guard::within(&*self.shared.host, "the end of a notification", || {
            self.take_notified(order, notified)
        });
    }

    fn take_notified(self: &Arc<Self>, order: &NotifyOrder, notified: Notified) {
        // One that this node ordered itself and leads no more says nothing to the next leader, which begins anew.
        if self.leads(order.group) || matches!(order.reachability, Reachability::Pinned { .. }) {
            let NotifyOrder { group, terminal, epoch, .. } = *order;
            self.report(Report { group, terminal, epoch, what: Reported::Notified(notified) });
        }
    }

    /// Stops every group. What was acknowledged is on disk already.
    pub async fn shutdown(&self) {
        // All first: each group's own end takes a moment, in which nothing more is begun in any.
        self.groups.values().for_each(|group| group.proposer.stop());
        self.stopping.store(true, Ordering::Release);
        self.end_appends().await;
        for (group, Group { raft, .. }) in &self.groups {
            if let Err(error) = raft.shutdown().await {
                tracing::warn!(group = group.0, %error, "group did not stop cleanly");
            }
        }
    }
}

async fn start_group<E: Env>(
    group: GroupId,
    config: &MemberConfig,
    shared: &Arc<Shared<E>>,
    storage: GroupStorage<E>,
    network: Network<E>,
) -> io::Result<Group<E>> {
    let shard = Shard::new(group, shared.clone(), storage.tables.clone());
    let machine = Machine::new(group, storage.tables, Arc::new(shard.clone()));
    let log = GroupLog::<E::Cfg, E::Log>::new(storage.log.clone());
    let raft = Raft::new(config.node.0, raft_config(group)?, network, log, machine)
        .await
        .map_err(|error| io::Error::other(format!("group {group} cannot start: {error}")))?;
    let stamp = {
        let shard = Arc::downgrade(&shard);
        move || shard.upgrade().map(|shard| shard.group_time()).unwrap_or_default()
    };
    let proposer = Proposer::start::<E>(shared.host.clone(), raft.clone(), Arc::new(stamp));
    shard.set_proposer(proposer.clone());
    let leadership = follow_leadership::<E>(raft.clone(), Arc::downgrade(&shard));
    guard::spawn::<E>(shared.host.clone(), "what follows a group's leader", leadership);
    Ok(Group { raft, shard, proposer, log: storage.log })
}

/// Tells the shard whenever this node begins or ceases to lead it.
async fn follow_leadership<E: Env>(raft: GroupRaft<E>, shard: std::sync::Weak<Shard<E>>) {
    let mut metrics = raft.server_metrics();
    loop {
        fail::at::<E::Cfg>(Point::Lead).await;
        let now = metrics.borrow_watched().clone();
        let Some(shard) = shard.upgrade() else { return };
        shard.leadership((now.state == ServerState::Leader).then_some(now.vote.leader_id.term));
        drop(shard);
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

/// Hand-offs of this node's shards that found no session here; more are found by their silence.
const MISSES: usize = 1024;

/// Tells the shards which sessions of this node their hand-offs did not find.
async fn follow_misses<E: Env>(member: std::sync::Weak<Member<E>>, mut misses: mpsc::Receiver<Report>) {
    while let Some(report) = misses.recv().await {
        let Some(member) = member.upgrade() else { return };
        if let Some(group) = member.groups.get(&report.group) {
            group.shard.reported(member.config.node, report);
        }
    }
}

/// After each change of the directory: fences may be different, also this node's own.
async fn follow_directory<E: Env>(member: std::sync::Weak<Member<E>>, mut changes: mpsc::Receiver<()>) {
    let mut known: BTreeMap<NodeId, Incarnation> = BTreeMap::new();
    while changes.recv().await.is_some() {
        fail::at::<E::Cfg>(Point::Directory).await;
        let Some(member) = member.upgrade() else { return };
        member.mind_nodes();
        member.tell_folder();
        let directory = member.directory();
        let begun = directory
            .nodes
            .iter()
            .filter(|(node, now)| known.insert(**node, now.incarnation) != Some(now.incarnation));
        let begun: Vec<NodeId> = begun.map(|(node, _)| *node).collect();
        for Group { shard, .. } in member.groups.values() {
            shard.look_again().await;
            // What it was ordered as an anchor before it served, by a link that it had already, it did not hear.
            begun.iter().for_each(|node| shard.linked(*node));
        }
        member.check_own_fence();
    }
}

/// The longest that a start waits for the others: to be let in, for tables, for an incarnation.
pub(crate) const START_PATIENCE: Duration = Duration::from_secs(60);
