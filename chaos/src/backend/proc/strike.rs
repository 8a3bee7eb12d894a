//! Faults: when they strike, whom that is, and that each is taken back.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use reveille_chaos::history::{Fault as Told, FaultStep, What};
use reveille_chaos::plan::{Plan, Strike};
use reveille_chaos::scenario::kind::Lasts;
use reveille_chaos::scenario::{Kind, When};
use reveille_links::draw::Draws;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::deeds::Held;
use super::links::OnWay;
use super::nodes::{Nodes, State};
use super::victims::{Victims, words};
use super::{ends, membership, shim};
use crate::backend::live::Run;
use crate::backend::terminals::Order;

/// How often it is looked whether a fault that had to wait can strike.
const LOOK: Duration = Duration::from_millis(50);

/// A fault whose time has come and that may not strike yet waits for this long: for a node that is on its way back, or a
/// leader that is not known yet.
const LATE: Duration = Duration::from_secs(5);

/// A node that ended by its disk, or for what it lacks, is started again after this, as by its system.
const AGAIN: Duration = Duration::from_secs(1);

/// A fault that is there.
pub(super) struct There {
    pub(super) id: u64,
    pub(super) kind: Kind,
    pub(super) victims: Victims,
    /// When it is taken back; `None`: at the end of the chaos phase.
    pub(super) until: Option<Instant>,
    /// Tells terminals when it is over.
    pub(super) back: watch::Sender<bool>,
    /// When it struck last.
    pub(super) last: Instant,
    /// What is given back then.
    held: Vec<Held>,
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
    strikes: std::collections::VecDeque<Strike>,
    /// Those whose time has come, and when it came.
    late: Vec<(Strike, Instant)>,
    waiting: Vec<Waiting>,
    pub(super) there: Vec<There>,
    pub(super) orders: Vec<mpsc::Sender<Order>>,
    happened: mpsc::Receiver<When>,
    next: u64,
    /// What forged notifications are made of.
    pub(super) forger: Draws,
    /// By fault of the scenario: whom it hit last.
    pub(super) hit: BTreeMap<usize, Vec<u64>>,
    /// Nodes that ended and are started again, and when.
    later: BTreeMap<u64, Instant>,
    /// Data folders as they were, by the draw of the fault that will put them back, and the node.
    pub(super) copies: BTreeMap<(u64, u64), PathBuf>,
}

impl There {
    /// Its victim is not to run before it is over.
    fn keeps_down(&self, id: u64) -> bool {
        let down =
            ["kill", "stop", "out-of-memory"].contains(&self.kind.name()) || shim::keeps_down(self.kind);
        down && matches!(&self.victims, Victims::Nodes(ids) if ids.contains(&id))
    }
}

impl Striker {
    pub(super) fn new(
        run: Arc<Run>,
        plan: Plan,
        orders: Vec<mpsc::Sender<Order>>,
        happened: mpsc::Receiver<When>,
    ) -> Striker {
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
            orders,
            happened,
            next: 0,
            forger: Draws::new(plan.seed, "forged"),
            hit: BTreeMap::new(),
            later: BTreeMap::new(),
            copies: BTreeMap::new(),
        }
    }

    /// The chaos phase.
    pub(super) async fn strike(
        &mut self,
        nodes: &mut Nodes,
        start: Instant,
        end: Instant,
    ) -> anyhow::Result<()> {
        // What happened before counts for nothing.
        while self.happened.try_recv().is_ok() {}
        loop {
            let now = Instant::now();
            if now >= end {
                return Ok(());
            }
            self.tend(nodes, false).await?;
            self.take_back(nodes, |there| there.until.is_some_and(|until| until <= now)).await?;
            self.copies(nodes, start).await?;
            let due = |strike: &mut Strike| start + Duration::from_micros(strike.at_us) <= now;
            while let Some(strike) = self.strikes.pop_front_if(due) {
                self.late.push((strike, now));
            }
            self.loops(nodes).await?;
            for (strike, since) in std::mem::take(&mut self.late) {
                // As long as it was to last, counted from when it strikes.
                let lasts = strike.until_us.map(|until| Duration::from_micros(until - strike.at_us));
                let until = lasts.map(|lasts| (Instant::now() + lasts).min(end));
                if self.hit(nodes, strike.fault, strike.draw, until).await? {
                    continue;
                }
                match now < since + LATE {
                    true => self.late.push((strike, since)),
                    false => self.run.cover(&format!("left-out.{}", strike.kind.name())),
                }
            }
            for at in 0..self.waiting.len() {
                self.armed(nodes, at, now, end).await?;
            }
            tokio::select! {
                () = sleep_until((now + LOOK).min(end)) => {}
                Some(when) = self.happened.recv() => self.happens(when),
            }
        }
    }

    fn happens(&mut self, when: When) {
        for waiting in self.waiting.iter_mut().filter(|waiting| waiting.when == when && waiting.left > 0) {
            waiting.due = true;
        }
    }

    /// One that is due strikes as soon as it may: a chase goes on when its last victim is back.
    async fn armed(
        &mut self,
        nodes: &mut Nodes,
        at: usize,
        now: Instant,
        end: Instant,
    ) -> anyhow::Result<()> {
        let waiting = &mut self.waiting[at];
        if !waiting.due {
            return Ok(());
        }
        let (fault, draw) = (waiting.fault, waiting.draws.draw());
        let lasts = self.fault(fault).lasts.map_or(end, |lasts| (now + lasts.0).min(end));
        if self.hit(nodes, fault, draw, Some(lasts)).await? {
            let waiting = &mut self.waiting[at];
            waiting.left -= 1;
            waiting.due = false;
        }
        Ok(())
    }

    fn fault(&self, number: usize) -> reveille_chaos::scenario::Fault {
        self.run.scenario.faults[number].get_ref().clone()
    }

    /// Whether it struck: it does not where nobody is whom it is for, or too many would be away.
    async fn hit(
        &mut self,
        nodes: &mut Nodes,
        number: usize,
        draw: u64,
        until: Option<Instant>,
    ) -> anyhow::Result<bool> {
        let fault = self.fault(number);
        let victims = match (&fault.from, &fault.to, &fault.target) {
            (Some(from), Some(to), _) => self.ways(nodes, number, (from, to), draw),
            (_, _, Some(_)) if fault.kind.name() == "roll-back" => self.copied(draw),
            (_, _, Some(target)) => self.resolve(nodes, number, target, draw),
            _ => Some(Victims::Cluster),
        };
        let Some(victims) = victims else { return Ok(false) };
        let of_nodes = match &victims {
            Victims::Nodes(victims) if !self.may(nodes, fault.kind, victims) => return Ok(false),
            Victims::Nodes(victims) => victims.as_slice(),
            _ => &[],
        };
        if fault.kind.is_membership() && !membership::strike(&self.run, nodes, fault.kind, of_nodes).await? {
            return Ok(false);
        }
        if !of_nodes.is_empty() {
            self.hit.insert(number, of_nodes.to_vec());
        }
        self.next += 1;
        let id = self.next;
        let lasts = fault.kind.info().lasts == Lasts::Yes;
        let words = words(&victims);
        let on_the_way = match &victims {
            Victims::Ways(ways) => Some(OnWay::Ways(ways.clone())),
            Victims::Terminals(numbers) if fault.kind.info().is_on_the_way() => {
                Some(OnWay::Terminals(numbers.clone()))
            }
            _ => None,
        };
        // What is done to files is known when it is done.
        let of_files = fault.kind.is_of_folders();
        let step = if lasts || of_files { FaultStep::Began } else { FaultStep::Ended };
        let by_shim = shim::does(fault.kind);
        let detail = match on_the_way.is_some() || by_shim {
            true => super::links::detail(&fault),
            false => String::new(),
        };
        self.tell(id, step, fault.kind, &words, detail);
        // Noted first: whatever interrupts this, it is taken back.
        let (back, door) = watch::channel(false);
        if lasts {
            self.there.push(There {
                id,
                kind: fault.kind,
                victims: victims.clone(),
                until,
                back,
                last: Instant::now(),
                held: Vec::new(),
            });
        }
        if let (Victims::Nodes(ids), true, true) = (&victims, by_shim, lasts) {
            nodes.shim()?.strike(id, &fault, ids)?;
        }
        if let (Victims::Nodes(ids), Some(points), "fail-point") =
            (&victims, &mut nodes.points, fault.kind.name())
        {
            points.order(id, &fault, ids)?;
        }
        if let Some(on) = on_the_way {
            self.run.links().strike(id, &fault, on);
        } else {
            let (held, detail) = self.break_it(nodes, &fault, &victims, draw, &door).await?;
            if let Some(there) = self.there.last_mut().filter(|_| lasts) {
                there.held = held;
            }
            if of_files {
                self.tell(id, FaultStep::Ended, fault.kind, &words, detail);
            }
        }
        nodes.noted(&self.run);
        self.run.say(&format!("FAULT {} {words}", fault.kind.name()));
        Ok(true)
    }

    fn tell(&self, id: u64, step: FaultStep, kind: Kind, target: &str, detail: String) {
        let (kind, target) = (kind.name().to_owned(), target.to_owned());
        self.run.recorder.tell(What::Fault(Told { id, step, kind, target, detail }));
    }

    async fn take_back(&mut self, nodes: &mut Nodes, which: impl Fn(&There) -> bool) -> anyhow::Result<()> {
        let (over, there): (Vec<There>, _) = std::mem::take(&mut self.there).into_iter().partition(which);
        self.there = there;
        for fault in over {
            let mut detail = self.run.links().heal(fault.id);
            if let Some(shim) = &mut nodes.shim {
                detail += &shim.heal(fault.id)?;
            }
            if let Some(points) = &mut nodes.points {
                points.take_back(fault.id)?;
            }
            self.undo(nodes, fault.kind, &fault.victims, fault.held).await?;
            nodes.noted(&self.run);
            fault.back.send_replace(true);
            let words = words(&fault.victims);
            self.tell(fault.id, FaultStep::Ended, fault.kind, &words, detail);
            self.run.say(&format!("HEAL  {} {words}", fault.kind.name()));
        }
        Ok(())
    }

    /// What a service manager and an operator do: nodes that are to be started again are, and those that only another node
    /// helps are replaced, after a while or at once.
    pub(super) async fn tend(&mut self, nodes: &mut Nodes, at_once: bool) -> anyhow::Result<()> {
        let now = Instant::now();
        let later = ends::fallen(&self.run, nodes)?;
        self.later.extend(later.into_iter().map(|id| (id, now + AGAIN)));
        let due: Vec<u64> = self.later.iter().filter(|(_, at)| **at <= now).map(|(id, _)| *id).collect();
        for id in due {
            if !self.is_kept_down(id) {
                self.start(nodes, id)?;
            }
        }
        membership::called(&self.run, nodes, at_once).await
    }

    /// A fault that is there does not let this node run.
    pub(super) fn is_kept_down(&self, id: u64) -> bool {
        self.there.iter().any(|there| there.keeps_down(id))
    }

    pub(super) fn start(&mut self, nodes: &mut Nodes, id: u64) -> anyhow::Result<()> {
        self.later.remove(&id);
        // It may have been started by a fault of its own meanwhile.
        if nodes.state(id) == State::Gone {
            nodes.start_node(id)?;
            nodes.noted(&self.run);
        }
        Ok(())
    }

    /// Copies are made when their time has come, and until they are.
    async fn copies(&mut self, nodes: &mut Nodes, start: Instant) -> anyhow::Result<()> {
        let due = |strike: &&Strike| {
            let by = self.fault(strike.fault).by.map_or(Duration::ZERO, |by| by.0);
            let is_due = start + Duration::from_micros(strike.at_us).saturating_sub(by) <= Instant::now();
            strike.kind.name() == "roll-back" && is_due && self.copied(strike.draw).is_none()
        };
        let due: Vec<Strike> = self.strikes.iter().filter(due).cloned().collect();
        for Strike { fault, draw, kind, .. } in due {
            let target = self.fault(fault).target;
            let victims = target.and_then(|target| self.resolve(nodes, fault, &target, draw));
            if let Some(Victims::Nodes(victims)) = victims
                && self.may(nodes, kind, &victims)
                && self.copy(nodes, &victims, draw).await?
            {
                let words = words(&Victims::Nodes(victims));
                self.run.say(&format!("the folder of {words} is copied, and it is started again"));
                self.run.cover("roll-back.copied");
            }
        }
        Ok(())
    }

    /// Whose folders were copied for the fault of this draw.
    fn copied(&self, draw: u64) -> Option<Victims> {
        let ids: Vec<u64> = self.copies.range((draw, 0)..=(draw, u64::MAX)).map(|((_, id), _)| *id).collect();
        (!ids.is_empty()).then_some(Victims::Nodes(ids))
    }

    /// Takes everything back.
    pub(super) async fn heal(&mut self, nodes: &mut Nodes) -> anyhow::Result<()> {
        self.take_back(nodes, |_| true).await.context("a fault could not be taken back")?;
        self.tend(nodes, true).await
    }
}
