//! The names of things: ids and counters as newtypes, with their text forms. No id is made from a clock or
//! from randomness here; what is random arrives as an argument.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::time::GroupTime;

/// Hash slots of a cluster; a slot belongs to one group. Fixed for ever: it is part of every terminal's route.
pub const SLOTS: u16 = 16_384;

/// A text that is no id of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed {kind}: expected {expected}")]
pub struct ParseIdError {
    /// Which kind of id was expected.
    pub kind: &'static str,
    /// What its text form looks like.
    pub expected: &'static str,
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident($int:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter!(
    /// A node of the cluster. Taken from the meta group's log, never used twice.
    NodeId(u64)
);
counter!(
    /// A raft group: group 0 is `meta`, the others replicate shards of the service list.
    GroupId(u16)
);
counter!(
    /// One of the [`SLOTS`] hash slots.
    Slot(u16)
);
counter!(
    /// A tenant: the owner of terminals and of publisher tokens. Its name is in the meta group.
    TenantId(u32)
);
counter!(
    /// Counter per terminal and stream, raised by each attach; older epochs are refused.
    Epoch(u64)
);
counter!(
    /// Counter per node, raised at each start and after each `Down` mark; fences the sessions of a dead node.
    Incarnation(u64)
);
counter!(
    /// Position of a push in its terminal's stream, from 1. Zero means "nothing yet".
    Seq(u64)
);
counter!(
    /// Counter that a terminal keeps on its disk and raises before each connection.
    Attempt(u64)
);
counter!(
    /// Which application on the terminal a push is for; 0 where there is only one.
    Channel(u32)
);
counter!(
    /// One life of a terminal's registration: a random number. Seq and epoch count within it. Zero: none known.
    Stream(u64)
);

impl GroupId {
    /// The group that keeps the directory.
    pub const META: GroupId = GroupId(0);
}

impl Seq {
    /// The seq after this one.
    pub fn next(self) -> Seq {
        Seq(self.0.saturating_add(1))
    }
}

impl Epoch {
    /// The epoch that the next attach grants.
    pub fn next(self) -> Epoch {
        Epoch(self.0.saturating_add(1))
    }
}

impl Stream {
    /// The part of the stream that a [`MessageId`] carries, so that ids of an earlier life do not match.
    pub fn check(self) -> u32 {
        (self.0 ^ (self.0 >> 32)) as u32
    }
}

fn hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = [pair[0], pair[1]].map(|digit| match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'a'..=b'f' => Some(digit - b'a' + 10),
            b'A'..=b'F' => Some(digit - b'A' + 10),
            _ => None,
        });
        *byte = high? << 4 | low?;
    }
    Some(out)
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $len:literal, $kind:literal, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub [u8; $len]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                hex(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                hex(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                unhex(text).map(Self).ok_or(ParseIdError { kind: $kind, expected: $expected })
            }
        }
    };
}

hex_id!(
    /// A terminal: the first 16 bytes of its session key's [`KeyFingerprint`]. Text: 32 hex digits.
    TerminalId, 16, "terminal id", "32 hex digits"
);
hex_id!(
    /// SHA-256 of a public key's SubjectPublicKeyInfo (DER, RFC 5280 section 4.1.2.7). Text: 64 hex digits.
    KeyFingerprint, 32, "key fingerprint", "64 hex digits, the SHA-256 of the key's SubjectPublicKeyInfo"
);
hex_id!(
    /// Names one command through all its internal retries. Random, drawn by the node that took the request.
    CommandId, 16, "command id", "32 hex digits"
);

hex_id!(
    /// Names one restore of a backup into a cluster, through all its repetitions. Derived by whoever restores.
    RestoreId, 16, "restore id", "32 hex digits"
);

impl RestoreId {
    /// The life that a terminal begins by this restore: the same one however often a part of it is repeated, and
    /// none that the terminal has had before, also if the same backup was restored into a cluster of this name that is
    /// no more: that one was begun at another time.
    pub fn stream(&self, begun: GroupTime, terminal: &TerminalId) -> Stream {
        let mut text = [0; 40];
        text[..16].copy_from_slice(&self.0);
        text[16..24].copy_from_slice(&begun.0.to_be_bytes());
        text[24..].copy_from_slice(&terminal.0);
        let [a, b, c, d, e, f, g, h, ..] = crate::hash::sha256(&text);
        Stream(u64::from_be_bytes([a, b, c, d, e, f, g, h]).max(1))
    }
}

impl KeyFingerprint {
    /// The fingerprint of a SubjectPublicKeyInfo in DER form.
    pub fn of_spki(spki: &[u8]) -> KeyFingerprint {
        KeyFingerprint(crate::hash::sha256(spki))
    }

    /// The terminal whose session key this is.
    pub fn terminal(&self) -> TerminalId {
        let mut id = [0; 16];
        id.copy_from_slice(&self.0[..16]);
        TerminalId(id)
    }
}

impl TerminalId {
    /// The hash slot that decides which group keeps this terminal. Ids are hashes, so their first bits do.
    pub fn slot(&self) -> Slot {
        Slot(u16::from_be_bytes([self.0[0], self.0[1]]) % SLOTS)
    }
}

/// Names one push for its publisher: `{terminal}-{check}-{seq}`, as 32 hex digits, 8 hex digits and a decimal.
///
/// It names the terminal and not a log position, so that any node routes it like the terminal itself, it costs
/// no index, and it stays valid when a slot moves to another group (ADR 0001).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MessageId {
    /// Whom the push is for.
    pub terminal: TerminalId,
    /// [`Stream::check`] of the stream that `seq` counts in.
    pub check: u32,
    /// Position in that stream.
    pub seq: Seq,
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:08x}-{}", self.terminal, self.check, self.seq)
    }
}

impl FromStr for MessageId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let parse = || {
            let (terminal, rest) = text.split_once('-')?;
            let (check, seq) = rest.split_once('-')?;
            let canonical = seq.bytes().all(|b| b.is_ascii_digit()) && !seq.starts_with('0');
            Some(MessageId {
                terminal: terminal.parse().ok()?,
                check: u32::from_be_bytes(unhex(check)?),
                seq: Seq(seq.parse().ok().filter(|_| canonical)?),
            })
        };
        parse().ok_or(ParseIdError {
            kind: "message id",
            expected: "TERMINAL-CHECK-SEQ: 32 hex digits, 8 hex digits, a number",
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn text_forms_round_trip_and_malformed_ones_are_refused() {
        let terminal = TerminalId([0xab; 16]);
        assert_eq!(terminal.to_string().parse::<TerminalId>().unwrap(), terminal);
        let message = MessageId { terminal, check: 0x1f, seq: Seq(17) };
        assert_eq!(message.to_string(), format!("{}-0000001f-17", "ab".repeat(16)));
        assert_eq!(message.to_string().parse::<MessageId>().unwrap(), message);
        for bad in ["", "zz", "ab-1-1", &"ab".repeat(17), &format!("{terminal}-0000001f-+1")] {
            assert!(bad.parse::<TerminalId>().is_err(), "{bad}");
            assert!(bad.parse::<MessageId>().is_err(), "{bad}");
        }
        assert!(format!("{terminal}-0000001f-01").parse::<MessageId>().is_err(), "one text form per id");
    }

    #[test]
    fn slots_stay_within_their_number() {
        assert_eq!(TerminalId([0xff; 16]).slot(), Slot(0xffff % SLOTS));
    }
}
