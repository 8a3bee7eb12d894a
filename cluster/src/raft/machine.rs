//! openraft's state machine over one group's tables: applies entries, tells the shard what came of them, gives
//! and takes snapshots. The rules themselves are in `reveille_protocol::service_list`.

use std::io;
use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use openraft::alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, StoredMembership};
use reveille_protocol::fail_point::Point;
use reveille_protocol::id::GroupId;
use reveille_protocol::service_list::{self, Applied, Command, Table, TableError, TableMut};
use reveille_protocol::wire::codec;
use reveille_protocol::wire::entry::Entry;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::types::{Batch, Cfg, Replies};
use crate::tables::{Installer, Tables};
use crate::{fail, guard};

/// Keys of this adapter in the group's tables; below `key::FIRST_TAG`.
const APPLIED: &[u8] = &[0x00];
const MEMBERSHIP: &[u8] = &[0x01];
/// Bytes of a stored membership: names and addresses of a few dozen nodes.
const MAX_HOST_VALUE: usize = 64 * 1024;

/// Learns what became of each entry, right after it was applied and before its proposer does.
pub(crate) trait Observer: Send + Sync + 'static {
    /// An entry of this term, proposed by this leader, was applied.
    fn applied(&self, term: u64, leader: u64, applied: Option<&Applied>);
    /// The tables were replaced by a snapshot.
    fn replaced(&self);
}

/// The tables of one group as openraft's state machine.
pub(crate) struct Machine<C: Cfg, T> {
    group: GroupId,
    tables: T,
    observer: Arc<dyn Observer>,
    cfg: PhantomData<C>,
}

/// A snapshot on its way: read from our tables, or staged from a peer's.
pub(crate) enum SnapshotData<T: Tables> {
    /// A consistent view of our own tables.
    View(T::Snapshot),
    /// A peer's tables, written beside ours and not yet in their place.
    Staged(T::Installer),
}

fn broken(error: TableError) -> io::Error {
    io::Error::other(error.to_string())
}

fn read<T: Table, V: DeserializeOwned>(table: &T, key: &[u8]) -> io::Result<Option<V>> {
    let Some(bytes) = table.get(key).map_err(broken)? else { return Ok(None) };
    codec::decode::<V, MAX_HOST_VALUE>(&bytes).map(Some).map_err(|error| {
        io::Error::new(io::ErrorKind::InvalidData, format!("the tables are damaged: {error}"))
    })
}

fn value<V: Serialize>(value: &V) -> Bytes {
    codec::encode(value).into()
}

/// The last log entry that these tables have taken in.
pub(crate) fn applied<C: Cfg, T: Table>(table: &T) -> io::Result<Option<LogIdOf<C>>> {
    read(table, APPLIED)
}

/// The same of pairs that were read out of tables; `None` if it is not among them.
pub(crate) fn applied_among<C: Cfg>(pairs: &[(Bytes, Bytes)]) -> Option<LogIdOf<C>> {
    let (_, bytes) = pairs.iter().find(|(key, _)| key == APPLIED)?;
    codec::decode::<LogIdOf<C>, MAX_HOST_VALUE>(bytes).ok()
}

/// An entry that is being applied. Dropped, it is there in part: an error or a panic came in between.
struct Part<'a, T: Tables>(&'a T);

impl<T: Tables> Drop for Part<'_, T> {
    fn drop(&mut self) {
        self.0.spoil();
    }
}

impl<C: Cfg, T: Tables> Machine<C, T> {
    pub(crate) fn new(group: GroupId, tables: T, observer: Arc<dyn Observer>) -> Self {
        Machine { group, tables, observer, cfg: PhantomData }
    }

    /// The commands of an entry; the leader that made it has them at hand.
    fn decoded(&self, batch: &Batch, id: &LogIdOf<C>) -> io::Result<Arc<Entry>> {
        if let Some(entry) = &batch.entry {
            return Ok(entry.clone());
        }
        Entry::decode(&batch.bytes).map(Arc::new).map_err(|error| {
            let message = format!("log entry {id} of group {} cannot be read: {error}", self.group);
            io::Error::new(io::ErrorKind::InvalidData, message)
        })
    }

    /// Applied log id and membership, as they stand in the tables.
    fn state(&self) -> io::Result<(Option<LogIdOf<C>>, StoredMembershipOf<C>)> {
        let table = self.tables.read();
        Ok((read(&table, APPLIED)?, read(&table, MEMBERSHIP)?.unwrap_or_default()))
    }

    async fn take<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<C>>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            self.tables.wait_for_room().await.map_err(broken)?;
            let id = entry.log_id;
            fail::try_at::<C>(Point::Apply).await?;
            let commands = match &entry.payload {
                EntryPayload::Normal(batch) => Some(self.decoded(batch, &id)?),
                EntryPayload::Blank | EntryPayload::Membership(_) => None,
            };
            if let Some(entry) = &commands {
                self.tables
                    .fetch(entry.commands.iter().flat_map(Command::looks_up).collect())
                    .await
                    .map_err(broken)?;
            }
            let applied = {
                let mut table = self.tables.write();
                // Before the tables are let go: a flush may wait for them.
                let part = Part(&self.tables);
                table.put(APPLIED, value(&id));
                if let EntryPayload::Membership(membership) = &entry.payload {
                    table.put(MEMBERSHIP, value(&StoredMembership::new(Some(id), membership.clone())));
                }
                let applied = match &commands {
                    Some(entry) => Some(service_list::apply(&mut table, self.group, entry).map_err(broken)?),
                    None => None,
                };
                std::mem::forget(part);
                applied
            };
            fail::try_at::<C>(Point::Applied).await?;
            self.observer.applied(id.leader_id.term, id.leader_id.node_id, applied.as_ref());
            if let Some(responder) = responder {
                fail::try_at::<C>(Point::Ack).await?;
                responder.send(Replies(applied.map(|applied| applied.replies).unwrap_or_default()));
                fail::try_at::<C>(Point::Acked).await?;
            }
        }
        Ok(())
    }

    async fn install(&mut self, snapshot: SnapshotData<T>) -> io::Result<()> {
        // The applied log id and the membership are keys of the tables: they came with the rest.
        match snapshot {
            SnapshotData::Staged(installer) => {
                fail::try_at::<C>(Point::Install).await?;
                installer.finish().await.map_err(broken)?;
                fail::try_at::<C>(Point::Installed).await?;
            }
            SnapshotData::View(_) => {
                return Err(io::Error::other("a snapshot of our own tables cannot be installed on them"));
            }
        }
        self.observer.replaced();
        Ok(())
    }

    async fn view(&mut self) -> io::Result<SnapshotOf<C, SnapshotData<T>>> {
        fail::try_at::<C>(Point::Snapshot).await?;
        let view = self.tables.snapshot().await.map_err(broken)?;
        fail::try_at::<C>(Point::Snapshotted).await?;
        let meta = SnapshotMetaOf::<C> {
            last_log_id: read(&view, APPLIED)?,
            last_membership: read(&view, MEMBERSHIP)?.unwrap_or_default(),
        };
        Ok(SnapshotOf::<C, _> { meta, snapshot: SnapshotData::View(view) })
    }
}

impl<C: Cfg, T: Tables> RaftStateMachine<C> for Machine<C, T> {
    type SnapshotData = SnapshotData<T>;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogIdOf<C>>, StoredMembershipOf<C>)> {
        self.state()
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<C>>> + Unpin + OptionalSend,
    {
        guard::caught("what applies entries", self.take(entries)).await
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        Machine {
            group: self.group,
            tables: self.tables.clone(),
            observer: self.observer.clone(),
            cfg: PhantomData,
        }
    }

    async fn install_snapshot(
        &mut self,
        _meta: &SnapshotMetaOf<C>,
        snapshot: SnapshotData<T>,
    ) -> io::Result<()> {
        guard::caught("what installs a snapshot", self.install(snapshot)).await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<C, SnapshotData<T>>>> {
        if self.state()?.0.is_none() {
            return Ok(None);
        }
        self.build_snapshot().await.map(Some)
    }
}

impl<C: Cfg, T: Tables> RaftSnapshotBuilder<C> for Machine<C, T> {
    type SnapshotData = SnapshotData<T>;

    /// Durable when it returns: openraft purges the log up to it.
    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<C, SnapshotData<T>>> {
        guard::caught("what makes a snapshot", self.view()).await
    }
}
