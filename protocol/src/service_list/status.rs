//! Who is online and where: register, attach, ack, detach, unregister. The source's "service list" proper.

use super::apply::{Context, read};
use super::command::*;
use super::key::{self, Due};
use super::row::{self, Current, Quota, Reachability, Row};
use super::{TableError, TableMut};
use crate::canary::{Canary, canary};
use crate::fail_point::{Point, try_pass};
use crate::id::*;
use crate::limits;
use crate::stage::End;

/// Refusals are answers; a `TableError` stops the node.
pub(super) type Outcome = Result<Result<Reply, Refusal>, TableError>;

fn at(point: Point) -> Result<(), TableError> {
    try_pass(point).map_err(|error| TableError(error.to_string()))
}

impl<T: TableMut> Context<'_, T> {
    pub(super) fn register(&mut self, register: &Register) -> Outcome {
        let terminal = register.session_key.terminal();
        if let Some(row) = self.row(&terminal)? {
            let same = row.tenant == register.tenant && row.session_key == register.session_key;
            return Ok(match same {
                true => Ok(Reply::Registered { stream: row.stream, existed: true }),
                false => Err(Refusal::OtherTenant),
            });
        }
        // A late copy of the command that began a life which has ended: seqs would count in it a second time.
        if self.table.get(&key::forgotten(&terminal, register.stream))?.is_some() {
            return Ok(Err(Refusal::StaleStream));
        }
        let mut quota: Quota = read(self.table, &key::quota(register.tenant))?.unwrap_or_default();
        if let Some(max_terminals) = quota.max_terminals.filter(|max| quota.terminals >= *max) {
            return Ok(Err(Refusal::ShareUsedUp { max_terminals }));
        }
        quota.terminals += 1;
        self.table.put(&key::quota(register.tenant), row::store(&quota));
        self.table.put_new(&key::tenant_terminal(register.tenant, &terminal), bytes::Bytes::new());
        self.put_row(
            &terminal,
            &Row {
                tenant: register.tenant,
                stream: register.stream,
                session_key: register.session_key,
                epoch: Epoch(0),
                attempt: Attempt(0),
                current: None,
                reachability: Reachability::None,
                secret: 0,
                next_seq: Seq(1),
                acked: Seq(0),
                pending: 0,
                pending_bytes: 0,
                linger: Default::default(),
                min_urgency: row::Urgency::VeryLow,
                registered: self.now,
                last_seen: self.now,
            },
        );
        let lifetime = std::time::Duration::from_millis(self.settings.registration_lifetime);
        self.at(self.now + lifetime, &Due::Registration(terminal));
        Ok(Ok(Reply::Registered { stream: register.stream, existed: false }))
    }

    pub(super) fn attach(&mut self, attach: &Attach) -> Outcome {
        let Some(mut row) = self.row(&attach.terminal)? else {
            return Ok(Err(Refusal::UnknownTerminal));
        };
        let session = Current { node: attach.node, incarnation: attach.incarnation };
        let again = attach.attempt == row.attempt && row.current == Some(session);
        if attach.attempt <= row.attempt && !again {
            return Ok(Err(Refusal::StaleAttempt { current: row.attempt }));
        }
        if attach.stream == row.stream && attach.last > row.acked {
            if attach.last >= row.next_seq {
                return Ok(Err(Refusal::AckAhead { seq: attach.last, next: row.next_seq }));
            }
            self.confirm(&attach.terminal, &mut row, attach.last)?;
        }
        if !again {
            if let Some(old) = row.current {
                let session = SessionRef { node: old.node, epoch: row.epoch };
                self.effects.push(Effect::Superseded { terminal: attach.terminal, session });
            }
            if !(canary(Canary::KeepEpoch) && row.current.is_some()) {
                row.epoch = row.epoch.next();
            }
            row.attempt = attach.attempt;
            if !(canary(Canary::LoseReplacement) && row.current.is_some()) {
                row.current = Some(session);
            }
        }
        row.reachability = attach.reachability;
        row.secret = attach.secret;
        row.linger = attach.linger.granted();
        row.min_urgency = attach.min_urgency;
        row.last_seen = self.now;
        at(Point::StatusWrite)?;
        self.put_row(&attach.terminal, &row);
        at(Point::StatusWritten)?;
        self.effects.push(Effect::StatusChanged { terminal: attach.terminal });
        Ok(Ok(Reply::Attached(Attached {
            stream: row.stream,
            epoch: row.epoch,
            acked: row.acked,
            pending: row.pending,
            linger: row.linger,
        })))
    }

    pub(super) fn ack(&mut self, ack: &Ack) -> Outcome {
        let mut row = match self.in_epoch(&ack.terminal, ack.stream, ack.epoch)? {
            Ok(row) => row,
            Err(refusal) => return Ok(Err(refusal)),
        };
        if ack.seq >= row.next_seq {
            return Ok(Err(Refusal::AckAhead { seq: ack.seq, next: row.next_seq }));
        }
        if ack.seq > row.acked {
            self.confirm(&ack.terminal, &mut row, ack.seq)?;
            row.last_seen = self.now;
            self.put_row(&ack.terminal, &row);
        }
        Ok(Ok(Reply::Done))
    }

    pub(super) fn detach(&mut self, detach: &Detach) -> Outcome {
        let mut row = match self.in_epoch(&detach.terminal, detach.stream, detach.epoch)? {
            Ok(row) => row,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let ack = detach.ack.filter(|seq| *seq > row.acked && *seq < row.next_seq);
        // The leader may have ended the session before: what the terminal confirmed in it counts all the same.
        if row.current.is_none() && ack.is_none() {
            return Ok(Ok(Reply::Done));
        }
        if let Some(seq) = ack {
            self.confirm(&detach.terminal, &mut row, seq)?;
        }
        row.current = None;
        row.last_seen = self.now;
        self.put_row(&detach.terminal, &row);
        self.effects.push(Effect::StatusChanged { terminal: detach.terminal });
        Ok(Ok(Reply::Done))
    }

    pub(super) fn set_reachability(&mut self, set: &SetReachability) -> Outcome {
        let mut row = match self.in_epoch(&set.terminal, set.stream, set.epoch)? {
            Ok(row) => row,
            Err(refusal) => return Ok(Err(refusal)),
        };
        row.reachability = set.reachability;
        self.put_row(&set.terminal, &row);
        self.effects.push(Effect::StatusChanged { terminal: set.terminal });
        Ok(Ok(Reply::Done))
    }

    pub(super) fn unregister(&mut self, unregister: &Unregister) -> Outcome {
        match self.row(&unregister.terminal)?.filter(|row| row.tenant == unregister.tenant) {
            Some(row) => self.forget(&unregister.terminal, row)?,
            None => return Ok(Err(Refusal::UnknownTerminal)),
        }
        Ok(Ok(Reply::Done))
    }

    /// Ends everything that waits for the terminal and removes its row.
    pub(super) fn forget(&mut self, terminal: &TerminalId, mut row: Row) -> Result<(), TableError> {
        for (seq, message) in self.pending(terminal, Seq(0), row.next_seq)? {
            self.end(terminal, &mut row, seq, &message, End::Gone)?;
        }
        if let Some(old) = row.current {
            let session = SessionRef { node: old.node, epoch: row.epoch };
            self.effects.push(Effect::Superseded { terminal: *terminal, session });
        }
        self.table.put(&key::forgotten(terminal, row.stream), bytes::Bytes::new());
        self.at(self.now + limits::COMMAND_LIFETIME, &Due::Forgotten(*terminal, row.stream));
        self.table.delete(&key::terminal(terminal));
        self.table.delete(&key::tenant_terminal(row.tenant, terminal));
        let mut quota: Quota = read(self.table, &key::quota(row.tenant))?.unwrap_or_default();
        quota.terminals = quota.terminals.saturating_sub(1);
        self.table.put(&key::quota(row.tenant), row::store(&quota));
        self.effects.push(Effect::Gone { terminal: *terminal });
        Ok(())
    }

    /// The row, if `stream` and `epoch` are the terminal's current ones.
    fn in_epoch(
        &self,
        terminal: &TerminalId,
        stream: Stream,
        epoch: Epoch,
    ) -> Result<Result<Row, Refusal>, TableError> {
        Ok(match self.row(terminal)? {
            None => Err(Refusal::UnknownTerminal),
            Some(row) if row.stream != stream => Err(Refusal::StaleStream),
            Some(row) if row.epoch != epoch && !canary(Canary::SkipEpochCheck) => {
                Err(Refusal::StaleEpoch { current: row.epoch })
            }
            Some(row) => Ok(row),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;

    use super::*;
    use crate::service_list::{MemoryTable, apply, view};
    use crate::time::GroupTime;
    use crate::wire::entry::Entry;

    #[test]
    fn a_detach_that_comes_second_still_confirms() {
        let session_key = KeyFingerprint([7; 32]);
        let (terminal, tenant, stream) = (session_key.terminal(), TenantId(1), Stream(77));
        let attach = Attach {
            terminal,
            attempt: Attempt(1),
            node: NodeId(1),
            incarnation: Incarnation(1),
            stream,
            last: Seq(0),
            reachability: Reachability::None,
            secret: 1,
            linger: Default::default(),
            min_urgency: row::Urgency::VeryLow,
        };
        let enqueue = Enqueue {
            id: CommandId([1; 16]),
            not_after: GroupTime(10),
            retry: false,
            terminal,
            tenant,
            ttl: None,
            urgency: row::Urgency::Normal,
            channel: Channel(0),
            topic: None,
            idempotency: None,
            headers: Vec::new(),
            body: Bytes::from_static(b"one"),
        };
        let detach = |ack| Command::Detach(Detach { terminal, stream, epoch: Epoch(1), ack });
        let commands = vec![
            Command::Register(Register { tenant, session_key, stream }),
            Command::Attach(Box::new(attach)),
            Command::Enqueue(Box::new(enqueue)),
            detach(None),
            detach(Some(Seq(1))),
        ];
        let mut table = MemoryTable::default();
        let entry = Entry { time: GroupTime(1), commands };
        let applied = apply(&mut table, GroupId(1), &entry).unwrap();
        assert_eq!(applied.replies[3..], [Reply::Done, Reply::Done]);
        let row = view::terminal(&table, &terminal).unwrap().unwrap();
        assert_eq!((row.current, row.acked, row.pending), (None, Seq(1), 0));
    }
}
