//! `bench steady`: nothing fails, but the processors are busy: does leadership stay where it is?

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use serde_json::json;

use super::super::dev::cluster::DevCluster;
use super::load::{Load, addressees, shards};
use super::{Report, register};

/// Count elections where none should be.
#[derive(Debug, Args)]
pub(super) struct Steady {
    /// How long.
    #[arg(long = "for", default_value = "10m", value_parser = humantime::parse_duration)]
    length: Duration,
    /// Processes that do nothing but use a processor.
    #[arg(long, default_value_t = 2)]
    burners: usize,
    /// Publishes a second, through all nodes.
    #[arg(long, default_value_t = 200)]
    rate: usize,
}

/// Terminals that are published to.
const TERMINALS: usize = 1000;
/// Leadership is spread over the nodes at first; only what comes after counts.
const SETTLE: Duration = Duration::from_secs(10);

/// A process that ends with this one's work.
struct Burner(Child);

impl Drop for Burner {
    fn drop(&mut self) {
        // Gone already, or it goes now.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Steady {
    pub(super) async fn run(&self, cluster: &DevCluster, report: &Report) -> anyhow::Result<()> {
        let terminals = register(cluster, TERMINALS).await?;
        tokio::time::sleep(SETTLE).await;
        let node = cluster.nodes.first().context("a cluster without nodes")?.id;
        let before = shards(cluster, node).await?;
        let urls = cluster.nodes.iter().map(|node| node.http.clone()).collect();
        let to = addressees(&terminals, before.len())?;
        let load = Load::start(self.rate, urls, cluster.token.clone(), to);
        let mut burn = Command::new("sh");
        burn.args(["-c", "while :; do :; done"]).stdin(Stdio::null());
        let burners: Vec<Burner> =
            (0..self.burners).map(|_| burn.spawn().map(Burner)).collect::<Result<_, _>>()?;
        let began = Instant::now();
        tokio::time::sleep(self.length).await;
        let ended = Instant::now();
        drop(burners);
        let done = load.stop().await?;
        let after = shards(cluster, node).await?;
        let changes: u64 = after.iter().zip(&before).map(|(after, before)| after.2 - before.2).sum();
        report.figures(
            "steady",
            &[
                ("seconds", json!((ended - began).as_secs())),
                ("burners", json!(self.burners)),
                ("term_changes", json!(changes)),
                ("longest_write_gap_ms", json!(done.longest_gap(began, ended)?.as_secs_f64() * 1000.0)),
                ("acknowledged", json!(done.acknowledged())),
                ("refused", json!(done.refused)),
            ],
        )
    }
}
