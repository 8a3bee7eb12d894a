//! The service list for publishers and their back ends: one entry, a page of them, bulk registration.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use reveille_cluster::query::{Answer, MAX_PAGE, Query};
use reveille_protocol::directory::NOTIFY_ANCHORS;
use reveille_protocol::id::*;
use reveille_protocol::service_list::row::{Current, Linger, Reachability, Row};
use reveille_protocol::service_list::{self as list, Command, Reply};
use reveille_protocol::wire::peer::Why;
use serde::{Deserialize, Serialize};

use super::auth::tenant;
use super::error::{ApiError, done, settle, unexpected};
use super::limits::{BULK_AT_ONCE, DEADLINE, MAX_BULK, PAGE};
use super::{Api, body};

/// Within this the leader says how it notifies; the entry is complete without.
const NOTIFYING: Duration = Duration::from_millis(500);

/// An entry of the service list.
#[derive(Debug, Serialize)]
struct Entry {
    terminal: String,
    state: &'static str,
    /// Of the current session.
    node: Option<u64>,
    epoch: u64,
    stream: String,
    reachability: &'static str,
    pending: u32,
    pending_bytes: u32,
    next_seq: u64,
    acked: u64,
    linger: String,
    /// Unix times in milliseconds.
    registered: u64,
    last_seen: u64,
    /// While something waits and it has no session.
    #[serde(skip_serializing_if = "Option::is_none")]
    notifying: Option<Notified>,
}

/// What has come of the notifications for what waits.
#[derive(Debug, Serialize)]
struct Notified {
    tries: u32,
    unreachable: bool,
    /// Why the last one did not reach it.
    failed: Option<&'static str>,
}

fn entry(terminal: TerminalId, row: &Row) -> Entry {
    let current = row.current;
    Entry {
        terminal: terminal.to_string(),
        state: if current.is_some() { "online" } else { "offline" },
        node: current.map(|current| current.node.0),
        epoch: row.epoch.0,
        stream: format!("{:016x}", row.stream.0),
        reachability: match row.reachability {
            Reachability::None => "none",
            Reachability::Direct { .. } | Reachability::Former { .. } => "direct",
            Reachability::Pinned { .. } => "pinned",
        },
        pending: row.pending,
        pending_bytes: row.pending_bytes,
        next_seq: row.next_seq.0,
        acked: row.acked.0,
        linger: match row.linger {
            Linger::AtOnce => "0s".to_owned(),
            Linger::Seconds(seconds) => format!("{seconds}s"),
            Linger::Forever => "forever".to_owned(),
        },
        registered: row.registered.0,
        last_seen: row.last_seen.0,
        notifying: None,
    }
}

/// Asks the shard's leader, if something waits; what it does not tell in time is left out.
async fn notifying(api: &Api, tenant: TenantId, terminal: TerminalId) -> Option<Notified> {
    let query = Query::Notifying { tenant, terminal };
    let asked = api.cluster.query(api.cluster.group_of(&terminal), query, NOTIFYING).await;
    let Ok(Answer::Notifying(Some(known))) = asked else { return None };
    let failed = known.failed.map(Why::name);
    Some(Notified { tries: known.tries, unreachable: known.unreachable, failed })
}

/// `GET /v1/terminals/{id}`
pub(super) async fn get(
    request: HttpRequest,
    path: web::Path<String>,
    api: web::Data<Api>,
) -> Result<HttpResponse, ApiError> {
    let directory = api.cluster.directory();
    let tenant = tenant(&request, &directory, |rights| rights.read)?;
    let terminal: TerminalId = path.parse()?;
    let group = api.cluster.group_of(&terminal);
    match api.cluster.query(group, Query::Terminal { tenant, terminal }, DEADLINE).await? {
        Answer::Terminal(Some(row)) => {
            let mut entry = entry(terminal, &row);
            if row.pending > 0 && entry.node.is_none() && directory.roster.format >= NOTIFY_ANCHORS {
                entry.notifying = notifying(&api, tenant, terminal).await;
            }
            Ok(HttpResponse::Ok().json(entry))
        }
        Answer::Terminal(None) => Err(list::Refusal::UnknownTerminal.into()),
        other => Err(unexpected(&other)),
    }
}

/// `DELETE /v1/terminals/{id}`
pub(super) async fn unregister(
    request: HttpRequest,
    path: web::Path<String>,
    api: web::Data<Api>,
) -> Result<HttpResponse, ApiError> {
    let tenant = tenant(&request, &api.cluster.directory(), |rights| rights.admin)?;
    let terminal: TerminalId = path.parse()?;
    let group = api.cluster.group_of(&terminal);
    // Looked for first: the command is tried again when its outcome is unknown, and its second copy finds nothing.
    match api.cluster.query(group, Query::Terminal { tenant, terminal }, DEADLINE).await? {
        Answer::Terminal(Some(_)) => {}
        Answer::Terminal(None) => return Err(list::Refusal::UnknownTerminal.into()),
        other => return Err(unexpected(&other)),
    }
    let unregister = Command::Unregister(list::Unregister { terminal, tenant });
    match api.cluster.propose(group, unregister, DEADLINE).await {
        // It was there when the request came, and is there no more.
        Ok(Reply::Refused(list::Refusal::UnknownTerminal)) => {}
        outcome => settle(outcome, done)?,
    }
    Ok(HttpResponse::NoContent().finish())
}

/// The query of `GET /v1/terminals`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    after: Option<String>,
    limit: Option<u32>,
}

#[derive(Debug, Serialize)]
struct Listing {
    terminals: Vec<Entry>,
    /// Give it as `after` for the next page; absent on the last one.
    next: Option<String>,
}

/// `GET /v1/terminals`: in the order of their ids, over all shards.
pub(super) async fn list(
    request: HttpRequest,
    page: web::Query<Page>,
    api: web::Data<Api>,
) -> Result<HttpResponse, ApiError> {
    let directory = api.cluster.directory();
    let tenant = tenant(&request, &directory, |rights| rights.read)?;
    let after: Option<TerminalId> = page
        .after
        .as_ref()
        .map(|after| after.parse())
        .transpose()
        .map_err(|error: ParseIdError| ApiError::bad("bad_after", error.to_string()))?;
    let limit = page.limit.unwrap_or(PAGE).clamp(1, MAX_PAGE as u32);
    let shards = api.cluster.shards().map(|group| {
        let query = Query::Terminals { tenant, after, limit: limit + 1 };
        api.cluster.query(group, query, DEADLINE)
    });
    let mut rows: Vec<(TerminalId, Row)> = Vec::new();
    for answer in futures::future::join_all(shards).await {
        if let Answer::Terminals(found) = answer? {
            rows.extend(found);
        }
    }
    rows.sort_by_key(|(terminal, _)| *terminal);
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next = rows.last().filter(|_| more).map(|(terminal, _)| terminal.to_string());
    // As far as this node knows of fences: to have each row say so, as for one terminal, would be an entry for each.
    let fenced = |session: &Current| directory.fenced(session.node, session.incarnation);
    rows.iter_mut().for_each(|(_, row)| row.current = row.current.filter(|session| !fenced(session)));
    let terminals = rows.iter().map(|(terminal, row)| entry(*terminal, row)).collect();
    Ok(HttpResponse::Ok().json(Listing { terminals, next }))
}

/// One line of a bulk registration.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewTerminal {
    /// SHA-256 of the session key's SubjectPublicKeyInfo, 64 hex digits.
    key: String,
}

/// One line of its answer, in the order of the lines.
#[derive(Debug, Serialize)]
struct Registered {
    #[serde(skip_serializing_if = "Option::is_none")]
    terminal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    existed: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// `POST /v1/terminals`: a line of JSON for each key; the answer has a line for each, in the same order.
pub(super) async fn register(
    request: HttpRequest,
    body: web::Payload,
    api: web::Data<Api>,
) -> Result<HttpResponse, ApiError> {
    let tenant = tenant(&request, &api.cluster.directory(), |rights| rights.admin)?;
    let body = body::read(&request, body, MAX_BULK).await?;
    let lines: Vec<&[u8]> =
        body.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()).collect();
    let mut answers: Vec<Option<Registered>> = Vec::new();
    answers.resize_with(lines.len(), || None);
    let mut on_the_way = FuturesUnordered::new();
    let mut lines = lines.into_iter().enumerate();
    loop {
        while on_the_way.len() < BULK_AT_ONCE
            && let Some((at, line)) = lines.next()
        {
            let api = &api;
            on_the_way.push(async move { (at, register_one(api, tenant, line).await) });
        }
        match on_the_way.next().await {
            Some((at, answer)) => answers[at] = Some(answer),
            None => break,
        }
    }
    let mut out = Vec::with_capacity(answers.len() * 64);
    for answer in answers.into_iter().flatten() {
        serde_json::to_writer(&mut out, &answer).map_err(|error| {
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string())
        })?;
        out.push(b'\n');
    }
    Ok(HttpResponse::Ok().content_type("application/x-ndjson").body(out))
}

async fn register_one(api: &Api, tenant: TenantId, line: &[u8]) -> Registered {
    let failed = |error: String| Registered { terminal: None, existed: None, error: Some(error) };
    let session_key: KeyFingerprint = match serde_json::from_slice::<NewTerminal>(line) {
        Err(error) => return failed(format!("a line must be {{\"key\":\"64 hex digits\"}}: {error}")),
        Ok(new) => match new.key.parse() {
            Ok(key) => key,
            Err(error) => return failed(ParseIdError::to_string(&error)),
        },
    };
    let terminal = session_key.terminal();
    let register = list::Register { tenant, session_key, stream: crate::random::new_stream() };
    let group = api.cluster.group_of(&terminal);
    let outcome = api.cluster.propose(group, Command::Register(register), DEADLINE).await;
    let existed = settle(outcome, |reply| match reply {
        Reply::Registered { existed, .. } => Ok(existed),
        other => Err(other),
    });
    match existed {
        Ok(existed) => {
            Registered { terminal: Some(terminal.to_string()), existed: Some(existed), error: None }
        }
        Err(error) => failed(error.to_string()),
    }
}
