//! The nodes: their files, made by the binary itself, and their processes.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use reveille_chaos::scenario::Scenario;
use reveille_protocol::fail_point::{Action, FILE};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};

use super::Options;
use super::doors::Doors;
use super::links::Links;
use super::points::{self, Points};
use super::shim::{self, Shim};
use crate::backend::http::Server;
use crate::backend::live::{self, Run};

/// A cluster that is new is ready within this, also on a machine that is busy.
const READY: Duration = Duration::from_secs(90);
/// A node that is asked to leave gives itself 5 s.
const LEAVE: Duration = Duration::from_secs(10);
/// What a process whose first thread panicked ends with.
const PANICKED: i32 = 101;
/// The number of the signal by which nodes are told to leave.
const TERM: i32 = 15;
/// A signal that ends a process does so within this.
const DIE: Duration = Duration::from_secs(10);

/// What a node's process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Runs,
    Stopped,
    Gone,
    /// It has ended since then as one whose data is lost must: only an operator helps.
    Refused(Instant),
}

/// How a node may end by itself, because of what was done to it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Due {
    /// Its folder was changed: what it says helps is to replace it.
    pub(super) replaced: bool,
    /// Its tables were changed: it may notice as it reads them, and makes them anew at its next start.
    pub(super) rebuilt: bool,
    /// It was removed, or another one has its place.
    pub(super) gone: bool,
    /// It lacks what it needs, until that is taken back.
    pub(super) starved: bool,
    /// At a fail point something has happened to it by which it must end: what, and when that was found.
    pub(super) point: Option<(Action, Instant)>,
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
    pub(super) config: PathBuf,
    child: Option<Child>,
    pub(super) state: State,
    pub(super) due: Due,
    /// Starts after it ended by itself, which that was due to.
    pub(super) again: u32,
    /// When somebody wanted to replace it last.
    pub(super) tried: Option<Instant>,
    /// It is of the other version.
    pub(super) other: bool,
}

impl Node {
    /// One that has not been started yet.
    pub(super) fn new(id: u64, at: [String; 3], data: PathBuf, config: PathBuf, log: PathBuf) -> Node {
        let [http, admin, session] = at;
        let (child, state, due) = (None, State::Gone, Due::default());
        Node {
            id,
            http,
            admin,
            session,
            data,
            log,
            config,
            child,
            state,
            due,
            again: 0,
            tried: None,
            other: false,
        }
    }

    /// The last line of its log.
    pub(super) fn said_last(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().last().unwrap_or("nothing").to_owned()
    }
}

/// All of them.
pub(super) struct Nodes {
    pub(super) bin: PathBuf,
    other: Option<PathBuf>,
    /// Between them and their disks and clocks, where the scenario needs it.
    pub(super) shim: Option<Shim>,
    /// Their fail points, where the scenario needs them.
    pub(super) points: Option<Points>,
    /// Where their files are, and the CA's.
    pub(super) folder: PathBuf,
    pub(super) ca: PathBuf,
    pub(super) token: String,
    /// All that there ever were.
    pub(super) all: Vec<Node>,
    /// Who belongs to the cluster, by the places that scenarios name: `n1` is whoever has the first one now.
    pub(super) places: Vec<Option<u64>>,
    /// Where terminals find it, if its nodes come and go.
    pub(super) doors: Doors,
    /// Nodes that were told to leave, and ended otherwise; in words.
    pub(super) crashed: Vec<(u64, String)>,
}

impl Nodes {
    /// Has the binary make a cluster in this folder, which is not there yet, and starts its nodes, with the links and the
    /// shim between them that the scenario needs.
    pub(super) async fn start(
        options: &Options,
        folder: &Path,
        scenario: &Scenario,
    ) -> anyhow::Result<(Nodes, Links)> {
        // A cluster is of the older version until its nodes are upgraded: it never goes back.
        let bin = options.other.as_ref().unwrap_or(&options.bin);
        let ready = make(bin, folder, scenario.cluster.nodes, scenario.cluster.shards).await?;
        let text = |value: &Value, key: &str| -> anyhow::Result<String> {
            Ok(value[key].as_str().with_context(|| format!("`reveille dev` says no {key}"))?.to_owned())
        };
        let mut made = Nodes {
            bin: options.bin.clone(),
            other: options.other.clone(),
            shim: None,
            points: None,
            folder: folder.to_owned(),
            ca: text(&ready, "ca")?.into(),
            token: text(&ready, "token")?,
            all: Vec::new(),
            places: Vec::new(),
            doors: Doors::default(),
            crashed: Vec::new(),
        };
        for value in ready["nodes"].as_array().context("`reveille dev` says no nodes")? {
            let id = value["id"].as_u64().context("a node without an id")?;
            let address = |key: &str| Ok::<_, anyhow::Error>(text(value, key)?.replace("http://", ""));
            let at = [address("http")?, address("admin")?, address("session")?];
            let (data, config) = (text(value, "data")?.into(), text(value, "config")?.into());
            let node = Node::new(id, at, data, config, folder.join(format!("run-{id}.log")));
            made.all.push(Node { other: options.other.is_some(), ..node });
            made.places.push(Some(id));
        }
        let sessions = made.all.iter().map(|node| node.session.parse()).collect::<Result<Vec<_>, _>>();
        made.doors = Doors::open(scenario, options.seed, &sessions?).await?;
        let configs: Vec<_> = made.all.iter().map(|node| (node.id, node.config.as_path())).collect();
        let links = Links::open(scenario, options.seed, &configs).await.context("links")?;
        if shim::needed(scenario) {
            let data: Vec<_> = made.all.iter().map(|node| (node.id, node.data.as_path())).collect();
            let how = (options.seed, options.lies);
            made.shim = Some(Shim::make(&folder.join("shim"), bin, scenario, how, &data)?);
        }
        if points::needed(scenario) {
            made.points = Some(Points::make(folder.join("fail-points.json"))?);
        }
        for id in made.ids() {
            made.start_node(id)?;
        }
        Ok((made, links))
    }

    /// Those that belong to the cluster, by their places.
    pub(super) fn ids(&self) -> Vec<u64> {
        self.places.iter().copied().flatten().collect()
    }

    /// The newest version's binary that some node runs: an operator has it.
    pub(super) fn newest(&self) -> &Path {
        let upgraded = self.all.iter().any(|node| !node.other);
        self.other.as_ref().filter(|_| !upgraded).unwrap_or(&self.bin)
    }

    pub(super) fn of(&self, id: u64) -> Option<&Node> {
        self.all.iter().find(|node| node.id == id)
    }

    /// Where each is reached.
    pub(super) fn reached(&self) -> Arc<Vec<live::Node>> {
        let reached = self.ids().into_iter().filter_map(|id| self.of(id)).map(|node| live::Node {
            id: node.id,
            http: Server::plain(node.http.clone()),
            admin: Server::plain(node.admin.clone()),
            data: Some(node.data.clone()),
        });
        Arc::new(reached.collect())
    }

    pub(super) fn node(&mut self, id: u64) -> anyhow::Result<&mut Node> {
        self.all.iter_mut().find(|node| node.id == id).with_context(|| format!("there is no node {id}"))
    }

    /// The process of a node that has one.
    pub(super) fn pid(&self, id: u64) -> Option<u32> {
        self.of(id)?.child.as_ref()?.id()
    }

    /// Has the run know the processes that nodes have now.
    pub(super) fn noted(&self, run: &Run) {
        let pids = self.all.iter().filter_map(|node| Some((node.id, node.child.as_ref()?.id()?))).collect();
        run.known().pids = pids;
    }

    pub(super) fn state(&self, id: u64) -> State {
        self.of(id).map_or(State::Gone, |node| node.state)
    }

    /// Starts a node that does not run.
    pub(super) fn start_node(&mut self, id: u64) -> anyhow::Result<()> {
        let (bin, other) = (self.bin.clone(), self.other.clone());
        let mut environment = match &mut self.shim {
            Some(shim) => shim.starts(id)?,
            None => Vec::new(),
        };
        environment.extend(self.points.as_ref().map(|points| (FILE, points.file.clone().into())));
        let node = self.node(id)?;
        let bin = other.filter(|_| node.other).unwrap_or(bin);
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
        (node.child, node.state, node.due.point) = (Some(child), State::Runs, None);
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
        let Some(child) = &mut self.node(id)?.child else { return Ok(()) };
        let status =
            timeout(LEAVE, child.wait()).await.with_context(|| format!("node {id} does not leave"))??;
        self.node(id)?.child = None;
        // One that had no handler for the signal yet ended by that.
        let crashed = status.code() == Some(PANICKED) || status.signal().is_some_and(|signal| signal != TERM);
        if crashed {
            self.crashed.push((id, format!("it was told to leave, and ended by {status}")));
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

    async fn signal(&self, id: u64, signal: &str) -> anyhow::Result<()> {
        let pid = self.pid(id).with_context(|| format!("node {id} does not run"))?;
        send(pid, signal).await
    }

    /// Nodes whose processes ended by themselves, and how.
    pub(super) fn fallen(&mut self) -> Vec<(u64, ExitStatus)> {
        let mut fallen = Vec::new();
        for node in self.all.iter_mut().filter(|node| matches!(node.state, State::Runs | State::Stopped)) {
            if let Some(Ok(Some(status))) = node.child.as_mut().map(Child::try_wait) {
                (node.child, node.state) = (None, State::Gone);
                fallen.push((node.id, status));
            }
        }
        fallen
    }

    /// Ends all of them: gently, then not.
    pub(super) async fn stop(&mut self) {
        let all: Vec<u64> = self.all.iter().map(|node| node.id).collect();
        for id in &all {
            if self.state(*id) == State::Stopped {
                // One that is gone meanwhile needs no waking.
                let _ = self.resume(*id).await;
            }
            if self.state(*id) == State::Runs {
                let _ = self.terminate(*id).await;
            }
        }
        for id in all {
            if self.ended(id).await.is_err() {
                let _ = self.kill(id).await;
            }
        }
    }
}

/// Sends a signal, by the program for it: there is no safe function for signals in the standard library.
///
/// # Errors
/// If the process is gone.
pub(super) async fn send(pid: u32, signal: &str) -> anyhow::Result<()> {
    let sent =
        Command::new("kill").args(["-s", signal, &pid.to_string()]).stderr(Stdio::null()).status().await?;
    ensure!(sent.success(), "kill -s {signal} {pid}: {sent}");
    Ok(())
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
    send(pid, "TERM").await?;
    timeout(2 * LEAVE, child.wait()).await.context("`reveille dev` does not end")??;
    Ok(serde_json::from_str(&line)?)
}
