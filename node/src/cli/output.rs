//! What commands print: lines for people, or one JSON object a line for scripts.
#![allow(clippy::print_stdout, reason = "printing is what this file is for")]

use std::io::Write;

use serde::Serialize;

/// Prints a line for people. Ends the process when nobody reads any more.
pub(super) fn line(text: impl std::fmt::Display) {
    if let Err(error) = writeln!(std::io::stdout(), "{text}") {
        tracing::debug!(%error, "nobody reads the output");
        std::process::exit(1);
    }
}

/// Prints a JSON object on a line of its own, at once: scripts wait for it.
pub(super) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string(value)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()?;
    Ok(())
}
