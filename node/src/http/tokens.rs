//! Tokens of a tenant: made, listed and revoked by its admin. The text of one is shown once and stored nowhere.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use reveille_protocol::directory::{Change, Rights, Token};
use reveille_protocol::id::KeyFingerprint;
use reveille_protocol::time::GroupTime;
use serde::{Deserialize, Serialize};

use super::auth::{now, tenant, token_hash};
use super::cluster::changed;
use super::error::ApiError;
use super::limits::{MAX_TOKEN_NAME, MAX_TOKEN_REQUEST};
use super::{Api, body};

/// A token to be made.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewToken {
    name: String,
    rights: Vec<Right>,
    /// Seconds until it ends; missing: never.
    ttl: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Right {
    Publish,
    Read,
    Admin,
}

/// A token as the API shows it.
#[derive(Debug, Serialize)]
struct Shown {
    /// SHA-256 of its text: names it for revoking.
    id: String,
    name: String,
    rights: Vec<Right>,
    /// Unix time in milliseconds.
    expires: Option<u64>,
    /// Only in the answer that made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
}

impl Shown {
    fn new(hash: &KeyFingerprint, token: &Token, text: Option<String>) -> Shown {
        let Rights { publish, read, admin } = token.rights;
        let rights = [(publish, Right::Publish), (read, Right::Read), (admin, Right::Admin)];
        Shown {
            id: hash.to_string(),
            name: token.name.clone(),
            rights: rights.into_iter().filter(|(has, _)| *has).map(|(_, right)| right).collect(),
            expires: token.expires.map(|expires| expires.0),
            token: text,
        }
    }
}

/// `POST /v1/tokens`
pub(super) async fn make(
    request: HttpRequest,
    body: web::Payload,
    api: web::Data<Api>,
) -> Result<HttpResponse, ApiError> {
    let tenant = tenant(&request, &api.cluster.directory(), |rights| rights.admin)?;
    let new: NewToken = body::json(&request, body, MAX_TOKEN_REQUEST).await?;
    if new.name.is_empty() || new.name.len() > MAX_TOKEN_NAME {
        return Err(ApiError::bad("bad_name", format!("name must be 1 to {MAX_TOKEN_NAME} bytes")));
    }
    if new.rights.is_empty() {
        return Err(ApiError::bad("bad_rights", "rights must name some of publish, read, admin"));
    }
    let has = |right| new.rights.contains(&right);
    let rights = Rights { publish: has(Right::Publish), read: has(Right::Read), admin: has(Right::Admin) };
    let expires = new.ttl.map(|ttl| GroupTime(now().saturating_add(ttl.saturating_mul(1000))));
    let text: String = crate::random::random::<24>().iter().map(|byte| format!("{byte:02x}")).collect();
    let hash = token_hash(&text);
    let value = Token { name: new.name.clone(), tenant, rights, expires };
    changed(&api, Change::PutToken { hash, value: value.clone() }).await?;
    Ok(HttpResponse::build(StatusCode::CREATED).json(Shown::new(&hash, &value, Some(text))))
}

/// `GET /v1/tokens`
pub(super) async fn list(request: HttpRequest, api: web::Data<Api>) -> Result<HttpResponse, ApiError> {
    let directory = api.cluster.directory();
    let tenant = tenant(&request, &directory, |rights| rights.admin)?;
    let own = directory.tokens.iter().filter(|(_, token)| token.tenant == tenant);
    let tokens: Vec<_> = own.map(|(hash, token)| Shown::new(hash, token, None)).collect();
    Ok(HttpResponse::Ok().json(serde_json::json!({ "tokens": tokens })))
}

/// `DELETE /v1/tokens/{id}`: a node that was cut off learns of it when it is back.
pub(super) async fn revoke(
    request: HttpRequest,
    path: web::Path<String>,
    api: web::Data<Api>,
) -> Result<HttpResponse, ApiError> {
    let directory = api.cluster.directory();
    let tenant = tenant(&request, &directory, |rights| rights.admin)?;
    let malformed =
        |_| ApiError::bad("malformed_id", "malformed token id: 64 hex digits, as GET /v1/tokens lists them");
    let hash: KeyFingerprint = path.parse().map_err(malformed)?;
    let Some(revoked) = directory.tokens.get(&hash).filter(|token| token.tenant == tenant) else {
        return Err(ApiError::new(StatusCode::NOT_FOUND, "unknown_token_id", "no token with this id"));
    };
    let ends = |token: &Token| token.expires.is_some_and(|expires| expires.0 <= now());
    let admits = |(other, token): (&KeyFingerprint, &Token)| {
        *other != hash && token.tenant == tenant && token.rights.admin && !ends(token)
    };
    if revoked.rights.admin && !directory.tokens.iter().any(admits) {
        let message = "this is the tenant's last admin token: nobody could make another; make one first";
        return Err(ApiError::new(StatusCode::CONFLICT, "last_admin_token", message));
    }
    changed(&api, Change::RevokeToken { hash }).await?;
    Ok(HttpResponse::NoContent().finish())
}
