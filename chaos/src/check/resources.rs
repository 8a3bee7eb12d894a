//! C13, bounded resources.

use super::Checker;
use super::outcome::{Findings, Outcome};
use crate::facts::{Facts, Taken};

pub(super) const CHECKER: Checker = Checker {
    id: "C13",
    name: "resources",
    definition: "no node ever takes more memory, open files or disk than the run allows",
    safety: false,
    check,
};

fn check(facts: &Facts) -> Outcome {
    let expect = &facts.begin.expect;
    type Of = fn(&Taken) -> Option<u64>;
    let kinds: [(&str, Option<u64>, Of); 3] = [
        ("bytes of memory", expect.rss_bytes, |taken| Some(taken.rss)),
        ("open files", expect.fds, |taken| Some(taken.fds)),
        ("bytes on disk", expect.disk_bytes, |taken| taken.disk),
    ];
    let mut findings = Findings::default();
    let mut said = Vec::new();
    let (mut limits, mut unseen) = (0, Vec::new());
    for (kind, limit, of) in kinds {
        let worst =
            facts.taken.iter().filter_map(|taken| Some((of(taken)?, taken))).max_by_key(|(of, _)| *of);
        if let Some((worst, _)) = worst {
            said.push(format!("{worst} {kind}"));
        }
        let Some(limit) = limit else { continue };
        limits += 1;
        match worst {
            None => unseen.push(kind),
            // The worst is the witness: the others say the same.
            Some((worst, taken)) if worst > limit => findings.add(&[taken.when], || {
                format!("node {} took {worst} {kind}, of {limit} allowed", taken.node)
            }),
            Some(_) => {}
        }
    }
    if limits == 0 {
        return Outcome::unknown("no limit was set");
    }
    if findings.is_empty() && !unseen.is_empty() {
        return Outcome::unknown(format!("nobody looked at {}", unseen.join(", ")));
    }
    findings.outcome(facts, format!("at most {}, in {} looks", said.join(", "), facts.taken.len()))
}
