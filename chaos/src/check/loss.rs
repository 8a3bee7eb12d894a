//! C1, no acknowledged loss.

use super::Checker;
use super::outcome::{Findings, Outcome};
use crate::facts::{Answer, Facts, Look, Moment, Name, Push, Step};
use crate::history::Phase;

pub(super) const CHECKER: Checker = Checker {
    id: "C1",
    name: "no-acked-loss",
    definition: "a push that was acknowledged to its publisher is given to its terminal's application by the end of the \
                 run, or it expired after its time, or somebody took it back",
    safety: true,
    check,
};

/// Where the loss lies among what the terminal was given. Each points somewhere else: to a start that began too late, to
/// a hole, to an end that was cut off.
fn place(seq: u64, given: Option<(u64, u64)>) -> &'static str {
    match given {
        None => "nothing at all came to this terminal",
        Some((first, _)) if seq < first => "lost prefix: everything that came is later",
        Some((_, last)) if seq > last => "lost postfix: everything that came is earlier",
        Some(_) => "lost middle: earlier and later ones came",
    }
}

/// What came to its terminal under the seq of a lost push since that was asked for: when, and which.
fn instead(facts: &Facts, push: &Push, seq: u64) -> Option<(Moment, Name)> {
    facts.terminals[push.terminal as usize].steps.iter().find_map(|stepped| match stepped.step {
        Step::Delivered(delivery) if delivery.seq == seq && stepped.when > push.asked => {
            Some((stepped.when, delivery.payload))
        }
        _ => None,
    })
}

/// Groups stamp by the median of their nodes' clocks; a push may be seen to expire earlier than its publisher's clock says
/// by as much as those differ.
const CLOCK_MS: u64 = 2000;

/// Whether a push may have ended without being given to anyone.
fn may_be_over(facts: &Facts, push: &Push, looks: &[&Look]) -> bool {
    let is_old =
        |until: Moment| push.ttl_ms.is_some_and(|ttl| (until.at - push.asked.at) / 1000 + CLOCK_MS >= ttl);
    let state = |look: &Look| facts.names.text(look.state);
    let too_early = looks.iter().any(|look| state(look) == "expired" && !is_old(look.when));
    let taken_back = looks.iter().any(|look| look.cancel && matches!(state(look), "unknown" | "cancelled"));
    !too_early && (taken_back || is_old(facts.last))
}

fn check(facts: &Facts) -> Outcome {
    let mut came = vec![false; facts.pushes.len()];
    let mut given: Vec<Option<(u64, u64)>> = vec![None; facts.terminals.len()];
    for (at, terminal) in facts.terminals.iter().enumerate() {
        for stepped in &terminal.steps {
            let Step::Delivered(delivery) = stepped.step else { continue };
            let (first, last) = given[at].unwrap_or((delivery.seq, delivery.seq));
            given[at] = Some((first.min(delivery.seq), last.max(delivery.seq)));
            if let Some(push) =
                delivery.push.filter(|push| facts.pushes[*push as usize].terminal == at as u32)
            {
                came[push as usize] = true;
            }
        }
    }
    let mut looks: std::collections::HashMap<u32, Vec<&Look>> = std::collections::HashMap::new();
    for look in &facts.looks {
        if let Some(push) = look.push {
            looks.entry(push).or_default().push(look);
        }
    }
    let (mut stored, mut delivered, mut over) = (0u64, 0u64, 0u64);
    let mut findings = Findings::default();
    for (number, push) in facts.pushes.iter().enumerate() {
        let Answer::Stored { when, seq, .. } = push.answer else { continue };
        stored += 1;
        let looks = looks.get(&(number as u32)).map_or(&[][..], Vec::as_slice);
        if came[number] {
            delivered += 1;
        } else if may_be_over(facts, push, looks) {
            over += 1;
        } else {
            let said = looks.last().map(|look| look.when);
            let other = findings.has_room().then(|| instead(facts, push, seq)).flatten();
            let mut evidence = vec![push.asked, when];
            evidence.extend(said);
            evidence.extend(other.map(|(when, _)| when));
            findings.add(&evidence, || {
                let said = looks.last().map_or(String::new(), |look| {
                    format!(", and the cluster says that it is {}", facts.names.text(look.state))
                });
                let other = other.map_or(String::new(), |(when, payload)| {
                    let (payload, at) = (facts.names.text(payload), when.at as f64 / 1e6);
                    format!("; under its seq came {payload} instead, at {at:.3} s")
                });
                format!(
                    "lost: {} was acknowledged at {:.3} s as seq {seq} and never came to {}{said}; {}{other}",
                    facts.names.text(push.payload),
                    when.at as f64 / 1e6,
                    facts.terminal(push.terminal),
                    place(seq, given[push.terminal as usize]),
                )
            });
        }
    }
    let summary = format!("{stored} acknowledged, {delivered} given, {over} expired or taken back");
    if stored == 0 {
        return Outcome::unknown("nothing was acknowledged, so nothing could be lost");
    }
    if let Some(why) = &facts.cut {
        return Outcome::unknown(format!(
            "{summary}; what is missing may be in what is missing of the history: {why}"
        ));
    }
    if !facts.phases.is_empty() && facts.phases.last().is_none_or(|(_, phase)| *phase != Phase::Drain) {
        return Outcome::unknown(format!(
            "{summary}; the run did not come to its drain, in which the rest arrives"
        ));
    }
    findings.outcome(facts, summary)
}
