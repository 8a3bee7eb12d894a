//! What comes in from other nodes: each frame to the part that it is for. Answers, decides nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::channel::mpsc;
use futures::lock::Mutex;
use openraft::alias::{InstantOf, SnapshotOf};
use openraft::raft::{AppendEntriesRequest, SnapshotResponse, TransferLeaderRequest, VoteRequest};
use openraft::type_config::TypeConfigExt;
use reveille_protocol::canary::{Canary, canary};
use reveille_protocol::fail_point::{Point, pass, try_pass};
use reveille_protocol::id::*;
use reveille_protocol::service_list::Command;
use reveille_protocol::wire::codec;
use reveille_protocol::wire::peer::{Notified, Report, Reported, SessionMessage};
use serde::Serialize;

use super::{Group, Member};
use crate::admission::Admit;
use crate::env::{Env, Transport};
use crate::host::Taken;
use crate::link::Lane;
use crate::propose::Outcome;
use crate::pull::Pull;
use crate::query::{Answer, MAX_WAIT, MessageView, Query};
use crate::raft::machine::SnapshotData;
use crate::raft::network::{Chunk, ChunkAnswer, MAX_MESSAGE, envelope, open};
use crate::rpc::{Frame, Method};
use crate::shape::Step;
use crate::tables::{Installer, Tables};
use crate::{fail, guard};

/// Appends of one stream that wait for raft: the sender's pipeline, twice over for a stream that was replaced.
const APPENDS: usize = 128;

/// A leader knows within this whether it is one still, and has applied what it must to answer; else whoever asked asks
/// again. openraft waits for its own answer from a majority no longer than a lease, but for the apply without an end.
const CONFIRMED: Duration = Duration::from_millis(600);

/// Appends are answered within a sync of the disk. What takes longer is no harm but a line in the log.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// A snapshot of which nothing came for so long has been given up: longer than its sender goes on trying.
const ABANDONED: Duration = Duration::from_secs(120);

/// Streams of appends and snapshots from the peers; the latest of each peer and group counts.
pub(super) struct Streams<E: Env> {
    appends: BTreeMap<(NodeId, GroupId), (u64, Appends<E>)>,
    snapshots: BTreeMap<(NodeId, GroupId), Transfer<E>>,
    /// Held by each stream of appends until its last answer is out.
    answering: Arc<()>,
}

/// Its name, and how far it is.
type Transfer<E> = (u64, Arc<Mutex<Incoming<E>>>);

type Appends<E> = mpsc::Sender<AppendEntriesRequest<<E as Env>::Cfg>>;

struct Incoming<E: Env> {
    used: InstantOf<E::Cfg>,
    next: u64,
    /// None once it has failed or is installed.
    installer: Option<<E::Tables as Tables>::Installer>,
    installed: Option<SnapshotResponse<E::Cfg>>,
}

impl<E: Env> Default for Streams<E> {
    fn default() -> Self {
        Streams { appends: BTreeMap::new(), snapshots: BTreeMap::new(), answering: Arc::default() }
    }
}

impl<E: Env> Member<E> {
    /// A frame came in. Never blocks: what takes time gets a task.
    pub fn received(self: &Arc<Self>, from: NodeId, lane: Lane, frame: Bytes) {
        guard::within(&*self.shared.host, "what a peer sent", || self.take(from, lane, frame));
    }

    fn take(self: &Arc<Self>, from: NodeId, lane: Lane, frame: Bytes) {
        self.heard_of(from);
        match Frame::decode(frame) {
            Some(Frame::Response { id, body }) => self.shared.calls.answered(from, id, body),
            Some(Frame::Append { group, stream, body }) => self.append(from, group, stream, body),
            Some(Frame::Appended { stream, body, .. }) => self.streams.answered(from, stream, body),
            Some(Frame::Session(body)) => self.session_message(from, &body),
            Some(Frame::Clock(wall)) => self.shared.clocks.heard(from, wall),
            Some(Frame::Hears(nodes)) => self.told_whom_it_hears(from, nodes),
            // Queued here, in the order of the link: a command that is tried again must not overtake its first copy.
            Some(Frame::Request { id, method: Method::Propose, body }) => {
                let Some(outcome) = self.proposed(&body) else { return };
                let body = async move { Some(codec::encode(&outcome.await).into()) };
                self.respond(from, lane, id, body);
            }
            // Groups that have stopped, or are about to, answer as those of a node that has gone; but whoever asks something
            // of them need not wait to go elsewhere.
            Some(Frame::Request { id, method: Method::Query, .. }) if self.is_stopping() => {
                self.respond(from, lane, id, async { Some(codec::encode(&Answer::NotLeader(None)).into()) });
            }
            Some(Frame::Request { .. }) if self.is_stopping() => {}
            Some(Frame::Request { id, method, body }) => {
                let member = self.clone();
                self.respond(from, lane, id, async move { member.answer(from, method, body).await });
            }
            None => tracing::warn!(node = from.0, "a peer sent a frame that this version does not know"),
        }
    }

    /// Sends what `body` comes to, unless that is nothing.
    fn respond(
        self: &Arc<Self>,
        to: NodeId,
        lane: Lane,
        id: u64,
        body: impl Future<Output = Option<Bytes>> + Send + 'static,
    ) {
        let member = self.clone();
        guard::spawn::<E>(self.shared.host.clone(), "an answer to a peer", async move {
            if let Some(body) = body.await {
                fail::at::<E::Cfg>(Point::Answer).await;
                // Lost with the link: the caller learns of the break by itself.
                let response = Frame::Response { id, body }.encode();
                let _ = member.shared.calls.transport().send(to, lane, response);
            }
        });
    }

    fn proposed(&self, body: &[u8]) -> Option<impl Future<Output = Outcome> + Send + use<E>> {
        let (group, command) = open::<Command>(body)?;
        self.propose_here(group, command)
    }

    /// A link is there: what the peer's wall clock says must be known before its vote counts, and what it was to do as an
    /// anchor it is told again.
    pub fn link_up(&self, peer: NodeId, lane: Lane) {
        guard::within(&*self.shared.host, "a new link", || self.linked(peer, lane));
    }

    fn linked(&self, peer: NodeId, lane: Lane) {
        if lane == Lane::Data {
            for Group { shard, .. } in self.groups.values() {
                shard.linked(peer);
            }
        }
        if lane == Lane::Control {
            let frame = Frame::Clock(self.shared.clocks.wall()).encode();
            // The link broke again: the next one begins with it.
            let _ = self.shared.calls.transport().send(peer, Lane::Control, frame);
        }
    }

    /// A link broke.
    pub fn link_down(&self, peer: NodeId, lane: Lane) {
        guard::within(&*self.shared.host, "the end of a link", || self.unlinked(peer, lane));
    }

    fn unlinked(&self, peer: NodeId, lane: Lane) {
        self.shared.calls.broken(peer, lane);
        if lane == Lane::Control {
            self.peer_lost(peer);
        }
        if lane == Lane::Data {
            self.streams.broken(peer);
            let mut streams = self.inbound.lock().unwrap_or_else(PoisonError::into_inner);
            streams.appends.retain(|(from, _), _| *from != peer);
        }
    }

    fn append(self: &Arc<Self>, from: NodeId, group: GroupId, stream: u64, body: Bytes) {
        let Ok(request) = codec::decode::<AppendEntriesRequest<E::Cfg>, MAX_MESSAGE>(&body) else {
            tracing::warn!(node = from.0, group = group.0, "an append from a peer cannot be read");
            return;
        };
        let mut streams = self.inbound.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_stopping() {
            return;
        }
        let known = streams.appends.get_mut(&(from, group)).filter(|(known, _)| *known == stream);
        let refused = match known {
            // A stream that raft has ended, or that is further behind than its sender may be: it begins anew.
            Some((_, requests)) => requests.try_send(request).is_err(),
            None => {
                let Some(raft) = self.groups.get(&group).map(|group| group.raft.clone()) else { return };
                let (mut requests, incoming) = mpsc::channel(APPENDS);
                // The channel is new and empty.
                let refused = requests.try_send(request).is_err();
                streams.appends.insert((from, group), (stream, requests));
                let (member, answering) = (self.clone(), streams.answering.clone());
                guard::spawn::<E>(self.shared.host.clone(), "a stream of appends", async move {
                    let _answering = answering;
                    let mut answers = std::pin::pin!(raft.stream_append(incoming));
                    while let Some(Ok(answer)) = answers.next().await {
                        if fail::try_at::<E::Cfg>(Point::AppendAnswer).await.is_err() {
                            break;
                        }
                        let body = codec::encode(&answer).into();
                        let frame = Frame::Appended { group, stream, body }.encode();
                        if member.shared.calls.transport().send(from, Lane::Data, frame).is_err() {
                            break;
                        }
                    }
                });
                refused
            }
        };
        if refused {
            streams.appends.remove(&(from, group));
        }
    }

    /// Waits until raft has answered the appends that it has: it takes a stop in between for an error. No more come in.
    pub(super) async fn end_appends(&self) {
        let answering = {
            let mut streams = self.inbound.lock().unwrap_or_else(PoisonError::into_inner);
            streams.appends.clear();
            Arc::downgrade(&streams.answering)
        };
        let until = E::Cfg::now() + LAST_ANSWERS;
        // One is this node's own.
        while answering.strong_count() > 1 && E::Cfg::now() < until {
            E::Cfg::sleep(Duration::from_millis(5)).await;
        }
    }

    fn session_message(self: &Arc<Self>, from: NodeId, body: &[u8]) {
        match SessionMessage::decode(body) {
            Ok(SessionMessage::Report(report)) => {
                if let Some(group) = self.groups.get(&report.group) {
                    group.shard.reported(from, report);
                }
            }
            Ok(SessionMessage::Notify(order)) => {
                if try_pass(Point::RingAccept).is_err() || !self.shared.host.notify(order.clone()) {
                    self.notified(&order, Notified::NotTried);
                }
            }
            Ok(message) => self.to_session(from, message),
            Err(error) => {
                tracing::warn!(node = from.0, %error, "a session message from a peer cannot be read")
            }
        }
    }

    /// For a session of this node; if there is none, the leader learns so.
    fn to_session(&self, from: NodeId, message: SessionMessage) {
        let session = message.session();
        if try_pass(Point::Accept).is_err() {
            return;
        }
        let taken = self.shared.host.session(message);
        pass(Point::Accepted);
        if taken != Taken::NoSession {
            return;
        }
        if let Some((group, terminal, epoch)) = session {
            let what = Reported::NoSuchSession { incarnation: self.incarnation() };
            let report = SessionMessage::Report(Report { group, terminal, epoch, what });
            let frame = Frame::Session(report.encode().into()).encode();
            // Lost: the leader's silence timer asks again.
            let _ = self.shared.calls.transport().send(from, Lane::Data, frame);
        }
    }

    async fn answer(self: &Arc<Self>, from: NodeId, method: Method, body: Bytes) -> Option<Bytes> {
        fn told<T: Serialize, X>(result: Result<T, X>) -> Option<Bytes> {
            // A group that stopped gives no answer, as a node that stopped would.
            result.ok().map(|value| codec::encode(&value).into())
        }
        match method {
            Method::Vote => {
                let (group, request) = open::<VoteRequest<E::Cfg>>(&body)?;
                told(self.groups.get(&group)?.raft.vote(request).await)
            }
            Method::PreVote => {
                let (group, request) = open::<VoteRequest<E::Cfg>>(&body)?;
                told(self.groups.get(&group)?.raft.pre_vote(request).await)
            }
            Method::Append => {
                let (group, request) = open::<AppendEntriesRequest<E::Cfg>>(&body)?;
                told(self.groups.get(&group)?.raft.append_entries(request).await)
            }
            Method::TransferLeader => {
                let (group, request) = open::<TransferLeaderRequest<E::Cfg>>(&body)?;
                told(self.groups.get(&group)?.raft.handle_transfer_leader(request).await)
            }
            Method::Snapshot => {
                let answer = self.snapshot_chunk(from, &body).await;
                Some(codec::encode(&answer.unwrap_or_else(ChunkAnswer::Broken)).into())
            }
            Method::Reshape => {
                let (group, (since, step)) = open::<(u64, Step)>(&body)?;
                Some(codec::encode(&self.step_here(group, since, step).await).into())
            }
            Method::Admit => {
                let (_, request) = open::<Admit>(&body)?;
                Some(codec::encode(&self.admit(request).await).into())
            }
            Method::Pull => {
                let pull = codec::decode::<Pull, MAX_MESSAGE>(&body).ok()?;
                Some(codec::encode(&self.give(from, pull).await).into())
            }
            // Taken out before, where the order counts.
            Method::Propose => Some(codec::encode(&self.proposed(&body)?.await).into()),
            Method::Query => {
                let (group, query) = open::<Query>(&body)?;
                Some(codec::encode(&self.answer_here(group, query).await).into())
            }
        }
    }

    /// Takes one chunk of a peer's snapshot; the last one installs it.
    async fn snapshot_chunk(&self, from: NodeId, body: &[u8]) -> Result<ChunkAnswer<E::Cfg>, String> {
        fail::try_at::<E::Cfg>(Point::SnapshotTake).await.map_err(|error| error.to_string())?;
        let chunk = codec::decode::<Chunk<E::Cfg>, MAX_MESSAGE>(body).map_err(|error| error.to_string())?;
        let group = GroupId(chunk.group);
        let known = self.groups.get(&group).ok_or_else(|| format!("group {group} is not on this node"))?;
        let incoming = {
            let mut streams = self.inbound.lock().unwrap_or_else(PoisonError::into_inner);
            match streams.snapshots.get(&(from, group)) {
                Some((transfer, incoming)) if *transfer == chunk.transfer => incoming.clone(),
                _ => {
                    let installer = known.shard.tables().installer().map_err(|error| error.to_string())?;
                    let incoming = Arc::new(Mutex::new(Incoming {
                        used: E::Cfg::now(),
                        next: 0,
                        installer: Some(installer),
                        installed: None,
                    }));
                    streams.snapshots.insert((from, group), (chunk.transfer, incoming.clone()));
                    incoming
                }
            }
        };
        // A chunk that is sent again while its first copy is being written waits for that.
        let mut incoming = incoming.lock().await;
        incoming.used = E::Cfg::now();
        if chunk.number + 1 == incoming.next {
            // Its answer was lost.
            match (&chunk.last, &incoming.installed) {
                (None, _) => return Ok(ChunkAnswer::Next),
                (Some(_), Some(installed)) => return Ok(ChunkAnswer::Done(installed.clone())),
                (Some(_), None) => {}
            }
        }
        if chunk.number != incoming.next {
            return Err(format!("chunk {} came where {} was due", chunk.number, incoming.next));
        }
        let mut installer = incoming.installer.take().ok_or("this transfer has ended")?;
        let mut pairs = chunk.pairs;
        if canary(Canary::SnapshotLosesRow) {
            pairs.pop();
        }
        installer.push(pairs).await.map_err(|error| error.to_string())?;
        incoming.next += 1;
        let Some((vote, meta)) = chunk.last else {
            incoming.installer = Some(installer);
            return Ok(ChunkAnswer::Next);
        };
        let snapshot = SnapshotOf::<E::Cfg, _> { meta, snapshot: SnapshotData::Staged(installer) };
        let installed = known.raft.install_full_snapshot(vote, snapshot).await;
        let installed = installed.map_err(|error| error.to_string())?;
        incoming.installed = Some(installed.clone());
        Ok(ChunkAnswer::Done(installed))
    }

    /// Lets go what nobody sends on any more.
    pub(super) fn prune_snapshots(&self) {
        let mut streams = self.inbound.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = |incoming: &Incoming<E>| E::Cfg::now() - incoming.used >= ABANDONED;
        // One that is being written is locked.
        streams
            .snapshots
            .retain(|_, (_, incoming)| incoming.try_lock().is_none_or(|incoming| !idle(&incoming)));
    }

    /// Answers a query as the shard's leader, or says who that is.
    pub(super) async fn answer_here(&self, group: GroupId, query: Query) -> Answer {
        let Some(known) = self.groups.get(&group) else { return Answer::NotLeader(None) };
        // A leader that was deposed without knowing would answer with the past.
        let confirmed = known.raft.ensure_linearizable(openraft::ReadPolicy::ReadIndex);
        let Ok(Ok(read)) = E::Cfg::timeout(CONFIRMED, confirmed).await else {
            return Answer::NotLeader(self.leader_elsewhere(group));
        };
        if query == Query::Shape {
            let shape = self.shape_here(group).map(|mut shape| {
                // What is told of the leader is a step behind; all that was acknowledged counts.
                shape.last = shape.last.max(read.index());
                Answer::Shape(Box::new(shape))
            });
            return shape.unwrap_or_else(|| Answer::NotLeader(self.leader_elsewhere(group)));
        }
        let shard = &known.shard;
        if let Query::Message { message, wait, .. } = &query
            && *wait > 0
        {
            let Some(mut waiting) = shard.wait_for(*message) else { return Answer::Unavailable };
            // Only after the waiter stands: an end between the look and the wait would be missed.
            if let Answer::Message(Some(MessageView { end: None, .. })) = shard.read(&query) {
                let wait = Duration::from_millis(*wait).min(MAX_WAIT);
                // Ended or too late: what the tables say now is the answer in both cases. But a new leader's tables may be
                // ahead of those here.
                if matches!(E::Cfg::timeout(wait, waiting.end()).await, Ok(false)) {
                    return Answer::NotLeader(self.leader_elsewhere(group));
                }
            }
        }
        shard.read(&query)
    }

    fn leader_elsewhere(&self, group: GroupId) -> Option<NodeId> {
        self.leader(group).filter(|leader| *leader != self.config.node)
    }

    /// Sends a session's report to the leader of its group.
    pub fn report(self: &Arc<Self>, report: Report) {
        guard::within(&*self.shared.host, "a session's report", || self.pass_on(report));
    }

    fn pass_on(self: &Arc<Self>, report: Report) {
        let Some(group) = self.groups.get(&report.group) else { return };
        match self.whereabouts(report.group, 0) {
            Some(leader) if leader == self.config.node => group.shard.reported(leader, report),
            Some(leader) => {
                let frame = Frame::Session(SessionMessage::Report(report).encode().into()).encode();
                // Lost: the leader's silence timer repairs it.
                let _ = self.shared.calls.transport().send(leader, Lane::Data, frame);
            }
            None => {}
        }
    }

    pub(super) fn forward<T: Serialize>(group: GroupId, message: &T) -> Bytes {
        envelope(group, message)
    }
}
