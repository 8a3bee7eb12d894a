//! Signals, and a parent's death: when a node must end, and when it must not. What follows from them is not here.

use anyhow::Context;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Resolves at SIGINT or SIGTERM.
pub async fn signalled() -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// SIGHUP, which from now on ends the process no more.
pub fn hangups() -> anyhow::Result<Signal> {
    signal(SignalKind::hangup()).context("SIGHUP cannot be received")
}

/// Resolves when standard input ends: the process that holds its other end is gone, however it went.
pub async fn parent_gone() {
    let mut stdin = tokio::io::stdin();
    let mut bytes = [0; 64];
    while matches!(stdin.read(&mut bytes).await, Ok(1..)) {}
}
