//! The command line: what each command takes and prints. One file a command. Decides nothing about a run.

mod attach;
mod canary;
mod check;
mod doctor;
mod fail_points;
mod list;
pub(crate) mod live;
mod made;
pub(crate) mod output;
mod plan;
mod replay;
mod report;
mod run;
mod score;
mod seeds;
mod shrink;
mod source;
mod threads;
mod view;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use reveille_chaos::check::Verdict;
use reveille_chaos::scenario;

/// Break Reveille, and judge what happened.
///
/// A scenario says what is done to a cluster while it works. A run leaves a history, and checkers judge the history: each
/// names the lines that prove what it found. docs/chaos.md begins with a first run in five minutes.
#[derive(Debug, Parser)]
#[command(
    name = "chaos",
    version,
    after_help = "Exit codes: 0 PASS, 1 FAIL, 2 UNKNOWN (never a pass), 3 HARNESS trouble."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a scenario on real nodes on this machine, in simulation, or on your own cluster, and judge what happened.
    Run(run::RunArgs),
    /// Undo what a run on your own cluster left that died.
    Heal(attach::HealArgs),
    /// Do again what a run did.
    Replay(replay::ReplayArgs),
    /// Make a run that failed smaller, as long as the same checker fails, and tell its story.
    Shrink(shrink::ShrinkArgs),
    /// Judge a history.
    Check(check::CheckArgs),
    /// Draw a run: one HTML file that opens at the first violation.
    Report(report::ReportArgs),
    /// Plant bugs in the simulation, and see that each is found.
    Canary(canary::CanaryArgs),
    /// Have everything happen once that can happen at a fail point, in the simulation, and judge each run.
    FailPoints(fail_points::FailPointsArgs),
    /// Run a grid of faults and workloads, and say as one number how well the cluster does under them.
    Score(score::ScoreArgs),
    /// Show what a scenario does, by a seed, without starting anything.
    Plan(plan::PlanArgs),
    /// List scenarios, kinds of faults, targets, workloads and checkers, one line each.
    List(list::ListArgs),
    /// Print the JSON schema of scenarios.
    Schema,
    /// Say which faults this machine can do, and why not the others.
    Doctor(doctor::DoctorArgs),
}

/// Runs the command that the arguments name.
pub fn run() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(run) => run.run(),
        Command::Heal(heal) => heal.run(),
        Command::Replay(replay) => replay.run(),
        Command::Shrink(shrink) => shrink.run(),
        Command::Check(check) => check.run(),
        Command::Report(report) => report.run(),
        Command::Canary(canary) => canary.run(),
        Command::FailPoints(fail_points) => fail_points.run(),
        Command::Score(score) => score.run(),
        Command::Plan(plan) => plan.run(),
        Command::List(list) => list.run(),
        Command::Schema => output::json(&scenario::schema()).map(|()| Verdict::Pass),
        Command::Doctor(doctor) => doctor.run(),
    };
    match outcome {
        Ok(verdict) => ExitCode::from(verdict.exit_code()),
        Err(error) => {
            output::complain(format!("error: {error:#}"));
            ExitCode::from(Verdict::Harness.exit_code())
        }
    }
}
