//! `chaos report`: a history as one HTML file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use reveille_chaos::check::{self, Judgement, Verdict};
use reveille_chaos::facts::{self, Facts};
use reveille_chaos::report::{self, Baseline, Line};
use serde::Deserialize;

use super::output;

/// Draw a run: one HTML file that opens without a network, at the first violation.
#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    /// A run's folder, or a history.
    run: PathBuf,
    /// The file. Default: `report.html` beside the history.
    #[arg(long)]
    out: Option<PathBuf>,
    /// An earlier run to compare with: its folder, or its history.
    #[arg(long)]
    baseline: Option<PathBuf>,
}

/// The longest part of a line that is shown: a hostile name may be long.
const LINE: usize = 4096;

impl ReportArgs {
    pub(super) fn run(self) -> anyhow::Result<Verdict> {
        let history = history(&self.run);
        let (facts, judgement) = judged(&history)?;
        let out = self.out.unwrap_or_else(|| history.with_file_name("report.html"));
        let baseline =
            self.baseline.map(|run| anyhow::Ok((run.display().to_string(), judged(&self::history(&run))?)));
        let baseline = baseline.transpose()?;
        let baseline =
            baseline.as_ref().map(|(name, (facts, judgement))| Baseline { name, facts, judgement });
        let again = self.run.is_dir().then(|| format!("chaos replay {}", self.run.display()));
        write(&history, &facts, &judgement, &out, again.as_deref(), baseline.as_ref())?;
        output::line(format!("report: {}", out.display()));
        // That it was drawn says nothing of the run; `chaos check` does.
        Ok(Verdict::Pass)
    }
}

/// The history of a run's folder; a file is one itself.
pub(super) fn history(run: &Path) -> PathBuf {
    if run.is_dir() { run.join("history.jsonl") } else { run.to_owned() }
}

fn judged(history: &Path) -> anyhow::Result<(Facts, Judgement)> {
    let file = File::open(history).with_context(|| history.display().to_string())?;
    let facts = facts::read(BufReader::with_capacity(1 << 20, file))?;
    let judgement = check::judge(&facts, &[]);
    Ok((facts, judgement))
}

/// Writes the report of a judged history.
pub(super) fn write(
    history: &Path,
    facts: &Facts,
    judgement: &Judgement,
    out: &Path,
    again: Option<&str>,
    baseline: Option<&Baseline<'_>>,
) -> anyhow::Result<()> {
    let lines = lines(history, &report::wanted(judgement))?;
    let page = report::page(facts, judgement, &lines, again, baseline);
    std::fs::write(out, page).with_context(|| out.display().to_string())
}

#[derive(Deserialize)]
struct When {
    at: u64,
}

/// These lines of a history, by number from 1.
fn lines(history: &Path, wanted: &BTreeSet<u32>) -> anyhow::Result<BTreeMap<u32, Line>> {
    let Some(last) = wanted.last() else { return Ok(BTreeMap::new()) };
    let file = BufReader::with_capacity(1 << 20, File::open(history)?);
    let mut found = BTreeMap::new();
    for (number, line) in (1..=*last).zip(file.lines()) {
        let line = line?;
        if wanted.contains(&number) {
            let at = serde_json::from_str::<When>(&line).map_or(0, |when| when.at);
            let text = line.chars().take(LINE).collect();
            found.insert(number, Line { at, text });
        }
    }
    Ok(found)
}
