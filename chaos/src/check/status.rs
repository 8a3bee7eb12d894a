//! C6, the service list's entry of a terminal is one register that everybody sees.

use std::collections::{BTreeMap, BTreeSet};

use super::Checker;
use super::outcome::{Findings, Outcome};
use super::wgl::{self, Model, Order, Timed};
use crate::facts::{Facts, Moment, Step, Terminal};

pub(super) const CHECKER: Checker = Checker {
    id: "C6",
    name: "status",
    definition: "sessions that opened and status queries that were answered can be put into one order for each terminal, \
                 not against real time, in which each query sees the latest session, epochs rise, and who is offline \
                 does not come online without a new epoch",
    safety: true,
    check,
};

/// Steps of the search for one terminal: some seconds, and most need one for each operation.
const STEPS: usize = 1_000_000;
/// And for all of them.
const ALL_STEPS: usize = 20_000_000;

#[derive(Debug, Clone)]
enum Op {
    Attach { epoch: u64, node: u64, when: Moment },
    Read { online: bool, node: Option<u64>, epoch: u64, asked: Moment, when: Moment },
}

impl Op {
    fn evidence(&self) -> Vec<Moment> {
        match self {
            Op::Attach { when, .. } => vec![*when],
            Op::Read { asked, when, .. } => vec![*asked, *when],
        }
    }

    fn words(&self) -> String {
        let node = |node: &Option<u64>| node.map_or(String::new(), |node| format!(" at node {node}"));
        match self {
            Op::Attach { epoch, node, when } => {
                format!("the session of epoch {epoch} with node {node} (open by line {})", when.line())
            }
            Op::Read { online, node: at, epoch, asked, when } => format!(
                "the query of lines {} to {}, answered {}{}, epoch {epoch}",
                asked.line(),
                when.line(),
                if *online { "online" } else { "offline" },
                node(at)
            ),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Entry {
    epoch: u64,
    online: Option<u64>,
}

/// A session may end at any time, and may have opened without its terminal hearing of it: then its epoch is none that a
/// terminal knows.
struct Register {
    known: BTreeSet<u64>,
}

impl Model for Register {
    type State = Entry;
    type Op = Op;

    fn step(&self, entry: &Entry, op: &Op) -> Vec<Entry> {
        let after = match op {
            Op::Attach { epoch, node, .. } => {
                (*epoch > entry.epoch).then_some(Entry { epoch: *epoch, online: Some(*node) })
            }
            Op::Read { online, node, epoch, .. } => {
                let seen = Entry { epoch: *epoch, online: online.then_some(node.unwrap_or_default()) };
                let same_node = node.is_none() || entry.online == *node;
                let holds = *epoch == entry.epoch && (!online || (entry.online.is_some() && same_node));
                let unheard = *epoch > entry.epoch && !self.known.contains(epoch);
                if holds && *online { Some(entry.clone()) } else { (holds || unheard).then_some(seen) }
            }
        };
        after.into_iter().collect()
    }
}

/// What is known of a terminal's entry, in the order of its beginnings, up to a reset: epochs count anew after it.
fn operations(terminal: &Terminal) -> Vec<Timed<Op>> {
    let reset = terminal.steps.iter().find(|stepped| matches!(stepped.step, Step::Reset { .. }));
    let end = reset.map_or(u32::MAX, |stepped| stepped.when.n);
    let mut ops = Vec::new();
    // A session opened after the one before it. When that was, its process says late if it is busy: so the one before
    // that counts, by the epochs' order nothing more is lost than some seconds.
    let mut since: BTreeMap<u64, [Moment; 2]> = BTreeMap::new();
    for stepped in terminal.steps.iter().take_while(|stepped| stepped.when.n < end) {
        let Step::Connected { node, epoch } = stepped.step else { continue };
        let when = stepped.when;
        let [from, before] = since.get(&stepped.copy).copied().unwrap_or_default();
        since.insert(stepped.copy, [before, when]);
        ops.push(Timed { from: from.n, to: Some(when.n), op: Op::Attach { epoch, node, when } });
    }
    for read in terminal.reads.iter().filter(|read| read.when.n < end) {
        let (online, node, epoch) = (read.online, read.node, read.epoch);
        let op = Op::Read { online, node, epoch, asked: read.asked, when: read.when };
        ops.push(Timed { from: read.asked.n, to: Some(read.when.n), op });
    }
    ops.sort_by_key(|op| op.from);
    ops
}

fn check(facts: &Facts) -> Outcome {
    let mut findings = Findings::default();
    let (mut reads, mut sessions, mut given_up) = (0usize, 0usize, 0usize);
    let mut left = ALL_STEPS;
    for terminal in facts.terminals.iter().filter(|terminal| !terminal.reads.is_empty()) {
        let ops = operations(terminal);
        let known: BTreeSet<u64> = ops
            .iter()
            .filter_map(|op| match op.op {
                Op::Attach { epoch, .. } => Some(epoch),
                Op::Read { .. } => None,
            })
            .collect();
        reads += terminal.reads.len();
        sessions += known.len();
        let steps = STEPS.min(left);
        left = left.saturating_sub(ops.len());
        let start = Entry { epoch: 0, online: None };
        match wgl::order(&Register { known }, start, &ops, steps) {
            Order::Found => {}
            Order::TooMany => {
                given_up += 1;
                left = left.saturating_sub(steps);
            }
            Order::None { longest, stuck } => {
                let before = longest.last().map(|at| &ops[*at].op);
                let stuck: Vec<&Op> = stuck.iter().map(|at| &ops[*at].op).collect();
                let evidence = stuck.iter().copied().chain(before).flat_map(Op::evidence);
                findings.add(&evidence.collect::<Vec<_>>(), || {
                    let stuck: Vec<String> = stuck.iter().map(|op| op.words()).collect();
                    let before = before.map_or_else(|| "the beginning".to_owned(), Op::words);
                    format!(
                        "{}: no order explains what was seen; after {before} cannot come {}",
                        facts.names.text(terminal.name),
                        stuck.join(", nor ")
                    )
                });
            }
        }
    }
    if reads == 0 {
        return Outcome::unknown("nobody asked for a status");
    }
    let summary = format!("{reads} status queries and {sessions} sessions");
    if given_up > 0 && findings.is_empty() {
        return Outcome::unknown(format!("{summary}; the search was given up for {given_up} terminals"));
    }
    findings.outcome(facts, summary)
}
