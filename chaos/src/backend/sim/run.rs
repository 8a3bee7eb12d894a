//! One run: the world, its load, the phases, and the history of it all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use openraft::async_runtime::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use reveille_chaos::check::CHECKERS;
use reveille_chaos::history::{Begin, Expect, Observation, Phase, Problem, What};
use reveille_chaos::plan::plan;
use reveille_chaos::scenario::{Scenario, When};
use reveille_cluster::member::Member;
use reveille_links::draw::Draws;
use reveille_protocol::directory::NOTIFY_ANCHORS;
use reveille_protocol::id::*;
use reveille_protocol::service_list::row::Linger;
use reveille_simulation::run::{Panic, live, plant};
use reveille_simulation::terminal::Nature;
use reveille_simulation::world::{Setting, World, now, pause};

use super::canaries::Planted;
use super::record::Record;
use super::strike::Striker;
use super::{observe, publish};
use crate::cli::live::{Clock, watch};

/// All terminals have had their first session within this, in milliseconds, and all nodes are ready.
const FIRST: u64 = 60_000;
/// What happened last to pushes that were not given is asked of so many.
const LOOKS: usize = 200;
/// After everything has come, for what comes twice; milliseconds.
const QUIET: u64 = 1000;
/// Replicas have come to the same index within this, in milliseconds, after all is quiet.
const SETTLED: u64 = 20_000;
/// The checker of what processes take.
const RESOURCES: &str = "C13";
/// One terminal in so many is behind a NAT.
const BEHIND_NAT: usize = 4;
/// A node that was silent is asked only if all are, for so many microseconds.
const SILENT: u64 = 2_000_000;

/// What came of a run.
pub(crate) struct Ran {
    /// The history.
    pub(crate) history: Vec<u8>,
    /// Seconds of the world's time.
    pub(crate) virtual_seconds: f64,
    /// Seconds of the machine's.
    pub(crate) real_seconds: f64,
}

/// What everybody in a run shares.
pub(super) struct Run {
    pub(super) scenario: Scenario,
    pub(super) world: Arc<World>,
    pub(super) record: Arc<Record>,
    /// Publishers and observers go on.
    pub(super) load: AtomicBool,
    /// Publishers ask again without a pause.
    pub(super) storm: AtomicBool,
    /// Tries that their askers gave up, and their nodes have not ended.
    pub(super) given_up: AtomicU64,
    /// The world is taken down: what its nodes do now says nothing.
    pub(super) over: AtomicBool,
    known: Arc<Mutex<Known>>,
    quiet: bool,
}

/// What is known of the run while it goes on.
#[derive(Default)]
pub(super) struct Known {
    /// Names of terminals, by their devices' numbers: those of the workload, and behind them twins of theirs.
    pub(super) names: Vec<String>,
    /// Of each device, whose number its terminal has in the workload, and which copy of it this is.
    pub(super) copies: BTreeMap<usize, (usize, u64)>,
    /// Those that have had a session.
    pub(super) met: BTreeSet<usize>,
    /// With which node each has its session.
    pub(super) owners: BTreeMap<usize, u64>,
    /// Acknowledged and not given yet.
    waiting: BTreeMap<String, MessageId>,
    given: BTreeSet<String>,
    /// By group: leader and term.
    pub(super) leaders: BTreeMap<u64, (u64, u64)>,
    /// Who handed pushes off last, and to which node.
    pub(super) handed: Option<(u64, u64)>,
    /// Nodes that belong to the cluster, each in its place: `n2` is whoever has the second.
    pub(super) places: Vec<Option<u64>>,
    pub(super) ready: BTreeMap<u64, bool>,
    /// Replicas that were seen, and have not gone.
    pub(super) held: BTreeSet<(NodeId, GroupId)>,
    /// When a node was silent last.
    silent: BTreeMap<u64, u64>,
    /// What faults may wait for, since the striker looked.
    pub(super) happened: BTreeSet<When>,
}

impl Known {
    /// A push was given.
    pub(super) fn delivered(&mut self, payload: &str) {
        if self.waiting.remove(payload).is_none() {
            self.given.insert(payload.to_owned());
        }
    }
}

pub(super) fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Run {
    pub(super) fn known(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }

    pub(super) fn tell(&self, what: What) {
        self.record.tell(now(), what);
    }

    pub(super) fn see(&self, seen: Observation) {
        self.tell(What::Observe(seen));
    }

    pub(super) fn cover(&self, point: &str) {
        self.see(Observation::Cover { point: point.to_owned(), count: 1 });
    }

    pub(super) fn say(&self, what: &str) {
        if !self.quiet {
            crate::cli::output::line(format!(" t={:<7.1} {what}", now() as f64 / 1e6));
        }
    }

    /// The nodes that belong to the cluster.
    pub(super) fn nodes(&self) -> Vec<u64> {
        self.known().places.iter().flatten().copied().collect()
    }

    pub(super) fn silent(&self, node: u64) {
        self.known().silent.insert(node, now());
    }

    /// The node whose turn it is: among those that were not silent lately, if there are any.
    pub(super) fn speaking(&self, turn: u64) -> u64 {
        let known = self.known();
        let speaks = |node: &u64| known.silent.get(node).is_none_or(|at| now() - at > SILENT);
        let all: Vec<u64> = known.places.iter().flatten().copied().collect();
        let speaking: Vec<u64> = all.iter().copied().filter(speaks).collect();
        let among = if speaking.is_empty() { all } else { speaking };
        among[(turn % among.len() as u64) as usize]
    }

    pub(super) fn stored(&self, payload: &str, message: MessageId) {
        let mut known = self.known();
        if !known.given.remove(payload) {
            known.waiting.insert(payload.to_owned(), message);
        }
    }

    fn phase(&self, phase: Phase) {
        self.say(phase.words());
        self.see(Observation::Phase { phase });
    }
}

/// Runs a scenario by a seed, on this thread, which nothing has run on before; with a bug planted, if one is named.
pub(crate) fn run(scenario: &Scenario, seed: u64, quiet: bool, planted: Option<&Planted>) -> Ran {
    let began = Instant::now();
    let plantable = plant(planted.map(|planted| planted.canary));
    let workload = &scenario.workload;
    // What waits for a leader comes as one entry: a push of each publisher, a word of each terminal. A segment holds some.
    let entry = workload.publishers * (workload.payload + 400) + workload.terminals * 400;
    let setting = Setting {
        groups: scenario.cluster.shards as u16,
        segment_bytes: (4 * entry as usize).clamp(64 << 10, 4 << 20),
        strict: false,
        loud: false,
    };
    let begin = Begin {
        version: 0,
        run: format!("{}-{seed}", scenario.name),
        seed,
        backend: "sim".to_owned(),
        scenario: scenario.name.clone(),
        planted: planted.map_or("", |planted| planted.name).to_owned(),
        unix_ms: 0,
        expect: expect(scenario),
    };
    let record = Arc::new(Record::new(begin, watch(scenario, quiet, Clock::Virtual)));
    let run = Arc::new(Run {
        scenario: scenario.clone(),
        world: World::new(seed, setting),
        record: record.clone(),
        load: AtomicBool::new(true),
        storm: AtomicBool::new(false),
        given_up: AtomicU64::new(0),
        over: AtomicBool::new(false),
        known: Arc::default(),
        quiet,
    });
    if !plantable {
        let what = "this build has no bugs to plant: it is made with --features canary".to_owned();
        record.tell(0, What::Observe(Observation::Harness { what }));
    }
    run.world.watch(observe::watch(record.clone(), run.known.clone()));
    let panics = live(seed, &run.world, all(run.clone(), seed));
    match panics.is_empty() {
        true => record.end(),
        // It did not come to its end, and its history has none.
        false => panics.iter().take(5).for_each(|panic| panicked(&record, panic)),
    }
    Ran {
        virtual_seconds: record.last() as f64 / 1e6,
        real_seconds: began.elapsed().as_secs_f64(),
        history: record.take(),
    }
}

/// What is asked of a run here: all that the scenario asks, but for the memory and files that a simulation has none of.
fn expect(scenario: &Scenario) -> Expect {
    let mut expect = scenario.expect();
    if expect.claims.is_empty() {
        expect.claims = CHECKERS.iter().map(|checker| checker.id.to_owned()).collect();
    }
    expect.claims.retain(|id| id != RESOURCES);
    expect
}

/// A panic of a node is its defect; one of this harness says nothing of a cluster.
fn panicked(record: &Record, panic: &Panic) {
    let ours = ["simulation/src", "chaos/src", "openraft-rt-sim"];
    let at = record.last();
    let what: String = panic.what.chars().take(400).collect();
    record.tell(
        at,
        What::Observe(match panic.file.is_empty() || ours.iter().any(|part| panic.file.contains(part)) {
            true => Observation::Harness { what },
            // Whose task it was is not known: all run on one thread.
            false => Observation::LogFound { node: 0, problem: Problem::Panic, line: what },
        }),
    );
}

async fn all(run: Arc<Run>, seed: u64) {
    let world = run.world.clone();
    world.found(run.scenario.cluster.nodes);
    run.known().places = (1..=run.scenario.cluster.nodes).map(Some).collect();
    for node in (1..=run.scenario.cluster.nodes).map(NodeId) {
        world.start(node).await;
    }
    // Before that its nodes are nobody's anchors, and who is behind a NAT is not found.
    let formed = || {
        let members = world.members();
        let anchors = |member: &Arc<_>| Member::directory(member).roster.format >= NOTIFY_ANCHORS;
        members.len() as u64 == run.scenario.cluster.nodes && members.iter().all(anchors)
    };
    while !formed() && now() < FIRST * 1000 {
        pause(50).await;
    }
    enlist(&run, seed);
    let watching = run.clone();
    let _detached = SimRuntime::spawn(async move { observe::nodes(watching).await });
    let mut striker = Striker::new(run.clone(), plan(&run.scenario, seed));
    phases(&run, &mut striker, seed).await;
    run.load.store(false, Ordering::Relaxed);
    for device in 0..run.scenario.workload.terminals as usize {
        world.end_terminal(device);
    }
    for node in world.all_nodes() {
        run.see(Observation::LogRead { node: node.id.0, lines: 0 });
    }
    world.watch(Box::new(|_, _| {}));
    run.over.store(true, Ordering::Relaxed);
    world.close().await;
}

/// Terminals come, each as its number has it: who stays connected, who is behind a NAT.
fn enlist(run: &Run, seed: u64) {
    let (world, workload) = (&run.world, &run.scenario.workload);
    let count = workload.terminals as usize;
    world.draw_networks(count);
    let mut draws = Draws::new(seed, "terminals");
    for number in 0..count {
        let mut key = [0; 32];
        key.chunks_exact_mut(8).for_each(|part| part.copy_from_slice(&draws.draw().to_be_bytes()));
        let stays = (number as f64) < workload.connected.0 * count as f64;
        let nat = number % BEHIND_NAT == BEHIND_NAT - 1;
        world.enlist(Nature {
            key: KeyFingerprint(key),
            linger: if stays { Linger::Forever } else { Linger::AtOnce },
            listens: true,
            thinks: 1,
            speaks: 2,
            // A terminal's own public address has its number; NATs come after.
            network: if nat { count + draws.below(3) as usize } else { number },
            stays: true,
        });
    }
    run.known().names = world.terminals().iter().map(TerminalId::to_string).collect();
    (0..count).for_each(|device| world.start_terminal(device));
}

async fn phases(run: &Arc<Run>, striker: &mut Striker, seed: u64) {
    if !began(run).await {
        return;
    }
    let phases = run.scenario.phases.clone();
    run.phase(Phase::Warmup);
    let start = now();
    let mut load = Vec::new();
    for number in 0..run.scenario.workload.publishers {
        let run = run.clone();
        load.push(SimRuntime::spawn(async move { publish::publisher(run, number).await }));
    }
    let observer = run.clone();
    load.push(SimRuntime::spawn(async move { publish::observer(observer, seed).await }));
    until(start + micros(phases.warmup.0)).await;
    run.phase(Phase::Chaos);
    striker.strike(start, start + micros(phases.warmup.0 + phases.chaos.0)).await;
    run.phase(Phase::Heal);
    striker.heal().await;
    striker.mind(now() + micros(phases.heal.0)).await;
    run.load.store(false, Ordering::Relaxed);
    for task in load {
        // A task that panicked ends the run by itself.
        let _ = task.await;
    }
    run.phase(Phase::Drain);
    drain(run, striker, now() + micros(phases.drain.0)).await;
}

pub(super) fn micros(time: Duration) -> u64 {
    time.as_micros() as u64
}

pub(super) async fn until(time: u64) {
    SimRuntime::sleep(Duration::from_micros(time.saturating_sub(now()))).await;
}

/// Every terminal has had a session, and every node is ready.
async fn began(run: &Run) -> bool {
    while now() < FIRST * 1000 {
        {
            let known = run.known();
            let ready = known.ready.values().filter(|ready| **ready).count() as u64;
            let all = ready == run.scenario.cluster.nodes && known.met.len() == known.names.len();
            if all {
                drop(known);
                run.say(&format!(
                    "{ready} nodes are ready, {} terminals are registered",
                    run.scenario.workload.terminals
                ));
                return true;
            }
        }
        pause(100).await;
    }
    let what = format!("after {FIRST} ms not all nodes are ready, or not all terminals have been there");
    run.see(Observation::Harness { what });
    false
}

/// Until everything that was acknowledged was given, or the time is over; then what the cluster says of the rest.
async fn drain(run: &Arc<Run>, striker: &mut Striker, until: u64) {
    while !run.known().waiting.is_empty() && now() < until {
        striker.mind(now() + 50_000).await;
    }
    striker.mind(now() + QUIET * 1000).await;
    let left: Vec<(String, MessageId)> =
        run.known().waiting.iter().map(|(payload, message)| (payload.clone(), *message)).collect();
    if !left.is_empty() {
        run.say(&format!("{} pushes were not given in time", left.len()));
    }
    for (turn, (payload, message)) in (0..).zip(left.iter().take(LOOKS)) {
        publish::look(run, payload, *message, turn).await;
    }
    for device in 0..run.world.terminals().len().min(LOOKS) {
        publish::status(run, device, device as u64).await;
    }
    // Each ends within seconds, or is found to hang.
    while run.given_up.load(Ordering::Relaxed) > 0 {
        pause(20).await;
    }
    // Replicas are compared when nothing is on its way between them.
    let settled = now() + SETTLED * 1000;
    while !observe::settled(run) && now() < settled {
        pause(20).await;
    }
    observe::states(run);
}
