//! What links count, by name.

use std::collections::BTreeMap;
use std::time::Duration;
use std::{fmt, io};

use metrics::{Counter, counter};
use tokio::time::Instant;

/// A kind of refusal that goes on is told of again after this.
const AGAIN: Duration = Duration::from_secs(60);

/// Why a connection was refused or ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// TLS failed: no certificate, another CA, expired, or no TLS at all.
    #[error("TLS handshake failed")]
    Tls,
    /// The certificate names another node or cluster than it should.
    #[error("certificate is not the expected node's")]
    Identity,
    /// The opening frame is not ours, or of a version that this build does not speak.
    #[error("opening frame refused")]
    Hello,
    /// It speaks formats that the cluster has left behind.
    #[error("node is of a version that the cluster has left behind; upgrade it")]
    Old,
    /// The certificate is good, but its node is no member.
    #[error("node is not a member")]
    NotMember,
    /// The handshake took too long.
    #[error("handshake took too long")]
    Slow,
    /// Too many handshakes at once.
    #[error("too many handshakes at once")]
    Crowded,
    /// A frame longer than its lane allows.
    #[error("frame too long")]
    TooLong,
    /// A write made no progress.
    #[error("write stalled")]
    Stalled,
}

impl Refusal {
    /// Its label.
    pub fn label(self) -> &'static str {
        match self {
            Refusal::Tls => "tls",
            Refusal::Identity => "identity",
            Refusal::Hello => "hello",
            Refusal::Old => "old",
            Refusal::NotMember => "not_member",
            Refusal::Slow => "slow",
            Refusal::Crowded => "crowded",
            Refusal::TooLong => "too_long",
            Refusal::Stalled => "stalled",
        }
    }

    /// Counts it: `reveille_link_refused_total`, by reason.
    pub(super) fn count(self) -> Refusal {
        counter!("reveille_link_refused_total", "reason" => self.label()).increment(1);
        self
    }
}

/// A refusal, with what TLS or the socket said if it came from there.
#[derive(Debug, thiserror::Error)]
pub(super) struct Refused {
    pub(super) refusal: Refusal,
    cause: Option<io::Error>,
}

impl Refused {
    pub(super) fn because(refusal: Refusal, cause: io::Error) -> Refused {
        Refused { refusal, cause: Some(cause) }
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Refused {
        Refused { refusal, cause: None }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Some(cause) => write!(f, "{}: {cause}", self.refusal),
            None => self.refusal.fmt(f),
        }
    }
}

/// Strangers may knock as often as they like; the log tells of each kind of refusal once in [`AGAIN`], and counts the rest.
#[derive(Default)]
pub(super) struct Told(BTreeMap<&'static str, (Instant, u64)>);

impl Told {
    /// Counts a refusal: if the log should tell of it, how many of its kind it has not told of since the last.
    pub(super) fn counts(&mut self, refusal: Refusal) -> Option<u64> {
        refusal.count();
        let now = Instant::now();
        match self.0.get_mut(refusal.label()) {
            Some((last, untold)) if now - *last < AGAIN => {
                *untold += 1;
                None
            }
            _ => self.0.insert(refusal.label(), (now, 0)).map_or(Some(0), |(_, untold)| Some(untold)),
        }
    }
}

/// Writes and the frames in them: their ratio is how well the writer coalesces. Looked up once per connection, not once
/// per write.
pub(super) struct Written {
    writes: Counter,
    frames: Counter,
    bytes: Counter,
}

impl Written {
    pub(super) fn new() -> Written {
        Written {
            writes: counter!("reveille_link_writes_total"),
            frames: counter!("reveille_link_frames_sent_total"),
            bytes: counter!("reveille_link_bytes_sent_total"),
        }
    }

    pub(super) fn count(&self, frames: usize, bytes: usize) {
        self.writes.increment(1);
        self.frames.increment(frames as u64);
        self.bytes.increment(bytes as u64);
    }
}
