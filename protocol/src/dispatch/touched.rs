//! Which terminals an entry of the log touched, and what it stored for them: read off its effects. Decides nothing.

use std::collections::{BTreeMap, btree_map};

use crate::id::{MessageId, Seq, TerminalId};
use crate::service_list::Effect;
use crate::service_list::row::Urgency;

/// Pushes that one entry stored for a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// The highest urgency among them.
    pub urgency: Urgency,
    /// Those that the same entry did not end again.
    pub waiting: u32,
    /// The first one. Later ones have higher seqs.
    first: Seq,
}

impl Stored {
    /// One push.
    pub fn one(seq: Seq, urgency: Urgency) -> Stored {
        Stored { urgency, waiting: 1, first: seq }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Touched(BTreeMap<TerminalId, Option<Stored>>);

impl Touched {
    /// Takes the next effect in.
    pub fn add(&mut self, effect: &Effect) {
        match effect {
            Effect::Stored { message, urgency } => self.stored(message, *urgency),
            Effect::Ended { message, .. } => {
                let stored = self.0.entry(message.terminal).or_default();
                if let Some(stored) = stored.as_mut().filter(|stored| message.seq >= stored.first) {
                    stored.waiting = stored.waiting.saturating_sub(1);
                }
            }
            Effect::Acked { terminal, .. }
            | Effect::StatusChanged { terminal }
            | Effect::Gone { terminal } => {
                self.0.entry(*terminal).or_default();
            }
            // The session's node is told; the row changed by another effect.
            Effect::Superseded { .. } | Effect::DirectoryChanged | Effect::Restored => {}
        }
    }

    fn stored(&mut self, message: &MessageId, urgency: Urgency) {
        let one = Stored::one(message.seq, urgency);
        let stored = self.0.entry(message.terminal).or_default().get_or_insert(Stored { waiting: 0, ..one });
        stored.urgency = stored.urgency.max(urgency);
        stored.waiting += 1;
    }
}

impl IntoIterator for Touched {
    type Item = (TerminalId, Option<Stored>);
    type IntoIter = btree_map::IntoIter<TerminalId, Option<Stored>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::End;

    #[test]
    fn what_an_entry_stores_and_ends_itself_does_not_wait() {
        let terminal = TerminalId([1; 16]);
        let message = |seq| MessageId { terminal, check: 7, seq: Seq(seq) };
        let stored = |seq, urgency| Effect::Stored { message: message(seq), urgency };
        let ended = |seq| Effect::Ended { message: message(seq), end: End::Replaced };
        let mut touched = Touched::default();
        let effects = [ended(1), stored(4, Urgency::Low), stored(5, Urgency::High), ended(4), ended(3)];
        effects.iter().for_each(|effect| touched.add(effect));
        let expected = Stored { urgency: Urgency::High, waiting: 1, first: Seq(4) };
        assert_eq!(touched.into_iter().collect::<Vec<_>>(), [(terminal, Some(expected))]);
    }
}
