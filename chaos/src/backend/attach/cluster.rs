//! `cluster.toml`: a cluster that is its user's own, what this program may do to it, and by what. Everything secret in it is
//! the path of a file.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use reveille_chaos::scenario::{Scenario, Time, load};
use serde::Deserialize;

use super::hooks;
use crate::backend::http::{self, Server};
use crate::backend::live;

/// The most bytes of a token's file.
const TOKEN: u64 = 64 << 10;
/// What beginning and undoing may take in a cluster of this program's own, besides the phases.
const OWN: Duration = Duration::from_secs(600);

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    /// What `--confirm` must say.
    name: String,
    /// The CA's certificate, that publishers, operators and terminals trust.
    ca: PathBuf,
    /// Of a token that may publish and read.
    token: PathBuf,
    /// Of a token that may do everything; for the operator's listener, and to unregister terminals.
    admin_token: Option<PathBuf>,
    /// Of the tenant's token that lets unknown terminals in.
    enrolment: Option<PathBuf>,
    /// What was begun and is not undone. Default: beside this file, named as it is with `.journal` at the end.
    journal: Option<PathBuf>,
    /// Where terminals listen for notifications.
    #[serde(default = "anywhere")]
    listen: SocketAddr,
    #[serde(rename = "node")]
    nodes: Vec<Node>,
    #[serde(default)]
    hooks: hooks::Lists,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    stop: Stop,
}

fn anywhere() -> SocketAddr {
    ([0, 0, 0, 0], 0).into()
}

/// A node.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Node {
    /// Its id in the cluster.
    pub(super) id: u64,
    /// The publisher's URL.
    pub(super) http: String,
    /// The terminals' `host:port`.
    pub(super) session: String,
    /// The operator's URL.
    pub(super) admin: String,
    /// What hooks know as `{host}`. Default: the host of `session`.
    host: Option<String>,
}

impl Node {
    pub(super) fn host(&self) -> &str {
        let session = || self.session.rsplit_once(':').map_or(self.session.as_str(), |(host, _)| host);
        self.host.as_deref().unwrap_or_else(session)
    }
}

/// How much may be broken.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Limits {
    /// Nodes at once, fewer than half of them.
    pub(super) nodes: u64,
    /// The longest that a fault may last.
    pub(super) fault: Time,
    /// The longest that a run may take.
    pub(super) run: Time,
    /// The most publishes a second, and requests that are tried again.
    pub(super) rate: u64,
    /// The most terminals.
    pub(super) terminals: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        let time = |seconds| Time(Duration::from_secs(seconds));
        Limits { nodes: 1, fault: time(30), run: time(600), rate: 100, terminals: 100 }
    }
}

/// When everything is undone and the run ends.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Stop {
    /// Somebody has wanted to publish to a terminal for this long, without success.
    pub(super) publish: Time,
    /// A node that was not struck has not been ready for this long.
    pub(super) unready: Time,
    /// A node is not ready again this long after what struck it was undone.
    pub(super) recover: Time,
}

impl Default for Stop {
    fn default() -> Stop {
        let time = |seconds| Time(Duration::from_secs(seconds));
        Stop { publish: time(15), unready: time(5), recover: time(60) }
    }
}

/// A cluster, and everything about it that was read from files.
pub(crate) struct Cluster {
    pub(crate) name: String,
    pub(super) ca: PathBuf,
    pub(super) token: String,
    pub(super) admin_token: Option<String>,
    pub(super) enrolment: Option<String>,
    pub(super) journal: PathBuf,
    pub(super) listen: SocketAddr,
    pub(super) nodes: Vec<Node>,
    pub(super) http: Vec<Server>,
    pub(super) admin: Vec<Server>,
    pub(super) hooks: hooks::Lists,
    /// Where hooks run, and where relative paths begin.
    pub(super) folder: PathBuf,
    pub(super) limits: Limits,
    pub(super) stop: Stop,
    /// This program has started it, so that it may be broken as far as the scenario says.
    pub(super) own: bool,
}

impl Cluster {
    /// Reads it, and the files that it names.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Cluster> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).with_context(|| name.clone())?;
        let file: File = load::parse(&name, &text)?;
        let path = path.canonicalize().with_context(|| name.clone())?;
        Cluster::of(file, &path).with_context(|| name)
    }

    fn of(file: File, path: &Path) -> anyhow::Result<Cluster> {
        let folder = path.parent().context("it is in no folder")?.to_owned();
        ensure!(!file.name.is_empty(), "name: it is what --confirm must say, so it cannot be empty");
        nodes(&file.nodes)?;
        let minority = (file.nodes.len() as u64 - 1) / 2;
        // Of a cluster without a minority nobody is struck, whether that is written or not.
        let mut limits = file.limits;
        if limits.nodes == Limits::default().nodes {
            limits.nodes = limits.nodes.min(minority);
        }
        ensure!(
            limits.nodes <= minority,
            "[limits] nodes = {}: of {} nodes at most {minority} may be away at once",
            limits.nodes,
            file.nodes.len()
        );
        file.hooks.check()?;
        let ca = folder.join(&file.ca);
        let tls = http::tls(&ca).context("ca")?;
        let servers = |of: fn(&Node) -> &String| -> anyhow::Result<Vec<Server>> {
            let one = |node: &Node| {
                let named = || format!("node {}", node.id);
                ensure!(
                    !in_clear(of(node)),
                    "node {}: {}: tokens go in clear to loopback only; say https://",
                    node.id,
                    of(node)
                );
                Server::parse(of(node), &tls).with_context(named)
            };
            file.nodes.iter().map(one).collect()
        };
        let token = |name: &str, path: &Path| secret(&folder.join(path)).with_context(|| name.to_owned());
        let journal = file.journal.map(|journal| folder.join(journal));
        Ok(Cluster {
            http: servers(|node| &node.http)?,
            admin: servers(|node| &node.admin)?,
            token: token("token", &file.token)?,
            admin_token: file.admin_token.map(|path| token("admin_token", &path)).transpose()?,
            enrolment: file.enrolment.map(|path| token("enrolment", &path)).transpose()?,
            journal: journal.unwrap_or_else(|| path.with_extension("toml.journal")),
            name: file.name,
            ca,
            listen: file.listen,
            nodes: file.nodes,
            hooks: file.hooks,
            folder,
            limits,
            stop: file.stop,
            own: false,
        })
    }

    /// For one that this program has started: a scenario's blast is the only limit, and nothing ends the run before it is over.
    pub(crate) fn own(mut self, scenario: &Scenario) -> Cluster {
        let long = Time(scenario.length() * 2 + OWN);
        self.limits = Limits { fault: long, run: long, rate: u64::MAX, terminals: u64::MAX, ..self.limits };
        self.stop = Stop { publish: long, unready: long, recover: long };
        self.own = true;
        self
    }

    pub(super) fn ids(&self) -> Vec<u64> {
        self.nodes.iter().map(|node| node.id).collect()
    }

    /// Where each node is reached.
    pub(super) fn reached(&self) -> Vec<live::Node> {
        let servers = self.http.iter().cloned().zip(self.admin.iter().cloned());
        let reached = self.ids().into_iter().zip(servers);
        reached.map(|(id, (http, admin))| live::Node { id, http, admin, data: None }).collect()
    }

    pub(super) fn node(&self, id: u64) -> Option<&Node> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// What the operator's listener is asked with.
    pub(super) fn operator(&self) -> &str {
        self.admin_token.as_deref().unwrap_or(&self.token)
    }

    /// What a hook's placeholders stand for: of a node, or of what goes from it to another.
    pub(super) fn words(&self, on: hooks::On) -> anyhow::Result<BTreeMap<&'static str, String>> {
        let known =
            |id| self.node(id).with_context(|| format!("there is no node {id} in the cluster's file"));
        let mut words = BTreeMap::from([("cluster", self.name.clone())]);
        let node = known(on.node)?;
        match on.to {
            None => words.extend([("node", node.id.to_string()), ("host", node.host().to_owned())]),
            Some(to) => {
                let to = known(to)?;
                words.extend([("from", node.id.to_string()), ("from_host", node.host().to_owned())]);
                words.extend([("to", to.id.to_string()), ("to_host", to.host().to_owned())]);
            }
        }
        Ok(words)
    }
}

fn nodes(nodes: &[Node]) -> anyhow::Result<()> {
    ensure!(!nodes.is_empty(), "[[node]]: there is none");
    let ids: BTreeSet<u64> = nodes.iter().map(|node| node.id).collect();
    ensure!(ids.len() == nodes.len(), "[[node]]: two have the same id");
    for node in nodes {
        let port = node.session.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        ensure!(port.is_some(), "node {}: session = {:?}: it is host:port", node.id, node.session);
        // It becomes an argument of hooks: one that looks like an option would be taken for one.
        if node.host().is_empty() || node.host().starts_with('-') {
            bail!("node {}: host = {:?} is no host", node.id, node.host());
        }
    }
    Ok(())
}

/// A token's file: one line.
fn secret(path: &Path) -> anyhow::Result<String> {
    let named = || path.display().to_string();
    let length = std::fs::metadata(path).with_context(named)?.len();
    ensure!(length <= TOKEN, "{}: too long for a token", path.display());
    let text = std::fs::read_to_string(path).with_context(named)?;
    let token = text.trim();
    ensure!(!token.is_empty(), "{}: it is empty", path.display());
    ensure!(!token.contains(char::is_whitespace), "{}: a token is one word", path.display());
    Ok(token.to_owned())
}

/// Would what is sent there be read by whoever is on the way?
fn in_clear(url: &str) -> bool {
    let Some(authority) = url.strip_prefix("http://") else { return false };
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host).trim_matches(['[', ']']);
    host != "localhost" && !host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn tokens_do_not_go_in_clear() {
        for url in ["http://n1.prod:9100", "http://10.0.0.1:80", "http://localhost.prod:80"] {
            assert!(in_clear(url), "{url}");
        }
        for url in ["https://n1.prod:9100", "http://127.0.0.1:80", "http://[::1]:80", "http://localhost:80"] {
            assert!(!in_clear(url), "{url}");
        }
    }

    #[test]
    fn what_is_documented_is_read() {
        let page = include_str!("../../../../docs/chaos.md");
        let blocks = page.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
        let text = blocks.into_iter().find(|block| block.contains("[hooks]")).unwrap();
        let file: File = load::parse("cluster.toml", text).unwrap();
        nodes(&file.nodes).unwrap();
        file.hooks.check().unwrap();
        let (limits, stop) = (Limits::default(), Stop::default());
        assert_eq!(
            (file.limits.nodes, file.limits.fault, file.limits.run),
            (limits.nodes, limits.fault, limits.run)
        );
        assert_eq!((file.limits.rate, file.limits.terminals), (limits.rate, limits.terminals));
        assert_eq!(
            (file.stop.publish, file.stop.unready, file.stop.recover),
            (stop.publish, stop.unready, stop.recover)
        );
    }
}
