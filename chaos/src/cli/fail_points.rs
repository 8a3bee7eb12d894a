//! `chaos fail-points`: has each thing happen once that can happen at a fail point, and says what came of it.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, anyhow, bail, ensure};
use clap::Args;
use reveille_chaos::check::{self, Verdict};
use reveille_chaos::facts;
use reveille_chaos::scenario::{Act, near};
use reveille_protocol::canary::PLANTABLE;
use reveille_protocol::fail_point::Point;

use super::made::Made;
use super::run::{Backend, new_folder};
use super::{output, seeds, threads};
use crate::backend::ENDED;
use crate::backend::sim::fail_points::Case;

/// Run the simulation once for each fail point and each of kill, panic, error and sleep that is possible there, under load
/// and other faults, from a time on that is drawn from the seed; and once more while a node starts, where it comes there
/// then. Every checker must pass, the point must have been passed, and its node have ended by it or not as `chaos list
/// points` says. Only in a build with the feature `canary`: cargo run -p chaos --features canary -- fail-points
#[derive(Debug, Args)]
pub(super) struct FailPointsArgs {
    /// Only at these points; all whose names begin so: `log.`.
    points: Vec<String>,
    /// Only this.
    #[arg(long)]
    action: Option<String>,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// So many seeds of each, from the first on.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// Where what does not pass is kept, if something does not. Default: chaos-out/fail-points-TIME.
    #[arg(long)]
    out: Option<PathBuf>,
}

impl FailPointsArgs {
    pub(super) fn run(self) -> anyhow::Result<Verdict> {
        let wanted = self.wanted()?;
        ensure!(
            PLANTABLE,
            "this build has no fail points: cargo run -p chaos --features canary -- fail-points"
        );
        let began = Instant::now();
        let (next, sum) = (AtomicUsize::new(0), Mutex::new(Sum::default()));
        let work = || -> anyhow::Result<()> {
            while let Some((case, seed)) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.one(*case, *seed, &sum)?;
            }
            Ok(())
        };
        threads::share(threads::processors(), "fail points", work)?;
        let Sum { worst, missed, .. } =
            sum.into_inner().map_err(|_| anyhow!("a fail point ended the run"))?;
        let points: std::collections::BTreeSet<Point> = wanted.iter().map(|(case, _)| case.point).collect();
        output::line(format!(
            "{} fail points, {} runs, {missed} of them not as they should be, {:.0} s",
            points.len(),
            wanted.len(),
            began.elapsed().as_secs_f64()
        ));
        Ok(worst.unwrap_or(Verdict::Pass))
    }

    /// What is run, each with its seed.
    fn wanted(&self) -> anyhow::Result<Vec<(Case, u64)>> {
        let names: Vec<&str> = Point::ALL.iter().map(|point| point.name()).collect();
        for word in &self.points {
            if !names.iter().any(|name| name.starts_with(word.as_str())) {
                bail!(near::unknown("fail point", word, &names));
            }
        }
        let acts = Act::ALL.map(Act::name);
        if let Some(word) = self.action.as_ref().filter(|word| !acts.contains(&word.as_str())) {
            bail!(near::unknown("action", word, &acts));
        }
        let meant = |case: &Case| {
            let name = case.point.name();
            let point = self.points.is_empty() || self.points.iter().any(|word| name.starts_with(word));
            point && self.action.as_ref().is_none_or(|word| word == case.act.name())
        };
        let seeds = || self.seed..self.seed.saturating_add(self.seeds);
        let cases = Case::all().into_iter().filter(meant);
        Ok(cases.flat_map(|case| seeds().map(move |seed| (case, seed))).collect())
    }

    fn one(&self, case: Case, seed: u64, sum: &Mutex<Sum>) -> anyhow::Result<()> {
        let (name, act) = (case.point.name(), case.act.name());
        let ran = seeds::alone(&case.scenario(seed)?, seed, true, None)?;
        let facts = facts::read(&ran.history[..])?;
        let judgement = check::judge(&facts, &[]);
        let covered = |point: &str| facts.cover.get(point).copied().unwrap_or_default();
        let ended = if covered(ENDED) > 0 { ", and its node said that it ends" } else { "" };
        let happened = covered(&case.act.cover(case.point));
        let when = if case.starting { "starting" } else { "" };
        let said = seeds::said(&judgement);
        output::line(format!(
            "{:7} {name:24} {act:6} {when:8} seed {seed:<3} happened {happened}{ended}{said}",
            judgement.verdict
        ));
        if judgement.verdict == Verdict::Pass {
            return Ok(());
        }
        let mut sum = sum.lock().map_err(|_| anyhow!("another fail point ended the run"))?;
        sum.missed += 1;
        sum.worst = Some(match sum.worst {
            // A broken promise counts before what says nothing.
            Some(Verdict::Fail) => Verdict::Fail,
            _ => judgement.verdict,
        });
        let folder = match &sum.folder {
            Some(folder) => folder.clone(),
            None => new_folder("fail-points", self.out.as_deref())?,
        };
        sum.folder = Some(folder.clone());
        let folder = folder.join(format!("{}-{seed}", case.name()));
        std::fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        Made::new(seed, Backend::Sim, None)?.keep(&folder, &case.text(seed))?;
        seeds::write(&ran, &folder)?;
        output::line(format!("            replay: chaos replay {}", folder.display()));
        Ok(())
    }
}

/// What they came to.
#[derive(Default)]
struct Sum {
    worst: Option<Verdict>,
    missed: usize,
    /// Where what did not pass is kept.
    folder: Option<PathBuf>,
}
