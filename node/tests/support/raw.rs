//! A terminal whose every byte is the test's, and what a node counts of it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519, PublicKeyData};
use reveille_protocol::id::{Attempt, KeyFingerprint, Seq, Stream, TerminalId};
use reveille_protocol::service_list::row::{Linger, Urgency};
use reveille_protocol::wire::session::{Frame, Hello, NodeFrame, TerminalFrame};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Dev, http};

/// A terminal whose every byte is the test's.
pub struct Raw {
    pub id: TerminalId,
    tls: TlsConnector,
}

impl Raw {
    /// That knows nothing of anchors.
    pub fn new(ca: &Path) -> Raw {
        Raw::speaking(ca, reveille_terminal::identity::SESSION_ALPN[1])
    }

    pub fn speaking(ca: &Path, protocol: &[u8]) -> Raw {
        let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let certificate = CertificateParams::new(Vec::new()).unwrap().self_signed(&pair).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
        let mut config = rustls::ClientConfig::builder_with_provider(reveille_terminal::identity::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(
                vec![certificate.der().clone()],
                PrivatePkcs8KeyDer::from(pair.serialize_der()).into(),
            )
            .unwrap();
        config.alpn_protocols = vec![protocol.to_vec()];
        let id = KeyFingerprint::of_spki(&pair.subject_public_key_info()).terminal();
        Raw { id, tls: TlsConnector::from(Arc::new(config)) }
    }

    pub async fn connect(&self, address: &str) -> Connection {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        Connection { stream: self.tls.connect(name, stream).await.unwrap(), buffer: BytesMut::new() }
    }

    pub fn hello(&self, attempt: u64) -> Hello {
        Hello {
            terminal: self.id,
            attempt: Attempt(attempt),
            stream: Stream(0),
            last: Seq(0),
            listening: None,
            linger: Linger::Forever,
            min_urgency: Urgency::VeryLow,
            enrolment: None,
        }
    }
}

pub struct Connection {
    pub stream: TlsStream<TcpStream>,
    buffer: BytesMut,
}

impl Connection {
    pub async fn say(&mut self, frame: TerminalFrame) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.send(&bytes).await;
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// The node's next frame; `None` once it has closed the connection.
    pub async fn hear(&mut self, patience: Duration) -> Option<NodeFrame> {
        loop {
            if let Some(frame) = NodeFrame::take(&mut self.buffer).unwrap() {
                return Some(frame);
            }
            let read = tokio::time::timeout(patience, self.stream.read_buf(&mut self.buffer));
            if matches!(read.await.expect("a word in time"), Ok(0) | Err(_)) {
                return None;
            }
        }
    }
}

/// The value of a counter on a node; zero if it has not counted yet.
pub fn counter(admin: &str, name: &str) -> u64 {
    let metrics = http(admin, "GET", "/metrics", &[], b"");
    let text = String::from_utf8_lossy(&metrics.body).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(0, |value| value.trim().parse().unwrap())
}

pub fn counted(dev: &Dev, name: &str) -> u64 {
    (1..=3).map(|node| counter(dev.node(node)["admin"].as_str().unwrap(), name)).sum()
}
