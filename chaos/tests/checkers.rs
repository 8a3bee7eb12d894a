//! Each checker against what it is for: a good history passes all of them, and with one fault planted exactly the one that
//! is for it fails. The same histories, small, are files in `tests/histories` for whoever wants to see one; `BLESS=1`
//! writes them again.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test stops where it is surprised")]

#[path = "support/good.rs"]
mod good;
#[path = "support/plant.rs"]
mod plant;

use std::path::{Path, PathBuf};

use good::{Size, good};
use plant::{PLANTS, plant};
use reveille_chaos::check::{CHECKERS, Judgement, Verdict, judge, judge_events};
use reveille_chaos::facts::{self, Builder};
use reveille_chaos::history::*;

const SMALL: Size = Size { seed: 3, terminals: 2, sessions: 4, burst: 3 };
const BIG: Size = Size { seed: 11, terminals: 20, sessions: 12, burst: 4 };

fn not_passing(judgement: &Judgement) -> Vec<&str> {
    let bad = judgement.judged.iter().filter(|judged| judged.outcome.verdict != Verdict::Pass);
    bad.map(|judged| judged.checker.id).collect()
}

/// What is wrong, if this one alone does not fail, with a witness.
fn only(judgement: &Judgement, id: &str, what: &str) -> Option<String> {
    let bad = not_passing(judgement);
    if bad != [id] || judgement.verdict != Verdict::Fail {
        return Some(format!("{what}: {bad:?} instead of {id}, {}", judgement.verdict));
    }
    let found = judgement.judged.iter().find(|judged| judged.checker.id == id).unwrap();
    let finding = &found.outcome.findings[0];
    (finding.what.is_empty() || finding.lines.is_empty())
        .then(|| format!("{what}: no witness in {finding:?}"))
}

#[test]
fn a_good_history_passes_every_checker() {
    for size in [SMALL, BIG] {
        let judgement = judge_events(&good(size), &[]);
        assert_eq!(judgement.verdict, Verdict::Pass, "{:#?}", judgement.judged);
        assert_eq!(judgement.judged.len(), CHECKERS.len());
    }
}

#[test]
fn one_planted_fault_fails_exactly_the_checker_that_is_for_it() {
    let planted = |size: Size| {
        let good = good(size);
        let judged = move |(id, name, how): &plant::Plant| {
            only(&judge_events(&plant(&good, *how), &[]), id, &format!("{name} in {size:?}"))
        };
        PLANTS.iter().filter_map(judged)
    };
    let wrong: Vec<String> = [SMALL, BIG].into_iter().flat_map(planted).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    for checker in &CHECKERS {
        let planted = PLANTS.iter().any(|(id, ..)| *id == checker.id);
        // What was not covered is no failure: see below.
        assert!(planted || checker.id == "C14", "nothing is planted for {}", checker.id);
    }
}

#[test]
fn a_run_that_did_not_do_what_it_was_for_says_nothing() {
    let cover = |event: &Event| matches!(&event.what, What::Observe(Observation::Cover { .. }));
    let events = plant(&good(SMALL), |_| {});
    let mut events: Vec<Event> = events.into_iter().filter(|event| !cover(event)).collect();
    (0..).zip(&mut events).for_each(|(n, event)| event.n = n);
    let judgement = judge_events(&events, &[]);
    assert_eq!((not_passing(&judgement), judgement.verdict), (vec!["C14"], Verdict::Unknown));
    // Where nobody claims it, it may be unable to tell.
    assert_eq!(judge_events(&events, &["C1", "no-phantom"]).verdict, Verdict::Pass);
}

#[test]
fn trouble_of_the_harness_never_passes_and_hides_no_broken_promise() {
    let trouble = |events: &mut Vec<Event>| {
        let what = What::Observe(Observation::Harness { what: "the port is taken".to_owned() });
        events.insert(1, Event { what, ..events[1].clone() });
    };
    let planted = |id: &str| plant(&good(SMALL), PLANTS.iter().find(|plant| plant.0 == id).unwrap().2);
    let verdict = |events: &[Event]| judge_events(&plant(events, trouble), &[]).verdict;
    assert_eq!(verdict(&good(SMALL)), Verdict::Harness);
    assert_eq!(verdict(&planted("C9")), Verdict::Harness, "a missed budget may be the harness's");
    assert_eq!(verdict(&planted("C1")), Verdict::Fail);
    let claims = judge_events(&good(SMALL), &["C99"]);
    assert_eq!(claims.verdict, Verdict::Harness, "a checker that is not there cannot pass");
}

#[test]
fn an_empty_history_cannot_be_told() {
    let begin = Event { n: 0, at: 0, what: What::Begin(Begin { version: VERSION, ..Begin::default() }) };
    let end = Event { n: 1, at: 0, what: What::End(End {}) };
    let judgement = judge_events(&[begin, end], &[]);
    assert_eq!(judgement.verdict, Verdict::Unknown);
    assert_eq!(not_passing(&judgement).len(), CHECKERS.len());
}

#[test]
fn a_history_that_is_cut_is_checked_as_far_as_it_goes() {
    let events = good(SMALL);
    for length in 1..events.len() {
        let judgement = judge_events(&events[..length], &[]);
        assert_eq!(judgement.verdict, Verdict::Unknown, "{length}: {:#?}", judgement.judged);
    }
    // What is in it stands.
    let (_, _, how) = PLANTS.iter().find(|plant| plant.1 == "twice-in-a-life").unwrap();
    let mut events = plant(&events, *how);
    events.pop();
    assert_eq!(judge_events(&events, &[]).verdict, Verdict::Fail);
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/histories")
}

fn file(name: &str) -> PathBuf {
    folder().join(format!("{name}.jsonl"))
}

fn written(events: &[Event]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes);
    events.iter().for_each(|event| writer.write(event).unwrap());
    bytes
}

#[test]
fn the_files_say_the_same() {
    let mut files = vec![(file("good"), good(SMALL), None)];
    for (id, name, how) in PLANTS {
        let name = format!("{}-{name}", id.to_lowercase());
        files.push((file(&name), plant(&good(SMALL), *how), Some(*id)));
    }
    for (path, events, id) in files {
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&path, written(&events)).unwrap();
        }
        let text = std::fs::read(&path).unwrap();
        let read = facts::read(&text[..]).unwrap();
        let judgement = judge(&read, &[]);
        match id {
            Some(id) => assert_eq!(only(&judgement, id, &path.display().to_string()), None),
            None => assert_eq!(judgement.verdict, Verdict::Pass, "{}", path.display()),
        }
        // The file is what is planted today, and events in memory are judged as those in a file.
        assert_eq!(text, written(&events), "{}: BLESS=1 writes it again", path.display());
        assert_eq!(read.pushes.len(), Builder::of(&events).pushes.len());
    }
}
