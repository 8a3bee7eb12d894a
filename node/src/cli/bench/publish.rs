//! `bench publish`: closed loop, each request waits for its 201, over every node.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use serde_json::json;

use super::super::dev::cluster::DevCluster;
use super::{Report, connect, histogram, quantiles, record, register, usage};

/// Publish in a closed loop.
#[derive(Debug, Args)]
pub(super) struct Publish {
    /// Requests on their way at once; each is a connection.
    #[arg(long, value_delimiter = ',', default_value = "1,64,512")]
    in_flight: Vec<usize>,
    /// Bytes of a payload.
    #[arg(long, default_value_t = 512)]
    size: usize,
    /// Terminals that are published to, in turn.
    #[arg(long, default_value_t = 10_000)]
    terminals: usize,
    /// How long to measure each.
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    time: Duration,
}

impl Publish {
    pub(super) async fn run(&self, cluster: &DevCluster, report: &Report) -> anyhow::Result<()> {
        let terminals = Arc::new(register(cluster, self.terminals).await?);
        for &in_flight in &self.in_flight {
            self.measure(cluster, report, &terminals, in_flight).await?;
        }
        Ok(())
    }

    async fn measure(
        &self,
        cluster: &DevCluster,
        report: &Report,
        terminals: &Arc<Vec<String>>,
        in_flight: usize,
    ) -> anyhow::Result<()> {
        let warm = Instant::now() + Duration::from_secs(1);
        let end = warm + self.time;
        let body = Bytes::from(vec![b'x'; self.size]);
        let mut loops = Vec::new();
        for number in 0..in_flight {
            let url = cluster.nodes[number % cluster.nodes.len()].http.clone();
            let (token, body, terminals) = (cluster.token.clone(), body.clone(), terminals.clone());
            loops.push(tokio::spawn(async move {
                let mut client = connect(&url).await?;
                let mut took = histogram()?;
                let mut refused = 0u64;
                let mut at = number * 7919;
                while Instant::now() < end {
                    at += in_flight;
                    let path = format!("/v1/terminals/{}/messages", terminals[at % terminals.len()]);
                    let began = Instant::now();
                    let answer = client.send("POST", &path, &token, &[], body.clone()).await?;
                    if answer.status != 201 {
                        refused += 1;
                    } else if began >= warm {
                        record(&mut took, began.elapsed());
                    }
                }
                anyhow::Ok((took, refused))
            }));
        }
        tokio::time::sleep_until(warm.into()).await;
        let cpu = usage::nodes_cpu(cluster)?;
        tokio::time::sleep_until(end.into()).await;
        let cpu = usage::nodes_cpu(cluster)? - cpu;
        let (mut took, mut refused) = (histogram()?, 0);
        for task in loops {
            let (some, some_refused) = task.await??;
            took.add(some)?;
            refused += some_refused;
        }
        let rate = took.len() as f64 / self.time.as_secs_f64();
        report.figures(
            "publish",
            &[
                ("in_flight", json!(in_flight)),
                ("per_second", json!(rate.round() as u64)),
                ("ms", quantiles(&took)),
                ("nodes_cpu_s_per_1000", json!(cpu * 1000.0 / took.len().max(1) as f64)),
                ("refused", json!(refused)),
            ],
        )
    }
}
