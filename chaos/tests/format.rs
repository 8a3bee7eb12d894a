//! The format of histories: what is written is read, and what is damaged is said.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test stops where it is surprised")]

#[path = "support/good.rs"]
mod good;

use good::{Size, good};
use reveille_chaos::check::{Verdict, judge};
use reveille_chaos::facts;
use reveille_chaos::history::read::LINE;
use reveille_chaos::history::*;

const SIZE: Size = Size { seed: 1, terminals: 2, sessions: 4, burst: 2 };

fn written() -> String {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes);
    good(SIZE).iter().for_each(|event| writer.write(event).unwrap());
    String::from_utf8(bytes).unwrap()
}

fn error(text: &str) -> String {
    facts::read(text.as_bytes()).unwrap_err().to_string()
}

#[test]
fn what_is_written_is_read() {
    let text = written();
    let mut reader = Reader::new(text.as_bytes()).unwrap();
    let events = good(SIZE);
    let read: Vec<Event> = reader.by_ref().map(|event| event.unwrap()).collect();
    assert_eq!(read, events[1..]);
    assert_eq!(reader.cut(), None);
    // The lines themselves: others write and read them, too.
    let ghost = Event {
        n: 7,
        at: 1_500_000,
        what: What::Invoke(Invoke {
            op: 3,
            by: "p1".to_owned(),
            node: Some(2),
            deadline_ms: None,
            call: Call::Publish { terminal: "t".to_owned(), payload: "x".to_owned(), ttl_ms: None },
        }),
    };
    let line = r#"{"n":7,"at":1500000,"invoke":{"op":3,"by":"p1","node":2,"call":{"publish":{"terminal":"t","payload":"x"}}}}"#;
    assert_eq!(serde_json::to_string(&ghost).unwrap(), line);
    assert_eq!(serde_json::from_str::<Event>(line).unwrap(), ghost);
}

#[test]
fn a_recorder_numbers_and_dates_what_many_tell_it() {
    let begin = Begin { run: "r".to_owned(), backend: "test".to_owned(), ..Begin::default() };
    let recorder = Recorder::new(Vec::new(), begin);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..100 {
                    let (op, why) = (recorder.op(), "why".to_owned());
                    recorder.tell(What::Fail { op, why });
                }
            });
        }
    });
    recorder.finish().unwrap();
    let bytes = recorder.into_inner();
    let mut reader = Reader::new(&bytes[..]).unwrap();
    let mut ops: Vec<u64> = Vec::new();
    for event in reader.by_ref() {
        if let What::Fail { op, .. } = event.unwrap().what {
            ops.push(op);
        }
    }
    assert_eq!(reader.cut(), None);
    ops.sort_unstable();
    assert_eq!(ops, (1..=400).collect::<Vec<_>>());
}

#[test]
fn a_history_cut_at_any_byte_never_passes_and_is_no_error() {
    let text = written();
    let whole = facts::read(text.as_bytes()).unwrap();
    assert_eq!(judge(&whole, &[]).verdict, Verdict::Pass);
    let first = text.find('\n').unwrap();
    for end in (first + 1..text.len() - 1).step_by(7) {
        let facts = facts::read(&text.as_bytes()[..end]).unwrap();
        assert!(facts.cut.is_some(), "{end}");
        assert_eq!(judge(&facts, &[]).verdict, Verdict::Unknown, "{end}");
    }
    // The last line is whole but for its end: nothing is missing.
    let facts = facts::read(&text.as_bytes()[..text.len() - 1]).unwrap();
    assert_eq!(judge(&facts, &[]).verdict, Verdict::Pass);
    assert!(facts::read(&text.as_bytes()[..first / 2]).is_err(), "nothing is known without its first line");
}

#[test]
fn damage_elsewhere_is_refused_with_its_line() {
    let text = written();
    let lines: Vec<&str> = text.lines().collect();
    let with = |at: usize, line: &str| {
        let mut lines = lines.clone();
        lines[at] = line;
        error(&lines.join("\n"))
    };
    let broken = with(4, &lines[4][..lines[4].len() / 2]);
    assert!(broken.starts_with("history, line 5: "), "{broken}");
    let mut missing = lines.clone();
    missing.remove(4);
    let missing = error(&missing.join("\n"));
    assert!(missing.contains("line 5: it has number 5, where 4 comes next: lines are missing"), "{missing}");
    let back = lines[9].replacen("\"at\":", "\"at\":0, \"was\":", 1);
    assert!(with(9, &back).contains("unknown variant `was`, expected one of `begin`"), "{}", with(9, &back));
    let early = format!("{{\"n\":9,\"at\":0,{}", lines[9].splitn(3, ',').last().unwrap());
    assert!(with(9, &early).contains("time goes back"), "{}", with(9, &early));
    let kind = with(9, r#"{"n":9,"at":900,"ring":{}}"#);
    assert!(kind.contains("unknown variant `ring`"), "{kind}");
    let seen = with(9, r#"{"n":9,"at":900,"observe":{"rang":{"node":1}}}"#);
    assert!(seen.contains("unknown variant `rang`") && seen.contains("`notified`"), "{seen}");
    let field = with(9, r#"{"n":9,"at":900,"observe":{"ready":{"node":1,"ready":true,"really":true}}}"#);
    assert!(field.contains("unknown field `really`"), "{field}");
    let two = with(9, r#"{"n":9,"at":900,"end":{},"end":{}}"#);
    assert!(two.contains("\"end\" is a second one"), "{two}");
    let after =
        error(&format!("{text}{}\n", lines[9].replacen("\"n\":9", &format!("\"n\":{}", lines.len()), 1)));
    assert!(after.contains("time goes back") || after.contains("after the `end` line"), "{after}");
    let long = with(4, &format!(r#"{{"n":4,"at":90,"fail":{{"op":1,"why":"{}"}}}}"#, "x".repeat(LINE)));
    assert!(long.contains("line 5: longer than 65536 bytes"), "{long}");
}

#[test]
fn other_versions_are_named() {
    let old = "{\"at\":0,\"event\":\"begin\",\"version\":1}\n";
    assert_eq!(error(old), "history has version 1, this build reads 2");
    let new = written().replacen("\"version\":2", "\"version\":9", 1);
    assert_eq!(error(&new), "history has version 9, this build reads 2");
    assert!(error("").contains("it is empty"));
    assert!(error("{}\n").contains("does not begin"), "{}", error("{}\n"));
}
