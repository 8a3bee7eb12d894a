//! `chaos check`: judges a history.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use reveille_chaos::check::{self, Judgement, Verdict};
use reveille_chaos::facts;
use serde_json::json;

use super::{output, report};

/// Judge a history: every checker, its verdict, and the lines that prove what it found.
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// A run's folder, or a history as a run writes it: JSON, one event a line.
    run: PathBuf,
    /// Checkers that must pass, by id or name, instead of those that the history claims: C1,no-phantom; `safety` stands
    /// for C1 to C8, `delivery` for C1 to C5.
    #[arg(long, value_delimiter = ',')]
    claims: Vec<String>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Print the lines of the history that each finding names.
    #[arg(long)]
    evidence: bool,
}

/// Findings that are printed of one checker; `--json` has all that are kept.
const PRINTED: usize = 5;

impl CheckArgs {
    pub(super) fn run(self) -> anyhow::Result<Verdict> {
        let history = report::history(&self.run);
        let file = File::open(&history).with_context(|| history.display().to_string())?;
        let facts = facts::read(BufReader::with_capacity(1 << 20, file))?;
        let claims: Vec<&str> = self.claims.iter().map(String::as_str).collect();
        let judgement = check::judge(&facts, &claims);
        match self.json {
            true => as_json(&judgement)?,
            false => {
                if !facts.begin.planted.is_empty() {
                    output::line(format!("planted: {}", facts.begin.planted));
                }
                print(&judgement, self.evidence.then_some(&history))?;
            }
        }
        Ok(judgement.verdict)
    }
}

fn as_json(judgement: &Judgement) -> anyhow::Result<()> {
    let checkers: Vec<_> = judgement
        .judged
        .iter()
        .map(|judged| {
            let (checker, outcome) = (judged.checker, &judged.outcome);
            json!({
                "id": checker.id, "name": checker.name, "claimed": judged.claimed, "verdict": outcome.verdict,
                "summary": outcome.summary, "findings": outcome.findings, "more": outcome.more,
            })
        })
        .collect();
    output::json(&json!({
        "verdict": judgement.verdict, "cut": judgement.cut, "trouble": judgement.trouble, "checkers": checkers,
    }))
}

/// Prints a judgement, with the lines of this history if it is given.
pub(super) fn print(judgement: &Judgement, history: Option<&PathBuf>) -> anyhow::Result<()> {
    let mut wanted = BTreeSet::new();
    for judged in &judgement.judged {
        let (checker, outcome) = (judged.checker, &judged.outcome);
        // What nobody asked for and cannot be told says nothing.
        if !judged.claimed && outcome.verdict == Verdict::Unknown {
            continue;
        }
        output::line(format!("{:7} {:3} {}: {}", outcome.verdict, checker.id, checker.name, outcome.summary));
        if outcome.verdict == Verdict::Fail {
            output::line(format!("        holds the cluster to: {}", checker.definition));
        }
        for finding in outcome.findings.iter().take(PRINTED) {
            output::line(format!("        - {}", finding.what));
            output::line(format!("          lines {}", numbers(&finding.lines)));
            wanted.extend(finding.lines.iter().copied());
        }
        let more = outcome.more + outcome.findings.len().saturating_sub(PRINTED);
        if more > 0 {
            output::line(format!("        … and {more} more"));
        }
    }
    for trouble in &judgement.trouble {
        output::line(format!("HARNESS line {}: {}", numbers(&trouble.lines), trouble.what));
    }
    if let Some(why) = &judgement.cut {
        output::line(format!("UNKNOWN the history is not whole: {why}"));
    }
    if let Some(path) = history {
        evidence(path, &wanted)?;
    }
    output::line(format!("{}", judgement.verdict));
    Ok(())
}

fn numbers(lines: &[u32]) -> String {
    lines.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

fn evidence(path: &Path, wanted: &BTreeSet<u32>) -> anyhow::Result<()> {
    let Some(last) = wanted.last() else { return Ok(()) };
    output::line("evidence:");
    let lines = BufReader::new(File::open(path)?).lines();
    for (number, line) in (1..=*last).zip(lines) {
        let line = line?;
        if wanted.contains(&number) {
            output::line(format!("{number:8} {line}"));
        }
    }
    Ok(())
}
