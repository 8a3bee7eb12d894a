//! What nodes in containers show to who has started them: their processes, and that one ended by itself. Only looks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use reveille_chaos::history::{Observation, Problem};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::docker::docker;
use crate::backend::live::Run;

const LOOK: Duration = Duration::from_secs(2);
/// The first process of the container, and how often Docker has started it again because it ended by itself.
const SHOWN: &str = "{{.State.Pid}} {{.RestartCount}}";

/// Looks until it is aborted.
pub(super) async fn watch(run: Arc<Run>, containers: Vec<String>) {
    let mut ended: BTreeMap<u64, u64> = BTreeMap::new();
    loop {
        let names = containers.clone();
        let looked = spawn_blocking(move || {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            docker(&[&["inspect", "--format", SHOWN], &names[..]].concat())
        });
        // An engine that does not answer now is asked again.
        if let Ok(Ok(shown)) = looked.await {
            for (id, line) in run.ids().iter().zip(shown.lines()) {
                let mut numbers = line.split(' ').map_while(|number| number.parse::<u64>().ok());
                let (Some(first), Some(starts)) = (numbers.next(), numbers.next()) else { continue };
                match node(first) {
                    Some(pid) => run.known().pids.insert(*id, pid),
                    None => run.known().pids.remove(id),
                };
                // A start by hand counts from nothing again.
                let before = ended.insert(*id, starts).unwrap_or_default();
                if starts > before {
                    run.say(&format!("node {id} has ended by itself"));
                    let line = format!("it ended by itself {} times; its log says why", starts - before);
                    run.see(Observation::LogFound { node: *id, problem: Problem::Panic, line });
                }
            }
        }
        sleep(LOOK).await;
    }
}

/// The node's process: the only child of the container's first one, Docker's init.
fn node(init: u64) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{init}/task/{init}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}
