//! Those who are not what they say, and those who say what they should not: at the session port, at a terminal's socket,
//! at a cluster that lets nobody in unasked.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

mod support;

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rcgen::{CertificateParams, Issuer, KeyPair};
use reveille_protocol::id::{Attempt, Seq, TerminalId};
use reveille_protocol::wire::session::{
    Bye, ByeReason, Frame, HEADER, Hello, NodeFrame, TerminalFrame, VERSION,
};
use reveille_terminal::{Builder, Event, Terminal};
use support::by_hand::{ByHand, command};
use support::raw::{Raw, counted, counter};
use support::{Dev, REVEILLE, http, http_try, output_of};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_session_must_say_what_its_key_says_and_only_frames() {
    let dev = Dev::start();
    let address = dev.node(1)["session"].as_str().unwrap().to_owned();
    let raw = Raw::new(&dev.ca());

    let mut hello = raw.hello(1);
    hello.terminal = TerminalId([7; 16]);
    let mut session = raw.connect(&address).await;
    session.say(TerminalFrame::Hello(hello)).await;
    let said = session.hear(PATIENCE).await;
    assert_eq!(said, Some(NodeFrame::Bye(Bye { reason: ByeReason::Protocol, retry_after: 0 })));
    assert_eq!(session.hear(PATIENCE).await, None);
    assert_eq!(
        dev.request(1, "GET", &format!("/v1/terminals/{}", TerminalId([7; 16])), &[], b"").status,
        404,
        "nothing was registered under the claimed id"
    );

    let mut good = Vec::new();
    TerminalFrame::Hello(raw.hello(2)).encode(&mut good);
    let changed = |at: usize, to: u8| {
        let mut bytes = good.clone();
        bytes[at] = to;
        bytes
    };
    let mut oversized = changed(0, VERSION);
    oversized[2..HEADER].copy_from_slice(&(1u32 << 30).to_le_bytes());
    let mut trailing = good.clone();
    trailing.push(0);
    trailing[2..HEADER].copy_from_slice(&((good.len() - HEADER + 1) as u32).to_le_bytes());
    let bad = [
        ("an unknown version", changed(0, VERSION + 1)),
        ("an unknown kind", changed(1, 200)),
        ("a length over the limit", oversized),
        ("bytes behind the body", trailing),
        ("noise", vec![0xa5; 4000]),
    ];
    let before = counted(&dev, "reveille_malformed_frames_total{kind=\"session\"}");
    for (what, bytes) in &bad {
        let mut session = raw.connect(&address).await;
        session.send(bytes).await;
        let said = session.hear(PATIENCE).await;
        let refused = Some(NodeFrame::Bye(Bye { reason: ByeReason::Protocol, retry_after: 0 }));
        assert_eq!(said, refused, "{what}");
        assert_eq!(session.hear(PATIENCE).await, None, "{what}");
    }
    let after = counted(&dev, "reveille_malformed_frames_total{kind=\"session\"}");
    assert_eq!(after - before, bad.len() as u64);
    // Cut short: no answer is owed, and none is waited for.
    let mut session = raw.connect(&address).await;
    session.send(&good[..good.len() - 1]).await;
    session.stream.shutdown().await.unwrap();
    assert_eq!(session.hear(PATIENCE).await, None);

    let mut session = raw.connect(&address).await;
    session.send(&good).await;
    assert!(matches!(session.hear(PATIENCE).await, Some(NodeFrame::Welcome(_))), "the good one is let in");
    // An ack of what was never sent.
    session.say(TerminalFrame::Ack(reveille_protocol::wire::session::Ack { seq: Seq(9) })).await;
    let said = session.hear(PATIENCE).await;
    assert_eq!(said, Some(NodeFrame::Bye(Bye { reason: ByeReason::Protocol, retry_after: 0 })));
}

#[tokio::test]
async fn a_terminal_that_never_acks_is_closed_and_its_push_stays() {
    let dev = Dev::start();
    let raw = Raw::new(&dev.ca());
    let mut session = raw.connect(dev.node(2)["session"].as_str().unwrap()).await;
    session.say(TerminalFrame::Hello(raw.hello(1))).await;
    assert!(matches!(session.hear(PATIENCE).await, Some(NodeFrame::Welcome(_))));
    let id = raw.id.to_string();
    let began = Instant::now();
    let published = dev.publish(1, &id, &[], b"unconfirmed").json();
    let Some(NodeFrame::Push(push)) = session.hear(PATIENCE).await else { panic!("no push") };
    assert_eq!((push.seq, push.maybe_seen), (Seq(1), false));
    let deadline = reveille_protocol::limits::ACK_DEADLINE;
    let said = session.hear(deadline * 2).await;
    assert_eq!(said, Some(NodeFrame::Bye(Bye { reason: ByeReason::TooSlow, retry_after: 0 })));
    assert_eq!(session.hear(PATIENCE).await, None);
    assert!(began.elapsed() >= deadline, "not before its time: {:?}", began.elapsed());
    let path = format!("/v1/messages/{}", published["message"].as_str().unwrap());
    assert_eq!(dev.request(3, "GET", &path, &[], b"").json()["state"], "pending");
    // Its next session, at another node, gets it again, marked.
    let mut session = raw.connect(dev.node(3)["session"].as_str().unwrap()).await;
    session.say(TerminalFrame::Hello(raw.hello(2))).await;
    assert!(matches!(session.hear(PATIENCE).await, Some(NodeFrame::Welcome(_))));
    let Some(NodeFrame::Push(push)) = session.hear(PATIENCE).await else { panic!("no push") };
    assert_eq!((push.seq, push.maybe_seen), (Seq(1), true));
}

/// A ticket that one node gave is good at every other: resuming costs no node any memory for a terminal.
#[tokio::test]
async fn a_ticket_of_one_node_resumes_at_another() {
    let dev = Dev::start();
    let raw = Raw::new(&dev.ca());
    let mut first = raw.connect(dev.node(1)["session"].as_str().unwrap()).await;
    assert_eq!(first.stream.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
    first.say(TerminalFrame::Hello(raw.hello(1))).await;
    assert!(matches!(first.hear(PATIENCE).await, Some(NodeFrame::Welcome(_))));
    let mut second = raw.connect(dev.node(2)["session"].as_str().unwrap()).await;
    assert_eq!(second.stream.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Resumed));
    second.say(TerminalFrame::Hello(raw.hello(2))).await;
    assert!(
        matches!(second.hear(PATIENCE).await, Some(NodeFrame::Welcome(_))),
        "its key is known without a certificate"
    );
}

/// How many descriptors the node's process holds for connections at `port` that come from one of `peers`.
fn held(pid: u64, port: SocketAddr, peers: &[SocketAddr]) -> usize {
    let hex = |address: SocketAddr| match address {
        SocketAddr::V4(v4) => {
            format!("{:08X}:{:04X}", u32::from_le_bytes(v4.ip().octets()), address.port())
        }
        SocketAddr::V6(_) => panic!("dev listens on 127.0.0.1"),
    };
    let (port, peers) = (hex(port), peers.iter().map(|peer| hex(*peer)).collect::<Vec<_>>());
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap();
    let sockets: Vec<String> = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields[1] == port && peers.iter().any(|peer| peer == fields[2]))
        .map(|fields| format!("socket:[{}]", fields[9]))
        .collect();
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let targets = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    targets.filter(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str())).count()
}

/// Whoever says nothing, or does not go when told to, loses the connection all the same: it is worth a descriptor.
#[tokio::test]
async fn a_connection_without_a_session_is_not_kept() {
    let dev = Dev::start();
    let raw = Raw::new(&dev.ca());
    let address = dev.node(1)["session"].as_str().unwrap();
    let pid = dev.node(1)["pid"].as_u64().unwrap();
    let mut sessions = Vec::new();
    for _ in 0..3 {
        sessions.push(raw.connect(address).await);
    }
    let peers: Vec<_> =
        sessions.iter().map(|session| session.stream.get_ref().0.local_addr().unwrap()).collect();
    let held = || held(pid, address.parse().unwrap(), &peers);
    assert_eq!(held(), 3);
    for session in &mut sessions {
        let said = session.hear(PATIENCE).await;
        assert_eq!(said, Some(NodeFrame::Bye(Bye { reason: ByeReason::TooSlow, retry_after: 0 })));
        assert_eq!(session.hear(PATIENCE).await, None);
    }
    // The node has said its last word. The terminals neither close nor say anything that the node could notice.
    let until = Instant::now() + PATIENCE;
    while held() > 0 {
        assert!(Instant::now() < until, "{} connections are kept", held());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What a terminal still says when its session is over does not cost it the node's last word.
#[tokio::test]
async fn the_last_word_is_heard_by_a_terminal_that_still_talks() {
    let dev = Dev::start();
    let raw = Raw::new(&dev.ca());
    let mut session = raw.connect(dev.node(1)["session"].as_str().unwrap()).await;
    for part in 0..20 {
        session
            .stream
            .write_all(&[0xa5; 8 * 1024])
            .await
            .unwrap_or_else(|error| panic!("part {part}: {error}"));
        session.stream.flush().await.unwrap_or_else(|error| panic!("part {part}: {error}"));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let said = session.hear(PATIENCE).await;
    assert_eq!(said, Some(NodeFrame::Bye(Bye { reason: ByeReason::Protocol, retry_after: 0 })));
    assert_eq!(session.stream.read(&mut [0; 1]).await.unwrap(), 0, "an end, not a reset");
}

/// A terminal that lost its memory asks for the same attempt again: it is told which one was used, and with the next the later
/// connection is the session.
#[tokio::test]
async fn of_two_connections_with_one_attempt_the_later_one_gets_the_pushes_with_the_next() {
    let dev = Dev::start();
    let raw = Raw::new(&dev.ca());
    let address = dev.node(1)["session"].as_str().unwrap().to_owned();
    let mut first = raw.connect(&address).await;
    first.say(TerminalFrame::Hello(raw.hello(1))).await;
    assert!(matches!(first.hear(PATIENCE).await, Some(NodeFrame::Welcome(_))));
    let mut second = raw.connect(&address).await;
    second.say(TerminalFrame::Hello(raw.hello(1))).await;
    let said = second.hear(PATIENCE).await;
    let used = Bye { reason: ByeReason::StaleAttempt(Attempt(1)), retry_after: 0 };
    assert_eq!(said, Some(NodeFrame::Bye(used)));
    let mut second = raw.connect(&address).await;
    second.say(TerminalFrame::Hello(raw.hello(2))).await;
    assert!(matches!(second.hear(PATIENCE).await, Some(NodeFrame::Welcome(_))));
    let said = first.hear(PATIENCE).await;
    assert_eq!(said, Some(NodeFrame::Bye(Bye { reason: ByeReason::Superseded, retry_after: 0 })));
    assert_eq!(dev.publish(2, &raw.id.to_string(), &[], b"for the second").status, 201);
    assert!(matches!(second.hear(PATIENCE).await, Some(NodeFrame::Push(_))));
}

/// Whoever says Hello to a node that is leaving is sent elsewhere, at once.
#[tokio::test]
async fn a_node_that_is_leaving_attaches_nobody() {
    let dev = Dev::start();
    let raw = Raw::new(&dev.ca());
    let address = dev.node(1)["session"].as_str().unwrap();
    let mut online = raw.connect(address).await;
    online.say(TerminalFrame::Hello(raw.hello(1))).await;
    assert!(matches!(online.hear(PATIENCE).await, Some(NodeFrame::Welcome(_))));
    let late = Raw::new(&dev.ca());
    let mut session = late.connect(address).await;
    // With the others stopped its sessions cannot be detached, so that leaving takes all the time it may.
    let _paused = [dev.pause_node(2), dev.pause_node(3)];
    let pid = dev.node(1)["pid"].to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert!(matches!(online.hear(PATIENCE).await, Some(NodeFrame::Bye(_))));
    session.say(TerminalFrame::Hello(late.hello(1))).await;
    let said = session.hear(PATIENCE).await;
    assert_eq!(said, Some(NodeFrame::Bye(Bye { reason: ByeReason::GoElsewhere, retry_after: 0 })));
}

async fn next_disconnected(terminal: &mut Terminal) {
    let listening = async {
        while let Some(event) = terminal.next().await {
            match event {
                Event::Received(push) => push.confirm(),
                Event::Disconnected { .. } => return,
                _ => {}
            }
        }
        panic!("the terminal has ended");
    };
    tokio::time::timeout(PATIENCE, listening).await.expect("asleep in time");
}

/// A scanner that speaks real QUIC, but does not know the terminal's secret.
async fn quic_scanner(address: SocketAddr) -> Result<(), quinn::ConnectionError> {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(
            CertificateParams::new(Vec::new())
                .unwrap()
                .self_signed(&KeyPair::generate().unwrap())
                .unwrap()
                .der()
                .clone(),
        )
        .unwrap();
    let mut tls = rustls::ClientConfig::builder_with_provider(reveille_terminal::identity::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![reveille_protocol::wire::notification::ALPN.to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let mut transport = quinn::TransportConfig::default();
    transport.max_idle_timeout(Some(Duration::from_secs(2).try_into().unwrap()));
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport));
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    endpoint.connect_with(config, address, "localhost").unwrap().await.map(|_| ())
}

/// A terminal is silent to strangers, and awake to its cluster all the same; the second notification goes out with the
/// first packet.
#[tokio::test]
async fn scanners_hear_nothing_and_notifications_get_through() {
    let dev = Dev::start();
    let servers: Vec<String> = dev.servers().split(',').map(str::to_owned).collect();
    let mut terminal = Builder::new(servers, dev.ca(), dev.folder.path().join("t1"))
        .listen("127.0.0.1:0".parse().unwrap())
        .start()
        .await
        .unwrap();
    let Some(Event::Listening { address }) = terminal.next().await else { panic!("not listening") };
    next_disconnected(&mut terminal).await;

    let scanner = UdpSocket::bind("127.0.0.1:0").unwrap();
    scanner.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let long = |first: u8, version: [u8; 4], cid: &[u8]| {
        let mut packet = vec![first];
        packet.extend_from_slice(&version);
        packet.push(cid.len() as u8);
        packet.extend_from_slice(cid);
        packet.resize(1200, 0);
        packet
    };
    let probes = [
        vec![],
        vec![0; 1],
        vec![0x40; 64],
        vec![0xff; 1500],
        long(0xc3, [0, 0, 0, 1], &[7; 20]),
        // QUIC owes these a Version Negotiation; a terminal does not.
        long(0xc3, [0x0a, 0x0a, 0x0a, 0x0a], &[7; 20]),
        long(0xc3, [0, 0, 0, 0], &[7; 8]),
        // A Handshake packet, to which an endpoint may answer with a stateless reset.
        long(0xe3, [0, 0, 0, 1], &[7; 20]),
        // A STUN request.
        [&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[9; 12]].concat(),
    ];
    let before = terminal.listen_stats();
    for probe in &probes {
        scanner.send_to(probe, address).unwrap();
    }
    let (heard, buffer) = tokio::task::spawn_blocking(move || {
        let mut buffer = [0; 2048];
        (scanner.recv_from(&mut buffer), buffer)
    })
    .await
    .unwrap();
    assert!(heard.is_err(), "a stranger was answered: {:02x?}", &buffer[..heard.unwrap().0.min(64)]);
    assert_eq!(quic_scanner(address).await, Err(quinn::ConnectionError::TimedOut));
    let after = terminal.listen_stats();
    // The empty datagram may be dropped by the socket before anyone can count it.
    assert!(after.strangers - before.strangers >= probes.len() as u64, "{after:?}");
    assert_eq!((after.passed, after.replays), (before.passed, before.replays));

    let id = terminal.id().to_string();
    for number in 0..2 {
        assert_eq!(dev.publish(1 + number, &id, &[], b"wake up").status, 201);
        next_disconnected(&mut terminal).await;
    }
    let handshakes =
        |kind| counted(&dev, &format!("reveille_notification_handshakes_total{{kind=\"{kind}\"}}"));
    let until = Instant::now() + PATIENCE;
    while handshakes("full") + handshakes("early") < 2 && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The dial by which the terminal found out that it is reached may have brought the first one its ticket.
    let (full, early) = (handshakes("full"), handshakes("early"));
    assert!(full <= 2 && early >= 1, "the second had a ticket: {full} full, {early} early");
    terminal.shutdown().await;
}

#[tokio::test]
async fn an_unknown_key_needs_its_tenants_token() {
    let cluster = ByHand::new();
    let _node = cluster.start();
    let raw = Raw::new(Path::new(&cluster.path("ca/ca.pem")));
    let forged = {
        let mut forged = cluster.enrolment_token.clone().into_bytes();
        let last = forged.len() - 5;
        forged[last] = if forged[last] == b'A' { b'B' } else { b'A' };
        forged
    };
    for enrolment in [None, Some(b"nonsense".to_vec()), Some(forged)] {
        let mut session = raw.connect(&cluster.session).await;
        let hello = Hello { enrolment: enrolment.clone().map(Into::into), ..raw.hello(1) };
        session.say(TerminalFrame::Hello(hello)).await;
        let said = session.hear(PATIENCE).await;
        let refused = NodeFrame::Bye(Bye { reason: ByeReason::NotEnrolled, retry_after: 0 });
        assert_eq!(said, Some(refused), "{enrolment:?}");
    }
    assert_eq!(counter(&cluster.admin, "reveille_sessions_refused_total{kind=\"not_enrolled\"}"), 3);
    let mut session = raw.connect(&cluster.session).await;
    let hello = Hello { enrolment: Some(cluster.enrolment_token.clone().into()), ..raw.hello(1) };
    session.say(TerminalFrame::Hello(hello)).await;
    assert!(matches!(session.hear(PATIENCE).await, Some(NodeFrame::Welcome(_))));
    // Known from now on: no token is needed any more.
    let mut session = raw.connect(&cluster.session).await;
    session.say(TerminalFrame::Hello(raw.hello(2))).await;
    assert!(matches!(session.hear(PATIENCE).await, Some(NodeFrame::Welcome(_))));
    // And no publisher gets in unasked either.
    assert_eq!(http(&cluster.http, "GET", "/v1/terminals", &[], b"").status, 401);
}

/// A certificate that is replaced on disk is shown after SIGHUP, and one that cannot be used changes nothing.
#[tokio::test]
async fn certificates_are_read_again_on_sighup() {
    let cluster = ByHand::new();
    let node = cluster.start();
    let raw = Raw::new(Path::new(&cluster.path("ca/ca.pem")));
    let shown = || async {
        let session = raw.connect(&cluster.session).await;
        session.stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let hang_up =
        || assert!(Command::new("kill").args(["-HUP", &node.0.id().to_string()]).status().unwrap().success());
    let first = shown().await;
    let good = std::fs::read(cluster.path("node-1.pem")).unwrap();
    std::fs::write(cluster.path("node-1.pem"), "no certificate").unwrap();
    hang_up();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(shown().await, first);
    std::fs::write(cluster.path("node-1.pem"), good).unwrap();
    let (ca, out) = (cluster.path("ca"), cluster.path(""));
    let renew = |names: &[&str]| {
        std::fs::remove_file(cluster.path("node-1.key")).unwrap();
        let node =
            ["certs", "node", "--ca", &ca, "--id", "1", "--cluster", "00c0ffee00c0ffee", "--out", &out];
        command(&[&node, names].concat());
    };
    // One that was made without all names would have terminals take the node for another.
    for (names, missing) in
        [(&[][..], "lacks 127.0.0.1, localhost"), (&["--names", "127.0.0.1"], "lacks localhost")]
    {
        renew(names);
        hang_up();
        let until = Instant::now() + PATIENCE;
        let log = || std::fs::read_to_string(cluster.path("log.txt")).unwrap();
        while !log().contains(missing) {
            assert!(Instant::now() < until, "{missing:?} is not in {}", log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(log().contains("--names 127.0.0.1,localhost"), "{}", log());
        assert_eq!(shown().await, first);
    }
    renew(&["--names", "localhost,127.0.0.1,more.example.org"]);
    hang_up();
    let until = Instant::now() + PATIENCE;
    while shown().await == first {
        assert!(Instant::now() < until, "the old certificate is still shown");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(counter(&cluster.admin, "reveille_certificate_expires_seconds") > 29 * 24 * 3600);
}

/// A node that waits for the others of its cluster is there to be told to read its certificates.
#[test]
fn sighup_does_not_end_a_node_that_is_starting() {
    let cluster = ByHand::new();
    let (path, others) = (cluster.path("node.toml"), ", 2 = \"127.0.0.1:9\", 3 = \"127.0.0.1:11\" }");
    let text = std::fs::read_to_string(&path).unwrap();
    let nodes = text.lines().find(|line| line.starts_with("nodes = ")).unwrap();
    std::fs::write(&path, text.replace(nodes, &nodes.replace(" }", others))).unwrap();
    let mut node = cluster.spawn();
    let until = Instant::now() + PATIENCE;
    while std::net::TcpStream::connect(&cluster.session).is_err() {
        assert!(Instant::now() < until, "the node does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(http_try(&cluster.admin, "GET", "/readyz", &[], b"").is_none(), "it is starting");
    assert!(Command::new("kill").args(["-HUP", &node.0.id().to_string()]).status().unwrap().success());
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(node.0.try_wait().unwrap(), None, "it still starts");
}

#[test]
fn an_expired_certificate_is_refused_in_one_line() {
    let cluster = ByHand::new();
    let read = |name: &str| std::fs::read_to_string(cluster.path(name)).unwrap();
    let issuer =
        Issuer::from_ca_cert_pem(&read("ca/ca.pem"), KeyPair::from_pem(&read("ca/ca.key")).unwrap()).unwrap();
    let name = "node-1.00c0ffee00c0ffee.reveille.internal";
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.not_before = (SystemTime::now() - Duration::from_secs(7200)).into();
    params.not_after = (SystemTime::now() - Duration::from_secs(3600)).into();
    let key = KeyPair::from_pem(&read("node-1.key")).unwrap();
    std::fs::write(cluster.path("node-1.pem"), params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
    let mut command = Command::new(REVEILLE);
    let output = output_of(command.args(["node", "--create", "--config", &cluster.path("node.toml")]));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    let last = said.lines().last().unwrap_or_default();
    assert!(last.starts_with("reveille: tls.certificate") && last.contains("valid"), "{said}");
}

/// Admin tokens and backups are for no wire to see: elsewhere than on loopback the operator's port speaks TLS, and asks.
#[test]
fn an_operator_from_elsewhere_needs_tls_and_a_token() {
    let cluster = ByHand::new();
    let path = cluster.path("node.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let port = cluster.admin.rsplit_once(':').unwrap().1;
    let text = text.replace(
        &format!("[admin]\nlisten = \"127.0.0.1:{port}\""),
        &format!("[admin]\nlisten = \"0.0.0.0:{port}\""),
    );
    std::fs::write(&path, text).unwrap();
    let _node = cluster.spawn();
    let (url, ca) = (format!("https://127.0.0.1:{port}"), cluster.path("ca/ca.pem"));
    let status = |url: &str, token: &str| {
        let arguments = ["cluster", "--url", url, "--tls-ca", &ca, "--token", token, "status"];
        let output = output_of(Command::new(REVEILLE).args(arguments));
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let until = Instant::now() + PATIENCE;
    while !status(&url, "secret").0 {
        assert!(Instant::now() < until, "not ready: {:?}", status(&url, "secret"));
        std::thread::sleep(Duration::from_millis(50));
    }
    let (done, said) = status(&url, "");
    assert!(!done && said.contains("token"), "{said}");
    assert!(!status(&url, "wrong").0);
    assert!(!status(&url.replace("https", "http"), "secret").0);
}
