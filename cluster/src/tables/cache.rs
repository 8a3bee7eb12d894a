//! What was read from below the overlay lately, misses included: a lookup on disk costs some microseconds even when
//! all of it is in memory, and every replica needs the row of every push. Bounded; holds no key that the overlay holds.
#![allow(clippy::disallowed_types, reason = "looked up by key only, never walked: its order cannot be seen")]

use std::collections::HashMap;

use bytes::Bytes;

/// Bytes that an entry costs beside its key and value.
const OVERHEAD: usize = 96;

/// A cache in two generations: what is not looked up while the younger one fills is forgotten with the older.
#[derive(Debug)]
pub(super) struct Cache {
    young: HashMap<Box<[u8]>, Option<Bytes>>,
    old: HashMap<Box<[u8]>, Option<Bytes>>,
    young_bytes: usize,
    /// Bytes of one generation.
    bound: usize,
}

impl Cache {
    /// A cache of about so many bytes.
    pub(super) fn new(bytes: usize) -> Cache {
        Cache { young: HashMap::new(), old: HashMap::new(), young_bytes: 0, bound: bytes / 2 }
    }

    /// What is known of a key: its value, or that it has none.
    pub(super) fn get(&mut self, key: &[u8]) -> Option<Option<Bytes>> {
        if let Some(value) = self.young.get(key) {
            return Some(value.clone());
        }
        let value = self.old.remove(key)?;
        self.insert(key, value.as_deref());
        Some(value)
    }

    /// Remembers what was read. Copies it: what comes from the disk holds on to the block that it came in.
    pub(super) fn insert(&mut self, key: &[u8], value: Option<&[u8]>) {
        let cost = key.len() + value.map_or(0, <[u8]>::len) + OVERHEAD;
        if self.young_bytes + cost > self.bound {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += cost;
        self.young.insert(key.into(), value.map(Bytes::copy_from_slice));
    }

    /// The key changes: the overlay knows better from now on.
    pub(super) fn forget(&mut self, key: &[u8]) {
        if let Some(value) = self.young.remove(key) {
            self.young_bytes -= key.len() + value.as_ref().map_or(0, Bytes::len) + OVERHEAD;
        }
        self.old.remove(key);
    }

    /// Other tables took the place of these.
    pub(super) fn clear(&mut self) {
        *self = Cache::new(self.bound * 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_bound_holds() {
        let mut cache = Cache::new(2 * 10 * (OVERHEAD + 2));
        cache.insert(b"k", Some(b"v"));
        cache.insert(b"m", None);
        for round in 0..100u8 {
            cache.insert(&[round, 0], None);
            assert_eq!(cache.get(b"k"), Some(Some(Bytes::from_static(b"v"))), "used every time");
            assert!(cache.young.len() + cache.old.len() <= 20);
        }
        assert_eq!(cache.get(b"m"), None, "not used for long");
        cache.forget(b"k");
        assert_eq!(cache.get(b"k"), None);
    }
}
