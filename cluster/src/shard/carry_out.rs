//! Carries out what the dispatcher decides: hand-offs, notifications, detaches. What it could not do goes back as an event.

use std::collections::VecDeque;

use bytes::Bytes;
use openraft::type_config::TypeConfigExt;
use reveille_protocol::dispatch::{Command, Event};
use reveille_protocol::id::*;
use reveille_protocol::limits;
use reveille_protocol::service_list::row::{Row, Urgency};
use reveille_protocol::service_list::{self, view};
use reveille_protocol::stage::Stage;
use reveille_protocol::wire::peer::{HandOff, HandedPush, Report, Reported, SessionMessage};

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
                    Event::NotTried { terminal }
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
        // By the time that the group has agreed on, not this leader's own: after a failover group time may go on from a
        // little before what only this node thought, and then an ack would pass over a push that still lives.
        let agreed = self.checked(service_list::time(table))?;
        // From the ack on, to know what is on its way already: it names `prev` and counts for `remaining`.
        let most = limits::SESSION_WINDOW * 2;
        let waiting = self.checked(view::pending(table, &terminal, row.acked.next(), row.next_seq, most))?;
        let check = hand_off.stream.check();
        let (mut prev, mut bytes) = (Seq(0), 0);
        for (index, (seq, message)) in waiting.into_iter().enumerate() {
            // What has expired by now will not be delivered, whoever leads next: group time never goes back.
            if message.deadline <= agreed {
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
    pub(super) fn tell(&self, node: NodeId, message: SessionMessage) -> bool {
        if node == self.shared.me {
            let session = message.session();
            let taken = self.shared.host.session(message);
            if let (Taken::NoSession, Some((terminal, epoch))) = (taken, session) {
                let incarnation = self.shared.directory().incarnation(node);
                let what = Reported::NoSuchSession { incarnation };
                // Full: the silence timer asks again.
                let _ = self.shared.missed.try_send(Report { group: self.group, terminal, epoch, what });
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
}
