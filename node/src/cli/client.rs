//! A small HTTP client for commands and the bench: HTTP/1.1 over TCP or TLS, one request at a time on a connection
//! that is kept.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Bytes of an answer: a full page of terminals.
const MAX_ANSWER: usize = 8 << 20;
/// An answer takes at most this long: a node bounds its own, the longest wait for a push's end included.
const ANSWER: Duration = Duration::from_secs(90);
/// Connecting takes at most this long.
const CONNECT: Duration = Duration::from_secs(5);

/// Where a server is, taken from a URL.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    host: String,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
    /// The file that it was verified against.
    ca: PathBuf,
}

impl Target {
    /// From `http://host:port` or `https://host:port`; the latter is verified against the CA file.
    pub(crate) fn parse(url: &str, ca: Option<&Path>) -> anyhow::Result<Target> {
        let (scheme, rest) = url.split_once("://").context("a URL begins with http:// or https://")?;
        let authority = rest.split('/').next().unwrap_or_default();
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().context("the URL's port is no number")?),
            None => (authority, if scheme == "https" { 443 } else { 80 }),
        };
        // Looked at also where it is not needed: whoever gives one means it to be there.
        let known = ca.map(tls).transpose()?;
        let tls = match scheme {
            "http" => None,
            "https" => Some(
                known
                    .context("the CA is needed for https: --ca FILE, of `reveille cluster` --tls-ca FILE")?,
            ),
            other => bail!("{other}:// is not spoken here, only http and https"),
        };
        Ok(Target {
            ca: ca.map(Path::to_owned).unwrap_or_default(),
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
            tls,
        })
    }

    /// Connects.
    pub(crate) async fn connect(&self) -> anyhow::Result<Client> {
        tokio::time::timeout(CONNECT, self.connect_now())
            .await
            .with_context(|| format!("{}:{} does not answer", self.host, self.port))?
            .with_context(|| format!("{}:{}", self.host, self.port))
    }

    async fn connect_now(&self) -> anyhow::Result<Client> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        let sender = match &self.tls {
            None => start(TokioIo::new(stream)).await?,
            Some(tls) => {
                let name = ServerName::try_from(self.host.clone())?;
                let stream = TlsConnector::from(tls.clone()).connect(name, stream).await;
                start(TokioIo::new(stream.map_err(|error| self.explained(error))?)).await?
            }
        };
        let suspect = match &self.tls {
            None => "no HTTP comes from there: if the port speaks TLS, the URL begins with https://",
            Some(_) => {
                "no HTTP comes from there: is it the terminals' or the peers' port? Publishers and operators have their own"
            }
        };
        Ok(Client {
            sender,
            host: format!("{}:{}", self.host, self.port),
            suspect,
            verified: self.tls.is_some(),
            answered: false,
        })
    }

    /// What TLS found, with the likely mistake.
    fn explained(&self, error: io::Error) -> anyhow::Error {
        use rustls::{CertificateError as Bad, Error};
        let found = error.get_ref().and_then(|error| error.downcast_ref::<Error>());
        match found {
            // The latter where both CAs have one name, as all that `reveille certs ca` makes.
            Some(Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature)) => {
                anyhow::anyhow!(
                    "the certificate that it shows was not made by the CA in {}",
                    self.ca.display()
                )
            }
            Some(Error::InvalidMessage(_)) => {
                anyhow::anyhow!("it does not speak TLS: if the port is meant, the URL begins with http://")
            }
            _ => error.into(),
        }
    }
}

fn tls(ca: &Path) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    let named = || format!("{}", ca.display());
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

async fn start<S>(io: TokioIo<S>) -> anyhow::Result<SendRequest<Full<Bytes>>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = handshake(io).await?;
    // Its end is seen by the next request.
    tokio::spawn(connection);
    Ok(sender)
}

/// A connection.
pub(crate) struct Client {
    sender: SendRequest<Full<Bytes>>,
    host: String,
    /// What is likely wrong where no answer is HTTP.
    suspect: &'static str,
    /// By TLS.
    verified: bool,
    /// Something was asked before.
    answered: bool,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Its status.
    pub(crate) status: StatusCode,
    /// Seconds to wait before trying again.
    pub(crate) retry_after: Option<u64>,
    /// Its body.
    pub(crate) body: Bytes,
}

impl Client {
    /// Sends one request and reads its answer.
    pub(crate) async fn send(
        &mut self,
        method: &str,
        path: &str,
        token: &str,
        headers: &[(&str, String)],
        body: Bytes,
    ) -> anyhow::Result<Answer> {
        let answer = self.answer(method, path, token, headers, body);
        tokio::time::timeout(ANSWER, answer).await.context("it takes the request and does not answer")?
    }

    async fn answer(
        &mut self,
        method: &str,
        path: &str,
        token: &str,
        headers: &[(&str, String)],
        body: Bytes,
    ) -> anyhow::Result<Answer> {
        let response = self.begin(method, path, token, headers, body).await?;
        let status = response.status();
        let retry_after =
            response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|error| anyhow::anyhow!("the answer cannot be read: {error}"))?
            .to_bytes();
        Ok(Answer { status, retry_after, body })
    }

    /// Sends one request; its answer's body is the caller's to read, as it comes.
    pub(crate) async fn begin(
        &mut self,
        method: &str,
        path: &str,
        token: &str,
        headers: &[(&str, String)],
        body: Bytes,
    ) -> anyhow::Result<Response<Incoming>> {
        let mut request = Request::builder().method(method).uri(path).header("host", &self.host);
        if !token.is_empty() {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(body))?;
        let sent = match self.sender.ready().await {
            Ok(()) => self.sender.send_request(request).await,
            Err(error) => Err(error),
        };
        // A node that refuses a client without a certificate just closes.
        let strange = |error: &hyper::Error| is_no_http(error) || (self.verified && error.is_closed());
        let answered = std::mem::replace(&mut self.answered, true);
        sent.map_err(|error| match !answered && strange(&error) {
            true => anyhow::Error::new(error).context(self.suspect),
            false => error.into(),
        })
    }
}

/// Did something else than HTTP come, or TLS refuse after its handshake?
fn is_no_http(error: &hyper::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    let mut refused = error.is_parse();
    while let Some(found) = cause {
        let inner = found.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        refused |= inner.is_some_and(|inner| inner.is::<rustls::Error>());
        cause = found.source();
    }
    refused
}

impl Answer {
    /// What an error says, if it is one.
    pub(crate) fn message(&self) -> Option<String> {
        let value: serde_json::Value = serde_json::from_slice(&self.body).ok()?;
        Some(value.get("message")?.as_str()?.to_owned())
    }

    /// The body, if the request succeeded; else what the server said.
    pub(crate) fn json(&self) -> anyhow::Result<serde_json::Value> {
        let value: serde_json::Value = serde_json::from_slice(&self.body)
            .with_context(|| format!("{}: {}", self.status, String::from_utf8_lossy(&self.body)))?;
        if self.status.is_success() {
            return Ok(value);
        }
        let message = value.get("message").and_then(|message| message.as_str()).unwrap_or("no reason given");
        let again =
            self.retry_after.map(|seconds| format!(" (try again in {seconds} s)")).unwrap_or_default();
        bail!("{}: {message}{again}", self.status)
    }
}
