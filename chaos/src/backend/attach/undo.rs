//! Undoing: whatever a journal says was begun is taken back, the last first, and terminals are unregistered.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::bail;
use tokio::time::{Instant, sleep};

use super::cluster::Cluster;
use super::hooks::{Hooks, quoted};
use super::journal::{Journal, now};
use crate::backend::http::Request;

/// A hook that undoes something and fails is run so often, with [`PAUSE`] in between.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);
/// A node's answer to an unregistering.
const ANSWER: Duration = Duration::from_secs(5);
/// All unregistering together is given up after this.
const FORGET: Duration = Duration::from_secs(60);

/// A journal that several write to.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<Journal>>);

impl Shared {
    pub(super) fn new(journal: Journal) -> Shared {
        Shared(Arc::new(Mutex::new(journal)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Journal> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The journal again, if nobody else has it any more.
    pub(super) fn into_inner(self) -> Option<Journal> {
        Some(Arc::into_inner(self.0)?.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Undoes what the journal says was begun, the last first; says what it does.
///
/// # Errors
/// What could not be undone, with the command that would: it stays in the journal.
pub(super) async fn deeds(
    hooks: &Hooks,
    journal: &Shared,
    within: Duration,
    say: &(dyn Fn(&str) + Sync),
) -> anyhow::Result<()> {
    let left: Vec<_> = journal.lock().left.deeds.clone().into_iter().rev().collect();
    let mut failed = Vec::new();
    for (number, deed) in left {
        if !deed.struck {
            // Its hook may still be on its way, and must not come after what undoes it.
            let over = deed.unix_ms + within.as_millis() as u64;
            sleep(Duration::from_millis(over.saturating_sub(now())).min(within)).await;
        }
        let (what, command) = (format!("{} of {}", deed.hook, words(deed.on)), quoted(&deed.undo));
        match one(hooks, &deed.undo).await {
            Ok(()) => {
                say(&format!("UNDO  {what} ({command})"));
                // The others are undone whatever the disk says.
                if let Err(error) = journal.lock().undone(number) {
                    failed.push(format!("{what}: undone, but not noted: {error:#}"));
                }
            }
            Err(error) => failed.push(format!("{what}: {error:#}; by hand: {command}")),
        }
    }
    if !failed.is_empty() {
        bail!("not undone, and still in the journal:\n  {}", failed.join("\n  "));
    }
    Ok(())
}

/// Runs a hook that undoes, several times if it must be.
pub(super) async fn one(hooks: &Hooks, undo: &[String]) -> anyhow::Result<()> {
    let mut tries = 1;
    loop {
        match hooks.run(undo.to_vec()).await {
            Err(_) if tries < TRIES => sleep(PAUSE).await,
            outcome => return outcome,
        }
        tries += 1;
    }
}

/// Whom a hook is about, in words.
pub(super) fn words(on: super::hooks::On) -> String {
    match on.to {
        Some(to) => format!("link {} -> {to}", on.node),
        None => format!("node {}", on.node),
    }
}

/// Unregisters the journal's terminals. What the API does not allow stays there, and is said.
///
/// # Errors
/// If the journal cannot be written.
pub(super) async fn terminals(
    cluster: &Cluster,
    journal: &Shared,
    say: &(dyn Fn(&str) + Sync),
) -> anyhow::Result<()> {
    let all: Vec<String> = journal.lock().left.terminals.iter().cloned().collect();
    if all.is_empty() {
        return Ok(());
    }
    let until = Instant::now() + FORGET;
    let token = cluster.operator();
    let mut kept = 0;
    let mut why = "there was no answer".to_owned();
    for (turn, id) in all.iter().enumerate() {
        let path = format!("/v1/terminals/{id}");
        let mut gone = false;
        for at in 0..cluster.http.len() {
            let request = Request { method: "DELETE", path: &path, token, headers: &[], body: b"" };
            let server = &cluster.http[(turn + at) % cluster.http.len()];
            match request.send(server, ANSWER).await {
                Ok(answer) if answer.status == 204 => gone = true,
                // Only a token of its tenant can say that it is not there.
                Ok(answer) if answer.status == 404 => {
                    let look = Request::get(&path, &cluster.token).send(server, ANSWER).await;
                    gone = look.is_ok_and(|answer| answer.status == 404);
                    why = "the `admin_token` is of another tenant".to_owned();
                }
                Ok(answer) if matches!(answer.status, 401 | 403) => {
                    why = "the token may not: `admin_token` is needed for that".to_owned();
                    break;
                }
                Ok(answer) => why = format!("the answer was {}", answer.status),
                Err(_) => {}
            }
            if gone || Instant::now() > until {
                break;
            }
        }
        match gone {
            true => journal.lock().forgotten(id)?,
            false => kept += 1,
        }
    }
    match kept {
        0 => say(&format!("{} terminals are unregistered", all.len())),
        // They are noted in the journal no longer than somebody can do something about them: the next heal.
        _ => say(&format!("{kept} of {} terminals stay registered: {why}", all.len())),
    }
    Ok(())
}
