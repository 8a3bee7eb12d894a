//! `reveille terminal doctor`: what the network around a terminal lets through, in words that its user can act on.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use reveille_terminal::{Class, Event, Reachability, Terminal, Unreachable};
use serde_json::json;

use super::output;

/// Connecting, two dials that are given up, and an anchor that does not answer take this long at most.
const FOUND_OUT: Duration = Duration::from_secs(60);
/// Silences of 30 s to 8 minutes, one of them twice.
const MEASURED: Duration = Duration::from_secs(25 * 60);
const LOOK: Duration = Duration::from_millis(200);

/// Waits until the terminal knows how it is reached, and tells.
pub(super) async fn examine(terminal: &mut Terminal, measure: bool, as_json: bool) -> anyhow::Result<()> {
    let found = tokio::time::timeout(FOUND_OUT, found_out(terminal)).await;
    found.context("no node has said how this terminal is reached; see the log with --log-level info")??;
    let before = terminal.reachability();
    let pinned = before.class == Class::Pinned;
    let measured = if measure && pinned { period(terminal, before).await } else { None };
    tell(&terminal.reachability(), measured, as_json)
}

async fn found_out(terminal: &mut Terminal) -> anyhow::Result<()> {
    loop {
        match terminal.next().await {
            Some(Event::Reachable { .. }) => return Ok(()),
            Some(Event::Problem { what }) => bail!("{what}"),
            Some(_) => {}
            None => bail!("the terminal has ended; its last message says why"),
        }
    }
}

/// The measured period between keepalives, once it is another than that which the cluster asks for.
async fn period(terminal: &mut Terminal, before: Reachability) -> Option<Duration> {
    let until = Instant::now() + MEASURED;
    while Instant::now() < until {
        // The terminal lives on meanwhile; what it hears is not the doctor's.
        let _ = tokio::time::timeout(LOOK, terminal.next()).await;
        let now = terminal.reachability();
        if now.period.is_some() && now.period != before.period && now.anchor == before.anchor {
            return now.period;
        }
    }
    None
}

fn tell(known: &Reachability, measured: Option<Duration>, as_json: bool) -> anyhow::Result<()> {
    let (class, means) = match known.class {
        Class::Direct => ("direct", "any node reaches this machine by UDP: idle it costs nothing"),
        Class::Pinned => (
            "pinned",
            "a NAT or firewall lets in only answers: the terminal keeps a UDP binding with one node, which wakes it",
        ),
        Class::None if known.why == Some(Unreachable::AnswersOnly) => (
            "none",
            "answers of a node come in, but its notifications do not: something on the way drops QUIC. The terminal stays \
             connected (--stay-if-unreachable) or checks in",
        ),
        Class::None => (
            "none",
            "no UDP comes through: the terminal stays connected (--stay-if-unreachable) or checks in. Allow UDP to the \
             nodes' session port, and its answers",
        ),
        Class::Untried => ("untried", "the nodes do not find that out yet: they are of an earlier version"),
    };
    if as_json {
        return output::json(&json!({
            "class": class,
            "seen": known.seen.map(|seen| seen.to_string()),
            "anchor": known.anchor.map(|anchor| anchor.to_string()),
            "mapped": known.mapped.map(|mapped| mapped.to_string()),
            "keepalive_seconds": known.period.map(|period| period.as_secs()),
            "measured": measured.is_some() || known.measured,
            "why": known.why.map(|why| match why {
                Unreachable::NothingPasses => "nothing_passes",
                Unreachable::AnswersOnly => "answers_only",
            }),
        }));
    }
    output::line(format!("class     {class}: {means}"));
    if let Some(seen) = known.seen {
        output::line(format!("seen      nodes see sessions come from {seen}"));
    }
    if let (Some(anchor), Some(mapped)) = (known.anchor, known.mapped) {
        output::line(format!("binding   with {anchor}, which sees this terminal at {mapped}"));
    }
    if let Some(period) = known.period {
        let measured = measured.is_some() || known.measured;
        let how = if measured { "measured in this network" } else { "as the cluster asks" };
        output::line(format!("keepalive every {} s, {how}", period.as_secs()));
    }
    Ok(())
}
