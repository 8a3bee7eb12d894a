//! `bench wake`: one push at a time to a terminal that is asleep, from the publish to its acknowledgement.

use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use reveille_terminal::{Builder, Event};
use serde_json::json;

use super::super::dev::cluster::DevCluster;
use super::super::dev::demo;
use super::{Report, connect, histogram, quantiles, record, usage};

/// Wake a sleeping terminal.
#[derive(Debug, Args)]
pub(super) struct Wake {
    /// Pushes.
    #[arg(long, default_value_t = 300)]
    count: usize,
    /// Bytes of a payload.
    #[arg(long, default_value_t = 512)]
    size: usize,
    /// The terminal keeps no TLS ticket: every session is a full handshake.
    #[arg(long)]
    no_resumption: bool,
}

impl Wake {
    pub(super) async fn run(&self, cluster: &DevCluster, report: &Report) -> anyhow::Result<()> {
        let servers: Vec<_> = cluster.nodes.iter().map(|node| node.session.clone()).collect();
        let mut terminal = Builder::new(servers, &cluster.ca, cluster.folder.join("bench-terminal"))
            .resumption(!self.no_resumption)
            .start()
            .await?;
        demo::asleep(&mut terminal).await?;
        let mut clients = Vec::new();
        for node in &cluster.nodes {
            clients.push((connect(&node.http).await?, connect(&node.http).await?));
        }
        let path = format!("/v1/terminals/{}/messages", terminal.id());
        let body = Bytes::from(vec![b'x'; self.size]);
        let (mut stored, mut delivered, mut acked, mut asleep) =
            (histogram()?, histogram()?, histogram()?, histogram()?);
        let me = std::process::id();
        let mut cpu = (0.0, 0.0);
        // A few to warm up: tickets, caches, addresses.
        for number in 0..self.count + 10 {
            if number == 10 {
                cpu = (usage::nodes_cpu(cluster)?, usage::cpu_seconds(me)?);
            }
            let turn = number % clients.len();
            let (publisher, waiter) = &mut clients[turn];
            let began = Instant::now();
            let publish = async {
                let published =
                    publisher.send("POST", &path, &cluster.token, &[], body.clone()).await?.json()?;
                let stored = began.elapsed();
                let message = published["message"].as_str().context("no message id")?.to_owned();
                let path = format!("/v1/messages/{message}?wait=acked&timeout=30s");
                let status = waiter.send("GET", &path, &cluster.token, &[], Bytes::new()).await?.json()?;
                anyhow::ensure!(status["state"] == "acked", "{status}");
                Ok((stored, began.elapsed()))
            };
            let receive = async {
                let mut at = Duration::ZERO;
                loop {
                    match terminal.next().await.context("the terminal has ended")? {
                        Event::Received(push) => {
                            at = began.elapsed();
                            push.confirm();
                        }
                        Event::Disconnected { .. } if at > Duration::ZERO => break,
                        _ => {}
                    }
                }
                Ok((at, began.elapsed()))
            };
            let ((stored_at, acked_at), (delivered_at, asleep_at)) = tokio::try_join!(publish, receive)?;
            if number >= 10 {
                record(&mut stored, stored_at);
                record(&mut delivered, delivered_at);
                record(&mut acked, acked_at);
                record(&mut asleep, asleep_at);
            }
        }
        let nodes = usage::nodes_cpu(cluster)? - cpu.0;
        let clients_cpu = usage::cpu_seconds(me)? - cpu.1;
        let each = |seconds: f64| json!(seconds * 1000.0 / self.count as f64);
        report.figures(
            "wake",
            &[
                ("pushes", json!(self.count)),
                ("resumption", json!(!self.no_resumption)),
                ("stored_ms", quantiles(&stored)),
                ("delivered_ms", quantiles(&delivered)),
                ("acked_ms", quantiles(&acked)),
                ("asleep_ms", quantiles(&asleep)),
                ("nodes_cpu_ms_each", each(nodes)),
                ("terminal_and_publisher_cpu_ms_each", each(clients_cpu)),
            ],
        )?;
        terminal.shutdown().await;
        Ok(())
    }
}
