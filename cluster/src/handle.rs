//! The cluster as the node sees it: one handle, no type parameters. Opens the disks, starts the links and the
//! member on them.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use reveille_protocol::directory::Directory;
use reveille_protocol::id::*;
use reveille_protocol::service_list::{Command, Reply};
use reveille_protocol::wire::peer::Report;
use tokio::net::TcpListener;

use crate::env::Env;
use crate::host::{Host, Notified};
use crate::link::{Identity, Inbound, Lane, LinkConfig, Links};
use crate::member::{GroupStorage, Member, MemberConfig, Unavailable};
use crate::query::{Answer, Query};
use crate::raft::types::Tokio;
use crate::status::Status;
use crate::tables::{FjallTables, Store, StoreConfig, StoreError};
use crate::wal::disk::RealDisk;
use crate::wal::{Owner, Wal, WalConfig, WalError, WalGroup};

/// Production: tokio, a log and tables on disk, TLS links.
pub struct Production;

impl Env for Production {
    type Cfg = Tokio;
    type Log = WalGroup;
    type Tables = FjallTables;
    type Transport = Links;
}

/// What a node's part of the cluster needs.
pub struct ClusterConfig {
    /// Who it is and whom it belongs to.
    pub member: MemberConfig,
    /// Folder of the log and the tables.
    pub data: PathBuf,
    /// Make the folder's contents; refused where there are some. Without it, missing ones are refused.
    pub create: bool,
    /// Bytes of a log segment.
    pub segment_bytes: usize,
    /// Bytes of the tables' block cache.
    pub cache_bytes: u64,
    /// Bytes of one group's overlay.
    pub overlay_bytes: usize,
    /// Where peers reach this node; bound by the caller.
    pub listener: TcpListener,
    /// Its certificate.
    pub identity: Identity,
}

/// The node cannot take part in the cluster.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The log.
    #[error(transparent)]
    Log(#[from] WalError),
    /// The tables.
    #[error(transparent)]
    Tables(#[from] StoreError),
    /// A folder or a group.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// No incarnation in time.
    #[error("no incarnation from the meta group: {0}; are a majority of the nodes running and reachable?")]
    Join(Unavailable),
}

/// A node's part of the cluster, running.
#[derive(Clone)]
pub struct ClusterHandle {
    member: Arc<Member<Production>>,
    links: Links,
    wal: Arc<Wal>,
}

/// Frames that come in before the member is there are dropped: raft repeats them.
struct ToMember(OnceLock<Weak<Member<Production>>>);

impl ToMember {
    fn member(&self) -> Option<Arc<Member<Production>>> {
        self.0.get()?.upgrade()
    }
}

impl Inbound for ToMember {
    fn frame(&self, from: NodeId, lane: Lane, frame: Bytes) {
        if let Some(member) = self.member() {
            member.received(from, lane, frame);
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
        if let Some(member) = self.member() {
            member.link_down(peer, lane);
        }
    }
}

impl ClusterHandle {
    /// Opens the folder, starts links and groups, and waits until this node has its incarnation. Must be called on
    /// the runtime that shall carry raft.
    pub async fn start(config: ClusterConfig, host: Arc<dyn Host>) -> Result<ClusterHandle, StartError> {
        let ClusterConfig { member, data, create, .. } = config;
        let groups = member.groups + 1;
        let owner = Owner { cluster: member.cluster, node: member.node.0 };
        let log = || -> Result<Wal, StartError> {
            let disk = RealDisk::open(&data.join("log"))?;
            let wal =
                WalConfig { create, segment_bytes: config.segment_bytes, ..WalConfig::new(owner, groups) };
            Ok(Wal::open(Arc::new(disk), wal)?)
        };
        let tables = || {
            let (cache_bytes, overlay_bytes) = (config.cache_bytes, config.overlay_bytes);
            Store::open(
                &data.join("tables"),
                &StoreConfig { owner, groups, create, cache_bytes, overlay_bytes },
            )
        };
        // The log says that the folder was made, so it is made last; and where it should be, it is looked for first.
        let (wal, store) = if create {
            let store = tables()?;
            (log()?, store)
        } else {
            (log()?, tables()?)
        };
        let wal = Arc::new(wal);
        let log = Arc::downgrade(&wal);
        store.keep_behind(move || match log.upgrade() {
            Some(log) => log.barrier(),
            None => Err(io::Error::other("the log is closed")),
        });
        let mut storage = BTreeMap::new();
        for group in 0..groups {
            if let Some(log) = wal.group(group) {
                storage.insert(GroupId(group), GroupStorage { log, tables: store.group(group)? });
            }
        }
        let inbound = Arc::new(ToMember(OnceLock::new()));
        let links = LinkConfig {
            node: member.node,
            cluster: member.cluster,
            peers: member.voters.clone().into_iter().filter(|(id, _)| *id != member.node).collect(),
            identity: config.identity,
        };
        let links = Links::start(links, config.listener, inbound.clone());
        let member = Member::<Production>::start(member, storage, links.clone(), host).await?;
        inbound.0.get_or_init(|| Arc::downgrade(&member));
        member.initialise().await?;
        member.join().await.map_err(StartError::Join)?;
        Ok(ClusterHandle { member, links, wal })
    }

    /// The group that keeps a terminal.
    pub fn group_of(&self, terminal: &TerminalId) -> GroupId {
        self.member.group_of(terminal)
    }

    /// Every shard group.
    pub fn shards(&self) -> impl Iterator<Item = GroupId> + use<> {
        (1..=self.member.config.groups).map(GroupId)
    }

    /// Proposes a command and waits for what it comes to; see [`Member::propose`].
    pub async fn propose(
        &self,
        group: GroupId,
        command: Command,
        deadline: Duration,
    ) -> Result<Reply, Unavailable> {
        self.member.propose(group, command, deadline).await
    }

    /// Asks a group's leader; see [`Member::query`].
    pub async fn query(
        &self,
        group: GroupId,
        query: Query,
        deadline: Duration,
    ) -> Result<Answer, Unavailable> {
        self.member.query(group, query, deadline).await
    }

    /// Tells a shard's leader about a session.
    pub fn report(&self, report: Report) {
        self.member.report(report);
    }

    /// A notification that this node's shard ordered is over.
    pub fn notified(&self, group: GroupId, terminal: TerminalId, notified: Notified) {
        self.member.notified(group, terminal, notified);
    }

    /// This node's incarnation; zero while it has none.
    pub fn incarnation(&self) -> Incarnation {
        self.member.incarnation()
    }

    /// The directory as this node last saw it.
    pub fn directory(&self) -> Arc<Directory> {
        self.member.directory()
    }

    /// How this node's groups stand.
    pub fn status(&self) -> Status {
        self.member.status()
    }

    /// New links show this certificate from now on.
    pub fn set_identity(&self, identity: Identity) {
        self.links.set_identity(identity);
    }

    /// Why this node cannot serve now; `None` if it can.
    pub fn unready(&self) -> Option<String> {
        if let Some(why) = self.wal.failed() {
            return Some(why);
        }
        let leaderless = self.member.leaderless();
        if !leaderless.is_empty() {
            let groups: Vec<String> = leaderless.iter().map(ToString::to_string).collect();
            let groups = groups.join(", ");
            return Some(format!(
                "no leader is known for group {groups}; are a majority of the nodes running?"
            ));
        }
        let fenced = self.member.incarnation() == Incarnation(0);
        fenced.then(|| "this node has no incarnation: it is starting, or was marked down".to_owned())
    }

    /// Lets others lead, then stops the groups and the links. What was acknowledged is on disk already.
    pub async fn shutdown(&self) {
        self.member.hand_over().await;
        self.member.shutdown().await;
        self.links.shutdown();
    }
}
