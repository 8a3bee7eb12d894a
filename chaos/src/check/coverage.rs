//! C14, the run did what it was for.

use super::Checker;
use super::outcome::{Findings, Outcome};
use crate::facts::Facts;

pub(super) const CHECKER: Checker = Checker {
    id: "C14",
    name: "coverage",
    definition: "what the run was to bring about did happen: each fault kind and point of coverage that it names, at \
                 least as often as it says. A run that did not is no failure of the cluster; it says nothing",
    safety: false,
    check,
};

fn check(facts: &Facts) -> Outcome {
    let expect = &facts.begin.expect.cover;
    if expect.is_empty() {
        return Outcome::unknown("nothing was named that must happen");
    }
    let happened = |point: &str| match point.strip_prefix("fault.") {
        Some(kind) => facts.faults.iter().filter(|fault| facts.names.text(fault.kind) == kind).count() as u64,
        None => facts.cover.get(point).copied().unwrap_or_default(),
    };
    let missing: Vec<String> = expect
        .iter()
        .filter(|(point, least)| happened(point) < **least)
        .map(|(point, least)| format!("{point} {} times of {least}", happened(point)))
        .collect();
    if !missing.is_empty() {
        return Outcome::unknown(format!("did not happen often enough: {}", missing.join(", ")));
    }
    let said: Vec<String> = expect.keys().map(|point| format!("{point} {}", happened(point))).collect();
    Findings::default().outcome(facts, said.join(", "))
}
