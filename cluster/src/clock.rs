//! Group time: what a leader stamps its entries with. Combines wall clocks that were exchanged on the links with a
//! monotonic one; never asks an operating system itself.
//!
//! Within a term a leader's group time advances with its monotonic clock. At an election it starts at the median
//! of a quorum's wall clocks, and never before what the group has already seen; until a quorum's are known it stands.
//! So one clock that jumps, even the leader's own, expires nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::alias::InstantOf;
use openraft::type_config::TypeConfigExt;
use reveille_protocol::id::NodeId;
use reveille_protocol::time::{GroupTime, Instant};

use crate::raft::types::Cfg;

/// How often nodes tell each other what their wall clocks say.
pub(crate) const EXCHANGE: Duration = Duration::from_secs(1);
/// A peer's clock that was not heard of for this long does not count.
const FRESH: Duration = Duration::from_secs(10);

/// Reads this node's wall clock: microseconds since the Unix epoch.
pub type WallClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The clocks of this node and what it heard of its peers'.
pub(crate) struct Clocks<C: Cfg> {
    wall: WallClock,
    origin: InstantOf<C>,
    /// What each peer's wall clock said when. Compared with our own only when that is asked for: between the two ours may
    /// have jumped.
    heard: Mutex<BTreeMap<NodeId, (u64, InstantOf<C>)>>,
}

impl<C: Cfg> Clocks<C> {
    pub(crate) fn new(wall: WallClock) -> Clocks<C> {
        Clocks { wall, origin: C::now(), heard: Mutex::default() }
    }

    /// This node's wall clock, in milliseconds.
    pub(crate) fn wall(&self) -> u64 {
        self.wall_micros() / 1000
    }

    /// This node's wall clock, in microseconds; for traces only.
    pub(crate) fn wall_micros(&self) -> u64 {
        (self.wall)()
    }

    /// The monotonic clock, for timers of the pure machines.
    pub(crate) fn monotonic(&self) -> Instant {
        Instant((C::now() - self.origin).as_millis() as u64)
    }

    /// A peer told what its wall clock says. The way takes well under the second that matters here.
    pub(crate) fn heard(&self, from: NodeId, wall: u64) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.insert(from, (wall, C::now()));
    }

    /// How far this node's wall clock is from the median of itself and its `peers`, in milliseconds; `None` if
    /// fewer than a majority of them were heard of lately.
    pub(crate) fn offset_from_median(&self, peers: usize) -> Option<i64> {
        let now = C::now();
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let own = self.wall() as i64;
        let fresh = heard.values().map(|(wall, at)| (*wall, now - *at)).filter(|(_, age)| *age < FRESH);
        let fresh = fresh.map(|(wall, age)| wall as i64 + age.as_millis() as i64 - own);
        let mut offsets: Vec<i64> = fresh.chain([0]).collect();
        offsets.sort_unstable();
        // With an even number the lower middle: time rather stands a little than jumps ahead.
        (offsets.len() > peers.div_ceil(2)).then(|| -offsets[(offsets.len() - 1) / 2])
    }

    /// The median wall clock; `None` while too few others were heard of.
    pub(crate) fn median(&self, peers: usize) -> Option<GroupTime> {
        let offset = self.offset_from_median(peers)?;
        Some(GroupTime((self.wall() as i64 - offset).max(0) as u64))
    }

    /// This node's own wall clock, as group time.
    pub(crate) fn wall_time(&self) -> GroupTime {
        GroupTime(self.wall())
    }
}

/// One group's time at its leader.
pub(crate) struct GroupClock<C: Cfg>(Mutex<Base<C>>);

enum Base<C: Cfg> {
    /// No term began yet.
    Idle,
    /// A term began, but no quorum's clocks are known: time stands at what the group has seen.
    Standing(GroupTime),
    /// Time was this at that instant.
    Running(GroupTime, InstantOf<C>),
}

impl<C: Cfg> Default for GroupClock<C> {
    fn default() -> Self {
        GroupClock(Mutex::new(Base::Idle))
    }
}

impl<C: Cfg> GroupClock<C> {
    /// A term begins. The group has seen this time.
    pub(crate) fn begin(&self, seen: GroupTime) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Base::Standing(seen);
    }

    /// Group time now, by the median of a quorum's clocks if that is known; `own` is this node's clock.
    pub(crate) fn now(
        &self,
        median: impl FnOnce() -> Option<GroupTime>,
        own: impl FnOnce() -> GroupTime,
    ) -> GroupTime {
        let mut base = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *base {
            Base::Running(then, at) => then + (C::now() - at),
            Base::Idle => median().unwrap_or_else(own),
            Base::Standing(seen) => match median() {
                Some(median) => {
                    *base = Base::Running(median.max(seen), C::now());
                    median.max(seen)
                }
                // A new group has seen no time: what it stored at zero would expire with the first real one.
                None if seen == GroupTime::default() => own(),
                None => seen,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::Tokio;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn one_clock_that_jumps_does_not_move_the_median() {
        let wall = Arc::new(AtomicU64::new(1_000_000));
        let read = wall.clone();
        let clocks = Clocks::<Tokio>::new(Arc::new(move || read.load(Ordering::Relaxed) * 1000));
        assert_eq!(clocks.median(2), None, "alone it is no majority");
        clocks.heard(NodeId(2), 1_000_010);
        clocks.heard(NodeId(3), 1_000_020);
        let minute = 60_000;
        let median = clocks.median(2).unwrap_or_default();
        assert!((1_000_010..1_000_010 + minute).contains(&median.0), "{median}");
        // Our own clock jumps a day ahead. An election may come before the peers' next words.
        wall.store(1_000_000 + 86_400_000, Ordering::Relaxed);
        let median = clocks.median(2).unwrap_or_default();
        assert!((1_000_020..1_000_020 + minute).contains(&median.0), "{median}");
        assert!(clocks.offset_from_median(2).is_some_and(|offset| offset > 86_000_000));
    }

    #[test]
    fn group_time_goes_on_from_what_the_group_has_seen() {
        let clock = GroupClock::<Tokio>::default();
        let (median, unknown, own) = (|| Some(GroupTime(5)), || None, || GroupTime(86_400_000));
        assert_eq!(clock.now(median, own), GroupTime(5));
        clock.begin(GroupTime(500));
        assert_eq!(clock.now(unknown, own), GroupTime(500), "a clock alone expires nothing: time stands");
        assert!(clock.now(median, own) >= GroupTime(500), "never back");
        clock.begin(GroupTime(500));
        assert_eq!(clock.now(|| Some(GroupTime(800)), own), GroupTime(800));
        assert!(
            clock.now(|| Some(GroupTime(9_000_000)), own) < GroupTime(9_000),
            "within a term it runs by itself"
        );
        clock.begin(GroupTime(0));
        assert_eq!(clock.now(unknown, own), own(), "a new group begins with some time");
    }
}
