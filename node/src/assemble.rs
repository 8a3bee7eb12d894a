//! A node from its configuration: opens ports and disks, starts the cluster, then sessions and HTTP, and ends all of
//! it in order. No rules.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use actix_web::{App, HttpServer, web};
use anyhow::{Context, anyhow};
use reveille_cluster::member::{Beginning, MemberConfig, Start};
use reveille_cluster::{ClusterConfig, ClusterHandle};
use reveille_protocol::directory::{self, Directory, Rights, Tenant, Token};
use reveille_protocol::id::*;
use reveille_protocol::session::server::AnchorAt;
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::Signal;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::certificates::{self, Certificates, Shown};
use crate::config::Config;
use crate::ending::{self, Final};
use crate::host::NodeHost;
use crate::http::{self, Api, limits};
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
use crate::telemetry;

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

/// Connections that the system takes before the node does: it takes them as they come, so this is for a moment in which its
/// thread has other work. The system may have a lower bound (net.core.somaxconn).
const BACKLOG: u32 = 4096;

fn bind(what: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().with_context(|| format!("{what}.listen: cannot listen on {address}"))
}

/// Runs a node until `stop` resolves or it must end. `create` makes its data folder.
///
/// Runs raft and links on the calling runtime; sessions, notifications and HTTP on threads of their own. `hangups` are
/// made by the caller before anything else: without them SIGHUP would end a node that is still starting.
pub async fn run(
    config: Config,
    create: bool,
    hangups: Signal,
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
    let metrics = telemetry::init_metrics()?;
    let peer_listener = bind("peer", config.peer.listen)?;
    let session_listener = bind("session", config.session.listen)?.into_std()?;
    let admission = Admission::new(config.admission_limits());
    let addresses = addresses(&config);

    let registry = Registry::default();
    let tickets = Arc::new(Tickets::default());
    let latest = Arc::new(RwLock::new(Arc::new(Directory::default())));
    let running = Arc::new(OnceLock::new());
    let (failed, mut failures) = mpsc::channel(1);
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
    let actors = Actors::start(&config, shown.clone(), api)?;
    let closing = CancellationToken::new();
    let door = Door::new(TlsAcceptor::from(Arc::new(acceptor)), context, admission, closing.clone());
    for arbiter in &actors.arbiters {
        arbiter.spawn(door.clone().accept(session_listener.try_clone()?));
    }
    drop(session_listener);
    let keeping = tokio::spawn(certificates::keep(
        config.clone(),
        certificates,
        shown,
        notifier,
        cluster.clone(),
        hangups,
    ));
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
    let wall = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
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
        wall: Arc::new(wall),
    })
}

/// The threads that notify: handshakes with terminals, which must not stand in front of the cluster's own work.
struct Calling(Option<tokio::runtime::Runtime>);

impl Calling {
    fn start() -> anyhow::Result<Calling> {
        const MOST: usize = 4;
        let threads = (std::thread::available_parallelism().map_or(1, usize::from) / 4).clamp(1, MOST);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .thread_name("notifier")
            .worker_threads(threads)
            .enable_all()
            .build()
            .context("the notifier's threads")?;
        Ok(Calling(Some(runtime)))
    }

    fn enter(&self) -> Option<tokio::runtime::EnterGuard<'_>> {
        self.0.as_ref().map(tokio::runtime::Runtime::enter)
    }
}

impl Drop for Calling {
    fn drop(&mut self) {
        // Not by its own end, which would wait for what runs there.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Threads of sessions, their TLS included: half of the processors, up to so many. The other half has raft, publishers and
/// the disks.
fn threads_of_sessions() -> usize {
    const MOST: usize = 8;
    (std::thread::available_parallelism().map_or(1, usize::from) / 2).clamp(1, MOST)
}

/// The threads of actors and HTTP.
struct Actors {
    arbiters: Vec<actix::ArbiterHandle>,
    system: actix::System,
    servers: Vec<actix_web::dev::ServerHandle>,
    thread: std::thread::JoinHandle<std::io::Result<()>>,
}

impl Actors {
    /// Starts an actix system on a thread of its own, and waits until its ports are open.
    fn start(config: &Config, shown: Arc<Shown>, api: web::Data<Api>) -> anyhow::Result<Actors> {
        let guarded = !config.admin.listen.ip().is_loopback();
        let admin = web::Data::new(http::Admin { guarded });
        let tls_if = |wanted: bool| wanted.then(|| https(shown.clone())).transpose();
        let tls = tls_if(config.http.tls).context("http: TLS cannot be set up")?;
        // What admin tokens and backups hold is for no wire to see.
        let operators_tls = tls_if(guarded).context("admin: TLS cannot be set up")?;
        let (http, workers, operator) = (config.http.listen, config.http.workers, config.admin.listen);
        let (started, starting) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name("actors".to_owned()).spawn(move || {
            let runner = actix::System::new();
            let servers = runner.block_on(async move {
                let publishers = {
                    let api = api.clone();
                    let server =
                        HttpServer::new(move || App::new().app_data(api.clone()).configure(http::publisher))
                            .workers(workers)
                            .max_connections(limits::publishers_of_one(workers))
                            .tls_handshake_timeout(limits::TLS_DEADLINE)
                            .client_request_timeout(limits::HEAD_DEADLINE)
                            .client_disconnect_timeout(limits::LAST_WORDS)
                            .keep_alive(limits::KEEP_ALIVE)
                            .disable_signals()
                            .shutdown_timeout(limits::LEAVE);
                    let bound = match tls {
                        Some(tls) => server.bind_rustls_0_23(http, tls),
                        None => server.bind(http),
                    };
                    bound.with_context(|| format!("http.listen: cannot listen on {http}"))?.run()
                };
                let operators = {
                    let server = HttpServer::new(move || {
                        App::new().app_data(api.clone()).app_data(admin.clone()).configure(http::operator)
                    })
                    .workers(1)
                    .max_connections(limits::OPERATOR_CONNECTIONS)
                    .tls_handshake_timeout(limits::TLS_DEADLINE)
                    .client_request_timeout(limits::HEAD_DEADLINE)
                    .client_disconnect_timeout(limits::LAST_WORDS)
                    .keep_alive(limits::KEEP_ALIVE)
                    .disable_signals()
                    .shutdown_timeout(limits::LEAVE);
                    let bound = match operators_tls {
                        Some(tls) => server.bind_rustls_0_23(operator, tls),
                        None => server.bind(operator),
                    };
                    bound.with_context(|| format!("admin.listen: cannot listen on {operator}"))?.run()
                };
                let handles = vec![publishers.handle(), operators.handle()];
                // They end when their handles stop them.
                actix::spawn(publishers);
                actix::spawn(operators);
                let arbiters: Vec<_> =
                    (0..threads_of_sessions()).map(|_| actix::Arbiter::new().handle()).collect();
                anyhow::Ok((handles, actix::System::current(), arbiters))
            });
            let run = servers.is_ok();
            // The receiver waits for exactly this.
            let _ = started.send(servers);
            if run { runner.run() } else { Ok(()) }
        })?;
        let (servers, system, arbiters) =
            starting.recv().context("the actors' thread ended at its start")??;
        Ok(Actors { arbiters, system, servers, thread })
    }

    /// Takes no more requests, and answers those that are there.
    async fn close(&self) {
        for server in &self.servers {
            // Its workers end before it ceases to accept; without a pause it may look for one in vain, which is an error in
            // the log.
            server.pause().await;
            server.stop(true).await;
        }
    }

    /// Ends the threads.
    async fn stop(self) {
        self.system.stop();
        let joined = tokio::task::spawn_blocking(move || self.thread.join()).await;
        if !matches!(joined, Ok(Ok(Ok(())))) {
            tracing::warn!("the actors' thread did not end cleanly");
        }
    }
}

fn https(shown: Arc<Shown>) -> anyhow::Result<rustls::ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(shown);
    Ok(config)
}
