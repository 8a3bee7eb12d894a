//! `chaos doctor`: which faults this machine can do. Each look is a trial of the thing itself where that harms nothing;
//! nothing is left behind.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;
use reveille_chaos::check::Verdict;
use serde::Serialize;

use super::output;
use crate::backend::compose;
use crate::backend::proc::{points, shim};

/// Say which faults this machine can do, and why not the others.
#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// The binary `reveille` that is looked at. Default: the one beside this program.
    #[arg(long)]
    bin: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Something that faults need.
#[derive(Debug, Serialize)]
struct Look {
    name: &'static str,
    /// What it is for.
    faults: &'static str,
    /// `None`: it is there.
    missing: Option<String>,
}

impl DoctorArgs {
    pub(super) fn run(self) -> anyhow::Result<Verdict> {
        let looks = looks(self.bin.as_deref());
        if self.json {
            output::json(&looks)?;
        } else {
            for look in &looks {
                let (mark, why) = match &look.missing {
                    None => ("yes", String::new()),
                    Some(why) => ("no", format!(": {why}")),
                };
                output::line(format!("{mark:3} {:18} {}{why}", look.name, look.faults));
            }
            output::line(
                "What the process backend of this build does with them: `chaos list faults`, marked [proc]. The simulation \
                 needs none of them: [sim].",
            );
        }
        Ok(Verdict::Pass)
    }
}

fn looks(bin: Option<&Path>) -> Vec<Look> {
    let look = |name, faults, missing: Result<(), String>| Look { name, faults, missing: missing.err() };
    let root = root();
    let needs_root = |or: fn() -> Result<(), String>| root.clone().and_then(|()| or());
    vec![
        look("signals", "kill, stop, pause, restart, out-of-memory, cpu", Ok(())),
        look("prlimit", "few-files", runs("prlimit", &["--version"])),
        look("commands", "membership, and what nodes do about changed files; upgrade with --other", Ok(())),
        look(
            "links",
            "cut, jam, delay, loss, duplicate, reorder, corrupt, bandwidth, reset, half-open, NATs, notifications",
            links(),
        ),
        look("root", "what follows with namespaces, nft and mounts", root.clone()),
        look("netns", "partitions and cuts between processes", needs_root(netns)),
        look("nft", "cuts, one-way cuts, loss", needs_root(nft)),
        look("netem", "delay, reorder, duplicate in the kernel", needs_root(netem)),
        look(
            "preload",
            "power, lose-unsynced, torn-write, io-error, sync-error, disk-full, slow-disk, clock-step, clock-strobe, \
             clock-drift",
            preload(),
        ),
        look("fail points", "fail-point in real nodes", fail_points(bin)),
        look("docker", "--backend compose: kill, stop, pause, restart, cpu, …", said(compose::ready())),
        look("containers' links", "--backend compose: cut, cut-one-way, loss", said(compose::filters())),
    ]
}

/// Nodes that are built with them.
fn fail_points(bin: Option<&Path>) -> Result<(), String> {
    let beside = std::env::current_exe().map_err(|error| error.to_string())?.with_file_name("reveille");
    points::missing(bin.unwrap_or(&beside)).map_or(Ok(()), Err)
}

/// Runs a program to its end; why it cannot, or what it said when it failed.
fn runs(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let first = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it failed without a word");
    Err(format!("{program}: {}", first.trim()))
}

fn root() -> Result<(), String> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(|error| error.to_string())?;
    let effective = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().nth(1));
    match effective {
        Some("0") => Ok(()),
        Some(uid) => Err(format!("this is user {uid}")),
        None => Err("/proc/self/status does not say who this is".to_owned()),
    }
}

/// In a namespace that ends with the command.
fn netns() -> Result<(), String> {
    runs("unshare", &["--net", "ip", "link", "set", "lo", "up"])
}

/// The process backend's links are this program's own sockets, at other addresses of loopback: 127.0.1.1 and on.
fn links() -> Result<(), String> {
    let at = std::net::SocketAddr::from(([127, 0, 1, 1], 0));
    std::net::UdpSocket::bind(at).map(drop).map_err(|error| format!("127.0.1.1 is no address here: {error}"))
}

fn nft() -> Result<(), String> {
    runs("unshare", &["--net", "nft", "add table inet chaos"])
}

fn netem() -> Result<(), String> {
    let script = "ip link set lo up && tc qdisc add dev lo root netem delay 1ms";
    runs("unshare", &["--net", "sh", "-c", script])
}

/// The library that faults of disks, power and clocks are done by, compiled and loaded.
fn preload() -> Result<(), String> {
    let folder = std::env::temp_dir().join(format!("chaos-doctor-{}", std::process::id()));
    let tried = || -> anyhow::Result<()> {
        std::fs::create_dir(&folder)?;
        let library = shim::compile(&folder)?;
        let loads = Command::new("true").env("LD_PRELOAD", library).stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&loads.stderr);
        anyhow::ensure!(loads.status.success() && said.is_empty(), "it cannot be loaded: {}", said.trim());
        Ok(())
    };
    let tried = tried().map_err(|error| format!("{error:#}"));
    // It is there unless it could not be made.
    let _ = std::fs::remove_dir_all(&folder);
    tried
}

fn said(outcome: anyhow::Result<()>) -> Result<(), String> {
    outcome.map_err(|error| format!("{error:#}"))
}
