//! Checkers: pure functions from a history to a verdict. Each names what it found, with its witness.

mod delivery;

pub use self::delivery::delivery;

/// What a checker says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The history is as it must be.
    Pass,
    /// It is not; one line for each finding.
    Fail(Vec<String>),
    /// The history does not say enough to tell. Never counts as a pass.
    Unknown(String),
}
