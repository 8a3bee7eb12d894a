//! turmoil's ports and clock; all parts of a node in the one thread of the simulation. Publishers' HTTP is served by
//! actix-http on turmoil's streams, without TLS, and so is the operator's.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use actix_http::{HttpService, Protocol};
use actix_service::{IntoServiceFactory, Service, ServiceFactory, ServiceFactoryExt, map_config};
use actix_web::dev::AppConfig;
use actix_web::{App, web};
use anyhow::{Context, anyhow};
use futures::FutureExt;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use reveille_terminal::ground::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::certificates::Shown;
use crate::config::Config;
use crate::http::{self, Api, limits};
use crate::session::listener::Door;

/// Listens at a port of this host.
pub fn listen(what: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    // It is bound when it is first polled.
    let bound = TcpListener::bind(address).now_or_never();
    bound.context("it waits")?.with_context(|| format!("{what}.listen: cannot listen on {address}"))
}

/// Its streams do not tell.
pub fn has_gone(_: &TcpStream) -> bool {
    false
}

/// Its streams close in order.
pub fn reset(_: &TcpStream) {}

/// Metrics that nobody reads: those of the process would be of all nodes together.
pub fn metrics() -> anyhow::Result<PrometheusHandle> {
    Ok(PrometheusBuilder::new().build_recorder().handle())
}

/// The simulation's wall clock, in microseconds since the Unix epoch.
pub fn wall() -> u64 {
    turmoil::since_epoch().map_or(0, |since| since.as_micros() as u64)
}

/// The notifier has no threads.
pub struct Calling;

impl Calling {
    pub fn start() -> anyhow::Result<Calling> {
        Ok(Calling)
    }

    /// What is spawned runs where everything does.
    pub fn enter(&self) -> Option<()> {
        None
    }
}

/// Sessions and HTTP, beside everything else.
pub struct Actors {
    serving: [JoinHandle<()>; 2],
}

impl Actors {
    /// Opens both ports of HTTP.
    pub async fn start(config: &Config, _: Arc<Shown>, api: web::Data<Api>) -> anyhow::Result<Actors> {
        let admin = web::Data::new(http::Admin { guarded: false });
        let publishers = serve(listen("http", config.http.listen)?, api.clone(), http::publisher);
        let operator = move |app: &mut web::ServiceConfig| http::operator(app.app_data(admin));
        let operators = serve(listen("admin", config.admin.listen)?, api, operator);
        Ok(Actors { serving: [publishers.await?, operators.await?] })
    }

    /// Accepts terminals.
    pub fn accept(&self, door: &Door, listener: TcpListener) -> anyhow::Result<()> {
        actix::spawn(door.clone().accept(listener));
        Ok(())
    }

    /// Takes no more requests.
    pub async fn close(&self) {
        self.serving.iter().for_each(JoinHandle::abort);
    }

    /// Nothing is left to end.
    pub async fn stop(self) {}
}

/// Serves these routes, one connection beside the other.
async fn serve(
    listener: TcpListener,
    api: web::Data<Api>,
    routes: impl FnOnce(&mut web::ServiceConfig),
) -> anyhow::Result<JoinHandle<()>> {
    let app = App::new().app_data(api).configure(routes);
    let app = app.into_factory().map_err(|error: actix_web::Error| error.error_response());
    let service = HttpService::<TcpStream, _, _>::build()
        .client_request_timeout(limits::HEAD_DEADLINE)
        .client_disconnect_timeout(limits::LAST_WORDS)
        .keep_alive(limits::KEEP_ALIVE)
        .finish(map_config(app, |_| AppConfig::default()));
    let service = service.new_service(()).await.map_err(|()| anyhow!("HTTP cannot be set up"))?;
    let service = Rc::new(service);
    Ok(actix::spawn(async move {
        while let Ok((stream, from)) = listener.accept().await {
            // How it ended is its client's to see.
            actix::spawn(service.call((stream, Protocol::Http1, Some(from))).map(drop));
        }
    }))
}
