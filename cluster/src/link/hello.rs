//! The opening frame of a connection, sent by its dialler: versions, who, to whom, for what. Format and check.
//!
//! 31 bytes, little endian: magic `RVLK`, lowest and highest version u8 each, cluster u64, from u64, to u64, lane u8.
//! The acceptor answers with one byte: the version it chose, or why there will be no link. Builds that do not know the
//! reasons take them for versions that they do not speak. Strangers get no answer.

use bytes::{Buf, BufMut};
use reveille_protocol::directory::FORMAT;
use reveille_protocol::id::NodeId;

use super::Lane;

/// The versions that this build speaks: those of the formats of what is sent and stored.
pub(super) const VERSIONS: (u8, u8) = (1, FORMAT as u8);
const MAGIC: &[u8; 4] = b"RVLK";
/// Bytes of the frame.
pub(super) const LEN: usize = 31;

/// What the acceptor says: of a byte that is no version, what it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// Both speak this from now on.
    Speak(u8),
    /// The dialler was removed from the cluster, which never gives its id again.
    NotMember,
    /// The acceptor does not know of the dialler.
    Unknown,
    /// The cluster has left the dialler's versions behind.
    Old,
}

const NOT_MEMBER: u8 = 0;
const UNKNOWN: u8 = 254;
const OLD: u8 = 255;
const _: () = assert!(VERSIONS.0 > NOT_MEMBER && VERSIONS.1 < UNKNOWN, "no version is taken for a reason");

impl Answer {
    pub(super) fn encode(self) -> u8 {
        match self {
            Answer::Speak(version) => version,
            Answer::NotMember => NOT_MEMBER,
            Answer::Unknown => UNKNOWN,
            Answer::Old => OLD,
        }
    }

    pub(super) fn decode(byte: u8) -> Answer {
        match byte {
            NOT_MEMBER => Answer::NotMember,
            UNKNOWN => Answer::Unknown,
            OLD => Answer::Old,
            version => Answer::Speak(version),
        }
    }
}

/// What a dialler says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) cluster: u64,
    pub(super) from: NodeId,
    pub(super) to: NodeId,
    pub(super) lane: Lane,
}

impl Hello {
    pub(super) fn encode(&self) -> [u8; LEN] {
        let mut hello = [0; LEN];
        let mut out = &mut hello[..];
        out.put_slice(MAGIC);
        out.put_u8(VERSIONS.0);
        out.put_u8(VERSIONS.1);
        out.put_u64_le(self.cluster);
        out.put_u64_le(self.from.0);
        out.put_u64_le(self.to.0);
        out.put_u8(self.lane as u8);
        hello
    }

    /// The frame and the version to speak; `None` if it is not ours or no version is common.
    pub(super) fn decode(hello: &[u8; LEN]) -> Option<(Hello, u8)> {
        let mut rest = hello.strip_prefix(MAGIC)?;
        let (low, high) = (rest.get_u8(), rest.get_u8());
        let version = high.min(VERSIONS.1);
        if version < low.max(VERSIONS.0) {
            return None;
        }
        let cluster = rest.get_u64_le();
        let (from, to) = (NodeId(rest.get_u64_le()), NodeId(rest.get_u64_le()));
        let lane = Lane::of(rest.get_u8())?;
        Some((Hello { cluster, from, to, lane }, version))
    }

    /// Is this a version that we can speak?
    pub(super) fn speaks(version: u8) -> bool {
        (VERSIONS.0..=VERSIONS.1).contains(&version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        for (answer, byte) in
            [(Answer::NotMember, 0), (Answer::Speak(1), 1), (Answer::Unknown, 254), (Answer::Old, 255)]
        {
            assert_eq!((answer.encode(), Answer::decode(byte)), (byte, answer));
            assert_eq!(Hello::speaks(byte), byte == 1, "to a build that knows no reasons");
        }
    }

    #[test]
    fn golden_bytes_and_versions() {
        let hello = Hello { cluster: 0x0102, from: NodeId(3), to: NodeId(4), lane: Lane::Data };
        let bytes = hello.encode();
        assert_eq!(Hello::decode(&bytes), Some((hello, 3)));
        assert_eq!(&bytes[..8], b"RVLK\x01\x03\x02\x01");
        let mut first = bytes;
        first[5] = 1;
        assert_eq!(Hello::decode(&first), Some((hello, 1)), "the first build");
        let mut later = bytes;
        (later[4], later[5]) = (1, 9);
        assert_eq!(Hello::decode(&later), Some((hello, 3)), "a later build that still speaks ours");
        (later[4], later[5]) = (4, 9);
        assert_eq!(Hello::decode(&later), None, "a build that does not");
        let mut foreign = bytes;
        foreign[0] = b'X';
        assert_eq!(Hello::decode(&foreign), None);
    }
}
