//! The bugs that can be planted: what each is, under which load and faults it shows, and which checker must find it.

use reveille_protocol::canary::Canary;

/// A bug, and who must find it.
pub(crate) struct Planted {
    pub(crate) name: &'static str,
    pub(crate) canary: Canary,
    /// The id of the checker that must fail.
    pub(crate) checker: &'static str,
    /// The name of the scenario that it is looked for with, and what it says.
    pub(crate) scenario: (&'static str, &'static str),
    /// What is wrong with a cluster that has it.
    pub(crate) about: &'static str,
}

macro_rules! planted {
    ($($name:literal $canary:ident $checker:literal $scenario:literal $about:literal)*) => {
        &[$(Planted {
            name: $name,
            canary: Canary::$canary,
            checker: $checker,
            scenario: (
                concat!("canary-", $scenario),
                include_str!(concat!("../../../canaries/", $scenario, ".toml")),
            ),
            about: $about,
        }),*]
    };
}

/// All of them.
pub(crate) static CANARIES: &[Planted] = planted! {
    "ack-before-sync" AckBeforeSync "C1" "power"
        "the log says that a write is durable, and has not synced it"
    "vote-not-durable" VoteNotDurable "C16" "restarts"
        "a vote is remembered, and not written"
    "skip-epoch-check" SkipEpochCheck "C1" "stale"
        "an ack or a detach of a session that is over counts"
    "drop-one-in-thousand" DropOneInThousand "C1" "load"
        "acknowledged, and not stored"
    "dedupe-off" DedupeOff "C3" "retries"
        "an idempotency key that was taken is taken again"
    "lose-replacement" LoseReplacement "C6" "stale"
        "a session that takes another one's place does not stand in the service list"
    "apply-the-clock" ApplyTheClock "C10" "load"
        "entries are applied by the node's own clock"
    "forget-pending" ForgetPending "C1" "sleepers"
        "a new leader does not look for what waits"
    "snapshot-loses-row" SnapshotLosesRow "C10" "snapshots"
        "a row of each part of a snapshot is lost"
    "skip-in-hand-off" SkipInHandOff "C1" "load"
        "one push in ten is left out"
    "garble-payload" GarblePayload "C2" "load"
        "one push in twenty has a byte changed"
    "ack-before-confirm" AckBeforeConfirm "C8" "withheld"
        "a terminal confirms what its application was only given"
    "deliver-after-ack" DeliverAfterAck "C3" "withheld"
        "a terminal gives what it was given before"
    "notify-unproven" NotifyUnproven "C11" "rebinds"
        "an anchor believes an address that has not proven itself"
    "accept-gap" AcceptGap "C4" "load"
        "one push in ten is missing from hand-offs, and a terminal takes what follows it"
    "swap-in-hand-off" SwapInHandOff "C4" "sleepers"
        "the last two pushes of a hand-off change places"
    "swap-seqs" SwapSeqs "C5" "load"
        "of each two pushes the first gets the second one's seq"
    "keep-epoch" KeepEpoch "C7" "stale"
        "a session that takes another one's place gets its epoch"
    "slow-election" SlowElection "C9" "outage"
        "a follower whose leader is gone waits for long before it asks for votes"
    "no-deadline" NoDeadline "C12" "outage"
        "a node tries to do what a publisher wants for as long as it takes"
};

/// One by its name.
pub(crate) fn find(name: &str) -> Option<&'static Planted> {
    CANARIES.iter().find(|planted| planted.name == name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use reveille_chaos::check;
    use reveille_chaos::scenario::{load, shipped};

    #[test]
    fn each_checker_has_one_but_those_that_judge_no_bug_of_a_simulated_node() {
        let proven = |id: &&str| CANARIES.iter().any(|planted| planted.checker == *id);
        let not: Vec<&str> =
            check::CHECKERS.iter().map(|checker| checker.id).filter(|id| !proven(id)).collect();
        assert_eq!(not, ["C13", "C14"]);
    }

    #[test]
    fn each_is_documented_and_has_a_scenario_of_its_name() {
        let page = include_str!("../../../../docs/chaos.md");
        for Planted { name, checker, scenario: (called, text), about, .. } in CANARIES {
            let row = page.lines().find(|line| line.starts_with(&format!("| `{name}`: {about} |"))).unwrap();
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            assert!(cells[2].split(':').next() == Some(checker), "{row}");
            assert_eq!(cells[3], format!("`{called}`"), "{row}");
            assert_eq!(load(name, text).unwrap().name, *called);
            assert!(check::find(checker).is_some() && shipped::find(called).is_none(), "{name}");
        }
    }
}
