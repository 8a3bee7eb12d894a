//! A key of the overlay, held where its tree node is. Bytes and their order only; what they mean is the state machine's.

use std::borrow::Borrow;
use std::cmp::Ordering;

/// Longest key that is held inline: all of the state machine's but those of topics.
const INLINE: usize = 38;

/// A key. A search compares a dozen of them in each node: behind a pointer each comparison would be a cache miss.
#[derive(Clone)]
pub(super) enum Key {
    Inline(u8, [u8; INLINE]),
    Boxed(Box<[u8]>),
}

impl From<&[u8]> for Key {
    fn from(key: &[u8]) -> Key {
        if key.len() > INLINE {
            return Key::Boxed(key.into());
        }
        let mut bytes = [0; INLINE];
        bytes[..key.len()].copy_from_slice(key);
        Key::Inline(key.len() as u8, bytes)
    }
}

impl std::ops::Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Key::Inline(len, bytes) => &bytes[..usize::from(*len)],
            Key::Boxed(bytes) => bytes,
        }
    }
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        self
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Key) -> Ordering {
        self[..].cmp(&other[..])
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Key) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Key) -> bool {
        self[..] == other[..]
    }
}

impl Eq for Key {}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:02x?}", &self[..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_both_kinds_sort_as_their_bytes() {
        let mut keys: Vec<Vec<u8>> =
            (0..=INLINE + 3).flat_map(|len| [vec![7; len], vec![0; len], vec![255; len]]).collect();
        let mut held: Vec<Key> = keys.iter().map(|key| Key::from(&key[..])).collect();
        keys.sort();
        held.sort();
        assert!(keys.iter().zip(&held).all(|(bytes, key)| bytes[..] == key[..]));
        assert_eq!(size_of::<Key>(), INLINE + 2);
    }
}
