//! The listening socket against callers who never hear an answer, as happens to one whose address someone else has put on his
//! packets.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, ConnectionId};
use reveille_protocol::wire::notification::{ALPN, SERVER_NAME, first_cid};
use rustls::RootCertStore;
use tokio::net::UdpSocket as Socket;

use super::*;
use crate::identity::provider;

const SECRET: [u8; 32] = [7; 32];

fn identity(folder: &Path) -> Identity {
    let pair = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    let ca = folder.join("ca.pem");
    std::fs::write(&ca, params.self_signed(&pair).unwrap().pem()).unwrap();
    Identity::open(folder, &ca, true).unwrap()
}

fn listener(folder: &Path) -> Listener {
    let watching = Watching { tick: None, clock: crate::network::Clock::default() };
    let (moved, _) = watch::channel(());
    let at = ([127, 0, 0, 1], 0).into();
    let listener = Listener::start(at, &identity(folder), folder, watching, moved).unwrap();
    listener.gate().set_secret(SECRET);
    listener
}

/// Somebody who calls through an address at which no answer arrives.
struct Caller {
    at: Socket,
    /// Keeps what it sends going.
    _endpoint: Endpoint,
    _calling: tokio::task::JoinHandle<()>,
    /// It does hear the answers.
    hears: bool,
    sent: usize,
    heard: usize,
    /// Form and type of the packets that came back.
    kinds: BTreeSet<u8>,
}

impl Caller {
    async fn new(nonce: u64) -> Caller {
        let at = Socket::bind("127.0.0.1:0").await.unwrap();
        let mut tls = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        let cid = first_cid(&SECRET, nonce);
        config.initial_dst_cid_provider(Arc::new(move || ConnectionId::new(&cid)));
        let endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
        let connecting = endpoint.connect_with(config, at.local_addr().unwrap(), SERVER_NAME).unwrap();
        let calling = tokio::spawn(async move { drop(connecting.await) });
        Caller {
            at,
            _endpoint: endpoint,
            _calling: calling,
            hears: false,
            sent: 0,
            heard: 0,
            kinds: BTreeSet::new(),
        }
    }

    /// Passes on what it says, and counts what comes back, for so long.
    async fn call(&mut self, to: SocketAddr, long: Duration) {
        let mut buffer = [0; 2048];
        let mut caller = None;
        let passing = async {
            loop {
                let (len, from) = self.at.recv_from(&mut buffer).await.unwrap();
                if from == to {
                    self.heard += len;
                    // The second bit may be anything (RFC 9287); the last four are protected.
                    self.kinds.insert(buffer[0] & 0xb0);
                    if let Some(caller) = caller.filter(|_| self.hears) {
                        self.at.send_to(&buffer[..len], caller).await.unwrap();
                    }
                } else {
                    caller = Some(from);
                    self.sent += len;
                    self.at.send_to(&buffer[..len], to).await.unwrap();
                }
            }
        };
        let _over = tokio::time::timeout(long, passing).await;
    }
}

#[tokio::test]
async fn whoever_does_not_answer_is_sent_no_more_than_three_times_what_came() {
    let folder = tempfile::tempdir().unwrap();
    let listener = listener(folder.path());
    let mut caller = Caller::new(1).await;
    caller.call(listener.address(), DEADLINE + Duration::from_secs(1)).await;
    assert!(caller.sent >= 1200 && caller.heard > 0, "{} sent, {} heard", caller.sent, caller.heard);
    assert!(caller.heard <= 3 * caller.sent, "{} bytes for {}", caller.heard, caller.sent);
}

/// Long header packets by the form and the type in their first byte (RFC 9000 section 17.2).
const RETRY: u8 = 0xb0;
const INITIAL: u8 = 0x80;

#[tokio::test]
async fn under_load_an_address_proves_itself_first() {
    let folder = tempfile::tempdir().unwrap();
    let listener = listener(folder.path());
    let mut callers = Vec::new();
    for nonce in 0..UNPROVEN as u64 + 2 {
        let mut caller = Caller::new(nonce).await;
        caller.call(listener.address(), Duration::from_millis(150)).await;
        callers.push(caller);
    }
    for (number, caller) in callers.iter().enumerate() {
        assert_eq!(
            caller.kinds.contains(&RETRY),
            number >= UNPROVEN,
            "the {number}th: {:02x?}",
            caller.kinds
        );
    }
    for caller in &callers[UNPROVEN..] {
        assert_eq!(caller.kinds.len(), 1, "nothing but that");
        assert!(caller.heard <= caller.sent, "{} bytes for {}", caller.heard, caller.sent);
    }
    // Who hears the question answers it, and is served.
    let mut proven = Caller::new(99).await;
    proven.hears = true;
    proven.call(listener.address(), Duration::from_millis(150)).await;
    assert!(proven.kinds.is_superset(&BTreeSet::from([RETRY, INITIAL])), "{:02x?}", proven.kinds);
}
