//! The log entry: a batch of commands that one leader stamped with group time. No rules here.

use serde::{Deserialize, Serialize};

use super::codec::{self, CodecError};
use crate::limits;
use crate::service_list::Command;
use crate::time::GroupTime;

/// One entry of a group's log. Commands are applied in their order, all at the entry's time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Group time at which the leader proposed it.
    pub time: GroupTime,
    /// At most [`limits::MAX_ENTRY_COMMANDS`].
    pub commands: Vec<Command>,
}

impl Entry {
    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Reads the stored form.
    pub fn decode(bytes: &[u8]) -> Result<Entry, CodecError> {
        codec::decode::<Entry, { limits::MAX_ENTRY_DECODE }>(bytes)
    }
}
