//! The journal: what was begun in a cluster and is not undone yet. Each line is on disk before what it is about is begun, so
//! that a run that dies leaves a list of what is to be undone. While a run goes on, its journal is locked.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use super::hooks::On;

/// The most bytes of a journal.
const BYTES: u64 = 16 << 20;

/// A line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Line {
    /// Whose journal it is: the first line.
    Cluster(String),
    /// A hook is about to be run.
    Begun { deed: u64, hook: String, undo: Vec<String>, on: On, unix_ms: u64 },
    /// It was run.
    Struck { deed: u64 },
    /// It was undone.
    Undone { deed: u64 },
    /// A terminal was registered.
    Terminal(String),
    /// It is registered no more.
    Forgotten(String),
}

/// What was begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Deed {
    /// The hook that did it.
    pub(super) hook: String,
    /// The command that undoes it, as the cluster's file had it then.
    pub(super) undo: Vec<String>,
    pub(super) on: On,
    /// When, in milliseconds of the Unix epoch.
    pub(super) unix_ms: u64,
    /// The hook has ended.
    pub(super) struck: bool,
}

/// What is left of a run, or of the one that goes on.
#[derive(Debug, Default)]
pub(super) struct Left {
    cluster: Option<String>,
    pub(super) deeds: BTreeMap<u64, Deed>,
    pub(super) terminals: BTreeSet<String>,
}

impl Left {
    /// Nothing is to be undone.
    pub(super) fn is_empty(&self) -> bool {
        self.deeds.is_empty() && self.terminals.is_empty()
    }

    fn read(&mut self, line: Line) {
        match line {
            Line::Cluster(name) => self.cluster = Some(name),
            Line::Begun { deed, hook, undo, on, unix_ms } => {
                self.deeds.insert(deed, Deed { hook, undo, on, unix_ms, struck: false });
            }
            Line::Struck { deed } => {
                if let Some(deed) = self.deeds.get_mut(&deed) {
                    deed.struck = true;
                }
            }
            Line::Undone { deed } => drop(self.deeds.remove(&deed)),
            Line::Terminal(id) => drop(self.terminals.insert(id)),
            Line::Forgotten(id) => drop(self.terminals.remove(&id)),
        }
    }

    /// Of a journal's text; and how many bytes of it are whole lines: the last one may be cut, and what it is about was
    /// not begun then.
    fn of(text: &[u8]) -> anyhow::Result<(Left, u64)> {
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let mut left = Left::default();
        for (number, line) in text[..whole].split(|byte| *byte == b'\n').enumerate() {
            if !line.is_empty() {
                let line = serde_json::from_slice(line);
                left.read(line.with_context(|| format!("line {}: it is no journal's", number + 1))?);
            }
        }
        Ok((left, whole as u64))
    }
}

/// What a run that does not go on any more has left, without touching anything.
///
/// # Errors
/// If it cannot be read.
pub(super) fn look(path: &Path) -> anyhow::Result<Left> {
    let named = || path.display().to_string();
    match std::fs::read(path) {
        Ok(text) => Ok(Left::of(&text).with_context(named)?.0),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Left::default()),
        Err(error) => Err(error).with_context(named),
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    pub(super) left: Left,
    next: u64,
}

impl Journal {
    /// Opens a cluster's journal, made new if it is not there, and locks it until it is dropped.
    ///
    /// # Errors
    /// If another run has it, or it is of another cluster, or damaged.
    pub(super) fn open(path: &Path, cluster: &str) -> anyhow::Result<Journal> {
        let named = || format!("the journal {}", path.display());
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = file.with_context(named)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("{}: a run on this cluster goes on; one at a time", path.display())
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(named),
        }
        let mut text = Vec::new();
        (&mut file).take(BYTES + 1).read_to_end(&mut text).with_context(named)?;
        ensure!(text.len() as u64 <= BYTES, "{}: longer than {BYTES} bytes", path.display());
        let (left, whole) = Left::of(&text).with_context(named)?;
        if let Some(other) = left.cluster.as_ref().filter(|name| *name != cluster) {
            bail!("{}: it is of the cluster {other:?}, not of {cluster:?}", path.display());
        }
        let next = left.deeds.keys().next_back().map_or(1, |last| last + 1);
        let mut journal = Journal { path: path.to_owned(), file, left, next };
        journal.file.set_len(whole)?;
        journal.file.seek(SeekFrom::Start(whole))?;
        if whole == 0 {
            journal.write(Line::Cluster(cluster.to_owned()))?;
            // The file itself is there after the power fails, too.
            let folder = path.parent().context("it is in no folder")?;
            File::open(folder).and_then(|folder| folder.sync_all()).with_context(named)?;
        }
        Ok(journal)
    }

    fn write(&mut self, line: Line) -> anyhow::Result<()> {
        let named = || format!("the journal {}", self.path.display());
        let mut text = serde_json::to_vec(&line)?;
        text.push(b'\n');
        let end = self.file.stream_position().with_context(named)?;
        if let Err(error) = self.file.write_all(&text).and_then(|()| self.file.sync_data()) {
            // Half a line would make all that follows unreadable.
            let cut = self.file.set_len(end).and_then(|()| self.file.seek(SeekFrom::Start(end)));
            let error = anyhow::Error::from(error);
            return Err(match cut {
                Ok(_) => error,
                Err(cut) => error.context(format!("half a line may be left: {cut}")),
            })
            .with_context(named);
        }
        self.left.read(line);
        Ok(())
    }

    /// A hook is about to be run, and this command would undo it; the name of that.
    ///
    /// # Errors
    /// If it cannot be written down: then it may not be run.
    pub(super) fn begins(&mut self, hook: &str, undo: &[String], on: On) -> anyhow::Result<u64> {
        let deed = self.next;
        self.next += 1;
        let unix_ms = now();
        let (hook, undo) = (hook.to_owned(), undo.to_owned());
        self.write(Line::Begun { deed, hook, undo, on, unix_ms })?;
        Ok(deed)
    }

    /// The hook has ended.
    pub(super) fn struck(&mut self, deed: u64) -> anyhow::Result<()> {
        self.write(Line::Struck { deed })
    }

    /// It was undone.
    pub(super) fn undone(&mut self, deed: u64) -> anyhow::Result<()> {
        self.write(Line::Undone { deed })
    }

    /// A terminal was registered, or is about to be.
    pub(super) fn terminal(&mut self, id: &str) -> anyhow::Result<()> {
        match self.left.terminals.contains(id) {
            true => Ok(()),
            false => self.write(Line::Terminal(id.to_owned())),
        }
    }

    /// It is registered no more.
    pub(super) fn forgotten(&mut self, id: &str) -> anyhow::Result<()> {
        self.write(Line::Forgotten(id.to_owned()))
    }

    /// Empties it if nothing is left to be undone. The file stays: whoever has it open may wait for its lock.
    pub(super) fn close(self) -> anyhow::Result<()> {
        if self.left.is_empty() {
            self.file.set_len(0)?;
            self.file.sync_all()?;
        }
        Ok(())
    }
}

/// Milliseconds of the Unix epoch.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_was_begun_is_there_wherever_the_journal_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let on = On { node: 2, to: None };
        let mut journal = Journal::open(&path, "a").unwrap();
        let undo = ["resume".to_owned(), "n2".to_owned()];
        let first = journal.begins("pause", &undo, on).unwrap();
        let begun = std::fs::metadata(&path).unwrap().len();
        journal.terminal("t").unwrap();
        let second = journal.begins("cut", &undo, On { node: 1, to: Some(2) }).unwrap();
        journal.undone(first).unwrap();
        assert!(Journal::open(&path, "a").unwrap_err().to_string().contains("goes on"));
        drop(journal);
        let text = std::fs::read(&path).unwrap();
        for end in begun as usize..text.len() {
            let (left, _) = Left::of(&text[..end]).unwrap();
            assert!(left.deeds.contains_key(&first), "{end}");
        }
        std::fs::write(&path, &text[..text.len() - 3]).unwrap();
        let mut journal = Journal::open(&path, "a").unwrap();
        assert_eq!(journal.left.deeds.keys().copied().collect::<Vec<_>>(), [first, second]);
        assert!(Journal::open(&path, "b").is_err());
        journal.undone(first).unwrap();
        journal.undone(second).unwrap();
        journal.forgotten("t").unwrap();
        journal.close().unwrap();
        assert!(look(&path).unwrap().is_empty() && std::fs::read(&path).unwrap().is_empty());
        std::fs::write(&path, "nonsense\n").unwrap();
        assert!(format!("{:#}", Journal::open(&path, "a").unwrap_err()).contains("line 1"));
    }
}
