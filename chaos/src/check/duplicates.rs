//! C3, the bound on duplicates.

use std::collections::BTreeMap;

use super::Checker;
use super::outcome::{Findings, Outcome};
use crate::facts::{Delivery, Facts, Moment, Step};

pub(super) const CHECKER: Checker = Checker {
    id: "C3",
    name: "duplicates",
    definition: "one process is given a push once; after it ended, its successor may be given again only what its disk \
                 does not say was confirmed, at most a session's window of it, and marked; no push comes under two seqs",
    safety: true,
    check,
};

/// Pushes on the way to one session and not yet acknowledged: what may come again after one end of a process.
const WINDOW: usize = reveille_protocol::limits::SESSION_WINDOW;

/// One of the processes that have a terminal's identity, through its lives.
#[derive(Default)]
struct Copy {
    /// What this life was given, ascending: seq and when.
    given: Vec<(u64, Moment)>,
    /// What earlier lives were given and the disk does not know as confirmed.
    seen: BTreeMap<u64, Moment>,
    saved: Option<(u64, Moment)>,
    stream: u32,
    /// What came again in this life.
    again: usize,
}

impl Copy {
    fn started(&mut self) {
        let saved = self.saved.map_or(0, |(seq, _)| seq);
        self.seen.extend(self.given.drain(..));
        self.seen = self.seen.split_off(&(saved + 1));
        self.again = 0;
    }

    fn reset(&mut self) {
        *self = Copy { stream: self.stream + 1, ..Copy::default() };
    }

    /// What is wrong with this delivery, and the earlier line that shows it.
    fn delivered(&mut self, when: Moment, delivery: &Delivery) -> Option<(Moment, String)> {
        let seq = delivery.seq;
        let place = match self.given.last() {
            Some((last, _)) if *last >= seq => self.given.binary_search_by_key(&seq, |(seq, _)| *seq),
            _ => Err(self.given.len()),
        };
        match place {
            Ok(at) => return Some((self.given[at].1, format!("seq {seq} was given twice to one process"))),
            Err(at) => self.given.insert(at, (seq, when)),
        }
        if let Some((saved, saved_at)) = self.saved.filter(|(saved, _)| seq <= *saved) {
            return Some((
                saved_at,
                format!("seq {seq} came again after the disk said that {saved} was confirmed"),
            ));
        }
        let before = *self.seen.get(&seq)?;
        self.again += 1;
        if !delivery.maybe_seen {
            Some((before, format!("seq {seq} came to a second life of the terminal without its mark")))
        } else if self.again > WINDOW {
            Some((
                before,
                format!("seq {seq} is repeat {} after one restart; a window has {WINDOW}", self.again),
            ))
        } else {
            None
        }
    }
}

/// Where a push was given last: to which copy, in which of its streams, as which seq.
type Given = Option<(u64, u32, u64, Moment)>;

fn check(facts: &Facts) -> Outcome {
    let mut findings = Findings::default();
    let mut places: Vec<Given> = vec![None; facts.pushes.len()];
    let (mut given, mut again) = (0u64, 0u64);
    for (at, terminal) in facts.terminals.iter().enumerate() {
        let name = facts.names.text(terminal.name);
        let mut copies: BTreeMap<u64, Copy> = BTreeMap::new();
        for stepped in &terminal.steps {
            let copy = copies.entry(stepped.copy).or_default();
            match stepped.step {
                Step::Started => copy.started(),
                Step::Reset { .. } => copy.reset(),
                Step::Saved { seq } => copy.saved = Some((seq, stepped.when)),
                Step::Delivered(delivery) => {
                    given += 1;
                    let repeats = copy.again;
                    let wrong = copy.delivered(stepped.when, &delivery);
                    again += (copy.again - repeats) as u64;
                    if let Some((before, what)) = wrong {
                        let payload = facts.names.text(delivery.payload);
                        findings.add(&[before, stepped.when], || {
                            format!("duplicate: {name}: {what} ({payload})")
                        });
                        continue;
                    }
                    // What was for another terminal is a phantom here.
                    let own = |push: &u32| facts.pushes[*push as usize].terminal == at as u32;
                    let Some(push) = delivery.push.filter(own) else { continue };
                    let here = (stepped.copy, copy.stream, delivery.seq, stepped.when);
                    if let Some(before) = places[push as usize].replace(here)
                        && before.0 == here.0
                        && (before.1, before.2) != (here.1, here.2)
                        // In a new stream everything that waited is numbered anew, and marked.
                        && (before.1 == here.1 || !delivery.maybe_seen)
                    {
                        findings.add(&[before.3, stepped.when], || {
                            let payload = facts.payload(push);
                            format!(
                                "duplicate: {name} was given {payload} as seq {} and as seq {}",
                                before.2, here.2
                            )
                        });
                    }
                }
                _ => {}
            }
        }
    }
    if given == 0 {
        return Outcome::unknown("no application was given anything");
    }
    findings.outcome(facts, format!("{given} given, {again} of them again after a restart, as is allowed"))
}
