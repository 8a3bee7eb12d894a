//! Whether a cluster can be attached to as it is: its endpoints answer, its nodes are ready, and hooks can be run. Only
//! asks.

use std::collections::BTreeSet;
use std::time::Duration;

use reveille_chaos::scenario::Scenario;

use super::cluster::Cluster;
use super::hooks::Hooks;
use super::{By, by};
use crate::backend::http::{Request, Server};

/// Each answer comes within this.
const ANSWER: Duration = Duration::from_secs(5);

/// A thing that was looked at: what, and what is wrong with it, if something is.
pub(super) type Look = (String, Result<(), String>);

/// Looks at everything that the scenario needs.
pub(super) async fn all(cluster: &Cluster, hooks: &Hooks, scenario: &Scenario) -> Vec<Look> {
    let mut looks = Vec::new();
    for ((node, http), admin) in cluster.nodes.iter().zip(&cluster.http).zip(&cluster.admin) {
        let named = |what: &str, url: &str| format!("node {} {what} {url}", node.id);
        let publisher = ask(http, "/v1/terminals?limit=1", &cluster.token, "token").await;
        looks.push((named("publishers", &node.http), publisher));
        let session = Server::plain(node.session.clone()).reach(ANSWER).await;
        looks.push((named("terminals", &node.session), session));
        let ready = ask(admin, "/readyz", cluster.operator(), "admin_token").await;
        let status = ask(admin, "/status", cluster.operator(), "admin_token").await;
        looks.push((named("operators", &node.admin), ready.and(status)));
    }
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
        looks.push((named, wrong.map_or(Ok(()), Err)));
    }
    looks
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
