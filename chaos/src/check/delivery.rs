//! Delivery: what was acknowledged to a publisher reaches its terminal's application once, in order (checkers C1 to C4
//! of the suite: no acknowledged loss, no phantom, duplicates only where they are allowed, order without gaps).
//!
//! Allowed twice: a push that the application had been given and had not confirmed when its process ended; and then it
//! must be marked.

use std::collections::{BTreeMap, BTreeSet};

use super::Verdict;
use crate::history::{Event, What};

/// What is known of one terminal while its history is read.
#[derive(Default)]
struct Terminal {
    /// Highest seq given in the present run of its process.
    given: u64,
    /// Highest seq confirmed in any run.
    confirmed: u64,
    /// Seqs that earlier runs were given.
    seen: BTreeSet<u64>,
    /// Payloads that it was given at all.
    payloads: BTreeSet<String>,
}

/// Checks a history whose faults have ended and whose terminals have had time to take what waits.
pub fn delivery(events: &[Event]) -> Verdict {
    let mut terminals: BTreeMap<&str, Terminal> = BTreeMap::new();
    let mut sent: BTreeMap<&str, &str> = BTreeMap::new();
    let mut stored: BTreeMap<&str, u64> = BTreeMap::new();
    let mut found = Vec::new();
    for Event { at, what } in events {
        match what {
            What::Publish { terminal, payload, .. } => {
                if sent.insert(payload, terminal).is_some() {
                    return Verdict::Unknown(format!("payload {payload} was published twice by the harness"));
                }
            }
            What::Published { payload, seq, .. } => {
                stored.insert(payload, *seq);
            }
            What::TerminalStarted { terminal } => {
                let known = terminals.entry(terminal).or_default();
                known.seen.extend(known.confirmed + 1..=known.given);
                known.given = known.confirmed;
            }
            What::Delivered { terminal, payload, seq, maybe_seen, .. } => {
                let known = terminals.entry(terminal).or_default();
                let mut complain = |what: String| found.push(format!("at {at} µs, {terminal}: {what}"));
                match sent.get(payload.as_str()) {
                    None => {
                        complain(format!("phantom: seq {seq} carries {payload:?}, which nobody published"))
                    }
                    Some(meant) if meant != terminal => complain(format!("seq {seq} was meant for {meant}")),
                    Some(_) => {}
                }
                if *seq <= known.confirmed {
                    complain(format!("duplicate: seq {seq} came after {} was confirmed", known.confirmed));
                } else if *seq <= known.given {
                    complain(format!("order or duplicate: seq {seq} came after seq {}", known.given));
                } else if known.seen.contains(seq) && !maybe_seen {
                    complain(format!("seq {seq} came to a second run of the terminal without its mark"));
                }
                known.given = known.given.max(*seq);
                known.payloads.insert(payload.clone());
            }
            What::Confirmed { terminal, seq } => {
                let known = terminals.entry(terminal).or_default();
                known.confirmed = known.confirmed.max(*seq);
            }
            What::Begin { .. } | What::Failed { .. } | What::Unknown { .. } | What::Fault { .. } => {}
        }
    }
    for (payload, seq) in &stored {
        let Some(terminal) = sent.get(payload) else {
            return Verdict::Unknown(format!("{payload} was acknowledged but never sent, by this history"));
        };
        if !terminals.get(terminal).is_some_and(|known| known.payloads.contains(*payload)) {
            found.push(format!(
                "lost: {payload:?} was acknowledged as seq {seq} and never came to {terminal}"
            ));
        }
    }
    if stored.is_empty() {
        return Verdict::Unknown("nothing was acknowledged, so nothing could be lost".to_owned());
    }
    if found.is_empty() { Verdict::Pass } else { Verdict::Fail(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(payload: &str, seq: u64) -> Vec<What> {
        vec![
            What::Publish { terminal: "t".to_owned(), payload: payload.to_owned(), node: 1 },
            What::Published { payload: payload.to_owned(), message: format!("m{seq}"), seq },
        ]
    }

    fn delivered(payload: &str, seq: u64, maybe_seen: bool) -> What {
        What::Delivered { terminal: "t".to_owned(), payload: payload.to_owned(), seq, maybe_seen, node: 1 }
    }

    fn started() -> What {
        What::TerminalStarted { terminal: "t".to_owned() }
    }

    fn confirmed(seq: u64) -> What {
        What::Confirmed { terminal: "t".to_owned(), seq }
    }

    fn verdict(what: Vec<What>) -> Verdict {
        let events: Vec<_> =
            what.into_iter().enumerate().map(|(at, what)| Event { at: at as u64, what }).collect();
        delivery(&events)
    }

    fn fails_with(what: Vec<What>, words: &str) {
        match verdict(what) {
            Verdict::Fail(found) => assert!(found.iter().any(|line| line.contains(words)), "{found:?}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_good_history_passes() {
        let mut what = [publish("a", 1), publish("b", 2)].concat();
        what.extend([started(), delivered("a", 1, false), confirmed(1), delivered("b", 2, false)]);
        // Killed before it confirmed b: it comes again, marked.
        what.extend([started(), delivered("b", 2, true), confirmed(2)]);
        assert_eq!(verdict(what), Verdict::Pass);
    }

    #[test]
    fn each_kind_of_fault_is_found() {
        let two = || [publish("a", 1), publish("b", 2), vec![started()]].concat();
        let with = |more: &[What]| [two(), more.to_vec()].concat();
        fails_with(with(&[delivered("a", 1, false)]), "lost");
        fails_with(with(&[delivered("x", 1, false)]), "phantom");
        fails_with(with(&[delivered("b", 2, false), delivered("a", 1, false)]), "order");
        fails_with(with(&[delivered("a", 1, false), delivered("a", 1, false)]), "order or duplicate");
        fails_with(with(&[delivered("a", 1, false), confirmed(1), delivered("a", 1, true)]), "duplicate");
        fails_with(
            with(&[delivered("a", 1, false), started(), delivered("a", 1, false)]),
            "without its mark",
        );
        assert!(matches!(verdict(vec![started()]), Verdict::Unknown(_)), "an empty run proves nothing");
    }
}
