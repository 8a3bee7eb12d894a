//! The keys of the tables, pinned by hand: one tag byte, then big-endian parts, so that a scan follows the order
//! of time and seq. No values here.

use crate::id::{Channel, CommandId, KeyFingerprint, MessageId, Seq, Stream, TenantId, TerminalId};
use crate::time::GroupTime;

/// Keys below this tag belong to the host of the state machine (what it applied, its membership).
pub const FIRST_TAG: u8 = 0x10;

const SETTINGS: u8 = 0x10;
const CLOCK: u8 = 0x11;
const TERMINALS: u8 = 0x12;
const PENDING: u8 = 0x13;
const TOPICS: u8 = 0x14;
const DEADLINES: u8 = 0x15;
const IDEMPOTENCY: u8 = 0x16;
const ENDED: u8 = 0x17;
const TENANTS: u8 = 0x18;
const QUOTAS: u8 = 0x19;
const SETTLED: u8 = 0x1a;
const FORGOTTEN: u8 = 0x1b;
const RESTORE: u8 = 0x1c;
/// The key of the meta group's directory; see `crate::directory`.
pub const DIRECTORY: [u8; 1] = [0x30];

/// The group's limits.
pub(crate) fn settings() -> Vec<u8> {
    vec![SETTINGS]
}

/// The group's time.
pub(crate) fn clock() -> Vec<u8> {
    vec![CLOCK]
}

/// A terminal's row.
pub fn terminal(terminal: &TerminalId) -> Vec<u8> {
    [&[TERMINALS], &terminal.0[..]].concat()
}

/// The terminal in a key of the table of rows.
pub fn parse_terminal(key: &[u8]) -> Option<TerminalId> {
    let (&TERMINALS, rest) = key.split_first()? else { return None };
    rest.try_into().ok().map(TerminalId)
}

/// Where the rows of all terminals begin and end.
pub(crate) fn all_terminals() -> (Vec<u8>, Vec<u8>) {
    (vec![TERMINALS], terminals_end())
}

/// Where the rows after this terminal end.
pub fn terminals_end() -> Vec<u8> {
    vec![TERMINALS + 1]
}

/// A push that waits for its terminal.
pub fn pending(terminal: &TerminalId, seq: Seq) -> Vec<u8> {
    [&[PENDING], &terminal.0[..], &seq.0.to_be_bytes()].concat()
}

/// Where the pending pushes of all terminals begin and end.
pub fn all_pending() -> (Vec<u8>, Vec<u8>) {
    (vec![PENDING], vec![PENDING + 1])
}

/// The terminal and seq in a key of the pending table.
pub fn parse_pending(key: &[u8]) -> Option<(TerminalId, Seq)> {
    let (&PENDING, rest) = key.split_first()? else { return None };
    let (terminal, seq) = rest.split_first_chunk::<16>()?;
    Some((TerminalId(*terminal), Seq(u64::from_be_bytes(seq.try_into().ok()?))))
}

/// The latest pending push with this topic.
pub(crate) fn topic(terminal: &TerminalId, channel: Channel, topic: &str) -> Vec<u8> {
    [&[TOPICS], &terminal.0[..], &channel.0.to_be_bytes(), topic.as_bytes()].concat()
}

/// What an idempotency key led to.
pub(crate) fn idempotency(hash: &[u8; 16]) -> Vec<u8> {
    [&[IDEMPOTENCY], &hash[..]].concat()
}

/// How a push ended.
pub fn ended(message: &MessageId) -> Vec<u8> {
    [&[ENDED], &message.terminal.0[..], &message.check.to_be_bytes(), &message.seq.0.to_be_bytes()].concat()
}

/// Index entry: this tenant has this terminal.
pub fn tenant_terminal(tenant: TenantId, terminal: &TerminalId) -> Vec<u8> {
    [&[TENANTS], &tenant.0.to_be_bytes()[..], &terminal.0].concat()
}

/// The terminal in a key of the tenant index.
pub fn parse_tenant_terminal(key: &[u8]) -> Option<TerminalId> {
    let (&TENANTS, rest) = key.split_first()? else { return None };
    rest.get(4..)?.try_into().ok().map(TerminalId)
}

/// Where the terminals of one tenant end in the index.
pub fn tenant_end(tenant: TenantId) -> Vec<u8> {
    match tenant.0.checked_add(1) {
        Some(next) => [&[TENANTS], &next.to_be_bytes()[..]].concat(),
        None => vec![TENANTS + 1],
    }
}

/// What a tenant uses of its share in this group.
pub(crate) fn quota(tenant: TenantId) -> Vec<u8> {
    [&[QUOTAS], &tenant.0.to_be_bytes()[..]].concat()
}

/// Until when there may be retried commands in the table below.
pub(crate) fn settled_until() -> Vec<u8> {
    vec![SETTLED]
}

/// What a retried command came to.
pub(crate) fn settled(command: &CommandId) -> Vec<u8> {
    [&[SETTLED], &command.0[..]].concat()
}

/// A life of a terminal that was ended lately.
pub(crate) fn forgotten(terminal: &TerminalId, stream: Stream) -> Vec<u8> {
    [&[FORGOTTEN], &terminal.0[..], &stream.0.to_be_bytes()].concat()
}

/// The restore that this group's terminals came by.
pub(crate) fn restore() -> Vec<u8> {
    vec![RESTORE]
}

/// Is this key part of a backup? What a restore does not bring back is not: ended pushes, idempotency keys and retries
/// that are remembered for a while, and what follows from the rest.
pub fn is_backed_up(key: &[u8]) -> bool {
    matches!(key.first(), Some(&(CLOCK | TERMINALS | PENDING))) || key == DIRECTORY
}

/// Is this the key of the group's time?
pub fn is_clock(key: &[u8]) -> bool {
    key == [CLOCK]
}

/// Something that ends by time. Stored: tags are pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Due {
    /// A push's TTL.
    Message(TerminalId, Seq),
    /// The memory of an ended push.
    Ended(MessageId),
    /// The memory of an idempotency key.
    Idempotency([u8; 16]),
    /// A registration without a sign of life.
    Registration(TerminalId),
    /// The memory of what a retried command came to.
    Settled(CommandId),
    /// The memory of an ended life.
    Forgotten(TerminalId, Stream),
}

/// The key that brings `due` up at `time`.
pub(crate) fn deadline(time: GroupTime, due: &Due) -> Vec<u8> {
    let mut key = Vec::with_capacity(40);
    key.push(DEADLINES);
    key.extend_from_slice(&time.0.to_be_bytes());
    match due {
        Due::Message(terminal, seq) => {
            key.push(0);
            key.extend_from_slice(&terminal.0);
            key.extend_from_slice(&seq.0.to_be_bytes());
        }
        Due::Ended(message) => {
            key.push(1);
            key.extend_from_slice(&message.terminal.0);
            key.extend_from_slice(&message.check.to_be_bytes());
            key.extend_from_slice(&message.seq.0.to_be_bytes());
        }
        Due::Idempotency(hash) => {
            key.push(2);
            key.extend_from_slice(hash);
        }
        Due::Registration(terminal) => {
            key.push(3);
            key.extend_from_slice(&terminal.0);
        }
        Due::Settled(command) => {
            key.push(4);
            key.extend_from_slice(&command.0);
        }
        Due::Forgotten(terminal, stream) => {
            key.push(5);
            key.extend_from_slice(&terminal.0);
            key.extend_from_slice(&stream.0.to_be_bytes());
        }
    }
    key
}

/// Where the deadlines begin, and where those after `time` do.
pub(crate) fn deadlines_until(time: GroupTime) -> (Vec<u8>, Vec<u8>) {
    (vec![DEADLINES], [&[DEADLINES], &time.0.saturating_add(1).to_be_bytes()[..]].concat())
}

/// The time and the matter in a key of the deadlines table.
pub(crate) fn parse_deadline(key: &[u8]) -> Option<(GroupTime, Due)> {
    let (&DEADLINES, rest) = key.split_first()? else { return None };
    let (time, rest) = rest.split_first_chunk::<8>()?;
    let (kind, rest) = rest.split_first()?;
    let due = match kind {
        0 => {
            let (terminal, seq) = rest.split_first_chunk::<16>()?;
            Due::Message(TerminalId(*terminal), Seq(u64::from_be_bytes(seq.try_into().ok()?)))
        }
        1 => {
            let (terminal, rest) = rest.split_first_chunk::<16>()?;
            let (check, seq) = rest.split_first_chunk::<4>()?;
            Due::Ended(MessageId {
                terminal: TerminalId(*terminal),
                check: u32::from_be_bytes(*check),
                seq: Seq(u64::from_be_bytes(seq.try_into().ok()?)),
            })
        }
        2 => Due::Idempotency(rest.try_into().ok()?),
        3 => Due::Registration(TerminalId(rest.try_into().ok()?)),
        4 => Due::Settled(CommandId(rest.try_into().ok()?)),
        5 => {
            let (terminal, stream) = rest.split_first_chunk::<16>()?;
            Due::Forgotten(TerminalId(*terminal), Stream(u64::from_be_bytes(stream.try_into().ok()?)))
        }
        _ => return None,
    };
    Some((GroupTime(u64::from_be_bytes(*time)), due))
}

/// Hash under which an idempotency key is remembered, per tenant and terminal.
pub fn idempotency_hash(tenant: TenantId, terminal: &TerminalId, key: &str) -> [u8; 16] {
    let mut text = Vec::with_capacity(20 + key.len());
    text.extend_from_slice(&tenant.0.to_be_bytes());
    text.extend_from_slice(&terminal.0);
    text.extend_from_slice(key.as_bytes());
    half(KeyFingerprint(crate::hash::sha256(&text)))
}

fn half(hash: KeyFingerprint) -> [u8; 16] {
    hash.terminal().0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn deadlines_sort_by_time_and_parse_back() {
        let terminal = TerminalId([7; 16]);
        let dues = [
            Due::Message(terminal, Seq(3)),
            Due::Ended(MessageId { terminal, check: 5, seq: Seq(9) }),
            Due::Idempotency([1; 16]),
            Due::Registration(terminal),
            Due::Settled(CommandId([2; 16])),
            Due::Forgotten(terminal, Stream(8)),
        ];
        let keys: Vec<_> = dues.iter().map(|due| deadline(GroupTime(256), due)).collect();
        for (key, due) in keys.iter().zip(&dues) {
            assert_eq!(parse_deadline(key).unwrap(), (GroupTime(256), due.clone()));
            assert!(*key > deadline(GroupTime(255), due));
            let (from, to) = deadlines_until(GroupTime(256));
            assert!((from..to).contains(key));
            assert!(*key >= deadlines_until(GroupTime(255)).1);
        }
        assert_eq!(parse_pending(&pending(&terminal, Seq(3))), Some((terminal, Seq(3))));
        let index = tenant_terminal(TenantId(u32::MAX), &terminal);
        assert_eq!(parse_tenant_terminal(&index), Some(terminal));
        assert!(index < tenant_end(TenantId(u32::MAX)));
    }
}
