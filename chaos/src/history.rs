//! The history of a run: one event a line, JSON, append only, versioned. Written by harnesses, read by checkers.
//!
//! A publish that timed out is `unknown`, never failed: it may have happened, and may yet.

use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};

/// The version of the format; the first line of a history carries it.
pub const VERSION: u32 = 1;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Microseconds since the run began.
    pub at: u64,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// The first line.
    Begin {
        /// See [`VERSION`].
        version: u32,
    },
    /// A publisher sends a push. `payload` is unique in the run.
    Publish {
        /// To whom.
        terminal: String,
        /// What.
        payload: String,
        /// Through which node.
        node: u64,
    },
    /// It was acknowledged.
    Published {
        /// What.
        payload: String,
        /// The name that it got.
        message: String,
        /// Its place in the terminal's stream.
        seq: u64,
    },
    /// It was certainly not stored.
    Failed {
        /// What.
        payload: String,
        /// Why.
        why: String,
    },
    /// Whether it was stored is not known.
    Unknown {
        /// What.
        payload: String,
        /// Why.
        why: String,
    },
    /// A run of a terminal's process began; deliveries count per run.
    TerminalStarted {
        /// Who.
        terminal: String,
    },
    /// A push was given to the application.
    Delivered {
        /// To whom.
        terminal: String,
        /// What.
        payload: String,
        /// Its place.
        seq: u64,
        /// Marked as perhaps seen before.
        maybe_seen: bool,
        /// By which node.
        node: u64,
    },
    /// The application confirmed it.
    Confirmed {
        /// Who.
        terminal: String,
        /// Up to where.
        seq: u64,
    },
    /// A fault was made or ended.
    Fault {
        /// Which, in words.
        what: String,
    },
}

/// A history that is being written.
pub struct Writer<W: Write>(W);

impl<W: Write> Writer<W> {
    /// Begins a history.
    pub fn new(out: W) -> io::Result<Writer<W>> {
        let mut writer = Writer(out);
        writer.write(&Event { at: 0, what: What::Begin { version: VERSION } })?;
        Ok(writer)
    }

    /// Adds an event.
    pub fn write(&mut self, event: &Event) -> io::Result<()> {
        serde_json::to_writer(&mut self.0, event)?;
        self.0.write_all(b"\n")
    }
}

/// A history that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file.
    #[error("history: {0}")]
    Io(#[from] io::Error),
    /// A line.
    #[error("history, line {line}: {error}")]
    Line {
        /// Which, from 1.
        line: usize,
        /// What is wrong with it.
        error: serde_json::Error,
    },
    /// Another version.
    #[error("history has version {found:?}, this build reads {VERSION}")]
    Version {
        /// The version found.
        found: Option<u32>,
    },
}

/// Reads a whole history.
pub fn read(input: impl BufRead) -> Result<Vec<Event>, ReadError> {
    let mut events = Vec::new();
    for (at, line) in input.lines().enumerate() {
        let line = line?;
        events.push(serde_json::from_str(&line).map_err(|error| ReadError::Line { line: at + 1, error })?);
    }
    match events.first() {
        Some(Event { what: What::Begin { version: VERSION }, .. }) => Ok(events),
        Some(Event { what: What::Begin { version }, .. }) => {
            Err(ReadError::Version { found: Some(*version) })
        }
        _ => Err(ReadError::Version { found: None }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_written_is_read_and_other_versions_are_refused() {
        let mut bytes = Vec::new();
        let event = Event {
            at: 7,
            what: What::Published { payload: "p".to_owned(), message: "m".to_owned(), seq: 1 },
        };
        Writer::new(&mut bytes).unwrap().write(&event).unwrap();
        let text = String::from_utf8(bytes.clone()).unwrap();
        assert_eq!(
            text,
            "{\"at\":0,\"event\":\"begin\",\"version\":1}\n\
             {\"at\":7,\"event\":\"published\",\"payload\":\"p\",\"message\":\"m\",\"seq\":1}\n"
        );
        assert_eq!(read(&bytes[..]).unwrap()[1], event);
        let other = text.replace("\"version\":1", "\"version\":9");
        assert!(matches!(read(other.as_bytes()), Err(ReadError::Version { found: Some(9) })));
        assert!(matches!(read(&b"{}\n"[..]), Err(ReadError::Line { line: 1, .. })));
    }
}
