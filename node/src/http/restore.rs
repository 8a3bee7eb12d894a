//! The operator's way to bring a backup into a new cluster: begin, parts of terminals, finish. Each request may be repeated
//! under the same id; what was done stays done. Who reads the backup, and whether it is whole, is not known here.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use futures::future::join_all;
use reveille_cluster::query::{Answer, Query, RestoreState};
use reveille_protocol::directory::{Change, Directory, MAX_DIRECTORY};
use reveille_protocol::id::{GroupId, RestoreId};
use reveille_protocol::service_list::{Command, Import, ImportStep, Imported, Reply};
use reveille_protocol::wire::codec;

use super::admin::{Admin, may};
use super::cluster::changed;
use super::error::{ApiError, done, settle, unexpected};
use super::limits::{DEADLINE, MAX_IMPORT, MAX_IMPORT_TERMINALS};
use super::{Api, body};

async fn import(api: &Api, group: GroupId, restore: RestoreId, step: ImportStep) -> Result<bool, ApiError> {
    let command = Command::Import(Box::new(Import { restore, step }));
    settle(api.cluster.propose(group, command, DEADLINE).await, |reply| match reply {
        Reply::Restored => Ok(true),
        reply => done(reply).map(|()| false),
    })
}

/// The same step in every shard; whether the restore was finished in all of them before.
async fn everywhere(api: &Api, restore: RestoreId, step: ImportStep) -> Result<bool, ApiError> {
    let all = api.cluster.shards().map(|group| import(api, group, restore, step.clone()));
    let all = join_all(all).await;
    // A refusal is said before what may be otherwise when this is repeated.
    let (refused, rest): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|one| one.as_ref().is_err_and(ApiError::is_refusal));
    let all = refused.into_iter().chain(rest).collect::<Result<Vec<_>, _>>()?;
    Ok(all.into_iter().all(|finished| finished))
}

/// A shard, and the last restore that was begun in it.
type Begun = (GroupId, Option<RestoreState>);

async fn begun_in(api: &Api, shard: GroupId) -> Result<Begun, ApiError> {
    match api.cluster.query(shard, Query::Restore, DEADLINE).await? {
        Answer::Restore(state) => Ok((shard, state)),
        other => Err(unexpected(&other)),
    }
}

/// The shards in which a restore is open, and the step that ends it there for whoever has its backup no more. It cannot be
/// taken back from under terminals; but where it was finished in any shard, all had been brought, and it is finished.
fn ending(begun: &[Begun], restore: RestoreId) -> Result<(ImportStep, Vec<GroupId>), ApiError> {
    let mine =
        begun.iter().filter_map(|(shard, state)| Some((*shard, state.filter(|one| one.restore == restore)?)));
    let (open, finished): (Vec<_>, Vec<_>) = mine.partition(|(_, state)| state.open);
    let step = match finished.is_empty() {
        false => ImportStep::Finish,
        true if open.iter().any(|(_, state)| state.terminals) => {
            return Err(ApiError::new(
                StatusCode::CONFLICT,
                "has_terminals",
                "terminals have come by this restore, so it cannot be given up: run it again with its backup, or make \
                 the cluster anew",
            ));
        }
        true => ImportStep::GiveUp,
    };
    Ok((step, open.into_iter().map(|(shard, _)| shard).collect()))
}

fn malformed(error: impl std::fmt::Display) -> ApiError {
    ApiError::bad("bad_backup", format!("the body is no part of a backup: {error}"))
}

/// `POST /cluster/restore/{id}`: the shards serve nobody from now on, and the directory is that of the backup, which is the
/// body. Refused as a whole if the cluster is not new.
pub(super) async fn begin(
    request: HttpRequest,
    id: web::Path<String>,
    body: web::Payload,
    api: web::Data<Api>,
    admin: web::Data<Admin>,
) -> Result<HttpResponse, ApiError> {
    may(&request, &api, &admin)?;
    let restore: RestoreId = id.parse()?;
    let body = body::read(&request, body, MAX_DIRECTORY).await?;
    let Directory { tenants, tokens, secrets, .. } = Directory::decode(&body).map_err(malformed)?;
    let begun = async {
        let finished = everywhere(&api, restore, ImportStep::Begin).await?;
        changed(&api, Change::Restore { restore, tenants, tokens, secrets }).await?;
        Ok::<_, ApiError>(finished)
    };
    match begun.await {
        Ok(finished) => Ok(HttpResponse::Ok().json(serde_json::json!({ "finished": finished }))),
        Err(error) => {
            if error.is_refusal() {
                // A cluster that is not to be restored serves on. What did not hear of it does when this is repeated.
                let all = api.cluster.shards().map(|group| import(&api, group, restore, ImportStep::GiveUp));
                join_all(all).await;
            }
            Err(error)
        }
    }
}

/// `POST /cluster/restore/{id}/terminals`: some terminals and what waits for them.
pub(super) async fn terminals(
    request: HttpRequest,
    id: web::Path<String>,
    body: web::Payload,
    api: web::Data<Api>,
    admin: web::Data<Admin>,
) -> Result<HttpResponse, ApiError> {
    may(&request, &api, &admin)?;
    let restore: RestoreId = id.parse()?;
    let body = body::read(&request, body, MAX_IMPORT).await?;
    let all: Vec<Imported> = codec::decode::<_, MAX_IMPORT>(&body).map_err(malformed)?;
    if all.len() > MAX_IMPORT_TERMINALS {
        return Err(malformed(format_args!("it has {} terminals; send {MAX_IMPORT_TERMINALS}", all.len())));
    }
    let mut groups: std::collections::BTreeMap<GroupId, Vec<Imported>> = Default::default();
    for one in all {
        groups.entry(api.cluster.group_of(&one.row.session_key.terminal())).or_default().push(one);
    }
    let all =
        groups.into_iter().map(|(group, some)| import(&api, group, restore, ImportStep::Terminals(some)));
    join_all(all).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(HttpResponse::NoContent().finish())
}

/// `POST /cluster/restore/{id}/finish`: everything was brought; the shards serve.
pub(super) async fn finish(
    request: HttpRequest,
    id: web::Path<String>,
    api: web::Data<Api>,
    admin: web::Data<Admin>,
) -> Result<HttpResponse, ApiError> {
    may(&request, &api, &admin)?;
    everywhere(&api, id.parse()?, ImportStep::Finish).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// `POST /cluster/restore/{id}/give-up`: the shards serve again without it, if it has brought nothing.
pub(super) async fn give_up(
    request: HttpRequest,
    id: web::Path<String>,
    api: web::Data<Api>,
    admin: web::Data<Admin>,
) -> Result<HttpResponse, ApiError> {
    may(&request, &api, &admin)?;
    let restore: RestoreId = id.parse()?;
    let begun = async || -> Result<Vec<Begun>, ApiError> {
        join_all(api.cluster.shards().map(|shard| begun_in(&api, shard))).await.into_iter().collect()
    };
    let (step, open) = ending(&begun().await?, restore)?;
    let all = open.iter().map(|shard| import(&api, *shard, restore, step.clone()));
    join_all(all).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    // Whoever restores may have brought terminals meanwhile: there it goes on.
    let (_, left) = ending(&begun().await?, restore)?;
    if !left.is_empty() {
        let message = format!("the restore is open in {} shards again; does somebody run it?", left.len());
        return Err(ApiError::unavailable(message));
    }
    let finished = step == ImportStep::Finish;
    Ok(HttpResponse::Ok()
        .json(serde_json::json!({ "given_up": !finished && !open.is_empty(), "finished": finished })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restore_is_given_up_before_terminals_come_and_finished_after_the_last() {
        const MINE: RestoreId = RestoreId([1; 16]);
        let state = |restore, open, terminals| Some(RestoreState { restore, open, terminals });
        let ending = |states: &[Option<RestoreState>]| {
            let begun: Vec<Begun> = (1..).map(GroupId).zip(states.iter().copied()).collect();
            super::ending(&begun, MINE).map_err(|error| error.to_string())
        };
        let (empty, other) = (state(MINE, true, false), state(RestoreId([2; 16]), true, true));
        assert_eq!(ending(&[None, other]), Ok((ImportStep::GiveUp, vec![])), "nothing to do");
        let both = vec![GroupId(1), GroupId(3)];
        assert_eq!(ending(&[empty, None, empty, other]), Ok((ImportStep::GiveUp, both.clone())));
        let refused = ending(&[empty, state(MINE, true, true)]);
        assert!(refused.is_err_and(|why| why.contains("terminals have come")));
        let finished = state(MINE, false, true);
        assert_eq!(ending(&[empty, finished, state(MINE, true, true)]), Ok((ImportStep::Finish, both)));
    }
}
