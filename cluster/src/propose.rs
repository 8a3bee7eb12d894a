//! One group's proposer: gathers commands into log entries and tells each what it came to. Knows nothing of what
//! the commands mean.
//!
//! It batches by itself: while a few entries are on their way, what comes in waits and goes as one. So a lonely
//! command is not delayed, and a crowd shares its entries, its syncs and its messages.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::channel::oneshot;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use openraft::Raft;
use openraft::errors::{ClientWriteError, RaftError};
use reveille_protocol::fail_point::Point;
use reveille_protocol::id::NodeId;
use reveille_protocol::limits;
use reveille_protocol::service_list::{Command, Reply};
use reveille_protocol::time::GroupTime;
use reveille_protocol::wire::codec;
use reveille_protocol::wire::entry::Entry;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::env::Env;
use crate::host::Host;
use crate::raft::machine::Machine;
use crate::raft::types::Batch;
use crate::{fail, guard};

/// Commands that may wait for their entry; more are refused at once, so that a publisher learns of overload
/// before it has waited.
const QUEUE: usize = 8192;
/// Entries on their way at once. More would make smaller entries, fewer would leave the disk idle while the
/// network works.
const IN_FLIGHT: usize = 3;

/// openraft's handle for one of our groups.
pub(crate) type GroupRaft<E> = Raft<<E as Env>::Cfg, Machine<<E as Env>::Cfg, <E as Env>::Tables>>;

/// What a proposal came to. Sent between nodes: append only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// Applied; what it came to.
    Applied(Reply),
    /// Certainly not applied: this node does not lead the group; perhaps that one does.
    NotLeader(Option<NodeId>),
    /// Certainly not applied: too many wait.
    Busy,
    /// It may have been applied, or may yet be.
    Unknown,
}

struct Proposal {
    command: Command,
    answer: oneshot::Sender<Outcome>,
}

/// Takes commands for one group.
#[derive(Clone)]
pub(crate) struct Proposer {
    queue: mpsc::Sender<Proposal>,
    stopping: Arc<AtomicBool>,
}

impl Proposer {
    /// Starts a group's proposer; it ends with the last handle. `stamp` gives the group's time.
    pub(crate) fn start<E: Env>(
        host: Arc<dyn Host>,
        raft: GroupRaft<E>,
        stamp: Arc<dyn Fn() -> GroupTime + Send + Sync>,
    ) -> Proposer {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let stopping = Arc::new(AtomicBool::new(false));
        guard::spawn::<E>(host, "a group's proposer", run::<E>(raft, stamp, waiting, stopping.clone()));
        Proposer { queue, stopping }
    }

    /// The group stops here: what raft was not given yet is certainly not done, and is sent to others. Raft itself would
    /// not say which of its entries another replica may still commit.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Proposes one command, at once and behind those of earlier calls; what is returned waits for what it comes to.
    pub(crate) fn propose(&self, command: Command) -> impl Future<Output = Outcome> + Send + use<> {
        let (answer, outcome) = oneshot::channel();
        let refused = match self.is_stopping() {
            true => Some(Outcome::NotLeader(None)),
            false => match self.queue.try_send(Proposal { command, answer }) {
                Ok(()) => None,
                Err(TrySendError::Full(_)) => Some(Outcome::Busy),
                Err(TrySendError::Closed(_)) => Some(Outcome::NotLeader(None)),
            },
        };
        async move {
            match refused {
                Some(refused) => refused,
                None => outcome.await.unwrap_or(Outcome::Unknown),
            }
        }
    }
}

async fn run<E: Env>(
    raft: GroupRaft<E>,
    stamp: Arc<dyn Fn() -> GroupTime + Send + Sync>,
    mut waiting: mpsc::Receiver<Proposal>,
    stopping: Arc<AtomicBool>,
) {
    let mut in_flight = FuturesUnordered::new();
    let mut next: Option<Proposal> = None;
    loop {
        if in_flight.len() >= IN_FLIGHT {
            in_flight.next().await;
            continue;
        }
        let first = match next.take() {
            Some(first) => first,
            None => {
                let arrived = if in_flight.is_empty() {
                    waiting.recv().await
                } else {
                    let mut arrival = pin!(waiting.recv().fuse());
                    // Biased to answers, which free the way for what waits.
                    futures::select_biased! {
                        _ = in_flight.next() => continue,
                        arrived = arrival => arrived,
                    }
                };
                match arrived {
                    Some(first) => first,
                    None => break,
                }
            }
        };
        let (commands, answers, left_over) = gather(first, &mut waiting);
        next = left_over;
        if stopping.load(Ordering::Acquire) {
            tell(answers, &Outcome::NotLeader(None));
            continue;
        }
        let entry = Entry { time: stamp(), commands };
        let raft = raft.clone();
        in_flight.push(async move { write::<E>(raft, entry, answers).await }.boxed());
    }
    while in_flight.next().await.is_some() {}
}

/// Everything that waits now, up to a full entry.
fn gather(
    first: Proposal,
    waiting: &mut mpsc::Receiver<Proposal>,
) -> (Vec<Command>, Vec<oneshot::Sender<Outcome>>, Option<Proposal>) {
    let mut bytes = weight(&first.command);
    let (mut commands, mut answers) = (vec![first.command], vec![first.answer]);
    while commands.len() < limits::MAX_ENTRY_COMMANDS
        && let Ok(proposal) = waiting.try_recv()
    {
        bytes += weight(&proposal.command);
        if bytes > limits::MAX_ENTRY_BYTES {
            return (commands, answers, Some(proposal));
        }
        commands.push(proposal.command);
        answers.push(proposal.answer);
    }
    (commands, answers, None)
}

fn weight(command: &Command) -> usize {
    match command {
        Command::Enqueue(enqueue) => enqueue.body.len() + limits::MAX_HEADERS + 128,
        Command::Directory(change) => codec::encode(change).len() + 64,
        // Close to as much as an entry may have, or more: it goes alone.
        Command::Import(_) => limits::MAX_ENTRY_BYTES,
        _ => 256,
    }
}

async fn write<E: Env>(raft: GroupRaft<E>, entry: Entry, answers: Vec<oneshot::Sender<Outcome>>) {
    fail::at::<E::Cfg>(Point::Propose).await;
    let written = raft.client_write(Batch::new(entry)).await;
    fail::at::<E::Cfg>(Point::Proposed).await;
    let outcome = match written {
        Ok(response) => {
            for (answer, reply) in answers.into_iter().zip(response.data.0) {
                // Whoever asked may have given up; the command stands all the same.
                let _ = answer.send(Outcome::Applied(reply));
            }
            return;
        }
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
            Outcome::NotLeader(forward.leader_id.map(NodeId))
        }
        // Discarded by a new leader, or the group stopped: another replica may still commit it.
        Err(_) => Outcome::Unknown,
    };
    tell(answers, &outcome);
}

fn tell(answers: Vec<oneshot::Sender<Outcome>>, outcome: &Outcome) {
    for answer in answers {
        // Whoever asked may have given up.
        let _ = answer.send(outcome.clone());
    }
}
