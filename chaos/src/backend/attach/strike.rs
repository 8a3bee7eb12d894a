//! Faults in a cluster that is its user's own: when they strike, whom that is, that limits hold, and that each is taken
//! back. What a hook does is written down before it is run.

mod aim;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use reveille_chaos::history::{Fault as Told, FaultStep, What};
use reveille_chaos::plan::Plan;
use reveille_chaos::scenario::kind::Lasts;
use reveille_chaos::scenario::{Fault, Kind, Share, When};
use reveille_links::draw::Draws;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::guard::Struck;
use super::hooks::Hooks;
use super::undo::{self, Shared};
use super::victims::Victims;
use super::{By, Cluster, by};
use crate::backend::live::Run;
use crate::backend::terminals::Order;

/// A node in a crash loop is killed again so long after it was started.
const STARTED: Duration = Duration::from_secs(2);
/// How often it is looked whether a fault can strike, or is over.
const LOOK: Duration = Duration::from_millis(50);
/// A fault whose time has come and that may not strike yet waits for this long.
const LATE: Duration = Duration::from_secs(5);

/// A fault that is there.
struct There {
    id: u64,
    kind: Kind,
    /// How much of it.
    share: Option<Share>,
    victims: Victims,
    /// Its places in the journal, and what undoes each.
    deeds: Vec<(u64, Vec<String>)>,
    since: Instant,
    /// When it struck last.
    last: Instant,
    until: Option<Instant>,
    /// Tells terminals when it is over.
    back: watch::Sender<bool>,
}

/// A fault whose time has come.
struct Due {
    fault: usize,
    draw: u64,
    lasts: Option<Duration>,
    since: Instant,
    /// Which of those that wait for something it came from.
    armed: Option<usize>,
}

/// A fault that waits for something.
struct Waiting {
    when: When,
    left: u64,
    fault: usize,
    draws: Draws,
}

/// A node that is away is seen not to be ready within this: a look at one that stands still takes two seconds.
const SEEN_WITHIN: Duration = Duration::from_secs(4);

/// See the module.
pub(super) struct Striker {
    run: Arc<Run>,
    cluster: Arc<Cluster>,
    hooks: Hooks,
    journal: Shared,
    struck: Struck,
    strikes: std::collections::VecDeque<reveille_chaos::plan::Strike>,
    due: Vec<Due>,
    waiting: Vec<Waiting>,
    there: Vec<There>,
    orders: Vec<mpsc::Sender<Order>>,
    happened: mpsc::Receiver<When>,
    next: u64,
    /// By fault of the scenario: whom it hit last.
    hit: BTreeMap<usize, Vec<u64>>,
}

/// What it strikes by, and with.
pub(super) struct Hands {
    pub(super) cluster: Arc<Cluster>,
    pub(super) hooks: Hooks,
    pub(super) journal: Shared,
    pub(super) struck: Struck,
    pub(super) orders: Vec<mpsc::Sender<Order>>,
    pub(super) happened: mpsc::Receiver<When>,
}

impl Striker {
    pub(super) fn new(run: Arc<Run>, plan: Plan, hands: Hands) -> Striker {
        let armed = plan.armed.iter().map(|armed| Waiting {
            when: armed.when,
            left: armed.times,
            fault: armed.fault,
            draws: Draws::new(armed.draw, "armed"),
        });
        let Hands { cluster, hooks, journal, struck, orders, happened } = hands;
        Striker {
            waiting: armed.collect(),
            strikes: plan.strikes.into(),
            run,
            cluster,
            hooks,
            journal,
            struck,
            orders,
            happened,
            due: Vec::new(),
            there: Vec::new(),
            next: 0,
            hit: BTreeMap::new(),
        }
    }

    /// The chaos phase.
    pub(super) async fn strike(&mut self, start: Instant, end: Instant) -> anyhow::Result<()> {
        // What happened before counts for nothing.
        while self.happened.try_recv().is_ok() {}
        loop {
            let now = Instant::now();
            if now >= end {
                return Ok(());
            }
            self.take_back(|there| there.until.is_some_and(|until| until <= now)).await?;
            self.again().await?;
            let comes = |strike: &mut reveille_chaos::plan::Strike| {
                start + Duration::from_micros(strike.at_us) <= now
            };
            while let Some(strike) = self.strikes.pop_front_if(comes) {
                let lasts = strike.until_us.map(|until| Duration::from_micros(until - strike.at_us));
                let (fault, draw) = (strike.fault, strike.draw);
                self.due.push(Due { fault, draw, lasts, since: now, armed: None });
            }
            for due in std::mem::take(&mut self.due) {
                if self.hit(&due, end).await? {
                    if let Some(at) = due.armed {
                        self.waiting[at].left -= 1;
                    }
                } else if now < due.since + LATE {
                    self.due.push(due);
                } else {
                    let kind = self.fault(due.fault).kind;
                    self.run.cover(&format!("left-out.{}", kind.name()));
                }
            }
            tokio::select! {
                () = sleep_until((now + LOOK).min(end)) => {}
                Some(when) = self.happened.recv() => self.happens(when),
            }
        }
    }

    /// What waits for this is due, unless it is already.
    fn happens(&mut self, when: When) {
        for (at, waiting) in self.waiting.iter_mut().enumerate() {
            let is_due = self.due.iter().any(|due| due.armed == Some(at));
            if waiting.when == when && waiting.left > 0 && !is_due {
                let fault = self.run.scenario.faults[waiting.fault].get_ref();
                let lasts = (fault.kind.info().lasts == Lasts::Yes)
                    .then(|| fault.lasts.map_or(Duration::MAX, |lasts| lasts.0));
                let (fault, draw) = (waiting.fault, waiting.draws.draw());
                self.due.push(Due { fault, draw, lasts, since: Instant::now(), armed: Some(at) });
            }
        }
    }

    fn fault(&self, number: usize) -> Fault {
        self.run.scenario.faults[number].get_ref().clone()
    }

    /// Whether it struck: it does not where nobody is whom it is for, or too many would be away.
    async fn hit(&mut self, due: &Due, end: Instant) -> anyhow::Result<bool> {
        let fault = self.fault(due.fault);
        let victims = match (&fault.from, &fault.to, &fault.target) {
            (Some(from), Some(to), _) => self.ways(due, from, to),
            (_, _, Some(target)) => self.resolve(due.fault, target, due.draw),
            _ => None,
        };
        let Some(victims) = victims else { return Ok(false) };
        if !self.may(fault.kind, &victims) {
            return Ok(false);
        }
        if let Victims::Nodes(ids) = &victims {
            self.hit.insert(due.fault, ids.clone());
        }
        self.next += 1;
        let id = self.next;
        let words = victims.words();
        // Whatever let it through: no node is struck for longer than the limit.
        let most = match by(fault.kind) {
            Some(By::Hooks(..)) => self.cluster.limits.fault.0,
            _ => self.cluster.limits.run.0,
        };
        let lasts = due.lasts.map(|lasts| lasts.min(most));
        let step = if lasts.is_some() { FaultStep::Began } else { FaultStep::Ended };
        self.tell(id, step, fault.kind, &words);
        self.run.say(&format!("FAULT {} {words}", fault.kind.name()));
        // Noted first: whatever interrupts this, it is taken back.
        let back = watch::Sender::new(false);
        let until = lasts.map(|lasts| (Instant::now() + lasts).min(end));
        self.away(fault.kind, &victims).into_iter().for_each(|node| self.struck.strikes(node));
        let since = Instant::now();
        let (kind, share, deeds) = (fault.kind, fault.share, Vec::new());
        self.there.push(There { id, kind, share, victims, deeds, since, last: since, until, back });
        self.break_it(self.there.len() - 1).await?;
        if lasts.is_none() {
            self.take_back(|there| there.id == id).await?;
        }
        Ok(true)
    }

    fn tell(&self, id: u64, step: FaultStep, kind: Kind, target: &str) {
        let (kind, target) = (kind.name().to_owned(), target.to_owned());
        self.run.recorder.tell(What::Fault(Told { id, step, kind, target, detail: String::new() }));
    }

    /// Does this one of those that were noted.
    async fn break_it(&mut self, at: usize) -> anyhow::Result<()> {
        let There { kind, share, victims, back, .. } = &self.there[at];
        let (kind, share, victims, door) = (*kind, *share, victims.clone(), back.subscribe());
        match (by(kind), &victims) {
            (Some(By::Hooks(does, undoes)), _) => {
                for on in victims.ons(kind) {
                    let does = self.hooks.command(does, on, share)?;
                    let undo = self.hooks.command(undoes, on, None)?;
                    let deed = self.journal.lock().begins(kind.name(), &undo, on)?;
                    self.there[at].deeds.push((deed, undo));
                    let outcome = self.hooks.run(does).await;
                    self.journal.lock().struck(deed)?;
                    outcome?;
                }
                if kind.name() == "crash-loop" {
                    self.undo(at).await?;
                }
            }
            (Some(By::Operator), Victims::Nodes(ids)) => {
                for id in ids {
                    match kind.name() {
                        "snapshot" => self.run.order(*id, "/cluster/snapshot").await,
                        _ => self.run.order(*id, &format!("/cluster/nodes/{id}/move-leaders")).await,
                    }
                }
            }
            (Some(By::Terminals), Victims::Terminals(numbers)) => {
                for number in numbers {
                    let Some(order) = Order::of(kind, &door) else {
                        anyhow::bail!("{} is done to no terminal", kind.name())
                    };
                    // One that has orders enough needs no other.
                    let _ = self.orders[*number].try_send(order);
                }
            }
            (by, victims) => anyhow::bail!("{} of {}: {by:?} cannot", kind.name(), victims.words()),
        }
        self.there[at].last = Instant::now();
        Ok(())
    }

    /// Nodes in a crash loop are killed again when they have started.
    async fn again(&mut self) -> anyhow::Result<()> {
        for at in 0..self.there.len() {
            if self.there[at].kind.name() == "crash-loop" && self.there[at].last.elapsed() >= STARTED {
                self.break_it(at).await?;
                self.run.cover("crash-loop.killed-again");
            }
        }
        Ok(())
    }

    /// Undoes what this one has done.
    async fn undo(&mut self, at: usize) -> anyhow::Result<()> {
        let there = &mut self.there[at];
        let mut noted = Ok(());
        while let Some((deed, undo)) = there.deeds.last() {
            undo::one(&self.hooks, undo).await?;
            // The others are undone whatever the disk says.
            noted = noted.and(self.journal.lock().undone(*deed));
            there.deeds.pop();
        }
        noted
    }

    /// Takes back these; one that cannot be is kept, and ends the run.
    async fn take_back(&mut self, which: impl Fn(&There) -> bool) -> anyhow::Result<()> {
        while let Some(at) = self.there.iter().position(&which) {
            let noted = self.undo(at).await;
            if !self.there[at].deeds.is_empty() {
                return noted;
            }
            let over = self.there.remove(at);
            self.over(&over);
            noted?;
        }
        Ok(())
    }

    /// A hook that ends well may have done nothing; a node that is away is not ready.
    fn doubt(&self, there: &There) {
        let stands = matches!(there.kind.name(), "kill" | "stop" | "pause");
        if !stands || there.since.elapsed() < SEEN_WITHIN {
            return;
        }
        for id in there.victims.away().into_iter().filter(|id| !self.struck.seen_away(*id)) {
            let kind = there.kind.name();
            self.run
                .trouble(format!("{kind} of node {id}: it stayed ready; does the hook do what it should?"));
        }
    }

    /// It is not there any more.
    fn over(&self, there: &There) {
        there.back.send_replace(true);
        self.doubt(there);
        self.away(there.kind, &there.victims).into_iter().for_each(|node| self.struck.undone(node));
        let words = there.victims.words();
        // One that was over at once has only this line, and has it already.
        if there.until.is_some() {
            self.tell(there.id, FaultStep::Ended, there.kind, &words);
            self.run.say(&format!("HEAL  {} {words}", there.kind.name()));
        }
    }

    /// Takes everything back, whatever was interrupted.
    ///
    /// # Errors
    /// What could not be: it stays in the journal.
    pub(super) async fn heal(&mut self) -> anyhow::Result<()> {
        let run = self.run.clone();
        let say = |what: &str| run.say(what);
        // A hook that is on its way has its turn first, so there is nothing more to wait for.
        let healed = undo::deeds(&self.hooks, &self.journal, Duration::ZERO, &say).await;
        for there in std::mem::take(&mut self.there) {
            match healed.is_ok() {
                true => self.over(&there),
                false => drop(there.back.send_replace(true)),
            }
        }
        healed.context("a fault could not be taken back")
    }
}
