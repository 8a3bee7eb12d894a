//! The command line: what each command takes. One file a command.

mod bench;
pub(crate) mod certs;
mod check;
mod client;
mod cluster;
mod dev;
mod doctor;
mod node;
mod output;
mod publish;
mod status;
mod terminal;
mod terminals;

use clap::{CommandFactory, Parser, Subcommand};

use crate::fail_points;

/// A distributed push cluster: idle terminals hold no connection, are woken by a datagram, connect to any node,
/// receive their push and go.
#[derive(Debug, Parser)]
#[command(name = "reveille", version = fail_points::VERSION, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a whole cluster on this machine, and show a push waking a sleeping terminal.
    Dev(dev::Dev),
    /// Run one node.
    Node(node::NodeArgs),
    /// Be a terminal: listen, and print what comes.
    Terminal(terminal::TerminalArgs),
    /// Publish one push.
    Publish(publish::Publish),
    /// List the terminals of the service list.
    Terminals(terminals::TerminalsArgs),
    /// Show how a node sees the cluster.
    Status(status::StatusArgs),
    /// See and change who belongs to the cluster.
    Cluster(cluster::ClusterArgs),
    /// Measure a cluster on this machine through its public faces.
    Bench(bench::Bench),
    /// Make the certificates of a cluster.
    Certs(certs::Certs),
    /// Check a configuration without starting anything.
    Config(check::ConfigArgs),
    /// Print completions for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Runs the command that the arguments name.
pub(crate) fn run() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Dev(dev) => dev.run(),
        Command::Node(node) => node.run(),
        Command::Terminal(terminal) => terminal.run(),
        Command::Publish(publish) => publish.run(),
        Command::Terminals(terminals) => terminals.run(),
        Command::Status(status) => status.run(),
        Command::Cluster(cluster) => cluster.run(),
        Command::Bench(bench) => bench.run(),
        Command::Certs(certs) => certs.run(),
        Command::Config(config) => config.run(),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "reveille", &mut std::io::stdout());
            Ok(())
        }
    }
}

/// The runtime that carries a command; `threads` for raft, links and sessions.
fn runtime(threads: usize) -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::COMMAND_LINE;
    use std::collections::BTreeSet;

    fn rows(command: &clap::Command, into: &mut BTreeSet<(String, String)>) {
        for argument in command.get_arguments() {
            if let (Some(variable), Some(flag)) = (argument.get_env(), argument.get_long()) {
                into.insert((variable.to_string_lossy().into_owned(), format!("--{flag}")));
            }
        }
        command.get_subcommands().for_each(|command| rows(command, into));
    }

    #[test]
    fn the_documentation_has_every_variable_and_no_other() {
        let mut known = BTreeSet::new();
        rows(&Cli::command(), &mut known);
        let text = include_str!("../../../docs/configuration.md");
        let documented = text.lines().filter_map(|line| {
            let (variable, rest) = line.strip_prefix("| `")?.split_once("` | `")?;
            Some((variable.to_owned(), rest.split_once('`')?.0.to_owned()))
        });
        assert_eq!(documented.collect::<BTreeSet<_>>(), known);
        // What is not in this list is taken for a setting, and refused.
        let variables: BTreeSet<_> = known.iter().map(|(variable, _)| variable.as_str()).collect();
        assert_eq!(variables, BTreeSet::from(COMMAND_LINE));
    }
}
