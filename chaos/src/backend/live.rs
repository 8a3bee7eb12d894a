//! What a run against real nodes has, whoever started them: what everybody in it shares, when it has begun, and when what
//! is on its way has arrived. Strikes nobody.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::BufWriter;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::bail;
use reveille_chaos::history::{Observation, Phase, Recorder, What};
use reveille_chaos::scenario::{Scenario, When};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use super::http::{Request, Server};
use super::proc::links::Links;
use super::publish;

/// All terminals have had their first session within this, and all nodes are ready.
pub(super) const FIRST: Duration = Duration::from_secs(60);
/// Events that wait for the striker; more of them at once say nothing more.
pub(super) const EVENTS: usize = 256;
/// What an operator orders is answered within this.
const ORDER: Duration = Duration::from_secs(10);
/// What happened last to pushes that were not given is asked of so many.
const LOOKS: usize = 200;
/// For so long a node that did not answer is asked only if all are like that.
const SILENT: Duration = Duration::from_secs(2);
/// After everything has come, for what comes twice.
const QUIET: Duration = Duration::from_secs(1);

/// A node, and where it is reached.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) id: u64,
    /// By publishers.
    pub(super) http: Server,
    /// By operators.
    pub(super) admin: Server,
    /// Its data, if this machine has it.
    pub(super) data: Option<PathBuf>,
}

/// What everybody in a run shares.
pub(super) struct Run {
    pub(super) scenario: Scenario,
    pub(super) recorder: Recorder<BufWriter<File>>,
    /// Those that belong to the cluster now, by their places: they may come and go.
    pub(super) nodes: Mutex<Arc<Vec<Node>>>,
    /// Where terminals find the cluster.
    pub(super) sessions: Vec<String>,
    pub(super) ca: PathBuf,
    /// Of publishers.
    pub(super) token: String,
    /// Of operators.
    pub(super) admin_token: String,
    /// What lets a terminal in that the cluster does not know.
    pub(super) enrolment: Option<String>,
    /// Where a terminal listens that has no link.
    pub(super) listen: SocketAddr,
    /// Publishers and observers go on.
    pub(super) load: AtomicBool,
    pub(super) quiet: bool,
    pub(super) events: mpsc::Sender<When>,
    pub(super) known: Mutex<Known>,
    pub(super) links: Mutex<Links>,
    /// How many requests a second may be tried again; as many as there are, if it is none.
    pub(super) retries: Option<Pace>,
}

/// So many a second of something, at even distances.
pub(super) struct Pace {
    next: Mutex<Instant>,
    every: Duration,
}

impl Pace {
    /// At least one.
    pub(super) fn new(rate: u64) -> Pace {
        Pace {
            next: Mutex::new(Instant::now()),
            every: Duration::from_secs(1) / rate.clamp(1, u32::MAX.into()) as u32,
        }
    }

    /// Waits for its turn.
    pub(super) async fn turn(&self) {
        let turn = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let turn = (*next).max(Instant::now());
            *next = turn + self.every;
            turn
        };
        sleep_until(turn).await;
    }
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
    pub(super) pids: BTreeMap<u64, u32>,
    /// Terminals that somebody has wanted to publish to since, without success.
    wanted: HashMap<String, Instant>,
    /// When a node was silent last.
    silent: HashMap<u64, Instant>,
    /// Publishers ask again at once.
    pub(super) hurried: bool,
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

    /// The nodes that belong to the cluster now.
    pub(super) fn nodes(&self) -> Arc<Vec<Node>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn ids(&self) -> Vec<u64> {
        self.nodes().iter().map(|node| node.id).collect()
    }

    /// Where the operator of this node is.
    pub(super) fn admin_of(&self, id: u64) -> Option<Server> {
        Some(self.nodes().iter().find(|node| node.id == id)?.admin.clone())
    }

    /// Has a node's operator ask it for something. A node that cannot do it now says so; then it is left at that.
    pub(super) async fn order(&self, id: u64, path: &str) {
        let Some(server) = self.admin_of(id) else { return };
        let (method, token) = ("POST", self.admin_token.as_str());
        let request = Request { method, path, token, headers: &[], body: b"" };
        let answer = request.send(&server, ORDER).await;
        if !answer.is_ok_and(|answer| (200..300).contains(&answer.status)) {
            self.cover("order.refused");
        }
    }

    /// This node did not answer.
    pub(super) fn silent(&self, node: u64) {
        self.known().silent.insert(node, Instant::now());
    }

    /// The node whose turn it is: among those that were not silent lately, if there are any.
    pub(super) fn speaking(&self, turn: usize) -> Option<Node> {
        let (nodes, known) = (self.nodes(), self.known());
        let speaks = |node: &&Node| known.silent.get(&node.id).is_none_or(|at| at.elapsed() > SILENT);
        let speaking = nodes.iter().filter(speaks).count();
        match speaking {
            0 => nodes.get(turn % nodes.len().max(1)).cloned(),
            some => nodes.iter().filter(speaks).nth(turn % some).cloned(),
        }
    }

    /// The process that a node has now.
    pub(super) fn pid(&self, node: u64) -> Option<u32> {
        self.known().pids.get(&node).copied()
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

    /// Somebody wants to publish to this terminal.
    pub(super) fn wants(&self, terminal: &str) {
        self.known().wanted.entry(terminal.to_owned()).or_insert_with(Instant::now);
    }

    /// For how long somebody has wanted to publish to one and the same terminal without success.
    pub(super) fn wanted(&self) -> Duration {
        self.known().wanted.values().map(Instant::elapsed).max().unwrap_or_default()
    }

    pub(super) fn stored(&self, terminal: &str, payload: &str, message: &str) {
        let mut known = self.known();
        known.wanted.remove(terminal);
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

    pub(super) fn phase(&self, phase: Phase) {
        self.say(phase.words());
        self.see(Observation::Phase { phase });
    }
}

/// Until everything that was acknowledged was given, or the time is over; then what the cluster says of the rest.
pub(super) async fn drain(run: &Run, until: Instant) {
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

/// Every terminal has had a session, every node is ready, and the service list knows the terminals.
pub(super) async fn began(run: &Run, registered: impl AsyncFn(&Run) -> bool) -> anyhow::Result<()> {
    let until = Instant::now() + FIRST;
    loop {
        let (terminals, ready) = {
            let known = run.known();
            let ready = known.ready.values().filter(|ready| **ready).count();
            (known.terminals.len(), ready)
        };
        let registered = registered(run).await;
        if registered && ready == run.nodes().len() && terminals as u64 == run.scenario.workload.terminals {
            run.say(&format!("{ready} nodes are ready, {terminals} terminals are registered"));
            return Ok(());
        }
        if Instant::now() > until {
            bail!("after {FIRST:?} {ready} nodes are ready, and {terminals} terminals have started");
        }
        sleep(Duration::from_millis(100)).await;
    }
}
