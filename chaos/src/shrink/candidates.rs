//! What may be tried next, from what there is: each a little or much smaller, the smallest first. Pure.

use std::ops::Range;
use std::time::Duration;

use toml::Spanned;

use super::{Candidate, Seen};
use crate::scenario::kind::Lasts;
use crate::scenario::{Fault, Scenario, Time};

/// Rounded to these, in milliseconds, the roundest first.
const ROUND: [u64; 4] = [1000, 500, 100, 10];
/// A fault that comes again is tried with these `times`.
const TIMES: [u64; 5] = [1, 2, 4, 8, 16];

/// A scenario with this changed.
fn with(scenario: &Scenario, by: impl Into<String>, change: impl FnOnce(&mut Scenario)) -> Candidate {
    let mut scenario = scenario.clone();
    change(&mut scenario);
    tidy(&mut scenario);
    Candidate { scenario, by: by.into() }
}

/// What is about faults that are not there any more is not said.
fn tidy(scenario: &mut Scenario) {
    let left: Vec<_> = scenario.faults().map(|fault| fault.kind).collect();
    if let Some(swarm) = &mut scenario.swarm {
        swarm.subset_of.retain(|kind| left.contains(kind));
    }
    scenario.swarm = scenario.swarm.take().filter(|swarm| !swarm.subset_of.is_empty());
    if left.iter().all(|kind| !kind.info().disables) {
        scenario.blast = crate::scenario::Blast::default();
    }
}

/// A fault that stands nowhere in a file yet.
fn spanned(fault: Fault) -> Spanned<Fault> {
    Spanned::new(0..0, fault)
}

pub(super) fn no_fault(scenario: &Scenario) -> Vec<Candidate> {
    match scenario.faults.is_empty() {
        true => Vec::new(),
        false => vec![with(scenario, "no fault at all", |scenario| scenario.faults.clear())],
    }
}

/// So many parts of the faults: first each part alone, then all but each.
pub(super) fn parts(scenario: &Scenario, parts: usize) -> Vec<Candidate> {
    let all = scenario.faults.len();
    let part = |number: usize| (all * number / parts)..(all * (number + 1) / parts);
    let some = |keep: &dyn Fn(usize) -> bool, by: String| {
        with(scenario, by, |scenario| {
            let mut number = 0..;
            scenario.faults.retain(|_| number.next().is_some_and(keep));
        })
    };
    let alone = (0..parts)
        .map(part)
        .map(|range| some(&|number| range.contains(&number), format!("only {}", named(scenario, &range))));
    let mut candidates: Vec<Candidate> = alone.collect();
    // Of two parts, all but one is the other.
    if parts > 2 {
        candidates.extend((0..parts).map(part).map(|range| {
            some(&|number| !range.contains(&number), format!("without {}", named(scenario, &range)))
        }));
    }
    candidates
}

fn named(scenario: &Scenario, range: &Range<usize>) -> String {
    let kind = |number: usize| scenario.faults[number].get_ref().kind.name();
    match range.len() {
        1 => format!("fault {} ({})", range.start + 1, kind(range.start)),
        _ => format!("faults {} to {}", range.start + 1, range.end),
    }
}

/// Up to a whole second.
fn whole(time: Duration) -> Duration {
    Duration::from_secs(time.as_secs() + u64::from(time.subsec_nanos() > 0))
}

/// The chaos phase ends soon after the first violation, or after the last fault with a time, or earlier than now.
pub(super) fn shorter_chaos(scenario: &Scenario, seen: &Seen) -> Vec<Candidate> {
    let chaos = scenario.phases.chaos.0;
    let second = Duration::from_secs(1);
    let over = |fault: &Fault| fault.at.map(|at| at.0 + fault.lasts.map_or(second, |lasts| lasts.0));
    let mut ends: Vec<Duration> = [1, 2, 3].iter().map(|part| whole(chaos * *part / 4)).collect();
    ends.extend(seen.violated.map(|violated| whole(violated + second)));
    ends.extend(scenario.faults().filter_map(over).max().map(|over| whole(over + second / 2)));
    ends.sort();
    ends.dedup();
    ends.retain(|end| *end >= second && *end < chaos);
    let shorter = |end: Duration| {
        with(scenario, format!("chaos {}", Time(end)), |scenario| {
            scenario.phases.chaos = Time(end);
            let begins = |fault: &Fault| fault.at.or(fault.every).is_none_or(|time| time.0 < end);
            scenario.faults.retain(|fault| begins(fault.get_ref()));
        })
    };
    ends.into_iter().map(shorter).collect()
}

/// A second, or half of what there is.
fn less(time: Time) -> Vec<Time> {
    let second = Duration::from_secs(1);
    let mut less = vec![second, whole(time.0 / 2)];
    less.dedup();
    less.retain(|less| *less < time.0);
    less.into_iter().map(Time).collect()
}

pub(super) fn shorter_warmup(scenario: &Scenario) -> Vec<Candidate> {
    let shorter = |time| with(scenario, format!("warmup {time}"), |scenario| scenario.phases.warmup = time);
    less(scenario.phases.warmup).into_iter().map(shorter).collect()
}

pub(super) fn shorter_heal(scenario: &Scenario) -> Vec<Candidate> {
    let shorter = |time| with(scenario, format!("heal {time}"), |scenario| scenario.phases.heal = time);
    less(scenario.phases.heal).into_iter().map(shorter).collect()
}

/// Whether faults come by draws: again and again, or when something happens, or only by some seeds.
pub(super) fn is_drawn(scenario: &Scenario) -> bool {
    scenario.swarm.is_some() || scenario.faults().any(|fault| fault.at.is_none())
}

/// The faults that struck, those before the violation, and then all.
pub(super) fn timed(scenario: &Scenario, seen: &Seen) -> Vec<Candidate> {
    let chaos = scenario.phases.chaos.0;
    let until = |end: Duration| {
        let before = |fault: &&Fault| fault.at.is_some_and(|at| at.0 < end);
        seen.struck.iter().filter(before).cloned().map(spanned).collect::<Vec<_>>()
    };
    let of = |faults: Vec<Spanned<Fault>>| {
        with(scenario, format!("the faults that struck, each at its time: {}", faults.len()), |scenario| {
            scenario.faults = faults;
            scenario.swarm = None;
        })
    };
    let (some, all) = (until(seen.violated.unwrap_or(chaos)), until(chaos));
    let mut candidates = vec![of(some)];
    if candidates[0].scenario.faults.len() < all.len() {
        candidates.push(of(all));
    }
    candidates
}

/// Faults that come again come less often.
pub(super) fn seldom(scenario: &Scenario, seen: &Seen) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    for (number, fault) in scenario.faults().enumerate().filter(|(_, fault)| fault.at.is_none()) {
        let struck = seen.struck.iter().filter(|struck| struck.kind == fault.kind).count() as u64;
        let most = fault.times.unwrap_or(struck).min(struck);
        for times in TIMES.into_iter().filter(|times| *times < most) {
            let by = format!("fault {} ({}) {times} times", number + 1, fault.kind.name());
            candidates
                .push(with(scenario, by, |scenario| scenario.faults[number].get_mut().times = Some(times)));
        }
    }
    candidates
}

/// A number of a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Number {
    Nodes,
    Shards,
    Terminals,
    Publishers,
    Rate,
}

pub(super) const NUMBERS: [Number; 5] =
    [Number::Nodes, Number::Shards, Number::Terminals, Number::Publishers, Number::Rate];

impl Number {
    /// Its name, its value, and the least of it.
    fn of(self, scenario: &mut Scenario) -> (&'static str, &mut u64, u64) {
        let Scenario { cluster, workload, .. } = scenario;
        match self {
            // Fewer than three lose their majority with one.
            Number::Nodes => ("nodes", &mut cluster.nodes, 3),
            Number::Shards => ("shards", &mut cluster.shards, 1),
            Number::Terminals => ("terminals", &mut workload.terminals, 1),
            Number::Publishers => ("publishers", &mut workload.publishers, 1),
            Number::Rate => ("rate", &mut workload.rate, 1),
        }
    }
}

/// The least of a number, then an eighth, a quarter, half, three quarters; of nodes odd ones.
pub(super) fn smaller(scenario: &Scenario, number: Number) -> Vec<Candidate> {
    let mut copy = scenario.clone();
    let (name, value, least) = number.of(&mut copy);
    let value = *value;
    let mut values = vec![least, value / 8, value / 4, value / 2, value * 3 / 4, value.saturating_sub(2)];
    values.retain(|new| *new >= least && *new < value && (number != Number::Nodes || new % 2 == 1));
    values.sort_unstable();
    values.dedup();
    let to = |new: u64| with(scenario, format!("{name} {new}"), |scenario| *number.of(scenario).1 = new);
    values.into_iter().map(to).collect()
}

/// All times of faults rounded.
pub(super) fn rounded(scenario: &Scenario) -> Vec<Candidate> {
    let of = |time: Time, to: u64, least: u64| {
        let ms = (time.ms() + to / 2) / to * to;
        Time(Duration::from_millis(ms.max(least)))
    };
    let rounded = |to: u64| {
        with(scenario, format!("times rounded to {}", Time(Duration::from_millis(to))), |scenario| {
            for fault in &mut scenario.faults {
                let fault = fault.get_mut();
                fault.at = fault.at.map(|at| of(at, to, 0));
                let lasts = fault.kind.info().lasts == Lasts::Yes;
                fault.lasts = fault.lasts.filter(|_| lasts).map(|time| of(time, to, to));
            }
        })
    };
    let is_round = |to: u64| {
        let round = |time: Option<Time>| time.is_none_or(|time| time.ms() % to == 0);
        scenario.faults().all(|fault| round(fault.at) && round(fault.lasts))
    };
    // What is as round as that already is not tried less round.
    ROUND.into_iter().take_while(|to| !is_round(*to)).map(rounded).collect()
}
