//! `bench recovery`: a node with much data comes back, and another one takes its place: how long each takes, and what
//! publishers see of it.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use clap::Args;
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::super::client::Target;
use super::super::dev::cluster::DevCluster;
use super::{Report, connect, histogram, quantiles, record, register};

/// Restart and replace a node with much data.
#[derive(Debug, Args)]
pub(super) struct Recovery {
    /// Registered terminals.
    #[arg(long, default_value_t = 1_000_000)]
    terminals: usize,
    /// Pushes that wait, each for another terminal.
    #[arg(long, default_value_t = 100_000)]
    pending: usize,
    /// Restarts to measure, each after a kill -9.
    #[arg(long, default_value_t = 3)]
    restarts: usize,
    /// Publishes a second while a node is replaced, and before for comparison.
    #[arg(long, default_value_t = 200)]
    rate: usize,
}

/// The node that goes.
const VICTIM: u64 = 3;
/// Nothing here takes longer than this.
const PATIENCE: Duration = Duration::from_secs(300);
const PUBLISHERS: usize = 8;

impl Recovery {
    pub(super) async fn run(&self, cluster: &mut DevCluster, report: &Report) -> anyhow::Result<()> {
        ensure!(
            self.terminals >= 1000 && self.pending <= self.terminals,
            "more terminals than pushes, 1000 at least"
        );
        let terminals = Arc::new(register(cluster, self.terminals).await?);
        self.fill(cluster, &terminals).await?;
        let mut back = histogram()?;
        for _ in 0..self.restarts {
            cluster.kill(VICTIM)?;
            tokio::time::sleep(Duration::from_secs(3)).await;
            let began = Instant::now();
            cluster.start_again(VICTIM)?;
            cluster.ready().await?;
            record(&mut back, began.elapsed());
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
        report.figures(
            "recovery: restart",
            &[
                ("terminals", json!(self.terminals)),
                ("pending", json!(self.pending)),
                ("serving_after_ms", quantiles(&back)),
            ],
        )?;
        self.replace(cluster, &terminals, report).await
    }

    /// A push for each of the first terminals.
    async fn fill(&self, cluster: &DevCluster, terminals: &Arc<Vec<String>>) -> anyhow::Result<()> {
        const CLIENTS: usize = 64;
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let url = cluster.nodes[client % cluster.nodes.len()].http.clone();
                let (token, terminals, pending) = (cluster.token.clone(), terminals.clone(), self.pending);
                tokio::spawn(async move {
                    let mut connection = connect(&url).await?;
                    for at in (client..pending).step_by(CLIENTS) {
                        let path = format!("/v1/terminals/{}/messages", terminals[at]);
                        let body = Bytes::from_static(&[b'x'; 512]);
                        let answer = connection.send("POST", &path, &token, &[], body).await?;
                        ensure!(answer.status == 201, "{}", answer.status);
                    }
                    Ok(())
                })
            })
            .collect();
        for client in clients {
            client.await??;
        }
        Ok(())
    }

    async fn replace(
        &self,
        cluster: &mut DevCluster,
        terminals: &Arc<Vec<String>>,
        report: &Report,
    ) -> anyhow::Result<()> {
        let before = Load::start(self.rate, cluster, terminals);
        tokio::time::sleep(Duration::from_secs(10)).await;
        let before = before.stop().await?;
        cluster.kill(VICTIM)?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let during = Load::start(self.rate, cluster, terminals);
        let began = Instant::now();
        let mut newcomer = Newcomer::start(cluster)?;
        let settled = settled(cluster, &mut newcomer).await;
        let took = began.elapsed();
        let during = during.stop().await?;
        settled?;
        drop(newcomer);
        report.figures(
            "recovery: replace",
            &[
                ("settled_after_s", json!(took.as_secs_f64())),
                ("publish_ms_before", quantiles(&before)),
                ("publish_ms_during", quantiles(&during)),
            ],
        )
    }
}

/// Waits until the newcomer is up and nothing is on its way.
async fn settled(cluster: &DevCluster, newcomer: &mut Newcomer) -> anyhow::Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        let target = Target::parse(&cluster.nodes[0].admin, None)?;
        let overview: Value =
            target.connect().await?.send("GET", "/cluster", "", &[], Bytes::new()).await?.json()?;
        let up = |node: &Value| node["node"] == newcomer.id && node["up"] == true;
        if overview["settled"] == true
            && overview["nodes"].as_array().is_some_and(|nodes| nodes.iter().any(up))
        {
            return Ok(());
        }
        ensure!(newcomer.child.try_wait()?.is_none(), "the new node ended; see {}", newcomer.log);
        ensure!(Instant::now() < until, "not settled after {PATIENCE:?}: {overview}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The node that takes the victim's place, made as an operator makes it.
struct Newcomer {
    id: u64,
    child: Child,
    log: String,
}

impl Newcomer {
    fn start(cluster: &DevCluster) -> anyhow::Result<Newcomer> {
        let reveille = std::env::current_exe()?;
        let ports = cluster.network.ports(1, 4)?;
        let [peer, session, http, admin] = ports[..] else { anyhow::bail!("four ports") };
        let out = cluster.folder.join("newcomer");
        let made = Command::new(&reveille)
            .args(["cluster", "--json", "--url", &cluster.nodes[0].admin, "replace", &VICTIM.to_string()])
            .args(["--peer", &peer.to_string(), "--session", &session.to_string()])
            .args(["--http", &http.to_string(), "--admin", &admin.to_string()])
            .args(["--listen", "127.0.0.1", "--names", "localhost", "--ca"])
            .arg(&cluster.folder)
            .arg("--like")
            .arg(&cluster.nodes[0].config)
            .arg("--out")
            .arg(&out)
            .output()?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let made: Value = serde_json::from_slice(&made.stdout)?;
        let id = made["node"].as_u64().context("no id")?;
        let log = out.join("log.txt");
        let child = Command::new(&reveille)
            .args(["node", "--create", "--exit-with-stdin", "--log-level", "warn", "--config"])
            .arg(format!("node-{id}.toml"))
            .current_dir(&out)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log)?)
            .spawn()?;
        Ok(Newcomer { id, child, log: log.display().to_string() })
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A steady load through the nodes that stay.
struct Load {
    stop: watch::Sender<bool>,
    publishers: Vec<tokio::task::JoinHandle<anyhow::Result<Histogram<u64>>>>,
}

impl Load {
    fn start(rate: usize, cluster: &DevCluster, terminals: &Arc<Vec<String>>) -> Load {
        let (stop, stopped) = watch::channel(false);
        let pause = Duration::from_secs_f64(PUBLISHERS as f64 / rate.max(1) as f64);
        let publishers = (0..PUBLISHERS).map(|number| {
            let url = cluster.nodes[number % 2].http.clone();
            let (token, terminals, stopped) = (cluster.token.clone(), terminals.clone(), stopped.clone());
            tokio::spawn(async move {
                let mut client = connect(&url).await?;
                let mut took = histogram()?;
                let mut tick = tokio::time::interval(pause);
                for at in (number..).step_by(PUBLISHERS) {
                    // Latency counts from when it should have been sent.
                    let due = tick.tick().await;
                    if *stopped.borrow() {
                        break;
                    }
                    let path = format!("/v1/terminals/{}/messages", terminals[at * 997 % terminals.len()]);
                    let body = Bytes::from_static(&[b'x'; 512]);
                    let answer = client.send("POST", &path, &token, &[], body).await?;
                    ensure!(answer.status == 201, "{}", answer.status);
                    record(&mut took, due.elapsed());
                }
                Ok(took)
            })
        });
        Load { stop, publishers: publishers.collect() }
    }

    async fn stop(self) -> anyhow::Result<Histogram<u64>> {
        self.stop.send_replace(true);
        let mut all = histogram()?;
        for publisher in self.publishers {
            all.add(publisher.await??)?;
        }
        Ok(all)
    }
}
