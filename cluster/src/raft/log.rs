//! openraft's log storage over one group of the shared write-ahead log. Translates; decides nothing.

use std::fmt::Debug;
use std::io;
use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};

use bytes::Bytes;
use openraft::alias::{EntryOf, LogIdOf, VoteOf};
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use reveille_protocol::fail_point::Point;
use reveille_protocol::wire::codec;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::types::Cfg;
pub use crate::wal::LogStore;
use crate::{fail, guard};

/// Bytes that a reader takes from the log at once: what one append to a peer carries.
const READ_BYTES: usize = 1024 * 1024;
/// Bytes of one stored entry: a full batch and its envelope.
const MAX_ENTRY: usize = reveille_protocol::limits::MAX_ENTRY_DECODE + 1024;
/// Bytes of a stored vote or log id.
const MAX_SMALL: usize = 1024;

/// One group's log as openraft sees it.
pub struct GroupLog<C, L> {
    log: L,
    cfg: PhantomData<C>,
}

impl<C, L: Clone> Clone for GroupLog<C, L> {
    fn clone(&self) -> Self {
        GroupLog { log: self.log.clone(), cfg: PhantomData }
    }
}

impl<C, L> GroupLog<C, L> {
    /// Wraps one group's log.
    pub fn new(log: L) -> Self {
        GroupLog { log, cfg: PhantomData }
    }
}

impl<C: Cfg, L: LogStore> GroupLog<C, L> {
    /// This entry is committed and was taken in without raft: its leader is followed, as if it had sent it. Without that, a
    /// node that led an earlier term would take itself for the leader of what came after, and a tail of an earlier term
    /// that others have replaced would be in the way. Changes nothing where raft took the entry in.
    pub(crate) async fn follow_leader_of(&mut self, id: &LogIdOf<C>) -> io::Result<()> {
        let last = self.get_log_state().await?.last_log_id;
        if last.is_some_and(|last| last < *id && last.index >= id.index) {
            self.log.truncate_after(id.index.checked_sub(1)).await?;
        }
        let vote = VoteOf::<C>::new_committed(id.leader_id.term, id.leader_id.node_id);
        match self.read_vote().await? {
            Some(known) if known >= vote => Ok(()),
            _ => self.save_vote(&vote).await,
        }
    }
}

fn encode<T: Serialize>(value: &T) -> Bytes {
    codec::encode(value).into()
}

fn decode<T: DeserializeOwned, const LIMIT: usize>(what: &str, bytes: &[u8]) -> io::Result<T> {
    codec::decode::<T, LIMIT>(bytes).map_err(|error| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{what} in the log cannot be read: {error}"))
    })
}

impl<C: Cfg, L: LogStore> GroupLog<C, L> {
    async fn entries(&self, from: u64, to: u64, max_bytes: usize) -> io::Result<Vec<EntryOf<C>>> {
        let stored = self.log.read(from, to, max_bytes).await?;
        stored.iter().map(|(_, bytes)| decode::<EntryOf<C>, MAX_ENTRY>("an entry", bytes)).collect()
    }
}

impl<C: Cfg, L: LogStore> RaftLogReader<C> for GroupLog<C, L> {
    async fn try_get_log_entries<R>(&mut self, range: R) -> io::Result<Vec<EntryOf<C>>>
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let from = match range.start_bound() {
            Bound::Included(from) => *from,
            Bound::Excluded(from) => from + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(to) => to + 1,
            Bound::Excluded(to) => *to,
            Bound::Unbounded => u64::MAX,
        };
        self.entries(from, to, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<EntryOf<C>>> {
        let entries = guard::caught("what reads entries for a follower", async {
            fail::try_at::<C>(Point::Read).await?;
            self.entries(start, end, READ_BYTES).await
        });
        let entries = entries.await?;
        // What was purged under a replication that is being stopped leaves a hole before the rest. openraft sends
        // what it gets as following what it sent before; of nothing it makes a heartbeat.
        let follows = entries.first().is_none_or(|first| first.log_id().index == start);
        Ok(if follows { entries } else { Vec::new() })
    }

    async fn read_vote(&mut self) -> io::Result<Option<VoteOf<C>>> {
        self.log.vote().map(|bytes| decode::<VoteOf<C>, MAX_SMALL>("the vote", &bytes)).transpose()
    }
}

impl<C: Cfg, L: LogStore> RaftLogStorage<C> for GroupLog<C, L> {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<C>> {
        let purged: Option<LogIdOf<C>> = self
            .log
            .purged()
            .map(|(_, bytes)| decode::<_, MAX_SMALL>("the purged log id", &bytes))
            .transpose()?;
        let last = match self.log.last_index() {
            Some(index) => {
                self.entries(index, index + 1, usize::MAX).await?.pop().map(|entry| entry.log_id())
            }
            None => purged,
        };
        Ok(LogState { last_purged_log_id: purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<C>) -> io::Result<()> {
        fail::try_at::<C>(Point::Vote).await?;
        self.log.save_vote(encode(vote)).await?;
        fail::try_at::<C>(Point::Voted).await
    }

    async fn save_committed(&mut self, committed: Option<LogIdOf<C>>) -> io::Result<()> {
        fail::try_at::<C>(Point::Committed).await?;
        self.log.save_committed(encode(&committed)).await
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogIdOf<C>>> {
        match self.log.committed() {
            Some(bytes) => decode::<Option<LogIdOf<C>>, MAX_SMALL>("the committed log id", &bytes),
            None => Ok(None),
        }
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<C>) -> io::Result<()>
    where
        I: IntoIterator<Item = EntryOf<C>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().map(|entry| (entry.log_id().index, encode(&entry))).collect();
        fail::try_at::<C>(Point::Append).await?;
        self.log.append(entries, Box::new(move |result| callback.io_completed(result))).await?;
        fail::try_at::<C>(Point::Appended).await
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf<C>>) -> io::Result<()> {
        fail::try_at::<C>(Point::Truncate).await?;
        self.log.truncate_after(last.map(|id| id.index)).await?;
        fail::try_at::<C>(Point::Truncated).await
    }

    async fn purge(&mut self, upto: LogIdOf<C>) -> io::Result<()> {
        fail::try_at::<C>(Point::Purge).await?;
        self.log.purge(upto.index, encode(&upto)).await?;
        fail::try_at::<C>(Point::Purged).await
    }
}
