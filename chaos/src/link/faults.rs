//! What may be wrong with a link: values, changed while it runs.

use std::num::NonZeroU64;
use std::time::Duration;

use super::fate::Direction;

/// Whether anything passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
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
