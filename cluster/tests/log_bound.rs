//! The log under one member, in simulation: however much goes through it, upkeep keeps it within its bound, and all
//! of it is there after a restart. What a log does when it is not cut, is in `wal_crash.rs`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use reveille_cluster::env::{Env, Transport};
use reveille_cluster::host::{Host, NotifyOrder, Taken};
use reveille_cluster::link::{Lane, SendError};
use reveille_cluster::member::{Beginning, GroupStorage, Member, MemberConfig, Start};
use reveille_cluster::raft::types::{Batch, Replies};
use reveille_cluster::tables::MemoryTables;
use reveille_cluster::wal::disk::{Disk, SimDisk};
use reveille_cluster::wal::{LogStore, Owner, Wal, WalConfig, WalGroup};
use reveille_protocol::directory::{Directory, Node, Tenant};
use reveille_protocol::id::*;
use reveille_protocol::service_list::{Command, Register, Reply};
use reveille_protocol::wire::peer::SessionMessage;
use reveille_simulation::commands;

openraft::declare_raft_types!(pub SimTypes: D = Batch, R = Replies, AsyncRuntime = SimRuntime);

const GROUPS: u16 = 2;
const SEGMENT: usize = 256 * 1024;
const SEGMENTS: usize = 8;

struct Alone;

impl Env for Alone {
    type Cfg = SimTypes;
    type Log = WalGroup;
    type Tables = MemoryTables;
    type Transport = Nobody;
}

/// There is no other node.
#[derive(Clone)]
struct Nobody;

impl Transport for Nobody {
    fn send(&self, _to: NodeId, _lane: Lane, _frame: Bytes) -> Result<(), SendError> {
        Err(SendError::Down)
    }

    fn set_peers(&self, _peers: BTreeMap<NodeId, String>, _known: NodeId) {}

    fn format(&self, _peer: NodeId) -> Option<u32> {
        None
    }

    fn set_format(&self, _format: u32) {}
}

impl Host for Nobody {
    fn session(&self, _message: SessionMessage) -> Taken {
        Taken::NoSession
    }

    fn notify(&self, _order: NotifyOrder) -> bool {
        true
    }

    fn directory(&self, _directory: Arc<Directory>) {}

    fn go_elsewhere(&self, _whose: &dyn Fn(&TerminalId) -> bool) {}
    fn fenced(&self) {}

    fn failed(&self, why: String) {
        panic!("{why}");
    }
}

fn open(disk: &SimDisk, create: bool) -> Wal {
    let config = WalConfig {
        segment_bytes: SEGMENT,
        max_segments: SEGMENTS,
        cache_bytes: 64 * 1024,
        create,
        ..WalConfig::new(Owner { cluster: 1, node: 1 }, GROUPS + 1)
    };
    Wal::open_inline(Arc::new(disk.clone()), config).expect("the log opens")
}

async fn start(wal: &Wal, tables: &BTreeMap<GroupId, MemoryTables>, boot: u64) -> Arc<Member<Alone>> {
    let storage = tables.iter().map(|(group, tables)| {
        (*group, GroupStorage::<Alone> { log: wal.group(group.0).unwrap(), tables: tables.clone() })
    });
    let config = MemberConfig {
        node: NodeId(1),
        cluster: 1,
        groups: GROUPS,
        nodes: BTreeMap::from([(NodeId(1), "n1".to_owned())]),
        addresses: Node::default(),
        store: 1,
        boot,
        start: Start { before: boot - 1, ..Start::unaccounted(boot) },
        beginning: Some(Beginning {
            nodes: BTreeMap::from([(NodeId(1), Node::default())]),
            tenants: BTreeMap::from([(
                TenantId(1),
                Tenant { name: "sim".to_owned(), enrolment_key: None, open: true },
            )]),
            tokens: BTreeMap::new(),
            secret: [7; 32],
        }),
        wall: Arc::new(|| 1_700_000_000_000_000),
    };
    let member = Member::start(config, storage.collect(), Nobody, Arc::new(Nobody)).await.unwrap();
    member.initialise().await.unwrap();
    member.join().await.expect("an incarnation");
    member
}

fn key(terminal: u8) -> KeyFingerprint {
    let mut key = [terminal; 32];
    // Spread over the slots.
    key[0] = terminal.wrapping_mul(15);
    KeyFingerprint(key)
}

async fn propose(member: &Arc<Member<Alone>>, terminal: u8, command: Command) {
    let group = member.group_of(&key(terminal).terminal());
    let reply = member.propose(group, command, Duration::from_secs(5)).await.expect("an answer");
    assert!(matches!(reply, Reply::Registered { .. } | Reply::Enqueued { .. }), "{reply:?}");
}

async fn scenario() {
    let disk = SimDisk::default();
    let tables: BTreeMap<_, _> =
        (0..=GROUPS).map(|group| (GroupId(group), MemoryTables::default())).collect();
    let wal = open(&disk, true);
    let member = start(&wal, &tables, 1).await;
    let terminals = 16;
    for terminal in 0..terminals {
        let register = Register { tenant: TenantId(1), session_key: key(terminal), stream: Stream(99) };
        propose(&member, terminal, Command::Register(register)).await;
    }
    let mut most = 0;
    for number in 0..3000u64 {
        let terminal = (number % u64::from(terminals)) as u8;
        let body = Bytes::from(vec![number as u8; 4000]);
        propose(&member, terminal, commands::push(number, key(terminal).terminal(), body)).await;
        SimRuntime::sleep(Duration::from_millis(10)).await;
        most = most.max(disk.list().unwrap().iter().filter(|name| name.ends_with(".wal")).count());
    }
    assert!(disk.written() > 3 * SEGMENT * SEGMENTS, "{} bytes are too few to mean anything", disk.written());
    assert!(most <= SEGMENTS, "{most} segments, {SEGMENTS} are allowed");
    assert!(disk.written() < 3000 * 4000 * 3 / 2, "{} bytes for 12 MB", disk.written());
    let purged = (1..=GROUPS).filter(|group| wal.group(*group).unwrap().purged().is_some()).count();
    assert_eq!(purged, usize::from(GROUPS), "both shards were cut");
    member.shutdown().await;
    // All but how far raft has come: a new term begins with an entry of its own.
    let contents = |tables: &MemoryTables| {
        let mut rows = tables.contents().0.clone();
        rows.retain(|key, _| key[0] != 0);
        rows
    };
    let before: Vec<_> = tables.values().map(contents).collect();
    drop((member, wal));
    disk.crash(|_, _| 0);
    for tables in tables.values() {
        tables.crash();
    }
    let wal = open(&disk, false);
    let member = start(&wal, &tables, 2).await;
    SimRuntime::sleep(Duration::from_secs(2)).await;
    for (before, (group, tables)) in before.iter().zip(&tables).skip(1) {
        assert!(contents(tables) == *before, "{group} is not what it was");
    }
    member.shutdown().await;
}

#[test]
fn upkeep_keeps_the_log_within_its_bytes() {
    SimRuntime::with_seed(1).block_on(scenario());
}
