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
use crate::backend::sim::fail_points::{Case, ENDED, fired};

/// Run the simulation once for each fail point and each of kill, panic, error and sleep that is possible there, under load
/// and other faults; every checker must pass, and the point must have been passed. `chaos list points` has them. Only in a
/// build with the feature `canary`: cargo run -p chaos --features canary -- fail-points
#[derive(Debug, Args)]
pub(super) struct FailPointsArgs {
    /// Only at these points; all whose names begin so: `log.`.
    points: Vec<String>,
    /// Only this.
    #[arg(long)]
    action: Option<String>,
    /// The seed of each run.
    #[arg(long, default_value_t = 1)]
    seed: u64,
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
            while let Some(case) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.one(*case, &sum)?;
            }
            Ok(())
        };
        threads::share(threads::processors(), "fail points", work)?;
        let Sum { worst, missed, .. } =
            sum.into_inner().map_err(|_| anyhow!("a fail point ended the run"))?;
        let points: std::collections::BTreeSet<Point> = wanted.iter().map(|case| case.point).collect();
        output::line(format!(
            "{} fail points, {} runs, {missed} of them not as they should be, {:.0} s",
            points.len(),
            wanted.len(),
            began.elapsed().as_secs_f64()
        ));
        Ok(worst.unwrap_or(Verdict::Pass))
    }

    fn wanted(&self) -> anyhow::Result<Vec<Case>> {
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
        Ok(Case::all().into_iter().filter(meant).collect())
    }

    fn one(&self, case: Case, sum: &Mutex<Sum>) -> anyhow::Result<()> {
        let (name, act) = (case.point.name(), case.act.name());
        let ran = seeds::alone(&case.scenario()?, self.seed, true, None)?;
        let facts = facts::read(&ran.history[..])?;
        let judgement = check::judge(&facts, &[]);
        let covered = |point: &str| facts.cover.get(point).copied().unwrap_or_default();
        let ended = if covered(ENDED) > 0 { ", and its node said that it ends" } else { "" };
        let happened = covered(&fired(case.point, case.act));
        let said = seeds::said(&judgement);
        output::line(format!("{:7} {name:24} {act:6} happened {happened}{ended}{said}", judgement.verdict));
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
        let folder = folder.join(format!("{name}-{act}"));
        std::fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        Made::new(self.seed, Backend::Sim, None)?.keep(&folder, &case.text())?;
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
