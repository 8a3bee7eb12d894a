//! Whom a fault hits among real nodes and terminals, by what is known of them when it strikes.

use std::collections::BTreeSet;

use reveille_chaos::scenario::{Role, Target, Which};
use reveille_links::draw::Draws;

use super::live::Known;

/// Both ends of a way may be drawn as one and the same: then the other is drawn again, so often.
const ENDS: u32 = 16;
/// So many terminals are named where a fault hits several.
const NAMED: usize = 5;

/// Whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Whom {
    /// By their ids.
    Nodes(Vec<u64>),
    /// By their numbers, from 0.
    Terminals(Vec<usize>),
}

/// Among whom is drawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Among<'a> {
    pub(super) nodes: &'a [u64],
    /// Who has the places that scenarios name: `n1` has the first.
    pub(super) places: &'a [Option<u64>],
    pub(super) terminals: usize,
    /// The nodes that the fault before in the file hit last, if it has hit any.
    pub(super) last: Option<&'a [u64]>,
}

/// Who that is now; nobody, where nobody is known to be it.
pub(super) fn whom(known: &Known, among: Among<'_>, target: &Target, draw: u64) -> Option<Whom> {
    let mut draws = Draws::new(draw, "whom");
    let mut found = BTreeSet::new();
    let mut terminals = BTreeSet::new();
    let all = among.nodes;
    let shards: Vec<(u64, u64)> = known
        .leaders
        .iter()
        .filter(|(group, _)| **group > 0)
        .map(|(group, (leader, _))| (*group, *leader))
        .collect();
    let drawn = |draws: &mut Draws, from: &[u64]| draws.some(from, 1).first().copied();
    for role in &target.0 {
        match role {
            Role::Leader => {
                let leaders: Vec<u64> = shards.iter().map(|(_, leader)| *leader).collect();
                found.insert(drawn(&mut draws, &leaders)?);
            }
            Role::MetaLeader => {
                found.insert(known.leaders.get(&0)?.0);
            }
            Role::Follower => {
                let leader = draws.some(&shards, 1).first()?.1;
                let others: Vec<u64> = all.iter().filter(|id| **id != leader).copied().collect();
                found.insert(drawn(&mut draws, &others)?);
            }
            Role::Owner(Which::Number(number)) => {
                found.insert(*known.owners.get(&(*number as usize - 1))?);
            }
            Role::Owner(Which::Any) => {
                let mut owners: Vec<(usize, u64)> = known.owners.iter().map(|(t, n)| (*t, *n)).collect();
                owners.sort_unstable();
                found.insert(draws.some(&owners, 1).first()?.1);
            }
            Role::Anchor(Which::Number(number)) => {
                found.insert(*known.anchors.get(&(*number as usize - 1))?);
            }
            Role::Anchor(Which::Any) => {
                let mut anchors: Vec<(usize, u64)> = known.anchors.iter().map(|(t, n)| (*t, *n)).collect();
                anchors.sort_unstable();
                found.insert(draws.some(&anchors, 1).first()?.1);
            }
            Role::Any => {
                found.insert(drawn(&mut draws, all)?);
            }
            Role::Minority => found.extend(draws.some(all, (all.len() - 1) / 2)),
            Role::Majority => found.extend(draws.some(all, all.len() / 2 + 1)),
            Role::All => found.extend(all),
            Role::Node(number) => {
                found.insert((*among.places.get(*number as usize - 1)?)?);
            }
            Role::Last => found.extend(among.last?),
            Role::Terminal(Which::Number(number)) => {
                terminals.insert(*number as usize - 1);
            }
            Role::Terminal(Which::Any) => {
                terminals.insert(draws.below(among.terminals as u64) as usize);
            }
            Role::Terminals => terminals.extend(0..among.terminals),
            // Refused before anything started.
            Role::HandoffSource | Role::HandoffTarget | Role::Publishers => return None,
        }
    }
    Some(match terminals.is_empty() {
        true => Whom::Nodes(found.into_iter().collect()),
        false => Whom::Terminals(terminals.into_iter().collect()),
    })
}

/// What goes from these to whomever `to` draws; `None` where nobody is found, or no two are.
pub(super) fn ways<P: Copy + Ord>(
    from: &[P],
    draw: u64,
    to: impl Fn(u64) -> Option<Vec<P>>,
) -> Option<BTreeSet<(P, P)>> {
    let mut draws = Draws::new(draw, "to");
    for _ in 0..ENDS {
        let to = to(draws.draw())?;
        let all = from.iter().flat_map(|from| to.iter().map(move |to| (*from, *to)));
        let ways: BTreeSet<(P, P)> = all.filter(|(from, to)| from != to).collect();
        if !ways.is_empty() {
            return Some(ways);
        }
    }
    None
}

/// Nodes in words.
pub(super) fn nodes(ids: &[u64]) -> String {
    format!("node {}", ids.iter().map(u64::to_string).collect::<Vec<_>>().join(", "))
}

/// Terminals in words, by their numbers from 1.
pub(super) fn terminals(numbers: &[usize]) -> String {
    let named: Vec<String> = numbers.iter().take(NAMED).map(|number| (number + 1).to_string()).collect();
    let named = format!("terminal {}", named.join(", "));
    match numbers.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}
