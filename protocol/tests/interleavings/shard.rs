//! The shard's leader, as `cluster/src/shard.rs` drives the dispatcher: entries, effects, hand-offs, the rebuild at a
//! new leader. A deposed leader goes on for a while with the tables as it knew them.

use std::collections::VecDeque;

use reveille_protocol::dispatch::{Command, Dispatch, Event, Facts, Stored, Touched};
use reveille_protocol::id::*;
use reveille_protocol::service_list::row::{Reachability, Row, Urgency};
use reveille_protocol::service_list::{self as list, Applied, Effect, MemoryTable, Reply, apply, view};
use reveille_protocol::wire::entry::Entry;
use reveille_protocol::wire::peer::{Notified, NotifyOrder, Report, Reported, SessionMessage, Why};

use crate::faults::Fault;
use crate::notifier::Asked;
use crate::route::Outcome;
use crate::world::{GROUP, Happening, World};

/// Terminals that a new leader takes up at once.
const REBUILD_STEP: usize = 1;
const EXPIRY_TICK: u64 = 250;

/// Who waits for a command: the proposal, its copy, the node that it came from.
type Asker = (u64, u32, u64);

/// A node that leads the shard, or believes so.
pub struct Leader {
    pub node: u64,
    dispatch: Dispatch,
    /// The tables as a deposed leader knew them; `None`: those that are committed.
    frozen: Option<MemoryTable>,
    waiting: Vec<(list::Command, Option<Asker>)>,
    log: VecDeque<(Entry, Vec<Option<Asker>>)>,
}

impl World {
    pub fn leader(&self) -> Option<&Leader> {
        self.leaders.get(&self.term).filter(|leader| leader.frozen.is_none())
    }

    /// Whom a node takes for the leader: sometimes one that was deposed.
    pub fn believed_leader(&mut self) -> Option<u64> {
        let deposed = self.leaders.values().find(|leader| leader.frozen.is_some()).map(|leader| leader.node);
        let leads = self.leader().map(|leader| leader.node);
        if deposed.is_some() && self.dice.permille(300) { deposed } else { leads.or(deposed) }
    }

    /// A copy of a proposal reaches a node, which leads or says that it does not.
    pub fn copy_arrives(&mut self, proposal: u64, copy: u32, from: u64, to: u64, command: list::Command) {
        if !self.nodes[&to].alive {
            return;
        }
        if self.leader().is_some_and(|leader| leader.node == to) {
            return self.take(command, Some((proposal, copy, from)));
        }
        let outcome = Outcome::NotLeader;
        self.respond(to, from, Happening::Answer { proposal, copy, outcome });
    }

    fn respond(&mut self, from: u64, to: u64, answer: Happening) {
        if from == to {
            self.after(0, answer);
        } else {
            self.send(from, to, answer);
        }
    }

    fn take(&mut self, command: list::Command, asker: Option<Asker>) {
        let (term, wait) = (self.term, self.dice.below(3));
        let Some(leader) = self.leaders.get_mut(&term) else { return };
        leader.waiting.push((command, asker));
        if leader.waiting.len() == 1 {
            self.after(wait, Happening::Gather { term });
        }
    }

    /// Everything that waits becomes one entry.
    pub fn gather(&mut self, term: u64) {
        let time = self.group_time();
        let wait = self.dice.between(1, 8);
        let Some(leader) = self.leaders.get_mut(&term).filter(|leader| leader.frozen.is_none()) else {
            return;
        };
        let (commands, askers) = std::mem::take(&mut leader.waiting).into_iter().unzip();
        leader.log.push_back((Entry { time, commands }, askers));
        self.after(wait, Happening::Commit { term });
    }

    pub fn commit(&mut self, term: u64) {
        let Some(leader) = self.leaders.get_mut(&term).filter(|leader| leader.frozen.is_none()) else {
            return;
        };
        let node = leader.node;
        let Some((entry, askers)) = leader.log.pop_front() else { return };
        let replies = self.apply(&entry, Some(term));
        for (reply, asker) in replies.into_iter().zip(askers) {
            if let Some((proposal, copy, home)) = asker {
                let outcome = Outcome::Applied(reply);
                self.respond(node, home, Happening::Answer { proposal, copy, outcome });
            }
        }
    }

    /// Applies a committed entry; `leader`: whose dispatcher hears of it.
    fn apply(&mut self, entry: &Entry, leader: Option<u64>) -> Vec<Reply> {
        let entry = Entry::decode(&entry.encode()).expect("what is encoded decodes");
        let Applied { replies, effects, .. } =
            apply(&mut self.table, GROUP, &entry).expect("memory cannot fail");
        if self.loud {
            effects.iter().for_each(|effect| println!("{:>8}   {effect:?}", self.now));
        }
        self.history.applied(self.now, &self.table, &entry, &replies, &effects);
        for effect in &effects {
            if let Effect::Stored { message, .. } = effect
                && self.misses_its_session(&message.terminal)
            {
                self.history.waits_for_silence.insert(*message);
            }
        }
        if let Some(term) = leader {
            self.take_effects(term, &effects);
        }
        replies
    }

    /// Is the terminal's row of a session that the leader's own node does not have? The leader's shell learns of that
    /// by the silence timer only; another node would have reported it.
    fn misses_its_session(&self, terminal: &TerminalId) -> bool {
        let row = view::terminal(&self.table, terminal).expect("memory cannot fail");
        let Some((row, current)) = row.and_then(|row| row.current.map(|current| (row, current))) else {
            return false;
        };
        let leads = self.leader().is_some_and(|leader| leader.node == current.node.0);
        leads && !self.has_session(current.node.0, terminal, row.attempt)
    }

    fn take_effects(&mut self, term: u64, effects: &[Effect]) {
        let mut touched = Touched::default();
        for effect in effects {
            touched.add(effect);
            if let Effect::Superseded { terminal, session } = effect {
                let message = SessionMessage::Supersede { terminal: *terminal, epoch: session.epoch };
                let from = self.leaders[&term].node;
                self.tell(from, session.node.0, message);
            }
        }
        for (terminal, stored) in touched {
            self.look_at(term, terminal, stored);
        }
    }

    pub fn look_at(&mut self, term: u64, terminal: TerminalId, stored: Option<Stored>) {
        let facts = self.facts(term, &terminal);
        self.dispatch(term, Event::Changed { terminal, facts, stored });
    }

    fn facts(&self, term: u64, terminal: &TerminalId) -> Option<Facts> {
        let row = view::terminal(self.table_of(term), terminal).expect("memory cannot fail");
        row.as_ref().map(|row| Facts::of(row, |node, incarnation| self.fenced(node, incarnation)))
    }

    fn table_of(&self, term: u64) -> &MemoryTable {
        self.leaders.get(&term).and_then(|leader| leader.frozen.as_ref()).unwrap_or(&self.table)
    }

    /// An event for a leader's dispatcher, and what it decides.
    pub fn dispatch(&mut self, term: u64, event: Event) {
        let now = self.instant();
        let Some(leader) = self.leaders.get_mut(&term) else { return };
        let mut commands = VecDeque::from(leader.dispatch.handle(now, event));
        while let Some(command) = commands.pop_front() {
            let Some(node) = self.leaders.get(&term).map(|leader| leader.node) else { return };
            if self.unlucky(Fault::Node) {
                return self.kill(node);
            }
            let Some(event) = self.carry_out(term, node, command) else { continue };
            let Some(leader) = self.leaders.get_mut(&term) else { return };
            commands.extend(leader.dispatch.handle(now, event));
        }
        let next = self.leaders.get(&term).and_then(|leader| leader.dispatch.poll_timeout());
        if let Some(at) = next {
            self.at(at.0, Happening::DispatchTimer { term });
        }
    }

    fn carry_out(&mut self, term: u64, node: u64, command: Command) -> Option<Event> {
        match command {
            Command::HandOff(order) => {
                let table = self.table_of(term);
                let row = view::terminal(table, &order.terminal).expect("memory cannot fail");
                let fill = |row| order.fill(table, &row, (GROUP, term), self.group_time());
                let hand_off = row.map(|row| fill(row).expect("memory cannot fail"));
                let upto = hand_off.as_ref().and_then(|hand_off| hand_off.pushes.last()).map(|push| push.seq);
                let sent = hand_off
                    .is_some_and(|hand_off| self.tell(node, order.node.0, SessionMessage::HandOff(hand_off)));
                let upto = upto.filter(|_| sent);
                Some(Event::HandedOff { terminal: order.terminal, epoch: order.epoch, upto })
            }
            Command::Notify { terminal, urgency, attempt } => {
                let row = view::terminal(self.table_of(term), &terminal).expect("memory cannot fail");
                let Some(row) = row else { return Some(Event::NotTried { terminal }) };
                self.notify(node, terminal, &row, urgency, attempt)
            }
            Command::Detach { terminal, stream, epoch } => {
                if self.leader().is_some_and(|leader| leader.node == node) {
                    let detach = list::Detach { terminal, stream, epoch, ack: None };
                    self.take(list::Command::Detach(detach), None);
                }
                None
            }
        }
    }

    /// Has a terminal notified by whoever can.
    fn notify(
        &mut self,
        node: u64,
        terminal: TerminalId,
        row: &Row,
        urgency: Urgency,
        attempt: u32,
    ) -> Option<Event> {
        self.check_worth_waking(terminal);
        let order = NotifyOrder {
            group: GROUP,
            terminal,
            stream: row.stream,
            epoch: row.epoch,
            reachability: row.reachability,
            secret: row.secret,
            pending: row.pending,
            urgency,
            attempt,
        };
        let Reachability::Pinned { anchor, .. } = row.reachability else {
            self.order(node, order, Asked::Leader);
            return None;
        };
        if anchor.0 == node {
            self.order(node, order, Asked::Leader);
            return None;
        }
        // A link that is down says so; one that hangs does not.
        let down = !self.nodes[&anchor.0].alive && self.dice.permille(700);
        if !down && self.tell(node, anchor.0, SessionMessage::Notify(order)) {
            return None;
        }
        self.saw("orders for an anchor that is gone");
        Some(Event::Notified { terminal, failed: Some(Why::AnchorGone) })
    }

    /// To a session's node, which may be the leader's own; `false` if it certainly did not arrive.
    fn tell(&mut self, from: u64, to: u64, message: SessionMessage) -> bool {
        if from == to {
            return self.tell_here(to, message);
        }
        if self.bad_luck(self.storm.loss / 4) {
            return false;
        }
        if self.bad_luck(10) {
            self.send(from, to, Happening::Peer { from, to, message: message.clone() });
        }
        self.send(from, to, Happening::Peer { from, to, message });
        true
    }

    /// A leader whose own node does not have the session reports so to itself.
    fn tell_here(&mut self, node: u64, message: SessionMessage) -> bool {
        let session = message.session();
        let reached = self.reach_session(node, message);
        if let (false, Some((group, terminal, epoch))) = (reached, session) {
            let what = Reported::NoSuchSession { incarnation: Incarnation(self.nodes[&node].known()) };
            let report = Report { group, terminal, epoch, what };
            let message = SessionMessage::Report(report);
            self.after(0, Happening::Peer { from: node, to: node, message });
        }
        reached
    }

    /// Reports of a session's node go to whom it takes for the leader.
    pub fn report(&mut self, node: u64, report: Report) {
        let Some(to) = self.believed_leader() else { return };
        if to == node {
            return self.reported(node, to, report);
        }
        let message = SessionMessage::Report(report);
        self.send(node, to, Happening::Peer { from: node, to, message });
    }

    pub fn reported(&mut self, from: u64, at: u64, report: Report) {
        let Report { terminal, epoch, what, .. } = report;
        let event = match what {
            Reported::Notified(Notified::Answered) => Event::Notified { terminal, failed: None },
            Reported::Notified(Notified::Unanswered(why)) => Event::Notified { terminal, failed: Some(why) },
            Reported::Notified(Notified::NotTried) => Event::NotTried { terminal },
            what => Event::Reported { terminal, epoch, node: NodeId(from), what },
        };
        for term in self.terms_of(at) {
            self.dispatch(term, event.clone());
        }
    }

    fn terms_of(&self, node: u64) -> Vec<u64> {
        self.leaders.iter().filter(|(_, leader)| leader.node == node).map(|(term, _)| *term).collect()
    }

    pub fn dispatch_timer(&mut self, term: u64) {
        let due = self.leaders.get(&term).and_then(|leader| leader.dispatch.poll_timeout());
        if due.is_some_and(|at| at <= self.instant()) {
            self.dispatch(term, Event::Timeout);
        }
    }

    pub fn expiry_tick(&mut self, term: u64) {
        if self.leader().is_none() || term != self.term {
            return;
        }
        self.after(EXPIRY_TICK, Happening::ExpiryTick { term });
        let next = list::next_deadline(&self.table).expect("memory cannot fail");
        if next.is_some_and(|at| at <= self.group_time()) {
            self.take(list::Command::Expire, None);
        }
    }

    /// Fences may have changed: every leader looks at everything that waits.
    pub fn look_again(&mut self) {
        for term in self.leaders.keys().copied().collect::<Vec<_>>() {
            let waiting: Vec<_> = self.leaders[&term].dispatch.waiting().collect();
            for terminal in waiting {
                self.look_at(term, terminal, None);
            }
        }
    }

    /// The leader loses its place. Of its entries the next one finds some; it may go on for a while unknowing.
    pub fn depose(&mut self) {
        let term = self.term;
        let Some(mut leader) = self.leaders.remove(&term).filter(|leader| leader.frozen.is_none()) else {
            return;
        };
        self.say(|| format!("n{} loses term {term}", leader.node));
        let table = self.table.clone();
        let kept = self.dice.below(leader.log.len() as u64 + 1);
        for (entry, _) in leader.log.drain(..).take(kept as usize) {
            self.apply(&entry, None);
        }
        leader.waiting.clear();
        if self.nodes[&leader.node].alive && self.dice.permille(500) {
            leader.frozen = Some(table);
            self.leaders.insert(term, leader);
            let wait = self.dice.below(3000);
            self.after(wait, Happening::Deposed { term });
        }
        let wait = self.dice.between(100, self.storm.election);
        self.after(wait, Happening::Elect);
    }

    pub fn elect(&mut self) {
        if self.leader().is_some() {
            return;
        }
        let able: Vec<u64> = self.able_nodes();
        if able.is_empty() {
            return self.after(200, Happening::Elect);
        }
        let node = self.dice.pick(&able);
        // A node that leads again knows that its earlier term is over.
        self.leaders.retain(|_, leader| leader.node != node);
        self.term += 1;
        let term = self.term;
        self.say(|| format!("n{node} leads term {term}"));
        let leader = Leader {
            node,
            dispatch: Dispatch::default(),
            frozen: None,
            waiting: Vec::new(),
            log: VecDeque::new(),
        };
        self.leaders.insert(term, leader);
        self.dispatch(term, Event::Lead { term });
        self.after(0, Happening::Rebuild { term, after: None });
        self.after(EXPIRY_TICK, Happening::ExpiryTick { term });
    }

    /// A new leader takes up everything that waits, step by step.
    pub fn rebuild(&mut self, term: u64, mut after: Option<TerminalId>) {
        if self.leader().is_none() || term != self.term {
            return;
        }
        let found = view::waiting(&self.table, after, REBUILD_STEP).expect("memory cannot fail");
        if found.is_empty() {
            return;
        }
        for terminal in found {
            let urgency = view::highest_urgency(&self.table, &terminal).expect("memory cannot fail");
            let facts = self.facts(term, &terminal);
            self.dispatch(term, Event::Found { terminal, facts, urgency });
            after = Some(terminal);
        }
        self.after(1, Happening::Rebuild { term, after });
    }

    /// Does any leader have anything left to do?
    pub fn leaders_rest(&self) -> bool {
        self.leader().is_some_and(|leader| {
            leader.dispatch.is_empty() && leader.waiting.is_empty() && leader.log.is_empty()
        })
    }
}
