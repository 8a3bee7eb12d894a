//! Bytes to values and back: bincode behind a version byte, bounded, trailing bytes refused. The only file that
//! names bincode.
//!
//! Encoding: one version byte, then the value in bincode 2 `standard()` form (little endian, varint integers).
//! Enums grow at their end only, fields are never reordered; golden bytes beside each family of formats hold
//! that.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The version in front of each value whose format has not changed since the first.
pub const VERSION: u8 = 1;

/// Bytes that are not the value they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// More bytes than this kind of value may have.
    #[error("{len} bytes where at most {limit} are allowed")]
    TooLong {
        /// Bytes given.
        len: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// No bytes at all.
    #[error("no bytes where a value was expected")]
    Empty,
    /// Written by a later version, or not by us.
    #[error("format version {found}, which this build cannot read; upgrade this side")]
    Version {
        /// The version byte found.
        found: u8,
    },
    /// Not the value, cut short, or a length in it that the limit forbids.
    #[error("malformed: {0}")]
    Malformed(String),
    /// The value is followed by bytes that do not belong to it.
    #[error("{0} bytes after the end of the value")]
    Trailing(usize),
}

/// Encodes `value` behind the version byte.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    encode_into(value, &mut out);
    out
}

/// Encodes `value` behind another version byte: for a format that has changed since the first.
pub fn encode_as<T: Serialize>(version: u8, value: &T) -> Vec<u8> {
    let mut out = vec![version];
    encode_bare(value, &mut out);
    out
}

/// Appends the encoding of `value`, version byte first, to `out`.
pub fn encode_into<T: Serialize>(value: &T, out: &mut Vec<u8>) {
    out.push(VERSION);
    encode_bare(value, out);
}

/// Appends the encoding of `value` without a version byte, for formats that carry it in their own header.
pub fn encode_bare<T: Serialize>(value: &T, out: &mut Vec<u8>) {
    #[allow(
        clippy::expect_used,
        reason = "writing to a Vec cannot fail, and our types have no sequences of unknown length"
    )]
    bincode::serde::encode_into_std_write(value, out, bincode::config::standard())
        .expect("a protocol type that bincode cannot encode");
}

/// Decodes a value of at most `LIMIT` bytes and lets the decoder allocate no more than that.
pub fn decode<T: DeserializeOwned, const LIMIT: usize>(bytes: &[u8]) -> Result<T, CodecError> {
    decode_as::<T, LIMIT>(VERSION, bytes)
}

/// Decodes what [`encode_as`] made, by the same version.
pub fn decode_as<T: DeserializeOwned, const LIMIT: usize>(
    expected: u8,
    bytes: &[u8],
) -> Result<T, CodecError> {
    if bytes.len() > LIMIT {
        return Err(CodecError::TooLong { len: bytes.len(), limit: LIMIT });
    }
    let (&version, body) = bytes.split_first().ok_or(CodecError::Empty)?;
    if version != expected {
        return Err(CodecError::Version { found: version });
    }
    decode_bare::<T, LIMIT>(body)
}

/// Decodes a value without a version byte; see [`encode_bare`].
pub fn decode_bare<T: DeserializeOwned, const LIMIT: usize>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > LIMIT {
        return Err(CodecError::TooLong { len: bytes.len(), limit: LIMIT });
    }
    let config = bincode::config::standard().with_limit::<LIMIT>();
    let (value, used) = bincode::serde::decode_from_slice(bytes, config)
        .map_err(|error| CodecError::Malformed(error.to_string()))?;
    match bytes.len() - used {
        0 => Ok(value),
        extra => Err(CodecError::Trailing(extra)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn refuses_what_is_empty_long_foreign_cut_or_followed_by_more() {
        let bytes = encode(&(7u64, "seven"));
        assert_eq!(decode::<(u64, String), 64>(&bytes).unwrap(), (7, "seven".to_owned()));
        assert_eq!(decode::<(u64, String), 64>(&[]), Err(CodecError::Empty));
        assert!(matches!(decode::<(u64, String), 4>(&bytes), Err(CodecError::TooLong { .. })));
        assert!(matches!(decode::<(u64, String), 64>(&bytes[..3]), Err(CodecError::Malformed(_))));
        let mut foreign = bytes.clone();
        foreign[0] = 9;
        assert_eq!(decode::<(u64, String), 64>(&foreign), Err(CodecError::Version { found: 9 }));
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(decode::<(u64, String), 64>(&longer), Err(CodecError::Trailing(1)));
    }

    #[test]
    fn a_length_that_lies_is_an_error_and_not_an_allocation() {
        let mut bytes = vec![VERSION, 253];
        bytes.extend_from_slice(&(1u64 << 40).to_le_bytes());
        assert!(matches!(decode::<String, 1024>(&bytes), Err(CodecError::Malformed(_))));
    }
}
