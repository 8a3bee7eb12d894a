//! What the log's files hold of one group: exactly what recovery would find if it read every record that was put so
//! far. What raft sees may differ for as long as operations wait for the writer; that is `group`'s.

use std::collections::{BTreeMap, VecDeque};

use super::record::RECORD;

/// Where an entry's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: u64,
    pub(super) offset: u32,
    pub(super) len: u32,
}

impl Place {
    /// Bytes of the whole record: header, index, payload.
    pub(super) fn size(self) -> u64 {
        RECORD as u64 + 8 + u64::from(self.len)
    }
}

#[derive(Debug)]
struct Slot {
    place: Place,
    /// Tells this entry from others with its index.
    version: u64,
    /// Bytes of this entry and all before it, also of those that are gone: a difference of two is what lies between.
    end: u64,
}

/// The entries of one group that are in the files, and how much of each segment they are.
#[derive(Debug, Default)]
pub(super) struct Written {
    first: u64,
    slots: VecDeque<Slot>,
    /// `end` of the entry before the first.
    base: u64,
    /// Live bytes by segment; none is zero. Bounded by the number of segments.
    live: BTreeMap<u64, u64>,
}

impl Written {
    fn at(&self, index: u64) -> Option<usize> {
        let at = index.checked_sub(self.first)? as usize;
        (at < self.slots.len()).then_some(at)
    }

    /// Where the entry of this version is; `None` if it is not in the files, or another has its place.
    pub(super) fn place(&self, index: u64, version: u64) -> Option<Place> {
        let slot = &self.slots[self.at(index)?];
        (slot.version == version).then_some(slot.place)
    }

    /// An entry was put; those from its index on are gone.
    pub(super) fn put(&mut self, index: u64, version: u64, place: Place) {
        self.truncate(index);
        if self.slots.is_empty() {
            self.first = index;
        }
        let end = self.slots.back().map_or(self.base, |slot| slot.end) + place.size();
        self.slots.push_back(Slot { place, version, end });
        *self.live.entry(place.segment).or_default() += place.size();
    }

    /// A truncation was put: the entries from `keep` on are gone.
    pub(super) fn truncate(&mut self, keep: u64) {
        let keep = keep.saturating_sub(self.first) as usize;
        while self.slots.len() > keep
            && let Some(slot) = self.slots.pop_back()
        {
            self.gone(slot.place);
        }
    }

    /// A purge was put: the entries up to `upto` are gone.
    pub(super) fn purge(&mut self, upto: u64) {
        while self.first <= upto
            && let Some(slot) = self.slots.pop_front()
        {
            self.first += 1;
            self.base = slot.end;
            self.gone(slot.place);
        }
    }

    /// A copy was put; the entry is there now.
    pub(super) fn moved(&mut self, index: u64, from: Place, to: Place) {
        if let Some(at) = self.at(index)
            && self.slots[at].place == from
        {
            self.slots[at].place = to;
            self.gone(from);
            *self.live.entry(to.segment).or_default() += to.size();
        }
    }

    fn gone(&mut self, place: Place) {
        if let Some(live) = self.live.get_mut(&place.segment) {
            *live = live.saturating_sub(place.size());
            if *live == 0 {
                self.live.remove(&place.segment);
            }
        }
    }

    /// Bytes of all entries.
    pub(super) fn bytes(&self) -> u64 {
        self.slots.back().map_or(0, |slot| slot.end - self.base)
    }

    /// Bytes of the entries in one segment.
    pub(super) fn bytes_in(&self, segment: u64) -> u64 {
        self.live.get(&segment).copied().unwrap_or(0)
    }

    /// The oldest segment that an entry needs.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.live.keys().next().copied()
    }

    /// The entries in one segment. Looks no further than the last of them.
    pub(super) fn in_segment(&self, segment: u64) -> Vec<(u64, Place)> {
        let mut left = self.bytes_in(segment);
        let mut found = Vec::new();
        for (index, slot) in (self.first..).zip(&self.slots) {
            if left == 0 {
                break;
            }
            if slot.place.segment == segment {
                left = left.saturating_sub(slot.place.size());
                found.push((index, slot.place));
            }
        }
        found
    }

    /// The last entry that must go so that at most `keep` bytes are left, and none in a segment before `segment`.
    pub(super) fn excess(&self, keep: u64, segment: u64) -> Option<u64> {
        let over = self.bytes().saturating_sub(keep);
        let by_bytes =
            if over == 0 { 0 } else { self.slots.partition_point(|slot| slot.end - self.base < over) + 1 };
        let old = match self.oldest() {
            Some(oldest) if oldest < segment => {
                self.slots.iter().rposition(|slot| slot.place.segment < segment).map_or(0, |last| last + 1)
            }
            _ => 0,
        };
        (by_bytes.max(old) as u64).checked_sub(1).map(|last| self.first + last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(segment: u64, len: u32) -> Place {
        Place { segment, offset: 0, len }
    }

    /// Entries 5 to 9 of 100 bytes with their headers: two in segment 1, three in segment 2.
    fn five() -> Written {
        let mut written = Written::default();
        for index in 5..10 {
            written.put(index, index, place(1 + u64::from(index >= 7), 100 - RECORD as u32 - 8));
        }
        written
    }

    #[test]
    fn bytes_are_counted_once_whatever_happens_to_an_entry() {
        let mut written = five();
        assert_eq!((written.bytes(), written.bytes_in(1), written.bytes_in(2)), (500, 200, 300));
        written.put(8, 20, place(3, 69));
        assert_eq!(
            (written.bytes(), written.bytes_in(2), written.bytes_in(3)),
            (400, 100, 100),
            "8 and 9 are gone"
        );
        assert_eq!((written.place(8, 8), written.place(8, 20)), (None, Some(place(3, 69))));
        let from = place(1, 69);
        written.moved(5, from, place(3, 69));
        written.moved(5, from, place(3, 69));
        assert_eq!((written.bytes(), written.bytes_in(1), written.bytes_in(3)), (400, 100, 200));
        assert_eq!(
            (written.in_segment(3), written.oldest()),
            (vec![(5, place(3, 69)), (8, place(3, 69))], Some(1))
        );
        written.purge(6);
        written.purge(6);
        assert_eq!((written.bytes(), written.oldest()), (200, Some(2)));
        written.truncate(0);
        assert_eq!((written.bytes(), written.oldest(), written.in_segment(2)), (0, None, vec![]));
        written.purge(100);
        written.put(101, 30, place(4, 69));
        assert_eq!((written.bytes(), written.place(101, 30)), (100, Some(place(4, 69))));
    }

    #[test]
    fn what_is_in_excess_goes_and_nothing_else() {
        let mut written = five();
        let all = 0;
        for (keep, last) in
            [(500, None), (499, Some(5)), (400, Some(5)), (399, Some(6)), (100, Some(8)), (0, Some(9))]
        {
            assert_eq!(written.excess(keep, all), last, "keep {keep}");
        }
        assert_eq!(written.excess(u64::MAX, 2), Some(6), "all of segment 1");
        assert_eq!(written.excess(u64::MAX, 3), Some(9));
        assert_eq!(written.excess(350, 2), Some(6));
        written.purge(5);
        assert_eq!((written.excess(400, all), written.excess(300, all)), (None, Some(6)));
    }
}
