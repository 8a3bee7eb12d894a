//! A linger that is learned from the pushes that came: a terminal that gets one each few seconds stays for the next,
//! instead of paying a wake for each. Kept by the terminal alone, which asks for it in its Hello.

use std::time::Duration;

use crate::service_list::row::Linger;
use crate::time::Instant;

/// A wake is worth an open session of this long: to a phone, whose radio stays up for some ten seconds after each
/// packet either way, and about so to a cluster, where a wake takes milliseconds of processor and a session 30 KB.
const WAKE: Duration = Duration::from_secs(10);
/// A gap that is longer counts as this long: a night says no more than a minute, and the morning is learned within some
/// pushes.
const LONGEST_GAP: Duration = Duration::from_secs(40);
/// What comes closer together is one push to this rule, as several that waited are brought by one session.
const TOGETHER: Duration = Duration::from_millis(500);
/// Of each gap a quarter goes into the estimate.
const WEIGHT: u32 = 4;
/// Gaps that are waited for: of gaps that know nothing of each other 95 of 100 are shorter than three of their mean.
const PATIENCE: u32 = 3;

/// What was learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Learned {
    most: Duration,
    /// Exponentially weighted mean of the gaps between pushes.
    gap: Duration,
    last: Option<Instant>,
}

impl Learned {
    /// Nothing yet: it leaves at once. It will never ask for more than `most`, in whole seconds.
    pub fn new(most: Duration) -> Learned {
        Learned { most, gap: LONGEST_GAP, last: None }
    }

    /// A push came.
    pub fn pushed(&mut self, now: Instant) {
        if self.last.is_none_or(|last| now.since(last) >= TOGETHER) {
            self.gap = self.expected(now);
            self.last = Some(now);
        }
    }

    /// What a session that begins now asks for: to stay if the next push is expected sooner than a wake is worth.
    pub fn wish(&self, now: Instant) -> Linger {
        // The gap that ends with this session's push counts already.
        let gap = self.expected(now);
        let linger = (gap * PATIENCE).min(self.most).as_secs_f64().ceil() as u32;
        if gap > WAKE || linger == 0 { Linger::AtOnce } else { Linger::Seconds(linger) }
    }

    /// The mean if a push came now.
    fn expected(&self, now: Instant) -> Duration {
        let Some(last) = self.last else { return self.gap };
        let gap = now.since(last).min(LONGEST_GAP);
        (self.gap * (WEIGHT - 1) + gap) / WEIGHT
    }
}
