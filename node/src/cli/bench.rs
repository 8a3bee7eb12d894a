//! `reveille bench`: starts a three-node cluster on this machine and measures it through its public faces. What it
//! prints is for docs/performance.md; nothing in the tests depends on it.

mod deliver;
mod failover;
mod far;
mod herd;
mod idle;
mod keepalive;
mod light;
mod linger;
mod load;
mod notify;
mod publish;
mod pure;
mod recovery;
mod steady;
mod usage;
mod wake;

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, Subcommand};
use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::json;

use super::client::{Client, Target};
use super::dev::Temporary;
use super::dev::cluster::DevCluster;
use super::dev::network::Network;
use super::{output, runtime};
use crate::random::random;
use crate::telemetry;

/// Measure a three-node cluster on this machine. All nodes, the load and its clients share the processor.
#[derive(Debug, Args)]
pub(super) struct Bench {
    /// Print one JSON object for each measurement.
    #[arg(long, global = true)]
    json: bool,
    /// Shard groups.
    #[arg(long, global = true, default_value_t = 3)]
    groups: u16,
    /// Folder for the cluster's data; on the disk that shall be measured. Default: a temporary one.
    #[arg(long, global = true)]
    data: Option<PathBuf>,
    /// Log level of the nodes, whose logs are files in that folder.
    #[arg(long, global = true, default_value = "warn")]
    log_level: String,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Publishes, closed loop: rate, latency, processor time of the nodes.
    Publish(publish::Publish),
    /// Pushes to a sleeping terminal: from the publish to its acknowledgement.
    Wake(wake::Wake),
    /// Pushes to connected terminals.
    Deliver(deliver::Deliver),
    /// Registered terminals that do nothing: memory and descriptors.
    Idle(idle::Idle),
    /// Idle terminals behind NAT: memory and processor time of their anchor, for their keepalives.
    Keepalive(keepalive::Keepalive),
    /// Notifications alone: what one costs the processor of the node that sends it.
    Notify(notify::Notify),
    /// Leaders fail under load: how long nobody could publish to their shards.
    Failover(failover::Failover),
    /// A node with much data is restarted, and replaced by another: how long it takes, and what publishers see.
    Recovery(recovery::Recovery),
    /// Very many terminals get a push each at once: how they are notified and come, and what publishers see of it.
    Herd(herd::Herd),
    /// A push every few seconds to one terminal: what a learned linger is worth.
    Linger(linger::Hot),
    /// Nothing fails while the processors are busy: how often leadership moves all the same.
    Steady(steady::Steady),
}

/// As few as lose nothing when one fails.
const NODES: u64 = 3;

impl Bench {
    pub(super) fn run(self) -> anyhow::Result<()> {
        telemetry::init_logs("warn", false)?;
        let report = Report { json: self.json };
        if let What::Keepalive(keepalive) = &self.what {
            return keepalive.run(&report);
        }
        if let What::Notify(notify) = &self.what {
            return notify.run(&report);
        }
        let network = match &self.what {
            // Begins this program anew; so before anything is made.
            What::Failover(failover) if failover.how.cut().is_some() => Network::apart(NODES)?,
            _ => Network::Loopback,
        };
        let temporary = Temporary::new()?;
        let folder = self.data.clone().unwrap_or_else(|| temporary.0.clone());
        runtime(2)?.block_on(async {
            let mut cluster = DevCluster::start(&folder, NODES, self.groups, &self.log_level, network)?;
            let outcome = async {
                cluster.ready().await?;
                match &self.what {
                    What::Publish(publish) => publish.run(&cluster, &report).await,
                    What::Wake(wake) => wake.run(&cluster, &report).await,
                    What::Deliver(deliver) => deliver.run(&cluster, &report).await,
                    What::Idle(idle) => idle.run(&cluster, &report).await,
                    // Done: they need no cluster.
                    What::Keepalive(_) | What::Notify(_) => Ok(()),
                    What::Failover(failover) => failover.run(&mut cluster, &report).await,
                    What::Recovery(recovery) => recovery.run(&mut cluster, &report).await,
                    What::Herd(herd) => herd.run(&mut cluster, &report).await,
                    What::Linger(hot) => hot.run(&cluster, &report).await,
                    What::Steady(steady) => steady.run(&cluster, &report).await,
                }
            };
            let outcome = outcome.await;
            cluster.stop().await;
            outcome
        })
    }
}

/// Where figures go.
struct Report {
    json: bool,
}

/// Latencies in milliseconds.
#[derive(Debug, Serialize)]
struct Quantiles {
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

impl Report {
    fn figures(&self, what: &str, figures: &[(&str, serde_json::Value)]) -> anyhow::Result<()> {
        if self.json {
            let mut object = json!({ "bench": what });
            if let Some(object) = object.as_object_mut() {
                object.extend(figures.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
            }
            return output::json(&object);
        }
        let text: Vec<_> = figures.iter().map(|(name, value)| format!("{name} {}", short(value))).collect();
        output::line(format!("{what}: {}", text.join(" · ")));
        Ok(())
    }
}

fn short(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Number(number) if number.is_f64() => {
            format!("{:.3}", number.as_f64().unwrap_or_default())
        }
        serde_json::Value::Object(object) => object
            .iter()
            .map(|(name, value)| format!("{name} {}", short(value)))
            .collect::<Vec<_>>()
            .join(" "),
        other => other.to_string(),
    }
}

/// A histogram of microseconds.
fn histogram() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 60_000_000, 3)?)
}

fn record(histogram: &mut Histogram<u64>, took: Duration) {
    // Longer than a minute counts as a minute.
    histogram.saturating_record(took.as_micros() as u64);
}

fn quantiles(histogram: &Histogram<u64>) -> serde_json::Value {
    let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
    let quantiles = Quantiles {
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        p999: at(0.999),
        max: histogram.max() as f64 / 1000.0,
    };
    json!({ "p50": quantiles.p50, "p90": quantiles.p90, "p99": quantiles.p99, "p999": quantiles.p999, "max": quantiles.max })
}

async fn connect(url: &str) -> anyhow::Result<Client> {
    Target::parse(url, None)?.connect().await
}

/// Registers terminals that are only rows, in requests of a thousand over every node; their ids.
async fn register(cluster: &DevCluster, count: usize) -> anyhow::Result<Vec<String>> {
    const AT_ONCE: usize = 1000;
    let mut tasks = Vec::new();
    for (at, node) in cluster.nodes.iter().enumerate() {
        let share = count / cluster.nodes.len() + usize::from(at < count % cluster.nodes.len());
        let (url, token) = (node.http.clone(), cluster.token.clone());
        tasks.push(tokio::spawn(async move {
            let mut client = connect(&url).await?;
            let mut ids = Vec::with_capacity(share);
            while ids.len() < share {
                let lines: String = (0..AT_ONCE.min(share - ids.len()))
                    .map(|_| {
                        let key: [u8; 32] = random();
                        let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
                        ids.push(key[..32].to_owned());
                        format!("{{\"key\":\"{key}\"}}\n")
                    })
                    .collect();
                let answer = client.send("POST", "/v1/terminals", &token, &[], Bytes::from(lines)).await?;
                anyhow::ensure!(answer.status.is_success(), "{}", answer.status);
                let text = String::from_utf8_lossy(&answer.body);
                anyhow::ensure!(
                    !text.contains("\"error\""),
                    "not registered: {}",
                    text.lines().next().unwrap_or("")
                );
            }
            Ok(ids)
        }));
    }
    let mut ids = Vec::with_capacity(count);
    for task in tasks {
        ids.extend(task.await??);
    }
    Ok(ids)
}

/// Reads so many of these terminals, in no order that a cache could like.
async fn look_at(cluster: &DevCluster, ids: &[String], count: usize) -> anyhow::Result<()> {
    const CLIENTS: usize = 32;
    let mut looks = Vec::new();
    for client in 0..CLIENTS.min(count) {
        let url = cluster.nodes[client % cluster.nodes.len()].http.clone();
        let token = cluster.token.clone();
        // By a large odd step.
        let mine: Vec<String> = (0..count / CLIENTS)
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
