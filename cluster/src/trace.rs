//! The soft half of a message's trace: when it was notified, handed off, delivered, as the shard leader saw it.
//! Lost with the leader; the durable half is in the tables.

use std::collections::{BTreeMap, VecDeque};

use reveille_protocol::id::{MessageId, NodeId};
use reveille_protocol::stage::Stage;
use serde::{Deserialize, Serialize};

/// Messages whose traces a leader keeps per group: the last seconds under full load, hours otherwise. About 200
/// bytes each.
const CAPACITY: usize = 16_384;

/// One stage of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traced {
    /// Which stage.
    pub stage: Stage,
    /// When, in microseconds since the Unix epoch on the clock of the node that saw it.
    pub at: u64,
    /// Where.
    pub node: NodeId,
}

/// The traces of one group.
#[derive(Debug, Default)]
pub(crate) struct Traces {
    stages: BTreeMap<MessageId, Vec<Traced>>,
    order: VecDeque<MessageId>,
}

impl Traces {
    /// Begins the trace of a message.
    pub(crate) fn begin(&mut self, message: MessageId, first: Traced) {
        if self.order.len() >= CAPACITY
            && let Some(oldest) = self.order.pop_front()
        {
            self.stages.remove(&oldest);
        }
        self.order.push_back(message);
        self.stages.insert(message, vec![first]);
    }

    /// Adds a stage, the first time it happens.
    pub(crate) fn add(&mut self, message: &MessageId, traced: Traced) {
        if let Some(stages) = self.stages.get_mut(message)
            && stages.iter().all(|known| known.stage != traced.stage)
        {
            stages.push(traced);
        }
    }

    /// What is known of a message.
    pub(crate) fn of(&self, message: &MessageId) -> Vec<Traced> {
        self.stages.get(message).cloned().unwrap_or_default()
    }
}
