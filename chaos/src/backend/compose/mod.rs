//! The cluster of docker-compose.yml, as a project that a run brings up for itself and takes down again. It is struck as
//! somebody's own cluster is, by hooks, which here are docker's commands. Touches no project but those of runs.

mod docker;
mod inside;
mod project;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use reveille_chaos::plan;
use reveille_chaos::scenario::Scenario;
use tokio::task::spawn_blocking;

pub(crate) use self::docker::{filters, ready};
use self::project::{HOOKS, NODES, Project};
use crate::backend::attach::{self, Cluster, Inside, Signals};
use crate::cli::output;

/// What a run needs besides its scenario.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// What all draws come from.
    pub(crate) seed: u64,
    /// The run's folder, which is there and empty.
    pub(crate) out: PathBuf,
    /// Say nothing while it goes on.
    pub(crate) quiet: bool,
}

/// Everything in a scenario that it cannot do, in words, wherever Docker is.
pub(crate) fn cannot(scenario: &Scenario) -> Vec<String> {
    let mut cannot = Vec::new();
    if scenario.cluster.nodes != NODES {
        cannot.push(format!("{} nodes: docker-compose.yml has {NODES}", scenario.cluster.nodes));
    }
    let missing = |hook: &str| {
        let has = HOOKS.iter().any(|(name, _)| *name == hook);
        (!has).then(|| format!("it has no hook `{hook}`"))
    };
    cannot.extend(scenario.faults().flat_map(|fault| attach::kind_cannot(fault, NODES, &missing)));
    cannot
}

/// Everything that this machine lacks for the scenario.
pub(crate) fn missing(scenario: &Scenario) -> Vec<String> {
    let mut missing: Vec<String> = ready().err().map(|error| format!("{error:#}")).into_iter().collect();
    let filtered =
        scenario.faults().find(|fault| matches!(fault.kind.name(), "cut" | "cut-one-way" | "loss"));
    if let (Some(fault), Err(error)) = (filtered, filters()) {
        missing.push(format!("{} of {}: {error:#}", fault.kind.name(), plan::target(fault)));
    }
    missing
}

/// Runs a scenario and leaves `history.jsonl` in the run's folder. Whatever comes of it, the project is taken down.
///
/// # Errors
/// If the cluster could not be started, the history not be written, or something is left.
pub(crate) async fn run(scenario: Scenario, options: &Options) -> anyhow::Result<PathBuf> {
    let mut signals = Signals::new()?;
    let folder = options.out.join("cluster");
    let shards = scenario.cluster.shards;
    let mut up = spawn_blocking(move || {
        let project = Project::new(&folder)?;
        project.up(shards).inspect_err(|_| project.logs())?;
        anyhow::Ok(project)
    });
    // Not broken off in the middle: what docker-compose has begun comes to its end, and can be taken down whole.
    let project = tokio::select! {
        up = &mut up => up??,
        () = signals.come() => {
            output::complain("interrupted; the cluster is taken down as soon as it stands");
            drop(up.await??);
            bail!("interrupted before anything was done");
        }
    };
    let outcome = on(&project, scenario, options, signals).await;
    let begun = outcome.is_ok();
    // Where this is not reached, dropping it does the same.
    let down = spawn_blocking(move || {
        if !begun {
            project.logs();
        }
        project.down()
    });
    let down = down.await?;
    outcome.and_then(|history| down.map(|()| history))
}

async fn on(
    project: &Project,
    scenario: Scenario,
    options: &Options,
    signals: Signals,
) -> anyhow::Result<PathBuf> {
    let cluster = Cluster::read(&project.file()).context("what this program wrote itself")?;
    let cluster = Arc::new(cluster.own(&scenario));
    let begun = attach::begin(cluster, &scenario, signals).await?;
    let containers = project.containers();
    let inside =
        Inside { data: project.data(), watch: Box::new(move |run| Box::pin(inside::watch(run, containers))) };
    let Options { seed, out, quiet } = options.clone();
    attach::run(begun, scenario, attach::Options { seed, out, quiet, inside: Some(inside) }).await
}
