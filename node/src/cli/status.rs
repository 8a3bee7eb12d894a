//! `reveille status`: how a node sees the cluster.

use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;

use super::client::Target;
use super::{output, runtime};

/// Show how a node sees the cluster: its groups, their leaders, the nodes.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// A node's admin URL, as http://127.0.0.1:7401.
    #[arg(long, env = "REVEILLE_ADMIN_URL")]
    url: String,
    /// The cluster's CA, for https.
    #[arg(long, visible_alias = "tls-ca")]
    ca: Option<PathBuf>,
    /// A token with the admin right, where the listener is not on loopback.
    #[arg(long, env = "REVEILLE_TOKEN", default_value = "", hide_env_values = true)]
    token: String,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Only say whether the node is ready, and fail if it is not: for health checks. Asks for no token.
    #[arg(long, conflicts_with = "json")]
    check: bool,
}

impl StatusArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        runtime(1)?.block_on(async {
            let mut client = Target::parse(&self.url, self.ca.as_deref())?.connect().await?;
            if self.check {
                let ready = client.send("GET", "/readyz", "", &[], Bytes::new()).await?;
                if !ready.status.is_success() {
                    let text = String::from_utf8_lossy(&ready.body);
                    anyhow::bail!("not ready: {}", ready.message().unwrap_or_else(|| text.trim().to_owned()));
                }
                output::line("ready");
                return Ok(());
            }
            let status = client.send("GET", "/status", &self.token, &[], Bytes::new()).await?.json()?;
            if self.json {
                return output::json(&status);
            }
            let cluster = &status["cluster"];
            output::line(format!(
                "node {} incarnation {} of cluster {}: {}, {} sessions",
                cluster["node"],
                cluster["incarnation"],
                cluster["cluster"].as_str().unwrap_or("?"),
                if status["ready"] == true { "ready" } else { "NOT ready" },
                status["sessions"],
            ));
            output::line("group  leader  term  applied  waiting  unreachable");
            for group in cluster["groups"].as_array().into_iter().flatten() {
                output::line(format!(
                    "{:>5}  {:>6}  {:>4}  {:>7}  {:>7}  {:>11}",
                    group["group"].to_string(),
                    group["leader"].to_string().replace("null", "none"),
                    group["term"].to_string(),
                    group["applied"].to_string().replace("null", "-"),
                    group["waiting"].to_string(),
                    group["unreachable"].to_string(),
                ));
            }
            for node in cluster["nodes"].as_array().into_iter().flatten() {
                output::line(format!(
                    "node {} incarnation {} {} sessions at {} publishers at {}",
                    node["node"],
                    node["incarnation"],
                    if node["down"] == true { "DOWN" } else { "up" },
                    node["session"].as_str().unwrap_or("?"),
                    node["http"].as_str().unwrap_or("?"),
                ));
            }
            Ok(())
        })
    }
}
