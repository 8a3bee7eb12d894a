//! C9, recovery times and gaps of availability, against budgets.

use std::collections::{BTreeSet, HashMap};

use super::Checker;
use super::outcome::{Findings, Outcome};
use crate::facts::{Answer, Facts, Faulted, Moment, Step};

pub(super) const CHECKER: Checker = Checker {
    id: "C9",
    name: "recovery",
    definition: "nobody who wants to publish to a terminal waits longer than the budget for a success; a push that was \
                 acknowledged is given within its budget; every node that belongs to the cluster is ready within its budget \
                 after a fault ends; a cluster whose nodes came and went is settled at the end",
    safety: false,
    check,
};

/// A time that something took.
#[derive(Debug, Clone)]
pub(crate) struct Gap {
    pub(crate) from: Moment,
    pub(crate) to: Moment,
    /// Which terminal waited, or which push.
    pub(crate) whose: String,
}

impl Gap {
    fn ms(&self) -> u64 {
        (self.to.at - self.from.at) / 1000
    }
}

/// How long somebody wanted to publish to a terminal and nothing was acknowledged that was asked for in that time: per
/// terminal, since another group's success helps nobody.
pub(crate) fn publish_gaps(facts: &Facts) -> Vec<Gap> {
    let mut gaps = Vec::new();
    for terminal in &facts.terminals {
        // By the time of the answer; what has none waits until the end.
        let mut answers: Vec<(Moment, Moment, bool)> = terminal
            .pushes
            .iter()
            .map(|push| &facts.pushes[*push as usize])
            .map(|push| match push.answer {
                Answer::Stored { when, .. } => (when, push.asked, true),
                Answer::Failed(when) | Answer::Unknown(when) => (when, push.asked, false),
                Answer::Open => (facts.last, push.asked, false),
            })
            .collect();
        answers.sort_unstable_by_key(|(when, ..)| *when);
        let mut since: Option<Moment> = None;
        let mut gap = |from: Moment, to: Moment| {
            gaps.push(Gap { from, to, whose: facts.names.text(terminal.name).to_owned() });
        };
        for (when, asked, stored) in &answers {
            let from = since.map_or(*asked, |since| since.min(*asked));
            if *stored {
                gap(from, *when);
            }
            since = (!stored).then_some(from);
        }
        if let (Some(from), Some((last, ..))) = (since, answers.last()) {
            gap(from, *last);
        }
    }
    gaps
}

/// From the acknowledgement to the application. A push that comes before its acknowledgement took no time.
pub(crate) fn delivery_gaps(facts: &Facts) -> Vec<Gap> {
    let mut came: HashMap<u32, Moment> = HashMap::new();
    for stepped in facts.terminals.iter().flat_map(|terminal| &terminal.steps) {
        if let Step::Delivered(delivery) = stepped.step
            && let Some(push) = delivery.push
        {
            came.entry(push).or_insert(stepped.when);
        }
    }
    let gap = |(number, push): (u32, &crate::facts::Push)| {
        let Answer::Stored { when, .. } = push.answer else { return None };
        let to = (*came.get(&number)?).max(when);
        Some(Gap { from: when, to, whose: facts.names.text(push.payload).to_owned() })
    };
    (0u32..).zip(&facts.pushes).filter_map(gap).collect()
}

/// From the end of each fault until every node is ready, if one was not; at the latest until the next fault begins. While
/// another fault is about, its victims' unreadiness says nothing.
pub(crate) fn ready_gaps(facts: &Facts) -> Vec<Gap> {
    let mut gaps = Vec::new();
    // Of a node that belongs no more nothing is awaited.
    let left = facts.left.iter().map(|(when, node)| (*when, *node, true));
    let mut seen: Vec<(Moment, u64, bool)> = facts.ready.iter().copied().chain(left).collect();
    seen.sort_unstable();
    for fault in &facts.faults {
        let Some(ended) = fault.ended else { continue };
        let is_about = |other: &Faulted| other.first() < ended && other.ended.is_none_or(|end| end > ended);
        if facts.faults.iter().any(is_about) {
            continue;
        }
        let next = facts.faults.iter().map(|fault| fault.first()).find(|first| *first > ended);
        let next = next.unwrap_or(facts.last);
        let mut unready: BTreeSet<u64> = BTreeSet::new();
        let mut to = None;
        let mut was = false;
        for (when, node, ready) in seen.iter().take_while(|(when, ..)| *when < next) {
            if *when > ended && to.is_none() && !was {
                was = !unready.is_empty();
            }
            if *ready {
                unready.remove(node);
            } else {
                unready.insert(*node);
            }
            if *when > ended && was && unready.is_empty() {
                to = to.or(Some(*when));
            }
        }
        if was || !unready.is_empty() {
            let whose = format!("{} of {}", facts.names.text(fault.kind), facts.names.text(fault.target));
            gaps.push(Gap { from: ended, to: to.unwrap_or(next), whose });
        }
    }
    gaps
}

fn check(facts: &Facts) -> Outcome {
    let expect = &facts.begin.expect;
    let kinds = [
        ("publish gap", expect.publish_gap_ms, publish_gaps(facts)),
        ("delivery", expect.deliver_ms, delivery_gaps(facts)),
        ("ready again", expect.ready_ms, ready_gaps(facts)),
    ];
    let mut findings = Findings::default();
    let mut said = Vec::new();
    let mut missing = Vec::new();
    for (kind, budget, gaps) in kinds {
        let worst = gaps.iter().max_by_key(|gap| gap.ms());
        let worst_ms = worst.map(Gap::ms);
        match (worst_ms, budget) {
            (Some(worst), Some(budget)) => said.push(format!("{kind} {worst} ms of {budget}")),
            (Some(worst), None) => said.push(format!("{kind} {worst} ms")),
            (None, Some(_)) if kind != "ready again" => missing.push(kind),
            (None, _) => {}
        }
        for gap in gaps.iter().filter(|gap| budget.is_some_and(|budget| gap.ms() > budget)) {
            findings.add(&[gap.from, gap.to], || {
                let faults: Vec<String> = facts
                    .faults_within(gap.from.at, gap.to.at)
                    .map(|fault| {
                        let (kind, target) = (facts.names.text(fault.kind), facts.names.text(fault.target));
                        format!("{kind} of {target}")
                    })
                    .take(3)
                    .collect();
                let faults = match faults.as_slice() {
                    [] => "no fault was about".to_owned(),
                    some => format!("about were {}", some.join(", ")),
                };
                format!(
                    "{kind}: {} waited {} ms from {:.3} s on, of {} allowed; {faults}",
                    gap.whose,
                    gap.ms(),
                    gap.from.at as f64 / 1e6,
                    budget.unwrap_or_default()
                )
            });
        }
    }
    let summary = format!("worst: {}", said.join(", "));
    if let Some((when, false, why)) = facts.settled {
        findings.add(&[when], || format!("the cluster is not settled: {}", facts.names.text(why)));
    }
    if findings.is_empty() && expect.publish_gap_ms.or(expect.deliver_ms).or(expect.ready_ms).is_none() {
        return Outcome::unknown(format!("no budget was set; {summary}"));
    }
    if findings.is_empty() && !missing.is_empty() {
        return Outcome::unknown(format!("nothing to measure for: {}", missing.join(", ")));
    }
    findings.outcome(facts, summary)
}
