//! A node from its configuration: opens ports and disks, starts the cluster, then sessions and HTTP, and ends all of
//! it in order. No rules.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use actix_web::{App, HttpServer, web};
use anyhow::{Context, anyhow, ensure};
use reveille_cluster::member::{Beginning, MemberConfig};
use reveille_cluster::{ClusterConfig, ClusterHandle};
use reveille_protocol::directory::{self, Directory, Rights, Tenant, Token};
use reveille_protocol::id::*;
use tokio::net::TcpListener;
use tokio::signal::unix::Signal;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use crate::certificates::{self, Certificates, Shown};
use crate::config::Config;
use crate::host::NodeHost;
use crate::http::{self, Api, limits};
use crate::join::JoinToken;
use crate::notify::Notifier;
use crate::notify::dial::Dialler;
use crate::notify::pace::Pace;
use crate::random::random;
use crate::session::actor::Context as SessionContext;
use crate::session::listener;
use crate::session::registry::Registry;
use crate::session::tls::{Tickets, server_config};
use crate::telemetry;

/// The first tenant of a cluster.
const FIRST_TENANT: TenantId = TenantId(1);
/// Leaving takes at most this long: terminals and publishers have gone elsewhere by then.
const LEAVE: Duration = Duration::from_secs(5);

/// Within this many milliseconds the terminals of a node that leaves come back elsewhere, spread: a second of waiting is
/// no harm to them, and all at once would be to the others.
const LEAVE_SPREAD: u64 = 1000;

async fn bind(what: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("{what}.listen: cannot listen on {address}"))
}

/// Runs a node until `stop` resolves or it must end. `create` makes its data folder.
///
/// Runs raft, links and sessions' bytes on the calling runtime, actors and HTTP on threads of their own. `hangups` are
/// made by the caller before anything else: without them SIGHUP would end a node that is still starting.
pub async fn run(
    config: Config,
    create: bool,
    hangups: Signal,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let cluster_id = config.cluster_id()?;
    let certificates = Certificates::read(&config)?;
    let node = NodeId(config.node);
    let identity = certificates.links(&config)?;
    let shown = Shown::new(&certificates)?;
    let metrics = telemetry::init_metrics()?;
    let peer_listener = bind("peer", config.peer.listen).await?;
    let session_listener = bind("session", config.session.listen).await?;
    let addresses = addresses(&config);

    let registry = Registry::default();
    let tickets = Arc::new(Tickets::default());
    let latest = Arc::new(RwLock::new(Arc::new(Directory::default())));
    let notifier = Arc::new(OnceLock::new());
    let running = Arc::new(OnceLock::new());
    let (failed, mut failures) = mpsc::channel(1);
    let own = own_addresses(&config).await;
    let pace =
        Pace::new(config.notify.per_second, config.notify.per_prefix_per_second, own, config.only_loopback());
    let dialler = Dialler::new(config.notify.bind, certificates.notifications())
        .map(Arc::new)
        .with_context(|| format!("notify.bind: cannot use {}", config.notify.bind))?;
    let hints = vec![addresses.session.clone()];
    notifier.get_or_init(|| Notifier::start(dialler.clone(), pace, running.clone(), latest.clone(), hints));
    let host = NodeHost { registry: registry.clone(), notifier, tickets: tickets.clone(), latest, failed };

    let cluster = ClusterConfig {
        member: member(&config, cluster_id, addresses)?,
        data: config.data.clone(),
        create,
        join: join(&config, &certificates)?,
        segment_bytes: config.storage.segment_bytes,
        cache_bytes: config.storage.cache_bytes,
        overlay_bytes: config.storage.overlay_bytes,
        listener: peer_listener,
        identity,
    };
    let cluster = ClusterHandle::start(cluster, Arc::new(host)).await?;
    running.get_or_init(|| cluster.clone());

    let context = Arc::new(SessionContext {
        cluster: OnceLock::from(cluster.clone()),
        registry: registry.clone(),
        node,
        check_in: Duration::from_secs(u64::from(config.notify.check_in)),
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
    let accepting = tokio::spawn(listener::run(
        session_listener,
        TlsAcceptor::from(Arc::new(acceptor)),
        context,
        actors.arbiters.clone(),
    ));
    let keeping = tokio::spawn(certificates::keep(
        config.clone(),
        certificates,
        shown,
        dialler,
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
        why = failures.recv() => Err(anyhow!(why.unwrap_or_default())),
    };
    leaving.store(true, Ordering::Relaxed);
    accepting.abort();
    keeping.abort();
    let leave = async {
        registry.close(LEAVE_SPREAD);
        // Their last words go out before the ports close.
        while registry.len() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        actors.stop().await;
        cluster.shutdown().await;
    };
    if tokio::time::timeout(LEAVE, leave).await.is_err() {
        tracing::warn!("not everything ended in time; what was acknowledged is on disk");
    }
    tracing::info!(node = node.0, "node has ended");
    outcome
}

fn addresses(config: &Config) -> directory::Node {
    let advertised =
        |port: &crate::config::Port| port.advertise.clone().unwrap_or_else(|| port.listen.to_string());
    let scheme = if config.http.tls { "https" } else { "http" };
    let http = config.http.advertise.clone().unwrap_or_else(|| format!("{scheme}://{}", config.http.listen));
    directory::Node {
        peer: advertised(&config.peer),
        session: advertised(&config.session),
        http,
        ..directory::Node::default()
    }
}

/// The cluster's own addresses, which are never notified.
async fn own_addresses(config: &Config) -> Vec<IpAddr> {
    let mut own = Vec::new();
    for name in config.cluster.nodes.values() {
        if let Ok(found) = tokio::net::lookup_host(name).await {
            own.extend(found.map(|address| address.ip()));
        }
    }
    own
}

/// What a join token stands for, if this node has one; refuses one that was made under another CA.
fn join(config: &Config, certificates: &Certificates) -> anyhow::Result<Option<KeyFingerprint>> {
    let Some(text) = &config.cluster.join else { return Ok(None) };
    let token: JoinToken = text.parse().context("cluster.join")?;
    let known = certificates.ca_fingerprints().any(|known| known == token.ca);
    ensure!(known, "cluster.join was made under another CA than that of {}", config.tls.ca.display());
    Ok(Some(token.hash()))
}

fn member(config: &Config, cluster: u64, addresses: directory::Node) -> anyhow::Result<MemberConfig> {
    let nodes: BTreeMap<NodeId, String> =
        config.nodes()?.into_iter().map(|(id, address)| (NodeId(id), address)).collect();
    let first = &config.cluster.tenant;
    let hex = |text: &str, what: &str| -> anyhow::Result<Option<KeyFingerprint>> {
        if text.is_empty() {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|_| anyhow!("cluster.tenant.{what} must be 64 hex digits"))
    };
    let mut tokens = BTreeMap::new();
    if let Some(hash) = hex(&first.admin_token_sha256, "admin_token_sha256")? {
        let rights = Rights { publish: true, read: true, admin: true };
        let token = Token { name: "first".to_owned(), tenant: FIRST_TENANT, rights, expires: None };
        tokens.insert(hash, token);
    }
    let tenant = Tenant {
        name: if first.name.is_empty() { "default".to_owned() } else { first.name.clone() },
        enrolment_key: hex(&first.enrolment_key, "enrolment_key")?.map(|key| key.0),
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
        beginning: Some(beginning),
        wall: Arc::new(wall),
    })
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
                anyhow::Ok((handles, actix::System::current(), vec![actix::Arbiter::new().handle()]))
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

    async fn stop(self) {
        for server in &self.servers {
            server.stop(true).await;
        }
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
