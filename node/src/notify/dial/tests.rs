//! Notifications with the first packet, to a terminal that remembers its nodes and to one that has forgotten them. Nothing
//! here is repeated by the clock, so what is answered arrived.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};

use quinn::crypto::rustls::QuicServerConfig;
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519, PublicKeyData};
use reveille_protocol::id::Epoch;
use reveille_protocol::service_list::row::Urgency;
use rustls::RootCertStore;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::{ServerSessionMemoryCache, WebPkiClientVerifier};

use super::*;
use crate::cli::certs::Ca;

/// Answers notifications as the SDK does.
struct Listening {
    endpoint: Endpoint,
    tls: rustls::ServerConfig,
    key: KeyFingerprint,
    /// Datagrams that arrived.
    heard: Arc<AtomicUsize>,
}

impl Listening {
    fn new(ca: &Ca) -> Listening {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.pem.as_bytes()).unwrap()).unwrap();
        let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let certificate = CertificateParams::new(Vec::new()).unwrap().self_signed(&pair).unwrap();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build().unwrap();
        let mut tls = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivatePkcs8KeyDer::from(pair.serialize_der()).into(),
            )
            .unwrap();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        tls.max_early_data_size = u32::MAX;
        tls.send_tls13_tickets = 1;
        let endpoint = Endpoint::server(Listening::quic(&tls), ([127, 0, 0, 1], 0).into()).unwrap();
        let heard = Arc::new(AtomicUsize::new(0));
        tokio::spawn(answer(endpoint.clone(), heard.clone()));
        let key = KeyFingerprint::of_spki(&pair.subject_public_key_info());
        Listening { endpoint, tls, key, heard }
    }

    /// With a memory that holds nothing yet.
    fn quic(tls: &rustls::ServerConfig) -> quinn::ServerConfig {
        let mut tls = tls.clone();
        tls.session_storage = ServerSessionMemoryCache::new(4);
        let mut quic = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
        quic.transport_config(Arc::new(one_datagram_each_way(DEADLINE)));
        quic
    }

    /// As after a restart of the terminal.
    fn forget(&self) {
        self.endpoint.set_server_config(Some(Listening::quic(&self.tls)));
    }

    async fn notified_by(&self, dialler: &Dialler) -> Handshake {
        let notification = Notification {
            id: u64::from_le_bytes(crate::random::random()),
            epoch: Epoch(1),
            pending: 1,
            urgency: Urgency::Normal,
            hints: Vec::new(),
        };
        let address = self.endpoint.local_addr().unwrap();
        let dialled = dialler.dial(TerminalId([1; 16]), address, self.key, &[7; 32], &notification).await;
        dialled.map_err(|outcome| outcome.label()).unwrap().close().await
    }
}

async fn answer(endpoint: Endpoint, heard: Arc<AtomicUsize>) {
    while let Some(incoming) = endpoint.accept().await {
        let (connection, _) = incoming.accept().unwrap().into_0rtt().unwrap_or_else(|_| unreachable!());
        while let Ok(datagram) = connection.read_datagram().await {
            heard.fetch_add(1, Ordering::Relaxed);
            let id = Notification::decode(&datagram).unwrap().id;
            connection.send_datagram(NotificationAck { id }.encode().into()).unwrap();
        }
    }
}

fn dialler(ca: &Ca) -> Dialler {
    let (certificate, key) = ca.node(1, 7, Vec::new(), 1).unwrap();
    let identity = Identity {
        chain: vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
        key: PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
    };
    Dialler::new(([127, 0, 0, 1], 0).into(), identity).unwrap().without_repeats()
}

#[tokio::test]
async fn each_notification_after_the_first_goes_out_with_the_first_packet() {
    let (ca, _) = Ca::new().unwrap();
    let (terminal, dialler) = (Listening::new(&ca), dialler(&ca));
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(terminal.notified_by(&dialler).await);
    }
    assert_eq!(seen, [Handshake::Full, Handshake::Early, Handshake::Early, Handshake::Early]);
    assert_eq!(terminal.heard.load(Ordering::Relaxed), 4, "each once");
}

#[tokio::test]
async fn a_terminal_that_forgot_the_ticket_gets_the_notification_with_the_handshake() {
    let (ca, _) = Ca::new().unwrap();
    let (terminal, dialler) = (Listening::new(&ca), dialler(&ca));
    assert_eq!(terminal.notified_by(&dialler).await, Handshake::Full);
    terminal.forget();
    assert_eq!(terminal.notified_by(&dialler).await, Handshake::Refused);
    assert_eq!(terminal.notified_by(&dialler).await, Handshake::Early);
    assert_eq!(terminal.heard.load(Ordering::Relaxed), 3, "each once");
}
