//! Bugs that are planted on purpose, so that it is known of each checker that it finds what it is for. Without the feature
//! `canary` there are none: every hook is `false` when it is compiled, and a release of `reveille` does not compile with it. With it, a
//! simulation plants one on its thread; nothing else can, neither a configuration nor the environment.

/// A bug that can be planted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Canary {
    /// The log says that a write is durable, and has not synced it.
    AckBeforeSync,
    /// A vote is remembered, and not written.
    VoteNotDurable,
    /// An ack or a detach of a session that is over counts.
    SkipEpochCheck,
    /// One push in a thousand is acknowledged and not stored.
    DropOneInThousand,
    /// An idempotency key that was taken before is taken again.
    DedupeOff,
    /// A session that takes another one's place does not stand in the service list.
    LoseReplacement,
    /// Entries are applied by the node's own clock.
    ApplyTheClock,
    /// A new leader does not look for what waits.
    ForgetPending,
    /// A row of each part of a snapshot is lost.
    SnapshotLosesRow,
    /// One push in ten is left out when it is handed off.
    SkipInHandOff,
    /// One push in twenty is given with a byte changed.
    GarblePayload,
    /// A terminal confirms what its application was only given.
    AckBeforeConfirm,
    /// A terminal gives what it was given before.
    DeliverAfterAck,
    /// An anchor believes an address that has not proven itself.
    NotifyUnproven,
    /// One push in ten is missing from hand-offs, and a terminal takes what follows it.
    AcceptGap,
    /// The last two pushes of a hand-off change places.
    SwapInHandOff,
    /// Of each two pushes the first gets the second one's seq.
    SwapSeqs,
    /// A session that takes another one's place gets its epoch.
    KeepEpoch,
    /// A follower whose leader is gone waits for long before it asks for votes.
    SlowElection,
    /// A node tries to do what a publisher wants for as long as it takes.
    NoDeadline,
}

/// Whether bugs can be planted in this build. In a release they cannot.
pub const PLANTABLE: bool = cfg!(feature = "canary");

/// Is this bug planted?
#[cfg(not(feature = "canary"))]
#[inline(always)]
pub const fn canary(_: Canary) -> bool {
    false
}

#[cfg(feature = "canary")]
pub use self::planted::{canary, clock, plant};

#[cfg(feature = "canary")]
mod planted {
    use std::cell::Cell;

    use super::Canary;
    use crate::time::GroupTime;

    thread_local! {
        static PLANTED: Cell<Option<Canary>> = const { Cell::new(None) };
        static CLOCK: Cell<fn(GroupTime) -> GroupTime> = const { Cell::new(|time| time) };
    }

    /// Plants a bug in everything that runs on this thread from now on; `clock` makes of a group's time what the node that
    /// runs would take for it.
    pub fn plant(canary: Option<Canary>, clock: fn(GroupTime) -> GroupTime) {
        PLANTED.set(canary);
        CLOCK.set(clock);
    }

    /// Is this bug planted on this thread?
    pub fn canary(which: Canary) -> bool {
        PLANTED.get() == Some(which)
    }

    /// What the node that runs takes a group's time for.
    pub fn clock(time: GroupTime) -> GroupTime {
        CLOCK.get()(time)
    }
}

/// A group's time by the node's own clock.
#[cfg(not(feature = "canary"))]
#[inline(always)]
pub const fn clock(time: crate::time::GroupTime) -> crate::time::GroupTime {
    time
}
