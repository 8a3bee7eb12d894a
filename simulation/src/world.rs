//! The world around the members: virtual time, what is on its way, everything random, and the story of the run. What
//! things mean is in `network`, `node`, `session`, `terminal` and `history`.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use openraft::async_runtime::AsyncRuntime;
use openraft_rt_sim::{SimInstant, SimRuntime};
use reveille_cluster::env::Env;
use reveille_cluster::raft::types::{Batch, Replies};
use reveille_cluster::tables::MemoryTables;
use reveille_cluster::wal::WalGroup;
use reveille_protocol::id::{GroupId, NodeId, Seq, TerminalId};
use reveille_protocol::time::Instant;
use tokio::sync::Notify;

use crate::dice::Dice;
use crate::fail_points::Armed;
use crate::faults::Order;
use crate::history::History;
use crate::ills::Ills;
use crate::ledger::Ledger;
use crate::nat::Networks;
use crate::network::{Network, Wire};
use crate::node::{GROUPS, SimNode};
use crate::notifier::Notifier;
use crate::process::NodeRuntime;
use crate::seen::Watch;
use crate::session::Connection;
use crate::terminal::Device;

/// Seconds between two keepalives.
pub const PERIOD: u16 = 1;

openraft::declare_raft_types!(pub SimTypes: D = Batch, R = Replies, AsyncRuntime = NodeRuntime);

pub struct Sim;

impl Env for Sim {
    type Cfg = SimTypes;
    type Log = WalGroup;
    type Tables = MemoryTables;
    type Transport = Wire;
}

/// Microseconds since the run began.
pub fn now() -> u64 {
    SimInstant::try_now().map_or(0, |now| now.elapsed_since_start().as_micros() as u64)
}

/// The same, as the pure machines take it.
pub fn instant() -> Instant {
    Instant(now() / 1000)
}

/// What every right wall clock says now, in milliseconds.
pub fn true_wall() -> u64 {
    1_700_000_000_000 + now() / 1000
}

pub async fn pause(millis: u64) {
    SimRuntime::sleep(Duration::from_millis(millis)).await;
}

pub(crate) type Happening = Box<dyn FnOnce(&Arc<World>) + Send>;

/// What a world is like.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Shard groups.
    pub groups: u16,
    /// Bytes of a log's segment.
    pub segment_bytes: usize,
    /// Its own rules are judged as it runs, and end it. Otherwise whoever watches judges.
    pub strict: bool,
    /// Its story is told as it goes.
    pub loud: bool,
}

impl Setting {
    /// The meta group and the shards.
    pub fn all_groups(self) -> impl Iterator<Item = GroupId> {
        (0..=self.groups).map(GroupId)
    }
}

impl Default for Setting {
    /// As the tests of the cluster have it: a log so small that it is cut all the time.
    fn default() -> Setting {
        // What waits for a leader for seconds comes as one entry, and must fit.
        Setting { groups: GROUPS, segment_bytes: 40 * 1024, strict: true, loud: false }
    }
}

pub struct World {
    pub setting: Setting,
    pub dice: Mutex<Dice>,
    agenda: Mutex<BTreeMap<(u64, u64), Happening>>,
    order: Mutex<u64>,
    stir: Notify,
    chaos: AtomicBool,
    pub operating: AtomicBool,
    story: Mutex<Vec<String>>,
    /// All that happened, and when, as one number.
    course: AtomicU64,
    /// How often each thing happened that the runs are for.
    seen: Mutex<BTreeMap<&'static str, u64>>,
    pub network: Mutex<Network>,
    pub nodes: Mutex<BTreeMap<NodeId, Arc<SimNode>>>,
    pub devices: Mutex<Vec<Device>>,
    pub connections: Mutex<BTreeMap<u64, Connection>>,
    pub networks: Mutex<Networks>,
    /// Of the running nodes, with the life that each is of.
    pub notifiers: Mutex<BTreeMap<NodeId, (u64, Notifier)>>,
    pub ledger: Mutex<Ledger>,
    pub history: Mutex<History>,
    pub orders: Mutex<BTreeMap<(u64, u64), Order>>,
    /// The one node whose clock may be wrong: a minority.
    pub wrong: Mutex<Option<NodeId>>,
    /// What ails links and notifications.
    pub ills: Mutex<Ills>,
    /// What nodes that stand still will find.
    pub backlog: Mutex<BTreeMap<NodeId, Vec<Happening>>>,
    /// What terminals that do not read will find.
    pub(crate) unread: Mutex<BTreeMap<usize, Vec<Happening>>>,
    pub watch: Mutex<Option<Watch>>,
    /// What happens at fail points.
    pub(crate) armed: Mutex<Vec<Armed>>,
    /// Which log entry stored a push first: group and index.
    pub positions: Mutex<BTreeMap<(TerminalId, Seq), (GroupId, u64)>>,
}

pub fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().expect("a panic ends the run")
}

impl World {
    pub fn new(seed: u64, setting: Setting) -> Arc<World> {
        Arc::new(World {
            setting,
            dice: Mutex::new(Dice::new(seed)),
            agenda: Mutex::default(),
            order: Mutex::default(),
            stir: Notify::new(),
            chaos: AtomicBool::new(false),
            operating: AtomicBool::new(false),
            story: Mutex::default(),
            course: AtomicU64::new(0),
            seen: Mutex::default(),
            network: Mutex::default(),
            nodes: Mutex::default(),
            devices: Mutex::default(),
            connections: Mutex::default(),
            networks: Mutex::default(),
            notifiers: Mutex::default(),
            ledger: Mutex::default(),
            history: Mutex::default(),
            orders: Mutex::default(),
            wrong: Mutex::default(),
            ills: Mutex::default(),
            backlog: Mutex::default(),
            unread: Mutex::default(),
            watch: Mutex::default(),
            armed: Mutex::default(),
            positions: Mutex::default(),
        })
    }

    /// A number never used before in this run.
    pub fn number(&self) -> u64 {
        let mut order = lock(&self.order);
        *order += 1;
        *order
    }

    /// At so many microseconds of the run, after what was to happen then before.
    pub fn at(&self, time: u64, happening: impl FnOnce(&Arc<World>) + Send + 'static) {
        let key = (time.max(now()), self.number());
        let first = {
            let mut agenda = lock(&self.agenda);
            agenda.insert(key, Box::new(happening));
            agenda.first_key_value().is_some_and(|(first, _)| *first == key)
        };
        if first {
            self.stir.notify_one();
        }
    }

    /// After so many milliseconds.
    pub fn after(&self, wait: u64, happening: impl FnOnce(&Arc<World>) + Send + 'static) {
        self.at(now() + wait * 1000, happening);
    }

    /// Lets happen what is on the agenda, for ever.
    pub async fn turn(self: &Arc<World>) {
        loop {
            let next = {
                let mut agenda = lock(&self.agenda);
                match agenda.first_entry() {
                    Some(first) if first.key().0 <= now() => Ok(first.remove_entry()),
                    Some(first) => Err(first.key().0 - now()),
                    None => Err(3_600_000_000),
                }
            };
            match next {
                Ok((key, happening)) => {
                    let mut hash = DefaultHasher::new();
                    (key, self.course.load(Ordering::Relaxed)).hash(&mut hash);
                    self.course.store(hash.finish(), Ordering::Relaxed);
                    happening(self);
                }
                Err(wait) => {
                    // Either way there is something to look at.
                    let _ = SimRuntime::timeout(Duration::from_micros(wait), self.stir.notified()).await;
                }
            }
        }
    }

    /// Nothing that is on its way arrives any more.
    pub fn end(&self) {
        lock(&self.agenda).clear();
        lock(&self.backlog).clear();
        lock(&self.unread).clear();
    }

    pub fn draw_networks(&self, terminals: usize) {
        let networks = Networks::new(terminals, u64::from(PERIOD) * 1000, &mut lock(&self.dice));
        *lock(&self.networks) = networks;
    }

    pub fn below(&self, bound: u64) -> u64 {
        lock(&self.dice).below(bound)
    }

    pub fn between(&self, from: u64, to: u64) -> u64 {
        lock(&self.dice).between(from, to)
    }

    pub fn permille(&self, chance: u64) -> bool {
        lock(&self.dice).permille(chance)
    }

    /// True in this share of cases, to a part in 2^53.
    pub fn chance(&self, share: f64) -> bool {
        ((lock(&self.dice).next() >> 11) as f64 / (1u64 << 53) as f64) < share
    }

    pub fn pick<T: Copy>(&self, from: &[T]) -> T {
        lock(&self.dice).pick(from)
    }

    /// A fault with this chance in a thousand, while faults go on.
    pub fn bad_luck(&self, permille: u64) -> bool {
        self.is_chaos() && self.permille(permille)
    }

    pub fn is_chaos(&self) -> bool {
        self.chaos.load(Ordering::Relaxed)
    }

    pub fn set_chaos(&self, chaos: bool) {
        self.chaos.store(chaos, Ordering::Relaxed);
    }

    pub fn say(&self, line: String) {
        let line = format!("{:>9.3} {line}", now() as f64 / 1e6);
        if self.setting.loud {
            println!("{line}");
        }
        lock(&self.story).push(line);
    }

    pub fn story(&self) -> Vec<String> {
        lock(&self.story).clone()
    }

    /// The times and the numbers of all that happened, as one number: two runs that have the same one took the same course.
    pub fn course(&self) -> u64 {
        self.course.load(Ordering::Relaxed)
    }

    pub fn saw(&self, what: &'static str) {
        *lock(&self.seen).entry(what).or_default() += 1;
    }

    pub fn seen(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.seen).clone()
    }
}
