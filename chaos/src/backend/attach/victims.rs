//! Whom a fault in a cluster that is its user's own hits: in words, for limits, and for hooks.

use std::collections::BTreeSet;

use reveille_chaos::scenario::Kind;

use super::hooks::On;
use crate::backend::whom;

/// Whom a fault hits.
#[derive(Debug, Clone)]
pub(super) enum Victims {
    Nodes(Vec<u64>),
    /// Numbers from 0.
    Terminals(Vec<usize>),
    /// What goes from one node to another.
    Ways(BTreeSet<(u64, u64)>),
}

impl Victims {
    pub(super) fn words(&self) -> String {
        match self {
            Victims::Nodes(ids) => whom::nodes(ids),
            Victims::Terminals(numbers) => whom::terminals(numbers),
            Victims::Ways(ways) => {
                let all: Vec<String> = ways.iter().map(|(from, to)| format!("{from} -> {to}")).collect();
                format!("link {}", all.join(", "))
            }
        }
    }

    /// The nodes that are away for it: of a cut, the smaller end.
    pub(super) fn away(&self) -> Vec<u64> {
        match self {
            Victims::Nodes(ids) => ids.clone(),
            Victims::Terminals(_) => Vec::new(),
            Victims::Ways(ways) => {
                let ends = |end: fn(&(u64, u64)) -> u64| ways.iter().map(end).collect::<BTreeSet<u64>>();
                let (from, to) = (ends(|way| way.0), ends(|way| way.1));
                if to.len() < from.len() { to } else { from }.into_iter().collect()
            }
        }
    }

    /// What a hook is run for.
    pub(super) fn ons(&self, kind: Kind) -> Vec<On> {
        let way = |from: u64, to: u64| On { node: from, to: Some(to) };
        let mut ons: Vec<On> = match self {
            Victims::Nodes(ids) => ids.iter().map(|id| On { node: *id, to: None }).collect(),
            Victims::Terminals(_) => Vec::new(),
            Victims::Ways(ways) if kind.name() == "cut" => {
                ways.iter().flat_map(|(from, to)| [way(*from, *to), way(*to, *from)]).collect()
            }
            Victims::Ways(ways) => ways.iter().map(|(from, to)| way(*from, *to)).collect(),
        };
        ons.sort();
        ons.dedup();
        ons
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn of_a_cut_the_smaller_end_is_away() {
        let ways = BTreeSet::from([(2, 1), (3, 1)]);
        let victims = Victims::Ways(ways);
        assert_eq!(victims.away(), [1]);
        assert_eq!(victims.ons(Kind::find("cut").unwrap()).len(), 4);
        assert_eq!(victims.ons(Kind::find("cut-one-way").unwrap()).len(), 2);
    }
}
