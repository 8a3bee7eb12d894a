//! The operator's way to read one group's tables out, as a stream in the backup's format. A stream without its end was
//! broken off; whoever reads it sees that, and asks again.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use futures::stream;
use reveille_protocol::id::GroupId;
use reveille_protocol::wire::backup::{self as format, Part};

use super::Api;
use super::admin::{Admin, may};
use super::error::ApiError;

/// `GET /cluster/backup/{group}`
pub(super) async fn backup(
    request: HttpRequest,
    group: web::Path<u16>,
    api: web::Data<Api>,
    admin: web::Data<Admin>,
) -> Result<HttpResponse, ApiError> {
    may(&request, &api, &admin)?;
    let group = GroupId(*group);
    if group != GroupId::META && !api.cluster.shards().any(|shard| shard == group) {
        let message = format!("this cluster has no group {group}");
        return Err(ApiError::new(StatusCode::NOT_FOUND, "unknown_group", message));
    }
    let reading = api.cluster.read_out(group).await.map_err(ApiError::unavailable)?;
    let mut first = format::start();
    first.extend(Part::Head(reading.head).encode());
    let parts = stream::try_unfold((reading, Some(first)), |(mut reading, first)| async move {
        let bytes = match first {
            Some(first) => Some(first),
            None => reading.next().await.map_err(std::io::Error::other)?.map(|part| part.encode()),
        };
        Ok::<_, std::io::Error>(bytes.map(|bytes| (Bytes::from(bytes), (reading, None))))
    });
    Ok(HttpResponse::Ok().content_type("application/octet-stream").streaming(parts))
}
