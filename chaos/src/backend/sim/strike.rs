//! Carries out a plan: finds out whom a fault hits when its time comes, breaks that, and takes it back. What is done to
//! whom is written down in the same words as by every backend; how it is done is in `deeds`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use reveille_chaos::history::{Fault as Told, FaultStep, What};
use reveille_chaos::plan::{Plan, Strike};
use reveille_chaos::scenario::kind::{Lasts, On};
use reveille_chaos::scenario::{Fault, Kind, MaxDead, When};
use reveille_links::draw::Draws;
use reveille_protocol::id::NodeId;
use reveille_simulation::world::{now, pause};

use super::folders::Kept;
use super::run::{Run, micros};
use super::whom::{self, Victims};

/// Between two looks at what is due, in milliseconds.
const LOOK: u64 = 20;
/// A fault that may not strike yet waits for so long, in microseconds.
const LATE: u64 = 5_000_000;
/// A node that ended by itself is started again after this, as by its system; in microseconds.
const AGAIN: u64 = 1_000_000;

/// A fault that is there.
pub(super) struct There {
    pub(super) id: u64,
    pub(super) fault: Fault,
    pub(super) victims: Victims,
    /// When it is taken back; `None`: at the end of the chaos phase.
    until: Option<u64>,
    pub(super) began: u64,
    /// When it struck last.
    pub(super) last: u64,
    /// What "drawn" means for it.
    pub(super) draw: u64,
}

/// A fault that waits for something.
struct Waiting {
    when: When,
    left: u64,
    fault: usize,
    draws: Draws,
    /// It happened, and the fault has not struck.
    due: bool,
}

/// See the module.
pub(super) struct Striker {
    pub(super) run: Arc<Run>,
    pub(super) strikes: VecDeque<Strike>,
    /// Those whose time has come, and when it came.
    late: Vec<(Strike, u64)>,
    waiting: Vec<Waiting>,
    pub(super) there: Vec<There>,
    next: u64,
    /// By fault of the scenario: whom it hit last.
    hit: BTreeMap<usize, Vec<u64>>,
    /// Nodes that ended by themselves, and when they are started again.
    pub(super) ended: BTreeMap<u64, u64>,
    /// Nodes that have lost what they had promised, and since when that is known.
    pub(super) lost: BTreeMap<u64, u64>,
    /// Folders that will be put back.
    pub(super) copies: Vec<Kept>,
}

impl Striker {
    pub(super) fn new(run: Arc<Run>, plan: Plan) -> Striker {
        let armed = plan.armed.iter().map(|armed| Waiting {
            when: armed.when,
            left: armed.times,
            fault: armed.fault,
            draws: Draws::new(armed.draw, "armed"),
            due: false,
        });
        Striker {
            run,
            waiting: armed.collect(),
            strikes: plan.strikes.into(),
            late: Vec::new(),
            there: Vec::new(),
            next: 0,
            hit: BTreeMap::new(),
            ended: BTreeMap::new(),
            lost: BTreeMap::new(),
            copies: Vec::new(),
        }
    }

    /// The chaos phase, which begins now and ends then; the plan's times count from the start.
    pub(super) async fn strike(&mut self, start: u64, end: u64) {
        // What happened before counts for nothing.
        self.run.known().happened.clear();
        while now() < end {
            self.tend().await;
            self.copy_folders(start).await;
            self.replace_lost(false).await;
            self.take_back(|there| there.until.is_some_and(|until| until <= now())).await;
            while let Some(strike) = self.strikes.pop_front_if(|strike| start + strike.at_us <= now()) {
                self.late.push((strike, now()));
            }
            for (strike, since) in std::mem::take(&mut self.late) {
                // As long as it was to last, counted from when it strikes.
                let lasts = strike.until_us.map(|until| until - strike.at_us);
                let until = lasts.map(|lasts| (now() + lasts).min(end));
                if self.hit(strike.fault, strike.draw, until).await {
                    continue;
                }
                match now() < since + LATE {
                    true => self.late.push((strike, since)),
                    false => self.run.cover(&format!("left-out.{}", strike.kind.name())),
                }
            }
            let happened = std::mem::take(&mut self.run.known().happened);
            for waiting in &mut self.waiting {
                waiting.due |= waiting.left > 0 && happened.contains(&waiting.when);
            }
            for at in 0..self.waiting.len() {
                self.armed(at, end).await;
            }
            pause(LOOK).await;
        }
    }

    /// Keeps nodes running until then, and has those replaced that cannot.
    pub(super) async fn mind(&mut self, until: u64) {
        while now() < until {
            self.tend().await;
            self.replace_lost(true).await;
            pause(LOOK).await;
        }
    }

    /// One that is due strikes as soon as it may: a chase goes on when its last victim is back.
    async fn armed(&mut self, at: usize, end: u64) {
        let waiting = &mut self.waiting[at];
        if !waiting.due {
            return;
        }
        let (fault, draw) = (waiting.fault, waiting.draws.draw());
        let until = self.fault(fault).lasts.map_or(end, |lasts| (now() + micros(lasts.0)).min(end));
        if self.hit(fault, draw, Some(until)).await {
            let waiting = &mut self.waiting[at];
            waiting.left -= 1;
            waiting.due = false;
        }
    }

    fn fault(&self, number: usize) -> Fault {
        self.run.scenario.faults[number].get_ref().clone()
    }

    /// Whether it struck: it does not where nobody is whom it is for, or too many would be away.
    async fn hit(&mut self, number: usize, draw: u64, until: Option<u64>) -> bool {
        let fault = self.fault(number);
        let last = self.hit.range(..number).next_back().map_or(Vec::new(), |(_, hit)| hit.clone());
        let victims = match (&fault.target, &fault.from, &fault.to) {
            _ if fault.kind.info().on == On::Cluster => Some(Victims::Cluster),
            (Some(_), ..) if fault.kind.name() == "roll-back" => self.copied(draw),
            (Some(target), ..) => whom::whom(&self.run, &last, target, draw),
            (None, Some(from), Some(to)) => whom::ways(&self.run, &last, from, to, draw),
            _ => None,
        };
        let Some(victims) = victims else { return false };
        if let Victims::Nodes(ids) = &victims {
            if !self.may(fault.kind, ids) {
                return false;
            }
            self.hit.insert(number, ids.clone());
        }
        if fault.kind.is_membership() && !self.order(fault.kind.name(), &victims).await {
            return false;
        }
        self.next += 1;
        let (id, kind, words) = (self.next, fault.kind, victims.words());
        let lasts = kind.info().lasts == Lasts::Yes;
        self.tell(id, if lasts { FaultStep::Began } else { FaultStep::Ended }, kind, &words);
        self.run.say(&format!("FAULT {} {words}", kind.name()));
        let there = There { id, fault, victims, until, began: now(), last: now(), draw };
        self.break_it(&there).await;
        if lasts {
            self.there.push(there);
        }
        true
    }

    fn tell(&self, id: u64, step: FaultStep, kind: Kind, target: &str) {
        let (kind, target) = (kind.name().to_owned(), target.to_owned());
        self.run.tell(What::Fault(Told { id, step, kind, target, detail: String::new() }));
    }

    /// It runs, and no fault stands in its way.
    fn runs(&self, id: u64) -> bool {
        let world = &self.run.world;
        let node = world.node(NodeId(id));
        node.member().is_some() && !node.is_due() && !world.stands_still(NodeId(id))
    }

    /// No fault takes more nodes away than the scenario allows, and none hits a node that another one has.
    pub(super) fn may(&self, kind: Kind, victims: &[u64]) -> bool {
        // What is to happen at a fail point happens to who comes there, now or when it runs again.
        let waits = kind.name() == "fail-point";
        let hit =
            |id: &u64| waits || self.runs(*id) || (kind.name() == "replace" && self.lost.contains_key(id));
        if victims.is_empty() || !victims.iter().all(hit) {
            return false;
        }
        // Who has the one would be woken by the other.
        let slowed = |id: &u64| self.run.world.node(NodeId(*id)).quota.load(Ordering::Relaxed) > 0;
        if matches!(kind.name(), "pause" | "cpu") && victims.iter().any(slowed) {
            return false;
        }
        if !kind.info().disables || self.run.scenario.blast.max_dead == MaxDead::All {
            return true;
        }
        let nodes = self.run.nodes();
        let known = self.run.known();
        let away = |id: &u64| !self.runs(*id) || known.ready.get(id) != Some(&true);
        let mut dead: BTreeSet<u64> = nodes.iter().copied().filter(away).collect();
        dead.extend(victims);
        dead.len() <= (nodes.len() - 1) / 2
    }

    /// Nodes that said that they must end do, and are started again.
    async fn tend(&mut self) {
        let world = self.run.world.clone();
        for node in world.all_nodes() {
            if node.take_failure().is_some() && self.ended_itself(node.id.0).await {
                self.ended.insert(node.id.0, now() + AGAIN);
            }
            if node.lost().is_some() && self.run.nodes().contains(&node.id.0) {
                self.lost.entry(node.id.0).or_insert_with(now);
            }
        }
        self.mind_gone();
        let due: Vec<u64> = self.ended.iter().filter(|(_, at)| **at <= now()).map(|(id, _)| *id).collect();
        for id in due {
            if self.there.iter().any(|there| there.keeps_down(id)) {
                continue;
            }
            self.ended.remove(&id);
            self.start(id).await;
        }
        self.again().await;
    }

    pub(super) async fn start(&self, id: u64) {
        let node = self.run.world.node(NodeId(id));
        let may = !node.is_started() && node.lost().is_none() && self.run.nodes().contains(&id);
        if may {
            self.run.world.start(NodeId(id)).await;
        }
    }

    async fn take_back(&mut self, which: impl Fn(&There) -> bool) {
        let (over, there): (Vec<There>, _) = std::mem::take(&mut self.there).into_iter().partition(which);
        self.there = there;
        for there in over {
            self.undo(&there).await;
            let words = there.victims.words();
            self.tell(there.id, FaultStep::Ended, there.fault.kind, &words);
            self.run.say(&format!("HEAL  {} {words}", there.fault.kind.name()));
        }
    }

    /// Takes everything back.
    pub(super) async fn heal(&mut self) {
        self.take_back(|_| true).await;
    }
}
