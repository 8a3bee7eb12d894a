//! What is done to a node's files while it is down: emptied, changed in a bit, cut short, put back to what they were. Nothing
//! here decides what the node makes of it.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use reveille_chaos::scenario::FileKind;
use reveille_links::draw::Draws;

/// The most bytes of a copy of a data folder: a log of full length is a quarter of it.
const COPY: u64 = 1 << 30;
/// A bit is turned, and a file cut, before this share of what it holds: its last write may be one that no disk has promised.
const BEFORE: f64 = 0.75;

/// Everything in a data folder is gone.
///
/// # Errors
/// If it cannot be removed.
pub(super) fn wipe(data: &Path) -> anyhow::Result<()> {
    fs::remove_dir_all(data).with_context(|| data.display().to_string())?;
    fs::create_dir(data).with_context(|| data.display().to_string())
}

/// One bit of a file of this kind, both drawn, is another; where.
///
/// # Errors
/// If there is no such file, or it cannot be changed.
pub(super) fn flip(data: &Path, kind: FileKind, draw: u64) -> anyhow::Result<String> {
    let mut draws = Draws::new(draw, "bit");
    let (path, used) = drawn(data, kind, &mut draws)?;
    let at = draws.below(((used as f64 * BEFORE) as u64).max(1));
    let mut file = OpenOptions::new().read(true).write(true).open(&path)?;
    let mut byte = [0];
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(&mut byte)?;
    byte[0] ^= 1 << draws.below(8);
    file.seek(SeekFrom::Start(at))?;
    file.write_all(&byte)?;
    file.sync_all()?;
    Ok(format!("byte {at} of {}, which has {used}", name(data, &path)))
}

/// A file of this kind, drawn, ends somewhere in what it holds; where.
///
/// # Errors
/// If there is no such file, or it cannot be changed.
pub(super) fn truncate(data: &Path, kind: FileKind, draw: u64) -> anyhow::Result<String> {
    let mut draws = Draws::new(draw, "end");
    let (path, used) = drawn(data, kind, &mut draws)?;
    let end = draws.below(((used as f64 * BEFORE) as u64).max(1));
    let file = OpenOptions::new().write(true).open(&path)?;
    file.set_len(end)?;
    file.sync_all()?;
    Ok(format!("{} ends at byte {end} of {used}", name(data, &path)))
}

/// Copies a data folder, which is not in use, to a new place.
///
/// # Errors
/// If it is too large, or cannot be copied.
pub(super) fn copy(data: &Path, to: &Path) -> anyhow::Result<()> {
    let all = files(data)?;
    let size: u64 = all.iter().map(|(_, len)| len).sum();
    ensure!(size <= COPY, "{} has {size} bytes; {COPY} are copied at most", data.display());
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    fs::create_dir_all(to)?;
    for (from, _) in all {
        let target = to.join(from.strip_prefix(data)?);
        fs::create_dir_all(target.parent().context("a file in no folder")?)?;
        fs::copy(&from, &target).with_context(|| from.display().to_string())?;
    }
    Ok(())
}

/// A copy takes the folder's place.
///
/// # Errors
/// If it cannot be moved there.
pub(super) fn put_back(data: &Path, copy: &Path) -> anyhow::Result<()> {
    fs::remove_dir_all(data).with_context(|| data.display().to_string())?;
    fs::rename(copy, data).with_context(|| copy.display().to_string())
}

fn name(data: &Path, path: &Path) -> String {
    path.strip_prefix(data).unwrap_or(path).display().to_string()
}

/// A file of this kind that holds something, and how much of it: a log's files end in zeros.
fn drawn(data: &Path, kind: FileKind, draws: &mut Draws) -> anyhow::Result<(PathBuf, u64)> {
    let is_of = |path: &Path| {
        let name = name(data, path);
        let (log, tables) = (name.ends_with(".wal"), name.starts_with("tables/"));
        match kind {
            FileKind::Log => log,
            FileKind::Tables => tables && !name.ends_with("lock"),
            FileKind::Any => (log || tables) && !name.ends_with("lock"),
        }
    };
    let mut found = Vec::new();
    for (path, _) in files(data)?.into_iter().filter(|(path, len)| *len > 0 && is_of(path)) {
        let used = used(&path)?;
        if used > 0 {
            found.push((path, used));
        }
    }
    ensure!(!found.is_empty(), "{}: no such file", data.display());
    Ok(found.swap_remove(draws.below(found.len() as u64) as usize))
}

/// Up to the last byte that is not zero.
fn used(path: &Path) -> anyhow::Result<u64> {
    let (mut file, mut at, mut used) = (File::open(path)?, 0u64, 0u64);
    let mut part = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut part)?;
        if read == 0 {
            return Ok(used);
        }
        if let Some(last) = part[..read].iter().rposition(|byte| *byte != 0) {
            used = at + last as u64 + 1;
        }
        at += read as u64;
    }
}

/// All files of a folder and their lengths, in the order of their names.
fn files(folder: &Path) -> anyhow::Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let (path, meta) = entry.and_then(|entry| Ok((entry.path(), entry.metadata()?)))?;
        match meta.is_dir() {
            true => found.extend(files(&path)?),
            false => found.push((path, meta.len())),
        }
    }
    found.sort();
    Ok(found)
}
