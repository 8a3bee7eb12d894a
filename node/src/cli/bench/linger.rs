//! `bench linger`: a terminal that gets a push every few seconds, leaving at once and with a linger that it learns: what
//! each way costs in wakes and open sessions, and how soon the pushes arrive.

use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use reveille_protocol::service_list::row::Linger;
use reveille_terminal::{Builder, Event};
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::super::dev::cluster::DevCluster;
use super::super::dev::demo;
use super::super::terminal::LEARNED;
use super::{Report, connect, histogram, quantiles, record, usage};

/// Push to a terminal every few seconds.
#[derive(Debug, Args)]
pub(super) struct Hot {
    /// From one push to the next.
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    every: Duration,
    /// Pushes that are measured, each way.
    #[arg(long, default_value_t = 60)]
    pushes: usize,
    /// Pushes before that, by which the linger is learned.
    #[arg(long, default_value_t = 15)]
    before: usize,
}

/// A publish that a node could not take on is tried again after this.
const AGAIN: Duration = Duration::from_millis(100);
/// A push that takes longer has got lost.
const PATIENCE: Duration = Duration::from_secs(30);

impl Hot {
    pub(super) async fn run(&self, cluster: &DevCluster, report: &Report) -> anyhow::Result<()> {
        for (name, learned) in [("linger: at once", false), ("linger: learned", true)] {
            self.measure(cluster, report, name, learned).await?;
        }
        Ok(())
    }

    async fn measure(
        &self,
        cluster: &DevCluster,
        report: &Report,
        name: &str,
        learned: bool,
    ) -> anyhow::Result<()> {
        let servers: Vec<_> = cluster.nodes.iter().map(|node| node.session.clone()).collect();
        let builder = Builder::new(servers, &cluster.ca, cluster.folder.join(format!("bench-{learned}")));
        let builder = match learned {
            true => builder.linger_learned(LEARNED),
            false => builder.linger(Linger::AtOnce),
        };
        let mut terminal = builder.start().await?;
        demo::asleep(&mut terminal).await?;
        let path = format!("/v1/terminals/{}/messages", terminal.id());
        let mut ticks = interval(self.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut delivered, mut wakes) = (histogram()?, 0);
        let (mut open, mut connected) = (Duration::ZERO, None);
        let (mut nodes, mut began) = (0.0, Instant::now());
        for number in 0..self.before + self.pushes {
            // What happens until the next push belongs to this one: the session may end meanwhile.
            loop {
                let event = tokio::select! {
                    _ = ticks.tick() => break,
                    event = terminal.next() => event.context("the terminal has ended")?,
                };
                if let (Event::Disconnected { .. }, Some(since)) = (event, &mut connected) {
                    open += Instant::elapsed(since);
                    connected = None;
                }
            }
            if number == self.before {
                (delivered, wakes, open) = (histogram()?, 0, Duration::ZERO);
                (nodes, began) = (usage::nodes_cpu(cluster)?, Instant::now());
                connected = connected.map(|_| began);
            }
            // Nodes close connections that are idle for some seconds.
            let mut publisher = connect(&cluster.nodes[number % cluster.nodes.len()].http).await?;
            let published = Instant::now();
            let publish = async {
                loop {
                    let body = Bytes::from_static(b"hot");
                    let answer = publisher.send("POST", &path, &cluster.token, &[], body).await?;
                    match answer.status.as_u16() {
                        201 => return Ok(()),
                        // A machine that others crowd: the push arrives later, which the figures show.
                        503 => tokio::time::sleep(AGAIN).await,
                        _ => anyhow::bail!("a publish was answered {}", answer.status),
                    }
                }
            };
            let receive = async {
                loop {
                    match terminal.next().await.context("the terminal has ended")? {
                        Event::Connected { .. } => {
                            wakes += 1;
                            connected = Some(Instant::now());
                        }
                        Event::Disconnected { .. } => {
                            open += connected.take().map_or(Duration::ZERO, |since| since.elapsed());
                        }
                        Event::Received(push) => {
                            push.confirm();
                            return Ok(published.elapsed());
                        }
                        _ => {}
                    }
                }
            };
            let both = async { tokio::try_join!(publish, receive) };
            let ((), took) = timeout(PATIENCE, both).await.context("a push did not arrive")??;
            record(&mut delivered, took);
        }
        ticks.tick().await;
        open += connected.map_or(Duration::ZERO, |since| since.elapsed());
        let each = |sum: f64| json!(sum / self.pushes as f64);
        report.figures(
            name,
            &[
                ("pushes", json!(self.pushes)),
                ("every_s", json!(began.elapsed().as_secs_f64() / self.pushes as f64)),
                ("wakes_each", each(f64::from(wakes))),
                ("open_s_each", each(open.as_secs_f64())),
                ("delivered_ms", quantiles(&delivered)),
                ("nodes_cpu_ms_each", each((usage::nodes_cpu(cluster)? - nodes) * 1000.0)),
            ],
        )?;
        terminal.shutdown().await;
        Ok(())
    }
}
