//! Tears: two nodes that live and do not hear each other, while a third hears both. Each node tells the others whom it
//! hears; here it is worked out what follows. What is done about it is the steward's.
//!
//! A torn link needs no fault of the network: a node whose certificate has ended keeps its links, and makes none to a
//! node that was started again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reveille_protocol::id::NodeId;
use reveille_protocol::time::Instant;

use super::{Member, incarnation};
use crate::env::{Env, Transport};
use crate::link::Lane;
use crate::rpc::Frame;

/// The format since which nodes tell whom they hear.
const TOLD: u32 = 3;
/// A tear counts when it has lasted this long: of one that dies, or comes back, not all hear at once.
const LASTING: Duration = Duration::from_secs(5);
/// One that lasted counts for this long after it healed: of a link that comes and goes, leaders do not come and go too.
const HEALING: Duration = Duration::from_secs(30);

/// Two nodes, the lower first.
pub(crate) type Pair = (NodeId, NodeId);

/// What the other nodes said, and what follows from it.
#[derive(Default)]
pub(super) struct Tears(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// Whom each node hears, and when it said so.
    hears: BTreeMap<NodeId, (Instant, BTreeSet<NodeId>)>,
    /// Which tears are seen.
    seen: BTreeMap<Pair, Seen>,
    /// Nodes that hear, or are heard by, no majority.
    alone: BTreeSet<NodeId>,
    /// The lasting ones that the log tells of.
    logged: BTreeSet<Pair>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    since: Instant,
    last: Instant,
}

impl Seen {
    fn lasts(&self, now: Instant) -> bool {
        let lasted = self.last.since(self.since) >= LASTING;
        lasted && now.since(self.last) < HEALING
    }
}

impl<E: Env> Member<E> {
    /// A node says whom it hears.
    pub(super) fn told_whom_it_hears(&self, from: NodeId, hears: BTreeSet<NodeId>) {
        let now = self.shared.clocks.monotonic();
        self.tears.0.lock().unwrap_or_else(PoisonError::into_inner).hears.insert(from, (now, hears));
    }

    /// Tells the other nodes whom this one hears, and looks what they said.
    pub(super) fn mind_tears(&self) {
        let directory = self.directory();
        // One that leaves leads until others have its groups, so its links count.
        let belongs = directory.roster.records.iter().filter(|(_, record)| !record.standing.is_invited());
        let members: BTreeSet<NodeId> = belongs.map(|(node, _)| *node).collect();
        let me = self.config.node;
        let heard = |node: &NodeId| *node == me || self.heard_lately(*node);
        let heard: BTreeSet<NodeId> = members.iter().copied().filter(heard).collect();
        let transport = self.shared.calls.transport();
        let frame = Frame::Hears(heard.clone()).encode();
        for peer in self.others().into_keys().filter(|peer| transport.format(*peer) >= Some(TOLD)) {
            // It is told again in a second.
            let _ = transport.send(peer, Lane::Control, frame.clone());
        }
        let now = self.shared.clocks.monotonic();
        let mut known = self.tears.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.hears.retain(|_, (said, _)| now.since(*said) < incarnation::SILENT);
        known.hears.insert(me, (now, heard));
        let said: BTreeMap<NodeId, &BTreeSet<NodeId>> =
            known.hears.iter().map(|(node, (_, hears))| (*node, hears)).collect();
        let (torn, alone) = (torn(&said, &members), alone(&said, &members));
        known.saw(torn, now);
        known.alone = alone;
        known.log(now);
    }

    /// The nodes that have not heard each other for some time, although others hear both.
    pub(crate) fn torn(&self) -> BTreeSet<Pair> {
        let now = self.shared.clocks.monotonic();
        self.tears.0.lock().unwrap_or_else(PoisonError::into_inner).lasting(now).collect()
    }

    /// The nodes that should not lead while others can: the ends of lasting tears. Where one end has next to no links, it
    /// is that one alone, or one sick node would keep all healthy ones from leading.
    pub(crate) fn torn_ends(&self) -> BTreeSet<NodeId> {
        let now = self.shared.clocks.monotonic();
        let known = self.tears.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ends =
            known.lasting(now).flat_map(|(one, other)| match (known.is_alone(one), known.is_alone(other)) {
                (true, false) => vec![one],
                (false, true) => vec![other],
                _ => vec![one, other],
            });
        ends.collect()
    }
}

impl Known {
    fn lasting(&self, now: Instant) -> impl Iterator<Item = Pair> {
        self.seen.iter().filter(move |(_, seen)| seen.lasts(now)).map(|(pair, _)| *pair)
    }

    fn is_alone(&self, node: NodeId) -> bool {
        self.alone.contains(&node)
    }

    fn saw(&mut self, torn: BTreeSet<Pair>, now: Instant) {
        self.seen.retain(|pair, seen| torn.contains(pair) || seen.lasts(now));
        for pair in torn {
            self.seen.entry(pair).or_insert(Seen { since: now, last: now }).last = now;
        }
    }

    fn log(&mut self, now: Instant) {
        let lasting: BTreeSet<Pair> = self.lasting(now).collect();
        for (one, other) in lasting.difference(&self.logged) {
            tracing::error!(
                %one,
                %other,
                "these nodes do not hear each other, though others hear both: they lead nothing while others can; look at \
                 the network between them, and at their certificates"
            );
        }
        for (one, other) in self.logged.difference(&lasting) {
            tracing::info!(%one, %other, "these nodes hear each other again, or one of them is down");
        }
        metrics::gauge!("reveille_links_torn").set(lasting.len() as f64);
        self.logged = lasting;
    }
}

/// Pairs of members of which one does not hear the other, while a third hears both.
fn torn(hears: &BTreeMap<NodeId, &BTreeSet<NodeId>>, members: &BTreeSet<NodeId>) -> BTreeSet<Pair> {
    let deaf = |one: NodeId, to: NodeId| hears.get(&one).is_some_and(|heard| !heard.contains(&to));
    let pairs = members.iter().flat_map(|one| members.range(*one..).map(move |other| (*one, *other)));
    let pairs = pairs.filter(|(one, other)| one != other && (deaf(*one, *other) || deaf(*other, *one)));
    let third = |(one, other): &Pair| {
        let mut others = hears.iter().filter(|(node, _)| *node != one && *node != other);
        others.any(|(_, heard)| heard.contains(one) && heard.contains(other))
    };
    pairs.filter(third).collect()
}

/// Members that no majority hears, themselves among those that do, or that say that they hear none.
fn alone(hears: &BTreeMap<NodeId, &BTreeSet<NodeId>>, members: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    let most = |count: usize| count * 2 > members.len();
    let heard = |node: &NodeId| {
        let others = hears.iter().filter(|(other, heard)| *other != node && heard.contains(node));
        others.count() + 1
    };
    let hearing =
        |node: &NodeId| hears.get(node).is_none_or(|heard| most(heard.intersection(members).count()));
    members.iter().copied().filter(|node| !most(heard(node)) || !hearing(node)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(hears: &[(u64, &[u64])]) -> Vec<(u64, u64)> {
        let set = |nodes: &[u64]| nodes.iter().copied().map(NodeId).collect::<BTreeSet<NodeId>>();
        let hears: BTreeMap<NodeId, BTreeSet<NodeId>> =
            hears.iter().map(|(node, heard)| (NodeId(*node), set(heard))).collect();
        let hears = hears.iter().map(|(node, heard)| (*node, heard)).collect();
        torn(&hears, &set(&[1, 2, 3])).into_iter().map(|(one, other)| (one.0, other.0)).collect()
    }

    #[test]
    fn a_tear_is_between_two_that_a_third_hears() {
        assert_eq!(found(&[(1, &[1, 2, 3]), (2, &[1, 2, 3]), (3, &[1, 2, 3])]), []);
        assert_eq!(found(&[(1, &[1, 2]), (2, &[1, 2, 3]), (3, &[2, 3])]), [(1, 3)]);
        assert_eq!(found(&[(1, &[1, 2, 3]), (2, &[1, 2, 3]), (3, &[2, 3])]), [(1, 3)], "one way only");
        assert_eq!(found(&[(2, &[1, 2, 3]), (3, &[2, 3])]), [(1, 3)], "as 3 sees it, which 1 does not reach");
    }

    #[test]
    fn a_tear_counts_when_it_lasted_and_for_some_time_after() {
        let (pair, mut known) = ((NodeId(1), NodeId(3)), Known::default());
        let second = |n: u64| Instant(n * 1000);
        let mut lasting = |torn: bool, at: u64| {
            known.saw(torn.then_some(pair).into_iter().collect(), second(at));
            known.lasting(second(at)).count() == 1
        };
        assert!(!lasting(true, 0) && !lasting(true, 4), "one that dies is not missed by all at once");
        assert!(!lasting(false, 5) && !lasting(true, 6) && !lasting(true, 10), "it was whole between");
        assert!(lasting(true, 11));
        assert!(lasting(false, 12) && lasting(true, 20) && lasting(false, 49), "it comes and goes");
        assert!(!lasting(false, 50));
    }

    #[test]
    fn one_with_next_to_no_links_is_alone() {
        let set = |nodes: &[u64]| nodes.iter().copied().map(NodeId).collect::<BTreeSet<NodeId>>();
        let all = set(&[1, 2, 3, 4, 5]);
        let (rest, lonely) = (set(&[1, 2, 3, 4]), set(&[4, 5]));
        let said = (1..=3).map(|node| (NodeId(node), &rest));
        let said: BTreeMap<NodeId, &BTreeSet<NodeId>> =
            said.chain([(NodeId(4), &all), (NodeId(5), &lonely)]).collect();
        assert_eq!(alone(&said, &all), set(&[5]));
        let unheard = said.into_iter().filter(|(node, _)| *node != NodeId(5)).collect();
        assert_eq!(alone(&unheard, &all), set(&[5]), "as those see it that do not hear what it says");
    }

    #[test]
    fn one_that_is_down_is_no_tear() {
        assert_eq!(found(&[(1, &[1, 2]), (2, &[1, 2])]), []);
        assert_eq!(found(&[(1, &[1, 2]), (2, &[1, 2]), (3, &[3])]), [], "it is cut off from all");
        assert_eq!(found(&[(2, &[2, 3])]), [], "nothing is known of 1");
    }
}
