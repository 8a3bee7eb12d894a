//! The cluster of `reveille dev`: its files and its child processes.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use reveille_protocol::hash::sha256;

use super::super::certs::{Ca, write_public, write_secret};
use super::super::client::Target;
use super::network::Network;
use crate::config::{
    Admin, Admission, Cluster, Config, FirstTenant, Http, Log, Notify, Port, Session, Storage, Tls,
};
use crate::random::random;

/// A cluster must be ready within this; a slow disk zero-fills its log segments in the meantime.
const PATIENCE: Duration = Duration::from_secs(60);
/// Children get this long to leave gently.
const LEAVE: Duration = Duration::from_secs(7);
/// Certificates of `dev` outlive any session of it.
const CERTIFICATE_DAYS: u32 = 365;
/// Ports of a node: peers, sessions, publishers, operators.
const PORTS: u16 = 4;

/// One node of it.
pub(in crate::cli) struct DevNode {
    pub(in crate::cli) id: u64,
    pub(in crate::cli) pid: u32,
    pub(in crate::cli) http: String,
    pub(in crate::cli) admin: String,
    pub(in crate::cli) session: String,
    pub(in crate::cli) peer: String,
    pub(in crate::cli) data: PathBuf,
    pub(in crate::cli) config: PathBuf,
}

/// A running cluster.
pub(in crate::cli) struct DevCluster {
    pub(in crate::cli) folder: PathBuf,
    pub(in crate::cli) ca: PathBuf,
    pub(in crate::cli) token: String,
    pub(in crate::cli) nodes: Vec<DevNode>,
    pub(in crate::cli) network: Network,
    children: Vec<Child>,
    /// Held as long as the folder is in use.
    _lock: File,
}

/// One cluster at a time runs on a folder: another one's nodes would answer for those that could not start.
fn lock(folder: &Path) -> anyhow::Result<File> {
    let path = folder.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("{}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!("a cluster runs on {} already; end it, or give --data another folder", folder.display())
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("{}", path.display())),
    }
}

impl DevCluster {
    /// Starts the cluster of a folder, which is made if it is not there.
    pub(in crate::cli) fn start(
        folder: &Path,
        nodes: u64,
        groups: u16,
        log_level: &str,
        network: Network,
    ) -> anyhow::Result<DevCluster> {
        fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
        // Children are told absolute paths: someone may start one again from elsewhere.
        let folder = folder.canonicalize()?;
        let lock = lock(&folder)?;
        let fresh = !folder.join("token").exists();
        if fresh {
            make_files(&folder, nodes, groups, network)?;
        }
        let token = folder.join("token");
        let token = fs::read_to_string(&token).with_context(|| format!("{}", token.display()))?;
        let token = token.trim().to_owned();
        let mut cluster = DevCluster {
            ca: folder.join("ca.pem"),
            folder,
            token,
            nodes: Vec::new(),
            network,
            children: Vec::new(),
            _lock: lock,
        };
        for id in 1.. {
            let path = cluster.folder.join(format!("node-{id}.toml"));
            if !path.exists() {
                break;
            }
            cluster.start_node(id, path, log_level)?;
        }
        if cluster.nodes.is_empty() {
            bail!("{} holds no node's configuration", cluster.folder.display());
        }
        Ok(cluster)
    }

    fn start_node(&mut self, id: u64, path: PathBuf, log_level: &str) -> anyhow::Result<()> {
        let config = Config::load(&path)?;
        let child = self.spawn(id, &path, log_level)?;
        self.nodes.push(DevNode {
            id,
            pid: child.id(),
            http: format!("http://{}", config.http.listen),
            admin: format!("http://{}", config.admin.listen),
            session: config.session.listen.to_string(),
            peer: config.peer.listen.to_string(),
            data: config.data,
            config: path,
        });
        self.children.push(child);
        Ok(())
    }

    /// Kills a node as `kill -9` does.
    pub(in crate::cli) fn kill(&mut self, id: u64) -> anyhow::Result<()> {
        let at = self.nodes.iter().position(|node| node.id == id).context("no such node")?;
        self.children[at].kill()?;
        self.children[at].wait()?;
        Ok(())
    }

    /// Sends a signal to a node, by the name that `kill` knows.
    pub(in crate::cli) fn signal(&self, id: u64, signal: &str) -> anyhow::Result<()> {
        let node = self.nodes.iter().find(|node| node.id == id).context("no such node")?;
        let sent = Command::new("kill").args(["-s", signal, &node.pid.to_string()]).status()?;
        ensure!(sent.success(), "kill -s {signal} {}: {sent}", node.pid);
        Ok(())
    }

    /// Starts a killed node again.
    pub(in crate::cli) fn start_again(&mut self, id: u64) -> anyhow::Result<()> {
        let at = self.nodes.iter().position(|node| node.id == id).context("no such node")?;
        let path = self.nodes[at].config.clone();
        let child = self.spawn(id, &path, "warn")?;
        self.nodes[at].pid = child.id();
        self.children[at] = child;
        Ok(())
    }

    fn spawn(&self, id: u64, path: &Path, log_level: &str) -> anyhow::Result<Child> {
        let log =
            File::options().create(true).append(true).open(self.folder.join(format!("node-{id}.log")))?;
        let mut command = self.network.command(id, &std::env::current_exe()?);
        command.arg("node").arg("--config").arg(path).args([
            "--create",
            "--exit-with-stdin",
            "--log-level",
            log_level,
        ]);
        // The child ends when the other end of its input does, also if this process is killed.
        Ok(command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log).spawn()?)
    }

    /// Waits until every node is ready. One that has ended is not waited for.
    pub(in crate::cli) async fn ready(&mut self) -> anyhow::Result<()> {
        for (node, child) in self.nodes.iter().zip(&mut self.children) {
            let target = Target::parse(&node.admin, None)?;
            let until = tokio::time::Instant::now() + PATIENCE;
            // Asked first: what answers at the port of a node that has ended is somebody else.
            let why = loop {
                if let Some(status) = child.try_wait()? {
                    break format!("has ended ({status})");
                }
                if tokio::time::timeout_at(until, is_ready(&target)).await == Ok(true) {
                    break String::new();
                }
                if tokio::time::Instant::now() >= until {
                    break format!("is not ready after {PATIENCE:?}");
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            };
            if !why.is_empty() {
                let log = self.folder.join(format!("node-{}.log", node.id));
                let text = fs::read_to_string(&log).unwrap_or_default();
                let last = text.lines().last().unwrap_or("nothing").to_owned();
                bail!("node {} {why}; the last line of its log, {}: {last}", node.id, log.display());
            }
        }
        Ok(())
    }

    /// Ends the children: gently, then not.
    pub(in crate::cli) async fn stop(&mut self) {
        for child in &mut self.children {
            drop(child.stdin.take());
        }
        let deadline = tokio::time::Instant::now() + LEAVE;
        for child in &mut self.children {
            while matches!(child.try_wait(), Ok(None)) && tokio::time::Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            // Gone already, or it had its time.
            let _ = child.kill();
            let _ = child.wait();
        }
        self.children.clear();
    }
}

impl Drop for DevCluster {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

async fn is_ready(target: &Target) -> bool {
    let Ok(mut client) = target.connect().await else { return false };
    let answer = client.send("GET", "/readyz", "", &[], Bytes::new()).await;
    answer.is_ok_and(|answer| answer.status.is_success())
}

fn make_files(folder: &Path, nodes: u64, groups: u16, network: Network) -> anyhow::Result<()> {
    // A CA that was put there is that of an earlier cluster, whose terminals shall trust this one.
    let ca = match folder.join("ca.pem").exists() {
        true => Ca::read(folder)?,
        false => {
            let (ca, key) = Ca::new()?;
            write_secret(&folder.join("ca.key"), &key)?;
            write_public(&folder.join("ca.pem"), &ca.pem)?;
            ca
        }
    };
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let cluster = u64::from_le_bytes(random()).max(1);
    let token = hex(&random::<24>());
    let ports = network.ports(nodes, PORTS)?;
    let port = |id: u64, which: usize| ports[(id as usize - 1) * usize::from(PORTS) + which];
    let peers: BTreeMap<String, String> =
        (1..=nodes).map(|id| (id.to_string(), port(id, 0).to_string())).collect();
    for id in 1..=nodes {
        let own = port(id, 0).ip();
        let names = vec!["localhost".to_owned(), own.to_string()];
        let (certificate, key) = ca.node(id, cluster, names, CERTIFICATE_DAYS)?;
        let file = |ending: &str| folder.join(format!("node-{id}.{ending}"));
        write_public(&file("pem"), &certificate)?;
        write_secret(&file("key"), &key)?;
        let config = Config {
            file: file("toml"),
            node: id,
            data: folder.join(format!("node-{id}")),
            cluster: Cluster {
                id: format!("{cluster:016x}"),
                groups,
                nodes: peers.clone(),
                join: None,
                tenant: FirstTenant {
                    name: "dev".to_owned(),
                    admin_token_sha256: hex(&sha256(token.as_bytes())),
                    enrolment_key: String::new(),
                    open: true,
                },
            },
            tls: Tls { ca: folder.join("ca.pem"), certificate: file("pem"), key: file("key") },
            peer: Port { listen: port(id, 0), advertise: None },
            session: Session { listen: port(id, 1), advertise: None, linger_max: None },
            http: Http { listen: port(id, 2), advertise: None, tls: false, workers: 1 },
            admin: Admin { listen: port(id, 3) },
            admission: Admission::default(),
            notify: Notify { bind: SocketAddr::new(own, 0), ..Notify::default() },
            // Three nodes on one machine: segments are made full of zeros, so smaller ones start sooner.
            storage: Storage { segment_bytes: 16 << 20, ..Storage::default() },
            log: Log::default(),
        };
        write_public(&file("toml"), &toml::to_string(&config)?)?;
    }
    // Last: its being there says that the rest is.
    write_secret(&folder.join("token"), &token)
}
