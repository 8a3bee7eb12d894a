//! `reveille config check`: reads a configuration and says what is wrong with it.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::output;
use crate::config::Config;

/// Work with configurations.
#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Read a configuration with the environment over it, refuse unknown keys, and print what counts.
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
        output::line(toml::to_string(&config)?);
        Ok(())
    }
}
