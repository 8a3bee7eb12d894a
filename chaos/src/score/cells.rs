//! The grid: a cell for each kind of fault and each workload, and a row without any fault. Each is a scenario that is made
//! here, the same for all kinds but for what their nature asks. Runs nothing.

use crate::scenario::kind::{KINDS, Kind, KindInfo, Lasts, On, Takes};
use crate::scenario::{LoadError, Scenario, Work, load};

/// The name of the row without faults.
pub const NONE: &str = "none";

/// One square of the grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cell {
    /// What is broken; `None`: nothing.
    pub kind: Option<Kind>,
    /// A place in [`Work::ALL`].
    work: usize,
}

impl Cell {
    /// All of them, by kinds: first the row without faults, then the kinds in the order of [`KINDS`].
    pub fn all() -> Vec<Cell> {
        let kinds = KINDS.iter().map(|kind| Kind::find(kind.name));
        let rows = std::iter::once(None).chain(kinds);
        rows.flat_map(|kind| (0..Work::ALL.len()).map(move |work| Cell { kind, work })).collect()
    }

    /// The name of its row: that of its kind, or [`NONE`].
    pub fn row(self) -> &'static str {
        self.kind.map_or(NONE, Kind::name)
    }

    /// The name of its column: that of its workload.
    pub fn column(self) -> &'static str {
        Work::ALL[self.work].1
    }

    /// Its own name: `kill/push`.
    pub fn name(self) -> String {
        format!("{}/{}", self.row(), self.column())
    }

    /// It is one of those that these words mean: a row, a column, or one by its name. No words: all.
    pub fn is_meant(self, words: &[String]) -> bool {
        let name = self.name();
        words.is_empty()
            || words.iter().any(|word| [&name, self.row(), self.column()].contains(&word.as_str()))
    }

    /// What is run for it, as a file.
    pub fn text(self) -> String {
        let (work, column, row) = (Work::ALL[self.work].0, self.column(), self.row());
        let about =
            self.kind.map_or("nothing is broken: what must hold without faults", |kind| kind.info().about);
        let mut claims = match work {
            // Where nothing is published nothing can be said of pushes.
            Work::Idle => vec!["status", "no-hang", "logs"],
            Work::Push | Work::Retry | Work::Broadcast => vec!["safety", "no-hang", "logs"],
        };
        let rate = if work == Work::Broadcast { 4 } else { 20 };
        claims.extend(self.kind.map(|_| "coverage"));
        let mut text = format!(
            "name = \"score-{row}-{column}\"\nabout = {about:?}\nclaims = {claims:?}\n\
             [workload]\nkind = \"{column}\"\nterminals = 12\nrate = {rate}\n\
             [phases]\nwarmup = \"3s\"\nchaos = \"20s\"\nheal = \"10s\"\ndrain = \"60s\"\n"
        );
        if let Some(kind) = self.kind {
            for fault in faults(kind.info()) {
                text.push_str(&format!("[[fault]]\n{fault}\n"));
            }
            text.push_str(&format!("[expect]\ncover = {{ \"fault.{row}\" = 1 }}\n"));
        }
        text
    }

    /// What is run for it.
    ///
    /// # Errors
    /// If its kind asks for something that nothing here says; a test makes all of them.
    pub fn scenario(self) -> Result<Scenario, LoadError> {
        load(&self.name(), &self.text())
    }
}

/// The faults of a kind's cells. What an engineer would do first with each: to a leader where it is for nodes, and again
/// before the chaos phase ends.
fn faults(kind: &KindInfo) -> Vec<String> {
    let name = kind.name;
    let own: &[&str] = match name {
        // What these leave is seen when a node dies on it.
        "lose-unsynced" | "torn-write" => {
            &["at = '1s'\ntarget = 'all'", "every = '6s'\nkind = 'kill'\ntarget = 'any'\nfor = '2s'"]
        }
        // Weather: all the time, everywhere.
        "delay" | "loss" | "duplicate" | "reorder" | "corrupt" | "bandwidth" => {
            &["at = '1s'\nfrom = 'all'\nto = 'all'"]
        }
        "notification-loss" | "notification-replay" | "notification-forged" | "nat-timeout" => {
            &["at = '1s'\ntarget = 'terminals'"]
        }
        // Terminals come back at once: all of them, so that it is a crowd.
        "reconnect" => &["every = '6s'\ntarget = 'terminals'"],
        "retry-storm" => {
            &["at = '2s'\ntarget = 'publishers'", "at = '5s'\nkind = 'kill'\ntarget = 'leader'\nfor = '4s'"]
        }
        // What is not undone by itself is done to one node, once.
        "bit-flip" | "truncate" | "roll-back" | "wipe" | "replace" => &["at = '5s'\ntarget = 'follower'"],
        "add-node" => &["at = '3s'"],
        // Another node comes before: who goes must leave as many behind as there are replicas.
        "drain" => &["at = '1s'\nkind = 'add-node'", "at = '7s'\ntarget = 'follower'\nfor = '8s'"],
        "remove" => &["at = '1s'\nkind = 'add-node'", "at = '7s'\ntarget = 'follower'"],
        _ => match (kind.on, kind.lasts) {
            (On::Nodes, Lasts::Yes) => &["every = '7s'\ntarget = 'leader'\nfor = '4s'"],
            (On::Nodes, Lasts::No) => &["every = '7s'\ntarget = 'leader'"],
            (On::Link, Lasts::Yes) => &["every = '7s'\nfrom = 'leader'\nto = 'all'\nfor = '4s'"],
            (On::Link, Lasts::No) => &["every = '3s'\nfrom = 'leader'\nto = 'all'"],
            (On::Clients, Lasts::Yes) => &["every = '2s'\ntarget = 't'\nfor = '4s'"],
            (On::Clients, Lasts::No) => &["every = '2s'\ntarget = 't'"],
            (On::Cluster, _) => &["every = '7s'"],
        },
    };
    let more = match (kind.takes, name) {
        (Takes::Nothing, _) => "",
        (Takes::Share, "notification-loss") => "share = 0.5\n",
        (Takes::Share, "clock-drift") => "share = 0.2\n",
        (Takes::Share, _) => "share = 0.05\n",
        (Takes::By, "clock-step") => "by = '5m'\n",
        (Takes::By, "delay" | "slow-disk") => "by = '50ms'\n",
        (Takes::By, _) => "by = '5s'\n",
        (Takes::File, "bit-flip" | "truncate") => "file = 'tables'\n",
        (Takes::File, _) => "file = 'log'\n",
        (Takes::Point, _) => "point = 'apply.before'\naction = 'panic'\n",
    };
    let whole = |fault: &&str| match fault.contains("kind = ") {
        true => (*fault).to_owned(),
        false => format!("kind = '{name}'\n{more}{fault}"),
    };
    own.iter().map(whole).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::plan;

    #[test]
    fn each_cell_is_a_scenario_in_which_its_kind_strikes() {
        let all = Cell::all();
        assert_eq!(all.len(), (KINDS.len() + 1) * Work::ALL.len());
        for cell in all {
            let scenario = cell.scenario().unwrap_or_else(|error| panic!("{error}"));
            for seed in 1..=5 {
                let strikes = plan(&scenario, seed).strikes;
                let of = |kind| strikes.iter().any(|strike| Some(strike.kind) == kind);
                assert!(cell.kind.is_none() && strikes.is_empty() || of(cell.kind), "{}", cell.name());
            }
        }
    }

    #[test]
    fn words_mean_rows_columns_and_cells() {
        let meant = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            Cell::all().into_iter().filter(|cell| cell.is_meant(&words)).count()
        };
        assert_eq!(meant(&[]), Cell::all().len());
        assert_eq!(meant(&["kill"]), Work::ALL.len());
        assert_eq!(meant(&["push"]), KINDS.len() + 1);
        assert_eq!(meant(&["kill/push", "none/idle"]), 2);
        assert_eq!(meant(&["kil"]), 0);
    }
}
