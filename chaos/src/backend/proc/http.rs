//! One HTTP request on a connection of its own: what is tested is the server, so the client keeps nothing that could
//! hide a fault of it, and says whether the request may have been heard.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The most bytes of an answer: the status of a cluster.
const ANSWER: u64 = 1 << 20;
/// On loopback a node that runs takes a connection at once; one that is stopped takes it, too, and says nothing.
const CONNECT: Duration = Duration::from_secs(1);

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok()
    }
}

/// There is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Silence {
    /// Nothing was sent: it certainly was not heard.
    NotSent,
    /// It may have been.
    MaybeHeard,
}

/// A request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    pub(super) token: &'a str,
    pub(super) headers: &'a [(&'a str, &'a str)],
    pub(super) body: &'a [u8],
}

impl<'a> Request<'a> {
    pub(super) fn get(path: &'a str, token: &'a str) -> Request<'a> {
        Request { method: "GET", path, token, headers: &[], body: b"" }
    }

    /// Sends it to `host:port` and waits at most so long for its answer.
    pub(super) async fn send(&self, authority: &str, within: Duration) -> Result<Answer, Silence> {
        let stream = timeout(CONNECT.min(within), TcpStream::connect(authority)).await;
        let Ok(Ok(mut stream)) = stream else { return Err(Silence::NotSent) };
        let exchange = async {
            stream.set_nodelay(true).ok()?;
            stream.write_all(&self.bytes(authority)).await.ok()?;
            let mut answer = Vec::new();
            (&mut stream).take(ANSWER).read_to_end(&mut answer).await.ok()?;
            parse(&answer)
        };
        timeout(within, exchange).await.ok().flatten().ok_or(Silence::MaybeHeard)
    }

    fn bytes(&self, authority: &str) -> Vec<u8> {
        let Request { method, path, token, .. } = self;
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\nContent-Length: {}\r\n\
             Authorization: Bearer {token}\r\n",
            self.body.len()
        );
        for (name, value) in self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(self.body);
        bytes
    }
}

/// An answer that is whole: as long as it says.
fn parse(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let mut lines = head.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let length = lines.filter_map(|line| line.split_once(':')).find_map(|(name, value)| {
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let body = bytes[end + 4..].to_vec();
    if length.is_some_and(|length| length != body.len()) {
        return None;
    }
    Some(Answer { status, body })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_answer_that_is_cut_is_none() {
        let whole = b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\n{}";
        let answer = parse(whole).unwrap();
        assert_eq!((answer.status, answer.json()), (201, Some(serde_json::json!({}))));
        for end in 0..whole.len() {
            assert!(parse(&whole[..end]).is_none(), "{end}");
        }
    }
}
