//! `chaos canary`: plants one bug after the other, and says which checker found it, by which seed, and how to see that again.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{anyhow, bail, ensure};
use clap::Args;
use reveille_chaos::check::Verdict;
use reveille_chaos::scenario::{self, Scenario, near};
use reveille_protocol::canary::PLANTABLE;

use super::made::Made;
use super::run::Backend;
use super::{output, seeds, threads};
use crate::backend::sim::canaries::{CANARIES, Planted};

/// Plant a bug in the simulation and see that it is found: each of them, or the one that is named. Only in a build with the
/// feature `canary`: cargo run -p chaos --features canary -- canary
#[derive(Debug, Args)]
pub(super) struct CanaryArgs {
    /// Which; `chaos list canaries` has them. Then the last line is the run in which it was found.
    name: Option<String>,
    /// Seeds, from 1 on, within which it must be found.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    seeds: u64,
    /// Plant nothing: then nobody may find anything in the first of the seeds.
    #[arg(long)]
    without: bool,
}

impl CanaryArgs {
    pub(super) fn run(self) -> anyhow::Result<Verdict> {
        let names: Vec<&str> = CANARIES.iter().map(|planted| planted.name).collect();
        let wanted: Vec<&Planted> = match &self.name {
            None => CANARIES.iter().collect(),
            Some(name) => CANARIES.iter().filter(|planted| planted.name == name).collect(),
        };
        if let (Some(name), true) = (&self.name, wanted.is_empty()) {
            bail!(near::unknown("canary", name, &names));
        }
        ensure!(
            PLANTABLE || self.without,
            "this build has no bugs to plant: cargo run -p chaos --features canary -- canary"
        );
        let began = Instant::now();
        let (next, sum) = (AtomicUsize::new(0), Mutex::new((0, Vec::new())));
        let work = || -> anyhow::Result<()> {
            while let Some(planted) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                let (well, said, seed) = match self.without {
                    true => without(planted)?,
                    false => look(planted, self.seeds)?,
                };
                output::line(said);
                let mut sum = sum.lock().map_err(|_| anyhow!("another canary ended the run"))?;
                sum.0 += u32::from(!well);
                if let Some(seed) = seed {
                    let made = Made::new(seed, Backend::Sim, Some(planted.name.to_owned()))?;
                    sum.1.push(made.command(planted.scenario.0));
                }
            }
            Ok(())
        };
        threads::share(threads::processors(), "canaries", work)?;
        let (missed, found) = sum.into_inner().map_err(|_| anyhow!("a canary ended the run"))?;
        let (count, seconds) = (wanted.len(), began.elapsed().as_secs_f64());
        output::line(format!("{count} canaries, {missed} of them not as they should be, {seconds:.0} s"));
        if self.name.is_some() {
            found.iter().for_each(|command| output::line(format!("again: {command}")));
        }
        Ok(if missed == 0 { Verdict::Pass } else { Verdict::Fail })
    }
}

fn scenario_of(planted: &Planted) -> anyhow::Result<Scenario> {
    Ok(scenario::load(planted.name, planted.scenario.1)?)
}

/// Which checkers fail in this seed, by their ids, and what the one that must says first.
fn fails(
    scenario: &Scenario,
    seed: u64,
    planted: Option<&Planted>,
    checker: &str,
) -> anyhow::Result<(Vec<&'static str>, String)> {
    let judgement = seeds::judge(&seeds::alone(scenario, seed, true, planted)?)?;
    let failed = judgement.judged.iter().filter(|judged| judged.outcome.verdict == Verdict::Fail);
    let first = failed.clone().find(|judged| judged.checker.id == checker);
    let first = first.and_then(|judged| judged.outcome.findings.first());
    let mut said = first.map_or(String::new(), |finding| finding.what.clone());
    if let Some(trouble) = judgement.trouble.first() {
        said = format!("HARNESS {}", trouble.what);
    }
    Ok((failed.map(|judged| judged.checker.id).collect(), said))
}

/// Whether it is as it should be, what to say, and by which seed a planted bug was found.
type Came = (bool, String, Option<u64>);

/// The checker that must finds it within so many seeds.
fn look(planted: &Planted, seeds: u64) -> anyhow::Result<Came> {
    let scenario = scenario_of(planted)?;
    let mut others: Vec<&str> = Vec::new();
    for seed in 1..=seeds {
        let (failed, said) = fails(&scenario, seed, Some(planted), planted.checker)?;
        others.extend(failed.iter().filter(|id| **id != planted.checker));
        if failed.contains(&planted.checker) {
            others.sort_unstable();
            others.dedup();
            let also = if others.is_empty() { String::new() } else { format!(", also {}", others.join(" ")) };
            let what =
                format!("found  {:22} by {} with seed {seed}{also}: {said}", planted.name, planted.checker);
            return Ok((true, what, Some(seed)));
        }
    }
    others.sort_unstable();
    others.dedup();
    Ok((
        false,
        format!(
            "MISSED {:22} by {} in {seeds} seeds; failed: {}",
            planted.name,
            planted.checker,
            others.join(" ")
        ),
        None,
    ))
}

/// Nobody finds anything where nothing is planted.
fn without(planted: &Planted) -> anyhow::Result<Came> {
    let (failed, said) = fails(&scenario_of(planted)?, 1, None, planted.checker)?;
    let well = failed.is_empty() && said.is_empty();
    let found = if well { "nothing".to_owned() } else { format!("{} {said}", failed.join(" ")) };
    Ok((well, format!("without {:22} {found}", planted.name), None))
}
