//! Docker's commands, each within a bounded time, and whether this machine has what a run needs of them. Knows nothing of
//! a run.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};

/// Any command but the starting of a cluster.
pub(super) const SHORT: Duration = Duration::from_secs(30);
/// What a failed command said is told up to here.
const SAID: usize = 300;

/// Runs a command to its end, or ends it; what it printed. Ctrl-C at this program's terminal is not for it.
///
/// # Errors
/// If it cannot be run, fails, or takes longer; with the last line that it said.
pub(super) fn run(limit: Duration, command: &[&str]) -> anyhow::Result<String> {
    let named = || command.join(" ");
    let output = Command::new("timeout")
        .args(["--signal=KILL", &limit.as_secs().to_string()])
        .args(command)
        .stdin(Stdio::null())
        .process_group(0)
        .output()
        .with_context(|| format!("timeout {}", named()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("nothing");
    let last: String = last.trim().chars().take(SAID).collect();
    bail!("{}: {}; it said last: {last}", named(), output.status)
}

/// Docker's own, for [`SHORT`] at most.
///
/// # Errors
/// As of [`run`].
pub(super) fn docker(arguments: &[&str]) -> anyhow::Result<String> {
    run(SHORT, &[&["docker"], arguments].concat())
}

/// docker-compose as it is called here: the program of that name, else docker's plugin.
///
/// # Errors
/// If there is neither.
pub(super) fn compose() -> anyhow::Result<&'static [&'static str]> {
    let ways: [&'static [&'static str]; 2] = [&["docker-compose"], &["docker", "compose"]];
    let works = |way: &&'static [&'static str]| run(SHORT, &[*way, &["version"]].concat()).is_ok();
    ways.into_iter().find(works).context("there is neither docker-compose nor docker's plugin compose")
}

/// The image that docker-compose.yml takes.
pub(super) fn image() -> String {
    std::env::var("REVEILLE_IMAGE")
        .ok()
        .filter(|image| !image.is_empty())
        .unwrap_or_else(|| "reveille".to_owned())
}

/// Whether clusters can be started here: an engine that answers, docker-compose, the image.
///
/// # Errors
/// What is missing, and what helps.
pub(crate) fn ready() -> anyhow::Result<()> {
    docker(&["info", "--format", "{{.ServerVersion}}"]).context("no Docker Engine answers here")?;
    compose()?;
    let image = image();
    docker(&["image", "inspect", "--format", "{{.Id}}", &image]).map(drop).with_context(|| {
        format!("there is no image {image:?}: `docker-compose build init` in a clone makes it, docs/containers.md; or name one with REVEILLE_IMAGE")
    })
}

/// Whether something can be wrong with what goes from one container to another: the namespace of one's network must be
/// entered, and filtered in.
///
/// # Errors
/// Why not.
pub(crate) fn filters() -> anyhow::Result<()> {
    let trial = ["unshare", "--net", "nft", "add table inet chaos"];
    run(SHORT, &trial).context("cuts and loss need root, and nft")?;
    run(SHORT, &["nsenter", "--version"]).map(drop)
}
