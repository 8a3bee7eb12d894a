//! What the shard leader does about a pending push: look the terminal's status up, hand off or notify. The
//! source's "status determination". A sans-IO machine with soft state only for terminals that something waits for.
//!
//! It is driven by levels, not edges: after each change of a terminal's row the shell hands in the row's
//! [`Facts`], and the machine compares them with what it has already done. So a lost message, a repeated one, or
//! a new leader that starts with nothing all come to the same: the next look at the facts repairs it.

mod hand_off;
pub mod ladder;
mod line;
mod touched;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::hand_off::HandOffOrder;
use self::line::{Line, Place};
pub use self::touched::{Stored, Touched};
use crate::id::*;
use crate::limits;
use crate::service_list::row::{Current, Reachability, Row, Urgency};
use crate::time::Instant;
use crate::wire::peer::{Reported, Why};

/// How long the leader waits for a session's acks before it notifies the terminal as well: its node may be
/// stopped, and a stopped node still takes what is sent to it.
const SILENCE: Duration = Duration::from_secs(3);
/// A notification whose outcome is not told within this counts as over: longer than a dial and the notifier's queue
/// before it. Without it one lost outcome would strand the terminal until its check-in.
const OUTCOME: Duration = Duration::from_secs(60);
/// A push that is stored for a terminal high on the ladder is tried at once, after its urgency's first wait, and this long
/// after the last try at the soonest: whoever publishes waits. Sooner, each push for a terminal that is switched off would be
/// a notification. One that is stored while a try is under way shares that try.
const FRESH: Duration = Duration::from_secs(30);

/// What the machine needs to know of a terminal, as its row says it now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Its life.
    pub stream: Stream,
    /// Last granted epoch.
    pub epoch: Epoch,
    /// The attempt that got it.
    pub attempt: Attempt,
    /// The current session, unless its node is fenced.
    pub session: Option<Current>,
    /// How to notify it.
    pub reachability: Reachability,
    /// Pushes that wait.
    pub pending: u32,
    /// Seq of the next push.
    pub next_seq: Seq,
    /// Everything up to here is confirmed.
    pub acked: Seq,
    /// Pushes below this do not wake it.
    pub min_urgency: Urgency,
}

impl Facts {
    /// The facts in a row; `fenced` tells whether a node's incarnation is over.
    pub fn of(row: &Row, fenced: impl Fn(NodeId, Incarnation) -> bool) -> Facts {
        Facts {
            stream: row.stream,
            epoch: row.epoch,
            attempt: row.attempt,
            session: row.current.filter(|session| !fenced(session.node, session.incarnation)),
            reachability: row.reachability,
            pending: row.pending,
            next_seq: row.next_seq,
            acked: row.acked,
            min_urgency: row.min_urgency,
        }
    }
}

/// Everything that can happen to the dispatcher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// This node leads the shard, and has applied an entry of its own term. Soft state starts empty.
    Lead {
        /// The term.
        term: u64,
    },
    /// It does not lead any more.
    Follow,
    /// So many notifications a second may be ordered from now on: this shard's share of what its node sends. Before the
    /// first of these there is no bound.
    Pace {
        /// How many.
        per_second: NonZeroU32,
    },
    /// A terminal's row changed, or is looked at again; `None`: it is gone.
    Changed {
        /// Whose.
        terminal: TerminalId,
        /// What it says now.
        facts: Option<Facts>,
        /// What was stored for it just now.
        stored: Option<Stored>,
    },
    /// A new leader found that something waits, with this highest urgency. Unlike a push that is stored now, the
    /// leader before may have handed it off.
    Found {
        /// For whom.
        terminal: TerminalId,
        /// What its row says now.
        facts: Option<Facts>,
        /// The urgency.
        urgency: Option<Urgency>,
    },
    /// A hand-off went out with pushes up to here; `None`: there was nothing to send.
    HandedOff {
        /// Whose.
        terminal: TerminalId,
        /// Under which epoch.
        epoch: Epoch,
        /// Last seq sent.
        upto: Option<Seq>,
    },
    /// A session's node reports.
    Reported {
        /// Whose session.
        terminal: TerminalId,
        /// Its epoch.
        epoch: Epoch,
        /// The node that reports.
        node: NodeId,
        /// What.
        what: Reported,
    },
    /// A notification is over.
    Notified {
        /// Whose.
        terminal: TerminalId,
        /// Why the terminal did not acknowledge it, if it did not.
        failed: Option<Why>,
    },
    /// A notification could not go out now: too many wait, or a budget is used up. It says nothing of the terminal.
    NotTried {
        /// Whose.
        terminal: TerminalId,
    },
    /// A notification was not taken: whoever sends them has no room now, for this terminal or any other.
    NoRoom {
        /// Whose.
        terminal: TerminalId,
    },
    /// A link to this node is there: what was ordered of it before may be lost, and what could not be can.
    Linked {
        /// The node.
        node: NodeId,
    },
    /// [`Dispatch::poll_timeout`] has come.
    Timeout,
}

/// What the shell must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Fill it, send that to the node; answer with `HandedOff`.
    HandOff(HandOffOrder),
    /// Send a notification; answer with `Notified`.
    Notify {
        /// To whom.
        terminal: TerminalId,
        /// The highest urgency that waits.
        urgency: Urgency,
        /// Tries made before for the same pushes.
        attempt: u32,
    },
    /// Propose the end of a session that its own node does not know.
    Detach {
        /// Whose.
        terminal: TerminalId,
        /// Its life.
        stream: Stream,
        /// The epoch that is over.
        epoch: Epoch,
    },
}

/// What a look at a terminal's facts brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    /// Pushes were stored just now, and nothing else waits.
    Alone,
    /// A push was stored just now.
    Stored,
    /// No push that is new.
    Nothing,
}

/// A terminal that something waits for.
#[derive(Debug, Clone)]
struct Waiting {
    facts: Facts,
    /// Highest seq handed off under `facts.epoch`; goes back when what was handed off must be sent again.
    handed: Seq,
    /// The same, but never goes back within an epoch.
    reached: Seq,
    /// Highest seq handed off under earlier epochs: may have been seen.
    exposed: Seq,
    /// Highest urgency since the queue was last empty.
    urgency: Urgency,
    /// Where on the ladder: tries made for what waits now.
    step: u32,
    /// When a notification was ordered that is not over yet.
    notifying: Option<Instant>,
    /// When the last one was ordered.
    tried: Option<Instant>,
    /// Why the last one that is over failed.
    failed: Option<Why>,
    /// When to notify next, or to notify besides the hand-off.
    next: Option<Instant>,
    /// Where it stands in the line for a notification.
    place: Option<Place>,
    /// Stands behind first tries: nothing was stored for it under this leader, or since a link to its anchor is back.
    found: bool,
}

impl Waiting {
    fn unreachable(&self) -> bool {
        self.facts.session.is_none() && self.step > ladder::UNREACHABLE_AFTER
    }

    /// Can it be notified at all, and does what waits call for it?
    fn can(&self) -> bool {
        self.facts.reachability != Reachability::None && self.urgency >= self.facts.min_urgency
    }
}

/// How a terminal is being notified. Sent between nodes: append only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notifying {
    /// Notifications ordered for what waits now.
    pub tries: u32,
    /// Why the last one that is over failed; `None` also before the first.
    pub failed: Option<Why>,
    /// Several did not reach it. It is still tried.
    pub unreachable: bool,
}

/// The dispatcher of one shard.
#[derive(Debug, Default)]
pub struct Dispatch {
    term: Option<u64>,
    waiting: BTreeMap<TerminalId, Waiting>,
    timers: BTreeSet<(Instant, TerminalId)>,
    line: Line,
}

impl Dispatch {
    /// The term under which this node leads the shard, if it does.
    pub fn term(&self) -> Option<u64> {
        self.term
    }

    /// Terminals that something waits for.
    pub fn waiting(&self) -> impl Iterator<Item = TerminalId> + '_ {
        self.waiting.keys().copied()
    }

    /// Terminals that something waits for, in number.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Does anything wait?
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Terminals that several notifications did not reach.
    pub fn unreachable(&self) -> usize {
        self.waiting.values().filter(|waiting| waiting.unreachable()).count()
    }

    /// What has come of the notifications for a terminal, while something waits and it has no session.
    pub fn notifying(&self, terminal: &TerminalId) -> Option<Notifying> {
        let waiting = self.waiting.get(terminal).filter(|waiting| waiting.facts.session.is_none())?;
        Some(Notifying { tries: waiting.step, failed: waiting.failed, unreachable: waiting.unreachable() })
    }

    /// When to call again with [`Event::Timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let timer = self.timers.first().map(|(at, _)| *at);
        timer.into_iter().chain(self.line.opens()).min()
    }

    /// Takes one event in.
    pub fn handle(&mut self, now: Instant, event: Event) -> Vec<Command> {
        let mut out = Vec::new();
        match event {
            Event::Lead { term } => *self = Dispatch { term: Some(term), ..Dispatch::default() },
            Event::Follow => *self = Dispatch::default(),
            _ if self.term.is_none() => {}
            Event::Pace { per_second } => self.line.pace(now, per_second),
            Event::Changed { terminal, facts, stored } => {
                let news = match stored {
                    Some(stored) if facts.is_some_and(|facts| facts.pending == stored.waiting) => News::Alone,
                    Some(_) => News::Stored,
                    None => News::Nothing,
                };
                let urgency = stored.map(|stored| stored.urgency);
                self.changed(now, terminal, facts, urgency, news, &mut out);
            }
            Event::Found { terminal, facts, urgency } => {
                self.changed(now, terminal, facts, urgency, News::Nothing, &mut out);
            }
            Event::HandedOff { terminal, epoch, upto } => {
                if let (Some(waiting), Some(upto)) = (self.of_epoch(&terminal, epoch), upto) {
                    waiting.handed = waiting.handed.max(upto);
                    waiting.reached = waiting.reached.max(upto);
                }
            }
            Event::Reported { terminal, epoch, node, what } => {
                self.reported(now, terminal, epoch, node, what, &mut out);
            }
            Event::NotTried { terminal } => self.not_tried(now, terminal),
            Event::NoRoom { terminal } => self.no_room(now, terminal),
            Event::Notified { terminal, failed } => self.notified(now, terminal, failed),
            Event::Linked { node } => self.linked(now, node, &mut out),
            Event::Timeout => self.timeout(now, &mut out),
        }
        out
    }

    fn changed(
        &mut self,
        now: Instant,
        terminal: TerminalId,
        facts: Option<Facts>,
        urgency: Option<Urgency>,
        news: News,
        out: &mut Vec<Command>,
    ) {
        let Some(facts) = facts.filter(|facts| facts.pending > 0) else {
            self.set_timer(&terminal, None);
            self.leave_line(&terminal);
            self.waiting.remove(&terminal);
            return;
        };
        let waiting = self.waiting.entry(terminal).or_insert_with(|| Waiting {
            facts,
            handed: facts.acked,
            reached: facts.acked,
            // A terminal first met while something waits: nobody has seen what was stored just now; otherwise, at a new leader,
            // all of it may have been handed off by the one before.
            exposed: if news == News::Alone { facts.acked } else { Seq(facts.next_seq.0 - 1) },
            urgency: Urgency::VeryLow,
            step: 0,
            notifying: None,
            tried: None,
            failed: None,
            next: None,
            place: None,
            found: true,
        });
        waiting.found &= news == News::Nothing;
        waiting.urgency = waiting.urgency.max(urgency.unwrap_or(Urgency::VeryLow));
        let before = std::mem::replace(&mut waiting.facts, facts);
        let new_session = (before.stream, before.epoch) != (facts.stream, facts.epoch);
        if new_session {
            waiting.exposed = match before.stream == facts.stream {
                true => waiting.exposed.max(waiting.reached),
                false => Seq(0),
            };
            waiting.handed = facts.acked;
            waiting.reached = facts.acked;
        }
        waiting.handed = waiting.handed.max(facts.acked);
        let progress = facts.acked > before.acked;
        if facts.session.is_some() {
            if new_session || progress {
                waiting.step = 0;
                self.leave_line(&terminal);
            }
            self.hand_off(now, terminal, new_session || progress, out);
        } else {
            let went_offline = before.session.is_some();
            self.notify(now, terminal, went_offline || new_session, news, out);
        }
    }

    /// Sends what the session's window has room for, and watches for its acks.
    fn hand_off(&mut self, now: Instant, terminal: TerminalId, progress: bool, out: &mut Vec<Command>) {
        let Some(&Waiting { facts, handed, exposed, next, .. }) = self.waiting.get(&terminal) else { return };
        let Some(session) = facts.session else { return };
        if progress || next.is_none() {
            self.set_timer(&terminal, Some(now + SILENCE));
        }
        // Holes of ended pushes count as if they were on the way; acks pass over them.
        let on_the_way = handed.0.saturating_sub(facts.acked.0) as usize;
        let room = limits::SESSION_WINDOW.saturating_sub(on_the_way);
        if handed.next() < facts.next_seq && room > 0 {
            out.push(Command::HandOff(HandOffOrder {
                terminal,
                node: session.node,
                stream: facts.stream,
                epoch: facts.epoch,
                attempt: facts.attempt,
                after: handed,
                maybe_seen: exposed,
                limit: room,
            }));
        }
    }

    /// Starts the ladder, or lets the one that runs go on.
    fn notify(
        &mut self,
        now: Instant,
        terminal: TerminalId,
        afresh: bool,
        news: News,
        out: &mut Vec<Command>,
    ) {
        let Some(waiting) = self.waiting.get_mut(&terminal) else { return };
        if afresh {
            waiting.step = 0;
        }
        if !waiting.can() {
            self.leave_line(&terminal);
            return self.set_timer(&terminal, None);
        }
        if waiting.place.is_some() {
            return;
        }
        let due = match waiting.next.filter(|_| !afresh) {
            // More urgent than what the ladder was waiting with: not later than its own first step.
            Some(next) if waiting.step == 0 => next.min(now + ladder::first(waiting.urgency)),
            Some(next) if news != News::Nothing => {
                let soonest = waiting.tried.map_or(now, |tried| now.max(tried + FRESH));
                next.min(soonest + ladder::first(waiting.urgency))
            }
            Some(next) => next,
            None if waiting.notifying.is_some() => return,
            None => now + ladder::first(waiting.urgency),
        };
        self.set_timer(&terminal, Some(due));
        if due <= now {
            self.timeout(now, out);
        }
    }

    fn reported(
        &mut self,
        now: Instant,
        terminal: TerminalId,
        epoch: Epoch,
        node: NodeId,
        what: Reported,
        out: &mut Vec<Command>,
    ) {
        let Some(waiting) = self.of_epoch(&terminal, epoch) else { return };
        let Some(session) = waiting.facts.session.filter(|session| session.node == node) else { return };
        match what {
            // Only the row's own incarnation can say that its session is not there.
            Reported::NoSuchSession { incarnation } if incarnation == session.incarnation => {
                let stream = waiting.facts.stream;
                out.push(Command::Detach { terminal, stream, epoch });
            }
            Reported::NoSuchSession { .. } | Reported::Delivered { .. } | Reported::Notified(_) => {}
            Reported::Resend { from } => {
                waiting.handed = waiting.facts.acked.max(Seq(from.0.saturating_sub(1)));
                self.hand_off(now, terminal, true, out);
            }
        }
    }

    fn notified(&mut self, now: Instant, terminal: TerminalId, failed: Option<Why>) {
        let Some(waiting) = self.waiting.get_mut(&terminal) else { return };
        waiting.notifying = None;
        waiting.failed = failed;
        if waiting.facts.session.is_some() {
            return;
        }
        let wait = match failed {
            // A terminal that answered is on its way: give it the time of one connect before asking again.
            None => ladder::after(waiting.step, &terminal).max(ladder::CONNECTING),
            Some(Why::Budget) => ladder::after_spent(waiting.step, &terminal),
            Some(_) => ladder::after(waiting.step, &terminal),
        };
        self.set_timer(&terminal, Some(now + wait));
    }

    /// Begins anew with those whose session or anchor could not be told, or may not have been: what the link lost says nothing of
    /// itself.
    fn linked(&mut self, now: Instant, node: NodeId, out: &mut Vec<Command>) {
        let here = |waiting: &Waiting| waiting.facts.session.is_some_and(|session| session.node == node);
        for terminal in self.those(here) {
            if let Some(waiting) = self.waiting.get_mut(&terminal) {
                (waiting.handed, waiting.step) = (waiting.facts.acked, 0);
            }
            self.hand_off(now, terminal, true, out);
        }
        let untold = |waiting: &Waiting| {
            let pinned =
                matches!(waiting.facts.reachability, Reachability::Pinned { anchor, .. } if anchor == node);
            let lost = waiting.notifying.is_some() || waiting.failed == Some(Why::AnchorGone);
            pinned && lost && waiting.facts.session.is_none()
        };
        for terminal in self.those(untold) {
            if let Some(waiting) = self.waiting.get_mut(&terminal) {
                // Tried in vain before: behind those with a first try, until a push is stored.
                waiting.found |= waiting.step > 1;
                (waiting.notifying, waiting.step) = (None, 0);
            }
            self.set_timer(&terminal, Some(now));
        }
        self.timeout(now, out);
    }

    fn those(&self, wanted: impl Fn(&Waiting) -> bool) -> Vec<TerminalId> {
        let those = self.waiting.iter().filter(|(_, waiting)| wanted(waiting));
        those.map(|(terminal, _)| *terminal).collect()
    }

    /// The same step of the ladder again, a little later.
    fn not_tried(&mut self, now: Instant, terminal: TerminalId) {
        let Some(waiting) = self.waiting.get_mut(&terminal) else { return };
        waiting.notifying = None;
        if waiting.facts.session.is_none() {
            waiting.step = waiting.step.saturating_sub(1);
            self.set_timer(&terminal, Some(now + ladder::not_tried(&terminal)));
        }
    }

    /// The same step of the ladder again, in the first place of a line that stands for a while.
    fn no_room(&mut self, now: Instant, terminal: TerminalId) {
        self.line.busy(now);
        let Some(waiting) = self.waiting.get_mut(&terminal) else { return };
        waiting.notifying = None;
        if waiting.facts.session.is_none() {
            waiting.step = waiting.step.saturating_sub(1);
            self.set_timer(&terminal, None);
            self.join_line(Instant(0), terminal);
        }
    }

    fn timeout(&mut self, now: Instant, out: &mut Vec<Command>) {
        while let Some((at, terminal)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.set_timer(&terminal, None);
            let Some(waiting) = self.waiting.get_mut(&terminal) else { continue };
            let facts = waiting.facts;
            let offline = facts.session.is_none();
            if let Some(at) = waiting.notifying.map(|since| since + OUTCOME)
                && offline
                && now < at
            {
                // What is under way tells of itself; if it never does, it is as good as over.
                self.set_timer(&terminal, Some(at));
                continue;
            }
            if waiting.can() && (offline || waiting.notifying.is_none()) {
                self.join_line(at, terminal);
            }
            if !offline {
                self.silent(now, terminal, facts.acked, out);
            }
        }
        self.call(now, out);
    }

    /// The session is silent: a hand-off was lost, or its node is stopped, or the application is slow. Hand off again (the
    /// session drops what it already sent), and look again later.
    fn silent(&mut self, now: Instant, terminal: TerminalId, acked: Seq, out: &mut Vec<Command>) {
        let Some(waiting) = self.waiting.get_mut(&terminal) else { return };
        waiting.step += 1;
        waiting.handed = acked;
        // A session that has what was handed off and does not confirm it ends within that deadline.
        let wait = ladder::after(waiting.step, &terminal).clamp(SILENCE, limits::ACK_DEADLINE);
        self.set_timer(&terminal, Some(now + wait));
        self.hand_off(now, terminal, false, out);
    }

    /// Notifies those in the line whose turn it is.
    fn call(&mut self, now: Instant, out: &mut Vec<Command>) {
        while let Some(terminal) = self.line.next(now) {
            let Some(waiting) = self.waiting.get_mut(&terminal) else { continue };
            waiting.place = None;
            (waiting.notifying, waiting.tried) = (Some(now), Some(now));
            let offline = waiting.facts.session.is_none();
            // Of a silent session the step was counted with its hand-off.
            let attempt = if offline { waiting.step } else { waiting.step.saturating_sub(1) };
            out.push(Command::Notify { terminal, urgency: waiting.urgency, attempt });
            if offline {
                waiting.step += 1;
                self.set_timer(&terminal, Some(now + OUTCOME));
            }
        }
    }

    fn join_line(&mut self, due: Instant, terminal: TerminalId) {
        let Some(waiting) = self.waiting.get_mut(&terminal) else { return };
        if waiting.place.is_none() {
            let place = Place { behind: waiting.found || waiting.step > 0, due };
            waiting.place = Some(place);
            self.line.join(place, terminal);
        }
    }

    fn leave_line(&mut self, terminal: &TerminalId) {
        let place = self.waiting.get_mut(terminal).and_then(|waiting| waiting.place.take());
        if let Some(place) = place {
            self.line.leave(place, *terminal);
        }
    }

    fn of_epoch(&mut self, terminal: &TerminalId, epoch: Epoch) -> Option<&mut Waiting> {
        self.waiting.get_mut(terminal).filter(|waiting| waiting.facts.epoch == epoch)
    }

    fn set_timer(&mut self, terminal: &TerminalId, at: Option<Instant>) {
        let Some(waiting) = self.waiting.get_mut(terminal) else { return };
        if let Some(old) = std::mem::replace(&mut waiting.next, at) {
            self.timers.remove(&(old, *terminal));
        }
        if let Some(at) = at {
            self.timers.insert((at, *terminal));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(epoch: u64) -> Facts {
        Facts {
            stream: Stream(7),
            epoch: Epoch(epoch),
            attempt: Attempt(epoch),
            session: Some(Current { node: NodeId(1), incarnation: Incarnation(1) }),
            reachability: Reachability::None,
            pending: 1,
            next_seq: Seq(2),
            acked: Seq(0),
            min_urgency: Urgency::VeryLow,
        }
    }

    fn marked_up_to(commands: &[Command]) -> Option<Seq> {
        commands.iter().find_map(|command| match command {
            Command::HandOff(order) => Some(order.maybe_seen),
            Command::Notify { .. } | Command::Detach { .. } => None,
        })
    }

    #[test]
    fn a_notification_whose_outcome_is_never_told_is_ordered_again() {
        let terminal = TerminalId([1; 16]);
        let mut dispatch = Dispatch::default();
        dispatch.handle(Instant(0), Event::Lead { term: 1 });
        let reachability = Reachability::Pinned { anchor: NodeId(1), listening_key: KeyFingerprint([2; 32]) };
        let facts = Facts { session: None, reachability, ..facts(1) };
        let stored = Event::Changed {
            terminal,
            facts: Some(facts),
            stored: Some(Stored::one(Seq(1), Urgency::Normal)),
        };
        let orders = |commands: &[Command]| {
            commands.iter().filter(|command| matches!(command, Command::Notify { .. })).count()
        };
        assert_eq!(orders(&dispatch.handle(Instant(0), stored.clone())), 1);
        assert_eq!(orders(&dispatch.handle(Instant(10), stored)), 0, "one is under way");
        let mut now = Instant(0);
        for expected in [1, 1] {
            let begun = now;
            let mut ordered = 0;
            while ordered == 0 {
                now = dispatch.poll_timeout().expect("a timer");
                ordered = orders(&dispatch.handle(now, Event::Timeout));
            }
            assert_eq!((ordered, now.since(begun)), (expected, OUTCOME));
        }
    }

    /// A terminal that is pinned to node 2, and for which a push was stored at 0: what was ordered then.
    fn pinned(terminal: TerminalId) -> (Dispatch, Facts) {
        let mut dispatch = Dispatch::default();
        dispatch.handle(Instant(0), Event::Lead { term: 1 });
        let reachability = Reachability::Pinned { anchor: NodeId(2), listening_key: KeyFingerprint([2; 32]) };
        let facts = Facts { session: None, reachability, ..facts(1) };
        let stored = Event::Changed {
            terminal,
            facts: Some(facts),
            stored: Some(Stored::one(Seq(1), Urgency::Normal)),
        };
        assert_eq!(tries(&dispatch.handle(Instant(0), stored)), [0]);
        (dispatch, facts)
    }

    /// The attempts that were ordered.
    fn tries(commands: &[Command]) -> Vec<u32> {
        let attempt = |command: &Command| match command {
            Command::Notify { attempt, .. } => Some(*attempt),
            Command::HandOff(_) | Command::Detach { .. } => None,
        };
        commands.iter().filter_map(attempt).collect()
    }

    /// Has every notification fail, until the next is more than `wait` away; when the last one failed.
    fn fail_until(dispatch: &mut Dispatch, terminal: TerminalId, why: Why, wait: Duration) -> Instant {
        let mut now = Instant(0);
        loop {
            dispatch.handle(now, Event::Notified { terminal, failed: Some(why) });
            let next = dispatch.poll_timeout().expect("a timer");
            if next.since(now) > wait {
                return now;
            }
            now = next;
            assert_eq!(tries(&dispatch.handle(now, Event::Timeout)).len(), 1);
        }
    }

    #[test]
    fn an_anchor_that_is_back_is_told_at_once_what_it_was_not() {
        let terminal = TerminalId([1; 16]);
        // What was ordered went with the link, and nothing is told of it.
        let (mut dispatch, _) = pinned(terminal);
        let linked = |node| Event::Linked { node: NodeId(node) };
        assert_eq!(dispatch.handle(Instant(2000), linked(3)), [], "another node");
        assert_eq!(tries(&dispatch.handle(Instant(2000), linked(2))), [0]);
        // There was no link to order it by.
        let (mut dispatch, _) = pinned(terminal);
        let now = fail_until(&mut dispatch, terminal, Why::AnchorGone, Duration::from_secs(60));
        assert_eq!(tries(&dispatch.handle(now + Duration::from_secs(1), linked(2))), [0]);
        // It did what it was told.
        let (mut dispatch, _) = pinned(terminal);
        dispatch.handle(Instant(5), Event::Notified { terminal, failed: Some(Why::NoAnswer) });
        assert_eq!(dispatch.handle(Instant(10), linked(2)), []);
    }

    #[test]
    fn a_session_gets_at_once_what_the_link_to_its_node_may_have_lost() {
        let terminal = TerminalId([1; 16]);
        let mut dispatch = Dispatch::default();
        dispatch.handle(Instant(0), Event::Lead { term: 1 });
        let stored = Some(Stored::one(Seq(1), Urgency::Normal));
        dispatch.handle(Instant(0), Event::Changed { terminal, facts: Some(facts(1)), stored });
        let handed = |upto| Event::HandedOff { terminal, epoch: Epoch(1), upto };
        dispatch.handle(Instant(0), handed(Some(Seq(1))));
        let after = |commands: &[Command]| match commands {
            [Command::HandOff(order)] => Some(order.after),
            _ => None,
        };
        // Silence, for as long as it takes to be asked seldom.
        let mut now = Instant(0);
        for _ in 0..6 {
            now = dispatch.poll_timeout().expect("a timer");
            assert_eq!(after(&dispatch.handle(now, Event::Timeout)), Some(Seq(0)));
            dispatch.handle(now, handed(Some(Seq(1))));
        }
        assert!(dispatch.poll_timeout().expect("a timer").since(now) > Duration::from_secs(20));
        assert_eq!(dispatch.handle(now, Event::Linked { node: NodeId(3) }), [], "another node");
        assert_eq!(after(&dispatch.handle(now, Event::Linked { node: NodeId(1) })), Some(Seq(0)));
        assert_eq!(dispatch.poll_timeout(), Some(now + SILENCE));
        assert_eq!(dispatch.unreachable(), 0, "it has a session");
    }

    #[test]
    fn what_one_entry_stores_for_a_terminal_was_seen_by_nobody() {
        let terminal = TerminalId([1; 16]);
        let of = |waiting| {
            let mut dispatch = Dispatch::default();
            dispatch.handle(Instant(0), Event::Lead { term: 1 });
            let facts = Some(Facts { pending: 2, next_seq: Seq(3), ..facts(1) });
            let mut stored = Stored::one(Seq(1), Urgency::Normal);
            stored.waiting = waiting;
            let stored = Some(stored);
            marked_up_to(&dispatch.handle(Instant(0), Event::Changed { terminal, facts, stored }))
        };
        assert_eq!(of(2), Some(Seq(0)));
        assert_eq!(of(1), Some(Seq(2)), "another one was there before");
    }

    #[test]
    fn a_push_that_comes_now_does_not_wait_for_those_of_an_anchor_that_is_back() {
        let (off, now_due) = (TerminalId([1; 16]), TerminalId([2; 16]));
        let (mut dispatch, facts) = pinned(off);
        let now = fail_until(&mut dispatch, off, Why::AnchorGone, Duration::from_secs(60));
        let per_second = NonZeroU32::new(1).expect("one");
        dispatch.handle(now, Event::Pace { per_second });
        let stored = |terminal| Event::Changed {
            terminal,
            facts: Some(facts),
            stored: Some(Stored::one(Seq(1), Urgency::Normal)),
        };
        // What goes at once after a pause is used up.
        let mut others = 0;
        while tries(&dispatch.handle(now, stored(TerminalId([100 + others; 16])))).len() == 1 {
            others += 1;
        }
        dispatch.handle(now, Event::Linked { node: NodeId(2) });
        dispatch.handle(now, stored(now_due));
        let mut order = Vec::new();
        while order.is_empty() {
            let at = dispatch.poll_timeout().expect("a timer");
            let commands = dispatch.handle(at, Event::Timeout);
            order.extend(commands.into_iter().filter_map(|command| match command {
                Command::Notify { terminal, .. } => [off, now_due].contains(&terminal).then_some(terminal),
                Command::HandOff(_) | Command::Detach { .. } => None,
            }));
        }
        assert_eq!(order, [now_due]);
    }

    #[test]
    fn a_fresh_push_is_no_hour_late() {
        let terminal = TerminalId([1; 16]);
        let (mut dispatch, facts) = pinned(terminal);
        let failed = fail_until(&mut dispatch, terminal, Why::NoAnswer, Duration::from_secs(1800));
        let mut pending = 1;
        let mut stored = |dispatch: &mut Dispatch, at| {
            pending += 1;
            let facts = Some(Facts { pending, next_seq: Seq(u64::from(pending) + 1), ..facts });
            dispatch.handle(
                at,
                Event::Changed { terminal, facts, stored: Some(Stored::one(Seq(1), Urgency::Normal)) },
            )
        };
        let minute = failed + Duration::from_secs(60);
        assert_eq!(tries(&stored(&mut dispatch, minute)).len(), 1);
        // It is switched off, and more come for it: a try in half a minute.
        dispatch.handle(minute, Event::Notified { terminal, failed: Some(Why::NoAnswer) });
        for second in 1..30 {
            assert_eq!(stored(&mut dispatch, minute + Duration::from_secs(second)), []);
        }
        let next = dispatch.poll_timeout().expect("a timer");
        assert_eq!(next, minute + FRESH);
        assert_eq!(tries(&dispatch.handle(next, Event::Timeout)).len(), 1);
    }

    #[test]
    fn what_could_not_be_tried_is_no_step_of_the_ladder() {
        let terminal = TerminalId([1; 16]);
        let mut dispatch = Dispatch::default();
        dispatch.handle(Instant(0), Event::Lead { term: 1 });
        let reachability = Reachability::Pinned { anchor: NodeId(1), listening_key: KeyFingerprint([2; 32]) };
        let facts = Some(Facts { session: None, reachability, ..facts(1) });
        let stored = Some(Stored::one(Seq(1), Urgency::Normal));
        let mut ordered = dispatch.handle(Instant(0), Event::Changed { terminal, facts, stored });
        for _ in 0..20 {
            assert_eq!(ordered, [Command::Notify { terminal, urgency: Urgency::Normal, attempt: 0 }]);
            dispatch.handle(Instant(0), Event::NotTried { terminal });
            let at = dispatch.poll_timeout().expect("a timer");
            ordered = dispatch.handle(at, Event::Timeout);
        }
        assert_eq!(dispatch.unreachable(), 0);
    }

    #[test]
    fn what_was_handed_off_stays_marked_when_a_later_hand_off_fails() {
        let terminal = TerminalId([1; 16]);
        let mut dispatch = Dispatch::default();
        dispatch.handle(Instant(0), Event::Lead { term: 1 });
        let stored = Some(Stored::one(Seq(1), Urgency::Normal));
        let changed = |epoch, stored| Event::Changed { terminal, facts: Some(facts(epoch)), stored };
        let handed = |upto| Event::HandedOff { terminal, epoch: Epoch(1), upto };
        assert_eq!(marked_up_to(&dispatch.handle(Instant(0), changed(1, stored))), Some(Seq(0)));
        dispatch.handle(Instant(0), handed(Some(Seq(1))));
        // Silence: the leader hands off again, and the link is down.
        let again = dispatch.handle(Instant(3000), Event::Timeout);
        assert_eq!(marked_up_to(&again), Some(Seq(0)), "not marked for the session that has it");
        dispatch.handle(Instant(3000), handed(None));
        assert_eq!(marked_up_to(&dispatch.handle(Instant(3001), changed(2, None))), Some(Seq(1)));
    }
}
