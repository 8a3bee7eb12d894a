//! What replicas hold at the end: the cluster is let come to rest, has its tables flushed, and when its nodes have ended, each
//! one's tables are read from a copy of its folder. Reads only.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use openraft::alias::LogIdOf;
use reveille_chaos::history::Observation;
use reveille_cluster::raft::types::Tokio;
use reveille_cluster::tables::{FjallTables, Store, StoreConfig, Tables};
use reveille_cluster::wal::Owner;
use reveille_protocol::service_list::Table;
use reveille_protocol::wire::codec;
use serde_json::Value;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use super::files;
use super::nodes::Nodes;
use crate::backend::http::Request;
use crate::backend::live::Run;

/// A cluster that nobody asks for anything comes to rest within this.
const REST: Duration = Duration::from_secs(20);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// A node says how it stands, or flushes, within this.
const ANSWER: Duration = Duration::from_secs(10);
/// The bounds of the tables' memory here: one node's are open at a time.
const CACHE: usize = 8 << 20;

/// Where the cluster came to rest.
pub(super) struct Rest {
    cluster: u64,
    groups: u16,
    /// By node and group: the entry that its tables on disk have taken in.
    applied: BTreeMap<(u64, u16), u64>,
}

/// Waits until all replicas of each group have applied the same entry and have flushed their tables up to it. None, if that
/// does not come in time.
pub(super) async fn rest(run: &Run) -> Option<Rest> {
    let until = Instant::now() + REST;
    while Instant::now() < until {
        if let Some(before) = look(run).await {
            for node in run.nodes().iter() {
                let request = Request {
                    method: "POST",
                    path: "/cluster/snapshot",
                    token: &run.admin_token,
                    headers: &[],
                    body: b"",
                };
                // One that does not flush has an earlier entry on its disk, and is left out for that.
                let _ = request.send(&node.admin, ANSWER).await;
            }
            if look(run).await.is_some_and(|after| after.applied == before.applied) {
                return Some(before);
            }
        }
        sleep(LOOK).await;
    }
    run.cover("replicas.no-rest");
    None
}

/// How far all replicas are, if those of each group are equally far.
async fn look(run: &Run) -> Option<Rest> {
    let nodes = run.nodes();
    let get = async |path: &str, node: &crate::backend::live::Node| -> Option<Value> {
        Request::get(path, &run.admin_token).send(&node.admin, ANSWER).await.ok()?.json()
    };
    let overview = get("/cluster", nodes.first()?).await?;
    let mut applied = BTreeMap::new();
    for node in nodes.iter() {
        let status = get("/status", node).await?;
        for group in status["cluster"]["groups"].as_array()? {
            let number = group["group"].as_u64()? as u16;
            let of = overview["groups"].as_array()?.iter().find(|of| of["group"] == group["group"])?;
            let has = |key: &str| of[key].as_array().is_some_and(|ids| ids.contains(&node.id.into()));
            if has("voters") || has("learners") {
                applied.insert((node.id, number), group["applied"].as_u64()?);
            }
        }
    }
    let mut of_group: BTreeMap<u16, u64> = BTreeMap::new();
    let even = applied.iter().all(|((_, group), at)| of_group.entry(*group).or_insert(*at) == at);
    let cluster = u64::from_str_radix(overview["cluster"].as_str()?, 16).ok()?;
    let groups = overview["shards"].as_u64()? as u16 + 1;
    even.then_some(Rest { cluster, groups, applied })
}

/// Writes down what the replicas of nodes that have ended hold, of those that are where the cluster came to rest.
///
/// # Errors
/// If tables cannot be copied or read.
pub(super) async fn read(run: &Run, nodes: &Nodes, rest: &Rest) -> anyhow::Result<()> {
    for id in nodes.ids() {
        let Some(node) = nodes.of(id) else { continue };
        let (tables, copy) = (node.data.join("tables"), nodes.folder.join(format!("tables-{id}")));
        let config = StoreConfig {
            owner: Owner { cluster: rest.cluster, node: id },
            groups: rest.groups,
            create: false,
            cache_bytes: CACHE as u64,
            overlay_bytes: CACHE,
        };
        let groups: Vec<u16> =
            rest.applied.keys().filter(|(node, _)| *node == id).map(|(_, group)| *group).collect();
        let held = spawn_blocking(move || {
            files::copy(&tables, &copy)?;
            let held = held(&copy, &config, &groups);
            std::fs::remove_dir_all(&copy).with_context(|| copy.display().to_string())?;
            held
        });
        for (group, index, hash) in held.await.context("tables")?.with_context(|| format!("node {id}"))? {
            match rest.applied.get(&(id, group)) == Some(&index) {
                true => run.see(Observation::State {
                    node: id,
                    group: group.into(),
                    index,
                    hash: format!("{hash:016x}"),
                }),
                // Flushed again on its way out: nothing that others have.
                false => run.cover("replicas.moved-on"),
            }
        }
    }
    Ok(())
}

/// By group: the entry that tables have taken in, and all that they hold as one number.
fn held(folder: &Path, config: &StoreConfig, groups: &[u16]) -> anyhow::Result<Vec<(u16, u64, u64)>> {
    let store = Store::open(folder, config)?;
    let mut all = Vec::new();
    for group in groups {
        let tables: FjallTables = store.group(*group)?;
        let (mut hash, mut applied) = (DefaultHasher::new(), None);
        tables.read().scan(&[], &[0xff; 64], &mut |key, value| {
            (key, value).hash(&mut hash);
            if key == [0] {
                applied = codec::decode::<LogIdOf<Tokio>, 1024>(value).ok().map(|id| id.index);
            }
            true
        })?;
        all.push((*group, applied.context("tables that say no entry")?, hash.finish()));
    }
    Ok(all)
}
