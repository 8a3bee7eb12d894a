//! Logs and metrics: how they are set up, and the name of every metric that this crate counts.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use metrics::{Counter, counter, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing::subscriber::Interest;
use tracing_subscriber::filter::dynamic_filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// Things that are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// Sessions that were not let in, by reason.
    SessionsRefused,
    /// TLS handshakes of sessions that were done: `full`, or `resumed` by a ticket.
    SessionHandshakes,
    /// Bytes that were no frame, by port.
    MalformedFrames,
    /// Publishes, by outcome.
    Publishes,
    /// Notifications, by outcome.
    Notifications,
    /// Answered notifications, by how they went out: `early` with the first packet (0-RTT), `refused` so and again
    /// because the terminal had forgotten the ticket, or after a `full` handshake.
    NotificationHandshakes,
    /// Dials by which terminals find out how they are reached, by outcome.
    Probes,
    /// STUN datagrams at the anchor's port, by what became of them.
    Keepalives,
    /// Terminals that came by themselves and found pushes that no notification had announced, by `check_in`.
    NotificationPathBroken,
    /// HTTP requests that were refused, by error.
    HttpRefused,
}

const COUNTS: [Count; 10] = [
    Count::SessionsRefused,
    Count::SessionHandshakes,
    Count::MalformedFrames,
    Count::Publishes,
    Count::Notifications,
    Count::NotificationHandshakes,
    Count::Probes,
    Count::Keepalives,
    Count::NotificationPathBroken,
    Count::HttpRefused,
];
const OUTCOMES: [&str; 9] =
    ["answered", "silence", "wrong_key", "socket", "no_way", "no_binding", "forbidden", "budget", "busy"];
const KEEPALIVES: [&str; 11] = [
    "answered",
    "challenged",
    "taken",
    "budget",
    "not_stun",
    "malformed",
    "unknown_secret",
    "forged",
    "replayed",
    "full",
    "cut_off",
];

impl Count {
    fn name(self) -> &'static str {
        match self {
            Count::SessionsRefused => "reveille_sessions_refused_total",
            Count::SessionHandshakes => "reveille_session_handshakes_total",
            Count::MalformedFrames => "reveille_malformed_frames_total",
            Count::Publishes => "reveille_publishes_total",
            Count::Notifications => "reveille_notifications_total",
            Count::NotificationHandshakes => "reveille_notification_handshakes_total",
            Count::Probes => "reveille_probes_total",
            Count::Keepalives => "reveille_keepalives_total",
            Count::NotificationPathBroken => "reveille_notification_path_broken_total",
            Count::HttpRefused => "reveille_http_refused_total",
        }
    }

    /// The kinds that are known beforehand; of refused requests, there is one for each error.
    fn kinds(self) -> &'static [&'static str] {
        match self {
            Count::SessionsRefused => {
                &["crowded", "source", "late", "gone", "tls", "slow", "no_key", "not_enrolled"]
            }
            Count::SessionHandshakes => &["full", "resumed"],
            Count::MalformedFrames => &["session"],
            Count::Publishes => &["stored", "duplicate", "refused", "unavailable"],
            Count::Notifications | Count::Probes => &OUTCOMES,
            Count::NotificationHandshakes => &["early", "refused", "full"],
            Count::Keepalives => &KEEPALIVES,
            Count::NotificationPathBroken => &["check_in"],
            Count::HttpRefused => &[],
        }
    }

    /// One more.
    pub fn one(self, label: &'static str) {
        self.of(label).increment(1);
    }

    /// The counter itself: for what is counted so often that looking it up would be felt.
    pub fn of(self, label: &'static str) -> Counter {
        counter!(self.name(), "kind" => label)
    }
}

/// Things that go up and down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gauge {
    /// Sessions that are online here.
    Sessions,
    /// Connections of terminals that are no session yet: in the line, in TLS, or without a Welcome.
    SessionsConnecting,
    /// Seconds until the first certificate ends that the node shows or trusts.
    CertificateExpires,
    /// Groups that this node leads.
    GroupsLed,
    /// Terminals that something waits for, at the leaders on this node.
    Waiting,
    /// Those of them that no notification reaches.
    Unreachable,
    /// Terminals behind NAT whose bindings this node holds.
    Pinned,
}

impl Gauge {
    fn name(self) -> &'static str {
        match self {
            Gauge::Sessions => "reveille_sessions",
            Gauge::SessionsConnecting => "reveille_sessions_connecting",
            Gauge::CertificateExpires => "reveille_certificate_expires_seconds",
            Gauge::GroupsLed => "reveille_groups_led",
            Gauge::Waiting => "reveille_terminals_waiting",
            Gauge::Unreachable => "reveille_terminals_unreachable",
            Gauge::Pinned => "reveille_terminals_pinned",
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
    // What has not happened yet is told as such: an alarm on a metric that is not there is none.
    for count in COUNTS {
        count.kinds().iter().for_each(|kind| counter!(count.name(), "kind" => *kind).increment(0));
    }
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

/// The consensus library's heartbeats of a group. Those that are on their way when the group is shut down find nobody to tell,
/// and say so as an error.
const HEARTBEATS: &str = "openraft::core::heartbeat::worker";
static LEAVING: AtomicBool = AtomicBool::new(false);

/// The node shuts its groups down from now on.
pub fn leaving() {
    LEAVING.store(true, Ordering::Relaxed);
}

/// Asked again each time only of what is heard now and then: everything else stays decided once.
fn all_but_last_heartbeats<S: tracing::Subscriber>() -> impl Layer<S> + Send + Sync {
    dynamic_filter_fn(|event, _| is_heard(event.target(), LEAVING.load(Ordering::Relaxed)))
        .with_callsite_filter(|event| match event.target() == HEARTBEATS {
            true => Interest::sometimes(),
            false => Interest::always(),
        })
}

fn is_heard(target: &str, leaving: bool) -> bool {
    !leaving || target != HEARTBEATS
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
    let result = match json {
        true => builder.json().finish().with(all_but_last_heartbeats()).try_init(),
        false => builder.finish().with(all_but_last_heartbeats()).try_init(),
    };
    result.map_err(|error| anyhow::anyhow!("logging cannot be set up: {error}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_documentation_has_every_kind_and_no_other() {
        let text = include_str!("../../docs/api.md");
        for count in COUNTS.into_iter().filter(|count| *count != Count::HttpRefused) {
            let row =
                text.lines().find_map(|line| line.strip_prefix(&format!("| `{}` | kind: ", count.name())));
            let row = row.unwrap_or_else(|| panic!("{} is not in the table", count.name()));
            let documented: Vec<&str> = row.split_once(" |").unwrap().0.split(", ").collect();
            assert_eq!(documented, count.kinds(), "{}", count.name());
        }
    }

    #[test]
    fn heartbeats_are_heard_until_the_node_leaves() {
        assert!(is_heard(HEARTBEATS, false) && !is_heard(HEARTBEATS, true));
        assert!(is_heard("openraft::core::raft_core", true) && is_heard("reveille", true));
    }
}
