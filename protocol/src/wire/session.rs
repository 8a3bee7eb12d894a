//! Frames between a terminal and a node. Formats and their limits, no rules.
//!
//! Which protocol is spoken is settled by TLS (ALPN): `reveille/1` has no Offer, Anchor, Try and Tried.
//!
//! Frame: `version u8 | kind u8 | length u32 little endian | body`, the body in bincode without a version byte of
//! its own. Kinds are pinned by hand. Each direction has its own enum, so that a frame in the wrong direction is
//! an unknown kind.

use bytes::{Buf, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::codec::{self, CodecError};
use crate::id::*;
use crate::limits;
use crate::service_list::row::{Linger, Urgency};

/// The session protocol that this build speaks.
pub const VERSION: u8 = 1;
/// Bytes before the body.
pub const HEADER: usize = 6;

/// What a terminal says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TerminalFrame {
    /// The first frame: the *online* status.
    Hello(Hello),
    /// Confirms every push up to a seq.
    Ack(Ack),
    /// Asks for the pushes from a seq on: some are missing.
    Resend(Resend),
    /// Are you there?
    Ping(Nonce),
    /// I am.
    Pong(Nonce),
    /// The last frame: the *offline* status.
    Goodbye(Ack),
    /// Before Hello: how it believes to be reached from where it is, and why it comes.
    Offer(Offer),
    /// Dial me now, this way.
    Try(Try),
}

/// What a node says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeFrame {
    /// The session is the terminal's current one.
    Welcome(Welcome),
    /// A push.
    Push(Push),
    /// Seqs that will not come: they ended.
    Gap(Gap),
    /// Are you there?
    Ping(Nonce),
    /// I am.
    Pong(Nonce),
    /// The last frame.
    Bye(Bye),
    /// Before the Welcome, to a terminal that made an Offer: with whom to keep a binding.
    Anchor(Anchor),
    /// What a Try came to.
    Tried(Tried),
}

/// See [`TerminalFrame::Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Who the terminal says it is; must be what its certificate's key says.
    pub terminal: TerminalId,
    /// Its persisted counter, raised before each connection.
    pub attempt: Attempt,
    /// The stream it knows; zero: none yet.
    pub stream: Stream,
    /// The last seq it confirmed in that stream.
    pub last: Seq,
    /// Where it listens for notifications, if it does.
    pub listening: Option<Listening>,
    /// How long it would like to stay.
    pub linger: Linger,
    /// Pushes below this need not wake it.
    pub min_urgency: Urgency,
    /// Its tenant's enrolment token, if it may be new.
    pub enrolment: Option<Bytes>,
}

/// Where a terminal listens: at its own address, seen by the node, and this port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listening {
    /// UDP port, 1024 or above.
    pub port: u16,
    /// Fingerprint of the key that answers there.
    pub key: KeyFingerprint,
}

/// How a terminal is reached from one network. Append only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Class {
    /// Not known yet.
    #[default]
    Untried,
    /// At its own address, by any node.
    Direct,
    /// Through the binding that it keeps with its anchor.
    Pinned,
    /// Not at all: it lingers, or checks in.
    None,
}

/// Why a terminal connects. Append only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Cause {
    /// It was started, or its last session broke.
    #[default]
    Start,
    /// It was notified.
    Notified,
    /// Nothing was heard for the check-in period, or no session found a way by which the terminal is reached: it connects by
    /// itself.
    CheckIn,
    /// Its anchor does not answer, or its network has changed.
    Moved,
}

/// See [`TerminalFrame::Offer`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// How it believes to be reached.
    pub class: Class,
    /// Why it comes.
    pub cause: Cause,
}

/// See [`NodeFrame::Anchor`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    /// Where the node takes keepalives: at the address that this session goes to, on this UDP port.
    pub port: u16,
    /// Names the binding; says nothing to others.
    pub handle: [u8; 16],
    /// Generation of the cluster secret that the handle and the key derive from.
    pub generation: u32,
    /// Seals what goes either way.
    pub key: [u8; 32],
    /// Seconds between two keepalives, unless the terminal has measured its network.
    pub period: u16,
    /// The address that the node sees this session come from.
    pub seen: std::net::IpAddr,
}

/// See [`TerminalFrame::Try`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Try {
    /// `Direct` or `Pinned`.
    pub class: Class,
}

/// See [`NodeFrame::Tried`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    /// Which way.
    pub class: Class,
    /// The terminal answered. The service list says so from now on.
    pub reached: bool,
}

/// See [`TerminalFrame::Ack`] and [`TerminalFrame::Goodbye`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Everything up to here is confirmed.
    pub seq: Seq,
}

/// See [`TerminalFrame::Resend`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resend {
    /// The first seq that is missing.
    pub from: Seq,
}

/// Of a Ping, returned in its Pong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nonce(pub u64);

/// See [`NodeFrame::Welcome`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The node.
    pub node: NodeId,
    /// The terminal's life; another one than it knew resets its memory of seqs.
    pub stream: Stream,
    /// The session's epoch.
    pub epoch: Epoch,
    /// Everything up to here has been confirmed or is over; a terminal that knows less jumps forward.
    pub acked: Seq,
    /// Pushes that wait.
    pub pending: u32,
    /// How long it may stay.
    pub linger: Linger,
    /// Proves notifications to the terminal until its next Welcome.
    pub notify_secret: [u8; 32],
    /// Come by yourself after so many seconds without a session.
    pub check_in: u32,
}

/// See [`NodeFrame::Push`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Push {
    /// Its place.
    pub seq: Seq,
    /// The highest lower seq that had not ended when this was sent; take the push if `prev <= last < seq`.
    pub prev: Seq,
    /// It may have been given to an earlier session. A shard's new leader cannot know what the one before handed off, and
    /// says so of all that waited when it took over.
    pub maybe_seen: bool,
    /// Pushes that wait behind it.
    pub remaining: u32,
    /// Milliseconds until it expires.
    pub lives_for: u64,
    /// The application it is for.
    pub channel: Channel,
    /// Application headers.
    pub headers: Vec<(String, String)>,
    /// Payload.
    pub body: Bytes,
}

/// See [`NodeFrame::Gap`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// First seq that will not come.
    pub from: Seq,
    /// Last seq that will not come.
    pub to: Seq,
}

/// See [`NodeFrame::Bye`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bye {
    /// Why.
    pub reason: ByeReason,
    /// Milliseconds to wait before connecting again, before the terminal's own jitter.
    pub retry_after: u64,
}

/// Why a session ends. Append only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ByeReason {
    /// As the terminal asked; its last confirmation is stored.
    Done,
    /// A later session of the same terminal took over.
    Superseded,
    /// A later attempt has been granted: raise the counter to at least this and try again.
    StaleAttempt(Attempt),
    /// The key is unknown and no valid enrolment came with it.
    NotEnrolled,
    /// The terminal broke the protocol.
    Protocol,
    /// It acked nothing, answered no ping, or did not read, for too long.
    TooSlow,
    /// The node is leaving, or lost its place in the cluster: connect to another.
    GoElsewhere,
    /// The service list could not be reached in time.
    Unavailable,
    /// The terminal confirms more than was ever pushed: its state and the cluster's do not belong together.
    AckAhead,
}

/// Bytes that are no frame. The connection cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Another version.
    #[error("session protocol version {0}, this build speaks {VERSION}")]
    Version(u8),
    /// No such kind in this direction.
    #[error("unknown kind of frame {0}")]
    Kind(u8),
    /// Longer than its direction allows.
    #[error("frame of {len} bytes where at most {limit} are allowed")]
    TooLong {
        /// Its length.
        len: usize,
        /// The limit.
        limit: usize,
    },
    /// The body is not what its kind says.
    #[error("frame of kind {kind}: {error}")]
    Body {
        /// The kind.
        kind: u8,
        /// What is wrong.
        error: CodecError,
    },
}

/// Frames of one direction.
pub trait Frame: Sized {
    /// Most bytes of a body.
    const LIMIT: usize;

    /// Appends the frame.
    fn encode(&self, out: &mut Vec<u8>);

    /// Reads the body of a frame of this kind.
    fn decode(kind: u8, body: &[u8]) -> Result<Self, FrameError>;

    /// Takes the first frame off `buffer`; `None` while it is not complete.
    fn take(buffer: &mut BytesMut) -> Result<Option<Self>, FrameError> {
        let Some((header, _)) = buffer.split_first_chunk::<HEADER>() else { return Ok(None) };
        let [version, kind, length @ ..] = *header;
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        let len = u32::from_le_bytes(length) as usize;
        if len > Self::LIMIT {
            return Err(FrameError::TooLong { len, limit: Self::LIMIT });
        }
        if buffer.len() < HEADER + len {
            return Ok(None);
        }
        buffer.advance(HEADER);
        Self::decode(kind, &buffer.split_to(len)).map(Some)
    }
}

fn put<T: Serialize>(kind: u8, body: &T, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[VERSION, kind, 0, 0, 0, 0]);
    codec::encode_bare(body, out);
    let length = (out.len() - start - HEADER) as u32;
    out[start + 2..start + HEADER].copy_from_slice(&length.to_le_bytes());
}

macro_rules! frames {
    ($name:ident, $limit:expr, $($kind:literal => $variant:ident),+) => {
        impl Frame for $name {
            const LIMIT: usize = $limit;

            fn encode(&self, out: &mut Vec<u8>) {
                match self { $($name::$variant(body) => put($kind, body, out)),+ }
            }

            fn decode(kind: u8, body: &[u8]) -> Result<Self, FrameError> {
                let malformed = |error| FrameError::Body { kind, error };
                match kind {
                    $($kind => codec::decode_bare::<_, { $limit }>(body).map($name::$variant).map_err(malformed),)+
                    other => Err(FrameError::Kind(other)),
                }
            }
        }
    };
}

frames!(TerminalFrame, limits::MAX_FRAME_FROM_TERMINAL,
    1 => Hello, 4 => Ack, 5 => Resend, 7 => Ping, 8 => Pong, 9 => Goodbye, 11 => Offer, 13 => Try);
frames!(NodeFrame, limits::MAX_FRAME_TO_TERMINAL,
    2 => Welcome, 3 => Push, 6 => Gap, 7 => Ping, 8 => Pong, 10 => Bye, 12 => Anchor, 14 => Tried);
