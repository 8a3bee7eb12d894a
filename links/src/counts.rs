//! What a link did, counted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// What may be done to a packet, a connection, a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Done {
    /// A datagram, or a part of a stream, went on.
    Passed,
    /// Was lost; of a stream: was sent again.
    Lost,
    /// Went into the black hole.
    Swallowed,
    /// Was held until the link passed again.
    Held,
    /// Came late, so that others came first.
    Late,
    /// Came twice.
    Duplicated,
    /// Had a bit turned.
    Corrupted,
    /// Lost its end.
    Truncated,
    /// Came again much later.
    Replayed,
    /// Had no room among what is on its way.
    Crowded,
    /// A connection was made.
    Connected,
    /// A connection was not made: the destination takes none, or there are too many.
    Refused,
    /// A connection was broken.
    Reset,
    /// One end of a connection was made to vanish.
    HalfOpen,
    /// A sender of datagrams got a port towards the destination.
    Mapped,
    /// It lost that port: by a rebind, or by the NAT's forgetting.
    Unmapped,
}

impl Done {
    /// All of them, each with its name.
    pub const ALL: [(Done, &'static str); 16] = [
        (Done::Passed, "passed"),
        (Done::Lost, "lost"),
        (Done::Swallowed, "swallowed"),
        (Done::Held, "held"),
        (Done::Late, "late"),
        (Done::Duplicated, "duplicated"),
        (Done::Corrupted, "corrupted"),
        (Done::Truncated, "truncated"),
        (Done::Replayed, "replayed"),
        (Done::Crowded, "crowded"),
        (Done::Connected, "connected"),
        (Done::Refused, "refused"),
        (Done::Reset, "reset"),
        (Done::HalfOpen, "half-open"),
        (Done::Mapped, "mapped"),
        (Done::Unmapped, "unmapped"),
    ];
}

/// How often what was done.
#[derive(Debug, Default)]
pub struct Counts([AtomicU64; Done::ALL.len()]);

impl Counts {
    /// One more of each of these.
    pub fn add(&self, done: &[Done]) {
        for done in done {
            self.0[*done as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// So many so far.
    pub fn of(&self, done: Done) -> u64 {
        self.0[done as usize].load(Ordering::Relaxed)
    }

    /// All that happened at all, by name.
    pub fn seen(&self) -> BTreeMap<&'static str, u64> {
        Done::ALL.iter().map(|(done, name)| (*name, self.of(*done))).filter(|(_, count)| *count > 0).collect()
    }
}
