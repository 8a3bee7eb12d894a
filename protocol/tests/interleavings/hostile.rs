//! Values that no honest peer sends: every counter at its edges, in log entries, between nodes and in sessions. The
//! machines may refuse or close; they must not panic, and the tables must stay consistent.

use bytes::Bytes;
use reveille_protocol::directory::Secret;
use reveille_protocol::dispatch::{self, Dispatch, Facts};
use reveille_protocol::id::*;
use reveille_protocol::service_list::row::{Linger, Reachability, Settings, Urgency};
use reveille_protocol::service_list::{self as list, Attached, Command, MemoryTable, apply, view};
use reveille_protocol::session::{server, terminal};
use reveille_protocol::time::{GroupTime, Instant};
use reveille_protocol::wire::entry::Entry;
use reveille_protocol::wire::peer::{HandOff, HandedPush, Reported, Why};
use reveille_protocol::wire::session::*;

use crate::dice::Dice;
use crate::history::check_tables;
use crate::world::GROUP;

const KEY: KeyFingerprint = KeyFingerprint([1; 32]);
const EDGES: [u64; 14] =
    [0, 1, 1, 2, 2, 3, 3, 64, 65, 4096, u32::MAX as u64, i64::MAX as u64, u64::MAX - 1, u64::MAX];

fn edge(dice: &mut Dice) -> u64 {
    dice.pick(&EDGES)
}

fn seq(dice: &mut Dice) -> Seq {
    Seq(edge(dice))
}

/// Clocks are honest: a monotonic one does not reach the end of its range.
fn instant(dice: &mut Dice) -> Instant {
    Instant(edge(dice).min(i64::MAX as u64))
}

fn linger(dice: &mut Dice) -> Linger {
    dice.pick(&[Linger::AtOnce, Linger::Seconds(0), Linger::Seconds(u32::MAX), Linger::Forever])
}

fn attach(dice: &mut Dice) -> list::Attach {
    list::Attach {
        terminal: KEY.terminal(),
        attempt: Attempt(edge(dice)),
        node: NodeId(edge(dice)),
        incarnation: Incarnation(edge(dice)),
        stream: Stream(dice.pick(&[0, 7])),
        last: seq(dice),
        reachability: Reachability::None,
        secret: 1,
        linger: linger(dice),
        min_urgency: Urgency::VeryLow,
    }
}

fn enqueue(dice: &mut Dice) -> list::Enqueue {
    list::Enqueue {
        id: CommandId([dice.below(4) as u8; 16]),
        not_after: GroupTime(edge(dice)),
        retry: dice.permille(300),
        terminal: KEY.terminal(),
        tenant: TenantId(1),
        ttl: Some(edge(dice)),
        urgency: Urgency::Normal,
        channel: Channel(edge(dice) as u32),
        topic: dice.permille(500).then(|| "topic".to_owned()),
        idempotency: dice.permille(300).then_some(list::Idempotency { key: [1; 16], body_hash: [1; 16] }),
        headers: Vec::new(),
        body: Bytes::from(vec![0; dice.below(200) as usize]),
    }
}

fn command(dice: &mut Dice) -> Command {
    let (terminal, stream, tenant) = (KEY.terminal(), Stream(7), TenantId(1));
    let epoch = Epoch(edge(dice));
    match dice.below(12) {
        0 | 1 => Command::Attach(Box::new(attach(dice))),
        2 => Command::Ack(list::Ack { terminal, stream, epoch, seq: seq(dice) }),
        3 => Command::Detach(list::Detach { terminal, stream, epoch, ack: Some(seq(dice)) }),
        4 => Command::Expire,
        5 => {
            let message = MessageId { terminal, check: stream.check(), seq: seq(dice) };
            Command::Cancel(list::Cancel { message, tenant })
        }
        6 if dice.permille(100) => Command::Unregister(list::Unregister { terminal, tenant }),
        7 if dice.permille(300) => Command::Settings(Settings {
            max_payload: edge(dice) as u32,
            max_pending: edge(dice) as u32,
            max_pending_bytes: edge(dice) as u32,
            default_ttl: edge(dice),
            max_ttl: edge(dice),
            wake_window: edge(dice),
            memory_of_ends: edge(dice),
            registration_lifetime: edge(dice).max(1),
        }),
        // A stream is never drawn twice.
        6 | 7 => {
            Command::Register(list::Register { tenant, session_key: KEY, stream: Stream(dice.next() | 1) })
        }
        _ => Command::Enqueue(Box::new(enqueue(dice))),
    }
}

/// Log entries with anything in them.
pub fn entries(seed: u64) {
    let mut dice = Dice::new(seed);
    let mut table = MemoryTable::default();
    let register = list::Register { tenant: TenantId(1), session_key: KEY, stream: Stream(7) };
    let mut commands = vec![Command::Register(register), Command::Settings(Settings::default())];
    for number in 0..60 {
        // Time may leap to its end, where it stays.
        let time = GroupTime(if dice.permille(30) { edge(&mut dice) } else { number });
        apply(&mut table, GROUP, &Entry { time, commands }).expect("memory cannot fail");
        check_tables(&table);
        commands = (0..dice.below(4)).map(|_| command(&mut dice)).collect();
        view::waiting(&table, None, 10).expect("memory cannot fail");
    }
}

fn hand_off(dice: &mut Dice) -> HandOff {
    let pushes = (0..dice.below(4)).map(|_| HandedPush {
        seq: seq(dice),
        prev: seq(dice),
        maybe_seen: false,
        remaining: edge(dice) as u32,
        lives_for: edge(dice),
        channel: Channel(0),
        headers: Vec::new(),
        body: Bytes::new(),
    });
    let pushes = pushes.collect();
    HandOff {
        group: GROUP,
        term: edge(dice),
        terminal: KEY.terminal(),
        stream: Stream(7),
        epoch: Epoch(1),
        attempt: Attempt(1),
        pushes,
        covers: seq(dice),
    }
}

fn class(dice: &mut Dice) -> Class {
    dice.pick(&[Class::Untried, Class::Direct, Class::Pinned, Class::None])
}

fn offer(dice: &mut Dice) -> Offer {
    let cause = dice.pick(&[Cause::Start, Cause::Notified, Cause::CheckIn, Cause::Moved]);
    Offer { class: class(dice), cause }
}

fn anchor() -> Anchor {
    let seen = [192, 0, 2, 1].into();
    Anchor { port: 7000, handle: [1; 16], generation: 1, key: [2; 32], period: 25, seen }
}

fn terminal_frame(dice: &mut Dice) -> TerminalFrame {
    match dice.below(7) {
        5 => TerminalFrame::Offer(offer(dice)),
        6 => TerminalFrame::Try(Try { class: class(dice) }),
        0 => TerminalFrame::Ack(Ack { seq: seq(dice) }),
        1 => TerminalFrame::Resend(Resend { from: seq(dice) }),
        2 => TerminalFrame::Ping(Nonce(edge(dice))),
        3 => TerminalFrame::Pong(Nonce(edge(dice))),
        _ => TerminalFrame::Goodbye(Ack { seq: seq(dice) }),
    }
}

/// A node's session, with a terminal and a leader that say anything.
pub fn server(seed: u64) {
    let mut dice = Dice::new(seed);
    let config = server::Config {
        node: NodeId(1),
        incarnation: Incarnation(1),
        session_key: KEY,
        group: GROUP,
        peer_ip: [192, 0, 2, 1].into(),
        secret: Secret { generation: 1, key: [9; 32] },
        check_in: std::time::Duration::from_secs(1),
        linger_max: Some(reveille_protocol::limits::MAX_LINGER),
        anchor: Some(server::AnchorAt { port: 7000, period: 25 }),
    };
    let mut machine = server::Server::new(config, Instant(0));
    let hello = Hello {
        terminal: KEY.terminal(),
        attempt: Attempt(1),
        stream: Stream(7),
        last: seq(&mut dice),
        listening: Some(Listening { port: 5000, key: KEY }),
        linger: linger(&mut dice),
        min_urgency: Urgency::Low,
        enrolment: None,
    };
    if dice.permille(700) {
        machine.handle(Instant(0), server::Event::Frame(TerminalFrame::Offer(offer(&mut dice))));
    }
    machine.handle(Instant(0), server::Event::Frame(TerminalFrame::Hello(hello)));
    let attached = Attached {
        stream: Stream(7),
        epoch: Epoch(1),
        acked: seq(&mut dice),
        pending: edge(&mut dice) as u32,
        linger: linger(&mut dice),
    };
    machine.handle(Instant(0), server::Event::Attached(Some(Ok(attached))));
    for _ in 0..20 {
        let event = match dice.below(5) {
            0 => server::Event::Frame(terminal_frame(&mut dice)),
            1 => server::Event::AckDone(None),
            3 => server::Event::Tried(Tried { class: class(&mut dice), reached: dice.permille(500) }),
            2 => server::Event::Timeout,
            _ => server::Event::HandOff(hand_off(&mut dice)),
        };
        machine.handle(instant(&mut dice), event);
    }
}

fn node_frame(dice: &mut Dice) -> NodeFrame {
    match dice.below(6) {
        5 => NodeFrame::Tried(Tried { class: class(dice), reached: dice.permille(500) }),
        0 => NodeFrame::Gap(Gap { from: seq(dice), to: seq(dice) }),
        1 => NodeFrame::Ping(Nonce(edge(dice))),
        2 => NodeFrame::Pong(Nonce(edge(dice))),
        _ => NodeFrame::Push(Push {
            seq: seq(dice),
            prev: seq(dice),
            maybe_seen: true,
            remaining: edge(dice) as u32,
            lives_for: edge(dice),
            channel: Channel(1),
            headers: Vec::new(),
            body: Bytes::new(),
        }),
    }
}

/// A terminal's session, with a node that says anything.
pub fn terminal(seed: u64) {
    let mut dice = Dice::new(seed);
    let memory =
        terminal::Memory { attempt: Attempt(1), stream: Stream(7), epoch: Epoch(1), last: seq(&mut dice) };
    let config = terminal::Config {
        terminal: KEY.terminal(),
        memory,
        listening: Some(Listening { port: 5000, key: KEY }),
        offer: dice.permille(700).then(|| offer(&mut dice)),
        seen: dice.permille(500).then_some([192, 0, 2, 1].into()),
        bound: dice.permille(300).then_some([192, 0, 2, 1].into()),
        linger: linger(&mut dice),
        min_urgency: Urgency::Low,
        enrolment: None,
        given: seq(&mut dice),
    };
    let mut machine = terminal::Terminal::new(config, Instant(0));
    machine.handle(Instant(0), terminal::Event::Connected);
    let welcome = Welcome {
        node: NodeId(1),
        stream: Stream(dice.pick(&[7, 8])),
        epoch: Epoch(edge(&mut dice)),
        acked: seq(&mut dice),
        pending: edge(&mut dice) as u32,
        linger: linger(&mut dice),
        notify_secret: [0; 32],
        check_in: 1,
    };
    if dice.permille(700) {
        machine.handle(Instant(0), terminal::Event::Frame(NodeFrame::Anchor(anchor())));
    }
    machine.handle(Instant(0), terminal::Event::Frame(NodeFrame::Welcome(welcome)));
    for _ in 0..20 {
        let event = match dice.below(6) {
            5 => terminal::Event::Bound,
            0 => terminal::Event::Confirmed(seq(&mut dice)),
            1 => terminal::Event::Notified,
            2 => terminal::Event::Timeout,
            _ => terminal::Event::Frame(node_frame(&mut dice)),
        };
        machine.handle(instant(&mut dice), event);
    }
}

/// A dispatcher, with reports from nodes that say anything.
pub fn dispatcher(seed: u64) {
    let mut dice = Dice::new(seed);
    let mut dispatch = Dispatch::default();
    let terminal = KEY.terminal();
    dispatch.handle(Instant(0), dispatch::Event::Lead { term: edge(&mut dice) });
    for _ in 0..30 {
        let acked = seq(&mut dice);
        let facts = Facts {
            stream: Stream(7),
            epoch: Epoch(1),
            attempt: Attempt(1),
            session: dice
                .permille(700)
                .then_some(list::row::Current { node: NodeId(1), incarnation: Incarnation(1) }),
            reachability: Reachability::None,
            pending: edge(&mut dice) as u32,
            next_seq: acked.next(),
            acked,
            min_urgency: Urgency::Low,
        };
        let epoch = Epoch(1);
        let event = match dice.below(5) {
            0 => {
                let what = Reported::Resend { from: seq(&mut dice) };
                dispatch::Event::Reported { terminal, epoch, node: NodeId(1), what }
            }
            1 => dispatch::Event::HandedOff { terminal, epoch, upto: Some(seq(&mut dice)) },
            2 => dispatch::Event::Notified { terminal, failed: dice.permille(500).then_some(Why::NoAnswer) },
            3 => dispatch::Event::Timeout,
            _ => dispatch::Event::Changed {
                terminal,
                facts: Some(facts),
                stored: Some(dispatch::Stored::one(Seq(1), Urgency::High)),
            },
        };
        dispatch.handle(instant(&mut dice), event);
    }
}
