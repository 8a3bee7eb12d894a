//! A score for a terminal: the grid, what counted nothing and why, what did not strike and why, and how it was before. Pure.

use std::collections::BTreeMap;

use super::{Came, Figure, Row, Score, badge};

/// Changes that are told of, the biggest first.
const CHANGES: usize = 10;
/// Points; what is less is noise.
const CHANGE: u64 = 20;

/// The score as text, beside an earlier one if there is one.
pub fn text(score: &Score, before: Option<&Score>) -> String {
    let mut lines = grid(&score.grid);
    for row in &score.grid {
        let (word, why) = match &row.came {
            Came::Kept => continue,
            Came::Unknown(why) => ("UNKNOWN", why),
            Came::Failed(why) => ("FAIL", why),
            Came::Unsafe(why) => ("UNSAFE", why),
        };
        lines.push(format!("{word:8} {:30} {why}", row.name()));
    }
    let elsewhere = |(kind, _): &(&String, &String)| !score.nowhere.contains_key(*kind);
    lines.extend(reasons("did not strike", score.not_fired.iter().filter(elsewhere)));
    lines.extend(reasons("no backend of this build does", score.nowhere.iter()));
    if let Some(before) = before {
        lines.extend(changes(score, before));
    }
    if !score.earlier.is_empty() {
        let all = score.earlier.iter().chain([&score.head]).map(|head| head.score.to_string());
        lines.push(format!("trend: {}", all.collect::<Vec<_>>().join(" ")));
    }
    lines.push(badge::words(&score.head));
    lines.join("\n")
}

/// Kinds by their reasons.
fn reasons<'a>(what: &str, kinds: impl Iterator<Item = (&'a String, &'a String)>) -> Vec<String> {
    let mut by: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (kind, why) in kinds {
        by.entry(why).or_default().push(kind);
    }
    by.into_iter().map(|(why, kinds)| format!("{what}: {} ({why})", kinds.join(", "))).collect()
}

/// A line for each kind: the points of each workload, of 100, and the worst of its figures.
fn grid(rows: &[Row]) -> Vec<String> {
    let mut columns: Vec<&str> = Vec::new();
    let mut kinds: Vec<(&str, Vec<&Row>)> = Vec::new();
    for row in rows {
        if !columns.contains(&row.workload.as_str()) {
            columns.push(&row.workload);
        }
        match kinds.last_mut() {
            Some((kind, of)) if *kind == row.fault => of.push(row),
            _ => kinds.push((&row.fault, vec![row])),
        }
    }
    let head: String = columns.iter().map(|column| format!(" {column:>9}")).collect();
    let mut lines = vec![format!("{:20}{head}   struck  gap s  recovery s  goodput %", "fault")];
    for (kind, of) in kinds {
        let mut line = format!("{kind:20}");
        for column in &columns {
            let row = of.iter().find(|row| row.workload == *column);
            line.push_str(&format!(" {:>9}", row.map_or("-".to_owned(), |row| square(row))));
        }
        let struck: u64 = of.iter().filter_map(|row| row.fired.get(kind)).sum();
        let observed = |figure: fn(&Row) -> Option<Figure>| {
            of.iter().filter_map(move |row| figure(row)).map(|figure| figure.observed)
        };
        let in_units = |worst: Option<u64>, unit: f64| {
            worst.map_or("-".to_owned(), |worst| format!("{:.1}", worst as f64 / unit))
        };
        line.push_str(&format!(
            "  {struck:>7} {:>6} {:>11} {:>10}",
            in_units(observed(|row| row.publish_gap).max(), 1000.0),
            in_units(observed(|row| row.recovery).max(), 1000.0),
            in_units(observed(|row| row.goodput).min(), 10.0)
        ));
        lines.push(line);
    }
    lines
}

/// A cell in a word.
fn square(row: &Row) -> String {
    match row.came {
        Came::Kept => (row.points / 10).to_string(),
        Came::Unknown(_) => "?".to_owned(),
        Came::Failed(_) => "FAIL".to_owned(),
        Came::Unsafe(_) => "UNSAFE".to_owned(),
    }
}

/// Cells that are worth more or less than before.
fn changes(score: &Score, before: &Score) -> Vec<String> {
    let was: BTreeMap<String, &Row> = before.grid.iter().map(|row| (row.name(), row)).collect();
    let pairs = score.grid.iter().filter_map(|row| Some((row, *was.get(&row.name())?)));
    let differs = |(now, was): &(&Row, &Row)| match (&now.came, &was.came) {
        (Came::Kept, Came::Kept) => now.points.abs_diff(was.points) >= CHANGE,
        _ => square(now) != square(was),
    };
    let mut changed: Vec<(&Row, &Row)> = pairs.filter(differs).collect();
    changed.sort_by_key(|(now, was)| u64::MAX - now.points.abs_diff(was.points));
    let mut lines: Vec<String> = changed
        .iter()
        .take(CHANGES)
        .map(|(now, was)| format!("changed: {} {} -> {}", now.name(), square(was), square(now)))
        .collect();
    if changed.len() > CHANGES {
        lines.push(format!("changed: and {} more", changed.len() - CHANGES));
    }
    let (now, then) = (&score.head, &before.head);
    if (now.cells, &score.backend) != (then.cells, &before.backend) {
        lines.push(format!("the baseline is of another grid: {} cells on {}", then.cells, before.backend));
    }
    lines
}
