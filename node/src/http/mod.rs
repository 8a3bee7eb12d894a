//! HTTP: the publisher's API and the operator's listener. Translates requests into commands and queries; decides
//! nothing about delivery.

mod admin;
mod auth;
mod backup;
mod body;
mod cluster;
mod error;
#[cfg_attr(
    feature = "turmoil",
    allow(dead_code, reason = "some are of servers that a simulation has none of")
)]
pub mod limits;
mod messages;
mod restore;
mod terminals;
mod tokens;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use actix_web::web;
use metrics_exporter_prometheus::PrometheusHandle;
use reveille_cluster::ClusterHandle;

pub use self::admin::Admin;
use crate::session::registry::Registry;

/// What the handlers share.
pub struct Api {
    /// The cluster.
    pub cluster: ClusterHandle,
    /// The sessions.
    pub registry: Registry,
    /// The metrics.
    pub metrics: PrometheusHandle,
    /// Set while the node is leaving.
    pub leaving: Arc<AtomicBool>,
}

impl Api {
    /// Why this node takes no requests; `None` if it does.
    pub fn unready(&self) -> Option<String> {
        match self.leaving.load(Ordering::Relaxed) {
            true => Some("this node is leaving".to_owned()),
            false => self.cluster.unready(),
        }
    }
}

/// The publisher's routes.
pub fn publisher(config: &mut web::ServiceConfig) {
    config
        .service(web::resource("/v1/terminals/{id}/messages").route(web::post().to(messages::publish)))
        .service(
            web::resource("/v1/messages/{id}")
                .route(web::get().to(messages::get))
                .route(web::delete().to(messages::cancel)),
        )
        .service(
            web::resource("/v1/terminals/{id}")
                .route(web::get().to(terminals::get))
                .route(web::delete().to(terminals::unregister)),
        )
        .service(
            web::resource("/v1/terminals")
                .route(web::get().to(terminals::list))
                .route(web::post().to(terminals::register)),
        )
        .service(
            web::resource("/v1/tokens")
                .route(web::get().to(tokens::list))
                .route(web::post().to(tokens::make)),
        )
        .service(web::resource("/v1/tokens/{id}").route(web::delete().to(tokens::revoke)))
        .default_service(web::to(error::no_such_page));
}

/// The operator's routes.
pub fn operator(config: &mut web::ServiceConfig) {
    config
        .service(web::resource("/healthz").route(web::get().to(admin::healthz)))
        .service(web::resource("/readyz").route(web::get().to(admin::readyz)))
        .service(web::resource("/metrics").route(web::get().to(admin::metrics)))
        .service(web::resource("/status").route(web::get().to(admin::status)))
        .service(web::resource("/cluster").route(web::get().to(cluster::overview)))
        .service(web::resource("/cluster/nodes").route(web::post().to(cluster::invite)))
        .service(web::resource("/cluster/nodes/{id}/drain").route(web::post().to(cluster::drain)))
        .service(web::resource("/cluster/nodes/{id}/resume").route(web::post().to(cluster::resume)))
        .service(web::resource("/cluster/nodes/{id}/remove").route(web::post().to(cluster::remove)))
        .service(
            web::resource("/cluster/nodes/{id}/move-leaders").route(web::post().to(cluster::move_leaders)),
        )
        .service(web::resource("/cluster/replicas").route(web::post().to(cluster::replicas)))
        .service(
            web::resource("/cluster/limits")
                .route(web::get().to(cluster::limits))
                .route(web::post().to(cluster::set_limits)),
        )
        .service(web::resource("/cluster/snapshot").route(web::post().to(cluster::snapshot)))
        .service(web::resource("/cluster/backup/{group}").route(web::get().to(backup::backup)))
        .service(web::resource("/cluster/restore/{id}").route(web::post().to(restore::begin)))
        .service(web::resource("/cluster/restore/{id}/terminals").route(web::post().to(restore::terminals)))
        .service(web::resource("/cluster/restore/{id}/finish").route(web::post().to(restore::finish)))
        .service(web::resource("/cluster/restore/{id}/give-up").route(web::post().to(restore::give_up)))
        .default_service(web::to(error::no_such_page));
}
