//! A node gets less than it needs: only a share of a processor, or no more open files. Takes nothing away for longer than its
//! fault lasts.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::process::Command;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::nodes::send;
use crate::backend::live::Run;

/// Of this the node runs its share and stands still for the rest: as long as a period of the kernel's own scheduler for quotas.
const PERIOD: Duration = Duration::from_millis(100);
/// It runs for so long at least, or nothing of it would.
const LEAST: Duration = Duration::from_millis(2);

/// It runs only for this share of the time, until this is ended or dropped.
pub(super) struct Slowed {
    over: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Slowed {
    /// Lets it run as it likes again. Waits for the signal that is on its way: one that came later would stop it for good.
    pub(super) async fn end(self) {
        drop(self.over);
        // A task that panicked has said so itself.
        let _ = self.task.await;
    }
}

/// Has a node, in whatever process it is, run only for a share of the time.
pub(super) fn slow(run: Arc<Run>, node: u64, share: f64) -> Slowed {
    let runs = PERIOD.mul_f64(share.clamp(0.0, 1.0)).max(LEAST);
    let (over, mut ends) = oneshot::channel();
    let task = tokio::spawn(async move {
        loop {
            for (signal, lasts) in [("STOP", PERIOD.saturating_sub(runs)), ("CONT", runs)] {
                // One that is gone meanwhile gets nothing.
                if let Some(pid) = run.pid(node) {
                    let _ = send(pid, signal).await;
                }
                if timeout(lasts, &mut ends).await.is_ok() {
                    if let Some(pid) = run.pid(node) {
                        let _ = send(pid, "CONT").await;
                    }
                    return;
                }
            }
        }
    });
    Slowed { over, task }
}

/// A process may open no more files than it has open now; how many it was allowed before.
///
/// # Errors
/// If it is gone, or its limits may not be changed.
pub(super) async fn no_more_files(pid: u32) -> anyhow::Result<String> {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).context("its open files")?.count();
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).context("its limits")?;
    let before =
        limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next());
    let before = before.context("no limit of open files")?.to_owned();
    limit_files(pid, &open.to_string()).await?;
    Ok(before)
}

/// It may have as many open files as this, by the program for it.
///
/// # Errors
/// If it is gone, or its limits may not be changed.
pub(super) async fn limit_files(pid: u32, limit: &str) -> anyhow::Result<()> {
    // The soft limit alone: what is hard stays, so that this can be taken back.
    let arguments = ["--pid", &pid.to_string(), &format!("--nofile={limit}:")];
    let output = Command::new("prlimit").args(arguments).output().await.context("prlimit")?;
    ensure!(output.status.success(), "prlimit: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
