//! Publishing, asking what became of a push, and taking it back.

use std::time::Instant;

use actix_web::http::StatusCode;
use actix_web::http::header::LOCATION;
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use reveille_cluster::query::{Answer, MAX_WAIT, MessageView, Query};
use reveille_protocol::hash::sha256;
use reveille_protocol::id::*;
use reveille_protocol::limits;
use reveille_protocol::service_list::row::Urgency;
use reveille_protocol::service_list::{self as list, Command, Enqueue, Reply};
use reveille_protocol::stage::Stage;
use reveille_protocol::time::GroupTime;
use serde::{Deserialize, Serialize};

use super::auth::tenant;
use super::error::{ApiError, settle, unexpected};
use super::limits::{DEADLINE, DEFAULT_WAIT};
use super::{Api, body};
use crate::telemetry::{Count, publish_took};

/// The answer to a publish.
#[derive(Debug, Serialize)]
struct Published {
    message: String,
    seq: u64,
    /// Unix time in milliseconds.
    expires: u64,
    duplicate: bool,
}

/// `POST /v1/terminals/{id}/messages`
pub(super) async fn publish(
    request: HttpRequest,
    path: web::Path<String>,
    body: web::Payload,
    api: web::Data<Api>,
) -> Result<HttpResponse, ApiError> {
    let began = Instant::now();
    let tenant = tenant(&request, &api.cluster.directory(), |rights| rights.publish)?;
    let terminal: TerminalId = path.parse()?;
    let body = body::read(&request, body, limits::MAX_PAYLOAD_CEILING).await?;
    let enqueue = enqueue(&request, tenant, terminal, body)?;
    let zero_ttl = enqueue.ttl == Some(0);
    let group = api.cluster.group_of(&terminal);
    let outcome = api.cluster.propose(group, Command::Enqueue(Box::new(enqueue)), DEADLINE).await;
    match &outcome {
        Ok(Reply::Enqueued { duplicate: false, .. }) => Count::Publishes.one("stored"),
        Ok(Reply::Enqueued { duplicate: true, .. }) => Count::Publishes.one("duplicate"),
        Ok(Reply::Refused(_)) => Count::Publishes.one("refused"),
        Ok(_) => {}
        Err(_) => Count::Publishes.one("unavailable"),
    }
    publish_took(began.elapsed().as_secs_f64());
    settle(outcome, |reply| match reply {
        Reply::Enqueued { message, deadline, accepted, duplicate } => {
            // What it is really kept for; TTL 0 is kept for the wake window and answered as asked (RFC 8030 5.2).
            let kept = if zero_ttl { 0 } else { deadline.since(accepted).as_secs() };
            let published = Published {
                message: message.to_string(),
                seq: message.seq.0,
                expires: deadline.0,
                duplicate,
            };
            let mut response = HttpResponse::build(StatusCode::CREATED);
            response.insert_header((LOCATION, format!("/v1/messages/{message}")));
            response.insert_header(("TTL", kept));
            Ok(response.json(published))
        }
        other => Err(other),
    })
}

/// The request as a command; each header checked, and named if it is bad.
fn enqueue(
    request: &HttpRequest,
    tenant: TenantId,
    terminal: TerminalId,
    body: Bytes,
) -> Result<Enqueue, ApiError> {
    let ttl = header(request, "TTL")?.map(parse_ttl).transpose()?;
    let urgency = match header(request, "Urgency")? {
        None => Urgency::Normal,
        Some(text) => parse_urgency(text).ok_or_else(|| {
            ApiError::bad("bad_urgency", "Urgency must be one of very-low, low, normal, high")
        })?,
    };
    let topic = header(request, "Topic")?.map(str::to_owned);
    if let Some(topic) = &topic {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if topic.is_empty() || topic.len() > limits::MAX_TOPIC || !topic.bytes().all(allowed) {
            let message = format!("Topic must be 1 to {} characters of A-Z a-z 0-9 - _", limits::MAX_TOPIC);
            return Err(ApiError::bad("bad_topic", message));
        }
    }
    let channel = match header(request, "Channel")? {
        None => Channel(0),
        Some(text) => {
            Channel(text.parse().map_err(|_| ApiError::bad("bad_channel", "Channel must be a number"))?)
        }
    };
    let headers = application_headers(request)?;
    let idempotency = match header(request, "Idempotency-Key")? {
        None => None,
        Some(key) if key.is_empty() || key.len() > limits::MAX_IDEMPOTENCY_KEY => {
            let message = format!("Idempotency-Key must be 1 to {} characters", limits::MAX_IDEMPOTENCY_KEY);
            return Err(ApiError::bad("bad_idempotency_key", message));
        }
        Some(key) => Some(list::Idempotency {
            key: list::key::idempotency_hash(tenant, &terminal, key),
            body_hash: KeyFingerprint(sha256(&body)).terminal().0,
        }),
    };
    Ok(Enqueue {
        id: CommandId(crate::random::random()),
        not_after: GroupTime(0),
        retry: false,
        terminal,
        tenant,
        ttl,
        urgency,
        channel,
        topic,
        idempotency,
        headers,
        body,
    })
}

/// A header's text; repeated or not text: refused, because which of them counts would be a guess.
fn header<'r>(request: &'r HttpRequest, name: &'static str) -> Result<Option<&'r str>, ApiError> {
    let mut values = request.headers().get_all(name);
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().ok().filter(|_| values.next().is_none());
    text.map(|text| Some(text.trim()))
        .ok_or_else(|| ApiError::bad("bad_header", format!("{name} must be one line of text")))
}

/// Seconds, as milliseconds (RFC 8030 section 5.2: digits only; beyond 2^31 is as good as 2^31).
fn parse_ttl(text: &str) -> Result<u64, ApiError> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits {
        return Err(ApiError::bad("bad_ttl", format!("TTL must be a number of seconds, not {text:?}")));
    }
    Ok(text.parse::<u64>().unwrap_or(u64::MAX).min(1 << 31) * 1000)
}

fn parse_urgency(text: &str) -> Option<Urgency> {
    Some(match text {
        "very-low" => Urgency::VeryLow,
        "low" => Urgency::Low,
        "normal" => Urgency::Normal,
        "high" => Urgency::High,
        _ => return None,
    })
}

/// What goes to the application with the payload: its type and encoding, and what begins with `X-Push-`.
fn application_headers(request: &HttpRequest) -> Result<Vec<(String, String)>, ApiError> {
    let mut headers = Vec::new();
    let mut bytes = 0;
    for (name, value) in request.headers() {
        let name = name.as_str();
        let default = name == "content-type" && value == "application/octet-stream";
        if !(name == "content-type" && !default || name == "content-encoding" || name.starts_with("x-push-"))
        {
            continue;
        }
        let value =
            value.to_str().map_err(|_| ApiError::bad("bad_header", format!("{name} must be text")))?;
        bytes += name.len() + value.len();
        headers.push((name.to_owned(), value.to_owned()));
    }
    if bytes > limits::MAX_HEADERS {
        let message = format!(
            "headers for the application have {bytes} bytes, at most {} are kept",
            limits::MAX_HEADERS
        );
        return Err(ApiError::bad("headers_too_long", message));
    }
    Ok(headers)
}

/// The query of `GET /v1/messages/{id}`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wait {
    wait: Option<String>,
    timeout: Option<String>,
}

/// What became of a push.
#[derive(Debug, Serialize)]
struct Status {
    message: String,
    terminal: String,
    seq: u64,
    state: &'static str,
    /// Unix times in milliseconds.
    accepted: u64,
    expires: u64,
    ended: Option<u64>,
    seen: Option<u64>,
    stages: Vec<StageStatus>,
}

#[derive(Debug, Serialize)]
struct StageStatus {
    stage: &'static str,
    /// Unix time in milliseconds, with fractions.
    at: f64,
    node: Option<u64>,
}

/// `GET /v1/messages/{id}`
pub(super) async fn get(
    request: HttpRequest,
    path: web::Path<String>,
    wait: web::Query<Wait>,
    api: web::Data<Api>,
) -> Result<HttpResponse, ApiError> {
    let tenant = tenant(&request, &api.cluster.directory(), |rights| rights.read)?;
    let message: MessageId = path.parse()?;
    let group = api.cluster.group_of(&message.terminal);
    let query = Query::Message { tenant, message, wait: wait.millis()? };
    match api.cluster.query(group, query, DEADLINE).await? {
        Answer::Message(Some(view)) => Ok(HttpResponse::Ok().json(status(&message, &view))),
        Answer::Message(None) => Err(list::Refusal::UnknownMessage.into()),
        other => Err(unexpected(&other)),
    }
}

impl Wait {
    fn millis(&self) -> Result<u64, ApiError> {
        let timeout = match &self.timeout {
            None => DEFAULT_WAIT,
            Some(text) => humantime::parse_duration(text).map_err(|error| {
                ApiError::bad("bad_timeout", format!("timeout: {error}; write it like 10s"))
            })?,
        };
        match self.wait.as_deref() {
            None => Ok(0),
            Some("acked" | "ended") => Ok(timeout.min(MAX_WAIT).as_millis() as u64),
            Some(_) => Err(ApiError::bad("bad_wait", "wait must be acked")),
        }
    }
}

fn status(message: &MessageId, view: &MessageView) -> Status {
    let durable =
        |stage: Stage, at: GroupTime| StageStatus { stage: stage.name(), at: at.0 as f64, node: None };
    let mut stages = vec![durable(Stage::Accepted, view.accepted)];
    stages.extend(view.trace.iter().map(|traced| StageStatus {
        stage: traced.stage.name(),
        at: traced.at as f64 / 1000.0,
        node: Some(traced.node.0),
    }));
    let known = |stage: Stage| view.trace.iter().any(|traced| traced.stage == stage);
    if !known(Stage::Stored) {
        stages.push(durable(Stage::Stored, view.accepted));
    }
    if let Some((end, at)) = view.end
        && !known(end.stage())
    {
        stages.push(durable(end.stage(), at));
    }
    Status {
        message: message.to_string(),
        terminal: message.terminal.to_string(),
        seq: message.seq.0,
        state: view.end.map_or("pending", |(end, _)| end.stage().name()),
        accepted: view.accepted.0,
        expires: view.deadline.0,
        ended: view.end.map(|(_, at)| at.0),
        seen: view.seen.map(|at| at.0),
        stages,
    }
}

/// `DELETE /v1/messages/{id}`
pub(super) async fn cancel(
    request: HttpRequest,
    path: web::Path<String>,
    api: web::Data<Api>,
) -> Result<HttpResponse, ApiError> {
    let tenant = tenant(&request, &api.cluster.directory(), |rights| rights.publish)?;
    let message: MessageId = path.parse()?;
    let group = api.cluster.group_of(&message.terminal);
    let cancel = Command::Cancel(list::Cancel { message, tenant });
    let end = settle(api.cluster.propose(group, cancel, DEADLINE).await, |reply| match reply {
        Reply::Ended(end) => Ok(end),
        other => Err(other),
    })?;
    Ok(HttpResponse::Ok().json(serde_json::json!({ "state": end.stage().name() })))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::Duration;

    fn asked(timeout: &str) -> Duration {
        let wait = Wait { wait: Some("acked".to_owned()), timeout: Some(timeout.to_owned()) };
        Duration::from_millis(wait.millis().unwrap())
    }

    #[test]
    fn nobody_waits_longer_than_the_leader_lets_them() {
        assert_eq!(asked("30s"), Duration::from_secs(30));
        assert_eq!(asked("2h"), MAX_WAIT);
    }
}
