//! The nodes: their files, made by the binary itself, and their processes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use reveille_chaos::scenario::Scenario;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::Options;
use super::links::Links;
use super::shim::{self, Shim};
use crate::backend::live::Run;

/// A cluster that is new is ready within this, also on a machine that is busy.
const READY: Duration = Duration::from_secs(90);
/// A node that is asked to leave gives itself 5 s.
const LEAVE: Duration = Duration::from_secs(10);
/// A signal that ends a process does so within this.
const DIE: Duration = Duration::from_secs(10);

/// What a node's process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Runs,
    Stopped,
    Gone,
}

/// A node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: u64,
    pub(super) http: String,
    pub(super) admin: String,
    pub(super) session: String,
    pub(super) data: PathBuf,
    pub(super) log: PathBuf,
    config: PathBuf,
    child: Option<Child>,
    pub(super) state: State,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Nodes {
    bin: PathBuf,
    /// Between them and their disks and clocks, where the scenario needs it.
    pub(super) shim: Option<Shim>,
    pub(super) ca: PathBuf,
    pub(super) token: String,
    pub(super) all: Vec<Node>,
}

impl Nodes {
    /// Has the binary make a cluster in this folder, which is not there yet, and starts its nodes, with the links and the
    /// shim between them that the scenario needs.
    pub(super) async fn start(
        options: &Options,
        folder: &Path,
        scenario: &Scenario,
    ) -> anyhow::Result<(Nodes, Links)> {
        let (bin, seed) = (&options.bin, options.seed);
        let ready = make(bin, folder, scenario.cluster.nodes, scenario.cluster.shards).await?;
        let text = |value: &Value, key: &str| -> anyhow::Result<String> {
            Ok(value[key].as_str().with_context(|| format!("`reveille dev` says no {key}"))?.to_owned())
        };
        let mut made = Nodes {
            bin: bin.to_owned(),
            shim: None,
            ca: text(&ready, "ca")?.into(),
            token: text(&ready, "token")?,
            all: Vec::new(),
        };
        for value in ready["nodes"].as_array().context("`reveille dev` says no nodes")? {
            let id = value["id"].as_u64().context("a node without an id")?;
            let address = |key: &str| Ok::<_, anyhow::Error>(text(value, key)?.replace("http://", ""));
            made.all.push(Node {
                id,
                http: address("http")?,
                admin: address("admin")?,
                session: address("session")?,
                data: text(value, "data")?.into(),
                config: text(value, "config")?.into(),
                log: folder.join(format!("run-{id}.log")),
                child: None,
                state: State::Gone,
            });
        }
        let configs: Vec<_> = made.all.iter().map(|node| (node.id, node.config.as_path())).collect();
        let links = Links::open(scenario, seed, &configs).await.context("links")?;
        if shim::needed(scenario) {
            let data: Vec<_> = made.all.iter().map(|node| (node.id, node.data.as_path())).collect();
            let how = (seed, options.lies);
            made.shim = Some(Shim::make(&folder.join("shim"), bin, scenario, how, &data)?);
        }
        for id in made.ids() {
            made.start_node(id)?;
        }
        Ok((made, links))
    }

    pub(super) fn ids(&self) -> Vec<u64> {
        self.all.iter().map(|node| node.id).collect()
    }

    fn node(&mut self, id: u64) -> anyhow::Result<&mut Node> {
        self.all.iter_mut().find(|node| node.id == id).with_context(|| format!("there is no node {id}"))
    }

    /// The process of a node that has one.
    pub(super) fn pid(&self, id: u64) -> Option<u32> {
        self.all.iter().find(|node| node.id == id)?.child.as_ref()?.id()
    }

    /// Has the run know the processes that nodes have now.
    pub(super) fn noted(&self, run: &Run) {
        let pids = self.ids().into_iter().filter_map(|id| Some((id, self.pid(id)?))).collect();
        run.known().pids = pids;
    }

    pub(super) fn state(&self, id: u64) -> State {
        self.all.iter().find(|node| node.id == id).map_or(State::Gone, |node| node.state)
    }

    /// Starts a node that does not run.
    pub(super) fn start_node(&mut self, id: u64) -> anyhow::Result<()> {
        let bin = self.bin.clone();
        let environment = match &mut self.shim {
            Some(shim) => shim.starts(id)?,
            None => Vec::new(),
        };
        let node = self.node(id)?;
        let log = File::options().create(true).append(true).open(&node.log)?;
        let child = Command::new(&bin)
            .args(["node", "--create", "--exit-with-stdin", "--log-level", "info", "--config"])
            .arg(&node.config)
            .envs(environment)
            // It ends when this process does, also if this one is killed.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| bin.display().to_string())?;
        (node.child, node.state) = (Some(child), State::Runs);
        Ok(())
    }

    /// kill -9, and waits until it is gone with its ports.
    pub(super) async fn kill(&mut self, id: u64) -> anyhow::Result<()> {
        self.dies(id).await?;
        self.shim.as_mut().map_or(Ok(()), |shim| shim.ended(id))
    }

    async fn dies(&mut self, id: u64) -> anyhow::Result<()> {
        let node = self.node(id)?;
        node.state = State::Gone;
        if let Some(mut child) = node.child.take() {
            child.start_kill().context("kill")?;
            timeout(DIE, child.wait()).await.with_context(|| format!("node {id} does not die"))??;
        }
        Ok(())
    }

    /// The power of these fails, of all at once: what they had not synced is lost.
    pub(super) async fn power(&mut self, ids: &[u64]) -> anyhow::Result<()> {
        for id in ids {
            if let Some(child) = &mut self.node(*id)?.child {
                child.start_kill().context("kill")?;
            }
        }
        for id in ids {
            self.dies(*id).await?;
            self.shim()?.power(*id)?;
        }
        Ok(())
    }

    pub(super) fn shim(&mut self) -> anyhow::Result<&mut Shim> {
        self.shim.as_mut().context("this run has no shim")
    }

    /// SIGTERM. Its end is waited for by [`Nodes::ended`].
    pub(super) async fn terminate(&mut self, id: u64) -> anyhow::Result<()> {
        self.node(id)?.state = State::Gone;
        self.signal(id, "TERM").await
    }

    /// Waits for the end of a node that was told to leave.
    pub(super) async fn ended(&mut self, id: u64) -> anyhow::Result<()> {
        if let Some(mut child) = self.node(id)?.child.take() {
            timeout(LEAVE, child.wait()).await.with_context(|| format!("node {id} does not leave"))??;
        }
        Ok(())
    }

    pub(super) async fn pause(&mut self, id: u64) -> anyhow::Result<()> {
        // Noted first: if this is interrupted, it is woken all the same.
        self.node(id)?.state = State::Stopped;
        self.signal(id, "STOP").await
    }

    pub(super) async fn resume(&mut self, id: u64) -> anyhow::Result<()> {
        self.signal(id, "CONT").await?;
        self.node(id)?.state = State::Runs;
        Ok(())
    }

    /// By the program for it: there is no safe function for signals in the standard library.
    async fn signal(&self, id: u64, signal: &str) -> anyhow::Result<()> {
        let pid = self.pid(id).with_context(|| format!("node {id} does not run"))?;
        let sent = Command::new("kill").args(["-s", signal, &pid.to_string()]).status().await?;
        ensure!(sent.success(), "kill -s {signal} {pid}: {sent}");
        Ok(())
    }

    /// Nodes whose processes ended by themselves, and how.
    pub(super) fn fallen(&mut self) -> Vec<(u64, ExitStatus)> {
        let mut fallen = Vec::new();
        for node in self.all.iter_mut().filter(|node| node.state != State::Gone) {
            if let Some(Ok(Some(status))) = node.child.as_mut().map(Child::try_wait) {
                (node.child, node.state) = (None, State::Gone);
                fallen.push((node.id, status));
            }
        }
        fallen
    }

    /// Ends all of them: gently, then not.
    pub(super) async fn stop(&mut self) {
        for id in self.ids() {
            if self.state(id) == State::Stopped {
                // One that is gone meanwhile needs no waking.
                let _ = self.resume(id).await;
            }
            if self.state(id) == State::Runs {
                let _ = self.terminate(id).await;
            }
        }
        for id in self.ids() {
            if self.ended(id).await.is_err() {
                let _ = self.kill(id).await;
            }
        }
    }
}

/// `reveille dev` makes the files: CA, certificates, configurations, token. Its cluster is stopped when it is ready.
async fn make(bin: &Path, folder: &Path, nodes: u64, shards: u64) -> anyhow::Result<Value> {
    let mut child = Command::new(bin)
        .args(["dev", "--no-demo", "--json", "--nodes", &nodes.to_string(), "--groups", &shards.to_string()])
        .arg("--data")
        .arg(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| bin.display().to_string())?;
    let out = child.stdout.take().context("its output")?;
    let mut lines = BufReader::new(out).lines();
    let line = timeout(READY, lines.next_line()).await;
    let Ok(Ok(Some(line))) = line else {
        let _ = child.start_kill();
        let output =
            timeout(DIE, child.wait_with_output()).await.context("`reveille dev` does not end")??;
        bail!("`reveille dev` made no cluster: {}", String::from_utf8_lossy(&output.stderr).trim());
    };
    let pid = child.id().context("`reveille dev` has ended")?;
    Command::new("kill").args(["-s", "TERM", &pid.to_string()]).status().await?;
    timeout(2 * LEAVE, child.wait()).await.context("`reveille dev` does not end")??;
    Ok(serde_json::from_str(&line)?)
}
