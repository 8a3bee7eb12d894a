//! A node on its way into the cluster: what comes in before its member is there, being let in, and tables that must be a
//! peer's before raft sees them. The same in production and in simulation; the disks and the sockets are the caller's.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use bytes::Bytes;
use reveille_protocol::directory::FORMAT;
use reveille_protocol::fail_point::Point;
use reveille_protocol::id::*;
use reveille_protocol::wire::codec;

use crate::admission::{self, Admit, Admitted, NotAdmitted};
use crate::env::{Env, Transport};
use crate::fail;
use crate::handle::StartError;
use crate::host::Host;
use crate::link::{Inbound, Lane, TurnedAway};
use crate::member::{GroupStorage, Member, MemberConfig, START_PATIENCE, was_removed};
use crate::pull;
use crate::raft::log::{GroupLog, LogStore};
use crate::raft::machine;
use crate::raft::network::ChunkAnswer;
use crate::rpc::{Calls, Frame, Method};
use crate::tables::Tables;

/// What comes in. Before the member is there, only questions and answers of admission; raft repeats the rest.
pub struct Door<E: Env> {
    member: OnceLock<Weak<Member<E>>>,
    calls: OnceLock<Arc<Calls<E>>>,
    host: Arc<dyn Host>,
    me: NodeId,
    /// This node is one of the first and has no data yet: as far as it knows there is no cluster.
    new: bool,
    /// Who wants to send a snapshot, and has no answer yet: it would wait for one for half a minute.
    snapshots: Mutex<Vec<(NodeId, Lane, u64)>>,
}

/// So many of those are remembered: a peer sends one of each group that it leads.
const SNAPSHOTS: usize = 256;

impl<E: Env> Door<E> {
    /// Of a node; `new`: one of the first, without data yet.
    pub fn new(me: NodeId, host: Arc<dyn Host>, new: bool) -> Arc<Door<E>> {
        let snapshots = Mutex::default();
        Arc::new(Door { member: OnceLock::new(), calls: OnceLock::new(), host, me, new, snapshots })
    }

    /// From now on this node can ask, by this transport. `boot`: random for each process.
    pub fn open(self: Arc<Self>, transport: E::Transport, boot: u64) -> Entrance<E> {
        let calls = self.calls.get_or_init(|| Arc::new(Calls::new(transport, boot))).clone();
        Entrance { door: self, calls }
    }

    fn member(&self) -> Option<Arc<Member<E>>> {
        self.member.get()?.upgrade()
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<(NodeId, Lane, u64)>> {
        self.snapshots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The member is there: whoever wanted to send a snapshot may see what it needs now.
    fn tell_waiting(&self, calls: &Calls<E>) {
        for (from, lane, id) in std::mem::take(&mut *self.waiting()) {
            let answer = ChunkAnswer::<E::Cfg>::Broken("this node has only started now".to_owned());
            let body = codec::encode(&answer).into();
            // Lost with the link: then its sender knows of that.
            let _ = calls.transport().send(from, lane, Frame::Response { id, body }.encode());
        }
    }
}

impl<E: Env> Inbound for Door<E> {
    fn frame(&self, from: NodeId, lane: Lane, frame: Bytes) {
        if let Some(member) = self.member() {
            return member.received(from, lane, frame);
        }
        let Some(calls) = self.calls.get() else { return };
        match Frame::decode(frame) {
            Some(Frame::Response { id, body }) => calls.answered(from, id, body),
            Some(Frame::Request { id, method: Method::Admit, .. }) if self.new => {
                let body = codec::encode(&Admitted::NoCluster).into();
                // Lost with the link: it is asked again.
                let _ = calls.transport().send(from, lane, Frame::Response { id, body }.encode());
            }
            Some(Frame::Request { id, method: Method::Snapshot, .. }) => {
                let mut waiting = self.waiting();
                if waiting.len() < SNAPSHOTS {
                    waiting.push((from, lane, id));
                }
                drop(waiting);
                // It may have come meanwhile.
                if self.member.get().is_some() {
                    self.tell_waiting(calls);
                }
            }
            _ => {}
        }
    }

    fn up(&self, peer: NodeId, lane: Lane) {
        tracing::debug!(node = peer.0, ?lane, "link is up");
        if let Some(member) = self.member() {
            member.link_up(peer, lane);
        }
    }

    fn down(&self, peer: NodeId, lane: Lane) {
        tracing::debug!(node = peer.0, ?lane, "link is down");
        match (self.member(), self.calls.get()) {
            (Some(member), _) => member.link_down(peer, lane),
            // Who starts need not wait for answers that cannot come any more.
            (None, Some(calls)) => calls.broken(peer, lane),
            (None, None) => {}
        }
    }

    fn panicked(&self, why: String) {
        self.host.failed(why);
    }

    fn turned_away(&self, peer: NodeId, why: TurnedAway) {
        let why = match why {
            TurnedAway::NotMember => was_removed(self.me),
            TurnedAway::Old => format!(
                "this build is too old: the cluster has left format {FORMAT}, the latest that it knows, behind. Install the \
                 version that the other nodes run"
            ),
        };
        self.host.dismissed(format!("{why} (says node {peer})"));
    }
}

/// Tables that lack what their log holds no more.
pub struct Behind {
    /// The last entry that they have taken in.
    applied: Option<u64>,
    /// The last that the log holds no more.
    purged: u64,
}

/// Must this group's tables come from a peer? They were lost, damaged or rolled back.
///
/// # Errors
/// If they cannot be read.
pub fn behind<E: Env>(GroupStorage { log, tables }: &GroupStorage<E>) -> io::Result<Option<Behind>> {
    let Some((purged, _)) = log.purged() else { return Ok(None) };
    let applied = machine::applied::<E::Cfg, _>(&tables.read())?.map(|id| id.index);
    Ok(applied.is_none_or(|applied| applied < purged).then_some(Behind { applied, purged }))
}

/// A door that can ask, and through which the member comes.
pub struct Entrance<E: Env> {
    door: Arc<Door<E>>,
    calls: Arc<Calls<E>>,
}

impl<E: Env> Entrance<E> {
    /// Asks the others to let this folder in, for a minute at most; a node with an admitted folder need not.
    pub async fn ask(
        &self,
        store: u64,
        token: Option<KeyFingerprint>,
        others: &[NodeId],
    ) -> Result<(), NotAdmitted> {
        let me = Admit { node: self.door.me, store, token };
        admission::ask(&self.calls, me, others, START_PATIENCE).await
    }

    /// Replaces tables that are [`behind`] by a peer's.
    pub async fn bring_up(
        &self,
        group: GroupId,
        of: &GroupStorage<E>,
        peers: impl Fn() -> Vec<NodeId>,
    ) -> Result<(), StartError> {
        let GroupStorage { log, tables } = of;
        if let Some(Behind { applied, purged }) = behind(of)? {
            tracing::warn!(
                group = group.0,
                ?applied,
                purged,
                "tables are behind what the log holds; asking the peers"
            );
            let rebuilt = pull::rebuild(&self.calls, (group, tables), purged, peers, START_PATIENCE).await;
            rebuilt.map_err(|why| StartError::Rebuild { group, why })?;
            fail::try_at::<E::Cfg>(Point::Pulled).await?;
        }
        // Always: an earlier start may have ended right here.
        let applied = machine::applied::<E::Cfg, _>(&tables.read())?;
        if let Some(id) = applied {
            GroupLog::<E::Cfg, _>::new(log.clone()).follow_leader_of(&id).await?;
        }
        Ok(())
    }

    /// The member begins, and has what comes in from now on.
    pub async fn begin(
        self,
        config: MemberConfig,
        storage: BTreeMap<GroupId, GroupStorage<E>>,
    ) -> io::Result<Arc<Member<E>>> {
        fail::try_at::<E::Cfg>(Point::Begin).await?;
        let member = Member::start_over(config, storage, self.calls.clone(), self.door.host.clone()).await?;
        self.door.member.get_or_init(|| Arc::downgrade(&member));
        self.door.tell_waiting(&self.calls);
        Ok(member)
    }
}
