//! Tables that a node asks another for, chunk by chunk: to rebuild its own before its groups start, or for a backup. The
//! one who asks sets the pace; the one who gives holds a consistent view meanwhile.
//!
//! A node's log is what it has promised, and stays. Its tables follow from it, except for what the log no longer holds:
//! so tables that were lost, damaged or rolled back are replaced by a peer's before raft sees them.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use openraft::alias::{InstantOf, LogIdOf};
use openraft::type_config::TypeConfigExt;
use reveille_protocol::fail_point::Point;
use reveille_protocol::id::{GroupId, NodeId};
use reveille_protocol::wire::codec;
use serde::{Deserialize, Serialize};

use crate::env::Env;
use crate::fail;
use crate::link::Lane;
use crate::member::Member;
use crate::raft::machine::applied;
use crate::raft::network::{CHUNK_BYTES, MAX_MESSAGE};
use crate::rpc::{Calls, Method};
use crate::tables::{Installer, Snapshot, Tables};

/// Views that a node holds for others at once: each keeps old rows on its disk while it is read.
const VIEWS: usize = 8;
/// A view that nobody asks for is let go after this.
const IDLE: Duration = Duration::from_secs(60);
/// One chunk must be there within this.
const CHUNK: Duration = Duration::from_secs(10);
/// Between two rounds over the peers.
const PAUSE: Duration = Duration::from_millis(500);

/// Asks for a chunk. Sent between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pull {
    /// Whose tables.
    pub group: GroupId,
    /// Names this transfer.
    pub transfer: u64,
    /// From 0, without gaps; the last one may be asked for again.
    pub number: u64,
    /// Tables that have not applied this log index are of no use.
    pub at_least: u64,
}

/// Pairs in key order.
pub type Pairs = Vec<(Bytes, Bytes)>;

/// The answer. Sent between nodes: append only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Pulled {
    /// The next pairs; none at the end.
    Pairs(Pairs),
    /// It cannot give them, and why.
    No(String),
}

/// A view that is being read out.
struct Giving<E: Env> {
    next: u64,
    /// What was answered last: the answer may have been lost.
    last: Pairs,
    view: View<<E::Tables as Tables>::Snapshot>,
    used: InstantOf<E::Cfg>,
}

enum View<S> {
    Begins,
    Reads(S),
    /// Only the last answer may still be asked for.
    Ended,
    /// Reading it failed. What it would give next is not what comes next.
    Broken,
}

/// The views that this node holds for others. One that is being read is locked.
pub(crate) struct Views<E: Env>(Mutex<BTreeMap<(NodeId, GroupId), Transfer<E>>>);

/// Its name, and its view.
type Transfer<E> = (u64, Arc<Reader<E>>);
type Reader<E> = futures::lock::Mutex<Giving<E>>;

/// Is it being read, or will be?
fn is_held<E: Env>(reader: &Reader<E>) -> bool {
    reader.try_lock().is_none_or(|giving| matches!(giving.view, View::Begins | View::Reads(_)))
}

impl<E: Env> Default for Views<E> {
    fn default() -> Self {
        Views(Mutex::default())
    }
}

impl<E: Env> Views<E> {
    /// Lets go what nobody asks for any more.
    pub(crate) fn prune(&self) {
        let mut views = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = |giving: &Giving<E>| E::Cfg::now() - giving.used >= IDLE;
        views.retain(|_, (_, reader)| reader.try_lock().is_none_or(|giving| !idle(&giving)));
    }
}

impl<E: Env> Member<E> {
    /// Gives one chunk.
    pub(crate) async fn give(&self, to: NodeId, pull: Pull) -> Pulled {
        let given = self.give_chunk(to, pull).await;
        given.unwrap_or_else(Pulled::No)
    }

    async fn give_chunk(&self, to: NodeId, pull: Pull) -> Result<Pulled, String> {
        fail::try_at::<E::Cfg>(Point::PullGive).await.map_err(|error| error.to_string())?;
        let known = self.groups.get(&pull.group).ok_or("this node does not have the group")?;
        let reader = {
            let mut views = self.views.0.lock().unwrap_or_else(PoisonError::into_inner);
            match views.get(&(to, pull.group)).filter(|(transfer, _)| *transfer == pull.transfer) {
                Some((_, reader)) => reader.clone(),
                None if pull.number > 0 => return Err("the view is gone; begin again".to_owned()),
                None => {
                    views.remove(&(to, pull.group));
                    if views.values().filter(|(_, reader)| is_held(reader)).count() >= VIEWS {
                        return Err("this node gives tables to others already".to_owned());
                    }
                    let giving =
                        Giving { next: 0, last: Vec::new(), view: View::Begins, used: E::Cfg::now() };
                    let reader = Arc::new(futures::lock::Mutex::new(giving));
                    views.insert((to, pull.group), (pull.transfer, reader.clone()));
                    reader
                }
            }
        };
        // A chunk that is asked for again while it is being read waits for it.
        let mut giving = reader.lock().await;
        if pull.number == giving.next {
            let mut view = match std::mem::replace(&mut giving.view, View::Broken) {
                View::Begins => view_of::<E>(known.shard.tables(), pull.at_least).await?,
                View::Reads(view) => view,
                View::Ended => return Err("the last chunk was given".to_owned()),
                View::Broken => return Err("the view is gone; begin again".to_owned()),
            };
            let pairs = view.next_chunk(CHUNK_BYTES).await.map_err(|error| error.to_string())?;
            giving.view = if pairs.is_some() { View::Reads(view) } else { View::Ended };
            giving.last = pairs.unwrap_or_default();
            giving.next += 1;
        } else if pull.number + 1 != giving.next {
            return Err(format!("chunk {} was asked for where {} was due", pull.number, giving.next));
        }
        giving.used = E::Cfg::now();
        Ok(Pulled::Pairs(giving.last.clone()))
    }

    /// One chunk of a group's tables from a node, which may be this one.
    pub async fn pull(self: &Arc<Self>, from: NodeId, pull: Pull) -> Result<Pairs, String> {
        let answer = match from == self.config.node {
            true => self.give(from, pull).await,
            false => ask(&self.shared.calls, from, pull).await?,
        };
        match answer {
            Pulled::Pairs(pairs) => Ok(pairs),
            Pulled::No(why) => Err(why),
        }
    }
}

async fn ask<E: Env>(calls: &Calls<E>, from: NodeId, pull: Pull) -> Result<Pulled, String> {
    let body = codec::encode(&pull).into();
    let answer = calls.call(from, Lane::Bulk, Method::Pull, body, CHUNK).await;
    let answer = answer.map_err(|error| error.to_string())?;
    codec::decode::<Pulled, MAX_MESSAGE>(&answer).map_err(|error| error.to_string())
}

/// A view of tables that have applied at least so much.
async fn view_of<E: Env>(
    tables: &E::Tables,
    at_least: u64,
) -> Result<<E::Tables as Tables>::Snapshot, String> {
    let far = |applied: io::Result<Option<LogIdOf<E::Cfg>>>| match applied {
        Ok(Some(applied)) if applied.index >= at_least => Ok(()),
        Ok(_) => Err("its tables are not as far".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    // Looked at first: a view costs a flush.
    far(applied::<E::Cfg, _>(&tables.read()))?;
    let view = tables.snapshot().await.map_err(|error| error.to_string())?;
    far(applied::<E::Cfg, _>(&view))?;
    Ok(view)
}

/// Replaces a group's tables by those of the first peer that gives them.
pub(crate) async fn rebuild<E: Env>(
    calls: &Calls<E>,
    (group, tables): (GroupId, &E::Tables),
    at_least: u64,
    peers: impl Fn() -> Vec<NodeId>,
    patience: Duration,
) -> Result<(), String> {
    let until = E::Cfg::now() + patience;
    loop {
        let mut reasons = Vec::new();
        for peer in peers() {
            match take(calls, (group, tables), at_least, peer).await {
                Ok(rows) => {
                    tracing::info!(group = group.0, from = peer.0, rows, "tables were rebuilt from a peer's");
                    return Ok(());
                }
                Err(why) => reasons.push(format!("node {peer}: {why}")),
            }
        }
        if E::Cfg::now() >= until {
            return Err(match reasons.is_empty() {
                true => "there is no other node to take them from".to_owned(),
                false => reasons.join("; "),
            });
        }
        E::Cfg::sleep(PAUSE).await;
    }
}

async fn take<E: Env>(
    calls: &Calls<E>,
    (group, tables): (GroupId, &E::Tables),
    at_least: u64,
    peer: NodeId,
) -> Result<usize, String> {
    let mut installer = tables.installer().map_err(|error| error.to_string())?;
    let transfer = calls.unique();
    let mut rows = 0;
    for number in 0.. {
        match ask(calls, peer, Pull { group, transfer, number, at_least }).await? {
            Pulled::No(why) => return Err(why),
            Pulled::Pairs(pairs) if pairs.is_empty() => break,
            Pulled::Pairs(pairs) => {
                fail::try_at::<E::Cfg>(Point::PullTake).await.map_err(|error| error.to_string())?;
                rows += pairs.len();
                installer.push(pairs).await.map_err(|error| error.to_string())?;
            }
        }
    }
    fail::try_at::<E::Cfg>(Point::Pull).await.map_err(|error| error.to_string())?;
    installer.finish().await.map_err(|error| error.to_string())?;
    Ok(rows)
}
