//! Runs on the simulation: one seed, or many, each on a thread of its own. Says how fast the world went.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::{Context, anyhow};
use reveille_chaos::check::{self, Judgement, Verdict};
use reveille_chaos::facts;
use reveille_chaos::scenario::Scenario;
use reveille_chaos::waits::{self, Waits};

use super::live::Runs;
use super::made::Made;
use super::{output, threads};
use crate::backend::sim::canaries::Planted;
use crate::backend::sim::{self, Ran};

/// A world's tasks nest deeply where openraft's do.
const STACK: usize = 16 << 20;

/// Runs a seed on a thread that nothing has run on before, with a bug planted if one is named.
pub(super) fn alone(
    scenario: &Scenario,
    seed: u64,
    quiet: bool,
    planted: Option<&Planted>,
) -> anyhow::Result<Ran> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().stack_size(STACK);
        let ran = thread.spawn_scoped(scope, || sim::run(scenario, seed, quiet, planted))?;
        ran.join().map_err(|_| anyhow!("seed {seed}: the simulation itself panicked"))
    })
}

/// The verdict on a history in memory.
pub(super) fn judge(ran: &Ran) -> anyhow::Result<Judgement> {
    Ok(check::judge(&facts::read(&ran.history[..])?, &[]))
}

fn speed(ran: &Ran) -> String {
    let (world, real) = (ran.virtual_seconds, ran.real_seconds);
    format!("{world:.1} virtual s in {real:.1} s: {:.0} a second", world / real.max(1e-3))
}

/// Runs one seed; its history.
pub(super) fn one(
    scenario: &Scenario,
    seed: u64,
    quiet: bool,
    planted: Option<&Planted>,
    out: &Path,
) -> anyhow::Result<PathBuf> {
    let ran = alone(scenario, seed, quiet, planted)?;
    output::line(speed(&ran));
    write(&ran, out)
}

pub(super) fn write(ran: &Ran, out: &Path) -> anyhow::Result<PathBuf> {
    let path = out.join("history.jsonl");
    std::fs::write(&path, &ran.history).with_context(|| path.display().to_string())?;
    Ok(path)
}

/// Many seeds.
pub(super) struct Many {
    pub(super) count: u64,
    /// Each runs twice, and must give the same history.
    pub(super) twice: bool,
}

/// What they came to.
#[derive(Default)]
struct Sum {
    /// By verdict: pass, fail, unknown, harness.
    verdicts: [u64; 4],
    world: f64,
    failed: Vec<String>,
    /// How long publishers waited because of faults, by kind.
    waits: BTreeMap<String, Vec<Waits>>,
}

/// Runs so many seeds from the first on, on as many threads as there are processors. The worst verdict counts.
pub(super) fn run(
    scenario: &Scenario,
    text: &str,
    made: &Made,
    Many { count, twice }: Many,
    out: &Path,
) -> anyhow::Result<Verdict> {
    let (first, planted) = (made.seed, made.canary()?);
    output::line(format!(
        "{}: {} · {count} seeds{} · {}",
        scenario.name,
        scenario.about,
        made.planted(),
        out.display()
    ));
    let began = std::time::Instant::now();
    let (next, sum) = (AtomicU64::new(first), Mutex::new(Sum::default()));
    let seen = Runs::new(count, "seeds");
    let work = || -> anyhow::Result<()> {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count {
                return Ok(());
            }
            let ran = alone(scenario, seed, true, planted)?;
            let facts = facts::read(&ran.history[..])?;
            let judgement = check::judge(&facts, &[]);
            let mut verdict = judgement.verdict;
            let mut found = said(&judgement);
            if twice && let Some(line) = differ(&ran, &alone(scenario, seed, true, planted)?) {
                verdict = Verdict::Harness;
                found.push_str(&format!(
                    "\n            HARNESS the second history differs from line {line} on"
                ));
            }
            output::line(format!("seed {seed:<6} {verdict:7} {}{found}", speed(&ran)));
            seen.done(verdict, ran.virtual_seconds);
            let mut sum = sum.lock().map_err(|_| anyhow!("another seed ended the run"))?;
            sum.verdicts[usize::from(verdict.exit_code())] += 1;
            sum.world += ran.virtual_seconds;
            for (kind, waits) in waits::of_faults(&facts) {
                sum.waits.entry(kind).or_default().extend(waits);
            }
            if verdict != Verdict::Pass {
                let folder = out.join(format!("seed-{seed}"));
                std::fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
                Made { seed, ..made.clone() }.keep(&folder, text)?;
                write(&ran, &folder)?;
                sum.failed.push(format!("replay: chaos replay {}", folder.display()));
            }
        }
    };
    threads::share(threads::processors(), "seeds", work)?;
    drop(seen);
    let Sum { verdicts, world, failed, waits } =
        sum.into_inner().map_err(|_| anyhow!("a seed ended the run"))?;
    let real = began.elapsed().as_secs_f64();
    let [pass, fail, unknown, harness] = verdicts;
    output::line(format!(
        "{count} seeds, {world:.0} virtual s in {real:.0} s ({:.0} a second): {pass} pass, {fail} fail, {unknown} unknown, \
         {harness} harness",
        world / real.max(1e-3)
    ));
    waits.iter().for_each(|(kind, waits)| output::line(told(kind, waits)));
    failed.iter().for_each(output::line);
    Ok(match () {
        () if fail > 0 => Verdict::Fail,
        () if harness > 0 => Verdict::Harness,
        () if unknown > 0 => Verdict::Unknown,
        () => Verdict::Pass,
    })
}

/// The first line, from 1, in which two runs' histories differ.
fn differ(one: &Ran, other: &Ran) -> Option<usize> {
    if one.history == other.history {
        return None;
    }
    let lines = |ran: &Ran| ran.history.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect::<Vec<_>>();
    let (one, other) = (lines(one), lines(other));
    let same = one.iter().zip(&other).take_while(|(one, other)| one == other).count();
    Some(same + 1)
}

/// How long publishers waited because of faults of a kind: the longest wait of each.
fn told(kind: &str, waits: &[Waits]) -> String {
    let of = |which: fn(&Waits) -> u64| {
        let mut all: Vec<u64> = waits.iter().map(which).collect();
        all.sort_unstable();
        let at = |share: usize| all[(all.len() * share / 100).min(all.len() - 1)] / 1000;
        format!("p50 {} p90 {} max {} ms", at(50), at(90), at(100))
    };
    let (there, back) = (of(|waits| waits.there), of(|waits| waits.back));
    format!("{kind}: {} times, a publisher waited {there}; at its return {back}", waits.len())
}

/// Of a run that did not pass: what each checker found first.
pub(super) fn said(judgement: &Judgement) -> String {
    let mut said = String::new();
    for judged in &judgement.judged {
        if judged.outcome.verdict == Verdict::Pass
            || (!judged.claimed && judged.outcome.verdict != Verdict::Fail)
        {
            continue;
        }
        let first = judged.outcome.findings.first().map_or(&judged.outcome.summary, |finding| &finding.what);
        said.push_str(&format!("\n            {} {}: {first}", judged.outcome.verdict, judged.checker.id));
    }
    for trouble in judgement.trouble.iter().take(2) {
        said.push_str(&format!("\n            HARNESS {}", trouble.what));
    }
    said
}
