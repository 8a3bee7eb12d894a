//! A node from its configuration: opens ports and disks, starts the cluster, then sessions and HTTP, and ends all of
//! it in order. No rules.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, RwLock};
use std::time::Duration;

use actix_web::web;
use anyhow::{Context, anyhow};
use reveille_cluster::member::{Beginning, MemberConfig, Start};
use reveille_cluster::{ClusterConfig, ClusterHandle};
use reveille_protocol::directory::{self, Directory, Rights, Tenant, Token};
use reveille_protocol::id::*;
use reveille_protocol::session::server::AnchorAt;
use tokio::signal::unix::Signal;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::certificates::{self, Certificates, Shown};
use crate::config::Config;
use crate::ending::{self, Final};
use crate::ground::{self, Actors, Calling};
use crate::guard::Guard;
use crate::host::NodeHost;
use crate::http::Api;
use crate::notify::dial::Dialler;
use crate::notify::own::Own;
use crate::notify::pace::{Pace, Rates};
use crate::notify::{Notifier, Surroundings};
use crate::random::random;
use crate::session::actor::Context as SessionContext;
use crate::session::admission::Admission;
use crate::session::listener::Door;
use crate::session::registry::Registry;
use crate::session::tls::{Tickets, server_config};
use crate::{fail_points, telemetry};

/// The first tenant of a cluster.
const FIRST_TENANT: TenantId = TenantId(1);
/// Leaving takes at most this long: terminals and publishers have gone elsewhere by then.
const LEAVE: Duration = Duration::from_secs(5);

/// The ends of sessions are entries of their groups. One without a leader must not keep the other groups from handing over,
/// nor publishers from their answers: whose end is not written finds its node marked down.
const LAST_ENTRIES: Duration = Duration::from_secs(2);
/// What sessions have said at the end of a node gets this long to leave.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Within this many milliseconds the terminals of a node that leaves come back elsewhere, spread: a second of waiting is
/// no harm to them, and all at once would be to the others.
const LEAVE_SPREAD: u64 = 1000;

/// Runs a node until `stop` resolves or it must end. `create` makes its data folder.
///
/// Runs raft and links on the calling runtime; sessions, notifications and HTTP on threads of their own. `hangups` are
/// made by the caller before anything else: without them SIGHUP would end a node that is still starting. `None`: nobody
/// sends any.
pub async fn run(
    config: Config,
    create: bool,
    hangups: Option<Signal>,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let cluster_id = config.cluster_id()?;
    let certificates = Certificates::read(&config).map_err(Final::of)?;
    let node = NodeId(config.node);
    let identity = certificates.links(&config).map_err(|error| match certificates::may_pass(&error) {
        true => error,
        false => Final::of(error),
    })?;
    let shown = Shown::new(&certificates)?;
    let metrics = ground::metrics()?;
    let peer_listener = ground::listen("peer", config.peer.listen)?;
    let session_listener = ground::listen("session", config.session.listen)?;
    let admission = Admission::new(config.admission_limits());
    let addresses = addresses(&config);

    let registry = Registry::default();
    let tickets = Arc::new(Tickets::default());
    let latest = Arc::new(RwLock::new(Arc::new(Directory::default())));
    let running = Arc::new(OnceLock::new());
    let (failed, mut failures) = mpsc::channel(1);
    let guard = Guard::new(failed.clone());
    let mut own = Own::new(config.cluster.nodes.values());
    let rates =
        Rates { per_second: config.notify.per_second, per_prefix: config.notify.per_prefix_per_second };
    let pace = Pace::new(rates, config.notify.forbid.clone(), config.only_loopback());
    pace.set_own(own.look(&Directory::default()).await);
    let calling = Calling::start()?;
    let anchor = config.notify.anchor.unwrap_or(config.session.listen);
    let notifier = {
        // What the notifier's parts spawn runs where they are made.
        let _there = calling.enter();
        let dialler = Dialler::new(config.notify.bind, certificates.notifications())
            .map(Arc::new)
            .with_context(|| format!("notify.bind: cannot use {}", config.notify.bind))?;
        let here = running.clone();
        let serves =
            move || here.get().is_some_and(|cluster: &ClusterHandle| cluster.incarnation() != Incarnation(0));
        let around = Surroundings {
            direct: dialler,
            anchor,
            identity: certificates.notifications(),
            pace,
            own,
            admission: admission.clone(),
            cluster: running.clone(),
            serves: Box::new(serves),
            directory: latest.clone(),
            hint: vec![addresses.session.clone()],
            guard: guard.clone(),
        };
        Notifier::start(around)
            .with_context(|| format!("notify.anchor: cannot take keepalives at UDP {anchor}"))?
    };
    let host = NodeHost {
        registry: registry.clone(),
        notifier: Some(notifier.clone()),
        per_second: config.notify.per_second,
        tickets: tickets.clone(),
        latest,
        failed,
    };

    let cluster = ClusterConfig {
        member: member(&config, cluster_id, addresses).map_err(Final::of)?,
        data: config.data.clone(),
        create,
        join: certificates.joins_by(&config).map_err(Final::of)?,
        segment_bytes: config.storage.segment_bytes,
        cache_bytes: config.storage.cache_bytes,
        overlay_bytes: config.storage.overlay_bytes,
        listener: peer_listener,
        identity,
    };
    let cluster = tokio::select! {
        started = ClusterHandle::start(cluster, Arc::new(host)) => {
            started.map_err(|error| ending::of_start(error, &config))?
        }
        // Others may say that it is no member while it still asks to begin.
        why = failures.recv() => return Err(why.unwrap_or_else(|| anyhow!("the cluster's part ended"))),
    };
    fail_points::started();
    running.get_or_init(|| cluster.clone());

    let context = Arc::new(SessionContext {
        cluster: OnceLock::from(cluster.clone()),
        registry: registry.clone(),
        node,
        check_in: Duration::from_secs(u64::from(config.notify.check_in)),
        linger_max: config.session.linger_max(),
        anchor: AnchorAt { port: notifier.anchor_port(), period: config.notify.keepalive },
        notifier: Some(notifier.clone()),
        origin: Instant::now(),
    });
    let acceptor = server_config(shown.clone(), tickets).context("session port: TLS cannot be set up")?;
    let leaving = Arc::new(AtomicBool::new(false));
    let api = web::Data::new(Api {
        cluster: cluster.clone(),
        registry: registry.clone(),
        metrics,
        leaving: leaving.clone(),
    });
    let actors = Actors::start(&config, shown.clone(), api).await?;
    let closing = CancellationToken::new();
    let door =
        Door::new(TlsAcceptor::from(Arc::new(acceptor)), context, admission, closing.clone(), guard.clone());
    actors.accept(&door, session_listener)?;
    let keep = certificates::keep(config.clone(), certificates, shown, notifier, cluster.clone(), hangups);
    let keeping = tokio::spawn(guard.watch("keeping certificates", keep));
    tracing::info!(
        node = node.0,
        incarnation = cluster.incarnation().0,
        session = %config.session.listen,
        http = %config.http.listen,
        admin = %config.admin.listen,
        "node is running"
    );

    let outcome = tokio::select! {
        () = stop => Ok(()),
        why = failures.recv() => Err(why.unwrap_or_else(|| anyhow!("the cluster's part ended"))),
    };
    leaving.store(true, Ordering::Relaxed);
    telemetry::leaving();
    closing.cancel();
    keeping.abort();
    let leave = async {
        registry.close(LEAVE_SPREAD);
        // Their last words go out before the ports close.
        let said = Instant::now() + LAST_ENTRIES;
        while registry.len() > 0 && Instant::now() < said {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        actors.close().await;
        cluster.shutdown().await;
        // Terminals that do not close by themselves are not waited for.
        let said = Instant::now() + LAST_WORDS;
        while door.connections() > 0 && Instant::now() < said {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        actors.stop().await;
    };
    if tokio::time::timeout(LEAVE, leave).await.is_err() {
        tracing::warn!("not everything ended in time; what was acknowledged is on disk");
    }
    tracing::info!(node = node.0, "node has ended");
    outcome
}

fn addresses(config: &Config) -> directory::Node {
    let scheme = if config.http.tls { "https" } else { "http" };
    let http = config.http.advertise.clone().unwrap_or_else(|| format!("{scheme}://{}", config.http.listen));
    directory::Node {
        peer: config.peer.told(),
        session: config.session.told(),
        http,
        ..directory::Node::default()
    }
}

fn member(config: &Config, cluster: u64, addresses: directory::Node) -> anyhow::Result<MemberConfig> {
    let nodes: BTreeMap<NodeId, String> =
        config.nodes()?.into_iter().map(|(id, address)| (NodeId(id), address)).collect();
    let first = &config.cluster.tenant;
    let mut tokens = BTreeMap::new();
    if let Some(hash) = first.admin_token()? {
        let rights = Rights { publish: true, read: true, admin: true };
        let token = Token { name: "first".to_owned(), tenant: FIRST_TENANT, rights, expires: None };
        tokens.insert(hash, token);
    }
    let tenant = Tenant {
        name: if first.name.is_empty() { "default".to_owned() } else { first.name.clone() },
        enrolment_key: first.enrolment()?.map(|key| key.0),
        open: first.open,
    };
    let first = nodes.keys().map(|id| (*id, directory::Node::default())).collect();
    let beginning = Beginning {
        nodes: first,
        tenants: BTreeMap::from([(FIRST_TENANT, tenant)]),
        tokens,
        secret: random(),
    };
    Ok(MemberConfig {
        node: NodeId(config.node),
        cluster,
        groups: config.cluster.groups,
        nodes,
        addresses,
        store: u64::from_le_bytes(random()).max(1),
        boot: u64::from_le_bytes(random()),
        // The folder knows.
        start: Start::unaccounted(0),
        beginning: Some(beginning),
        wall: Arc::new(ground::wall),
    })
}
