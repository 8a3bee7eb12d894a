//! `chaos run`: a scenario on a backend, its history, and the verdict. What it runs is what a replay runs.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use reveille_chaos::check::{self, Judgement, Verdict};
use reveille_chaos::facts;
use reveille_chaos::scenario::Scenario;
use serde::{Deserialize, Serialize};

use super::attach::{self, Attached};
use super::made::Made;
use super::{check as print, output, report, seeds, source};
use crate::backend::proc::{self, points, shim};
use crate::backend::{compose, sim};

/// Run a scenario, and judge what happened.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// A scenario's file, or the name of one that came with the program.
    scenario: String,
    /// What it runs on.
    #[arg(long, value_enum, default_value_t = Backend::Proc)]
    backend: Backend,
    #[command(flatten)]
    how: How,
    #[command(flatten)]
    attached: Attached,
    /// What all draws come from. Default: a new one, which is said.
    #[arg(long)]
    seed: Option<u64>,
    /// Run so many seeds, from that of `--seed` or 1 on. Only of the simulation; the histories of those that do not pass
    /// are kept.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    seeds: Option<u64>,
    /// Run each of those seeds twice: the histories must be the same byte for byte.
    #[arg(long, requires = "seeds")]
    twice: bool,
    /// The binary `reveille` of the version before: where a scenario upgrades nodes, all begin with it.
    #[arg(long)]
    other: Option<PathBuf>,
    /// Plant this bug, one of `chaos list canaries`: with --backend sim, and in a build with the feature `canary`; or in
    /// real nodes `lying-disk`, whose syncs do nothing.
    #[arg(long)]
    canary: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct How {
    /// The binary `reveille`. Default: the one beside this program.
    #[arg(long)]
    pub(super) bin: Option<PathBuf>,
    /// The run's folder, made new. Default: `chaos-out/SCENARIO-SEED-TIME`.
    #[arg(long)]
    pub(super) out: Option<PathBuf>,
    /// Keep the nodes' data and the terminals' state also if all is well.
    #[arg(long)]
    keep: bool,
    /// Only the verdict.
    #[arg(long)]
    pub(super) quiet: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Backend {
    /// The release binary on loopback, terminals of the SDK, faults by signals.
    Proc,
    /// The simulation: virtual time, exact by its seed, and the inside of nodes to look at.
    Sim,
    /// The containers of docker-compose.yml, as a project of the run's own: the image is made before.
    Compose,
    /// A cluster that is your own, by your own commands: --cluster FILE. Without --confirm NAME it only says what it would
    /// do.
    Attach,
}

impl Backend {
    /// Those that need nothing that is somebody's own.
    pub(super) const HERE: [Backend; 3] = [Backend::Sim, Backend::Proc, Backend::Compose];

    /// As it is written.
    pub(super) fn word(self) -> &'static str {
        match self {
            Backend::Proc => "proc",
            Backend::Sim => "sim",
            Backend::Compose => "compose",
            Backend::Attach => "attach",
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Backend::Proc => "process",
            Backend::Sim => "simulation",
            Backend::Compose => "compose",
            Backend::Attach => "attach",
        }
    }

    pub(super) fn cannot(self, scenario: &Scenario) -> Vec<String> {
        match self {
            Backend::Proc => proc::cannot(scenario),
            Backend::Sim => sim::cannot(scenario),
            Backend::Compose => compose::cannot(scenario),
            // What it can do its cluster's file says: `attach::cannot`.
            Backend::Attach => vec!["it needs --cluster FILE".to_owned()],
        }
    }
}

impl RunArgs {
    pub(super) fn run(self) -> anyhow::Result<Verdict> {
        let (scenario, text) = source::scenario(&self.scenario)?;
        if let Some(count) = self.seeds {
            ensure!(self.backend == Backend::Sim, "--seeds is for the simulation: --backend sim");
            can(&scenario, self.backend)?;
            let first = Made::new(self.seed.unwrap_or(1), self.backend, self.canary)?;
            let out = folder(&scenario, "seeds", self.how.out.as_deref())?;
            let many = seeds::Many { count, twice: self.twice };
            return seeds::run(&scenario, &text, &first, many, &out);
        }
        let seed = self.seed.unwrap_or_else(new_seed);
        let mut made = Made::new(seed, self.backend, self.canary)?;
        made.other = self.other.map(|other| there(&other, "--other")).transpose()?;
        if self.backend == Backend::Attach {
            return attach::run(scenario, &text, &made, &self.how, &self.attached);
        }
        self.attached.is_empty()?;
        Ok(go(scenario, &text, &made, &self.how)?.judgement.verdict)
    }
}

/// Small, so that it can be typed again.
fn new_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_micros() as u64 % 1_000_000)
}

pub(super) fn binary(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    let bin = match given {
        Some(bin) => bin.to_owned(),
        None => {
            let beside = std::env::current_exe()?.with_file_name("reveille");
            if !beside.is_file() {
                build(&beside)?;
            }
            beside
        }
    };
    there(&bin, "--bin")
}

/// A binary, if it is there.
fn there(bin: &Path, option: &str) -> anyhow::Result<PathBuf> {
    ensure!(
        bin.is_file(),
        "there is no {}: build it (cargo build --release -p reveille), or say where it is with {option}",
        bin.display()
    );
    Ok(bin.canonicalize()?)
}

/// An error if nodes are to be upgraded and there is no other version, or the other way round.
fn versions(scenario: &Scenario, other: Option<&Path>) -> anyhow::Result<()> {
    let upgrades = scenario.faults().any(|fault| fault.kind.name() == "upgrade");
    ensure!(
        !upgrades || other.is_some(),
        "{} upgrades nodes: say with --other where the version before is, which they begin with",
        scenario.name
    );
    ensure!(upgrades || other.is_none(), "{} upgrades no node, so --other is of no use", scenario.name);
    Ok(())
}

/// Under `cargo run` in a clone where nothing was built before, the server is built as this program was.
fn build(beside: &Path) -> anyhow::Result<()> {
    let Some(cargo) = std::env::var_os("CARGO") else { return Ok(()) };
    output::line("there is no `reveille` beside this program; cargo builds it");
    let mut build = std::process::Command::new(cargo);
    build.args(["build", "-p", "reveille"]);
    if beside.parent().is_some_and(|folder| folder.ends_with("release")) {
        build.arg("--release");
    }
    let built = build.status().context("cargo")?;
    ensure!(built.success(), "cargo build -p reveille: {built}");
    Ok(())
}

/// What a run came to.
pub(super) struct Gone {
    pub(super) judgement: Judgement,
    /// Its history.
    pub(super) history: PathBuf,
}

/// Runs a scenario in a folder that it makes, judges what happened and says so.
pub(super) fn go(scenario: Scenario, text: &str, made: &Made, how: &How) -> anyhow::Result<Gone> {
    can(&scenario, made.backend)?;
    let planted = made.canary()?;
    ensure!(
        !made.lies() || shim::needed(&scenario),
        "{} has no fault by which a lying disk is found",
        scenario.name
    );
    if made.backend == Backend::Proc {
        versions(&scenario, made.other.as_deref())?;
    }
    // What is missing is said before anything is made.
    let real = Real::new(made, &scenario, how.bin.as_deref())?;
    let seed = made.seed;
    let out = folder(&scenario, &seed.to_string(), how.out.as_deref())?;
    made.keep(&out, text)?;
    let (name, about, bug) = (&scenario.name, &scenario.about, made.planted());
    output::line(format!("{name}: {about} · seed {seed}{bug} · {}", out.display()));
    let history = match real {
        Some(real) => real.run(scenario, seed, &out, how.quiet)?,
        None => seeds::one(&scenario, seed, how.quiet, planted, &out)?,
    };
    judged(&history, &out, how, &format!("chaos replay {}", out.display()))
}

/// Judges the history that a run has left in its folder, and draws it.
pub(super) fn judged(history: &Path, out: &Path, how: &How, again: &str) -> anyhow::Result<Gone> {
    let facts = facts::read(std::io::BufReader::new(std::fs::File::open(history)?))?;
    let judgement = check::judge(&facts, &[]);
    print::print(&judgement, None)?;
    let page = out.join("report.html");
    report::write(history, &facts, &judgement, &page, Some(again), None)?;
    output::line(format!("history: {}", history.display()));
    output::line(format!("report: {}", page.display()));
    output::line(format!("replay: {again}"));
    if judgement.verdict == Verdict::Fail {
        output::line(format!("shrink: chaos shrink {}", out.display()));
    }
    if judgement.verdict == Verdict::Pass && !how.keep {
        // Logs stay; the rest is large, and of no more use.
        for folder in data(out) {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
    Ok(Gone { judgement, history: history.to_owned() })
}

/// Real nodes of this program's own, wherever they run.
#[derive(Debug)]
pub(super) enum Real {
    /// Of this binary, and of that of the version before if nodes are upgraded; on disks that lie or do not.
    Processes {
        bin: PathBuf,
        other: Option<PathBuf>,
        lies: bool,
    },
    Containers,
}

impl Real {
    /// Those of a backend; none if it has none of its own.
    ///
    /// # Errors
    /// If something is missing here that the scenario needs.
    pub(super) fn new(made: &Made, scenario: &Scenario, bin: Option<&Path>) -> anyhow::Result<Option<Real>> {
        Ok(match made.backend {
            Backend::Proc => {
                let bin = binary(bin)?;
                let others = [Some(&bin), made.other.as_ref()].into_iter().flatten();
                let lacking: Vec<String> = others.filter_map(|bin| points::lacks(scenario, bin)).collect();
                ensure!(lacking.is_empty(), "{} cannot be run: {}", scenario.name, lacking.join("\n  "));
                Some(Real::Processes { bin, other: made.other.clone(), lies: made.lies() })
            }
            Backend::Compose => {
                let missing = compose::missing(scenario);
                ensure!(
                    missing.is_empty(),
                    "this machine cannot run it on containers:\n  {}",
                    missing.join("\n  ")
                );
                Some(Real::Containers)
            }
            // The latter has a command of its own, or was refused.
            Backend::Sim | Backend::Attach => None,
        })
    }

    /// Runs a scenario in a folder that is there and empty; its history.
    pub(super) fn run(
        &self,
        scenario: Scenario,
        seed: u64,
        out: &Path,
        quiet: bool,
    ) -> anyhow::Result<PathBuf> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let out = out.to_owned();
        match self {
            Real::Processes { bin, other, lies } => {
                let (bin, other, lies) = (bin.clone(), other.clone(), *lies);
                runtime.block_on(proc::run(scenario, &proc::Options { seed, bin, other, out, lies, quiet }))
            }
            Real::Containers => {
                runtime.block_on(compose::run(scenario, &compose::Options { seed, out, quiet }))
            }
        }
    }
}

/// An error if the backend cannot run the scenario.
pub(super) fn can(scenario: &Scenario, backend: Backend) -> anyhow::Result<()> {
    refused(scenario, backend, backend.cannot(scenario))
}

/// An error if there is something in the scenario that the backend cannot do.
pub(super) fn refused(scenario: &Scenario, backend: Backend, cannot: Vec<String>) -> anyhow::Result<()> {
    let (backend, name) = (backend.name(), &scenario.name);
    ensure!(
        cannot.is_empty(),
        "the {backend} backend of this build cannot run {name}:\n  {}",
        cannot.join("\n  ")
    );
    Ok(())
}

/// A run's folder, new.
pub(super) fn folder(scenario: &Scenario, name: &str, out: Option<&Path>) -> anyhow::Result<PathBuf> {
    new_folder(&format!("{}-{name}", scenario.name), out)
}

/// A folder, new: this one, or one of this name and the time.
pub(super) fn new_folder(name: &str, out: Option<&Path>) -> anyhow::Result<PathBuf> {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let new = || Path::new("chaos-out").join(format!("{name}-{time}"));
    let out = out.map_or_else(new, Path::to_owned);
    if let Some(parent) = out.parent() {
        std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    }
    match std::fs::create_dir(&out) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let out = out.display();
            bail!(
                "{out} is there already, and nothing in it is written over: say another folder with --out, or remove it"
            )
        }
        made => made.with_context(|| format!("{}: the folder cannot be made", out.display()))?,
    }
    Ok(out.canonicalize()?)
}

/// What nodes and terminals left behind besides logs.
fn data(out: &Path) -> Vec<PathBuf> {
    let mut folders = vec![out.join("terminals")];
    let nodes = std::fs::read_dir(out.join("cluster")).into_iter().flatten().flatten();
    folders.extend(nodes.map(|entry| entry.path()).filter(|path| path.is_dir()));
    folders
}
