//! What a run that failed says about where to look: which faults struck when and whom, in a scenario's words, and how far
//! into the run the first violation lies. Pure.

use std::time::Duration;

use crate::facts::{Facts, Faulted};
use crate::history::Phase;
use crate::plan::{Strike, plan};
use crate::scenario::kind::Lasts;
use crate::scenario::{Fault, Role, Scenario, Target, Time};

/// A fault waits for so long until it may strike, and is looked at so seldom; in microseconds.
const LATE: u64 = 5_500_000;
/// As many terminals or ways a history names of a fault; of more it does not name all.
const NAMED: usize = 5;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    /// The faults that struck, in their order, each at its time and on whom it hit.
    pub struck: Vec<Fault>,
    /// How far into the chaos phase the evidence of the first violation lies; `None` if it lies after it.
    pub violated: Option<Duration>,
}

impl Seen {
    /// Of a run of this scenario by this seed. `evidence`: times of the lines that show the first violation, in microseconds
    /// since the run began.
    pub fn of(scenario: &Scenario, seed: u64, facts: &Facts, evidence: &[u64]) -> Seen {
        let phase =
            |which: Phase| facts.phases.iter().find(|(_, phase)| *phase == which).map(|(when, _)| when.at);
        let (Some(start), Some(chaos)) = (phase(Phase::Warmup), phase(Phase::Chaos)) else {
            return Seen::default();
        };
        let end = phase(Phase::Heal).unwrap_or(facts.last.at);
        let within = evidence.iter().filter(|at| **at < end).max();
        let violated = within.map(|at| Duration::from_micros(at.saturating_sub(chaos)));
        let mut strikes = plan(scenario, seed).strikes;
        let struck = facts.faults.iter().filter_map(|faulted| {
            let kind = facts.names.text(faulted.kind);
            let fault = planned(scenario, &mut strikes, kind, faulted.first().at.saturating_sub(start))?;
            Some(timed(fault, faulted, facts.names.text(faulted.target), chaos, end))
        });
        Seen { struck: struck.collect(), violated }
    }
}

/// Which fault of the scenario struck: the first with a strike that was due then, else one that waits for something.
fn planned<'a>(scenario: &'a Scenario, strikes: &mut Vec<Strike>, kind: &str, at: u64) -> Option<&'a Fault> {
    let due = |strike: &Strike| strike.kind.name() == kind && strike.at_us <= at && at <= strike.at_us + LATE;
    match strikes.iter().position(due) {
        Some(place) => scenario.faults().nth(strikes.remove(place).fault),
        None => scenario.faults().find(|fault| fault.when.is_some() && fault.kind.name() == kind),
    }
}

fn timed(fault: &Fault, faulted: &Faulted, target: &str, chaos: u64, end: u64) -> Fault {
    // Whole milliseconds, as they are written.
    let time = |from: u64, to: u64| Time(Duration::from_millis(to.saturating_sub(from) / 1000));
    let began = faulted.first().at;
    let ended = faulted.ended.map(|ended| ended.at).filter(|ended| *ended < end);
    let lasts = ended.filter(|_| fault.kind.info().lasts == Lasts::Yes).map(|ended| time(began, ended));
    let mut timed =
        Fault { at: Some(time(chaos, began)), every: None, when: None, times: None, lasts, ..fault.clone() };
    match (whom(target), ways(target)) {
        (Some(target), _) if !says_all(&fault.target) => timed.target = Some(target),
        (_, Some((from, to))) => {
            timed.from = timed.from.map(|role| if says_all(&Some(role.clone())) { role } else { from });
            timed.to = timed.to.map(|role| if says_all(&Some(role.clone())) { role } else { to });
        }
        _ => {}
    }
    timed
}

/// It names them whoever they are, and says more than their numbers.
fn says_all(target: &Option<Target>) -> bool {
    let all = |role: &Role| matches!(role, Role::All | Role::Terminals | Role::Publishers);
    target.as_ref().is_some_and(|target| target.0.iter().any(all))
}

/// `node 1, 2`, `terminal 3`: as a target; `None` where the history does not name all.
fn whom(words: &str) -> Option<Target> {
    let (what, numbers) = words.split_once(' ')?;
    let numbers = numbers_of(numbers)?;
    match what {
        "node" => Some(Target(numbers.into_iter().map(Role::Node).collect())),
        "terminal" if numbers.len() < NAMED => {
            let role = |number| Role::Terminal(crate::scenario::Which::Number(number));
            Some(Target(numbers.into_iter().map(role).collect()))
        }
        _ => None,
    }
}

fn numbers_of(text: &str) -> Option<Vec<u64>> {
    text.split(", ").map(|number| number.parse().ok()).collect()
}

/// `link 1 -> 2, 1 -> 3`, `link 1 -> 2, 3`: from whom and to whom, if each goes to each; `None` where not all are named.
fn ways(words: &str) -> Option<(Target, Target)> {
    let nodes = |ids: &[u64]| Target(ids.iter().copied().map(Role::Node).collect());
    let words = words.strip_prefix("link ")?;
    if let [from, to] = words.split(" -> ").collect::<Vec<_>>()[..]
        && let (Some(from), Some(to)) = (numbers_of(from), numbers_of(to))
    {
        return Some((nodes(&from), nodes(&to)));
    }
    let way = |way: &str| {
        let (from, to) = way.split_once(" -> ")?;
        Some((from.parse::<u64>().ok()?, to.parse::<u64>().ok()?))
    };
    let ways: Vec<(u64, u64)> = words.split(", ").map(way).collect::<Option<_>>()?;
    let (mut from, mut to): (Vec<u64>, Vec<u64>) = ways.iter().copied().unzip();
    for ends in [&mut from, &mut to] {
        ends.sort_unstable();
        ends.dedup();
    }
    let each =
        from.iter().flat_map(|from| to.iter().map(move |to| (*from, *to))).filter(|(from, to)| from != to);
    (ways.len() <= NAMED && each.count() == ways.len()).then(|| (nodes(&from), nodes(&to)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whom_a_history_names_is_a_target() {
        let said = |words| whom(words).map(|target| target.to_string());
        assert_eq!(said("node 1, 3"), Some("n1+n3".to_owned()));
        assert_eq!(said("terminal 4"), Some("t4".to_owned()));
        assert_eq!(said("terminal 1, 2, 3, 4, 5"), None, "there may be more");
        assert_eq!(said("terminal 1, 2 and 7 more"), None);
        assert_eq!(said("publishers"), None);
        let link = |words| ways(words).map(|(from, to)| format!("{from} to {to}"));
        assert_eq!(link("link 1 -> 2, 1 -> 3"), Some("n1 to n2+n3".to_owned()));
        assert_eq!(link("link 1 -> 2, 3"), Some("n1 to n2+n3".to_owned()));
        assert_eq!(link("link 1 -> 2, 2 -> 3"), None, "from each to each would be more");
        assert_eq!(link("link terminals -> 2"), None);
    }
}
