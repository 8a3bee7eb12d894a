//! Reading a request's body: after the token was looked at, within a limit and a time. Knows no content.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::web;
use bytes::Bytes;

use super::error::ApiError;

/// A body must be there within this: the largest one over a slow line.
const DEADLINE: Duration = Duration::from_secs(15);

/// Reads a body of at most `limit` bytes.
pub(super) async fn read(payload: web::Payload, limit: usize) -> Result<Bytes, ApiError> {
    match tokio::time::timeout(DEADLINE, payload.to_bytes_limited(limit)).await {
        Ok(Ok(Ok(body))) => Ok(body),
        Ok(Ok(Err(error))) => Err(ApiError::bad("bad_body", format!("the body cannot be read: {error}"))),
        Ok(Err(_)) => {
            let message = format!("the body may have at most {limit} bytes");
            Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", message))
        }
        Err(_) => {
            let message = format!("the body did not come within {} s", DEADLINE.as_secs());
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", message))
        }
    }
}
