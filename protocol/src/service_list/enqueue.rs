//! Taking a push in, and taking it back: limits, TTL, topics, idempotency, retries.

use std::time::Duration;

use super::apply::{Context, read};
use super::command::*;
use super::key::{self, Due};
use super::row::{self, Ended, Idempotent, Message, Row};
use super::status::Outcome;
use super::{TableError, TableMut};
use crate::canary::{Canary, canary};
use crate::id::*;
use crate::limits;
use crate::stage::End;
use crate::time::GroupTime;

/// The same pushes on every replica: by their random ids.
fn one_in_thousand(enqueue: &Enqueue) -> bool {
    enqueue.id.0.last_chunk().is_some_and(|end| u16::from_be_bytes(*end).is_multiple_of(1000))
}

impl<T: TableMut> Context<'_, T> {
    pub(super) fn enqueue(&mut self, enqueue: &Enqueue) -> Outcome {
        if let Some(known) = self.settled(enqueue)? {
            return Ok(known);
        }
        let outcome = self.take_in(enqueue)?;
        if enqueue.retry {
            self.settle(enqueue, &outcome)?;
        }
        Ok(outcome)
    }

    /// Did another copy of this command come to something that this one must not change?
    ///
    /// A retry can overtake the copy that it repeats. That one does not look for others, so what the retry came to
    /// is remembered for as long as copies may come. It is looked up only while the group remembers any.
    fn settled(&self, enqueue: &Enqueue) -> Result<Option<Result<Reply, Refusal>>, TableError> {
        let until: GroupTime = read(self.table, &key::settled_until())?.unwrap_or_default();
        if self.now > until {
            return Ok(None);
        }
        Ok(match read::<_, Option<Refusal>>(self.table, &key::settled(&enqueue.id))? {
            Some(Some(refusal)) => Some(Err(refusal)),
            // Nobody waits for the overtaken copy; the next retry looks the push up.
            Some(None) if !enqueue.retry => Some(Err(Refusal::TooLate { now: self.now })),
            Some(None) | None => None,
        })
    }

    /// Remembers what a retry came to, unless every other copy would come to the same.
    fn settle(&mut self, enqueue: &Enqueue, outcome: &Result<Reply, Refusal>) -> Result<(), TableError> {
        let settled: Option<Refusal> = match outcome {
            Ok(Reply::Enqueued { duplicate: false, .. }) => None,
            Ok(_) | Err(Refusal::TooLate { .. } | Refusal::Unknown) => return Ok(()),
            Err(refusal) => Some(refusal.clone()),
        };
        if self.table.get(&key::settled(&enqueue.id))?.is_some() {
            return Ok(());
        }
        self.table.put_new(&key::settled(&enqueue.id), row::store(&settled));
        // After `not_after` every copy is refused.
        let until = enqueue.not_after + Duration::from_millis(1);
        self.at(until, &Due::Settled(enqueue.id));
        let known: GroupTime = read(self.table, &key::settled_until())?.unwrap_or_default();
        if until > known {
            self.table.put(&key::settled_until(), row::store(&until));
        }
        Ok(())
    }

    fn take_in(&mut self, enqueue: &Enqueue) -> Outcome {
        let terminal = &enqueue.terminal;
        let Some(mut row) = self.row(terminal)?.filter(|row| row.tenant == enqueue.tenant) else {
            return Ok(Err(Refusal::UnknownTerminal));
        };
        if enqueue.retry
            && let Some(known) = self.first_copy(enqueue, &row)?
        {
            return Ok(known);
        }
        if self.now > enqueue.not_after {
            return Ok(Err(Refusal::TooLate { now: self.now }));
        }
        if let Some(known) = self.same_key(enqueue)? {
            return Ok(known);
        }
        if enqueue.body.len() as u64 > u64::from(self.settings.max_payload) {
            return Ok(Err(Refusal::PayloadTooLarge { limit: self.settings.max_payload }));
        }
        let replaced = self.pending_with_topic(enqueue)?;
        let (freed, freed_bytes) =
            replaced.as_ref().map_or((0, 0), |(_, message)| (1, message.body.len() as u32));
        let bytes = (row.pending_bytes - freed_bytes).saturating_add(enqueue.body.len() as u32);
        if row.pending - freed >= self.settings.max_pending || bytes > self.settings.max_pending_bytes {
            return Ok(Err(Refusal::QueueFull { pending: row.pending, bytes: row.pending_bytes }));
        }
        if let Some((seq, message)) = replaced {
            self.end(terminal, &mut row, seq, &message, End::Replaced)?;
        }
        Ok(Ok(self.store(enqueue, &mut row)))
    }

    fn store(&mut self, enqueue: &Enqueue, row: &mut Row) -> Reply {
        let terminal = &enqueue.terminal;
        let lifetime = match enqueue.ttl {
            None => self.settings.default_ttl,
            Some(0) => self.settings.wake_window,
            Some(ttl) => ttl.min(self.settings.max_ttl),
        };
        let deadline = self.now + Duration::from_millis(lifetime);
        let swapped = Seq(((row.next_seq.0 - 1) ^ 1) + 1);
        let seq = if canary(Canary::SwapSeqs) { swapped } else { row.next_seq };
        let message = Message {
            command: enqueue.id,
            accepted: self.now,
            deadline,
            urgency: enqueue.urgency,
            channel: enqueue.channel,
            topic: enqueue.topic.clone(),
            headers: enqueue.headers.clone(),
            body: enqueue.body.clone(),
        };
        row.next_seq = row.next_seq.next();
        row.pending += 1;
        row.pending_bytes += enqueue.body.len() as u32;
        if !(canary(Canary::DropOneInThousand) && one_in_thousand(enqueue)) {
            self.table.put_new(&key::pending(terminal, seq), row::store(&message));
        }
        self.at(deadline, &Due::Message(*terminal, seq));
        self.put_row(terminal, row);
        let id = MessageId { terminal: *terminal, check: row.stream.check(), seq };
        if let Some(topic) = &enqueue.topic {
            self.table.put(&key::topic(terminal, enqueue.channel, topic), row::store(&seq));
        }
        if let Some(idempotency) = enqueue.idempotency.as_ref().filter(|_| !canary(Canary::DedupeOff)) {
            let remembered = Idempotent { message: id, deadline, body_hash: idempotency.body_hash };
            self.table.put_new(&key::idempotency(&idempotency.key), row::store(&remembered));
            let until = self.now + Duration::from_millis(self.settings.memory_of_ends);
            self.at(until, &Due::Idempotency(idempotency.key));
        }
        self.effects.push(Effect::Stored { message: id, urgency: enqueue.urgency });
        Reply::Enqueued { message: id, deadline, accepted: self.now, duplicate: false }
    }

    /// Has this idempotency key been accepted before?
    fn same_key(&self, enqueue: &Enqueue) -> Result<Option<Result<Reply, Refusal>>, TableError> {
        let Some(idempotency) = enqueue.idempotency.as_ref().filter(|_| !canary(Canary::DedupeOff)) else {
            return Ok(None);
        };
        let Some(known) = read::<_, Idempotent>(self.table, &key::idempotency(&idempotency.key))? else {
            return Ok(None);
        };
        if known.body_hash != idempotency.body_hash {
            return Ok(Some(Err(Refusal::KeyReused { message: known.message })));
        }
        Ok(Some(Ok(Reply::Enqueued {
            message: known.message,
            deadline: known.deadline,
            accepted: self.now,
            duplicate: true,
        })))
    }

    /// Looks for the first copy of a retried command among the terminal's latest pushes, pending and ended.
    ///
    /// Costs nothing while nothing fails: only a retry looks, and the command's id is in the records anyway.
    /// Anything that a copy stored is younger than the command's lifetime, so the search ends there.
    fn first_copy(&self, enqueue: &Enqueue, row: &Row) -> Result<Option<Result<Reply, Refusal>>, TableError> {
        let mut seq = row.next_seq;
        for _ in 0..limits::MAX_RETRY_LOOKBACK {
            seq = Seq(seq.0 - 1);
            if seq == Seq(0) {
                return Ok(None);
            }
            let id = MessageId { terminal: enqueue.terminal, check: row.stream.check(), seq };
            let pending: Option<Message> = read(self.table, &key::pending(&enqueue.terminal, seq))?;
            let record = match pending {
                Some(message) => Some((message.command, message.accepted, message.deadline)),
                None => read::<_, Ended>(self.table, &key::ended(&id))?
                    .map(|ended| (ended.command, ended.accepted, ended.deadline)),
            };
            let Some((command, accepted, deadline)) = record else { continue };
            if command == enqueue.id {
                return Ok(Some(Ok(Reply::Enqueued { message: id, deadline, accepted, duplicate: true })));
            }
            if accepted + limits::COMMAND_LIFETIME < enqueue.not_after {
                return Ok(None);
            }
        }
        Ok(Some(Err(Refusal::Unknown)))
    }

    fn pending_with_topic(&self, enqueue: &Enqueue) -> Result<Option<(Seq, Message)>, TableError> {
        let Some(topic) = &enqueue.topic else { return Ok(None) };
        let key = key::topic(&enqueue.terminal, enqueue.channel, topic);
        let Some(seq) = read::<_, Seq>(self.table, &key)? else { return Ok(None) };
        let message = read::<_, Message>(self.table, &key::pending(&enqueue.terminal, seq))?;
        Ok(message.map(|message| (seq, message)))
    }

    pub(super) fn cancel(&mut self, cancel: &Cancel) -> Outcome {
        let MessageId { terminal, check, seq } = cancel.message;
        if let Some(ended) = read::<_, Ended>(self.table, &key::ended(&cancel.message))? {
            return Ok(match ended.tenant == cancel.tenant {
                true => Ok(Reply::Ended(ended.end)),
                false => Err(Refusal::UnknownMessage),
            });
        }
        let owned = |row: &Row| row.tenant == cancel.tenant && row.stream.check() == check;
        let Some(mut row) = self.row(&terminal)?.filter(owned) else {
            return Ok(Err(Refusal::UnknownMessage));
        };
        let Some(message) = read::<_, Message>(self.table, &key::pending(&terminal, seq))? else {
            return Ok(Err(Refusal::UnknownMessage));
        };
        self.end(&terminal, &mut row, seq, &message, End::Cancelled)?;
        self.put_row(&terminal, &row);
        Ok(Ok(Reply::Ended(End::Cancelled)))
    }
}
