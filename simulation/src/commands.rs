//! Commands that tests propose. No assertions.

use bytes::Bytes;
use reveille_protocol::id::*;
use reveille_protocol::service_list::row::Urgency;
use reveille_protocol::service_list::{Command, Enqueue};
use reveille_protocol::time::GroupTime;

/// A plain push; its number makes it a command of its own.
pub fn push(number: u64, terminal: TerminalId, body: Bytes) -> Command {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&number.to_be_bytes());
    Command::Enqueue(Box::new(Enqueue {
        id: CommandId(id),
        not_after: GroupTime(0),
        retry: false,
        terminal,
        tenant: TenantId(1),
        ttl: None,
        urgency: Urgency::Normal,
        channel: Channel(0),
        topic: None,
        idempotency: None,
        headers: Vec::new(),
        body,
    }))
}
