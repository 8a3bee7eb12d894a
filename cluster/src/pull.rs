//! Tables that a node asks another for, chunk by chunk: to rebuild its own before its groups start, or for a backup. The
//! one who asks sets the pace; the one who gives holds a consistent view meanwhile.
//!
//! A node's log is what it has promised, and stays. Its tables follow from it, except for what the log no longer holds:
//! so tables that were lost, damaged or rolled back are replaced by a peer's before raft sees them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use openraft::alias::InstantOf;
use openraft::type_config::TypeConfigExt;
use reveille_protocol::id::{GroupId, NodeId};
use reveille_protocol::wire::codec;
use serde::{Deserialize, Serialize};

use crate::env::Env;
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
    transfer: u64,
    next: u64,
    /// What was answered last: the answer may have been lost.
    last: Pulled,
    /// Let go at the end: only the last answer may still be asked for.
    view: Option<<E::Tables as Tables>::Snapshot>,
    used: InstantOf<E::Cfg>,
}

/// The views that this node holds for others.
pub(crate) struct Views<E: Env>(Mutex<BTreeMap<(NodeId, GroupId), Giving<E>>>);

impl<E: Env> Default for Views<E> {
    fn default() -> Self {
        Views(Mutex::default())
    }
}

impl<E: Env> Views<E> {
    /// Lets go what nobody asks for any more.
    pub(crate) fn prune(&self) {
        let mut views = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        views.retain(|_, giving| E::Cfg::now() - giving.used < IDLE);
    }
}

impl<E: Env> Member<E> {
    /// Gives one chunk.
    pub(crate) async fn give(&self, to: NodeId, pull: Pull) -> Pulled {
        let given = self.give_chunk(to, pull).await;
        given.unwrap_or_else(Pulled::No)
    }

    async fn give_chunk(&self, to: NodeId, pull: Pull) -> Result<Pulled, String> {
        let known = self.groups.get(&pull.group).ok_or("this node does not have the group")?;
        let taken = {
            let mut views = self.views.0.lock().unwrap_or_else(PoisonError::into_inner);
            let taken = views.remove(&(to, pull.group)).filter(|giving| giving.transfer == pull.transfer);
            let held = views.values().filter(|giving| giving.view.is_some()).count();
            if taken.is_none() && held >= VIEWS {
                return Err("this node gives tables to others already".to_owned());
            }
            taken
        };
        let mut giving = match taken {
            Some(giving) => giving,
            None if pull.number > 0 => return Err("the view is gone; begin again".to_owned()),
            None => {
                // Looked at first: a view costs a flush.
                let there =
                    applied::<E::Cfg, _>(&known.shard.tables().read()).map_err(|error| error.to_string())?;
                if there.is_none_or(|there| there.index < pull.at_least) {
                    return Err("its tables are not as far".to_owned());
                }
                let view = known.shard.tables().snapshot().await.map_err(|error| error.to_string())?;
                let applied = applied::<E::Cfg, _>(&view).map_err(|error| error.to_string())?;
                if applied.is_none_or(|applied| applied.index < pull.at_least) {
                    return Err("its tables are not as far".to_owned());
                }
                let last = Pulled::Pairs(Vec::new());
                Giving { transfer: pull.transfer, next: 0, last, view: Some(view), used: E::Cfg::now() }
            }
        };
        if pull.number == giving.next {
            let pairs = match &mut giving.view {
                Some(view) => view.next_chunk(CHUNK_BYTES).await.map_err(|error| error.to_string())?,
                None => None,
            };
            if pairs.is_none() {
                giving.view = None;
            }
            giving.last = Pulled::Pairs(pairs.unwrap_or_default());
            giving.next += 1;
        } else if pull.number + 1 != giving.next {
            return Err(format!("chunk {} was asked for where {} was due", pull.number, giving.next));
        }
        giving.used = E::Cfg::now();
        let answer = giving.last.clone();
        let mut views = self.views.0.lock().unwrap_or_else(PoisonError::into_inner);
        views.insert((to, pull.group), giving);
        Ok(answer)
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
                rows += pairs.len();
                installer.push(pairs).await.map_err(|error| error.to_string())?;
            }
        }
    }
    installer.finish().await.map_err(|error| error.to_string())?;
    Ok(rows)
}
