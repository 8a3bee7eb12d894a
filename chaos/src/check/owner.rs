//! C7, a terminal has a single owner.

use std::collections::BTreeMap;

use super::Checker;
use super::outcome::{Findings, Outcome};
use crate::facts::{Delivery, Facts, Moment, Step, Terminal};

pub(super) const CHECKER: Checker = Checker {
    id: "C7",
    name: "single-owner",
    definition: "each session of a terminal has an epoch of its own, higher than the one before; a push is delivered \
                 only in the session that is open, by its node; and a push that was published after a newer session \
                 opened does not come in an older one, in whatever process",
    safety: true,
    check,
};

/// A session as one process saw it.
#[derive(Debug, Clone, Copy)]
struct Session {
    epoch: u64,
    node: u64,
    opened: Moment,
    closed: Option<Moment>,
}

fn check(facts: &Facts) -> Outcome {
    let mut findings = Findings::default();
    let (mut sessions, mut given) = (0u64, 0u64);
    for terminal in &facts.terminals {
        of_terminal(facts, terminal, &mut findings, &mut sessions, &mut given);
    }
    if given == 0 {
        return Outcome::unknown("no delivery names its session's epoch");
    }
    findings.outcome(facts, format!("{sessions} sessions, {given} deliveries in them"))
}

fn of_terminal(
    facts: &Facts,
    terminal: &Terminal,
    findings: &mut Findings,
    sessions: &mut u64,
    given: &mut u64,
) {
    let name = facts.names.text(terminal.name);
    let mut latest: BTreeMap<u64, Session> = BTreeMap::new();
    let mut epochs: BTreeMap<u64, Session> = BTreeMap::new();
    for stepped in &terminal.steps {
        let when = stepped.when;
        match stepped.step {
            Step::Connected { node, epoch } => {
                *sessions += 1;
                let new = Session { epoch, node, opened: when, closed: None };
                let before = latest.insert(stepped.copy, new);
                if let Some(before) = before.filter(|before| before.epoch > epoch) {
                    findings.add(&[before.opened, when], || {
                        format!(
                            "{name}: a session of epoch {epoch} (node {node}) opened after one of epoch {} (node {})",
                            before.epoch, before.node
                        )
                    });
                }
                if let Some(other) = epochs.insert(epoch, new) {
                    findings.add(&[other.opened, when], || {
                        let (one, two) = (other.node, node);
                        format!("{name}: epoch {epoch} was granted twice, by node {one} and by node {two}")
                    });
                }
            }
            Step::Disconnected | Step::Stopped | Step::Started => {
                if let Some(session) = latest.get_mut(&stepped.copy) {
                    session.closed.get_or_insert(when);
                }
            }
            // Epochs count anew.
            Step::Reset { .. } => {
                let session = latest.get(&stepped.copy).copied();
                latest.clear();
                epochs.clear();
                latest.extend(session.map(|session| (stepped.copy, session)));
            }
            Step::Delivered(delivery) => {
                let Some(epoch) = delivery.epoch else { continue };
                *given += 1;
                if let Some(session) = latest.get(&stepped.copy) {
                    in_session(name, findings, session, when, &delivery);
                }
                let asked = delivery.push.map(|push| facts.pushes[push as usize].asked);
                let newer = epochs.range(epoch + 1..).next().map(|(_, newer)| newer);
                if let (Some(asked), Some(newer)) = (asked, newer)
                    // The same process is judged by its own sessions.
                    && latest.get(&stepped.copy).is_some_and(|own| own.epoch == epoch)
                    && asked > newer.opened
                {
                    findings.add(&[newer.opened, asked, when], || {
                        format!(
                            "{name}: seq {} came at {:.3} s in the session of epoch {epoch} (node {}), published after \
                             epoch {} (node {}) opened at {:.3} s",
                            delivery.seq,
                            when.at as f64 / 1e6,
                            delivery.node,
                            newer.epoch,
                            newer.node,
                            newer.opened.at as f64 / 1e6
                        )
                    });
                }
            }
            _ => {}
        }
    }
}

/// A delivery against the session that its process has.
fn in_session(name: &str, findings: &mut Findings, session: &Session, when: Moment, delivery: &Delivery) {
    let Delivery { seq, node, .. } = *delivery;
    let epoch = delivery.epoch.unwrap_or_default();
    let mut wrong = |evidence: &[Moment], what: &str| {
        findings.add(evidence, || {
            format!(
                "{name}: seq {seq} came in the session of epoch {epoch} (node {node}), {what} epoch {} (node {})",
                session.epoch, session.node
            )
        });
    };
    if epoch != session.epoch {
        wrong(&[session.opened, when], "while its process had");
    } else if node != session.node {
        wrong(&[session.opened, when], "by another node than the one of");
    } else if let Some(closed) = session.closed {
        wrong(&[closed, when], "after the end of");
    }
}
