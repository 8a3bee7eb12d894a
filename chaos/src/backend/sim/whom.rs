//! Whom a fault hits, found when it strikes, by the draw that the plan has for it.

use std::collections::BTreeSet;

use reveille_chaos::scenario::{Role, Target, Which};
use reveille_links::draw::Draws;
use reveille_protocol::id::NodeId;

use super::run::Run;

/// Whom a fault hits, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Victims {
    Nodes(Vec<u64>),
    /// Ways between nodes, from and to.
    Ways(Vec<(u64, u64)>),
    /// Numbers from 0.
    Terminals(Vec<usize>),
    Publishers,
    /// The cluster as a whole.
    Cluster,
}

impl Victims {
    /// In words, for the history.
    pub(super) fn words(&self) -> String {
        let list = |name: &str, numbers: Vec<String>| format!("{name} {}", numbers.join(", "));
        match self {
            Victims::Nodes(ids) => list("node", ids.iter().map(u64::to_string).collect()),
            Victims::Ways(ways) => {
                let ways = ways.iter().take(6).map(|(from, to)| format!("{from} -> {to}"));
                list("link", ways.collect())
            }
            Victims::Terminals(numbers) => {
                list("terminal", numbers.iter().take(5).map(|number| (number + 1).to_string()).collect())
            }
            Victims::Publishers => "publishers".to_owned(),
            Victims::Cluster => "cluster".to_owned(),
        }
    }
}

/// The ways from some to others.
pub(super) fn ways(run: &Run, last: &[u64], from: &Target, to: &Target, draw: u64) -> Option<Victims> {
    let mut draws = Draws::new(draw, "whom");
    let (Victims::Nodes(from), Victims::Nodes(to)) =
        (resolve(run, last, from, &mut draws)?, resolve(run, last, to, &mut draws)?)
    else {
        return None;
    };
    let ways = from.iter().flat_map(|from| to.iter().map(move |to| (*from, *to)));
    let ways: Vec<(u64, u64)> = ways.filter(|(from, to)| from != to).collect();
    (!ways.is_empty()).then_some(Victims::Ways(ways))
}

/// Who a target is now; `None` where nobody is. `last`: what the fault before it hit.
pub(super) fn whom(run: &Run, last: &[u64], target: &Target, draw: u64) -> Option<Victims> {
    resolve(run, last, target, &mut Draws::new(draw, "whom"))
}

fn resolve(run: &Run, last: &[u64], target: &Target, draws: &mut Draws) -> Option<Victims> {
    let (mut nodes, mut terminals) = (BTreeSet::new(), BTreeSet::new());
    let all = run.nodes();
    let count = run.scenario.workload.terminals as usize;
    let known = run.known();
    let shards: Vec<u64> =
        known.leaders.iter().filter(|(group, _)| **group > 0).map(|(_, (leader, _))| *leader).collect();
    let drawn = |draws: &mut Draws, from: &[u64]| draws.some(from, 1).first().copied();
    for role in &target.0 {
        match role {
            Role::Leader => drop(nodes.insert(drawn(draws, &shards)?)),
            Role::MetaLeader => drop(nodes.insert(known.leaders.get(&0)?.0)),
            Role::Follower => {
                let leader = drawn(draws, &shards)?;
                let others: Vec<u64> = all.iter().filter(|id| **id != leader).copied().collect();
                nodes.insert(drawn(draws, &others)?);
            }
            Role::Owner(Which::Number(number)) => {
                nodes.insert(*known.owners.get(&(*number as usize - 1))?);
            }
            Role::Owner(Which::Any) => {
                let owners: Vec<u64> = known.owners.values().copied().collect();
                nodes.insert(drawn(draws, &owners)?);
            }
            Role::Anchor(which) => {
                let of = |device: usize| run.world.anchor_of(device).map(|node: NodeId| node.0);
                let anchor = match which {
                    Which::Number(number) => of(*number as usize - 1)?,
                    Which::Any => drawn(draws, &(0..count).filter_map(of).collect::<Vec<u64>>())?,
                };
                nodes.insert(anchor);
            }
            Role::Any => drop(nodes.insert(drawn(draws, &all)?)),
            Role::Minority => nodes.extend(draws.some(&all, (all.len() - 1) / 2)),
            Role::Majority => nodes.extend(draws.some(&all, all.len() / 2 + 1)),
            Role::All => nodes.extend(&all),
            // Whoever has that place now.
            Role::Node(place) => drop(nodes.insert((*known.places.get(*place as usize - 1)?)?)),
            Role::Last => nodes.extend(last),
            Role::Terminal(Which::Number(number)) => drop(terminals.insert(*number as usize - 1)),
            Role::Terminal(Which::Any) => drop(terminals.insert(draws.below(count as u64) as usize)),
            Role::Terminals => terminals.extend(0..count),
            Role::Publishers => return Some(Victims::Publishers),
            Role::HandoffSource => drop(nodes.insert(known.handed?.0)),
            Role::HandoffTarget => drop(nodes.insert(known.handed?.1)),
        }
    }
    Some(match terminals.is_empty() {
        true => Victims::Nodes(nodes.into_iter().collect()),
        false => Victims::Terminals(terminals.into_iter().collect()),
    })
}
