//! Connection establishing: TCP and TLS to the first node that answers.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::ground::TcpStream;
use crate::identity::Identity;
use crate::resolve::{Target, targets};

/// TCP and TLS with one node: a few round trips on a bad path. The next node is tried after it.
const ONE_NODE: Duration = Duration::from_secs(3);

/// No node could be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No name gave an address.
    #[error("none of the servers' names has an address")]
    NoAddress,
    /// The last one tried failed so.
    #[error("no node could be reached; the last one, {address}: {error}")]
    Failed {
        /// Where.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
}

/// Connects to the first node that answers, hinted ones first, and the one to avoid last.
pub async fn connect(
    identity: &Identity,
    servers: &[String],
    hints: &[String],
    avoid: Option<SocketAddr>,
) -> Result<(TlsStream<TcpStream>, SocketAddr), ConnectError> {
    let mut failed = ConnectError::NoAddress;
    for target in targets(servers, hints, avoid).await {
        let address = target.address;
        match tokio::time::timeout(ONE_NODE, one(identity, target)).await {
            Ok(Ok(stream)) => return Ok((stream, address)),
            Ok(Err(error)) => failed = ConnectError::Failed { address, error },
            Err(_) => failed = ConnectError::Failed { address, error: io::ErrorKind::TimedOut.into() },
        }
        tracing::debug!(error = %failed, "trying the next node");
    }
    Err(failed)
}

/// What TLS found, with the likely mistake.
fn explained(error: io::Error) -> io::Error {
    use rustls::{CertificateError as Bad, Error};
    let found = error.get_ref().and_then(|error| error.downcast_ref::<Error>());
    match found {
        Some(Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature)) => {
            io::Error::other("its certificate was not made by the CA that this terminal trusts")
        }
        Some(Error::InvalidMessage(_)) => io::Error::other("it does not speak TLS: is that another port?"),
        _ => error,
    }
}

async fn one(identity: &Identity, target: Target) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(target.host).map_err(io::Error::other)?;
    let stream = TcpStream::connect(target.address).await?;
    stream.set_nodelay(true)?;
    let stream =
        TlsConnector::from(identity.client.clone()).connect(name, stream).await.map_err(explained)?;
    match stream.get_ref().1.alpn_protocol() {
        Some(_) => Ok(stream),
        None => Err(io::Error::other("it speaks TLS and no session: is that the publishers' port?")),
    }
}
