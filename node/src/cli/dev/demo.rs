//! The demonstration: a terminal sleeps, pushes wake it through random nodes, and each push's way is one line.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use rand::seq::IndexedRandom;
use reveille_terminal::{Builder, Event, Terminal};
use serde_json::json;

use super::super::client::Target;
use super::super::output;
use super::cluster::DevCluster;

/// Between two pushes: time for the terminal to fall asleep again.
const PAUSE: Duration = Duration::from_secs(3);
/// A push that takes longer than this is shown as such.
const PATIENCE: Duration = Duration::from_secs(20);

/// When each stage was, in milliseconds after the publish began.
#[derive(Debug, Default)]
struct Way {
    stored: Option<f64>,
    notified: Option<f64>,
    connected: Option<(f64, u64)>,
    delivered: Option<f64>,
    acked: Option<f64>,
    disconnected: Option<f64>,
}

/// Runs until `pushes` have been shown, or for ever.
pub(super) async fn run(cluster: &DevCluster, pushes: Option<u64>, as_json: bool) -> anyhow::Result<()> {
    let servers: Vec<_> = cluster.nodes.iter().map(|node| node.session.clone()).collect();
    let state = cluster.folder.join("demo-terminal");
    let mut terminal = Builder::new(servers, &cluster.ca, state).start().await?;
    asleep(&mut terminal).await?;
    if !as_json {
        output::line(format!("terminal {} is registered and asleep: it holds no connection", terminal.id()));
    }
    for number in 1..=pushes.unwrap_or(u64::MAX) {
        let node = cluster.nodes.choose(&mut rand::rng()).context("a cluster has nodes")?;
        match tokio::time::timeout(PATIENCE, push(&mut terminal, cluster, &node.http, number)).await {
            Ok(Ok(way)) => show(number, node.id, &way, as_json)?,
            Ok(Err(error)) => output::line(format!("push {number} through node {}: {error:#}", node.id)),
            Err(_) => output::line(format!(
                "push {number} through node {}: not through after {PATIENCE:?}",
                node.id
            )),
        }
        tokio::time::sleep(PAUSE).await;
    }
    terminal.shutdown().await;
    Ok(())
}

/// Waits until the terminal's first session is over.
pub(in crate::cli) async fn asleep(terminal: &mut Terminal) -> anyhow::Result<()> {
    let mut connected = false;
    loop {
        match terminal.next().await.context("the terminal has ended")? {
            Event::Connected { .. } => connected = true,
            Event::Disconnected { .. } if connected => return Ok(()),
            Event::Received(push) => push.confirm(),
            Event::Problem { what } => bail!(what),
            _ => {}
        }
    }
}

async fn push(terminal: &mut Terminal, cluster: &DevCluster, url: &str, number: u64) -> anyhow::Result<Way> {
    let mut client = Target::parse(url, None)?.connect().await?;
    let mut waiter = Target::parse(url, None)?.connect().await?;
    let mut way = Way::default();
    let began = Instant::now();
    let since = || began.elapsed().as_secs_f64() * 1000.0;
    let path = format!("/v1/terminals/{}/messages", terminal.id());
    let publish = async {
        let body = Bytes::from(format!("push {number}"));
        let published = client.send("POST", &path, &cluster.token, &[], body).await?.json()?;
        let stored = since();
        let message = published["message"].as_str().context("the answer names no message")?.to_owned();
        let path = format!("/v1/messages/{message}?wait=acked&timeout=15s");
        let status = waiter.send("GET", &path, &cluster.token, &[], Bytes::new()).await?.json()?;
        anyhow::ensure!(status["state"] == "acked", "it is {} and not acked", status["state"]);
        Ok::<_, anyhow::Error>((stored, since()))
    };
    tokio::pin!(publish);
    while way.disconnected.is_none() || way.acked.is_none() {
        tokio::select! {
            done = &mut publish, if way.acked.is_none() => {
                let (stored, acked) = done?;
                (way.stored, way.acked) = (Some(stored), Some(acked));
            }
            event = terminal.next() => match event.context("the terminal has ended")? {
                Event::Notified { .. } => way.notified = Some(since()),
                Event::Connected { node, .. } => way.connected = Some((since(), node.0)),
                Event::Received(push) => {
                    way.delivered = Some(since());
                    push.confirm();
                }
                Event::Disconnected { .. } => way.disconnected = Some(since()),
                Event::Problem { what } => bail!(what),
                _ => {}
            },
        }
    }
    Ok(way)
}

fn show(number: u64, node: u64, way: &Way, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return output::json(&json!({
            "event": "push", "number": number, "through": node, "stored_ms": way.stored, "notified_ms": way.notified,
            "connected_ms": way.connected.map(|(at, _)| at), "connected_to": way.connected.map(|(_, node)| node),
            "delivered_ms": way.delivered, "acked_ms": way.acked, "disconnected_ms": way.disconnected,
        }));
    }
    let mut parts = Vec::new();
    let mut part = |name: &str, at: Option<f64>, more: String| {
        if let Some(at) = at {
            parts.push(format!("{name} {at:.1}{}{more}", if parts.is_empty() { " ms" } else { "" }));
        }
    };
    part("stored", way.stored, String::new());
    part("notified", way.notified, String::new());
    let connected = way.connected.map(|(_, node)| format!(" (node {node})")).unwrap_or_default();
    part("connected", way.connected.map(|(at, _)| at), connected);
    part("delivered", way.delivered, String::new());
    part("acked", way.acked, String::new());
    part("disconnected", way.disconnected, String::new());
    output::line(format!("push {number} through node {node}: {}", parts.join(" · ")));
    Ok(())
}
