//! The world of `reveille_simulation`: real members, sessions' and terminals' real rules, on virtual time. The same seed
//! gives the same history, byte for byte, on any machine. Each run has a thread of its own, which it shares with nothing.

pub(crate) mod canaries;
mod deeds;
pub(crate) mod fail_points;
mod folders;
mod members;
mod observe;
mod publish;
mod record;
mod run;
mod strike;
mod whom;

use reveille_chaos::plan;
use reveille_chaos::scenario::{Role, Scenario, When};
use reveille_protocol::canary::PLANTABLE;

pub(crate) use self::run::{Ran, run};

/// What it does.
const KINDS: &[&str] = &[
    "kill",
    "stop",
    "pause",
    "restart",
    "power",
    "crash-loop",
    "out-of-memory",
    "cut",
    "cut-one-way",
    "jam",
    "delay",
    "loss",
    "reorder",
    "corrupt",
    "bandwidth",
    "reset",
    "half-open",
    "rebind",
    "notification-loss",
    "notification-replay",
    "notification-forged",
    "lose-unsynced",
    "torn-write",
    "io-error",
    "sync-error",
    "disk-full",
    "slow-disk",
    "bit-flip",
    "truncate",
    "roll-back",
    "wipe",
    "cpu",
    "clock-step",
    "clock-strobe",
    "clock-drift",
    "move-leaders",
    "snapshot",
    "add-node",
    "drain",
    "remove",
    "replace",
    "terminal-kill",
    "slow-reader",
    "twin",
    "ack-withheld",
    "reconnect",
    "retry-storm",
    "fail-point",
];

/// Does this build of it do faults of this kind?
pub(crate) fn does(kind: &str) -> bool {
    KINDS.contains(&kind) && (kind != "fail-point" || PLANTABLE)
}

/// What it can wait for.
const SEEN: [When; 5] =
    [When::LeaderChanged, When::NodeReady, When::Attached, When::HandoffStarted, When::SnapshotStarted];
/// Its networks and its look-ups are made for as many.
const TERMINALS: u64 = 250;

/// Everything in a scenario that this backend cannot do, in words.
pub(crate) fn cannot(scenario: &Scenario) -> Vec<String> {
    let mut cannot = Vec::new();
    if scenario.workload.terminals > TERMINALS {
        cannot.push(format!("{} terminals: it has up to {TERMINALS}", scenario.workload.terminals));
    }
    for fault in scenario.faults() {
        let kind = fault.kind.info();
        let mut no = |what: String| cannot.push(format!("{} of {}: {what}", kind.name, plan::target(fault)));
        if !KINDS.contains(&kind.name) {
            no("this is none of its kinds; `chaos list faults` shows them".to_owned());
        } else if !does(kind.name) {
            no("this build has no fail points: it is made with --features canary".to_owned());
        }
        if kind.name == "roll-back" && fault.when.is_some() {
            no("a folder is copied before, so its time must be known".to_owned());
        }
        if let Some(when) = fault.when.filter(|when| !SEEN.contains(when)) {
            no(format!("it does not see {}", when.name()));
        }
        let roles = [&fault.target, &fault.from, &fault.to];
        for role in roles.into_iter().flatten().flat_map(|target| &target.0) {
            match role {
                Role::Terminal(_) | Role::Terminals | Role::Publishers if fault.target.is_none() => {
                    no(format!("its links are those between nodes, and {role} is none"));
                }
                Role::Publishers if kind.name != "retry-storm" => no("its publishers do not die".to_owned()),
                _ => {}
            }
        }
    }
    cannot
}

#[cfg(test)]
mod tests {
    use super::*;
    use reveille_chaos::scenario::Kind;

    #[test]
    fn its_kinds_are_kinds() {
        assert!(KINDS.iter().all(|name| Kind::find(name).is_some()));
    }
}
