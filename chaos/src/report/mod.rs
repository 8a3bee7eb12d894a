//! The report of a run: one HTML file that opens without a network, at the first violation. What is in it is made here,
//! from facts and a judgement; how it is drawn is `page.html`'s. Judges nothing.

mod figures;
mod life;
mod series;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::json;

pub use self::figures::Figures;
use crate::check::{Judgement, Verdict};
use crate::facts::{Facts, Moment};

/// Pushes whose lives are in a report: those that findings name, then the slowest. More would make a file that no browser
/// opens at once.
const LIVES: usize = 2000;

const PAGE: &str = include_str!("page.html");

/// A line of the history that a finding names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Microseconds since the run began.
    pub at: u64,
    /// As it stands in the file.
    pub text: String,
}

/// An earlier run that this one is compared with.
#[derive(Debug)]
pub struct Baseline<'a> {
    /// What the reader calls it.
    pub name: &'a str,
    /// What it came to.
    pub facts: &'a Facts,
    /// How it was judged.
    pub judgement: &'a Judgement,
}

/// The lines that the findings of a judgement name.
pub fn wanted(judgement: &Judgement) -> BTreeSet<u32> {
    let judged = judgement.judged.iter().flat_map(|judged| &judged.outcome.findings);
    judged.chain(&judgement.trouble).flat_map(|finding| &finding.lines).copied().collect()
}

/// The whole page. `lines` are those of [`wanted`], by number; `again` is the command that does the run again.
pub fn page(
    facts: &Facts,
    judgement: &Judgement,
    lines: &BTreeMap<u32, Line>,
    again: Option<&str>,
    baseline: Option<&Baseline<'_>>,
) -> String {
    let checkers: Vec<_> = judgement
        .judged
        .iter()
        .map(|judged| {
            let (checker, outcome) = (judged.checker, &judged.outcome);
            json!({
                "id": checker.id, "name": checker.name, "definition": checker.definition, "claimed": judged.claimed,
                "verdict": outcome.verdict, "summary": outcome.summary, "findings": outcome.findings, "more": outcome.more,
            })
        })
        .collect();
    let at = |moment: &Moment| moment.at;
    let faults = facts.faults.iter().map(|fault| {
        let (kind, target) = (facts.names.text(fault.kind), facts.names.text(fault.target));
        json!([kind, target, fault.first().at, fault.ended.as_ref().map(at)])
    });
    let text = |name| facts.names.text(name);
    let data = json!({
        "run": {
            "name": facts.begin.run, "scenario": facts.begin.scenario, "seed": facts.begin.seed,
            "backend": facts.begin.backend, "planted": facts.begin.planted, "unix_ms": facts.begin.unix_ms, "last": facts.last.at, "again": again,
        },
        "verdict": judgement.verdict,
        "cut": judgement.cut,
        "trouble": judgement.trouble,
        "first": first(judgement, lines),
        "checkers": checkers,
        "lines": lines,
        "phases": facts.phases.iter().map(|(when, phase)| json!([when.at, phase])).collect::<Vec<_>>(),
        "faults": faults.collect::<Vec<_>>(),
        "nodes": nodes(facts),
        "leaders": facts.leaders.iter().map(|(when, group, node, term)| [when.at, *group, *node, *term]).collect::<Vec<_>>(),
        "ready": facts.ready.iter().map(|(when, node, ready)| json!([when.at, node, ready])).collect::<Vec<_>>(),
        "taken": facts.taken.iter().map(|taken| json!([taken.when.at, taken.node, taken.rss, taken.fds, taken.disk]))
            .collect::<Vec<_>>(),
        "logs": facts.log_problems.iter().map(|(when, node, problem, what)| json!([when.at, node, problem, text(*what)]))
            .collect::<Vec<_>>(),
        "cover": facts.cover,
        "series": series::of(facts),
        "gaps": figures::gaps(facts),
        "lives": life::of(facts, &lines.keys().copied().collect(), LIVES),
        "figures": Figures::of(facts),
        "baseline": baseline.map(|baseline| json!({
            "name": baseline.name, "verdict": baseline.judgement.verdict, "figures": Figures::of(baseline.facts),
            "checkers": baseline.judgement.judged.iter().map(|judged| (judged.checker.id, judged.outcome.verdict))
                .collect::<BTreeMap<_, Verdict>>(),
        })),
    });
    // In a script no `</script>` and no `<!--` may stand; anything else of a hostile name is text to the page.
    let data = data.to_string().replace('<', "\\u003c");
    PAGE.replacen("\"DATA\"", &data, 1)
}

/// When the first thing was seen that makes a claimed checker fail, or any if no claimed one does.
fn first(judgement: &Judgement, lines: &BTreeMap<u32, Line>) -> Option<u64> {
    let of = |claimed: bool| {
        let fails = judgement
            .judged
            .iter()
            .filter(move |judged| judged.outcome.verdict == Verdict::Fail && (judged.claimed || !claimed));
        let last_lines = fails
            .flat_map(|judged| &judged.outcome.findings)
            .filter_map(|finding| finding.lines.iter().max());
        last_lines.filter_map(|line| lines.get(line)).map(|line| line.at).min()
    };
    of(true).or_else(|| of(false))
}

fn nodes(facts: &Facts) -> BTreeSet<u64> {
    let led = facts.leaders.iter().map(|(_, _, node, _)| *node);
    let ready = facts.ready.iter().map(|(_, node, _)| *node);
    led.chain(ready).chain(facts.taken.iter().map(|taken| taken.node)).collect()
}
