//! The guard: ends a run when the cluster is worse off than the run allows. It looks, and does nothing else.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::cluster::Stop;
use crate::backend::live::Run;

const LOOK: Duration = Duration::from_millis(200);

/// Which nodes are struck, by how many faults at once, and which were and are not seen ready since.
#[derive(Debug, Clone, Default)]
pub(super) struct Struck(Arc<Mutex<BTreeMap<u64, Node>>>);

#[derive(Debug, Clone, Copy)]
struct Node {
    faults: u32,
    /// When the first of those began.
    since: Instant,
    /// It was seen not to be ready since.
    seen_away: bool,
    /// When the last of them was undone.
    undone: Option<Instant>,
}

impl Struck {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Node>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn strikes(&self, id: u64) {
        let mut all = self.lock();
        let new = Node { faults: 0, since: Instant::now(), seen_away: false, undone: None };
        let node = all.entry(id).or_insert(new);
        if node.faults == 0 {
            *node = new;
        }
        node.faults += 1;
    }

    pub(super) fn undone(&self, id: u64) {
        if let Some(node) = self.lock().get_mut(&id) {
            node.faults = node.faults.saturating_sub(1);
            if node.faults == 0 {
                node.undone = Some(Instant::now());
            }
        }
    }

    /// Whether it was seen not to be ready since it was struck.
    pub(super) fn seen_away(&self, id: u64) -> bool {
        self.lock().get(&id).is_some_and(|node| node.seen_away)
    }

    /// Those that are struck, or were and have not come back.
    pub(super) fn ids(&self) -> Vec<u64> {
        self.lock().keys().copied().collect()
    }
}

/// Why a run must end; it waits until there is a reason. `longest`: no node may be struck for longer.
pub(super) async fn watch(run: &Run, struck: &Struck, stop: &Stop, longest: Duration) -> String {
    let mut unready: BTreeMap<u64, Instant> = BTreeMap::new();
    loop {
        sleep(LOOK).await;
        if run.wanted() > stop.publish.0 {
            return format!("for {} nobody could publish to a terminal ([stop] publish)", stop.publish);
        }
        let ready = run.known().ready.clone();
        let mut struck = struck.lock();
        for id in &run.ids() {
            let is_ready = ready.get(id) == Some(&true);
            if let Some(node) = struck.get_mut(id) {
                node.seen_away |= !is_ready;
            }
            match struck.get(id) {
                Some(Node { undone: None, since, .. }) if since.elapsed() > longest => {
                    return format!("node {id} is struck for longer than [limits] fault: its hooks are slow");
                }
                Some(Node { undone: None, .. }) => drop(unready.remove(id)),
                // A node that was killed may be taken for ready for as long as nobody has looked.
                Some(Node { undone: Some(at), .. }) if is_ready && at.elapsed() > 4 * LOOK => {
                    struck.remove(id);
                }
                Some(Node { undone: Some(at), .. }) if at.elapsed() > stop.recover.0 => {
                    return format!(
                        "node {id} is not ready {} after it was healed ([stop] recover)",
                        stop.recover
                    );
                }
                Some(_) => {}
                None if is_ready => drop(unready.remove(id)),
                None => {
                    let since = unready.entry(*id).or_insert_with(Instant::now);
                    if since.elapsed() > stop.unready.0 {
                        return format!(
                            "node {id}, which was not struck, is not ready for {} ([stop] unready)",
                            stop.unready
                        );
                    }
                }
            }
        }
    }
}
