//! The lives of some pushes: asked for, acknowledged, the terminal woken and connected, given, confirmed. Pure.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::facts::{Answer, Facts, Moment, Step, Stepped};

/// A push's life.
#[derive(Debug, Serialize)]
pub(super) struct Life {
    payload: String,
    terminal: String,
    seq: Option<u64>,
    asked: u64,
    /// From the asking until it was given; of one that never was, until the end.
    took: u64,
    given: bool,
    /// A finding names one of its lines.
    named: bool,
    steps: Vec<Happened>,
}

/// A step of it.
#[derive(Debug, Serialize)]
struct Happened {
    at: u64,
    line: u32,
    what: String,
}

/// Steps of one life that are told; a push that is given a thousand times is understood before.
const STEPS: usize = 60;

/// Pushes with one of these lines, then the slowest, at most so many.
pub(super) fn of(facts: &Facts, lines: &BTreeSet<u32>, most: usize) -> Vec<Life> {
    let mut given: BTreeMap<u32, Vec<Moment>> = BTreeMap::new();
    for stepped in facts.terminals.iter().flat_map(|terminal| &terminal.steps) {
        if let Step::Delivered(delivery) = stepped.step
            && let Some(push) = delivery.push
        {
            given.entry(push).or_default().push(stepped.when);
        }
    }
    let named = |when: &Moment| lines.contains(&when.line());
    let mut chosen: Vec<(bool, u64, u32)> = (0u32..)
        .zip(&facts.pushes)
        .map(|(number, push)| {
            let given = given.get(&number).map_or(&[][..], Vec::as_slice);
            let answered = match push.answer {
                Answer::Stored { when, .. } | Answer::Failed(when) | Answer::Unknown(when) => Some(when),
                Answer::Open => None,
            };
            let until = given.first().copied().unwrap_or(match push.answer {
                Answer::Failed(when) => when,
                _ => facts.last,
            });
            let named = named(&push.asked) || answered.as_ref().is_some_and(named) || given.iter().any(named);
            (named, until.at.saturating_sub(push.asked.at), number)
        })
        .collect();
    chosen.sort_by_key(|(named, took, number)| (Reverse(*named), Reverse(*took), *number));
    chosen.truncate(most);
    chosen.sort_by_key(|(_, _, number)| *number);
    let life = |(named, took, number): (bool, u64, u32)| Life {
        payload: facts.payload(number).to_owned(),
        terminal: facts.terminal(facts.pushes[number as usize].terminal).to_owned(),
        seq: match facts.pushes[number as usize].answer {
            Answer::Stored { seq, .. } => Some(seq),
            _ => None,
        },
        asked: facts.pushes[number as usize].asked.at,
        took,
        given: given.contains_key(&number),
        named,
        steps: steps(facts, number),
    };
    chosen.into_iter().map(life).collect()
}

fn steps(facts: &Facts, number: u32) -> Vec<Happened> {
    let push = &facts.pushes[number as usize];
    let happened = |when: Moment, what: String| Happened { at: when.at, line: when.line(), what };
    let mut steps = vec![happened(push.asked, "asked for".to_owned())];
    let mut seq = None;
    match push.answer {
        Answer::Stored { when, seq: place, position, message } => {
            seq = Some(place);
            let at =
                position.map_or(String::new(), |(group, index)| format!(", entry {index} of group {group}"));
            let name = facts.names.text(message);
            steps.push(happened(when, format!("acknowledged: {name}, seq {place}{at}")));
        }
        Answer::Failed(when) => steps.push(happened(when, "refused".to_owned())),
        Answer::Unknown(when) => steps.push(happened(when, "no answer: unknown".to_owned())),
        Answer::Open => {}
    }
    let Some(terminal) = facts.terminals.get(push.terminal as usize) else { return steps };
    let after = |stepped: &&Stepped| stepped.when >= push.asked;
    let mut given = false;
    for stepped in terminal.steps.iter().filter(after) {
        let what = match stepped.step {
            Step::Delivered(delivery) if delivery.push == Some(number) => {
                given = true;
                seq = seq.or(Some(delivery.seq));
                let epoch = delivery.epoch.map_or(String::new(), |epoch| format!(", epoch {epoch}"));
                let again = if delivery.maybe_seen { ", perhaps seen before" } else { "" };
                Some(format!("given by node {}, seq {}{epoch}{again}", delivery.node, delivery.seq))
            }
            Step::Confirmed { seq: upto } if given && seq.is_some_and(|seq| upto >= seq) => {
                steps.push(happened(stepped.when, format!("confirmed (up to {upto})")));
                break;
            }
            // What the terminal did while it waited.
            Step::Notified if !given => Some("the terminal is notified".to_owned()),
            Step::Connected { node, epoch } => {
                Some(format!("the terminal connects to node {node}, epoch {epoch}"))
            }
            Step::Disconnected => Some("its session is closed".to_owned()),
            Step::Started => Some("the terminal starts".to_owned()),
            Step::Stopped => Some("the terminal ends".to_owned()),
            Step::Reset { next } => Some(format!("its stream begins anew at {next}")),
            _ => None,
        };
        let copy = if stepped.copy > 0 { format!(" (process {})", stepped.copy) } else { String::new() };
        steps.extend(what.map(|what| happened(stepped.when, what + &copy)));
        if steps.len() >= STEPS {
            break;
        }
    }
    steps.sort_by_key(|step| step.line);
    steps
}
