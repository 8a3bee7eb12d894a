//! `bench idle`: registered terminals that do nothing; what one more costs each node.

use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use serde_json::json;

use super::super::dev::cluster::DevCluster;
use super::{Report, connect, register, usage};

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
            self.look(cluster, &ids).await?;
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

    async fn look(&self, cluster: &DevCluster, ids: &[String]) -> anyhow::Result<()> {
        let mut looks = Vec::new();
        const CLIENTS: usize = 32;
        for client in 0..CLIENTS {
            let url = cluster.nodes[client % cluster.nodes.len()].http.clone();
            let token = cluster.token.clone();
            // A large odd step visits them in no order that a cache could like.
            let mine: Vec<String> = (0..self.look_at / CLIENTS)
                .map(|at| ids[(at * CLIENTS + client).wrapping_mul(2_654_435_761) % ids.len()].clone())
                .collect();
            looks.push(tokio::spawn(async move {
                let mut client = connect(&url).await?;
                for id in mine {
                    let path = format!("/v1/terminals/{id}");
                    let answer = client.send("GET", &path, &token, &[], Bytes::new()).await?;
                    anyhow::ensure!(answer.status.is_success(), "{}", answer.status);
                }
                anyhow::Ok(())
            }));
        }
        for look in looks {
            look.await??;
        }
        Ok(())
    }
}
