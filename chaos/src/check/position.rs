//! C5, one seq for each push and one place in the log for each seq.

use std::collections::HashMap;

use super::Checker;
use super::outcome::{Findings, Outcome};
use crate::facts::{Answer, Facts, Moment, Name, Step};

pub(super) const CHECKER: Checker = Checker {
    id: "C5",
    name: "position",
    definition: "a push has one name and one seq, for its publisher and its terminal, and no other push has them; seqs \
                 follow the order in which publishers were answered, and that of the log entries where these are known",
    safety: true,
    check,
};

/// A push that was acknowledged.
#[derive(Clone, Copy)]
struct Stored {
    push: u32,
    terminal: u32,
    asked: Moment,
    when: Moment,
    message: Name,
    seq: u64,
    position: Option<(u64, u64)>,
}

/// The stream that a push's name says it is of, which is what stands before its seq; and that seq.
fn stream(name: &str) -> (&str, Option<u64>) {
    let parts = name.rsplit_once('-').and_then(|(stream, seq)| Some((stream, seq.parse().ok()?)));
    parts.map_or(("", None), |(stream, seq)| (stream, Some(seq)))
}

fn check(facts: &Facts) -> Outcome {
    let all: Vec<Stored> = (0u32..)
        .zip(&facts.pushes)
        .filter_map(|(number, push)| match push.answer {
            Answer::Stored { when, message, seq, position } => Some(Stored {
                push: number,
                terminal: push.terminal,
                asked: push.asked,
                when,
                message,
                seq,
                position,
            }),
            _ => None,
        })
        .collect();
    if all.is_empty() {
        return Outcome::unknown("nothing was acknowledged");
    }
    let mut findings = Findings::default();
    names(facts, &mut findings, &all);
    let mut streams: HashMap<(u32, &str), Vec<Stored>> = HashMap::new();
    let mut first: HashMap<u32, &str> = HashMap::new();
    for stored in &all {
        let (stream, _) = stream(facts.names.text(stored.message));
        first.entry(stored.terminal).or_insert(stream);
        streams.entry((stored.terminal, stream)).or_default().push(*stored);
    }
    let mut streams: Vec<_> = streams.into_iter().collect();
    streams.sort_unstable_by_key(|(key, _)| *key);
    for ((terminal, stream), mut stored) in streams {
        in_real_time(facts, &mut findings, &mut stored);
        by_seq(facts, &mut findings, &mut stored);
        // What is given after a reset counts in another stream, and deliveries do not name theirs.
        if first.get(&terminal) == Some(&stream) {
            given(facts, &mut findings, terminal, &stored);
        }
    }
    let log = match all.iter().filter(|stored| stored.position.is_some()).count() {
        0 => "log positions are not in this history".to_owned(),
        some => format!("{some} with their log position"),
    };
    findings.outcome(facts, format!("{} acknowledged, {log}", all.len()))
}

/// One name, one push; and the seq in the name is the seq.
fn names(facts: &Facts, findings: &mut Findings, all: &[Stored]) {
    let mut messages: HashMap<Name, &Stored> = HashMap::with_capacity(all.len());
    for stored in all {
        let name = facts.names.text(stored.message);
        if stream(name).1.is_some_and(|seq| seq != stored.seq) {
            findings.add(&[stored.when], || format!("{name} was acknowledged as seq {}", stored.seq));
        }
        if let Some(other) = messages.insert(stored.message, stored) {
            findings.add(&[other.when, stored.when], || {
                let (one, two) = (facts.payload(other.push), facts.payload(stored.push));
                format!("{one} and {two} were both acknowledged as {name}")
            });
        }
    }
}

/// What was acknowledged before another was asked for has the lower seq.
fn in_real_time(facts: &Facts, findings: &mut Findings, stored: &mut [Stored]) {
    let mut answered: Vec<Stored> = stored.to_vec();
    answered.sort_unstable_by_key(|stored| stored.when);
    stored.sort_unstable_by_key(|stored| stored.asked);
    let mut before = answered.iter().peekable();
    let mut highest: Option<&Stored> = None;
    for later in stored.iter() {
        while let Some(earlier) = before.next_if(|earlier| earlier.when < later.asked) {
            highest = highest.filter(|highest| highest.seq > earlier.seq).or(Some(earlier));
        }
        if let Some(earlier) = highest.filter(|earlier| earlier.seq > later.seq) {
            findings.add(&[earlier.when, later.asked, later.when], || {
                format!(
                    "{} got seq {} although {} had been acknowledged as seq {} before it was asked for",
                    facts.payload(later.push),
                    later.seq,
                    facts.payload(earlier.push),
                    earlier.seq
                )
            });
        }
    }
}

/// One seq, one push; and the log has them in the same order.
fn by_seq(facts: &Facts, findings: &mut Findings, stored: &mut [Stored]) {
    stored.sort_unstable_by_key(|stored| stored.seq);
    for pair in stored.windows(2) {
        let [one, two] = pair else { continue };
        let payloads = || (facts.payload(one.push), facts.payload(two.push));
        // Two pushes of one name were found by their name.
        if one.seq == two.seq && one.message != two.message {
            findings.add(&[one.when, two.when], || {
                format!("{} and {} were both acknowledged as seq {}", payloads().0, payloads().1, one.seq)
            });
        }
        // One entry may hold several pushes, so the same index is no fault.
        if let (Some(first), Some(second)) = (one.position, two.position)
            && (first.0 != second.0 || first.1 > second.1)
        {
            findings.add(&[one.when, two.when], || {
                format!(
                    "seqs {} and {} of {} are log entries {} and {} of groups {} and {}",
                    one.seq,
                    two.seq,
                    facts.terminal(one.terminal),
                    first.1,
                    second.1,
                    first.0,
                    second.0
                )
            });
        }
    }
}

/// The terminal's seq of a push is the publisher's; of one whose publisher heard nothing it is nobody else's.
fn given(facts: &Facts, findings: &mut Findings, terminal: u32, stored: &[Stored]) {
    let mut of_seq: HashMap<u64, (u32, Moment)> =
        stored.iter().map(|stored| (stored.seq, (stored.push, stored.when))).collect();
    let mut reset: Vec<u64> = Vec::new();
    for stepped in &facts.terminals[terminal as usize].steps {
        match stepped.step {
            Step::Reset { .. } => reset.push(stepped.copy),
            Step::Delivered(delivery) if !reset.contains(&stepped.copy) => {
                let Some(push) = delivery.push else { continue };
                let seq = delivery.seq;
                if facts.pushes[push as usize].terminal != terminal {
                    continue;
                }
                if let Answer::Stored { when, seq: told, .. } = facts.pushes[push as usize].answer
                    && told != seq
                {
                    findings.add(&[when, stepped.when], || {
                        let payload = facts.payload(push);
                        format!("{payload} was acknowledged as seq {told} and given as seq {seq}")
                    });
                    continue;
                }
                let (other, when) = *of_seq.entry(seq).or_insert((push, stepped.when));
                if other != push {
                    findings.add(&[when, stepped.when], || {
                        let (one, two) = (facts.payload(other), facts.payload(push));
                        format!("seq {seq} of {} is {one}, and was given as {two}", facts.terminal(terminal))
                    });
                }
            }
            _ => {}
        }
    }
}
