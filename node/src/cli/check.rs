//! `reveille config check`: reads a configuration and the files of its certificates, and says what is wrong with them.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use super::output;
use crate::certificates;
use crate::config::Config;

/// Work with configurations.
#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Read a configuration with the environment over it, refuse unknown keys, look at its certificates and key, and print
    /// what counts. Opens no port, so the node may be running.
    Check {
        /// The file.
        #[arg(long, env = "REVEILLE_CONFIG")]
        config: PathBuf,
    },
}

impl ConfigArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let ConfigCommand::Check { config } = self.command;
        let config = Config::load(&config)?;
        config.may_begin().with_context(|| format!("configuration {}", config.file.display()))?;
        match certificates::check(&config) {
            Ok(end) => {
                output::line(toml::to_string(&config)?);
                for remark in config.remarks() {
                    output::line(format!("# {remark}"));
                }
                if let Some(end) = end {
                    output::line(format!("# the first certificate to end: {end}"));
                }
                Ok(())
            }
            Err(problems) => {
                bail!("configuration {}:\n  {}", config.file.display(), problems.join("\n  "))
            }
        }
    }
}
