//! Carries out what the dispatcher decides: hand-offs, notifications, detaches. What it could not do goes back as an event.

use std::collections::VecDeque;

use bytes::Bytes;
use reveille_protocol::dispatch::{Command, Event, HandOffOrder};
use reveille_protocol::fail_point::{Point, pass, try_pass};
use reveille_protocol::id::*;
use reveille_protocol::limits;
use reveille_protocol::service_list;
use reveille_protocol::service_list::row::{Reachability, Row, Urgency};
use reveille_protocol::stage::Stage;
use reveille_protocol::wire::peer::{Report, Reported, SessionMessage, Why};

use super::{ReaderOf, Shard, State};
use crate::env::{Env, Transport};
use crate::host::{NotifyOrder, Taken};
use crate::link::Lane;
use crate::rpc::Frame;
use crate::tables::Tables;

impl<E: Env> Shard<E> {
    pub(super) fn execute(&self, state: &mut State, commands: Vec<Command>) {
        if !commands.is_empty() {
            self.carry_out(state, commands, &self.tables.read(), None);
        }
    }

    /// `seen`: a terminal's row as it stands in the table, if that was read already.
    pub(super) fn carry_out(
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
                Command::HandOff(order) => {
                    let row = row_of(&order.terminal);
                    let upto = row.and_then(|row| self.hand_off(state, table, &row, &order));
                    Event::HandedOff { terminal: order.terminal, epoch: order.epoch, upto }
                }
                Command::Notify { terminal, urgency, attempt } => {
                    let ordered = row_of(&terminal)
                        .map(|row| (self.notify(state, terminal, &row, urgency, attempt), row.reachability));
                    match ordered {
                        Some((true, _)) => continue,
                        // Its anchor is gone, and nobody else can: the terminal will find another one.
                        Some((false, Reachability::Pinned { anchor, .. })) if anchor != self.shared.me => {
                            Event::Notified { terminal, failed: Some(Why::AnchorGone) }
                        }
                        Some((false, _)) => Event::NoRoom { terminal },
                        None => Event::NotTried { terminal },
                    }
                }
                Command::Detach { terminal, stream, epoch } => {
                    if let Some(proposer) = self.proposer() {
                        let detach = service_list::Detach { terminal, stream, epoch, ack: None };
                        let detach = service_list::Command::Detach(detach);
                        self.begin("the end of a session", async move {
                            // Whatever becomes of it, the row tells: its next look comes with the silence timer.
                            let _ = proposer.propose(detach).await;
                        });
                    }
                    continue;
                }
            };
            commands.extend(state.dispatch.handle(self.now(), event));
        }
    }

    /// Sends what waits to the session's node; the last seq sent.
    fn hand_off(
        &self,
        state: &mut State,
        table: &ReaderOf<'_, E>,
        row: &Row,
        order: &HandOffOrder,
    ) -> Option<Seq> {
        let HandOffOrder { terminal, node, .. } = *order;
        let leader = (self.group, state.dispatch.term().unwrap_or_default());
        let hand_off = self.checked(order.fill(table, row, leader, self.group_time()))?;
        let check = order.stream.check();
        let upto = hand_off.pushes.last().map(|push| push.seq);
        let seqs: Vec<Seq> = hand_off.pushes.iter().map(|push| push.seq).collect();
        let offered = try_pass(Point::Offer).is_ok();
        let sent =
            offered && self.tell(node, SessionMessage::HandOff(hand_off)) && try_pass(Point::Offered).is_ok();
        for seq in seqs.into_iter().filter(|_| sent) {
            let id = MessageId { terminal, check, seq };
            state.traces.add(&id, self.traced(Stage::Attached, node));
            state.traces.add(&id, self.traced(Stage::HandedOff, node));
        }
        upto.filter(|_| sent)
    }

    /// Sends to a session's node, which may be this one; `false` if it certainly did not arrive.
    pub(super) fn tell(&self, node: NodeId, message: SessionMessage) -> bool {
        if node == self.shared.me {
            let session = message.session();
            if try_pass(Point::Accept).is_err() {
                return false;
            }
            let taken = self.shared.host.session(message);
            pass(Point::Accepted);
            if let (Taken::NoSession, Some((group, terminal, epoch))) = (taken, session) {
                let incarnation = self.shared.directory().incarnation(node);
                let what = Reported::NoSuchSession { incarnation };
                // Full: the silence timer asks again.
                let _ = self.shared.missed.try_send(Report { group, terminal, epoch, what });
            }
            return taken == Taken::Yes;
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
        let order = NotifyOrder {
            group: self.group,
            terminal,
            stream: row.stream,
            epoch: row.epoch,
            reachability: row.reachability,
            secret: row.secret,
            pending: row.pending,
            urgency,
            attempt,
        };
        // Only the anchor's socket gets through the terminal's NAT.
        let by = match row.reachability {
            Reachability::Pinned { anchor, .. } => anchor,
            _ => self.shared.me,
        };
        let may = try_pass(Point::Ring).is_ok();
        let taken = may
            && match by == self.shared.me {
                true => self.shared.host.notify(order),
                false => self.tell(by, SessionMessage::Notify(order)),
            };
        let taken = taken && try_pass(Point::Rung).is_ok();
        if taken {
            let check = row.stream.check();
            let (from, to) = (row.acked.next().0, row.next_seq.0);
            // A trace per push, but not for the thousandth that joins an old queue.
            for seq in (from..to).rev().take(limits::SESSION_WINDOW) {
                let id = MessageId { terminal, check, seq: Seq(seq) };
                state.traces.add(&id, self.traced(Stage::Notified, by));
            }
        }
        taken
    }
}
