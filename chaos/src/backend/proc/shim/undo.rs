//! What a disk has of what was not synced when the power failed: reads the journal that `shim.c` kept of a node whose
//! process is gone, and takes back what is lost. Draws by seed; starts and ends nobody.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::AddAssign;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use reveille_chaos::scenario::FileKind;
use reveille_links::draw::Draws;

/// As in `shim.c`.
const WRITE: u64 = 0;
const RESIZE: u64 = 1;
const CREATE: u64 = 2;
const UNLINK: u64 = 3;
const RENAME: u64 = 4;
const MKDIR: u64 = 5;
const RMDIR: u64 = 6;
/// Of a record, before what follows it.
const HEAD: usize = 48;
/// No file of a node's is longer: a journal that says so is none.
const LONGEST: u64 = 1 << 32;

/// How much of something that was not synced the disk has.
#[derive(Debug, Clone)]
pub(super) enum Kept {
    Nothing,
    /// Of each write nothing, all, or its beginning, each by its own draw: a later one may be there, and an earlier one not.
    Part(Draws),
}

impl Kept {
    /// Of so much, of the operation of this number.
    pub(super) fn of(&self, seq: u64, len: u64) -> u64 {
        let Kept::Part(draws) = self else { return 0 };
        let mut draws = draws.of(seq);
        match draws.below(4) {
            0 => 0,
            1 => len,
            _ => draws.below(len + 1),
        }
    }
}

/// What is lost.
#[derive(Debug, Clone)]
pub(super) struct Loss {
    pub(super) kept: Kept,
    /// Names, too, in folders that were not synced: the later ones first, as file systems keep an order of them.
    pub(super) names: bool,
    /// What files it is about.
    pub(super) files: FileKind,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Undone {
    /// That were not synced, and of those that are not there, or in part.
    pub(super) writes: u64,
    pub(super) lost: u64,
    pub(super) torn: u64,
    pub(super) names: u64,
    pub(super) names_lost: u64,
}

impl AddAssign for Undone {
    fn add_assign(&mut self, other: Undone) {
        self.writes += other.writes;
        self.lost += other.lost;
        self.torn += other.torn;
        self.names += other.names;
        self.names_lost += other.names_lost;
    }
}

/// A record of a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Record<'a> {
    seq: u64,
    kind: u64,
    a: u64,
    b: u64,
    c: u64,
    bytes: &'a [u8],
}

/// A journal's records. One that is not whole was cut off by the end of its process, and so was what it tells of.
fn records(mut journal: &[u8]) -> Vec<Record<'_>> {
    let mut records = Vec::new();
    while let Some((head, rest)) = journal.split_at_checked(HEAD) {
        let (numbers, _) = head.as_chunks::<8>();
        let number = |at: usize| u64::from_ne_bytes(numbers[at]);
        let Some((bytes, rest)) = rest.split_at_checked(number(5) as usize) else { break };
        records.push(Record {
            seq: number(0),
            kind: number(1),
            a: number(2),
            b: number(3),
            c: number(4),
            bytes,
        });
        journal = rest;
    }
    records
}

fn bad(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn put(contents: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    if contents.len() < at + bytes.len() {
        contents.resize(at + bytes.len(), 0);
    }
    contents[at..at + bytes.len()].copy_from_slice(bytes);
}

/// What a file holds after the power failed, from what it held before. Backwards to what was synced, on the way noting what
/// each write had put there; then forwards, with what is kept of each.
fn contents(contents: &mut Vec<u8>, records: &[Record<'_>], kept: &Kept) -> io::Result<Undone> {
    let mut written: Vec<Vec<u8>> = Vec::new();
    for record in records.iter().rev() {
        let Record { a, b, c, .. } = *record;
        if a.max(c).max(a.saturating_add(b)) > LONGEST {
            return Err(bad(format!("a record of {b} bytes at {a} of a file of {c}")));
        }
        let part = a as usize..((a + b) as usize).min(contents.len());
        written.push(contents.get(part).map_or(Vec::new(), <[u8]>::to_vec));
        contents.resize(c as usize, 0);
        put(contents, a as usize, record.bytes);
    }
    let mut undone = Undone { writes: records.len() as u64, ..Undone::default() };
    for (record, bytes) in records.iter().zip(written.iter().rev()) {
        let all = if record.kind == WRITE { bytes.len() as u64 } else { 1 };
        let has = kept.of(record.seq, all);
        match record.kind {
            WRITE => put(contents, record.a as usize, &bytes[..has as usize]),
            RESIZE if has == 1 => contents.resize(record.a as usize, 0),
            RESIZE => {}
            other => return Err(bad(format!("a record of kind {other}"))),
        }
        undone.lost += u64::from(has == 0);
        undone.torn += u64::from(has > 0 && has < all);
    }
    Ok(undone)
}

fn inode(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().map(|data| data.ino())
}

/// What is not there needs no taking away: what held it is gone for good.
fn if_there(done: io::Result<()>) -> io::Result<()> {
    done.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// Takes one name back, unless what its record tells of was not done any more.
fn take_back(data: &Path, journal: &Path, record: &Record<'_>) -> io::Result<()> {
    let mut names =
        record.bytes.split(|byte| *byte == 0).map(|name| data.join(std::ffi::OsStr::from_bytes(name)));
    let path = names.next().ok_or_else(|| bad("a name that is none".to_owned()))?;
    let taken = journal.join(format!("u-{}", record.seq));
    let is_it = |path: &Path| inode(path) == Some(record.b);
    match record.kind {
        CREATE if is_it(&path) => fs::remove_file(path),
        MKDIR if is_it(&path) => fs::remove_dir_all(path),
        UNLINK if inode(&path).is_none() => if_there(fs::rename(taken, path)),
        RMDIR if inode(&path).is_none() => if_there(fs::create_dir(path)),
        RENAME => {
            let to = names.next().ok_or_else(|| bad("a new name that is none".to_owned()))?;
            if is_it(&to) {
                fs::rename(&to, path)?;
                if_there(fs::rename(taken, to))?;
            }
            Ok(())
        }
        CREATE | MKDIR | UNLINK | RMDIR => Ok(()),
        other => Err(bad(format!("a name's record of kind {other}"))),
    }
}

/// All files below a folder, by their inodes.
fn files(folder: &Path, found: &mut BTreeMap<u64, PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let data = entry.metadata()?;
        if data.is_dir() {
            files(&entry.path(), found)?;
        } else {
            found.insert(data.ino(), entry.path());
        }
    }
    Ok(())
}

/// Has a data folder, whose process is gone, be as after this loss. What is left counts as synced.
///
/// # Errors
/// Where a file cannot be read or written, or the journal is none of the shim's: the folder is then of no more use.
pub(super) fn undo(data: &Path, journal: &Path, loss: &Loss) -> io::Result<Undone> {
    let mut undone = Undone::default();
    if loss.names {
        let bytes = fs::read(journal.join("names")).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(Vec::new()),
            _ => Err(error),
        })?;
        let names = records(&bytes);
        let kept = loss.kept.of(0, names.len() as u64);
        undone.names = names.len() as u64;
        undone.names_lost = undone.names - kept;
        for record in names[kept as usize..].iter().rev() {
            take_back(data, journal, record)?;
        }
    }
    let mut there = BTreeMap::new();
    files(data, &mut there)?;
    for entry in fs::read_dir(journal)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if let Some(inode) = name.strip_prefix("f-") {
            let inode: u64 = inode.parse().map_err(|_| bad(format!("a journal {name}")))?;
            match there.get(&inode) {
                Some(path) if !is_of(path.strip_prefix(data).unwrap_or(path), loss.files) => continue,
                Some(path) => undone += of_file(path, &entry.path(), &loss.kept)?,
                // It has no name any more, but may get one back.
                None if !loss.names => continue,
                None => {}
            }
            fs::remove_file(entry.path())?;
        } else if loss.names && (name == "names" || name.starts_with("u-")) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(undone)
}

/// Whether a file of a data folder is one of these.
fn is_of(path: &Path, files: FileKind) -> bool {
    match files {
        FileKind::Any => true,
        FileKind::Log => path.starts_with("log"),
        FileKind::Tables => path.starts_with("tables"),
    }
}

fn of_file(path: &Path, journal: &Path, kept: &Kept) -> io::Result<Undone> {
    let journal = fs::read(journal)?;
    let mut bytes = fs::read(path)?;
    let undone = contents(&mut bytes, &records(&journal), kept)?;
    // Not made anew: it is still the same file.
    let file = File::options().write(true).open(path)?;
    file.set_len(bytes.len() as u64)?;
    file.write_all_at(&bytes, 0)?;
    Ok(undone)
}
