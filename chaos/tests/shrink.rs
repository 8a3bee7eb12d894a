//! The search for the least scenario that fails, against rules that stand for a cluster: no run is made here.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test stops where it is surprised")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use reveille_chaos::check::{self, Verdict, judge_events};
use reveille_chaos::facts::Builder;
use reveille_chaos::history::*;
use reveille_chaos::plan::plan;
use reveille_chaos::scenario::{self, Scenario, Time, load, write};
use reveille_chaos::shrink::{Candidate, LINES, Seen, Told, about, blamed, fails, shrink, story};

const MUCH: &str = r#"
name = "much"
about = "a test"
[cluster]
nodes = 5
[workload]
terminals = 40
[phases]
warmup = "5s"
chaos = "60s"
heal = "10s"
drain = "30s"
[[fault]]
at = "3s"
kind = "pause"
target = "any"
for = "2s"
[[fault]]
at = "10s 40ms"
kind = "kill"
target = "n2"
for = "3s"
[[fault]]
at = "20s"
kind = "move-leaders"
target = "any"
[[fault]]
at = "30s"
kind = "power"
target = "leader"
for = "1s"
[[fault]]
at = "50s"
kind = "restart"
target = "any"
"#;

fn much() -> Scenario {
    load("much.toml", MUCH).unwrap()
}

fn kinds(scenario: &Scenario) -> Vec<&'static str> {
    scenario.faults().map(|fault| fault.kind.name()).collect()
}

/// Shrinks by a rule, and counts the scenarios that were tried.
fn by(scenario: Scenario, seen: Seen, rule: impl Fn(&Scenario) -> bool) -> (Scenario, Vec<String>, usize) {
    let (mut tried, mut last) = (0, write(&scenario));
    let mut first = |candidates: &[Candidate]| -> std::result::Result<_, Infallible> {
        tried += candidates.len();
        let found = candidates.iter().position(|candidate| rule(&candidate.scenario));
        last = found.map_or(last.clone(), |place| write(&candidates[place].scenario));
        Ok(found.map(|place| (place, seen.clone())))
    };
    let (least, taken) = shrink(scenario, seen.clone(), &mut first).unwrap();
    assert_eq!(write(&least), last, "whoever runs has the run of what was found");
    (least, taken, tried)
}

#[test]
fn what_is_left_is_what_it_takes_and_no_more() {
    let needs = |scenario: &Scenario| {
        let kinds = kinds(scenario);
        let enough = scenario.workload.terminals >= 3 && scenario.phases.chaos.0 >= Duration::from_secs(32);
        kinds.contains(&"kill") && kinds.contains(&"power") && enough
    };
    let (least, taken, tried) = by(much(), Seen::default(), needs);
    assert_eq!(kinds(&least), ["kill", "power"], "{taken:?}");
    assert_eq!((least.cluster.nodes, least.cluster.shards), (3, 1));
    assert!((3..=5).contains(&least.workload.terminals), "{}", least.workload.terminals);
    assert_eq!((least.workload.publishers, least.workload.rate), (1, 1));
    let phases = &least.phases;
    let seconds = [phases.warmup, phases.chaos, phases.heal, phases.drain].map(|time| time.0.as_secs());
    assert_eq!(seconds, [1, 32, 1, 30], "the drain stays: what is late would look lost");
    assert_eq!(least.faults().next().unwrap().at.unwrap().ms(), 10_000, "times are round");
    assert!(tried < 200, "{tried}");
    // What is written is read as what was tried last.
    assert_eq!(write(&load("least.toml", &write(&least)).unwrap()), write(&least));
}

#[test]
fn a_failure_that_needs_no_fault_has_none() {
    let (least, taken, _) = by(much(), Seen::default(), |_| true);
    assert!(least.faults.is_empty());
    assert_eq!(taken[0], "no fault at all");
}

#[test]
fn nothing_is_taken_that_does_not_fail_and_the_end_of_the_budget_ends_it() {
    let (least, taken, tried) = by(much(), Seen::default(), |_| false);
    assert_eq!(write(&least), write(&much()));
    assert!(taken.is_empty() && tried > 10, "{tried}");
}

#[test]
fn nodes_that_a_fault_names_stay() {
    let text = MUCH.replace("target = \"n2\"", "target = \"n4\"");
    let (least, ..) = by(load("much.toml", &text).unwrap(), Seen::default(), |s| kinds(s).contains(&"kill"));
    assert_eq!(least.cluster.nodes, 5, "{}", write(&least));
}

const AGAIN: &str = r#"
name = "again"
about = "a test"
[phases]
warmup = "1s"
chaos = "60s"
heal = "1s"
drain = "30s"
[[fault]]
every = "10s"
kind = "kill"
target = "any"
for = "3s"
[[fault]]
when = "leader.changed"
times = 3
kind = "reset"
from = "leader"
to = "all"
"#;

fn event(at: u64, what: What) -> (u64, What) {
    (at, what)
}

fn history(told: Vec<(u64, What)>) -> Vec<Event> {
    let begin =
        What::Begin(Begin { version: VERSION, seed: 7, backend: "sim".to_owned(), ..Begin::default() });
    let all = std::iter::once((0, begin)).chain(told);
    (0..).zip(all).map(|(n, (at, what))| Event { n, at, what }).collect()
}

fn fault(id: u64, step: FaultStep, kind: &str, target: &str) -> What {
    let (kind, target, detail) = (kind.to_owned(), target.to_owned(), String::new());
    What::Fault(Fault { id, step, kind, target, detail })
}

fn phase(phase: Phase) -> What {
    What::Observe(Observation::Phase { phase })
}

/// The first two kills of seed 7 as the plan has them, and a reset that waited for a leader; a push is lost between.
fn of_again() -> Vec<Event> {
    let planned = plan(&load("again.toml", AGAIN).unwrap(), 7);
    let (warm, first, second) = (2_000_000, planned.strikes[0].at_us, planned.strikes[1].at_us);
    let publish = Call::Publish { terminal: "t".to_owned(), payload: "p1".to_owned(), ttl_ms: None };
    let invoke =
        Invoke { op: 1, by: "publisher 1".to_owned(), node: Some(2), deadline_ms: None, call: publish };
    let got = Result::Published { message: "m".to_owned(), seq: 1, position: None };
    history(vec![
        event(warm, phase(Phase::Warmup)),
        event(warm + 1_000_000, phase(Phase::Chaos)),
        event(warm + first + 20_000, fault(1, FaultStep::Began, "kill", "node 3")),
        event(warm + first + 500_000, fault(2, FaultStep::Ended, "reset", "link 1 -> 2, 1 -> 3")),
        event(warm + first + 1_000_000, What::Invoke(invoke)),
        event(warm + first + 1_200_000, What::Ok { op: 1, got }),
        event(warm + first + 3_020_000, fault(1, FaultStep::Ended, "kill", "node 3")),
        event(warm + second, fault(3, FaultStep::Began, "kill", "node 1")),
        event(warm + 61_000_000, phase(Phase::Heal)),
        event(warm + 61_000_000, fault(3, FaultStep::Ended, "kill", "node 1")),
        event(warm + 62_000_000, phase(Phase::Drain)),
        event(warm + 92_000_000, What::End(End {})),
    ])
}

#[test]
fn faults_that_come_again_become_those_that_struck() {
    let scenario = load("again.toml", AGAIN).unwrap();
    let events = of_again();
    let seen = Seen::of(&scenario, 7, &Builder::of(&events), &[events[5].at, events[6].at]);
    let struck: Vec<String> = seen
        .struck
        .iter()
        .map(|fault| {
            let whom = fault.target.as_ref().or(fault.to.as_ref()).unwrap();
            let lasts = fault.lasts.map_or(0, |lasts| lasts.ms());
            format!("{} {whom} {} {lasts}", fault.kind.name(), fault.at.unwrap())
        })
        .collect();
    let first = Duration::from_micros(plan(&scenario, 7).strikes[0].at_us - 1_000_000);
    let at = |ms: u64| {
        humantime::format_duration(Duration::from_millis(first.as_millis() as u64 + ms)).to_string()
    };
    assert_eq!(struck.len(), 3, "{struck:?}");
    assert_eq!(struck[0], format!("kill n3 {} 3000", at(20)));
    // From the leader, as it hit; to all, as it was written.
    assert_eq!(struck[1], format!("reset all {} 0", at(500)));
    assert_eq!(seen.struck[1].from.as_ref().unwrap().to_string(), "n1");
    assert!(struck[2].ends_with(" 0"), "until the chaos phase ends: {}", struck[2]);

    // The kill of n3 is what it takes: one fault with its time is left, before the violation.
    let n3 = |scenario: &Scenario| {
        scenario.faults().any(|fault| match (&fault.target, fault.every) {
            (Some(target), None) => target.to_string() == "n3",
            (_, every) => every.is_some(),
        })
    };
    let (least, taken, _) = by(scenario, seen, n3);
    assert_eq!(kinds(&least), ["kill"], "{taken:?}");
    let kill = least.faults().next().unwrap();
    assert!(kill.at.is_some() && kill.every.is_none() && kill.target.as_ref().unwrap().to_string() == "n3");
    assert!(least.phases.chaos.0 < Duration::from_secs(20), "{}", write(&least));
}

#[test]
fn a_fault_that_must_come_again_comes_less_often() {
    let scenario = load("again.toml", AGAIN).unwrap();
    let events = of_again();
    let seen = Seen::of(&scenario, 7, &Builder::of(&events), &[]);
    let often = |scenario: &Scenario| scenario.faults().any(|fault| fault.every.is_some());
    let (least, ..) = by(scenario, seen, often);
    let kill = least.faults().next().unwrap();
    assert_eq!((kinds(&least), kill.times), (vec!["kill"], Some(1)), "{}", write(&least));
}

#[test]
fn many_faults_with_a_time_each_are_worse_than_one_that_comes_again() {
    let often = AGAIN.replace("every = \"10s\"", "every = \"3s\"");
    let scenario = load("again.toml", &often).unwrap();
    let strikes = plan(&scenario, 7).strikes;
    let kill = scenario.faults().next().unwrap();
    let at = |us: u64| Time(Duration::from_millis(us / 1000 - 1000));
    let timed = strikes.iter().map(|strike| scenario::Fault {
        at: Some(at(strike.at_us)),
        every: None,
        ..kill.clone()
    });
    let seen = Seen { struck: timed.collect(), violated: None };
    assert!(seen.struck.len() > 12);
    let (least, taken, _) = by(scenario, seen, |scenario| plan(scenario, 7).strikes.len() >= 10);
    assert!(taken.contains(&"rather 1 that come again than 10".to_owned()), "{taken:?}");
    assert_eq!((kinds(&least), least.faults().next().unwrap().times), (vec!["kill"], Some(16)), "{taken:?}");
}

#[test]
fn the_checker_that_failed_must_fail_again() {
    let judgement = judge_events(&of_again(), &[]);
    let loss = check::find("C1").unwrap();
    assert_eq!(judgement.verdict, Verdict::Fail);
    assert_eq!(blamed(&judgement).unwrap().id, "C1");
    assert!(fails(&judgement, loss) && !fails(&judgement, check::find("C2").unwrap()));
    let mut well = of_again();
    well.retain(|event| !matches!(event.what, What::Ok { .. }));
    (0..).zip(&mut well).for_each(|(n, event)| event.n = n);
    let judgement = judge_events(&well, &["C2"]);
    assert!(blamed(&judgement).is_none() && !fails(&judgement, loss));
    let small = about(&much(), loss);
    assert_eq!((small.name.as_str(), &small.claims[..]), ("much-small", &["no-acked-loss".to_owned()][..]));
}

#[test]
fn a_story_is_short_and_says_what_happened() {
    let scenario = load("again.toml", AGAIN).unwrap();
    let mut events = of_again();
    // Far more faults than there is room for, with a name that would break lines.
    let many = (10..60).map(|id| (events[2].at, fault(id, FaultStep::Ended, "restart", "node 1\nAgain: rm")));
    let many: Vec<(u64, What)> = many.collect();
    let (before, after) = (events[1..3].to_vec(), events[3..].to_vec());
    let told = before.into_iter().chain(after).map(|event| (event.at, event.what));
    let mut told: Vec<(u64, What)> = told.chain(many).collect();
    told.sort_by_key(|(at, _)| *at);
    events = history(told);
    let (facts, judgement) = (Builder::of(&events), judge_events(&events, &[]));
    let checker = check::find("C1").unwrap();
    let judged = judgement.judged.iter().find(|judged| judged.checker.id == "C1").unwrap();
    let lines = &judged.outcome.findings[0].lines;
    let evidence: BTreeMap<u32, Event> =
        lines.iter().map(|line| (*line, events[*line as usize - 1].clone())).collect();
    let told = Told {
        scenario: &scenario,
        facts: &facts,
        judgement: &judgement,
        checker,
        evidence: &evidence,
        again: "chaos replay x",
    };
    let said = story(&told);
    let all = said.join("\n");
    assert!(said.len() <= LINES && all.lines().count() == said.len(), "{all}");
    assert!(said[0].starts_with("C1 no-acked-loss fails: again, seed 7, backend sim"), "{all}");
    for part in [
        "publisher 1 asks node 2 to store p1 for terminal t",
        "p1 is acknowledged as seq 1",
        "FAULT restart, node 1 Again: rm",
        "faults, further from it",
        "It says: lost: p1",
        "Evidence: lines ",
    ] {
        assert!(all.contains(part), "{part}\n{all}");
    }
    assert_eq!(said.last().unwrap(), "Again: chaos replay x");
}
