//! One run on a cluster that is its user's own: what a dead run left is undone first, and what this one did at the end,
//! whatever ends it.

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use futures::FutureExt;
use reveille_chaos::history::{Begin, Phase, Recorder};
use reveille_chaos::plan::plan;
use reveille_chaos::scenario::{Scenario, When};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::guard::{self, Struck};
use super::hooks::Hooks;
use super::journal::{Journal, now};
use super::strike::{Hands, Striker};
use super::undo::{self, Shared};
use super::{Cluster, Options, checks, close, undo_left};
use crate::backend::http::Request;
use crate::backend::live::{self, EVENTS, Pace, Run};
use crate::backend::terminals::Devices;
use crate::backend::{observe, publish};
use crate::cli::live::{Clock, watch};
use crate::cli::output;

/// How often nodes are looked at: they may be far away, and have other things to do.
const LOOK: Duration = Duration::from_millis(300);
/// Linux's, where nodes run; tokio has no name for it.
const SIGTSTP: i32 = 20;
/// An answer about a terminal.
const ANSWER: Duration = Duration::from_secs(5);

/// A run that may begin: nobody else is at the cluster, and nothing of an earlier run is left in it.
pub(crate) struct Begun {
    cluster: Arc<Cluster>,
    journal: Shared,
    signals: Signals,
}

/// Undoes what a dead run left, and looks whether the cluster is as it must be. Nothing is made or struck before.
///
/// # Errors
/// If another run goes on, something cannot be undone, the cluster is not well, or a signal has come meanwhile.
pub(crate) async fn begin(
    cluster: Arc<Cluster>,
    scenario: &Scenario,
    mut signals: Signals,
) -> anyhow::Result<Begun> {
    let journal = Shared::new(Journal::open(&cluster.journal, &cluster.name)?);
    let hooks = Hooks::before(cluster.clone());
    let undone = undo_left(&cluster, &hooks, &journal).await;
    hooks.forget();
    undone?;
    tokio::select! {
        well = checks::wait(&cluster, &hooks, scenario) => well?,
        () = signals.come() => bail!("interrupted before anything was done"),
    }
    Ok(Begun { cluster, journal, signals })
}

/// Runs a scenario on the cluster and leaves `history.jsonl` in the run's folder.
///
/// # Errors
/// If the history cannot be written, or what was done not be undone: then the journal has it.
pub(crate) async fn run(begun: Begun, scenario: Scenario, options: Options) -> anyhow::Result<PathBuf> {
    let Begun { cluster, journal, mut signals } = begun;
    let hooks = Hooks::new(cluster.clone(), options.out.join("hooks.log"));
    let path = options.out.join("history.jsonl");
    let file = File::create_new(&path).with_context(|| path.display().to_string())?;
    let (events, happened) = mpsc::channel(EVENTS);
    let begin = Begin {
        version: 0,
        run: options.out.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned()),
        seed: options.seed,
        backend: if cluster.own { "compose" } else { "attach" }.to_owned(),
        scenario: scenario.name.clone(),
        planted: String::new(),
        unix_ms: now(),
        expect: scenario.expect(),
    };
    let mut reached = cluster.reached();
    if let Some(inside) = &options.inside {
        reached.iter_mut().zip(&inside.data).for_each(|(node, folder)| node.data = Some(folder.clone()));
    }
    let run = Arc::new(Run {
        recorder: Recorder::new(BufWriter::new(file), begin).watched(watch(
            &scenario,
            options.quiet,
            Clock::Real,
        )),
        nodes: Mutex::new(Arc::new(reached)),
        sessions: cluster.nodes.iter().map(|node| node.session.clone()).collect(),
        ca: cluster.ca.clone(),
        token: cluster.token.clone(),
        admin_token: cluster.operator().to_owned(),
        enrolment: cluster.enrolment.clone(),
        listen: cluster.listen,
        load: AtomicBool::new(true),
        quiet: options.quiet,
        events,
        known: Mutex::default(),
        links: Mutex::default(),
        retries: (!cluster.own).then(|| Pace::new(cluster.limits.rate)),
        scenario,
    });
    let out = options.out.clone();
    if let Err(error) = live(&run, &cluster, &hooks, &journal, &mut signals, happened, options).await {
        output::complain(format!("{error:#}"));
        run.trouble(format!("{error:#}"));
    }
    logs(&run, &hooks, &cluster, &out).await;
    run.recorder.finish().with_context(|| path.display().to_string())?;
    close(journal)?;
    Ok(path)
}

/// What asks the program to end: Ctrl-C, SIGTERM, and the end of the terminal that it was started from. From when this is
/// made, nothing ends the program that could leave something broken.
pub(crate) struct Signals {
    end: Vec<Signal>,
    /// Ctrl-Z, which would leave what is struck as it is for as long as somebody likes.
    stop: Signal,
}

impl Signals {
    /// Takes them over.
    ///
    /// # Errors
    /// If this system does not let it.
    pub(crate) fn new() -> anyhow::Result<Signals> {
        let mut kinds = vec![SignalKind::interrupt(), SignalKind::terminate(), SignalKind::quit()];
        // Who starts it by nohup wants it to go on without a terminal.
        if !hangup_is_ignored() {
            kinds.push(SignalKind::hangup());
        }
        let end = kinds.into_iter().map(signal).collect::<std::io::Result<_>>();
        let (end, stop) =
            (end.context("signals cannot be received")?, signal(SignalKind::from_raw(SIGTSTP))?);
        Ok(Signals { end, stop })
    }

    /// Waits for one.
    pub(crate) async fn come(&mut self) {
        loop {
            let end = self.end.iter_mut().map(|one| Box::pin(one.recv()));
            tokio::select! {
                _ = futures::future::select_all(end) => return,
                _ = self.stop.recv() => {
                    output::complain("not stopped: what is struck would stay as it is. Ctrl-C undoes it and ends the run");
                }
            }
        }
    }
}

fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // Of signal n the mask has bit n - 1; this is signal 1.
    mask.is_some_and(|mask| mask & 1 == 1)
}

async fn live(
    run: &Arc<Run>,
    cluster: &Arc<Cluster>,
    hooks: &Hooks,
    journal: &Shared,
    signals: &mut Signals,
    happened: mpsc::Receiver<When>,
    options: Options,
) -> anyhow::Result<()> {
    let (devices, orders) = Devices::start(run, &options.out.join("terminals"));
    let mut watching = JoinSet::new();
    if let Some(inside) = options.inside {
        watching.spawn((inside.watch)(run.clone()));
    }
    watching.spawn(observe::nodes(run.clone(), LOOK));
    watching.spawn(observe::machine(run.clone()));
    let struck = Struck::default();
    let (cluster_of, hooks_of) = (cluster.clone(), hooks.clone());
    let hands = Hands {
        cluster: cluster_of,
        hooks: hooks_of,
        journal: journal.clone(),
        struck: struck.clone(),
        orders,
        happened,
    };
    let mut striker = Striker::new(run.clone(), plan(&run.scenario, options.seed), hands);
    let all = phases(run, &mut striker, journal, (&struck, cluster), options.seed);
    let outcome = tokio::select! {
        // A panic is trouble of this program's, and no reason to leave a node as it is.
        outcome = AssertUnwindSafe(all).catch_unwind() => match outcome {
            Ok(outcome) => outcome,
            Err(_) => Err(anyhow!("this program came to where it should not")),
        },
        () = signals.come() => Err(anyhow!("interrupted")),
        () = sleep(cluster.limits.run.0) => {
            Err(anyhow!("it took longer than [limits] run = \"{}\"", cluster.limits.run))
        }
    };
    if let Err(error) = &outcome {
        run.say(&format!("the run ends here ({error:#}); what it did is being undone"));
        // What was on its way had no time to arrive.
        run.phase(Phase::Heal);
    }
    let healed = striker.heal().await;
    drop(striker);
    run.load.store(false, Ordering::Relaxed);
    watching.shutdown().await;
    devices.end().await;
    // What could not be undone comes first.
    let noted = noted(run, journal);
    let gone = undo::terminals(cluster, journal, &|what| run.say(what)).await;
    match (outcome, healed.and(noted).and(gone)) {
        (outcome, Ok(())) => outcome,
        (Ok(()), Err(error)) => Err(error),
        (Err(first), Err(error)) => Err(error.context(format!("{first:#}; and then"))),
    }
}

async fn phases(
    run: &Arc<Run>,
    striker: &mut Striker,
    journal: &Shared,
    (struck, cluster): (&Struck, &Cluster),
    seed: u64,
) -> anyhow::Result<()> {
    live::began(run, async |run| noted(run, journal).is_ok() && registered(run).await).await?;
    let phases = run.scenario.phases.clone();
    run.phase(Phase::Warmup);
    let start = Instant::now();
    let mut load = publish::load(run, seed);
    let guarded = async {
        sleep_until(start + phases.warmup.0).await;
        run.phase(Phase::Chaos);
        striker.strike(start, start + phases.warmup.0 + phases.chaos.0).await?;
        run.phase(Phase::Heal);
        striker.heal().await?;
        sleep(phases.heal.0).await;
        anyhow::Ok(())
    };
    tokio::select! {
        outcome = guarded => outcome?,
        why = guard::watch(run, struck, &cluster.stop, cluster.limits.fault.0 + cluster.hooks.within.0 * 2) => bail!("stopped: {why}"),
    }
    run.load.store(false, Ordering::Relaxed);
    while load.join_next().await.is_some() {}
    run.phase(Phase::Drain);
    live::drain(run, Instant::now() + phases.drain.0).await;
    Ok(())
}

/// The journal has all terminals that have started.
fn noted(run: &Run, journal: &Shared) -> anyhow::Result<()> {
    let mut journal = journal.lock();
    run.terminals().iter().try_for_each(|id| journal.terminal(id))
}

/// The service list knows all terminals of this run.
async fn registered(run: &Run) -> bool {
    for (turn, id) in run.terminals().iter().enumerate() {
        let path = format!("/v1/terminals/{id}");
        let Some(node) = run.speaking(turn) else { return false };
        let answer = Request::get(&path, &run.token).send(&node.http, ANSWER).await;
        if !answer.is_ok_and(|answer| answer.status == 200) {
            return false;
        }
    }
    true
}

/// Reads the nodes' logs, where a hook fetches them.
async fn logs(run: &Run, hooks: &Hooks, cluster: &Cluster, out: &Path) {
    if cluster.hooks.get("logs").is_none() {
        return;
    }
    for id in &run.ids() {
        let path = out.join(format!("node-{id}.log"));
        match hooks.logs(*id, &path).await {
            Ok(true) => {}
            Ok(false) => run.trouble(format!("the log of node {id} is too long to be read to its end")),
            Err(error) => {
                run.trouble(format!("{error:#}"));
                continue;
            }
        }
        match File::open(&path) {
            Ok(file) => observe::log(run, *id, &path.display().to_string(), BufReader::new(file)),
            Err(error) => run.trouble(format!("{}: {error}", path.display())),
        }
    }
}
