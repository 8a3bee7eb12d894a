//! Runs of `chaos` against real nodes, for the tests that do them: whether they can be done here, one after the other, and
//! what they came to. What that has to be is each test's.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;

pub const CHAOS: &str = env!("CARGO_BIN_EXE_chaos");

/// The binary `reveille` beside `chaos`, where `cargo test --workspace` puts it; `None`, with a word, where it is not.
pub fn reveille() -> Option<PathBuf> {
    let there = Path::new(CHAOS).with_file_name("reveille");
    if !there.is_file() {
        eprintln!("skipped: there is no `reveille` beside {CHAOS}");
        return None;
    }
    Some(there)
}

/// One cluster at a time: they take turns.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A scenario's text with these faults, a line each, for FAULTS, and each kind of them for COVER.
pub fn with_faults(text: &str, faults: &[&str]) -> String {
    let lines: String =
        faults.iter().map(|fault| format!("[[fault]]\n{}\n", fault.replace("; ", "\n"))).collect();
    let kinds = faults.iter().filter_map(|fault| fault.split("kind = \"").nth(1)?.split('"').next());
    let cover: BTreeSet<String> = kinds.map(|kind| format!("\"fault.{kind}\" = 1")).collect();
    let cover = cover.into_iter().collect::<Vec<_>>().join(", ");
    text.replace("FAULTS", &lines).replace("COVER", &cover)
}

/// A run that is over.
pub struct Ran {
    pub code: i32,
    /// On both outputs.
    pub said: String,
    /// The lines of its faults.
    pub faults: Vec<Value>,
}

/// Runs the scenario of this file by seed 5, into this folder.
pub fn run(file: &Path, out: &Path, more: &[&str]) -> Ran {
    let mut run = Command::new(CHAOS);
    let run = run.arg("run").arg(file).args(["--seed", "5", "--out"]).arg(out).args(more).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    let history = std::fs::read_to_string(out.join("history.jsonl")).unwrap_or_default();
    let lines = history.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let faults = lines.filter_map(|line| line.get("fault").cloned()).collect();
    Ran { code: run.status.code().unwrap(), said, faults }
}

impl Ran {
    /// It passed, or would have on a machine that has less to do, which is no fault of the suite's, nor hidden by it; whether
    /// it was late.
    pub fn passes(&self) -> bool {
        let Ran { code, said, .. } = self;
        let late = *code == 3 && said.contains("the machine stood still");
        let failed = said.lines().any(|line| line.starts_with("FAIL"));
        assert!(*code == 0 || (late && !failed), "{said}");
        late
    }

    /// How often its faults of this kind had this done, as the history says at the end of each.
    pub fn done(&self, kind: &str, what: &str) -> u64 {
        let ended = self.faults.iter().filter(|fault| fault["kind"] == kind && fault["step"] == "ended");
        let details = ended.filter_map(|fault| fault["detail"].as_str());
        let counts = details.flat_map(|detail| detail.split(", ").filter_map(|count| count.split_once(' ')));
        counts.filter(|(name, _)| *name == what).filter_map(|(_, count)| count.parse::<u64>().ok()).sum()
    }
}
