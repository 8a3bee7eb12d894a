//! The few figures by which two runs are compared. Pure.

use serde::Serialize;

use crate::check::{delivery_gaps, publish_gaps};
use crate::facts::{Answer, Facts, Step};

/// Gaps of availability that are drawn: the longest, and none shorter than a person would notice.
const GAPS: usize = 400;
const SHORTEST: u64 = 50_000;

/// What a run came to, in figures. Times in microseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// Pushes that were asked for.
    pub asked: usize,
    /// Those that were acknowledged.
    pub stored: usize,
    /// Those that certainly were not stored.
    pub failed: usize,
    /// Those of which nobody knows.
    pub unknown: usize,
    /// Pushes that came to an application, repetitions included.
    pub delivered: usize,
    /// From the asking to the acknowledgement.
    pub publish: Quantiles,
    /// From the acknowledgement to the application.
    pub deliver: Quantiles,
    /// The longest time for which somebody wanted to publish to one terminal without success.
    pub worst_gap: u64,
    /// Faults that were there.
    pub faults: usize,
    /// Pushes acknowledged in a second, over the run.
    pub per_second: u64,
}

/// Of how long something took, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Quantiles {
    /// Half took no longer.
    pub p50: u64,
    /// 99 of 100 took no longer.
    pub p99: u64,
    /// None took longer.
    pub max: u64,
}

impl Quantiles {
    /// Of these, in whatever order.
    pub(super) fn of(mut took: Vec<u64>) -> Quantiles {
        took.sort_unstable();
        let at = |share: usize| took.get((took.len().saturating_sub(1)) * share / 100).copied().unwrap_or(0);
        Quantiles { p50: at(50), p99: at(99), max: at(100) }
    }
}

impl Figures {
    /// Of a run.
    pub fn of(facts: &Facts) -> Figures {
        let count =
            |which: fn(&Answer) -> bool| facts.pushes.iter().filter(|push| which(&push.answer)).count();
        let stored = count(|answer| matches!(answer, Answer::Stored { .. }));
        let took = facts.pushes.iter().filter_map(|push| match push.answer {
            Answer::Stored { when, .. } => Some(when.at.saturating_sub(push.asked.at)),
            _ => None,
        });
        let steps = facts.terminals.iter().flat_map(|terminal| &terminal.steps);
        Figures {
            asked: facts.pushes.len(),
            stored,
            failed: count(|answer| matches!(answer, Answer::Failed(_))),
            unknown: count(|answer| matches!(answer, Answer::Unknown(_) | Answer::Open)),
            delivered: steps.filter(|stepped| matches!(stepped.step, Step::Delivered(_))).count(),
            publish: Quantiles::of(took.collect()),
            deliver: Quantiles::of(delivery_gaps(facts).iter().map(|gap| gap.to.at - gap.from.at).collect()),
            worst_gap: publish_gaps(facts).iter().map(|gap| gap.to.at - gap.from.at).max().unwrap_or(0),
            faults: facts.faults.len(),
            per_second: (stored as u64 * 1_000_000).checked_div(facts.last.at).unwrap_or(0),
        }
    }
}

/// Times in which somebody wanted to publish to a terminal and had no success: from, to, which terminal. The longest.
pub(super) fn gaps(facts: &Facts) -> Vec<(u64, u64, String)> {
    let gaps = publish_gaps(facts).into_iter().map(|gap| (gap.from.at, gap.to.at, gap.whose));
    let mut gaps: Vec<_> = gaps.filter(|(from, to, _)| to - from >= SHORTEST).collect();
    gaps.sort_by_key(|(from, to, _)| std::cmp::Reverse(to - from));
    gaps.truncate(GAPS);
    gaps.sort();
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_few_and_none() {
        assert_eq!(Quantiles::of(Vec::new()), Quantiles::default());
        assert_eq!(Quantiles::of(vec![7]), Quantiles { p50: 7, p99: 7, max: 7 });
        assert_eq!(Quantiles::of((1..=101).rev().collect()), Quantiles { p50: 51, p99: 100, max: 101 });
    }
}
