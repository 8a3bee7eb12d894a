//! `reveille terminals`: the ids of the service list, one a line; or one entry of it.

use std::path::PathBuf;

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use reveille_protocol::id::TerminalId;

use super::client::Target;
use super::{output, runtime};

/// List the tenant's terminals: their ids, or with --json their entries of the service list; or show one of them.
#[derive(Debug, Args)]
pub(super) struct TerminalsArgs {
    /// A node's publisher URL, as http://127.0.0.1:7301.
    #[arg(long, env = "REVEILLE_URL")]
    url: String,
    /// The cluster's CA, for https.
    #[arg(long, visible_alias = "tls-ca")]
    ca: Option<PathBuf>,
    /// A token with the read right.
    #[arg(long, env = "REVEILLE_TOKEN", hide_env_values = true)]
    token: String,
    /// Show this terminal's entry, as JSON, with how it is being notified while something waits for it.
    terminal: Option<TerminalId>,
    /// Print one JSON object a line.
    #[arg(long)]
    json: bool,
}

impl TerminalsArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        runtime(1)?.block_on(async {
            let mut client = Target::parse(&self.url, self.ca.as_deref())?.connect().await?;
            if let Some(terminal) = self.terminal {
                let path = format!("/v1/terminals/{terminal}");
                let answer = client.send("GET", &path, &self.token, &[], Bytes::new()).await?;
                return output::json(&answer.json()?);
            }
            let mut path = "/v1/terminals".to_owned();
            loop {
                let page = client.send("GET", &path, &self.token, &[], Bytes::new()).await?.json()?;
                for entry in page["terminals"].as_array().context("the answer lists no terminals")? {
                    match self.json {
                        true => output::json(entry)?,
                        false => output::line(entry["terminal"].as_str().unwrap_or("?")),
                    }
                }
                let Some(next) = page["next"].as_str() else { return Ok(()) };
                path = format!("/v1/terminals?after={next}");
            }
        })
    }
}
