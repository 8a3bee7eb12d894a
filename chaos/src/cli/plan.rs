//! `chaos plan`: what a scenario does by a seed.

use std::time::Duration;

use clap::Args;
use reveille_chaos::check::Verdict;
use reveille_chaos::plan::{Plan, plan};
use reveille_chaos::scenario::Scenario;

use super::{output, source};

/// Show what a scenario does, by a seed. The scenario is checked whole; nothing is started.
#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// A scenario's file, or the name of one that came with the program.
    scenario: String,
    /// What all draws come from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

impl PlanArgs {
    pub(super) fn run(self) -> anyhow::Result<Verdict> {
        let (scenario, _) = source::scenario(&self.scenario)?;
        let plan = plan(&scenario, self.seed);
        match self.json {
            true => output::json(&plan)?,
            false => print(&scenario, &plan),
        }
        Ok(Verdict::Pass)
    }
}

fn print(scenario: &Scenario, plan: &Plan) {
    let phases = &scenario.phases;
    output::line(format!("{}: {}", scenario.name, scenario.about));
    output::line(format!(
        "seed {} · {} nodes · warmup {}, chaos {}, heal {}, drain up to {}",
        plan.seed, scenario.cluster.nodes, phases.warmup, phases.chaos, phases.heal, phases.drain
    ));
    let time = |us: u64| format!("{:.3}", Duration::from_micros(us).as_secs_f64());
    for strike in &plan.strikes {
        let until = strike.until_us.map_or(String::new(), |until| format!(" until {}", time(until)));
        output::line(format!("t={:>9} {} {}{until}", time(strike.at_us), strike.kind.name(), strike.target));
    }
    for armed in &plan.armed {
        let (when, times) = (armed.when.name(), armed.times);
        output::line(format!("when {when}, up to {times} times: {} {}", armed.kind.name(), armed.target));
    }
    if !plan.left_out.is_empty() {
        let kinds: Vec<&str> = plan.left_out.iter().map(|kind| kind.name()).collect();
        output::line(format!("left out by this seed: {}", kinds.join(", ")));
    }
    if plan.strikes.is_empty() && plan.armed.is_empty() {
        output::line("no fault");
    }
}
