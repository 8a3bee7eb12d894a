//! From a scenario and a seed to what is done when: pure, the same on every backend. Roles are resolved when a fault
//! strikes, by the draw that is planned here; so a plan is the same however the cluster behaves.

use std::time::Duration;

use serde::Serialize;

use crate::scenario::kind::{Lasts, On};
use crate::scenario::{Fault, Kind, Scenario, Target, When};
use reveille_links::draw::Draws;

/// The most strikes of a plan: a soak is many runs.
const STRIKES: usize = 20_000;

/// A fault that strikes at a time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Strike {
    /// Microseconds from the beginning of the run.
    pub at_us: u64,
    /// Which fault of the scenario, from 0.
    pub fault: usize,
    /// Its kind.
    pub kind: Kind,
    /// Whom: its target, or of a link from whom to whom.
    pub target: String,
    /// What "drawn" means for it.
    pub draw: u64,
    /// Microseconds from the beginning of the run at which it is taken back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until_us: Option<u64>,
}

/// A fault that waits for something.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Armed {
    /// For what.
    pub when: When,
    /// How often at most.
    pub times: u64,
    /// Which fault of the scenario, from 0.
    pub fault: usize,
    /// Its kind.
    pub kind: Kind,
    /// Whom.
    pub target: String,
    /// What "drawn" means for it the first time; each time after, the next draw from there.
    pub draw: u64,
}

/// What is done in a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// In the order of their times.
    pub strikes: Vec<Strike>,
    /// What waits.
    pub armed: Vec<Armed>,
    /// Kinds that this seed leaves out.
    pub left_out: Vec<Kind>,
}

/// The plan of a seed.
pub fn plan(scenario: &Scenario, seed: u64) -> Plan {
    let left_out = swarm(scenario, seed);
    let begin = scenario.phases.warmup.0;
    let end = begin + scenario.phases.chaos.0;
    let mut plan = Plan { seed, strikes: Vec::new(), armed: Vec::new(), left_out };
    for (number, fault) in scenario.faults().enumerate() {
        if plan.left_out.contains(&fault.kind) {
            continue;
        }
        // A stream of its own for each fault: one that is added or left out changes no other.
        let mut draws = Draws::new(seed, &format!("fault {number}"));
        let target = target(fault);
        if let Some(when) = fault.when {
            let (times, draw) = (fault.times.unwrap_or(1), draws.draw());
            plan.armed.push(Armed { when, times, fault: number, kind: fault.kind, target, draw });
            continue;
        }
        for after in times(fault, end - begin, &mut draws) {
            let at = begin + after;
            let until = (fault.kind.info().lasts == Lasts::Yes)
                .then(|| fault.lasts.map_or(end, |lasts| (at + lasts.0).min(end)));
            plan.strikes.push(Strike {
                at_us: at.as_micros() as u64,
                fault: number,
                kind: fault.kind,
                target: target.clone(),
                draw: draws.draw(),
                until_us: until.map(|until| until.as_micros() as u64),
            });
        }
    }
    plan.strikes.sort_by_key(|strike| (strike.at_us, strike.fault));
    plan.strikes.truncate(STRIKES);
    plan
}

/// Whom a fault hits, in words.
pub fn target(fault: &Fault) -> String {
    let words = |target: &Option<Target>| target.as_ref().map_or("all".to_owned(), Target::to_string);
    match fault.kind.info().on {
        On::Link => format!("{} -> {}", words(&fault.from), words(&fault.to)),
        On::Cluster => "cluster".to_owned(),
        On::Nodes | On::Clients => words(&fault.target),
    }
}

/// When it strikes, counted from the beginning of the chaos phase.
fn times(fault: &Fault, chaos: Duration, draws: &mut Draws) -> Vec<Duration> {
    let Some(every) = fault.every.map(|every| every.0) else {
        return fault.at.map(|at| at.0).into_iter().collect();
    };
    let most = fault.times.unwrap_or(u64::MAX).min(STRIKES as u64) as u32;
    (1..=most)
        .map(|number| {
            let late = draws.below(every.as_micros() as u64 / 4 + 1);
            every * number + Duration::from_micros(late)
        })
        .take_while(|at| *at < chaos)
        .collect()
}

/// Which kinds this seed leaves out: some of those that the scenario names, all of them in a share of seeds, and never
/// all of them otherwise.
fn swarm(scenario: &Scenario, seed: u64) -> Vec<Kind> {
    let Some(swarm) = &scenario.swarm else { return Vec::new() };
    let mut draws = Draws::new(seed, "swarm");
    if draws.chance(swarm.none.0) {
        return swarm.subset_of.clone();
    }
    let keep = 1 + draws.below(swarm.subset_of.len() as u64) as usize;
    let kept = draws.some(&swarm.subset_of, keep);
    swarm.subset_of.iter().filter(|kind| !kept.contains(kind)).copied().collect()
}
