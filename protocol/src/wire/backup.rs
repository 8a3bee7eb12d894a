//! A backup of one group: a stream of parts that says at its end that it is whole. Bytes to parts and back; no files, and
//! no meaning of the pairs beyond their order.
//!
//! `magic 8 | version u32`, then parts as `len u32 | crc32c u32 | body`: a head, pairs in the order of their keys, an end.
//! Integers are little endian; bodies are [`codec`]'s.

use bytes::{Buf, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::codec::{self, CodecError};
use crate::id::GroupId;
use crate::time::GroupTime;

/// What a backup's file begins with.
const MAGIC: [u8; 8] = *b"reveille";
/// The version of this format.
pub const VERSION: u32 = 1;
/// Bytes before the first part.
const START: usize = 12;
/// Bytes before a part's body.
const HEADER: usize = 8;
/// Bytes of a part: a chunk of a group's tables, or the directory alone.
pub const MAX_PART: usize = 8 * 1024 * 1024;

/// Pairs of a group's tables, in the order of their keys.
pub type Pairs = Vec<(Bytes, Bytes)>;

/// A part. Stored: append only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// Whose tables these are.
    Head(Head),
    /// The next pairs.
    Pairs(Pairs),
    /// Nothing is missing.
    End(End),
}

/// Whose tables these are, and which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The cluster's random name.
    pub cluster: u64,
    /// The group.
    pub group: GroupId,
    /// Shard groups of the cluster.
    pub shards: u16,
    /// Format version of what is in the pairs.
    pub format: u32,
    /// The tables have taken in the group's log up to here.
    pub index: u64,
}

/// What came before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// How many pairs.
    pub pairs: u64,
    /// The group's time as of then.
    pub time: GroupTime,
}

/// Bytes that are no whole backup of a group.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackupError {
    /// It does not begin as one.
    #[error("this is no backup of Reveille")]
    Foreign,
    /// Written by a later version.
    #[error(
        "it has version {0} of the backup format, and this build reads up to {VERSION}; use a later build"
    )]
    Version(u32),
    /// A part is longer than may be.
    #[error("it is damaged: a part of {0} bytes where at most {MAX_PART} are allowed")]
    TooLong(usize),
    /// A part is not as it was written.
    #[error("it is damaged: a checksum does not match")]
    Checksum,
    /// A part is not what it should be.
    #[error("it is damaged: {0}")]
    Codec(#[from] CodecError),
    /// Parts or pairs that do not follow each other.
    #[error("it is damaged: {0}")]
    Order(&'static str),
    /// It ends before its end.
    #[error("it is cut short")]
    Cut,
}

/// What a backup begins with.
pub fn start() -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&VERSION.to_le_bytes());
    out
}

impl Part {
    /// The part as it is written.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; HEADER];
        codec::encode_into(self, &mut out);
        let body = &out[HEADER..];
        let (len, crc) = (body.len() as u32, crc32c::crc32c(body));
        out[..4].copy_from_slice(&len.to_le_bytes());
        out[4..HEADER].copy_from_slice(&crc.to_le_bytes());
        out
    }
}

/// Takes a backup apart as it comes.
#[derive(Debug, Default)]
pub struct Reader {
    buffer: BytesMut,
    begun: bool,
    head: Option<Head>,
    last: Option<Bytes>,
    pairs: u64,
    end: Option<End>,
}

impl Reader {
    /// Adds bytes. No more of them than one part and what one read gives are held if parts are taken in between.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next part; `None` until more bytes are there.
    pub fn next_part(&mut self) -> Result<Option<Part>, BackupError> {
        if !self.begun {
            let known = self.buffer.len().min(MAGIC.len());
            if self.buffer[..known] != MAGIC[..known] {
                return Err(BackupError::Foreign);
            }
            if self.buffer.len() < START {
                return Ok(None);
            }
            self.buffer.advance(MAGIC.len());
            let version = self.buffer.get_u32_le();
            if version != VERSION {
                return Err(BackupError::Version(version));
            }
            self.begun = true;
        }
        if self.end.is_some() {
            return match self.buffer.is_empty() {
                true => Ok(None),
                false => Err(BackupError::Order("something follows the end")),
            };
        }
        let Some((mut header, rest)) = self.buffer.split_at_checked(HEADER) else { return Ok(None) };
        let (len, crc) = (header.get_u32_le() as usize, header.get_u32_le());
        if len > MAX_PART {
            return Err(BackupError::TooLong(len));
        }
        if rest.len() < len {
            return Ok(None);
        }
        self.buffer.advance(HEADER);
        let body = self.buffer.split_to(len);
        if crc32c::crc32c(&body) != crc {
            return Err(BackupError::Checksum);
        }
        let part = codec::decode::<Part, MAX_PART>(&body)?;
        self.check(&part)?;
        Ok(Some(part))
    }

    fn check(&mut self, part: &Part) -> Result<(), BackupError> {
        match part {
            Part::Head(head) if self.head.is_none() => self.head = Some(*head),
            Part::Head(_) => return Err(BackupError::Order("two heads")),
            _ if self.head.is_none() => return Err(BackupError::Order("no head")),
            Part::Pairs(pairs) => {
                for (key, _) in pairs {
                    if self.last.as_ref().is_some_and(|last| last >= key) {
                        return Err(BackupError::Order("keys out of order"));
                    }
                    self.last = Some(key.clone());
                }
                self.pairs += pairs.len() as u64;
            }
            Part::End(end) if end.pairs == self.pairs => self.end = Some(*end),
            Part::End(_) => return Err(BackupError::Order("pairs are missing")),
        }
        Ok(())
    }

    /// What it was, once no more bytes come.
    pub fn finish(&self) -> Result<(Head, End), BackupError> {
        match (self.head, self.end) {
            (Some(head), Some(end)) if self.buffer.is_empty() => Ok((head, end)),
            _ => Err(BackupError::Cut),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn pair(key: &'static [u8], value: &'static [u8]) -> (Bytes, Bytes) {
        (Bytes::from_static(key), Bytes::from_static(value))
    }

    fn whole() -> Vec<u8> {
        let head = Head { cluster: 0xc1, group: GroupId(3), shards: 3, format: 2, index: 77 };
        let mut bytes = start();
        bytes.extend(Part::Head(head).encode());
        bytes.extend(Part::Pairs(vec![pair(b"a", b"1"), pair(b"b", b"")]).encode());
        bytes.extend(Part::Pairs(vec![pair(b"c", b"3")]).encode());
        bytes.extend(Part::End(End { pairs: 3, time: GroupTime(9) }).encode());
        bytes
    }

    fn read(bytes: &[u8], step: usize) -> Result<(u64, Head, End), BackupError> {
        let (mut reader, mut pairs) = (Reader::default(), 0);
        for some in bytes.chunks(step) {
            reader.feed(some);
            while let Some(part) = reader.next_part()? {
                if let Part::Pairs(some) = part {
                    pairs += some.len() as u64;
                }
            }
        }
        let (head, end) = reader.finish()?;
        Ok((pairs, head, end))
    }

    #[test]
    fn it_is_read_in_any_pieces_and_any_cut_or_flipped_bit_is_seen() {
        let bytes = whole();
        for step in [1, 7, 1000] {
            let (pairs, head, end) = read(&bytes, step).unwrap();
            assert_eq!((pairs, head.group, end.time), (3, GroupId(3), GroupTime(9)));
        }
        for cut in 0..bytes.len() {
            assert!(read(&bytes[..cut], 1000).is_err(), "cut at {cut}");
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                assert!(read(&flipped, 1000).is_err(), "bit {bit} at {at}");
            }
        }
        assert_eq!(
            read(&[&bytes[..], b"x"].concat(), 1000),
            Err(BackupError::Order("something follows the end"))
        );
        let mut later = bytes.clone();
        later[8] = 2;
        assert_eq!(read(&later, 1000), Err(BackupError::Version(2)));
    }

    #[test]
    fn parts_out_of_order_are_refused() {
        let head =
            Part::Head(Head { cluster: 1, group: GroupId(0), shards: 1, format: 2, index: 1 }).encode();
        let pairs = |key| Part::Pairs(vec![pair(key, b"")]).encode();
        let end = |pairs| Part::End(End { pairs, time: GroupTime(0) }).encode();
        let of = |parts: &[Vec<u8>]| read(&[start(), parts.concat()].concat(), 1000);
        assert!(of(&[head.clone(), pairs(b"a"), end(1)]).is_ok());
        assert_eq!(of(&[pairs(b"a")]), Err(BackupError::Order("no head")));
        assert_eq!(of(&[head.clone(), head.clone()]), Err(BackupError::Order("two heads")));
        assert_eq!(
            of(&[head.clone(), pairs(b"a"), pairs(b"a")]),
            Err(BackupError::Order("keys out of order"))
        );
        assert_eq!(of(&[head, pairs(b"a"), end(2)]), Err(BackupError::Order("pairs are missing")));
    }
}
