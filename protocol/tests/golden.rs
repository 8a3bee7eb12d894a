//! The bytes of every format that is sent or stored, pinned in `golden.txt`: a changed line is a changed protocol.
//! Each is also cut short at every byte, and random bytes are fed to each decoder: an error, never a panic.
//!
//! `UPDATE_GOLDEN=1 cargo test -p reveille-protocol --test golden` writes the file anew.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

use std::collections::BTreeMap;
use std::fmt::Write;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use reveille_protocol::directory::{
    Change, Directory, Node, Record, Rights, Roster, Secret, Standing, Tenant, Token,
};
use reveille_protocol::id::*;
use reveille_protocol::service_list::row::{
    Current, Ended, Linger, Message, Reachability, Row, Settings, Urgency,
};
use reveille_protocol::service_list::{self as list, Command, Refusal, Reply, key};
use reveille_protocol::stage::End;
use reveille_protocol::time::GroupTime;
use reveille_protocol::wire::backup::{self, End as BackupEnd, Head, Part};
use reveille_protocol::wire::codec;
use reveille_protocol::wire::entry::Entry;
use reveille_protocol::wire::notification::{Notification, NotificationAck, first_cid};
use reveille_protocol::wire::peer::{
    HandOff, HandedPush, Notified, NotifyOrder, Report, Reported, SessionMessage, Why,
};
use reveille_protocol::wire::session::*;

const TERMINAL: TerminalId = TerminalId([0xaa; 16]);
const KEY: KeyFingerprint = KeyFingerprint([0xbb; 32]);
const RESTORE: RestoreId = RestoreId([0xee; 16]);

fn headers() -> Vec<(String, String)> {
    vec![("k".to_owned(), "v".to_owned())]
}

fn terminal_frames() -> Vec<(&'static str, TerminalFrame)> {
    let hello = Hello {
        terminal: TERMINAL,
        attempt: Attempt(3),
        stream: Stream(1 << 40),
        last: Seq(7),
        listening: Some(Listening { port: 5000, key: KEY }),
        linger: Linger::Seconds(30),
        min_urgency: Urgency::Low,
        enrolment: Some(Bytes::from_static(b"token")),
    };
    vec![
        ("session.hello", TerminalFrame::Hello(hello)),
        ("session.ack", TerminalFrame::Ack(Ack { seq: Seq(300) })),
        ("session.resend", TerminalFrame::Resend(Resend { from: Seq(4) })),
        ("session.terminal_ping", TerminalFrame::Ping(Nonce(9))),
        ("session.terminal_pong", TerminalFrame::Pong(Nonce(9))),
        ("session.goodbye", TerminalFrame::Goodbye(Ack { seq: Seq(7) })),
        ("session.offer", TerminalFrame::Offer(Offer { class: Class::Pinned, cause: Cause::Moved })),
        ("session.try", TerminalFrame::Try(Try { class: Class::Direct })),
    ]
}

fn node_frames() -> Vec<(&'static str, NodeFrame)> {
    let welcome = Welcome {
        node: NodeId(2),
        stream: Stream(1 << 40),
        epoch: Epoch(5),
        acked: Seq(7),
        pending: 2,
        linger: Linger::Forever,
        notify_secret: [0xcc; 32],
        check_in: 21_600,
    };
    let push = Push {
        seq: Seq(8),
        prev: Seq(6),
        maybe_seen: true,
        remaining: 1,
        lives_for: 60_000,
        channel: Channel(0),
        headers: headers(),
        body: Bytes::from_static(b"hello"),
    };
    let anchor = Anchor {
        port: 8443,
        handle: [0xdd; 16],
        generation: 3,
        key: [0xee; 32],
        period: 25,
        seen: [192, 0, 2, 1].into(),
    };
    let bye = |reason| NodeFrame::Bye(Bye { reason, retry_after: 1000 });
    vec![
        ("session.welcome", NodeFrame::Welcome(welcome)),
        ("session.push", NodeFrame::Push(push)),
        ("session.gap", NodeFrame::Gap(Gap { from: Seq(4), to: Seq(6) })),
        ("session.node_ping", NodeFrame::Ping(Nonce(9))),
        ("session.node_pong", NodeFrame::Pong(Nonce(9))),
        ("session.bye_done", bye(ByeReason::Done)),
        ("session.bye_stale_attempt", bye(ByeReason::StaleAttempt(Attempt(9)))),
        ("session.bye_ack_ahead", bye(ByeReason::AckAhead)),
        ("session.anchor", NodeFrame::Anchor(anchor)),
        ("session.tried", NodeFrame::Tried(Tried { class: Class::Pinned, reached: true })),
    ]
}

fn session_messages() -> Vec<(&'static str, SessionMessage)> {
    let hand_off = HandOff {
        group: GroupId(3),
        term: 4,
        terminal: TERMINAL,
        stream: Stream(77),
        epoch: Epoch(5),
        attempt: Attempt(3),
        pushes: vec![HandedPush {
            seq: Seq(8),
            prev: Seq(6),
            maybe_seen: false,
            remaining: 0,
            lives_for: 60_000,
            channel: Channel(1),
            headers: headers(),
            body: Bytes::from_static(b"hello"),
        }],
        covers: Seq(8),
    };
    let order = NotifyOrder {
        group: GroupId(3),
        terminal: TERMINAL,
        stream: Stream(77),
        epoch: Epoch(5),
        reachability: Reachability::Pinned { anchor: NodeId(2), listening_key: KEY },
        secret: 1,
        pending: 4,
        urgency: Urgency::High,
        attempt: 2,
    };
    let report = |what| {
        SessionMessage::Report(Report { group: GroupId(3), terminal: TERMINAL, epoch: Epoch(5), what })
    };
    vec![
        ("peer.hand_off", SessionMessage::HandOff(hand_off)),
        ("peer.supersede", SessionMessage::Supersede { terminal: TERMINAL, epoch: Epoch(5) }),
        ("peer.no_such_session", report(Reported::NoSuchSession { incarnation: Incarnation(2) })),
        ("peer.delivered", report(Reported::Delivered { upto: Seq(8) })),
        ("peer.resend", report(Reported::Resend { from: Seq(7) })),
        ("peer.notify", SessionMessage::Notify(order)),
        ("peer.notified", report(Reported::Notified(Notified::Unanswered(Why::NoBinding)))),
    ]
}

fn commands() -> Vec<(&'static str, Command)> {
    let message = MessageId { terminal: TERMINAL, check: 77, seq: Seq(8) };
    let attach = list::Attach {
        terminal: TERMINAL,
        attempt: Attempt(3),
        node: NodeId(2),
        incarnation: Incarnation(4),
        stream: Stream(77),
        last: Seq(7),
        reachability: Reachability::Direct { address: ([192, 0, 2, 1], 5000).into(), listening_key: KEY },
        secret: 1,
        linger: Linger::AtOnce,
        min_urgency: Urgency::VeryLow,
    };
    let enqueue = list::Enqueue {
        id: CommandId([0xdd; 16]),
        not_after: GroupTime(1_700_000_060_000),
        retry: false,
        terminal: TERMINAL,
        tenant: TenantId(1),
        ttl: Some(60_000),
        urgency: Urgency::High,
        channel: Channel(0),
        topic: Some("news".to_owned()),
        idempotency: Some(list::Idempotency { key: [1; 16], body_hash: [2; 16] }),
        headers: headers(),
        body: Bytes::from_static(b"hello"),
    };
    let (terminal, stream, epoch) = (TERMINAL, Stream(77), Epoch(5));
    let reachability = Reachability::Pinned { anchor: NodeId(3), listening_key: KEY };
    let create = Change::Create {
        cluster: 0xc1,
        groups: 3,
        nodes: BTreeMap::from([(NodeId(1), Node::default())]),
        tenants: tenants(),
        tokens: tokens(),
        secret: [3; 32],
    };
    vec![
        ("register", Command::Register(list::Register { tenant: TenantId(1), session_key: KEY, stream })),
        ("attach", Command::Attach(Box::new(attach))),
        ("ack", Command::Ack(list::Ack { terminal, stream, epoch, seq: Seq(8) })),
        ("detach", Command::Detach(list::Detach { terminal, stream, epoch, ack: Some(Seq(8)) })),
        ("enqueue", Command::Enqueue(Box::new(enqueue))),
        ("cancel", Command::Cancel(list::Cancel { message, tenant: TenantId(1) })),
        ("expire", Command::Expire),
        (
            "set_reachability",
            Command::SetReachability(list::SetReachability { terminal, stream, epoch, reachability }),
        ),
        ("unregister", Command::Unregister(list::Unregister { terminal, tenant: TenantId(1) })),
        ("settings", Command::Settings(Settings::default())),
        ("set_share", Command::SetShare(list::SetShare { tenant: TenantId(1), max_terminals: Some(9) })),
        ("directory.create", Command::Directory(Box::new(create))),
        (
            "directory.down",
            Command::Directory(Box::new(Change::Down { node: NodeId(1), incarnation: Incarnation(2) })),
        ),
    ]
}

fn tenants() -> BTreeMap<TenantId, Tenant> {
    BTreeMap::from([(TenantId(1), Tenant { name: "a".to_owned(), enrolment_key: None, open: true })])
}

fn tokens() -> BTreeMap<KeyFingerprint, Token> {
    let token = Token {
        name: "t".to_owned(),
        tenant: TenantId(1),
        rights: Rights { publish: true, read: false, admin: false },
        expires: Some(GroupTime(5)),
    };
    BTreeMap::from([(KEY, token)])
}

fn node() -> Node {
    Node {
        peer: "n1:1".to_owned(),
        session: "n1:2".to_owned(),
        http: "http://n1:3".to_owned(),
        zone: "z".to_owned(),
        incarnation: Incarnation(4),
        boot: 5,
        down: Incarnation(3),
    }
}

/// What came with format 2.
fn later_commands() -> Vec<(&'static str, Command)> {
    let node_id = NodeId(4);
    let changes = vec![
        ("directory.set_format", Change::SetFormat { format: 2 }),
        ("directory.enter", Change::Enter { node: node_id, boot: 5, store: 6, addresses: node() }),
        (
            "directory.invite",
            Change::Invite {
                peer: "n4:1".to_owned(),
                token: KEY,
                expires: GroupTime(5),
                replaces: Some(NodeId(2)),
            },
        ),
        ("directory.join", Change::Join { node: node_id, token: KEY, store: 6 }),
        ("directory.drain", Change::Drain { node: node_id, fewer: true }),
        ("directory.resume", Change::Resume { node: node_id }),
        ("directory.remove", Change::Remove { node: node_id, fewer: false }),
        ("directory.removed", Change::Removed { node: node_id }),
        ("directory.set_replicas", Change::SetReplicas { replicas: 3 }),
        (
            "directory.restore",
            Change::Restore {
                restore: RESTORE,
                tenants: tenants(),
                tokens: tokens(),
                secrets: vec![Secret { generation: 2, key: [3; 32] }],
            },
        ),
        // Since format 3.
        (
            "directory.return",
            Change::Return { node: node_id, boot: 5, before: 4, store: 6, addresses: node() },
        ),
    ];
    let imported = list::Imported { row: row(), from: Seq(1), pushes: vec![message()] };
    let steps = vec![
        ("import.begin", list::ImportStep::Begin),
        ("import.terminals", list::ImportStep::Terminals(vec![imported])),
        ("import.finish", list::ImportStep::Finish),
        ("import.give_up", list::ImportStep::GiveUp),
    ];
    let steps = steps
        .into_iter()
        .map(|(name, step)| (name, Command::Import(Box::new(list::Import { restore: RESTORE, step }))));
    let changes = changes.into_iter().map(|(name, change)| (name, Command::Directory(Box::new(change))));
    changes.chain(steps).collect()
}

/// A directory as it is stored by a cluster of this format.
fn directory(format: u32) -> Directory {
    let mut roster = Roster { format, ..Roster::founded([NodeId(1)].into_iter()) };
    if format > 1 {
        roster.last_node = NodeId(4);
        let standing = Standing::Invited { token: KEY, expires: GroupTime(5), replaces: Some(NodeId(1)) };
        roster.records.insert(NodeId(4), Record { standing, store: 0 });
        for (node, standing) in [(2, Standing::Draining), (3, Standing::Leaving)] {
            roster.records.insert(NodeId(node), Record { standing, store: node });
        }
    }
    Directory {
        cluster: 0xc1,
        groups: 3,
        nodes: BTreeMap::from([(NodeId(1), node())]),
        tenants: tenants(),
        tokens: tokens(),
        secrets: vec![Secret { generation: 1, key: [3; 32] }],
        counted: (3..=format).map(|_| NodeId(1)).collect(),
        roster,
    }
}

fn backup_parts() -> Vec<(&'static str, Part)> {
    let head = Head { cluster: 0xc1, group: GroupId(3), shards: 3, format: 2, index: 300 };
    let pairs = vec![(key::terminal(&TERMINAL).into(), Bytes::from_static(b"row"))];
    vec![
        ("backup.head", Part::Head(head)),
        ("backup.pairs", Part::Pairs(pairs)),
        ("backup.end", Part::End(BackupEnd { pairs: 1, time: GroupTime(1_700_000_000_000) })),
    ]
}

fn row() -> Row {
    Row {
        tenant: TenantId(1),
        stream: Stream(u64::MAX),
        session_key: KEY,
        epoch: Epoch(5),
        attempt: Attempt(3),
        current: Some(Current { node: NodeId(2), incarnation: Incarnation(4) }),
        reachability: Reachability::Direct { address: ([192, 0, 2, 1], 5000).into(), listening_key: KEY },
        secret: 1,
        next_seq: Seq(9),
        acked: Seq(7),
        pending: 1,
        pending_bytes: 5,
        linger: Linger::AtOnce,
        min_urgency: Urgency::VeryLow,
        registered: GroupTime(1_700_000_000_000),
        last_seen: GroupTime(1_700_000_001_000),
    }
}

fn message() -> Message {
    Message {
        command: CommandId([0xdd; 16]),
        accepted: GroupTime(1_700_000_000_000),
        deadline: GroupTime(1_700_000_060_000),
        urgency: Urgency::High,
        channel: Channel(0),
        topic: None,
        headers: headers(),
        body: Bytes::from_static(b"hello"),
    }
}

fn others() -> Vec<(&'static str, Vec<u8>)> {
    let ended = Ended {
        command: CommandId([0xdd; 16]),
        tenant: TenantId(1),
        accepted: GroupTime(1_700_000_000_000),
        deadline: GroupTime(1_700_000_060_000),
        end: End::Acked,
        at: GroupTime(1_700_000_000_500),
        seen: None,
    };
    let id = MessageId { terminal: TERMINAL, check: 77, seq: Seq(8) };
    let notification = Notification {
        id: 9,
        epoch: Epoch(5),
        pending: 1,
        urgency: Urgency::High,
        hints: vec!["n1:1".to_owned()],
    };
    let reply = Reply::Enqueued {
        message: id,
        deadline: GroupTime(1_700_000_060_000),
        accepted: GroupTime(1_700_000_000_000),
        duplicate: false,
    };
    vec![
        ("stored.row", codec::encode(&row())),
        ("stored.message", codec::encode(&message())),
        ("stored.ended", codec::encode(&ended)),
        ("key.terminal", key::terminal(&TERMINAL)),
        ("key.pending", key::pending(&TERMINAL, Seq(8))),
        ("key.ended", key::ended(&id)),
        ("key.tenant_terminal", key::tenant_terminal(TenantId(1), &TERMINAL)),
        ("notification", notification.encode()),
        ("notification.ack", NotificationAck { id: 9 }.encode()),
        ("notification.first_cid", first_cid(&[0xcc; 32], 42).to_vec()),
        ("reply.enqueued", codec::encode(&reply)),
        ("reply.refused", codec::encode(&Reply::Refused(Refusal::QueueFull { pending: 1, bytes: 5 }))),
    ]
}

fn frame<F: Frame>(frame: &F) -> Vec<u8> {
    let mut out = Vec::new();
    frame.encode(&mut out);
    out
}

fn entry(command: Command) -> Entry {
    Entry { time: GroupTime(1_700_000_000_000), commands: vec![command] }
}

#[test]
fn every_format_has_its_golden_bytes() {
    let mut all: Vec<(String, Vec<u8>)> = Vec::new();
    all.extend(terminal_frames().iter().map(|(name, value)| ((*name).to_owned(), frame(value))));
    all.extend(node_frames().iter().map(|(name, value)| ((*name).to_owned(), frame(value))));
    all.extend(session_messages().iter().map(|(name, value)| ((*name).to_owned(), value.encode())));
    all.extend(commands().into_iter().map(|(name, value)| (format!("entry.{name}"), entry(value).encode())));
    all.extend(others().into_iter().map(|(name, bytes)| (name.to_owned(), bytes)));
    // At the end, so that what was there before is seen not to change.
    all.extend(
        later_commands().into_iter().map(|(name, value)| (format!("entry.{name}"), entry(value).encode())),
    );
    all.extend(
        (1..=2).map(|format| (format!("stored.directory.{format}"), directory(format).encode().to_vec())),
    );
    all.push(("backup.start".to_owned(), backup::start()));
    all.extend(backup_parts().into_iter().map(|(name, part)| (name.to_owned(), part.encode())));
    let reachability = Reachability::Former {
        address: ([192, 0, 2, 1], 5000).into(),
        listening_key: KEY,
        stream: Stream(77),
        epoch: Epoch(5),
    };
    all.push(("stored.row.former".to_owned(), codec::encode(&Row { reachability, ..row() })));
    let stream = RESTORE.stream(GroupTime(1_700_000_000_000), &TERMINAL);
    all.push(("restore.stream".to_owned(), stream.0.to_be_bytes().to_vec()));
    all.push(("stored.directory.3".to_owned(), directory(3).encode().to_vec()));
    let mut text = String::new();
    for (name, bytes) in &all {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(text, "{name} {hex}").unwrap();
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden.txt");
    if std::env::var("UPDATE_GOLDEN").is_ok() {
        std::fs::write(path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap();
    for (now, was) in text.lines().zip(golden.lines()) {
        assert_eq!(now, was, "a format has changed; stored data and other versions cannot be read any more");
    }
    assert_eq!(text.lines().count(), golden.lines().count());
}

fn round_trip<F: Frame + PartialEq + std::fmt::Debug>(value: &F) {
    let bytes = frame(value);
    for cut in 0..bytes.len() {
        let mut buffer = BytesMut::from(&bytes[..cut]);
        assert_eq!(F::take(&mut buffer), Ok(None), "{value:?} cut at {cut}");
        if cut >= HEADER {
            // The whole frame is there, but its body is too short for what it says.
            let mut lying = bytes[..cut].to_vec();
            let len = (cut - HEADER) as u32;
            lying[2..HEADER].copy_from_slice(&len.to_le_bytes());
            assert!(F::take(&mut BytesMut::from(&lying[..])).is_err(), "{value:?} lies at {cut}");
        }
    }
    let mut twice = BytesMut::from(&[&bytes[..], &bytes[..]].concat()[..]);
    assert_eq!(F::take(&mut twice).unwrap().as_ref(), Some(value));
    assert_eq!(F::take(&mut twice).unwrap().as_ref(), Some(value));
    assert!(twice.is_empty());
}

#[test]
fn frames_round_trip_and_cut_ones_wait_or_fail() {
    terminal_frames().iter().for_each(|(_, value)| round_trip(value));
    node_frames().iter().for_each(|(_, value)| round_trip(value));
    let mut oversized = BytesMut::from(&[1, 4, 0xff, 0xff, 0xff, 0x7f][..]);
    assert!(matches!(TerminalFrame::take(&mut oversized), Err(FrameError::TooLong { .. })));
    let mut foreign = BytesMut::from(&[9, 4, 1, 0, 0, 0, 1][..]);
    assert_eq!(TerminalFrame::take(&mut foreign), Err(FrameError::Version(9)));
    let mut wrong_way = BytesMut::from(&frame(&node_frames()[1].1)[..]);
    assert_eq!(TerminalFrame::take(&mut wrong_way), Err(FrameError::Kind(3)), "a Push from a terminal");
}

#[test]
fn messages_and_entries_round_trip_and_cut_ones_fail() {
    for (name, message) in session_messages() {
        let bytes = message.encode();
        assert_eq!(SessionMessage::decode(&bytes).as_ref(), Ok(&message), "{name}");
        (0..bytes.len())
            .for_each(|cut| assert!(SessionMessage::decode(&bytes[..cut]).is_err(), "{name} at {cut}"));
    }
    for format in 1..=3 {
        let bytes = directory(format).encode();
        assert_eq!(Directory::decode(&bytes), Ok(directory(format)));
        (0..bytes.len()).for_each(|cut| assert!(Directory::decode(&bytes[..cut]).is_err(), "cut at {cut}"));
    }
    for (name, command) in commands().into_iter().chain(later_commands()) {
        let entry = entry(command);
        let bytes = entry.encode();
        assert_eq!(Entry::decode(&bytes).as_ref(), Ok(&entry), "{name}");
        (0..bytes.len()).for_each(|cut| assert!(Entry::decode(&bytes[..cut]).is_err(), "{name} at {cut}"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_are_errors_and_not_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Entry::decode(&bytes);
        let _ = SessionMessage::decode(&bytes);
        let _ = Notification::decode(&bytes);
        let _ = Directory::decode(&bytes);
        let _ = codec::decode::<Vec<list::Imported>, 1024>(&bytes);
        let mut reader = backup::Reader::default();
        reader.feed(&backup::start());
        reader.feed(&bytes);
        while let Ok(Some(_)) = reader.next_part() {}
        let _ = TerminalFrame::take(&mut BytesMut::from(&bytes[..]));
        // And with a good head, so that the bodies are reached.
        if bytes.len() > HEADER {
            bytes[0] = 1;
            let len = (bytes.len() - HEADER) as u32;
            bytes[2..HEADER].copy_from_slice(&len.to_le_bytes());
            for kind in 0..12 {
                bytes[1] = kind;
                let _ = TerminalFrame::take(&mut BytesMut::from(&bytes[..]));
                let _ = NodeFrame::take(&mut BytesMut::from(&bytes[..]));
            }
            let _ = Entry::decode(&bytes);
            let _ = SessionMessage::decode(&bytes);
            let _ = Notification::decode(&bytes);
        }
    }
}
