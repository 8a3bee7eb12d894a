//! Publishers, and an observer of the service list, over real HTTP on turmoil's streams. A request that got no answer is asked
//! again at the next node, under the same idempotency key.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use reveille_chaos::history::{Call, Invoke, Result as Got, What};
use reveille_links::draw::Draws;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};
use turmoil::net::TcpStream;

use super::record::Record;
use super::world::TOKEN;

/// One try; then the next node is asked.
const ANSWER: Duration = Duration::from_secs(2);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);
/// A publisher gives up after this.
const DEADLINE: Duration = Duration::from_secs(15);
/// Between two pushes of a publisher, and two questions of the observer.
const EVERY: Duration = Duration::from_millis(300);
/// Bytes of a push.
const PAYLOAD: usize = 200;

/// Whoever asks.
#[derive(Clone)]
pub struct Asker {
    pub record: Rc<Record>,
    pub nodes: Vec<SocketAddr>,
}

/// A push's bytes follow from its name.
fn payload(name: &str) -> Vec<u8> {
    name.bytes().chain([b' ']).cycle().take(PAYLOAD).collect()
}

/// The name of the push that these are the bytes of; another one for bytes that were changed.
pub fn name(body: &[u8]) -> String {
    let text = std::str::from_utf8(body).ok().and_then(|text| text.split_once(' '));
    match text.filter(|(name, _)| payload(name) == body) {
        Some((name, _)) => name.to_owned(),
        None => format!("damaged: {} bytes", body.len()),
    }
}

impl Asker {
    /// Publishes to drawn terminals until `load` is over.
    pub async fn publish_on(self, number: u64, seed: u64, load: Rc<std::cell::Cell<bool>>) {
        let by = format!("publisher {number}");
        let mut draws = Draws::new(seed, &by);
        for count in 0u64.. {
            if !load.get() {
                return;
            }
            let terminals = self.record.met();
            let terminal = &terminals[draws.below(terminals.len() as u64) as usize];
            self.publish(&by, &format!("p{number}-{count}"), terminal, draws.draw()).await;
            sleep(EVERY.mul_f64(0.5 + draws.below(1000) as f64 / 1000.0)).await;
        }
    }

    /// Publishes one push.
    pub async fn publish(&self, by: &str, payload: &str, terminal: &str, first: u64) {
        let call = Call::Publish { terminal: terminal.to_owned(), payload: payload.to_owned(), ttl_ms: None };
        let op = self.invoke(by, first, call);
        let path = format!("/v1/terminals/{terminal}/messages");
        let headers = format!("Idempotency-Key: {payload}\r\n");
        let answer = self.ask("POST", &path, &headers, &self::payload(payload), first).await;
        self.record.now(match answer {
            Some((201, body)) => {
                let (message, seq) = (body["message"].as_str().unwrap(), body["seq"].as_u64().unwrap());
                self.record.stored(payload, message);
                What::Ok { op, got: Got::Published { message: message.to_owned(), seq, position: None } }
            }
            Some((status, body)) => What::Fail { op, why: format!("{status} {body}") },
            None => What::Unknown { op, why: "no answer in time".to_owned() },
        });
    }

    /// Asks for drawn terminals' entries until `load` is over.
    pub async fn observe(self, seed: u64, load: Rc<std::cell::Cell<bool>>) {
        let mut draws = Draws::new(seed, "observer");
        while load.get() {
            let terminals = self.record.met();
            self.status(&terminals[draws.below(terminals.len() as u64) as usize], draws.draw()).await;
            sleep(EVERY).await;
        }
    }

    /// Asks for a terminal's entry.
    pub async fn status(&self, terminal: &str, first: u64) {
        let op = self.invoke("observer", first, Call::Status { terminal: terminal.to_owned() });
        let answer = self.ask("GET", &format!("/v1/terminals/{terminal}"), "", b"", first).await;
        let got = answer.and_then(|(_, json)| {
            Some(Got::Status {
                online: json["state"].as_str()? == "online",
                node: json["node"].as_u64(),
                epoch: json["epoch"].as_u64()?,
                acked: json["acked"].as_u64()?,
                next_seq: json["next_seq"].as_u64()?,
            })
        });
        self.answered(op, got);
    }

    /// Asks what became of a push.
    pub async fn look(&self, payload: &str, message: &str, first: u64) {
        let op = self.invoke("observer", first, Call::Look { payload: payload.to_owned() });
        let answer = self.ask("GET", &format!("/v1/messages/{message}"), "", b"", first).await;
        let state = answer.and_then(|(_, json)| Some(json["state"].as_str()?.to_owned()));
        self.answered(op, state.map(|state| Got::Looked { state }));
    }

    fn invoke(&self, by: &str, first: u64, call: Call) -> u64 {
        let op = self.record.op();
        let node = Some(first % self.nodes.len() as u64 + 1);
        let deadline_ms = Some(DEADLINE.as_millis() as u64);
        self.record.now(What::Invoke(Invoke { op, by: by.to_owned(), node, deadline_ms, call }));
        op
    }

    /// A query changes nothing, so one without an answer has failed.
    fn answered(&self, op: u64, got: Option<Got>) {
        self.record.now(match got {
            Some(got) => What::Ok { op, got },
            None => What::Fail { op, why: "no answer".to_owned() },
        });
    }

    /// Until there is an answer other than "try again", at the next node each time.
    async fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &str,
        body: &[u8],
        first: u64,
    ) -> Option<(u16, Value)> {
        let answered = async {
            for at in (0..self.nodes.len()).cycle().skip(first as usize % self.nodes.len()) {
                match timeout(ANSWER, exchange(self.nodes[at], method, path, headers, body)).await {
                    Ok(Some((status, body))) if !matches!(status, 408 | 429 | 503) => {
                        return Some((status, body));
                    }
                    _ => sleep(PAUSE).await,
                }
            }
            None
        };
        timeout(DEADLINE, answered).await.ok().flatten()
    }
}

/// One request on a connection of its own.
async fn exchange(
    to: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &[u8],
) -> Option<(u16, Value)> {
    let mut stream = TcpStream::connect(to).await.ok()?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\nContent-Length: {}\r\nAuthorization: Bearer \
         {TOKEN}\r\n{headers}\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).await.ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok()?;
    let text = String::from_utf8(answer).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    // An answer that was cut is none.
    Some((head.split(' ').nth(1)?.parse().ok()?, serde_json::from_str(body).ok()?))
}
