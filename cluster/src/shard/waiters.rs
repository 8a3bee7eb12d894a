//! Publishers that wait for a message's end at the shard's leader. Bounded; told once.

use std::collections::BTreeMap;

use futures::channel::oneshot;
use reveille_protocol::id::MessageId;
use reveille_protocol::stage::End;

/// Publishers that may wait for one group's messages at once: each is a connection that somebody holds open.
const MAX_WAITERS: usize = 65_536;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    by_message: BTreeMap<MessageId, Vec<oneshot::Sender<End>>>,
    count: usize,
}

impl Waiters {
    /// One more; `None` if too many wait already.
    pub(super) fn add(&mut self, message: MessageId) -> Option<oneshot::Receiver<End>> {
        if self.count >= MAX_WAITERS {
            return None;
        }
        let (waiter, end) = oneshot::channel();
        self.count += 1;
        self.by_message.entry(message).or_default().push(waiter);
        Some(end)
    }

    /// The message has ended.
    pub(super) fn ended(&mut self, message: &MessageId, end: End) {
        for waiter in self.by_message.remove(message).into_iter().flatten() {
            self.count -= 1;
            // The publisher may have stopped waiting.
            let _ = waiter.send(end);
        }
    }

    /// Everybody must ask elsewhere.
    pub(super) fn dismiss(&mut self) {
        *self = Waiters::default();
    }

    /// Forgets those who do not wait for the message any more.
    pub(super) fn forget_gone(&mut self, message: &MessageId) {
        let Some(waiters) = self.by_message.get_mut(message) else { return };
        let before = waiters.len();
        waiters.retain(|waiter| !waiter.is_canceled());
        self.count -= before - waiters.len();
        if waiters.is_empty() {
            self.by_message.remove(message);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use reveille_protocol::id::{Seq, TerminalId};

    #[test]
    fn everyone_is_told_once_and_nobody_is_kept() {
        let message = MessageId { terminal: TerminalId([1; 16]), check: 2, seq: Seq(3) };
        let mut waiters = Waiters::default();
        let (mut one, mut other) = (waiters.add(message).unwrap(), waiters.add(message).unwrap());
        drop(waiters.add(message));
        waiters.forget_gone(&message);
        assert_eq!(waiters.count, 2);
        waiters.ended(&message, End::Acked);
        assert_eq!((one.try_recv(), other.try_recv()), (Ok(Some(End::Acked)), Ok(Some(End::Acked))));
        assert_eq!((waiters.count, waiters.by_message.len()), (0, 0));
    }
}
