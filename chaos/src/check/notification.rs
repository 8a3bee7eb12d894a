//! C11, notifications are sent only if due, and in time.

use super::Checker;
use super::outcome::{Findings, Outcome};
use crate::facts::{Answer, Facts, Moment, Step};
use crate::history::Phase;

pub(super) const CHECKER: Checker = Checker {
    id: "C11",
    name: "notification",
    definition: "a node notifies only a terminal that is offline and has something pending, at an address that was \
                 proven; and with no fault about, an offline terminal that runs is notified, or connected, within the \
                 budget after a push was acknowledged",
    safety: false,
    check,
};

/// After a fault, for so long nothing is said about promptness: silent nodes are noticed after 3 s, and notifications are
/// tried again after up to 5 s.
const AFTER_FAULT_US: u64 = 10_000_000;

fn check(facts: &Facts) -> Outcome {
    let mut findings = Findings::default();
    for sent in &facts.notifying {
        let mut wrong = |what: &str| {
            findings.add(&[sent.when], || {
                let terminal = facts.terminal(sent.terminal);
                format!("{terminal}: node {} sent a notification {what}", sent.node)
            });
        };
        if sent.online {
            wrong("although it is online");
        } else if sent.pending == 0 {
            wrong("with nothing pending");
        } else if !sent.proven {
            wrong("to an address that was not proven");
        }
    }
    let judged = match facts.begin.expect.notify_ms {
        Some(budget) => in_time(facts, budget, &mut findings),
        None => 0,
    };
    let sent = facts.notifying.len();
    let summary = format!("{sent} notifications sent, {judged} pushes to offline terminals judged for time");
    if sent == 0 && judged == 0 {
        return Outcome::unknown(match facts.begin.expect.notify_ms {
            None => "no notification was seen being sent, and no budget of time was set",
            Some(_) => {
                "no notification was seen being sent, and no push came to an offline terminal in quiet times"
            }
        });
    }
    findings.outcome(facts, summary)
}

/// Whether a fault is about at this time, or was shortly before, or the run is past its load.
fn disturbed(facts: &Facts, quiet: &[(u64, u64)], at: u64, until: u64) -> bool {
    let over = facts.phases.iter().rev().find(|(when, _)| when.at <= at);
    let draining = over.is_some_and(|(_, phase)| *phase == Phase::Drain);
    draining || quiet.iter().any(|(from, to)| *from <= until && at <= *to)
}

/// How many pushes were judged.
fn in_time(facts: &Facts, budget: u64, findings: &mut Findings) -> usize {
    let faulty: Vec<(u64, u64)> = facts
        .faults
        .iter()
        .map(|fault| (fault.first().at, fault.ended.map_or(u64::MAX, |ended| ended.at + AFTER_FAULT_US)))
        .collect();
    let mut judged = 0;
    for terminal in &facts.terminals {
        let mut stored: Vec<(Moment, u32)> = terminal
            .pushes
            .iter()
            .filter_map(|push| match facts.pushes[*push as usize].answer {
                Answer::Stored { when, .. } => Some((when, *push)),
                _ => None,
            })
            .collect();
        stored.sort_unstable();
        let mut steps = terminal.steps.iter().peekable();
        let (mut offline, mut runs) = (true, false);
        for (when, push) in stored {
            while let Some(stepped) = steps.next_if(|stepped| stepped.when < when) {
                match stepped.step {
                    Step::Started => (offline, runs) = (true, true),
                    Step::Stopped => (offline, runs) = (true, false),
                    // From a notification on it is on its way, or about to be.
                    Step::Connected { .. } | Step::Notified => offline = false,
                    Step::Disconnected => offline = true,
                    _ => {}
                }
            }
            let until = when.at + budget * 1000;
            if !offline || !runs || until > facts.last.at || disturbed(facts, &faulty, when.at, until) {
                continue;
            }
            // What had come before its acknowledgement needs nothing more; nor does it matter which of these comes.
            let given = |step: &Step| matches!(step, Step::Delivered(given) if given.push == Some(push));
            let before = terminal.steps.partition_point(|stepped| stepped.when < when);
            if terminal.steps[..before].iter().rev().take(256).any(|stepped| given(&stepped.step)) {
                continue;
            }
            judged += 1;
            let next = terminal.steps[before..].iter().find(|stepped| {
                matches!(stepped.step, Step::Notified | Step::Connected { .. } | Step::Delivered(_))
            });
            if next.is_none_or(|next| next.when.at > until) {
                let mut evidence = vec![when];
                evidence.extend(next.map(|next| next.when));
                findings.add(&evidence, || {
                    let then = next.map_or("nothing came at all".to_owned(), |next| {
                        format!("the first sign came after {} ms", (next.when.at - when.at) / 1000)
                    });
                    format!(
                        "{} was offline when {} was acknowledged at {:.3} s, with no fault about: {then}, of {budget} ms \
                         allowed",
                        facts.names.text(terminal.name),
                        facts.payload(push),
                        when.at as f64 / 1e6
                    )
                });
            }
        }
    }
    judged
}
