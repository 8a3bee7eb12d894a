//! What a checker says: a verdict, a sentence, and what it found with its evidence.

use std::fmt;

use serde::Serialize;

use crate::facts::{Facts, Moment};

/// The most findings that are kept of one checker; the rest are counted. A person reads the first.
const FINDINGS: usize = 20;

/// How it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// As it must be.
    Pass,
    /// Not so.
    Fail,
    /// The history does not say enough to tell. Never counts as a pass.
    Unknown,
    /// The harness was in trouble, so that the rest means nothing.
    Harness,
}

impl Verdict {
    /// The exit code of a command that comes to this.
    pub fn exit_code(self) -> u8 {
        match self {
            Verdict::Pass => 0,
            Verdict::Fail => 1,
            Verdict::Unknown => 2,
            Verdict::Harness => 3,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Verdict::Pass => "PASS",
            Verdict::Fail => "FAIL",
            Verdict::Unknown => "UNKNOWN",
            Verdict::Harness => "HARNESS",
        })
    }
}

/// Something found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What, in plain words, with its witness.
    pub what: String,
    /// The lines of the history that show it, and no more of them than needed.
    pub lines: Vec<u32>,
}

impl Finding {
    /// A finding with the lines that show it.
    pub fn new(what: String, evidence: &[Moment]) -> Finding {
        let mut lines: Vec<u32> = evidence.iter().map(|moment| moment.line()).collect();
        lines.sort_unstable();
        lines.dedup();
        Finding { what, lines }
    }
}

/// What a checker came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// How it is.
    pub verdict: Verdict,
    /// What was looked at, or why it cannot be told.
    pub summary: String,
    /// What is wrong, the first few in the order in which they were found.
    pub findings: Vec<Finding>,
    /// How many more there are.
    pub more: usize,
}

impl Outcome {
    /// It cannot be told.
    pub(super) fn unknown(why: impl Into<String>) -> Outcome {
        Outcome { verdict: Verdict::Unknown, summary: why.into(), findings: Vec::new(), more: 0 }
    }
}

/// Findings that are being collected.
#[derive(Debug, Default)]
pub(super) struct Findings {
    kept: Vec<Finding>,
    all: usize,
}

impl Findings {
    /// One more. The words are only made if they are kept.
    pub(super) fn add(&mut self, evidence: &[Moment], what: impl FnOnce() -> String) {
        self.all += 1;
        if self.has_room() {
            self.kept.push(Finding::new(what(), evidence));
        }
    }

    /// Another one would be kept: what is dear to look up is worth it.
    pub(super) fn has_room(&self) -> bool {
        self.kept.len() < FINDINGS
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all == 0
    }

    /// What was found stands, whatever comes after the end of the history; that nothing was found says something only of
    /// a whole one.
    pub(super) fn outcome(self, facts: &Facts, summary: String) -> Outcome {
        let verdict = match (self.all, &facts.cut) {
            (0, None) => Verdict::Pass,
            (0, Some(_)) => Verdict::Unknown,
            _ => Verdict::Fail,
        };
        let more = self.all - self.kept.len();
        Outcome { verdict, summary, findings: self.kept, more }
    }
}
