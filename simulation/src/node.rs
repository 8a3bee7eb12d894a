//! A node: what of it survives its process (disk, tables, id), the running member, and how it starts and ends.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;
use futures::future::BoxFuture;
use openraft::alias::LogIdOf;
use openraft::async_runtime::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use reveille_cluster::Starts;
use reveille_cluster::host::{Host, NotifyOrder, Taken};
use reveille_cluster::member::{Beginning, GroupStorage, Member, MemberConfig, Start};
use reveille_cluster::tables::{Installer, MemoryTables, Tables};
use reveille_cluster::wal::disk::{Disk, Fault, SimDisk};
use reveille_cluster::wal::{Owner, Wal, WalConfig};
use reveille_protocol::directory::{Directory, Node, Tenant};
use reveille_protocol::id::*;
use reveille_protocol::service_list::{TableMut, key};
use reveille_protocol::wire::codec;
use reveille_protocol::wire::peer::SessionMessage;

use crate::network::Wire;
use crate::process::Process;
use crate::seen::Seen;
use crate::world::{Setting, Sim, SimTypes, World, lock, true_wall};

/// Shard groups of the tests' worlds.
pub const GROUPS: u16 = 2;
const CLUSTER: u64 = 0xc1;

pub struct SimNode {
    pub id: NodeId,
    setting: Setting,
    /// The random name of its data folder.
    pub store: u64,
    address: String,
    /// The nodes that it is told of by its configuration.
    configured: BTreeMap<NodeId, String>,
    founder: bool,
    pub disk: SimDisk,
    /// Those of its running life, or what the last one left.
    tables: Mutex<BTreeMap<GroupId, MemoryTables>>,
    /// Milliseconds that its wall clock is ahead.
    pub ahead: Arc<AtomicI64>,
    /// What becomes of unsynced writes when its process is killed, if its disk is worse than the system promises.
    pub tear: Mutex<Option<Tear>>,
    state: Mutex<State>,
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
struct State {
    running: Option<Running>,
    lives: u64,
    /// In its data folder.
    starts: Starts,
    has_log: bool,
    /// It said so itself.
    failed: Option<String>,
    /// A fault of its disk was ordered in this life: it may say that it fails.
    may_fail: bool,
    /// It ended for good, and how.
    gone: Option<&'static str>,
}

#[derive(Clone)]
struct Running {
    member: Arc<Member<Sim>>,
    /// Held, not asked.
    _wal: Arc<Wal>,
    /// Its disk obeys it no longer once this is false.
    alive: Arc<AtomicBool>,
    process: Arc<Process>,
}

/// A node's log, and what its groups have of it.
type Opened = (Arc<Wal>, BTreeMap<GroupId, GroupStorage<Sim>>);

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

/// The disk as one life of a node has it.
struct OwnDisk(SimDisk, Arc<AtomicBool>);

impl OwnDisk {
    fn check(&self) -> io::Result<&SimDisk> {
        match self.1.load(Ordering::Relaxed) {
            true => Ok(&self.0),
            false => Err(io::Error::other("the process that wanted this is gone")),
        }
    }
}

impl Disk for OwnDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        self.check()?.list()
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        self.check()?.len(name)
    }

    fn create(&self, name: &str, len: u64) -> io::Result<()> {
        self.check()?.create(name, len)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.check()?.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.check()?.remove(name)
    }

    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.check()?.read_at(name, offset, buffer)
    }

    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.check()?.write_at(name, offset, bytes)
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        self.check()?.sync(name)
    }

    fn location(&self) -> String {
        self.0.location()
    }
}

/// The node around its member: every call becomes something on the agenda, as it becomes a message in production.
struct SimHost {
    world: Weak<World>,
    node: NodeId,
    life: u64,
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
            store,
            address,
            configured,
            founder: false,
            disk: SimDisk::default(),
            tables: Mutex::new(setting.all_groups().map(|group| (group, MemoryTables::default())).collect()),
            ahead: Arc::default(),
            tear: Mutex::default(),
            state: Mutex::default(),
        }
    }

    pub fn tables(&self, group: GroupId) -> MemoryTables {
        lock(&self.tables)[&group].clone()
    }

    /// What was not flushed is gone, and what the life that ends still writes, nobody reads.
    async fn crash_tables(&self) {
        let ended = lock(&self.tables).clone();
        for (group, tables) in ended {
            tables.crash();
            let contents = tables.contents().0.into_iter().collect();
            let left = MemoryTables::default();
            let mut installer = left.installer().expect("memory cannot fail");
            installer.push(contents).await.expect("memory cannot fail");
            installer.finish().await.expect("memory cannot fail");
            lock(&self.tables).insert(group, left);
        }
    }

    pub fn member(&self) -> Option<Arc<Member<Sim>>> {
        lock(&self.state).running.as_ref().map(|running| running.member.clone())
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

    fn open(&self, alive: &Arc<AtomicBool>) -> Result<Opened, String> {
        let config = WalConfig {
            segment_bytes: self.setting.segment_bytes,
            max_segments: 4,
            cache_bytes: 8 * 1024,
            create: !std::mem::replace(&mut lock(&self.state).has_log, true),
            ..WalConfig::new(Owner { cluster: CLUSTER, node: self.id.0 }, self.setting.groups + 1)
        };
        let disk = Arc::new(OwnDisk(self.disk.clone(), alive.clone()));
        let wal = Arc::new(Wal::open_inline(disk, config).map_err(|error| error.to_string())?);
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

    fn config(&self, life: u64) -> MemberConfig {
        let starts = &mut lock(&self.state).starts;
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
            store: self.store,
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

    /// Its process starts, and goes as far as it gets by itself.
    pub fn start(self: &Arc<World>, id: NodeId) -> BoxFuture<'_, ()> {
        // Boxed here, so that all of openraft is compiled with this crate, optimised, and not with whoever waits for it.
        Box::pin(async move {
            if let Err(why) = self.try_start(id).await {
                assert!(!self.setting.strict, "n{id} does not start: {why}");
                self.say(format!("n{id} does not start: {why}"));
                self.tell(Seen::Fell { node: id, why });
            }
        })
    }

    async fn try_start(self: &Arc<World>, id: NodeId) -> Result<(), String> {
        let node = self.node(id);
        let life = {
            let mut state = lock(&node.state);
            assert!(state.running.is_none(), "n{id} runs already");
            state.lives += 1;
            (state.failed, state.may_fail) = (None, false);
            state.lives
        };
        self.say(format!("n{id} starts, life {life}"));
        let alive = Arc::new(AtomicBool::new(true));
        if !self.setting.strict {
            self.setting.all_groups().for_each(|group| self.watch_tables(&node, group));
        }
        let (wal, storage) = node.open(&alive)?;
        let wire = Wire { world: Arc::downgrade(self), from: id, life };
        let host = Arc::new(SimHost { world: Arc::downgrade(self), node: id, life });
        let process = Process::new(id);
        let member = process.run(Member::start(node.config(life), storage, wire, host)).await;
        let member = member.map_err(|error| error.to_string())?;
        let running = Running { member: member.clone(), _wal: wal, alive, process: process.clone() };
        lock(&node.state).running = Some(running);
        self.open_port(id, life, &member);
        self.open_sockets(id, life);
        process.run(member.initialise()).await.map_err(|error| error.to_string())?;
        let world = self.clone();
        let _detached = SimRuntime::spawn(process.run(async move {
            let joined = member.join().await;
            match joined {
                _ if !world.is_life(id, life) => {}
                Ok(incarnation) => {
                    let mut state = lock(&node.state);
                    let start = state.starts.begun;
                    state.starts.enter(start);
                    drop(state);
                    world.say(format!("n{id} has incarnation {incarnation}"));
                }
                Err(error) => world.failed(id, error.to_string()),
            }
        }));
        Ok(())
    }

    /// Notes which log entry stores which push.
    fn watch_tables(self: &Arc<World>, node: &SimNode, group: GroupId) {
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

    /// Its process ends.
    pub fn stop(self: &Arc<World>, id: NodeId, end: End) -> BoxFuture<'_, ()> {
        Box::pin(self.end_process(id, end))
    }

    async fn end_process(self: &Arc<World>, id: NodeId, end: End) {
        let node = self.node(id);
        let Some(running) = lock(&node.state).running.take() else { return };
        self.say(format!("n{id} ends: {end:?}"));
        running.alive.store(false, Ordering::Relaxed);
        // Of one that stands still, too, everything ends.
        running.process.resume();
        lock(&self.backlog).remove(&id);
        let silent = self.bad_luck(200);
        self.close_port(id, silent);
        self.close_sockets(id);
        self.break_sessions(id, silent);
        node.crash_tables().await;
        running.member.shutdown().await;
        drop(running);
        let tear = *lock(&node.tear);
        match end {
            End::Kill if tear == Some(Tear::Whole) => node.disk.crash(|_, _| 0),
            End::Kill if tear.is_none() => node.disk.kill(),
            End::Kill | End::Power => {
                let kept = self.below(u64::MAX);
                node.disk.crash(|number, len| (kept.rotate_left(number as u32) % (len as u64 + 1)) as usize);
            }
        }
    }

    /// A node says that it must end.
    fn failed(&self, id: NodeId, why: String) {
        let node = self.node(id);
        let mut state = lock(&node.state);
        let told = why.contains("was removed") || why.contains("not a member");
        let expected = state.may_fail || state.gone.is_some() || told;
        if state.failed.is_none() {
            self.say(format!("n{id} must end: {why}"));
            assert!(
                expected || !self.setting.strict,
                "n{id} must end for no reason that was given to it: {why}"
            );
            state.failed = Some(why.clone());
            drop(state);
            if !expected {
                self.tell(Seen::Fell { node: id, why });
            }
        }
    }
}
