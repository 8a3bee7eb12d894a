//! The database under the tables of a node: opening it, whose it is, and writing whole sorted tables to it.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fjall::compaction::Leveled;
use fjall::config::{
    BlockSizePolicy, BloomConstructionPolicy, FilterPolicy, FilterPolicyEntry, PinningPolicy,
};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, LsmError};
use reveille_protocol::service_list::TableError;
use reveille_protocol::wire::codec;

use super::set_aside;
use crate::wal::Owner;

/// Format of the folder. 2: names the number of groups.
const FORMAT: u32 = 2;
/// New tables that wait before they are compacted, and beyond which a flush waits for that. Each is one more place to
/// look for a key of its group; the more are merged at once, the less often a row is written again.
const UNCOMPACTED: (u8, usize) = (12, 32);
/// The longest that a flush waits for compaction. One that has died is told by the next use of the store.
const COMPACTION_WAIT: Duration = Duration::from_secs(10);

/// How much memory the tables of a node may take.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The cluster and node that the folder belongs to.
    pub owner: Owner,
    /// Groups on this node, meta included; fixed when the folder is made.
    pub groups: u16,
    /// Make the folder's contents; refused where there are rows. Without it, missing ones are refused.
    pub create: bool,
    /// Bytes of the block cache, shared by all groups.
    pub cache_bytes: u64,
    /// Bytes of one group's overlay; writers wait for a flush when it is full.
    pub overlay_bytes: usize,
}

/// The tables cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// fjall refuses.
    #[error("tables in {folder} cannot be opened: {error}; is another version or user at fault?")]
    Open {
        /// The folder.
        folder: PathBuf,
        /// Why.
        error: fjall::Error,
    },
    /// Another process has it open.
    #[error("tables in {0} are in use by another process; stop it first")]
    Locked(PathBuf),
    /// Made for another node or cluster.
    #[error("tables in {folder} belong to node {} of cluster {:016x}; point this node at its own folder", found.node, found.cluster)]
    Owner {
        /// The folder.
        folder: PathBuf,
        /// Whose they are.
        found: Owner,
    },
    /// Made for another number of groups.
    #[error(
        "tables in {folder} were made for {found} shard groups, not {configured}: cluster.groups is fixed when a cluster is created; set it back"
    )]
    Groups {
        /// The folder.
        folder: PathBuf,
        /// Shard groups that they were made for.
        found: u16,
        /// Shard groups that the configuration names.
        configured: u16,
    },
    /// To be made, but there are some.
    #[error(
        "tables in {0} hold rows, but there is no log beside them: this node had data before, and one whose log was lost must not come back under its old id; replace it: reveille cluster replace"
    )]
    NotEmpty(PathBuf),
    /// They should be there.
    #[error("no tables in {0}, although there is a log")]
    Missing(PathBuf),
    /// Made by another version.
    #[error(
        "tables in {folder} have format {found}, this build reads {FORMAT}; use the version that wrote them"
    )]
    Format {
        /// The folder.
        folder: PathBuf,
        /// Their format.
        found: u32,
    },
    /// Something in them cannot be read.
    #[error(transparent)]
    Damaged(#[from] TableError),
}

impl StoreError {
    /// Are the tables of no more use? They follow from the log and from the peers', so they can be made anew. Not so where
    /// the disk, or who runs this, may be at fault.
    pub fn is_damage(&self) -> bool {
        match self {
            StoreError::Open { error, .. } => is_damage(error),
            StoreError::Missing(_) | StoreError::Damaged(_) => true,
            _ => false,
        }
    }
}

/// Does the error say that what is on the disk is not what was written?
fn is_damage(error: &fjall::Error) -> bool {
    let kinds = [ErrorKind::NotFound, ErrorKind::UnexpectedEof, ErrorKind::InvalidData];
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(LsmError::Io(error)) => kinds.contains(&error.kind()),
        // Another version wrote them: the binary is wrong, not the tables.
        fjall::Error::InvalidVersion(Some(_)) => false,
        fjall::Error::Locked | fjall::Error::Poisoned | fjall::Error::KeyspaceDeleted => false,
        _ => true,
    }
}

/// The tables of one node.
#[derive(Clone)]
pub struct Store(pub(super) Arc<Inner>);

pub(super) struct Inner {
    folder: PathBuf,
    pub(super) db: Database,
    pub(super) rows: Keyspace,
    pub(super) overlay_bytes: usize,
    /// The first error, once there was one.
    failed: OnceLock<String>,
    behind: OnceLock<Barrier>,
}

/// Blocks until the log is durable up to everything that was applied.
type Barrier = Box<dyn Fn() -> io::Result<()> + Send + Sync>;

impl Store {
    /// Keeps the tables on disk behind the log on disk from now on: raft may apply an entry that only other nodes have
    /// synced, and after a power cut tables that know more than their log are no state that raft can start from.
    pub fn keep_behind(&self, barrier: impl Fn() -> io::Result<()> + Send + Sync + 'static) {
        // Given once, where the store is assembled with its log.
        let _ = self.0.behind.set(Box::new(barrier));
    }

    /// Opens the tables in `folder`, or makes them.
    pub fn open(folder: &Path, config: &StoreConfig) -> Result<Store, StoreError> {
        let failed = |error| match error {
            fjall::Error::Locked => StoreError::Locked(folder.to_owned()),
            error => StoreError::Open { folder: folder.to_owned(), error },
        };
        let db = Database::builder(folder)
            .cache_size(config.cache_bytes)
            .worker_threads(1)
            .open()
            .map_err(failed)?;
        // Points are looked up by key, and many keys do not exist, so all levels have filters. Filters and indexes live
        // in the cache and under its bound: memory does not grow with the number of rows.
        let bits = FilterPolicyEntry::Bloom(BloomConstructionPolicy::BitsPerKey(10.0));
        let options = || {
            KeyspaceCreateOptions::default()
                .data_block_size_policy(BlockSizePolicy::all(4 << 10))
                .filter_policy(FilterPolicy::all(bits))
                .compaction_strategy(Arc::new(
                    Leveled::default().with_table_target_size(8 << 20).with_l0_threshold(UNCOMPACTED.0),
                ))
                .filter_block_pinning_policy(PinningPolicy::all(false))
                .index_block_pinning_policy(PinningPolicy::all(false))
        };
        let about = db.keyspace("about", options).map_err(failed)?;
        let rows = db.keyspace("rows", options).map_err(failed)?;
        let groups = config.groups;
        match about.get("owner").map_err(failed)? {
            None if !config.create => return Err(StoreError::Missing(folder.to_owned())),
            None => {
                let mut owner = about.start_ingestion().map_err(failed)?;
                owner.write("owner", codec::encode(&(FORMAT, config.owner, groups))).map_err(failed)?;
                owner.finish().map_err(failed)?;
            }
            Some(bytes) => {
                let damaged = |error| TableError(format!("owner of {}: {error}", folder.display()));
                // Behind the codec's own version byte; what follows it differs between formats.
                let found = bytes.get(1).map_or(0, |format| u32::from(*format));
                if found != FORMAT {
                    return Err(StoreError::Format { folder: folder.to_owned(), found });
                }
                let (_, owner, found) = codec::decode::<(u32, Owner, u16), 64>(&bytes).map_err(damaged)?;
                if owner != config.owner {
                    return Err(StoreError::Owner { folder: folder.to_owned(), found: owner });
                }
                if found != groups {
                    let (found, configured) = (found - 1, groups - 1);
                    return Err(StoreError::Groups { folder: folder.to_owned(), found, configured });
                }
                if config.create && !rows.is_empty().map_err(failed)? {
                    return Err(StoreError::NotEmpty(folder.to_owned()));
                }
            }
        }
        let inner = Inner {
            folder: folder.to_owned(),
            db,
            rows,
            overlay_bytes: config.overlay_bytes,
            failed: OnceLock::new(),
            behind: OnceLock::new(),
        };
        Ok(Store(Arc::new(inner)))
    }
}

impl Inner {
    /// The first error poisons the store: what follows it cannot be trusted.
    pub(super) fn checked<T>(&self, result: fjall::Result<T>) -> Result<T, TableError> {
        if let Some(first) = self.failed.get() {
            return Err(TableError(format!("{} failed before: {first}", self.folder.display())));
        }
        result.map_err(|error| {
            self.failed.get_or_init(|| error.to_string());
            if is_damage(&error) {
                self.mark(&error.to_string());
            }
            TableError(format!("{}: {error}", self.folder.display()))
        })
    }

    /// Has the next start make the tables anew.
    fn mark(&self, why: &str) {
        if let Err(error) = set_aside::mark(&self.folder, why) {
            tracing::error!(%error, "damaged tables could not be marked; remove their folder before the next start");
        }
    }

    /// Writes rows, or for `None` their tombstones, as one table: all of them or none, and durable when it returns.
    /// Their keys must ascend.
    pub(super) fn ingest(
        &self,
        rows: impl Iterator<Item = (Vec<u8>, Option<Bytes>)>,
    ) -> Result<(), TableError> {
        let mut table = self.checked(self.rows.start_ingestion())?;
        for (key, value) in rows {
            self.checked(match value {
                Some(value) => table.write(key, value),
                None => table.write_tombstone(key),
            })?;
        }
        self.checked(table.finish())
    }

    /// Waits until what is to be flushed is durable in the log.
    pub(super) fn wait_for_log(&self) -> Result<(), TableError> {
        let Some(barrier) = self.behind.get() else { return Ok(()) };
        barrier().map_err(|error| TableError(format!("{}: not flushed: {error}", self.folder.display())))
    }

    /// Waits while too many tables are uncompacted; call it before an ingestion, without locks that others need.
    pub(super) fn wait_for_compaction(&self) {
        let began = Instant::now();
        while self.rows.l0_table_count() > UNCOMPACTED.1 && began.elapsed() < COMPACTION_WAIT {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Where the record of a group's generation is: before every row of the group.
pub(super) fn generation_key(group: u16) -> [u8; 2] {
    group.to_be_bytes()
}

pub(super) fn prefix(group: u16, generation: u32) -> [u8; 6] {
    let mut prefix = [0; 6];
    prefix[..2].copy_from_slice(&group.to_be_bytes());
    prefix[2..].copy_from_slice(&generation.to_be_bytes());
    prefix
}

pub(super) fn stored(prefix: [u8; 6], key: &[u8]) -> Vec<u8> {
    [&prefix[..], key].concat()
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> io::Error {
        io::Error::other(error.to_string())
    }
}
