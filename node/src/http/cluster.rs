//! The operator's ways to see and change who belongs to the cluster. Each request may be repeated: it finds what it
//! wanted, or goes on with it. The steward of the cluster does the work; here it is only asked for.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use futures::future::join_all;
use reveille_cluster::FIRST;
use reveille_cluster::query::{Answer, Query};
use reveille_protocol::directory::{Change, Outcome, Refused};
use reveille_protocol::id::{GroupId, KeyFingerprint, NodeId};
use reveille_protocol::service_list::row::Settings;
use reveille_protocol::service_list::{Command, Refusal, Reply};
use reveille_protocol::time::GroupTime;
use serde::Deserialize;

use super::admin::{Admin, may};
use super::auth::now;
use super::error::{ApiError, done, settle, unexpected};
use super::limits::{DEADLINE, MAX_TOKEN_REQUEST};
use super::{Api, body};

/// A join token is valid for at most so long: it is used at once, or made anew.
const MAX_VALID: u64 = 24 * 3600;
/// Times that limits are set if others are set meanwhile: more than a few operators do not meet.
const ATTEMPTS: u32 = 8;
/// Between two of them, and the longer the later: whoever has fewer to go comes through first.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

/// A node that may join.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewNode {
    /// Where its peers will reach it.
    peer: String,
    /// SHA-256 of its join token's secret, 64 hex digits.
    token_sha256: String,
    /// Seconds that the token is valid.
    valid: u64,
    /// The node whose place it takes.
    replaces: Option<u64>,
}

/// May groups have fewer replicas than they should?
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fewer {
    #[serde(default)]
    fewer: bool,
}

/// How many replicas each group should have.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Replicas {
    replicas: u8,
}

/// Changes the directory; what that came to.
async fn change(api: &Api, change: Change) -> Result<Outcome, ApiError> {
    settle(api.cluster.change(change, DEADLINE).await, |reply| match reply {
        Reply::Directory(outcome) => Ok(outcome),
        other => Err(other),
    })
}

/// Changes the directory where there is nothing to say but that it was done.
pub(super) async fn changed(api: &Api, what: Change) -> Result<(), ApiError> {
    match change(api, what).await? {
        Outcome::Done => Ok(()),
        other => Err(unexpected(&other)),
    }
}

/// `GET /cluster`
pub(super) async fn overview(
    request: HttpRequest,
    api: web::Data<Api>,
    admin: web::Data<Admin>,
) -> Result<HttpResponse, ApiError> {
    may(&request, &api, &admin)?;
    Ok(HttpResponse::Ok().json(api.cluster.overview().await))
}

/// `POST /cluster/nodes`: a node may join; answers with its id.
pub(super) async fn invite(
    request: HttpRequest,
    body: web::Payload,
    api: web::Data<Api>,
    admin: web::Data<Admin>,
) -> Result<HttpResponse, ApiError> {
    may(&request, &api, &admin)?;
    let new: NewNode = body::json(&request, body, MAX_TOKEN_REQUEST).await?;
    let malformed = |_| {
        ApiError::bad("malformed_id", "token_sha256 must be 64 hex digits, the SHA-256 of the token's secret")
    };
    let token: KeyFingerprint = new.token_sha256.parse().map_err(malformed)?;
    if new.valid == 0 || new.valid > MAX_VALID {
        return Err(ApiError::bad("bad_valid", format!("valid must be 1 to {MAX_VALID} seconds")));
    }
    let port = new.peer.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    if port.is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
        return Err(ApiError::bad("bad_peer", "peer must be HOST:PORT, where other nodes will reach it"));
    }
    let invite = Change::Invite {
        peer: new.peer.clone(),
        token,
        expires: GroupTime(now() + new.valid * 1000),
        replaces: new.replaces.map(NodeId),
    };
    match change(&api, invite).await? {
        Outcome::Invited(node) => {
            Ok(HttpResponse::build(StatusCode::CREATED).json(serde_json::json!({ "node": node })))
        }
        other => Err(unexpected(&other)),
    }
}

async fn asked(
    request: &HttpRequest,
    api: &Api,
    admin: &Admin,
    what: Change,
) -> Result<HttpResponse, ApiError> {
    may(request, api, admin)?;
    changed(api, what).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// `POST /cluster/nodes/{id}/drain`
pub(super) async fn drain(
    request: HttpRequest,
    node: web::Path<u64>,
    fewer: web::Query<Fewer>,
    api: web::Data<Api>,
    admin: web::Data<Admin>,
) -> Result<HttpResponse, ApiError> {
    asked(&request, &api, &admin, Change::Drain { node: NodeId(*node), fewer: fewer.fewer }).await
}

/// `POST /cluster/nodes/{id}/resume`
pub(super) async fn resume(
    request: HttpRequest,
    node: web::Path<u64>,
    api: web::Data<Api>,
    admin: web::Data<Admin>,
) -> Result<HttpResponse, ApiError> {
    asked(&request, &api, &admin, Change::Resume { node: NodeId(*node) }).await
}

/// `POST /cluster/nodes/{id}/remove`
pub(super) async fn remove(
    request: HttpRequest,
    node: web::Path<u64>,
    fewer: web::Query<Fewer>,
    api: web::Data<Api>,
    admin: web::Data<Admin>,
) -> Result<HttpResponse, ApiError> {
    asked(&request, &api, &admin, Change::Remove { node: NodeId(*node), fewer: fewer.fewer }).await
}

/// `POST /cluster/replicas`: fewer than there are only if that is said to be meant.
pub(super) async fn replicas(
    request: HttpRequest,
    fewer: web::Query<Fewer>,
    body: web::Payload,
    api: web::Data<Api>,
    admin: web::Data<Admin>,
) -> Result<HttpResponse, ApiError> {
    may(&request, &api, &admin)?;
    let wanted: Replicas = body::json(&request, body, MAX_TOKEN_REQUEST).await?;
    let now = api.cluster.directory().roster.replicas;
    if wanted.replicas < now && !fewer.fewer {
        let outlives = |replicas: u8| replicas.saturating_sub(1) / 2;
        let message = format!(
            "each group has {now} replicas and outlives the loss of {} nodes; with {} it would outlive that of {}: ask for it \
             with --force-fewer-replicas, or ?fewer=true",
            outlives(now),
            wanted.replicas,
            outlives(wanted.replicas)
        );
        return Err(ApiError::new(StatusCode::CONFLICT, "fewer_replicas", message));
    }
    changed(&api, Change::SetReplicas { replicas: wanted.replicas }).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// Limits that shall be others; the rest stays. Times in milliseconds.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    max_payload: Option<u32>,
    max_pending: Option<u32>,
    max_pending_bytes: Option<u32>,
    default_ttl: Option<u64>,
    max_ttl: Option<u64>,
    wake_window: Option<u64>,
    memory_of_ends: Option<u64>,
    registration_lifetime: Option<u64>,
}

impl Limits {
    fn over(self, known: Settings) -> Settings {
        Settings {
            max_payload: self.max_payload.unwrap_or(known.max_payload),
            max_pending: self.max_pending.unwrap_or(known.max_pending),
            max_pending_bytes: self.max_pending_bytes.unwrap_or(known.max_pending_bytes),
            default_ttl: self.default_ttl.unwrap_or(known.default_ttl),
            max_ttl: self.max_ttl.unwrap_or(known.max_ttl),
            wake_window: self.wake_window.unwrap_or(known.wake_window),
            memory_of_ends: self.memory_of_ends.unwrap_or(known.memory_of_ends),
            registration_lifetime: self.registration_lifetime.unwrap_or(known.registration_lifetime),
        }
    }
}

async fn limits_of(api: &Api, shard: GroupId) -> Result<Settings, ApiError> {
    match api.cluster.query(shard, Query::Limits, DEADLINE).await? {
        Answer::Limits(limits) => Ok(*limits),
        other => Err(unexpected(&other)),
    }
}

/// `GET /cluster/limits`: those of the first shard. Others differ only for some seconds, after a change was broken off.
pub(super) async fn limits(
    request: HttpRequest,
    api: web::Data<Api>,
    admin: web::Data<Admin>,
) -> Result<HttpResponse, ApiError> {
    may(&request, &api, &admin)?;
    Ok(HttpResponse::Ok().json(limits_of(&api, FIRST).await?))
}

async fn limit(api: &Api, shard: GroupId, limits: &Settings) -> Result<(), ApiError> {
    settle(api.cluster.propose(shard, Command::Settings(limits.clone()), DEADLINE).await, done)
}

/// `POST /cluster/limits`: for every shard, those named and what the first shard has of the others. It is looked whether
/// they hold: somebody else may have set some at the same time, and would have taken these back without knowing.
pub(super) async fn set_limits(
    request: HttpRequest,
    body: web::Payload,
    api: web::Data<Api>,
    admin: web::Data<Admin>,
) -> Result<HttpResponse, ApiError> {
    may(&request, &api, &admin)?;
    let named: Limits = body::json(&request, body, MAX_TOKEN_REQUEST).await?;
    for attempt in 1..=ATTEMPTS {
        let wanted = named.clone().over(limits_of(&api, FIRST).await?);
        wanted.check().map_err(|why| ApiError::bad("bad_limits", why))?;
        // The first one's are the cluster's: what has others meanwhile is given these.
        limit(&api, FIRST, &wanted).await?;
        let others = api.cluster.shards().filter(|shard| *shard != FIRST);
        let others = others.map(|shard| limit(&api, shard, &wanted));
        join_all(others).await.into_iter().collect::<Result<Vec<_>, _>>()?;
        let all = join_all(api.cluster.shards().map(|shard| limits_of(&api, shard))).await;
        let all = all.into_iter().collect::<Result<Vec<_>, _>>()?;
        if all.iter().all(|limits| *limits == wanted) {
            return Ok(HttpResponse::Ok().json(wanted));
        }
        tokio::time::sleep(PAUSE * attempt).await;
    }
    let message =
        "others set limits at the same time; look what holds (reveille cluster limits), and set yours again";
    Err(ApiError::new(StatusCode::CONFLICT, "limits_contended", message))
}

/// `POST /cluster/nodes/{id}/move-leaders`: others lead what this node leads.
pub(super) async fn move_leaders(
    request: HttpRequest,
    node: web::Path<u64>,
    api: web::Data<Api>,
    admin: web::Data<Admin>,
) -> Result<HttpResponse, ApiError> {
    may(&request, &api, &admin)?;
    let node = NodeId(*node);
    if !api.cluster.directory().roster.records.contains_key(&node) {
        return Err(Refusal::Directory(Refused::UnknownNode(node)).into());
    }
    let moved = api.cluster.move_leaders(node).await;
    Ok(HttpResponse::Ok().json(serde_json::json!({ "moved": moved })))
}

/// `POST /cluster/snapshot`: this node's tables are flushed, and its logs cut.
pub(super) async fn snapshot(
    request: HttpRequest,
    api: web::Data<Api>,
    admin: web::Data<Admin>,
) -> Result<HttpResponse, ApiError> {
    may(&request, &api, &admin)?;
    let failed = |error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error);
    api.cluster.snapshot().await.map_err(failed)?;
    Ok(HttpResponse::NoContent().finish())
}
