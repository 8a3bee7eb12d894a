//! Restoring a backup: terminals and what waits for them come into a group that has none. What ended, and what was
//! remembered for a while, never comes back.
//!
//! While a restore goes on, the group serves nobody: so a terminal's pushes are all there, in their order, before the
//! first of them is handed off, and each step can be repeated without looking at what was done since.

use super::apply::{Context, read};
use super::command::*;
use super::imported::*;
use super::key::{self, Due};
use super::row::{self, Message, Quota, Reachability, Restore, Row};
use super::status::Outcome;
use super::{TableError, TableMut, view};
use crate::id::*;
use crate::limits;

/// More epochs than the old cluster can have granted after the backup was made. A terminal ignores notifications below
/// the last epoch that it was granted, so its new life goes on above.
const EPOCH_LEAP: u64 = 1 << 32;

impl<T: TableMut> Context<'_, T> {
    pub(super) fn set_restore(&mut self, restore: Option<Restore>) {
        match &restore {
            Some(restore) => self.table.put(&key::restore(), row::store(restore)),
            None => self.table.delete(&key::restore()),
        }
        self.restore = restore;
    }

    pub(super) fn import(&mut self, import: &Import) -> Outcome {
        let id = import.restore;
        let known = self.restore.filter(|known| known.id == id);
        if known.is_some_and(|known| !known.open) {
            return Ok(Ok(Reply::Restored));
        }
        match (&import.step, known) {
            (ImportStep::Begin, Some(_)) => {}
            (ImportStep::Begin, None) if view::has_terminals(self.table)? => {
                return Ok(Err(Refusal::NotEmpty));
            }
            // Nothing has come here yet, but it may have in other groups: two restores in one cluster finish neither.
            (ImportStep::Begin, None) if self.restore.is_some_and(|other| other.open) => {
                return Ok(Err(Refusal::OtherRestore));
            }
            (ImportStep::Begin, None) => self.set_restore(Some(Restore { id, begun: self.now, open: true })),
            (_, None) => return Ok(Err(Refusal::OtherRestore)),
            (ImportStep::Terminals(terminals), Some(restore)) => {
                // First all, so that a refusal has changed nothing.
                for one in terminals {
                    if let Err(refusal) = self.importable(restore, one)? {
                        return Ok(Err(refusal));
                    }
                }
                for one in terminals {
                    self.import_terminal(restore, one)?;
                }
            }
            (ImportStep::Finish, Some(restore)) => {
                self.set_restore(Some(Restore { open: false, ..restore }));
                self.effects.push(Effect::Restored);
            }
            (ImportStep::GiveUp, Some(_)) => {
                if !view::has_terminals(self.table)? {
                    self.set_restore(None);
                }
            }
        }
        Ok(Ok(Reply::Done))
    }

    /// Can it be taken in? What is stored must be readable ever after, whatever was sent.
    fn importable(&self, restore: Restore, one: &Imported) -> Result<Result<(), Refusal>, TableError> {
        let fits = |push: &Message| {
            let headers: usize = push.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
            push.body.len() <= limits::MAX_PAYLOAD_CEILING
                && headers <= limits::MAX_HEADERS
                && push.topic.as_ref().is_none_or(|topic| topic.len() <= limits::MAX_TOPIC)
        };
        if !one.pushes.iter().all(fits) {
            return Ok(Err(Refusal::BadImport(ImportFault::TooLarge)));
        }
        let terminal = one.row.session_key.terminal();
        Ok(match self.row(&terminal)? {
            Some(row) if row.stream != restore.id.stream(restore.begun, &terminal) => Err(Refusal::NotEmpty),
            Some(row) if one.from <= row.next_seq && one.from > Seq(0) => Ok(()),
            None if one.from == Seq(1) => Ok(()),
            _ => Err(Refusal::BadImport(ImportFault::Order)),
        })
    }

    fn import_terminal(&mut self, restore: Restore, one: &Imported) -> Result<(), TableError> {
        let terminal = one.row.session_key.terminal();
        let mut row = match self.row(&terminal)? {
            Some(row) => row,
            None => {
                let stream = restore.id.stream(restore.begun, &terminal);
                self.begin_life(&terminal, stream, &one.row)?
            }
        };
        for (seq, push) in (one.from.0..).map(Seq).zip(&one.pushes) {
            // The step is repeated: this push was taken in, and may have expired since.
            if seq < row.next_seq {
                continue;
            }
            self.import_push(&terminal, seq, push);
            row.next_seq = seq.next();
            row.pending = row.pending.saturating_add(1);
            row.pending_bytes = row.pending_bytes.saturating_add(push.body.len() as u32);
        }
        self.put_row(&terminal, &row);
        Ok(())
    }

    /// As `register` does, with what the terminal and the cluster must go on from.
    fn begin_life(&mut self, terminal: &TerminalId, stream: Stream, old: &Row) -> Result<Row, TableError> {
        let mut quota: Quota = read(self.table, &key::quota(old.tenant))?.unwrap_or_default();
        quota.terminals += 1;
        self.table.put(&key::quota(old.tenant), row::store(&quota));
        self.table.put_new(&key::tenant_terminal(old.tenant, terminal), bytes::Bytes::new());
        let lifetime = std::time::Duration::from_millis(self.settings.registration_lifetime);
        self.at(self.now + lifetime, &Due::Registration(*terminal));
        Ok(Row {
            stream,
            epoch: Epoch(old.epoch.0.saturating_add(EPOCH_LEAP)),
            current: None,
            reachability: match old.reachability {
                // Nodes have other ids here; the terminal finds itself an anchor when it comes.
                Reachability::Pinned { .. } => Reachability::None,
                Reachability::Direct { address, listening_key } => {
                    let (stream, epoch) = (old.stream, old.epoch);
                    Reachability::Former { address, listening_key, stream, epoch }
                }
                // The backup is that of a restored cluster, where it has not been either.
                other @ (Reachability::None | Reachability::Former { .. }) => other,
            },
            next_seq: Seq(1),
            acked: Seq(0),
            pending: 0,
            pending_bytes: 0,
            registered: old.registered.min(self.now),
            last_seen: old.last_seen.min(self.now),
            // The attempt above all: one that was refused stays refused.
            ..old.clone()
        })
    }

    /// As `enqueue` does. It ends when it would have ended: what was to be stale by then is stale by then.
    fn import_push(&mut self, terminal: &TerminalId, seq: Seq, push: &Message) {
        let longest = std::time::Duration::from_millis(self.settings.max_ttl);
        let deadline = push.deadline.min(self.now + longest);
        let message = Message { accepted: push.accepted.min(self.now), deadline, ..push.clone() };
        self.table.put_new(&key::pending(terminal, seq), row::store(&message));
        self.at(deadline, &Due::Message(*terminal, seq));
        if let Some(topic) = &push.topic {
            self.table.put(&key::topic(terminal, push.channel, topic), row::store(&seq));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;

    use super::super::row::{Current, Urgency};
    use super::super::{MemoryTable, apply, next_deadline};
    use super::*;
    use crate::time::GroupTime;
    use crate::wire::entry::Entry;

    const RESTORE: RestoreId = RestoreId([9; 16]);
    const KEY: KeyFingerprint = KeyFingerprint([7; 32]);
    const NOW: GroupTime = GroupTime(1_000_000);

    /// As the backup has it: online, with an old life of many pushes.
    fn row(pending: u32) -> Row {
        Row {
            tenant: TenantId(1),
            stream: Stream(77),
            session_key: KEY,
            epoch: Epoch(5),
            attempt: Attempt(40),
            current: Some(Current { node: NodeId(2), incarnation: Incarnation(3) }),
            reachability: Reachability::Direct { address: ([192, 0, 2, 1], 5000).into(), listening_key: KEY },
            secret: 3,
            next_seq: Seq(100),
            acked: Seq(90),
            pending,
            pending_bytes: pending,
            linger: Default::default(),
            min_urgency: Urgency::VeryLow,
            registered: GroupTime(5),
            last_seen: GroupTime(2_000_000),
        }
    }

    fn push(number: u8, topic: Option<&str>) -> Message {
        Message {
            command: CommandId([number; 16]),
            accepted: GroupTime(10),
            deadline: GroupTime(NOW.0 + 1000 * u64::from(number)),
            urgency: Urgency::High,
            channel: Channel(4),
            topic: topic.map(str::to_owned),
            headers: vec![("k".to_owned(), "v".to_owned())],
            body: Bytes::copy_from_slice(&[number]),
        }
    }

    fn step(restore: RestoreId, step: ImportStep) -> Command {
        Command::Import(Box::new(Import { restore, step }))
    }

    fn part(from: u64, pushes: &[Message]) -> Command {
        let one = Imported { row: row(3), from: Seq(from), pushes: pushes.to_vec() };
        step(RESTORE, ImportStep::Terminals(vec![one]))
    }

    fn at(table: &mut MemoryTable, time: GroupTime, command: Command) -> (Reply, Vec<Effect>) {
        let mut applied = apply(table, GroupId(1), &Entry { time, commands: vec![command] }).unwrap();
        (applied.replies.remove(0), applied.effects)
    }

    fn does(table: &mut MemoryTable, command: Command) -> Reply {
        at(table, NOW, command).0
    }

    fn register(key: u8) -> Command {
        let session_key = KeyFingerprint([key; 32]);
        Command::Register(Register { tenant: TenantId(1), session_key, stream: Stream(5) })
    }

    #[test]
    fn a_terminal_begins_a_new_life_with_what_waited_in_its_order() {
        let (terminal, mut table) = (KEY.terminal(), MemoryTable::default());
        let address = ([192, 0, 2, 1], 5000).into();
        let pushes = [push(1, None), push(2, Some("news")), push(3, None)];
        assert_eq!(does(&mut table, step(RESTORE, ImportStep::Begin)), Reply::Done);
        assert_eq!(does(&mut table, part(1, &pushes)), Reply::Done);
        let imported = view::terminal(&table, &terminal).unwrap().unwrap();
        assert_eq!((imported.next_seq, imported.acked, imported.pending), (Seq(4), Seq(0), 3));
        assert_eq!((imported.pending_bytes, imported.secret), (3, 3));
        assert!(imported.stream != Stream(77) && imported.stream != Stream(0), "another life");
        assert!(imported.epoch > Epoch(1 << 32), "above all that the old cluster has granted");
        assert_eq!(imported.attempt, Attempt(40), "an old attempt stays refused");
        let reachability =
            Reachability::Former { address, listening_key: KEY, stream: Stream(77), epoch: Epoch(5) };
        assert_eq!((imported.current, imported.reachability), (None, reachability));
        assert_eq!((imported.registered, imported.last_seen), (GroupTime(5), NOW));
        let waiting = view::pending(&table, &terminal, Seq(1), Seq(9), 9).unwrap();
        let expected = pushes.iter().enumerate().map(|(index, push)| (Seq(index as u64 + 1), push.clone()));
        assert_eq!(waiting, expected.collect::<Vec<_>>());
        assert_eq!(next_deadline(&table).unwrap(), Some(pushes[0].deadline));
        let (finished, effects) = at(&mut table, NOW, step(RESTORE, ImportStep::Finish));
        assert_eq!((finished, effects), (Reply::Done, vec![Effect::Restored]));

        // The topic is known by its new seq: a later push with it replaces that one.
        let enqueue = Enqueue {
            id: CommandId([8; 16]),
            not_after: GroupTime(NOW.0 + 1000),
            retry: false,
            terminal,
            tenant: TenantId(1),
            ttl: None,
            urgency: Urgency::Normal,
            channel: Channel(4),
            topic: Some("news".to_owned()),
            idempotency: None,
            headers: Vec::new(),
            body: Bytes::from_static(b"new"),
        };
        let Reply::Enqueued { message, .. } = does(&mut table, Command::Enqueue(Box::new(enqueue))) else {
            panic!("not stored")
        };
        assert_eq!(message.seq, Seq(4));
        let seqs = |table: &MemoryTable| {
            let waiting = view::pending(table, &terminal, Seq(1), Seq(9), 9).unwrap();
            waiting.into_iter().map(|(seq, _)| seq.0).collect::<Vec<_>>()
        };
        assert_eq!(seqs(&table), [1, 3, 4]);
        // They end when they would have ended.
        at(&mut table, pushes[0].deadline, Command::Expire);
        assert_eq!(seqs(&table), [3, 4]);
    }

    #[test]
    fn each_step_may_be_repeated_at_any_time() {
        let mut table = MemoryTable::default();
        let pushes = [push(1, Some("a")), push(2, None), push(3, None)];
        let steps = [
            step(RESTORE, ImportStep::Begin),
            part(1, &pushes[..2]),
            part(3, &pushes[2..]),
            step(RESTORE, ImportStep::Finish),
        ];
        let mut once = MemoryTable::default();
        steps.iter().for_each(|step| assert_eq!(does(&mut once, step.clone()), Reply::Done));
        for done in 1..=steps.len() {
            steps[..done].iter().for_each(|step| {
                does(&mut table, step.clone());
            });
        }
        assert_eq!(table, once);
        // What has ended meanwhile does not come back, before it is finished and after.
        let mut table = MemoryTable::default();
        steps[..3].iter().for_each(|step| assert_eq!(does(&mut table, step.clone()), Reply::Done));
        at(&mut table, pushes[1].deadline, Command::Expire);
        for step in &steps {
            assert_eq!(does(&mut table, step.clone()), Reply::Done);
        }
        let unregister = Unregister { terminal: KEY.terminal(), tenant: TenantId(1) };
        assert_eq!(view::terminal(&table, &KEY.terminal()).unwrap().unwrap().pending, 1);
        assert_eq!(does(&mut table, Command::Unregister(unregister)), Reply::Done);
        for step in &steps {
            assert_eq!(does(&mut table, step.clone()), Reply::Restored);
        }
        assert_eq!(view::terminal(&table, &KEY.terminal()).unwrap(), None);
    }

    #[test]
    fn a_group_is_restored_before_it_serves_and_never_over_what_it_has() {
        let mut table = MemoryTable::default();
        let refused = |reply: Reply| match reply {
            Reply::Refused(refusal) => refusal,
            other => panic!("{other:?}"),
        };
        let other = RestoreId([1; 16]);
        assert_eq!(refused(does(&mut table, part(1, &[]))), Refusal::OtherRestore, "not begun");
        assert_eq!(view::restoring(&table).unwrap(), None);
        does(&mut table, step(other, ImportStep::Begin));
        let seen = |restore, open, terminals| Some(view::Restoring { restore, open, terminals });
        assert_eq!(view::restoring(&table).unwrap(), seen(other, true, false));
        assert_eq!(refused(does(&mut table, register(3))), Refusal::Restoring);
        for mine in [ImportStep::Begin, ImportStep::Finish, ImportStep::GiveUp] {
            let refusal = refused(does(&mut table, step(RESTORE, mine)));
            assert_eq!(refusal, Refusal::OtherRestore, "it may have brought something to other groups");
        }
        assert_eq!(does(&mut table, step(other, ImportStep::GiveUp)), Reply::Done);
        assert!(matches!(does(&mut table, register(3)), Reply::Registered { .. }), "it serves again");
        assert_eq!(refused(does(&mut table, step(RESTORE, ImportStep::Begin))), Refusal::NotEmpty);

        let mut table = MemoryTable::default();
        does(&mut table, step(RESTORE, ImportStep::Begin));
        let order = Refusal::BadImport(ImportFault::Order);
        assert_eq!(refused(does(&mut table, part(2, &[push(2, None)]))), order, "its first part is missing");
        does(&mut table, part(1, &[push(1, None)]));
        assert_eq!(refused(does(&mut table, part(3, &[push(3, None)]))), order);
        let large = Message { body: vec![0; limits::MAX_PAYLOAD_CEILING + 1].into(), ..push(2, None) };
        let before = table.clone();
        assert_eq!(refused(does(&mut table, part(2, &[large]))), Refusal::BadImport(ImportFault::TooLarge));
        assert_eq!(table, before);
        assert_eq!(does(&mut table, step(RESTORE, ImportStep::GiveUp)), Reply::Done);
        assert_eq!(
            refused(does(&mut table, register(3))),
            Refusal::Restoring,
            "terminals have come: it goes on"
        );
        assert_eq!(view::restoring(&table).unwrap(), seen(RESTORE, true, true));
        assert_eq!(refused(does(&mut table, step(other, ImportStep::Begin))), Refusal::NotEmpty);
    }

    #[test]
    fn the_same_backup_restored_later_begins_other_lives() {
        let life = |begun| {
            let mut table = MemoryTable::default();
            at(&mut table, begun, step(RESTORE, ImportStep::Begin));
            does(&mut table, part(1, &[]));
            view::terminal(&table, &KEY.terminal()).unwrap().unwrap().stream
        };
        assert_ne!(life(GroupTime(1)), life(GroupTime(2)));
    }
}
