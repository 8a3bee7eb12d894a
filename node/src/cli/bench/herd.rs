//! `bench herd`: very many sleeping terminals get a push each at once. How fast they are notified, come and are served; what
//! publishers see of it; how often a terminal is notified for its one push.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use hdrhistogram::Histogram;
use serde_json::json;
use tokio::sync::Semaphore;

use super::super::dev::cluster::DevCluster;
use super::light::{Light, Receipts, World};
use super::{Report, connect, histogram, quantiles, record, register, usage};

/// Wake very many terminals at once.
#[derive(Debug, Args)]
pub(super) struct Herd {
    /// Sleeping terminals. Each is a UDP socket of this process: mind `ulimit -n`.
    #[arg(long, default_value_t = 10_000)]
    terminals: usize,
    /// Publishes to others a second, before the herd and during it: what publishers see is theirs.
    #[arg(long, default_value_t = 200)]
    rate: usize,
    /// Once every push is stored, kill all nodes with SIGKILL and start them again.
    #[arg(long)]
    restart: bool,
    /// Give up after this.
    #[arg(long, default_value = "10m", value_parser = humantime::parse_duration)]
    patience: Duration,
}

/// Terminals that make their first session at the same time.
const FIRST_SESSIONS: usize = 64;
/// Publishers of the herd's pushes.
const PUBLISHERS: usize = 64;
/// A push that was not taken is published again after this.
const AGAIN: Duration = Duration::from_millis(100);
/// Publishers whose latency is measured.
const PROBES: usize = 8;
/// How long is measured before the herd.
const BEFORE: Duration = Duration::from_secs(10);
/// How long the nodes rest between the first sessions and what is measured.
const REST: Duration = Duration::from_secs(5);

impl Herd {
    pub(super) async fn run(&self, cluster: &mut DevCluster, report: &Report) -> anyhow::Result<()> {
        let others = Arc::new(register(cluster, 1000).await?);
        let servers = cluster.nodes.iter().map(|node| node.session.clone()).collect();
        let (world, received) = World::new(servers, &cluster.ca)?;
        let terminals = self.terminals(&world, report).await?;
        tokio::time::sleep(REST).await;
        let before = Probe::start(cluster, &others, self.rate);
        tokio::time::sleep(BEFORE).await;
        let before = before.stop().await?;

        world.told.reset();
        let cpu = (usage::nodes_cpu(cluster)?, usage::cpu_seconds(std::process::id())?);
        let probe = Probe::start(cluster, &others, self.rate);
        let began = Instant::now();
        let notified =
            tokio::spawn(notifying(terminals.iter().map(|light| light.notified.clone()).collect()));
        let (stored, delivered) = match self.restart {
            false => {
                let arrive = arrive(received, self.terminals, began, self.patience);
                tokio::try_join!(publish(cluster, &terminals), arrive)?
            }
            true => {
                let stored = publish(cluster, &terminals).await?;
                for node in 1..=cluster.nodes.len() as u64 {
                    cluster.kill(node)?;
                }
                for node in 1..=cluster.nodes.len() as u64 {
                    cluster.start_again(node)?;
                }
                (stored, arrive(received, self.terminals, began, self.patience).await?)
            }
        };
        let took = began.elapsed();
        // What is repeated comes within a rung or two of the ladder.
        tokio::time::sleep(REST).await;
        let probe = probe.stop().await?;
        notified.abort();
        let all = terminals.len() as f64;
        let counts: Vec<u64> = terminals.iter().map(|light| *light.notified.borrow()).collect();
        let notifications: u64 = counts.iter().sum();
        let sessions = world.told.sessions.load(Ordering::Relaxed);
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let used = match self.restart {
            false => json!((usage::nodes_cpu(cluster)? - cpu.0) * 1000.0 / all),
            true => json!(null),
        };
        let peaks: Vec<u64> = cluster
            .nodes
            .iter()
            .map(|node| usage::peak_bytes(node.pid).map(|bytes| bytes >> 20))
            .collect::<Result<_, _>>()?;
        report.figures(
            if self.restart { "herd: all nodes killed and restarted" } else { "herd" },
            &[
                ("terminals", json!(terminals.len())),
                ("all_stored_after_s", json!(stored.as_secs_f64())),
                ("all_delivered_after_s", json!(took.as_secs_f64())),
                ("delivered_per_second", json!((all / took.as_secs_f64()).round() as u64)),
                ("delivered_after_ms", quantiles(&delivered.after)),
                ("delivered_twice", json!(delivered.again)),
                ("most_notified_in_a_second", json!(count(&PEAK))),
                ("notifications_each", json!(notifications as f64 / all)),
                ("most_notifications_of_one", json!(counts.iter().max())),
                ("sessions_per_second", json!((sessions as f64 / took.as_secs_f64()).round() as u64)),
                ("sessions_each", json!(sessions as f64 / all)),
                ("resumed", json!(count(&world.told.resumed) as f64 / sessions.max(1) as f64)),
                ("connections_turned_away", json!(count(&world.told.turned_away))),
                ("publish_ms_before", quantiles(&before.took)),
                ("publish_ms_during", quantiles(&probe.took)),
                ("publishes_refused", json!(probe.refused)),
                ("nodes_cpu_ms_each", used),
                (
                    "terminals_cpu_ms_each",
                    json!((usage::cpu_seconds(std::process::id())? - cpu.1) * 1000.0 / all),
                ),
                ("peak_mib_of_nodes", json!(peaks)),
            ],
        )
    }

    /// Makes the terminals; each has had its first session, and sleeps.
    async fn terminals(&self, world: &Arc<World>, report: &Report) -> anyhow::Result<Vec<Light>> {
        let began = Instant::now();
        let at_once = Arc::new(Semaphore::new(FIRST_SESSIONS));
        let mut tasks = Vec::new();
        for number in 0..self.terminals {
            let permit = at_once.clone().acquire_owned().await?;
            let world = world.clone();
            tasks.push(tokio::spawn(async move {
                let terminal = world.terminal(number).await;
                drop(permit);
                terminal
            }));
        }
        let mut terminals = Vec::with_capacity(tasks.len());
        for task in tasks {
            terminals.push(task.await??);
        }
        let rate = self.terminals as f64 / began.elapsed().as_secs_f64();
        report.figures("herd: first sessions", &[("per_second", json!(rate.round() as u64))])?;
        Ok(terminals)
    }
}

/// A push to each, as fast as they are taken; how long that took.
async fn publish(cluster: &DevCluster, terminals: &[Light]) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let ids: Arc<Vec<String>> = Arc::new(terminals.iter().map(|light| light.id.to_string()).collect());
    let publishers: Vec<_> = (0..PUBLISHERS)
        .map(|publisher| {
            let url = cluster.nodes[publisher % cluster.nodes.len()].http.clone();
            let (token, ids) = (cluster.token.clone(), ids.clone());
            tokio::spawn(async move {
                let mut client = connect(&url).await?;
                for id in ids.iter().skip(publisher).step_by(PUBLISHERS) {
                    let path = format!("/v1/terminals/{id}/messages");
                    let body = Bytes::from_static(&[b'x'; 512]);
                    loop {
                        let answer = client.send("POST", &path, &token, &[], body.clone()).await?;
                        match answer.status.as_u16() {
                            201 => break,
                            // A careful publisher tries again.
                            503 => tokio::time::sleep(AGAIN).await,
                            other => bail!("a publish was answered {other}"),
                        }
                    }
                }
                Ok(())
            })
        })
        .collect();
    for publisher in publishers {
        publisher.await??;
    }
    Ok(began.elapsed())
}

struct Delivered {
    after: Histogram<u64>,
    again: usize,
}

/// Waits until every terminal has its push.
async fn arrive(
    mut received: Receipts,
    terminals: usize,
    began: Instant,
    patience: Duration,
) -> anyhow::Result<Delivered> {
    let mut delivered = Delivered { after: histogram()?, again: 0 };
    let (mut have, mut missing) = (vec![false; terminals], terminals);
    while missing > 0 {
        let next = tokio::time::timeout_at((began + patience).into(), received.recv()).await;
        let next = next.with_context(|| format!("{missing} pushes are not delivered after {patience:?}"))?;
        let (number, at) = next.context("the terminals have ended")?;
        match std::mem::replace(&mut have[number], true) {
            true => delivered.again += 1,
            false => {
                missing -= 1;
                record(&mut delivered.after, at - began);
            }
        }
    }
    Ok(delivered)
}

/// Most terminals that were notified within one second.
static PEAK: AtomicU64 = AtomicU64::new(0);

async fn notifying(terminals: Vec<tokio::sync::watch::Receiver<u64>>) {
    let mut before = 0;
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tick.tick().await;
        let now: u64 = terminals.iter().map(|count| *count.borrow()).sum();
        PEAK.fetch_max(now - before, Ordering::Relaxed);
        before = now;
    }
}

/// Publishers to terminals that never come, whose waits are measured from when they wanted to publish.
struct Probe {
    stop: Arc<AtomicBool>,
    publishers: Vec<tokio::task::JoinHandle<anyhow::Result<Seen>>>,
}

struct Seen {
    took: Histogram<u64>,
    /// Answered with something else than 201, or not at all.
    refused: u64,
}

impl Probe {
    fn start(cluster: &DevCluster, others: &Arc<Vec<String>>, rate: usize) -> Probe {
        let stop = Arc::new(AtomicBool::new(false));
        let pause = Duration::from_secs_f64(PROBES as f64 / rate.max(1) as f64);
        let publishers = (0..PROBES).map(|number| {
            let url = cluster.nodes[number % cluster.nodes.len()].http.clone();
            let (token, others, stop) = (cluster.token.clone(), others.clone(), stop.clone());
            tokio::spawn(async move {
                let mut seen = Seen { took: histogram()?, refused: 0 };
                let mut client = None;
                let mut tick = tokio::time::interval(pause);
                for at in (number..).step_by(PROBES) {
                    let due = tick.tick().await;
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let path = format!("/v1/terminals/{}/messages", others[at % others.len()]);
                    let body = Bytes::from_static(&[b'x'; 512]);
                    let answer = async {
                        let mut open = match client.take() {
                            Some(open) => open,
                            None => connect(&url).await?,
                        };
                        let answer = open.send("POST", &path, &token, &[], body).await?;
                        anyhow::Ok((open, answer))
                    };
                    // A node that is killed breaks its connections.
                    match answer.await {
                        Ok((open, answer)) => {
                            client = Some(open);
                            match answer.status.as_u16() {
                                201 => record(&mut seen.took, due.elapsed()),
                                _ => seen.refused += 1,
                            }
                        }
                        Err(_) => seen.refused += 1,
                    }
                }
                Ok(seen)
            })
        });
        let publishers = publishers.collect();
        Probe { stop, publishers }
    }

    async fn stop(self) -> anyhow::Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Seen { took: histogram()?, refused: 0 };
        for publisher in self.publishers {
            let seen = publisher.await??;
            all.took.add(seen.took)?;
            all.refused += seen.refused;
        }
        Ok(all)
    }
}
