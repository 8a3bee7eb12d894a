//! The operator's listener: alive, ready, metrics, status.

use std::net::IpAddr;

use actix_web::http::{StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, web};

use super::Api;
use super::auth::tenant;
use super::error::ApiError;
use crate::telemetry::Gauge;

/// What the operator's listener needs beside the API.
pub struct Admin {
    /// Ask for an admin token: everywhere but on loopback.
    pub guarded: bool,
}

pub(super) fn may(request: &HttpRequest, api: &Api, admin: &Admin) -> Result<(), ApiError> {
    if admin.guarded {
        tenant(request, &api.cluster.directory(), |rights| rights.admin)?;
    } else if by_a_page(request) {
        let message = "without tokens this listener serves programs on its own host, not the pages in a browser there; \
                       ask by 127.0.0.1, [::1] or localhost, without Origin";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "by_a_page", message));
    }
    Ok(())
}

/// Does a page in a browser on this host ask, for whoever made that page? It says where it is from, or came to this
/// address by a name of its own (DNS rebinding).
fn by_a_page(request: &HttpRequest) -> bool {
    let headers = request.headers();
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')).map_or(host, |(name, _)| name);
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let own =
        name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    headers.contains_key(header::ORIGIN) || !own
}

/// `GET /healthz`: the process is alive.
pub(super) async fn healthz() -> HttpResponse {
    HttpResponse::Ok().body("ok\n")
}

/// `GET /readyz`: every group has a leader, and this node takes requests.
pub(super) async fn readyz(api: web::Data<Api>) -> Result<HttpResponse, ApiError> {
    match api.unready() {
        None => Ok(HttpResponse::Ok().body("ready\n")),
        Some(why) => Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", why)),
    }
}

/// `GET /metrics`, for Prometheus.
pub(super) async fn metrics(
    request: HttpRequest,
    api: web::Data<Api>,
    admin: web::Data<Admin>,
) -> Result<HttpResponse, ApiError> {
    may(&request, &api, &admin)?;
    let status = api.cluster.status();
    let groups = &status.groups;
    let led = groups.iter().filter(|group| group.leader == Some(status.node)).count();
    Gauge::GroupsLed.set(led as f64);
    Gauge::Waiting.set(groups.iter().map(|group| group.waiting).sum::<usize>() as f64);
    Gauge::Unreachable.set(groups.iter().map(|group| group.unreachable).sum::<usize>() as f64);
    Ok(HttpResponse::Ok().content_type("text/plain; version=0.0.4").body(api.metrics.render()))
}

/// `GET /status`: how this node sees the cluster.
pub(super) async fn status(
    request: HttpRequest,
    api: web::Data<Api>,
    admin: web::Data<Admin>,
) -> Result<HttpResponse, ApiError> {
    may(&request, &api, &admin)?;
    let status = api.cluster.status();
    let ready = api.unready().is_none();
    let sessions = api.registry.len();
    Ok(HttpResponse::Ok()
        .json(serde_json::json!({ "ready": ready, "sessions": sessions, "cluster": status })))
}
