//! `chaos list`: what there is, a line each.

use anyhow::Context;
use clap::{Args, ValueEnum};
use reveille_chaos::check::{CHECKERS, Verdict};
use reveille_chaos::scenario::{self, Act, KINDS, Kind, ROLES, When, Work, shipped};
use reveille_protocol::fail_point::{Action, Point};

use super::output;
use crate::backend::proc::shim::LYING_DISK;
use crate::backend::sim::canaries::{CANARIES, Planted};
use crate::backend::{attach, compose, proc, sim};

/// List what there is, one line each. `[proc]`: the process backend of this build does it, `[sim]`: the simulation
/// does, `[compose]`: containers do, `[attach]`: your own cluster's hooks can.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Only these.
    #[arg(value_enum)]
    what: Option<What>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    Scenarios,
    Faults,
    Targets,
    Events,
    Workloads,
    Checkers,
    Points,
    Canaries,
}

impl ListArgs {
    pub(super) fn run(self) -> anyhow::Result<Verdict> {
        for what in What::value_variants() {
            if self.what.is_some_and(|only| only != *what) {
                continue;
            }
            if self.what.is_none() {
                let name = what.to_possible_value().map(|value| value.get_name().to_owned());
                output::line(format!("{}:", name.unwrap_or_default()));
            }
            list(*what)?;
        }
        Ok(Verdict::Pass)
    }
}

/// Which backends do it.
fn marks(does: &[(&str, bool)]) -> String {
    does.iter().filter(|(_, does)| *does).map(|(name, _)| format!(" [{name}]")).collect()
}

fn list(what: What) -> anyhow::Result<()> {
    let line = |name: &str, about: &str| output::line(format!("  {name:30} {about}"));
    match what {
        What::Scenarios => {
            for (name, text) in shipped::SHIPPED {
                let scenario = scenario::load(&format!("{name}.toml"), text).context("a shipped scenario")?;
                let can = [
                    ("proc", proc::cannot(&scenario).is_empty()),
                    ("sim", sim::cannot(&scenario).is_empty()),
                    ("compose", compose::cannot(&scenario).is_empty()),
                ];
                line(name, &format!("{}{}", scenario.about, marks(&can)));
            }
        }
        What::Faults => KINDS.iter().for_each(|kind| {
            let hooked = Kind::find(kind.name).is_some_and(attach::does);
            let sim = sim::does(kind.name);
            // Containers have every hook there is.
            let does = [("proc", kind.proc), ("sim", sim), ("compose", hooked), ("attach", hooked)];
            line(kind.name, &format!("{}{}", kind.about, marks(&does)));
        }),
        What::Targets => ROLES.iter().for_each(|(name, about)| line(name, about)),
        What::Events => When::ALL.iter().for_each(|when| line(when.name(), "")),
        What::Workloads => Work::ALL.iter().for_each(|(_, name, about)| line(name, about)),
        What::Checkers => CHECKERS
            .iter()
            .for_each(|checker| line(&format!("{} {}", checker.id, checker.name), checker.definition)),
        What::Points => Point::ALL.iter().for_each(|point| {
            let fate = if point.ends(Action::Error) { "error, which ends its node" } else { "error" };
            let name = |act: &Act| if *act == Act::Error { fate } else { act.name() };
            let acts: Vec<&str> = Act::ALL.iter().filter(|act| act.fits(*point)).map(name).collect();
            let start = match (point.is_of_starting(), point.is_of_running()) {
                (true, true) => "; also in a start",
                (true, false) => "; only in a start",
                (false, _) => "",
            };
            line(point.name(), &format!("{}: {}{start}", point.about(), acts.join(", ")));
        }),
        What::Canaries => {
            CANARIES.iter().for_each(|Planted { name, checker, scenario: (scenario, _), about, .. }| {
                line(name, &format!("{about}: found by {checker}, in {scenario} [sim]"));
            });
            line(
                LYING_DISK,
                "disks say that they have synced, and have not: found by C1 or C16, in power-all [proc]",
            );
        }
    }
    Ok(())
}
