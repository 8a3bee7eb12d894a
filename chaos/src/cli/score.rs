//! `chaos score`: runs the grid's cells by seeds within a time, and leaves what they came to as text, JSON and a badge.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use clap::Args;
use reveille_chaos::check::{self, Judgement, Verdict};
use reveille_chaos::facts::{self, Facts};
use reveille_chaos::scenario::{KINDS, Kind, Work, near};
use reveille_chaos::score::{self, Came, Cell, Ran, Row, Safety, Score, badge, measure, text};

use super::live::Runs;
use super::made::Made;
use super::run::{Backend, Real, binary, new_folder};
use super::{output, seeds, threads};
use crate::backend::proc::points;

/// Run each kind of fault with each workload, and say as one number how well the cluster does: 0 and UNSAFE if a promise
/// about pushes was broken anywhere, else 100 for a cluster that keeps to its budgets everywhere. Leaves score.json,
/// badge.svg, and the folder of each run that did not pass. Exit codes: 0 every cell is known and well; 1 UNSAFE, or a cell
/// failed; 2 a cell is unknown; 3 trouble.
#[derive(Debug, Args)]
pub(super) struct ScoreArgs {
    /// What it runs on.
    #[arg(long, value_enum, default_value_t = Backend::Sim)]
    backend: Backend,
    /// Seeds of each cell, from 1 on. All cells are run by the first before any is by the second.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    seeds: u64,
    /// Begin no more runs after this. Cells that were not run by then are unknown.
    #[arg(long, default_value = "10m", value_parser = humantime::parse_duration)]
    budget: Duration,
    /// Only these: kinds of faults, workloads, or cells: kill,none/push. `none` is the row without faults.
    #[arg(long, value_delimiter = ',')]
    cells: Vec<String>,
    /// The score.json of an earlier score: what changed is said, and the new one remembers it for the trend.
    #[arg(long)]
    baseline: Option<PathBuf>,
    /// The binary `reveille`, for runs on processes. Default: the one beside this program.
    #[arg(long)]
    bin: Option<PathBuf>,
    /// The folder, made new. Default: `chaos-out/score-TIME`.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Plant this bug in each run, as `chaos run --canary` does.
    #[arg(long)]
    canary: Option<String>,
}

/// What is run, and where.
struct Grid {
    made: Made,
    real: Option<Real>,
    out: PathBuf,
    cells: Vec<Cell>,
    until: Instant,
    /// Somebody wants it to end.
    interrupted: AtomicBool,
}

impl ScoreArgs {
    pub(super) fn run(self) -> anyhow::Result<Verdict> {
        ensure!(
            self.backend != Backend::Attach,
            "a score breaks more than somebody's own cluster should be: sim, proc or compose"
        );
        for word in &self.cells {
            known(word)?;
        }
        let baseline = self.baseline.as_deref().map(read).transpose()?;
        let (cells, not_fired) = chosen(self.backend, &self.cells, self.bin.as_deref())?;
        ensure!(!cells.is_empty(), "the {} backend does none of these cells", self.backend.name());
        let made = Made::new(1, self.backend, self.canary)?;
        let real = Real::new(&made, &cells[0].scenario()?, self.bin.as_deref())?;
        let (out, until) = (new_folder("score", self.out.as_deref())?, Instant::now() + self.budget);
        output::line(format!(
            "{} cells by {} seeds on {}, none begun after {}{} · {}",
            cells.len(),
            self.seeds,
            self.backend.word(),
            humantime::format_duration(self.budget),
            made.planted(),
            out.display()
        ));
        let grid = Grid { made, real, out, cells, until, interrupted: AtomicBool::new(false) };
        let rows = grid.rows(self.seeds)?;
        let score = Score::new(grid.made.backend.word(), rows, not_fired, nowhere()?, baseline.as_ref());
        output::line(text::text(&score, baseline.as_ref()));
        for (name, what) in [
            ("score.json", serde_json::to_string_pretty(&score)? + "\n"),
            ("badge.svg", badge::svg(&score.head)),
        ] {
            let path = grid.out.join(name);
            std::fs::write(&path, what).with_context(|| path.display().to_string())?;
            output::line(format!("{}", path.display()));
        }
        Ok(match score.head {
            score::Head { safety: Safety::Unsafe, .. } | score::Head { failed: 1.., .. } => Verdict::Fail,
            score::Head { unknown: 1.., .. } => Verdict::Unknown,
            _ => Verdict::Pass,
        })
    }
}

/// A row, a column or a cell, or an error with the one that may be meant.
fn known(word: &str) -> anyhow::Result<()> {
    let word = [word.to_owned()];
    let all = Cell::all();
    if all.iter().any(|cell| cell.is_meant(&word)) {
        return Ok(());
    }
    let names: Vec<String> =
        all.iter().flat_map(|cell| [cell.row(), cell.column()]).map(str::to_owned).collect();
    let names: Vec<String> = names.into_iter().chain(all.iter().map(|cell| cell.name())).collect();
    bail!(near::unknown("cell", &word[0], &names.iter().map(String::as_str).collect::<Vec<_>>()))
}

fn read(path: &Path) -> anyhow::Result<Score> {
    let text = std::fs::read(path).with_context(|| path.display().to_string())?;
    let score: Score = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
    ensure!(score.version == score::VERSION, "{}: of version {}", path.display(), score.version);
    Ok(score)
}

/// The cells that are asked for and that the backend does; and for each kind why it may not have struck.
fn chosen(
    backend: Backend,
    words: &[String],
    bin: Option<&Path>,
) -> anyhow::Result<(Vec<Cell>, BTreeMap<String, String>)> {
    let (mut cells, mut not_fired) = (Vec::new(), BTreeMap::new());
    for cell in Cell::all() {
        let scenario = cell.scenario()?;
        let mut cannot = backend.cannot(&scenario);
        if backend == Backend::Proc {
            cannot.extend(points::lacks(&scenario, &binary(bin)?));
        }
        let (runs, kind) =
            (cannot.is_empty() && cell.is_meant(words), cell.kind.map(|kind| kind.name().to_owned()));
        if runs {
            cells.push(cell);
            not_fired.extend(kind.map(|kind| (kind, "it did not come to it".to_owned())));
        } else if let Some(kind) = kind {
            let why = cannot.first().map(|why| format!("{}: {}", backend.word(), reason(why)));
            not_fired.entry(kind).or_insert(why.unwrap_or("it was not asked for".to_owned()));
        }
    }
    Ok((cells, not_fired))
}

/// What a backend says of a fault that it cannot do, without which fault that is and where to read more.
fn reason(why: &str) -> &str {
    let why = why.split_once(": ").map_or(why, |(_, why)| why);
    why.split_once(';').map_or(why, |(why, _)| why)
}

/// Kinds that no backend does here, each with what the backends say.
fn nowhere() -> anyhow::Result<BTreeMap<String, String>> {
    let mut nowhere = BTreeMap::new();
    for kind in KINDS {
        let of = |cell: &Cell| cell.kind == Kind::find(kind.name) && cell.column() == Work::ALL[0].1;
        let Some(cell) = Cell::all().into_iter().find(of) else { continue };
        let scenario = cell.scenario()?;
        let mut why = Vec::new();
        let here = Backend::HERE;
        for backend in here {
            why.extend(
                backend.cannot(&scenario).first().map(|why| format!("{}: {}", backend.word(), reason(why))),
            );
        }
        if why.len() == here.len() {
            nowhere.insert(kind.name.to_owned(), why.join("; "));
        }
    }
    Ok(nowhere)
}

impl Grid {
    /// Runs the cells, each by so many seeds, as far as the time goes.
    fn rows(&self, seeds: u64) -> anyhow::Result<Vec<Row>> {
        let count = self.cells.len() * seeds as usize;
        let (next, ran) = (AtomicUsize::new(0), Mutex::new(vec![Vec::new(); self.cells.len()]));
        let seen = Runs::new(count as u64, "runs");
        let work = || -> anyhow::Result<()> {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let over = Instant::now() >= self.until || self.interrupted.load(Ordering::Relaxed);
                if at >= count || over {
                    return Ok(());
                }
                let (cell, seed) = (at % self.cells.len(), 1 + (at / self.cells.len()) as u64);
                let (one, virtual_seconds) = self.one(self.cells[cell], seed)?;
                let well = if one.came == Came::Kept { Verdict::Pass } else { Verdict::Fail };
                seen.done(well, virtual_seconds);
                ran.lock().map_err(|_| anyhow!("another cell ended the score"))?[cell].push(one);
            }
        };
        // Worlds need a processor each; processes need all of them.
        let threads = match self.made.backend {
            Backend::Sim => threads::processors(),
            Backend::Proc | Backend::Compose | Backend::Attach => 1,
        };
        threads::share(threads, "cells", work)?;
        drop(seen);
        let ran = ran.into_inner().map_err(|_| anyhow!("a cell ended the score"))?;
        let done: usize = ran.iter().map(Vec::len).sum();
        if done < count {
            output::line(format!("the time was over after {done} of {count} runs: --budget gives more"));
        }
        Ok(self.cells.iter().zip(&ran).map(|(cell, runs)| Row::of(*cell, runs)).collect())
    }

    /// One run of a cell, and how many virtual seconds it took. Its folder stays if it did not pass.
    fn one(&self, cell: Cell, seed: u64) -> anyhow::Result<(Ran, f64)> {
        let scenario = cell.scenario()?;
        let made = Made { seed, ..self.made.clone() };
        let folder = self.out.join(format!("{}-{}-{seed}", cell.row(), cell.column()));
        std::fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        made.keep(&folder, &cell.text())?;
        let (history, virtual_seconds) = match &self.real {
            None => {
                let ran = seeds::alone(&scenario, seed, true, made.canary()?)?;
                (ran.history, ran.virtual_seconds)
            }
            Some(real) => {
                // Nodes that did not come up are no reason to throw the other cells away.
                match real.run(scenario.clone(), seed, &folder, true) {
                    Ok(path) => (std::fs::read(&path).with_context(|| path.display().to_string())?, 0.0),
                    Err(error) => return Ok((Ran::unknown(seed, format!("HARNESS {error:#}")), 0.0)),
                }
            }
        };
        let facts: Facts = facts::read(&history[..])?;
        let judgement: Judgement = check::judge(&facts, &[]);
        if judgement.trouble.iter().any(|trouble| trouble.what == "interrupted") {
            self.interrupted.store(true, Ordering::Relaxed);
        }
        let ran = measure(&scenario, seed, &facts, &judgement);
        if ran.came == Came::Kept {
            std::fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
            return Ok((ran, virtual_seconds));
        }
        if self.real.is_none() {
            let path = folder.join("history.jsonl");
            std::fs::write(&path, &history).with_context(|| path.display().to_string())?;
        }
        let word = judgement.verdict;
        output::line(format!("{word:7} {} seed {seed}: chaos replay {}", cell.name(), folder.display()));
        Ok((ran, virtual_seconds))
    }
}
