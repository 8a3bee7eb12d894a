//! C12, nothing hangs.

use super::Checker;
use super::outcome::{Findings, Outcome};
use crate::facts::Facts;

pub(super) const CHECKER: Checker = Checker {
    id: "C12",
    name: "no-hang",
    definition: "every operation that has a deadline is answered, with whatever, at most a second after it",
    safety: false,
    check,
};

/// For the harness to notice and write it down, on a machine that is busy.
const GRACE_US: u64 = 1_000_000;

fn check(facts: &Facts) -> Outcome {
    let mut findings = Findings::default();
    let (mut judged, mut slowest) = (0usize, 0u64);
    for op in &facts.ops {
        let Some(deadline) = op.deadline_ms else { continue };
        judged += 1;
        let until = op.asked.at + deadline * 1000 + GRACE_US;
        let took = op.done.unwrap_or(facts.last).at - op.asked.at;
        slowest = slowest.max(took);
        if op.done.unwrap_or(facts.last).at > until {
            findings.add(&[op.asked, op.done.unwrap_or(facts.last)], || {
                let end = if op.done.is_some() { "was answered after" } else { "has no answer after" };
                format!(
                    "{} asked at {:.3} s and {end} {} ms, with a deadline of {deadline} ms",
                    facts.names.text(op.by),
                    op.asked.at as f64 / 1e6,
                    took / 1000
                )
            });
        }
    }
    if judged == 0 {
        return Outcome::unknown("no operation has a deadline");
    }
    let open = facts.ops.iter().filter(|op| op.deadline_ms.is_some() && op.done.is_none()).count();
    let summary = format!("{judged} operations, the slowest answered in {} ms", slowest / 1000);
    if findings.is_empty() && open > 0 {
        return Outcome::unknown(format!("{summary}; {open} still open at the end, within their deadlines"));
    }
    findings.outcome(facts, summary)
}
