//! The anchor's side: where each terminal's keepalives come from. Soft state, gone with the node and back within a
//! period. It stores no key and no terminal id, and decides neither when to dial nor how often strangers may be
//! challenged.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::ops::Bound::{Excluded, Unbounded};
use std::time::Duration;

use super::orders::Orders;
use crate::canary::{Canary, canary};
use crate::directory::Secret;
use crate::dispatch::ladder;
use crate::hash;
use crate::limits;
use crate::time::Instant;
use crate::wire::stun::{self, Handle, Message, Packet, Pin, PinSlot, Proof, StunError, Transaction};

/// An address as bytes: v6 form, then the port.
type Place = [u8; 18];
const NOWHERE: Place = [0; 18];
/// A proof is good in the minute it was made in and the next.
const PROOF_MINUTE: u64 = 60_000;
/// A second binding is rung so often at one place: five silences, two tries of each, for which a keeper asks five times and
/// once more after a challenge.
const RINGS: u8 = 60;
/// And for so many seconds after the silence that it promised: a keeper goes on asking for 6.5 s, and packets travel.
/// Keepalives under a false sender keep that young; what they win is bounded by [`RINGS`].
const RUNG_LATE: u64 = 30;
/// Answers to a binding in a second: a terminal sends two at once at most. Who left a proven address could have it answered
/// by keepalives from a false one.
const ANSWERS: u8 = 4;
/// How long an order waits for a keepalive: until its leader has ordered again, with 3 min for that try's outcome and the
/// line.
const ORDERED: Duration = Duration::from_secs(ladder::LONGEST.as_secs() + 180);

/// Why a datagram was ignored, for a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ignored {
    /// Not STUN.
    NotStun,
    /// STUN, but no keepalive.
    Malformed,
    /// Of a secret that is not, or no longer, the cluster's.
    UnknownSecret,
    /// The seal is wrong.
    Forged,
    /// Its number is not above the last: a copy, a late one, or a replay.
    Replayed,
    /// A new handle while the table is full.
    Full,
}

impl Ignored {
    /// The counter's label.
    pub fn label(self) -> &'static str {
        match self {
            Ignored::NotStun => "not_stun",
            Ignored::Malformed => "malformed",
            Ignored::UnknownSecret => "unknown_secret",
            Ignored::Forged => "forged",
            Ignored::Replayed => "replayed",
            Ignored::Full => "full",
        }
    }
}

/// What goes back to where a keepalive came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// To a proven address.
    Mapped(Packet),
    /// To an unproven one: the caller bounds how many an address prefix gets. Not longer than the keepalive.
    Challenge(Packet),
}

/// A keepalive with a good seal and a new number.
#[derive(Debug, PartialEq, Eq)]
pub struct Accepted<T> {
    /// Whose.
    pub handle: Handle,
    /// What to send back; none if none is wanted, or its binding has had four in this second.
    pub answer: Option<Answer>,
    /// What to send to the terminal's second binding.
    pub ring: Option<(SocketAddr, Packet)>,
    /// What waited for it. Only with a proven address: dial it now.
    pub due: Option<T>,
}

/// What came of a datagram.
pub type Heard<T> = Result<Accepted<T>, Ignored>;

/// What a sweep found.
#[derive(Debug, PartialEq, Eq)]
pub struct Swept<T> {
    /// Bindings that were forgotten.
    pub forgotten: usize,
    /// Orders whose time was over before their terminal was heard.
    pub expired: Vec<T>,
}

/// One binding; 36 bytes, for there may be a million.
#[derive(Debug, Clone, Copy)]
struct Record {
    /// The last proven address.
    place: Place,
    /// A dial there failed since it was proven last: whoever was there may be gone, and what comes from there spoofed.
    stale: bool,
    /// Periods after `heard` in which keepalives came that proved nothing yet: the terminal is there, and its number must
    /// not be forgotten.
    grace: u8,
    /// Seconds within which the next keepalive was promised.
    period: [u8; 2],
    /// When the last keepalive came from `place`, in seconds.
    heard: [u8; 4],
    /// The last keepalive's.
    number: [u8; 8],
    /// Keepalives that were answered in the second of `heard`.
    answers: u8,
    /// Rings since it is at `place`; only of a second binding.
    rings: u8,
}

impl Record {
    fn silence(&self, now: Instant) -> u64 {
        u64::from(seconds(now).saturating_sub(u32::from_be_bytes(self.heard)))
    }

    fn period(&self) -> u64 {
        u64::from(u16::from_be_bytes(self.period))
    }

    fn address(&self) -> Option<SocketAddr> {
        (self.place != NOWHERE).then(|| unpack(&self.place))
    }

    /// Where to ring it, if it may be rung once more.
    fn ring(&mut self, now: Instant) -> Option<SocketAddr> {
        if self.rings >= RINGS || self.silence(now) > self.period() + RUNG_LATE {
            return None;
        }
        self.rings += 1;
        self.address()
    }
}

/// The anchor of many terminals. `T` is what may wait for a terminal to be heard again.
pub struct Anchor<T> {
    key: [u8; 32],
    max: usize,
    primary: BTreeMap<Handle, Record>,
    second: BTreeMap<Handle, Record>,
    orders: Orders<T>,
    cursors: [Option<Handle>; 2],
}

impl<T> fmt::Debug for Anchor<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Anchor({} of at most {} bindings, key not shown)", self.len(), self.max)
    }
}

impl<T> Anchor<T> {
    /// An anchor of at most `max` terminals. `key` is random and this node's alone: it makes the address proofs.
    pub fn new(key: [u8; 32], max: usize) -> Anchor<T> {
        let (primary, second) = (BTreeMap::new(), BTreeMap::new());
        Anchor { key, max, primary, second, orders: Orders::new(), cursors: [None; 2] }
    }

    /// Terminals in the table.
    pub fn len(&self) -> usize {
        self.primary.len()
    }

    /// None.
    pub fn is_empty(&self) -> bool {
        self.primary.is_empty()
    }

    /// Takes a datagram that [`stun::is_stun`] picked out. Whatever is sent because of it must leave from the
    /// address that it came to.
    pub fn heard(&mut self, now: Instant, from: SocketAddr, datagram: &[u8], secrets: &[Secret]) -> Heard<T> {
        let sealed = stun::decode(datagram).map_err(|error| match error {
            StunError::NotStun => Ignored::NotStun,
            StunError::Malformed => Ignored::Malformed,
        })?;
        let claim = sealed.claim().ok_or(Ignored::Malformed)?;
        let generation = claim.generation;
        let secret = secrets.iter().find(|s| s.generation == generation).ok_or(Ignored::UnknownSecret)?;
        let key = stun::pin_key(secret, &claim.handle);
        let Some((Message::Keepalive { pin, wants_answer, proof }, transaction)) = sealed.open(&key) else {
            return Err(Ignored::Forged);
        };
        self.keepalive(now, stun::canonical(from), &pin, wants_answer, proof, transaction, &key)
    }

    #[expect(clippy::too_many_arguments, reason = "a keepalive, taken apart")]
    fn keepalive(
        &mut self,
        now: Instant,
        from: SocketAddr,
        pin: &Pin,
        wants_answer: bool,
        proof: Option<Proof>,
        transaction: Transaction,
        key: &[u8; 32],
    ) -> Heard<T> {
        let handle = pin.handle;
        let place = pack(from);
        let proven = canary(Canary::NotifyUnproven)
            || proof.is_some_and(|proof| self.proves(now, pin, &place, &proof));
        let (bindings, max) = match pin.slot {
            PinSlot::Primary => (&mut self.primary, self.max),
            PinSlot::Second => (&mut self.second, self.max.div_ceil(limits::SECOND_BINDINGS)),
        };
        let full = bindings.len() >= max;
        let record = match bindings.entry(handle) {
            Entry::Occupied(entry) if u64::from_be_bytes(entry.get().number) >= transaction.number => {
                return Err(Ignored::Replayed);
            }
            Entry::Vacant(_) if full => return Err(Ignored::Full),
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let heard = seconds(now).to_be_bytes();
                entry.insert(Record {
                    place: NOWHERE,
                    stale: false,
                    grace: 0,
                    period: [0; 2],
                    heard,
                    number: [0; 8],
                    answers: 0,
                    rings: 0,
                })
            }
        };
        // Also when the address is not proven: each keepalive is answered once, so that no copy of it can aim a
        // challenge anywhere.
        record.number = transaction.number.to_be_bytes();
        record.period = pin.period.clamp(1, limits::MAX_KEEPALIVE_GAP).to_be_bytes();
        if !proven && (record.place != place || record.stale) {
            record.grace = u8::try_from(record.silence(now) / record.period().max(1)).unwrap_or(u8::MAX);
            let challenge = Message::Challenge(self.proof(minute(now), pin, &place));
            let answer = Some(Answer::Challenge(stun::encode(&challenge, transaction, key)));
            return Ok(Accepted { handle, answer, ring: None, due: None });
        }
        if record.place != place {
            record.rings = 0;
        }
        record.place = place;
        record.stale = false;
        record.grace = 0;
        let heard = seconds(now).to_be_bytes();
        if record.heard != heard {
            (record.heard, record.answers) = (heard, 0);
        }
        let answered = wants_answer && record.answers < ANSWERS;
        record.answers += u8::from(answered);

        let (mut due, mut ring) = (None, None);
        if pin.slot == PinSlot::Primary {
            due = self.orders.take(&handle);
            let second = self.second.get_mut(&handle).filter(|_| pin.ring);
            let message = Message::Ring { waiting: false };
            ring = second
                .and_then(|second| second.ring(now))
                .map(|address| (address, stun::encode(&message, transaction, key)));
        }
        let mapped = Message::Mapped { address: from, waiting: due.is_some() };
        let answer = answered.then(|| Answer::Mapped(stun::encode(&mapped, transaction, key)));
        Ok(Accepted { handle, answer, ring, due })
    }

    /// Where to dial a terminal, from the very socket that its keepalives come to. `None`: never heard, silent for
    /// more than two periods, or a dial failed since its address was proven last.
    pub fn address(&self, now: Instant, handle: &Handle) -> Option<SocketAddr> {
        let record = self.primary.get(handle)?;
        let fresh = !record.stale && record.silence(now) <= 2 * record.period();
        record.address().filter(|_| fresh)
    }

    /// A dial failed: nothing is sent to the address but challenges until it is proven again, as if it were a new one.
    /// Without that, who was there once could aim notifications at it for ever by keepalives from a false address.
    /// Nothing if it has changed meanwhile.
    pub fn failed(&mut self, handle: &Handle, address: SocketAddr) {
        if let Some(record) = self.primary.get_mut(handle) {
            record.stale |= record.place == pack(stun::canonical(address));
        }
    }

    /// Remembers what waits for a terminal until its leader orders again: it is given back with the next keepalive from a
    /// proven address, also of a device that slept, or that is not in the table since this node was started. Returns what
    /// is given up for it: an earlier order, or the oldest if too many wait ([`limits::MAX_ANCHOR_ORDERS`]).
    pub fn wait(&mut self, now: Instant, handle: Handle, order: T) -> Option<T> {
        self.orders.put(handle, now + ORDERED, order)
    }

    /// Forgets what was silent for three periods, proven or not. Looks at `budget` bindings of each kind, from where the last call
    /// stopped, and gives up at most as many orders.
    ///
    /// A replay of a forgotten handle's keepalive passes for its first: it gets a challenge, or, with a proof less
    /// than two minutes old, is believed to come from the address that was proven then.
    pub fn sweep(&mut self, now: Instant, budget: usize) -> Swept<T> {
        let forgotten = sweep(&mut self.primary, &mut self.cursors[0], now, budget)
            + sweep(&mut self.second, &mut self.cursors[1], now, budget);
        let expired = std::iter::from_fn(|| self.orders.expired(now)).take(budget).collect();
        Swept { forgotten, expired }
    }

    /// What only who receives at this address can know.
    fn proof(&self, minute: u64, pin: &Pin, place: &Place) -> Proof {
        let (slot, minute) = ([pin.slot as u8], minute.to_be_bytes());
        let mac =
            hash::hmac_sha256(&self.key, &[b"reveille pin proof", &pin.handle.0, &slot, place, &minute]);
        let mut proof = [0; 8];
        proof.copy_from_slice(&mac[..8]);
        proof
    }

    fn proves(&self, now: Instant, pin: &Pin, place: &Place, proof: &Proof) -> bool {
        let minute = minute(now);
        [minute, minute.wrapping_sub(1)].iter().any(|m| hash::equal(&self.proof(*m, pin, place), proof))
    }
}

fn sweep(
    bindings: &mut BTreeMap<Handle, Record>,
    cursor: &mut Option<Handle>,
    now: Instant,
    budget: usize,
) -> usize {
    let from = cursor.map_or(Unbounded, Excluded);
    let (mut silent, mut seen, mut last) = (Vec::new(), 0, None);
    for (handle, record) in bindings.range((from, Unbounded)).take(budget) {
        (seen, last) = (seen + 1, Some(*handle));
        if record.silence(now) > (3 + u64::from(record.grace)) * record.period() {
            silent.push(*handle);
        }
    }
    *cursor = last.filter(|_| seen == budget);
    for handle in &silent {
        bindings.remove(handle);
    }
    silent.len()
}

fn seconds(now: Instant) -> u32 {
    (now.0 / 1000) as u32
}

fn minute(now: Instant) -> u64 {
    now.0 / PROOF_MINUTE
}

fn pack(address: SocketAddr) -> Place {
    let ip = match address {
        SocketAddr::V4(v4) => v4.ip().to_ipv6_mapped(),
        SocketAddr::V6(v6) => *v6.ip(),
    };
    let mut place = NOWHERE;
    place[..16].copy_from_slice(&ip.octets());
    place[16..].copy_from_slice(&address.port().to_be_bytes());
    place
}

fn unpack(place: &Place) -> SocketAddr {
    let [octets @ .., a, b] = *place;
    stun::canonical(SocketAddr::new(Ipv6Addr::from_octets(octets).into(), u16::from_be_bytes([a, b])))
}
