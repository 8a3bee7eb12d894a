//! Applying log entries: the way in. Total and deterministic: it reads only the entry and the group's own
//! tables, never a clock, never who leads, never a node's configuration.

use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::command::{Command, Effect, Refusal, Reply, SetShare};
use super::key::{self, Due};
use super::row::{self, Quota, Restore, Row, Settings};
use super::{TableError, TableMut};
use crate::canary::clock;
use crate::directory;
use crate::id::*;
use crate::time::GroupTime;
use crate::wire::entry::Entry;

/// What an entry came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Group time after the entry.
    pub time: GroupTime,
    /// One reply for each command, in their order.
    pub replies: Vec<Reply>,
    /// What the dispatcher must know, in the order in which it happened.
    pub effects: Vec<Effect>,
}

/// Applies one log entry of `group` to its tables.
///
/// Fails only if the tables cannot be read; then nothing has been decided and this node must stop.
pub fn apply<T: TableMut>(table: &mut T, group: GroupId, entry: &Entry) -> Result<Applied, TableError> {
    let last = read(table, &key::clock())?.unwrap_or_default();
    // A leader's stamp never moves time back, whatever its clock did.
    let now = clock(entry.time).max(last);
    if now != last {
        table.put(&key::clock(), row::store(&now));
    }
    let settings = read(table, &key::settings())?.unwrap_or_default();
    let restore = read(table, &key::restore())?;
    let mut context = Context { table, now, settings, restore, effects: Vec::new() };
    let mut replies = Vec::with_capacity(entry.commands.len());
    for command in &entry.commands {
        let reply = match command {
            Command::Directory(change) if group == GroupId::META => context.change_directory(change)?,
            Command::Directory(_) => Reply::Refused(Refusal::WrongGroup),
            command => context.command(command)?,
        };
        replies.push(reply);
    }
    Ok(Applied { time: now, replies, effects: context.effects })
}

/// The group's limits as they stand in its tables.
pub fn settings<T: super::Table>(table: &T) -> Result<Settings, TableError> {
    Ok(read(table, &key::settings())?.unwrap_or_default())
}

/// The group's time as it stands in its tables.
pub fn time<T: super::Table>(table: &T) -> Result<GroupTime, TableError> {
    Ok(read(table, &key::clock())?.unwrap_or_default())
}

/// When the first matter that ends by time does; `None` if there is none.
pub fn next_deadline<T: super::Table>(table: &T) -> Result<Option<GroupTime>, TableError> {
    let (from, to) = key::deadlines_until(GroupTime(u64::MAX - 1));
    let mut first = None;
    table.scan(&from, &to, &mut |key, _| {
        first = key::parse_deadline(key).map(|(time, _)| time);
        false
    })?;
    Ok(first)
}

/// Reads and decodes one value.
pub(crate) fn read<T, V>(table: &T, key: &[u8]) -> Result<Option<V>, TableError>
where
    T: super::Table + ?Sized,
    V: DeserializeOwned,
{
    table.get(key)?.map(|bytes| row::load(&bytes)).transpose()
}

/// One entry's work in progress.
pub(super) struct Context<'t, T> {
    pub(super) table: &'t mut T,
    pub(super) now: GroupTime,
    pub(super) settings: Settings,
    pub(super) restore: Option<Restore>,
    pub(super) effects: Vec<Effect>,
}

impl<T: TableMut> Context<'_, T> {
    fn command(&mut self, command: &Command) -> Result<Reply, TableError> {
        let beside = matches!(
            command,
            Command::Import(_) | Command::Expire | Command::Settings(_) | Command::SetShare(_)
        );
        if self.restore.is_some_and(|restore| restore.open) && !beside {
            return Ok(Reply::Refused(Refusal::Restoring));
        }
        let outcome = match command {
            Command::Register(register) => self.register(register)?,
            Command::Attach(attach) => self.attach(attach)?,
            Command::Ack(ack) => self.ack(ack)?,
            Command::Detach(detach) => self.detach(detach)?,
            Command::Enqueue(enqueue) => self.enqueue(enqueue)?,
            Command::Cancel(cancel) => self.cancel(cancel)?,
            Command::Expire => Ok(self.expire()?),
            Command::SetReachability(set) => self.set_reachability(set)?,
            Command::Unregister(unregister) => self.unregister(unregister)?,
            Command::Settings(settings) => {
                self.table.put(&key::settings(), row::store(settings));
                self.settings = settings.clone();
                Ok(Reply::Done)
            }
            Command::SetShare(share) => Ok(self.set_share(share)?),
            Command::Directory(_) => Err(Refusal::WrongGroup),
            Command::Import(import) => self.import(import)?,
        };
        Ok(outcome.unwrap_or_else(Reply::Refused))
    }

    fn change_directory(&mut self, change: &directory::Change) -> Result<Reply, TableError> {
        let mut directory = directory::read(self.table)?;
        if let directory::Change::Restore { restore, .. } = change {
            match self.restore {
                // Done before: what has been changed since stays.
                Some(known) if known.id == *restore => return Ok(Reply::Directory(directory::Outcome::Done)),
                Some(_) => return Ok(Reply::Refused(Refusal::Directory(directory::Refused::NotFresh))),
                None => {}
            }
        }
        Ok(match directory.apply(change, self.now) {
            Ok(outcome) => {
                if let directory::Change::Restore { restore, .. } = change {
                    self.set_restore(Some(Restore { id: *restore, begun: self.now, open: false }));
                }
                self.table.put(&key::DIRECTORY, directory.encode());
                self.effects.push(Effect::DirectoryChanged);
                Reply::Directory(outcome)
            }
            Err(refused) => Reply::Refused(Refusal::Directory(refused)),
        })
    }

    fn set_share(&mut self, share: &SetShare) -> Result<Reply, TableError> {
        let mut quota: Quota = read(self.table, &key::quota(share.tenant))?.unwrap_or_default();
        quota.max_terminals = share.max_terminals;
        self.table.put(&key::quota(share.tenant), row::store(&quota));
        Ok(Reply::Done)
    }

    pub(super) fn row(&self, terminal: &TerminalId) -> Result<Option<Row>, TableError> {
        read(self.table, &key::terminal(terminal))
    }

    pub(super) fn put_row(&mut self, terminal: &TerminalId, row: &Row) {
        self.table.put(&key::terminal(terminal), row::store(row));
    }

    pub(super) fn at(&mut self, time: GroupTime, due: &Due) {
        self.table.put_new(&key::deadline(time, due), Bytes::new());
    }
}
