//! The operator of a run's cluster: nodes that come and go because a fault wants it, and whoever takes the place of a node
//! that has lost what it had promised.

use std::future::Future;
use std::time::Duration;

use openraft::async_runtime::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use reveille_chaos::history::Observation;
use reveille_protocol::directory::{Change, Refused};
use reveille_protocol::id::NodeId;
use reveille_simulation::node::End;
use reveille_simulation::world::now;

use super::strike::Striker;
use super::whom::Victims;
use crate::backend::OPERATOR_COMES;

/// The cluster has an answer for its operator within this, or the order is given again later.
const ANSWER: Duration = Duration::from_secs(3);

async fn answered<T>(order: impl Future<Output = Result<T, Refused>> + Send) -> Option<T> {
    SimRuntime::timeout(ANSWER, Box::pin(order)).await.ok()?.ok()
}

impl Striker {
    /// Has the cluster take an order; whether it does.
    pub(super) async fn order(&mut self, kind: &str, victims: &Victims) -> bool {
        let world = self.run.world.clone();
        match (kind, victims) {
            ("add-node", _) => self.join(None).await,
            ("replace", Victims::Nodes(ids)) if ids.len() == 1 => self.join(Some(ids[0])).await,
            ("drain", Victims::Nodes(ids)) if ids.len() == 1 => {
                answered(world.change(Change::Drain { node: NodeId(ids[0]), fewer: false })).await.is_some()
            }
            ("remove", Victims::Nodes(ids)) if ids.len() == 1 => {
                let remove = Change::Remove { node: NodeId(ids[0]), fewer: false };
                let taken = answered(world.change(remove)).await.is_some();
                if taken {
                    self.leaves(ids[0], None);
                }
                taken
            }
            _ => false,
        }
    }

    /// A drain is over: the node stays.
    pub(super) async fn resume(&self, id: u64) {
        let resumed = answered(self.run.world.change(Change::Resume { node: NodeId(id) })).await;
        if resumed.is_none() {
            self.run.cover("order.refused");
        }
    }

    /// Nodes that have lost what they had promised are replaced, after a while or, if that is said, at once.
    pub(super) async fn replace_lost(&mut self, at_once: bool) {
        let lost: Vec<u64> = self.lost.keys().copied().collect();
        for id in lost {
            let late = self
                .lost
                .get(&id)
                .is_some_and(|since| at_once || now() - since > OPERATOR_COMES.as_micros() as u64);
            if late && self.run.nodes().contains(&id) && self.join(Some(id)).await {
                self.run.say(&format!("the operator has replaced node {id}"));
                self.run.cover("node.replaced");
            }
        }
    }

    /// A new node joins, in the place of another one if that is said, and starts.
    async fn join(&mut self, instead: Option<u64>) -> bool {
        let world = self.run.world.clone();
        let Some(newcomer) = answered(world.enrol(instead.map(NodeId))).await else { return false };
        match instead {
            Some(id) => self.leaves(id, Some(newcomer.0)),
            None => self.run.known().places.push(Some(newcomer.0)),
        }
        world.start(newcomer).await;
        true
    }

    /// A node belongs no more; another one may have its place.
    fn leaves(&mut self, id: u64, next: Option<u64>) {
        self.run.see(Observation::Left { node: id });
        let mut known = self.run.known();
        if let Some(place) = known.places.iter_mut().find(|place| **place == Some(id)) {
            *place = next;
        }
        known.ready.remove(&id);
        self.lost.remove(&id);
        self.ended.remove(&id);
    }

    /// Who does not belong any more, as the cluster has it, counts no more. Its process ends when it hears so, or never.
    pub(super) fn mind_gone(&self) {
        let world = &self.run.world;
        let (places, all) = (self.run.nodes(), world.all_nodes());
        if all.len() == places.len() {
            return;
        }
        let belonging = world.belonging();
        for node in all {
            let left = !places.contains(&node.id.0) && !belonging.iter().any(|other| other.id == node.id);
            if left && node.gone().is_none() {
                node.set_gone("removed");
            }
        }
    }

    /// A node said that it must end; whether it is to be started again.
    pub(super) async fn ended_itself(&mut self, id: u64) -> bool {
        let world = self.run.world.clone();
        let node = world.node(NodeId(id));
        world.stop(NodeId(id), End::Kill).await;
        self.run.nodes().contains(&id) && node.lost().is_none()
    }
}
