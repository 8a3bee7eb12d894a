//! Every bound of the protocol in one place, each with its unit and its reason. Configuration may lower some of
//! them; nothing raises them.

use std::time::Duration;

/// Bytes of one push's payload, unless the cluster's settings say less. RFC 8030 section 7.2 obliges push
/// services to take 4096.
pub const MAX_PAYLOAD: usize = 4096;
/// Largest payload that settings may allow: a hand-off of a full window still fits one peer frame.
pub const MAX_PAYLOAD_CEILING: usize = 64 * 1024;
/// Bytes of all application headers of one push: room for a content type and keys of an encrypted body.
pub const MAX_HEADERS: usize = 256;
/// Characters of a topic. RFC 8030 section 5.4.
pub const MAX_TOPIC: usize = 32;
/// Characters of an idempotency key: a UUID or a hash fits several times.
pub const MAX_IDEMPOTENCY_KEY: usize = 128;
/// Bytes of an enrolment token: two keys, a signature and a name.
pub const MAX_ENROLMENT_TOKEN: usize = 1024;

/// Messages that may wait for one terminal, unless settings say otherwise. Bounds the work of an attach, an
/// unregister and a cumulative ack, which touch each of them in one log entry.
pub const MAX_PENDING: u32 = 1000;
/// Bytes that may wait for one terminal, unless settings say otherwise.
pub const MAX_PENDING_BYTES: u32 = 1024 * 1024;
/// The most that settings may allow of both: an unregister touches all of it in one entry.
pub const MAX_PENDING_CEILING: u32 = 10_000;
/// See [`MAX_PENDING_CEILING`].
pub const MAX_PENDING_BYTES_CEILING: u32 = 16 * 1024 * 1024;
/// The longest time that settings may name.
pub const LONGEST_LIMIT: Duration = Duration::from_secs(366 * 24 * 3600);

/// Lifetime of a push when its publisher names none. A day: long enough for a phone left at home.
pub const DEFAULT_TTL: Duration = Duration::from_secs(24 * 3600);
/// Longest lifetime of a push; longer wishes are clamped. 28 days, as other push services do.
pub const MAX_TTL: Duration = Duration::from_secs(28 * 24 * 3600);
/// Lifetime of a push with TTL 0: time for a notification, a connect and a delivery.
pub const WAKE_WINDOW: Duration = Duration::from_secs(10);
/// How long ended messages and idempotency keys are remembered.
pub const MEMORY_OF_ENDS: Duration = Duration::from_secs(24 * 3600);
/// How long a registration lives without any sign of its terminal.
pub const REGISTRATION_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);
/// How long internal retries of one command may go on. After it apply refuses the command, so that a copy which
/// was stuck somewhere cannot act on a world that has moved on.
pub const COMMAND_LIFETIME: Duration = Duration::from_secs(120);
/// Messages of one terminal that a retried command looks through for its first copy; see
/// `service_list::enqueue`. At 100 pushes a second to one terminal, 40 s of history.
pub const MAX_RETRY_LOOKBACK: u64 = 4096;

/// Commands in one log entry: what one pass of the proposer takes from its queue.
pub const MAX_ENTRY_COMMANDS: usize = 512;
/// Bytes of one log entry (estimated payload): a batch that a slow link still carries in a heartbeat or two.
pub const MAX_ENTRY_BYTES: usize = 1024 * 1024;
/// Bytes that a decoder may allocate for one log entry: a full batch plus one largest command.
pub const MAX_ENTRY_DECODE: usize = 4 * 1024 * 1024;
/// Deadlines that one Expire command takes: keeps an entry's apply in the low milliseconds.
pub const MAX_EXPIRE_BATCH: usize = 512;

/// Bytes of a session frame's body, from a terminal: a Hello with an enrolment token is the largest.
pub const MAX_FRAME_FROM_TERMINAL: usize = 4 * 1024;
/// Bytes of a session frame's body, to a terminal: the largest payload, its headers and their frame.
pub const MAX_FRAME_TO_TERMINAL: usize = MAX_PAYLOAD_CEILING + MAX_HEADERS + 256;
/// Bytes of a notification or its acknowledgement: fits a datagram on every path that carries QUIC, with room
/// for the packet that carries it (RFC 9000 section 14 demands 1200).
pub const MAX_NOTIFICATION: usize = 1100;
/// Nodes that a notification names as first choice.
pub const MAX_HINTS: usize = 3;
/// Bytes of one hint, `host:port`.
pub const MAX_HINT: usize = 128;
/// Bytes of a message between nodes above raft.
pub const MAX_PEER_MESSAGE: usize = 4 * 1024 * 1024;

/// Pushes on the way to one session and not yet acked.
pub const SESSION_WINDOW: usize = 64;
/// Payload bytes on the way to one session and not yet acked: bounds what a stalled connection holds in memory.
pub const SESSION_WINDOW_BYTES: usize = 256 * 1024;
/// A connected terminal must say Hello within this.
pub const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// A session's attach, ack or detach is tried for this long: longer than any failover, shorter than a terminal waits for its
/// Welcome, which is twice the time that it has for its Hello.
pub const SESSION_PROPOSAL: Duration = Duration::from_secs(8);
const _: () = assert!(SESSION_PROPOSAL.as_secs() < 2 * HELLO_DEADLINE.as_secs());
/// A terminal that waits for its Welcome pings after this, and again after each answer: a node that was stopped still holds
/// the connection, and what the terminal could be notified with may be on its way in that Welcome.
pub const WELCOME_DOUBT: Duration = Duration::from_secs(1);
/// The answer to such a ping must come within this: a line on which TCP and TLS could be made at all is that fast.
pub const WELCOME_PONG: Duration = Duration::from_secs(2);
/// A terminal that has pushes and acks none of them for this long is closed; they stay pending.
pub const ACK_DEADLINE: Duration = Duration::from_secs(30);
/// A write to a terminal that makes no progress for this long closes the session.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// A lingering session without traffic for this long is pinged.
pub const PING_AFTER: Duration = Duration::from_secs(60);
/// The answer to a ping must come within this.
pub const PONG_DEADLINE: Duration = Duration::from_secs(20);
/// Longest finite linger that is granted.
pub const MAX_LINGER: Duration = Duration::from_secs(3600);
/// How often a terminal checks in by itself: its last resort when no notification reaches it.
pub const CHECK_IN: Duration = Duration::from_secs(6 * 3600);
/// A terminal whose Welcome promised pushes waits this long for them before it leaves; they may have ended.
pub const PROMISED_PUSH_WAIT: Duration = Duration::from_secs(5);
/// Finding out how a terminal is reached takes about this at most: two dials that are given up after 2 s each, and a binding
/// with an anchor that is asked several times between them.
pub const TRYING: Duration = Duration::from_secs(12);
/// A terminal waits this long for the answer to its Goodbye.
pub const BYE_WAIT: Duration = Duration::from_secs(2);

/// Bytes of a STUN message that is read: twice the largest of ours, so that later versions may add optional
/// attributes; bounds what a stranger can make a node hash.
pub const MAX_STUN: usize = 160;
/// Bytes of a STUN message that is sent: a keepalive with an echoed proof, 20 + 28 + 12 + 20.
pub const MAX_STUN_SENT: usize = 80;

/// Seconds between two keepalives of a binding: [`KEEPALIVE_LONGEST`] and its jitter. An anchor believes no longer
/// promise, so that what it must remember of a silent terminal ends.
pub const MAX_KEEPALIVE_GAP: u16 = 990;
/// Keepalive period until a longer one has proven itself: routers are known to drop a UDP binding after 30 s.
pub const KEEPALIVE: Duration = Duration::from_secs(25);
/// Shortest period that is recommended after measuring: below this a kept connection is cheaper.
pub const KEEPALIVE_SHORTEST: Duration = Duration::from_secs(15);
/// Longest keepalive period: a changed address goes unnoticed for that long.
pub const KEEPALIVE_LONGEST: Duration = Duration::from_secs(15 * 60);
/// A NAT may keep a silent UDP binding for as long as this: RFC 4787 section 4.3 asks for 2 min at least and recommends 5,
/// some keep theirs thrice as long. Until then one that was kept may let in whoever sends to it.
pub const BINDING_LASTS: Duration = Duration::from_secs(15 * 60);
/// Challenges that a terminal answers in one period: a move within a move takes two. Bounds what a broken anchor can
/// make it send.
pub const MAX_CHALLENGES: u32 = 3;
/// Orders that wait at an anchor for a keepalive, 75 min at most: about as many as terminals that are switched off with
/// pushes waiting. Over it the oldest is left to its leader's ladder.
pub const MAX_ANCHOR_ORDERS: usize = 65_536;
/// Of this many terminals one may measure with a second binding at a time: a search takes 15 minutes of months.
pub const SECOND_BINDINGS: usize = 16;
