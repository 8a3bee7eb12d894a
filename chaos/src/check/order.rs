//! C4, order without gaps.

use std::collections::BTreeMap;

use super::Checker;
use super::outcome::{Findings, Outcome};
use crate::facts::{Facts, Moment, Step};

pub(super) const CHECKER: Checker = Checker {
    id: "C4",
    name: "order",
    definition: "the seqs that a terminal's process is given rise, and each push names as the one before it a seq that \
                 the terminal has, or has confirmed",
    safety: true,
    check,
};

#[derive(Default)]
struct Copy {
    /// The highest seq that it has, and when it came.
    last: Option<(u64, Moment)>,
    /// Given in this life, to tell a repeat, which is another checker's, from a jump back.
    given: std::collections::BTreeSet<u64>,
    confirmed: Option<(u64, Moment)>,
}

fn check(facts: &Facts) -> Outcome {
    let mut findings = Findings::default();
    let (mut given, mut linked) = (0u64, 0u64);
    for terminal in &facts.terminals {
        let name = facts.names.text(terminal.name);
        let mut copies: BTreeMap<u64, Copy> = BTreeMap::new();
        for stepped in &terminal.steps {
            let copy = copies.entry(stepped.copy).or_default();
            let when = stepped.when;
            match stepped.step {
                Step::Started => {
                    copy.last = copy.confirmed;
                    copy.given.clear();
                }
                Step::Reset { next } => {
                    *copy = Copy { last: next.checked_sub(1).map(|last| (last, when)), ..Copy::default() };
                }
                Step::Confirmed { seq } => {
                    copy.confirmed = copy.confirmed.max(Some((seq, when)));
                }
                Step::Delivered(delivery) => {
                    given += 1;
                    let seq = delivery.seq;
                    if copy.given.contains(&seq) {
                        continue;
                    }
                    let first = copy.given.is_empty();
                    copy.given.insert(seq);
                    // What a killed process confirmed may not be on its disk: the first of a life may go back.
                    let jumps_back = copy.last.filter(|(last, _)| seq < *last && !first);
                    if let Some((last, at)) = jumps_back {
                        findings.add(&[at, when], || {
                            format!("order: {name} was given seq {seq} after seq {last}")
                        });
                        continue;
                    }
                    if let Some(prev) = delivery.prev {
                        linked += 1;
                        // What a second device with this identity had when it came is not known.
                        let unknown = if stepped.copy == 0 { 0 } else { u64::MAX };
                        let last = copy.last.map_or(unknown, |(last, _)| last);
                        if prev > last {
                            let evidence = [copy.last.map_or(when, |(_, at)| at), when];
                            findings.add(&evidence, || {
                                format!(
                                    "gap: {name} was given seq {seq} as the one after {prev}, and has {last}"
                                )
                            });
                        }
                    }
                    copy.last = Some((seq, when));
                }
                _ => {}
            }
        }
    }
    if given == 0 {
        return Outcome::unknown("no application was given anything");
    }
    findings.outcome(facts, format!("{given} given, {linked} of them named the one before"))
}
