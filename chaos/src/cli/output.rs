//! Standard output and error: the only place that prints. A reader that went away is no error.
//! Above the live view, where there is one.
#![allow(clippy::print_stderr, reason = "a command's own words")]

use std::io::{self, Write};

use super::live;

/// A line.
pub(crate) fn line(text: impl AsRef<str>) {
    // A pipe whose reader went away ends the listing; nothing is lost.
    live::above(|| drop(writeln!(io::stdout().lock(), "{}", text.as_ref())));
}

/// A value, as JSON.
pub(crate) fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    line(serde_json::to_string_pretty(value)?);
    Ok(())
}

/// A line about what went wrong.
pub(crate) fn complain(text: impl AsRef<str>) {
    live::above(|| eprintln!("{}", text.as_ref()));
}
