//! C10, replicas converge.

use std::collections::BTreeMap;

use super::Checker;
use super::outcome::{Findings, Outcome};
use crate::facts::{Facts, Moment, Replica};

pub(super) const CHECKER: Checker = Checker {
    id: "C10",
    name: "convergence",
    definition: "replicas of a group that have applied the same log index have the same state, at any time; and at the \
                 end all of them have applied the same index",
    safety: true,
    check,
};

fn check(facts: &Facts) -> Outcome {
    let mut findings = Findings::default();
    // By group and index: the first that was seen there.
    let mut first: BTreeMap<(u64, u64), &Replica> = BTreeMap::new();
    let mut last: BTreeMap<(u64, u64), &Replica> = BTreeMap::new();
    let mut compared = 0u64;
    for replica in &facts.replicas {
        last.insert((replica.group, replica.node), replica);
        let other = *first.entry((replica.group, replica.index)).or_insert(replica);
        if other.node == replica.node && other.hash == replica.hash {
            continue;
        }
        compared += 1;
        if other.hash != replica.hash {
            findings.add(&[other.when, replica.when], || {
                format!(
                    "group {} at log index {}: node {} has state {} and node {} has {}",
                    replica.group,
                    replica.index,
                    other.node,
                    facts.names.text(other.hash),
                    replica.node,
                    facts.names.text(replica.hash)
                )
            });
        }
    }
    // Nobody sends the rest to one that belongs no more, or to where a replica has gone from.
    last.retain(|(group, node), replica| {
        let moved = |gone: &(Moment, u64, u64)| (gone.1, gone.2) == (*node, *group) && gone.0 > replica.when;
        facts.left.iter().all(|(_, left)| left != node) && !facts.moved.iter().any(moved)
    });
    let mut groups: BTreeMap<u64, Vec<&Replica>> = BTreeMap::new();
    last.into_values().for_each(|replica| groups.entry(replica.group).or_default().push(replica));
    for (group, replicas) in &groups {
        let behind = replicas.iter().min_by_key(|replica| replica.index);
        let ahead = replicas.iter().max_by_key(|replica| replica.index);
        if let (Some(behind), Some(ahead)) = (behind, ahead)
            && behind.index != ahead.index
            && facts.cut.is_none()
        {
            findings.add(&[behind.when, ahead.when], || {
                format!(
                    "group {group}: at the end node {} has applied {} and node {} has applied {}",
                    behind.node, behind.index, ahead.node, ahead.index
                )
            });
        }
    }
    if compared == 0 && findings.is_empty() {
        return Outcome::unknown("no two replicas were seen at the same log index");
    }
    findings.outcome(facts, format!("{} groups, {compared} comparisons", groups.len()))
}
