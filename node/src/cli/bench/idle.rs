//! `bench idle`: registered terminals that do nothing; what one more costs each node.

use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use super::super::dev::cluster::DevCluster;
use super::{Report, look_at, register, usage};

/// Register terminals and leave them alone.
#[derive(Debug, Args)]
pub(super) struct Idle {
    /// How many, step by step; memory is compared between the steps.
    #[arg(long, value_delimiter = ',', default_value = "200000,400000")]
    terminals: Vec<usize>,
    /// Look at so many of them at random before each measurement, so that caches are full.
    #[arg(long, default_value_t = 100_000)]
    look_at: usize,
    /// Let the nodes settle this long before each measurement.
    #[arg(long, default_value = "20s", value_parser = humantime::parse_duration)]
    settle: Duration,
}

impl Idle {
    pub(super) async fn run(&self, cluster: &DevCluster, report: &Report) -> anyhow::Result<()> {
        let mut ids = Vec::new();
        let mut before: Option<(usize, Vec<u64>)> = None;
        for &count in &self.terminals {
            let began = Instant::now();
            let more = count.saturating_sub(ids.len());
            ids.extend(register(cluster, more).await?);
            let rate = more as f64 / began.elapsed().as_secs_f64();
            look_at(cluster, &ids, self.look_at).await?;
            tokio::time::sleep(self.settle).await;
            let memory: Vec<u64> = cluster
                .nodes
                .iter()
                .map(|node| usage::anonymous_bytes(node.pid))
                .collect::<Result<_, _>>()?;
            let sockets: Vec<usize> = cluster
                .nodes
                .iter()
                .map(|node| usage::descriptors(node.pid).map(|(_, sockets)| sockets))
                .collect::<Result<_, _>>()?;
            let each: Option<Vec<f64>> = before.as_ref().map(|(fewer, less)| {
                let grown = memory.iter().zip(less).map(|(now, then)| *now as f64 - *then as f64);
                grown.map(|grown| grown / (count - fewer) as f64).collect()
            });
            report.figures(
                "idle",
                &[
                    ("terminals", json!(count)),
                    ("registered_per_second", json!(rate.round() as u64)),
                    ("anonymous_mib", json!(memory.iter().map(|bytes| bytes >> 20).collect::<Vec<_>>())),
                    ("bytes_each_since_the_step_before", json!(each)),
                    ("sockets", json!(sockets)),
                ],
            )?;
            before = Some((count, memory));
        }
        Ok(())
    }
}
