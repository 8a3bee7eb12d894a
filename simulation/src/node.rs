//! A node: what of it survives its process (disk, tables, id), and the running member. How it starts and ends is in `start`,
//! what is done to its folder in `folder`.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;
use openraft::alias::LogIdOf;
use reveille_cluster::door::Door;
use reveille_cluster::host::{Host, NotifyOrder, Taken};
use reveille_cluster::member::{Beginning, GroupStorage, Member, MemberConfig, Start};
use reveille_cluster::tables::{MemoryTables, Tables};
use reveille_cluster::wal::disk::{Fault, SimDisk};
use reveille_cluster::wal::{Owner, Pace, Wal, WalConfig};
use reveille_cluster::{StartError, Starts};
use reveille_protocol::directory::{Directory, Node, Tenant};
use reveille_protocol::id::*;
use reveille_protocol::service_list::{Table, TableMut, key};
use reveille_protocol::wire::codec;
use reveille_protocol::wire::peer::SessionMessage;

use crate::folder::OwnDisk;
use crate::process::Process;
use crate::world::{Setting, Sim, SimTypes, World, lock, true_wall};

/// Shard groups of the tests' worlds.
pub const GROUPS: u16 = 2;
const CLUSTER: u64 = 0xc1;

pub struct SimNode {
    pub id: NodeId,
    setting: Setting,
    address: String,
    /// The nodes that it is told of by its configuration.
    configured: BTreeMap<NodeId, String>,
    founder: bool,
    pub disk: SimDisk,
    /// Those of its running life, or what the last one left.
    pub(crate) tables: Mutex<BTreeMap<GroupId, MemoryTables>>,
    /// Milliseconds that its wall clock is ahead.
    pub ahead: Arc<AtomicI64>,
    /// Microseconds that its process runs of each tenth of a second; 0: always.
    pub quota: AtomicU64,
    /// What becomes of unsynced writes when its process is killed, if its disk is worse than the system promises.
    pub tear: Mutex<Option<Tear>>,
    pub(crate) state: Mutex<State>,
}

/// How a disk loses what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tear {
    /// All of it.
    Whole,
    /// A part of each write.
    Part,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) running: Option<Running>,
    pub(crate) lives: u64,
    /// In its data folder, with what follows: its random name, and whether the others have let it in.
    pub(crate) starts: Starts,
    pub(crate) has_log: bool,
    pub(crate) store: u64,
    pub(crate) admitted: bool,
    /// It said so itself.
    pub(crate) failed: Option<String>,
    /// A fault of its disk was ordered in this life: it may say that it fails.
    pub(crate) may_fail: bool,
    /// By what happened at a fail point in this life it must say that it ends.
    pub(crate) due: bool,
    /// It has had its incarnation in this life: it has started.
    pub(crate) begun: bool,
    /// Something was done to its folder: it may find that it has lost what it had promised.
    pub(crate) damaged: bool,
    /// It has, as it said: only another one can take its place.
    pub(crate) lost: Option<String>,
    /// It ended for good, and how.
    pub(crate) gone: Option<&'static str>,
}

#[derive(Clone)]
pub(crate) struct Running {
    /// Not there yet while it asks the others.
    pub(crate) member: Option<Arc<Member<Sim>>>,
    /// Held, not asked, as what follows.
    pub(crate) _door: Arc<Door<Sim>>,
    pub(crate) _wal: Option<Arc<Wal>>,
    /// Its disk obeys it no longer once this is false.
    pub(crate) alive: Arc<AtomicBool>,
    pub(crate) process: Arc<Process>,
}

/// A node's log, and what its groups have of it.
pub(crate) type Opened = (Arc<Wal>, BTreeMap<GroupId, GroupStorage<Sim>>);

/// How a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// What was not synced is lost or torn.
    Power,
    /// The system keeps what was written.
    Kill,
}

/// The log entry that tables say they have taken in, if this is where they say it.
fn applied(key: &[u8], value: &[u8]) -> Option<u64> {
    let id = || codec::decode::<LogIdOf<SimTypes>, 1024>(value).ok();
    if key == [0] { id().map(|id| id.index) } else { None }
}

/// The same of tables.
fn applied_of(tables: &impl Table) -> Option<u64> {
    tables.get(&[0]).ok().flatten().and_then(|value| applied(&[0], &value))
}

/// The node around its member: every call becomes something on the agenda, as it becomes a message in production.
pub(crate) struct SimHost {
    pub(crate) world: Weak<World>,
    pub(crate) node: NodeId,
    pub(crate) life: u64,
}

impl SimHost {
    fn world(&self) -> Option<Arc<World>> {
        self.world.upgrade().filter(|world| world.is_life(self.node, self.life))
    }
}

impl Host for SimHost {
    fn session(&self, message: SessionMessage) -> Taken {
        self.world().map_or(Taken::NoSession, |world| world.to_session(self.node, message))
    }

    fn notify(&self, order: NotifyOrder) -> bool {
        self.world().is_some_and(|world| world.notify(self.node, self.life, &order))
    }

    fn directory(&self, _directory: Arc<Directory>) {}

    fn go_elsewhere(&self, whose: &dyn Fn(&TerminalId) -> bool) {
        if let Some(world) = self.world() {
            world.saw("terminals sent elsewhere");
            world.leave_sessions(self.node, whose);
        }
    }

    fn fenced(&self) {
        if let Some(world) = self.world() {
            world.say(format!("n{} finds itself marked down", self.node));
            world.leave_sessions(self.node, &|_| true);
        }
    }

    fn failed(&self, why: String) {
        if let Some(world) = self.world() {
            world.failed(self.node, why);
        }
    }
}

impl SimNode {
    /// A node of a new cluster.
    fn founder(id: NodeId, setting: Setting, configured: BTreeMap<NodeId, String>) -> SimNode {
        SimNode { founder: true, ..SimNode::new(id, id.0, setting, configured[&id].clone(), configured) }
    }

    /// A node that joins.
    pub fn new(
        id: NodeId,
        store: u64,
        setting: Setting,
        address: String,
        configured: BTreeMap<NodeId, String>,
    ) -> SimNode {
        SimNode {
            id,
            setting,
            address,
            configured,
            founder: false,
            disk: SimDisk::default(),
            tables: Mutex::new(setting.all_groups().map(|group| (group, MemoryTables::default())).collect()),
            ahead: Arc::default(),
            quota: AtomicU64::new(0),
            tear: Mutex::default(),
            // Who joins was let in by its token, and the first nodes by each other.
            state: Mutex::new(State { store, admitted: true, ..State::default() }),
        }
    }

    /// The others that its configuration tells it of, and where they are.
    pub(crate) fn configured_others(&self) -> BTreeMap<NodeId, String> {
        let others = self.configured.iter().filter(|(id, _)| **id != self.id);
        others.map(|(id, address)| (*id, address.clone())).collect()
    }

    /// The highest id that it knows of by that.
    pub(crate) fn highest_configured(&self) -> NodeId {
        self.configured.keys().copied().chain([self.id]).max().unwrap_or_default()
    }

    pub fn tables(&self, group: GroupId) -> MemoryTables {
        lock(&self.tables)[&group].clone()
    }

    /// What was not flushed is gone, and what the life that ends still writes, nobody reads.
    pub(crate) fn crash_tables(&self) {
        lock(&self.tables).values_mut().for_each(|tables| *tables = MemoryTables::of(tables.durable()));
    }

    pub fn member(&self) -> Option<Arc<Member<Sim>>> {
        lock(&self.state).running.as_ref().and_then(|running| running.member.clone())
    }

    pub fn process(&self) -> Option<Arc<Process>> {
        lock(&self.state).running.as_ref().map(|running| running.process.clone())
    }

    pub fn gone(&self) -> Option<&'static str> {
        lock(&self.state).gone
    }

    /// It ends for good: its machine is lost, or the cluster wants it no more.
    pub fn set_gone(&self, why: &'static str) {
        lock(&self.state).gone = Some(why);
    }

    /// Its process is there, whether or not it takes part yet.
    pub fn is_started(&self) -> bool {
        lock(&self.state).running.is_some()
    }

    /// It is about to end by what happened at a fail point.
    pub fn is_due(&self) -> bool {
        lock(&self.state).due
    }

    /// It has lost what it had promised, and why it says so: it is not to be started any more.
    pub fn lost(&self) -> Option<String> {
        lock(&self.state).lost.clone()
    }

    /// Something is done to its folder: it may find that it has lost what it had promised.
    pub fn set_damaged(&self) {
        lock(&self.state).damaged = true;
    }

    /// What it said of its end, if it did.
    pub fn take_failure(&self) -> Option<String> {
        lock(&self.state).failed.take()
    }

    /// Something is wrong with its disk from now on.
    pub fn break_disk(&self, fault: Fault) {
        lock(&self.state).may_fail = true;
        self.disk.set_fault(Some(fault));
    }

    /// What its tables have under a key is damaged from now on.
    pub fn damage_row(&self, group: GroupId, key: &[u8]) {
        lock(&self.state).may_fail = true;
        self.tables(group).write().put(key, Bytes::new());
    }

    pub(crate) fn open(&self, alive: &Arc<AtomicBool>, pace: Pace) -> Result<Opened, StartError> {
        let config = WalConfig {
            segment_bytes: self.setting.segment_bytes,
            max_segments: 4,
            cache_bytes: 8 * 1024,
            create: !std::mem::replace(&mut lock(&self.state).has_log, true),
            ..WalConfig::new(Owner { cluster: CLUSTER, node: self.id.0 }, self.setting.groups + 1)
        };
        let disk = Arc::new(OwnDisk(self.disk.clone(), alive.clone()));
        let wal = Arc::new(Wal::open_paced(disk, config, pace)?);
        let storage = lock(&self.tables).clone().into_iter().map(|(group, tables)| {
            let log = wal.group(group.0).expect("a group of this node");
            let behind = Arc::downgrade(&wal);
            tables.keep_behind(move || match behind.upgrade() {
                Some(log) => log.barrier(),
                None => Err(std::io::Error::other("the log is closed")),
            });
            (group, GroupStorage::<Sim> { log, tables })
        });
        let storage = storage.collect();
        Ok((wal, storage))
    }

    pub(crate) fn config(&self, life: u64) -> MemberConfig {
        let State { starts, store, .. } = &mut *lock(&self.state);
        let at = |address: &String| Node { peer: address.clone(), ..Node::default() };
        let tenant = Tenant { name: "sim".to_owned(), enrolment_key: None, open: true };
        let beginning = Beginning {
            nodes: self.configured.iter().map(|(id, address)| (*id, at(address))).collect(),
            tenants: BTreeMap::from([(TenantId(1), tenant)]),
            tokens: BTreeMap::new(),
            secret: [7; 32],
        };
        let ahead = self.ahead.clone();
        MemberConfig {
            node: self.id,
            cluster: CLUSTER,
            groups: self.setting.groups,
            nodes: self.configured.clone(),
            addresses: at(&self.address),
            store: *store,
            boot: (self.id.0 * 1000 + life) << 32,
            // Nothing to write: `starts` is entered where the node has joined.
            start: Start {
                before: starts.entered,
                ..Start::unaccounted(starts.begin(self.id.0 * 1000 + life))
            },
            beginning: self.founder.then_some(beginning),
            wall: Arc::new(move || (true_wall() as i64 + ahead.load(Ordering::Relaxed)) as u64 * 1000),
        }
    }
}

impl World {
    /// The nodes that a cluster begins with.
    pub fn found(&self, nodes: u64) {
        let configured: BTreeMap<_, _> = (1..=nodes).map(|id| (NodeId(id), format!("host{id}"))).collect();
        for id in configured.keys() {
            lock(&self.nodes).insert(*id, Arc::new(SimNode::founder(*id, self.setting, configured.clone())));
        }
    }

    pub fn node(&self, id: NodeId) -> Arc<SimNode> {
        lock(&self.nodes)[&id].clone()
    }

    pub fn all_nodes(&self) -> Vec<Arc<SimNode>> {
        lock(&self.nodes).values().cloned().collect()
    }

    /// Where every node is.
    pub fn addresses(&self) -> BTreeMap<NodeId, String> {
        self.all_nodes().iter().map(|node| (node.id, node.address.clone())).collect()
    }

    /// The running ones that the cluster may want.
    pub fn members(&self) -> Vec<Arc<Member<Sim>>> {
        let nodes = self.all_nodes();
        nodes.iter().filter(|node| node.gone().is_none()).filter_map(|node| node.member()).collect()
    }

    /// Any running node.
    pub fn any_member(&self) -> Option<Arc<Member<Sim>>> {
        let members = self.members();
        (!members.is_empty()).then(|| members[self.below(members.len() as u64) as usize].clone())
    }

    /// Does this life of the node still run?
    pub fn is_life(&self, node: NodeId, life: u64) -> bool {
        let node = self.node(node);
        let state = lock(&node.state);
        state.lives == life && state.running.is_some()
    }

    pub fn life(&self, node: NodeId) -> u64 {
        lock(&self.node(node).state).lives
    }

    /// Notes which log entry stores which push.
    pub(crate) fn watch_tables(self: &Arc<World>, node: &SimNode, group: GroupId) {
        let (world, entry) = (Arc::downgrade(self), AtomicU64::new(0));
        node.tables(group).watch(move |key, value| {
            if let Some(index) = applied(key, value) {
                entry.store(index, Ordering::Relaxed);
            } else if let Some((terminal, seq)) = key::parse_pending(key)
                && let Some(world) = world.upgrade()
            {
                let position = (group, entry.load(Ordering::Relaxed));
                lock(&world.positions).entry((terminal, seq)).or_insert(position);
            }
        });
    }

    /// After which log entry a node's tables of a group are, and what they hold, as one number.
    pub fn state_of(&self, node: NodeId, group: GroupId) -> Option<(u64, u64)> {
        let contents = self.node(node).tables(group).contents();
        let index = contents.0.iter().next().and_then(|(key, value)| applied(key, value))?;
        let mut hash = DefaultHasher::new();
        contents.0.hash(&mut hash);
        Some((index, hash.finish()))
    }

    /// After which log entry they are.
    pub fn applied_at(&self, node: NodeId, group: GroupId) -> Option<u64> {
        applied_of(&self.node(node).tables(group).read())
    }
}
