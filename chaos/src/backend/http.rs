//! One HTTP request on a connection of its own: what is tested is the server, so the client keeps nothing that could
//! hide a fault of it, and says whether the request may have been heard.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// The most bytes of an answer: the status of a cluster.
const ANSWER: u64 = 1 << 20;
/// On loopback a node that runs takes a connection at once, elsewhere within a few round trips; one that is stopped takes
/// it, too, and says nothing.
const CONNECT: Duration = Duration::from_secs(1);

/// Where a server is, and whether it speaks TLS.
#[derive(Clone)]
pub(super) struct Server {
    /// `host:port`.
    authority: String,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

impl Server {
    /// At `host:port`, without TLS.
    pub(super) fn plain(authority: String) -> Server {
        Server { authority, tls: None }
    }

    /// Of `http://host:port` or `https://host:port`; the latter is verified by what `tls` trusts.
    ///
    /// # Errors
    /// If it is no such URL.
    pub(super) fn parse(url: &str, tls: &Arc<ClientConfig>) -> anyhow::Result<Server> {
        let (scheme, rest) = url.split_once("://").context("a URL begins with http:// or https://")?;
        let authority = rest.trim_end_matches('/');
        ensure!(!authority.contains('/'), "{url}: only a scheme, a host and a port");
        let (host, port) = authority.rsplit_once(':').with_context(|| format!("{url}: it has no port"))?;
        ensure!(port.parse::<u16>().is_ok(), "{url}: {port:?} is no port");
        let tls = match scheme {
            "http" => None,
            "https" => {
                let host = host.trim_matches(['[', ']']).to_owned();
                let name = ServerName::try_from(host).with_context(|| format!("{url}: no host's name"))?;
                Some((TlsConnector::from(tls.clone()), name))
            }
            other => bail!("{other}:// is not spoken here, only http and https"),
        };
        Ok(Server { authority: authority.to_owned(), tls })
    }

    /// `host:port`.
    pub(super) fn authority(&self) -> &str {
        &self.authority
    }

    /// Connects, within so long.
    ///
    /// # Errors
    /// Why not: nothing was asked then.
    async fn connect(&self, within: Duration) -> io::Result<Box<dyn Stream>> {
        let connect = async {
            let stream = TcpStream::connect(&self.authority).await?;
            stream.set_nodelay(true)?;
            Ok(match &self.tls {
                None => Box::new(stream) as Box<dyn Stream>,
                Some((tls, name)) => Box::new(tls.connect(name.clone(), stream).await?),
            })
        };
        timeout(within, connect).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Whether a connection can be had; why not.
    pub(super) async fn reach(&self, within: Duration) -> Result<(), String> {
        self.connect(within).await.map(drop).map_err(|error| format!("{}: {error}", self.authority))
    }
}

/// What TLS trusts that has this CA.
///
/// # Errors
/// If the file holds no certificate.
pub(super) fn tls(ca: &Path) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    let named = || ca.display().to_string();
    for certificate in CertificateDer::pem_file_iter(ca).with_context(named)? {
        roots.add(certificate.with_context(named)?).with_context(named)?;
    }
    ensure!(!roots.is_empty(), "{} holds no certificate", ca.display());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

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

    /// Sends it, and waits at most so long for its answer.
    pub(super) async fn send(&self, to: &Server, within: Duration) -> Result<Answer, Silence> {
        let Ok(mut stream) = to.connect(CONNECT.min(within)).await else { return Err(Silence::NotSent) };
        let exchange = async {
            stream.write_all(&self.bytes(&to.authority)).await.ok()?;
            stream.flush().await.ok()?;
            let mut answer = Vec::new();
            match (&mut stream).take(ANSWER).read_to_end(&mut answer).await {
                Ok(_) => parse(&answer),
                // TLS without a goodbye: whether the answer is whole, its length says.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => parse(&answer),
                Err(_) => None,
            }
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
