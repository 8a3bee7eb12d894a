//! The system's ports, clock and threads: actix for sessions and HTTP, and a runtime for the notifier.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use actix_web::{App, HttpServer, web};
use anyhow::Context;
use futures::FutureExt;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::certificates::Shown;
use crate::config::Config;
use crate::http::{self, Api, limits};
use crate::session::listener::Door;
use crate::telemetry;

/// Connections that the system takes before the node does: it takes them as they come, so this is for a moment in which its
/// thread has other work. The system may have a lower bound (net.core.somaxconn).
const BACKLOG: u32 = 4096;

/// Listens at a port; `what`: whose it is in the configuration.
pub fn listen(what: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().with_context(|| format!("{what}.listen: cannot listen on {address}"))
}

/// Did the other end close its side?
pub fn has_gone(stream: &TcpStream) -> bool {
    let ready = stream.ready(Interest::READABLE).now_or_never();
    ready.is_some_and(|ready| ready.map_or(true, |ready| ready.is_read_closed()))
}

/// Has a connection end with a reset: the other end hears at once that it must go elsewhere, and the system keeps nothing
/// of it.
pub fn reset(stream: &TcpStream) {
    // Not set: then it is closed in the usual way.
    let _ = stream.set_zero_linger();
}

/// Sets up the metrics of the process.
pub fn metrics() -> anyhow::Result<PrometheusHandle> {
    telemetry::init_metrics()
}

/// The wall clock, in microseconds since the Unix epoch.
pub fn wall() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

/// The threads that notify: handshakes with terminals, which must not stand in front of the cluster's own work.
pub struct Calling(Option<tokio::runtime::Runtime>);

impl Calling {
    /// Starts them.
    pub fn start() -> anyhow::Result<Calling> {
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

    /// What is spawned while this is held runs there.
    pub fn enter(&self) -> Option<tokio::runtime::EnterGuard<'_>> {
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
pub struct Actors {
    arbiters: Vec<actix::ArbiterHandle>,
    system: actix::System,
    servers: Vec<actix_web::dev::ServerHandle>,
    thread: std::thread::JoinHandle<std::io::Result<()>>,
}

impl Actors {
    /// Starts an actix system on a thread of its own, and waits until its ports are open.
    pub async fn start(config: &Config, shown: Arc<Shown>, api: web::Data<Api>) -> anyhow::Result<Actors> {
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

    /// Has every thread of sessions accept terminals.
    pub fn accept(&self, door: &Door, listener: TcpListener) -> anyhow::Result<()> {
        let listener = listener.into_std()?;
        for arbiter in &self.arbiters {
            let (door, listener) = (door.clone(), listener.try_clone()?);
            arbiter.spawn(async move {
                match TcpListener::from_std(listener) {
                    Ok(listener) => door.accept(listener).await,
                    Err(error) => tracing::error!(%error, "terminals cannot be accepted"),
                }
            });
        }
        Ok(())
    }

    /// Takes no more requests, and answers those that are there.
    pub async fn close(&self) {
        for server in &self.servers {
            // Its workers end before it ceases to accept; without a pause it may look for one in vain, which is an error in
            // the log.
            server.pause().await;
            server.stop(true).await;
        }
    }

    /// Ends the threads.
    pub async fn stop(self) {
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
