//! How a raft group is made up, and one step on the way to how it should be. What nodes tell each other about it, and
//! the rule for the next step; carrying it out is `member::steward`.

use std::collections::{BTreeMap, BTreeSet};

use reveille_protocol::id::NodeId;
use serde::{Deserialize, Serialize};

/// A replica that misses no more entries than this has caught up: what is left is a moment's work.
const CAUGHT_UP: u64 = 1000;

/// A group as its leader sees it. Sent between nodes: append only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Who leads it.
    pub leader: NodeId,
    /// Who votes: one set, or two while one takes the place of the other.
    pub voters: Vec<BTreeSet<NodeId>>,
    /// Who has a copy and no vote.
    pub learners: BTreeSet<NodeId>,
    /// Log index of this membership.
    pub since: u64,
    /// The leader's last log index.
    pub last: u64,
    /// Up to where each replica's log is known to agree. The leader's own counts beyond this membership only once that is
    /// committed: it is told to others before the leader's disk has it.
    pub matched: BTreeMap<NodeId, u64>,
    /// Members that the leader has not heard of for some seconds.
    pub silent: BTreeSet<NodeId>,
}

/// A change of a group's membership. Sent between nodes: append only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// These get a copy; their peer addresses beside them.
    AddLearners(BTreeMap<NodeId, String>),
    /// These vote, and nobody else. Those who cease to vote keep their copies if `keep` says so.
    Vote {
        /// Who.
        voters: BTreeSet<NodeId>,
        /// Whether the others stay learners.
        keep: bool,
    },
    /// These learners are members no more.
    RemoveLearners(BTreeSet<NodeId>),
    /// Another voter leads.
    Lead(NodeId),
}

/// How a group should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Goal {
    /// Who should vote.
    pub(crate) voters: BTreeSet<NodeId>,
    /// Who should have a copy beside them.
    pub(crate) learners: BTreeSet<NodeId>,
    /// Who goes must have the very last entries first: they say that it goes.
    pub(crate) told: bool,
}

impl Shape {
    /// Everyone who votes, also while two sets do.
    pub fn all_voters(&self) -> BTreeSet<NodeId> {
        self.voters.iter().flatten().copied().collect()
    }

    /// Does this node have a copy?
    pub fn has(&self, node: NodeId) -> bool {
        self.learners.contains(&node) || self.voters.iter().any(|voters| voters.contains(&node))
    }

    /// Is this membership there to stay? Before, the next leader may be one that never heard of it.
    fn is_committed(&self) -> bool {
        let has = |node: &&NodeId| self.matched.get(node).is_some_and(|index| *index >= self.since);
        self.voters.iter().all(|voters| voters.iter().filter(has).count() > voters.len() / 2)
    }

    /// Does the group go on without this node, whoever leads it next? A copy without a vote is a matter of `copies`.
    pub(crate) fn has_let_go(&self, node: NodeId, copies: bool) -> bool {
        let member = if copies { self.has(node) } else { self.all_voters().contains(&node) };
        !member && self.is_committed()
    }

    fn caught_up(&self, node: NodeId) -> bool {
        let matched = self.matched.get(&node).copied().unwrap_or(0);
        node == self.leader || (!self.silent.contains(&node) && matched + CAUGHT_UP >= self.last)
    }

    /// A majority of these is there to agree.
    fn majority_is_there(&self, voters: &BTreeSet<NodeId>) -> bool {
        voters.iter().filter(|node| !self.silent.contains(node)).count() > voters.len() / 2
    }

    /// Does a member that is there lack more than what is always on its way?
    pub(crate) fn catches_up(&self) -> bool {
        let mut members = self.all_voters();
        members.extend(&self.learners);
        members.iter().any(|node| !self.silent.contains(node) && !self.caught_up(*node))
    }

    /// Another voter that could lead at once; different ones for different numbers.
    pub(crate) fn heir(&self, number: usize) -> Option<NodeId> {
        let voters = self.all_voters();
        let heirs = voters.into_iter().filter(|node| *node != self.leader && self.caught_up(*node));
        let heirs: Vec<NodeId> = heirs.collect();
        heirs.get(number % heirs.len().max(1)).copied()
    }

    /// Is a copy on its way that the group waits for?
    pub(crate) fn is_moving(&self, goal: &Goal) -> bool {
        let voters = self.all_voters();
        let comes = |node: &NodeId| self.learners.contains(node) && !voters.contains(node);
        // One that is away may never come, and must not keep others waiting.
        goal.voters.iter().any(|node| comes(node) && !self.silent.contains(node))
    }

    /// The next step towards the goal; `None` if there is none, or none is possible now. No step makes a group wait for
    /// a node that is not there: who is to vote has caught up first, who leads hands over before it goes, and a majority
    /// of those who will vote can agree. None of `barred` is handed the lead.
    pub(crate) fn next(
        &self,
        goal: &Goal,
        addresses: &BTreeMap<NodeId, String>,
        barred: &BTreeSet<NodeId>,
    ) -> Option<Step> {
        let keep = !goal.learners.is_empty();
        if let [_, next] = &self.voters[..] {
            // Someone began this and did not end it.
            return self.majority_is_there(next).then(|| Step::Vote { voters: next.clone(), keep });
        }
        let voters = self.all_voters();
        // First of all: whoever comes is to reach the leader that stays, not the one that goes.
        if !goal.voters.is_empty() && !goal.voters.contains(&self.leader) {
            let heirs = goal.voters.intersection(&voters);
            let heirs = heirs.filter(|node| self.caught_up(**node) && !barred.contains(node));
            if let Some(heir) = heirs.copied().max_by_key(|node| self.matched.get(node).copied()) {
                return Some(Step::Lead(heir));
            }
        }
        let wanted = goal.voters.iter().chain(&goal.learners).filter(|node| !self.has(**node));
        let missing: BTreeMap<NodeId, String> =
            wanted.filter_map(|node| addresses.get(node).map(|address| (*node, address.clone()))).collect();
        if !missing.is_empty() {
            return Some(Step::AddLearners(missing));
        }
        if voters != goal.voters && !goal.voters.is_empty() {
            let newcomers = goal.voters.difference(&voters);
            if newcomers.clone().all(|node| self.caught_up(*node)) && self.majority_is_there(&goal.voters) {
                return Some(self.vote(goal, keep));
            }
            return None;
        }
        let extra = self.learners.difference(&goal.learners).copied();
        let last = if goal.told { self.last } else { 0 };
        let told = |node: &NodeId| self.silent.contains(node) || self.matched.get(node) >= Some(&last);
        let told: BTreeSet<NodeId> = extra.filter(told).collect();
        (!told.is_empty()).then_some(Step::RemoveLearners(told))
    }

    fn vote(&self, goal: &Goal, keep: bool) -> Step {
        if goal.voters.contains(&self.leader) {
            return Step::Vote { voters: goal.voters.clone(), keep };
        }
        // Nobody can take over, and a leader that goes would leave the group to a timer: it sees the newcomers in.
        let with_leader = goal.voters.iter().copied().chain([self.leader]).collect();
        Step::Vote { voters: with_leader, keep: true }
    }
}

/// A leadership that should move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Move<G> {
    pub(crate) group: G,
    pub(crate) heir: NodeId,
    pub(crate) why: Why,
}

/// Why a leadership moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Why {
    #[error("its leader does not reach a node that others reach")]
    Torn,
    #[error("leaders are uneven")]
    Uneven,
}

/// Which group's leadership should move next, and to whom: away from the ends of `torn` links, then so that the nodes lead
/// as many groups each. Only to a voter that is there, has caught up, is at no such end, and is not `barred` for the group.
pub(crate) fn next_move<'a, G: Copy + Ord>(
    groups: impl Iterator<Item = (G, &'a Shape)> + Clone,
    nodes: &BTreeSet<NodeId>,
    torn: &BTreeSet<NodeId>,
    barred: impl Fn(G, NodeId) -> bool + Copy,
) -> Option<Move<G>> {
    let mut led: BTreeMap<NodeId, usize> = nodes.difference(torn).map(|node| (*node, 0)).collect();
    let heirs: BTreeSet<NodeId> = led.keys().copied().collect();
    for (_, shape) in groups.clone() {
        *led.entry(shape.leader).or_default() += 1;
    }
    let moves = groups.filter(|(_, shape)| shape.voters.len() == 1).flat_map(|(group, shape)| {
        let heirs = shape.voters[0].intersection(&heirs);
        let can =
            move |heir: &NodeId| *heir != shape.leader && shape.caught_up(*heir) && !barred(group, *heir);
        let heirs = heirs.filter(move |heir| can(heir));
        heirs.map(move |heir| (group, shape.leader, *heir))
    });
    let gain = |leader: NodeId, heir: NodeId| led[&leader].saturating_sub(led[&heir]);
    let moves = moves.map(|(group, leader, heir)| (torn.contains(&leader), gain(leader, heir), group, heir));
    let (torn, gain, group, heir) = moves.max()?;
    let why = if torn { Why::Torn } else { Why::Uneven };
    (torn || gain > 1).then_some(Move { group, heir, why })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    fn shape(leader: u64, voters: &[u64], learners: &[u64]) -> Shape {
        let members = voters.iter().chain(learners);
        Shape {
            leader: NodeId(leader),
            voters: vec![set(voters)],
            learners: set(learners),
            last: 5000,
            matched: members.map(|node| (NodeId(*node), 5000)).collect(),
            ..Shape::default()
        }
    }

    fn goal(voters: &[u64], learners: &[u64]) -> Goal {
        Goal { voters: set(voters), learners: set(learners), told: true }
    }

    fn addresses() -> BTreeMap<NodeId, String> {
        (1..=9).map(|node| (NodeId(node), format!("n{node}"))).collect()
    }

    fn next(shape: &Shape, goal: &Goal) -> Option<Step> {
        shape.next(goal, &addresses(), &BTreeSet::new())
    }

    #[test]
    fn a_replica_moves_by_copy_vote_and_farewell() {
        let goal = goal(&[1, 2, 4], &[]);
        let mut now = shape(1, &[1, 2, 3], &[]);
        assert_eq!(
            next(&now, &goal),
            Some(Step::AddLearners(BTreeMap::from([(NodeId(4), "n4".to_owned())])))
        );
        now.learners = set(&[4]);
        assert_eq!((next(&now, &goal), now.is_moving(&goal)), (None, true), "it has nothing yet");
        now.matched.insert(NodeId(4), 4500);
        assert_eq!(next(&now, &goal), Some(Step::Vote { voters: set(&[1, 2, 4]), keep: false }));
        now.silent = set(&[4]);
        assert_eq!(next(&now, &goal), None, "it is not there");
        let now = shape(1, &[1, 2, 4], &[]);
        assert_eq!(next(&now, &goal), None);
    }

    #[test]
    fn a_leader_that_goes_hands_over_first() {
        let goal = goal(&[1, 2, 4], &[]);
        let mut now = shape(3, &[1, 2, 3], &[4]);
        now.matched.insert(NodeId(2), 4999);
        assert_eq!(next(&now, &goal), Some(Step::Lead(NodeId(1))));
        now.silent = set(&[1]);
        assert_eq!(next(&now, &goal), Some(Step::Lead(NodeId(2))));
        now.silent.clear();
        let step = now.next(&goal, &addresses(), &set(&[1]));
        assert_eq!(step, Some(Step::Lead(NodeId(2))), "the first did not take it");
        now.learners.clear();
        assert_eq!(
            next(&now, &goal),
            Some(Step::Lead(NodeId(1))),
            "before the newcomer: who goes may not reach it"
        );
        // Nobody who votes stays: the leader sees the newcomers in.
        let now = shape(3, &[3], &[4]);
        let step = next(&now, &self::goal(&[4], &[]));
        assert_eq!(step, Some(Step::Vote { voters: set(&[3, 4]), keep: true }));
    }

    #[test]
    fn what_was_begun_is_ended_and_nothing_waits_for_the_dead() {
        let mut joint = shape(1, &[1, 2, 3], &[]);
        joint.voters.push(set(&[1, 2, 4]));
        assert_eq!(
            next(&joint, &goal(&[1, 2, 3], &[])),
            Some(Step::Vote { voters: set(&[1, 2, 4]), keep: false })
        );
        let mut fewer = shape(1, &[1, 2, 3], &[]);
        fewer.silent = set(&[2]);
        assert_eq!(next(&fewer, &goal(&[1, 2], &[])), None, "two of two could not agree");
        fewer.silent = set(&[3]);
        assert_eq!(next(&fewer, &goal(&[1, 2], &[])), Some(Step::Vote { voters: set(&[1, 2]), keep: false }));
    }

    #[test]
    fn learners_of_the_meta_group_come_and_go_once_they_know() {
        let mut now = shape(1, &[1, 2, 3], &[4]);
        assert_eq!(next(&now, &goal(&[1, 2, 3], &[4])), None);
        now.matched.insert(NodeId(4), 4999);
        assert_eq!(next(&now, &goal(&[1, 2, 3], &[])), None, "it does not know yet");
        now.silent = set(&[4]);
        assert_eq!(next(&now, &goal(&[1, 2, 3], &[])), Some(Step::RemoveLearners(set(&[4]))));
        let step = next(&shape(1, &[1, 2, 3], &[]), &goal(&[1, 2], &[3]));
        assert_eq!(step, Some(Step::Vote { voters: set(&[1, 2]), keep: true }), "stays as a learner");
    }

    #[test]
    fn a_node_is_let_go_when_no_leader_can_want_it_back() {
        let mut now = shape(1, &[1, 2, 4], &[3]);
        now.since = 4990;
        assert!(!now.has_let_go(NodeId(4), false), "it votes");
        assert!(now.has_let_go(NodeId(3), false) && !now.has_let_go(NodeId(3), true), "it has a copy");
        now.learners.clear();
        assert!(now.has_let_go(NodeId(3), true));
        now.matched.extend([(NodeId(1), 4989), (NodeId(2), 4989)]);
        assert!(!now.has_let_go(NodeId(3), true), "one of three has heard of it");
        now.matched.insert(NodeId(2), 4990);
        assert!(now.has_let_go(NodeId(3), true), "two have");
        now.matched.remove(&NodeId(2));
        assert!(!now.has_let_go(NodeId(3), true), "of one nothing is known");
        // While two sets vote, both decide.
        let mut joint = shape(1, &[1, 2, 4], &[]);
        (joint.since, joint.voters) = (4990, vec![set(&[1, 2, 5]), set(&[1, 2, 4])]);
        joint.matched.extend([(NodeId(2), 4989), (NodeId(5), 4989)]);
        assert!(!joint.has_let_go(NodeId(3), true));
        joint.matched.insert(NodeId(5), 4990);
        assert!(joint.has_let_go(NodeId(3), true));
        // Alone it is a majority of its own, but not before its disk has it.
        let mut alone = shape(1, &[1], &[]);
        alone.since = 4990;
        assert!(alone.has_let_go(NodeId(3), true));
        alone.matched.insert(NodeId(1), 4989);
        assert!(!alone.has_let_go(NodeId(3), true));
    }

    /// Moves until no move is left: how many, and who leads then.
    fn moved(groups: &mut [(u16, Shape)], torn: &[u64]) -> (usize, Vec<u64>) {
        let mut moves = 0;
        let nodes = set(&[1, 2, 3]);
        while let Some(next) =
            next_move(groups.iter().map(|(g, shape)| (*g, shape)), &nodes, &set(torn), |_, _| false)
        {
            groups[usize::from(next.group)].1.leader = next.heir;
            moves += 1;
            assert!(moves < 100, "it comes to rest");
        }
        let mut leaders: Vec<u64> = groups.iter().map(|(_, shape)| shape.leader.0).collect();
        leaders.sort_unstable();
        (moves, leaders)
    }

    fn led_by(leaders: &[u64]) -> Vec<(u16, Shape)> {
        let shapes = leaders.iter().map(|leader| shape(*leader, &[1, 2, 3], &[]));
        (0..).zip(shapes).collect()
    }

    #[test]
    fn leaders_are_spread_and_then_left_alone() {
        assert_eq!(moved(&mut led_by(&[1; 6]), &[]), (4, vec![1, 1, 2, 2, 3, 3]));
        let mut all_away = led_by(&[1; 3]);
        for (_, shape) in &mut all_away {
            shape.silent = set(&[2, 3]);
        }
        assert_eq!(moved(&mut all_away, &[]), (0, vec![1; 3]), "nobody to lead");
    }

    #[test]
    fn the_ends_of_a_torn_link_lead_nothing_while_others_can() {
        assert_eq!(moved(&mut led_by(&[1, 2, 3, 1]), &[1, 3]), (3, vec![2; 4]));
        assert_eq!(
            moved(&mut led_by(&[2; 6]), &[1, 3]),
            (0, vec![2; 6]),
            "the balance does not bring it back"
        );
        let groups = led_by(&[1, 1]);
        let groups = groups.iter().map(|(g, shape)| (*g, shape));
        let next =
            next_move(groups, &set(&[1, 2, 3]), &set(&[1, 3]), |group, heir| (group, heir) == (1, NodeId(2)));
        assert_eq!(
            next.map(|next| (next.group, next.heir)),
            Some((0, NodeId(2))),
            "the last did not take it"
        );
        let mut behind = led_by(&[1, 3]);
        behind[0].1.silent = set(&[2]);
        assert_eq!(moved(&mut behind, &[1, 3]), (1, vec![1, 2]), "nobody else can");
    }
}
