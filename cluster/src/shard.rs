//! The shell around one group's dispatcher at its leader: feeds it what apply established, carries out what it
//! decides. The decisions are `reveille_protocol::dispatch`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::channel::{mpsc, oneshot};
use openraft::async_runtime::Select2;
use openraft::type_config::TypeConfigExt;
use reveille_protocol::directory::{self, Directory};
use reveille_protocol::dispatch::{Command, Dispatch, Event, Facts};
use reveille_protocol::id::*;
use reveille_protocol::limits;
use reveille_protocol::service_list::row::{Row, Urgency};
use reveille_protocol::service_list::{self, Applied, Effect, TableError, view};
use reveille_protocol::stage::{End, Stage};
use reveille_protocol::time::{GroupTime, Instant};
use reveille_protocol::wire::peer::{HandOff, HandedPush, Report, Reported, SessionMessage};

use crate::clock::{Clocks, GroupClock};
use crate::env::{Env, Transport};
use crate::host::{Host, NotifyOrder};
use crate::link::Lane;
use crate::propose::Proposer;
use crate::query::{self, Answer, MessageView, Query};
use crate::raft::machine::Observer;
use crate::rpc::{Calls, Frame};
use crate::tables::Tables;
use crate::trace::{Traced, Traces};

/// Terminals that a new leader takes up at once while it rebuilds its soft state; between two such steps other
/// work has its turn.
const REBUILD_STEP: usize = 128;
/// How often a leader looks for what has ended by time. Bounds how late an expiry is seen.
const EXPIRY_TICK: Duration = Duration::from_millis(250);
/// Publishers that may wait for one group's messages at once.
const MAX_WAITERS: usize = 65_536;

type ReaderOf<'a, E> = <<E as Env>::Tables as Tables>::Reader<'a>;

/// What the shards of a node share.
pub(crate) struct Shared<E: Env> {
    pub(crate) me: NodeId,
    pub(crate) calls: Arc<Calls<E>>,
    pub(crate) clocks: Arc<Clocks<E::Cfg>>,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) directory: RwLock<Arc<Directory>>,
    /// Nodes that replicate each group, beside this one.
    pub(crate) peers: usize,
    /// Told when the directory changed: fences may have.
    pub(crate) changed: mpsc::Sender<()>,
}

impl<E: Env> Shared<E> {
    pub(crate) fn directory(&self) -> Arc<Directory> {
        self.directory.read().unwrap_or_else(PoisonError::into_inner).clone()
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
    waiters: BTreeMap<MessageId, Vec<oneshot::Sender<End>>>,
    waiting: usize,
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
            broken: Mutex::new(None),
        });
        let _detached = E::Cfg::spawn(timers(Arc::downgrade(&shard), woken));
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
        self.clock.now(|| self.shared.clocks.median(self.shared.peers))
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
        state.leads = term;
        match term {
            None => {
                state.dispatch.handle(self.now(), Event::Follow);
            }
            Some(term) => {
                let seen = self.checked(service_list::time(&self.tables.read())).unwrap_or_default();
                self.clock.begin(self.shared.clocks.median(self.shared.peers), seen);
                // A leader whose first entry is not applied yet does not know what its predecessor committed.
                if state.applied_term == term {
                    self.lead(&mut state, term);
                }
            }
        }
    }

    fn lead(self: &Arc<Self>, state: &mut State, term: u64) {
        state.dispatch.handle(self.now(), Event::Lead { term });
        let _detached = E::Cfg::spawn(rebuild(self.clone(), term));
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
        if state.dispatch.term().is_none() {
            return;
        }
        let mut touched: BTreeMap<TerminalId, Option<Urgency>> = BTreeMap::new();
        for effect in &applied.effects {
            self.take_effect(&mut state, effect, &mut touched);
        }
        for (terminal, stored) in touched {
            self.look_at(&mut state, terminal, stored);
        }
        self.rearm();
    }

    fn take_effect(
        &self,
        state: &mut State,
        effect: &Effect,
        touched: &mut BTreeMap<TerminalId, Option<Urgency>>,
    ) {
        match effect {
            Effect::Stored { message, urgency } => {
                let stored = touched.entry(message.terminal).or_default();
                *stored = (*stored).max(Some(*urgency));
                state.traces.begin(*message, self.traced(Stage::Stored, self.shared.me));
            }
            Effect::Ended { message, end } => {
                touched.entry(message.terminal).or_default();
                state.traces.add(message, self.traced(end.stage(), self.shared.me));
                metrics::counter!("reveille_pushes_ended_total", "end" => end.stage().name()).increment(1);
                if let Some(waiters) = state.waiters.remove(message) {
                    state.waiting -= waiters.len();
                    for waiter in waiters {
                        // The publisher may have stopped waiting.
                        let _ = waiter.send(*end);
                    }
                }
            }
            Effect::Acked { terminal, .. }
            | Effect::StatusChanged { terminal }
            | Effect::Gone { terminal } => {
                touched.entry(*terminal).or_default();
            }
            Effect::Superseded { terminal, session } => {
                let message = SessionMessage::Supersede { terminal: *terminal, epoch: session.epoch };
                self.tell(session.node, message);
            }
            Effect::DirectoryChanged => {}
        }
    }

    fn row(&self, table: &ReaderOf<'_, E>, terminal: &TerminalId) -> Option<Row> {
        self.checked(view::terminal(table, terminal)).flatten()
    }

    /// Hands the terminal's facts to the dispatcher and does what it decides.
    fn look_at(&self, state: &mut State, terminal: TerminalId, stored: Option<Urgency>) {
        let table = self.tables.read();
        let Some(row) = self.checked(view::terminal(&table, &terminal)) else { return };
        let directory = self.shared.directory();
        let facts = row.as_ref().map(|row| Facts::of(row, |node, inc| directory.fenced(node, inc)));
        let event = Event::Changed { terminal, facts, stored };
        let commands = state.dispatch.handle(self.now(), event);
        self.carry_out(state, commands, &table, row.map(|row| (terminal, row)));
    }

    fn execute(&self, state: &mut State, commands: Vec<Command>) {
        if !commands.is_empty() {
            self.carry_out(state, commands, &self.tables.read(), None);
        }
    }

    /// `seen`: a terminal's row as it stands in the table, if that was read already.
    fn carry_out(
        &self,
        state: &mut State,
        commands: Vec<Command>,
        table: &ReaderOf<'_, E>,
        seen: Option<(TerminalId, Row)>,
    ) {
        let row_of = |terminal: &TerminalId| match &seen {
            Some((whose, row)) if whose == terminal => Some(row.clone()),
            _ => self.row(table, terminal),
        };
        let mut commands = VecDeque::from(commands);
        while let Some(command) = commands.pop_front() {
            let event = match command {
                Command::HandOff { terminal, node, stream, epoch, attempt, after, maybe_seen, limit } => {
                    let hand_off = HandOff {
                        group: self.group,
                        term: state.dispatch.term().unwrap_or_default(),
                        terminal,
                        stream,
                        epoch,
                        attempt,
                        pushes: Vec::new(),
                        covers: Seq(0),
                    };
                    let upto = row_of(&terminal).and_then(|row| {
                        self.hand_off(state, table, &row, node, hand_off, after, maybe_seen, limit)
                    });
                    Event::HandedOff { terminal, epoch, upto }
                }
                Command::Notify { terminal, urgency, attempt } => {
                    if row_of(&terminal)
                        .is_some_and(|row| self.notify(state, terminal, &row, urgency, attempt))
                    {
                        continue;
                    }
                    Event::Notified { terminal, answered: false }
                }
                Command::Detach { terminal, stream, epoch } => {
                    if let Some(proposer) = self.proposer() {
                        let detach = service_list::Detach { terminal, stream, epoch, ack: None };
                        let detach = service_list::Command::Detach(detach);
                        // Whatever becomes of it, the row tells: its next look comes with the silence timer.
                        let _detached = E::Cfg::spawn(async move { proposer.propose(detach).await });
                    }
                    continue;
                }
            };
            commands.extend(state.dispatch.handle(self.now(), event));
        }
    }

    /// Reads what waits after `after` and sends it to the session's node; the last seq sent.
    #[allow(
        clippy::too_many_arguments,
        reason = "one caller; the command's fields, and what to read them from"
    )]
    fn hand_off(
        &self,
        state: &mut State,
        table: &ReaderOf<'_, E>,
        row: &Row,
        node: NodeId,
        mut hand_off: HandOff,
        after: Seq,
        maybe_seen: Seq,
        limit: usize,
    ) -> Option<Seq> {
        let terminal = hand_off.terminal;
        let now = self.group_time();
        // From the ack on, to know what is on its way already: it names `prev` and counts for `remaining`.
        let most = limits::SESSION_WINDOW * 2;
        let waiting = self.checked(view::pending(table, &terminal, row.acked.next(), row.next_seq, most))?;
        let check = hand_off.stream.check();
        let (mut prev, mut bytes) = (Seq(0), 0);
        for (index, (seq, message)) in waiting.into_iter().enumerate() {
            // What has expired by now will not be delivered, whoever leads next: group time never goes back.
            if message.deadline <= now {
                continue;
            }
            if seq > after {
                bytes += message.body.len();
                let full = hand_off.pushes.len() >= limit || bytes > limits::SESSION_WINDOW_BYTES;
                if full && !hand_off.pushes.is_empty() {
                    break;
                }
                hand_off.pushes.push(HandedPush {
                    seq,
                    prev,
                    maybe_seen: seq <= maybe_seen,
                    remaining: row.pending.saturating_sub(index as u32 + 1),
                    lives_for: message.deadline.since(now).as_millis() as u64,
                    channel: message.channel,
                    headers: message.headers,
                    body: message.body,
                });
            }
            prev = seq;
        }
        let upto = hand_off.pushes.last().map(|push| push.seq);
        hand_off.covers = upto.unwrap_or(Seq(row.next_seq.0 - 1));
        let seqs: Vec<Seq> = hand_off.pushes.iter().map(|push| push.seq).collect();
        let sent = self.tell(node, SessionMessage::HandOff(hand_off));
        for seq in seqs.into_iter().filter(|_| sent) {
            let id = MessageId { terminal, check, seq };
            state.traces.add(&id, self.traced(Stage::Attached, node));
            state.traces.add(&id, self.traced(Stage::HandedOff, node));
        }
        upto.filter(|_| sent)
    }

    /// Sends to a session's node, which may be this one; `false` if it certainly did not arrive.
    fn tell(&self, node: NodeId, message: SessionMessage) -> bool {
        if node == self.shared.me {
            return self.shared.host.session(message);
        }
        let frame = Frame::Session(Bytes::from(message.encode())).encode();
        self.shared.calls.transport().send(node, Lane::Data, frame).is_ok()
    }

    fn notify(
        &self,
        state: &mut State,
        terminal: TerminalId,
        row: &Row,
        urgency: Urgency,
        attempt: u32,
    ) -> bool {
        let taken = self.shared.host.notify(NotifyOrder {
            group: self.group,
            terminal,
            stream: row.stream,
            epoch: row.epoch,
            reachability: row.reachability,
            secret: row.secret,
            pending: row.pending,
            urgency,
            attempt,
        });
        if taken {
            let check = row.stream.check();
            let (from, to) = (row.acked.next().0, row.next_seq.0);
            // A trace per push, but not for the thousandth that joins an old queue.
            for seq in (from..to).rev().take(limits::SESSION_WINDOW) {
                let id = MessageId { terminal, check, seq: Seq(seq) };
                state.traces.add(&id, self.traced(Stage::Notified, self.shared.me));
            }
        }
        taken
    }

    /// A notification that this shard ordered is over.
    pub(crate) fn notified(&self, terminal: TerminalId, answered: bool) {
        let mut state = self.state();
        let commands = state.dispatch.handle(self.now(), Event::Notified { terminal, answered });
        self.execute(&mut state, commands);
        self.rearm();
    }

    /// A session's node reports.
    pub(crate) fn reported(&self, node: NodeId, report: Report) {
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

    /// Fences may have changed: looks at everything that waits.
    pub(crate) fn look_again(&self) {
        let mut state = self.state();
        let waiting: Vec<_> = state.dispatch.waiting().collect();
        for terminal in waiting {
            self.look_at(&mut state, terminal, None);
        }
        self.rearm();
    }

    /// Tells the caller when a message ends; `None` if too many wait already.
    pub(crate) fn wait_for(&self, message: MessageId) -> Option<oneshot::Receiver<End>> {
        let mut state = self.state();
        if state.waiting >= MAX_WAITERS {
            return None;
        }
        let (waiter, end) = oneshot::channel();
        state.waiting += 1;
        state.waiters.entry(message).or_default().push(waiter);
        Some(end)
    }

    /// The caller does not wait any more.
    pub(crate) fn stop_waiting(&self, message: &MessageId) {
        let mut state = self.state();
        if let Some(waiters) = state.waiters.get_mut(message) {
            let before = waiters.len();
            waiters.retain(|waiter| !waiter.is_canceled());
            let gone = before - waiters.len();
            let empty = waiters.is_empty();
            state.waiting -= gone;
            if empty {
                state.waiters.remove(message);
            }
        }
    }

    /// Answers a query from the tables as they stand.
    pub(crate) fn read(&self, query: &Query) -> Result<Answer, TableError> {
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
        })
    }

    /// Reads the directory from the tables, at start.
    pub(crate) fn reload_directory(&self) {
        self.publish_directory();
    }

    /// Terminals that something waits for, and those of them that no notification reaches; zero unless leading.
    pub(crate) fn waiting(&self) -> (usize, usize) {
        let state = self.state();
        (state.dispatch.len(), state.dispatch.unreachable())
    }

    /// The next terminals that something waits for, with the highest urgency of their first pushes.
    fn next_waiting(
        &self,
        after: Option<TerminalId>,
    ) -> Result<Vec<(TerminalId, Option<Urgency>)>, TableError> {
        let table = self.tables.read();
        let waiting = view::waiting(&table, after, REBUILD_STEP)?;
        waiting
            .into_iter()
            .map(|terminal| {
                let all = (Seq(0), Seq(u64::MAX));
                let pushes = view::pending(&table, &terminal, all.0, all.1, limits::SESSION_WINDOW)?;
                Ok((terminal, pushes.iter().map(|(_, message)| message.urgency).max()))
            })
            .collect()
    }

    fn rearm(&self) {
        // Full means that the timer task is about to look anyway.
        let _ = self.wake.clone().try_send(());
    }

    fn publish_directory(&self) {
        let Some(directory) = self.checked(directory::read(&self.tables.read())) else { return };
        let directory = Arc::new(directory);
        *self.shared.directory.write().unwrap_or_else(PoisonError::into_inner) = directory.clone();
        self.shared.host.directory(directory);
        // Full means that a look at the new directory is due anyway.
        let _ = self.shared.changed.clone().try_send(());
    }
}

impl<E: Env> Observer for Arc<Shard<E>> {
    fn applied(&self, term: u64, leader: u64, applied: Option<&Applied>) {
        self.after_apply(term, leader, applied);
    }

    fn replaced(&self) {
        if self.group == GroupId(0) {
            self.publish_directory();
        }
    }
}

/// A new leader takes up everything that waits, step by step.
async fn rebuild<E: Env>(shard: Arc<Shard<E>>, term: u64) {
    let mut after = None;
    loop {
        let found = shard.checked(shard.next_waiting(after)).unwrap_or_default();
        {
            let mut state = shard.state();
            if found.is_empty() || state.dispatch.term() != Some(term) {
                return;
            }
            for (terminal, urgency) in found {
                shard.look_at(&mut state, terminal, urgency);
                after = Some(terminal);
            }
        }
        shard.rearm();
        E::Cfg::yield_now().await;
    }
}

/// Runs the dispatcher's timers and looks for what has ended by time, until the shard is gone.
async fn timers<E: Env>(shard: std::sync::Weak<Shard<E>>, mut woken: mpsc::Receiver<()>) {
    let mut looked = Instant(0);
    loop {
        let wait = {
            let Some(shard) = shard.upgrade() else { return };
            let state = shard.state();
            match (state.dispatch.term(), state.dispatch.poll_timeout()) {
                (None, _) => None,
                (Some(_), None) => Some(EXPIRY_TICK),
                (Some(_), Some(at)) => Some(at.since(shard.now()).min(EXPIRY_TICK)),
            }
        };
        match wait {
            // A follower sleeps until it leads.
            None if woken.next().await.is_none() => return,
            None => {}
            Some(wait) => {
                if let Select2::First(None) = E::Cfg::select2(woken.next(), E::Cfg::sleep(wait)).await {
                    return;
                }
            }
        }
        let Some(shard) = shard.upgrade() else { return };
        let leads = {
            let mut state = shard.state();
            let commands = state.dispatch.handle(shard.now(), Event::Timeout);
            shard.execute(&mut state, commands);
            state.dispatch.term().is_some()
        };
        if leads && shard.now().since(looked) >= EXPIRY_TICK {
            looked = shard.now();
            expire(&shard).await;
        }
    }
}

/// Proposes an Expire if something is due.
async fn expire<E: Env>(shard: &Arc<Shard<E>>) {
    let next = shard.checked(service_list::next_deadline(&shard.tables.read())).flatten();
    if next.is_some_and(|at| at <= shard.group_time())
        && let Some(proposer) = shard.proposer()
    {
        // What it did not get to is due at the next look.
        proposer.propose(service_list::Command::Expire).await;
    }
}
