//! Tables that are of no more use, set aside so that new ones can be made. A mark beside them says so until the new ones
//! are whole, also through crashes. Files only.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

fn mark_of(tables: &Path) -> PathBuf {
    tables.with_extension("damaged")
}

/// Says that the tables are damaged.
pub(crate) fn mark(tables: &Path, why: &str) -> io::Result<()> {
    let mut file = File::create(mark_of(tables))?;
    writeln!(file, "{why}")?;
    file.sync_all()?;
    sync_parent(tables)
}

/// Why the tables are damaged, if they are.
pub(crate) fn marked(tables: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(mark_of(tables)) {
        Ok(why) => Ok(Some(why.trim().to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Puts marked tables out of the way. Where some are out of the way already, an earlier start did that and did not get
/// new ones: what it began goes, the old ones stay, since they may be all that anyone has.
pub(crate) fn set_aside(tables: &Path) -> io::Result<()> {
    let old = tables.with_extension("old");
    let moved = if old.exists() { fs::remove_dir_all(tables) } else { fs::rename(tables, &old) };
    match moved {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    sync_parent(tables)
}

/// The new tables are whole.
pub(crate) fn unmark(tables: &Path) -> io::Result<()> {
    fs::remove_file(mark_of(tables))?;
    sync_parent(tables)?;
    match fs::remove_dir_all(tables.with_extension("old")) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync_parent(tables: &Path) -> io::Result<()> {
    match tables.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}
