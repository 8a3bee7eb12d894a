//! How pushes end: confirmed, or by time, and the memory of it. Every push ends here, exactly once.

use std::time::Duration;

use super::apply::{Context, read};
use super::command::{Effect, Reply};
use super::key::{self, Due};
use super::row::{self, Ended, Message, Row};
use super::{TableError, TableMut};
use crate::id::*;
use crate::limits;
use crate::stage::End;

impl<T: TableMut> Context<'_, T> {
    /// The terminal has confirmed everything up to `seq`, which must be above `row.acked`.
    pub(super) fn confirm(
        &mut self,
        terminal: &TerminalId,
        row: &mut Row,
        seq: Seq,
    ) -> Result<(), TableError> {
        let confirmed = self.pending(terminal, row.acked.next(), seq.next())?;
        let mut acked = 0;
        for (seq, message) in &confirmed {
            // What is due is not handed off any more, so the terminal may have confirmed beyond it without having
            // it: it ends as if the next Expire had come first.
            let end = if message.deadline <= self.now { End::Expired } else { End::Acked };
            acked += u64::from(end == End::Acked);
            self.end(terminal, row, *seq, message, end)?;
        }
        let span = seq.0 - row.acked.0;
        if span > acked {
            self.mark_seen(terminal, row, seq)?;
        }
        row.acked = seq;
        self.effects.push(Effect::Acked { terminal: *terminal, seq });
        Ok(())
    }

    /// Notes on pushes that ended otherwise before this confirmation that the terminal had them after all.
    fn mark_seen(&mut self, terminal: &TerminalId, row: &Row, upto: Seq) -> Result<(), TableError> {
        let check = row.stream.check();
        let from = key::ended(&MessageId { terminal: *terminal, check, seq: row.acked.next() });
        let to = key::ended(&MessageId { terminal: *terminal, check, seq: upto.next() });
        let mut found = Vec::new();
        self.table.scan(&from, &to, &mut |key, value| {
            found.push((key.to_vec(), value.to_vec()));
            found.len() < limits::MAX_PENDING as usize
        })?;
        for (key, value) in found {
            let mut ended: Ended = row::load(&value)?;
            if ended.end != End::Acked && ended.seen.is_none() {
                ended.seen = Some(self.now);
                self.table.put(&key, row::store(&ended));
            }
        }
        Ok(())
    }

    /// Pending pushes with `from <= seq < to`, in order.
    pub(super) fn pending(
        &self,
        terminal: &TerminalId,
        from: Seq,
        to: Seq,
    ) -> Result<Vec<(Seq, Message)>, TableError> {
        super::view::pending(self.table, terminal, from, to, usize::MAX)
    }

    /// Ends one pending push: it leaves the queue, and its end is remembered.
    pub(super) fn end(
        &mut self,
        terminal: &TerminalId,
        row: &mut Row,
        seq: Seq,
        message: &Message,
        end: End,
    ) -> Result<(), TableError> {
        self.table.delete(&key::pending(terminal, seq));
        self.table.delete(&key::deadline(message.deadline, &Due::Message(*terminal, seq)));
        if let Some(topic) = &message.topic {
            let key = key::topic(terminal, message.channel, topic);
            if read(self.table, &key)? == Some(seq) {
                self.table.delete(&key);
            }
        }
        row.pending = row.pending.saturating_sub(1);
        row.pending_bytes = row.pending_bytes.saturating_sub(message.body.len() as u32);
        let id = MessageId { terminal: *terminal, check: row.stream.check(), seq };
        let ended = Ended {
            command: message.command,
            tenant: row.tenant,
            accepted: message.accepted,
            deadline: message.deadline,
            end,
            at: self.now,
            seen: None,
        };
        self.table.put_new(&key::ended(&id), row::store(&ended));
        self.at(self.now + Duration::from_millis(self.settings.memory_of_ends), &Due::Ended(id));
        self.effects.push(Effect::Ended { message: id, end });
        Ok(())
    }

    /// Takes up what is due by now, a bounded number of matters at a time.
    pub(super) fn expire(&mut self) -> Result<Reply, TableError> {
        let (from, to) = key::deadlines_until(self.now);
        let mut due = Vec::new();
        self.table.scan(&from, &to, &mut |key, _| {
            due.push(key.to_vec());
            due.len() < limits::MAX_EXPIRE_BATCH
        })?;
        let count = due.len() as u32;
        for deadline in due {
            self.table.delete(&deadline);
            match key::parse_deadline(&deadline) {
                Some((_, Due::Message(terminal, seq))) => self.expire_message(&terminal, seq)?,
                Some((_, Due::Ended(message))) => self.table.delete(&key::ended(&message)),
                Some((_, Due::Idempotency(hash))) => self.table.delete(&key::idempotency(&hash)),
                Some((_, Due::Registration(terminal))) => self.expire_registration(&terminal)?,
                Some((_, Due::Settled(command))) => self.table.delete(&key::settled(&command)),
                Some((_, Due::Forgotten(terminal, stream))) => {
                    self.table.delete(&key::forgotten(&terminal, stream));
                }
                None => {
                    return Err(TableError(format!("a key of the deadlines is damaged: {deadline:02x?}")));
                }
            }
        }
        Ok(Reply::Expired { count })
    }

    fn expire_message(&mut self, terminal: &TerminalId, seq: Seq) -> Result<(), TableError> {
        let Some(mut row) = self.row(terminal)? else { return Ok(()) };
        let Some(message) = read::<_, Message>(self.table, &key::pending(terminal, seq))? else {
            return Ok(());
        };
        self.end(terminal, &mut row, seq, &message, End::Expired)?;
        self.put_row(terminal, &row);
        Ok(())
    }

    fn expire_registration(&mut self, terminal: &TerminalId) -> Result<(), TableError> {
        let Some(row) = self.row(terminal)? else { return Ok(()) };
        let lifetime = Duration::from_millis(self.settings.registration_lifetime);
        // Only the dispatcher knows whether the node of an online terminal still lives, so such a row gets four
        // lifetimes: enough for a session that lingers for ever, and an end for one whose node died.
        let until = row.last_seen + if row.online() { lifetime * 4 } else { lifetime };
        if until > self.now {
            self.at(until, &Due::Registration(*terminal));
            return Ok(());
        }
        self.forget(terminal, row)
    }
}
