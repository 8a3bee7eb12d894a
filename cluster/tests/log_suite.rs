//! openraft's own conformance suite for log stores, on our log.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

use std::sync::{Arc, Mutex};

use futures::StreamExt;
use openraft::StorageError;
use openraft::alias::{EntryOf, LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::storage::{EntryResponder, RaftLogStorage, RaftLogStorageExt, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::testing::{blank_ent, log_id};
use openraft::{EntryPayload, OptionalSend, RaftLogReader, RaftSnapshotBuilder};
use reveille_cluster::raft::log::GroupLog;
use reveille_cluster::raft::types::{Replies, Tokio};
use reveille_cluster::wal::disk::{RealDisk, SimDisk};
use reveille_cluster::wal::{Owner, Wal, WalConfig, WalGroup};

/// The least state machine that the suite accepts: what is tested is the log.
#[derive(Clone, Default)]
struct Least(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    applied: Option<LogIdOf<Tokio>>,
    membership: StoredMembershipOf<Tokio>,
    snapshot: Option<SnapshotMetaOf<Tokio>>,
}

impl RaftStateMachine<Tokio> for Least {
    type SnapshotData = ();
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> std::io::Result<(Option<LogIdOf<Tokio>>, StoredMembershipOf<Tokio>)> {
        let state = self.0.lock().unwrap();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> std::io::Result<()>
    where
        S: futures::Stream<Item = std::io::Result<EntryResponder<Tokio>>> + Unpin + OptionalSend,
    {
        while let Some(entry) = entries.next().await {
            let (entry, responder) = entry?;
            let mut state = self.0.lock().unwrap();
            state.applied = Some(entry.log_id);
            if let EntryPayload::Membership(membership) = entry.payload {
                state.membership = openraft::StoredMembership::new(Some(entry.log_id), membership);
            }
            if let Some(responder) = responder {
                responder.send(Replies::default());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMetaOf<Tokio>, (): ()) -> std::io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.applied = meta.last_log_id;
        state.membership = meta.last_membership.clone();
        state.snapshot = Some(meta.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> std::io::Result<Option<SnapshotOf<Tokio, ()>>> {
        let snapshot = self.0.lock().unwrap().snapshot.clone();
        Ok(snapshot.map(|meta| SnapshotOf::<Tokio, ()> { meta, snapshot: () }))
    }
}

impl RaftSnapshotBuilder<Tokio> for Least {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> std::io::Result<SnapshotOf<Tokio, ()>> {
        let mut state = self.0.lock().unwrap();
        let meta =
            SnapshotMetaOf::<Tokio> { last_log_id: state.applied, last_membership: state.membership.clone() };
        state.snapshot = Some(meta.clone());
        Ok(SnapshotOf::<Tokio, ()> { meta, snapshot: () })
    }
}

type Log = GroupLog<Tokio, WalGroup>;

fn config() -> WalConfig {
    let owner = Owner { cluster: 1, node: 1 };
    WalConfig { segment_bytes: 1 << 20, create: true, ..WalConfig::new(owner, 2) }
}

/// The log with its thread, on a real folder.
struct Threaded;

impl StoreBuilder<Tokio, Log, Least, (tempfile::TempDir, Wal)> for Threaded {
    async fn build(&self) -> Result<((tempfile::TempDir, Wal), Log, Least), StorageError<Tokio>> {
        let folder = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(folder.path()).unwrap();
        let wal = Wal::open(Arc::new(disk), config()).unwrap();
        let log = GroupLog::new(wal.group(1).unwrap());
        Ok(((folder, wal), log, Least::default()))
    }
}

/// The log without a thread, on the simulated disk, as the simulation uses it.
struct Inline;

impl StoreBuilder<Tokio, Log, Least, Wal> for Inline {
    async fn build(&self) -> Result<(Wal, Log, Least), StorageError<Tokio>> {
        let wal = Wal::open_inline(Arc::new(SimDisk::default()), config()).unwrap();
        let log = GroupLog::new(wal.group(1).unwrap());
        Ok((wal, log, Least::default()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_with_its_thread_passes() {
    Suite::<Tokio, Log, Least, Threaded, (tempfile::TempDir, Wal)>::test_all(Threaded).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_of_the_simulation_passes() {
    Suite::<Tokio, Log, Least, Inline, Wal>::test_all(Inline).await.unwrap();
}

#[tokio::test]
async fn what_was_purged_leaves_no_hole_in_what_is_sent() {
    let (_wal, mut log, _) = Inline.build().await.unwrap();
    log.blocking_append((0..6).map(|index| blank_ent::<Tokio>(1, 1, index)).collect::<Vec<_>>())
        .await
        .unwrap();
    log.purge(log_id::<Tokio>(1, 1, 2)).await.unwrap();
    let indexes =
        |entries: Vec<EntryOf<Tokio>>| entries.iter().map(|entry| entry.log_id.index).collect::<Vec<_>>();
    assert_eq!(indexes(log.limited_get_log_entries(3, 6).await.unwrap()), [3, 4, 5]);
    assert_eq!(indexes(log.limited_get_log_entries(1, 6).await.unwrap()), [0; 0], "3 does not follow 0");
    assert_eq!(
        indexes(log.try_get_log_entries(1..6).await.unwrap()),
        [3, 4, 5],
        "a purge is allowed at the start"
    );
}
