//! `reveille dev`: a whole cluster on this machine, of child processes of this same binary, and a demonstration.

pub(super) mod cluster;
pub(super) mod demo;
pub(super) mod network;

use std::path::PathBuf;

use anyhow::ensure;
use clap::Args;
use serde_json::json;

use self::cluster::DevCluster;
use self::network::Network;
use super::{output, runtime};
use crate::{shutdown, telemetry};

/// Start a cluster on loopback, with certificates made on the spot, and show pushes waking a sleeping terminal.
/// Ctrl-C stops everything and leaves nothing behind.
#[derive(Debug, Args)]
pub(super) struct Dev {
    /// Nodes: 1, 3 or 5.
    #[arg(long, default_value_t = 3)]
    nodes: u64,
    /// Shard groups.
    #[arg(long, default_value_t = 3)]
    groups: u16,
    /// Keep everything in this folder, and start from it again. Default: a temporary one, removed at the end.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Only the cluster; no demonstration.
    #[arg(long)]
    no_demo: bool,
    /// End the demonstration, and the cluster, after so many pushes.
    #[arg(long)]
    pushes: Option<u64>,
    /// Print one JSON object a line; the first one when the cluster is ready.
    #[arg(long)]
    json: bool,
    /// Log level of the nodes, as in RUST_LOG; their logs are files in the data folder.
    #[arg(long, default_value = "info")]
    log_level: String,
}

impl Dev {
    pub(super) fn run(self) -> anyhow::Result<()> {
        telemetry::init_logs("warn", false)?;
        ensure!(matches!(self.nodes, 1 | 3 | 5), "--nodes must be 1, 3 or 5");
        let (folder, temporary) = match &self.data {
            Some(folder) => (folder.clone(), None),
            None => {
                let folder = Temporary::new()?;
                (folder.0.clone(), Some(folder))
            }
        };
        let runtime = runtime(1)?;
        let outcome = runtime.block_on(async {
            let mut cluster =
                DevCluster::start(&folder, self.nodes, self.groups, &self.log_level, Network::Loopback)?;
            let outcome = tokio::select! {
                outcome = self.show(&mut cluster) => outcome,
                signalled = shutdown::signalled() => signalled,
            };
            cluster.stop().await;
            outcome
        });
        drop(temporary);
        outcome
    }

    async fn show(&self, cluster: &mut DevCluster) -> anyhow::Result<()> {
        cluster.ready().await?;
        self.announce(cluster)?;
        if self.no_demo {
            std::future::pending::<()>().await;
        }
        demo::run(cluster, self.pushes, self.json).await
    }

    fn announce(&self, cluster: &DevCluster) -> anyhow::Result<()> {
        if self.json {
            let nodes: Vec<_> = cluster
                .nodes
                .iter()
                .map(|node| {
                    json!({
                        "id": node.id, "pid": node.pid, "http": node.http, "admin": node.admin,
                        "session": node.session, "peer": node.peer, "data": node.data, "config": node.config,
                    })
                })
                .collect();
            return output::json(&json!({
                "event": "ready", "ca": cluster.ca, "token": cluster.token, "nodes": nodes,
            }));
        }
        for node in &cluster.nodes {
            output::line(format!(
                "node {} pid {} · publishers {} · terminals {} · operators {}",
                node.id, node.pid, node.http, node.session, node.admin
            ));
        }
        let first = &cluster.nodes[0];
        let sessions: Vec<_> = cluster.nodes.iter().map(|node| node.session.clone()).collect();
        output::line("");
        output::line("Be a terminal:");
        output::line(format!(
            "  reveille terminal --server {} --ca {} --state /tmp/my-terminal",
            sessions.join(","),
            cluster.ca.display()
        ));
        output::line("Publish to it, through any node:");
        output::line(format!(
            "  reveille publish --url {} --token {} --to TERMINAL --wait acked hello",
            first.http, cluster.token
        ));
        output::line(format!(
            "  curl -i {}/v1/terminals/TERMINAL/messages -H 'Authorization: Bearer {}' -H 'TTL: 3600' -d hello",
            first.http, cluster.token
        ));
        output::line("See how a node sees the cluster:");
        output::line(format!("  reveille status --url {}", first.admin));
        output::line("Kill a node (nothing is lost), and start it again:");
        output::line(format!("  kill -9 {}", first.pid));
        output::line(format!("  reveille node --config {}", first.config.display()));
        output::line(format!("Logs: {}", cluster.folder.join("node-*.log").display()));
        output::line("");
        Ok(())
    }
}

/// A folder that is removed at the end.
pub(super) struct Temporary(pub(super) PathBuf);

impl Temporary {
    pub(super) fn new() -> anyhow::Result<Temporary> {
        let random: [u8; 8] = crate::random::random();
        let name: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let folder = std::env::temp_dir().join(format!("reveille-dev-{name}"));
        std::fs::create_dir(&folder)?;
        Ok(Temporary(folder))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "the temporary folder could not be removed");
        }
    }
}
