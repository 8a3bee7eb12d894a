//! The write-back overlay: what changed since the last flush, in two generations, so that the older one can be
//! flushed while the younger one takes changes. In memory, ordered; no disk here.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use super::key::Key;

/// A key's latest value; `None`: deleted.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) value: Option<Bytes>,
    /// Below this generation the key may hold something, so deleting it needs a tombstone.
    below: bool,
}

/// Bytes that an entry costs beside its value's and a long key's: its place in a tree node that is two thirds full, and
/// the value's allocation.
const OVERHEAD: usize = 144;

/// Changes of one generation, in key order.
pub(super) type Changes = BTreeMap<Key, Slot>;

/// The two generations.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    active: Changes,
    active_bytes: usize,
    frozen: Option<Arc<Changes>>,
    frozen_bytes: usize,
}

/// What the overlay says about a key.
pub(super) enum Found {
    /// It holds this, or nothing.
    Here(Option<Bytes>),
    /// Nothing: look below.
    Below,
}

impl Overlay {
    /// Estimated bytes in memory.
    pub(super) fn bytes(&self) -> usize {
        self.active_bytes + self.frozen_bytes
    }

    pub(super) fn get(&self, key: &[u8]) -> Found {
        if let Some(slot) = self.active.get(key) {
            return Found::Here(slot.value.clone());
        }
        match self.frozen.as_ref().and_then(|frozen| frozen.get(key)) {
            Some(slot) => Found::Here(slot.value.clone()),
            None => Found::Below,
        }
    }

    pub(super) fn put(&mut self, key: &[u8], value: Bytes, new: bool) {
        self.active_bytes += value.len();
        match self.active.entry(Key::from(key)) {
            Entry::Occupied(mut slot) => {
                let old = slot.get_mut().value.replace(value);
                self.active_bytes -= old.map_or(0, |old| old.len());
            }
            Entry::Vacant(place) => {
                self.active_bytes += key.len() + OVERHEAD;
                place.insert(Slot { value: Some(value), below: !new });
            }
        }
    }

    pub(super) fn delete(&mut self, key: &[u8]) {
        match self.active.get_mut(key) {
            Some(slot) if slot.below => {
                self.active_bytes -= slot.value.as_ref().map_or(0, Bytes::len);
                slot.value = None;
            }
            Some(slot) => {
                self.active_bytes -= key.len() + slot.value.as_ref().map_or(0, Bytes::len) + OVERHEAD;
                self.active.remove(key);
            }
            None => {
                self.active_bytes += key.len() + OVERHEAD;
                self.active.insert(Key::from(key), Slot { value: None, below: true });
            }
        }
    }

    /// Closes the active generation for flushing; `None` if there is nothing to flush. The one before must have
    /// been dropped with [`Overlay::thaw`].
    pub(super) fn freeze(&mut self) -> Option<Arc<Changes>> {
        if self.frozen.is_none() && !self.active.is_empty() {
            self.frozen = Some(Arc::new(std::mem::take(&mut self.active)));
            self.frozen_bytes = std::mem::take(&mut self.active_bytes);
        }
        self.frozen.clone()
    }

    /// The frozen generation is durable below: forgets it. It is the caller's to drop.
    pub(super) fn thaw(&mut self) -> Option<Arc<Changes>> {
        self.frozen_bytes = 0;
        self.frozen.take()
    }

    /// Forgets everything: other tables took the place of these.
    pub(super) fn clear(&mut self) {
        *self = Overlay::default();
    }

    /// What this overlay says about the keys of a range, in key order; `None`: deleted.
    pub(super) fn range<'a>(
        &'a self,
        from: &'a [u8],
        to: &'a [u8],
    ) -> impl Iterator<Item = (&'a [u8], Option<&'a Bytes>)> {
        let bounds = (Bound::Included(from), Bound::Excluded(to));
        let of = move |changes: &'a Changes| {
            changes.range::<[u8], _>(bounds).map(|(key, slot)| (&key[..], slot.value.as_ref()))
        };
        merge(of(&self.active), self.frozen.iter().flat_map(move |frozen| of(frozen)))
    }
}

/// Merges two sorted sequences; where both have a key, the first one's value counts.
pub(super) fn merge<K: Ord, V>(
    upper: impl Iterator<Item = (K, V)>,
    lower: impl Iterator<Item = (K, V)>,
) -> impl Iterator<Item = (K, V)> {
    let (mut upper, mut lower) = (upper.peekable(), lower.peekable());
    std::iter::from_fn(move || match (upper.peek(), lower.peek()) {
        (Some((above, _)), Some((below, _))) => match above.cmp(below) {
            std::cmp::Ordering::Less => upper.next(),
            std::cmp::Ordering::Greater => lower.next(),
            std::cmp::Ordering::Equal => {
                lower.next();
                upper.next()
            }
        },
        (Some(_), None) => upper.next(),
        (None, _) => lower.next(),
    })
}
