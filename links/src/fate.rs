//! What happens to a packet: a pure function of the seed, the link, the direction, the packet's number and what is wrong
//! with the link. Each draw is taken whether it is needed or not, so that a fault that is added changes no other.

use std::time::Duration;

use super::counts::Done;
use super::faults::{Pass, Way};
use crate::draw::Draws;

/// A datagram that is overtaken comes this much later: more than lies between those that are sent together.
pub const OVERTAKEN: Duration = Duration::from_millis(30);
/// A lost part of a stream is sent again after this, as the shortest of Linux; then after twice that.
pub const AGAIN: Duration = Duration::from_millis(200);
/// So often it is lost at most: 12.6 s in all, after which most who wait have given up.
const TRIES: u32 = 6;
/// What is left of a datagram that loses its end: one byte at least.
const LEAST: usize = 1;

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// To the destination.
    Up = 0,
    /// Back.
    Down = 1,
}

/// Whose draws: a link's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lot {
    /// The run's seed.
    pub seed: u64,
    /// The link's name.
    pub name: String,
}

impl Lot {
    /// The draws of the `n`-th packet in this direction, from 0.
    fn draws(&self, direction: Direction, n: u64) -> Draws {
        let way = match direction {
            Direction::Up => "up",
            Direction::Down => "down",
        };
        Draws::new(self.seed, &format!("{} {way}", self.name)).of(n)
    }
}

/// What becomes of a datagram: it goes on once or several times, or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fate {
    /// Each copy that goes on.
    pub copies: Vec<Copy>,
    /// What was done to it.
    pub done: Vec<Done>,
}

/// One copy of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copy {
    /// Late by this.
    pub after: Duration,
    /// This bit is turned.
    pub flip: Option<usize>,
    /// So many of its bytes are there.
    pub keep: usize,
}

impl Copy {
    /// The bytes that go on.
    pub fn of(&self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes[..self.keep.min(bytes.len())].to_vec();
        turn(&mut bytes, self.flip);
        bytes
    }
}

/// Turns a bit that is there.
pub fn turn(bytes: &mut [u8], bit: Option<usize>) {
    if let Some(bit) = bit
        && let Some(byte) = bytes.get_mut(bit / 8)
    {
        *byte ^= 1 << (bit % 8);
    }
}

/// The fate of the `n`-th datagram.
pub fn datagram(lot: &Lot, direction: Direction, n: u64, length: usize, way: &Way) -> Fate {
    let mut draws = lot.draws(direction, n);
    let [lost, twice, late, corrupt, truncated, again] =
        [way.loss, way.duplicate, way.reorder, way.corrupt, way.truncate, way.replay]
            .map(|share| draws.chance(share));
    let bit = draws.below(length as u64 * 8) as usize;
    let cut = LEAST + draws.below(length.saturating_sub(LEAST) as u64) as usize;
    let jitters = [0; 3].map(|_: u8| Duration::from_nanos(draws.below(way.jitter.as_nanos() as u64 + 1)));
    if way.pass == Pass::Lost {
        return Fate { copies: Vec::new(), done: vec![Done::Swallowed] };
    }
    if lost {
        return Fate { copies: Vec::new(), done: vec![Done::Lost] };
    }
    let mut done = vec![Done::Passed];
    let overtaken = if late { OVERTAKEN } else { Duration::ZERO };
    let first = Copy {
        after: way.delay + jitters[0] + overtaken,
        flip: corrupt.then_some(bit),
        keep: if truncated { cut } else { length },
    };
    let mut copies = vec![first];
    let marks = [(late, Done::Late), (corrupt, Done::Corrupted), (truncated, Done::Truncated)];
    done.extend(marks.iter().filter(|(is, _)| *is).map(|(_, done)| *done));
    if twice {
        copies.push(Copy { after: way.delay + jitters[1], ..first });
        done.push(Done::Duplicated);
    }
    if again {
        // As it was captured: whole, before anything happened to it.
        let after = way.delay + way.replay_after + jitters[2];
        copies.push(Copy { after, flip: None, keep: length });
        done.push(Done::Replayed);
    }
    Fate { copies, done }
}

/// What becomes of a part of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Late by this.
    pub after: Duration,
    /// This bit is turned.
    pub flip: Option<usize>,
    /// What was done to it.
    pub done: Vec<Done>,
}

/// The fate of the `n`-th part of what goes through a link of streams, over all its connections. That it is held or
/// swallowed is not part of it: that changes while it is on its way.
pub fn part(lot: &Lot, direction: Direction, n: u64, length: usize, way: &Way) -> Part {
    let mut draws = lot.draws(direction, n);
    let [late, corrupt] = [way.reorder, way.corrupt].map(|share| draws.chance(share));
    let bit = draws.below(length as u64 * 8) as usize;
    let jitter = Duration::from_nanos(draws.below(way.jitter.as_nanos() as u64 + 1));
    let losses = (0..TRIES).take_while(|_| draws.chance(way.loss)).count() as u32;
    let mut part = Part { after: way.delay + jitter, flip: corrupt.then_some(bit), done: Vec::new() };
    // 1 + 2 + 4 + … of the first wait.
    part.after += AGAIN * (2u32.pow(losses) - 1);
    if late {
        part.after += OVERTAKEN;
    }
    let marks = [(losses > 0, Done::Lost), (late, Done::Late), (corrupt, Done::Corrupted)];
    part.done.extend(marks.iter().filter(|(is, _)| *is).map(|(_, done)| *done));
    part
}
