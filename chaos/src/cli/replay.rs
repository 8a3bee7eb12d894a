//! `chaos replay`: does again what a run did, and says whether it comes to the same.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use reveille_chaos::check::{self, Judgement, Verdict};
use reveille_chaos::facts;

use super::made::Made;
use super::output;
use super::run::{Backend, Gone, How, go};

/// Do again what a run did: the same scenario with the same seed on the same backend, in a new folder. The exit code is
/// that of the new run. The simulation gives the same history, byte for byte; if the same build does not, that is HARNESS.
/// What processes make of a seed may differ.
#[derive(Debug, Args)]
pub(super) struct ReplayArgs {
    /// The run's folder.
    run: PathBuf,
    #[command(flatten)]
    how: How,
}

impl ReplayArgs {
    pub(super) fn run(self) -> anyhow::Result<Verdict> {
        let (scenario, text, before) = Made::read(&self.run)?;
        let made = before.again()?;
        let Gone { judgement, history } = go(scenario, &text, &made, &self.how)?;
        let old = self.run.join("history.jsonl");
        if !old.is_file() {
            output::line(format!("there is no {} to compare with", old.display()));
            return Ok(judgement.verdict);
        }
        let open = |path| File::open(path).map(|file| BufReader::with_capacity(1 << 20, file));
        let facts = facts::read(open(&old)?).with_context(|| old.display().to_string())?;
        output::line(compare(&check::judge(&facts, &[]), &judgement));
        if made.backend != Backend::Sim {
            return Ok(judgement.verdict);
        }
        let other_build = before.build != made.build;
        Ok(match (first_difference(open(&old)?, open(&history)?)?, other_build) {
            (None, _) => {
                output::line("the history is the same, byte for byte");
                judgement.verdict
            }
            (Some(line), true) => {
                output::line(format!("the history differs from line {line} on; it is of another build"));
                judgement.verdict
            }
            (Some(line), false) => {
                let what = "the simulation is not exact, and what it says is worth little";
                output::line(format!("HARNESS the history differs from line {line} on: {what}"));
                Verdict::Harness
            }
        })
    }
}

/// Whether two runs came to the same, and which checkers say something else of the second.
fn compare(before: &Judgement, now: &Judgement) -> String {
    let mut other = Vec::new();
    for judged in &now.judged {
        let (id, is) = (judged.checker.id, judged.outcome.verdict);
        let was = before.judged.iter().find(|judged| judged.checker.id == id);
        let was = was.map_or(Verdict::Unknown, |judged| judged.outcome.verdict);
        if was != is {
            other.push(format!("{id} {was} -> {is}"));
        }
    }
    let (was, is) = (before.verdict, now.verdict);
    match (was == is, other.is_empty()) {
        (true, true) => format!("as before: {is}, and each checker says the same"),
        (true, false) => format!("as before: {is}, but not by the same checkers: {}", other.join(", ")),
        (false, _) => format!("not as before: it was {was}, and is {is}; {}", other.join(", ")),
    }
}

/// The first line, from 1, in which these differ.
fn first_difference(mut one: impl BufRead, mut two: impl BufRead) -> std::io::Result<Option<u64>> {
    let (mut left, mut right) = (Vec::new(), Vec::new());
    for line in 1.. {
        left.clear();
        right.clear();
        // A history's own bound; a longer line is compared in parts.
        (&mut one).take(LINE).read_until(b'\n', &mut left)?;
        (&mut two).take(LINE).read_until(b'\n', &mut right)?;
        match (left == right, left.is_empty()) {
            (false, _) => return Ok(Some(line)),
            (true, true) => return Ok(None),
            (true, false) => {}
        }
    }
    Ok(None)
}

/// The longest line of a history, with its end.
const LINE: u64 = reveille_chaos::history::read::LINE as u64 + 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_differs_is_named() {
        let first = |one: &str, two: &str| first_difference(one.as_bytes(), two.as_bytes()).unwrap();
        assert_eq!(first("a\nb\n", "a\nb\n"), None);
        assert_eq!(first("a\nb\n", "a\nc\n"), Some(2));
        assert_eq!(first("a\nb\n", "a\n"), Some(2));
        assert_eq!(first("a\nb\n", "a\nb"), Some(2));
    }
}
