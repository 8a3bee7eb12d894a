//! The line of terminals that are due a notification: in the order in which they became due, first tries before what was
//! tried or found, and no more of them in a second than the shard may order. Without a rate nobody waits. Knows no
//! terminal's facts.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::Duration;

use crate::id::TerminalId;
use crate::time::Instant;

/// After a pause so much of a second's may go at once: a burst of pushes to a few terminals is not held up.
const BURST: u64 = 5;
/// The line is not looked at more often than this: some go together instead of each by itself.
const STEP: Duration = Duration::from_millis(10);
/// Whoever takes notifications has no room: that long nobody is sent there.
const BUSY: Duration = Duration::from_millis(100);
/// What one costs of the credit, which grows by the rate each millisecond.
const COST: u64 = 1000;

/// Of so many turns one is for those behind, if any stand there: a steady stream of first tries does not stop the others.
const BEHIND: u64 = 4;

/// Where a terminal stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// Behind those with a first try: it was tried before, or a new leader found it. After a change of leaders those are all
    /// that are switched off, and a push that comes now is not to wait for them.
    pub(super) behind: bool,
    /// Since when it is due.
    pub(super) due: Instant,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Line {
    waiting: BTreeSet<(Place, TerminalId)>,
    turns: u64,
    per_second: Option<NonZeroU32>,
    credit: u64,
    counted: Instant,
    closed_until: Instant,
}

impl Line {
    /// So many a second from now on.
    pub(super) fn pace(&mut self, now: Instant, per_second: NonZeroU32) {
        if self.per_second.is_none() {
            self.credit = most(per_second);
        }
        self.count(now);
        self.per_second = Some(per_second);
        self.credit = self.credit.min(most(per_second));
    }

    /// A terminal that is due. It is in the line once.
    pub(super) fn join(&mut self, place: Place, terminal: TerminalId) {
        self.waiting.insert((place, terminal));
    }

    /// It is not due any more.
    pub(super) fn leave(&mut self, place: Place, terminal: TerminalId) {
        self.waiting.remove(&(place, terminal));
    }

    /// The next one whose turn it is now.
    pub(super) fn next(&mut self, now: Instant) -> Option<TerminalId> {
        self.count(now);
        let open = now >= self.closed_until && (self.per_second.is_none() || self.credit >= COST);
        if !open {
            return None;
        }
        let behind = (Place { behind: true, due: Instant(0) }, TerminalId([0; 16]));
        let behind =
            if self.turns % BEHIND == BEHIND - 1 { self.waiting.range(behind..).next() } else { None };
        let next = behind.or(self.waiting.first()).copied()?;
        self.waiting.remove(&next);
        self.turns += 1;
        self.credit = self.credit.saturating_sub(COST);
        Some(next.1)
    }

    /// A turn was given back: nobody had room. After the wait one is tried, and with it the rate begins again.
    pub(super) fn busy(&mut self, now: Instant) {
        self.closed_until = now + BUSY;
        self.credit = 0;
        self.counted = self.closed_until;
    }

    /// When to look for the next one, if any waits.
    pub(super) fn opens(&self) -> Option<Instant> {
        self.waiting.first()?;
        let at = match self.per_second {
            None => self.counted,
            Some(rate) => {
                let short = COST.saturating_sub(self.credit).div_ceil(u64::from(rate.get()));
                self.counted + STEP.max(Duration::from_millis(short))
            }
        };
        Some(at.max(self.closed_until))
    }

    fn count(&mut self, now: Instant) {
        if let Some(rate) = self.per_second {
            let passed = now.since(self.counted).as_millis() as u64;
            let grown = self.credit.saturating_add(passed.saturating_mul(u64::from(rate.get())));
            self.credit = grown.min(most(rate));
        }
        self.counted = self.counted.max(now);
    }
}

/// The most that a pause brings: a burst, and at least one.
fn most(per_second: NonZeroU32) -> u64 {
    (u64::from(per_second.get()) * 1000 / BURST).max(COST)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn terminal(number: u16) -> TerminalId {
        let mut id = [0; 16];
        id[..2].copy_from_slice(&number.to_be_bytes());
        TerminalId(id)
    }

    fn first(due: u64) -> Place {
        Place { behind: false, due: Instant(due) }
    }

    /// How many leave between two moments, if it is looked at whenever it asks for it.
    fn leave(line: &mut Line, from: u64, to: u64) -> usize {
        let mut left = 0;
        let mut now = Instant(from);
        while now < Instant(to) {
            while line.next(now).is_some() {
                left += 1;
            }
            match line.opens() {
                Some(at) => now = at,
                None => break,
            }
        }
        left
    }

    #[test]
    fn after_a_burst_they_leave_at_the_rate() {
        let mut line = Line::default();
        line.pace(Instant(0), NonZeroU32::new(100).unwrap());
        (0..1000).for_each(|number| line.join(first(0), terminal(number)));
        assert_eq!(leave(&mut line, 0, 1), 20, "a fifth of a second's");
        let in_five_seconds = leave(&mut line, 1, 5001);
        assert!((490..=500).contains(&in_five_seconds), "{in_five_seconds}");
        // A long pause brings no more than a burst.
        line.waiting.retain(|_| false);
        (0..1000).for_each(|number| line.join(first(0), terminal(number)));
        assert_eq!(leave(&mut line, 900_000, 900_001), 20);
    }

    #[test]
    fn the_slowest_rate_lets_one_go_each_second_and_none_lets_all() {
        let mut line = Line::default();
        (0..10).for_each(|number| line.join(first(5), terminal(number)));
        assert_eq!(leave(&mut line, 5, 6), 10);
        line.pace(Instant(10), NonZeroU32::MIN);
        (0..10).for_each(|number| line.join(first(10), terminal(number)));
        assert_eq!(leave(&mut line, 10, 3_005), 3);
    }

    #[test]
    fn who_was_due_first_goes_first_and_who_has_left_is_passed_over() {
        let mut line = Line::default();
        line.join(first(2), terminal(1));
        line.join(first(1), terminal(2));
        line.join(first(1), terminal(3));
        line.leave(first(1), terminal(2));
        assert_eq!(line.next(Instant(3)), Some(terminal(3)));
        line.busy(Instant(3));
        assert_eq!((line.next(Instant(4)), line.opens()), (None, Some(Instant(3) + BUSY)));
        assert_eq!(line.next(Instant(3) + BUSY), Some(terminal(1)));
        assert_eq!(line.opens(), None);
    }

    #[test]
    fn first_tries_go_first_and_the_others_all_the_same() {
        let mut line = Line::default();
        (0..8).for_each(|number| line.join(Place { behind: true, due: Instant(0) }, terminal(number)));
        (8..14).for_each(|number| line.join(first(5), terminal(number)));
        let order: Vec<_> = std::iter::from_fn(|| line.next(Instant(5))).collect();
        let expected = [8, 9, 10, 0, 11, 12, 13, 1, 2, 3, 4, 5, 6, 7];
        assert_eq!(order, expected.map(terminal));
    }
}
