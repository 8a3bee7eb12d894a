//! The cluster as the node sees it: one handle, no type parameters. Opens the disks, starts the links and the
//! member on them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, counter};
use reveille_protocol::directory::{Change, Directory, Refused};
use reveille_protocol::id::*;
use reveille_protocol::service_list::{Command, Reply};
use reveille_protocol::wire::peer::{Notified, NotifyOrder, Report};

use crate::admission::NotAdmitted;
use crate::backup::Reading;
use crate::door::Door;
use crate::env::Env;
use crate::folder::{Account, Folder, FolderError};
use crate::ground::{self, TcpListener};
use crate::guard;
use crate::host::Host;
use crate::link::{Identity, LinkConfig, Links};
use crate::member::{GroupStorage, JoinError, Member, MemberConfig, Start, Unavailable};
use crate::overview::Overview;
use crate::query::{Answer, Query};
use crate::raft::types::Tokio;
use crate::status::Status;
use crate::tables::{FjallTables, Store, StoreConfig, StoreError, set_aside};
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
    /// Make the folder's contents if there are none. Without it, missing ones are refused.
    pub create: bool,
    /// SHA-256 of its join token, of a node that joins a cluster.
    pub join: Option<KeyFingerprint>,
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
    /// The data folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The cluster says no, or nothing.
    #[error(transparent)]
    Admission(#[from] NotAdmitted),
    /// The log.
    #[error(transparent)]
    Log(#[from] WalError),
    /// The tables.
    #[error(transparent)]
    Tables(#[from] StoreError),
    /// Tables that are of no more use, and no peer gave others.
    #[error(
        "the tables of group {group} are lost or damaged, and no peer gave others: {why}. Are the other nodes running? If they lost theirs as well, restore a backup: reveille cluster restore"
    )]
    Rebuild {
        /// Which.
        group: GroupId,
        /// Why not.
        why: String,
    },
    /// A folder or a group.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// No incarnation in time.
    #[error("this node could not begin: {0}")]
    Join(#[from] JoinError),
}

impl StartError {
    /// Would starting again end the same way, until someone has done something?
    pub fn is_final(&self) -> bool {
        match self {
            StartError::Folder(error) => !matches!(error, FolderError::Io { .. }),
            StartError::Log(error) => !matches!(error, WalError::Io { .. }),
            StartError::Tables(error) => matches!(
                error,
                StoreError::Owner { .. }
                    | StoreError::Groups { .. }
                    | StoreError::NotEmpty(_)
                    | StoreError::Format { .. }
            ),
            StartError::Admission(error) => matches!(error, NotAdmitted::Refused(_)),
            StartError::Join(error) => matches!(error, JoinError::Refused(_)),
            StartError::Rebuild { .. } | StartError::Io(_) => false,
        }
    }

    /// Has the node lost what it had promised, so that only another one can take its place?
    pub fn is_loss(&self, node: NodeId) -> bool {
        let other = Refused::OtherStore(node);
        match self {
            StartError::Folder(error) => {
                matches!(error, FolderError::Empty(_) | FolderError::Lost(_) | FolderError::Damaged(_))
            }
            StartError::Log(error) => matches!(error, WalError::Missing { .. } | WalError::Damaged { .. }),
            StartError::Tables(error) => matches!(error, StoreError::NotEmpty(_)),
            // Only the words of the node that was asked are there.
            StartError::Admission(NotAdmitted::Refused(why)) => *why == other.to_string(),
            StartError::Join(JoinError::Refused(refused)) => {
                *refused == other || *refused == Refused::OlderCopy(node)
            }
            _ => false,
        }
    }
}

/// A node's part of the cluster, running.
#[derive(Clone)]
pub struct ClusterHandle {
    member: Arc<Member<Production>>,
    links: Links,
    wal: Arc<Wal>,
    asked: Asked,
}

/// What this node's publishers and sessions asked of the service list, wherever the answer was: a request that does not
/// count here has looked nothing up.
#[derive(Clone)]
struct Asked {
    commands: Counter,
    queries: Counter,
}

impl Asked {
    fn new() -> Asked {
        let of = |kind| counter!("reveille_service_list_requests_total", "kind" => kind);
        Asked { commands: of("command"), queries: of("query") }
    }
}

/// Opens the tables, or makes them anew if they are of no more use; whether it did.
fn open_tables(folder: &Path, config: StoreConfig) -> Result<(Store, bool), StartError> {
    if config.create {
        return Ok((Store::open(folder, &config)?, false));
    }
    let why = match set_aside::marked(folder)? {
        Some(why) => why,
        None => match Store::open(folder, &config) {
            Err(error) if error.is_damage() => error.to_string(),
            opened => return Ok((opened?, false)),
        },
    };
    tracing::error!(folder = %folder.display(), why, "the tables are of no more use; they are made anew");
    set_aside::mark(folder, &why)?;
    set_aside::set_aside(folder)?;
    Ok((Store::open(folder, &StoreConfig { create: true, ..config })?, true))
}

impl ClusterHandle {
    /// Opens the folder, starts links and groups, and waits until this node has its incarnation. Must be called on
    /// the runtime that shall carry raft. One that fails has let the listener go, or soon will.
    pub async fn start(config: ClusterConfig, host: Arc<dyn Host>) -> Result<ClusterHandle, StartError> {
        let (mut links, mut panicked) = (None, None);
        let begun = Self::begin(config, host, &mut links);
        // Where it is awaited nobody watches, and a thread that waits for standard input would hold up the end.
        let begun = guard::watch("the start", Box::pin(begun), |why| panicked = Some(why)).await;
        let started = begun.unwrap_or_else(|| Err(io::Error::other(panicked.unwrap_or_default()).into()));
        if let (Err(_), Some(links)) = (&started, links) {
            links.shutdown();
        }
        started
    }

    async fn begin(
        config: ClusterConfig,
        host: Arc<dyn Host>,
        started: &mut Option<Links>,
    ) -> Result<ClusterHandle, StartError> {
        let ClusterConfig { mut member, data, .. } = config;
        let groups = member.groups + 1;
        let owner = Owner { cluster: member.cluster, node: member.node.0 };
        let joins = config.join.is_some();
        let mut folder = Folder::open(&data, owner, config.create, joins, member.store)?;
        let create = !folder.holds_log;
        member.store = folder.store;
        if folder.joined {
            member.beginning = None;
        }
        let others: BTreeMap<NodeId, String> =
            member.nodes.clone().into_iter().filter(|(id, _)| *id != member.node).collect();
        let asked: Vec<NodeId> = others.keys().copied().collect();
        let door = Door::new(member.node, host, !folder.admitted && !folder.joined);
        let links = LinkConfig {
            node: member.node,
            cluster: member.cluster,
            peers: others,
            identity: config.identity,
        };
        let links = started.insert(Links::start(links, config.listener, door.clone())).clone();
        let entrance = door.open(links.clone(), member.boot);
        if !folder.admitted {
            let token = config.join.filter(|_| folder.joined);
            entrance.ask(folder.store, token, &asked).await?;
        }
        let log = || -> Result<Wal, StartError> {
            let disk = RealDisk::open(&data.join("log"))?;
            let wal =
                WalConfig { create, segment_bytes: config.segment_bytes, ..WalConfig::new(owner, groups) };
            Ok(ground::open_log(Arc::new(disk), wal)?)
        };
        let tables = || {
            let (cache_bytes, overlay_bytes) = (config.cache_bytes, config.overlay_bytes);
            let config = StoreConfig { owner, groups, create, cache_bytes, overlay_bytes };
            open_tables(&data.join("tables"), config)
        };
        // The log says that the folder was made, so it is made last; and where it should be, it is looked for first.
        let (wal, store) = if create {
            let store = tables()?;
            (log()?, store)
        } else {
            (log()?, tables()?)
        };
        let (store, anew) = store;
        let wal = Arc::new(wal);
        let log = Arc::downgrade(&wal);
        store.keep_behind(move || match log.upgrade() {
            Some(log) => log.barrier(),
            None => Err(io::Error::other("the log is closed")),
        });
        let mut storage = BTreeMap::new();
        for group in 0..groups {
            if let Some(log) = wal.group(group) {
                let (group, of) = (GroupId(group), GroupStorage { log, tables: store.group(group)? });
                // Who came later may be linked and not written down.
                entrance
                    .bring_up(group, &of, || asked.iter().copied().chain(links.linked()).collect())
                    .await?;
                storage.insert(group, of);
            }
        }
        if anew {
            set_aside::unmark(&data.join("tables"))?;
        }
        if !folder.admitted {
            folder.set_admitted()?;
        }
        let account = Arc::new(Account::begin(folder.clone(), member.boot)?);
        let keep = account.clone();
        let keep = Arc::new(move || keep.keep().map_err(|error| error.to_string()));
        member.start = Start { number: account.start, before: account.before, keep };
        let member = entrance.begin(member, storage).await?;
        if !folder.has_begun() {
            member.initialise().await?;
            folder.set_begun()?;
        }
        member.join().await?;
        // Before anyone is served by it.
        if member.starts_are_counted() {
            account.keep()?
        } else {
            account.forgo()?
        }
        Ok(ClusterHandle { member, links, wal, asked: Asked::new() })
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
        self.asked.commands.increment(1);
        if let Err(refusal) = self.member.readable(&command) {
            return Ok(Reply::Refused(refusal));
        }
        self.member.propose(group, command, deadline).await
    }

    /// Asks a group's leader; see [`Member::query`].
    pub async fn query(
        &self,
        group: GroupId,
        query: Query,
        deadline: Duration,
    ) -> Result<Answer, Unavailable> {
        self.asked.queries.increment(1);
        self.member.query(group, query, deadline).await
    }

    /// Tells a shard's leader about a session.
    pub fn report(&self, report: Report) {
        self.member.report(report);
    }

    /// A notification that this node was ordered to send is over.
    pub fn notified(&self, order: &NotifyOrder, notified: Notified) {
        self.member.notified(order, notified);
    }

    /// This node's incarnation; zero while it has none.
    pub fn incarnation(&self) -> Incarnation {
        self.member.incarnation()
    }

    /// The directory as this node last saw it.
    pub fn directory(&self) -> Arc<Directory> {
        self.member.directory()
    }

    /// How the whole cluster stands; asks every group's leader.
    pub async fn overview(&self) -> Overview {
        self.member.overview().await
    }

    /// Changes the directory; see [`Member::change`].
    pub async fn change(&self, change: Change, deadline: Duration) -> Result<Reply, Unavailable> {
        self.member.change(change, deadline).await
    }

    /// Begins to read one group's tables out, as they are at one moment that is not before this call.
    pub async fn read_out(&self, group: GroupId) -> Result<Reading<Production>, String> {
        Reading::begin(&self.member, group).await
    }

    /// Has others lead the groups that a node leads; see [`Member::move_leaders`].
    pub async fn move_leaders(&self, from: NodeId) -> usize {
        self.member.move_leaders(from).await
    }

    /// Flushes every group's tables, and lets their logs be cut up to there.
    pub async fn snapshot(&self) -> Result<(), String> {
        self.member.snapshot().await
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
