//! The shell around one group's dispatcher at its leader: feeds it what apply established (here), carries out what it
//! decides (`carry_out`), keeps its time (`tasks`). The decisions are `reveille_protocol::dispatch`.

mod carry_out;
mod tasks;
mod waiters;

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use futures::channel::oneshot;
use reveille_protocol::directory::{self, Directory};
use reveille_protocol::dispatch::{Dispatch, Event, Facts, Stored, Touched};
use reveille_protocol::id::*;
use reveille_protocol::limits;
use reveille_protocol::service_list::row::{Row, Urgency};
use reveille_protocol::service_list::{self, Applied, Effect, TableError, view};
use reveille_protocol::stage::{End, Stage};
use reveille_protocol::time::{GroupTime, Instant};
use reveille_protocol::wire::peer::{Report, Reported, SessionMessage};
use tokio::sync::mpsc;

use self::waiters::Waiters;
use crate::clock::{Clocks, GroupClock};
use crate::env::Env;
use crate::guard;
use crate::host::{Host, Notified};
use crate::propose::Proposer;
use crate::query::{self, Answer, MessageView, Query};
use crate::raft::machine::Observer;
use crate::rpc::Calls;
use crate::tables::Tables;
use crate::trace::{Traced, Traces};

type ReaderOf<'a, E> = <<E as Env>::Tables as Tables>::Reader<'a>;

/// What the shards of a node share.
pub(crate) struct Shared<E: Env> {
    pub(crate) me: NodeId,
    pub(crate) calls: Arc<Calls<E>>,
    pub(crate) clocks: Arc<Clocks<E::Cfg>>,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) directory: RwLock<Arc<Directory>>,
    /// Nodes that this one does not hear, though others do: see `member/elsewhere.rs`.
    pub(crate) torn_off: RwLock<BTreeSet<NodeId>>,
    /// Nodes of the cluster, beside this one.
    pub(crate) peers: AtomicUsize,
    /// Shards that this node leads; group 0 has no terminals and does not count.
    pub(crate) led: AtomicUsize,
    /// Told when the directory changed: fences may have.
    pub(crate) changed: mpsc::Sender<()>,
    /// Sessions of this node that a hand-off did not find; reported back as another node would.
    pub(crate) missed: mpsc::Sender<Report>,
}

impl<E: Env> Shared<E> {
    pub(crate) fn directory(&self) -> Arc<Directory> {
        self.directory.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The median of the cluster's wall clocks; `None` while too few of them are known.
    pub(crate) fn median(&self) -> Option<GroupTime> {
        self.clocks.median(self.peers.load(Ordering::Relaxed))
    }

    /// What one shard may order of the notifications that this node sends in a second.
    fn share(&self) -> Option<NonZeroU32> {
        let all = self.host.notifications_per_second()?.get();
        let led = self.led.load(Ordering::Relaxed).max(1) as u32;
        // More shards than notifications: each still comes to one.
        Some(NonZeroU32::new(all / led).unwrap_or(NonZeroU32::MIN))
    }
}

/// One group on this node.
pub(crate) struct Shard<E: Env> {
    pub(crate) group: GroupId,
    shared: Arc<Shared<E>>,
    tables: E::Tables,
    clock: GroupClock<E::Cfg>,
    state: Mutex<State>,
    /// Wakes the timer task after the dispatcher's next deadline may have changed.
    wake: mpsc::Sender<()>,
    proposer: Mutex<Option<Proposer>>,
    /// An Expire is on its way.
    expiring: AtomicBool,
    /// Set once the tables cannot be read: the group has stopped here.
    broken: Mutex<Option<TableError>>,
}

#[derive(Default)]
struct State {
    /// The term that raft says this node leads, whether or not an entry of it was applied yet.
    leads: Option<u64>,
    /// Term of the last applied entry.
    applied_term: u64,
    dispatch: Dispatch,
    traces: Traces,
    waiters: Waiters,
}

impl<E: Env> Shard<E> {
    pub(crate) fn new(group: GroupId, shared: Arc<Shared<E>>, tables: E::Tables) -> Arc<Shard<E>> {
        let (wake, woken) = mpsc::channel(1);
        let shard = Arc::new(Shard {
            group,
            shared,
            tables,
            clock: GroupClock::default(),
            state: Mutex::default(),
            wake,
            proposer: Mutex::new(None),
            expiring: AtomicBool::new(false),
            broken: Mutex::new(None),
        });
        let host = shard.shared.host.clone();
        guard::spawn::<E>(host, "a shard's timers", tasks::timers(Arc::downgrade(&shard), woken));
        shard
    }

    /// Gives the shard its way to propose; before that it can lead nothing.
    pub(crate) fn set_proposer(&self, proposer: Proposer) {
        *self.proposer.lock().unwrap_or_else(PoisonError::into_inner) = Some(proposer);
    }

    pub(crate) fn proposer(&self) -> Option<Proposer> {
        self.proposer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn tables(&self) -> &E::Tables {
        &self.tables
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Instant {
        self.shared.clocks.monotonic()
    }

    /// Group time, as this node would stamp it.
    pub(crate) fn group_time(&self) -> GroupTime {
        self.clock.now(|| self.shared.median(), || self.shared.clocks.wall_time())
    }

    fn traced(&self, stage: Stage, node: NodeId) -> Traced {
        Traced { stage, at: self.shared.clocks.wall_micros(), node }
    }

    /// Why this group stopped on this node, if it did.
    pub(crate) fn broken(&self) -> Option<TableError> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn checked<T>(&self, result: Result<T, TableError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                tracing::error!(group = self.group.0, %error, "tables cannot be read; the group stops here");
                *self.broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                None
            }
        }
    }

    /// Raft says who leads: this node under `term`, or another.
    pub(crate) fn leadership(self: &Arc<Self>, term: Option<u64>) {
        let mut state = self.state();
        if state.leads == term {
            return;
        }
        if self.group != GroupId::META {
            match (state.leads, term) {
                (None, Some(_)) => drop(self.shared.led.fetch_add(1, Ordering::Relaxed)),
                (Some(_), None) => drop(self.shared.led.fetch_sub(1, Ordering::Relaxed)),
                _ => {}
            }
        }
        state.leads = term;
        tracing::info!(
            group = self.group.0,
            ?term,
            "{}",
            if term.is_some() { "leading" } else { "following" }
        );
        match term {
            None => {
                state.dispatch.handle(self.now(), Event::Follow);
                // What ends from now on, another leader sees.
                state.waiters.dismiss();
            }
            Some(term) => {
                let seen = self.checked(service_list::time(&self.tables.read())).unwrap_or_default();
                self.clock.begin(seen);
                // A leader whose first entry is not applied yet does not know what its predecessor committed.
                if state.applied_term == term {
                    self.lead(&mut state, term);
                }
            }
        }
    }

    /// Begins a task of the shard's own.
    fn begin(&self, what: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        guard::spawn::<E>(self.shared.host.clone(), what, task);
    }

    fn lead(self: &Arc<Self>, state: &mut State, term: u64) {
        state.dispatch.handle(self.now(), Event::Lead { term });
        self.pace(state);
        self.begin("what waits for a new leader", tasks::rebuild(self.clone(), term));
    }

    /// Tells the dispatcher its share of this node's notifications, which changes as other shards come and go.
    fn pace(&self, state: &mut State) {
        if let Some(per_second) = self.shared.share() {
            state.dispatch.handle(self.now(), Event::Pace { per_second });
        }
    }

    fn after_apply(self: &Arc<Self>, term: u64, leader: u64, applied: Option<&Applied>) {
        let mut state = self.state();
        state.applied_term = term;
        if leader == self.shared.me.0 && state.leads == Some(term) && state.dispatch.term() != Some(term) {
            self.lead(&mut state, term);
        }
        let Some(applied) = applied else { return };
        if applied.effects.iter().any(|effect| matches!(effect, Effect::DirectoryChanged)) {
            self.publish_directory();
        }
        let Some(leads) = state.dispatch.term() else { return };
        if applied.effects.iter().any(|effect| matches!(effect, Effect::Restored)) {
            self.begin("what waits after a restore", tasks::rebuild(self.clone(), leads));
        }
        let mut touched = Touched::default();
        for effect in &applied.effects {
            touched.add(effect);
            self.take_effect(&mut state, effect);
        }
        for (terminal, stored) in touched {
            self.look_at(&mut state, terminal, stored);
        }
        self.rearm();
    }

    fn take_effect(&self, state: &mut State, effect: &Effect) {
        match effect {
            Effect::Stored { message, .. } => {
                state.traces.begin(*message, self.traced(Stage::Stored, self.shared.me));
            }
            Effect::Ended { message, end } => {
                state.traces.add(message, self.traced(end.stage(), self.shared.me));
                metrics::counter!("reveille_pushes_ended_total", "end" => end.stage().name()).increment(1);
                state.waiters.ended(message, *end);
            }
            Effect::Superseded { terminal, session } => {
                let message = SessionMessage::Supersede { terminal: *terminal, epoch: session.epoch };
                self.tell(session.node, message);
            }
            Effect::Acked { .. }
            | Effect::StatusChanged { .. }
            | Effect::Gone { .. }
            | Effect::DirectoryChanged
            | Effect::Restored => {}
        }
    }

    fn row(&self, table: &ReaderOf<'_, E>, terminal: &TerminalId) -> Option<Row> {
        self.checked(view::terminal(table, terminal)).flatten()
    }

    /// Hands the terminal's facts to the dispatcher and does what it decides. `stored`: what was stored for it just now.
    fn look_at(&self, state: &mut State, terminal: TerminalId, stored: Option<Stored>) {
        self.look(state, terminal, |facts| Event::Changed { terminal, facts, stored });
    }

    fn look(&self, state: &mut State, terminal: TerminalId, event: impl FnOnce(Option<Facts>) -> Event) {
        let table = self.tables.read();
        let Some(row) = self.checked(view::terminal(&table, &terminal)) else { return };
        let directory = self.shared.directory();
        let torn_off = self.shared.torn_off.read().unwrap_or_else(PoisonError::into_inner);
        let over =
            |node: NodeId, incarnation| directory.fenced(node, incarnation) || torn_off.contains(&node);
        let facts = row.as_ref().map(|row| Facts::of(row, over));
        drop(torn_off);
        let commands = state.dispatch.handle(self.now(), event(facts));
        self.carry_out(state, commands, &table, row.map(|row| (terminal, row)));
    }

    /// A notification that this shard ordered is over.
    fn notified(&self, terminal: TerminalId, notified: Notified) {
        let mut state = self.state();
        let event = match notified {
            Notified::Answered => Event::Notified { terminal, failed: None },
            Notified::Unanswered(why) => Event::Notified { terminal, failed: Some(why) },
            Notified::NotTried => Event::NotTried { terminal },
        };
        let commands = state.dispatch.handle(self.now(), event);
        self.execute(&mut state, commands);
        self.rearm();
    }

    /// A link to a node is there, on which it can be told whom to notify.
    pub(crate) fn linked(&self, node: NodeId) {
        let mut state = self.state();
        let commands = state.dispatch.handle(self.now(), Event::Linked { node });
        self.execute(&mut state, commands);
        drop(state);
        self.rearm();
    }

    /// A session's node reports.
    pub(crate) fn reported(&self, node: NodeId, report: Report) {
        if let Reported::Notified(notified) = report.what {
            return self.notified(report.terminal, notified);
        }
        let mut state = self.state();
        let Report { terminal, epoch, what, .. } = report;
        if let Reported::Delivered { upto } = what
            && let Some(row) = self.row(&self.tables.read(), &terminal)
        {
            let check = row.stream.check();
            for seq in (row.acked.next().0..=upto.0).rev().take(limits::SESSION_WINDOW) {
                let id = MessageId { terminal, check, seq: Seq(seq) };
                state.traces.add(&id, self.traced(Stage::Delivered, node));
            }
        }
        let event = Event::Reported { terminal, epoch, node, what };
        let commands = state.dispatch.handle(self.now(), event);
        self.execute(&mut state, commands);
        self.rearm();
    }

    /// Waits for a message's end; `None` if too many wait already.
    pub(crate) fn wait_for(self: &Arc<Self>, message: MessageId) -> Option<Waiting<E>> {
        let end = self.state().waiters.add(message)?;
        Some(Waiting { shard: self.clone(), message, end: Some(end) })
    }

    /// Answers a query from the tables as they stand. Tables that cannot be read stop the group here, so that another
    /// replica answers.
    pub(crate) fn read(&self, query: &Query) -> Answer {
        match self.read_tables(query) {
            Ok(answer) => answer,
            Err(error) => {
                let why = error.to_string();
                self.checked::<()>(Err(error));
                Answer::Unreadable(why)
            }
        }
    }

    fn read_tables(&self, query: &Query) -> Result<Answer, TableError> {
        let table = self.tables.read();
        Ok(match query {
            Query::Terminal { tenant, terminal } => {
                Answer::Terminal(view::terminal(&table, terminal)?.filter(|row| row.tenant == *tenant))
            }
            Query::Message { tenant, message, .. } => {
                let found = view::message(&table, *tenant, message)?;
                drop(table);
                Answer::Message(found.map(|found| MessageView::new(found, self.state().traces.of(message))))
            }
            Query::Terminals { tenant, after, limit } => {
                Answer::Terminals(query::terminals(&table, *tenant, *after, *limit)?)
            }
            Query::Limits => Answer::Limits(Box::new(service_list::settings(&table)?)),
            Query::Restore => Answer::Restore(view::restoring(&table)?.map(Into::into)),
            Query::Notifying { tenant, terminal } => {
                let row = view::terminal(&table, terminal)?.filter(|row| row.tenant == *tenant);
                drop(table);
                Answer::Notifying(row.and_then(|_| self.state().dispatch.notifying(terminal)))
            }
            // Raft knows, not the tables.
            Query::Shape => Answer::NotLeader(None),
        })
    }

    /// Terminals that something waits for, and those of them that no notification reaches; zero unless leading.
    pub(crate) fn waiting(&self) -> (usize, usize) {
        let state = self.state();
        (state.dispatch.len(), state.dispatch.unreachable())
    }

    /// The next terminals that something waits for, with the highest urgency of their pushes.
    fn next_waiting(
        &self,
        after: Option<TerminalId>,
    ) -> Result<Vec<(TerminalId, Option<Urgency>)>, TableError> {
        let table = self.tables.read();
        let waiting = view::waiting(&table, after, tasks::REBUILD_STEP)?;
        waiting
            .into_iter()
            .map(|terminal| Ok((terminal, view::highest_urgency(&table, &terminal)?)))
            .collect()
    }

    fn rearm(&self) {
        // Full means that the timer task is about to look anyway.
        let _ = self.wake.try_send(());
    }

    /// Tells this node of the directory as the tables have it.
    pub(crate) fn publish_directory(&self) {
        let Some(directory) = self.checked(directory::read(&self.tables.read())) else { return };
        let directory = Arc::new(directory);
        *self.shared.directory.write().unwrap_or_else(PoisonError::into_inner) = directory.clone();
        self.shared.host.directory(directory);
        // Full means that a look at the new directory is due anyway.
        let _ = self.shared.changed.try_send(());
    }
}

/// A publisher that waits; dropped, it is forgotten.
pub(crate) struct Waiting<E: Env> {
    shard: Arc<Shard<E>>,
    message: MessageId,
    end: Option<oneshot::Receiver<End>>,
}

impl<E: Env> Waiting<E> {
    /// Comes with the message's end, `true`, or when this node stops to lead.
    pub(crate) async fn end(&mut self) -> bool {
        match &mut self.end {
            // Cancelled says that nobody will tell any more.
            Some(end) => end.await.is_ok(),
            None => false,
        }
    }
}

impl<E: Env> Drop for Waiting<E> {
    fn drop(&mut self) {
        drop(self.end.take());
        self.shard.state().waiters.forget_gone(&self.message);
    }
}

impl<E: Env> Observer for Arc<Shard<E>> {
    fn applied(&self, term: u64, leader: u64, applied: Option<&Applied>) {
        self.after_apply(term, leader, applied);
    }

    fn replaced(&self) {
        if self.group == GroupId::META {
            self.publish_directory();
        }
    }
}
