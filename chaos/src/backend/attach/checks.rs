//! Whether a cluster can be attached to as it is: its endpoints answer, its nodes are ready, and hooks can be run. Only
//! asks.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::bail;
use reveille_chaos::scenario::Scenario;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::cluster::Cluster;
use super::hooks::Hooks;
use super::{By, by};
use crate::backend::http::{Request, Server};

/// Each answer comes within this.
const ANSWER: Duration = Duration::from_secs(5);

/// A cluster that was healed or started a moment ago is given so long to be ready.
const PATIENCE: Duration = Duration::from_secs(30);
/// One that this program has just started may even not be reached yet.
const OWN: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(500);

/// Something that was looked at.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) what: String,
    /// What is wrong with it, if something is.
    pub(super) wrong: Option<String>,
    /// That passes by itself in a cluster that is well.
    passes: bool,
}

impl Look {
    fn new(what: String, outcome: Result<(), String>) -> Look {
        Look { what, wrong: outcome.err(), passes: false }
    }

    fn of_state(what: String, outcome: Result<(), String>) -> Look {
        Look { passes: true, ..Look::new(what, outcome) }
    }
}

/// Waits a while for what passes by itself.
///
/// # Errors
/// Everything that is wrong.
pub(super) async fn wait(cluster: &Cluster, hooks: &Hooks, scenario: &Scenario) -> anyhow::Result<()> {
    let until = Instant::now() + if cluster.own { OWN } else { PATIENCE };
    loop {
        let wrong: Vec<Look> =
            all(cluster, hooks, scenario).await.into_iter().filter(|look| look.wrong.is_some()).collect();
        if wrong.is_empty() {
            return Ok(());
        }
        if Instant::now() > until || !wrong.iter().all(|look| look.passes || cluster.own) {
            let lines: Vec<String> = wrong
                .into_iter()
                .map(|look| format!("{}: {}", look.what, look.wrong.unwrap_or_default()))
                .collect();
            bail!("{} is not as it must be before a run:\n  {}", cluster.name, lines.join("\n  "));
        }
        sleep(PAUSE).await;
    }
}

/// Looks at everything that the scenario needs.
pub(super) async fn all(cluster: &Cluster, hooks: &Hooks, scenario: &Scenario) -> Vec<Look> {
    let mut looks = Vec::new();
    for ((node, http), admin) in cluster.nodes.iter().zip(&cluster.http).zip(&cluster.admin) {
        let named = |what: &str, url: &str| format!("node {} {what} {url}", node.id);
        let publisher = ask(http, "/v1/terminals?limit=1", &cluster.token, "token").await;
        looks.push(Look::new(named("publishers", &node.http), publisher));
        let session = Server::plain(node.session.clone()).reach(ANSWER).await;
        looks.push(Look::new(named("terminals", &node.session), session));
        let status = ask(admin, "/status", cluster.operator(), "admin_token").await;
        looks.push(Look::new(named("operators", &node.admin), status));
        let ready = ask(admin, "/readyz", cluster.operator(), "admin_token").await;
        looks.push(Look::of_state(format!("node {} is ready", node.id), ready));
    }
    looks.extend(members(cluster).await);
    let mut needed: BTreeSet<&'static str> = BTreeSet::new();
    for fault in scenario.faults() {
        if let Some(By::Hooks(does, undoes)) = by(fault.kind) {
            needed.extend([does, undoes]);
        }
    }
    if cluster.hooks.get("logs").is_some() {
        needed.insert("logs");
    }
    let needed: Vec<&'static str> = needed.into_iter().collect();
    let missing = hooks.missing(&needed);
    for hook in needed {
        let named = format!("hook {hook}");
        let wrong = missing.iter().find(|what| what.starts_with(&format!("{named}:"))).cloned();
        looks.push(Look::new(named, wrong.map_or(Ok(()), Err)));
    }
    looks
}

/// What the cluster itself says of who belongs to it.
async fn members(cluster: &Cluster) -> Vec<Look> {
    let (what, request) = (
        "the cluster has these nodes, and bears the limit".to_owned(),
        Request::get("/cluster", cluster.operator()),
    );
    let Some(first) = cluster.admin.first() else { return Vec::new() };
    let answer = request.send(first, ANSWER).await.ok().filter(|answer| answer.status == 200);
    let Some(json) = answer.and_then(|answer| answer.json()) else {
        return vec![Look::new(
            what,
            Err("/cluster: the first node does not say who belongs to it".to_owned()),
        )];
    };
    let fits = fits(&json, &cluster.ids(), cluster.limits.nodes);
    let settled = match json["settled"].as_bool() {
        Some(true) => Ok(()),
        _ => Err("replicas are still on their way, or a node is away".to_owned()),
    };
    vec![Look::new(what, fits), Look::of_state("the cluster is settled".to_owned(), settled)]
}

/// Whether the file is about all nodes, and its limit is one that every group can bear.
fn fits(json: &Value, ids: &[u64], limit: u64) -> Result<(), String> {
    let nodes = json["nodes"].as_array().into_iter().flatten();
    let there: BTreeSet<u64> = nodes.filter_map(|node| node["node"].as_u64()).collect();
    let named: BTreeSet<u64> = ids.iter().copied().collect();
    if there != named {
        return Err(format!("it has the nodes {there:?}, and its file {named:?}"));
    }
    let voters = json["groups"].as_array().into_iter().flatten();
    let fewest = voters.filter_map(|group| Some(group["voters"].as_array()?.len() as u64)).min();
    match fewest.map(|voters| voters.saturating_sub(1) / 2) {
        Some(most) if limit <= most => Ok(()),
        Some(most) => {
            Err(format!("a group of it bears the loss of {most} nodes, and [limits] nodes = {limit}"))
        }
        None => Err("it says nothing of its groups".to_owned()),
    }
}

async fn ask(server: &Server, path: &str, token: &str, key: &str) -> Result<(), String> {
    // Who cannot be reached says more about it than who does not answer.
    server.reach(ANSWER).await?;
    match Request::get(path, token).send(server, ANSWER).await {
        Ok(answer) if answer.status == 200 => Ok(()),
        Ok(answer) if answer.status == 401 => Err(format!("{path}: the {key} is not known there")),
        Ok(answer) if answer.status == 403 => Err(format!("{path}: the {key} has not the right")),
        Ok(answer) => {
            let said: String = String::from_utf8_lossy(&answer.body).chars().take(200).collect();
            Err(format!("{path}: {} {said}", answer.status))
        }
        Err(_) => Err(format!("{path}: there is no answer within {} s", ANSWER.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_limit_is_one_that_every_group_can_bear() {
        let five = json!({
            "nodes": [{"node": 1}, {"node": 2}, {"node": 3}, {"node": 4}, {"node": 7}],
            "groups": [{"voters": [1, 2, 3, 4, 7]}, {"voters": [1, 2, 7]}]
        });
        assert_eq!(fits(&five, &[7, 4, 3, 2, 1], 1), Ok(()));
        assert!(fits(&five, &[1, 2, 3, 4, 7], 2).is_err_and(|why| why.contains("bears the loss of 1")));
        assert!(fits(&five, &[1, 2, 3], 1).is_err_and(|why| why.contains("{1, 2, 3, 4, 7}")));
        assert!(fits(&json!({}), &[], 0).is_err());
    }
}
