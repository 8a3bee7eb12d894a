//! The simulated world: three members on virtual time, with a network that delays, cuts and loses, disks that
//! lose what was not synced, and hosts that take hand-offs for terminals that are not there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use reveille_cluster::env::{Env, Transport};
use reveille_cluster::host::{Host, NotifyOrder, Taken};
use reveille_cluster::link::{Lane, SendError};
use reveille_cluster::member::{Beginning, GroupStorage, Member, MemberConfig};
use reveille_cluster::raft::types::{Batch, Replies};
use reveille_cluster::tables::MemoryTables;
use reveille_cluster::wal::disk::{Fault, SimDisk};
use reveille_cluster::wal::{Owner, Wal, WalConfig, WalGroup};
use reveille_protocol::directory::{Directory, FORMAT, Node, Tenant};
use reveille_protocol::id::*;
use reveille_protocol::wire::peer::SessionMessage;

openraft::declare_raft_types!(pub SimTypes: D = Batch, R = Replies, AsyncRuntime = SimRuntime);

pub const GROUPS: u16 = 2;
pub const NODES: u64 = 3;
const CLUSTER: u64 = 0xc1;

pub struct Sim;

impl Env for Sim {
    type Cfg = SimTypes;
    type Log = WalGroup;
    type Tables = MemoryTables;
    type Transport = Wire;
}

/// A generator whose every draw comes from the seed (splitmix64, Steele et al. 2014).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    pub fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }
}

type Deliver = Arc<dyn Fn(NodeId, Lane, Bytes) + Send + Sync>;

/// The network: who listens, which directions are cut, and when each lane's last frame arrives.
#[derive(Clone)]
pub struct Network(Arc<Mutex<NetworkState>>);

struct NetworkState {
    dice: Dice,
    ports: BTreeMap<NodeId, Deliver>,
    cut: BTreeSet<(NodeId, NodeId)>,
    arrivals: BTreeMap<(NodeId, NodeId, u8), u64>,
    trace: Vec<String>,
}

/// One node's way into the network.
#[derive(Clone)]
pub struct Wire {
    network: Network,
    from: NodeId,
}

pub fn now() -> Duration {
    openraft_rt_sim::SimInstant::try_now().map(|now| now.elapsed_since_start()).unwrap_or_default()
}

impl Transport for Wire {
    fn send(&self, to: NodeId, lane: Lane, frame: Bytes) -> Result<(), SendError> {
        let mut state = self.network.0.lock().unwrap();
        if !state.ports.contains_key(&self.from) || !state.ports.contains_key(&to) {
            return Err(SendError::Down);
        }
        let delay = 100 + state.dice.roll(2_000);
        let arrival = state.arrivals.entry((self.from, to, lane as u8)).or_default();
        *arrival = (*arrival + 1).max(now().as_micros() as u64 + delay);
        let at = Duration::from_micros(*arrival);
        let (network, from) = (self.network.clone(), self.from);
        let _detached = SimRuntime::spawn(async move {
            SimRuntime::sleep(at.saturating_sub(now())).await;
            let port = {
                let state = network.0.lock().unwrap();
                if state.cut.contains(&(from, to)) {
                    return;
                }
                state.ports.get(&to).cloned()
            };
            if let Some(deliver) = port {
                deliver(from, lane, frame);
            }
        });
        Ok(())
    }

    fn set_peers(&self, _peers: BTreeMap<NodeId, String>, _known: NodeId) {}

    fn format(&self, peer: NodeId) -> Option<u32> {
        let state = self.network.0.lock().unwrap();
        (state.ports.contains_key(&peer) && !state.cut.contains(&(self.from, peer))).then_some(FORMAT)
    }

    fn set_format(&self, _format: u32) {}
}

impl Network {
    pub fn new(seed: u64) -> Network {
        Network(Arc::new(Mutex::new(NetworkState {
            dice: Dice::new(seed),
            ports: BTreeMap::new(),
            cut: BTreeSet::new(),
            arrivals: BTreeMap::new(),
            trace: Vec::new(),
        })))
    }

    /// Cuts a node off from the others, in one direction or both.
    pub fn cut(&self, node: NodeId, outgoing: bool, incoming: bool) {
        let mut state = self.0.lock().unwrap();
        for other in (1..=NODES).map(NodeId).filter(|other| *other != node) {
            if outgoing {
                state.cut.insert((node, other));
            }
            if incoming {
                state.cut.insert((other, node));
            }
        }
    }

    pub fn heal(&self) {
        self.0.lock().unwrap().cut.clear();
    }

    pub fn roll(&self, below: u64) -> u64 {
        self.0.lock().unwrap().dice.roll(below)
    }

    pub fn note(&self, line: String) {
        let at = now();
        self.0.lock().unwrap().trace.push(format!("{at:?} {line}"));
    }

    pub fn trace(&self) -> Vec<String> {
        self.0.lock().unwrap().trace.clone()
    }
}

/// A host without sessions: it takes no hand-off, so its member tells the leader that there is no such session.
struct NoSessions {
    network: Network,
    node: NodeId,
    member: OnceLock<Weak<Member<Sim>>>,
}

impl Host for NoSessions {
    fn session(&self, _message: SessionMessage) -> Taken {
        Taken::NoSession
    }

    fn notify(&self, order: NotifyOrder) -> bool {
        self.network.note(format!("n{} notifies {} ({} wait)", self.node, order.terminal, order.pending));
        true
    }

    fn directory(&self, _directory: Arc<Directory>) {}

    fn fenced(&self) {
        self.network.note(format!("n{} is fenced", self.node));
    }

    fn failed(&self, why: String) {
        self.network.note(format!("n{} fails: {why}", self.node));
    }
}

/// One node: what survives a crash, and the running member, if it runs.
pub struct SimNode {
    pub id: NodeId,
    disk: SimDisk,
    tables: BTreeMap<GroupId, MemoryTables>,
    running: Option<(Arc<Member<Sim>>, Wal)>,
    boots: u64,
    /// How far its wall clock is ahead.
    ahead: Duration,
}

impl SimNode {
    pub fn new(id: u64, ahead: Duration) -> SimNode {
        let tables = (0..=GROUPS).map(|group| (GroupId(group), MemoryTables::default())).collect();
        SimNode { id: NodeId(id), disk: SimDisk::default(), tables, running: None, boots: 0, ahead }
    }

    pub fn member(&self) -> Option<&Arc<Member<Sim>>> {
        self.running.as_ref().map(|(member, _)| member)
    }

    pub fn tables(&self, group: GroupId) -> &MemoryTables {
        &self.tables[&group]
    }

    pub async fn start(&mut self, network: &Network) {
        let create = self.boots == 0;
        self.boots += 1;
        let config = WalConfig {
            segment_bytes: 256 * 1024,
            cache_bytes: 64 * 1024,
            create,
            ..WalConfig::new(Owner { cluster: CLUSTER, node: self.id.0 }, GROUPS + 1)
        };
        let wal = Wal::open_inline(Arc::new(self.disk.clone()), config).expect("the log opens");
        let storage = self.tables.iter().map(|(group, tables)| {
            let log = wal.group(group.0).expect("a group of this node");
            (*group, GroupStorage::<Sim> { log, tables: tables.clone() })
        });
        let voters: BTreeMap<_, _> = (1..=NODES).map(|id| (NodeId(id), format!("n{id}"))).collect();
        let nodes: BTreeMap<_, _> = voters.keys().map(|id| (*id, Node::default())).collect();
        let tenant = Tenant { name: "sim".to_owned(), enrolment_key: None, open: true };
        let config = MemberConfig {
            node: self.id,
            cluster: CLUSTER,
            groups: GROUPS,
            nodes: voters,
            addresses: Node::default(),
            store: 1,
            boot: self.id.0 * 1000 + self.boots,
            beginning: Some(Beginning {
                nodes,
                tenants: BTreeMap::from([(TenantId(1), tenant)]),
                tokens: BTreeMap::new(),
                secret: [7; 32],
            }),
            wall: {
                let ahead = self.ahead;
                Arc::new(move || 1_700_000_000_000_000 + (now() + ahead).as_micros() as u64)
            },
        };
        let host = Arc::new(NoSessions { network: network.clone(), node: self.id, member: OnceLock::new() });
        let wire = Wire { network: network.clone(), from: self.id };
        let member =
            Member::start(config, storage.collect(), wire, host.clone()).await.expect("the member starts");
        host.member.get_or_init(|| Arc::downgrade(&member));
        let receiver = Arc::downgrade(&member);
        let deliver: Deliver = Arc::new(move |from, lane, frame| {
            if let Some(member) = receiver.upgrade() {
                member.received(from, lane, frame);
            }
        });
        network.0.lock().unwrap().ports.insert(self.id, deliver);
        self.running = Some((member, wal));
        network.note(format!("{} starts", self.id));
    }

    /// What a node does at each start, once it is reachable.
    pub async fn begin(&self) {
        self.member().expect("a running node").initialise().await.expect("the groups begin");
    }

    /// The links to the others are there.
    pub fn link_up(&self, others: &[Arc<Member<Sim>>]) {
        let Some(member) = self.member() else { return };
        for other in others {
            other.link_up(self.id, Lane::Control);
            member.link_up(other.node(), Lane::Control);
        }
    }

    /// The power goes: everything stops, and what was not synced is lost or torn as the dice say.
    pub async fn crash(&mut self, network: &Network, others: &[Arc<Member<Sim>>]) {
        let Some((member, wal)) = self.running.take() else { return };
        network.0.lock().unwrap().ports.remove(&self.id);
        self.disk.set_fault(Some(Fault::Power { after: 0 }));
        member.shutdown().await;
        drop((member, wal));
        for other in others {
            for lane in Lane::ALL {
                other.link_down(self.id, lane);
            }
        }
        let kept = network.roll(u64::MAX);
        self.disk.crash(|number, len| (kept.rotate_left(number as u32) % (len as u64 + 1)) as usize);
        for tables in self.tables.values() {
            tables.crash();
        }
        network.note(format!("{} crashes", self.id));
    }
}
