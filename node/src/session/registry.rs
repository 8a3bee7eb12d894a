//! Which sessions are open on this node, by terminal and attempt. Knows no rules.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use actix::Addr;
use reveille_protocol::id::{Attempt, TerminalId};
use reveille_protocol::wire::peer::SessionMessage;

use super::actor::{Leave, SessionActor, ToSession};

/// Parts of the map, so that sessions that open and close do not wait for each other.
const PARTS: usize = 16;

type Open = Vec<(Attempt, Addr<SessionActor>)>;

/// The sessions of this node.
#[derive(Clone)]
pub struct Registry {
    parts: Arc<Vec<Mutex<HashMap<TerminalId, Open>>>>,
}

impl Default for Registry {
    fn default() -> Self {
        Registry { parts: Arc::new((0..PARTS).map(|_| Mutex::default()).collect()) }
    }
}

impl Registry {
    fn part(&self, terminal: &TerminalId) -> MutexGuard<'_, HashMap<TerminalId, Open>> {
        let part = usize::from(terminal.0[15]) % PARTS;
        self.parts[part].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session asks for its epoch: hand-offs for it may come from now on.
    pub fn insert(&self, terminal: TerminalId, attempt: Attempt, session: Addr<SessionActor>) {
        self.part(&terminal).entry(terminal).or_default().push((attempt, session));
    }

    /// A session is over.
    pub fn remove(&self, terminal: &TerminalId, attempt: Attempt, session: &Addr<SessionActor>) {
        let mut part = self.part(terminal);
        if let Some(open) = part.get_mut(terminal) {
            open.retain(|(known, addr)| *known != attempt || addr != session);
            if open.is_empty() {
                part.remove(terminal);
            }
        }
    }

    /// Gives a message to the session it is for; `false` if there is none, or its mailbox is full.
    pub fn send(&self, message: SessionMessage) -> bool {
        let part;
        let open = match &message {
            SessionMessage::HandOff(hand_off) => {
                part = self.part(&hand_off.terminal);
                part.get(&hand_off.terminal).and_then(|open| {
                    open.iter().find(|(attempt, _)| *attempt == hand_off.attempt).map(|(_, addr)| addr)
                })
            }
            SessionMessage::Supersede { terminal, .. } => {
                part = self.part(terminal);
                let Some(open) = part.get(terminal) else { return false };
                // The epoch decides, and each session knows its own.
                return open.iter().all(|(_, addr)| addr.try_send(ToSession(message.clone())).is_ok());
            }
            SessionMessage::Report(_) => return false,
        };
        // A full mailbox is a session that does not keep up: the leader's timer sends again.
        open.is_some_and(|addr| addr.try_send(ToSession(message.clone())).is_ok())
    }

    /// Open sessions.
    pub fn len(&self) -> usize {
        let parts = self.parts.iter();
        parts
            .map(|part| {
                part.lock().unwrap_or_else(PoisonError::into_inner).values().map(Vec::len).sum::<usize>()
            })
            .sum()
    }

    /// Tells every session to go elsewhere, spread over `within` milliseconds.
    pub fn leave_all(&self, within: u64) {
        let mut spread = 0;
        for part in self.parts.iter() {
            for (_, addr) in part.lock().unwrap_or_else(PoisonError::into_inner).values().flatten() {
                // A step that has no common divisor with the range spreads evenly.
                spread = (spread + 997) % within.max(1);
                // A full mailbox: its connection breaks with the node, which says the same.
                let _ = addr.try_send(Leave { retry_after: spread });
            }
        }
    }
}
