//! Whom a fault of a striker hits, and whether it may. Does nothing to anybody.

use std::collections::BTreeSet;

use reveille_chaos::scenario::{Kind, MaxDead, Target};

use super::{By, Due, Striker, There, Victims, by};
use crate::backend::whom::{self, Among, Whom, whom};

impl Striker {
    /// The nodes that count as away for it: in a cluster of one's own all that it touches, in one that is this program's
    /// those that it keeps from serving, as on every other backend.
    pub(super) fn away(&self, kind: Kind, victims: &Victims) -> Vec<u64> {
        match self.cluster.own && !kind.info().disables {
            true => Vec::new(),
            false => victims.away(),
        }
    }

    /// No fault takes more nodes away than may be, those counted that are away by themselves; and none hits a node, or a
    /// link, that another one has.
    pub(super) fn may(&self, kind: Kind, victims: &Victims) -> bool {
        if matches!(victims, Victims::Terminals(_)) {
            return true;
        }
        let mut dead: BTreeSet<u64> = self.struck.ids().into_iter().collect();
        let known = self.run.known();
        dead.extend(self.run.ids().iter().filter(|id| known.ready.get(id) != Some(&true)));
        let hit = match victims {
            Victims::Ways(_) if self.cluster.own => Vec::new(),
            _ => victims.away(),
        };
        let ons = victims.ons(kind);
        let has = |there: &There| there.victims.ons(there.kind).iter().any(|on| ons.contains(on));
        if ons.is_empty() || hit.iter().any(|id| dead.contains(id)) || self.there.iter().any(has) {
            return false;
        }
        let away = self.away(kind, victims);
        let nodes = self.run.ids().len() as u64;
        let most = match (self.cluster.own, self.run.scenario.blast.max_dead) {
            (true, MaxDead::All) => nodes,
            (true, MaxDead::Minority) => (nodes - 1) / 2,
            (false, _) => self.cluster.limits.nodes,
        };
        dead.extend(&away);
        away.is_empty() || !matches!(by(kind), Some(By::Hooks(..))) || dead.len() as u64 <= most
    }

    /// What goes between those whom the two ends stand for.
    pub(super) fn ways(&self, due: &Due, from: &Target, to: &Target) -> Option<Victims> {
        let nodes = |target, draw| {
            Some(match self.resolve(due.fault, target, draw)? {
                Victims::Nodes(ids) => ids,
                Victims::Terminals(_) | Victims::Ways(_) => Vec::new(),
            })
        };
        whom::ways(&nodes(from, due.draw)?, due.draw, |draw| nodes(to, draw)).map(Victims::Ways)
    }

    pub(super) fn resolve(&self, number: usize, target: &Target, draw: u64) -> Option<Victims> {
        let last = self.hit.range(..number).next_back().map(|(_, ids)| ids.as_slice());
        let ids = self.run.ids();
        let places: Vec<Option<u64>> = ids.iter().copied().map(Some).collect();
        let among = Among { nodes: &ids, places: &places, terminals: self.orders.len(), last };
        Some(match whom(&self.run.known(), among, target, draw)? {
            Whom::Nodes(ids) => Victims::Nodes(ids),
            Whom::Terminals(numbers) => Victims::Terminals(numbers),
        })
    }
}
