//! Logs and metrics: how they are set up, and the name of every metric that this crate counts.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context;
use metrics::{counter, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

/// Things that are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// Sessions that were not let in, by reason.
    SessionsRefused,
    /// Bytes that were no frame, by port.
    MalformedFrames,
    /// Publishes, by outcome.
    Publishes,
    /// Notifications, by outcome.
    Notifications,
    /// Answered notifications, by how they went out: `early` with the first packet (0-RTT), or after a `full` handshake.
    NotificationHandshakes,
    /// HTTP requests that were refused, by error.
    HttpRefused,
}

impl Count {
    fn name(self) -> &'static str {
        match self {
            Count::SessionsRefused => "reveille_sessions_refused_total",
            Count::MalformedFrames => "reveille_malformed_frames_total",
            Count::Publishes => "reveille_publishes_total",
            Count::Notifications => "reveille_notifications_total",
            Count::NotificationHandshakes => "reveille_notification_handshakes_total",
            Count::HttpRefused => "reveille_http_refused_total",
        }
    }

    /// One more.
    pub fn one(self, label: &'static str) {
        counter!(self.name(), "kind" => label).increment(1);
    }
}

/// Things that go up and down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gauge {
    /// Sessions that are online here.
    Sessions,
    /// Seconds until the first certificate ends that the node shows or trusts.
    CertificateExpires,
    /// Groups that this node leads.
    GroupsLed,
    /// Terminals that something waits for, at the leaders on this node.
    Waiting,
    /// Those of them that no notification reaches.
    Unreachable,
}

impl Gauge {
    fn name(self) -> &'static str {
        match self {
            Gauge::Sessions => "reveille_sessions",
            Gauge::CertificateExpires => "reveille_certificate_expires_seconds",
            Gauge::GroupsLed => "reveille_groups_led",
            Gauge::Waiting => "reveille_terminals_waiting",
            Gauge::Unreachable => "reveille_terminals_unreachable",
        }
    }

    /// Changes it.
    pub fn add(self, by: f64) {
        gauge!(self.name()).increment(by);
    }

    /// Sets it.
    pub fn set(self, to: f64) {
        gauge!(self.name()).set(to);
    }
}

/// Upper bounds of the buckets of durations, in seconds: from a sync of a good disk to the longest that anyone waits.
const SECONDS: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
/// How often what was recorded is put into its buckets: it takes memory until then, whether or not anyone asks.
const UPKEEP: Duration = Duration::from_secs(5);

/// Sets metrics up for the process. Must be called on a runtime, which then keeps them up.
pub fn init_metrics() -> anyhow::Result<PrometheusHandle> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
        .and_then(PrometheusBuilder::install_recorder)
        .context("metrics cannot be set up")?;
    let kept = handle.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(UPKEEP).await;
            kept.run_upkeep();
        }
    });
    Ok(handle)
}

/// How long a publish took, from the request to the answer.
pub fn publish_took(seconds: f64) {
    histogram!("reveille_publish_seconds").record(seconds);
}

/// Sets logging up: `level` as in `RUST_LOG`, lines of text or of JSON, to standard error.
pub fn init_logs(level: &str, json: bool) -> anyhow::Result<()> {
    // A bare level is ours; the consensus library says at `info` what only its authors need.
    let all = matches!(level, "trace" | "debug" | "warn" | "error" | "off") || level.contains(['=', ',']);
    let filter = EnvFilter::try_new(if all { level.to_owned() } else { format!("{level},openraft=error") })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let result = if json { builder.json().try_init() } else { builder.try_init() };
    result.map_err(|error| anyhow::anyhow!("logging cannot be set up: {error}"))
}
