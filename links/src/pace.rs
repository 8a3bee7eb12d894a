//! When what goes through a link comes out of it: pure arithmetic.

use std::time::Duration;

use tokio::time::Instant;

use super::faults::Way;

/// One direction: what was promised to those before.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pace {
    /// The link has carried everything that came before by then.
    free: Option<Instant>,
    /// The one before comes out then.
    last: Option<Instant>,
}

impl Pace {
    /// When this many bytes that come now are carried: at once, or at the link's rate behind what came before.
    pub(super) fn carried(&mut self, now: Instant, length: usize, way: &Way) -> Instant {
        let Some(rate) = way.rate else {
            self.free = None;
            return now;
        };
        let takes = Duration::from_nanos((length as u128 * 1_000_000_000 / u128::from(rate.get())) as u64);
        let carried = self.free.map_or(now, |free| free.max(now)) + takes;
        self.free = Some(carried);
        carried
    }

    /// The same of a stream, later by `after`, and never before what came before.
    pub(super) fn in_order(&mut self, now: Instant, length: usize, way: &Way, after: Duration) -> Instant {
        let due = self.carried(now, length, way) + after;
        let due = self.last.map_or(due, |last| last.max(due));
        self.last = Some(due);
        due
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;

    #[test]
    fn streams_keep_their_order_and_rates_add_up() {
        let (now, ms) = (Instant::now(), Duration::from_millis);
        let mut pace = Pace::default();
        let way = Way::default();
        assert_eq!(pace.in_order(now, 100, &way, ms(20)), now + ms(20));
        assert_eq!(pace.in_order(now + ms(1), 100, &way, ms(5)), now + ms(20), "not before the one before");
        let slow = Way { rate: NonZeroU64::new(1000), ..Way::default() };
        let mut pace = Pace::default();
        assert_eq!(pace.carried(now, 100, &slow), now + ms(100));
        assert_eq!(pace.carried(now, 50, &slow), now + ms(150));
        assert_eq!(pace.carried(now + ms(500), 100, &slow), now + ms(600), "what was idle is not saved up");
        assert_eq!(pace.carried(now + ms(500), 100, &way), now + ms(500));
    }
}
