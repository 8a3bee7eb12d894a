//! The STUN messages (RFC 8489) between a terminal behind NAT and its anchor, and the keys that seal them. Our own
//! codec for exactly four messages; reading allocates nothing. What follows from a message is not decided here.
//!
//! | message | way | type | attributes before the seal |
//! |---|---|---|---|
//! | keepalive | terminal to anchor | Binding request or indication | PIN, sometimes NONCE |
//! | mapped | anchor to terminal | Binding success | XOR-MAPPED-ADDRESS, sometimes WAITING |
//! | challenge | anchor to terminal | Binding error | ERROR-CODE 438, NONCE |
//! | ring | anchor to terminal | Binding indication | WAITING |
//!
//! The seal is MESSAGE-INTEGRITY-SHA256 cut to 16 bytes, always the last attribute. Type and attributes together
//! name the message, and one that mixes them is refused: so nothing that was sent one way passes for the other.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;

use serde::{Deserialize, Serialize};

use crate::directory::Secret;
use crate::hash;
use crate::id::*;
use crate::limits;

const REQUEST: u16 = 0x0001;
const INDICATION: u16 = 0x0011;
const SUCCESS: u16 = 0x0101;
const ERROR: u16 = 0x0111;

const ERROR_CODE: u16 = 0x0009;
const NONCE: u16 = 0x0015;
const INTEGRITY: u16 = 0x001c;
const MAPPED_ADDRESS: u16 = 0x0020;
/// Ours, comprehension-optional: who speaks, and how.
const PIN: u16 = 0xc0e1;
/// Ours, comprehension-optional: whether a notification waits.
const WAITING: u16 = 0xc0e2;

const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
/// ERROR-CODE 438 "Stale Nonce", without a phrase (RFC 8489 section 14.8).
const STALE_NONCE: [u8; 4] = [0, 0, 4, 38];
const HEADER: usize = 20;
const SEAL: usize = 16;

/// A session's name at its anchor. Tells nothing of the terminal, and nothing of its other sessions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Handle(pub [u8; 16]);

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({:032x})", u128::from_be_bytes(self.0))
    }
}

/// The handle of what follows a session: `HMAC(secret, …)` over the terminal, its stream and the session's epoch.
pub fn handle(secret: &Secret, terminal: &TerminalId, stream: Stream, epoch: Epoch) -> Handle {
    let (stream, epoch) = (stream.0.to_be_bytes(), epoch.0.to_be_bytes());
    let mac = hash::hmac_sha256(&secret.key, &[b"reveille pin handle", &terminal.0, &stream, &epoch]);
    let mut handle = Handle([0; 16]);
    handle.0.copy_from_slice(&mac[..16]);
    handle
}

/// The short-term password (RFC 8489 section 9.1) that seals all messages of a handle. Derived, so that an anchor
/// stores none.
pub fn pin_key(secret: &Secret, handle: &Handle) -> [u8; 32] {
    hash::hmac_sha256(&secret.key, &[b"reveille pin key", &handle.0])
}

/// A transaction id: a number, and bytes that make it hard to guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transaction {
    /// Rises strictly within a handle's slot.
    pub number: u64,
    /// Anything.
    pub tail: [u8; 4],
}

/// The two bindings that a handle may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum PinSlot {
    /// The binding by which the terminal is dialled.
    Primary = 0,
    /// One that only measures how long bindings live.
    Second = 1,
}

/// Who sends a keepalive, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin {
    /// The session's name.
    pub handle: Handle,
    /// Of the secret that handle and key derive from.
    pub generation: u32,
    /// Seconds within which the next keepalive follows.
    pub period: u16,
    /// Which binding this comes through.
    pub slot: PinSlot,
    /// The anchor is asked to ring the second binding.
    pub ring: bool,
}

/// What proves that its sender receives at an address: made by the anchor, echoed by the terminal.
pub type Proof = [u8; 8];

/// Everything that is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// Keeps the binding, terminal to anchor.
    Keepalive {
        /// Who and how.
        pin: Pin,
        /// Whether an answer is wanted: request, or indication.
        wants_answer: bool,
        /// Of the anchor's last challenge.
        proof: Option<Proof>,
    },
    /// The anchor heard a request from this address.
    Mapped {
        /// Canonical: never a v4 address in v6 form.
        address: SocketAddr,
        /// A notification waits: connect without being dialled.
        waiting: bool,
    },
    /// The anchor does not know the address, and wants this echoed.
    Challenge(Proof),
    /// Only shows that the binding lives.
    Ring {
        /// A notification waits.
        waiting: bool,
    },
}

/// Why a datagram is none of these messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StunError {
    /// Not STUN by its first 20 bytes, its length, or [`limits::MAX_STUN`].
    #[error("not STUN")]
    NotStun,
    /// STUN, but none of our messages: cut attributes, unknown required ones, a mixture, no seal.
    #[error("STUN, but not a message of ours")]
    Malformed,
}

/// Whether a datagram on a socket shared with QUIC is for STUN (RFC 9443 section 3): the first byte decides. Needs
/// `grease_quic_bit(false)` at both ends. With GRO each segment is asked alone.
pub fn is_stun(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| *first < 4)
}

/// An address as it is compared and stored: v4 in v6 form becomes v4, flow and scope are dropped.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A sealed message, at most [`limits::MAX_STUN_SENT`] bytes. Dereferences to its bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    bytes: [u8; limits::MAX_STUN_SENT],
    len: usize,
}

impl Deref for Packet {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl fmt::Debug for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Packet({} bytes)", self.len)
    }
}

impl Packet {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// All our values are multiples of four bytes, so none is padded.
    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.put(&kind.to_be_bytes());
        self.put(&(value.len() as u16).to_be_bytes());
        self.put(value);
    }

    fn seal(&mut self, key: &[u8; 32]) {
        // RFC 8489 section 14.6: the length already counts the seal when the seal is made.
        let length = (self.len - HEADER + 4 + SEAL) as u16;
        self.bytes[2..4].copy_from_slice(&length.to_be_bytes());
        let mac = hash::hmac_sha256(key, &[self]);
        self.attribute(INTEGRITY, &mac[..SEAL]);
    }
}

/// Writes a message.
pub fn encode(message: &Message, transaction: Transaction, key: &[u8; 32]) -> Packet {
    let kind = match message {
        Message::Keepalive { wants_answer: true, .. } => REQUEST,
        Message::Keepalive { .. } | Message::Ring { .. } => INDICATION,
        Message::Mapped { .. } => SUCCESS,
        Message::Challenge(_) => ERROR,
    };
    let mut packet = Packet { bytes: [0; limits::MAX_STUN_SENT], len: 0 };
    packet.put(&kind.to_be_bytes());
    packet.put(&[0, 0]);
    packet.put(&COOKIE);
    packet.put(&transaction.number.to_be_bytes());
    packet.put(&transaction.tail);
    match message {
        Message::Keepalive { pin, proof, .. } => {
            packet.attribute(PIN, &write_pin(pin));
            if let Some(proof) = proof {
                packet.attribute(NONCE, proof);
            }
        }
        Message::Mapped { address, waiting } => {
            let (value, len) = write_address(*address, transaction);
            packet.attribute(MAPPED_ADDRESS, &value[..len]);
            if *waiting {
                packet.attribute(WAITING, &1u32.to_be_bytes());
            }
        }
        Message::Challenge(proof) => {
            packet.attribute(ERROR_CODE, &STALE_NONCE);
            packet.attribute(NONCE, proof);
        }
        Message::Ring { waiting } => packet.attribute(WAITING, &u32::from(*waiting).to_be_bytes()),
    }
    packet.seal(key);
    packet
}

/// A well-formed message whose seal is not checked yet.
#[derive(Debug, Clone, Copy)]
pub struct Sealed<'a> {
    message: Message,
    transaction: Transaction,
    covered: &'a [u8],
    seal: &'a [u8],
}

impl Sealed<'_> {
    /// Who claims to have sent it, if it is a keepalive: needed to find the key. Not proven before [`Sealed::open`].
    pub fn claim(&self) -> Option<&Pin> {
        match &self.message {
            Message::Keepalive { pin, .. } => Some(pin),
            Message::Mapped { .. } | Message::Challenge(_) | Message::Ring { .. } => None,
        }
    }

    /// The message, if this key sealed it.
    pub fn open(&self, key: &[u8; 32]) -> Option<(Message, Transaction)> {
        let mac = hash::hmac_sha256(key, &[self.covered]);
        hash::equal(&mac[..SEAL], self.seal).then_some((self.message, self.transaction))
    }
}

/// Reads a datagram. Unknown attributes are skipped if they are optional (RFC 8489 section 14), else the message is
/// refused; so is one that repeats an attribute of ours, or has anything behind the seal.
pub fn decode(datagram: &[u8]) -> Result<Sealed<'_>, StunError> {
    let Some((head, mut rest)) = datagram.split_first_chunk::<HEADER>() else {
        return Err(StunError::NotStun);
    };
    let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
    let shaped = is_stun(head) && length == rest.len() && length % 4 == 0 && head[4..8] == COOKIE;
    if !shaped || datagram.len() > limits::MAX_STUN {
        return Err(StunError::NotStun);
    }
    let kind = u16::from_be_bytes([head[0], head[1]]);
    let mut tail = [0; 12];
    tail.copy_from_slice(&head[8..]);
    let [a, b, c, d, e, f, g, h, tail @ ..] = tail;
    let transaction = Transaction { number: u64::from_be_bytes([a, b, c, d, e, f, g, h]), tail };

    let (mut pin, mut proof, mut address, mut error, mut waiting) = (None, None, None, None, None);
    loop {
        let covered = &datagram[..datagram.len() - rest.len()];
        let (name, value, behind) = attribute(rest).ok_or(StunError::Malformed)?;
        rest = behind;
        let fresh = match name {
            INTEGRITY if value.len() == SEAL && rest.is_empty() => {
                let message = match (kind, pin, proof, address, error, waiting) {
                    (REQUEST | INDICATION, Some(pin), proof, None, None, None) => {
                        Message::Keepalive { pin, wants_answer: kind == REQUEST, proof }
                    }
                    (SUCCESS, None, None, Some(address), None, waiting) => {
                        Message::Mapped { address, waiting: waiting.unwrap_or(false) }
                    }
                    (ERROR, None, Some(proof), None, Some(()), None) => Message::Challenge(proof),
                    (INDICATION, None, None, None, None, Some(waiting)) => Message::Ring { waiting },
                    _ => return Err(StunError::Malformed),
                };
                return Ok(Sealed { message, transaction, covered, seal: value });
            }
            PIN => set(&mut pin, read_pin(value)),
            NONCE => set(&mut proof, value.try_into().ok()),
            MAPPED_ADDRESS => set(&mut address, read_address(value, transaction)),
            ERROR_CODE => set(&mut error, (value == STALE_NONCE).then_some(())),
            WAITING => set(&mut waiting, value.try_into().ok().map(|value| u32::from_be_bytes(value) != 0)),
            optional => optional >= 0x8000,
        };
        if !fresh {
            return Err(StunError::Malformed);
        }
    }
}

/// Whether the value was good and the first of its kind.
fn set<V>(place: &mut Option<V>, value: Option<V>) -> bool {
    let good = place.is_none() && value.is_some();
    *place = value;
    good
}

/// The first attribute: its type, its value, and what is behind it and its padding.
fn attribute(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let ([a, b, c, d], rest) = bytes.split_first_chunk::<4>()?;
    let len = usize::from(u16::from_be_bytes([*c, *d]));
    Some((u16::from_be_bytes([*a, *b]), rest.get(..len)?, rest.get(len.next_multiple_of(4)..)?))
}

fn write_pin(pin: &Pin) -> [u8; 24] {
    let mut value = [0; 24];
    value[..16].copy_from_slice(&pin.handle.0);
    value[16..20].copy_from_slice(&pin.generation.to_be_bytes());
    value[20..22].copy_from_slice(&pin.period.to_be_bytes());
    value[22] = pin.slot as u8;
    value[23] = u8::from(pin.ring);
    value
}

/// Flags that this version does not know are ignored; a slot that it does not know is not.
fn read_pin(value: &[u8]) -> Option<Pin> {
    let (handle, rest) = value.split_first_chunk::<16>()?;
    let [a, b, c, d, e, f, slot, flags] = *<&[u8; 8]>::try_from(rest).ok()?;
    let slot = match slot {
        0 => PinSlot::Primary,
        1 => PinSlot::Second,
        _ => return None,
    };
    let (generation, period) = (u32::from_be_bytes([a, b, c, d]), u16::from_be_bytes([e, f]));
    Some(Pin { handle: Handle(*handle), generation, period, slot, ring: flags & 1 != 0 })
}

/// XOR-MAPPED-ADDRESS (RFC 8489 section 14.2): what the port and the address are xored with.
fn mask(transaction: Transaction) -> [u8; 16] {
    let mut mask = [0; 16];
    mask[..4].copy_from_slice(&COOKIE);
    mask[4..12].copy_from_slice(&transaction.number.to_be_bytes());
    mask[12..].copy_from_slice(&transaction.tail);
    mask
}

fn write_address(address: SocketAddr, transaction: Transaction) -> ([u8; 20], usize) {
    let address = canonical(address);
    let mask = mask(transaction);
    let mut value = [0; 20];
    let len = match address.ip() {
        IpAddr::V4(ip) => {
            value[1] = 1;
            value[4..8].copy_from_slice(&ip.octets());
            8
        }
        IpAddr::V6(ip) => {
            value[1] = 2;
            value[4..].copy_from_slice(&ip.octets());
            20
        }
    };
    value[2..4].copy_from_slice(&address.port().to_be_bytes());
    value[2..4].iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
    value[4..len].iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
    (value, len)
}

fn read_address(value: &[u8], transaction: Transaction) -> Option<SocketAddr> {
    let mask = mask(transaction);
    let (head, rest) = value.split_first_chunk::<4>()?;
    let port = u16::from_be_bytes([head[2] ^ mask[0], head[3] ^ mask[1]]);
    let ip = match (head[1], rest.len()) {
        (1, 4) => IpAddr::from(std::array::from_fn::<u8, 4, _>(|at| rest[at] ^ mask[at])),
        (2, 16) => IpAddr::from(std::array::from_fn::<u8, 16, _>(|at| rest[at] ^ mask[at])),
        _ => return None,
    };
    Some(canonical(SocketAddr::new(ip, port)))
}
