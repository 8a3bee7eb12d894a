//! Publishers: careful ones, who ask under the same idempotency key, at the next node each time, until there is an answer
//! or their deadline is over. And whoever asks the service list.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use reveille_chaos::history::{Call, Invoke, Result as Got, What};
use reveille_chaos::scenario::Work;
use reveille_links::draw::Draws;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::http::{Answer, Request, Silence};
use super::live::Run;
use super::payload::payload;

/// A try is given up after this, and the next node asked under the same key: one that is stopped takes requests and says
/// nothing.
const ANSWER: Duration = Duration::from_secs(1);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(50);
/// A query's answer, over all tries.
const QUERY: Duration = Duration::from_secs(8);

/// What came of asking until there was an answer.
enum Asked {
    Answered(Answer),
    Unknown(String),
}

/// The run's publishers and observer, until the load ends.
pub(super) fn load(run: &Arc<Run>, seed: u64) -> JoinSet<()> {
    let mut load = JoinSet::new();
    for number in 0..run.scenario.workload.publishers {
        load.spawn(publisher(run.clone(), number));
    }
    load.spawn(observer(run.clone(), seed));
    load
}

/// Publishes at its share of the rate until the load ends.
async fn publisher(run: Arc<Run>, number: u64) {
    let workload = &run.scenario.workload;
    let period = Duration::from_secs_f64(workload.publishers as f64 / workload.rate as f64);
    let mut tick = tokio::time::interval_at(
        Instant::now() + period.mul_f64(number as f64 / workload.publishers as f64),
        period,
    );
    // After a gap it goes on at its rate: a burst would be another workload.
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let by = format!("publisher {number}");
    for count in 0u64.. {
        tick.tick().await;
        if !run.load.load(Ordering::Relaxed) {
            return;
        }
        let terminals = run.terminals();
        match workload.kind {
            Work::Idle => return,
            Work::Broadcast => {
                for (at, terminal) in (0..).zip(&terminals) {
                    if at % workload.publishers == number {
                        publish(&run, &by, &format!("p{number}-{count}-{at}"), terminal, count).await;
                    }
                }
            }
            Work::Push | Work::Retry => {
                let at = (count * workload.publishers + number) as usize % terminals.len().max(1);
                let Some(terminal) = terminals.get(at) else { continue };
                publish(&run, &by, &format!("p{number}-{count}"), terminal, count).await;
            }
        }
    }
}

async fn publish(run: &Run, by: &str, name: &str, terminal: &str, first: u64) {
    let workload = &run.scenario.workload;
    let body = payload(name, workload.payload as usize);
    let path = format!("/v1/terminals/{terminal}/messages");
    let ttl = workload.ttl.map(|ttl| ttl.0.as_secs().max(1).to_string());
    let mut headers = vec![("Idempotency-Key", name)];
    headers.extend(ttl.as_deref().map(|ttl| ("TTL", ttl)));
    let request = Request { method: "POST", path: &path, token: &run.token, headers: &headers, body: &body };
    let call = Call::Publish {
        terminal: terminal.to_owned(),
        payload: name.to_owned(),
        ttl_ms: workload.ttl.map(|ttl| ttl.0.as_secs().max(1) * 1000),
    };
    let asks = if workload.kind == Work::Retry { 2 } else { 1 };
    let op = run.invoke(by, first, asks * workload.deadline.ms(), call);
    run.wants(terminal);
    let mut asked = ask(run, &request, first, workload.deadline.0).await;
    if workload.kind == Work::Retry && matches!(&asked, Asked::Answered(answer) if answer.status == 201) {
        // The same again: if it were stored a second time, this is the name that it would have.
        if let Asked::Answered(again) = ask(run, &request, first + 1, workload.deadline.0).await
            && again.status == 201
        {
            asked = Asked::Answered(again);
        }
    }
    match asked {
        Asked::Answered(answer) if answer.status == 201 => {
            let json = answer.json();
            let field = |key: &str| json.as_ref().and_then(|json| json.get(key));
            let message = field("message").and_then(|message| message.as_str());
            let seq = field("seq").and_then(|seq| seq.as_u64());
            let (Some(message), Some(seq)) = (message, seq) else {
                run.recorder.tell(What::Unknown { op, why: "201 without a name".to_owned() });
                return;
            };
            run.stored(terminal, name, message);
            let got = Got::Published { message: message.to_owned(), seq, position: None };
            run.recorder.tell(What::Ok { op, got });
        }
        Asked::Answered(answer) => {
            let why = format!("{} {}", answer.status, String::from_utf8_lossy(&answer.body));
            run.recorder.tell(What::Fail { op, why: why.chars().take(200).collect() });
        }
        Asked::Unknown(why) => run.recorder.tell(What::Unknown { op, why }),
    }
}

/// Until there is an answer other than "try again", at the next node each time; nodes that were silent lately come last,
/// as behind a balancer that looks.
async fn ask(run: &Run, request: &Request<'_>, first: u64, within: Duration) -> Asked {
    let mut heard = None;
    let answered = async {
        for number in first.. {
            let node = run.speaking(number as usize)?;
            match request.send(&node.http, ANSWER).await {
                Ok(answer) if matches!(answer.status, 429 | 503 | 408) => {
                    heard = Some(format!("{} to the last try", answer.status));
                }
                Ok(answer) => return Some(answer),
                Err(silence) => {
                    run.silent(node.id);
                    if silence == Silence::MaybeHeard {
                        heard = Some("no answer to the last try".to_owned());
                    }
                }
            }
            if !run.known().hurried {
                tokio::time::sleep(PAUSE).await;
            }
            if let Some(retries) = &run.retries {
                retries.turn().await;
            }
        }
        None
    };
    match tokio::time::timeout(within, answered).await {
        Ok(Some(answer)) => Asked::Answered(answer),
        // The try that was given up in the middle may have been heard.
        Ok(None) | Err(_) => Asked::Unknown(heard.unwrap_or_else(|| "the deadline is over".to_owned())),
    }
}

/// Asks for drawn terminals' entries until the load ends.
async fn observer(run: Arc<Run>, seed: u64) {
    let mut draws = Draws::new(seed, "observer");
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while run.load.load(Ordering::Relaxed) {
        tick.tick().await;
        let terminals = run.terminals();
        let Some(terminal) = terminals.get(draws.below(terminals.len() as u64) as usize) else { continue };
        status(&run, terminal, draws.draw() >> 8).await;
    }
}

/// Asks for one terminal's entry.
pub(super) async fn status(run: &Run, terminal: &str, node: u64) {
    let path = format!("/v1/terminals/{terminal}");
    let call = Call::Status { terminal: terminal.to_owned() };
    let op = run.invoke("observer", node, QUERY.as_millis() as u64, call);
    let got = query(run, &path, node).await.and_then(|json| {
        let number = |key: &str| json.get(key)?.as_u64();
        Some(Got::Status {
            online: json.get("state")?.as_str()? == "online",
            node: number("node"),
            epoch: number("epoch")?,
            acked: number("acked")?,
            next_seq: number("next_seq")?,
        })
    });
    run.answered(op, got);
}

/// Asks what became of a push.
pub(super) async fn look(run: &Run, name: &str, message: &str, node: u64) {
    let path = format!("/v1/messages/{message}");
    let op = run.invoke("observer", node, QUERY.as_millis() as u64, Call::Look { payload: name.to_owned() });
    let got = query(run, &path, node)
        .await
        .and_then(|json| Some(Got::Looked { state: json.get("state")?.as_str()?.to_owned() }));
    run.answered(op, got);
}

async fn query(run: &Run, path: &str, node: u64) -> Option<serde_json::Value> {
    match ask(run, &Request::get(path, &run.token), node, QUERY).await {
        Asked::Answered(answer) if answer.status == 200 => answer.json(),
        _ => None,
    }
}

impl Run {
    fn invoke(&self, by: &str, node: u64, deadline_ms: u64, call: Call) -> u64 {
        let op = self.recorder.op();
        let ids = self.ids();
        let node = ids.get(node as usize % ids.len().max(1)).copied();
        let deadline_ms = Some(deadline_ms);
        self.recorder.tell(What::Invoke(Invoke { op, by: by.to_owned(), node, deadline_ms, call }));
        op
    }

    /// A query changes nothing, so one without an answer has failed.
    fn answered(&self, op: u64, got: Option<Got>) {
        self.recorder.tell(match got {
            Some(got) => What::Ok { op, got },
            None => What::Fail { op, why: "no answer".to_owned() },
        });
    }
}
