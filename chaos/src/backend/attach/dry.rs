//! A dry run: what a run would do when and to whom, and whether it could. Touches nothing: it reads files, asks endpoints,
//! and looks for programs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reveille_chaos::plan::{Plan, plan};
use reveille_chaos::scenario::{Fault, Role, Scenario, Target};

use super::hooks::{Hooks, quoted};
use super::victims::Victims;
use super::{By, Cluster, by, checks, journal, rate};
use crate::cli::output;

/// So many strikes are told; a plan may have thousands.
const TOLD: usize = 200;

/// Says it all; whether a run could begin.
///
/// # Errors
/// If the journal cannot be read.
pub(crate) async fn dry(cluster: &Arc<Cluster>, scenario: &Scenario, seed: u64) -> anyhow::Result<bool> {
    output::line(format!(
        "{}: a dry run of {} · seed {seed}; nothing is touched",
        cluster.name, scenario.name
    ));
    // No hook runs, so nothing is ever written there.
    let hooks = Hooks::new(cluster.clone(), PathBuf::new());
    told(cluster, &hooks, scenario, &plan(scenario, seed));
    let mut could = true;
    for look in checks::all(cluster, &hooks, scenario).await {
        let what = look.what;
        match look.wrong {
            None => output::line(format!("yes {what}")),
            Some(wrong) => {
                could = false;
                output::line(format!("no  {what}: {wrong}"));
            }
        }
    }
    let left = journal::look(&cluster.journal)?;
    if !left.is_empty() {
        output::line(format!(
            "    a run left {} faults and {} terminals, or goes on: the next run, or `chaos heal`, undoes them",
            left.deeds.len(),
            left.terminals.len()
        ));
    }
    match could {
        true => output::line(format!("to do it: --confirm {}", cluster.name)),
        false => output::line("it could not be done: see the lines with `no`"),
    }
    Ok(could)
}

fn told(cluster: &Cluster, hooks: &Hooks, scenario: &Scenario, plan: &Plan) {
    let load = &scenario.workload;
    output::line(format!(
        "  {} terminals of its own are enrolled, and {} publishes a second go to them, for {}; they are {}",
        load.terminals,
        rate(load),
        humantime::format_duration(scenario.length()),
        match cluster.admin_token {
            Some(_) => "unregistered at the end",
            None => "unregistered at the end only if the token may do that: there is no admin_token",
        }
    ));
    let faults: Vec<&Fault> = scenario.faults().collect();
    for strike in plan.strikes.iter().take(TOLD) {
        let at = Duration::from_micros(strike.at_us).as_secs_f64();
        let lasts = strike.until_us.map(|until| Duration::from_micros(until - strike.at_us).as_secs_f64());
        let lasts = lasts.map_or(String::new(), |lasts| format!(" for {lasts:.1} s"));
        output::line(format!("  t={at:<7.1} {} of {}{lasts}", strike.kind.name(), strike.target));
        commands(cluster, hooks, faults[strike.fault]);
    }
    if plan.strikes.len() > TOLD {
        output::line(format!("  and {} more", plan.strikes.len() - TOLD));
    }
    for armed in &plan.armed {
        let (when, kind) = (armed.when.name(), armed.kind.name());
        output::line(format!("  when {when}, {} times at most: {kind} of {}", armed.times, armed.target));
        commands(cluster, hooks, faults[armed.fault]);
    }
    let limits = &cluster.limits;
    output::line(format!(
        "  never more than {} of {} nodes at once, none for longer than {}",
        limits.nodes,
        cluster.nodes.len(),
        limits.fault
    ));
    if cluster.hooks.get("logs").is_none() && scenario.expect().claims.iter().any(|claim| claim == "C16") {
        output::line(
            "  its verdict will be UNKNOWN at best: it claims C16 (logs), and there is no hook `logs`",
        );
    }
}

/// The commands of a fault, where it is known whom it hits; else those for the first nodes, as an example.
fn commands(cluster: &Cluster, hooks: &Hooks, fault: &Fault) {
    let Some(By::Hooks(does, undoes)) = by(fault.kind) else { return };
    let ids = cluster.ids();
    let place = |role: &Role| match role {
        Role::Node(number) => ids.get(*number as usize - 1).copied(),
        _ => None,
    };
    let known =
        |target: &Option<Target>| -> Option<Vec<u64>> { target.as_ref()?.0.iter().map(place).collect() };
    let (example, victims) = match &fault.target {
        Some(_) => {
            let known = known(&fault.target);
            (known.is_none(), Victims::Nodes(known.unwrap_or_else(|| ids.iter().take(1).copied().collect())))
        }
        None => {
            let ends = known(&fault.from).zip(known(&fault.to));
            let example = ends.is_none();
            let first =
                || (ids.iter().take(1).copied().collect(), ids.iter().skip(1).take(1).copied().collect());
            let (from, to): (Vec<u64>, Vec<u64>) = ends.unwrap_or_else(first);
            let ways = from.iter().flat_map(|from| to.iter().map(move |to| (*from, *to)));
            (example, Victims::Ways(ways.filter(|(from, to)| from != to).collect()))
        }
    };
    let example = if example { "as of" } else { "of" };
    for on in victims.ons(fault.kind) {
        let whom = super::undo::words(on);
        for hook in [does, undoes] {
            let command = quoted(&hooks.command(hook, on, fault.share).unwrap_or_default());
            output::line(format!("            {hook} ({example} {whom}): {command}"));
        }
    }
}
