//! One run: the cluster, its load, the phases, and the history of it all.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::BufWriter;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use reveille_chaos::history::{Begin, Observation, Phase, Recorder, What};
use reveille_chaos::plan::plan;
use reveille_chaos::scenario::{Scenario, When};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::links::Links;
use super::nodes::Nodes;
use super::strike::Striker;
use super::terminals::{Device, Order};
use super::{Options, observe, publish};

/// All terminals have had their first session within this, and all nodes are ready.
const FIRST: Duration = Duration::from_secs(60);
/// Events that wait for the striker; more of them at once say nothing more.
const EVENTS: usize = 256;
/// What happened last to pushes that were not given is asked of so many.
const LOOKS: usize = 200;
/// For so long a node that did not answer is asked only if all are like that.
const SILENT: Duration = Duration::from_secs(2);
/// After everything has come, for what comes twice.
const QUIET: Duration = Duration::from_secs(1);

/// What everybody in a run shares.
pub(super) struct Run {
    pub(super) scenario: Scenario,
    pub(super) recorder: Recorder<BufWriter<File>>,
    /// Where publishers, sessions and operators are, by node.
    pub(super) http: Vec<String>,
    pub(super) sessions: Vec<String>,
    pub(super) admin: Vec<String>,
    pub(super) ca: PathBuf,
    pub(super) token: String,
    /// Publishers and observers go on.
    pub(super) load: AtomicBool,
    pub(super) quiet: bool,
    events: mpsc::Sender<When>,
    known: Mutex<Known>,
    links: Mutex<Links>,
}

/// What is known of the run while it goes on.
#[derive(Default)]
pub(super) struct Known {
    /// Ids of terminals, by their numbers; a terminal that never started has none.
    terminals: BTreeMap<usize, String>,
    /// With which node each has its session.
    pub(super) owners: HashMap<usize, u64>,
    /// Which node keeps the binding of each, of those that have one.
    pub(super) anchors: HashMap<usize, u64>,
    /// Acknowledged and not given yet: payload and message.
    waiting: HashMap<String, String>,
    given: HashSet<String>,
    /// By group: leader and term.
    pub(super) leaders: BTreeMap<u64, (u64, u64)>,
    pub(super) ready: BTreeMap<u64, bool>,
    /// Processes of nodes.
    pids: BTreeMap<u64, u32>,
    /// When a node, by its place, was silent last.
    silent: HashMap<usize, Instant>,
}

impl Run {
    pub(super) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn links(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A terminal keeps a binding with who takes keepalives at this address, or with nobody.
    pub(super) fn bound(&self, number: usize, anchor: Option<SocketAddr>) {
        let node = anchor.and_then(|at| self.links().anchor(at));
        let mut known = self.known();
        match node {
            Some(node) => known.anchors.insert(number, node),
            None => known.anchors.remove(&number),
        };
    }

    pub(super) fn see(&self, seen: Observation) {
        self.recorder.tell(What::Observe(seen));
    }

    pub(super) fn cover(&self, point: &str) {
        self.see(Observation::Cover { point: point.to_owned(), count: 1 });
    }

    pub(super) fn trouble(&self, what: impl Into<String>) {
        let what = what.into();
        self.say(&format!("HARNESS {what}"));
        self.see(Observation::Harness { what });
    }

    /// Something that faults may wait for. When many wait already, one more changes nothing.
    pub(super) fn happened(&self, when: When) {
        let _ = self.events.try_send(when);
    }

    /// This node did not answer.
    pub(super) fn silent(&self, node: usize) {
        self.known().silent.insert(node, Instant::now());
    }

    /// The node, by its place, whose turn it is: among those that were not silent lately, if there are any.
    pub(super) fn speaking(&self, turn: usize) -> usize {
        let known = self.known();
        let speaks = |node: &usize| known.silent.get(node).is_none_or(|at| at.elapsed() > SILENT);
        let all: Vec<usize> = (0..self.http.len()).collect();
        let speaking: Vec<usize> = all.iter().copied().filter(speaks).collect();
        let among = if speaking.is_empty() { all } else { speaking };
        among[turn % among.len()]
    }

    /// The process that a node has now.
    pub(super) fn pid(&self, node: u64) -> Option<u32> {
        self.known().pids.get(&node).copied()
    }

    /// Notes the processes that nodes have now.
    pub(super) fn processes(&self, nodes: &Nodes) {
        let pids = nodes.ids().into_iter().filter_map(|id| Some((id, nodes.pid(id)?))).collect();
        self.known().pids = pids;
    }

    /// Tells whoever watches.
    pub(super) fn say(&self, what: &str) {
        if !self.quiet {
            crate::cli::output::line(format!(" t={:<7.1} {what}", self.recorder.elapsed().as_secs_f64()));
        }
    }

    pub(super) fn terminals(&self) -> Vec<String> {
        self.known().terminals.values().cloned().collect()
    }

    pub(super) fn registered(&self, number: usize, id: &str) {
        self.known().terminals.insert(number, id.to_owned());
    }

    pub(super) fn session(&self, number: usize, node: Option<u64>) {
        let mut known = self.known();
        match node {
            Some(node) => known.owners.insert(number, node),
            None => known.owners.remove(&number),
        };
    }

    pub(super) fn stored(&self, payload: &str, message: &str) {
        let mut known = self.known();
        if !known.given.remove(payload) {
            known.waiting.insert(payload.to_owned(), message.to_owned());
        }
    }

    pub(super) fn delivered(&self, payload: &str) {
        let mut known = self.known();
        if known.waiting.remove(payload).is_none() {
            known.given.insert(payload.to_owned());
        }
    }

    fn phase(&self, phase: Phase) {
        self.say(match phase {
            Phase::Warmup => "warmup",
            Phase::Chaos => "chaos",
            Phase::Heal => "heal: faults are taken back",
            Phase::Drain => "drain: what is on its way arrives",
        });
        self.see(Observation::Phase { phase });
    }
}

/// Runs a scenario and leaves `history.jsonl` in the run's folder.
///
/// # Errors
/// If the run could not be begun, or its history not be written: then there is nothing to judge.
pub(crate) async fn run(scenario: Scenario, options: &Options) -> anyhow::Result<PathBuf> {
    let folder = options.out.join("cluster");
    if !options.quiet
        && let Some(busy) = observe::busy()
    {
        crate::cli::output::line(busy);
    }
    let (mut nodes, links) = Nodes::start(&options.bin, &folder, &scenario, options.seed).await?;
    let path = options.out.join("history.jsonl");
    let begin = Begin {
        version: 0,
        run: options.out.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned()),
        seed: options.seed,
        backend: "proc".to_owned(),
        scenario: scenario.name.clone(),
        unix_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64),
        expect: scenario.expect(),
    };
    let file = File::create_new(&path).with_context(|| path.display().to_string())?;
    let (events, happened) = mpsc::channel(EVENTS);
    let addresses = |of: fn(&super::nodes::Node) -> &String| nodes.all.iter().map(of).cloned().collect();
    let run = Arc::new(Run {
        recorder: Recorder::new(BufWriter::new(file), begin),
        http: addresses(|node| &node.http),
        sessions: links.sessions().unwrap_or_else(|| addresses(|node| &node.session)),
        admin: addresses(|node| &node.admin),
        ca: nodes.ca.clone(),
        token: nodes.token.clone(),
        load: AtomicBool::new(true),
        quiet: options.quiet,
        events,
        known: Mutex::default(),
        links: Mutex::new(links),
        scenario,
    });
    run.processes(&nodes);
    let outcome = live(&run, &mut nodes, happened, options).await;
    observe::fallen(&run, &mut nodes);
    nodes.stop().await;
    observe::logs(&run, &nodes);
    if let Err(error) = outcome {
        run.trouble(format!("{error:#}"));
    }
    run.recorder.finish().with_context(|| path.display().to_string())?;
    Ok(path)
}

async fn live(
    run: &Arc<Run>,
    nodes: &mut Nodes,
    happened: mpsc::Receiver<When>,
    options: &Options,
) -> anyhow::Result<()> {
    if super::links::behind_nat(&run.scenario) {
        settled(run).await?;
    }
    let (end, ending) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let mut orders = Vec::new();
    let workload = &run.scenario.workload;
    for number in 0..workload.terminals as usize {
        let (order, ordered) = mpsc::channel::<Order>(4);
        orders.push(order);
        let device = Device {
            run: run.clone(),
            number,
            stays: (number as f64) < workload.connected.0 * workload.terminals as f64,
            state: options.out.join("terminals").join(format!("t{}", number + 1)),
            orders: ordered,
            end: ending.clone(),
        };
        tasks.spawn(device.live());
    }
    let mut watching = JoinSet::new();
    watching.spawn(observe::nodes(
        run.clone(),
        nodes.all.iter().map(|node| (node.id, node.data.clone())).collect(),
    ));
    watching.spawn(observe::machine(run.clone()));
    let interrupted = async {
        match tokio::signal::ctrl_c().await {
            Ok(()) => bail!("interrupted"),
            Err(error) => bail!("signals cannot be received: {error}"),
        }
    };
    let mut striker = Striker::new(run.clone(), plan(&run.scenario, options.seed), orders, happened);
    let outcome = tokio::select! {
        outcome = phases(run, nodes, &mut striker, options.seed) => outcome,
        interrupted = interrupted => interrupted,
    };
    // Whatever came of it, nothing stays broken.
    let healed = striker.heal(nodes).await;
    run.load.store(false, Ordering::Relaxed);
    watching.shutdown().await;
    end.send_replace(true);
    while tasks.join_next().await.is_some() {}
    outcome.and(healed)
}

async fn phases(run: &Arc<Run>, nodes: &mut Nodes, striker: &mut Striker, seed: u64) -> anyhow::Result<()> {
    began(run).await?;
    let phases = run.scenario.phases.clone();
    run.phase(Phase::Warmup);
    let start = Instant::now();
    let mut load = JoinSet::new();
    for number in 0..run.scenario.workload.publishers {
        load.spawn(publish::publisher(run.clone(), number));
    }
    load.spawn(publish::observer(run.clone(), seed));
    sleep_until(start + phases.warmup.0).await;
    run.phase(Phase::Chaos);
    striker.strike(nodes, start, start + phases.warmup.0 + phases.chaos.0).await?;
    run.phase(Phase::Heal);
    striker.heal(nodes).await?;
    sleep(phases.heal.0).await;
    run.load.store(false, Ordering::Relaxed);
    while load.join_next().await.is_some() {}
    run.phase(Phase::Drain);
    drain(run, Instant::now() + phases.drain.0).await;
    Ok(())
}

/// The cluster is settled: one that is new tells terminals of anchors only then, and who comes before, sleeps unreached
/// behind its NAT until it checks in.
async fn settled(run: &Run) -> anyhow::Result<()> {
    let until = Instant::now() + FIRST;
    loop {
        let answer = super::http::Request::get("/cluster", &run.token);
        let answer = answer.send(&run.admin[0], Duration::from_secs(5)).await;
        if answer.ok().and_then(|answer| answer.json()).is_some_and(|json| json["settled"] == true) {
            return Ok(());
        }
        if Instant::now() > until {
            bail!("after {FIRST:?} the cluster is not settled");
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Every terminal has had a session, and every node is ready.
async fn began(run: &Run) -> anyhow::Result<()> {
    let until = Instant::now() + FIRST;
    loop {
        let (terminals, ready) = {
            let known = run.known();
            let ready = known.ready.values().filter(|ready| **ready).count();
            (known.terminals.len(), ready)
        };
        let registered = registered(run).await;
        if registered && ready == run.http.len() && terminals as u64 == run.scenario.workload.terminals {
            run.say(&format!("{ready} nodes are ready, {terminals} terminals are registered"));
            return Ok(());
        }
        if Instant::now() > until {
            bail!("after {FIRST:?} {ready} nodes are ready, and {terminals} terminals have started");
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// The service list knows all terminals.
async fn registered(run: &Run) -> bool {
    let request = super::http::Request::get("/v1/terminals?limit=1000", &run.token);
    let mut count = 0;
    let mut path = "/v1/terminals?limit=1000".to_owned();
    loop {
        let page = super::http::Request { path: &path, ..request };
        let answer = page.send(&run.http[0], Duration::from_secs(5)).await;
        let Some(json) = answer.ok().filter(|answer| answer.status == 200).and_then(|answer| answer.json())
        else {
            return false;
        };
        count += json["terminals"].as_array().map_or(0, Vec::len) as u64;
        match json["next"].as_str() {
            Some(next) => path = format!("/v1/terminals?limit=1000&after={next}"),
            None => return count >= run.scenario.workload.terminals,
        }
    }
}

/// Until everything that was acknowledged was given, or the time is over; then what the cluster says of the rest.
async fn drain(run: &Run, until: Instant) {
    while !run.known().waiting.is_empty() && Instant::now() < until {
        sleep(Duration::from_millis(50)).await;
    }
    sleep(QUIET).await;
    let mut left: Vec<(String, String)> =
        run.known().waiting.iter().map(|(payload, message)| (payload.clone(), message.clone())).collect();
    left.sort();
    if !left.is_empty() {
        run.say(&format!("{} pushes were not given in time", left.len()));
    }
    for (node, (payload, message)) in (0..).zip(left.iter().take(LOOKS)) {
        publish::look(run, payload, message, node).await;
    }
    for (node, terminal) in (0..).zip(run.terminals().iter().take(LOOKS)) {
        publish::status(run, terminal, node).await;
    }
}
