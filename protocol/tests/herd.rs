//! Very many terminals with a push each, and leaders that change meanwhile: notifications are spread, those who come by
//! themselves are left alone, and everybody comes to be notified. On a clock of its own, exact.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test stops where it is surprised")]

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

use reveille_protocol::dispatch::{Command, Dispatch, Event, Facts};
use reveille_protocol::id::*;
use reveille_protocol::service_list::row::{Current, Reachability, Urgency};
use reveille_protocol::time::Instant;

const TERMINALS: u32 = 100_000;
const PER_SECOND: u64 = 8000;
/// What a leader may order at once after a pause.
const BURST: u64 = PER_SECOND / 5;
/// From an answered notification to the session's attach.
const CONNECTS: Duration = Duration::from_millis(150);
/// From the attach to the ack: an application that takes its time.
const ACKS: Duration = Duration::from_millis(400);

fn terminal(number: u32) -> TerminalId {
    let mut id = [7; 16];
    id[..4].copy_from_slice(&number.to_be_bytes());
    TerminalId(id)
}

fn facts(online: bool) -> Facts {
    Facts {
        stream: Stream(1),
        epoch: Epoch(1 + u64::from(online)),
        attempt: Attempt(1),
        session: online.then_some(Current { node: NodeId(1), incarnation: Incarnation(1) }),
        reachability: Reachability::Direct {
            address: ([192, 0, 2, 1], 5000).into(),
            listening_key: KeyFingerprint([1; 32]),
        },
        pending: 1,
        next_seq: Seq(2),
        acked: Seq(0),
        min_urgency: Urgency::VeryLow,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Happens {
    Answers,
    Attaches,
    Acks,
}

/// A shard's leaders, one after the other, and the terminals around them.
#[derive(Default)]
struct World {
    now: Instant,
    dispatch: Dispatch,
    term: u64,
    agenda: BTreeSet<(Instant, Happens, TerminalId)>,
    /// Those whose push is pending, and whether they have a session.
    pending: BTreeMap<TerminalId, bool>,
    coming: BTreeSet<TerminalId>,
    notified: BTreeMap<TerminalId, u64>,
    when: Vec<Instant>,
}

impl World {
    fn tell(&mut self, event: Event) {
        for command in self.dispatch.handle(self.now, event) {
            match command {
                Command::Notify { terminal, .. } => {
                    assert!(!self.pending[&terminal], "notified in a session that is not silent");
                    *self.notified.entry(terminal).or_default() += 1;
                    self.when.push(self.now);
                    self.agenda.insert((self.now + Duration::from_millis(5), Happens::Answers, terminal));
                }
                Command::HandOff(order) => {
                    let (terminal, epoch) = (order.terminal, order.epoch);
                    self.tell(Event::HandedOff { terminal, epoch, upto: Some(Seq(1)) });
                }
                Command::Detach { .. } => panic!("nobody reported that"),
            }
        }
    }

    /// What a new leader does: it knows only what the table says.
    fn new_leader(&mut self) {
        self.term += 1;
        self.tell(Event::Lead { term: self.term });
        self.tell(Event::Pace { per_second: NonZeroU32::new(PER_SECOND as u32).unwrap() });
        for (terminal, online) in self.pending.clone() {
            let (facts, urgency) = (Some(facts(online)), Some(Urgency::Normal));
            self.tell(Event::Found { terminal, facts, urgency });
        }
    }

    fn comes(&mut self, at: Instant, terminal: TerminalId) {
        if self.coming.insert(terminal) {
            self.agenda.insert((at, Happens::Attaches, terminal));
        }
    }

    fn run_until(&mut self, until: Instant) {
        loop {
            let timer = self.dispatch.poll_timeout().map(|at| at.max(self.now));
            let next = self.agenda.first().map(|(at, ..)| *at);
            let Some(at) = timer.into_iter().chain(next).min().filter(|at| *at < until) else { break };
            self.now = at;
            if timer == Some(at) {
                self.tell(Event::Timeout);
                continue;
            }
            let (_, what, terminal) = self.agenda.pop_first().unwrap();
            match what {
                Happens::Answers => {
                    self.tell(Event::Notified { terminal, failed: None });
                    self.comes(self.now + CONNECTS, terminal);
                }
                Happens::Attaches => {
                    self.pending.insert(terminal, true);
                    self.tell(Event::Changed { terminal, facts: Some(facts(true)), stored: None });
                    self.agenda.insert((self.now + ACKS, Happens::Acks, terminal));
                }
                Happens::Acks => {
                    self.pending.remove(&terminal);
                    let done = Facts { pending: 0, acked: Seq(1), session: None, ..facts(true) };
                    self.tell(Event::Changed { terminal, facts: Some(done), stored: None });
                }
            }
        }
        self.now = until;
    }
}

#[test]
fn a_herd_is_notified_at_the_rate_through_changes_of_leaders() {
    let mut world = World { now: Instant(1000), ..World::default() };
    world.pending = (0..TERMINALS).map(|number| (terminal(number), false)).collect();
    // Every fifth was notified by a leader before and comes by itself, within some seconds.
    let by_themselves: Vec<_> = (0..TERMINALS).filter(|number| number % 5 == 0).collect();
    for number in &by_themselves {
        world.comes(Instant(1000 + u64::from(*number) / 10), terminal(*number));
    }
    let changes = [Instant(1000), Instant(1900), Instant(4000), Instant(4001)];
    for change in changes {
        world.run_until(change);
        world.new_leader();
    }
    world.run_until(Instant(60_000));

    assert!(world.pending.is_empty(), "{} pushes wait for ever", world.pending.len());
    assert!(world.dispatch.is_empty());
    // No second sees more than the rate and a burst of each leader in it.
    for (at, from) in world.when.iter().enumerate() {
        let within = world.when[at..].iter().take_while(|when| when.since(*from) < Duration::from_secs(1));
        let leaders =
            changes.iter().filter(|change| change.since(*from) < Duration::from_secs(1)).count() as u64;
        let within = within.count() as u64;
        assert!(within <= PER_SECOND + BURST * (1 + leaders), "{within} in the second from {from:?}");
    }
    // At a change only those are notified again that are on their way.
    let again: u64 = world.notified.values().map(|count| count - 1).sum();
    let on_their_way = PER_SECOND * CONNECTS.as_millis() as u64 / 1000 + BURST;
    assert!(again <= on_their_way * changes.len() as u64, "{again} notified again");
    assert!(world.notified.values().all(|count| *count <= changes.len() as u64));
    // Most of those who came by themselves did so before their turn.
    let needless =
        by_themselves.iter().filter(|number| world.notified.contains_key(&terminal(**number))).count();
    assert!(needless < by_themselves.len() / 2, "{needless} of {}", by_themselves.len());
}

/// Those who send have no room: nobody is passed over, nobody is asked for in vain all the time, and the order stays.
#[test]
fn no_room_is_waited_for_and_loses_no_turn() {
    let mut dispatch = Dispatch::default();
    let mut now = Instant(0);
    dispatch.handle(now, Event::Lead { term: 1 });
    dispatch.handle(now, Event::Pace { per_second: NonZeroU32::new(100).unwrap() });
    let (mut orders, mut taken) = (0, Vec::new());
    let mut waiting = Vec::new();
    for number in 0..200 {
        let (terminal, urgency) = (terminal(number), Some(Urgency::Normal));
        waiting.extend(dispatch.handle(now, Event::Found { terminal, facts: Some(facts(false)), urgency }));
    }
    while taken.len() < 200 {
        for command in std::mem::take(&mut waiting) {
            let Command::Notify { terminal, attempt, .. } = command else { panic!("{command:?}") };
            orders += 1;
            assert_eq!(attempt, 0, "what was not taken is no step of the ladder");
            // For the first two seconds nobody has room.
            match now < Instant(2000) {
                true => waiting.extend(dispatch.handle(now, Event::NoRoom { terminal })),
                false => taken.push(terminal),
            }
        }
        if taken.len() < 200 {
            now = now.max(dispatch.poll_timeout().unwrap());
            waiting.extend(dispatch.handle(now, Event::Timeout));
        }
    }
    assert!(orders <= 200 + 100, "{orders} orders for 200 terminals");
    assert_eq!(taken.iter().collect::<BTreeSet<_>>().len(), 200);
    assert!(now < Instant(5000), "as soon as there was room they went at the rate: {now:?}");
}
