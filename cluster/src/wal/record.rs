//! The format of the log: segment headers and records, pinned by hand. No IO.
//!
//! Segment file: header, then records back to back, the last of them `End` once the segment is full.
//!
//! Header, 56 bytes, little endian: magic `RVWAL001`, format u32, cluster u64, node u64, segment number u64, first
//! seq u64, bytes of the file u64, crc u32 of all before. Files are made at their full length, so that one that is shorter was
//! cut; those of earlier builds have zero there, and do not say.
//!
//! Record: `length u32 | crc u32 | seq u64 | back u32 | group u16 | kind u8 | payload`. The length is the payload's;
//! the crc (CRC-32C) covers everything after it and the segment's number, so that what an earlier life of a
//! recycled file left is never valid. `seq` rises by one with each record of the node; `back` is the distance to the
//! first record of its batch, the unit of one sync: with it a torn batch is told apart from damage.

use bytes::{Buf, BufMut};
use serde::{Deserialize, Serialize};

/// Format that this build writes and reads.
pub const FORMAT: u32 = 1;
/// Bytes of a segment's header.
pub const HEADER: usize = 56;
/// Bytes before a record's payload.
pub const RECORD: usize = 23;
/// Bytes of a payload: four times the largest log entry, so that a longer one can only be damage.
pub const MAX_PAYLOAD: usize = 16 << 20;
const MAGIC: &[u8; 8] = b"RVWAL001";

/// Whose log or tables they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The cluster's random name.
    pub cluster: u64,
    /// The node.
    pub node: u64,
}

/// What a record is. Pinned: stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// `index u64 | bytes`: an entry; removes those from its index on.
    Entry = 1,
    /// The vote.
    Vote = 2,
    /// `keep u64`: removes the entries from that index on.
    Truncate = 3,
    /// `index u64 | id`: removes the entries up to the index.
    Purge = 4,
    /// The committed log id.
    Committed = 5,
    /// At a segment's head: vote, committed and purge of a group, so that older segments are not needed for them.
    Checkpoint = 6,
    /// Everything before is durable.
    Seal = 7,
    /// The segment is full; the next one goes on.
    End = 8,
    /// `index u64 | bytes`: an entry of an old segment, written again so that it can be freed. Removes nothing.
    Copy = 9,
}

impl Kind {
    fn of(byte: u8) -> Option<Kind> {
        use Kind::*;
        [Entry, Vote, Truncate, Purge, Committed, Checkpoint, Seal, End, Copy]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }

    /// Can a record of this kind have a payload of so many bytes?
    fn takes(self, length: usize) -> bool {
        match self {
            Kind::Seal | Kind::End => length == 0,
            Kind::Truncate => length == 8,
            Kind::Entry | Kind::Copy | Kind::Purge => length >= 8,
            Kind::Vote | Kind::Committed | Kind::Checkpoint => true,
        }
    }
}

/// A record, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its number.
    pub seq: u64,
    /// Distance to the first record of its batch.
    pub back: u32,
    /// Whose.
    pub group: u16,
    /// What.
    pub kind: Kind,
    /// The rest.
    pub payload: &'a [u8],
}

impl Record<'_> {
    /// Bytes in the file.
    pub fn size(&self) -> usize {
        RECORD + self.payload.len()
    }
}

/// What the header of a segment says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Format of the file; another than [`FORMAT`] is to be refused.
    pub format: u32,
    /// Whose log it is of.
    pub owner: Owner,
    /// Its number.
    pub segment: u64,
    /// Number of its first record.
    pub first_seq: u64,
    /// Bytes of the file; 0: not said.
    pub bytes: u64,
}

/// The header of a segment.
pub fn header(Header { format, owner, segment, first_seq, bytes }: &Header) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let mut out = &mut header[..];
    out.put_slice(MAGIC);
    out.put_u32_le(*format);
    out.put_u64_le(owner.cluster);
    out.put_u64_le(owner.node);
    out.put_u64_le(*segment);
    out.put_u64_le(*first_seq);
    out.put_u64_le(*bytes);
    let crc = crc32c::crc32c(&header[..HEADER - 4]);
    header[HEADER - 4..].copy_from_slice(&crc.to_le_bytes());
    header
}

/// What a header says. `None`: it is no header, or damaged.
pub fn parse_header(bytes: &[u8; HEADER]) -> Option<Header> {
    let crc = u32::from_le_bytes(*bytes.last_chunk()?);
    if &bytes[..8] != MAGIC || crc32c::crc32c(&bytes[..HEADER - 4]) != crc {
        return None;
    }
    let mut rest = &bytes[8..];
    let format = rest.get_u32_le();
    let owner = Owner { cluster: rest.get_u64_le(), node: rest.get_u64_le() };
    let (segment, first_seq, bytes) = (rest.get_u64_le(), rest.get_u64_le(), rest.get_u64_le());
    Some(Header { format, owner, segment, first_seq, bytes })
}

fn checksum(segment: u64, covered: &[u8]) -> u32 {
    #[cfg(test)]
    CHECKED.with(|checked| checked.set(checked.get() + covered.len()));
    crc32c::crc32c_append(crc32c::crc32c(&segment.to_le_bytes()), covered)
}

/// Appends a record whose payload is the concatenation of `parts`.
pub fn put(out: &mut Vec<u8>, segment: u64, seq: u64, back: u32, group: u16, kind: Kind, parts: &[&[u8]]) {
    let start = out.len();
    let length: usize = parts.iter().map(|part| part.len()).sum();
    out.put_u32_le(length as u32);
    out.put_u32_le(0);
    out.put_u64_le(seq);
    out.put_u32_le(back);
    out.put_u16_le(group);
    out.put_u8(kind as u8);
    for part in parts {
        out.put_slice(part);
    }
    let crc = checksum(segment, &out[start + 8..]);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
}

/// The record at the start of `bytes`; `None` if there is no valid one.
pub fn parse(bytes: &[u8], segment: u64) -> Option<Record<'_>> {
    parse_if(bytes, segment, |_| true)
}

/// Like `parse`, but asks about what is there before it runs the CRC over it. Who tries many places must: what
/// publishers wrote may look like headers, each of megabytes.
pub fn parse_if(
    bytes: &[u8],
    segment: u64,
    plausible: impl FnOnce(&Record<'_>) -> bool,
) -> Option<Record<'_>> {
    let mut head = bytes.get(..RECORD)?;
    let length = head.get_u32_le() as usize;
    let crc = head.get_u32_le();
    let (seq, back, group) = (head.get_u64_le(), head.get_u32_le(), head.get_u16_le());
    let kind = Kind::of(head.get_u8())?;
    if length > MAX_PAYLOAD || !kind.takes(length) {
        return None;
    }
    let payload = bytes.get(RECORD..RECORD + length)?;
    let covered = &bytes[8..RECORD + length];
    let record = Record { seq, back, group, kind, payload };
    (plausible(&record) && checksum(segment, covered) == crc).then_some(record)
}

#[cfg(test)]
std::thread_local! {
    /// Bytes that this thread ran the CRC over.
    pub(super) static CHECKED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn golden_bytes() {
        let owner = Owner { cluster: 0x1122334455667788, node: 3 };
        // As it was before it told its length.
        let told = Header { format: FORMAT, owner, segment: 5, first_seq: 77, bytes: 0 };
        let bytes = header(&told);
        assert_eq!(parse_header(&bytes), Some(told));
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "525657414c30303101000000887766554433221103000000000000000500000000000000\
             4d00000000000000000000000000000014dee823"
        );
        let mut out = Vec::new();
        put(&mut out, 5, 77, 1, 2, Kind::Entry, &[&9u64.to_le_bytes(), b"hello"]);
        let hex: String = out.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "0d00000096e621dc4d0000000000000001000000020001090000000000000068656c6c6f");
        let record = parse(&out, 5).unwrap();
        assert_eq!((record.seq, record.back, record.group, record.kind), (77, 1, 2, Kind::Entry));
    }

    #[test]
    fn a_flipped_bit_another_segment_or_a_cut_is_no_record() {
        let mut out = Vec::new();
        put(&mut out, 5, 77, 0, 2, Kind::Vote, &[b"vote"]);
        assert!(parse(&out, 6).is_none(), "left by an earlier life of the file");
        for cut in 0..out.len() {
            assert!(parse(&out[..cut], 5).is_none());
        }
        for bit in 0..out.len() * 8 {
            let mut bent = out.clone();
            bent[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&bent, 5).is_none(), "bit {bit}");
        }
    }
}
