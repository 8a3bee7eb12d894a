//! What happened in each short time of a run: rates, and how long things took. Pure.

use serde::Serialize;

use super::figures::Quantiles;
use crate::check::delivery_gaps;
use crate::facts::{Answer, Facts, Step};

/// The shortest bucket, and the most of them: one for each two pixels of a wide window.
const SHORTEST: u64 = 100_000;
const BUCKETS: u64 = 600;

/// One value for each bucket.
#[derive(Debug, Default, Serialize)]
pub(super) struct Series {
    /// A bucket's length in microseconds.
    bucket: u64,
    stored: Vec<u32>,
    failed: Vec<u32>,
    unknown: Vec<u32>,
    delivered: Vec<u32>,
    confirmed: Vec<u32>,
    publish: Vec<Quantiles>,
    deliver: Vec<Quantiles>,
}

/// Of a run.
pub(super) fn of(facts: &Facts) -> Series {
    let bucket = (facts.last.at / BUCKETS + 1).max(SHORTEST);
    let buckets = (facts.last.at / bucket + 1) as usize;
    // Nothing is later than the last line, but a history may say anything.
    let of = |at: u64| ((at / bucket) as usize).min(buckets - 1);
    let none = || vec![0; buckets];
    let mut series = Series {
        bucket,
        stored: none(),
        failed: none(),
        unknown: none(),
        delivered: none(),
        confirmed: none(),
        ..Series::default()
    };
    let mut publish = vec![Vec::new(); buckets];
    for push in &facts.pushes {
        match push.answer {
            Answer::Stored { when, .. } => {
                series.stored[of(when.at)] += 1;
                publish[of(when.at)].push(when.at.saturating_sub(push.asked.at));
            }
            Answer::Failed(when) => series.failed[of(when.at)] += 1,
            Answer::Unknown(when) => series.unknown[of(when.at)] += 1,
            Answer::Open => series.unknown[of(facts.last.at)] += 1,
        }
    }
    for stepped in facts.terminals.iter().flat_map(|terminal| &terminal.steps) {
        match stepped.step {
            Step::Delivered(_) => series.delivered[of(stepped.when.at)] += 1,
            Step::Confirmed { .. } => series.confirmed[of(stepped.when.at)] += 1,
            _ => {}
        }
    }
    let mut deliver = vec![Vec::new(); buckets];
    for gap in delivery_gaps(facts) {
        deliver[of(gap.to.at)].push(gap.to.at - gap.from.at);
    }
    series.publish = publish.into_iter().map(Quantiles::of).collect();
    series.deliver = deliver.into_iter().map(Quantiles::of).collect();
    series
}
