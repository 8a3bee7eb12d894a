//! Reading a history, one event after the other, within limits: a history is bytes from outside.

use std::io::{self, BufRead, Read};

use super::event::{Begin, Event, VERSION, What};

/// The longest line, in bytes: a push's payload is named, not quoted, so lines are short.
pub const LINE: usize = 64 << 10;
/// The most lines: a run of a day at a thousand operations a second, four lines each, is checked in parts.
pub const LINES: u64 = 100_000_000;

/// A history that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file.
    #[error("history: {0}")]
    Io(#[from] io::Error),
    /// A line in its middle is no event.
    #[error("history, line {line}: {why}")]
    Line {
        /// Which, from 1.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
    /// Another version.
    #[error("history has version {found}, this build reads {VERSION}")]
    Version {
        /// The version found.
        found: u32,
    },
    /// It has no first line.
    #[error("history does not begin with a `begin` line: {why}")]
    NoBegin {
        /// What it begins with.
        why: String,
    },
}

/// A history that is being read: an iterator over the events after the first.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    begin: Begin,
    buffer: Vec<u8>,
    /// The number of the line that comes next.
    next: u64,
    at: u64,
    state: State,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Open,
    /// The `end` line was read.
    Ended,
    /// It stops before an `end` line.
    Cut(String),
    /// An error was returned.
    Broken,
}

/// A line that is no event.
struct Bad {
    why: String,
    /// More lines follow.
    more: bool,
}

impl<R: BufRead> Reader<R> {
    /// Reads the first line.
    ///
    /// # Errors
    /// If it is none of this version.
    pub fn new(input: R) -> Result<Reader<R>, ReadError> {
        let mut reader =
            Reader { input, begin: Begin::default(), buffer: Vec::new(), next: 0, at: 0, state: State::Open };
        match reader.line()? {
            Some(Ok(Event { what: What::Begin(begin), .. })) if begin.version == VERSION => {
                reader.begin = begin;
                Ok(reader)
            }
            Some(Ok(Event { what: What::Begin(begin), .. })) => {
                Err(ReadError::Version { found: begin.version })
            }
            Some(Ok(_)) => Err(ReadError::NoBegin { why: "another event".to_owned() }),
            None => Err(ReadError::NoBegin { why: "it is empty".to_owned() }),
            Some(Err(Bad { why, .. })) => match version_of(&reader.buffer) {
                Some(found) if found != VERSION => Err(ReadError::Version { found }),
                _ => Err(ReadError::NoBegin { why }),
            },
        }
    }

    /// The first line.
    pub fn begin(&self) -> &Begin {
        &self.begin
    }

    /// Once there are no more events: why the history is not whole, or `None` if it is.
    pub fn cut(&self) -> Option<&str> {
        match &self.state {
            State::Cut(why) => Some(why),
            State::Ended => None,
            State::Open | State::Broken => Some("it was not read to its end"),
        }
    }

    fn line(&mut self) -> io::Result<Option<Result<Event, Bad>>> {
        self.buffer.clear();
        let mut limited = (&mut self.input).take(LINE as u64 + 1);
        limited.read_until(b'\n', &mut self.buffer)?;
        if self.buffer.is_empty() {
            return Ok(None);
        }
        if self.next >= LINES {
            return Ok(Some(Err(Bad { why: format!("more than {LINES} lines"), more: true })));
        }
        let whole = self.buffer.pop_if(|last| *last == b'\n').is_some();
        if self.buffer.len() > LINE {
            return Ok(Some(Err(Bad { why: format!("longer than {LINE} bytes"), more: true })));
        }
        match serde_json::from_slice::<Event>(&self.buffer) {
            Ok(event) => Ok(Some(match self.in_order(&event) {
                None => Ok(event),
                Some(why) => Err(Bad { why, more: true }),
            })),
            Err(error) => {
                let more = whole && !self.input.fill_buf()?.is_empty();
                Ok(Some(Err(Bad { why: error.to_string(), more })))
            }
        }
    }

    /// Why this event cannot be the next.
    fn in_order(&mut self, event: &Event) -> Option<String> {
        if event.n != self.next {
            return Some(format!(
                "it has number {}, where {} comes next: lines are missing",
                event.n, self.next
            ));
        }
        if event.at < self.at {
            return Some(format!("time goes back, from {} µs to {} µs", self.at, event.at));
        }
        self.next += 1;
        self.at = event.at;
        None
    }
}

/// The version that an older or newer format's first line names.
fn version_of(line: &[u8]) -> Option<u32> {
    let value: serde_json::Value = serde_json::from_slice(line).ok()?;
    let version = value.get("version").or_else(|| value.get("begin")?.get("version"))?;
    version.as_u64()?.try_into().ok()
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Result<Event, ReadError>;

    fn next(&mut self) -> Option<Result<Event, ReadError>> {
        if matches!(self.state, State::Cut(_) | State::Broken) {
            return None;
        }
        let line = self.next + 1;
        let bad = |why: String| Some(Err(ReadError::Line { line, why }));
        let outcome = match self.line() {
            Err(error) => Some(Err(error.into())),
            Ok(None) if self.state == State::Ended => return None,
            Ok(None) => {
                self.state = State::Cut(format!("it stops after line {} without an `end` line", self.next));
                return None;
            }
            Ok(Some(Err(Bad { why, more: false }))) if self.state == State::Open => {
                self.state = State::Cut(format!("its last line, {line}, is damaged: {why}"));
                return None;
            }
            Ok(Some(Err(Bad { why, .. }))) => bad(why),
            Ok(Some(Ok(_))) if self.state == State::Ended => bad("it comes after the `end` line".to_owned()),
            Ok(Some(Ok(Event { what: What::Begin(_), .. }))) => bad("a second `begin` line".to_owned()),
            Ok(Some(Ok(event))) => {
                if matches!(event.what, What::End(_)) {
                    self.state = State::Ended;
                }
                return Some(Ok(event));
            }
        };
        self.state = State::Broken;
        outcome
    }
}
