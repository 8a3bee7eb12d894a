//! Many runs as one number: a grid of faults and workloads, what each cell came to, and how much that is worth. Safety is a
//! gate: an average would hide one lost push among a thousand good figures. Pure; the program runs the cells.

pub mod badge;
pub mod cells;
pub mod measure;
pub mod text;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use self::cells::Cell;
pub use self::measure::{Came, Ran, measure};

/// The version of `score.json`.
pub const VERSION: u32 = 1;
/// Earlier scores that a new one remembers: a trend of a year of weeks.
pub const EARLIER: usize = 52;

/// What a cell is measured by: what the cluster is to come to, not what it may just be forgiven. In milliseconds.
pub const PUBLISH_GAP: u64 = 1000;
/// See [`PUBLISH_GAP`]; in milliseconds.
pub const RECOVERY: u64 = 5000;
/// Of a thousand pushes that are wanted in the heal phase, so many must be good.
pub const GOODPUT: u64 = 950;

/// All points of a cell, or of a figure.
pub const ALL: u64 = 1000;

/// A figure beside its budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figure {
    /// The worst of the cell's runs.
    pub observed: u64,
    /// What it is measured by.
    pub budget: u64,
    /// 1000 × min(1, budget / observed); of goodput, of which more is better, the other way round.
    pub points: u64,
}

impl Figure {
    fn less_is_better(observed: u64, budget: u64) -> Figure {
        Figure {
            observed,
            budget,
            points: (ALL * budget).checked_div(observed).map_or(ALL, |at| at.min(ALL)),
        }
    }

    fn more_is_better(observed: u64, budget: u64) -> Figure {
        Figure { observed, budget, points: (ALL * observed / budget).min(ALL) }
    }
}

/// What a cell came to over all its seeds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Its kind of fault, or [`cells::NONE`].
    pub fault: String,
    /// Its workload.
    pub workload: String,
    /// The worst of its runs; one that was never run is unknown.
    #[serde(flatten)]
    pub came: Came,
    /// So many seeds were run.
    pub seeds: u64,
    /// The mean of its figures' points; 0 for a cell that is not kept.
    pub points: u64,
    /// Milliseconds without success for somebody who wanted to publish.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publish_gap: Option<Figure>,
    /// Milliseconds until all was well again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<Figure>,
    /// Of a thousand pushes that the workload wants published after the faults, the good ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goodput: Option<Figure>,
    /// How often each kind of fault struck, over all seeds.
    pub fired: BTreeMap<String, u64>,
}

impl Row {
    /// Of a cell's runs, in whatever order.
    pub fn of(cell: Cell, runs: &[Ran]) -> Row {
        let worst = runs.iter().max_by(|one, two| one.came.cmp(&two.came).then(two.seed.cmp(&one.seed)));
        let came = worst.map_or(Came::Unknown("it was not run".to_owned()), |ran| ran.came.of_seed(ran.seed));
        let publish_gap = runs.iter().filter_map(|ran| ran.publish_gap).max();
        let recovery = runs.iter().filter_map(|ran| ran.recovery).max();
        let goodput = runs.iter().filter_map(|ran| ran.goodput).min();
        let mut row = Row {
            fault: cell.row().to_owned(),
            workload: cell.column().to_owned(),
            came,
            seeds: runs.len() as u64,
            points: 0,
            publish_gap: publish_gap.map(|observed| Figure::less_is_better(observed, PUBLISH_GAP)),
            recovery: recovery.map(|observed| Figure::less_is_better(observed, RECOVERY)),
            goodput: goodput.map(|observed| Figure::more_is_better(observed, GOODPUT)),
            fired: BTreeMap::new(),
        };
        for (kind, count) in runs.iter().flat_map(|ran| &ran.fired) {
            *row.fired.entry(kind.clone()).or_insert(0) += count;
        }
        let figures = [row.publish_gap, row.recovery, row.goodput];
        let points: Vec<u64> = figures.into_iter().flatten().map(|figure| figure.points).collect();
        if row.came == Came::Kept {
            row.points = points.iter().sum::<u64>().checked_div(points.len() as u64).unwrap_or(0);
        }
        row
    }

    /// `kill/push`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.fault, self.workload)
    }
}

/// Whether anybody who trusted the cluster was let down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Safety {
    /// Nobody was seen to be.
    Safe,
    /// Somebody was.
    Unsafe,
    /// Nothing was run of which that could be told.
    Unknown,
}

/// The longest time without success, and where it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Milliseconds.
    pub ms: u64,
    /// Under which kind of fault.
    pub fault: String,
}

/// A score in a line; what a later one remembers of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The gate.
    pub safety: Safety,
    /// 0 to 100, rounded down: 100 is nothing less than all of it.
    pub score: u64,
    /// Cells that were to be run.
    pub cells: u64,
    /// Those of which nothing is known; they count 0.
    pub unknown: u64,
    /// Those in which something broke that is no promise about pushes; they count 0.
    pub failed: u64,
    /// Kinds of faults that struck.
    pub faults: u64,
    /// Seeds that were run, over all cells.
    pub seeds: u64,
    /// The longest publish gap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worst_gap: Option<Gap>,
}

/// What a grid is worth: 0 if a promise about pushes was broken in one cell, else the mean of the cells' points.
pub fn score(cells: &[Row]) -> Head {
    let count = |which: fn(&Came) -> bool| cells.iter().filter(|row| which(&row.came)).count() as u64;
    let (all, unknown) = (cells.len() as u64, count(|came| matches!(came, Came::Unknown(_))));
    let safety = match () {
        () if count(|came| matches!(came, Came::Unsafe(_))) > 0 => Safety::Unsafe,
        () if unknown == all => Safety::Unknown,
        () => Safety::Safe,
    };
    let points = cells.iter().map(|row| row.points).sum::<u64>();
    let mut kinds: Vec<&String> = cells.iter().flat_map(|row| row.fired.keys()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let gaps = cells.iter().filter_map(|row| Some((row.publish_gap?.observed, row)));
    // The first of those that are equal, so that the words are those of the grid's order.
    let worst = gaps.fold(None, |worst: Option<(u64, &Row)>, (ms, row)| match worst {
        Some((known, _)) if known >= ms => worst,
        _ => Some((ms, row)),
    });
    Head {
        safety,
        score: match safety {
            Safety::Safe => (points * 100).checked_div(ALL * all).unwrap_or(0),
            Safety::Unsafe | Safety::Unknown => 0,
        },
        cells: all,
        unknown,
        failed: count(|came| matches!(came, Came::Failed(_))),
        faults: kinds.len() as u64,
        seeds: cells.iter().map(|row| row.seeds).sum(),
        worst_gap: worst.map(|(ms, row)| Gap { ms, fault: row.fault.clone() }),
    }
}

/// `score.json`: a score, with everything that it comes from. Of the simulation it is the same each time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Score {
    /// See [`VERSION`].
    pub version: u32,
    /// What it ran on.
    pub backend: String,
    /// The score in a line.
    #[serde(flatten)]
    pub head: Head,
    /// Each cell, in the order of the grid.
    pub grid: Vec<Row>,
    /// How often each kind of fault struck that did.
    pub fired: BTreeMap<String, u64>,
    /// Kinds that did not strike, each with the reason.
    pub not_fired: BTreeMap<String, String>,
    /// Those among them that no backend of this build does, with each one's reason.
    pub nowhere: BTreeMap<String, String>,
    /// Heads of earlier scores, the oldest first, as the baseline had them.
    pub earlier: Vec<Head>,
}

impl Score {
    /// Of these cells. `not_fired` may say of more kinds than did not: what struck, struck.
    pub fn new(
        backend: &str,
        grid: Vec<Row>,
        mut not_fired: BTreeMap<String, String>,
        nowhere: BTreeMap<String, String>,
        baseline: Option<&Score>,
    ) -> Score {
        let mut fired = BTreeMap::new();
        for (kind, count) in grid.iter().flat_map(|row| &row.fired) {
            *fired.entry(kind.clone()).or_insert(0) += count;
        }
        not_fired.retain(|kind, _| !fired.contains_key(kind));
        let mut earlier = baseline.map_or(Vec::new(), |before| before.earlier.clone());
        earlier.extend(baseline.map(|before| before.head.clone()));
        earlier.drain(..earlier.len().saturating_sub(EARLIER));
        let (version, backend, head) = (VERSION, backend.to_owned(), score(&grid));
        Score { version, backend, head, grid, fired, not_fired, nowhere, earlier }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(came: Came, publish_gap: u64) -> Ran {
        let fired = BTreeMap::from([("kill".to_owned(), 2)]);
        Ran { seed: 1, came, publish_gap: Some(publish_gap), recovery: Some(0), goodput: Some(1000), fired }
    }

    fn cell(name: &str) -> Cell {
        Cell::all().into_iter().find(|cell| cell.name() == name).unwrap()
    }

    fn row(name: &str, runs: &[Ran]) -> Row {
        Row::of(cell(name), runs)
    }

    #[test]
    fn a_loss_makes_nothing_of_everything_else() {
        let good = row("kill/push", &[ran(Came::Kept, 10)]);
        let lost = row("pause/push", &[ran(Came::Kept, 10), ran(Came::Unsafe("C1".to_owned()), 10)]);
        assert_eq!(lost.came, Came::Unsafe("seed 1: C1".to_owned()));
        let head = score(&[good.clone(), lost]);
        assert_eq!((head.safety, head.score), (Safety::Unsafe, 0));
        let head = score(&[good]);
        assert_eq!((head.safety, head.score), (Safety::Safe, 100));
    }

    #[test]
    fn what_is_unknown_or_failed_counts_nothing_and_is_counted() {
        let good = row("kill/push", &[ran(Came::Kept, 10)]);
        let unknown = row("pause/push", &[ran(Came::Unknown(String::new()), 10)]);
        let failed = row("stop/push", &[ran(Came::Failed(String::new()), 10)]);
        let head = score(&[good, unknown, failed, row("cut/push", &[])]);
        assert_eq!((head.safety, head.score), (Safety::Safe, 25));
        assert_eq!((head.cells, head.unknown, head.failed, head.seeds, head.faults), (4, 2, 1, 3, 1));
    }

    #[test]
    fn what_is_better_than_its_budget_makes_nothing_else_good() {
        assert_eq!(Figure::less_is_better(0, PUBLISH_GAP).points, 1000);
        assert_eq!(Figure::less_is_better(10, PUBLISH_GAP).points, 1000);
        assert_eq!(Figure::less_is_better(4000, PUBLISH_GAP).points, 250);
        assert_eq!(Figure::more_is_better(1000, GOODPUT).points, 1000);
        assert_eq!(Figure::more_is_better(475, GOODPUT).points, 500);
        // The mean of three figures, one of which is at a quarter; of the worst of two seeds.
        let slow = row("pause/push", &[ran(Came::Kept, 4000), ran(Came::Kept, 10)]);
        assert_eq!((slow.points, slow.seeds, slow.fired["kill"]), (750, 2, 4));
        let head = score(&[row("none/push", &[ran(Came::Kept, 10)]), slow]);
        assert_eq!(head.score, 87, "rounded down");
        assert_eq!(head.worst_gap, Some(Gap { ms: 4000, fault: "pause".to_owned() }));
    }

    #[test]
    fn a_grid_of_nothing_is_unknown() {
        assert_eq!((score(&[]).safety, score(&[]).score), (Safety::Unknown, 0));
        let head = score(&[row("kill/push", &[])]);
        assert_eq!((head.safety, head.score, head.unknown), (Safety::Unknown, 0, 1));
    }

    #[test]
    fn a_score_remembers_those_before_it_and_is_read_as_it_was_written() {
        let grid = vec![row("kill/push", &[ran(Came::Failed("C12".to_owned()), 10)])];
        let mut last = Score::new("sim", grid.clone(), BTreeMap::new(), BTreeMap::new(), None);
        for _ in 0..EARLIER + 3 {
            let why = BTreeMap::from(["kill", "pause"].map(|kind| (kind.to_owned(), "no".to_owned())));
            last = Score::new("sim", grid.clone(), why, BTreeMap::new(), Some(&last));
        }
        assert_eq!(last.earlier.len(), EARLIER);
        assert_eq!(last.not_fired.keys().collect::<Vec<_>>(), ["pause"]);
        let text = serde_json::to_string(&last).unwrap();
        assert_eq!(serde_json::from_str::<Score>(&text).unwrap(), last);
    }
}
