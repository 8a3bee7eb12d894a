//! How long publishers waited for a success because of each fault: while it was there, and at its return. What the recovery
//! table of the docs is made of. Judges nothing.

use std::collections::BTreeMap;

use crate::check::publish_gaps;
use crate::facts::{Facts, Moment};

/// Waits that begin within this after a fault's end, in microseconds, count for its return, unless another fault begins.
const RETURN: u64 = 5_000_000;

/// The longest waits of one fault, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waits {
    /// Of those that were going on at some time while it was there.
    pub there: u64,
    /// Of those that began after it was taken back.
    pub back: u64,
}

/// The waits of all faults that were taken back, by kind.
pub fn of_faults(facts: &Facts) -> BTreeMap<String, Vec<Waits>> {
    let gaps = publish_gaps(facts);
    let longest = |counts: &dyn Fn(Moment, Moment) -> bool| {
        let counted = gaps.iter().filter(|gap| counts(gap.from, gap.to));
        counted.map(|gap| gap.to.at - gap.from.at).max().unwrap_or_default()
    };
    let mut all: BTreeMap<String, Vec<Waits>> = BTreeMap::new();
    for fault in &facts.faults {
        let Some(ended) = fault.ended else { continue };
        let began = fault.first();
        let next = facts.faults.iter().map(|fault| fault.first()).find(|first| *first > ended);
        let until = next.map_or(u64::MAX, |next| next.at).min(ended.at + RETURN);
        let waits = Waits {
            there: longest(&|from, to| from < ended && to > began),
            back: longest(&|from, _| from > ended && from.at < until),
        };
        all.entry(facts.names.text(fault.kind).to_owned()).or_default().push(waits);
    }
    all
}
