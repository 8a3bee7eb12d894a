//! Disks, power and clocks of nodes, by a small library (`shim.c`) that stands between each node and the system: compiled at
//! the start of a run that needs it, told by a file per node what is wrong now. What a fault is there, and what is lost when
//! a node's process is gone. Ends and starts no process but to see that the library can be loaded.

mod control;
#[cfg(test)]
mod tests;
mod undo;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use reveille_chaos::scenario::{Fault, FileKind, Kind, Scenario};
use reveille_links::draw::Draws;
use tokio::time::Instant;

use self::control::{Control, Counts, Orders};
use self::undo::{Kept, Loss, Undone};

const SOURCE: &str = include_str!("../../../../shim/shim.c");
const KINDS: [&str; 10] = [
    "power",
    "lose-unsynced",
    "torn-write",
    "io-error",
    "sync-error",
    "disk-full",
    "slow-disk",
    "clock-step",
    "clock-strobe",
    "clock-drift",
];
/// Of them, those after which something that was not synced may be lost.
const LOSING: [&str; 4] = ["power", "lose-unsynced", "torn-write", "sync-error"];
/// A clock that strobes jumps so often.
const STROBE: Duration = Duration::from_millis(200);
/// The bug that this backend can plant: a disk that says it has synced, and has not.
pub(crate) const LYING_DISK: &str = "lying-disk";

/// A fault of this kind is done by the shim.
pub(super) fn does(kind: Kind) -> bool {
    KINDS.contains(&kind.name())
}

/// The scenario has such faults.
pub(crate) fn needed(scenario: &Scenario) -> bool {
    scenario.faults().any(|fault| does(fault.kind))
}

/// Its victim, which may have ended by it, is not to run before it is over.
pub(super) fn keeps_down(kind: Kind) -> bool {
    ["power", "io-error", "disk-full"].contains(&kind.name())
}

/// Why this machine cannot do them, if it cannot.
pub(crate) fn missing() -> Option<&'static str> {
    static WHY: OnceLock<Option<String>> = OnceLock::new();
    let look = || {
        if !cfg!(all(target_os = "linux", target_pointer_width = "64")) {
            return Some("it is no Linux on 64 bits".to_owned());
        }
        let tried = Command::new("cc").arg("--version").stdin(Stdio::null()).output();
        match tried {
            Ok(tried) if tried.status.success() => None,
            Ok(tried) => Some(format!("cc --version: {}", tried.status)),
            Err(error) => Some(format!("there is no C compiler, cc: {error}")),
        }
    };
    WHY.get_or_init(look).as_deref()
}

/// Compiles the library into a folder.
///
/// # Errors
/// Where there is no C compiler, `cc`, or it makes no library of it: with what it says.
pub(crate) fn compile(folder: &Path) -> anyhow::Result<PathBuf> {
    let (source, library) = (folder.join("shim.c"), folder.join("shim.so"));
    fs::write(&source, SOURCE).with_context(|| source.display().to_string())?;
    let compiled = Command::new("cc")
        .args(["-O2", "-shared", "-fPIC", "-pthread", "-o"])
        .args([&library, &source])
        .arg("-ldl")
        .stdin(Stdio::null())
        .output()
        .context("cc, which compiles the library for faults of disks, power and clocks")?;
    let said = String::from_utf8_lossy(&compiled.stderr);
    ensure!(
        compiled.status.success(),
        "cc makes no library for faults of disks, power and clocks: {}",
        said.trim()
    );
    Ok(library)
}

/// One node's.
#[derive(Debug)]
struct Node {
    folder: PathBuf,
    data: PathBuf,
    control: Control,
    draws: Draws,
    /// As its process began.
    began: Counts,
}

/// A fault that is there.
#[derive(Debug)]
struct There {
    id: u64,
    fault: Fault,
    nodes: Vec<u64>,
    since: Instant,
    before: Counts,
    undone: Undone,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Shim {
    pub(super) library: PathBuf,
    nodes: BTreeMap<u64, Node>,
    there: Vec<There>,
}

impl Shim {
    /// Makes what the run needs in a folder that is new, and sees that the nodes' binary loads it. `data`: of each node.
    pub(super) fn make(
        folder: &Path,
        bin: &Path,
        scenario: &Scenario,
        (seed, lies): (u64, bool),
        data: &[(u64, &Path)],
    ) -> anyhow::Result<Shim> {
        fs::create_dir(folder).with_context(|| folder.display().to_string())?;
        let library = compile(folder)?;
        let journal = scenario.faults().any(|fault| LOSING.contains(&fault.kind.name()));
        let mut nodes = BTreeMap::new();
        for (id, data) in data {
            let data = data.canonicalize().with_context(|| data.display().to_string())?;
            let folder = folder.join(format!("node-{id}"));
            fs::create_dir(&folder)?;
            let draws = Draws::new(seed, &format!("disk of node {id}"));
            let control = Control::make(&folder.join("control"), draws.clone().draw(), journal, lies)?;
            nodes.insert(*id, Node { folder, data, control, draws, began: Counts::default() });
        }
        let shim = Shim { library, nodes, there: Vec::new() };
        if let Some(node) = shim.nodes.values().next() {
            let tried = Command::new(bin).arg("--version").envs(shim.environment(node)).output()?;
            ensure!(
                tried.status.success() && node.control.counts()?.loads == 1,
                "{} does not load {}: it must be linked dynamically, with the C library of `cc`. {}",
                bin.display(),
                shim.library.display(),
                String::from_utf8_lossy(&tried.stderr).trim()
            );
        }
        Ok(shim)
    }

    /// What a process needs in its environment to load it.
    fn environment(&self, node: &Node) -> Vec<(&'static str, OsString)> {
        let variables =
            [("LD_PRELOAD", &self.library), ("CHAOS_SHIM", &node.folder), ("CHAOS_DATA", &node.data)];
        variables.into_iter().map(|(name, path)| (name, path.into())).collect()
    }

    fn node(&mut self, id: u64) -> anyhow::Result<&mut Node> {
        self.nodes.get_mut(&id).with_context(|| format!("node {id} has no shim"))
    }

    /// A node's process is about to start, with this in its environment.
    pub(super) fn starts(&mut self, id: u64) -> anyhow::Result<Vec<(&'static str, OsString)>> {
        let node = self.node(id)?;
        node.began = node.control.counts()?;
        Ok(self.environment(&self.nodes[&id]))
    }

    /// A node's process was told of an error: then it may end by that.
    pub(super) fn may_end(&self, id: u64) -> bool {
        let of = |node: &Node| node.control.counts().is_ok_and(|now| now.errors() > node.began.errors());
        self.nodes.get(&id).is_some_and(of)
    }

    fn counts(&self, nodes: &[u64]) -> anyhow::Result<Counts> {
        let mut sum = Counts::default();
        for id in nodes {
            sum = sum
                + self.nodes.get(id).with_context(|| format!("node {id} has no shim"))?.control.counts()?;
        }
        Ok(sum)
    }

    /// A fault begins. Of one that is over at once, nothing stays but what it did.
    pub(super) fn strike(&mut self, id: u64, fault: &Fault, nodes: &[u64]) -> anyhow::Result<()> {
        let before = self.counts(nodes)?;
        let (fault, nodes) = (fault.clone(), nodes.to_vec());
        self.there.push(There { id, fault, nodes, since: Instant::now(), before, undone: Undone::default() });
        self.tell()
    }

    /// Of these nodes the next sync fails.
    pub(super) fn fail_sync(&mut self, id: u64) -> anyhow::Result<()> {
        Ok(self.node(id)?.control.fail_syncs(1)?)
    }

    /// Tells each node's shim what all faults on it come to now: clocks that drift and strobe need it again and again.
    pub(super) fn tell(&mut self) -> anyhow::Result<()> {
        for (id, node) in &mut self.nodes {
            let mut orders = Orders::default();
            for there in self.there.iter().filter(|there| there.nodes.contains(id)) {
                let by = there.fault.by.map_or(Duration::ZERO, |by| by.0);
                let share = there.fault.share.map_or(1.0, |share| share.0);
                let gone = there.since.elapsed();
                match there.fault.kind.name() {
                    "io-error" => orders.share = orders.share.max(share),
                    "disk-full" => orders.full = true,
                    "slow-disk" => orders.slow += by,
                    "clock-step" => orders.ahead_ns += by.as_nanos() as i64,
                    "clock-strobe" if (gone.as_micros() / STROBE.as_micros()).is_multiple_of(2) => {
                        orders.ahead_ns += by.as_nanos() as i64;
                    }
                    "clock-drift" => orders.ahead_ns += (gone.as_secs_f64() * share * 1e9) as i64,
                    _ => {}
                }
            }
            node.control.tell(orders)?;
        }
        Ok(())
    }

    /// A fault is over; what it did. Nothing of one that is not here.
    pub(super) fn heal(&mut self, id: u64) -> anyhow::Result<String> {
        let Some(at) = self.there.iter().position(|there| there.id == id) else { return Ok(String::new()) };
        let there = self.there.remove(at);
        self.tell()?;
        let (now, before) = (self.counts(&there.nodes)?, &there.before);
        let Undone { writes, lost, torn, names, names_lost } = there.undone;
        Ok(match there.fault.kind.name() {
            "power" | "lose-unsynced" | "torn-write" => format!(
                "unsynced {writes}, lost {lost}, torn {torn}, unsynced-names {names}, lost-names {names_lost}"
            ),
            "io-error" => {
                format!("tried {}, failed {}", now.drawn - before.drawn, now.failed - before.failed)
            }
            "disk-full" => format!("refused {}", now.refused - before.refused),
            "slow-disk" => format!("slowed {}", now.slowed - before.slowed),
            _ => format!("told {}", now.told - before.told),
        })
    }

    /// A node's process is gone, and the system has what it wrote; unless its disk is worse than that.
    pub(super) fn ended(&mut self, id: u64) -> anyhow::Result<()> {
        let node = self.node(id)?;
        let unsynced = node.control.counts()?.syncs_failed > node.began.syncs_failed;
        let of = |kind| move |there: &&There| there.fault.kind.name() == kind && there.nodes.contains(&id);
        let loses = self.there.iter().find(of("lose-unsynced"));
        let tears =
            self.there.iter().find(of("torn-write")).map(|there| there.fault.file.unwrap_or(FileKind::Any));
        match (loses, tears) {
            (None, Some(files)) if !unsynced => {
                self.lose(id, "torn-write", |kept| Loss { kept, names: false, files })
            }
            (None, None) if !unsynced => Ok(()),
            // A sync that failed has dropped what it was for.
            _ => self.lose(id, "lose-unsynced", |_| Loss {
                kept: Kept::Nothing,
                names: true,
                files: FileKind::Any,
            }),
        }
    }

    /// The power of a node whose process is gone has failed.
    pub(super) fn power(&mut self, id: u64) -> anyhow::Result<()> {
        self.lose(id, "power", |kept| Loss { kept, names: true, files: FileKind::Any })
    }

    fn lose(&mut self, id: u64, kind: &str, loss: impl FnOnce(Kept) -> Loss) -> anyhow::Result<()> {
        let node = self.node(id)?;
        let loss = loss(Kept::Part(Draws::new(node.draws.draw(), "kept")));
        let undone = undo::undo(&node.data, &node.folder, &loss)
            .with_context(|| format!("what node {id} had not synced could not be taken back"))?;
        let of = |there: &&mut There| there.fault.kind.name() == kind && there.nodes.contains(&id);
        if let Some(there) = self.there.iter_mut().rev().find(of) {
            there.undone += undone;
        }
        Ok(())
    }

    /// What a fault of the shim's own makes of a run: without its journal nothing can be said of what was lost.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        for (id, node) in &self.nodes {
            let counts = node.control.counts()?;
            if counts.trouble > 0 {
                bail!(
                    "the shim of node {id} could not keep {} things in its journal, {}",
                    counts.trouble,
                    node.folder.display()
                );
            }
        }
        Ok(())
    }
}
