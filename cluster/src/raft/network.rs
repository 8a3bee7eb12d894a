//! openraft's network over our frames: pipelined appends on the data lane, votes and heartbeats on the control
//! lane, snapshots in chunks on the bulk lane. Encodes and correlates; decides nothing.
//!
//! A lost or late RPC is `Network` or `Timeout`, never `Unreachable`: that one makes openraft back off, and a
//! peer that came back would wait seconds for its leader.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::channel::mpsc;
use futures::{FutureExt, Stream, StreamExt};
use openraft::alias::*;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout};
use openraft::impls::BasicNode;
use openraft::network::{
    Backoff, RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2, stream_append_sequential,
};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::TypeConfigExt;
use openraft::{AnyError, OptionalSend};
use reveille_protocol::fail_point::{Point, try_pass};
use reveille_protocol::id::{GroupId, NodeId};
use reveille_protocol::wire::codec;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::machine::SnapshotData;
use super::types::Cfg;
use crate::env::{Env, Transport};
use crate::host::Host;
use crate::link::Lane;
use crate::rpc::{CallError, Calls, Frame, Method};
use crate::tables::Snapshot as _;
use crate::{fail, guard};

/// Bytes of a raft message that a decoder takes; the link allows no longer frame on the data lane.
pub(crate) const MAX_MESSAGE: usize = 8 * 1024 * 1024;
/// Append requests on the way to one peer and not yet answered; openraft's own pipeline has the same depth.
const PIPELINE: usize = 64;
/// A peer that answers none of the appends on their way for this long has its stream torn down and begun anew.
/// Much longer than a heartbeat: a slow disk must not look like a lost message.
const APPEND_SILENCE: Duration = Duration::from_secs(1);
/// A request without entries only says how far the leader has committed. It waits this long for entries that say so
/// as well: on a busy group it is never sent, which halves the messages of a lonely push. A follower that takes over
/// within that time applies a few entries more.
const COMMIT_DELAY: Duration = Duration::from_millis(10);
/// Shortest deadline for a vote or a heartbeat, whatever openraft derives from its own timing.
const CALL_DEADLINE: Duration = Duration::from_millis(100);
/// Bytes of one chunk of a snapshot.
pub(crate) const CHUNK_BYTES: usize = 256 * 1024;
/// A snapshot that was interrupted is gone on with for so long, at this interval. The view that it is read from keeps old
/// rows on the disk.
const RESUME: Duration = Duration::from_secs(60);
const RESUME_PAUSE: Duration = Duration::from_millis(300);
/// One chunk of a snapshot must be written by the peer within this: longer than its tables wait for compaction.
const CHUNK_DEADLINE: Duration = Duration::from_secs(30);

/// A chunk of a snapshot on the wire.
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub(crate) struct Chunk<C: Cfg> {
    /// The group.
    pub(crate) group: u16,
    /// Names this transfer.
    pub(crate) transfer: u64,
    /// From 0, without gaps.
    pub(crate) number: u64,
    /// Key-value pairs.
    pub(crate) pairs: Vec<(Bytes, Bytes)>,
    /// In the last chunk: what openraft must know of the snapshot.
    pub(crate) last: Option<(VoteOf<C>, SnapshotMetaOf<C>)>,
}

/// The answer to a chunk.
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub(crate) enum ChunkAnswer<C: Cfg> {
    /// Go on.
    Next,
    /// Installed, or refused by a higher vote.
    Done(SnapshotResponse<C>),
    /// The transfer cannot go on; begin again.
    Broken(String),
}

/// Where the answers to one stream of appends arrive; kept by the node, filled by its receiver.
pub(crate) type Appended = mpsc::UnboundedSender<Bytes>;

/// What a node keeps to match answers of append streams.
pub(crate) trait AppendStreams: Send + Sync + 'static {
    /// Answers for this stream go there from now on.
    fn open(&self, to: NodeId, stream: u64, answers: Appended);
    /// The stream is over.
    fn close(&self, to: NodeId, stream: u64);
}

/// Makes one group's clients.
pub(crate) struct Network<E: Env> {
    pub(crate) group: GroupId,
    pub(crate) calls: Arc<Calls<E>>,
    pub(crate) streams: Arc<dyn AppendStreams>,
    /// Ends the node if something here panics: it does so on raft's tasks, of which none is missed.
    pub(crate) host: Arc<dyn Host>,
}

/// One group's way to one peer.
pub(crate) struct Client<E: Env> {
    group: GroupId,
    target: NodeId,
    calls: Arc<Calls<E>>,
    streams: Arc<dyn AppendStreams>,
    host: Arc<dyn Host>,
    /// Sends heartbeats only: one at a time and on the control lane. As a stream each would take the place of the stream of
    /// entries at the peer, which would then take the entries before and after it out of their order.
    heartbeats: bool,
}

impl<E: Env> RaftNetworkFactory<E::Cfg> for Network<E> {
    type Network = Client<E>;

    async fn new_heartbeat_client(&mut self, target: u64, node: &BasicNode) -> Client<E> {
        Client { heartbeats: true, ..self.new_client(target, node).await }
    }

    async fn new_client(&mut self, target: u64, _node: &BasicNode) -> Client<E> {
        Client {
            group: self.group,
            target: NodeId(target),
            calls: self.calls.clone(),
            streams: self.streams.clone(),
            host: self.host.clone(),
            heartbeats: false,
        }
    }
}

/// Puts the group in front of a raft message.
pub(crate) fn envelope<T: Serialize>(group: GroupId, message: &T) -> Bytes {
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(&group.0.to_le_bytes());
    codec::encode_into(message, &mut out);
    out.into()
}

/// Takes a raft message apart again.
pub(crate) fn open<T: DeserializeOwned>(bytes: &[u8]) -> Option<(GroupId, T)> {
    let (group, message) = bytes.split_first_chunk::<2>()?;
    let message = codec::decode::<T, MAX_MESSAGE>(message).ok()?;
    Some((GroupId(u16::from_le_bytes(*group)), message))
}

fn network<C: Cfg>(error: impl std::error::Error + 'static) -> RPCError<C> {
    RPCError::Network(NetworkError::new(&AnyError::new(&error)))
}

impl<E: Env> Client<E> {
    async fn ask<Q, A>(&self, method: Method, request: &Q, option: &RPCOption) -> Result<A, RPCError<E::Cfg>>
    where
        Q: Serialize + Sync,
        A: DeserializeOwned,
    {
        let body = envelope(self.group, request);
        let deadline = option.soft_ttl().max(CALL_DEADLINE);
        let answer = self
            .calls
            .call(self.target, Lane::Control, method, body, deadline)
            .await
            .map_err(network::<E::Cfg>)?;
        codec::decode::<A, MAX_MESSAGE>(&answer).map_err(network::<E::Cfg>)
    }

    /// Sends one chunk of a snapshot, again and again: the peer keeps what it has, so that a link that breaks, or a peer
    /// that pauses, costs this chunk and not the whole.
    async fn send_chunk(&self, body: Bytes) -> Result<Bytes, CallError> {
        let until = E::Cfg::now() + RESUME;
        loop {
            let sent =
                self.calls.call(self.target, Lane::Bulk, Method::Snapshot, body.clone(), CHUNK_DEADLINE);
            match sent.await {
                Err(error) if E::Cfg::now() < until => {
                    tracing::info!(group = self.group.0, %error, "a snapshot was interrupted; going on");
                    E::Cfg::sleep(RESUME_PAUSE).await;
                }
                answer => return answer,
            }
        }
    }

    async fn send_snapshot(
        &self,
        vote: VoteOf<E::Cfg>,
        snapshot: SnapshotOf<E::Cfg, SnapshotData<E::Tables>>,
    ) -> Result<SnapshotResponse<E::Cfg>, StreamingError<E::Cfg>> {
        let failed = |error: String| StreamingError::Network(NetworkError::new(&AnyError::error(error)));
        let SnapshotData::View(mut view) = snapshot.snapshot else {
            return Err(failed("only a view of our own tables can be sent".to_owned()));
        };
        let transfer = self.calls.unique();
        let mut last = Some((vote, snapshot.meta));
        for number in 0.. {
            let pairs = view.next_chunk(CHUNK_BYTES).await.map_err(|error| failed(error.to_string()))?;
            let chunk = Chunk::<E::Cfg> {
                group: self.group.0,
                transfer,
                number,
                last: if pairs.is_none() { last.take() } else { None },
                pairs: pairs.unwrap_or_default(),
            };
            fail::try_at::<E::Cfg>(Point::SnapshotSend).await.map_err(|error| failed(error.to_string()))?;
            let answer = self.send_chunk(codec::encode(&chunk).into()).await;
            let answer = answer.map_err(|error| failed(error.to_string()))?;
            match codec::decode::<ChunkAnswer<E::Cfg>, MAX_MESSAGE>(&answer) {
                Ok(ChunkAnswer::Next) => {}
                Ok(ChunkAnswer::Done(response)) => return Ok(response),
                Ok(ChunkAnswer::Broken(why)) => return Err(failed(why)),
                Err(error) => return Err(failed(error.to_string())),
            }
        }
        Err(failed("a snapshot without an end".to_owned()))
    }
}

impl<E: Env> RaftNetworkV2<E::Cfg> for Client<E> {
    type SnapshotData = SnapshotData<E::Tables>;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<E::Cfg>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<E::Cfg>, RPCError<E::Cfg>> {
        self.ask(Method::Append, &request, &option).await
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<E::Cfg>, RPCError<E::Cfg>>>, RPCError<E::Cfg>>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<E::Cfg>> + OptionalSend + Unpin + 'static,
    {
        if self.heartbeats {
            return stream_append_sequential(self, input, option);
        }
        let stream = self.calls.unique();
        // Bounded by PIPELINE: the peer answers each request once.
        let (answers, answered) = mpsc::unbounded();
        self.streams.open(self.target, stream, answers);
        let pipeline = Pipeline::<E, S> {
            client: self,
            stream,
            input: Some(input),
            answered,
            held: None,
            on_the_way: 0,
            silence: None,
            ended: false,
        };
        Box::pin(futures::future::ready(Ok(Box::pin(pipeline) as BoxStream<'s, _>)))
    }

    async fn vote(
        &mut self,
        request: VoteRequest<E::Cfg>,
        option: RPCOption,
    ) -> Result<VoteResponse<E::Cfg>, RPCError<E::Cfg>> {
        self.ask(Method::Vote, &request, &option).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<E::Cfg>,
        option: RPCOption,
    ) -> Result<VoteResponse<E::Cfg>, RPCError<E::Cfg>> {
        self.ask(Method::PreVote, &request, &option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<E::Cfg>,
        snapshot: SnapshotOf<E::Cfg, SnapshotData<E::Tables>>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<E::Cfg>, StreamingError<E::Cfg>> {
        let send = async {
            let sent =
                guard::run(&*self.host, "what sends a snapshot", self.send_snapshot(vote, snapshot)).await;
            sent.unwrap_or_else(|| {
                Err(StreamingError::Network(NetworkError::new(&AnyError::error("it panicked"))))
            })
        };
        match E::Cfg::select2(cancel, send).await {
            openraft::async_runtime::Select2::First(closed) => Err(StreamingError::Closed(closed)),
            openraft::async_runtime::Select2::Second(answer) => answer,
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<E::Cfg>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<E::Cfg>, RPCError<E::Cfg>> {
        self.ask(Method::TransferLeader, &request, &option).await
    }

    fn backoff(&self) -> Option<Backoff> {
        None
    }
}

type Streamed<E> = Result<StreamAppendResult<<E as Env>::Cfg>, RPCError<<E as Env>::Cfg>>;

/// One stream of appends to a peer: requests go out as they come, answers come back in their order.
struct Pipeline<'s, E: Env, S> {
    client: &'s Client<E>,
    stream: u64,
    input: Option<S>,
    answered: mpsc::UnboundedReceiver<Bytes>,
    /// A request without entries, until entries follow or its time is up.
    held: Option<Held<E>>,
    on_the_way: usize,
    silence: Option<Pin<Box<SleepOf<E::Cfg>>>>,
    ended: bool,
}

struct Held<E: Env> {
    request: AppendEntriesRequest<E::Cfg>,
    due: Pin<Box<SleepOf<E::Cfg>>>,
}

impl<E: Env, S> Pipeline<'_, E, S> {
    fn send(&mut self, request: &AppendEntriesRequest<E::Cfg>) -> Result<(), CallError> {
        let frame = Frame::Append {
            group: self.client.group,
            stream: self.stream,
            body: codec::encode(request).into(),
        };
        let target = self.client.target;
        try_pass(Point::AppendSend).map_err(|_| CallError::NotSent(target))?;
        let sent = self.client.calls.transport().send(target, Lane::Data, frame.encode());
        sent.map_err(|_| CallError::NotSent(target))?;
        self.on_the_way += 1;
        Ok(())
    }

    /// Sends what is held if its time is up, or if nothing will follow it.
    fn send_held(&mut self, context: &mut Context<'_>) -> Result<(), CallError> {
        let due = match &mut self.held {
            Some(held) => self.input.is_none() || held.due.poll_unpin(context).is_ready(),
            None => false,
        };
        match self.held.take_if(|_| due) {
            Some(held) => self.send(&held.request),
            None => Ok(()),
        }
    }

    fn end<T>(&mut self, last: T) -> Poll<Option<T>> {
        self.ended = true;
        Poll::Ready(Some(last))
    }
}

impl<E: Env, S> Drop for Pipeline<'_, E, S> {
    fn drop(&mut self) {
        self.client.streams.close(self.client.target, self.stream);
    }
}

impl<E: Env, S: Unpin> Unpin for Pipeline<'_, E, S> {}

impl<E: Env, S> Stream for Pipeline<'_, E, S>
where
    S: Stream<Item = AppendEntriesRequest<E::Cfg>> + Unpin,
{
    type Item = Streamed<E>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let host = self.client.host.clone();
        guard::within(&*host, "what sends entries", || self.poll(context)).unwrap_or(Poll::Ready(None))
    }
}

impl<E: Env, S> Pipeline<'_, E, S>
where
    S: Stream<Item = AppendEntriesRequest<E::Cfg>> + Unpin,
{
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Streamed<E>>> {
        let this = self;
        if this.ended {
            return Poll::Ready(None);
        }
        while this.on_the_way < PIPELINE
            && let Some(input) = &mut this.input
        {
            match input.poll_next_unpin(context) {
                Poll::Pending => break,
                Poll::Ready(None) => this.input = None,
                Poll::Ready(Some(request)) if request.entries.is_empty() => {
                    let due = this.held.take().map(|held| held.due);
                    let due = due.unwrap_or_else(|| Box::pin(E::Cfg::sleep(COMMIT_DELAY)));
                    this.held = Some(Held { request, due });
                }
                Poll::Ready(Some(request)) => {
                    // These entries carry a later commit. openraft matches answers by log id, so that it does not miss
                    // the answer to what was held.
                    this.held = None;
                    if let Err(error) = this.send(&request) {
                        return this.end(Err(network(error)));
                    }
                }
            }
        }
        if let Err(error) = this.send_held(context) {
            return this.end(Err(network(error)));
        }
        match this.answered.poll_next_unpin(context) {
            Poll::Ready(Some(answer)) => {
                this.on_the_way = this.on_the_way.saturating_sub(1);
                this.silence = None;
                match codec::decode::<StreamAppendResult<E::Cfg>, MAX_MESSAGE>(&answer) {
                    Ok(Ok(id)) => return Poll::Ready(Some(Ok(Ok(id)))),
                    Ok(Err(refused)) => return this.end(Ok(Err(refused))),
                    Err(error) => return this.end(Err(network(error))),
                }
            }
            Poll::Ready(None) => {
                let target = this.client.target;
                return this.end(Err(network(CallError::Broken(target))));
            }
            Poll::Pending => {}
        }
        if this.on_the_way == 0 {
            this.silence = None;
            return if this.input.is_none() { Poll::Ready(None) } else { Poll::Pending };
        }
        let silence = this.silence.get_or_insert_with(|| Box::pin(E::Cfg::sleep(APPEND_SILENCE)));
        match silence.poll_unpin(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => {
                let timeout = Timeout {
                    action: RPCTypes::AppendEntries,
                    id: 0,
                    target: this.client.target.0,
                    timeout: APPEND_SILENCE,
                };
                this.end(Err(RPCError::Timeout(timeout)))
            }
        }
    }
}
