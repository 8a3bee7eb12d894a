//! The database under the tables of a node: opening it, whose it is, and writing whole sorted tables to it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fjall::compaction::Leveled;
use fjall::config::{
    BlockSizePolicy, BloomConstructionPolicy, FilterPolicy, FilterPolicyEntry, PinningPolicy,
};
use fjall::{Database, Keyspace, KeyspaceCreateOptions};
use reveille_protocol::service_list::TableError;
use reveille_protocol::wire::codec;

use crate::wal::Owner;

/// Format of the folder.
const FORMAT: u32 = 1;
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
    /// Bytes of the block cache, shared by all groups.
    pub cache_bytes: u64,
    /// Bytes of one group's overlay; writers wait for a flush when it is full.
    pub overlay_bytes: usize,
}

/// The tables cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// fjall refuses.
    #[error(
        "tables in {folder} cannot be opened: {error}; if the disk is damaged, remove this node and let it rejoin under a new id"
    )]
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

/// The tables of one node.
#[derive(Clone)]
pub struct Store(pub(super) Arc<Inner>);

pub(super) struct Inner {
    folder: PathBuf,
    pub(super) db: Database,
    pub(super) rows: Keyspace,
    pub(super) overlay_bytes: usize,
    poisoned: AtomicBool,
}

impl Store {
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
        match about.get("owner").map_err(failed)? {
            None => {
                let mut owner = about.start_ingestion().map_err(failed)?;
                owner.write("owner", codec::encode(&(FORMAT, config.owner))).map_err(failed)?;
                owner.finish().map_err(failed)?;
            }
            Some(bytes) => {
                let (found, owner) = codec::decode::<(u32, Owner), 64>(&bytes)
                    .map_err(|error| TableError(format!("owner of {}: {error}", folder.display())))?;
                if found != FORMAT {
                    return Err(StoreError::Format { folder: folder.to_owned(), found });
                }
                if owner != config.owner {
                    return Err(StoreError::Owner { folder: folder.to_owned(), found: owner });
                }
            }
        }
        let inner = Inner {
            folder: folder.to_owned(),
            db,
            rows,
            overlay_bytes: config.overlay_bytes,
            poisoned: AtomicBool::new(false),
        };
        Ok(Store(Arc::new(inner)))
    }
}

impl Inner {
    /// The first error poisons the store: what follows it cannot be trusted.
    pub(super) fn checked<T>(&self, result: fjall::Result<T>) -> Result<T, TableError> {
        if self.poisoned.load(Ordering::Acquire) {
            return Err(TableError(format!("{} failed before", self.folder.display())));
        }
        result.map_err(|error| {
            self.poisoned.store(true, Ordering::Release);
            TableError(format!("{}: {error}", self.folder.display()))
        })
    }

    /// Writes rows, or for `None` their tombstones, as one table: all of them or none, and durable when it returns.
    /// Their keys must ascend.
    pub(super) fn ingest(
        &self,
        rows: impl Iterator<Item = (Vec<u8>, Option<Bytes>)>,
    ) -> Result<(), TableError> {
        self.wait_for_compaction();
        let mut table = self.checked(self.rows.start_ingestion())?;
        for (key, value) in rows {
            self.checked(match value {
                Some(value) => table.write(key, value),
                None => table.write_tombstone(key),
            })?;
        }
        self.checked(table.finish())
    }

    fn wait_for_compaction(&self) {
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
