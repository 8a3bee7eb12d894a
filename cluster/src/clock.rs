//! Group time: what a leader stamps its entries with. Combines wall clocks that were exchanged on the links with a
//! monotonic one; never asks an operating system itself.
//!
//! Within a term a leader's group time advances with its monotonic clock. At an election it starts at the median
//! of a quorum's wall clocks, and never before what the group has already seen. So one clock that jumps, even the
//! leader's own, expires nothing.

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
    heard: Mutex<BTreeMap<NodeId, (i64, InstantOf<C>)>>,
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
        let offset = wall as i64 - self.wall() as i64;
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.insert(from, (offset, C::now()));
    }

    /// How far this node's wall clock is from the median of itself and its `peers`, in milliseconds; `None` if
    /// fewer than a majority of them were heard of lately.
    pub(crate) fn offset_from_median(&self, peers: usize) -> Option<i64> {
        let now = C::now();
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = heard.values().filter(|(_, at)| now - *at < FRESH).map(|(offset, _)| *offset);
        let mut offsets: Vec<i64> = fresh.chain([0]).collect();
        offsets.sort_unstable();
        // With an even number the lower middle: time rather stands a little than jumps ahead.
        (offsets.len() > peers.div_ceil(2)).then(|| -offsets[(offsets.len() - 1) / 2])
    }

    /// The median wall clock, or this node's own while too few others were heard of.
    pub(crate) fn median(&self, peers: usize) -> GroupTime {
        let offset = self.offset_from_median(peers).unwrap_or(0);
        GroupTime((self.wall() as i64 - offset).max(0) as u64)
    }
}

/// One group's time at its leader.
pub(crate) struct GroupClock<C: Cfg> {
    base: Mutex<Option<(GroupTime, InstantOf<C>)>>,
}

impl<C: Cfg> Default for GroupClock<C> {
    fn default() -> Self {
        GroupClock { base: Mutex::new(None) }
    }
}

impl<C: Cfg> GroupClock<C> {
    /// A term begins: time starts at the median, but not before what the group has seen.
    pub(crate) fn begin(&self, median: GroupTime, seen: GroupTime) {
        let mut base = self.base.lock().unwrap_or_else(PoisonError::into_inner);
        *base = Some((median.max(seen), C::now()));
    }

    /// Group time now; `otherwise` where no term began yet.
    pub(crate) fn now(&self, otherwise: impl FnOnce() -> GroupTime) -> GroupTime {
        match *self.base.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((base, at)) => base + (C::now() - at),
            None => otherwise(),
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
        assert_eq!(clocks.offset_from_median(2), None, "alone it is no majority");
        clocks.heard(NodeId(2), 1_000_010);
        clocks.heard(NodeId(3), 1_000_020);
        assert_eq!(clocks.median(2), GroupTime(1_000_010));
        // Our own clock jumps a day ahead; the peers' next words tell.
        wall.store(1_000_000 + 86_400_000, Ordering::Relaxed);
        clocks.heard(NodeId(2), 1_000_010);
        clocks.heard(NodeId(3), 1_000_020);
        assert_eq!(clocks.median(2), GroupTime(1_000_020));
        assert!(clocks.offset_from_median(2).is_some_and(|offset| offset > 86_000_000));
    }

    #[test]
    fn group_time_goes_on_from_what_the_group_has_seen() {
        let clock = GroupClock::<Tokio>::default();
        assert_eq!(clock.now(|| GroupTime(5)), GroupTime(5));
        clock.begin(GroupTime(10), GroupTime(500));
        assert!(clock.now(|| GroupTime(5)) >= GroupTime(500));
    }
}
