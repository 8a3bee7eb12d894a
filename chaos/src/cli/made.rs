//! `run.json` of a run's folder: what a scenario, which is beside it, was run by.

use std::hash::{DefaultHasher, Hasher};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use reveille_chaos::scenario::{Scenario, near};
use reveille_protocol::canary::PLANTABLE;
use serde::{Deserialize, Serialize};

use super::run::Backend;
use super::source;
use crate::backend::proc::shim::LYING_DISK;
use crate::backend::sim::canaries::{self, CANARIES, Planted};

/// See the module.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Made {
    pub(super) seed: u64,
    pub(super) backend: Backend,
    /// The bug that was planted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) canary: Option<String>,
    /// The binary of the other version, where nodes were upgraded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) other: Option<PathBuf>,
    /// Of the simulation: which build of this program it was. Another one may rightly give another history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) build: Option<String>,
}

impl Made {
    /// By this build. Refused if the bug cannot be planted.
    pub(super) fn new(seed: u64, backend: Backend, canary: Option<String>) -> anyhow::Result<Made> {
        let build = match backend {
            Backend::Sim => Some(build()?),
            Backend::Proc | Backend::Compose | Backend::Attach => None,
        };
        let made = Made { seed, backend, canary, other: None, build };
        made.canary()?;
        Ok(made)
    }

    /// The same run by this build.
    pub(super) fn again(&self) -> anyhow::Result<Made> {
        let made = Made::new(self.seed, self.backend, self.canary.clone())?;
        Ok(Made { other: self.other.clone(), ..made })
    }

    /// The bug to plant in the simulation.
    pub(super) fn canary(&self) -> anyhow::Result<Option<&'static Planted>> {
        let Some(name) = &self.canary else { return Ok(None) };
        match (self.backend, canaries::find(name)) {
            (Backend::Sim, Some(planted)) => {
                ensure!(
                    PLANTABLE,
                    "this build has no bugs to plant, and {name} is to be: cargo run -p chaos --features canary -- …"
                );
                Ok(Some(planted))
            }
            (Backend::Proc, _) if name == LYING_DISK => Ok(None),
            (_, Some(_)) => bail!("{name} is planted in the simulation and nowhere else: say --backend sim"),
            _ if name == LYING_DISK => {
                bail!("{name} is planted in nodes that are processes and nowhere else: say --backend proc")
            }
            _ => {
                let names: Vec<&str> =
                    CANARIES.iter().map(|planted| planted.name).chain([LYING_DISK]).collect();
                bail!(near::unknown("canary", name, &names))
            }
        }
    }

    /// The bug that is planted, for a line about the run.
    pub(super) fn planted(&self) -> String {
        self.canary.as_ref().map_or(String::new(), |name| format!(" · planted: {name}"))
    }

    /// Real nodes have disks that lie.
    pub(super) fn lies(&self) -> bool {
        self.backend == Backend::Proc && self.canary.is_some()
    }

    /// The scenario of a run's folder, its text, and what it was run by. Refused if that was on somebody's own cluster.
    pub(super) fn read(run: &Path) -> anyhow::Result<(Scenario, String, Made)> {
        let file = run.join("run.json");
        let text = std::fs::read(&file).with_context(|| file.display().to_string())?;
        let made: Made = serde_json::from_slice(&text).with_context(|| file.display().to_string())?;
        let file = run.join("scenario.toml");
        // Nobody's cluster is struck by what a folder says.
        ensure!(
            made.backend != Backend::Attach,
            "this run was on a cluster that is somebody's own: {} --cluster FILE",
            made.command(&file.display().to_string())
        );
        let (scenario, text) = source::file(&file)?;
        Ok((scenario, text, made))
    }

    /// Writes it beside its scenario.
    pub(super) fn keep(&self, out: &Path, text: &str) -> anyhow::Result<()> {
        std::fs::write(out.join("scenario.toml"), text)?;
        std::fs::write(out.join("run.json"), serde_json::to_vec_pretty(self)?)?;
        Ok(())
    }

    /// The command that runs its scenario from this file.
    pub(super) fn command(&self, file: &str) -> String {
        let backend = self.backend.word();
        let canary = self.canary.as_ref().map_or(String::new(), |canary| format!(" --canary {canary}"));
        let other =
            self.other.as_ref().map_or(String::new(), |other| format!(" --other {}", other.display()));
        format!("chaos run {file} --backend {backend} --seed {}{canary}{other}", self.seed)
    }
}

/// What this program's file comes to: two that differ are two builds.
fn build() -> anyhow::Result<String> {
    let path = std::env::current_exe()?;
    let mut file = std::fs::File::open(&path).with_context(|| path.display().to_string())?;
    let (mut hash, mut buffer) = (DefaultHasher::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(format!("{:016x}", hash.finish())),
            read => hash.write(&buffer[..read]),
        }
    }
}
