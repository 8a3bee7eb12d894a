//! `reveille cluster limits`: what pushes and registrations may take. They are the cluster's, not a node's: they reach every
//! shard through its log.

use std::time::Duration;

use anyhow::Context;
use clap::Args;
use humantime::{format_duration, parse_duration};
use reveille_protocol::service_list::row::Settings;
use serde_json::json;

use super::super::output;
use super::Operator;

/// Those that are named are set; with none, all are shown.
#[derive(Debug, Args)]
pub(super) struct Limits {
    /// Bytes of a payload.
    #[arg(long)]
    max_payload: Option<u32>,
    /// Pushes that may wait for one terminal.
    #[arg(long)]
    max_pending: Option<u32>,
    /// Their bytes.
    #[arg(long)]
    max_pending_bytes: Option<u32>,
    /// TTL of a push that names none, as 1day.
    #[arg(long, value_parser = parse_duration)]
    default_ttl: Option<Duration>,
    /// The longest TTL; longer ones are cut to it.
    #[arg(long, value_parser = parse_duration)]
    max_ttl: Option<Duration>,
    /// How long a push with TTL 0 lives: for a notification, a connection and a delivery.
    #[arg(long, value_parser = parse_duration)]
    wake_window: Option<Duration>,
    /// How long it is remembered how pushes ended, and idempotency keys. Takes some 250 B of disk for each push.
    #[arg(long, value_parser = parse_duration)]
    memory_of_ends: Option<Duration>,
    /// How long a terminal stays registered without a sign of it.
    #[arg(long, value_parser = parse_duration)]
    registration_lifetime: Option<Duration>,
}

fn told(limits: &Settings) -> String {
    const DAY: u64 = 24 * 3600 * 1000;
    let time = |millis: u64| match millis.is_multiple_of(DAY) {
        true => format!("{}d", millis / DAY),
        false => format_duration(Duration::from_millis(millis)).to_string(),
    };
    let lines = [
        ("max-payload", format!("{} B", limits.max_payload)),
        ("max-pending", limits.max_pending.to_string()),
        ("max-pending-bytes", format!("{} B", limits.max_pending_bytes)),
        ("default-ttl", time(limits.default_ttl)),
        ("max-ttl", time(limits.max_ttl)),
        ("wake-window", time(limits.wake_window)),
        ("memory-of-ends", time(limits.memory_of_ends)),
        ("registration-lifetime", time(limits.registration_lifetime)),
    ];
    lines.map(|(name, value)| format!("{name:<22} {value}")).join("\n")
}

impl Limits {
    pub(super) async fn run(&self, operator: &Operator) -> anyhow::Result<()> {
        let millis = |time: Option<Duration>| time.map(|time| time.as_millis() as u64);
        let named = json!({
            "max_payload": self.max_payload,
            "max_pending": self.max_pending,
            "max_pending_bytes": self.max_pending_bytes,
            "default_ttl": millis(self.default_ttl),
            "max_ttl": millis(self.max_ttl),
            "wake_window": millis(self.wake_window),
            "memory_of_ends": millis(self.memory_of_ends),
            "registration_lifetime": millis(self.registration_lifetime),
        });
        let shown = named.as_object().is_some_and(|named| named.values().all(serde_json::Value::is_null));
        let answer = match shown {
            true => operator.get("/cluster/limits").await?,
            false => operator.post("/cluster/limits", Some(named)).await?,
        };
        if operator.json {
            return output::json(&answer);
        }
        let limits: Settings = serde_json::from_value(answer).context("the node is of another version")?;
        output::line(told(&limits));
        Ok(())
    }
}
