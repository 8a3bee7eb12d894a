//! `chaos run` and `chaos replay`: a scenario on a backend, its history, and the verdict.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use reveille_chaos::check::{self, Verdict};
use reveille_chaos::facts;
use reveille_chaos::scenario::Scenario;
use serde::{Deserialize, Serialize};

use super::attach::{self, Attached};
use super::{check as print, output, report, seeds, source};
use crate::backend::proc::{self, Options};
use crate::backend::sim;

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
}

/// Do again what a run did: the same scenario with the same seed. What processes make of it may differ.
#[derive(Debug, Args)]
pub(super) struct ReplayArgs {
    /// The run's folder.
    run: PathBuf,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Args)]
pub(super) struct How {
    /// The binary `reveille`. Default: the one beside this program.
    #[arg(long)]
    bin: Option<PathBuf>,
    /// The run's folder, made new. Default: `chaos-out/SCENARIO-SEED-TIME`.
    #[arg(long)]
    out: Option<PathBuf>,
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
    /// A cluster that is your own, by your own commands: --cluster FILE. Without --confirm NAME it only says what it would
    /// do.
    Attach,
}

/// What a replay needs to know: `run.json`. The scenario is beside it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Made {
    pub(super) seed: u64,
    pub(super) backend: Backend,
}

impl RunArgs {
    pub(super) fn run(self) -> anyhow::Result<Verdict> {
        let (scenario, text) = source::scenario(&self.scenario)?;
        if let Some(count) = self.seeds {
            ensure!(self.backend == Backend::Sim, "--seeds is for the simulation: --backend sim");
            can("simulation", &scenario, sim::cannot(&scenario))?;
            let out = made(&scenario, "seeds", &self.how)?;
            return seeds::run(&scenario, &text, self.seed.unwrap_or(1), count, &out);
        }
        let seed = self.seed.unwrap_or_else(new_seed);
        if self.backend == Backend::Attach {
            return attach::run(scenario, &text, seed, &self.how, &self.attached);
        }
        self.attached.is_empty()?;
        go(scenario, &text, Made { seed, backend: self.backend }, &self.how)
    }
}

impl ReplayArgs {
    pub(super) fn run(self) -> anyhow::Result<Verdict> {
        let file = self.run.join("run.json");
        let text = std::fs::read(&file).with_context(|| file.display().to_string())?;
        let made: Made = serde_json::from_slice(&text).with_context(|| file.display().to_string())?;
        // Nobody's cluster is struck by what a folder says.
        ensure!(
            made.backend != Backend::Attach,
            "this run was on a cluster that is somebody's own: chaos run {} --backend attach --seed {} --cluster FILE",
            self.run.join("scenario.toml").display(),
            made.seed
        );
        let scenario = self.run.join("scenario.toml");
        let (scenario, text) = source::file(&scenario)?;
        go(scenario, &text, made, &self.how)
    }
}

/// Small, so that it can be typed again.
fn new_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_micros() as u64 % 1_000_000)
}

fn binary(given: Option<&Path>) -> anyhow::Result<PathBuf> {
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
    ensure!(
        bin.is_file(),
        "there is no {}: build it (cargo build --release -p reveille), or say where it is with --bin",
        bin.display()
    );
    Ok(bin.canonicalize()?)
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

fn go(scenario: Scenario, text: &str, made_of: Made, how: &How) -> anyhow::Result<Verdict> {
    // What is missing is said before anything is made.
    let bin = match made_of.backend {
        Backend::Proc => {
            can("process", &scenario, proc::cannot(&scenario))?;
            Some(binary(how.bin.as_deref())?)
        }
        Backend::Sim => {
            can("simulation", &scenario, sim::cannot(&scenario))?;
            None
        }
        Backend::Attach => bail!("--backend attach needs --cluster FILE"),
    };
    let out = made(&scenario, &made_of.seed.to_string(), how)?;
    keep(&out, text, &made_of)?;
    let seed = made_of.seed;
    output::line(format!("{}: {} · seed {seed} · {}", scenario.name, scenario.about, out.display()));
    let history = match bin {
        Some(bin) => {
            let options = Options { seed, bin, out: out.clone(), quiet: how.quiet };
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(proc::run(scenario, &options))?
        }
        None => seeds::one(&scenario, seed, how.quiet, &out)?,
    };
    judged(&history, &out, how, &format!("chaos replay {}", out.display()))
}

/// Judges the history that a run has left in its folder, and draws it.
pub(super) fn judged(history: &Path, out: &Path, how: &How, again: &str) -> anyhow::Result<Verdict> {
    let facts = facts::read(std::io::BufReader::new(std::fs::File::open(history)?))?;
    let judgement = check::judge(&facts, &[]);
    print::print(&judgement, None)?;
    let page = out.join("report.html");
    report::write(history, &facts, &judgement, &page, Some(again), None)?;
    output::line(format!("history: {}", history.display()));
    output::line(format!("report: {}", page.display()));
    output::line(format!("replay: {again}"));
    if judgement.verdict == Verdict::Pass && !how.keep {
        // Logs stay; the rest is large, and of no more use.
        for folder in data(out) {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
    Ok(judgement.verdict)
}

/// The scenario and what it is run by, for a replay.
pub(super) fn keep(out: &Path, text: &str, made: &Made) -> anyhow::Result<()> {
    std::fs::write(out.join("scenario.toml"), text)?;
    std::fs::write(out.join("run.json"), serde_json::to_vec_pretty(made)?)?;
    Ok(())
}

/// An error if there is something in the scenario that the backend cannot do.
pub(super) fn can(backend: &str, scenario: &Scenario, cannot: Vec<String>) -> anyhow::Result<()> {
    let name = &scenario.name;
    ensure!(
        cannot.is_empty(),
        "the {backend} backend of this build cannot run {name}:\n  {}",
        cannot.join("\n  ")
    );
    Ok(())
}

/// The run's folder, new.
pub(super) fn made(scenario: &Scenario, name: &str, how: &How) -> anyhow::Result<PathBuf> {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let out = how
        .out
        .clone()
        .unwrap_or_else(|| Path::new("chaos-out").join(format!("{}-{name}-{time}", scenario.name)));
    if let Some(parent) = out.parent() {
        std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    }
    std::fs::create_dir(&out).with_context(|| format!("{}: a run makes its folder", out.display()))?;
    Ok(out.canonicalize()?)
}

/// What nodes and terminals left behind besides logs.
fn data(out: &Path) -> Vec<PathBuf> {
    let mut folders = vec![out.join("terminals")];
    let nodes = std::fs::read_dir(out.join("cluster")).into_iter().flatten().flatten();
    folders.extend(nodes.map(|entry| entry.path()).filter(|path| path.is_dir()));
    folders
}
