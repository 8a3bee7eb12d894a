//! `chaos run --backend attach` and `chaos heal`: a cluster that is its user's own. Without `--confirm` nothing is touched.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use clap::Args;
use reveille_chaos::check::Verdict;
use reveille_chaos::scenario::Scenario;

use super::made::Made;
use super::output;
use super::run::{Backend, How, folder, judged, refused};
use crate::backend::attach::{self, Cluster, Options, Signals};

/// Whose cluster it is, and whether it is meant.
#[derive(Debug, Args)]
pub(super) struct Attached {
    /// With --backend attach: the file about the cluster.
    #[arg(long)]
    cluster: Option<PathBuf>,
    /// With --backend attach: the cluster's name, as its file has it. Without it nothing is touched: what would be done
    /// is said, and whether it could be.
    #[arg(long, requires = "cluster")]
    confirm: Option<String>,
}

impl Attached {
    /// An error if there is something here, as only one backend has a use for it.
    pub(super) fn is_empty(&self) -> anyhow::Result<()> {
        ensure!(self.cluster.is_none(), "--cluster is for --backend attach");
        Ok(())
    }
}

/// Undo what a run on a cluster left that died.
#[derive(Debug, Args)]
pub(super) struct HealArgs {
    /// The file about the cluster.
    #[arg(long)]
    cluster: PathBuf,
}

impl HealArgs {
    pub(super) fn run(self) -> anyhow::Result<Verdict> {
        let cluster = Arc::new(Cluster::read(&self.cluster)?);
        runtime()?.block_on(attach::heal(cluster))?;
        Ok(Verdict::Pass)
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// Runs a scenario on it, or says what that would do.
pub(super) fn run(
    scenario: Scenario,
    text: &str,
    made: &Made,
    how: &How,
    attached: &Attached,
) -> anyhow::Result<Verdict> {
    let file = attached.cluster.as_ref().context("--backend attach needs --cluster FILE")?;
    let cluster = Arc::new(Cluster::read(file)?);
    let seed = made.seed;
    refused(&scenario, Backend::Attach, attach::cannot(&cluster, &scenario, seed))?;
    let Some(name) = &attached.confirm else {
        let could = runtime()?.block_on(attach::dry(&cluster, &scenario, seed))?;
        return Ok(if could { Verdict::Pass } else { Verdict::Harness });
    };
    if *name != cluster.name {
        bail!("--confirm {name:?}: {} is about the cluster {:?}", file.display(), cluster.name);
    }
    let runtime = runtime()?;
    let begun =
        runtime.block_on(async { attach::begin(cluster.clone(), &scenario, Signals::new()?).await })?;
    let out = folder(&scenario, &seed.to_string(), how.out.as_deref())?;
    made.keep(&out, text)?;
    output::line(format!(
        "{} on {}: {} · seed {seed} · {}",
        scenario.name,
        cluster.name,
        scenario.about,
        out.display()
    ));
    let options = Options { seed, out: out.clone(), quiet: how.quiet, inside: None };
    let history = runtime.block_on(attach::run(begun, scenario, options))?;
    let again = format!(
        "chaos run {} --backend attach --seed {seed} --cluster {} --confirm {name}",
        out.join("scenario.toml").display(),
        file.display()
    );
    Ok(judged(&history, &out, how, &again)?.judgement.verdict)
}
