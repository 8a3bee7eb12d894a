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
    /// Up to where each replica's log is known to agree.
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
    /// of those who will vote can agree.
    pub(crate) fn next(&self, goal: &Goal, addresses: &BTreeMap<NodeId, String>) -> Option<Step> {
        let keep = !goal.learners.is_empty();
        if let [_, next] = &self.voters[..] {
            // Someone began this and did not end it.
            return self.majority_is_there(next).then(|| Step::Vote { voters: next.clone(), keep });
        }
        let voters = self.all_voters();
        let wanted = goal.voters.iter().chain(&goal.learners).filter(|node| !self.has(**node));
        let missing: BTreeMap<NodeId, String> =
            wanted.filter_map(|node| addresses.get(node).map(|address| (*node, address.clone()))).collect();
        if !missing.is_empty() {
            return Some(Step::AddLearners(missing));
        }
        if voters != goal.voters && !goal.voters.is_empty() {
            let newcomers = goal.voters.difference(&voters);
            if newcomers.clone().all(|node| self.caught_up(*node)) && self.majority_is_there(&goal.voters) {
                return Some(self.vote(goal, &voters, keep));
            }
            return None;
        }
        let extra = self.learners.difference(&goal.learners).copied();
        let last = if goal.told { self.last } else { 0 };
        let told = |node: &NodeId| self.silent.contains(node) || self.matched.get(node) >= Some(&last);
        let told: BTreeSet<NodeId> = extra.filter(told).collect();
        (!told.is_empty()).then_some(Step::RemoveLearners(told))
    }

    fn vote(&self, goal: &Goal, voters: &BTreeSet<NodeId>, keep: bool) -> Step {
        if goal.voters.contains(&self.leader) {
            return Step::Vote { voters: goal.voters.clone(), keep };
        }
        // A leader that goes would leave the group to a timer.
        let heirs = goal.voters.intersection(voters).filter(|node| self.caught_up(**node));
        match heirs.copied().max_by_key(|node| self.matched.get(node).copied()) {
            Some(heir) => Step::Lead(heir),
            None => {
                let with_leader = goal.voters.iter().copied().chain([self.leader]).collect();
                Step::Vote { voters: with_leader, keep: true }
            }
        }
    }
}

/// Which group's leadership should move, and to whom, so that the nodes lead as many groups each: one at a time. Only
/// to a voter that is there and has caught up.
pub(crate) fn balance<'a, G: Copy + Ord>(
    groups: impl Iterator<Item = (G, &'a Shape)> + Clone,
    nodes: &BTreeSet<NodeId>,
) -> Option<(G, NodeId)> {
    let mut led: BTreeMap<NodeId, usize> = nodes.iter().map(|node| (*node, 0)).collect();
    for (_, shape) in groups.clone() {
        *led.entry(shape.leader).or_default() += 1;
    }
    let moves = groups.filter(|(_, shape)| shape.voters.len() == 1).flat_map(|(group, shape)| {
        let heirs = shape.voters[0].iter().copied();
        heirs
            .filter(move |heir| nodes.contains(heir) && shape.caught_up(*heir))
            .map(move |heir| (group, shape, heir))
    });
    let gain =
        |shape: &Shape, heir: NodeId| led[&shape.leader].saturating_sub(led.get(&heir).copied().unwrap_or(0));
    let best = moves.map(|(group, shape, heir)| (gain(shape, heir), group, heir)).max()?;
    (best.0 > 1).then_some((best.1, best.2))
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
        shape.next(goal, &addresses())
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
    fn leaders_are_spread_and_then_left_alone() {
        let nodes = set(&[1, 2, 3]);
        let mut groups: Vec<(u16, Shape)> = (0..6).map(|group| (group, shape(1, &[1, 2, 3], &[]))).collect();
        for moved in 0..4 {
            let (group, heir) =
                balance(groups.iter().map(|(group, shape)| (*group, shape)), &nodes).unwrap_or_default();
            assert!(heir > NodeId(1), "move {moved}");
            groups[usize::from(group)].1.leader = heir;
        }
        assert_eq!(balance(groups.iter().map(|(group, shape)| (*group, shape)), &nodes), None);
        groups[0].1.leader = NodeId(1);
        let mut away = shape(1, &[1, 2, 3], &[]);
        away.silent = set(&[2, 3]);
        assert_eq!(
            balance([(1u16, &away), (2, &away), (3, &away)].into_iter(), &nodes),
            None,
            "nobody to lead"
        );
    }
}
