//! The bugs that can be planted: under which load and faults each shows, and which checker must find it.

use reveille_protocol::canary::Canary;

/// A bug, and who must find it.
pub(crate) struct Planted {
    pub(crate) name: &'static str,
    pub(crate) canary: Canary,
    /// The id of the checker that must fail.
    pub(crate) checker: &'static str,
    /// The scenario that it is looked for with.
    pub(crate) scenario: &'static str,
}

macro_rules! planted {
    ($($name:literal $canary:ident $checker:literal $scenario:literal)*) => {
        &[$(Planted {
            name: $name,
            canary: Canary::$canary,
            checker: $checker,
            scenario: include_str!(concat!("../../../canaries/", $scenario, ".toml")),
        }),*]
    };
}

/// All of them.
pub(crate) static CANARIES: &[Planted] = planted! {
    "ack-before-sync" AckBeforeSync "C1" "power"
    "vote-not-durable" VoteNotDurable "C16" "restarts"
    "skip-epoch-check" SkipEpochCheck "C1" "stale"
    "drop-one-in-thousand" DropOneInThousand "C1" "load"
    "dedupe-off" DedupeOff "C3" "retries"
    "lose-replacement" LoseReplacement "C6" "stale"
    "apply-the-clock" ApplyTheClock "C10" "load"
    "forget-pending" ForgetPending "C1" "sleepers"
    "snapshot-loses-row" SnapshotLosesRow "C10" "snapshots"
    "skip-in-hand-off" SkipInHandOff "C1" "load"
    "garble-payload" GarblePayload "C2" "load"
    "ack-before-confirm" AckBeforeConfirm "C8" "withheld"
    "deliver-after-ack" DeliverAfterAck "C3" "withheld"
    "notify-unproven" NotifyUnproven "C11" "rebinds"
};
