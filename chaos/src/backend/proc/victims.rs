//! Whom a fault hits among the nodes, the terminals and the ways between them, and whether it may.

use std::collections::BTreeSet;

use reveille_chaos::scenario::{Kind, MaxDead, Role, Target};

use super::links::Place;
use super::nodes::{Nodes, State};
use super::strike::{Striker, There};
use crate::backend::whom::{self, Among, Whom, whom};

/// Whom a fault hits, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Victims {
    Nodes(Vec<u64>),
    /// Numbers from 0.
    Terminals(Vec<usize>),
    /// What goes from one to another.
    Ways(BTreeSet<(Place, Place)>),
    /// All publishers.
    Publishers,
    /// The cluster as a whole.
    Cluster,
}

impl Striker {
    /// No fault takes more nodes away than the scenario allows, and none hits a node that another one has.
    pub(super) fn may(&self, nodes: &Nodes, kind: Kind, victims: &[u64]) -> bool {
        let hit = |id: &u64| match nodes.state(*id) {
            // What is to happen at a fail point happens to who comes there, now or when it runs again.
            _ if kind.name() == "fail-point" => true,
            State::Runs => true,
            State::Refused(_) => kind.name() == "replace",
            State::Stopped | State::Gone => false,
        };
        if victims.is_empty() || !victims.iter().all(hit) {
            return false;
        }
        // Who has the one would be woken by the other.
        let slowed = |id: &u64| {
            let has = |there: &There| matches!(&there.victims, Victims::Nodes(ids) if ids.contains(id));
            self.there.iter().any(|there| there.kind.name() == "cpu" && has(there))
        };
        if matches!(kind.name(), "pause" | "cpu") && victims.iter().any(slowed) {
            return false;
        }
        // No version but the newer is let in where all nodes have it.
        let newer = |id: &u64| nodes.of(*id).is_some_and(|node| !node.other);
        let older = || nodes.ids().iter().filter(|id| !victims.contains(id) && !newer(id)).count();
        if kind.name() == "upgrade" && victims.iter().any(newer) && older() == 0 {
            return false;
        }
        if !kind.info().disables || self.run.scenario.blast.max_dead == MaxDead::All {
            return true;
        }
        let known = self.run.known();
        let away = |id: &u64| nodes.state(*id) != State::Runs || known.ready.get(id) != Some(&true);
        let mut dead: BTreeSet<u64> = nodes.ids().into_iter().filter(away).collect();
        dead.extend(victims);
        dead.len() <= (nodes.ids().len().max(1) - 1) / 2
    }

    /// What goes between those whom the two ends stand for.
    pub(super) fn ways(
        &self,
        nodes: &Nodes,
        number: usize,
        (from, to): (&Target, &Target),
        draw: u64,
    ) -> Option<Victims> {
        let places = |target, draw| {
            Some(match self.resolve(nodes, number, target, draw)? {
                Victims::Nodes(ids) => ids.into_iter().map(Place::Node).collect(),
                _ => vec![Place::Terminals],
            })
        };
        whom::ways(&places(from, draw)?, draw, |draw| places(to, draw)).map(Victims::Ways)
    }

    pub(super) fn resolve(
        &self,
        nodes: &Nodes,
        number: usize,
        target: &Target,
        draw: u64,
    ) -> Option<Victims> {
        let last = self.hit.range(..number).next_back().map(|(_, ids)| ids.as_slice());
        if target.0 == [Role::Publishers] {
            return Some(Victims::Publishers);
        }
        let (ids, places) = (nodes.ids(), &nodes.places);
        let among = Among { nodes: &ids, places, terminals: self.orders.len(), last };
        Some(match whom(&self.run.known(), among, target, draw)? {
            Whom::Nodes(ids) => Victims::Nodes(ids),
            Whom::Terminals(numbers) => Victims::Terminals(numbers),
        })
    }
}

/// Whom, for who reads it.
pub(super) fn words(victims: &Victims) -> String {
    match victims {
        Victims::Ways(ways) => {
            let ends = |end: fn(&(Place, Place)) -> Place| {
                let places: BTreeSet<Place> = ways.iter().map(end).collect();
                places.iter().map(Place::to_string).collect::<Vec<_>>().join(", ")
            };
            format!("link {} -> {}", ends(|(from, _)| *from), ends(|(_, to)| *to))
        }
        Victims::Nodes(ids) => whom::nodes(ids),
        Victims::Terminals(numbers) => whom::terminals(numbers),
        Victims::Publishers => "publishers".to_owned(),
        Victims::Cluster => "cluster".to_owned(),
    }
}
