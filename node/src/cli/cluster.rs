//! `reveille cluster`: who belongs to the cluster. Each command asks one node's operator listener, may be repeated, and
//! waits until the cluster has done what was asked, which goes on whether or not anyone waits.

mod add;
mod authority;
mod backup;
mod folder;
mod limits;
mod restore;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::{Args, Subcommand};
use reveille_cluster::overview::{GroupOverview, Overview};
use reveille_protocol::directory::FORMAT;
use reveille_protocol::id::NodeId;
use serde_json::json;

use self::add::Add;
use self::backup::Backup;
use self::limits::Limits;
use self::restore::Restore;
use super::client::Target;
use super::{output, runtime};

/// See and change who belongs to the cluster. Every command may be repeated.
#[derive(Debug, Args)]
pub(super) struct ClusterArgs {
    /// A node's admin URL, as http://127.0.0.1:9100.
    #[arg(long, env = "REVEILLE_ADMIN_URL", global = true, default_value = "http://127.0.0.1:9100")]
    url: String,
    /// The cluster's CA, for https.
    #[arg(long, global = true)]
    tls_ca: Option<PathBuf>,
    /// A token with the admin right, where the listener is not on loopback.
    #[arg(long, env = "REVEILLE_TOKEN", global = true, default_value = "", hide_env_values = true)]
    token: String,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    /// Who belongs, who leads what, and what is on its way.
    Status(Status),
    /// Let a new node join: makes its certificate, configuration and join token.
    Add(Add),
    /// Let a new node take the place of another, which may be dead.
    Replace {
        /// The node that goes.
        node: u64,
        #[command(flatten)]
        add: Add,
    },
    /// Move a node's replicas and leaderships away. It goes on serving sessions and requests.
    Drain(Leave),
    /// Take a drain, or a removal that is not done yet, back.
    Resume {
        /// Which node.
        node: u64,
    },
    /// Move a node's replicas away and remove it. Its id is never used again.
    Remove(Leave),
    /// Have others lead what a node leads, before it is stopped. The balance may bring some back after a while.
    MoveLeaders {
        /// Which node.
        #[arg(long)]
        from: u64,
    },
    /// Set how many replicas each group has: 1, 3, 5 or 7.
    Replicas {
        /// How many.
        replicas: u8,
        /// Also if that is fewer than now: then the loss of fewer nodes stops or loses groups.
        #[arg(long)]
        force_fewer_replicas: bool,
    },
    /// Show the limits that hold for pushes and registrations, or set some of them for what comes from now on.
    Limits(Limits),
    /// Flush the tables of the node that is asked, and let its logs be cut.
    Snapshot,
    /// Write a backup of the whole cluster to a folder. It holds what pushes say and what secrets derive from.
    Backup(Backup),
    /// Bring a backup into a new cluster, of any number of nodes and shards. Repeated, it goes on where it was.
    Restore(Restore),
}

/// How the cluster stands.
#[derive(Debug, Args)]
struct Status {
    /// Fail if the cluster is not settled: for scripts.
    #[arg(long)]
    check: bool,
    /// Wait until the cluster is settled, at most so long, as 60s, and fail if it is not then.
    #[arg(long, value_parser = humantime::parse_duration)]
    wait: Option<Duration>,
}

/// A node goes.
#[derive(Debug, Args)]
struct Leave {
    /// Which node.
    node: u64,
    /// Also if groups have fewer replicas than they should by it: then the loss of fewer nodes stops or loses them.
    #[arg(long)]
    force_fewer_replicas: bool,
    /// How long to wait until it is done, as 10m; 0s: not at all.
    #[arg(long, default_value = "10m", value_parser = humantime::parse_duration)]
    wait: Duration,
}

/// A node tells how the cluster stands within this, or stands still itself.
const OVERVIEW: Duration = Duration::from_secs(15);
/// Between two looks at the cluster.
const LOOK: Duration = Duration::from_millis(300);

/// A node's operator listener.
struct Operator {
    target: Target,
    token: String,
    json: bool,
}

impl ClusterArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let target = Target::parse(&self.url, self.tls_ca.as_deref())?;
        let operator = Operator { target, token: self.token, json: self.json };
        runtime(1)?.block_on(async {
            match self.command {
                ClusterCommand::Status(status) => operator.status(&status).await,
                ClusterCommand::Add(add) => add.run(&operator, None).await,
                ClusterCommand::Replace { node, add } => add.run(&operator, Some(node)).await,
                ClusterCommand::Drain(leave) => operator.leave("drain", &leave).await,
                ClusterCommand::Remove(leave) => operator.leave("remove", &leave).await,
                ClusterCommand::Resume { node } => {
                    operator.post(&format!("/cluster/nodes/{node}/resume"), None).await?;
                    operator.said(json!({ "node": node, "resumed": true }), format!("node {node} stays"))
                }
                ClusterCommand::MoveLeaders { from } => {
                    let answer = operator.post(&format!("/cluster/nodes/{from}/move-leaders"), None).await?;
                    let line = format!("{} groups are led by others now", answer["moved"]);
                    operator.said(answer, line)
                }
                ClusterCommand::Replicas { replicas, force_fewer_replicas } => {
                    let wanted = json!({ "replicas": replicas });
                    let path = format!("/cluster/replicas?fewer={force_fewer_replicas}");
                    operator.post(&path, Some(wanted.clone())).await?;
                    operator.said(wanted, format!("each group will have {replicas} replicas"))
                }
                ClusterCommand::Limits(limits) => limits.run(&operator).await,
                ClusterCommand::Backup(backup) => backup.run(&operator).await,
                ClusterCommand::Restore(restore) => restore.run(&operator).await,
                ClusterCommand::Snapshot => {
                    operator.post("/cluster/snapshot", None).await?;
                    operator
                        .said(json!({ "snapshot": true }), "tables are flushed, logs may be cut".to_owned())
                }
            }
        })
    }
}

impl Operator {
    async fn overview(&self) -> anyhow::Result<Overview> {
        let answer = tokio::time::timeout(OVERVIEW, self.get("/cluster")).await;
        let answer =
            answer.context("the node takes the request and does not answer; ask another with --url")??;
        serde_json::from_value(answer).context("the node is of another version: its answer cannot be read")
    }

    async fn get(&self, path: &str) -> anyhow::Result<serde_json::Value> {
        let mut client = self.target.connect().await?;
        client.send("GET", path, &self.token, &[], Bytes::new()).await?.json()
    }

    /// Sends a request; what it answers, `null` if nothing.
    async fn post(&self, path: &str, body: Option<serde_json::Value>) -> anyhow::Result<serde_json::Value> {
        let mut client = self.target.connect().await?;
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let headers = [("content-type", "application/json".to_owned())];
        let answer = client.send("POST", path, &self.token, &headers, body).await?;
        if answer.status.as_u16() == 204 {
            return Ok(serde_json::Value::Null);
        }
        answer.json()
    }

    fn said(&self, value: serde_json::Value, line: String) -> anyhow::Result<()> {
        if self.json {
            return output::json(&value);
        }
        output::line(line);
        Ok(())
    }

    /// Asks for a node to leave, and waits until it has.
    async fn leave(&self, how: &str, leave: &Leave) -> anyhow::Result<()> {
        let node = leave.node;
        let fewer = leave.force_fewer_replicas;
        // Whoever is asked for its own removal ends by it, and can no longer say that it is done.
        let own = how == "remove" && self.get("/status").await?["cluster"]["node"] == node;
        self.post(&format!("/cluster/nodes/{node}/{how}?fewer={fewer}"), None).await?;
        let done = |overview: &Overview| {
            let found = overview.nodes.iter().find(|known| known.node.0 == node);
            match how {
                "remove" => found.is_none(),
                // Of a group that nobody answers for it is not known who votes.
                _ => {
                    let known = overview.groups.iter().all(|group| group.leader.is_some());
                    known && found.is_none_or(|found| found.votes == 0)
                }
            }
        };
        self.wait(leave.wait, &format!("{how} node {node}"), own, done).await
    }

    /// Waits until the cluster is as wanted, and tells when what is left to do changes. `ends`: the node that is asked ends
    /// when it is done.
    async fn wait(
        &self,
        patience: Duration,
        what: &str,
        ends: bool,
        done: impl Fn(&Overview) -> bool,
    ) -> anyhow::Result<()> {
        if patience.is_zero() {
            return self
                .said(json!({ "asked": what }), format!("asked to {what}; see `reveille cluster status`"));
        }
        let until = tokio::time::Instant::now() + patience;
        let mut told = String::new();
        loop {
            // A node that is asked may be the one that goes.
            let left = match self.overview().await {
                Ok(overview) if done(&overview) => {
                    return self.said(json!({ "done": what }), format!("done: {what}"));
                }
                Ok(overview) => left(&overview),
                Err(error) if ends && refuses_connections(&error) => {
                    let line = format!(
                        "done: {what}: it was asked itself, and has ended, as a node does that was removed; any other node's \
                         `reveille cluster status` shows it"
                    );
                    return self.said(json!({ "done": what, "by_its_end": true }), line);
                }
                Err(error) => format!("{error:#}"),
            };
            if left != told && !self.json {
                output::line(format!("{what}: {left}"));
            }
            told = left;
            if tokio::time::Instant::now() >= until {
                bail!(
                    "not done within {}: {what}: {told}; it goes on, and the command may be repeated",
                    humantime::format_duration(patience)
                );
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Shows how the cluster stands, once it is settled if that is waited for.
    async fn status(&self, status: &Status) -> anyhow::Result<()> {
        let until = tokio::time::Instant::now() + status.wait.unwrap_or_default();
        let overview = loop {
            let over = tokio::time::Instant::now() >= until;
            match self.overview().await {
                Ok(overview) if overview.settled || over => break overview,
                // The node that is asked may be starting.
                Err(error) if over => return Err(error),
                Ok(_) | Err(_) => tokio::time::sleep(LOOK).await,
            }
        };
        self.show(&overview)?;
        if (status.check || status.wait.is_some()) && !overview.settled {
            let within = status.wait.map(|wait| format!(" within {}", humantime::format_duration(wait)));
            bail!("the cluster is not settled{}: {}", within.unwrap_or_default(), left(&overview));
        }
        Ok(())
    }

    fn show(&self, overview: &Overview) -> anyhow::Result<()> {
        if self.json {
            return output::json(overview);
        }
        output::line(format!(
            "cluster {} format {} · {} shards · {} replicas wanted · {}",
            overview.cluster,
            overview.format,
            overview.shards,
            overview.replicas,
            if overview.settled { "settled".to_owned() } else { format!("NOT settled: {}", left(overview)) },
        ));
        output::line("node  standing  up   leads  votes  peer");
        for node in &overview.nodes {
            let up = if node.up { "yes" } else { "NO" };
            let replaces = node.replaces.map(|other| format!(" (for node {other})")).unwrap_or_default();
            output::line(format!(
                "{:>4}  {:8}  {up:3}  {:>5}  {:>5}  {}{replaces}",
                node.node.0, node.standing, node.leads, node.votes, node.peer
            ));
        }
        output::line("group  leader  behind  voters");
        for group in &overview.groups {
            let list = |nodes: &BTreeSet<NodeId>| {
                nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
            };
            let mut line = format!(
                "{:>5}  {:>6}  {:>6}  {}",
                group.group.0,
                group.leader.map_or("none".to_owned(), |leader| leader.to_string()),
                group.behind,
                if group.leader.is_some() { list(&group.voters) } else { "not known".to_owned() }
            );
            let known = |node: &NodeId| overview.nodes.iter().any(|known| known.node == *node);
            let (learning, gone) = group.learners.iter().copied().partition(known);
            for (nodes, what) in [(&learning, "learning"), (&gone, "removed"), (&group.silent, "SILENT")] {
                if !nodes.is_empty() {
                    line += &format!(" · {what} {}", list(nodes));
                }
            }
            if let Some(restore) = &group.restoring {
                line += &format!(" · RESTORING {restore}");
            }
            if group.leader.is_some() && group.voters != group.wanted {
                line += &format!(" · should be {}", list(&group.wanted));
            }
            output::line(line);
        }
        Ok(())
    }
}

/// Does nobody listen there any more?
fn refuses_connections(error: &anyhow::Error) -> bool {
    let kinds = error.chain().filter_map(|cause| Some(cause.downcast_ref::<std::io::Error>()?.kind()));
    kinds.into_iter().any(|kind| kind == std::io::ErrorKind::ConnectionRefused)
}

/// What the cluster has yet to do, in a few words.
fn left(overview: &Overview) -> String {
    let misplaced = |group: &&GroupOverview| group.leader.is_some() && group.voters != group.wanted;
    let misplaced = overview.groups.iter().filter(misplaced).count();
    let wanted = usize::from(overview.replicas);
    let fewest = overview.groups.iter().map(|group| group.wanted.len()).min().unwrap_or(wanted);
    let leaderless = overview.groups.iter().filter(|group| group.leader.is_none()).count();
    let behind = overview.groups.iter().map(|group| group.behind).max().unwrap_or(0);
    let mut left = Vec::new();
    if leaderless > 0 {
        left.push(format!("{leaderless} groups without a leader"));
    }
    for node in overview.nodes.iter().filter(|node| !node.up && node.standing != "invited") {
        left.push(format!("node {} is down", node.node));
    }
    for node in overview.nodes.iter().filter(|node| node.up) {
        let silent = overview.groups.iter().filter(|group| group.silent.contains(&node.node)).count();
        if silent > 0 {
            left.push(format!("node {} is SILENT in {silent} groups", node.node));
        }
    }
    for (one, other) in &overview.torn {
        left.push(format!("nodes {one} and {other} do not hear each other, though others hear both"));
    }
    if fewest < wanted {
        left.push(format!("{fewest} of {wanted} replicas have a node"));
    }
    if overview.format < FORMAT {
        left.push(format!("format {} of {FORMAT}: every node must be there and know it", overview.format));
    }
    for node in overview.nodes.iter().filter(|node| matches!(&*node.standing, "invited" | "leaving")) {
        left.push(format!("node {} is {}", node.node, node.standing));
    }
    if misplaced > 0 {
        left.push(format!("{misplaced} groups to move"));
    }
    if behind > 10_000 {
        left.push(format!("a copy is {} thousand entries behind", behind / 1000));
    }
    let restoring = overview.groups.iter().filter(|group| group.restoring.is_some()).count();
    if restoring > 0 {
        left.push(format!(
            "a restore is open in {restoring} groups: run it again with its backup, or `reveille cluster restore --give-up`"
        ));
    }
    if left.is_empty() { "nothing to move".to_owned() } else { left.join(", ") }
}
