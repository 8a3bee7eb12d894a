//! Reading the service list: what dispatch, sessions and the publisher's API ask of the tables. Never writes.

use super::apply::read;
use super::key;
use super::row::{self, Ended, Message, Restore, Row, Urgency};
use super::{Table, TableError};
use crate::id::*;

/// A terminal's entry in the service list.
pub fn terminal<T: Table>(table: &T, terminal: &TerminalId) -> Result<Option<Row>, TableError> {
    read(table, &key::terminal(terminal))
}

/// So few seqs are looked up one by one: a scan also asks the disk for what lies between them.
const FEW: u64 = 8;

/// Up to `limit` pending pushes with `from <= seq < to`, in order.
pub fn pending<T: Table>(
    table: &T,
    terminal: &TerminalId,
    from: Seq,
    to: Seq,
    limit: usize,
) -> Result<Vec<(Seq, Message)>, TableError> {
    let mut found = Vec::new();
    if to.0.saturating_sub(from.0) <= FEW.min(limit as u64) {
        for seq in (from.0..to.0).map(Seq) {
            found.extend(read(table, &key::pending(terminal, seq))?.map(|message| (seq, message)));
        }
        return Ok(found);
    }
    scan_pending(table, terminal, (from, to), &mut |seq, message| {
        found.push((seq, message));
        found.len() < limit
    })?;
    Ok(found)
}

/// The highest urgency of what waits for a terminal; `None`: nothing does. Looks at all of it, up to the first push of the
/// highest there is.
pub fn highest_urgency<T: Table>(table: &T, terminal: &TerminalId) -> Result<Option<Urgency>, TableError> {
    let mut highest = None;
    scan_pending(table, terminal, (Seq(0), Seq(u64::MAX)), &mut |_, message| {
        highest = highest.max(Some(message.urgency));
        highest < Some(Urgency::High)
    })?;
    Ok(highest)
}

/// Visits what waits for a terminal until `visit` says that it has enough.
fn scan_pending<T: Table>(
    table: &T,
    terminal: &TerminalId,
    (from, to): (Seq, Seq),
    visit: &mut dyn FnMut(Seq, Message) -> bool,
) -> Result<(), TableError> {
    let mut damaged = None;
    table.scan(&key::pending(terminal, from), &key::pending(terminal, to), &mut |key, value| {
        match (key::parse_pending(key), row::load(value)) {
            (Some((_, seq)), Ok(message)) => return visit(seq, message),
            (None, _) => damaged = Some(TableError(format!("a key of pending is damaged: {key:02x?}"))),
            (_, Err(error)) => damaged = Some(error),
        }
        false
    })?;
    damaged.map_or(Ok(()), Err)
}

/// The last restore that was begun in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restoring {
    /// Its name.
    pub restore: RestoreId,
    /// It is not finished: the group serves nobody.
    pub open: bool,
    /// Terminals are there.
    pub terminals: bool,
}

/// The restore that a group came by, or is coming by; `None` if it came by none.
pub fn restoring<T: Table>(table: &T) -> Result<Option<Restoring>, TableError> {
    let Some(Restore { id, open, .. }) = read(table, &key::restore())? else { return Ok(None) };
    Ok(Some(Restoring { restore: id, open, terminals: has_terminals(table)? }))
}

/// Is a single terminal registered in the group?
pub(super) fn has_terminals<T: Table>(table: &T) -> Result<bool, TableError> {
    let (from, to) = key::all_terminals();
    let mut any = false;
    table.scan(&from, &to, &mut |_, _| {
        any = true;
        false
    })?;
    Ok(any)
}

/// What became of a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MessageState {
    /// It waits for its terminal.
    Pending(Message),
    /// It ended.
    Ended(Ended),
}

/// A push of `tenant`; `None` if there never was one, or it ended longer ago than is remembered.
pub fn message<T: Table>(
    table: &T,
    tenant: TenantId,
    id: &MessageId,
) -> Result<Option<MessageState>, TableError> {
    if let Some(ended) = read::<_, Ended>(table, &key::ended(id))? {
        return Ok(Some(ended).filter(|ended| ended.tenant == tenant).map(MessageState::Ended));
    }
    let owned = |row: &Row| row.tenant == tenant && row.stream.check() == id.check;
    if !terminal(table, &id.terminal)?.as_ref().is_some_and(owned) {
        return Ok(None);
    }
    Ok(read(table, &key::pending(&id.terminal, id.seq))?.map(MessageState::Pending))
}

/// Up to `limit` terminals of `tenant` after `after`, in the order of their ids.
pub fn terminals_of<T: Table>(
    table: &T,
    tenant: TenantId,
    after: Option<TerminalId>,
    limit: usize,
) -> Result<Vec<TerminalId>, TableError> {
    let mut from = key::tenant_terminal(tenant, &after.unwrap_or(TerminalId([0; 16])));
    if after.is_some() {
        from.push(0);
    }
    let mut found = Vec::new();
    table.scan(&from, &key::tenant_end(tenant), &mut |key, _| {
        found.extend(key::parse_tenant_terminal(key));
        found.len() < limit
    })?;
    Ok(found)
}

/// Terminals with something pending, each once, after `after`: how a new leader rebuilds what it must dispatch.
pub fn waiting<T: Table>(
    table: &T,
    after: Option<TerminalId>,
    limit: usize,
) -> Result<Vec<TerminalId>, TableError> {
    let (start, end) = key::all_pending();
    let mut from = after.map_or(start, |terminal| key::pending(&terminal, Seq(u64::MAX)));
    let mut found = Vec::new();
    // One short scan per terminal, so that a terminal with a thousand pushes costs as much as one with one.
    while found.len() < limit {
        let mut next = None;
        table.scan(&from, &end, &mut |key, _| {
            next = key::parse_pending(key);
            false
        })?;
        let Some((terminal, _)) = next else { break };
        found.push(terminal);
        from = key::pending(&terminal, Seq(u64::MAX));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;

    use super::*;
    use crate::service_list::{MemoryTable, TableMut};
    use crate::time::GroupTime;

    /// A new leader that looked at the first ones alone woke nobody for the urgent push behind them.
    #[test]
    fn the_highest_urgency_is_that_of_all_that_waits() {
        let terminal = TerminalId([1; 16]);
        let mut table = MemoryTable::default();
        assert_eq!(highest_urgency(&table, &terminal).unwrap(), None);
        for seq in 1..=100 {
            let message = Message {
                command: CommandId([0; 16]),
                accepted: GroupTime(1),
                deadline: GroupTime(2),
                urgency: if seq == 90 { Urgency::High } else { Urgency::Low },
                channel: Channel(0),
                topic: None,
                headers: Vec::new(),
                body: Bytes::new(),
            };
            table.put(&key::pending(&terminal, Seq(seq)), row::store(&message));
        }
        assert_eq!(highest_urgency(&table, &terminal).unwrap(), Some(Urgency::High));
        assert_eq!(highest_urgency(&table, &TerminalId([2; 16])).unwrap(), None);
    }
}
