//! `bench failover`: kill -9 of a leader under load, again and again: how long nobody could publish to its shards.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use reveille_protocol::directory::group_of_slot;
use reveille_protocol::id::TerminalId;
use serde_json::json;
use tokio::sync::watch;

use super::super::dev::cluster::DevCluster;
use super::{Report, connect, histogram, quantiles, record, register};

/// Kill leaders.
#[derive(Debug, Args)]
pub(super) struct Failover {
    /// Leaders to kill, one after the other; each is started again.
    #[arg(long, default_value_t = 20)]
    kills: usize,
    /// Publishes a second, to terminals of the shards that the victim leads, through the nodes that survive.
    #[arg(long, default_value_t = 200)]
    rate: usize,
    /// Terminals, over all shards.
    #[arg(long, default_value_t = 1000)]
    terminals: usize,
}

/// Publishers that share the rate. Each waits for its answer, so a gap stops them all.
const PUBLISHERS: usize = 8;
/// Load before and after each kill.
const AROUND: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(2));

impl Failover {
    pub(super) async fn run(&self, cluster: &mut DevCluster, report: &Report) -> anyhow::Result<()> {
        let terminals = register(cluster, self.terminals).await?;
        let (mut gaps, mut refused, mut acknowledged) = (histogram()?, 0, 0);
        for number in 0..self.kills {
            let groups = shard_leaders(cluster).await?;
            let victim = groups[number % groups.len()].1;
            let groups_of_victim: Vec<u16> =
                groups.iter().filter(|(_, leader)| *leader == victim).map(|(group, _)| *group).collect();
            let mine: Vec<String> = terminals
                .iter()
                .filter(|id| {
                    let terminal: Option<TerminalId> = id.parse().ok();
                    terminal.is_some_and(|terminal| {
                        groups_of_victim.contains(&group_of_slot(terminal.slot(), groups.len() as u16).0)
                    })
                })
                .cloned()
                .collect();
            anyhow::ensure!(!mine.is_empty(), "no terminal belongs to a shard of node {victim}");
            let survivors: Vec<String> =
                cluster.nodes.iter().filter(|node| node.id != victim).map(|node| node.http.clone()).collect();
            let load = Load::start(self.rate, survivors, cluster.token.clone(), mine);
            tokio::time::sleep(AROUND.0).await;
            let killed = Instant::now();
            cluster.kill(victim)?;
            tokio::time::sleep(AROUND.1).await;
            let (acks, failed) = load.stop().await?;
            let before =
                acks.iter().filter(|at| **at <= killed).max().context("nothing was published before")?;
            let after =
                acks.iter().filter(|at| **at > killed).min().context("nothing was published after")?;
            record(&mut gaps, *after - *before);
            acknowledged += acks.len();
            refused += failed;
            cluster.start_again(victim)?;
            cluster.ready().await?;
        }
        report.figures(
            "failover",
            &[
                ("kills", json!(self.kills)),
                ("write_gap_ms", quantiles(&gaps)),
                ("acknowledged", json!(acknowledged)),
                ("refused", json!(refused)),
            ],
        )
    }
}

/// Each shard group and who leads it, as the first node sees it.
async fn shard_leaders(cluster: &DevCluster) -> anyhow::Result<Vec<(u16, u64)>> {
    let node = cluster.nodes.first().context("a cluster without nodes")?;
    let status = connect(&node.admin).await?.send("GET", "/status", "", &[], Bytes::new()).await?.json()?;
    let groups = status["cluster"]["groups"].as_array().context("no groups in /status")?;
    let leaders = groups.iter().filter_map(|group| {
        let number = group["group"].as_u64().filter(|number| *number > 0)?;
        Some((number as u16, group["leader"].as_u64()?))
    });
    Ok(leaders.collect())
}

/// A steady load of publishes.
struct Load {
    stop: watch::Sender<bool>,
    acks: Arc<Mutex<Vec<Instant>>>,
    refused: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<anyhow::Result<()>>>,
}

impl Load {
    fn start(rate: usize, urls: Vec<String>, token: String, terminals: Vec<String>) -> Load {
        let (stop, stopped) = watch::channel(false);
        let (acks, refused) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU64::new(0)));
        let terminals = Arc::new(terminals);
        let pause = Duration::from_secs_f64(PUBLISHERS as f64 / rate.max(1) as f64);
        let tasks: Vec<_> = (0..PUBLISHERS)
            .map(|number| {
                let (url, token, terminals) =
                    (urls[number % urls.len()].clone(), token.clone(), terminals.clone());
                let (acks, refused, stopped) = (acks.clone(), refused.clone(), stopped.clone());
                tokio::spawn(async move {
                    let mut client = connect(&url).await?;
                    let mut tick = tokio::time::interval(pause);
                    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                    for at in (number..).step_by(PUBLISHERS) {
                        tick.tick().await;
                        if *stopped.borrow() {
                            break;
                        }
                        let path = format!("/v1/terminals/{}/messages", terminals[at % terminals.len()]);
                        let body = Bytes::from(vec![b'x'; 512]);
                        let answer = client.send("POST", &path, &token, &[], body).await?;
                        match answer.status.as_u16() {
                            201 => acks.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now()),
                            _ => {
                                refused.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        Load { stop, acks, refused, tasks }
    }

    /// When publishes were acknowledged, and how many were not.
    async fn stop(self) -> anyhow::Result<(Vec<Instant>, u64)> {
        self.stop.send_replace(true);
        for task in self.tasks {
            task.await??;
        }
        let acks = std::mem::take(&mut *self.acks.lock().unwrap_or_else(PoisonError::into_inner));
        Ok((acks, self.refused.load(Ordering::Relaxed)))
    }
}
