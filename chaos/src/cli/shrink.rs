//! `chaos shrink`: runs what `reveille_chaos::shrink` wants tried, within a budget, and writes the least that still fails
//! as a run's folder, with its story.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use reveille_chaos::check::{self, Checker, Judgement, Verdict};
use reveille_chaos::facts::{self, Facts};
use reveille_chaos::history::{Event, Reader};
use reveille_chaos::plan::plan;
use reveille_chaos::scenario::{Scenario, near, write};
use reveille_chaos::shrink::{self, Candidate, Seen, Told};

use super::made::Made;
use super::run::{Backend, Real, can, folder};
use super::{output, report, seeds};

/// Search a smaller scenario with which the same checker still fails: fewer faults, nodes, terminals, shorter phases. The
/// seed stays. Leaves a folder as a run does, with the small scenario and its story. Exit codes: 0 it is written, also if
/// nothing could be made smaller; 2 it does not fail again; 3 trouble.
#[derive(Debug, Args)]
pub(super) struct ShrinkArgs {
    /// The folder of a run that failed.
    run: PathBuf,
    /// The checker that must fail, by id or name. Default: the first that does.
    #[arg(long)]
    checker: Option<String>,
    /// Begin no more runs after this.
    #[arg(long, default_value = "10m", value_parser = humantime::parse_duration)]
    budget: Duration,
    /// Begin no more runs than this.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    most: u32,
    /// Try a scenario on processes so often until it fails: what they make of a seed differs. In the simulation once.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    tries: u32,
    /// The folder, made new. Default: `chaos-out/SCENARIO-small-SEED-TIME`.
    #[arg(long)]
    out: Option<PathBuf>,
    /// The binary `reveille`, for runs on processes. Default: the one beside this program.
    #[arg(long)]
    bin: Option<PathBuf>,
}

/// A run that failed as it must.
struct Failed {
    scenario: Scenario,
    history: Vec<u8>,
    facts: Facts,
    judgement: Judgement,
    /// The lines that its first finding names.
    evidence: BTreeMap<u32, Event>,
    /// Where the nodes of real runs left what they did.
    left: Option<PathBuf>,
}

/// A history, and the folder that a run on processes left.
type Ran = (Vec<u8>, Option<PathBuf>);

struct Shrinker {
    made: Made,
    checker: &'static Checker,
    out: PathBuf,
    /// For runs on real nodes.
    real: Option<Real>,
    began: Instant,
    budget: Duration,
    most: u32,
    tries: u32,
    ran: u32,
    /// The budget ended the search.
    over: bool,
    best: Option<Failed>,
}

impl ShrinkArgs {
    pub(super) fn run(self) -> anyhow::Result<Verdict> {
        let (scenario, _, before) = Made::read(&self.run)?;
        let checker = self.checker()?;
        let made = before.again()?;
        can(&scenario, made.backend)?;
        let real = Real::new(&made, &scenario, self.bin.as_deref())?;
        let about = shrink::about(&scenario, checker);
        let out = folder(&about, &made.seed.to_string(), self.out.as_deref())?;
        output::line(format!(
            "{}: {} {} fails with seed {}{}; {} runs and {} at most",
            scenario.name,
            checker.id,
            checker.name,
            made.seed,
            made.planted(),
            self.most,
            humantime::format_duration(self.budget)
        ));
        let tries = if made.backend == Backend::Sim { 1 } else { self.tries };
        let (budget, most) = (self.budget, self.most);
        let mut shrinker = Shrinker {
            made,
            checker,
            out,
            real,
            began: Instant::now(),
            budget,
            most,
            tries,
            ran: 0,
            over: false,
            best: None,
        };
        // Read as it is written, so that what is found is what is kept.
        let as_it_was = reveille_chaos::scenario::load(&about.name, &write(&about))?;
        let again = [Candidate { scenario: as_it_was.clone(), by: "as it was".to_owned() }];
        let Some((_, seen)) = shrinker.first(&again)? else {
            output::line(format!("UNKNOWN it does not fail again in {} runs", shrinker.ran));
            return Ok(Verdict::Unknown);
        };
        let (_, taken) = shrink::shrink(as_it_was, seen, &mut |candidates| shrinker.first(candidates))?;
        shrinker.finish(&scenario, &taken)
    }

    /// Who must fail: of the run, or the one that is named, if it does.
    fn checker(&self) -> anyhow::Result<&'static Checker> {
        let history = self.run.join("history.jsonl");
        let bytes = std::fs::read(&history).with_context(|| history.display().to_string())?;
        let judgement = check::judge(&facts::read(&bytes[..])?, &[]);
        let named = match &self.checker {
            None => shrink::blamed(&judgement),
            Some(name) => Some(check::find(name).ok_or_else(|| {
                let names: Vec<&str> = check::CHECKERS.iter().map(|checker| checker.name).collect();
                anyhow!(near::unknown("checker", name, &names))
            })?),
        };
        match named.filter(|checker| shrink::fails(&judgement, checker)) {
            Some(checker) => Ok(checker),
            None => bail!(
                "{}: its verdict is {}, and {} does not fail: only what failed can be made smaller",
                self.run.display(),
                judgement.verdict,
                named.map_or("a checker", |checker| checker.name)
            ),
        }
    }
}

impl Shrinker {
    /// The first of these that fails, in their order, however many of them run at once.
    fn first(&mut self, candidates: &[Candidate]) -> anyhow::Result<Option<(usize, Seen)>> {
        let runnable = candidates.iter().enumerate();
        let runnable = runnable.filter(|(_, one)| self.made.backend.cannot(&one.scenario).is_empty());
        let runnable: Vec<(usize, &Candidate)> = runnable.collect();
        // Real nodes need the machine for themselves.
        let at_once = match self.made.backend {
            Backend::Sim => thread::available_parallelism().map_or(1, usize::from),
            Backend::Proc | Backend::Compose | Backend::Attach => 1,
        };
        for some in runnable.chunks(at_once) {
            for _ in 0..self.tries {
                if self.ran >= self.most || self.began.elapsed() >= self.budget {
                    self.over = true;
                    return Ok(None);
                }
                let some = &some[..some.len().min((self.most - self.ran) as usize)];
                let histories = self.histories(some)?;
                for ((place, candidate), ran) in some.iter().zip(histories) {
                    let Some((history, left)) = ran else { continue };
                    if let Some(failed) = self.failed(&candidate.scenario, history, left)? {
                        let seconds = self.began.elapsed().as_secs();
                        output::line(format!("{:4} runs {seconds:4} s  {}", self.ran, candidate.by));
                        return Ok(Some((*place, self.take(failed))));
                    }
                }
            }
        }
        Ok(None)
    }

    /// The histories of these, each with what its run left behind. One that cannot be run is said, and fails nobody.
    fn histories(&mut self, some: &[(usize, &Candidate)]) -> anyhow::Result<Vec<Option<Ran>>> {
        let first = self.ran + 1;
        self.ran += some.len() as u32;
        let planted = self.made.canary()?;
        let ran: Vec<anyhow::Result<Ran>> = match &self.real {
            Some(real) => {
                let real =
                    |((_, one), number): (&(usize, &Candidate), u32)| self.real(real, &one.scenario, number);
                some.iter().zip(first..).map(real).collect()
            }
            None => thread::scope(|scope| {
                let seed = self.made.seed;
                let run = move |scenario| Ok((seeds::alone(scenario, seed, true, planted)?.history, None));
                let all: Vec<_> =
                    some.iter().map(|(_, one)| scope.spawn(move || run(&one.scenario))).collect();
                let joined = all.into_iter().map(|one| one.join());
                joined.map(|ran| ran.map_err(|_| anyhow!("a try's thread panicked"))?).collect()
            }),
        };
        let said = ran.into_iter().zip(some).map(|(ran, (_, one))| {
            ran.map_err(|error| output::complain(format!("{}: {error:#}; it counts as not failed", one.by)))
                .ok()
        });
        Ok(said.collect())
    }

    /// A run on real nodes, in a folder of its own.
    fn real(&self, real: &Real, scenario: &Scenario, number: u32) -> anyhow::Result<Ran> {
        let out = self.out.join(format!("try-{number}"));
        std::fs::create_dir(&out).with_context(|| out.display().to_string())?;
        let history = real.run(scenario.clone(), self.made.seed, &out, true)?;
        Ok((std::fs::read(&history).with_context(|| history.display().to_string())?, Some(out)))
    }

    /// What is known of this run, if it failed as it must; else what it left goes.
    fn failed(
        &self,
        scenario: &Scenario,
        history: Vec<u8>,
        left: Option<PathBuf>,
    ) -> anyhow::Result<Option<Failed>> {
        let facts = facts::read(&history[..])?;
        let judgement = check::judge(&facts, &[]);
        if !shrink::fails(&judgement, self.checker) {
            remove(left.as_deref());
            return Ok(None);
        }
        let judged = judgement.judged.iter().find(|judged| judged.checker.id == self.checker.id);
        let first = judged.and_then(|judged| judged.outcome.findings.first());
        let lines = first.map(|finding| finding.lines.iter().copied().collect()).unwrap_or_default();
        let evidence = events(&history, &lines)?;
        Ok(Some(Failed { scenario: scenario.clone(), history, facts, judgement, evidence, left }))
    }

    /// It is the least so far.
    fn take(&mut self, failed: Failed) -> Seen {
        let evidence: Vec<u64> = failed.evidence.values().map(|event| event.at).collect();
        let seen = Seen::of(&failed.scenario, self.made.seed, &failed.facts, &evidence);
        if let Some(before) = self.best.replace(failed) {
            remove(before.left.as_deref());
        }
        seen
    }

    /// Writes the folder, and tells the story.
    fn finish(self, before: &Scenario, taken: &[String]) -> anyhow::Result<Verdict> {
        let Some(failed) = self.best else { bail!("nothing failed, and the search went on") };
        let Failed { scenario, history, facts, judgement, evidence, .. } = &failed;
        let again = format!("chaos replay {}", self.out.display());
        let told = Told { scenario, facts, judgement, checker: self.checker, evidence, again: &again };
        let story = shrink::story(&told);
        let command = self.made.command(&self.out.join("scenario.toml").display().to_string());
        let text = format!("# {command}\n{}", write(scenario));
        self.made.keep(&self.out, &text)?;
        let file = |name: &str| self.out.join(name);
        std::fs::write(file("history.jsonl"), history)?;
        std::fs::write(file("story.txt"), format!("{}\n", story.join("\n")))?;
        let page = file("report.html");
        report::write(&file("history.jsonl"), facts, judgement, &page, Some(&again), None)?;
        let seconds = self.began.elapsed().as_secs();
        let end = if self.over { "; the budget is over, less may do" } else { "" };
        output::line(format!("{} runs in {seconds} s, {} steps{end}", self.ran, taken.len()));
        output::line(format!("before: {}", size(before, self.made.seed)));
        output::line(format!("now:    {}", size(scenario, self.made.seed)));
        output::line(format!("scenario: {}", file("scenario.toml").display()));
        output::line("");
        story.iter().for_each(output::line);
        Ok(Verdict::Pass)
    }
}

/// How much there is of a scenario.
fn size(scenario: &Scenario, seed: u64) -> String {
    let (cluster, workload, phases) = (&scenario.cluster, &scenario.workload, &scenario.phases);
    let plan = plan(scenario, seed);
    let armed: u64 = plan.armed.iter().map(|armed| armed.times).sum();
    format!(
        "faults {}, strikes {}, nodes {}, shards {}, terminals {}, publishers {}, rate {}, chaos {}",
        scenario.faults.len(),
        plan.strikes.len() as u64 + armed,
        cluster.nodes,
        cluster.shards,
        workload.terminals,
        workload.publishers,
        workload.rate,
        phases.chaos
    )
}

/// What a run on processes left behind, which nobody needs any more.
fn remove(left: Option<&Path>) {
    let Some(left) = left else { return };
    if let Err(error) = std::fs::remove_dir_all(left) {
        output::complain(format!("{}: {error}; it may be removed", left.display()));
    }
}

/// The events of these lines of a history, by number from 1.
fn events(history: &[u8], lines: &BTreeSet<u32>) -> anyhow::Result<BTreeMap<u32, Event>> {
    let mut found = BTreeMap::new();
    let Some(last) = lines.last() else { return Ok(found) };
    // The first line is the reader's own.
    for (number, event) in (2..=*last).zip(Reader::new(history)?) {
        let event = event?;
        if lines.contains(&number) {
            found.insert(number, event);
        }
    }
    Ok(found)
}
