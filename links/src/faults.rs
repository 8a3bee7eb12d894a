//! What may be wrong with a link: values, changed while it runs.

use std::num::NonZeroU64;
use std::time::Duration;

use super::fate::Direction;

/// Whether anything passes; the later, the less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Pass {
    /// Yes.
    #[default]
    Open,
    /// What comes is held, as far as there is room, and goes on all at once when it may: of a stream also its end, and its
    /// beginning. So does a stream through a network that was away, as its sender repeats what was not confirmed.
    Held,
    /// What comes is swallowed: a black hole. A stream that lost bytes so is broken when the link passes again.
    Lost,
}

/// One direction of a link. Shares are those of packets: of datagrams, and of streams what arrives at once, 16 KiB at most.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Way {
    /// Whether anything passes.
    pub pass: Pass,
    /// Later by this.
    pub delay: Duration,
    /// And by up to this, drawn for each packet. Datagrams overtake each other by it; streams do not.
    pub jitter: Duration,
    /// Bytes a second; `None`: as many as come.
    pub rate: Option<NonZeroU64>,
    /// The share that is lost. Of a stream: comes late, as it is sent again, by 0.2 s, doubling.
    pub loss: f64,
    /// The share that comes twice. Streams do not show it.
    pub duplicate: f64,
    /// The share that comes late by [`super::fate::OVERTAKEN`], so that others come first; of a stream all behind it, too.
    pub reorder: f64,
    /// The share of which one bit is turned.
    pub corrupt: f64,
    /// The share that loses its end. Streams do not.
    pub truncate: f64,
    /// The share that comes again after `replay_after`. Streams do not.
    pub replay: f64,
    /// See `replay`.
    pub replay_after: Duration,
}

impl Way {
    /// What is wrong here, and what is wrong there as well.
    pub fn and(self, other: Way) -> Way {
        // Of two that draw on their own.
        let either = |one: f64, other: f64| 1.0 - (1.0 - one) * (1.0 - other);
        Way {
            pass: self.pass.max(other.pass),
            delay: self.delay + other.delay,
            jitter: self.jitter + other.jitter,
            rate: [self.rate, other.rate].into_iter().flatten().min(),
            loss: either(self.loss, other.loss),
            duplicate: either(self.duplicate, other.duplicate),
            reorder: either(self.reorder, other.reorder),
            corrupt: either(self.corrupt, other.corrupt),
            truncate: either(self.truncate, other.truncate),
            replay: either(self.replay, other.replay),
            replay_after: self.replay_after.max(other.replay_after),
        }
    }
}

/// Both directions.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Faults {
    /// From who sends to the link, to its destination.
    pub up: Way,
    /// Back.
    pub down: Way,
    /// The NAT forgets a sender from which nothing came for so long: its next datagram comes from another port.
    pub nat_timeout: Option<Duration>,
}

impl Faults {
    /// The same both ways.
    pub fn both(way: Way) -> Faults {
        Faults { up: way, down: way, nat_timeout: None }
    }

    /// One direction.
    pub fn way(&self, direction: Direction) -> Way {
        match direction {
            Direction::Up => self.up,
            Direction::Down => self.down,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_adds_up() {
        let (open, held) = (Way::default(), Way { pass: Pass::Held, ..Way::default() });
        assert_eq!(open.and(held), held);
        assert_eq!(held.and(Way { pass: Pass::Lost, ..open }).pass, Pass::Lost);
        let one = Way { loss: 0.5, delay: Duration::from_millis(3), rate: NonZeroU64::new(9), ..open };
        let two = Way { loss: 0.5, delay: Duration::from_millis(4), rate: NonZeroU64::new(5), ..open };
        let both = one.and(two);
        assert_eq!((both.loss, both.delay, both.rate), (0.75, Duration::from_millis(7), two.rate));
        assert_eq!(one.and(open), one);
    }
}
