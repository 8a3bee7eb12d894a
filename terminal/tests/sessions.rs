//! A terminal against a node whose every frame is the test's: what is confirmed when, what is said after it, how long is
//! waited. The rules of a session without sockets and disk are tested in `protocol`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use reveille_protocol::id::{Channel, Epoch, NodeId, Seq, Stream};
use reveille_protocol::wire::notification::{self, Notification};
use reveille_protocol::wire::session::{
    Ack, Bye, ByeReason, Cause, Frame, Hello, NodeFrame, Nonce, Push, TerminalFrame, Welcome,
};
use reveille_terminal::{Builder, Event, Linger, Received, Terminal};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

const PATIENCE: Duration = Duration::from_secs(10);
const SECRET: [u8; 32] = [3; 32];
/// One life of the terminal's registration, and the next.
const LIVES: [Stream; 2] = [Stream(7), Stream(8)];

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: not in time"))
}

/// A node of which only the session port exists.
struct Node {
    listener: TcpListener,
    tls: TlsAcceptor,
    /// The cluster's CA.
    issuer: Issuer<'static, KeyPair>,
    folder: TempDir,
}

/// Believes every terminal's listening key: whose it is does not matter here.
#[derive(Debug)]
struct AnyKey;

impl ServerCertVerifier for AnyKey {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
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
        reveille_terminal::identity::provider().signature_verification_algorithms.supported_schemes()
    }
}

impl Node {
    async fn start() -> Node {
        Node::speaking(reveille_terminal::identity::SESSION_ALPN[1]).await
    }

    async fn speaking(protocol: &[u8]) -> Node {
        let folder = tempfile::tempdir().unwrap();
        let (ca_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        std::fs::write(folder.path().join("ca.pem"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
        let issuer = Issuer::new(ca, ca_key);
        let certificate =
            CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        let mut config = rustls::ServerConfig::builder_with_provider(reveille_terminal::identity::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )
            .unwrap();
        config.alpn_protocols = vec![protocol.to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Node { listener, tls: TlsAcceptor::from(Arc::new(config)), issuer, folder }
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn builder(&self) -> Builder {
        let address = self.listener.local_addr().unwrap().to_string();
        Builder::new([address], self.folder.path().join("ca.pem"), self.state())
            .listen(([127, 0, 0, 1], 0).into())
    }

    /// A connection that has not said anything yet.
    async fn knock(&self) -> TcpStream {
        soon("a connection", self.listener.accept()).await.unwrap().0
    }

    /// Notifies a terminal, and waits until it has acknowledged.
    async fn notify(&self, port: u16) {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(Vec::new()).unwrap().signed_by(&key, &self.issuer).unwrap().der().clone();
        let mut tls = rustls::ClientConfig::builder_with_provider(reveille_terminal::identity::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyKey))
            .with_client_auth_cert(vec![certificate], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
            .unwrap();
        tls.alpn_protocols = vec![notification::ALPN.to_vec()];
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        // A nonce is good for one source.
        static NONCE: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        let nonce = NONCE.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let cid = notification::first_cid(&SECRET, nonce);
        config.initial_dst_cid_provider(Arc::new(move || quinn::ConnectionId::new(&cid)));
        let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
        let connecting =
            endpoint.connect_with(config, ([127, 0, 0, 1], port).into(), notification::SERVER_NAME).unwrap();
        let connection = soon("a handshake", connecting).await.unwrap();
        let notification = Notification {
            id: 5,
            epoch: Epoch(1),
            pending: 1,
            urgency: reveille_terminal::Urgency::Normal,
            hints: Vec::new(),
        };
        connection.send_datagram(notification.encode().into()).unwrap();
        soon("an acknowledgement", connection.read_datagram()).await.unwrap();
    }

    /// The terminal's next session, and its Hello.
    async fn session(&self) -> (Session, Hello) {
        let stream = self.tls.accept(self.knock().await).await.unwrap();
        let mut session = Session { stream, buffer: BytesMut::new() };
        match session.hear().await {
            Some(TerminalFrame::Hello(hello)) => (session, hello),
            other => panic!("no Hello but {other:?}"),
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

    async fn welcome(&mut self, stream: Stream, acked: u64, pending: u32, linger: Linger) {
        let welcome = Welcome {
            node: NodeId(1),
            stream,
            epoch: Epoch(1),
            acked: Seq(acked),
            pending,
            linger,
            notify_secret: SECRET,
            check_in: 3600,
        };
        self.say(NodeFrame::Welcome(welcome)).await;
    }

    async fn push(&mut self, seq: u64, remaining: u32) {
        self.push_of(seq, remaining, Bytes::from_static(b"body")).await;
    }

    async fn push_of(&mut self, seq: u64, remaining: u32, body: Bytes) {
        let push = Push {
            seq: Seq(seq),
            prev: Seq(seq - 1),
            maybe_seen: false,
            remaining,
            lives_for: 60_000,
            channel: Channel(0),
            headers: Vec::new(),
            body,
        };
        self.say(NodeFrame::Push(push)).await;
    }

    /// The terminal's next frame; `None` once it has closed the connection.
    async fn hear(&mut self) -> Option<TerminalFrame> {
        loop {
            if let Some(frame) = TerminalFrame::take(&mut self.buffer).unwrap() {
                return Some(frame);
            }
            let read = soon("a frame", self.stream.read_buf(&mut self.buffer)).await;
            if matches!(read, Ok(0) | Err(_)) {
                return None;
            }
        }
    }

    async fn hears(&mut self, frame: TerminalFrame) {
        assert_eq!(self.hear().await, Some(frame));
    }

    /// Nothing that the terminal says before its answer to a ping: it has taken in what came before.
    async fn pongs(&mut self, nonce: u64) {
        self.say(NodeFrame::Ping(Nonce(nonce))).await;
        self.hears(TerminalFrame::Pong(Nonce(nonce))).await;
    }
}

fn ack(seq: u64) -> TerminalFrame {
    TerminalFrame::Ack(Ack { seq: Seq(seq) })
}

fn goodbye(seq: u64) -> TerminalFrame {
    TerminalFrame::Goodbye(Ack { seq: Seq(seq) })
}

/// The application's next push.
async fn received(terminal: &mut Terminal) -> Received {
    loop {
        if let Event::Received(push) = soon("a push", terminal.next()).await.expect("the terminal lives") {
            return push;
        }
    }
}

async fn disconnected(terminal: &mut Terminal) -> String {
    loop {
        let event = soon("an end", terminal.next()).await.expect("the terminal lives");
        if let Event::Disconnected { reason } = event {
            return reason;
        }
    }
}

/// A terminal that has a push which it did not confirm before its session broke.
async fn unconfirmed(node: &Node) -> (Terminal, Received) {
    let mut terminal = node.builder().start().await.unwrap();
    let (mut session, _) = node.session().await;
    session.welcome(LIVES[0], 0, 1, Linger::AtOnce).await;
    session.push(1, 0).await;
    let push = received(&mut terminal).await;
    drop(session);
    disconnected(&mut terminal).await;
    (terminal, push)
}

#[tokio::test]
async fn what_is_confirmed_between_two_sessions_is_said_in_the_next_hello() {
    let node = Node::start().await;
    let (_terminal, push) = unconfirmed(&node).await;
    // It is connecting again; the application confirms while nobody answers.
    let knocking = node.knock().await;
    push.confirm();
    drop(knocking);
    let (mut session, hello) = node.session().await;
    assert_eq!((hello.stream, hello.last), (LIVES[0], Seq(1)));
    session.welcome(LIVES[0], 1, 0, Linger::AtOnce).await;
    session.hears(goodbye(1)).await;
}

#[tokio::test]
async fn a_confirmation_counts_in_its_own_stream_only() {
    let node = Node::start().await;
    let mut terminal = node.builder().linger(Linger::Forever).start().await.unwrap();
    let (mut session, _) = node.session().await;
    session.welcome(LIVES[0], 0, 60, Linger::Forever).await;
    let mut old = Vec::new();
    for seq in 1..=60 {
        session.push(seq, 60 - seq as u32).await;
        old.push(received(&mut terminal).await);
    }
    let late = old.remove(2);
    old.pop().unwrap().confirm();
    session.hears(ack(60)).await;
    drop(session);
    // The registration began anew.
    let (mut session, hello) = node.session().await;
    assert_eq!((hello.stream, hello.last), (LIVES[0], Seq(60)));
    session.welcome(LIVES[1], 0, 3, Linger::Forever).await;
    let mut new = Vec::new();
    for seq in 1..=3 {
        session.push(seq, 3 - seq as u32).await;
        new.push(received(&mut terminal).await);
    }
    late.confirm();
    session.pongs(1).await;
    new.remove(0).confirm();
    session.hears(ack(1)).await;
    // Nor does it displace one that was not read yet.
    new.remove(0).confirm();
    old.remove(0).confirm();
    session.hears(ack(2)).await;
    terminal.shutdown().await;
    session.hears(goodbye(2)).await;
}

#[tokio::test]
async fn what_is_confirmed_before_shutdown_is_said_on_the_way_out() {
    let node = Node::start().await;
    for (round, linger) in [Linger::AtOnce, Linger::Forever].repeat(12).into_iter().enumerate() {
        let seq = round as u64 + 1;
        let mut terminal = node.builder().linger(linger).start().await.unwrap();
        let (mut session, _) = node.session().await;
        session.welcome(LIVES[0], seq - 1, 1, linger).await;
        session.push(seq, 0).await;
        received(&mut terminal).await.confirm();
        let mut ending = std::pin::pin!(terminal.shutdown());
        assert!(futures::poll!(&mut ending).is_pending());
        let said = loop {
            match session.hear().await {
                Some(TerminalFrame::Ack(_)) => {}
                other => break other,
            }
        };
        assert_eq!(said, Some(goodbye(seq)), "round {round}");
        let waits = tokio::time::timeout(Duration::from_millis(50), &mut ending).await.is_err();
        assert!(waits, "round {round}: it waits for the node's answer");
        session.say(NodeFrame::Bye(Bye { reason: ByeReason::Done, retry_after: 0 })).await;
        soon("the end", ending).await;
    }
}

#[tokio::test]
async fn what_is_confirmed_without_a_session_before_shutdown_is_saved() {
    let node = Node::start().await;
    let (terminal, push) = unconfirmed(&node).await;
    let _connecting = node.knock().await;
    push.confirm();
    terminal.shutdown().await;
    let mut terminal = node.builder().start().await.unwrap();
    // Those of before may still be in the backlog.
    let hello = loop {
        let Ok(stream) = node.tls.accept(node.knock().await).await else { continue };
        let mut session = Session { stream, buffer: BytesMut::new() };
        if let Some(TerminalFrame::Hello(hello)) = session.hear().await {
            break hello;
        }
    };
    assert_eq!(hello.last, Seq(1));
    assert!(terminal.next().await.is_some());
}

#[tokio::test]
async fn shutdown_does_not_wait_for_a_node_that_does_not_answer() {
    let node = Node::start().await;
    let terminal = node.builder().start().await.unwrap();
    let _silent = node.knock().await;
    let began = Instant::now();
    soon("the end", terminal.shutdown()).await;
    // A node that does not answer is given three seconds.
    assert!(began.elapsed() < Duration::from_millis(2500), "{:?}", began.elapsed());
}

#[tokio::test]
async fn failures_before_a_good_session_do_not_count_after_it() {
    let node = Node::start().await;
    let _terminal = node.builder().linger(Linger::Forever).start().await.unwrap();
    for _ in 0..6 {
        drop(node.knock().await);
    }
    let (mut session, _) = node.session().await;
    session.welcome(LIVES[0], 0, 0, Linger::Forever).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    drop(session);
    drop(node.knock().await);
    let failed = Instant::now();
    let _again = node.knock().await;
    // After six failures in a row it would be 1.6 s at the least.
    assert!(failed.elapsed() < Duration::from_millis(1500), "{:?}", failed.elapsed());
}

#[tokio::test]
async fn a_node_that_welcomes_and_then_breaks_the_protocol_is_not_hammered() {
    let node = Node::start().await;
    let _terminal = node.builder().linger(Linger::Forever).start().await.unwrap();
    let began = Instant::now();
    let mut sessions = 0;
    while began.elapsed() < Duration::from_secs(3) {
        let next = tokio::time::timeout(Duration::from_secs(1), node.session()).await;
        let Ok((mut session, _)) = next else { continue };
        sessions += 1;
        session.welcome(LIVES[0], 0, 0, Linger::Forever).await;
        let _ = session.stream.write_all(&[0xa5; 100]).await;
    }
    assert!((1..12).contains(&sessions), "{sessions} sessions in 3 s");
}

#[tokio::test]
async fn no_check_in_period_makes_it_connect_in_a_loop() {
    for own in [Some(Duration::ZERO), Some(Duration::MAX), None] {
        let node = Node::start().await;
        let builder = node.builder();
        let builder = match own {
            Some(period) => builder.check_in(period),
            None => builder,
        };
        let mut terminal = builder.start().await.unwrap();
        let (mut session, _) = node.session().await;
        let mut welcome = Vec::new();
        NodeFrame::Welcome(Welcome {
            node: NodeId(1),
            stream: LIVES[0],
            epoch: Epoch(1),
            acked: Seq(0),
            pending: 0,
            linger: Linger::AtOnce,
            notify_secret: SECRET,
            check_in: 0,
        })
        .encode(&mut welcome);
        session.stream.write_all(&welcome).await.unwrap();
        session.hears(goodbye(0)).await;
        session.say(NodeFrame::Bye(Bye { reason: ByeReason::Done, retry_after: 0 })).await;
        disconnected(&mut terminal).await;
        let again = tokio::time::timeout(Duration::from_millis(500), terminal.next()).await;
        assert!(again.is_err(), "{own:?}: {again:?}");
    }
}

#[tokio::test]
async fn a_bye_is_heard_even_if_the_connection_breaks_with_it() {
    let node = Node::start().await;
    for round in 1..=10 {
        let mut terminal = node.builder().linger(Linger::Forever).start().await.unwrap();
        let (mut session, _) = node.session().await;
        session.welcome(LIVES[0], 0, 1, Linger::Forever).await;
        session.push(1, 0).await;
        let push = received(&mut terminal).await;
        session.pongs(round).await;
        session.say(NodeFrame::Bye(Bye { reason: ByeReason::Superseded, retry_after: 0 })).await;
        // Closed with a reset: the terminal's own words fail from here on.
        session.stream.get_ref().0.set_zero_linger().unwrap();
        drop(session);
        push.confirm();
        let reason = disconnected(&mut terminal).await;
        assert!(reason.contains("took over"), "round {round}: {reason}");
        terminal.shutdown().await;
        std::fs::remove_dir_all(node.state()).unwrap();
    }
}

#[tokio::test]
async fn a_node_that_pushes_more_than_its_window_is_not_read_on() {
    let node = Node::start().await;
    let _terminal = node.builder().linger(Linger::Forever).start().await.unwrap();
    let (mut session, _) = node.session().await;
    session.welcome(LIVES[0], 0, 1000, Linger::Forever).await;
    let pushed = async {
        for seq in 1..=1000 {
            session.push_of(seq, 1, vec![0; 60_000].into()).await;
        }
    };
    let all = tokio::time::timeout(Duration::from_secs(5), pushed).await.is_ok();
    assert!(!all, "60 MB wait in the terminal for an application that takes nothing");
}

#[tokio::test]
async fn a_notification_that_comes_while_a_session_ends_makes_it_connect_again() {
    let node = Node::start().await;
    let _terminal = node.builder().start().await.unwrap();
    let (mut session, hello) = node.session().await;
    session.welcome(LIVES[0], 0, 0, Linger::AtOnce).await;
    session.hears(goodbye(0)).await;
    // Published once the node had detached the terminal, before its Bye arrives.
    node.notify(hello.listening.unwrap().port).await;
    session.say(NodeFrame::Bye(Bye { reason: ByeReason::Done, retry_after: 0 })).await;
    node.session().await;
}

/// A session of which the node knows nothing to push, to its end; where the terminal listens.
async fn pointless(node: &Node, terminal: &mut Terminal) -> u16 {
    let (mut session, hello) = node.session().await;
    session.welcome(LIVES[0], 0, 0, Linger::AtOnce).await;
    session.hears(goodbye(0)).await;
    session.say(NodeFrame::Bye(Bye { reason: ByeReason::Done, retry_after: 0 })).await;
    disconnected(terminal).await;
    hello.listening.unwrap().port
}

#[tokio::test]
async fn notifications_that_bring_nothing_are_followed_ever_later_until_a_push_comes() {
    let node = Node::start().await;
    let mut terminal = node.builder().start().await.unwrap();
    let port = pointless(&node, &mut terminal).await;
    for _ in 0..3 {
        node.notify(port).await;
        pointless(&node, &mut terminal).await;
    }
    // Two that wait are one.
    node.notify(port).await;
    node.notify(port).await;
    let hasty = tokio::time::timeout(Duration::from_secs(2), node.session()).await;
    assert!(hasty.is_err(), "it follows the fourth at once");
    let stats = terminal.listen_stats();
    assert_eq!((stats.pointless, stats.held), (3, 1));
    let (mut session, _) = node.session().await;
    session.welcome(LIVES[0], 0, 1, Linger::AtOnce).await;
    session.push(1, 0).await;
    received(&mut terminal).await.confirm();
    session.hears(goodbye(1)).await;
    session.say(NodeFrame::Bye(Bye { reason: ByeReason::Done, retry_after: 0 })).await;
    disconnected(&mut terminal).await;
    node.notify(port).await;
    tokio::time::timeout(Duration::from_secs(3), node.session()).await.expect("the row is over");
    assert_eq!(terminal.listen_stats().held, 1);
}

/// A device's clock that goes on while it sleeps: it sleeps when the test says so.
#[derive(Clone, Default)]
struct Sleep(Arc<std::sync::atomic::AtomicU64>);

impl Sleep {
    fn sleeps(&self, seconds: u64) {
        self.0.fetch_add(seconds, std::sync::atomic::Ordering::Relaxed);
    }

    fn clock(&self) -> impl Fn() -> Duration + Send + Sync + 'static {
        let (slept, began) = (self.0.clone(), Instant::now());
        move || began.elapsed() + Duration::from_secs(slept.load(std::sync::atomic::Ordering::Relaxed))
    }
}

fn watched(node: &Node, sleep: &Sleep) -> Builder {
    node.builder().watch_network(Some(Duration::from_secs(1))).sleepless_clock(sleep.clock())
}

#[tokio::test]
async fn a_terminal_whose_device_slept_connects_by_itself() {
    let (node, sleep) = (Node::start().await, Sleep::default());
    let mut terminal = watched(&node, &sleep).start().await.unwrap();
    for slept in [7200, 60] {
        let (mut session, _) = node.session().await;
        session.welcome(LIVES[0], 0, 0, Linger::AtOnce).await;
        session.hears(goodbye(0)).await;
        session.say(NodeFrame::Bye(Bye { reason: ByeReason::Done, retry_after: 0 })).await;
        disconnected(&mut terminal).await;
        // A doze is no reason.
        sleep.sleeps(20);
        let dozed = tokio::time::timeout(Duration::from_secs(3), node.session()).await;
        assert!(dozed.is_err(), "it connects after a doze");
        sleep.sleeps(slept);
    }
    node.session().await;
}

#[tokio::test]
async fn a_session_must_prove_itself_after_a_sleep() {
    let (node, sleep) = (Node::start().await, Sleep::default());
    let _terminal = watched(&node, &sleep).linger(Linger::Forever).start().await.unwrap();
    let (mut session, _) = node.session().await;
    session.welcome(LIVES[0], 0, 0, Linger::Forever).await;
    session.pongs(1).await;
    sleep.sleeps(600);
    let Some(TerminalFrame::Ping(_)) = session.hear().await else { panic!("it asks") };
    // Nobody answers: the connection was cut off while the device slept.
    let (mut session, _) = node.session().await;
    session.welcome(LIVES[0], 0, 0, Linger::Forever).await;
    session.pongs(2).await;
}

#[tokio::test]
async fn another_network_ends_the_wait_before_the_next_try() {
    let node = Node::start().await;
    let terminal = node.builder().start().await.unwrap();
    for _ in 0..8 {
        drop(node.knock().await);
    }
    // After eight failures it waits for 3.2 s at the least.
    let waits = tokio::time::timeout(Duration::from_millis(500), node.knock()).await;
    assert!(waits.is_err(), "it does not wait");
    terminal.network_changed();
    tokio::time::timeout(Duration::from_secs(2), node.knock()).await.expect("it tries at once");
    // Once: what does not answer now is not asked in a loop.
    let waits = tokio::time::timeout(Duration::from_secs(2), node.knock()).await;
    assert!(waits.is_err(), "it does not wait any more");
}

#[tokio::test]
async fn why_it_comes_is_said_until_a_node_has_taken_note_of_it() {
    let node = Node::speaking(reveille_terminal::identity::SESSION_ALPN[0]).await;
    let terminal = node.builder().start().await.unwrap();
    let offered = async || {
        let stream = node.tls.accept(node.knock().await).await.unwrap();
        let mut session = Session { stream, buffer: BytesMut::new() };
        match session.hear().await {
            Some(TerminalFrame::Offer(offer)) => (session, offer.cause),
            other => panic!("no Offer but {other:?}"),
        }
    };
    let (mut session, cause) = offered().await;
    assert_eq!(cause, Cause::Start);
    session.welcome(LIVES[0], 0, 0, Linger::AtOnce).await;
    while session.hear().await.is_some_and(|frame| !matches!(frame, TerminalFrame::Goodbye(_))) {}
    session.say(NodeFrame::Bye(Bye { reason: ByeReason::Done, retry_after: 0 })).await;
    assert_eq!(session.hear().await, None);
    // In a session it would only look whether the node is there.
    tokio::time::sleep(Duration::from_millis(300)).await;
    terminal.network_changed();
    for _ in 0..2 {
        let (broken, cause) = offered().await;
        assert_eq!(cause, Cause::Moved);
        drop(broken);
    }
    let (mut session, cause) = offered().await;
    assert_eq!(cause, Cause::Moved);
    session.welcome(LIVES[0], 0, 0, Linger::Forever).await;
    drop(session);
    assert_eq!(offered().await.1, Cause::Start, "its last session broke");
}
