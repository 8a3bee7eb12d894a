//! What the tables hold: a terminal's row, a pending push, the memory of an ended one. Data only, no rules.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::TableError;
use crate::id::*;
use crate::limits;
use crate::stage::End;
use crate::time::GroupTime;
use crate::wire::codec;

/// Bytes that a decoder may allocate for one stored value.
const MAX_VALUE: usize = limits::MAX_PAYLOAD_CEILING + limits::MAX_HEADERS + 1024;

/// How soon a push is worth waking its terminal for (RFC 8030 section 5.3). Stored: never reorder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Urgency {
    /// Advertisements: waits for power and Wi-Fi.
    VeryLow,
    /// Topic updates.
    Low,
    /// Chat or calendar messages.
    #[default]
    Normal,
    /// Calls, time-sensitive alerts.
    High,
}

/// How long a session stays open after its last push.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Linger {
    /// The terminal leaves once nothing is pending.
    #[default]
    AtOnce,
    /// It leaves this many seconds after its last push.
    Seconds(u32),
    /// It stays: a classic long connection.
    Forever,
}

impl Linger {
    /// What is granted of a wish: finite lingers are bounded by [`limits::MAX_LINGER`].
    pub fn granted(self) -> Linger {
        match self {
            Linger::Seconds(0) => Linger::AtOnce,
            Linger::Seconds(n) => Linger::Seconds(n.min(limits::MAX_LINGER.as_secs() as u32)),
            other => other,
        }
    }

    /// What a node lets a terminal have of its wish: for ever as well is no more than `most`, and that in whole seconds.
    pub fn within(self, most: Duration) -> Linger {
        let most = u32::try_from(most.as_secs()).unwrap_or(u32::MAX);
        let wish = match self {
            Linger::AtOnce => 0,
            Linger::Seconds(seconds) => seconds,
            Linger::Forever => u32::MAX,
        };
        Linger::Seconds(wish.min(most)).granted()
    }

    /// The time after the last push; `None` for ever.
    pub fn duration(self) -> Option<Duration> {
        match self {
            Linger::AtOnce => Some(Duration::ZERO),
            Linger::Seconds(n) => Some(Duration::from_secs(u64::from(n))),
            Linger::Forever => None,
        }
    }
}

/// How a terminal can be notified.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reachability {
    /// It cannot: it lingers or checks in.
    #[default]
    None,
    /// Any node dials this address: the session's own peer IP with the port the terminal listens on.
    Direct {
        /// Where the terminal listens.
        address: SocketAddr,
        /// The key that must answer there.
        listening_key: KeyFingerprint,
    },
    /// Only the anchor's socket gets through the terminal's NAT.
    Pinned {
        /// The node that the terminal keeps its binding with.
        anchor: NodeId,
        /// The key that must answer.
        listening_key: KeyFingerprint,
    },
    /// As `Direct`, of a terminal that came by a backup and has not been here yet: it listens to who proves to know what
    /// it was given in its last session before. Since format 2.
    Former {
        /// Where the terminal listens.
        address: SocketAddr,
        /// The key that must answer there.
        listening_key: KeyFingerprint,
        /// Its life of then.
        stream: Stream,
        /// The epoch of its last session in it.
        epoch: Epoch,
    },
}

/// The session that is a terminal's current one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Current {
    /// The node that holds it.
    pub node: NodeId,
    /// That node's incarnation; a higher one fences the session.
    pub incarnation: Incarnation,
}

/// One terminal in the service list, about 130 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Whose terminal it is.
    pub tenant: TenantId,
    /// The life that seqs and epochs count in.
    pub stream: Stream,
    /// The key that its sessions must present.
    pub session_key: KeyFingerprint,
    /// Last granted epoch.
    pub epoch: Epoch,
    /// The attempt that got it.
    pub attempt: Attempt,
    /// The current session: *online*. `None`: *offline*.
    pub current: Option<Current>,
    /// How to notify it.
    pub reachability: Reachability,
    /// Generation of the cluster secret that its notify secret derives from.
    pub secret: u32,
    /// Seq of the next push.
    pub next_seq: Seq,
    /// Every push up to here has been confirmed by the terminal or ended before.
    pub acked: Seq,
    /// Pushes that wait.
    pub pending: u32,
    /// Their payload bytes.
    pub pending_bytes: u32,
    /// What it asked for at its last attach.
    pub linger: Linger,
    /// Pushes below this urgency do not wake it.
    pub min_urgency: Urgency,
    /// When it was registered.
    pub registered: GroupTime,
    /// Its last attach or detach.
    pub last_seen: GroupTime,
}

/// A push that waits for its terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The command that brought it; finds it again when that command is retried.
    pub command: CommandId,
    /// Group time of its log entry.
    pub accepted: GroupTime,
    /// When it expires.
    pub deadline: GroupTime,
    /// How soon it is worth waking the terminal.
    pub urgency: Urgency,
    /// The application it is for.
    pub channel: Channel,
    /// A later push with the same channel and topic replaces it.
    pub topic: Option<String>,
    /// Application headers, opaque to the cluster.
    pub headers: Vec<(String, String)>,
    /// The payload, opaque to the cluster.
    pub body: Bytes,
}

/// The memory of an ended push.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// See [`Message::command`].
    pub command: CommandId,
    /// Whose push it was.
    pub tenant: TenantId,
    /// See [`Message::accepted`].
    pub accepted: GroupTime,
    /// See [`Message::deadline`].
    pub deadline: GroupTime,
    /// How it ended.
    pub end: End,
    /// When.
    pub at: GroupTime,
    /// The terminal confirmed it although it had ended otherwise before.
    pub seen: Option<GroupTime>,
}

/// The restore that a group's tables came by, or are coming by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Restore {
    pub(crate) id: RestoreId,
    /// When it was begun.
    pub(crate) begun: GroupTime,
    /// It goes on: until it is finished, the group serves nobody.
    pub(crate) open: bool,
}

/// What an idempotency key led to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Idempotent {
    pub(crate) message: MessageId,
    pub(crate) deadline: GroupTime,
    pub(crate) body_hash: [u8; 16],
}

/// The limits of a group, which reach it through its own log. What is there already stays: they hold for what comes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Bytes of a payload.
    pub max_payload: u32,
    /// Pushes that may wait for one terminal.
    pub max_pending: u32,
    /// Their bytes.
    pub max_pending_bytes: u32,
    /// TTL of a push that names none, in milliseconds.
    pub default_ttl: u64,
    /// Longest TTL, in milliseconds; longer ones are clamped.
    pub max_ttl: u64,
    /// Lifetime of a push with TTL 0, in milliseconds.
    pub wake_window: u64,
    /// How long ends and idempotency keys are remembered, in milliseconds.
    pub memory_of_ends: u64,
    /// How long a silent registration lives, in milliseconds.
    pub registration_lifetime: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            max_payload: limits::MAX_PAYLOAD as u32,
            max_pending: limits::MAX_PENDING,
            max_pending_bytes: limits::MAX_PENDING_BYTES,
            default_ttl: limits::DEFAULT_TTL.as_millis() as u64,
            max_ttl: limits::MAX_TTL.as_millis() as u64,
            wake_window: limits::WAKE_WINDOW.as_millis() as u64,
            memory_of_ends: limits::MEMORY_OF_ENDS.as_millis() as u64,
            registration_lifetime: limits::REGISTRATION_LIFETIME.as_millis() as u64,
        }
    }
}

impl Settings {
    /// May a group work by these? If not, which of them is wrong, and what it may be.
    pub fn check(&self) -> Result<(), String> {
        let within =
            |name: &str, unit: &str, value: u64, from: u64, to: u64| match (from..=to).contains(&value) {
                true => Ok(()),
                false => Err(format!("{name} is {value}{unit}; it may be {from} to {to}{unit}")),
            };
        let millis = |duration: Duration| duration.as_millis() as u64;
        let (day, year) = (millis(limits::DEFAULT_TTL), millis(limits::LONGEST_LIMIT));
        within("max_payload", "", self.max_payload.into(), 1, limits::MAX_PAYLOAD_CEILING as u64)?;
        within("max_pending", "", self.max_pending.into(), 1, limits::MAX_PENDING_CEILING.into())?;
        let most = limits::MAX_PENDING_BYTES_CEILING.into();
        within("max_pending_bytes", "", self.max_pending_bytes.into(), self.max_payload.into(), most)?;
        within("max_ttl", " ms", self.max_ttl, 1000, year)?;
        within("default_ttl", " ms", self.default_ttl, 1000, self.max_ttl)?;
        within("wake_window", " ms", self.wake_window, 1000, self.max_ttl)?;
        // A retry finds its first copy among what is remembered.
        within("memory_of_ends", " ms", self.memory_of_ends, millis(limits::COMMAND_LIFETIME), year)?;
        // Longer than terminals are silent that check in, and than anything waits for one.
        within("registration_lifetime", " ms", self.registration_lifetime, day.max(self.max_ttl), year)
    }
}

/// A tenant's share of this group, and what it uses of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Terminals that it may register in this group; `None`: any number.
    pub max_terminals: Option<u64>,
    /// Terminals that it has here.
    pub terminals: u64,
}

pub(crate) fn store<T: Serialize>(value: &T) -> Bytes {
    codec::encode(value).into()
}

/// Decodes a stored value.
pub fn load<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, TableError> {
    codec::decode::<T, MAX_VALUE>(bytes)
        .map_err(|error| TableError(format!("a stored {} is damaged: {error}", std::any::type_name::<T>())))
}

impl Row {
    /// Is there a current session? Whether its node still lives is the dispatcher's question.
    pub fn online(&self) -> bool {
        self.current.is_some()
    }
}
