//! C8, a confirmation that the cluster knows stays known.

use super::Checker;
use super::outcome::{Findings, Outcome};
use crate::facts::{Facts, Moment, Status, Step, Terminal};

pub(super) const CHECKER: Checker = Checker {
    id: "C8",
    name: "ack-durable",
    definition: "what the cluster once said is confirmed it never takes back, nor delivers in a session that opens \
                 later, nor says of what no application has confirmed",
    safety: true,
    check,
};

fn check(facts: &Facts) -> Outcome {
    let mut findings = Findings::default();
    let mut said = 0usize;
    let confirms = |terminal: &Terminal| {
        terminal.steps.iter().any(|stepped| matches!(stepped.step, Step::Confirmed { .. }))
    };
    let recorded = facts.terminals.iter().any(confirms);
    for terminal in &facts.terminals {
        let reset = terminal.steps.iter().find(|stepped| matches!(stepped.step, Step::Reset { .. }));
        let end = reset.map_or(u32::MAX, |stepped| stepped.when.n);
        let reads: Vec<&Status> = terminal.reads.iter().filter(|read| read.when.n < end).collect();
        said += reads.len();
        taken_back(facts, terminal, &reads, &mut findings);
        delivered_again(facts, terminal, &reads, end, &mut findings);
        if recorded {
            unconfirmed(facts, terminal, &reads, &mut findings);
        }
    }
    said += looks(facts, &mut findings);
    if said == 0 {
        return Outcome::unknown("the cluster was never asked what is confirmed");
    }
    findings.outcome(facts, format!("{said} answers of the cluster"))
}

/// An answer says less than one that was complete before its question.
fn taken_back(facts: &Facts, terminal: &Terminal, reads: &[&Status], findings: &mut Findings) {
    let mut later: Vec<&Status> = reads.to_vec();
    later.sort_unstable_by_key(|read| read.asked);
    let mut earlier = reads.iter().peekable();
    let mut most: Option<&Status> = None;
    for read in later {
        while let Some(before) = earlier.next_if(|before| before.when < read.asked) {
            most = most.filter(|most| most.acked >= before.acked).or(Some(before));
        }
        if let Some(before) = most.filter(|before| before.acked > read.acked) {
            findings.add(&[before.when, read.asked, read.when], || {
                format!(
                    "{}: confirmed up to {} according to the cluster, and later only up to {}",
                    facts.names.text(terminal.name),
                    before.acked,
                    read.acked
                )
            });
        }
    }
}

/// A session that opened after the cluster knew brings what it knew.
fn delivered_again(facts: &Facts, terminal: &Terminal, reads: &[&Status], end: u32, findings: &mut Findings) {
    let mut reads = reads.iter().peekable();
    let mut known: Option<(u64, Moment)> = None;
    // What was known when each process's session opened.
    let mut at_opening: std::collections::BTreeMap<u64, Option<(u64, Moment)>> = Default::default();
    let mut free: std::collections::BTreeMap<u64, Option<(u64, Moment)>> = Default::default();
    for stepped in terminal.steps.iter().take_while(|stepped| stepped.when.n < end) {
        while let Some(read) = reads.next_if(|read| read.when < stepped.when) {
            known = known.filter(|(acked, _)| *acked >= read.acked).or(Some((read.acked, read.when)));
        }
        match stepped.step {
            // From here on a session may be opening.
            Step::Started | Step::Disconnected => {
                free.insert(stepped.copy, known);
            }
            Step::Connected { .. } => {
                let at = free.get(&stepped.copy).copied().unwrap_or_default();
                at_opening.insert(stepped.copy, at);
                free.insert(stepped.copy, known);
            }
            Step::Delivered(delivery) => {
                let known = at_opening.get(&stepped.copy).copied().flatten();
                if let Some((acked, when)) = known.filter(|(acked, _)| delivery.seq <= *acked) {
                    findings.add(&[when, stepped.when], || {
                        format!(
                            "{}: seq {} came again in a session that opened after the cluster knew {acked} as confirmed",
                            facts.names.text(terminal.name),
                            delivery.seq
                        )
                    });
                }
            }
            _ => {}
        }
    }
}

/// The cluster says more than any application has confirmed by then. Of a history that has no confirmations at all, nothing can
/// be said.
fn unconfirmed(facts: &Facts, terminal: &Terminal, reads: &[&Status], findings: &mut Findings) {
    let confirmed = terminal.steps.iter().filter_map(|stepped| match stepped.step {
        Step::Confirmed { seq } => Some((stepped.when, seq)),
        _ => None,
    });
    let mut confirmed = confirmed.peekable();
    let mut most = 0;
    for read in reads {
        while let Some((_, seq)) = confirmed.next_if(|(when, _)| *when < read.when) {
            most = most.max(seq);
        }
        if read.acked > most {
            findings.add(&[read.asked, read.when], || {
                format!(
                    "{}: confirmed up to {} according to the cluster, and its application had confirmed {most}",
                    facts.names.text(terminal.name),
                    read.acked
                )
            });
        }
    }
}

/// Of single pushes: once acked, it is not pending any more, nor ended otherwise. How many answers there were.
fn looks(facts: &Facts, findings: &mut Findings) -> usize {
    let mut acked: std::collections::HashMap<u32, Moment> = Default::default();
    let mut count = 0;
    for look in &facts.looks {
        let (Some(push), state) = (look.push, facts.names.text(look.state)) else { continue };
        if state == "unknown" {
            continue;
        }
        count += 1;
        match acked.get(&push) {
            None if state == "acked" => {
                acked.insert(push, look.when);
            }
            Some(before) if state != "acked" && *before < look.asked => {
                findings.add(&[*before, look.when], || {
                    format!("{} was acked, and later {state}", facts.payload(push))
                });
            }
            _ => {}
        }
    }
    count
}
