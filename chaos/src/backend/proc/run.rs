//! One run: the cluster, its load, the phases, and the history of it all.

use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use reveille_chaos::history::{Begin, Observation, Phase, Recorder};
use reveille_chaos::plan::plan;
use reveille_chaos::scenario::{Scenario, When};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::nodes::Nodes;
use super::shim::{LYING_DISK, Shim};
use super::strike::Striker;
use super::{Options, ends, membership, replicas};
use crate::backend::http::Request;
use crate::backend::live::{self, EVENTS, FIRST, Known, Run};
use crate::backend::terminals::Devices;
use crate::backend::{observe, publish};
use crate::cli::live::{Clock, watch};

/// After the faults and the time that a scenario gives to heal a cluster whose nodes came and went is settled within this, also on a machine that is busy.
const SETTLE: Duration = Duration::from_secs(180);

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
    let (mut nodes, links) = Nodes::start(options, &folder, &scenario).await?;
    let path = options.out.join("history.jsonl");
    let begin = Begin {
        version: 0,
        run: options.out.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned()),
        seed: options.seed,
        backend: "proc".to_owned(),
        scenario: scenario.name.clone(),
        planted: if options.lies { LYING_DISK } else { "" }.to_owned(),
        unix_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64),
        expect: scenario.expect(),
    };
    let file = File::create_new(&path).with_context(|| path.display().to_string())?;
    let (events, happened) = mpsc::channel(EVENTS);
    let sessions = || nodes.all.iter().map(|node| node.session.clone()).collect();
    let run = Arc::new(Run {
        recorder: Recorder::new(BufWriter::new(file), begin).watched(watch(
            &scenario,
            options.quiet,
            Clock::Real,
        )),
        nodes: Mutex::new(nodes.reached()),
        sessions: links.sessions().or(nodes.doors.addresses()).unwrap_or_else(sessions),
        ca: nodes.ca.clone(),
        token: nodes.token.clone(),
        admin_token: nodes.token.clone(),
        enrolment: None,
        listen: ([127, 0, 0, 1], 0).into(),
        load: AtomicBool::new(true),
        quiet: options.quiet,
        events,
        known: Mutex::<Known>::default(),
        links: Mutex::new(links),
        retries: None,
        scenario,
    });
    nodes.noted(&run);
    if let Some(shim) = &nodes.shim {
        run.say(&format!("disks, power and clocks: by {}, preloaded", shim.library.display()));
    }
    let outcome = live(&run, &mut nodes, happened, options).await;
    let outcome = outcome.and(ends::fallen(&run, &mut nodes).map(drop));
    let rest = if outcome.is_ok() { replicas::rest(&run).await } else { None };
    nodes.stop().await;
    ends::logs(&run, &nodes);
    if let Some(rest) = rest
        && let Err(error) = replicas::read(&run, &nodes, &rest).await
    {
        run.trouble(format!("the replicas cannot be compared: {error:#}"));
    }
    if let Err(error) = outcome.and(nodes.shim.as_ref().map_or(Ok(()), Shim::check)) {
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
    let (devices, orders) = Devices::start(run, &options.out.join("terminals"));
    let mut watching = JoinSet::new();
    watching.spawn(observe::nodes(run.clone(), observe::LOOK));
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
    if outcome.is_err() {
        // What was on its way had no time to arrive.
        run.phase(Phase::Heal);
    }
    // Whatever came of it, nothing stays broken.
    let healed = striker.heal(nodes).await;
    run.load.store(false, Ordering::Relaxed);
    watching.shutdown().await;
    devices.end().await;
    outcome.and(healed)
}

async fn phases(run: &Arc<Run>, nodes: &mut Nodes, striker: &mut Striker, seed: u64) -> anyhow::Result<()> {
    live::began(run, registered).await?;
    let phases = run.scenario.phases.clone();
    run.phase(Phase::Warmup);
    let start = Instant::now();
    let mut load = publish::load(run, seed);
    sleep_until(start + phases.warmup.0).await;
    run.phase(Phase::Chaos);
    striker.strike(nodes, start, start + phases.warmup.0 + phases.chaos.0).await?;
    run.phase(Phase::Heal);
    striker.heal(nodes).await?;
    rest(run, nodes, striker, phases.heal.0).await?;
    run.load.store(false, Ordering::Relaxed);
    while load.join_next().await.is_some() {}
    run.phase(Phase::Drain);
    live::drain(run, Instant::now() + phases.drain.0).await;
    Ok(())
}

/// Load goes on without faults. Where nodes came and went, or may have, the cluster is settled after that.
async fn rest(run: &Run, nodes: &mut Nodes, striker: &mut Striker, heal: Duration) -> anyhow::Result<()> {
    let until = Instant::now() + heal;
    let changed = run.scenario.faults().any(|fault| membership::may_change(fault.kind));
    let mut settled = None;
    while Instant::now() < until || (changed && settled != Some(Ok(())) && Instant::now() < until + SETTLE) {
        sleep(observe::LOOK).await;
        striker.tend(nodes, true).await?;
        if changed && Instant::now() >= until {
            settled = Some(membership::settled(run, nodes).await);
        }
    }
    if let Some(settled) = settled {
        let (settled, why) = (settled.is_ok(), settled.err().unwrap_or_default());
        run.see(Observation::Settled { settled, why });
    }
    Ok(())
}

/// The cluster is settled: one that is new tells terminals of anchors only then, and who comes before, sleeps unreached
/// behind its NAT until it checks in.
async fn settled(run: &Run) -> anyhow::Result<()> {
    let until = Instant::now() + FIRST;
    let Some(node) = run.speaking(0) else { bail!("there are no nodes") };
    loop {
        let answer = Request::get("/cluster", &run.token);
        let answer = answer.send(&node.admin, Duration::from_secs(5)).await;
        if answer.ok().and_then(|answer| answer.json()).is_some_and(|json| json["settled"] == true) {
            return Ok(());
        }
        if Instant::now() > until {
            bail!("after {FIRST:?} the cluster is not settled");
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// The service list knows all terminals.
async fn registered(run: &Run) -> bool {
    let request = Request::get("/v1/terminals?limit=1000", &run.token);
    let mut count = 0;
    let mut path = "/v1/terminals?limit=1000".to_owned();
    let Some(node) = run.speaking(0) else { return false };
    loop {
        let page = Request { path: &path, ..request };
        let answer = page.send(&node.http, Duration::from_secs(5)).await;
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
