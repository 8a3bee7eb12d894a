//! A node's configuration: a TOML file, over it the environment (`REVEILLE_HTTP__LISTEN=…`), over that the flags.
//! Unknown keys are refused.

mod check;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use reveille_protocol::destination::Network;
use reveille_protocol::fail_point::FILE;
use reveille_protocol::id::KeyFingerprint;
use serde::{Deserialize, Serialize};

use crate::fail_points::HAS_FAIL_POINTS;
use crate::session::admission::Limits;

/// Everything a node is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The file that it was read from.
    #[serde(skip)]
    pub file: PathBuf,
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
    pub session: Session,
    /// The port for publishers.
    pub http: Http,
    /// The port for operators.
    pub admin: Admin,
    /// How many terminals may come at once.
    #[serde(default)]
    pub admission: Admission,
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

/// The terminals' port.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Session {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where terminals reach it, `host:port`; default: where it listens.
    #[serde(default)]
    pub advertise: Option<String>,
    /// Seconds that a terminal may stay after its last push, however long it would like to. Default: an hour, and for ever
    /// who asks for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linger_max: Option<u32>,
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

/// How many terminals may come at once.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admission {
    /// Connections at once that are no session yet, from the beginning of TLS to the Welcome. Default: 128 for each
    /// processor.
    pub connecting: Option<NonZeroU32>,
    /// TLS handshakes begun in a second. Default: 500 for each processor.
    pub per_second: Option<NonZeroU32>,
    /// Connections of one IPv4 address or IPv6 /64 that are no session yet, those that wait for their turn included.
    /// Default: a quarter of all; no bound where every port is on loopback.
    pub per_source: Option<NonZeroU32>,
}

/// Notifications.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Notify {
    /// Local address of the UDP socket that dials terminals at their own addresses.
    pub bind: SocketAddr,
    /// UDP address where terminals behind NAT keep their bindings, and from which they are dialled; default: that of
    /// `session.listen`. Terminals use it with the address that they reach the session port by.
    pub anchor: Option<SocketAddr>,
    /// Seconds between two keepalives of a terminal that has not measured its network.
    pub keepalive: u16,
    /// Notifications a second from this node.
    pub per_second: NonZeroU32,
    /// Notifications a second to one IPv4 /24 or IPv6 /64.
    pub per_prefix_per_second: NonZeroU32,
    /// Networks that nothing is sent to, besides those where no terminal can be.
    pub forbid: Vec<Network>,
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
            anchor: None,
            keepalive: 25,
            per_second: const { NonZeroU32::new(5000).unwrap() },
            per_prefix_per_second: const { NonZeroU32::new(50).unwrap() },
            forbid: Vec::new(),
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

/// Connections for each processor that are no session yet: at a round trip of a quarter of a second as many as it can have
/// begun in one.
const CONNECTING: NonZeroU32 = const { NonZeroU32::new(128).unwrap() };
/// Handshakes in a second for each processor: each is some half a millisecond of it, and its session's entries as much again.
const HANDSHAKES: NonZeroU32 = const { NonZeroU32::new(500).unwrap() };

/// The command line's own variables: they begin with the same word as settings, and are none.
pub const COMMAND_LINE: [&str; 5] =
    ["REVEILLE_CONFIG", "REVEILLE_TOKEN", "REVEILLE_URL", "REVEILLE_ADMIN_URL", "REVEILLE_ENROLMENT"];

/// What of the environment are settings.
fn settings_of(
    environment: impl Iterator<Item = (String, String)>,
) -> std::collections::HashMap<String, String> {
    let is_none = |name: &str| COMMAND_LINE.contains(&name) || (HAS_FAIL_POINTS && name == FILE);
    environment.filter(|(name, _)| !is_none(name)).collect()
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
        config.file = path.to_owned();
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

    /// What the session port takes on, on this machine.
    pub fn admission_limits(&self) -> Limits {
        let processors = std::thread::available_parallelism().ok();
        let processors =
            processors.and_then(|count| NonZeroU32::new(count.get() as u32)).unwrap_or(NonZeroU32::MIN);
        let each = |set: Option<NonZeroU32>, one: NonZeroU32| set.unwrap_or(one.saturating_mul(processors));
        let (at_once, per_second) =
            (each(self.admission.connecting, CONNECTING), each(self.admission.per_second, HANDSHAKES));
        let quarter = (at_once.get().saturating_add(per_second.get()) / 4).max(1);
        let default = (!self.only_loopback()).then_some(quarter);
        let per_source = self.admission.per_source.map(NonZeroU32::get).or(default);
        Limits {
            at_once: at_once.get() as usize,
            per_second,
            per_source: per_source.map(|most| most as usize),
        }
    }

    /// Is every port on loopback?
    pub fn only_loopback(&self) -> bool {
        [self.peer.listen, self.session.listen, self.http.listen, self.admin.listen]
            .iter()
            .all(|address| address.ip().is_loopback())
    }
}

impl Port {
    /// Where others are told that it is.
    pub fn told(&self) -> String {
        self.advertise.clone().unwrap_or_else(|| self.listen.to_string())
    }
}

impl Session {
    /// Where terminals are told that it is.
    pub fn told(&self) -> String {
        self.advertise.clone().unwrap_or_else(|| self.listen.to_string())
    }

    /// The longest linger that a terminal gets, if it is set.
    pub fn linger_max(&self) -> Option<Duration> {
        self.linger_max.map(|seconds| Duration::from_secs(seconds.into()))
    }
}

impl FirstTenant {
    /// The hash of its first token; none where it is left out.
    pub fn admin_token(&self) -> anyhow::Result<Option<KeyFingerprint>> {
        hex(&self.admin_token_sha256, "admin_token_sha256")
    }

    /// The public key of its enrolment tokens; none where it is left out.
    pub fn enrolment(&self) -> anyhow::Result<Option<KeyFingerprint>> {
        hex(&self.enrolment_key, "enrolment_key")
    }
}

fn hex(text: &str, what: &str) -> anyhow::Result<Option<KeyFingerprint>> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| anyhow::anyhow!("cluster.tenant.{what} must be 64 hex digits"))
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

    /// Where the documented configuration says so, with this in its place.
    fn loaded_with(forbid: &str) -> anyhow::Result<Config> {
        let text = include_str!("../../docs/configuration.md");
        let (_, rest) = text.split_once("```toml\n").unwrap();
        let (documented, _) = rest.split_once("```").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.toml");
        assert!(documented.contains("\nforbid = []"));
        let hex = "ab".repeat(32);
        let documented = documented.replace("sha256 = \"…\"", &format!("sha256 = \"{hex}\""));
        let documented = documented.replace("enrolment_key = \"…\"", &format!("enrolment_key = \"{hex}\""));
        std::fs::write(&path, documented.replace("\nforbid = []", &format!("\nforbid = {forbid}"))).unwrap();
        Config::load(&path)
    }

    #[test]
    fn forbidden_networks_are_read_or_refused_with_what_helps() {
        let config = loaded_with(r#"["10.0.0.0/8", "fd00::/8"]"#).unwrap();
        assert_eq!(
            config.notify.forbid.iter().map(Network::to_string).collect::<Vec<_>>(),
            ["10.0.0.0/8", "fd00::/8"]
        );
        let many =
            format!("{:?}", (0..257).map(|number| format!("10.{}.0.0/32", number % 256)).collect::<Vec<_>>());
        for (forbid, said) in [
            (r#"["10.0.0.0"]"#, "write it like 10.0.0.0/8"),
            (r#"["10.0.0.0/33"]"#, "at most 32 bits"),
            (r#"["10.1.0.0/8"]"#, "the network is 10.0.0.0/8"),
            (r#"["::ffff:10.0.0.0/104"]"#, "write the IPv4 network itself"),
            (many.as_str(), "notify.forbid may have 256 networks, and has 257"),
        ] {
            let error = format!("{:#}", loaded_with(forbid).unwrap_err());
            assert!(error.contains(said) && error.contains("notify.forbid"), "{error}");
        }
    }
}
