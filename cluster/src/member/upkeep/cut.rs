//! Which groups' logs are cut, and how much stays behind a cut: by bytes first, since the log is bounded in bytes and
//! shared by all groups. Rules only; raft and the log are its parent's.

use crate::wal::Held;

/// Entries that stay in the log behind a snapshot, so that a peer that was away shortly needs no snapshot. Bytes
/// bound that, too.
pub(in crate::member) const KEEP_ENTRIES: u64 = 10_000;
/// Entries after which a log is cut in any case: a few times what is kept. A restart applies them again.
const CUT_AFTER: u64 = 50_000;

/// How a group's log stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) held: Held,
    /// Entries applied since the last snapshot.
    pub(super) entries: u64,
}

impl Load {
    pub(super) fn many_entries(&self) -> bool {
        self.entries > CUT_AFTER
    }
}

/// Bytes of entries that stay in one group's log behind a cut: a quarter of the log for all groups together.
pub(super) fn keep(capacity: u64, groups: usize) -> u64 {
    capacity / 4 / groups.max(1) as u64
}

/// Bytes of segments that what stays may hold: a group that writes seldom keeps others' segments, too.
pub(super) fn span(capacity: u64) -> u64 {
    capacity / 2
}

/// The groups whose logs are to be cut, those that hold most first. By themselves: those with many entries, with an
/// eighth of the log, or with an entry so old that three quarters of the log cannot go because of it. Of the rest,
/// the biggest, until what is left is half of the log: the other half is for what comes while snapshots are made.
pub(super) fn plan(loads: &[Load]) -> Vec<usize> {
    let Some(capacity) = loads.iter().map(|load| load.held.capacity).min() else { return Vec::new() };
    let keep = keep(capacity, loads.len());
    let mut biggest: Vec<usize> = (0..loads.len()).collect();
    biggest.sort_by_key(|at| std::cmp::Reverse(loads[*at].held.live));
    let alone = |load: &Load| {
        load.many_entries() || load.held.live > capacity / 8 || load.held.span > capacity / 4 * 3
    };
    let after = |load: &Load| load.held.live.min(keep);
    let mut left: u64 = loads.iter().map(|load| if alone(load) { after(load) } else { load.held.live }).sum();
    biggest.retain(|at| {
        let load = &loads[*at];
        let helps = left > capacity / 2 && load.held.live > keep;
        if !alone(load) && helps {
            left = left - load.held.live + after(load);
        }
        alone(load) || helps
    });
    biggest
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: u64 = 1 << 30;

    fn load(live: u64) -> Load {
        Load { held: Held { live, span: live, capacity: CAPACITY }, entries: 0 }
    }

    #[test]
    fn a_group_is_cut_for_its_own_bytes_entries_or_age() {
        let quiet = load(CAPACITY / 100);
        assert_eq!(plan(&[]), [0; 0]);
        assert_eq!(plan(&[quiet; 17]), [0; 0]);
        let old = Load { held: Held { span: CAPACITY / 4 * 3 + 1, ..quiet.held }, ..quiet };
        let many = Load { entries: CUT_AFTER + 1, ..quiet };
        assert_eq!(plan(&[quiet, load(CAPACITY / 8 + 1), quiet, old, many]), [1, 3, 4]);
    }

    #[test]
    fn the_biggest_are_cut_until_half_of_the_log_is_left() {
        // 16 groups with 2 to 5 % each are 56 % of the log, and meta has nothing.
        let mut loads = vec![load(0)];
        loads.extend((0..16).map(|at| load(CAPACITY / 100 * (2 + at / 4))));
        assert_eq!(loads.iter().map(|load| load.held.live).sum::<u64>(), CAPACITY / 100 * 56);
        assert_eq!(plan(&loads), [13, 14]);
        let keep = keep(CAPACITY, loads.len());
        assert!(keep * loads.len() as u64 <= CAPACITY / 4, "what is kept leaves room");
        assert_eq!(plan(&vec![load(CAPACITY / 16); 16]).len(), 11, "full: as many as it takes");
        assert_eq!(plan(&vec![load(keep); 17]), [0; 0]);
    }
}
