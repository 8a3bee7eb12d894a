//! What a restore brings: steps of it, and terminals of a backup. Formats only, no rules; stored in the log as commands are.

use serde::{Deserialize, Serialize};

use super::row::{Message, Row};
use crate::id::*;

/// See [`super::Command::Import`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    /// Which restore; each step may be repeated under it.
    pub restore: RestoreId,
    /// What is to be done.
    pub step: ImportStep,
}

/// A step of a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImportStep {
    /// From now on, and until it is finished, the group serves nobody. Refused if it has terminals of its own.
    Begin,
    /// Terminals and what waits for them.
    Terminals(Vec<Imported>),
    /// All are there: the group serves them. Steps that come later change nothing.
    Finish,
    /// Takes `Begin` back, unless terminals have come since.
    GiveUp,
}

/// A terminal of a backup. One with much waiting comes in several parts, each after the one before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// Its row in the backup. What counts in its old life is not taken over.
    pub row: Row,
    /// The place of the first of `pushes` among all that wait for it, from 1: their seqs from now on.
    pub from: Seq,
    /// What waits for it, in its order.
    pub pushes: Vec<Message>,
}

/// What is wrong with an imported terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ImportFault {
    /// A push is larger than any that a cluster takes.
    #[error("a push is larger than may be")]
    TooLarge,
    /// The part before this one is missing.
    #[error("a part of a terminal came before the part that it follows")]
    Order,
}
