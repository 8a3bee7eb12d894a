//! The steward: the meta group's leader brings every group to where the directory wants its replicas, one step at a time,
//! has nodes lead that reach all others, spreads the leaders, keeps the shards' limits the same, and ends removals.
//! Whoever leads the meta group next looks at the same facts and goes on: all that it keeps is whom it handed what just
//! now.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::join_all;
use openraft::alias::InstantOf;
use openraft::async_runtime::WatchReceiver;
use openraft::impls::BasicNode;
use openraft::type_config::TypeConfigExt;
use openraft::{ChangeMembers, Precondition, ServerState};
use reveille_protocol::directory::{Change, Directory, FORMAT, Node, Refused, Standing};
use reveille_protocol::fail_point::Point;
use reveille_protocol::id::*;
use reveille_protocol::limits;
use reveille_protocol::service_list::{Command, Refusal, Reply};
use reveille_protocol::wire::codec;

use super::Member;
use super::route::Unavailable;
use crate::env::Env;
use crate::fail;
use crate::link::Lane;
use crate::query::{Answer, Query};
use crate::raft::network::MAX_MESSAGE;
use crate::rpc::Method;
use crate::shape::{Goal, Move, Shape, Step, Why, next_move};

const META: GroupId = GroupId::META;
/// The format since which nodes come and go.
const MEMBERSHIP: u32 = 2;
/// Between two looks while something is to be done, and while nothing is.
const LOOK: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// Groups that copy themselves to a new replica at the same time: more would take the disks from the publishers.
const MOVES: usize = 2;
/// One leadership moves for balance in this time: each move is a few milliseconds without a leader.
const BALANCE: Duration = Duration::from_secs(5);
/// A group that was handed to a node, and is not led by it, is not handed to it again for so long: it could not take it, or
/// not keep it, and each try is some tenths of a second without a leader.
const AGAIN: Duration = Duration::from_secs(60);
/// The shards' limits are compared each so often: they differ only after operators were in each other's way.
const LEVEL: Duration = Duration::from_secs(10);
/// A group whose leader does not say how it stands within this is left for the next look.
pub(super) const QUERY: Duration = Duration::from_secs(2);
/// A step must be done within this; one that is not is looked at again.
pub(super) const STEP: Duration = Duration::from_secs(10);

/// Runs until the member is gone.
pub(super) async fn run<E: Env>(member: Weak<Member<E>>) {
    let mut balanced = E::Cfg::now();
    let mut levelled = balanced;
    let mut handed = Handed::<E>::default();
    loop {
        E::Cfg::sleep(LOOK.0).await;
        fail::at::<E::Cfg>(Point::Steward).await;
        let mut idle = true;
        if let Some(member) = member.upgrade() {
            if member.leads(META) {
                let may_balance = E::Cfg::now() - balanced >= BALANCE;
                match member.tend(may_balance, &mut handed).await {
                    Tended::Busy => idle = false,
                    Tended::Balanced => balanced = E::Cfg::now(),
                    Tended::Settled if E::Cfg::now() - levelled >= LEVEL => {
                        member.level_limits().await;
                        levelled = E::Cfg::now();
                    }
                    Tended::Settled => {}
                }
            }
        } else {
            return;
        }
        if idle {
            E::Cfg::sleep(LOOK.1).await;
        }
    }
}

/// Whom each group was handed to lately.
struct Handed<E: Env>(BTreeMap<(GroupId, NodeId), InstantOf<E::Cfg>>);

impl<E: Env> Default for Handed<E> {
    fn default() -> Handed<E> {
        Handed(BTreeMap::new())
    }
}

impl<E: Env> Handed<E> {
    fn forget_old(&mut self) {
        self.0.retain(|_, at| E::Cfg::now() - *at < AGAIN);
    }

    fn note(&mut self, group: GroupId, step: &Step) {
        if let Step::Lead(heir) = step {
            self.0.insert((group, *heir), E::Cfg::now());
        }
    }

    fn to(&self, group: GroupId) -> BTreeSet<NodeId> {
        self.0.range((group, NodeId(0))..=(group, NodeId(u64::MAX))).map(|((_, heir), _)| *heir).collect()
    }
}

enum Tended {
    Busy,
    Balanced,
    Settled,
}

impl<E: Env> Member<E> {
    pub(super) fn leads(&self, group: GroupId) -> bool {
        self.leader(group) == Some(self.config.node)
    }

    /// One round over all groups.
    async fn tend(self: &Arc<Self>, may_balance: bool, handed: &mut Handed<E>) -> Tended {
        let directory = self.directory();
        if directory.cluster == 0 {
            return Tended::Settled;
        }
        if directory.roster.format < FORMAT {
            self.raise_format(&directory, None).await;
        }
        // A node that is away holds up the format, not its own replacement.
        if directory.roster.format < MEMBERSHIP {
            return Tended::Busy;
        }
        let addresses = self.addresses(&directory);
        let asked = self.shapes().await.into_iter();
        let shapes: BTreeMap<_, _> = asked.filter_map(|(group, shape)| Some((group, shape?))).collect();
        let goal = |group: GroupId| goal(&directory, group);
        let mut moving = shapes.iter().filter(|(group, shape)| shape.is_moving(&goal(**group))).count();
        let mut busy = moving > 0;
        handed.forget_old();
        let mut changed = BTreeSet::new();
        for (group, shape) in &shapes {
            let Some(step) = shape.next(&goal(*group), &addresses, &handed.to(*group)) else { continue };
            // A group that moves already may copy itself once more: it waits for all its newcomers together, so to keep
            // one from it would keep its place for ever.
            let begins = *group != META && !shape.is_moving(&goal(*group));
            let copies = matches!(step, Step::AddLearners(_)) && begins;
            if copies && moving >= MOVES {
                busy = true;
                continue;
            }
            moving += usize::from(copies);
            busy = true;
            changed.insert(*group);
            handed.note(*group, &step);
            self.take_step(*group, shape, step).await;
        }
        let nodes: BTreeSet<NodeId> = directory.roster.replicating().collect();
        let led =
            shapes.iter().filter(|(group, _)| !changed.contains(group)).map(|(group, shape)| (*group, shape));
        let barred = |group, heir| handed.0.contains_key(&(group, heir));
        let next = next_move(led, &nodes, &self.torn_ends(), barred);
        // Who does not reach its leader waits for this, and a copy that is on its way may take hours.
        if let Some(next) = next.filter(|next| next.why == Why::Torn) {
            self.move_leadership(next, &shapes, handed).await;
            return Tended::Busy;
        }
        if busy {
            return Tended::Busy;
        }
        if shapes.len() == self.groups.len() && self.end_removals(&directory, &shapes).await {
            return Tended::Busy;
        }
        let Some(next) = next.filter(|_| may_balance) else { return Tended::Settled };
        self.move_leadership(next, &shapes, handed).await;
        Tended::Balanced
    }

    async fn move_leadership(
        self: &Arc<Self>,
        Move { group, heir, why }: Move<GroupId>,
        shapes: &BTreeMap<GroupId, Shape>,
        handed: &mut Handed<E>,
    ) {
        tracing::info!(group = group.0, to = heir.0, %why, "a leadership moves");
        let step = Step::Lead(heir);
        handed.note(group, &step);
        self.take_step(group, &shapes[&group], step).await;
    }

    /// Changes the directory as an operator wants it; repeated after an unknown outcome it does no harm.
    pub async fn change(self: &Arc<Self>, change: Change, deadline: Duration) -> Result<Reply, Unavailable> {
        if let Change::Invite { replaces: Some(node), .. } | Change::Remove { node, .. } = &change {
            self.give_up(*node, &change).await;
        }
        let command = Command::Directory(Box::new(change));
        match self.readable(&command) {
            Ok(()) => self.propose(META, command, deadline).await,
            Err(refusal) => Ok(Reply::Refused(refusal)),
        }
    }

    /// Can every node read this in its log? What one cannot would stop its group there for good.
    pub(crate) fn readable(&self, command: &Command) -> Result<(), Refusal> {
        let directory = self.directory();
        let format = directory.roster.format.max(1);
        match command {
            _ if command.since() > format => Err(Refusal::Directory(Refused::Format(format))),
            Command::Directory(change) if codec::encode(change).len() > limits::MAX_ENTRY_DECODE / 2 => {
                Err(Refusal::Directory(Refused::Full(directory.tokens.len())))
            }
            _ => Ok(()),
        }
    }

    /// The operator wants a node gone. If it is marked down, the format by which it can go does not wait for it.
    async fn give_up(self: &Arc<Self>, node: NodeId, change: &Change) {
        let directory = self.directory();
        let down = directory.nodes.get(&node).is_some_and(Node::is_down);
        if directory.cluster == 0 || directory.roster.format >= MEMBERSHIP || !down {
            return;
        }
        // There is no way back from it: not for what would be refused all the same.
        if directory.would_do(change).is_err() {
            return;
        }
        if !self.raise_format(&directory, Some(node)).await {
            return;
        }
        // This node hears of it as all do.
        let until = E::Cfg::now() + QUERY;
        while self.directory().roster.format < MEMBERSHIP && E::Cfg::now() < until {
            E::Cfg::sleep(LOOK.0).await;
        }
    }

    /// Every node must be there and able to: a node that is away might come back without knowing the new format. Only
    /// one that the operator gives up for good need not be there.
    async fn raise_format(self: &Arc<Self>, directory: &Directory, given_up: Option<NodeId>) -> bool {
        let common = self.common_format(given_up).unwrap_or(0);
        if common <= directory.roster.format {
            return false;
        }
        tracing::info!(format = common, "every node that stays knows a later format; the cluster takes it");
        self.change_logged(Change::SetFormat { format: common }).await;
        true
    }

    /// Nodes that were to leave and have no copy of any shard any more, whoever leads it next, belong no more.
    async fn end_removals(
        self: &Arc<Self>,
        directory: &Directory,
        shapes: &BTreeMap<GroupId, Shape>,
    ) -> bool {
        let mut ended = false;
        for (node, record) in &directory.roster.records {
            // A copy of the directory stays: by it the node hears that it belongs no more.
            let let_go = |(group, shape): (&GroupId, &Shape)| shape.has_let_go(*node, *group != META);
            if record.standing == Standing::Leaving && shapes.iter().all(let_go) {
                tracing::info!(node = node.0, "node replicates nothing any more; it belongs no more");
                self.change_logged(Change::Removed { node: *node }).await;
                ended = true;
            }
        }
        ended
    }

    async fn change_logged(self: &Arc<Self>, change: Change) {
        let command = Command::Directory(Box::new(change));
        match self.propose(META, command, STEP).await {
            Ok(reply) => tracing::debug!(?reply, "the directory was changed"),
            Err(error) => tracing::warn!(%error, "the directory could not be changed; trying again"),
        }
    }

    /// Where each node is, this one included: for raft's memberships.
    fn addresses(&self, directory: &Directory) -> BTreeMap<NodeId, String> {
        let mut addresses = self.others();
        let own = directory.nodes.get(&self.config.node).map(|own| own.peer.clone());
        addresses.insert(self.config.node, own.unwrap_or_default());
        addresses
    }

    /// Has others lead the groups that a node leads, as far as they can now. The balance may bring some back in time.
    pub async fn move_leaders(self: &Arc<Self>, from: NodeId) -> usize {
        let mut moved = 0;
        for group in self.groups.keys() {
            let Some(shape) = self.shape(*group).await.filter(|shape| shape.leader == from) else { continue };
            if let Some(heir) = shape.heir(moved) {
                moved += usize::from(self.take_step(*group, &shape, Step::Lead(heir)).await);
            }
        }
        moved
    }

    /// Waits until this node's copy of the directory is as far as that entry, but not for long: it may be cut off.
    pub(crate) async fn hear_of_meta(&self, index: u64) {
        let Some(meta) = self.groups.get(&META) else { return };
        let mut metrics = meta.raft.metrics();
        let far = async {
            while metrics.borrow_watched().last_applied.is_none_or(|id| id.index < index) {
                if metrics.changed().await.is_err() {
                    return;
                }
            }
        };
        // What it knows is told all the same.
        let _ = E::Cfg::timeout(QUERY, far).await;
    }

    /// Every group as its leader sees it; none where nobody answers for it.
    pub(crate) async fn shapes(self: &Arc<Self>) -> Vec<(GroupId, Option<Shape>)> {
        let asked = self.groups.keys().map(|group| async move { (*group, self.shape(*group).await) });
        join_all(asked).await
    }

    /// A group as its leader sees it.
    pub(crate) async fn shape(self: &Arc<Self>, group: GroupId) -> Option<Shape> {
        match self.query(group, Query::Shape, QUERY).await {
            Ok(Answer::Shape(shape)) => Some(*shape),
            _ => None,
        }
    }

    /// The names of restores that are not finished, by shard. Of one that does not answer nothing is known.
    pub(crate) async fn open_restores(self: &Arc<Self>) -> BTreeMap<GroupId, RestoreId> {
        let shards = self.groups.keys().copied().filter(|group| *group != META);
        let asked = shards.map(|group| async move {
            match self.query(group, Query::Restore, QUERY).await {
                Ok(Answer::Restore(Some(state))) if state.open => Some((group, state.restore)),
                _ => None,
            }
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// This node's own view, if it leads.
    pub(super) fn shape_here(&self, group: GroupId) -> Option<Shape> {
        let known = self.groups.get(&group)?;
        let metrics = known.raft.metrics().borrow_watched().clone();
        if metrics.state != ServerState::Leader {
            return None;
        }
        let stored = metrics.membership_config;
        let membership = stored.membership();
        let me = self.config.node;
        let silent = |node: &NodeId| *node != me && !self.heard_lately(*node);
        let replication = metrics.replication.unwrap_or_default();
        let matched = replication.into_iter().filter_map(|(node, log)| Some((NodeId(node), log?.index)));
        let last = metrics.last_log_index.unwrap_or_default();
        let since = stored.log_id().map_or(0, |id| id.index);
        let committed = metrics.local_committed.is_some_and(|id| id.index >= since);
        let own = if committed { last } else { last.min(since.saturating_sub(1)) };
        Some(Shape {
            leader: me,
            voters: membership
                .get_joint_config()
                .iter()
                .map(|voters| voters.iter().copied().map(NodeId).collect())
                .collect(),
            learners: membership.learner_ids().map(NodeId).collect(),
            since,
            last,
            matched: matched.chain([(me, own)]).collect(),
            silent: membership.nodes().map(|(node, _)| NodeId(*node)).filter(silent).collect(),
        })
    }

    /// Has the group's leader take a step, if the group is still as it was seen.
    pub(super) async fn take_step(self: &Arc<Self>, group: GroupId, shape: &Shape, step: Step) -> bool {
        tracing::info!(group = group.0, ?step, "a group's membership changes");
        let taken = if shape.leader == self.config.node {
            let taken = E::Cfg::timeout(STEP, self.step_here(group, shape.since, step)).await;
            taken.unwrap_or_else(|_| Err("not done in time".to_owned()))
        } else {
            let body = Self::forward(group, &(shape.since, step));
            let call = self.shared.calls.call(shape.leader, Lane::Data, Method::Reshape, body, STEP);
            match call.await {
                Ok(answer) => codec::decode::<Result<(), String>, MAX_MESSAGE>(&answer)
                    .unwrap_or_else(|error| Err(error.to_string())),
                Err(error) => Err(error.to_string()),
            }
        };
        if let Err(error) = &taken {
            tracing::warn!(group = group.0, %error, "a group's membership did not change; looking again");
        }
        taken.is_ok()
    }

    /// Takes a step as the group's leader.
    pub(super) async fn step_here(&self, group: GroupId, since: u64, step: Step) -> Result<(), String> {
        let raft = self.groups.get(&group).ok_or("no such group")?.raft.clone();
        let seen = *raft.server_metrics().borrow_watched().membership_config.log_id();
        if seen.map_or(0, |id| id.index) != since {
            return Err("the membership has changed since".to_owned());
        }
        let same = Precondition::LastMembershipLogId { last_membership_log_id: seen };
        let raw = |nodes: BTreeSet<NodeId>| nodes.into_iter().map(|node| node.0).collect::<BTreeSet<u64>>();
        let (change, keep) = match step {
            Step::Lead(heir) => return Self::transfer(&raft, heir).await,
            Step::AddLearners(nodes) => {
                let nodes = nodes.into_iter().map(|(node, at)| (node.0, BasicNode::new(at))).collect();
                (ChangeMembers::AddNodes(nodes), true)
            }
            Step::Vote { voters, keep } => (ChangeMembers::ReplaceAllVoters(raw(voters)), keep),
            Step::RemoveLearners(nodes) => (ChangeMembers::RemoveNodes(raw(nodes)), true),
        };
        let changed = raft.change_membership_if(change, keep, [same]).await;
        changed.map(drop).map_err(|error| error.to_string())
    }
}

/// How a group should be: its replicas vote. Everyone has a copy of the directory.
fn goal(directory: &Directory, group: GroupId) -> Goal {
    let voters: BTreeSet<NodeId> = directory.replicas_of(group).into_iter().collect();
    let belongs = directory.roster.records.iter();
    let belongs = belongs.filter(|(_, record)| !record.standing.is_invited());
    let learners = match group {
        META => belongs.map(|(node, _)| *node).filter(|node| !voters.contains(node)).collect(),
        _ => BTreeSet::new(),
    };
    Goal { voters, learners, told: group == META }
}
