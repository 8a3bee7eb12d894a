//! The data folder's own pages: whose it is, its random name, whether the cluster has let it in, and the account of its
//! starts. A folder that is new must not vote before others have said that it does not stand for one that was lost. Not the
//! log, not the tables.
#![allow(
    clippy::disallowed_methods,
    reason = "the folder is production only; the simulator's nodes keep theirs in memory"
)]

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::wal::Owner;

const NAME: &str = "folder";
const BEGUN: &str = "begun";
const STARTS: &str = "starts";
const TITLE: &str = "reveille data folder, format 1";

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Folder {
    path: PathBuf,
    owner: Owner,
    /// Its random name.
    pub(crate) store: u64,
    /// Made by a node that joined a cluster, not by one of the first.
    pub(crate) joined: bool,
    /// The cluster has let it in, and it was made to its end.
    pub(crate) admitted: bool,
    /// There is a log in it.
    pub(crate) holds_log: bool,
}

/// The starts on a folder, so that the cluster can tell it from an older copy of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Starts {
    /// Number of the last one that the cluster was told of; 0 if there was none.
    pub entered: u64,
    /// Of the one that began after it, which the cluster may have been told of; 0 if there is none.
    pub begun: u64,
}

impl Starts {
    /// A start begins, under this number. One that ended before it knew whether it was heard of is begun once more: it
    /// served nobody.
    pub fn begin(&mut self, random: u64) -> u64 {
        if self.begun == 0 {
            self.begun = random;
        }
        self.begun
    }

    /// The cluster was told of this start.
    pub fn enter(&mut self, start: u64) {
        *self = Starts { entered: start, begun: 0 };
    }
}

/// The account of the starts, as one start keeps it.
pub(crate) struct Account {
    folder: Folder,
    kept: Mutex<Starts>,
    /// The number of this start.
    pub(crate) start: u64,
    /// That of the one before it; 0 if it is not known.
    pub(crate) before: u64,
}

impl Account {
    /// A start begins, which has this random number unless the one before it must be begun once more. Durable when it
    /// returns, as whatever is done here.
    pub(crate) fn begin(folder: Folder, random: u64) -> Result<Account, FolderError> {
        let mut starts = folder.starts()?;
        let (before, start) = (starts.entered, starts.begin(random));
        folder.set_starts(&starts)?;
        Ok(Account { folder, kept: Mutex::new(starts), start, before })
    }

    /// The cluster was told of the start, and will hold the next one against this account.
    pub(crate) fn keep(&self) -> Result<(), FolderError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = *kept;
        now.enter(self.start);
        if *kept != now {
            self.folder.set_starts(&now)?;
            *kept = now;
        }
        Ok(())
    }

    /// It was told, but holds nothing against it: a version that keeps no account may be started here next, of whose starts the
    /// cluster would know and this account would not. Nothing if it was kept since.
    pub(crate) fn forgo(&self) -> Result<(), FolderError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.entered == self.start {
            return Ok(());
        }
        self.folder.set_starts(&Starts::default())?;
        *kept = Starts::default();
        Ok(())
    }
}

/// A data folder that this node cannot be started on.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The file system refuses.
    #[error("data folder {folder}: {error}")]
    Io {
        /// The folder.
        folder: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// There is nothing in it.
    #[error(
        "no data in {0}; if this node is new, start it with --create; if its data was lost, replace it: reveille cluster replace"
    )]
    Empty(PathBuf),
    /// It says that it was in use, and its log is gone.
    #[error(
        "{0} was this node's data folder, and its log is gone; what the node had promised is lost with it, so it must not come back under its id. Replace it: reveille cluster replace"
    )]
    Lost(PathBuf),
    /// It is another node's.
    #[error("{folder} belongs to node {} of cluster {:016x}; point this node at its own folder", found.node, found.cluster)]
    Owner {
        /// The folder.
        folder: PathBuf,
        /// Whose it is.
        found: Owner,
    },
    /// Its page cannot be read.
    #[error("{0} cannot be read; if the disk is damaged, replace this node: reveille cluster replace")]
    Damaged(PathBuf),
}

impl Folder {
    /// Opens the page of a folder, or begins a new folder under this name if `create` allows it.
    pub(crate) fn open(
        data: &Path,
        owner: Owner,
        create: bool,
        joined: bool,
        store: u64,
    ) -> Result<Folder, FolderError> {
        let failed = |error| FolderError::Io { folder: data.to_owned(), error };
        let holds_log = holds_log(&data.join("log")).map_err(failed)?;
        let new = Folder { path: data.to_owned(), owner, store, joined, admitted: holds_log, holds_log };
        let text = match fs::read_to_string(data.join(NAME)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if !holds_log && !create {
                    return Err(FolderError::Empty(data.to_owned()));
                }
                // With a log: made by a version that kept no page. Only the first nodes of a cluster were.
                let new = Folder { joined: joined && !holds_log, ..new };
                new.write().map_err(failed)?;
                return Ok(new);
            }
            Err(error) => return Err(failed(error)),
        };
        let read = parse(&text).ok_or_else(|| FolderError::Damaged(data.join(NAME)))?;
        let (found, store, joined, admitted) = read;
        if found != owner {
            return Err(FolderError::Owner { folder: data.to_owned(), found });
        }
        if admitted && !holds_log {
            return Err(FolderError::Lost(data.to_owned()));
        }
        if !holds_log && !create {
            return Err(FolderError::Empty(data.to_owned()));
        }
        Ok(Folder { store, joined, admitted, ..new })
    }

    /// The cluster has let it in, and everything in it is made.
    pub(crate) fn set_admitted(&mut self) -> Result<(), FolderError> {
        self.admitted = true;
        self.write().map_err(|error| FolderError::Io { folder: self.path.clone(), error })
    }

    /// Has this node begun the groups that were its own to begin? A file by itself: versions that do not know of it read
    /// the page.
    pub(crate) fn has_begun(&self) -> bool {
        self.path.join(BEGUN).exists()
    }

    /// It has, and never does it again.
    pub(crate) fn set_begun(&self) -> Result<(), FolderError> {
        let made = File::create(self.path.join(BEGUN)).and_then(|file| file.sync_all());
        let made = made.and_then(|()| File::open(&self.path)?.sync_all());
        made.map_err(|error| FolderError::Io { folder: self.path.clone(), error })
    }

    /// A file by itself, as well.
    pub(crate) fn starts(&self) -> Result<Starts, FolderError> {
        let path = self.path.join(STARTS);
        match fs::read_to_string(&path) {
            Ok(text) => parse_starts(&text).ok_or(FolderError::Damaged(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Starts::default()),
            Err(error) => Err(FolderError::Io { folder: self.path.clone(), error }),
        }
    }

    /// Durable when it returns.
    pub(crate) fn set_starts(&self, starts: &Starts) -> Result<(), FolderError> {
        let text = format!("entered {:016x}\nbegun {:016x}\n", starts.entered, starts.begun);
        self.replace(STARTS, &text).map_err(|error| FolderError::Io { folder: self.path.clone(), error })
    }

    fn write(&self) -> io::Result<()> {
        fs::create_dir_all(&self.path)?;
        let Folder { owner, store, joined, admitted, .. } = self;
        let word = |yes: &bool| if *yes { "yes" } else { "no" };
        let text = format!(
            "{TITLE}\ncluster {:016x}\nnode {}\nstore {store:016x}\njoined {}\nadmitted {}\n",
            owner.cluster,
            owner.node,
            word(joined),
            word(admitted),
        );
        self.replace(NAME, &text)
    }

    fn replace(&self, name: &str, text: &str) -> io::Result<()> {
        let (new, page) = (self.path.join(format!("{name}.new")), self.path.join(name));
        let mut file = File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &page)?;
        File::open(&self.path)?.sync_all()
    }
}

fn parse_starts(text: &str) -> Option<Starts> {
    let number = |text: &str| u64::from_str_radix(text, 16).ok().filter(|_| text.len() == 16);
    let (entered, begun) = text.strip_prefix("entered ")?.split_once("\nbegun ")?;
    Some(Starts { entered: number(entered)?, begun: number(begun.strip_suffix('\n')?)? })
}

fn parse(text: &str) -> Option<(Owner, u64, bool, bool)> {
    let mut lines = text.strip_suffix('\n')?.split('\n');
    if lines.next()? != TITLE {
        return None;
    }
    let mut value = |key: &str| lines.next()?.strip_prefix(key)?.strip_prefix(' ').map(str::to_owned);
    let hex = |text: String| u64::from_str_radix(&text, 16).ok().filter(|_| text.len() == 16);
    let word = |text: String| match &text[..] {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    };
    let cluster = hex(value("cluster")?)?;
    let node = value("node")?.parse().ok()?;
    let store = hex(value("store")?)?;
    let (joined, admitted) = (word(value("joined")?)?, word(value("admitted")?)?);
    lines.next().is_none().then_some((Owner { cluster, node }, store, joined, admitted))
}

/// Was the log made to its end? Its first segment is what is made last.
fn holds_log(log: &Path) -> io::Result<bool> {
    let entries = match fs::read_dir(log) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    for entry in entries {
        if Path::new(&entry?.file_name()).extension().is_some_and(|ending| ending == "wal") {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const OWNER: Owner = Owner { cluster: 0xc1, node: 4 };

    fn open(data: &Path, create: bool) -> Result<Folder, FolderError> {
        Folder::open(data, OWNER, create, true, 7)
    }

    #[test]
    fn a_start_that_nobody_may_have_heard_of_is_begun_again() {
        let data = tempfile::tempdir().unwrap();
        let folder = open(data.path(), true).unwrap();
        let mut starts = folder.starts().unwrap();
        assert_eq!((starts.begin(11), starts.entered), (11, 0));
        folder.set_starts(&starts).unwrap();
        starts = folder.starts().unwrap();
        assert_eq!((starts.begin(12), starts.entered), (11, 0), "killed before it was told");
        starts.enter(11);
        folder.set_starts(&starts).unwrap();
        starts = folder.starts().unwrap();
        assert_eq!((starts.begin(13), starts.entered), (13, 11));

        let account = Account::begin(folder.clone(), 14).unwrap();
        assert_eq!((account.start, account.before), (14, 11));
        account.forgo().unwrap();
        assert_eq!(folder.starts().unwrap(), Starts::default());
        account.keep().unwrap();
        account.forgo().unwrap();
        assert_eq!(folder.starts().unwrap(), Starts { entered: 14, begun: 0 });

        let account = Account::begin(folder.clone(), 15).unwrap();
        let (at, away) = (data.path().to_owned(), data.path().with_extension("away"));
        fs::rename(&at, &away).unwrap();
        account.keep().unwrap_err();
        fs::rename(&away, &at).unwrap();
        account.forgo().unwrap();
        assert_eq!(folder.starts().unwrap(), Starts::default(), "it was not kept");
        fs::write(data.path().join(STARTS), "entered 000000000000000b\n").unwrap();
        assert!(matches!(folder.starts(), Err(FolderError::Damaged(_))));
    }

    #[test]
    fn a_folder_keeps_its_name_and_is_missed_when_its_log_is_gone() {
        let data = tempfile::tempdir().unwrap();
        let data = data.path();
        assert!(matches!(open(data, false), Err(FolderError::Empty(_))));
        let mut folder = open(data, true).unwrap();
        assert_eq!((folder.store, folder.joined, folder.admitted), (7, true, false));
        let again = Folder::open(data, OWNER, true, false, 8).unwrap();
        assert_eq!((again.store, again.joined, again.admitted), (7, true, false), "begun, and begun again");
        assert!(matches!(open(data, false), Err(FolderError::Empty(_))), "not made to its end");
        fs::create_dir(data.join("log")).unwrap();
        fs::write(data.join("log/0000000001.wal"), "").unwrap();
        folder.set_admitted().unwrap();
        assert!(open(data, false).unwrap().admitted);
        let other = Owner { node: 5, ..OWNER };
        assert!(matches!(
            Folder::open(data, other, true, true, 7),
            Err(FolderError::Owner { found: OWNER, .. })
        ));
        fs::remove_dir_all(data.join("log")).unwrap();
        assert!(matches!(open(data, true), Err(FolderError::Lost(_))), "also with --create");
    }

    #[test]
    fn a_page_that_was_changed_is_refused_and_one_that_is_missing_is_made_up_for() {
        let data = tempfile::tempdir().unwrap();
        let data = data.path();
        open(data, true).unwrap();
        let good = fs::read_to_string(data.join(NAME)).unwrap();
        for bad in
            ["", &good[..good.len() - 1], &good.replace("store 0", "store g"), &format!("{good}more\n")]
        {
            fs::write(data.join(NAME), bad).unwrap();
            assert!(matches!(open(data, true), Err(FolderError::Damaged(_))), "{bad:?}");
        }
        fs::remove_file(data.join(NAME)).unwrap();
        fs::create_dir(data.join("log")).unwrap();
        fs::write(data.join("log/0000000001.wal"), "").unwrap();
        let folder = open(data, false).unwrap();
        assert_eq!((folder.joined, folder.admitted), (false, true), "of the first format");
    }
}
