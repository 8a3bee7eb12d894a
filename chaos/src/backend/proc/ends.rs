//! How nodes of this program's own ended, and what their logs say.

use std::fs;
use std::io::BufReader;

use reveille_chaos::history::{Observation, Problem};

use super::nodes::Nodes;
use crate::backend::live::Run;
use crate::backend::observe::{self, LINE};

/// The exit code of a node that ends with a word, and that is to be started again.
const FAILED: i32 = 1;

/// Nodes that nobody ended and that are gone: as bad as a panic, whatever their logs call it. But one whose disk failed must
/// end; those are returned.
///
/// # Errors
/// If what a disk has lost could not be taken from it.
pub(super) fn fallen(run: &Run, nodes: &mut Nodes) -> anyhow::Result<Vec<u64>> {
    let mut by_disk = Vec::new();
    for (id, status) in nodes.fallen() {
        if let Some(shim) = &mut nodes.shim {
            shim.ended(id)?;
            if status.code() == Some(FAILED) && shim.may_end(id) {
                run.say(&format!("node {id} has ended by its disk"));
                run.cover("disk.node-ended");
                by_disk.push(id);
                continue;
            }
        }
        let log = nodes.all.iter().find(|node| node.id == id).map(|node| &node.log);
        let text = log.and_then(|log| fs::read_to_string(log).ok()).unwrap_or_default();
        let last: String = text.lines().last().unwrap_or("nothing").chars().take(LINE).collect();
        run.say(&format!("node {id} has ended by itself"));
        let line = format!("it ended by itself ({status}), and said last: {last}");
        run.see(Observation::LogFound { node: id, problem: Problem::Panic, line });
    }
    Ok(by_disk)
}

/// Reads the logs: panics, and the token, which is in no log.
pub(super) fn logs(run: &Run, nodes: &Nodes) {
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
