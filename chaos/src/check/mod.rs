//! Checkers: pure functions from the facts of a history to an outcome. Each has an id, says what it holds the cluster to,
//! and names the lines that prove what it found. Nothing here reads a clock, a file or a cluster.

mod ack;
mod convergence;
mod coverage;
mod duplicates;
mod hang;
mod logs;
mod loss;
mod notification;
mod order;
mod outcome;
mod owner;
mod phantom;
mod position;
mod recovery;
mod resources;
mod status;
mod wgl;

pub use self::outcome::{Finding, Outcome, Verdict};
pub(crate) use self::recovery::{delivery_gaps, publish_gaps, ready_gaps};
use crate::facts::{Builder, Facts};
use crate::history::Event;

/// A checker.
#[derive(Debug)]
pub struct Checker {
    /// Its id: `C1`.
    pub id: &'static str,
    /// Its name, as scenarios may call it.
    pub name: &'static str,
    /// What it holds the cluster to, in a sentence.
    pub definition: &'static str,
    /// A failure is a broken promise about pushes, not a missed budget: it stands even if the harness had trouble.
    pub safety: bool,
    /// The check.
    pub check: fn(&Facts) -> Outcome,
}

/// All checkers. C15, the invariants of raft at each tick, needs the inside of a simulation and is no function of a
/// history.
pub static CHECKERS: [Checker; 15] = [
    loss::CHECKER,
    phantom::CHECKER,
    duplicates::CHECKER,
    order::CHECKER,
    position::CHECKER,
    status::CHECKER,
    owner::CHECKER,
    ack::CHECKER,
    recovery::CHECKER,
    convergence::CHECKER,
    notification::CHECKER,
    hang::CHECKER,
    resources::CHECKER,
    coverage::CHECKER,
    logs::CHECKER,
];

/// What of a harness that sees publishers and terminals, and nothing of the inside: no loss, no phantom, no
/// duplicate, in order, and each push in one place.
pub const DELIVERY: &[&str] = &["C1", "C2", "C3", "C4", "C5"];

/// What of a harness that also asks the service list: the promises about pushes, but for the insides of nodes (C10).
pub const SAFETY: &[&str] = &["C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8"];

/// The ids that a claim stands for: of a checker by id or name, or of `delivery` or `safety`. None: there is no such.
pub fn claim(name: &str) -> Option<Vec<&'static str>> {
    match name {
        "delivery" => Some(DELIVERY.to_vec()),
        "safety" => Some(SAFETY.to_vec()),
        name => find(name).map(|checker| vec![checker.id]),
    }
}

/// A checker by its id or name.
pub fn find(name: &str) -> Option<&'static Checker> {
    CHECKERS.iter().find(|checker| checker.id.eq_ignore_ascii_case(name) || checker.name == name)
}

/// What one checker came to.
#[derive(Debug)]
pub struct Judged {
    /// Which.
    pub checker: &'static Checker,
    /// It must pass. One that is not claimed may be unable to tell, not fail.
    pub claimed: bool,
    /// What.
    pub outcome: Outcome,
}

/// What all of them came to.
#[derive(Debug)]
pub struct Judgement {
    /// All together.
    pub verdict: Verdict,
    /// Trouble of the harness, with its line.
    pub trouble: Vec<Finding>,
    /// Why the history is not whole.
    pub cut: Option<String>,
    /// Each, in the order of [`CHECKERS`].
    pub judged: Vec<Judged>,
}

/// Runs every checker. `claims` are those that must pass ([`claim`]); without any, those that the history claims,
/// and if it claims none, all.
pub fn judge(facts: &Facts, claims: &[&str]) -> Judgement {
    let own: Vec<&str> = facts.begin.expect.claims.iter().map(String::as_str).collect();
    let claims = if claims.is_empty() { &own } else { claims };
    let mut trouble: Vec<Finding> =
        facts.trouble.iter().map(|(when, what)| Finding::new(what.clone(), &[*when])).collect();
    for unknown in claims.iter().filter(|name| claim(name).is_none()) {
        trouble.push(Finding::new(format!("there is no checker {unknown:?}"), &[]));
    }
    let judged: Vec<Judged> = CHECKERS
        .iter()
        .map(|checker| {
            let stands = |name: &&str| claim(name).is_some_and(|ids| ids.contains(&checker.id));
            let claimed = claims.is_empty() || claims.iter().any(stands);
            Judged { checker, claimed, outcome: (checker.check)(facts) }
        })
        .collect();
    let verdict = verdict(&judged, !trouble.is_empty(), facts.cut.is_some());
    Judgement { verdict, trouble, cut: facts.cut.clone(), judged }
}

/// [`judge`] for events in memory.
pub fn judge_events(events: &[Event], claims: &[&str]) -> Judgement {
    judge(&Builder::of(events), claims)
}

/// A broken promise stands whatever else went wrong; anything else that a run says is worth nothing if the harness was
/// in trouble; and what cannot be told never passes.
fn verdict(judged: &[Judged], trouble: bool, cut: bool) -> Verdict {
    let fails = |judged: &&Judged| judged.outcome.verdict == Verdict::Fail;
    if judged.iter().filter(fails).any(|judged| judged.checker.safety) {
        Verdict::Fail
    } else if trouble {
        Verdict::Harness
    } else if judged.iter().any(|judged| fails(&judged)) {
        Verdict::Fail
    } else if cut || judged.iter().any(|judged| judged.claimed && judged.outcome.verdict != Verdict::Pass) {
        Verdict::Unknown
    } else {
        Verdict::Pass
    }
}
