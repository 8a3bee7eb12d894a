//! What processes use, as Linux tells: processor time, memory, descriptors.

use std::fs;

use anyhow::Context;

use super::super::dev::cluster::DevCluster;

/// Clock ticks a second in /proc/PID/stat; the same on every Linux (USER_HZ).
const TICKS: f64 = 100.0;

/// Processor seconds that a process has used, user and system.
pub(super) fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name may hold anything, also brackets: fields count after the last one.
    let fields: Vec<&str> = stat.rsplit_once(')').context("/proc/PID/stat")?.1.split_whitespace().collect();
    let ticks = |at: usize| -> anyhow::Result<f64> { Ok(fields.get(at).context("/proc/PID/stat")?.parse()?) };
    Ok((ticks(11)? + ticks(12)?) / TICKS)
}

/// Of all nodes together.
pub(super) fn nodes_cpu(cluster: &DevCluster) -> anyhow::Result<f64> {
    cluster.nodes.iter().map(|node| cpu_seconds(node.pid)).sum()
}

/// Bytes of anonymous memory that are resident.
pub(super) fn anonymous_bytes(pid: u32) -> anyhow::Result<u64> {
    status(pid, "RssAnon:")
}

/// The most bytes of memory that were ever resident.
pub(super) fn peak_bytes(pid: u32) -> anyhow::Result<u64> {
    status(pid, "VmHWM:")
}

fn status(pid: u32, field: &str) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).context("/proc/PID/status")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}

/// Open descriptors, and how many of them are sockets.
pub(super) fn descriptors(pid: u32) -> anyhow::Result<(usize, usize)> {
    let mut counts = (0, 0);
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        counts.0 += 1;
        // One may be closed between the listing and the look.
        let target = fs::read_link(entry?.path()).unwrap_or_default();
        counts.1 += usize::from(target.to_string_lossy().starts_with("socket:"));
    }
    Ok(counts)
}
