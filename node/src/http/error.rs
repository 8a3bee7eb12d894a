//! What goes wrong, as HTTP: a status and a body `{code, error, message}` that says what to do.

use actix_web::http::StatusCode;
use actix_web::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpResponse, ResponseError};
use reveille_cluster::Unavailable;
use reveille_protocol::directory::Refused;
use reveille_protocol::id::ParseIdError;
use reveille_protocol::service_list::{Refusal, Reply};
use serde::Serialize;

use crate::telemetry::Count;

/// A refused request.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct ApiError {
    status: StatusCode,
    error: &'static str,
    message: String,
    retry_after: Option<u32>,
}

#[derive(Serialize)]
struct Body<'a> {
    code: u16,
    error: &'a str,
    message: &'a str,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, error: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { status, error, message: message.into(), retry_after: None }
    }

    pub(super) fn bad(error: &'static str, message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, error, message)
    }

    /// Not now: ask again.
    pub(super) fn unavailable(message: String) -> ApiError {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message).retry(1)
    }

    /// It will not be done, however often it is asked for.
    pub(super) fn is_refusal(&self) -> bool {
        self.status.is_client_error()
    }

    fn retry(mut self, seconds: u32) -> ApiError {
        self.retry_after = Some(seconds);
        self
    }
}

/// What a command came to, by the reply that `wanted` takes: a refusal is for whoever asked, any other reply a fault
/// of ours.
pub(super) fn settle<T>(
    outcome: Result<Reply, Unavailable>,
    wanted: impl FnOnce(Reply) -> Result<T, Reply>,
) -> Result<T, ApiError> {
    match outcome? {
        Reply::Refused(refusal) => Err(refusal.into()),
        reply => wanted(reply).map_err(|other| unexpected(&other)),
    }
}

/// A command that has nothing to say but that it was done.
pub(super) fn done(reply: Reply) -> Result<(), Reply> {
    match reply {
        Reply::Done => Ok(()),
        other => Err(other),
    }
}

/// A command or query was answered with another one's answer: a fault of ours.
pub(super) fn unexpected(answer: &impl std::fmt::Debug) -> ApiError {
    tracing::error!(?answer, "a request was answered with another one's answer");
    let message = "the service list gave an answer of another kind; this is a defect, please report it";
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
}

/// Of an id in a path.
impl From<ParseIdError> for ApiError {
    fn from(error: ParseIdError) -> ApiError {
        ApiError::bad("malformed_id", error.to_string())
    }
}

impl From<Unavailable> for ApiError {
    fn from(unavailable: Unavailable) -> ApiError {
        ApiError::unavailable(unavailable.to_string())
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> ApiError {
        let (status, error) = match &refusal {
            Refusal::UnknownTerminal => (StatusCode::NOT_FOUND, "unknown_terminal"),
            Refusal::UnknownMessage => (StatusCode::NOT_FOUND, "unknown_message"),
            Refusal::OtherTenant => (StatusCode::CONFLICT, "other_tenant"),
            Refusal::PayloadTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large"),
            Refusal::QueueFull { .. } => (StatusCode::TOO_MANY_REQUESTS, "queue_full"),
            Refusal::ShareUsedUp { .. } => (StatusCode::TOO_MANY_REQUESTS, "share_used_up"),
            Refusal::KeyReused { .. } => (StatusCode::CONFLICT, "idempotency_key_reused"),
            Refusal::TooLate { .. } | Refusal::Unknown => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            Refusal::Directory(refused) => directory(refused),
            Refusal::Restoring => (StatusCode::SERVICE_UNAVAILABLE, "restoring"),
            Refusal::NotEmpty => (StatusCode::CONFLICT, "not_empty"),
            Refusal::OtherRestore => (StatusCode::CONFLICT, "other_restore"),
            Refusal::BadImport(_) => (StatusCode::BAD_REQUEST, "bad_backup"),
            Refusal::Fenced
            | Refusal::StaleAttempt { .. }
            | Refusal::StaleEpoch { .. }
            | Refusal::StaleStream
            | Refusal::AckAhead { .. }
            | Refusal::WrongGroup => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        };
        let wait = match status {
            StatusCode::SERVICE_UNAVAILABLE => Some(1),
            // The queue empties when the terminal comes.
            StatusCode::TOO_MANY_REQUESTS => Some(60),
            _ => None,
        };
        ApiError { retry_after: wait, ..ApiError::new(status, error, refusal.to_string()) }
    }
}

fn directory(refused: &Refused) -> (StatusCode, &'static str) {
    match refused {
        Refused::UnknownNode(_) => (StatusCode::NOT_FOUND, "unknown_node"),
        Refused::UnknownTenant(_) => (StatusCode::NOT_FOUND, "unknown_tenant"),
        Refused::Format(_) => (StatusCode::CONFLICT, "old_format"),
        Refused::TooFew { .. } => (StatusCode::CONFLICT, "too_few_nodes"),
        Refused::AddressTaken(_) => (StatusCode::CONFLICT, "address_taken"),
        Refused::NotJoined(_) => (StatusCode::CONFLICT, "not_joined"),
        Refused::Replicas(_) => (StatusCode::BAD_REQUEST, "bad_replicas"),
        Refused::TooManyNodes(_) => (StatusCode::CONFLICT, "too_many_nodes"),
        Refused::Full(_) => (StatusCode::CONFLICT, "directory_full"),
        Refused::NotFresh => (StatusCode::CONFLICT, "not_new"),
        Refused::Secrets => (StatusCode::BAD_REQUEST, "bad_backup"),
        _ => (StatusCode::CONFLICT, "refused"),
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        Count::HttpRefused.one(self.error);
        let mut response = HttpResponse::build(self.status);
        if let Some(seconds) = self.retry_after {
            response.insert_header((RETRY_AFTER, seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.insert_header((WWW_AUTHENTICATE, "Bearer"));
        }
        response.json(Body { code: self.status.as_u16(), error: self.error, message: &self.message })
    }
}

pub(super) async fn no_such_page() -> Result<HttpResponse, ApiError> {
    Err(ApiError::new(StatusCode::NOT_FOUND, "no_such_page", "no such page; see docs/api.md for the routes"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_reply_is_taken_a_refusal_told_and_another_reply_a_defect() {
        let error = |outcome| {
            let error = settle(outcome, done).unwrap_err();
            (error.status.as_u16(), error.error)
        };
        assert!(settle(Ok(Reply::Done), done).is_ok());
        assert_eq!(error(Ok(Reply::Refused(Refusal::UnknownTerminal))), (404, "unknown_terminal"));
        for unavailable in [Unavailable::Busy, Unavailable::Stopping, Unavailable::Unreadable(String::new())]
        {
            assert_eq!(error(Err(unavailable)), (503, "unavailable"));
        }
        assert_eq!(error(Ok(Reply::Ended(reveille_protocol::stage::End::Acked))), (500, "internal"));
    }
}
