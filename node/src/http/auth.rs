//! Who asks: bearer tokens, scoped to a tenant and to rights (RFC 6750).

use std::time::{SystemTime, UNIX_EPOCH};

use actix_web::HttpRequest;
use actix_web::http::StatusCode;
use actix_web::http::header::AUTHORIZATION;
use reveille_protocol::directory::{Directory, Rights};
use reveille_protocol::hash::sha256;
use reveille_protocol::id::{KeyFingerprint, TenantId};

use super::error::ApiError;

/// Unix time in milliseconds, by this node's clock.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// The hash under which a token is in the directory.
pub(super) fn token_hash(token: &str) -> KeyFingerprint {
    KeyFingerprint(sha256(token.as_bytes()))
}

/// The tenant whose token came with the request, if it has the right that `needs` looks for.
pub(super) fn tenant(
    request: &HttpRequest,
    directory: &Directory,
    needs: fn(&Rights) -> bool,
) -> Result<TenantId, ApiError> {
    let header = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = header.and_then(|header| {
        let (scheme, token) = header.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    let missing = "send a token as `Authorization: Bearer TOKEN`";
    let token = token.ok_or_else(|| ApiError::new(StatusCode::UNAUTHORIZED, "no_token", missing))?;
    // Looked up by its hash, so that the time of the look-up tells nothing of the token.
    let known = directory.tokens.get(&token_hash(token));
    let known = known.filter(|known| known.expires.is_none_or(|expires| expires.0 > now()));
    let known = known.ok_or_else(|| {
        ApiError::new(StatusCode::UNAUTHORIZED, "unknown_token", "unknown or expired token")
    })?;
    match needs(&known.rights) {
        true => Ok(known.tenant),
        false => Err(ApiError::new(StatusCode::FORBIDDEN, "no_right", "the token does not have this right")),
    }
}
