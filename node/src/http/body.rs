//! Reading a request's body: after the token was looked at, within a limit and a time. Knows no content.

use actix_web::http::StatusCode;
use actix_web::http::header::CONTENT_LENGTH;
use actix_web::{HttpMessage, HttpRequest, web};
use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::error::ApiError;
use super::limits::BODY_DEADLINE;

/// Reads a body of at most `limit` bytes. One that says in the head that it is longer is not read at all.
pub(super) async fn read(
    request: &HttpRequest,
    payload: web::Payload,
    limit: usize,
) -> Result<Bytes, ApiError> {
    let too_large = || {
        let message = format!("the body may have at most {limit} bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", message)
    };
    // What is no number was refused before; a body in chunks has none and is counted as it comes.
    let announced =
        request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: u64| length > limit as u64) {
        return Err(too_large());
    }
    match tokio::time::timeout(BODY_DEADLINE, payload.to_bytes_limited(limit)).await {
        Ok(Ok(Ok(body))) => Ok(body),
        Ok(Ok(Err(error))) => Err(ApiError::bad("bad_body", format!("the body cannot be read: {error}"))),
        Ok(Err(_)) => Err(too_large()),
        Err(_) => {
            let message = format!("the body did not come within {} s", BODY_DEADLINE.as_secs());
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", message))
        }
    }
}

/// Reads a body of JSON.
pub(super) async fn json<T: DeserializeOwned>(
    request: &HttpRequest,
    payload: web::Payload,
    limit: usize,
) -> Result<T, ApiError> {
    let bad = |what: String| {
        ApiError::bad("bad_json", format!("the body must be JSON with Content-Type application/json: {what}"))
    };
    let kind = request.content_type();
    if !kind.eq_ignore_ascii_case("application/json") {
        return Err(bad(format!("it came as {kind:?}")));
    }
    let body = read(request, payload, limit).await?;
    serde_json::from_slice(&body).map_err(|error| bad(error.to_string()))
}
