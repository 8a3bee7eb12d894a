//! Which sessions are open on this node, by terminal and attempt. Knows no rules.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use actix::Addr;
use actix::prelude::SendError;
use reveille_cluster::host::Taken;
use reveille_protocol::id::{Attempt, TerminalId};
use reveille_protocol::wire::peer::SessionMessage;

use super::actor::{Leave, SessionActor, ToSession};

/// A session with a full mailbox gets this long to take the word that it must leave.
const LEAVE_WAIT: Duration = Duration::from_secs(30);
/// Parts of the map, so that sessions that open and close do not wait for each other.
const PARTS: usize = 16;

type Open = Vec<(Attempt, Addr<SessionActor>)>;

/// The sessions of this node.
#[derive(Clone)]
pub struct Registry {
    parts: Arc<Vec<Mutex<HashMap<TerminalId, Open>>>>,
    leaving: Arc<AtomicBool>,
}

impl Default for Registry {
    fn default() -> Self {
        let parts = Arc::new((0..PARTS).map(|_| Mutex::default()).collect());
        Registry { parts, leaving: Arc::default() }
    }
}

impl Registry {
    fn part(&self, terminal: &TerminalId) -> MutexGuard<'_, HashMap<TerminalId, Open>> {
        let part = usize::from(terminal.0[15]) % PARTS;
        self.parts[part].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session asks for its epoch: hand-offs for it may come from now on. Not if another one that has not ended asked
    /// with this attempt.
    pub fn insert(&self, terminal: TerminalId, attempt: Attempt, session: Addr<SessionActor>) -> bool {
        let mut part = self.part(&terminal);
        let open = part.entry(terminal).or_default();
        let new = open.iter().all(|(known, _)| *known != attempt);
        if new {
            open.push((attempt, session));
        }
        new
    }

    /// A session is over.
    pub fn remove(&self, terminal: &TerminalId, attempt: Attempt) {
        let mut part = self.part(terminal);
        if let Some(open) = part.get_mut(terminal) {
            open.retain(|(known, _)| *known != attempt);
            if open.is_empty() {
                part.remove(terminal);
            }
        }
    }

    /// Gives a message to the session it is for.
    pub fn send(&self, message: SessionMessage) -> Taken {
        let give = |session: &Addr<SessionActor>| match session.try_send(ToSession(message.clone())) {
            Ok(()) => Taken::Yes,
            Err(SendError::Full(_)) => Taken::Full,
            Err(SendError::Closed(_)) => Taken::NoSession,
        };
        match &message {
            SessionMessage::HandOff(hand_off) => {
                let part = self.part(&hand_off.terminal);
                let mut open = part.get(&hand_off.terminal).into_iter().flatten();
                let session = open.find(|(attempt, _)| *attempt == hand_off.attempt);
                session.map_or(Taken::NoSession, |(_, session)| give(session))
            }
            // The epoch decides, and each session knows its own.
            SessionMessage::Supersede { terminal, .. } => {
                let part = self.part(terminal);
                let open = part.get(terminal).into_iter().flatten();
                open.fold(Taken::NoSession, |_, (_, session)| give(session))
            }
            SessionMessage::Report(_) | SessionMessage::Notify(_) => Taken::NoSession,
        }
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

    /// The node is leaving: every session is told to go elsewhere, and none may attach any more.
    pub fn close(&self, within: u64) {
        // Before the look at the sessions: one that is inserted after that look finds this set.
        self.leaving.store(true, Ordering::SeqCst);
        self.leave(within, &|_| true);
    }

    /// Is the node leaving? Looked at by a session that is inserted: it would not be told any more.
    pub fn leaving(&self) -> bool {
        self.leaving.load(Ordering::SeqCst)
    }

    /// Tells the sessions of these terminals to go elsewhere, spread over `within` milliseconds.
    pub fn leave(&self, within: u64, whose: &dyn Fn(&TerminalId) -> bool) {
        let mut spread = 0;
        for part in self.parts.iter() {
            let part = part.lock().unwrap_or_else(PoisonError::into_inner);
            let told = part.iter().filter(|(terminal, _)| whose(terminal));
            for (_, addr) in told.flat_map(|(_, open)| open) {
                // A step that has no common divisor with the range spreads evenly.
                spread = (spread + 997) % within.max(1);
                if let Err(SendError::Full(leave)) = addr.try_send(Leave { retry_after: spread }) {
                    // It does not keep up; but it must hear this, or it would answer pings for a node that is fenced.
                    let session = addr.clone();
                    tokio::spawn(async move { tokio::time::timeout(LEAVE_WAIT, session.send(leave)).await });
                }
            }
        }
    }
}
