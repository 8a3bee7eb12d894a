//! A terminal against a node whose every frame is the test's: what the SDK says, and does not say, around the ends of
//! sessions. The rules of one session are tested in `protocol`, real nodes in `node`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rcgen::{CertificateParams, KeyPair};
use reveille_protocol::id::{Channel, Epoch, NodeId, Seq, Stream};
use reveille_protocol::wire::session::{
    Ack, Bye, ByeReason, Frame, Hello, NodeFrame, Nonce, Push, TerminalFrame, Welcome,
};
use reveille_terminal::identity::{SESSION_ALPN, provider};
use reveille_terminal::{Builder, Event, Linger, Received, Terminal};
use rustls::DistinguishedName;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

const PATIENCE: Duration = Duration::from_secs(10);

/// Lets every terminal in.
#[derive(Debug)]
struct Anyone;

impl ClientCertVerifier for Anyone {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

struct Node {
    folder: tempfile::TempDir,
    listener: TcpListener,
    address: SocketAddr,
    tls: TlsAcceptor,
}

impl Node {
    async fn start() -> Node {
        let folder = tempfile::tempdir().unwrap();
        let pair = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&pair).unwrap();
        std::fs::write(folder.path().join("ca.pem"), certificate.pem()).unwrap();
        let mut config = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(Arc::new(Anyone))
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivatePkcs8KeyDer::from(pair.serialize_der()).into(),
            )
            .unwrap();
        config.alpn_protocols = vec![SESSION_ALPN.to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Node { folder, listener, address, tls: TlsAcceptor::from(Arc::new(config)) }
    }

    /// A terminal of this node, with its state in the folder of this name.
    async fn terminal(&self, state: &str, linger: Linger) -> Terminal {
        let folder = self.folder.path();
        Builder::new([self.address.to_string()], folder.join("ca.pem"), folder.join(state))
            .listen("127.0.0.1:0".parse().unwrap())
            .linger(linger)
            .start()
            .await
            .unwrap()
    }

    async fn connection(&self) -> TcpStream {
        tokio::time::timeout(PATIENCE, self.listener.accept()).await.expect("a connection in time").unwrap().0
    }

    /// The next session, up to its Hello.
    async fn session(&self) -> (Session, Hello) {
        let stream = self.tls.accept(self.connection().await).await.unwrap();
        let mut session = Session { stream, buffer: BytesMut::new() };
        match session.hear().await {
            Some(TerminalFrame::Hello(hello)) => (session, hello),
            other => panic!("no Hello: {other:?}"),
        }
    }
}

struct Session {
    stream: TlsStream<TcpStream>,
    buffer: BytesMut,
}

impl Session {
    async fn say(&mut self, frame: NodeFrame) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.stream.write_all(&bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    async fn welcome(&mut self, stream: u64, pending: u32, linger: Linger) {
        self.say(NodeFrame::Welcome(Welcome {
            node: NodeId(1),
            stream: Stream(stream),
            epoch: Epoch(1),
            acked: Seq(0),
            pending,
            linger,
            notify_secret: [0; 32],
            check_in: 0,
        }))
        .await;
    }

    async fn push(&mut self, seq: u64) {
        self.say(NodeFrame::Push(Push {
            seq: Seq(seq),
            prev: Seq(seq - 1),
            maybe_seen: false,
            remaining: 0,
            lives_for: 60_000,
            channel: Channel(0),
            headers: Vec::new(),
            body: Bytes::from_static(b"wake up"),
        }))
        .await;
    }

    /// The terminal's next frame; `None` once it has closed the connection.
    async fn hear(&mut self) -> Option<TerminalFrame> {
        loop {
            if let Some(frame) = TerminalFrame::take(&mut self.buffer).unwrap() {
                return Some(frame);
            }
            let read = tokio::time::timeout(PATIENCE, self.stream.read_buf(&mut self.buffer));
            if matches!(read.await.expect("a word in time"), Ok(0) | Err(_)) {
                return None;
            }
        }
    }
}

/// The first event that `wanted` takes.
async fn until<T>(terminal: &mut Terminal, wanted: impl Fn(Event) -> Option<T>) -> T {
    let waiting = async {
        loop {
            let event = terminal.next().await.expect("the terminal lives");
            if let Some(found) = wanted(event) {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("an event in time")
}

async fn received(terminal: &mut Terminal) -> Received {
    until(terminal, |event| match event {
        Event::Received(push) => Some(push),
        _ => None,
    })
    .await
}

async fn disconnected(terminal: &mut Terminal) {
    until(terminal, |event| matches!(event, Event::Disconnected { .. }).then_some(())).await;
}

fn ack(seq: u64) -> Ack {
    Ack { seq: Seq(seq) }
}

#[tokio::test]
async fn a_confirmation_between_two_sessions_is_told_by_the_next() {
    let node = Node::start().await;
    let mut terminal = node.terminal("t", Linger::Forever).await;
    let (mut session, _) = node.session().await;
    session.welcome(7, 1, Linger::Forever).await;
    session.push(1).await;
    let push = received(&mut terminal).await;
    drop(session);
    disconnected(&mut terminal).await;
    // It may be connecting by now, but the handshake waits for `session`.
    push.confirm();
    let (mut session, hello) = node.session().await;
    assert_eq!((hello.stream, hello.last), (Stream(7), Seq(1)));
    session.welcome(7, 1, Linger::Forever).await;
    session.push(1).await;
    assert_eq!(session.hear().await, Some(TerminalFrame::Ack(ack(1))), "it came again: acked at once");
    terminal.shutdown().await;
}

#[tokio::test]
async fn a_confirmation_counts_only_in_its_own_stream() {
    let node = Node::start().await;
    let mut terminal = node.terminal("t", Linger::Forever).await;
    let (mut session, _) = node.session().await;
    session.welcome(7, 3, Linger::Forever).await;
    for seq in 1..=3 {
        session.push(seq).await;
    }
    received(&mut terminal).await;
    let second = received(&mut terminal).await;
    let late = received(&mut terminal).await;
    second.confirm();
    assert_eq!(session.hear().await, Some(TerminalFrame::Ack(ack(2))));
    drop(session);
    disconnected(&mut terminal).await;

    let (mut session, hello) = node.session().await;
    assert_eq!((hello.stream, hello.last), (Stream(7), Seq(2)));
    session.welcome(8, 3, Linger::Forever).await;
    for seq in 1..=3 {
        session.push(seq).await;
    }
    let first = received(&mut terminal).await;
    late.confirm();
    // Time for the terminal to say what it must not.
    session.say(NodeFrame::Ping(Nonce(1))).await;
    assert_eq!(session.hear().await, Some(TerminalFrame::Pong(Nonce(1))), "no ack of pushes not processed");
    first.confirm();
    assert_eq!(session.hear().await, Some(TerminalFrame::Ack(ack(1))), "below what the old stream had");
    terminal.shutdown().await;
}

#[tokio::test]
async fn who_confirms_and_leaves_has_confirmed() {
    let node = Node::start().await;
    // What is there first is taken at random where nobody orders it: often enough to show.
    for number in 0..8 {
        for linger in [Linger::AtOnce, Linger::Forever] {
            let mut terminal = node.terminal(&format!("{number} {linger:?}"), linger).await;
            let (mut session, _) = node.session().await;
            session.welcome(7, 1, linger).await;
            session.push(1).await;
            received(&mut terminal).await.confirm();
            let node_side = async {
                let mut said = session.hear().await;
                if said == Some(TerminalFrame::Ack(ack(1))) {
                    said = session.hear().await;
                }
                assert_eq!(said, Some(TerminalFrame::Goodbye(ack(1))), "{linger:?}");
                session.say(NodeFrame::Bye(Bye { reason: ByeReason::Done, retry_after: 0 })).await;
            };
            // In one go with the confirmation: the terminal's task finds both.
            let both = async { tokio::join!(terminal.shutdown(), node_side) };
            tokio::time::timeout(PATIENCE, both).await.expect("it ends in time");
        }
    }
}

#[tokio::test]
async fn a_confirmation_without_a_session_outlives_the_process() {
    let node = Node::start().await;
    let mut terminal = node.terminal("t", Linger::Forever).await;
    let (mut session, _) = node.session().await;
    session.welcome(7, 1, Linger::Forever).await;
    session.push(1).await;
    let push = received(&mut terminal).await;
    // Sent away for long enough that no other attempt is begun.
    session.say(NodeFrame::Bye(Bye { reason: ByeReason::GoElsewhere, retry_after: 60_000 })).await;
    disconnected(&mut terminal).await;
    push.confirm();
    terminal.shutdown().await;
    let terminal = node.terminal("t", Linger::Forever).await;
    let (_session, hello) = node.session().await;
    assert_eq!((hello.stream, hello.last), (Stream(7), Seq(1)));
    terminal.shutdown().await;
}

#[tokio::test]
async fn failures_before_a_session_do_not_slow_what_comes_after_it() {
    let node = Node::start().await;
    let mut terminal = node.terminal("t", Linger::Forever).await;
    for _ in 0..5 {
        drop(node.connection().await);
    }
    let (mut session, _) = node.session().await;
    session.welcome(7, 0, Linger::Forever).await;
    until(&mut terminal, |event| matches!(event, Event::Connected { .. }).then_some(())).await;
    drop(session);
    drop(node.connection().await);
    let failed = Instant::now();
    node.connection().await;
    // The second wait is at most 200 ms; after the failures before it, it would be 1.6 s at least.
    assert!(failed.elapsed() < Duration::from_millis(1200), "{:?}", failed.elapsed());
    terminal.shutdown().await;
}

#[tokio::test]
async fn a_node_that_asks_for_check_ins_all_the_time_gets_none() {
    let node = Node::start().await;
    let mut terminal = node.terminal("t", Linger::AtOnce).await;
    let (mut session, _) = node.session().await;
    session.welcome(7, 0, Linger::AtOnce).await;
    assert_eq!(session.hear().await, Some(TerminalFrame::Goodbye(ack(0))));
    session.say(NodeFrame::Bye(Bye { reason: ByeReason::Done, retry_after: 0 })).await;
    disconnected(&mut terminal).await;
    let again = tokio::time::timeout(Duration::from_millis(500), node.listener.accept()).await;
    assert!(again.is_err(), "it sleeps");
    terminal.shutdown().await;
}
