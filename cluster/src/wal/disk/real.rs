//! The real disk: a folder that this process has locked.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::Disk;

/// Name of the file whose lock says that a process uses the folder.
const LOCK: &str = "LOCK";
/// Bytes of zeros written at once while a file is made.
const ZEROS: usize = 1 << 20;

/// A locked folder on the real disk.
#[derive(Debug)]
pub struct RealDisk {
    folder: PathBuf,
    files: Mutex<BTreeMap<String, Arc<File>>>,
    _lock: File,
}

impl RealDisk {
    /// Opens a folder, which is made if it is not there. Refuses one that another process uses.
    pub fn open(folder: &Path) -> io::Result<RealDisk> {
        fs::create_dir_all(folder)?;
        let lock = File::create(folder.join(LOCK))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let message = format!("{} is in use by another process; stop it first", folder.display());
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, message));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        Ok(RealDisk { folder: folder.to_owned(), files: Mutex::default(), _lock: lock })
    }

    fn file(&self, name: &str) -> io::Result<Arc<File>> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = files.get(name) {
            return Ok(file.clone());
        }
        let file = Arc::new(OpenOptions::new().read(true).write(true).open(self.folder.join(name))?);
        files.insert(name.to_owned(), file.clone());
        Ok(file)
    }

    fn sync_folder(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }
}

impl Disk for RealDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name != LOCK {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        Ok(self.file(name)?.metadata()?.len())
    }

    fn create(&self, name: &str, len: u64) -> io::Result<()> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(self.folder.join(name))?;
        let zeros = vec![0; ZEROS];
        let mut at = 0;
        while at < len {
            let some = (len - at).min(ZEROS as u64);
            file.write_all_at(&zeros[..some as usize], at)?;
            at += some;
        }
        file.sync_all()?;
        self.files.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), Arc::new(file));
        self.sync_folder()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.folder.join(from), self.folder.join(to))?;
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = files.remove(from) {
            files.insert(to.to_owned(), file);
        }
        drop(files);
        self.sync_folder()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.folder.join(name))?;
        self.files.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        self.sync_folder()
    }

    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file(name)?.read_exact_at(buffer, offset)
    }

    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file(name)?.write_all_at(bytes, offset)
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        self.file(name)?.sync_data()
    }

    fn location(&self) -> String {
        self.folder.display().to_string()
    }
}
