//! How nodes of this program's own ended, and what their logs say.

use std::fs;
use std::io::BufReader;
use std::process::ExitStatus;
use std::time::Duration;

use reveille_chaos::history::{Observation, Problem};
use reveille_chaos::scenario::Act;
use reveille_protocol::fail_point::Action;
use tokio::time::Instant;

use super::nodes::{Node, Nodes, State};
use super::points::Points;
use crate::backend::ENDED;
use crate::backend::live::Run;
use crate::backend::observe::{self, LINE};

/// The exit code of a node that starting again does not help.
const NO_RESTART_HELPS: i32 = 78;
/// The exit code of a node that ends with a word, and that is to be started again.
const FAILED: i32 = 1;
/// Starts of a node by its service manager: tables that were changed may be found so in several files, one after the other.
const AGAIN: u32 = 5;

/// A node that must end by what happened at a fail point does so within this: it looks at itself each second, and then leaves.
const PATIENCE: Duration = Duration::from_secs(20);

/// What it means that a node has ended by itself.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// Its data was lost or changed, and it says what helps: an operator replaces it.
    Refused,
    /// It belongs no more, and says so.
    Left,
    /// Its service manager starts it again.
    Again,
    /// It lacks what it needs, its disk has failed, or a fail point ended it: its system starts it again a while later.
    Later,
    /// It should not have ended.
    Fell,
}

/// As the run-book has it: what is right after what was done to the node, and anything else is not.
fn end(node: &Node, status: ExitStatus, said: &str) -> End {
    let due = node.due;
    match status.code() {
        Some(NO_RESTART_HELPS) => {
            let replace = said.contains(&format!("reveille cluster replace {}", node.id));
            let gone = said.contains("is not a member of this cluster");
            match () {
                () if due.gone && (gone || replace) => End::Left,
                () if due.replaced && replace => End::Refused,
                () => End::Fell,
            }
        }
        // It waits for its peers, a minute at a time: its service manager does the rest of the waiting.
        Some(FAILED)
            if node.again < AGAIN
                && (said.contains("not let in within") || said.contains("could not begin")) =>
        {
            End::Again
        }
        Some(FAILED) if due.rebuilt && node.again < AGAIN => End::Again,
        Some(FAILED) if due.starved => End::Later,
        // A node that was killed there says nothing; any other must say what it ends by.
        None if matches!(due.point, Some((Action::Kill, _))) => End::Later,
        Some(FAILED) if matches!(due.point, Some((Action::Panic | Action::Error, _))) => End::Later,
        _ => End::Fell,
    }
}

/// Nodes that nobody ended and that are gone: as bad as a panic, whatever their logs call it, unless that is what is due to
/// what was done to them. Those that are to be started again later are returned.
///
/// # Errors
/// If what a disk has lost could not be taken from it, or a node not be started.
pub(super) fn fallen(run: &Run, nodes: &mut Nodes) -> anyhow::Result<Vec<u64>> {
    let mut later = Vec::new();
    let fallen = nodes.fallen();
    // After that: what has ended a node has been told before.
    at_points(run, nodes)?;
    for (id, status) in fallen {
        let mut by_disk = false;
        if let Some(shim) = &mut nodes.shim {
            shim.ended(id)?;
            by_disk = status.code() == Some(FAILED) && shim.may_end(id);
        }
        let node = nodes.node(id)?;
        let whole = node.said_last();
        let said: String = whole.chars().take(LINE).collect();
        let end = if by_disk { End::Later } else { end(node, status, &whole) };
        match end {
            End::Refused => {
                node.state = State::Refused(Instant::now());
                run.say(&format!("node {id} is refused: {said}"));
                run.cover("node.refused");
            }
            End::Left => {
                run.say(&format!("node {id} has gone"));
                run.cover("node.gone");
            }
            End::Again => {
                node.again += 1;
                run.say(&format!("node {id} is started again: {said}"));
                run.cover("node.started-again");
                nodes.start_node(id)?;
                nodes.noted(run);
            }
            End::Later => {
                let (why, point) = match node.due.point.take() {
                    _ if by_disk => ("by its disk", "disk.node-ended"),
                    Some((Action::Kill, _)) => ("at a fail point", "fail-point.node-killed"),
                    Some(_) => ("by what happened at a fail point", ENDED),
                    None => ("for what it lacks", "node.starved"),
                };
                run.say(&format!("node {id} has ended {why}"));
                run.cover(point);
                later.push(id);
            }
            End::Fell => {
                run.say(&format!("node {id} has ended by itself"));
                let line = format!("it ended by itself ({status}), and said last: {said}");
                run.see(Observation::LogFound { node: id, problem: Problem::Panic, line });
            }
        }
    }
    Ok(later)
}

/// What has happened at fail points, and nodes that must have ended by that, and go on.
fn at_points(run: &Run, nodes: &mut Nodes) -> anyhow::Result<()> {
    let happened = nodes.points.as_mut().map_or(Vec::new(), Points::happened);
    for (order, id) in happened {
        let (name, action) = (order.point.name(), order.action);
        run.say(&format!("node {id} is at {name}: {action:?}"));
        run.cover(&Act::of(action).cover(order.point));
        if order.point.ends(action) {
            nodes.node(id)?.due.point = Some((action, Instant::now()));
        }
    }
    for node in nodes.all.iter_mut().filter(|node| node.state == State::Runs) {
        if let Some((action, _)) = node.due.point.take_if(|(_, since)| since.elapsed() > PATIENCE) {
            let line = format!("it goes on after {action:?} at a fail point, by which it must end");
            run.see(Observation::LogFound { node: node.id, problem: Problem::Panic, line });
        }
    }
    Ok(())
}

/// Reads the logs: panics, and the token, which is in no log.
pub(super) fn logs(run: &Run, nodes: &Nodes) {
    for (node, line) in &nodes.crashed {
        run.see(Observation::LogFound { node: *node, problem: Problem::Panic, line: line.clone() });
    }
    for node in &nodes.all {
        let file = match fs::File::open(&node.log) {
            Ok(file) => file,
            Err(error) => {
                run.trouble(format!("{}: {error}", node.log.display()));
                continue;
            }
        };
        observe::log(run, node.id, &node.log.display().to_string(), BufReader::new(file));
    }
}
