//! Faults: when they strike, whom that is, and that each is taken back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use reveille_chaos::history::{Fault as Told, FaultStep, What};
use reveille_chaos::plan::{Plan, Strike};
use reveille_chaos::scenario::kind::Lasts;
use reveille_chaos::scenario::{Kind, MaxDead, Target, When};
use reveille_links::draw::Draws;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::ends;
use super::links::{OnWay, Place};
use super::nodes::{Nodes, State};
use super::shim;
use crate::backend::live::Run;
use crate::backend::terminals::Order;
use crate::backend::whom::{self, Among, Whom, whom};

/// How often it is looked whether a fault that had to wait can strike.
const LOOK: Duration = Duration::from_millis(50);

/// A fault whose time has come and that may not strike yet waits for this long: for a node that is on its way back, or a
/// leader that is not known yet.
const LATE: Duration = Duration::from_secs(5);

/// Both ends may be drawn as one and the same: then the other is drawn again, so often.
const ENDS: u32 = 16;
/// A node that ended by its disk is started again after this, as by its system.
const AGAIN: Duration = Duration::from_secs(1);
/// A node has started, and mostly is ready, after this.
const STARTED: Duration = Duration::from_secs(2);

/// Whom a fault hits, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Victims {
    Nodes(Vec<u64>),
    /// Numbers from 0.
    Terminals(Vec<usize>),
    /// What goes from one to another.
    Ways(BTreeSet<(Place, Place)>),
}

/// A fault that is there.
struct There {
    id: u64,
    kind: Kind,
    victims: Victims,
    /// When it is taken back; `None`: at the end of the chaos phase.
    until: Option<Instant>,
    /// Tells terminals when it is over.
    back: watch::Sender<bool>,
    /// When it struck last.
    last: Instant,
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
    run: Arc<Run>,
    strikes: std::collections::VecDeque<Strike>,
    /// Those whose time has come, and when it came.
    late: Vec<(Strike, Instant)>,
    waiting: Vec<Waiting>,
    there: Vec<There>,
    orders: Vec<mpsc::Sender<Order>>,
    happened: mpsc::Receiver<When>,
    next: u64,
    /// What forged notifications are made of.
    forger: Draws,
    /// By fault of the scenario: whom it hit last.
    hit: BTreeMap<usize, Vec<u64>>,
    /// Nodes that ended by their disks, and when they are started again.
    ended: BTreeMap<u64, Instant>,
}

impl There {
    /// Its victim is not to run before it is over.
    fn keeps_down(&self, id: u64) -> bool {
        let down = ["kill", "stop"].contains(&self.kind.name()) || shim::keeps_down(self.kind);
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
            ended: BTreeMap::new(),
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
            self.tend(nodes)?;
            self.take_back(nodes, |there| there.until.is_some_and(|until| until <= now)).await?;
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

    /// Keeps nodes running until then.
    pub(super) async fn mind(&mut self, nodes: &mut Nodes, until: Instant) -> anyhow::Result<()> {
        while Instant::now() < until {
            self.tend(nodes)?;
            sleep_until((Instant::now() + LOOK).min(until)).await;
        }
        Ok(())
    }

    /// Notices who has ended, and starts who ended by its disk, when that is well.
    fn tend(&mut self, nodes: &mut Nodes) -> anyhow::Result<()> {
        let now = Instant::now();
        let ended = ends::fallen(&self.run, nodes)?;
        self.ended.extend(ended.into_iter().map(|id| (id, now + AGAIN)));
        let due: Vec<u64> = self.ended.iter().filter(|(_, at)| **at <= now).map(|(id, _)| *id).collect();
        for id in due {
            if !self.there.iter().any(|there| there.keeps_down(id)) {
                self.start(nodes, id)?;
            }
        }
        Ok(())
    }

    fn start(&mut self, nodes: &mut Nodes, id: u64) -> anyhow::Result<()> {
        self.ended.remove(&id);
        // It may have been started by a fault of its own meanwhile.
        if nodes.state(id) == State::Gone {
            nodes.start_node(id)?;
            nodes.noted(&self.run);
        }
        Ok(())
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
            (_, _, Some(target)) => self.resolve(nodes, number, target, draw),
            _ => None,
        };
        let Some(victims) = victims else { return Ok(false) };
        if let Victims::Nodes(victims) = &victims {
            if !self.may(nodes, fault.kind, victims) {
                return Ok(false);
            }
            self.hit.insert(number, victims.clone());
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
            Victims::Nodes(_) | Victims::Terminals(_) => None,
        };
        let step = if lasts { FaultStep::Began } else { FaultStep::Ended };
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
            });
        }
        if let (Victims::Nodes(ids), true, true) = (&victims, by_shim, lasts) {
            nodes.shim()?.strike(id, &fault, ids)?;
        }
        if let Some(on) = on_the_way {
            self.run.links().strike(id, &fault, on);
        } else {
            self.break_it(nodes, fault.kind, &victims, &door).await?;
        }
        nodes.noted(&self.run);
        self.run.say(&format!("FAULT {} {words}", fault.kind.name()));
        Ok(true)
    }

    fn tell(&self, id: u64, step: FaultStep, kind: Kind, target: &str, detail: String) {
        let (kind, target) = (kind.name().to_owned(), target.to_owned());
        self.run.recorder.tell(What::Fault(Told { id, step, kind, target, detail }));
    }

    /// No fault takes more nodes away than the scenario allows, and none hits a node that another one has.
    fn may(&self, nodes: &Nodes, kind: Kind, victims: &[u64]) -> bool {
        if victims.is_empty() || victims.iter().any(|id| nodes.state(*id) != State::Runs) {
            return false;
        }
        if !kind.info().disables || self.run.scenario.blast.max_dead == MaxDead::All {
            return true;
        }
        let known = self.run.known();
        let away = |id: &u64| nodes.state(*id) != State::Runs || known.ready.get(id) != Some(&true);
        let mut dead: BTreeSet<u64> = nodes.ids().into_iter().filter(away).collect();
        dead.extend(victims);
        dead.len() <= (nodes.all.len() - 1) / 2
    }

    async fn break_it(
        &mut self,
        nodes: &mut Nodes,
        kind: Kind,
        victims: &Victims,
        door: &watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        match victims {
            Victims::Nodes(ids) if kind.name() == "power" => nodes.power(ids).await?,
            Victims::Nodes(ids) => {
                for id in ids {
                    match kind.name() {
                        "kill" => nodes.kill(*id).await?,
                        "stop" => nodes.terminate(*id).await?,
                        "pause" => nodes.pause(*id).await?,
                        "restart" | "crash-loop" => {
                            nodes.kill(*id).await?;
                            nodes.start_node(*id)?;
                        }
                        "move-leaders" => {
                            self.run.order(*id, &format!("/cluster/nodes/{id}/move-leaders")).await
                        }
                        "snapshot" => self.run.order(*id, "/cluster/snapshot").await,
                        "sync-error" => nodes.shim()?.fail_sync(*id)?,
                        _ if shim::does(kind) => {}
                        other => anyhow::bail!("{other} is none of this backend's faults"),
                    }
                }
            }
            // Struck on the way.
            Victims::Ways(_) => {}
            Victims::Terminals(numbers) => {
                for number in numbers {
                    let Some(order) = Order::of(kind, door) else {
                        anyhow::bail!("{} is none of this backend's faults", kind.name())
                    };
                    // One that has orders enough needs no other.
                    let _ = self.orders[*number].try_send(order);
                }
            }
        }
        Ok(())
    }

    /// Nodes in a crash loop are killed again when they have started; forgers send one each time that is looked.
    async fn loops(&mut self, nodes: &mut Nodes) -> anyhow::Result<()> {
        if let Some(shim) = &mut nodes.shim {
            shim.tell()?;
        }
        for at in 0..self.there.len() {
            let there = &self.there[at];
            if there.kind.name() == "notification-forged"
                && let Victims::Terminals(numbers) = &there.victims
            {
                let links = self.run.links();
                for number in numbers {
                    links.forge(*number, &mut self.forger);
                }
                continue;
            }
            let Victims::Nodes(ids) = &there.victims else { continue };
            if there.kind.name() != "crash-loop" || there.last.elapsed() < STARTED {
                continue;
            }
            for id in ids.clone() {
                nodes.kill(id).await?;
                nodes.start_node(id)?;
            }
            self.there[at].last = Instant::now();
            self.run.cover("crash-loop.killed-again");
            nodes.noted(&self.run);
        }
        Ok(())
    }

    async fn take_back(&mut self, nodes: &mut Nodes, which: impl Fn(&There) -> bool) -> anyhow::Result<()> {
        let (over, there): (Vec<There>, _) = std::mem::take(&mut self.there).into_iter().partition(which);
        self.there = there;
        for fault in over {
            let mut detail = self.run.links().heal(fault.id);
            if let Some(shim) = &mut nodes.shim {
                detail += &shim.heal(fault.id)?;
            }
            if let Victims::Nodes(ids) = &fault.victims {
                for id in ids {
                    match nodes.state(*id) {
                        State::Stopped if fault.kind.name() == "pause" => nodes.resume(*id).await?,
                        State::Gone if !self.there.iter().any(|there| there.keeps_down(*id)) => {
                            nodes.ended(*id).await?;
                            self.start(nodes, *id)?;
                        }
                        // It was interrupted before it could strike, or is not away by this one.
                        State::Stopped | State::Gone | State::Runs => {}
                    }
                }
            }
            nodes.noted(&self.run);
            fault.back.send_replace(true);
            let words = words(&fault.victims);
            self.tell(fault.id, FaultStep::Ended, fault.kind, &words, detail);
            self.run.say(&format!("HEAL  {} {words}", fault.kind.name()));
        }
        Ok(())
    }

    /// Takes everything back.
    pub(super) async fn heal(&mut self, nodes: &mut Nodes) -> anyhow::Result<()> {
        self.take_back(nodes, |_| true).await.context("a fault could not be taken back")
    }

    /// What goes between those whom the two ends stand for.
    fn ways(
        &self,
        nodes: &Nodes,
        number: usize,
        (from, to): (&Target, &Target),
        draw: u64,
    ) -> Option<Victims> {
        let mut draws = Draws::new(draw, "to");
        let places = |victims: Victims| -> Vec<Place> {
            match victims {
                Victims::Nodes(ids) => ids.into_iter().map(Place::Node).collect(),
                Victims::Terminals(_) | Victims::Ways(_) => vec![Place::Terminals],
            }
        };
        let from = places(self.resolve(nodes, number, from, draw)?);
        for _ in 0..ENDS {
            let to = places(self.resolve(nodes, number, to, draws.draw())?);
            let all = from.iter().flat_map(|from| to.iter().map(move |to| (*from, *to)));
            let ways: BTreeSet<(Place, Place)> = all.filter(|(from, to)| from != to).collect();
            if !ways.is_empty() {
                return Some(Victims::Ways(ways));
            }
        }
        None
    }

    fn resolve(&self, nodes: &Nodes, number: usize, target: &Target, draw: u64) -> Option<Victims> {
        let last = self.hit.range(..number).next_back().map(|(_, ids)| ids.as_slice());
        let among = Among { nodes: &nodes.ids(), terminals: self.orders.len(), last };
        Some(match whom(&self.run.known(), among, target, draw)? {
            Whom::Nodes(ids) => Victims::Nodes(ids),
            Whom::Terminals(numbers) => Victims::Terminals(numbers),
        })
    }
}

fn words(victims: &Victims) -> String {
    match victims {
        Victims::Ways(ways) => {
            let ends = |end: fn(&(Place, Place)) -> Place| {
                let places: BTreeSet<Place> = ways.iter().map(end).collect();
                places.iter().map(Place::to_string).collect::<Vec<_>>().join(", ")
            };
            format!("link {} -> {}", ends(|(from, _)| *from), ends(|(_, to)| *to))
        }
        Victims::Nodes(ids) => whom::nodes(ids),
        Victims::Terminals(numbers) => whom::terminals(numbers),
    }
}
