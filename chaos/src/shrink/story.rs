//! A failed run in a few lines of plain words: what was done when, what was seen, which checker says what, and how to see
//! it again. Pure.

use std::collections::BTreeMap;

use crate::check::{Checker, Judgement, Verdict};
use crate::facts::{Facts, Faulted};
use crate::history::{Call, Event, Observation, Result as Got, What};
use crate::scenario::{Kind, Scenario};

/// The most lines of a story.
pub const LINES: usize = 15;
/// Of them, what happened: faults and evidence.
const HAPPENED: usize = 8;
/// Of them, evidence.
const EVIDENCE: usize = 5;
/// The longest line that is quoted, in characters: names may be hostile.
const QUOTED: usize = 400;
/// Of a terminal's name.
const NAME: usize = 8;

/// What there is to tell.
#[derive(Debug)]
pub struct Told<'a> {
    /// The scenario that ran.
    pub scenario: &'a Scenario,
    /// The history, sorted.
    pub facts: &'a Facts,
    /// How it was judged.
    pub judgement: &'a Judgement,
    /// Who fails.
    pub checker: &'a Checker,
    /// Lines of the history that the first finding names, by number from 1.
    pub evidence: &'a BTreeMap<u32, Event>,
    /// The command that does it again.
    pub again: &'a str,
}

/// The story, [`LINES`] lines at most.
pub fn story(told: &Told<'_>) -> Vec<String> {
    let Told { scenario, facts, judgement, checker, .. } = told;
    let (begin, workload) = (&facts.begin, &scenario.workload);
    let mut lines = vec![
        format!(
            "{} {} fails: {}, seed {}, backend {}{}",
            checker.id,
            checker.name,
            scenario.name,
            begin.seed,
            begin.backend,
            if begin.planted.is_empty() {
                String::new()
            } else {
                format!(", planted: {}", quoted(&begin.planted))
            },
        ),
        format!(
            "{}, {}, {}; {}, {} in all",
            count(scenario.cluster.nodes, "node"),
            count(scenario.cluster.shards, "shard group"),
            count(workload.terminals, "terminal"),
            count(workload.publishers, "publisher"),
            match workload.rate {
                1 => "1 push a second".to_owned(),
                rate => format!("{rate} pushes a second"),
            },
        ),
    ];
    lines.extend(happened(told));
    lines.push(format!("{} holds the cluster to: {}", checker.id, checker.definition));
    let outcome = judgement.judged.iter().find(|judged| judged.checker.id == checker.id);
    if let Some(outcome) = outcome.map(|judged| &judged.outcome)
        && let Some(first) = outcome.findings.first()
    {
        let numbers: Vec<String> = first.lines.iter().map(u32::to_string).collect();
        lines.push(format!("It says: {}", quoted(&first.what)));
        let more = match outcome.findings.len() + outcome.more {
            1 => String::new(),
            all => format!("; {} more like it", all - 1),
        };
        let line = if numbers.len() == 1 { "line" } else { "lines" };
        lines.push(format!("Evidence: {line} {} of the history{more}", numbers.join(", ")));
    }
    let others: Vec<String> = judgement
        .judged
        .iter()
        .filter(|judged| judged.outcome.verdict == Verdict::Fail && judged.checker.id != checker.id)
        .map(|judged| format!("{} {}", judged.checker.id, judged.checker.name))
        .collect();
    if !others.is_empty() {
        lines.push(format!("In this run also fail: {}", others.join(", ")));
    }
    lines.push(format!("Again: {}", told.again));
    lines
}

fn count(number: u64, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// No line breaks of others, and not without end.
fn quoted(text: &str) -> String {
    text.chars().take(QUOTED).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Faults and evidence in the order of their times. Of more faults than there is room for, those nearest to the evidence.
fn happened(told: &Told<'_>) -> Vec<String> {
    let facts = told.facts;
    let mut seen: Vec<(u64, String)> = Vec::new();
    // Faults are told of anyway.
    let is_fault = |event: &&Event| matches!(event.what, What::Fault(_));
    for event in told.evidence.values().filter(|event| !is_fault(event)).take(EVIDENCE) {
        seen.push((event.at, words(&event.what, told.evidence)));
    }
    let far = |fault: &&Faulted| {
        let at = fault.first().at;
        seen.iter().map(|(seen, _)| seen.abs_diff(at)).min()
    };
    let mut faults: Vec<&Faulted> = facts.faults.iter().collect();
    faults.sort_by_key(far);
    let left_out = faults.split_off(faults.len().min(HAPPENED - 1 - seen.len())).len();
    seen.extend(faults.iter().map(|fault| (fault.first().at, struck(facts, fault))));
    seen.sort_by_key(|(at, _)| *at);
    let mut lines: Vec<String> =
        seen.iter().map(|(at, what)| format!("t={:<8.3} {}", *at as f64 / 1e6, quoted(what))).collect();
    if left_out > 0 {
        lines.push(format!("           and {}, further from it", count(left_out as u64, "fault")));
    }
    lines
}

fn struck(facts: &Facts, fault: &Faulted) -> String {
    let (kind, target) = (facts.names.text(fault.kind), facts.names.text(fault.target));
    let about = Kind::find(kind).map_or("", |kind| kind.info().about);
    // What comes after is about its end, which is said.
    let about = about.split(';').next().unwrap_or_default();
    let until = match (fault.began, fault.ended) {
        (Some(_), Some(ended)) => format!(", until t={:.3}", ended.at as f64 / 1e6),
        _ => String::new(),
    };
    format!("FAULT {kind}, {target}{until} ({about})")
}

/// A name that can be found again in the history, and read.
fn short(terminal: &str) -> String {
    match terminal.char_indices().nth(NAME) {
        Some((end, _)) if terminal.chars().count() > NAME + 4 => format!("{}…", &terminal[..end]),
        _ => terminal.to_owned(),
    }
}

/// An event in plain words.
fn words(what: &What, evidence: &BTreeMap<u32, Event>) -> String {
    let asked = |op: u64| {
        let invoked = evidence.values().find_map(|event| match &event.what {
            What::Invoke(invoke) if invoke.op == op => Some(&invoke.call),
            _ => None,
        });
        match invoked {
            Some(Call::Publish { payload, .. } | Call::Look { payload } | Call::Cancel { payload }) => {
                payload.clone()
            }
            _ => format!("what operation {op} asked for"),
        }
    };
    match what {
        What::Invoke(invoke) => {
            let node = invoke.node.map_or("the cluster".to_owned(), |node| format!("node {node}"));
            let call = match &invoke.call {
                Call::Publish { terminal, payload, .. } => {
                    format!("to store {payload} for terminal {}", short(terminal))
                }
                Call::Status { terminal } => format!("about terminal {}", short(terminal)),
                Call::Look { payload } => format!("what became of {payload}"),
                Call::Cancel { payload } => format!("to take {payload} back"),
                Call::GivenUp => "to end what was given up".to_owned(),
            };
            format!("{} asks {node} {call}", invoke.by)
        }
        What::Ok { op, got } => match got {
            Got::Published { seq, position, .. } => {
                let entry = position.map(|(group, index)| format!(", entry {index} of group {group}"));
                format!("{} is acknowledged as seq {seq}{}", asked(*op), entry.unwrap_or_default())
            }
            Got::Status { online, epoch, acked, .. } => {
                let is = if *online { "online" } else { "offline" };
                format!("the service list says: {is}, epoch {epoch}, confirmed up to {acked}")
            }
            // Its question is no evidence, and need not be among the lines.
            Got::Looked { state } => format!("asked what became of it, the cluster says: {state}"),
            Got::Cancelled { state } => format!("asked to take it back, the cluster says: {state}"),
        },
        What::Fail { op, why } => format!("{} is refused: {why}", asked(*op)),
        What::Unknown { op, why } => format!("{} gets no answer: {why}", asked(*op)),
        What::Observe(observation) => observed(observation),
        What::Fault(fault) => format!("{} of {}", fault.kind, fault.target),
        What::Begin(_) => "the run begins".to_owned(),
        What::End(_) => "the run ends".to_owned(),
    }
}

fn observed(seen: &Observation) -> String {
    use Observation::*;
    match seen {
        Started { terminal, .. } => format!("terminal {} starts", short(terminal)),
        Stopped { terminal, .. } => format!("terminal {} ends", short(terminal)),
        Connected { terminal, node, epoch, .. } => {
            format!("terminal {} has a session with node {node}, epoch {epoch}", short(terminal))
        }
        Disconnected { terminal, .. } => format!("the session of terminal {} is closed", short(terminal)),
        Delivered { terminal, payload, seq, node, epoch, .. } => {
            let epoch = epoch.map_or(String::new(), |epoch| format!(", epoch {epoch}"));
            format!("node {node} gives {payload} to terminal {}, seq {seq}{epoch}", short(terminal))
        }
        Confirmed { terminal, seq, .. } => {
            format!("the application of terminal {} confirms up to {seq}", short(terminal))
        }
        Saved { terminal, seq, .. } => format!("the disk of terminal {} has {seq}", short(terminal)),
        Notifying { terminal, node, online, pending, proven } => {
            let proven = if *proven { "proven" } else { "not proven" };
            let is = if *online { "online" } else { "offline" };
            format!(
                "node {node} notifies terminal {}: {is}, {pending} pending, its address {proven}",
                short(terminal)
            )
        }
        Leader { group, node, term } => format!("node {node} leads group {group}, term {term}"),
        State { node, group, index, hash } => {
            format!("node {node} has group {group} at entry {index} as {}", short(hash))
        }
        Ready { node, ready } => {
            format!("node {node} is {}", if *ready { "ready" } else { "not ready" })
        }
        LogFound { node, line, .. } => format!("in the log of node {node}: {line}"),
        // The rest is seldom evidence; its own words do.
        other => serde_json::to_string(other).unwrap_or_default(),
    }
}
