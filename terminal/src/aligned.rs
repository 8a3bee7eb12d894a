//! When a terminal's timers go off together: each time that a radio or a processor wakes costs more than what is done then.
//! Only moments are computed here.

use std::time::Duration;

use reveille_protocol::time::Instant;

/// When the device is looked at next: a tick after the last look, or with the keepalive, if that follows within half a
/// tick.
pub(crate) fn look_at(last: Instant, tick: Duration, keepalive: Option<Instant>) -> Instant {
    let due = last + tick;
    keepalive.filter(|&at| at >= due && at <= due + tick / 2).unwrap_or(due)
}

/// When to check in: in place of a keepalive that is due within `jitter` before or after, as a session needs none.
pub(crate) fn check_in_at(due: Instant, keepalive: Option<Instant>, jitter: Duration) -> Instant {
    keepalive.filter(|&at| at + jitter >= due && at <= due + jitter).unwrap_or(due)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: u64) -> Instant {
        Instant(seconds * 1000)
    }

    #[test]
    fn the_device_is_looked_at_with_the_keepalive_if_that_is_near() {
        let tick = 30 * SECOND;
        assert_eq!(look_at(at(100), tick, None), at(130));
        assert_eq!(look_at(at(100), tick, Some(at(144))), at(144));
        assert_eq!(look_at(at(100), tick, Some(at(190))), at(130));
        // It comes before the tick is over, and is a look itself.
        assert_eq!(look_at(at(100), tick, Some(at(125))), at(130));
    }

    #[test]
    fn a_check_in_takes_the_place_of_a_keepalive_and_is_never_later_by_more_than_its_jitter() {
        let jitter = 3 * SECOND;
        assert_eq!(check_in_at(at(100), None, jitter), at(100));
        for near in [97, 100, 103] {
            assert_eq!(check_in_at(at(100), Some(at(near)), jitter), at(near));
        }
        for far in [96, 104] {
            assert_eq!(check_in_at(at(100), Some(at(far)), jitter), at(100));
        }
    }
}
