//! `reveille node`: one node, until a signal.

use std::path::PathBuf;

use clap::Args;

use super::runtime;
use crate::config::Config;
use crate::ending::Final;
use crate::{assemble, fail_points, shutdown, telemetry};

/// Run one node of a cluster until SIGTERM or SIGINT. It leaves gently: terminals are told to go elsewhere.
#[derive(Debug, Args)]
pub(super) struct NodeArgs {
    /// The node's configuration; see `reveille config check`.
    #[arg(long, env = "REVEILLE_CONFIG")]
    config: PathBuf,
    /// Make the node's data folder if there is none. Safe to give always: the cluster does not let a node in whose data
    /// was lost.
    #[arg(long)]
    create: bool,
    /// End when standard input does: for a parent that may be killed.
    #[arg(long, hide = true)]
    exit_with_stdin: bool,
    /// Log level, as in RUST_LOG; over the configuration's.
    #[arg(long)]
    log_level: Option<String>,
}

/// Threads of the node's runtime, which carries raft and links: half of the processors, up to so many. Sessions,
/// notifications, HTTP, the log and the tables have threads of their own, and a message that stays on a thread is cheaper than
/// one that wakes another.
const MAX_THREADS: usize = 8;

impl NodeArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let runtime = runtime((processors / 2).clamp(1, MAX_THREADS))?;
        let outcome = runtime.block_on(async {
            // Before anything that takes time: until then SIGHUP ends the process.
            let hangups = shutdown::hangups()?;
            let config = Config::load(&self.config).map_err(Final::of)?;
            config.may_begin().map_err(Final::of)?;
            let level = self.log_level.as_ref().unwrap_or(&config.log.level);
            telemetry::init_logs(level, config.log.json)?;
            fail_points::follow(config.node)?;
            let stop = async {
                let parent = async {
                    if self.exit_with_stdin {
                        shutdown::parent_gone().await;
                    } else {
                        std::future::pending().await
                    }
                };
                tokio::select! {
                    signalled = shutdown::signalled() => {
                        if let Err(error) = signalled {
                            tracing::error!(%error, "signals cannot be received; ending");
                        }
                    }
                    () = parent => {}
                }
            };
            assemble::run(config, self.create, Some(hangups), stop).await
        });
        // Not dropped: that would wait for a read of standard input that may never end.
        runtime.shutdown_background();
        outcome
    }
}
