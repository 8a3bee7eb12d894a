//! Admission: a node with a new data folder asks those who are there before it votes or answers anything. So a node
//! whose data was lost cannot come back under its id and forget what it had promised, and a join token counts once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openraft::type_config::TypeConfigExt;
use reveille_protocol::directory::{Change, Outcome, Refused};
use reveille_protocol::fail_point::Point;
use reveille_protocol::id::*;
use reveille_protocol::service_list::{Command, Refusal, Reply};
use reveille_protocol::wire::codec;
use serde::{Deserialize, Serialize};

use crate::env::Env;
use crate::fail;
use crate::link::Lane;
use crate::member::Member;
use crate::raft::network::envelope;
use crate::rpc::{Calls, Method};

const META: GroupId = GroupId::META;
/// Bytes of an answer.
const MAX_ANSWER: usize = 4096;
/// One round of questions, and the pause before the next.
const ROUND: (Duration, Duration) = (Duration::from_secs(6), Duration::from_millis(100));
/// What an answer may cost in the meta group.
const PROPOSAL: Duration = Duration::from_secs(5);

/// May this folder be that node? Sent between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Admit {
    pub(crate) node: NodeId,
    /// The folder's random name.
    pub(crate) store: u64,
    /// SHA-256 of the join token, of a node that joins.
    pub(crate) token: Option<KeyFingerprint>,
}

/// Sent between nodes: append only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Admitted {
    /// As far as this node knows there is no cluster yet.
    NoCluster,
    /// It may.
    Yes,
    /// It may not, and why.
    No(String),
    /// Nobody can say now.
    Later(String),
}

/// The node was not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// It never will be.
    #[error("the cluster does not let this node in: {0}")]
    Refused(String),
    /// Too few answered.
    #[error("not let in within {0:?}: {1}")]
    Timeout(Duration, String),
}

/// Asks until it is clear. The first nodes of a cluster must hear from all the others that none knows better: whoever
/// could is among them. A node that joins needs one that lets it in.
pub(crate) async fn ask<E: Env>(
    calls: &Calls<E>,
    me: Admit,
    others: &[NodeId],
    patience: Duration,
) -> Result<(), NotAdmitted> {
    let until = E::Cfg::now() + patience;
    let body = envelope(META, &me);
    let mut told = false;
    loop {
        let round = others.iter().map(|node| {
            let body = body.clone();
            async move {
                let answer = calls.call(*node, Lane::Control, Method::Admit, body, ROUND.0).await;
                let answer = answer.map_err(|error| error.to_string());
                let answer = answer.and_then(|answer| {
                    codec::decode::<Admitted, MAX_ANSWER>(&answer).map_err(|error| error.to_string())
                });
                (*node, answer.unwrap_or_else(Admitted::Later))
            }
        });
        let answers: BTreeMap<NodeId, Admitted> =
            futures::future::join_all(round).await.into_iter().collect();
        fail::at::<E::Cfg>(Point::Admit).await;
        if let Some(why) = answers.values().find_map(|answer| match answer {
            Admitted::No(why) => Some(why.clone()),
            _ => None,
        }) {
            return Err(NotAdmitted::Refused(why));
        }
        let waiting = |(node, answer): (&NodeId, &Admitted)| match answer {
            Admitted::Yes | Admitted::No(_) => None,
            Admitted::NoCluster if me.token.is_none() => None,
            Admitted::NoCluster => Some(format!("node {node} belongs to no cluster yet")),
            Admitted::Later(why) => Some(format!("node {node}: {why}")),
        };
        let missing: Vec<String> = answers.iter().filter_map(waiting).collect();
        let in_by_token = me.token.is_some() && answers.values().any(|answer| *answer == Admitted::Yes);
        if in_by_token || missing.is_empty() {
            return Ok(());
        }
        let missing = missing.join("; ");
        if E::Cfg::now() >= until {
            return Err(NotAdmitted::Timeout(patience, missing));
        }
        if !std::mem::replace(&mut told, true) {
            tracing::info!(waiting = missing, "asking the other nodes to be let in");
        }
        E::Cfg::sleep(ROUND.1).await;
    }
}

impl<E: Env> Member<E> {
    /// Answers for the cluster.
    pub(crate) async fn admit(self: &Arc<Self>, Admit { node, store, token }: Admit) -> Admitted {
        let directory = self.directory();
        if directory.cluster == 0 {
            return Admitted::NoCluster;
        }
        let record = directory.roster.records.get(&node);
        let here = record.filter(|record| !record.standing.is_invited());
        // It ran before it could tell its folder's name; one that has not been let in yet is another.
        let ran = directory.nodes.get(&node).is_some_and(|known| known.incarnation > Incarnation(0));
        match (here, token) {
            (Some(record), _) if record.store == store || (record.store == 0 && !ran) => Admitted::Yes,
            (Some(_), _) => Admitted::No(Refused::OtherStore(node).to_string()),
            (None, Some(token)) if directory.roster.format >= 2 => {
                let join = Command::Directory(Box::new(Change::Join { node, token, store }));
                match self.propose(META, join, PROPOSAL).await {
                    Ok(Reply::Directory(Outcome::Done)) => Admitted::Yes,
                    Ok(Reply::Refused(Refusal::Directory(refused))) => Admitted::No(refused.to_string()),
                    Ok(other) => Admitted::Later(format!("the directory answered {other:?}")),
                    Err(error) => Admitted::Later(error.to_string()),
                }
            }
            (None, Some(_)) => Admitted::Later(Refused::Format(directory.roster.format).to_string()),
            (None, None) if record.is_some() => Admitted::No(
                "it was invited and needs its join token: cluster.join in its configuration".to_owned(),
            ),
            (None, None) => Admitted::No(Refused::UnknownNode(node).to_string()),
        }
    }
}
