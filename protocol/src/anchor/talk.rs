//! What a terminal's two bindings share: numbered, sealed keepalives through one of them, repeats of what is not
//! answered, and what the answers say. When to speak is not decided here.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crate::limits;
use crate::time::Instant;
use crate::wire::stun::{self, Handle, Message, Packet, Pin, PinSlot, Proof, Transaction};

/// Milliseconds to wait for the answer to a request and to each of its repeats: after 6.5 s the anchor is taken for dead. Where
/// 30 % of all datagrams are lost each way, one of five tries still gets through 28 times in 29.
const WAITS: [u64; 5] = [500, 500, 1000, 2000, 2500];

/// Under which name a terminal speaks to its anchor; from its last Welcome.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// See [`stun::handle`].
    pub handle: Handle,
    /// Of the secret that handle and key derive from.
    pub generation: u32,
    /// See [`stun::pin_key`].
    pub key: [u8; 32],
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({:?}, generation {}, key not shown)", self.handle, self.generation)
    }
}

/// An answer with a good seal that was not heard before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reply {
    /// To a request.
    Mapped { address: SocketAddr, waiting: bool },
    /// To a keepalive; the next request echoes it.
    Challenged,
    /// Because the other binding asked for it, in the keepalive of this number.
    Ring { number: u64 },
}

/// What to do about a missing answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    Repeat(Packet),
    Lost,
}

#[derive(Debug)]
pub(super) struct Talk {
    identity: Identity,
    slot: PinSlot,
    seed: u64,
    /// Seconds within which the next keepalive will follow.
    pub(super) period: u16,
    /// The next requests ask for a ring.
    pub(super) ring: bool,
    /// Of the last keepalive.
    number: u64,
    /// Highest number that was answered; answers to it and to earlier ones are copies or out of date.
    heard: u64,
    proof: Option<Proof>,
    /// When to repeat the request that has no answer yet, and its repeats so far.
    repeat: Option<(Instant, usize)>,
    /// Challenges taken since then.
    challenges: (Instant, u32),
}

impl Talk {
    /// `number`: of the last keepalive that was ever sent under this handle and slot.
    pub(super) fn new(identity: Identity, slot: PinSlot, number: u64, seed: u64) -> Talk {
        Talk {
            identity,
            slot,
            seed,
            period: 0,
            ring: false,
            number,
            heard: number,
            proof: None,
            repeat: None,
            challenges: (Instant(0), 0),
        }
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// When [`Talk::missing`] has something to say, if no answer comes.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.repeat.map(|(at, _)| at)
    }

    /// Does not wait for an answer any more.
    pub(super) fn forget(&mut self) {
        self.repeat = None;
    }

    pub(super) fn request(&mut self, now: Instant) -> Packet {
        self.repeat = Some((now + Duration::from_millis(WAITS[0]), 0));
        self.keepalive()
    }

    /// Whether an answer is overdue. Repeats have new numbers: the anchor drops a number that it knows, and it may be
    /// the answer that was lost.
    pub(super) fn missing(&mut self, now: Instant) -> Option<Missing> {
        let (at, repeats) = self.repeat?;
        if now < at {
            return None;
        }
        let Some(wait) = WAITS.get(repeats + 1) else {
            self.repeat = None;
            return Some(Missing::Lost);
        };
        self.repeat = Some((now + Duration::from_millis(*wait), repeats + 1));
        Some(Missing::Repeat(self.keepalive()))
    }

    /// `window`: the time in which at most [`limits::MAX_CHALLENGES`] are taken.
    pub(super) fn received(&mut self, now: Instant, datagram: &[u8], window: Duration) -> Option<Reply> {
        let (message, transaction) = stun::decode(datagram).ok()?.open(&self.identity.key)?;
        if let Message::Ring { .. } = message {
            return Some(Reply::Ring { number: transaction.number });
        }
        let Transaction { number, tail } = transaction;
        if number <= self.heard || number > self.number || tail != self.tail(number) {
            return None;
        }
        match message {
            Message::Mapped { address, waiting } => {
                (self.heard, self.proof, self.repeat) = (number, None, None);
                Some(Reply::Mapped { address, waiting })
            }
            Message::Challenge(proof) => {
                if now.since(self.challenges.0) >= window {
                    self.challenges = (now, 0);
                }
                if self.challenges.1 >= limits::MAX_CHALLENGES {
                    return None;
                }
                self.challenges.1 += 1;
                (self.heard, self.proof) = (number, Some(proof));
                Some(Reply::Challenged)
            }
            Message::Keepalive { .. } | Message::Ring { .. } => None,
        }
    }

    /// Always with an answer: then a dead anchor is found within a period, and a lost keepalive repeated before the binding
    /// ends.
    fn keepalive(&mut self) -> Packet {
        self.number = self.number.saturating_add(1);
        let Identity { handle, generation, key } = self.identity;
        let pin = Pin { handle, generation, period: self.period, slot: self.slot, ring: self.ring };
        let transaction = Transaction { number: self.number, tail: self.tail(self.number) };
        stun::encode(&Message::Keepalive { pin, wants_answer: true, proof: self.proof }, transaction, &key)
    }

    /// Made again for each answer instead of being remembered; begins with the slot, so that an answer to one
    /// binding's keepalive says nothing about the other.
    fn tail(&self, number: u64) -> [u8; 4] {
        let [.., a, b, c] = mix(self.seed ^ mix(number)).to_be_bytes();
        [self.slot as u8, a, b, c]
    }
}

/// SplitMix64: spreads a seed over all bits.
pub(super) fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
