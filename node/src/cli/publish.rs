//! `reveille publish`: one push, and what became of it.

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use clap::{Args, ValueEnum};

use super::client::Target;
use super::{output, runtime};

/// Publish one push. 201 means that it is on disk on a majority of nodes.
#[derive(Debug, Args)]
pub(super) struct Publish {
    /// A node's publisher URL, as http://127.0.0.1:7301.
    #[arg(long, env = "REVEILLE_URL")]
    url: String,
    /// The cluster's CA, for https.
    #[arg(long, visible_alias = "tls-ca")]
    ca: Option<PathBuf>,
    /// A token with the publish right.
    #[arg(long, env = "REVEILLE_TOKEN", hide_env_values = true)]
    token: String,
    /// The terminal.
    #[arg(long)]
    to: String,
    /// Lifetime, as 1h; 0s: only if the terminal can be woken now. Default: a day.
    #[arg(long, value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
    /// How soon it is worth waking the terminal.
    #[arg(long, value_enum)]
    urgency: Option<UrgencyArg>,
    /// Replaces a pending push of the same topic.
    #[arg(long)]
    topic: Option<String>,
    /// A key of your own: a repeated publish with it stores nothing new.
    #[arg(long)]
    idempotency_key: Option<String>,
    /// Wait until the terminal has confirmed it, or it ended otherwise.
    #[arg(long, value_enum)]
    wait: Option<WaitFor>,
    /// How long to wait.
    #[arg(long, default_value = "10s")]
    timeout: String,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// The payload; - reads it from standard input.
    body: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum UrgencyArg {
    VeryLow,
    Low,
    Normal,
    High,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum WaitFor {
    Acked,
}

impl Publish {
    pub(super) fn run(self) -> anyhow::Result<()> {
        runtime(1)?.block_on(self.publish())
    }

    async fn publish(self) -> anyhow::Result<()> {
        let body = match self.body.as_str() {
            "-" => {
                let mut body = Vec::new();
                std::io::stdin().read_to_end(&mut body).context("standard input")?;
                Bytes::from(body)
            }
            text => Bytes::from(text.to_owned()),
        };
        let mut headers = Vec::new();
        headers.extend(self.ttl.map(|ttl| ("TTL", ttl.as_secs().to_string())));
        headers.extend(self.urgency.and_then(|urgency| {
            urgency.to_possible_value().map(|value| ("Urgency", value.get_name().to_owned()))
        }));
        headers.extend(self.topic.map(|topic| ("Topic", topic)));
        headers.extend(self.idempotency_key.map(|key| ("Idempotency-Key", key)));
        let mut client = Target::parse(&self.url, self.ca.as_deref())?.connect().await?;
        let path = format!("/v1/terminals/{}/messages", self.to);
        let published = client.send("POST", &path, &self.token, &headers, body).await?.json()?;
        let message = published["message"].as_str().context("the answer names no message")?.to_owned();
        if self.wait.is_none() {
            return match self.json {
                true => output::json(&published),
                false => {
                    output::line(format!("stored {message}"));
                    Ok(())
                }
            };
        }
        let path = format!("/v1/messages/{message}?wait=acked&timeout={}", self.timeout);
        let status = client.send("GET", &path, &self.token, &[], Bytes::new()).await?.json()?;
        if self.json {
            output::json(&status)?;
        } else {
            output::line(format!("{} {message}", status["state"].as_str().unwrap_or("unknown")));
        }
        anyhow::ensure!(status["state"] == "acked", "not acked within {}", self.timeout);
        Ok(())
    }
}
