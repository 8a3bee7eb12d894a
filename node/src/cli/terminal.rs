//! `reveille terminal`: a terminal on the command line, made of the SDK.

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use reveille_protocol::service_list::row::Linger;
use reveille_terminal::{Builder, Event};
use serde_json::json;

use super::{output, runtime};
use crate::{shutdown, telemetry};

/// Be a terminal: register, sleep without a connection, wake up for pushes and print them.
#[derive(Debug, Args)]
pub(super) struct TerminalArgs {
    /// Session ports of the cluster, as push.example.org:8443; a name stands for all of its addresses.
    #[arg(long, value_delimiter = ',', required = true)]
    server: Vec<String>,
    /// The cluster's CA.
    #[arg(long)]
    ca: PathBuf,
    /// Folder of the terminal's keys and memory; made if it is not there.
    #[arg(long)]
    state: PathBuf,
    /// How long to stay connected after the last push: 0, 30s, forever.
    #[arg(long, default_value = "0", value_parser = parse_linger)]
    linger: Linger,
    /// The tenant's enrolment token, for a terminal that the cluster does not know.
    #[arg(long, env = "REVEILLE_ENROLMENT", hide_env_values = true)]
    enrolment: Option<String>,
    /// Connect this often without being notified, as 6h, from a minute to 30 days; default: as the cluster asks.
    #[arg(long, value_parser = humantime::parse_duration)]
    check_in: Option<Duration>,
    /// End after so many pushes.
    #[arg(long)]
    count: Option<u64>,
    /// Print one JSON object a line.
    #[arg(long)]
    json: bool,
    /// Log level, as in RUST_LOG.
    #[arg(long, default_value = "warn")]
    log_level: String,
}

fn parse_linger(text: &str) -> Result<Linger, String> {
    match text {
        "0" => Ok(Linger::AtOnce),
        "forever" => Ok(Linger::Forever),
        text => {
            let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
            let seconds =
                u32::try_from(duration.as_secs()).map_err(|_| "too long; use forever".to_owned())?;
            Ok(if seconds == 0 { Linger::AtOnce } else { Linger::Seconds(seconds) })
        }
    }
}

impl TerminalArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        telemetry::init_logs(&self.log_level, false)?;
        runtime(1)?.block_on(self.live())
    }

    async fn live(self) -> anyhow::Result<()> {
        let mut builder = Builder::new(self.server, self.ca, self.state).linger(self.linger);
        if let Some(token) = self.enrolment {
            builder = builder.enrolment(token);
        }
        if let Some(period) = self.check_in {
            builder = builder.check_in(period);
        }
        let mut terminal = builder.start().await?;
        let id = terminal.id().to_string();
        let mut left = self.count;
        let signalled = shutdown::signalled();
        tokio::pin!(signalled);
        loop {
            // The last push is confirmed on the way out: the goodbye carries it.
            if left == Some(0) {
                break;
            }
            let event = tokio::select! {
                event = terminal.next() => event,
                _ = &mut signalled => break,
            };
            let Some(event) = event else {
                anyhow::bail!("the terminal has ended; its last message says why")
            };
            show(&id, &event, self.json)?;
            if let Event::Received(push) = event {
                push.confirm();
                left = left.map(|left| left - 1);
            }
        }
        terminal.shutdown().await;
        Ok(())
    }
}

fn show(id: &str, event: &Event, as_json: bool) -> anyhow::Result<()> {
    let (name, mut value, text) = match event {
        Event::Listening { address } => (
            "listening",
            json!({ "address": address.to_string() }),
            format!("terminal {id} listens on {address}"),
        ),
        Event::Notified { id: number, pending } => (
            "notified",
            json!({ "notification": number, "pending": pending }),
            format!("notified: {pending} pending"),
        ),
        Event::CheckIn => ("check_in", json!({}), "checking in".to_owned()),
        Event::Connected { node, address, epoch, pending } => (
            "connected",
            json!({ "node": node.0, "address": address.to_string(), "epoch": epoch.0, "pending": pending }),
            format!("connected to node {node} at {address}, {pending} pending"),
        ),
        Event::Received(push) => (
            "received",
            json!({
                "message": push.message.to_string(),
                "seq": push.seq.0,
                "body": STANDARD.encode(&push.body),
                "node": push.node.0,
                "channel": push.channel.0,
                "headers": push.headers,
                "maybe_seen": push.maybe_seen,
            }),
            format!(
                "push {}{}: {}",
                push.seq,
                if push.maybe_seen { " (maybe seen)" } else { "" },
                String::from_utf8_lossy(&push.body).escape_debug()
            ),
        ),
        Event::Reset { next } => ("reset", json!({ "next": next.0 }), format!("begins anew at push {next}")),
        Event::Disconnected { reason } => {
            ("disconnected", json!({ "reason": reason }), format!("disconnected: {reason}"))
        }
        Event::Problem { what } => ("problem", json!({ "what": what }), format!("problem: {what}")),
    };
    if !as_json {
        output::line(text);
        return Ok(());
    }
    if let Some(object) = value.as_object_mut() {
        object.insert("event".to_owned(), name.into());
        object.insert("terminal".to_owned(), id.into());
    }
    output::json(&value)
}
