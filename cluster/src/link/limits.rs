//! The bounds of links, each with its reason.

use std::time::Duration;

use super::Lane;

/// Longest frame of a lane, in bytes.
pub const fn max_frame(lane: Lane) -> usize {
    match lane {
        // Votes, heartbeats and clocks are a few hundred bytes.
        Lane::Control => 64 * 1024,
        // One append of a full log entry and what openraft adds to it.
        Lane::Data => 8 * 1024 * 1024,
        // A snapshot's chunk is 256 KiB; one pair in it may be larger.
        Lane::Bulk => 2 * 1024 * 1024,
    }
}

/// Bytes that may wait to be sent on one connection: two of the longest data frames. A peer that takes no more is
/// slow or stopped, and raft repeats what is refused here.
pub const QUEUE_BYTES: usize = 16 * 1024 * 1024;
/// Frames that may wait, whatever their size: bounds the queue's own memory.
pub const QUEUE_FRAMES: usize = 65_536;
/// Bytes gathered for one write: a few dozen TLS records, still cached when they are sealed.
pub const WRITE_BYTES: usize = 192 * 1024;
/// Bytes taken from the socket at once.
pub const READ_BYTES: usize = 512 * 1024;
/// TCP alone must be there within this. Its own repetitions double their pauses: one that began while the peer was cut off
/// would leave it alone for seconds after.
pub const CONNECT: Duration = Duration::from_secs(1);
/// TCP, TLS and the opening frame must be done within this.
pub const HANDSHAKE: Duration = Duration::from_secs(5);
/// Inbound handshakes at once: three lanes of every node of a large cluster, all at the same moment.
pub const HANDSHAKES: usize = 64;
/// Of one source: all lanes of the nodes of one host, and far from all of them, since a stranger that says nothing holds
/// each for the time of a handshake.
pub const HANDSHAKES_EACH: usize = 16;
/// A write that makes no progress for this long ends the connection.
pub const WRITE_STALL: Duration = Duration::from_secs(5);
/// First and longest pause before dialling again.
pub const REDIAL: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(1000));
/// The node with the larger id waits this long for the other to dial.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes that a peer does not acknowledge for this long end the connection; so does an idle one whose peer is silent
/// about as long. TCP alone would try for many minutes, with pauses that outlast the partition by tens of seconds.
pub const SILENCE: Duration = Duration::from_secs(3);
