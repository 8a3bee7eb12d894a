//! `bench deliver`: pushes to terminals that stay connected, closed loop, each push from its publish to the
//! application.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use reveille_terminal::{Builder, Event, Linger};
use serde_json::json;

use super::super::dev::cluster::DevCluster;
use super::{Report, connect, histogram, quantiles, record, usage};

/// Deliver to connected terminals.
#[derive(Debug, Args)]
pub(super) struct Deliver {
    /// Connected terminals.
    #[arg(long, default_value_t = 64)]
    terminals: usize,
    /// Publishes on their way at once.
    #[arg(long, default_value_t = 64)]
    in_flight: usize,
    /// Bytes of a payload; at least 20.
    #[arg(long, default_value_t = 512)]
    size: usize,
    /// How long to measure.
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    time: Duration,
}

impl Deliver {
    pub(super) async fn run(&self, cluster: &DevCluster, report: &Report) -> anyhow::Result<()> {
        let servers: Vec<_> = cluster.nodes.iter().map(|node| node.session.clone()).collect();
        let sent: Arc<Mutex<HashMap<u64, Instant>>> = Arc::default();
        let took = Arc::new(Mutex::new(histogram()?));
        let mut ids = Vec::new();
        let mut tasks = Vec::new();
        for number in 0..self.terminals {
            let state = cluster.folder.join(format!("bench-terminal-{number}"));
            let mut terminal =
                Builder::new(servers.clone(), &cluster.ca, state).linger(Linger::Forever).start().await?;
            while !matches!(terminal.next().await.context("a terminal has ended")?, Event::Connected { .. }) {
            }
            ids.push(terminal.id().to_string());
            let (sent, took) = (sent.clone(), took.clone());
            tasks.push(tokio::spawn(async move {
                while let Some(event) = terminal.next().await {
                    let Event::Received(push) = event else { continue };
                    let number = push.body.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes));
                    let began = number.and_then(|number| {
                        sent.lock().unwrap_or_else(PoisonError::into_inner).remove(&number)
                    });
                    if let Some(began) = began {
                        record(&mut took.lock().unwrap_or_else(PoisonError::into_inner), began.elapsed());
                    }
                    push.confirm();
                }
            }));
        }
        let ids = Arc::new(ids);
        let end = Instant::now() + self.time;
        let cpu = usage::nodes_cpu(cluster)?;
        let mut loops = Vec::new();
        for publisher in 0..self.in_flight {
            let url = cluster.nodes[publisher % cluster.nodes.len()].http.clone();
            let (token, ids, sent) = (cluster.token.clone(), ids.clone(), sent.clone());
            let (in_flight, size) = (self.in_flight, self.size.max(20));
            loops.push(tokio::spawn(async move {
                let mut client = connect(&url).await?;
                let mut published = 0u64;
                for number in (publisher as u64..).step_by(in_flight) {
                    if Instant::now() >= end {
                        break;
                    }
                    let mut body = vec![b'x'; size];
                    body[..8].copy_from_slice(&number.to_le_bytes());
                    sent.lock().unwrap_or_else(PoisonError::into_inner).insert(number, Instant::now());
                    let path = format!("/v1/terminals/{}/messages", ids[number as usize % ids.len()]);
                    let answer = client.send("POST", &path, &token, &[], Bytes::from(body)).await?;
                    if answer.status == 201 {
                        published += 1;
                    } else {
                        sent.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
                    }
                }
                anyhow::Ok(published)
            }));
        }
        let mut published = 0;
        for task in loops {
            published += task.await??;
        }
        let drained = Instant::now() + Duration::from_secs(10);
        while !sent.lock().unwrap_or_else(PoisonError::into_inner).is_empty() && Instant::now() < drained {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let cpu = usage::nodes_cpu(cluster)? - cpu;
        let missing = sent.lock().unwrap_or_else(PoisonError::into_inner).len();
        let took = took.lock().unwrap_or_else(PoisonError::into_inner).clone();
        tasks.iter().for_each(tokio::task::JoinHandle::abort);
        report.figures(
            "deliver",
            &[
                ("terminals", json!(self.terminals)),
                ("in_flight", json!(self.in_flight)),
                ("per_second", json!((published as f64 / self.time.as_secs_f64()).round() as u64)),
                ("publish_to_application_ms", quantiles(&took)),
                ("nodes_cpu_s_per_1000", json!(cpu * 1000.0 / published.max(1) as f64)),
                ("not_delivered_after_10s", json!(missing)),
            ],
        )
    }
}
