//! What a run looks like while it goes on, in two lines, from what its recorder is told: the same on every backend. Draws
//! nothing, and knows no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use reveille_chaos::history::{Call, FaultStep, Observation, Phase, Result as Got, What};
use reveille_chaos::scenario::Phases;

/// Faults that are named; the others are counted.
const NAMED: usize = 3;
/// Microseconds.
const SECOND: u64 = 1_000_000;
/// A publish takes its time also where all is well; a shorter gap is none.
const GAP: u64 = 200_000;

/// See the module. All times are microseconds since the run began.
#[derive(Debug)]
pub(super) struct View {
    phases: Phases,
    /// The phase, and when it began.
    phase: Option<(Phase, u64)>,
    /// What is broken, by its number in the run.
    faults: BTreeMap<u64, String>,
    ready: BTreeMap<u64, bool>,
    /// Who leads each group.
    leaders: BTreeMap<u64, u64>,
    /// When a publish was acknowledged last; before the first one, when the load began.
    acknowledged: u64,
    /// Publishes, by their numbers: those that nobody has answered yet.
    open: BTreeSet<u64>,
    /// Publishes that were asked for, acknowledged, and given to an application: in the second that is on, and in the
    /// one before it.
    counts: [u64; 3],
    rates: [u64; 3],
    second: u64,
    /// When something was told last.
    pub(super) last: u64,
}

impl View {
    /// Of a run with these phases.
    pub(super) fn new(phases: Phases) -> View {
        View {
            phases,
            phase: None,
            faults: BTreeMap::new(),
            ready: BTreeMap::new(),
            leaders: BTreeMap::new(),
            acknowledged: 0,
            open: BTreeSet::new(),
            counts: [0; 3],
            rates: [0; 3],
            second: 0,
            last: 0,
        }
    }

    /// This happened then.
    pub(super) fn see(&mut self, at: u64, what: &What) {
        self.last = at;
        self.turn(at);
        match what {
            What::Invoke(invoke) if matches!(invoke.call, Call::Publish { .. }) => {
                self.counts[0] += 1;
                self.open.insert(invoke.op);
            }
            What::Ok { op, got: Got::Published { .. } } => {
                self.counts[1] += 1;
                self.acknowledged = at;
                self.open.remove(op);
            }
            What::Fail { op, .. } | What::Unknown { op, .. } => drop(self.open.remove(op)),
            What::Fault(fault) => match fault.step {
                FaultStep::Began => {
                    self.faults.insert(fault.id, format!("{} {}", fault.kind, fault.target));
                }
                FaultStep::Ended => drop(self.faults.remove(&fault.id)),
            },
            What::Observe(Observation::Delivered { .. }) => self.counts[2] += 1,
            What::Observe(Observation::Phase { phase }) => {
                if *phase == Phase::Warmup {
                    self.acknowledged = at;
                }
                self.phase = Some((*phase, at));
            }
            What::Observe(Observation::Ready { node, ready }) => drop(self.ready.insert(*node, *ready)),
            What::Observe(Observation::Leader { group, node, .. }) => {
                self.leaders.insert(*group, *node);
            }
            _ => {}
        }
    }

    /// Another second may have begun.
    fn turn(&mut self, now: u64) {
        let second = now / SECOND;
        if second > self.second {
            self.rates = if second == self.second + 1 { self.counts } else { [0; 3] };
            self.counts = [0; 3];
            self.second = second;
        }
    }

    /// What it looks like now.
    pub(super) fn lines(&mut self, now: u64) -> String {
        self.turn(now);
        let mut said = vec![self.phase_words(now)];
        if !self.faults.is_empty() {
            let named: Vec<&str> = self.faults.values().take(NAMED).map(String::as_str).collect();
            let more = self.faults.len() - named.len();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            said.push(format!("broken: {}{more}", named.join(", ")));
        }
        if !self.ready.is_empty() {
            said.push(self.nodes());
        }
        let [asked, acknowledged, given] = self.rates;
        let mut load =
            vec![format!("publishes a second: {asked} asked, {acknowledged} acknowledged, {given} given")];
        let gap = now.saturating_sub(self.acknowledged);
        if !self.open.is_empty() && gap >= GAP {
            load.push(format!("open gap {:.1} s", gap as f64 / SECOND as f64));
        }
        format!("{}\n{}", said.join(" · "), load.join(" · "))
    }

    fn phase_words(&self, now: u64) -> String {
        let Some((phase, began)) = self.phase else { return "nodes and terminals start".to_owned() };
        let (name, lasts, most) = match phase {
            Phase::Warmup => ("warmup", self.phases.warmup, ""),
            Phase::Chaos => ("chaos", self.phases.chaos, ""),
            Phase::Heal => ("heal", self.phases.heal, ""),
            Phase::Drain => ("drain", self.phases.drain, "at most "),
        };
        let left = Duration::from_micros(began + lasts.0.as_micros() as u64).as_secs_f64() - now as f64 / 1e6;
        format!("{name}: {most}{:.0} s left", left.max(0.0))
    }

    /// Which nodes are ready, and how many groups each leads.
    fn nodes(&self) -> String {
        let ready = self.ready.values().filter(|ready| **ready).count();
        let each = self.ready.iter().map(|(node, ready)| {
            let leads = self.leaders.values().filter(|leader| *leader == node).count();
            match (ready, leads) {
                (false, _) => format!("n{node} is not"),
                (true, 0) => format!("n{node}"),
                (true, leads) => format!("n{node} leads {leads}"),
            }
        });
        format!("{ready}/{} ready: {}", self.ready.len(), each.collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reveille_chaos::history::{Fault, Invoke};
    use reveille_chaos::scenario::Time;

    fn view() -> View {
        let time = |seconds| Time(Duration::from_secs(seconds));
        View::new(Phases { warmup: time(3), chaos: time(20), heal: time(10), drain: time(60) })
    }

    fn asked(view: &mut View, at: u64, op: u64) {
        let call = Call::Publish { terminal: String::new(), payload: format!("p{op}"), ttl_ms: None };
        let invoke = Invoke { op, by: String::new(), node: None, deadline_ms: None, call };
        view.see(at, &What::Invoke(invoke));
    }

    fn answered(view: &mut View, at: u64, op: u64) {
        let got = Got::Published { message: String::new(), seq: op, position: None };
        view.see(at, &What::Ok { op, got });
    }

    fn fault(view: &mut View, at: u64, id: u64, step: FaultStep) {
        let (kind, target, detail) = ("kill".to_owned(), format!("node {id}"), String::new());
        view.see(at, &What::Fault(Fault { id, step, kind, target, detail }));
    }

    #[test]
    fn a_run_is_two_lines() {
        let mut view = view();
        assert!(view.lines(0).starts_with("nodes and terminals start\n"), "{}", view.lines(0));
        view.see(SECOND, &What::Observe(Observation::Phase { phase: Phase::Chaos }));
        for node in 1..=3 {
            view.see(SECOND, &What::Observe(Observation::Ready { node, ready: node != 2 }));
        }
        view.see(SECOND, &What::Observe(Observation::Leader { group: 1, node: 3, term: 1 }));
        for op in 1..=4 {
            asked(&mut view, 2 * SECOND, op);
        }
        (1..=3).for_each(|op| answered(&mut view, 2 * SECOND, op));
        (1..=5).for_each(|id| fault(&mut view, 2 * SECOND, id, FaultStep::Began));
        fault(&mut view, 2 * SECOND, 1, FaultStep::Ended);
        assert_eq!(
            view.lines(3 * SECOND + SECOND / 2),
            "chaos: 18 s left · broken: kill node 2, kill node 3, kill node 4 and 1 more · 2/3 ready: n1, n2 is not, n3 leads 1\n\
             publishes a second: 4 asked, 3 acknowledged, 0 given · open gap 1.5 s"
        );
        // A whole second without anything; and nobody waits any more.
        view.see(4 * SECOND, &What::Unknown { op: 4, why: String::new() });
        let said = view.lines(5 * SECOND);
        assert!(said.ends_with("\npublishes a second: 0 asked, 0 acknowledged, 0 given"), "{said}");
    }
}
