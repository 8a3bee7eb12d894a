//! C16, no panics and no secrets in logs.

use super::Checker;
use super::outcome::{Findings, Outcome};
use crate::facts::Facts;
use crate::history::Problem;

pub(super) const CHECKER: Checker = Checker {
    id: "C16",
    name: "logs",
    definition: "no node's log tells of a panic or shows a token, a key or a payload, and no node ends by itself",
    safety: false,
    check,
};

fn check(facts: &Facts) -> Outcome {
    let mut findings = Findings::default();
    for (when, node, problem, line) in &facts.log_problems {
        findings.add(&[*when], || {
            let what = match problem {
                Problem::Panic => "tells of a panic",
                Problem::Secret => "shows a secret",
            };
            format!("the log of node {node} {what}: {}", facts.names.text(*line))
        });
    }
    let lines: u64 = facts.logs.iter().map(|(_, _, lines)| lines).sum();
    if facts.logs.is_empty() && findings.is_empty() {
        return Outcome::unknown("no log was read");
    }
    findings.outcome(facts, format!("{} logs of {lines} lines", facts.logs.len()))
}
