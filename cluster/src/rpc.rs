//! Requests and answers over one-way frames: correlation, deadlines, and what a broken link means for those who
//! wait. No sockets, and no meaning of the bodies beyond their kind.
//!
//! Frame: `kind u8 | ...`. Request: `id u64 | method u8 | body`. Response: `id u64 | body`. Append and its
//! answer: `group u16 | stream u64 | body`. Session: the body. Clock: `wall u64`. Hears: `node u64` each. Integers
//! are little endian.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::channel::oneshot;
use openraft::type_config::TypeConfigExt;
use reveille_protocol::id::{GroupId, NodeId};

use crate::env::{Env, Transport};
use crate::link::Lane;

/// Requests of this node that may wait for answers at once: four times what all publishers may have in flight.
const MAX_WAITING: usize = 65_536;

/// What a request asks for. Pinned: sent between nodes of different versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Method {
    Vote = 1,
    PreVote = 2,
    Append = 3,
    TransferLeader = 4,
    Snapshot = 5,
    Propose = 6,
    Query = 7,
    /// Since format 2, as what follows.
    Reshape = 8,
    Admit = 9,
    Pull = 10,
}

impl Method {
    fn of(byte: u8) -> Option<Method> {
        use Method::*;
        [Vote, PreVote, Append, TransferLeader, Snapshot, Propose, Query, Reshape, Admit, Pull]
            .into_iter()
            .find(|method| *method as u8 == byte)
    }
}

/// A frame, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Wants a response with this id.
    Request { id: u64, method: Method, body: Bytes },
    /// To a request of ours.
    Response { id: u64, body: Bytes },
    /// Part of a stream of log appends.
    Append { group: GroupId, stream: u64, body: Bytes },
    /// Its answer, in order.
    Appended { group: GroupId, stream: u64, body: Bytes },
    /// Between a shard leader and a session's node.
    Session(Bytes),
    /// What the sender's wall clock says.
    Clock(u64),
    /// Since format 3: whom the sender hears.
    Hears(BTreeSet<NodeId>),
}

impl Frame {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(32 + self.body_len());
        match self {
            Frame::Request { id, method, body } => {
                out.put_u8(1);
                out.put_u64_le(*id);
                out.put_u8(*method as u8);
                out.put_slice(body);
            }
            Frame::Response { id, body } => {
                out.put_u8(2);
                out.put_u64_le(*id);
                out.put_slice(body);
            }
            Frame::Append { group, stream, body } => {
                out.put_u8(3);
                out.put_u16_le(group.0);
                out.put_u64_le(*stream);
                out.put_slice(body);
            }
            Frame::Appended { group, stream, body } => {
                out.put_u8(4);
                out.put_u16_le(group.0);
                out.put_u64_le(*stream);
                out.put_slice(body);
            }
            Frame::Session(body) => {
                out.put_u8(5);
                out.put_slice(body);
            }
            Frame::Clock(wall) => {
                out.put_u8(6);
                out.put_u64_le(*wall);
            }
            Frame::Hears(nodes) => {
                out.put_u8(7);
                nodes.iter().for_each(|node| out.put_u64_le(node.0));
            }
        }
        out.freeze()
    }

    fn body_len(&self) -> usize {
        match self {
            Frame::Request { body, .. }
            | Frame::Response { body, .. }
            | Frame::Append { body, .. }
            | Frame::Appended { body, .. }
            | Frame::Session(body) => body.len(),
            Frame::Clock(_) => 0,
            Frame::Hears(nodes) => nodes.len() * 8,
        }
    }

    /// Reads a frame; `None` if it is none of ours. The link has already bounded its length.
    pub(crate) fn decode(mut frame: Bytes) -> Option<Frame> {
        let kind = frame.try_get_u8().ok()?;
        Some(match kind {
            1 => {
                let id = frame.try_get_u64_le().ok()?;
                let method = Method::of(frame.try_get_u8().ok()?)?;
                Frame::Request { id, method, body: frame }
            }
            2 => Frame::Response { id: frame.try_get_u64_le().ok()?, body: frame },
            3 | 4 => {
                let group = GroupId(frame.try_get_u16_le().ok()?);
                let stream = frame.try_get_u64_le().ok()?;
                match kind {
                    3 => Frame::Append { group, stream, body: frame },
                    _ => Frame::Appended { group, stream, body: frame },
                }
            }
            5 => Frame::Session(frame),
            6 => Frame::Clock(frame.try_get_u64_le().ok()?),
            7 => {
                let (nodes, rest) = frame.as_chunks();
                let nodes = nodes.iter().map(|node| NodeId(u64::from_le_bytes(*node)));
                rest.is_empty().then(|| Frame::Hears(nodes.collect()))?
            }
            _ => return None,
        })
    }
}

/// Why no answer came. Whether the request was carried out is unknown in every case but the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CallError {
    /// Not sent.
    #[error("the link to node {0} is down or its queue full")]
    NotSent(NodeId),
    /// The link broke while the answer was awaited.
    #[error("the link to node {0} broke before its answer")]
    Broken(NodeId),
    /// Too late.
    #[error("no answer from node {0} in time")]
    Timeout(NodeId),
}

/// Whom a request went to, by which lane, and who waits for its answer.
type Caller = (NodeId, Lane, oneshot::Sender<Bytes>);

/// Requests of this node that wait for answers.
pub(crate) struct Calls<E: Env> {
    transport: E::Transport,
    next: AtomicU64,
    waiting: Mutex<BTreeMap<u64, Caller>>,
}

impl<E: Env> Calls<E> {
    /// `first`: random for each process. An answer may come late, over the link of the process after the one that asked; it
    /// must not pass for an answer to what that one asks.
    pub(crate) fn new(transport: E::Transport, first: u64) -> Calls<E> {
        Calls { transport, next: AtomicU64::new(first), waiting: Mutex::default() }
    }

    pub(crate) fn transport(&self) -> &E::Transport {
        &self.transport
    }

    /// A number that is used once, by this process or any of its node's.
    pub(crate) fn unique(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Asks a node and waits for its answer.
    pub(crate) async fn call(
        &self,
        to: NodeId,
        lane: Lane,
        method: Method,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, CallError> {
        let id = self.unique();
        let (answer, waiter) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.len() >= MAX_WAITING {
                return Err(CallError::NotSent(to));
            }
            waiting.insert(id, (to, lane, answer));
        }
        // Whatever way this ends, also when the caller stops waiting, the entry goes.
        let _entry = Waiting { calls: self, id };
        self.transport
            .send(to, lane, Frame::Request { id, method, body }.encode())
            .map_err(|_| CallError::NotSent(to))?;
        match E::Cfg::timeout(deadline, waiter).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(oneshot::Canceled)) => Err(CallError::Broken(to)),
            Err(_) => Err(CallError::Timeout(to)),
        }
    }

    /// An answer came.
    pub(crate) fn answered(&self, from: NodeId, id: u64, body: Bytes) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.get(&id).is_some_and(|(to, _, _)| *to == from)
            && let Some((_, _, answer)) = waiting.remove(&id)
        {
            // Nobody waits any more: nothing is lost with it.
            let _ = answer.send(body);
        }
    }

    /// A link broke: whoever waits for an answer over it learns so at once.
    pub(crate) fn broken(&self, peer: NodeId, lane: Lane) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, (to, on, _)| *to != peer || *on != lane);
    }
}

struct Waiting<'a, E: Env> {
    calls: &'a Calls<E>,
    id: u64,
}

impl<E: Env> Drop for Waiting<'_, E> {
    fn drop(&mut self) {
        self.calls.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_round_trip_and_foreign_ones_are_refused() {
        let body = Bytes::from_static(b"body");
        let frames = [
            Frame::Request { id: 7, method: Method::Query, body: body.clone() },
            Frame::Response { id: 7, body: body.clone() },
            Frame::Append { group: GroupId(3), stream: 9, body: body.clone() },
            Frame::Appended { group: GroupId(3), stream: 9, body: body.clone() },
            Frame::Session(body),
            Frame::Clock(5),
            Frame::Hears([NodeId(1), NodeId(3)].into()),
        ];
        for frame in frames {
            let bytes = frame.encode();
            assert_eq!(Frame::decode(bytes.clone()), Some(frame));
            assert_eq!(Frame::decode(Bytes::new()), None);
            assert_eq!(Frame::decode(Bytes::from(vec![99, 0, 0])), None);
        }
        assert_eq!(Frame::decode(Bytes::from_static(&[1, 0, 0])), None, "cut short");
        assert_eq!(Frame::decode(Bytes::from_static(&[7, 0, 0])), None, "cut short");
        assert_eq!(
            Frame::decode(Bytes::from_static(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 200])),
            None,
            "no such method"
        );
    }
}
