//! Nodes that come and go while the cluster works: the deeds of its operator, by the commands and requests that the run-book
//! has. Who is asked is a node that is ready; what the cluster refuses is tried again by whoever wanted it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use reveille_chaos::history::Observation;
use reveille_chaos::scenario::Kind;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::{Instant, timeout};

use super::nodes::{Node, Nodes, State};
use crate::backend::OPERATOR_COMES;
use crate::backend::http::{Request, Server};
use crate::backend::live::Run;

/// A command of the operator's has its answer within this.
const COMMAND: Duration = Duration::from_secs(30);
/// An answer to a request.
const ANSWER: Duration = Duration::from_secs(10);
/// What the cluster does not take from its operator, he tries again after this.
const AGAIN: Duration = Duration::from_secs(2);

/// This kind changes who belongs to the cluster, or may have its operator do so.
pub(super) fn may_change(kind: Kind) -> bool {
    kind.is_membership() || kind.is_of_folders()
}

/// Does it; whether the cluster takes it.
///
/// # Errors
/// If a node that has joined cannot be started.
pub(super) async fn strike(
    run: &Run,
    nodes: &mut Nodes,
    kind: Kind,
    victims: &[u64],
) -> anyhow::Result<bool> {
    match (kind.name(), victims) {
        ("add-node", _) => join(run, nodes, None).await,
        ("replace", [id]) => join(run, nodes, Some(*id)).await,
        ("drain", [id]) => Ok(order(run, *id, "drain").await),
        ("remove", [id]) => {
            let taken = order(run, *id, "remove").await;
            if taken {
                leaves(run, nodes, *id, None)?;
            }
            Ok(taken)
        }
        _ => Ok(false),
    }
}

/// The node stays.
pub(super) async fn resume(run: &Run, id: u64) {
    if !order(run, id, "resume").await {
        run.cover("order.refused");
    }
}

/// Nodes that are refused are replaced, after a while or, if that is said, at once.
///
/// # Errors
/// If a node that has joined cannot be started.
pub(super) async fn called(run: &Run, nodes: &mut Nodes, at_once: bool) -> anyhow::Result<()> {
    let refused = |node: &&Node| {
        let late = matches!(node.state, State::Refused(since) if at_once || since.elapsed() > OPERATOR_COMES);
        late && node.tried.is_none_or(|tried| tried.elapsed() > AGAIN)
            && nodes.places.contains(&Some(node.id))
    };
    let refused: Vec<u64> = nodes.all.iter().filter(refused).map(|node| node.id).collect();
    for id in refused {
        nodes.node(id)?.tried = Some(Instant::now());
        if join(run, nodes, Some(id)).await? {
            run.say(&format!("the operator has replaced node {id}"));
            run.cover("node.replaced");
        }
    }
    Ok(())
}

/// Whether the cluster is settled, as some node that is ready says, and all that were to go have ended; else what it waits for.
pub(super) async fn settled(run: &Run, nodes: &Nodes) -> Result<(), String> {
    if let Some(node) = nodes.all.iter().find(|node| node.due.gone && node.state == State::Runs) {
        return Err(format!("node {} does not belong to it any more, and has not ended", node.id));
    }
    let Some(server) = asked(run, None) else { return Err("no node is ready".to_owned()) };
    let answer = Request::get("/cluster", &run.admin_token).send(&server, ANSWER).await;
    let Some(overview) = answer.ok().and_then(|answer| answer.json()) else {
        return Err("it says nothing of itself".to_owned());
    };
    match overview["settled"] == true {
        true => Ok(()),
        false => Err(waits_for(&overview)),
    }
}

/// What a cluster that is not settled waits for, as far as it says that, in words.
fn waits_for(overview: &Value) -> String {
    let all = |key: &str| overview[key].as_array().cloned().unwrap_or_default();
    let mut words = Vec::new();
    for node in all("nodes") {
        if node["up"] != true || node["standing"] != "member" {
            let up = if node["up"] == true { "up" } else { "down" };
            words.push(format!("node {} is {up} and {}", node["node"], node["standing"]));
        }
    }
    for group in all("groups") {
        if group["leader"].is_null() || group["voters"] != group["wanted"] || group["silent"] != json!([]) {
            let [number, leader, voters] = ["group", "leader", "voters"].map(|key| &group[key]);
            words.push(format!(
                "group {number} has leader {leader}, voters {voters} of {}, silent {}",
                group["wanted"], group["silent"]
            ));
        }
    }
    if words.is_empty() {
        words.push(format!("format {}, torn links {}", overview["format"], overview["torn"]));
    }
    words.join("; ")
}

/// The operator's listener of a node that is ready, and is not this one.
fn asked(run: &Run, but: Option<u64>) -> Option<Server> {
    let (nodes, known) = (run.nodes(), run.known());
    let is_ready = |id: u64| known.ready.get(&id) == Some(&true) && Some(id) != but;
    nodes.iter().find(|node| is_ready(node.id)).map(|node| node.admin.clone())
}

/// Whether the cluster takes an order about a node.
async fn order(run: &Run, id: u64, what: &str) -> bool {
    let Some(server) = asked(run, Some(id)) else { return false };
    let path = format!("/cluster/nodes/{id}/{what}");
    let request = Request { method: "POST", path: &path, token: &run.admin_token, headers: &[], body: b"" };
    let answer = request.send(&server, ANSWER).await;
    answer.is_ok_and(|answer| (200..300).contains(&answer.status))
}

/// A node belongs no more, as publishers and terminals are told; another may have its place.
fn leaves(run: &Run, nodes: &mut Nodes, id: u64, next: Option<u64>) -> anyhow::Result<()> {
    if let Some(place) = nodes.places.iter_mut().find(|place| **place == Some(id)) {
        *place = next;
    }
    nodes.node(id)?.due.gone = true;
    run.see(Observation::Left { node: id });
    known(run, nodes);
    run.known().ready.remove(&id);
    Ok(())
}

/// Has everybody know who belongs to the cluster.
fn known(run: &Run, nodes: &Nodes) {
    *run.nodes.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = nodes.reached();
    let sessions = nodes.ids().into_iter().filter_map(|id| nodes.of(id)?.session.parse().ok());
    nodes.doors.lead(&sessions.collect::<Vec<SocketAddr>>());
    nodes.noted(run);
}

/// A new node joins, in the place of another one if that is said; whether the cluster lets it.
async fn join(run: &Run, nodes: &mut Nodes, instead: Option<u64>) -> anyhow::Result<bool> {
    let (Some(server), Some(like)) = (asked(run, instead), nodes.all.first()) else { return Ok(false) };
    let [peer, session, http, admin] = free_addresses()?.map(|address| address.to_string());
    let out = nodes.folder.join(format!("joined-{}", nodes.all.len() + 1));
    // Of a command that was refused half-way.
    if out.exists() {
        std::fs::remove_dir_all(&out).with_context(|| out.display().to_string())?;
    }
    let mut command = Command::new(nodes.newest());
    command.args(["cluster", "--json", "--url", &format!("http://{}", server.authority())]);
    match instead {
        None => command.arg("add"),
        Some(id) => command.args(["replace", &id.to_string()]),
    };
    command.args(["--peer", &peer, "--session", &session, "--http", &http, "--admin", &admin]);
    command.args(["--listen", "127.0.0.1", "--names", "localhost", "--like"]).arg(&like.config);
    command.arg("--ca").arg(&nodes.folder).arg("--out").arg(&out);
    let command = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(COMMAND, command).await.context("the operator's command does not end")??;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        run.say(&format!("no node may join now: {why}"));
        return Ok(false);
    }
    let said: Value = serde_json::from_slice(&output.stdout).context("what `reveille cluster` says")?;
    let id = said["node"].as_u64().context("`reveille cluster` says no id")?;
    ensure!(nodes.of(id).is_none(), "the cluster gave the id of node {id} twice");
    let log = nodes.folder.join(format!("run-{id}.log"));
    let config: PathBuf = out.join(format!("node-{id}.toml"));
    nodes.all.push(Node::new(id, [http, admin, session], out.join("data"), config, log));
    nodes.start_node(id)?;
    match instead {
        Some(instead) => leaves(run, nodes, instead, Some(id))?,
        None => {
            nodes.places.push(Some(id));
            known(run, nodes);
        }
    }
    run.say(&format!("node {id} joins"));
    Ok(true)
}

/// Addresses that nobody has: each also for datagrams, as a node's port for terminals is.
fn free_addresses() -> anyhow::Result<[SocketAddr; 4]> {
    // Held until all are found, so that none is found twice.
    let mut held = Vec::new();
    while held.len() < 4 {
        let listener = TcpListener::bind((IpAddr::V4(Ipv4Addr::LOCALHOST), 0)).context("a free port")?;
        let at = listener.local_addr()?;
        if let Ok(socket) = UdpSocket::bind(at) {
            held.push((at, listener, socket));
        }
        ensure!(held.len() < 1000, "there are no free ports");
    }
    let addresses: Vec<SocketAddr> = held.iter().map(|(at, ..)| *at).collect();
    addresses.try_into().ok().context("four addresses")
}
