//! Plants one fault in a good history, of a kind that one checker is for.
#![allow(dead_code, clippy::unwrap_used, missing_docs, reason = "shared by tests")]

use reveille_chaos::history::*;

/// The checker that must find it, what it is called, and how it is planted.
pub type Plant = (&'static str, &'static str, fn(&mut Vec<Event>));

pub const PLANTS: &[Plant] = &[
    ("C1", "lost-middle", |events| {
        // Forgotten by the cluster: the next one does not name it.
        let at = delivered(events, 1);
        let Observation::Delivered { prev: before, .. } = seen(&events[at]).clone() else { unreachable!() };
        let Observation::Delivered { prev, .. } = seen_mut(&mut events[at + 1]) else { unreachable!() };
        *prev = before;
        events.remove(at);
    }),
    ("C2", "phantom", |events| {
        let at = last_delivered(events);
        let mut ghost = events[at].clone();
        let Observation::Delivered { payload, seq, prev, .. } = seen_mut(&mut ghost) else { unreachable!() };
        (*payload, *prev, *seq) = ("ghost".to_owned(), Some(*seq), *seq + 1);
        events.insert(at + 1, ghost);
    }),
    ("C2", "astray", |events| {
        // What was for the first terminal comes to the last one, too.
        let other = delivered(events, 0);
        let Observation::Delivered { payload: first, .. } = seen(&events[other]).clone() else {
            unreachable!()
        };
        let at = last_delivered(events);
        let mut astray = events[at].clone();
        let Observation::Delivered { payload, seq, prev, .. } = seen_mut(&mut astray) else { unreachable!() };
        (*payload, *prev, *seq) = (first, Some(*seq), *seq + 1);
        events.insert(at + 1, astray);
    }),
    ("C3", "twice-in-a-life", |events| {
        let at = delivered(events, 1);
        events.insert(at + 1, events[at].clone());
    }),
    ("C3", "unmarked", |events| {
        let marked = |event: &Event| {
            matches!(&event.what, What::Observe(Observation::Delivered { maybe_seen: true, .. }))
        };
        let at = events.iter().position(marked).unwrap();
        let Observation::Delivered { maybe_seen, .. } = seen_mut(&mut events[at]) else { unreachable!() };
        *maybe_seen = false;
    }),
    ("C4", "swapped", |events| {
        let at = delivered(events, 0);
        let (one, two) = (events[at].what.clone(), events[at + 1].what.clone());
        (events[at].what, events[at + 1].what) = (two, one);
    }),
    ("C4", "gap", |events| {
        let at = last_delivered(events);
        let Observation::Delivered { seq, prev, .. } = seen_mut(&mut events[at]) else { unreachable!() };
        // It comes as another seq than the publisher was told only if nothing was told: leave the seq, and name more.
        *prev = Some(*seq + 3);
    }),
    ("C5", "log-order", |events| {
        let at = events.iter().rposition(|event| published(event).is_some()).unwrap();
        let What::Ok { got: Result::Published { position, .. }, .. } = &mut events[at].what else {
            unreachable!()
        };
        *position = Some((1, 1));
    }),
    ("C5", "two-names", |events| {
        // The last push gets the name of the first of its terminal, and keeps its seq.
        let at = events.iter().rposition(|event| published(event).is_some()).unwrap();
        let What::Ok { got: Result::Published { message, .. }, .. } = &mut events[at].what else {
            unreachable!()
        };
        *message = message.rsplit_once('-').map(|(stream, _)| format!("{stream}-1")).unwrap();
    }),
    ("C6", "stale-read", |events| {
        // By a node that has not heard of the last session.
        let at = events.iter().rposition(status).unwrap();
        let What::Ok { got: Result::Status { epoch, .. }, .. } = &mut events[at].what else { unreachable!() };
        *epoch -= 1;
    }),
    ("C6", "risen-from-the-dead", |events| {
        // The same query again, answered online without a new epoch.
        let at = events.iter().rposition(status).unwrap();
        let ask = events[..at].iter().rposition(|event| matches!(event.what, What::Invoke(_))).unwrap();
        let (mut ask, mut answer) = (events[ask].clone(), events[at].clone());
        let What::Invoke(invoke) = &mut ask.what else { unreachable!() };
        let What::Ok { op, got: Result::Status { online, node, .. } } = &mut answer.what else {
            unreachable!()
        };
        (invoke.op, *op, *online, *node) = (1 << 40, 1 << 40, true, Some(1));
        events.splice(at + 1..at + 1, [ask, answer]);
    }),
    ("C7", "older-epoch", |events| {
        let at = last_delivered(events);
        let Observation::Delivered { epoch, .. } = seen_mut(&mut events[at]) else { unreachable!() };
        *epoch = epoch.map(|epoch| epoch - 1);
    }),
    ("C7", "two-devices", |events| {
        // Another process with the terminal's identity kept its session, and is given what was published later.
        let at = last_delivered(events);
        let What::Observe(Observation::Delivered { terminal, payload, seq, .. }) = events[at].what.clone()
        else {
            unreachable!()
        };
        let first = events
            .iter()
            .position(|event| {
                matches!(&event.what, What::Observe(Observation::Started { terminal: of, .. }) if *of == terminal)
            })
            .unwrap();
        // The epochs of the first process begin at 2 then.
        for event in events.iter_mut() {
            match &mut event.what {
                What::Observe(Observation::Connected { terminal: of, epoch, .. }) if *of == terminal => {
                    *epoch += 1
                }
                What::Observe(Observation::Delivered { terminal: of, epoch: Some(epoch), .. })
                    if *of == terminal =>
                {
                    *epoch += 1;
                }
                _ => {}
            }
        }
        let ops: Vec<u64> = events
            .iter()
            .filter_map(|event| match &event.what {
                What::Invoke(Invoke { op, call: Call::Status { terminal: of }, .. }) if *of == terminal => {
                    Some(*op)
                }
                _ => None,
            })
            .collect();
        for event in events.iter_mut() {
            if let What::Ok { op, got: Result::Status { epoch, .. } } = &mut event.what
                && ops.contains(op)
            {
                *epoch += 1;
            }
        }
        let late = Observation::Delivered {
            terminal: terminal.clone(),
            copy: 1,
            payload,
            seq,
            prev: None,
            maybe_seen: false,
            node: 1,
            epoch: Some(1),
        };
        let event = |at: &Event, seen| Event { what: What::Observe(seen), ..at.clone() };
        events.insert(at + 1, event(&events[at], late));
        let opened = Observation::Connected { terminal: terminal.clone(), copy: 1, node: 1, epoch: 1 };
        events.insert(first + 1, event(&events[first], opened));
        events.insert(first + 1, event(&events[first], Observation::Started { terminal, copy: 1 }));
    }),
    ("C8", "ack-taken-back", |events| {
        let at = events.iter().rposition(status).unwrap();
        let What::Ok { got: Result::Status { acked, .. }, .. } = &mut events[at].what else { unreachable!() };
        *acked = 1;
    }),
    ("C8", "acked-by-nobody", |events| {
        let at = events.iter().rposition(status).unwrap();
        let What::Ok { got: Result::Status { acked, .. }, .. } = &mut events[at].what else { unreachable!() };
        *acked += 2;
    }),
    ("C9", "publish-gap", |events| {
        // Between asking and answer, while a fault is about: so long nothing else is late.
        let began = events.iter().position(|event| matches!(event.what, What::Fault(_))).unwrap();
        let asked = |event: &Event| matches!(event.what, What::Invoke(_));
        let at = began + events[began..].iter().position(asked).unwrap();
        events[at + 1..].iter_mut().for_each(|event| event.at += 10_000_000);
    }),
    ("C10", "diverged", |events| {
        let at =
            events.iter().rposition(|event| matches!(&event.what, What::Observe(Observation::State { .. })));
        let Observation::State { hash, .. } = seen_mut(&mut events[at.unwrap()]) else { unreachable!() };
        *hash = "00000bad".to_owned();
    }),
    ("C11", "notified-online", |events| {
        let sent = |event: &Event| matches!(&event.what, What::Observe(Observation::Notifying { .. }));
        let at = events.iter().position(sent).unwrap();
        let Observation::Notifying { online, .. } = seen_mut(&mut events[at]) else { unreachable!() };
        *online = true;
    }),
    ("C11", "notified-late", |events| {
        let came = |event: &Event| matches!(&event.what, What::Observe(Observation::Notified { .. }));
        let at = events.iter().rposition(came).unwrap();
        events[at..].iter_mut().for_each(|event| event.at += 1_500_000);
    }),
    ("C12", "no-answer", |events| {
        let at = events.iter().position(|event| matches!(event.what, What::Fault(_))).unwrap();
        let call = Call::Look { payload: "t0.1".to_owned() };
        let (op, by, deadline_ms) = (1 << 40, "patient".to_owned(), Some(1000));
        let what = What::Invoke(Invoke { op, by, node: None, deadline_ms, call });
        events.insert(at, Event { what, ..events[at].clone() });
    }),
    ("C13", "memory", |events| {
        let taken = |event: &Event| matches!(&event.what, What::Observe(Observation::Resources { .. }));
        let at = events.iter().rposition(taken).unwrap();
        let Observation::Resources { rss_bytes, .. } = seen_mut(&mut events[at]) else { unreachable!() };
        *rss_bytes = 300_000_000;
    }),
    ("C16", "panic", |events| {
        let at = events.len() - 1;
        let line = "thread 'main' panicked at src/main.rs:1:1".to_owned();
        let seen = Observation::LogFound { node: 2, problem: Problem::Panic, line };
        events.insert(at, Event { what: What::Observe(seen), ..events[at].clone() });
    }),
];

/// Planted, and numbered and dated again.
pub fn plant(good: &[Event], plant: fn(&mut Vec<Event>)) -> Vec<Event> {
    let mut events = good.to_vec();
    plant(&mut events);
    let mut at = 0;
    for (n, event) in (0..).zip(&mut events) {
        at = at.max(event.at);
        (event.n, event.at) = (n, at);
    }
    events
}

fn seen(event: &Event) -> &Observation {
    match &event.what {
        What::Observe(seen) => seen,
        other => panic!("{other:?}"),
    }
}

fn seen_mut(event: &mut Event) -> &mut Observation {
    match &mut event.what {
        What::Observe(seen) => seen,
        other => panic!("{other:?}"),
    }
}

fn is_delivered(event: &Event) -> bool {
    matches!(&event.what, What::Observe(Observation::Delivered { maybe_seen: false, .. }))
}

/// The n-th of a burst of three or more that comes once.
fn delivered(events: &[Event], n: usize) -> usize {
    let whole = |at: &usize| {
        let burst = events[*at..].iter().take_while(|event| is_delivered(event)).count();
        burst >= 3
            && !is_delivered(&events[at - 1])
            && !matches!(&events[at + burst].what, What::Observe(Observation::Started { .. }))
    };
    (1..events.len()).filter(|at| is_delivered(&events[*at])).find(whole).unwrap() + n
}

fn last_delivered(events: &[Event]) -> usize {
    let any = |event: &Event| matches!(&event.what, What::Observe(Observation::Delivered { .. }));
    events.iter().rposition(any).unwrap()
}

fn published(event: &Event) -> Option<u64> {
    match &event.what {
        What::Ok { got: Result::Published { seq, .. }, .. } => Some(*seq),
        _ => None,
    }
}

fn status(event: &Event) -> bool {
    matches!(&event.what, What::Ok { got: Result::Status { .. }, .. })
}
