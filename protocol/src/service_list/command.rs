//! What may be asked of the service list, what it answers, and what became of it. Formats only, no rules.
//!
//! These are stored in the log: enums grow at their end, fields are never reordered (golden bytes in
//! `wire::entry`).

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::imported::{Import, ImportFault, ImportStep};
use super::key;
use super::row::{Linger, Reachability, Settings, Urgency};
use crate::directory;
use crate::id::*;
use crate::stage::End;
use crate::time::GroupTime;

/// A change of the service list, decided by apply at its place in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Makes a terminal known. Registering it again for the same tenant changes nothing.
    Register(Register),
    /// A session asks to become its terminal's current one: the *online* status.
    Attach(Box<Attach>),
    /// The terminal confirms every push up to a seq.
    Ack(Ack),
    /// A session ends: the *offline* status, with the terminal's last confirmation in the same entry.
    Detach(Detach),
    /// A push for a terminal.
    Enqueue(Box<Enqueue>),
    /// The publisher takes a push back.
    Cancel(Cancel),
    /// Takes up what has ended by time.
    Expire,
    /// How a terminal can be notified has been found out.
    SetReachability(SetReachability),
    /// Forgets a terminal and everything that waits for it.
    Unregister(Unregister),
    /// New limits for this group.
    Settings(Settings),
    /// A tenant's share of this group.
    SetShare(SetShare),
    /// A change of the directory; only in the meta group.
    Directory(Box<directory::Change>),
    /// A step of restoring a backup into a group without terminals; since format 2.
    Import(Box<Import>),
}

impl Command {
    /// The format version that a cluster must have before this may be in its logs.
    pub fn since(&self) -> u32 {
        match self {
            Command::Directory(change) => change.since(),
            Command::Import(_) => 2,
            _ => 1,
        }
    }

    /// The keys that applying this will look up first, as far as the command itself tells: a host whose tables are on
    /// disk can fetch them before, where waiting disturbs nobody. It decides nothing.
    pub fn looks_up(&self) -> Vec<Vec<u8>> {
        match self {
            Command::Register(register) => vec![key::terminal(&register.session_key.terminal())],
            Command::Attach(attach) => vec![key::terminal(&attach.terminal)],
            Command::Ack(ack) => vec![key::terminal(&ack.terminal), key::pending(&ack.terminal, ack.seq)],
            Command::Detach(detach) => {
                let acked = detach.ack.map(|seq| key::pending(&detach.terminal, seq));
                [key::terminal(&detach.terminal)].into_iter().chain(acked).collect()
            }
            Command::Enqueue(enqueue) => {
                let topic = |topic| key::topic(&enqueue.terminal, enqueue.channel, topic);
                let topic = enqueue.topic.as_deref().map(topic);
                let same = enqueue.idempotency.as_ref().map(|same| key::idempotency(&same.key));
                [key::terminal(&enqueue.terminal)].into_iter().chain(topic).chain(same).collect()
            }
            Command::Cancel(Cancel { message, .. }) => {
                vec![key::terminal(&message.terminal), key::pending(&message.terminal, message.seq)]
            }
            Command::SetReachability(set) => vec![key::terminal(&set.terminal)],
            Command::Unregister(unregister) => vec![key::terminal(&unregister.terminal)],
            Command::Import(import) => match &import.step {
                ImportStep::Terminals(terminals) => {
                    terminals.iter().map(|one| key::terminal(&one.row.session_key.terminal())).collect()
                }
                _ => Vec::new(),
            },
            Command::Expire | Command::Settings(_) | Command::SetShare(_) | Command::Directory(_) => {
                Vec::new()
            }
        }
    }
}

/// See [`Command::Register`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Register {
    /// Owner.
    pub tenant: TenantId,
    /// The key its sessions must present; names the terminal.
    pub session_key: KeyFingerprint,
    /// A random number for the new stream, never zero.
    pub stream: Stream,
}

/// See [`Command::Attach`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// Who.
    pub terminal: TerminalId,
    /// The terminal's own counter.
    pub attempt: Attempt,
    /// Where the session is.
    pub node: NodeId,
    /// The node's incarnation.
    pub incarnation: Incarnation,
    /// The stream that the terminal knows; zero if none.
    pub stream: Stream,
    /// The last seq it confirmed in that stream; applied as an ack.
    pub last: Seq,
    /// How to notify it from now on.
    pub reachability: Reachability,
    /// Generation of the cluster secret that the session's notify secret derives from.
    pub secret: u32,
    /// What it wishes.
    pub linger: Linger,
    /// Pushes below this do not wake it.
    pub min_urgency: Urgency,
}

/// See [`Command::Ack`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Who.
    pub terminal: TerminalId,
    /// The stream that `seq` counts in.
    pub stream: Stream,
    /// The session's epoch.
    pub epoch: Epoch,
    /// Everything up to here is confirmed.
    pub seq: Seq,
}

/// See [`Command::Detach`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detach {
    /// Who.
    pub terminal: TerminalId,
    /// The stream that the epoch and the ack count in.
    pub stream: Stream,
    /// The session's epoch.
    pub epoch: Epoch,
    /// The terminal's last confirmation, if it had anything to confirm.
    pub ack: Option<Seq>,
}

/// See [`Command::Enqueue`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enqueue {
    /// Names this command through internal retries.
    pub id: CommandId,
    /// Apply refuses the command after this.
    pub not_after: GroupTime,
    /// An earlier copy may be in the log: look for it.
    pub retry: bool,
    /// For whom.
    pub terminal: TerminalId,
    /// Who publishes; must own the terminal.
    pub tenant: TenantId,
    /// Lifetime in milliseconds; `None`: the default; zero: the wake window.
    pub ttl: Option<u64>,
    /// How soon it is worth waking the terminal.
    pub urgency: Urgency,
    /// The application it is for.
    pub channel: Channel,
    /// Replaces the pending push of the same channel and topic.
    pub topic: Option<String>,
    /// Remembered for a day; see [`Idempotency`].
    pub idempotency: Option<Idempotency>,
    /// Application headers.
    pub headers: Vec<(String, String)>,
    /// Payload.
    pub body: Bytes,
}

/// The publisher's own protection against publishing twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    /// Hash of tenant, terminal and the publisher's key (`service_list::key::idempotency_hash`).
    pub key: [u8; 16],
    /// Hash of what is published: the same key with another body is refused.
    pub body_hash: [u8; 16],
}

/// See [`Command::Cancel`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// Which push.
    pub message: MessageId,
    /// Who asks; must own the terminal.
    pub tenant: TenantId,
}

/// See [`Command::SetReachability`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetReachability {
    /// Who.
    pub terminal: TerminalId,
    /// Its life; another one is refused.
    pub stream: Stream,
    /// The epoch in which it was found out; older ones are refused.
    pub epoch: Epoch,
    /// What was found.
    pub reachability: Reachability,
}

/// See [`Command::Unregister`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unregister {
    /// Who.
    pub terminal: TerminalId,
    /// Who asks; must own the terminal.
    pub tenant: TenantId,
}

/// See [`Command::SetShare`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetShare {
    /// Whose share.
    pub tenant: TenantId,
    /// Terminals that it may register in this group; `None`: any number.
    pub max_terminals: Option<u64>,
}

/// What a command came to. Sent between nodes: append only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Done, nothing to tell; also for what had been done before.
    Done,
    /// The terminal is known.
    Registered {
        /// Its life.
        stream: Stream,
        /// It was known before.
        existed: bool,
    },
    /// The session is the current one.
    Attached(Attached),
    /// The push is stored.
    Enqueued {
        /// Its name.
        message: MessageId,
        /// When it expires.
        deadline: GroupTime,
        /// When it was first accepted.
        accepted: GroupTime,
        /// An earlier copy of this command or idempotency key had stored it.
        duplicate: bool,
    },
    /// The push ended now, or had ended so before.
    Ended(End),
    /// So many matters were taken up; there may be more.
    Expired {
        /// How many.
        count: u32,
    },
    /// Refused; nothing changed.
    Refused(Refusal),
    /// What a change of the directory came to.
    Directory(directory::Outcome),
    /// This restore was finished before.
    Restored,
}

/// What a session needs to welcome its terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The terminal's life; another one than it knew resets its memory.
    pub stream: Stream,
    /// The session's epoch.
    pub epoch: Epoch,
    /// Everything up to here has been confirmed.
    pub acked: Seq,
    /// Pushes that wait.
    pub pending: u32,
    /// What is granted.
    pub linger: Linger,
}

/// Why a command changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// No such terminal; or it is another tenant's, which nobody else may learn.
    #[error("unknown terminal")]
    UnknownTerminal,
    /// The key belongs to a terminal of another tenant.
    #[error("this key is registered for another tenant")]
    OtherTenant,
    /// The tenant has as many terminals in this group as its share allows.
    #[error("the tenant's share of {max_terminals} terminals in this group is used up")]
    ShareUsedUp {
        /// The share.
        max_terminals: u64,
    },
    /// A later attempt, or this one from another session, has been granted.
    #[error("attempt is not above {current}, the last one granted")]
    StaleAttempt {
        /// The last attempt granted.
        current: Attempt,
    },
    /// A later epoch has been granted.
    #[error("epoch is over, {current} has been granted since")]
    StaleEpoch {
        /// The last epoch granted.
        current: Epoch,
    },
    /// The terminal has been registered anew since.
    #[error("stream is over, the terminal was registered anew")]
    StaleStream,
    /// Confirms what was never pushed.
    #[error("confirms seq {seq}, but only seqs below {next} were given out")]
    AckAhead {
        /// The seq confirmed.
        seq: Seq,
        /// The first seq not given out.
        next: Seq,
    },
    /// The payload is longer than the limit.
    #[error("payload is longer than {limit} bytes")]
    PayloadTooLarge {
        /// The limit.
        limit: u32,
    },
    /// As much waits for this terminal as may.
    #[error("the terminal's queue is full ({pending} messages, {bytes} bytes)")]
    QueueFull {
        /// Messages that wait.
        pending: u32,
        /// Their bytes.
        bytes: u32,
    },
    /// The idempotency key was used for another body.
    #[error("idempotency key was used with another body, for message {message}")]
    KeyReused {
        /// The message it stands for.
        message: MessageId,
    },
    /// The command came after its `not_after`; this copy of it does nothing, now or later.
    #[error("the command arrived after its deadline, at {now}")]
    TooLate {
        /// Group time when it came.
        now: GroupTime,
    },
    /// A retry whose first copy may be further back than apply looks.
    #[error("too many pushes since to tell whether the first copy of this command was stored")]
    Unknown,
    /// No such push: never was, or ended longer ago than is remembered.
    #[error("unknown message")]
    UnknownMessage,
    /// The directory refused.
    #[error("{0}")]
    Directory(directory::Refused),
    /// A command that this group does not take.
    #[error("wrong group for this command")]
    WrongGroup,
    /// A backup is being restored into this group.
    #[error(
        "a backup is being restored; if nobody does it any more, repeat the command: reveille cluster restore"
    )]
    Restoring,
    /// A backup can only be restored into a cluster without terminals.
    #[error("this cluster has terminals of its own; restore into a new one")]
    NotEmpty,
    /// A step of a restore that was not begun, or of another one.
    #[error(
        "another backup's restore was begun here, or none; repeat the command with that backup, or restore into a new \
         cluster"
    )]
    OtherRestore,
    /// A step of a restore that cannot be taken, and why.
    #[error("the backup cannot be taken in: {0}")]
    BadImport(ImportFault),
    /// An attach of a session whose node's incarnation is over. No entry says this: a leader whose directory knows it does not
    /// propose the attach.
    #[error("the node was marked down, or has started again: this incarnation of it is over")]
    Fenced,
}

impl Refusal {
    /// Of an ack, a detach or a reachability: the session that proposed it is over, and its epoch will never count again.
    pub fn ends_session(&self) -> bool {
        matches!(self, Refusal::UnknownTerminal | Refusal::StaleStream | Refusal::StaleEpoch { .. })
    }
}

/// A fact that apply established, for the dispatcher at the shard leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// A push waits.
    Stored {
        /// Which, and for whom.
        message: MessageId,
        /// How soon it is worth waking the terminal.
        urgency: Urgency,
    },
    /// A push ended.
    Ended {
        /// Which.
        message: MessageId,
        /// How.
        end: End,
    },
    /// The terminal confirmed everything up to here.
    Acked {
        /// Who.
        terminal: TerminalId,
        /// Up to where.
        seq: Seq,
    },
    /// The terminal's status or reachability changed; look its row up.
    StatusChanged {
        /// Who.
        terminal: TerminalId,
    },
    /// This session is no longer the terminal's current one.
    Superseded {
        /// Whose.
        terminal: TerminalId,
        /// Where it is.
        session: SessionRef,
    },
    /// The terminal is no longer registered.
    Gone {
        /// Who.
        terminal: TerminalId,
    },
    /// The meta group's directory changed.
    DirectoryChanged,
    /// A restore was finished: terminals may be waited for that nothing was told of.
    Restored,
}

/// A session by its place and epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionRef {
    /// The node that holds it.
    pub node: NodeId,
    /// Its epoch.
    pub epoch: Epoch,
}
