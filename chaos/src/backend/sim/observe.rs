//! What is seen of the world: what happens to terminals, as it happens; and of nodes, looked at again and again, whether
//! they are ready, who leads, and what their replicas hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use reveille_chaos::history::{Observation, Problem, What};
use reveille_chaos::scenario::{Act, When};
use reveille_protocol::id::*;
use reveille_simulation::node::SimNode;
use reveille_simulation::seen::{Seen, Watch};
use reveille_simulation::world::pause;

use super::record::Record;
use super::run::{Known, Run, lock};
use crate::backend::{ENDED, payload};

/// Between two looks, in milliseconds.
const LOOK: u64 = 100;
/// Replicas are compared at each so many looks.
const STATES: u64 = 20;

/// Writes down what the world tells of.
pub(super) fn watch(record: Arc<Record>, known: Arc<Mutex<Known>>) -> Watch {
    Box::new(move |at, seen| {
        let seen = observed(&mut lock(&known), seen);
        record.tell(at, What::Observe(seen));
    })
}

fn observed(known: &mut Known, seen: Seen) -> Observation {
    let device = match &seen {
        Seen::Started { device }
        | Seen::HandedOff { device, .. }
        | Seen::Stopped { device }
        | Seen::Notified { device }
        | Seen::Connected { device, .. }
        | Seen::Disconnected { device }
        | Seen::Reset { device, .. }
        | Seen::Delivered { device, .. }
        | Seen::Confirmed { device, .. }
        | Seen::Saved { device, .. }
        | Seen::Notifying { device, .. } => *device,
        Seen::Snapshot { .. } | Seen::Lost { .. } | Seen::Fell { .. } => 0,
        Seen::FailPoint { .. } | Seen::Due { .. } | Seen::Outlived { .. } => 0,
    };
    let (device, copy) = known.copies.get(&device).copied().unwrap_or((device, 0));
    let terminal = known.names.get(device).cloned().unwrap_or_default();
    match seen {
        Seen::HandedOff { group, node, .. } => {
            // Where the leader has the session itself, nobody gives it to anybody.
            let leader = known.leaders.get(&u64::from(group.0)).map(|(leader, _)| *leader);
            if let Some(leader) = leader.filter(|leader| *leader != node.0) {
                known.handed = Some((leader, node.0));
                known.happened.insert(When::HandoffStarted);
            }
            Observation::Cover { point: "hand-off.pushes".to_owned(), count: 1 }
        }
        Seen::Started { .. } => Observation::Started { terminal, copy },
        Seen::Stopped { .. } => {
            known.owners.remove(&device);
            Observation::Stopped { terminal, copy }
        }
        Seen::Notified { .. } => Observation::Notified { terminal, copy },
        Seen::Connected { node, epoch, .. } => {
            known.owners.insert(device, node.0);
            known.met.insert(device);
            known.happened.insert(When::Attached);
            Observation::Connected { terminal, copy, node: node.0, epoch: epoch.0 }
        }
        Seen::Disconnected { .. } => {
            known.owners.remove(&device);
            Observation::Disconnected { terminal, copy }
        }
        Seen::Reset { next, .. } => Observation::Reset { terminal, copy, next: next.0 },
        Seen::Delivered { push, node, epoch, .. } => {
            let payload = payload::name(&push.body);
            known.delivered(&payload);
            Observation::Delivered {
                terminal,
                copy,
                payload,
                seq: push.seq.0,
                prev: Some(push.prev.0),
                maybe_seen: push.maybe_seen,
                node: node.0,
                epoch: Some(epoch.0),
            }
        }
        Seen::Confirmed { seq, .. } => Observation::Confirmed { terminal, copy, seq: seq.0 },
        Seen::Saved { seq, .. } => Observation::Saved { terminal, copy, seq: seq.0 },
        Seen::Notifying { node, pending, proven, .. } => Observation::Notifying {
            terminal,
            node: node.0,
            // Its leader ordered it for that reason; what came to be while the order was on its way is nobody's fault.
            online: false,
            pending,
            proven,
        },
        Seen::Snapshot { .. } => {
            known.happened.insert(When::SnapshotStarted);
            Observation::Cover { point: "snapshot.frame".to_owned(), count: 1 }
        }
        Seen::FailPoint { point, action, .. } => {
            Observation::Cover { point: Act::of(action).cover(point), count: 1 }
        }
        Seen::Due { .. } => Observation::Cover { point: ENDED.to_owned(), count: 1 },
        Seen::Outlived { node, what } => {
            let line = format!("it goes on after {what}, by which it must end");
            Observation::LogFound { node: node.0, problem: Problem::Panic, line }
        }
        // What was done to it is to be found, and has been.
        Seen::Lost { .. } => Observation::Cover { point: "node.refused".to_owned(), count: 1 },
        Seen::Fell { node, why } => {
            let line = format!("it ended by itself: {why}");
            Observation::LogFound { node: node.0, problem: Problem::Panic, line }
        }
    }
}

/// Looks until the load is over and nobody needs it any more: the run's end takes it down.
pub(super) async fn nodes(run: Arc<Run>) {
    for count in 0u64.. {
        pause(LOOK).await;
        if run.over.load(Ordering::Relaxed) {
            return;
        }
        let ids = run.nodes();
        for id in &ids {
            let ready = ready(&run, *id);
            let before = run.known().ready.insert(*id, ready);
            if before != Some(ready) {
                run.see(Observation::Ready { node: *id, ready });
                if ready && before.is_some() {
                    run.known().happened.insert(When::NodeReady);
                }
            }
        }
        ids.iter().for_each(|id| leaders(&run, *id));
        if count % STATES == 0 && run.load.load(Ordering::Relaxed) {
            states(&run);
        }
    }
}

fn ready(run: &Run, id: u64) -> bool {
    let node = NodeId(id);
    let member = run.world.node(node).member();
    !run.world.stands_still(node)
        && member
            .is_some_and(|member| member.incarnation() != Incarnation(0) && member.leaderless().is_empty())
}

/// Who leads, as this node sees it. What it says of a term that is over is written down only if it contradicts another.
fn leaders(run: &Run, id: u64) {
    let node = NodeId(id);
    let Some(member) = run.world.node(node).member().filter(|_| !run.world.stands_still(node)) else {
        return;
    };
    for group in member.status().groups {
        let Some(leader) = group.leader else { continue };
        let (of, term) = (u64::from(group.group.0), group.term);
        let before = run.known().leaders.get(&of).copied();
        match before {
            Some((_, known)) if known > term => continue,
            Some((led, known)) if known == term && led == leader.0 => continue,
            _ => {}
        }
        run.see(Observation::Leader { group: of, node: leader.0, term });
        let mut known = run.known();
        known.leaders.insert(of, (leader.0, term));
        if before.is_some_and(|(led, _)| led != leader.0) {
            known.happened.insert(When::LeaderChanged);
        }
    }
}

/// What the replicas of all running nodes hold.
pub(super) fn states(run: &Run) {
    let replicas = replicas(run);
    for (node, group) in gone(run, &replicas) {
        run.see(Observation::Moved { node: node.0, group: u64::from(group.0) });
    }
    for (node, group) in replicas {
        if let Some((index, hash)) = run.world.state_of(node, group) {
            let hash = format!("{hash:016x}");
            run.see(Observation::State { node: node.0, group: u64::from(group.0), index, hash });
        }
    }
}

/// Replicas that were there before, of nodes that run and know that they have none there now.
fn gone(run: &Run, replicas: &[(NodeId, GroupId)]) -> Vec<(NodeId, GroupId)> {
    let running: BTreeSet<NodeId> = run.world.members().iter().map(|member| member.node()).collect();
    let held: BTreeSet<(NodeId, GroupId)> = replicas.iter().copied().collect();
    let mut known = run.known();
    let (gone, kept): (BTreeSet<_>, BTreeSet<_>) =
        known.held.iter().copied().partition(|at| running.contains(&at.0) && !held.contains(at));
    known.held = kept.union(&held).copied().collect();
    gone.into_iter().collect()
}

/// No node is on its way into the cluster, and all replicas of each group have applied the same index.
pub(super) fn settled(run: &Run) -> bool {
    let starts = |node: &Arc<SimNode>| node.is_started() && node.member().is_none();
    if run.world.all_nodes().iter().any(starts) {
        return false;
    }
    let mut first = BTreeMap::new();
    replicas(run).into_iter().all(|(node, group)| {
        let Some(index) = run.world.applied_at(node, group) else { return true };
        *first.entry(group).or_insert(index) == index
    })
}

fn replicas(run: &Run) -> Vec<(NodeId, GroupId)> {
    let mut all = Vec::new();
    for member in run.world.members() {
        let (node, directory) = (member.node(), member.directory());
        for group in run.world.setting.all_groups() {
            if group == GroupId(0) || directory.replicas_of(group).contains(&node) {
                all.push((node, group));
            }
        }
    }
    all
}
