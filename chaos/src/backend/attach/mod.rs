//! A cluster that is its user's own: nodes are struck by hooks, the user's own commands, within limits that the user sets.
//! Terminals and publishers are this program's, and touch nobody else's. Nothing is done that was not written down before,
//! and all that is written down is undone.

mod checks;
mod cluster;
mod dry;
mod guard;
mod hooks;
mod journal;
mod run;
mod strike;
mod undo;
mod victims;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::ensure;
use futures::future::BoxFuture;
use reveille_chaos::plan;
use reveille_chaos::scenario::{Fault, Kind, Role, Scenario, Target, When, Work, Workload};

pub(crate) use self::cluster::Cluster;
pub(crate) use self::dry::dry;
pub(crate) use self::run::{Signals, begin, run};
use crate::backend::live::Run;

/// What a run needs besides its scenario and its cluster.
pub(crate) struct Options {
    /// What all draws come from.
    pub(crate) seed: u64,
    /// The run's folder, which is there and empty.
    pub(crate) out: PathBuf,
    /// Say nothing while it goes on.
    pub(crate) quiet: bool,
    /// What nodes show to who started them.
    pub(crate) inside: Option<Inside>,
}

/// What nodes show that this program has started itself.
pub(crate) struct Inside {
    /// Their data folders, in their order.
    pub(in crate::backend) data: Vec<PathBuf>,
    /// Goes on while the run does.
    pub(in crate::backend) watch: Box<dyn FnOnce(Arc<Run>) -> BoxFuture<'static, ()> + Send>,
}

/// What it can wait for.
const SEEN: [When; 3] = [When::LeaderChanged, When::NodeReady, When::Attached];

/// How it does a kind: by which hook, and by which that is undone; or by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Hooks(&'static str, &'static str),
    /// Asked of a node at its operator's listener.
    Operator,
    /// Done to this program's own terminals.
    Terminals,
}

/// `None`: it does not do this kind.
fn by(kind: Kind) -> Option<By> {
    Some(match kind.name() {
        "kill" | "restart" | "crash-loop" => By::Hooks("kill", "start"),
        "stop" => By::Hooks("stop", "start"),
        "pause" => By::Hooks("pause", "resume"),
        "cut" | "cut-one-way" => By::Hooks("cut", "heal"),
        "loss" => By::Hooks("loss", "heal"),
        "cpu" => By::Hooks("cpu", "release"),
        "move-leaders" | "snapshot" => By::Operator,
        "terminal-kill" | "ack-withheld" | "reconnect" => By::Terminals,
        _ => return None,
    })
}

/// Whether it does this kind, given hooks.
pub(crate) fn does(kind: Kind) -> bool {
    by(kind).is_some()
}

/// What a workload comes to: a broadcast is a publish to each terminal, and a retry two at once.
fn rate(load: &Workload) -> u64 {
    match load.kind {
        Work::Broadcast => (load.rate * load.terminals).div_ceil(load.publishers.max(1)),
        Work::Retry => load.rate * 2,
        Work::Push | Work::Idle => load.rate,
    }
}

/// Everything in a scenario that it cannot do, or may not do to this cluster, in words.
pub(crate) fn cannot(cluster: &Cluster, scenario: &Scenario, seed: u64) -> Vec<String> {
    let mut cannot: Vec<String> = scenario.faults().flat_map(|fault| fault_cannot(cluster, fault)).collect();
    let limits = &cluster.limits;
    let length = scenario.length();
    if length > limits.run.0 {
        cannot.push(format!(
            "it takes up to {}: [limits] run = \"{}\"",
            humantime::format_duration(length),
            limits.run
        ));
    }
    let within = [
        ("publishes a second", rate(&scenario.workload), limits.rate),
        ("terminals", scenario.workload.terminals, limits.terminals),
    ];
    for (name, value, most) in within {
        if value > most {
            let limit = if name == "terminals" { name } else { "rate" };
            cannot.push(format!("{value} {name}: [limits] {limit} = {most}"));
        }
    }
    let mut long: Vec<String> = Vec::new();
    let plan = plan::plan(scenario, seed);
    let faults: Vec<&Fault> = scenario.faults().collect();
    let strikes = plan.strikes.iter().filter_map(|strike| {
        let until = strike.until_us?;
        Some((strike.fault, std::time::Duration::from_micros(until - strike.at_us)))
    });
    let armed = plan.armed.iter().map(|armed| {
        (armed.fault, faults[armed.fault].lasts.map_or(scenario.phases.chaos.0, |lasts| lasts.0))
    });
    for (fault, lasts) in strikes.chain(armed) {
        let fault = faults[fault];
        let disturbs = matches!(by(fault.kind), Some(By::Hooks(..))) && fault.kind.name() != "restart";
        if disturbs && lasts > limits.fault.0 {
            long.push(format!(
                "{} of {}: it lasts longer than [limits] fault = \"{}\" allows; say `for`",
                fault.kind.name(),
                plan::target(fault),
                limits.fault
            ));
        }
    }
    long.dedup();
    cannot.extend(long);
    cannot
}

fn fault_cannot(cluster: &Cluster, fault: &Fault) -> Vec<String> {
    let missing = |hook: &str| match cluster.hooks.get(hook) {
        Some(_) => None,
        None => Some(format!("the cluster's file has no hook `{hook}`")),
    };
    let all = cluster.nodes.len() as u64;
    let mut cannot = kind_cannot(fault, all, &missing);
    if matches!(by(fault.kind), Some(By::Hooks(..))) {
        let most = |target: &Option<Target>| target.as_ref().map(|target| most(target, all));
        // Of a link, the smaller end is who is cut off from the others.
        let ends = [most(&fault.target), most(&fault.from), most(&fault.to)];
        let hit = ends.into_iter().flatten().min().unwrap_or(all);
        let allowed = cluster.limits.nodes;
        if hit > allowed {
            let what = format!("it hits {hit} of {all} nodes at once, and [limits] nodes = {allowed}");
            cannot.push(said(fault, &what));
        }
    }
    cannot
}

fn said(fault: &Fault, what: &str) -> String {
    format!("{} of {}: {what}", fault.kind.name(), plan::target(fault))
}

/// Everything about a fault that hooks cannot do to a cluster of so many nodes, whatever its limits; `missing` says why there
/// is no such hook.
pub(crate) fn kind_cannot(fault: &Fault, all: u64, missing: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
    let mut cannot = Vec::new();
    let mut no = |what: String| cannot.push(said(fault, &what));
    match by(fault.kind) {
        None => no("this is none of its kinds".to_owned()),
        Some(By::Hooks(does, undoes)) => [does, undoes].into_iter().filter_map(missing).for_each(&mut no),
        Some(By::Operator | By::Terminals) => {}
    }
    if let Some(when) = fault.when.filter(|when| !SEEN.contains(when)) {
        no(format!("it does not see {}", when.name()));
    }
    let targets = [&fault.target, &fault.from, &fault.to];
    for role in targets.into_iter().flatten().flat_map(|target| &target.0) {
        match role {
            Role::Anchor(_) | Role::HandoffSource | Role::HandoffTarget => {
                no(format!("it does not know who {role} is"));
            }
            Role::Publishers => no("its publishers do not die".to_owned()),
            Role::Terminals | Role::Terminal(_) if fault.from.is_some() => {
                no("it cuts nodes from nodes, not from terminals".to_owned());
            }
            Role::Node(number) if *number > all => no(format!("{role}: the cluster has {all} nodes")),
            _ => {}
        }
    }
    cannot
}

/// How many nodes these are at most.
fn most(target: &Target, all: u64) -> u64 {
    let one = |role: &Role| match role {
        Role::Minority => all.saturating_sub(1) / 2,
        Role::Majority => all / 2 + 1,
        Role::All => all,
        _ => 1,
    };
    let mut roles = target.0.clone();
    roles.sort_by_key(Role::to_string);
    roles.dedup();
    roles.iter().map(one).sum::<u64>().min(all)
}

/// Undoes what a run has left that is dead.
///
/// # Errors
/// If another one goes on, or something cannot be undone.
pub(crate) async fn heal(cluster: Arc<Cluster>) -> anyhow::Result<()> {
    let journal = undo::Shared::new(journal::Journal::open(&cluster.journal, &cluster.name)?);
    let hooks = hooks::Hooks::before(cluster.clone());
    let found = undo_left(&cluster, &hooks, &journal).await;
    hooks.forget();
    if !found? {
        crate::cli::output::line(format!("{}: nothing was left to be undone", cluster.name));
    }
    close(journal)
}

/// Whether there was anything.
async fn undo_left(cluster: &Cluster, hooks: &hooks::Hooks, journal: &undo::Shared) -> anyhow::Result<bool> {
    let (deeds, terminals) = {
        let journal = journal.lock();
        (journal.left.deeds.len(), journal.left.terminals.len())
    };
    if deeds + terminals == 0 {
        return Ok(false);
    }
    let say = |what: &str| crate::cli::output::line(what);
    say(&format!("{}: a run that is dead left {deeds} faults and {terminals} terminals", cluster.name));
    undo::deeds(hooks, journal, cluster.hooks.within.0 + 2 * hooks::GRACE, &say).await?;
    undo::terminals(cluster, journal, &say).await?;
    Ok(true)
}

fn close(journal: undo::Shared) -> anyhow::Result<()> {
    let journal = journal.into_inner();
    ensure!(journal.is_some(), "somebody still writes the journal");
    journal.map_or(Ok(()), journal::Journal::close)
}
