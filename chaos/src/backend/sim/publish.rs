//! Publishers: careful ones, who ask under the same idempotency key, at the next node each time, until there is an answer
//! or their deadline is over, as those of the process backend do. And whoever asks the service list. Between them and
//! a node's commands is what HTTP would be: a way there and back, a connection that nobody takes, an answer that is lost.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use reveille_chaos::history::{Call, Invoke, Result as Got, What};
use reveille_chaos::scenario::Work;
use reveille_cluster::Unavailable;
use reveille_cluster::query::{Answer, Query};
use reveille_links::draw::Draws;
use reveille_protocol::hash::sha256;
use reveille_protocol::id::*;
use reveille_protocol::service_list::row::Urgency;
use reveille_protocol::service_list::{self as list, Command, Enqueue, Refusal, Reply};
use reveille_protocol::time::GroupTime;
use reveille_simulation::ask::Heard;
use reveille_simulation::world::now;

use super::run::{Run, micros, until};
use crate::backend::payload::payload;

/// A try is given up after this, and the next node asked under the same key.
const ANSWER: Duration = Duration::from_secs(1);
/// What a node gives a request: `node/src/http/limits.rs` has it.
const DEADLINE: Duration = Duration::from_secs(5);
/// What C12 forgives; after twice that nothing more is awaited.
const GRACE: Duration = Duration::from_secs(1);
/// Between two tries, in microseconds; and in a storm.
const PAUSE: (u64, u64) = (50_000, 1000);
/// A query's answer, over all tries.
const QUERY: Duration = Duration::from_secs(8);
/// The way to a node or back, in microseconds.
const WAY: (u64, u64) = (100, 1000);
/// Whose the terminals are.
const TENANT: TenantId = TenantId(1);

/// A request that somebody took.
type Request<T> = Option<Heard<T>>;

/// Nobody answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Silence {
    /// Nobody took the request.
    NotHeard,
    /// It may have been taken.
    MaybeHeard,
}

/// What a request came to.
enum Answered<T> {
    Done(T),
    /// It will not be done, however often it is asked for.
    Refused(String),
    /// Not now.
    Busy,
}

/// What came of asking until there was an answer.
enum Asked<T> {
    Done(T),
    Refused(String),
    Unknown(String),
}

/// Publishes at its share of the rate until the load ends.
pub(super) async fn publisher(run: Arc<Run>, number: u64) {
    let workload = &run.scenario.workload;
    let period = Duration::from_secs_f64(workload.publishers as f64 / workload.rate as f64);
    let mut next = now() + micros(period.mul_f64(number as f64 / workload.publishers as f64));
    let by = format!("publisher {number}");
    let terminals = run.world.terminals().len();
    for count in 0u64.. {
        until(next).await;
        // After a gap it goes on at its rate: a burst would be another workload.
        next = next.max(now()) + micros(period);
        if !run.load.load(Ordering::Relaxed) {
            return;
        }
        match workload.kind {
            Work::Idle => return,
            Work::Broadcast => {
                for device in (0..terminals).filter(|at| *at as u64 % workload.publishers == number) {
                    publish(&run, &by, &format!("p{number}-{count}-{device}"), device, count).await;
                }
            }
            Work::Push | Work::Retry => {
                let device = (count * workload.publishers + number) as usize % terminals;
                publish(&run, &by, &format!("p{number}-{count}"), device, count).await;
            }
        }
    }
}

async fn publish(run: &Arc<Run>, by: &str, name: &str, device: usize, first: u64) {
    let workload = &run.scenario.workload;
    let terminal = run.world.terminals()[device];
    let ttl_ms = workload.ttl.map(|ttl| ttl.0.as_secs().max(1) * 1000);
    let body = Bytes::from(payload(name, workload.payload as usize));
    let enqueue = Enqueue {
        id: CommandId([0; 16]),
        not_after: GroupTime(0),
        retry: false,
        terminal,
        tenant: TENANT,
        ttl: ttl_ms,
        urgency: Urgency::Normal,
        channel: Channel(0),
        topic: None,
        idempotency: Some(list::Idempotency {
            key: list::key::idempotency_hash(TENANT, &terminal, name),
            body_hash: KeyFingerprint(sha256(&body)).terminal().0,
        }),
        headers: Vec::new(),
        body,
    };
    let call = Call::Publish { terminal: terminal.to_string(), payload: name.to_owned(), ttl_ms };
    let asks = if workload.kind == Work::Retry { 2 } else { 1 };
    let op = run.invoke(by, first, asks * workload.deadline.ms(), call);
    let store =
        |first| ask(run, first, workload.deadline.0, |node| store(run, node, enqueue.clone()), stored);
    let mut asked = store(first).await;
    if workload.kind == Work::Retry && matches!(asked, Asked::Done(_)) {
        // The same again: if it were stored a second time, this is the name that it would have.
        if let again @ Asked::Done(_) = store(first + 1).await {
            asked = again;
        }
    }
    match asked {
        Asked::Done(message) => {
            run.stored(name, message);
            let positions = reveille_simulation::world::lock(&run.world.positions);
            let position =
                positions.get(&(terminal, message.seq)).map(|(group, index)| (group.0.into(), *index));
            drop(positions);
            let got = Got::Published { message: message.to_string(), seq: message.seq.0, position };
            run.tell(What::Ok { op, got });
        }
        Asked::Refused(why) => run.tell(What::Fail { op, why }),
        Asked::Unknown(why) => run.tell(What::Unknown { op, why }),
    }
}

/// One request: a command with an id of its own, as the node that takes it gives it one.
fn store(run: &Run, node: NodeId, mut enqueue: Enqueue) -> Request<Result<Reply, Unavailable>> {
    enqueue.id.0[..8].copy_from_slice(&run.world.number().to_be_bytes());
    enqueue.id.0[8..].copy_from_slice(&run.world.below(u64::MAX).to_be_bytes());
    run.world.ask_to(node, enqueue.terminal, Command::Enqueue(Box::new(enqueue)), DEADLINE)
}

fn stored(_: NodeId, outcome: Result<Reply, Unavailable>) -> Answered<MessageId> {
    match outcome {
        Ok(Reply::Enqueued { message, .. }) => Answered::Done(message),
        Ok(Reply::Refused(Refusal::TooLate { .. } | Refusal::Unknown | Refusal::QueueFull { .. })) => {
            Answered::Busy
        }
        Ok(other) => Answered::Refused(format!("{other:?}")),
        Err(_) => Answered::Busy,
    }
}

/// Until there is an answer other than "try again", at the next node each time; nodes that were silent lately come last.
async fn ask<T: Send + 'static, U: Send>(
    run: &Arc<Run>,
    first: u64,
    within: Duration,
    request: impl Fn(NodeId) -> Request<T> + Sync,
    answer: impl Fn(NodeId, T) -> Answered<U> + Sync,
) -> Asked<U> {
    let mut heard = None;
    let answered = async {
        for turn in first.. {
            let node = run.speaking(turn);
            match once(run, NodeId(node), &request).await.map(|heard| answer(NodeId(node), heard)) {
                Ok(Answered::Done(done)) => return Some(Asked::Done(done)),
                Ok(Answered::Refused(why)) => return Some(Asked::Refused(why)),
                Ok(Answered::Busy) => heard = Some("the last try was put off"),
                Err(silence) => {
                    run.silent(node);
                    if silence == Silence::MaybeHeard {
                        heard = Some("no answer to the last try");
                    }
                }
            }
            let storm = run.storm.load(Ordering::Relaxed);
            until(now() + if storm { PAUSE.1 } else { PAUSE.0 }).await;
        }
        None
    };
    match SimRuntime::timeout(within, Box::pin(answered)).await {
        Ok(Some(asked)) => asked,
        // The try that was given up in the middle may have been heard.
        Ok(None) | Err(_) => Asked::Unknown(heard.unwrap_or("the deadline is over").to_owned()),
    }
}

/// One try at one node.
async fn once<T: Send + 'static>(
    run: &Arc<Run>,
    node: NodeId,
    request: &(impl Fn(NodeId) -> Request<T> + Sync),
) -> Result<T, Silence> {
    let way = || run.world.between(WAY.0, WAY.1);
    until(now() + way()).await;
    let life = run.world.life(node);
    let mut heard = request(node).ok_or(Silence::NotHeard)?;
    match SimRuntime::timeout(ANSWER, &mut heard).await {
        Ok(Ok(answer)) => {
            until(now() + way()).await;
            return Ok(answer);
        }
        Ok(Err(_)) => {}
        Err(_) => {
            run.given_up.fetch_add(1, Ordering::Relaxed);
            let _detached = SimRuntime::spawn(given_up(run.clone(), node, life, heard));
        }
    }
    Err(Silence::MaybeHeard)
}

/// Whether a node ends what it was asked for in the time that it gives a request, also if nobody waits for it any more: whoever
/// asked would else see no more of a node that hangs than of one that is slow. Nothing is asked of one that dies or stands still.
async fn given_up<T: Send>(run: Arc<Run>, node: NodeId, life: u64, mut heard: Heard<T>) {
    let op = run.record.op();
    let deadline = DEADLINE - ANSWER;
    run.tell(What::Invoke(Invoke {
        op,
        by: "whoever gave a try up".to_owned(),
        node: Some(node.0),
        deadline_ms: Some(deadline.as_millis() as u64),
        call: Call::GivenUp,
    }));
    let end = now() + micros(deadline + 2 * GRACE);
    let mut why = None;
    while why.is_none() && now() < end {
        why = match SimRuntime::timeout(Duration::from_millis(100), &mut heard).await {
            Ok(_) => Some("it was ended"),
            Err(_) if !run.world.is_life(node, life) => Some("its node is gone"),
            Err(_) if run.world.stands_still(node) => Some("its node stands still"),
            Err(_) => None,
        };
    }
    if let Some(why) = why {
        run.tell(What::Fail { op, why: why.to_owned() });
    }
    run.given_up.fetch_sub(1, Ordering::Relaxed);
}

/// Asks for drawn terminals' entries until the load ends.
pub(super) async fn observer(run: Arc<Run>, seed: u64) {
    let mut draws = Draws::new(seed, "observer");
    let terminals = run.world.terminals().len() as u64;
    let mut next = now();
    while run.load.load(Ordering::Relaxed) {
        until(next).await;
        next = next.max(now()) + 200_000;
        status(&run, draws.below(terminals) as usize, draws.draw() >> 8).await;
    }
}

fn answered(node: NodeId, outcome: Result<Answer, Unavailable>) -> Answered<(NodeId, Answer)> {
    match outcome {
        Ok(answer) => Answered::Done((node, answer)),
        Err(Unavailable::Unreadable(why)) => Answered::Refused(why),
        Err(_) => Answered::Busy,
    }
}

/// Asks for one terminal's entry.
pub(super) async fn status(run: &Arc<Run>, device: usize, turn: u64) {
    let terminal = run.world.terminals()[device];
    let call = Call::Status { terminal: terminal.to_string() };
    let op = run.invoke("observer", turn, QUERY.as_millis() as u64, call);
    let query = Query::Terminal { tenant: TENANT, terminal };
    let request = |node| run.world.ask_about(node, terminal, query.clone(), DEADLINE);
    let got = match ask(run, turn, QUERY, request, answered).await {
        Asked::Done((_, Answer::Terminal(Some(row)))) => Some(Got::Status {
            online: row.current.is_some(),
            node: row.current.map(|current| current.node.0),
            epoch: row.epoch.0,
            acked: row.acked.0,
            next_seq: row.next_seq.0,
        }),
        _ => None,
    };
    run.answered(op, got);
}

/// Asks what became of a push.
pub(super) async fn look(run: &Arc<Run>, name: &str, message: MessageId, turn: u64) {
    let call = Call::Look { payload: name.to_owned() };
    let op = run.invoke("observer", turn, QUERY.as_millis() as u64, call);
    let query = Query::Message { tenant: TENANT, message, wait: 0 };
    let request = |node| run.world.ask_about(node, message.terminal, query.clone(), DEADLINE);
    let got = match ask(run, turn, QUERY, request, answered).await {
        Asked::Done((_, Answer::Message(Some(view)))) => {
            let state = view.end.map_or("pending", |(end, _)| end.stage().name());
            Some(Got::Looked { state: state.to_owned() })
        }
        Asked::Done((_, Answer::Message(None))) => Some(Got::Looked { state: "gone".to_owned() }),
        _ => None,
    };
    run.answered(op, got);
}

impl Run {
    fn invoke(&self, by: &str, turn: u64, deadline_ms: u64, call: Call) -> u64 {
        let op = self.record.op();
        let (node, deadline_ms) = (Some(turn % self.scenario.cluster.nodes + 1), Some(deadline_ms));
        self.tell(What::Invoke(Invoke { op, by: by.to_owned(), node, deadline_ms, call }));
        op
    }

    /// A query changes nothing, so one without an answer has failed.
    fn answered(&self, op: u64, got: Option<Got>) {
        self.tell(match got {
            Some(got) => What::Ok { op, got },
            None => What::Fail { op, why: "no answer".to_owned() },
        });
    }
}
