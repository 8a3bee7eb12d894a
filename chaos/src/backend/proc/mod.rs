//! Real nodes as processes on loopback, terminals made of the SDK, publishers over HTTP; faults by signals, by links of
//! this program's that stand in between, by a library in front of disks and clocks, and by what an operator does. Needs no
//! rights beyond those of its user.

mod deeds;
mod doors;
mod ends;
mod files;
pub(super) mod links;
mod membership;
mod nodes;
pub(crate) mod points;
mod replicas;
mod run;
pub(crate) mod shim;
mod starve;
mod strike;
mod victims;

use std::path::PathBuf;

use reveille_chaos::plan;
use reveille_chaos::scenario::{Role, Scenario, When};

pub(crate) use self::run::run;

/// What a run needs besides its scenario.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// What all draws come from.
    pub(crate) seed: u64,
    /// The binary `reveille`.
    pub(crate) bin: PathBuf,
    /// The binary of the other version, which nodes begin with and are upgraded from.
    pub(crate) other: Option<PathBuf>,
    /// The run's folder, which is there and empty.
    pub(crate) out: PathBuf,
    /// The bug to plant: disks say that they have synced, and have not.
    pub(crate) lies: bool,
    /// Say nothing while it goes on.
    pub(crate) quiet: bool,
}

/// Everything in a scenario that this backend cannot do, in words.
pub(crate) fn cannot(scenario: &Scenario) -> Vec<String> {
    let mut cannot = Vec::new();
    if !matches!(scenario.cluster.nodes, 1 | 3 | 5) {
        cannot.push(format!("{} nodes: it starts 1, 3 or 5", scenario.cluster.nodes));
    }
    if shim::needed(scenario)
        && let Some(why) = shim::missing()
    {
        cannot
            .push(format!("faults of disks, power and clocks, which take a library that cc compiles: {why}"));
    }
    let others_may_come = scenario.faults().any(|fault| membership::may_change(fault.kind));
    for fault in scenario.faults() {
        let kind = fault.kind.info();
        let mut no = |what: String| cannot.push(format!("{} of {}: {what}", kind.name, plan::target(fault)));
        if !kind.proc {
            no("this is none of its kinds; `chaos list faults` shows them".to_owned());
        }
        if let Some(when) = fault.when.filter(|when| !SEEN.contains(when)) {
            no(format!("it does not see {}", when.name()));
        }
        if let Some(what) = links::cannot(scenario, fault) {
            no(what);
        }
        if others_may_come && (kind.is_on_the_way() || shim::does(fault.kind)) {
            no("links, disks and clocks are those of the nodes that the cluster began with, and here others may come".to_owned());
        }
        if kind.name == "roll-back" && fault.when.is_some() {
            no("it copies a folder before, and cannot know when: `at` or `every`".to_owned());
        }
        let targets = [&fault.target, &fault.from, &fault.to];
        for role in targets.into_iter().flatten().flat_map(|target| &target.0) {
            match role {
                Role::Anchor(_) if links::behind_nat(scenario) => {}
                Role::Anchor(_) | Role::HandoffSource | Role::HandoffTarget => {
                    no(format!("it does not know who {role} is"));
                }
                Role::Publishers if kind.name != "retry-storm" => no("its publishers do not die".to_owned()),
                _ => {}
            }
        }
    }
    cannot
}

/// What it can wait for.
const SEEN: [When; 3] = [When::LeaderChanged, When::NodeReady, When::Attached];
