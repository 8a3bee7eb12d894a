//! What one run of a cell came to: whether every promise was kept, and three figures. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::check::{Judgement, Verdict, delivery_gaps, publish_gaps, ready_gaps};
use crate::facts::{Answer, Delivery, Facts, Step};
use crate::history::Phase;
use crate::scenario::{Scenario, Work};

/// A push counts as good if it is with its application so many microseconds after it was asked for.
const IN_TIME: u64 = 5_000_000;

/// How it was, the worst last.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "verdict", content = "why", rename_all = "snake_case")]
pub enum Came {
    /// Everything that was promised was kept.
    Kept,
    /// It cannot be told: why.
    Unknown(String),
    /// Something that is no promise about pushes was not: what.
    Failed(String),
    /// A promise about pushes was broken: which.
    Unsafe(String),
}

impl Came {
    /// The same, with the seed to look at where there is a reason to.
    pub(super) fn of_seed(&self, seed: u64) -> Came {
        let say = |why: &String| format!("seed {seed}: {why}");
        match self {
            Came::Kept => Came::Kept,
            Came::Unknown(why) => Came::Unknown(say(why)),
            Came::Failed(why) => Came::Failed(say(why)),
            Came::Unsafe(why) => Came::Unsafe(say(why)),
        }
    }
}

/// A run.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Its seed.
    pub seed: u64,
    /// How it was.
    pub came: Came,
    /// The longest time in milliseconds for which somebody wanted to publish to a terminal without success; `None` where
    /// nobody published.
    pub publish_gap: Option<u64>,
    /// The longest time in milliseconds from the end of a fault until every node was ready, or from the end of the chaos
    /// phase until everything that was acknowledged before was given; `None` if it never came so far.
    pub recovery: Option<u64>,
    /// Of a thousand pushes that the workload wants published in the heal phase, those that were acknowledged, and with
    /// their application within five seconds after they were asked for; `None` where it wants none.
    pub goodput: Option<u64>,
    /// How often each kind of fault struck.
    pub fired: BTreeMap<String, u64>,
}

impl Ran {
    /// A run of which nothing is known, for this reason.
    pub fn unknown(seed: u64, why: String) -> Ran {
        let (publish_gap, goodput, fired) = (None, None, BTreeMap::new());
        Ran { seed, came: Came::Unknown(why), publish_gap, recovery: None, goodput, fired }
    }
}

/// Of a run by this scenario.
pub fn measure(scenario: &Scenario, seed: u64, facts: &Facts, judgement: &Judgement) -> Ran {
    let mut fired = BTreeMap::new();
    for fault in &facts.faults {
        *fired.entry(facts.names.text(fault.kind).to_owned()).or_insert(0) += 1;
    }
    let began = |phase| facts.phases.iter().find(|(_, known)| *known == phase).map(|(when, _)| when.at);
    let (heal, drain) = (began(Phase::Heal), began(Phase::Drain));
    let ready = ready_gaps(facts).iter().map(|gap| gap.to.at - gap.from.at).max().unwrap_or(0);
    let given = delivery_gaps(facts);
    let late = given.iter().filter(|gap| heal.is_some_and(|heal| gap.from.at <= heal)).map(|gap| gap.to.at);
    let late = late.max().unwrap_or(0);
    Ran {
        seed,
        came: came(judgement),
        publish_gap: publish_gaps(facts).iter().map(|gap| (gap.to.at - gap.from.at) / 1000).max(),
        recovery: heal.map(|heal| ready.max(late.saturating_sub(heal)) / 1000),
        goodput: heal.zip(drain).and_then(|(heal, drain)| goodput(scenario, facts, heal, drain)),
        fired,
    }
}

fn came(judgement: &Judgement) -> Came {
    let found = |verdict: Verdict, safety: bool| {
        let judged = judgement.judged.iter().find(|judged| {
            let counts = verdict == Verdict::Fail || judged.claimed;
            judged.outcome.verdict == verdict && counts && (judged.checker.safety || !safety)
        })?;
        let (checker, outcome) = (judged.checker, &judged.outcome);
        let first = outcome.findings.first().map_or(&outcome.summary, |finding| &finding.what);
        Some(format!("{} {}: {first}", checker.id, checker.name))
    };
    if let Some(broken) = found(Verdict::Fail, true) {
        return Came::Unsafe(broken);
    }
    let trouble = || judgement.trouble.first().map(|trouble| format!("HARNESS {}", trouble.what));
    let cut = || judgement.cut.as_ref().map(|why| format!("the history is not whole: {why}"));
    let unknown = || found(Verdict::Unknown, false);
    match (judgement.verdict, found(Verdict::Fail, false)) {
        (Verdict::Pass, _) => Came::Kept,
        (Verdict::Fail, Some(failed)) => Came::Failed(failed),
        _ => Came::Unknown(trouble().or_else(cut).or_else(unknown).unwrap_or_default()),
    }
}

/// See [`Ran::goodput`]. What the workload wants follows from its rate: publishers who wait for an answer ask less, and
/// that is what is missed.
fn goodput(scenario: &Scenario, facts: &Facts, heal: u64, drain: u64) -> Option<u64> {
    let workload = &scenario.workload;
    let each = match workload.kind {
        Work::Idle => return None,
        Work::Push | Work::Retry => 1.0,
        // At each of its turns a publisher publishes to its part of the terminals.
        Work::Broadcast => workload.terminals as f64 / workload.publishers as f64,
    };
    let seconds = scenario.phases.heal.0.as_secs_f64();
    let wanted = workload.rate as f64 * each * seconds;
    let mut good = BTreeSet::new();
    for stepped in facts.terminals.iter().flat_map(|terminal| &terminal.steps) {
        let Step::Delivered(Delivery { push: Some(push), .. }) = stepped.step else { continue };
        let of = &facts.pushes[push as usize];
        let stored = matches!(of.answer, Answer::Stored { .. });
        let in_time = stepped.when.at <= of.asked.at + IN_TIME;
        if stored && in_time && (heal..drain).contains(&of.asked.at) {
            good.insert(push);
        }
    }
    Some(((good.len() as f64 * 1000.0 / wanted) as u64).min(1000))
}
