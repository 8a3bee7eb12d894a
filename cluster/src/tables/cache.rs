//! What was read lately, misses included: a lookup below the overlay costs some microseconds even when all of it is in
//! memory, and every replica needs the row of every push, also right after a flush. Bounded; always says what the tables
//! say.
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
        self.insert(key, value.clone());
        Some(value)
    }

    /// Is the key known?
    pub(super) fn knows(&self, key: &[u8]) -> bool {
        self.young.contains_key(key) || self.old.contains_key(key)
    }

    /// Remembers what was read. A value that came from the disk holds on to the block that it came in: copy it before.
    pub(super) fn insert(&mut self, key: &[u8], value: Option<Bytes>) {
        let cost = self::cost(key, value.as_ref());
        if self.young_bytes + cost > self.bound {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += cost;
        if let Some(old) = self.young.insert(key.into(), value) {
            self.young_bytes -= self::cost(key, old.as_ref());
        }
    }

    /// The key changes: if it is known here, to this from now on.
    pub(super) fn update(&mut self, key: &[u8], value: Option<&Bytes>) {
        if let Some(known) = self.young.get_mut(key) {
            self.young_bytes += value.map_or(0, Bytes::len);
            self.young_bytes -= known.as_ref().map_or(0, Bytes::len);
            *known = value.cloned();
        } else if !self.old.is_empty()
            && let Some(known) = self.old.get_mut(key)
        {
            *known = value.cloned();
        }
    }

    /// Other tables took the place of these.
    pub(super) fn clear(&mut self) {
        *self = Cache::new(self.bound * 2);
    }
}

fn cost(key: &[u8], value: Option<&Bytes>) -> usize {
    key.len() + value.map_or(0, Bytes::len) + OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_bound_holds() {
        let mut cache = Cache::new(2 * 10 * (OVERHEAD + 2));
        cache.insert(b"k", Some(Bytes::from_static(b"v")));
        cache.insert(b"m", None);
        for round in 0..100u8 {
            cache.insert(&[round, 0], None);
            assert_eq!(cache.get(b"k"), Some(Some(Bytes::from_static(b"v"))), "used every time");
            assert!(cache.young.len() + cache.old.len() <= 20);
        }
        assert_eq!(cache.get(b"m"), None, "not used for long");
    }

    #[test]
    fn a_change_is_seen_in_both_generations_and_makes_nothing_known() {
        let mut cache = Cache::new(2 * 2 * (OVERHEAD + 2));
        let (old, new) = (Bytes::from_static(b"o"), Bytes::from_static(b"n"));
        cache.insert(b"k", Some(old.clone()));
        cache.update(b"k", Some(&new));
        assert_eq!(cache.get(b"k"), Some(Some(new)));
        cache.insert(b"x", None);
        cache.insert(b"y", None);
        assert!(cache.old.contains_key(&b"k"[..]), "pushed out of the young ones");
        cache.update(b"k", None);
        cache.update(b"z", Some(&old));
        assert_eq!(cache.get(b"k"), Some(None));
        assert_eq!(cache.get(b"z"), None);
    }
}
