//! `reveille terminal`: a terminal on the command line, made of the SDK.

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, ValueEnum};
use reveille_protocol::service_list::row::Linger;
use reveille_terminal::{Builder, Class, Event};
use serde_json::json;

use super::{doctor, output, runtime};
use crate::{shutdown, telemetry};

/// Be a terminal: register, sleep without a connection, wake up for pushes and print them.
#[derive(Debug, Args)]
pub(super) struct TerminalArgs {
    /// `doctor`: find out how notifications reach this machine, say what that means, and end.
    #[arg(value_enum)]
    what: Option<What>,
    /// Of the doctor: also measure how long the network keeps a silent binding; takes up to 25 minutes.
    #[arg(long)]
    measure: bool,
    /// Session ports of the cluster, as push.example.org:8443; a name stands for all of its addresses.
    #[arg(long, value_delimiter = ',', required = true, value_parser = parse_server)]
    server: Vec<String>,
    /// The cluster's CA.
    #[arg(long, visible_alias = "tls-ca")]
    ca: PathBuf,
    /// Folder of the terminal's keys and memory; made if it is not there.
    #[arg(long)]
    state: PathBuf,
    /// How long to stay connected after the last push: 0, 30s, forever; learned: as long as the next push is worth it, by
    /// the gaps between those before, at most 2 minutes.
    #[arg(long, default_value = "0", value_parser = parse_linger)]
    linger: Stay,
    /// The tenant's enrolment token, for a terminal that the cluster does not know.
    #[arg(long, env = "REVEILLE_ENROLMENT", hide_env_values = true)]
    enrolment: Option<String>,
    /// Connect this often without being notified, as 6h, from a minute to 30 days; default: as the cluster asks.
    #[arg(long, value_parser = humantime::parse_duration)]
    check_in: Option<Duration>,
    /// Stay connected where no notification reaches the terminal; default: check in.
    #[arg(long)]
    stay_if_unreachable: bool,
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

/// Instead of being a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    Doctor,
}

fn parse_server(text: &str) -> Result<String, String> {
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
    match port.is_some_and(|port| port.parse::<u16>().is_ok()) {
        true => Ok(text.to_owned()),
        false => Err("it must be HOST:PORT, with the port for terminals".to_owned()),
    }
}

/// The longest linger that is learned.
pub(in crate::cli) const LEARNED: Duration = Duration::from_secs(120);

/// How long to stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stay {
    So(Linger),
    Learned,
}

fn parse_linger(text: &str) -> Result<Stay, String> {
    Ok(Stay::So(match text {
        "learned" => return Ok(Stay::Learned),
        "0" => Linger::AtOnce,
        "forever" => Linger::Forever,
        text => {
            let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
            let seconds =
                u32::try_from(duration.as_secs()).map_err(|_| "too long; use forever".to_owned())?;
            if seconds == 0 { Linger::AtOnce } else { Linger::Seconds(seconds) }
        }
    }))
}

impl TerminalArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        telemetry::init_logs(&self.log_level, false)?;
        runtime(1)?.block_on(self.live())
    }

    async fn live(self) -> anyhow::Result<()> {
        let mut builder =
            Builder::new(self.server, self.ca, self.state).stay_if_unreachable(self.stay_if_unreachable);
        builder = match self.linger {
            Stay::So(linger) => builder.linger(linger),
            Stay::Learned => builder.linger_learned(LEARNED),
        };
        if let Some(token) = self.enrolment {
            builder = builder.enrolment(token);
        }
        if let Some(period) = self.check_in {
            builder = builder.check_in(period);
        }
        let mut terminal = builder.start().await?;
        if self.what == Some(What::Doctor) {
            let examined = doctor::examine(&mut terminal, self.measure, self.json).await;
            terminal.shutdown().await;
            return examined;
        }
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
        Event::Reachable { class } => {
            let (name, how) = match class {
                Class::Untried => ("untried", "not known yet"),
                Class::Direct => ("direct", "by any node"),
                Class::Pinned => ("pinned", "by its anchor, through its NAT"),
                Class::None => ("none", "not at all: it stays connected or checks in"),
            };
            ("reachable", json!({ "class": name }), format!("notifications reach it {how}"))
        }
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
