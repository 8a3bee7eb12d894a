//! A node's configuration: a TOML file, over it the environment (`REVEILLE_HTTP__LISTEN=…`), over that the flags.
//! Unknown keys are refused.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::join::JoinToken;

/// Everything a node is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This node's id; never used by another one, not even after it is gone.
    pub node: u64,
    /// Folder of its log and tables.
    pub data: PathBuf,
    /// The cluster that it belongs to.
    pub cluster: Cluster,
    /// Certificates.
    pub tls: Tls,
    /// The port for other nodes.
    pub peer: Port,
    /// The port for terminals.
    pub session: Port,
    /// The port for publishers.
    pub http: Http,
    /// The port for operators.
    pub admin: Admin,
    /// Notifications.
    #[serde(default)]
    pub notify: Notify,
    /// Memory and disk.
    #[serde(default)]
    pub storage: Storage,
    /// Logging.
    #[serde(default)]
    pub log: Log,
}

/// The cluster, as its creator made it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Its random name, 16 hex digits.
    pub id: String,
    /// Shard groups; fixed for ever when the cluster is created.
    #[serde(default = "default_groups")]
    pub groups: u16,
    /// Its nodes and the addresses of their peer ports: all of a new cluster, some of one that this node joins.
    pub nodes: BTreeMap<String, String>,
    /// Join token, of a node that joins a cluster that is there; of no more use once it has joined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<String>,
    /// First tenant; used when the cluster is created, ignored later.
    #[serde(default)]
    pub tenant: FirstTenant,
}

/// Used once, when the cluster is created.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FirstTenant {
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// SHA-256 of a token with every right, 64 hex digits.
    #[serde(default)]
    pub admin_token_sha256: String,
    /// Ed25519 public key for enrolment tokens, 64 hex digits.
    #[serde(default)]
    pub enrolment_key: String,
    /// Let unknown terminals in without a token. Only where every port is on loopback.
    #[serde(default)]
    pub open: bool,
}

/// Certificate files, PEM.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The cluster's CA.
    pub ca: PathBuf,
    /// This node's certificate, and what leads from it to the CA.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// A port.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where others reach it, `host:port`; default: where it listens.
    #[serde(default)]
    pub advertise: Option<String>,
}

/// The publishers' port.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Its URL, as publishers use it.
    #[serde(default)]
    pub advertise: Option<String>,
    /// HTTPS with the node's certificate. Without it only loopback is allowed.
    #[serde(default = "yes")]
    pub tls: bool,
    /// Threads that take requests.
    #[serde(default = "one")]
    pub workers: usize,
}

/// The operators' port.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admin {
    /// Where to listen. On loopback it asks for no token.
    pub listen: SocketAddr,
}

/// Notifications.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Notify {
    /// Local address of the UDP socket.
    pub bind: SocketAddr,
    /// Notifications a second from this node.
    pub per_second: NonZeroU32,
    /// Notifications a second to one IPv4 /24 or IPv6 /64.
    pub per_prefix_per_second: NonZeroU32,
    /// Seconds after which a terminal connects without being notified.
    pub check_in: u32,
}

/// Memory and disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Storage {
    /// Bytes of one log segment.
    pub segment_bytes: usize,
    /// Bytes of the tables' block cache.
    pub cache_bytes: u64,
    /// Bytes of changes that one group keeps in memory between flushes.
    pub overlay_bytes: usize,
}

/// Logging.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// As in `RUST_LOG`.
    pub level: String,
    /// One JSON object a line.
    pub json: bool,
}

impl Default for Notify {
    fn default() -> Self {
        Notify {
            bind: SocketAddr::from(([0, 0, 0, 0], 0)),
            per_second: const { NonZeroU32::new(5000).unwrap() },
            per_prefix_per_second: const { NonZeroU32::new(50).unwrap() },
            check_in: 6 * 3600,
        }
    }
}

impl Default for Storage {
    fn default() -> Self {
        Storage { segment_bytes: 64 << 20, cache_bytes: 16 << 20, overlay_bytes: 8 << 20 }
    }
}

impl Default for Log {
    fn default() -> Self {
        Log { level: "info".to_owned(), json: false }
    }
}

fn yes() -> bool {
    true
}

fn one() -> usize {
    1
}

fn default_groups() -> u16 {
    16
}

/// Smallest segment: a largest log entry must fit twice.
const MIN_SEGMENT: usize = 10 << 20;
/// Shortest time between two check-ins, in seconds.
const MIN_CHECK_IN: u32 = 60;
/// Groups on a node: each costs timers and messages even when idle.
const MAX_GROUPS: u16 = 64;

/// The command line's own variables: they begin with the same word as settings, and are none.
pub const COMMAND_LINE: [&str; 5] =
    ["REVEILLE_CONFIG", "REVEILLE_TOKEN", "REVEILLE_URL", "REVEILLE_ADMIN_URL", "REVEILLE_ENROLMENT"];

/// What of the environment are settings.
fn settings_of(
    environment: impl Iterator<Item = (String, String)>,
) -> std::collections::HashMap<String, String> {
    environment.filter(|(name, _)| !COMMAND_LINE.contains(&name.as_str())).collect()
}

impl Config {
    /// Reads a file, lays the environment over it, and checks the result.
    pub fn load(path: &Path) -> anyhow::Result<Config> {
        let settings = config::Config::builder()
            .add_source(config::File::from(path).format(config::FileFormat::Toml))
            .add_source(
                config::Environment::with_prefix("REVEILLE")
                    .prefix_separator("_")
                    .separator("__")
                    .source(Some(settings_of(std::env::vars()))),
            )
            .build()
            .with_context(|| format!("configuration {}", path.display()))?;
        let mut config: Config =
            settings.try_deserialize().with_context(|| format!("configuration {}", path.display()))?;
        // A service manager starts a node anywhere.
        let folder = path.parent().unwrap_or(Path::new(""));
        let Config { data, tls, .. } = &mut config;
        for named in [data, &mut tls.ca, &mut tls.certificate, &mut tls.key] {
            *named = folder.join(&*named);
        }
        config.check().with_context(|| format!("configuration {}", path.display()))?;
        Ok(config)
    }

    /// The cluster's id as a number.
    pub fn cluster_id(&self) -> anyhow::Result<u64> {
        let id = &self.cluster.id;
        ensure!(id.len() == 16, "cluster.id must be 16 hex digits");
        u64::from_str_radix(id, 16).context("cluster.id must be 16 hex digits")
    }

    /// The nodes by id.
    pub fn nodes(&self) -> anyhow::Result<BTreeMap<u64, String>> {
        let nodes = self.cluster.nodes.iter().map(|(id, address)| {
            let id: u64 = id.parse().with_context(|| format!("cluster.nodes: {id:?} is no node id"))?;
            Ok((id, address.clone()))
        });
        nodes.collect()
    }

    /// Is every port on loopback?
    pub fn only_loopback(&self) -> bool {
        [self.peer.listen, self.session.listen, self.http.listen, self.admin.listen]
            .iter()
            .all(|address| address.ip().is_loopback())
    }

    fn check(&self) -> anyhow::Result<()> {
        ensure!(self.cluster_id()? != 0, "cluster.id must not be zero");
        let nodes = self.nodes()?;
        ensure!(self.node != 0, "node must be a number above zero");
        match &self.cluster.join {
            Some(token) => {
                let token: JoinToken = token.parse().context("cluster.join")?;
                ensure!(
                    token.node == self.node,
                    "cluster.join is the token of node {}, and this is node {}",
                    token.node,
                    self.node
                );
            }
            None => {
                ensure!(nodes.contains_key(&self.node), "node {} is not among cluster.nodes", self.node);
                ensure!(
                    nodes.len() % 2 == 1,
                    "cluster.nodes must be an odd number of nodes, so that a majority is one"
                );
            }
        }
        ensure!((1..=MAX_GROUPS).contains(&self.cluster.groups), "cluster.groups must be 1 to {MAX_GROUPS}");
        ensure!(
            self.storage.segment_bytes >= MIN_SEGMENT,
            "storage.segment_bytes must be at least {MIN_SEGMENT}"
        );
        ensure!(
            self.notify.check_in >= MIN_CHECK_IN,
            "notify.check_in must be at least {MIN_CHECK_IN} s: it is what terminals do when nothing else happens"
        );
        let ports = [
            ("peer", &self.peer.listen, self.peer.advertise.is_some()),
            ("session", &self.session.listen, self.session.advertise.is_some()),
            ("http", &self.http.listen, self.http.advertise.is_some()),
        ];
        for (port, listen, advertised) in ports {
            ensure!(
                advertised || !listen.ip().is_unspecified(),
                "{port}.advertise is needed where {port}.listen is {listen}: others cannot connect to that"
            );
        }
        ensure!(self.http.workers >= 1, "http.workers must be at least 1");
        if !self.http.tls && !self.http.listen.ip().is_loopback() {
            bail!("http.tls = false is allowed only where http.listen is on loopback");
        }
        if self.cluster.tenant.open && !self.only_loopback() {
            bail!("cluster.tenant.open is allowed only where every port is on loopback");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::Value;
    use std::collections::BTreeSet;

    /// Every key, with its tables before it; what is in `cluster.nodes` are names of nodes.
    fn keys(of: &Value, at: &str, into: &mut BTreeSet<String>) {
        match of {
            Value::Object(table) if at != "cluster.nodes." => {
                for (key, value) in table {
                    keys(value, &format!("{at}{key}."), into);
                }
            }
            _ => drop(into.insert(at.trim_end_matches('.').to_owned())),
        }
    }

    fn all_keys(of: &Value) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        keys(of, "", &mut all);
        all
    }

    #[test]
    fn the_documentation_has_every_key_and_no_other() {
        let text = include_str!("../../docs/configuration.md");
        let (_, rest) = text.split_once("```toml\n").unwrap();
        let (documented, _) = rest.split_once("```").unwrap();
        // It reads: no key of it is unknown. What it leaves out has its default, or is null.
        let config: Config = toml::from_str(documented).unwrap();
        let known = all_keys(&serde_json::to_value(config).unwrap());
        let documented: toml::Table = toml::from_str(documented).unwrap();
        assert_eq!(all_keys(&serde_json::to_value(documented).unwrap()), known);
    }
}
