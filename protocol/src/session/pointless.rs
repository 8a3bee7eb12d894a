//! Back-off of a terminal whose notifications bring nothing: replayed or forged by who knows the secret, or sent by a node
//! that is confused. Says only how long one that comes now must wait.

use std::time::Duration;

use crate::time::Instant;

/// So many in a row cost nothing: a push may be cancelled, replaced or expired before its terminal has connected.
const FREE: u32 = 3;
/// The first wait, doubled with each further one: what a real push is late by at most when some before it were cancelled.
const FIRST: Duration = Duration::from_secs(4);
/// The longest: who floods a terminal makes it connect fifteen times an hour, and a push is no later than this by it.
const LONGEST: Duration = Duration::from_secs(240);
/// A row ends by itself when none came for so long.
const QUIET: Duration = Duration::from_secs(600);

/// What a session that a notification caused came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A push came.
    Push,
    /// The node knew of none.
    Nothing,
    /// There was something which ended before it came, or the session never opened: says nothing.
    Unclear,
}

/// The row of pointless notifications.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pointless {
    row: u32,
    last: Option<Instant>,
}

impl Pointless {
    /// A session that a notification caused is over. `true`: it was pointless.
    pub fn ended(&mut self, now: Instant, found: Found) -> bool {
        match found {
            Found::Push => *self = Pointless::default(),
            Found::Unclear => {}
            Found::Nothing => {
                let quiet = self.last.is_none_or(|last| now.since(last) > QUIET);
                self.row = if quiet { 1 } else { self.row.saturating_add(1) };
                self.last = Some(now);
            }
        }
        found == Found::Nothing
    }

    /// How long a notification that comes now waits before the terminal connects.
    pub fn wait(&self, now: Instant) -> Duration {
        let Some(last) = self.last.filter(|_| self.row >= FREE) else { return Duration::ZERO };
        // Six doublings reach the longest.
        let wait = (FIRST * 2u32.pow((self.row - FREE).min(6))).min(LONGEST);
        (last + wait).since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A terminal that is notified of nothing each `every` connects so many times in a day, when it may.
    fn flooded(every: Duration) -> u32 {
        let (mut pointless, mut now, mut connected) = (Pointless::default(), Instant(0), 0);
        while now < Instant(24 * 3600 * 1000) {
            // One that comes meanwhile changes nothing: it is held together with the first.
            now = now + pointless.wait(now);
            connected += 1;
            now = now + SECOND / 10;
            pointless.ended(now, Found::Nothing);
            now = now + every;
        }
        connected
    }

    #[test]
    fn a_flood_makes_it_connect_fifteen_times_an_hour() {
        assert!(flooded(Duration::ZERO) <= 24 * 15 + 10, "{}", flooded(Duration::ZERO));
        assert!(flooded(SECOND) <= 24 * 15 + 10, "{}", flooded(SECOND));
        // What comes rarely is followed each time.
        assert_eq!(flooded(700 * SECOND), 124);
    }

    #[test]
    fn a_push_after_three_that_were_cancelled_is_late_by_the_first_wait_at_most() {
        let mut pointless = Pointless::default();
        for at in 0..u64::from(FREE) {
            assert_eq!(pointless.wait(Instant(at)), Duration::ZERO);
            assert!(pointless.ended(Instant(at), Found::Nothing));
        }
        assert_eq!(pointless.wait(Instant(2)), FIRST);
        // The wait runs from the end of the last one, not from the notification.
        assert_eq!(pointless.wait(Instant(2) + SECOND), FIRST - SECOND);
        assert_eq!(pointless.wait(Instant(2) + FIRST), Duration::ZERO);
        assert!(!pointless.ended(Instant(3000), Found::Unclear));
        assert_eq!(pointless.wait(Instant(3000)), Duration::from_millis(1002));
        assert!(!pointless.ended(Instant(5000), Found::Push));
        assert_eq!(pointless, Pointless::default(), "a push that comes ends the row");
    }

    #[test]
    fn waits_double_to_their_bound_and_silence_ends_them() {
        let (mut pointless, mut now, mut waits) = (Pointless::default(), Instant(0), Vec::new());
        for _ in 0..12 {
            pointless.ended(now, Found::Nothing);
            waits.push(pointless.wait(now).as_secs());
            now = now + pointless.wait(now);
        }
        assert_eq!(waits, [0, 0, 4, 8, 16, 32, 64, 128, 240, 240, 240, 240]);
        now = now + QUIET + SECOND;
        pointless.ended(now, Found::Nothing);
        assert_eq!(pointless.wait(now), Duration::ZERO);
    }

    #[test]
    fn whatever_comes_no_wait_is_longer_than_its_bound() {
        for seed in 0..200u64 {
            let (mut pointless, mut now, mut dice) = (Pointless::default(), Instant(0), seed);
            let mut row = 0;
            for _ in 0..200 {
                dice = dice.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let found = [Found::Push, Found::Nothing, Found::Nothing, Found::Nothing, Found::Unclear]
                    [(dice >> 33) as usize % 5];
                now = now + Duration::from_millis((dice >> 40) % 20_000);
                pointless.ended(now, found);
                row = match found {
                    Found::Push => 0,
                    Found::Nothing => row + 1,
                    Found::Unclear => row,
                };
                let wait = pointless.wait(now);
                assert!(wait <= LONGEST, "seed {seed}");
                assert!(row >= FREE || wait.is_zero(), "seed {seed}: {row} in a row wait {wait:?}");
                assert!(row > FREE || wait <= FIRST, "seed {seed}: {row} in a row wait {wait:?}");
            }
        }
    }
}
