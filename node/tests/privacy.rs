//! What someone on the way of a terminal's datagrams learns, and what someone without the right learns by asking: not
//! who the terminal is, not that it is the one of before, not whether it is there.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

mod support;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reveille_protocol::wire::notification::SERVER_NAME;
use reveille_protocol::wire::session::Class;
use reveille_terminal::{Builder, Event, StartError, Terminal};
use rustls::Side;
use rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::quic::{Keys, Version};
use support::by_hand::ByHand;
use support::raw::counter;
use support::{Dev, http};
use tokio::net::{TcpListener, TcpSocket, UdpSocket};

const PATIENCE: Duration = Duration::from_secs(40);

/// A datagram that passed.
#[derive(Debug, Clone)]
struct Seen {
    to_terminal: bool,
    bytes: Vec<u8>,
}

/// Someone on the way: everything passes through, and is kept.
#[derive(Clone, Default)]
struct Watcher {
    seen: Arc<Mutex<Vec<Seen>>>,
    /// Dials from elsewhere than the anchor pass as well.
    open: Arc<AtomicBool>,
}

impl Watcher {
    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    fn keep(&self, to_terminal: bool, bytes: &[u8]) {
        self.seen.lock().unwrap().push(Seen { to_terminal, bytes: bytes.to_vec() });
    }

    /// Between who asks at `front` and `behind`. `asks_from` is how those behind see whoever asks.
    async fn relay(&self, front: SocketAddr, asks_from: SocketAddr, behind: SocketAddr, terminal_asks: bool) {
        let front = UdpSocket::bind(front).await.unwrap();
        let back = UdpSocket::bind(asks_from).await.unwrap();
        let watcher = self.clone();
        tokio::spawn(async move {
            let (mut question, mut answer) = ([0; 2048], [0; 2048]);
            let mut asker = None;
            loop {
                tokio::select! {
                    Ok((len, from)) = front.recv_from(&mut question) => {
                        if terminal_asks || watcher.open.load(Ordering::Relaxed) {
                            asker = Some(from);
                            watcher.keep(!terminal_asks, &question[..len]);
                            let _ = back.send_to(&question[..len], behind).await;
                        }
                    }
                    Ok((len, _)) = back.recv_from(&mut answer) => {
                        if let Some(asker) = asker {
                            watcher.keep(terminal_asks, &answer[..len]);
                            let _ = front.send_to(&answer[..len], asker).await;
                        }
                    }
                }
            }
        });
    }
}

/// Carries sessions, so that the node sees them come from `from`.
async fn carry_sessions(front: SocketAddr, from: SocketAddr, behind: SocketAddr) {
    let listener = TcpListener::bind(front).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            tokio::spawn(async move {
                let socket = TcpSocket::new_v4().unwrap();
                socket.bind(from).unwrap();
                let mut far = socket.connect(behind).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
}

fn at(ip: [u8; 4], port: u16) -> SocketAddr {
    SocketAddr::from((ip, port))
}

/// The terminal's next session is over; its class, if it found out.
async fn session_over(terminal: &mut Terminal) -> Option<Class> {
    let mut found = None;
    let over = async {
        while let Some(event) = terminal.next().await {
            match event {
                Event::Received(push) => push.confirm(),
                Event::Reachable { class } => found = Some(class),
                Event::Disconnected { .. } => return,
                _ => {}
            }
        }
        panic!("the terminal has ended");
    };
    tokio::time::timeout(PATIENCE, over).await.expect("asleep in time");
    found
}

/// The handles in keepalives, in their order, each as often as it comes anew.
fn handles(seen: &[Seen]) -> Vec<[u8; 16]> {
    let keepalives = seen.iter().filter(|seen| !seen.to_terminal && seen.bytes[0] == 0);
    let mut handles: Vec<[u8; 16]> = keepalives.map(|seen| seen.bytes[24..40].try_into().unwrap()).collect();
    handles.dedup();
    handles
}

/// What is inside of a first packet: its keys derive from what is in it, so that anyone on the way can read it (RFC 9001
/// section 5.2). `first_cid` is that of the dial.
fn inside(bytes: &[u8], first_cid: &[u8], to_terminal: bool) -> Option<Vec<u8>> {
    fn number(bytes: &[u8], at: &mut usize) -> Option<usize> {
        let first = *bytes.get(*at)?;
        let len = 1usize << (first >> 6);
        let value = bytes.get(*at..*at + len)?;
        *at += len;
        Some(value[1..].iter().fold(usize::from(first & 0x3f), |all, byte| (all << 8) | usize::from(*byte)))
    }
    // An Initial of version 1 (RFC 9000 section 17.2.2).
    if bytes.len() < 100 || bytes[0] & 0xf0 != 0xc0 || bytes[1..5] != [0, 0, 0, 1] {
        return None;
    }
    let mut at = 5;
    at += 1 + usize::from(bytes[at]);
    at += 1 + usize::from(*bytes.get(at)?);
    let token = number(bytes, &mut at)?;
    at += token;
    let end = number(bytes, &mut at)?.checked_add(at)?;
    let mut packet = bytes.get(..end)?.to_vec();
    let suite = TLS13_AES_128_GCM_SHA256.tls13().unwrap();
    let quic = suite.quic_suite().unwrap();
    // The side that receives what the sender sealed.
    let side = if to_terminal { Side::Server } else { Side::Client };
    let Keys { remote, .. } = quic.keys(first_cid, side, Version::V1);
    let sample = packet.get(at + 4..at + 20)?.to_vec();
    let (head, rest) = packet.split_at_mut(at);
    remote.header.decrypt_in_place(&sample, &mut head[0], &mut rest[..4]).ok()?;
    let len = usize::from(head[0] & 3) + 1;
    let count = rest[..len].iter().fold(0, |all, byte| (all << 8) | u64::from(*byte));
    let (header, payload) = packet.split_at_mut(at + len);
    Some(remote.packet.decrypt_in_place(count, header, payload).ok()?.to_vec())
}

/// Everything that the watcher can read: datagrams, and what is inside of first packets.
fn readable(seen: &[Seen]) -> (Vec<Vec<u8>>, BTreeSet<Vec<u8>>, [usize; 2]) {
    let mut read: Vec<Vec<u8>> = seen.iter().map(|seen| seen.bytes.clone()).collect();
    let (mut first_cids, mut opened) = (BTreeSet::new(), [0; 2]);
    let mut cid = Vec::new();
    for Seen { to_terminal, bytes } in seen {
        if *to_terminal && bytes.len() >= 1200 && bytes[0] & 0xf0 == 0xc0 && bytes[5] == 20 {
            cid = bytes[6..26].to_vec();
            first_cids.insert(cid.clone());
        }
        if let Some(plain) = inside(bytes, &cid, *to_terminal) {
            opened[usize::from(*to_terminal)] += 1;
            read.push(plain);
        }
    }
    (read, first_cids, opened)
}

/// How many pieces of four bytes of the id are in there, as bytes or as text.
fn pieces(id: [u8; 16], text: &str, read: &[Vec<u8>]) -> usize {
    let parts: BTreeSet<&[u8]> = id.windows(4).chain(text.as_bytes().windows(8)).collect();
    let found = |bytes: &Vec<u8>| {
        bytes.windows(4).filter(|part| parts.contains(part)).count()
            + bytes.windows(8).filter(|part| parts.contains(part)).count()
    };
    read.iter().map(found).sum()
}

#[test]
fn the_search_finds_what_is_there() {
    let id = std::array::from_fn(|at| at as u8 * 7);
    let text: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let hidden = |piece: &[u8]| vec![[&[0xee; 40][..], piece, &[0xee; 40]].concat()];
    assert_eq!(pieces(id, &text, &hidden(&id[5..9])), 1);
    assert_eq!(pieces(id, &text, &hidden(&text.as_bytes()[3..11])), 1);
    assert_eq!(pieces(id, &text, &hidden(&id[5..8])), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_the_way_nobody_learns_which_terminal_it_is_or_that_it_is_the_same() {
    let cluster = ByHand::with("localhost,127.0.0.1,127.0.0.2", "keepalive = 5");
    let _node = cluster.start();
    let session: SocketAddr = cluster.session.parse().unwrap();
    let port = session.port();
    let listens = std::net::UdpSocket::bind("127.0.0.3:0").unwrap().local_addr().unwrap();

    // The terminal is at 127.0.0.3 and knows 127.0.0.2; the node is at 127.0.0.1 and knows 127.0.0.4.
    let watcher = Watcher::default();
    carry_sessions(at([127, 0, 0, 2], port), at([127, 0, 0, 4], 0), session).await;
    watcher.relay(at([127, 0, 0, 2], port), at([127, 0, 0, 4], 0), session, true).await;
    watcher.relay(at([127, 0, 0, 4], listens.port()), at([127, 0, 0, 5], 0), listens, false).await;
    let publish = |terminal: &str| {
        let bearer = format!("Bearer {}", cluster.token);
        let path = format!("/v1/terminals/{terminal}/messages");
        let answer = http(&cluster.http, "POST", &path, &[("Authorization", &bearer)], b"wake up");
        assert_eq!(answer.status, 201);
    };
    let start = async |name: &str| {
        let until = Instant::now() + PATIENCE;
        loop {
            let ca = cluster.path("ca/ca.pem");
            let terminal = Builder::new([format!("127.0.0.2:{port}")], ca, cluster.path(name))
                .listen(listens)
                .enrolment(cluster.enrolment_token.clone());
            match terminal.start().await {
                // The socket of the one before is closed a moment after it.
                Err(StartError::Listen { .. }) if Instant::now() < until => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                started => return started.unwrap(),
            }
        }
    };

    // One life behind what looks like a router: keepalives, challenges, notifications through the binding.
    let mut terminal = start("pinned").await;
    let text = terminal.id().to_string();
    let mut class = session_over(&mut terminal).await;
    let until = Instant::now() + PATIENCE;
    while class != Some(Class::Pinned) {
        // A cluster that has just started has no anchors yet.
        assert!(Instant::now() < until, "{class:?}");
        terminal.shutdown().await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        watcher.seen.lock().unwrap().clear();
        terminal = start("pinned").await;
        class = session_over(&mut terminal).await;
    }
    for _ in 0..2 {
        let known = handles(&watcher.seen()).len();
        publish(&text);
        session_over(&mut terminal).await;
        while handles(&watcher.seen()).len() == known {
            assert!(Instant::now() < until, "no keepalive after the session");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let mut ids = vec![(terminal.id().0, text)];
    terminal.shutdown().await;
    // And one that is reached from anywhere, without a binding.
    watcher.open.store(true, Ordering::Relaxed);
    let mut terminal = start("direct").await;
    let text = terminal.id().to_string();
    assert_eq!(session_over(&mut terminal).await, Some(Class::Direct));
    publish(&text);
    session_over(&mut terminal).await;
    ids.push((terminal.id().0, text));
    terminal.shutdown().await;

    let seen = watcher.seen();
    let (read, first_cids, opened) = readable(&seen);
    let bytes: usize = seen.iter().map(|seen| seen.bytes.len()).sum();
    eprintln!(
        "{} datagrams, {bytes} bytes, {} dials, {opened:?} first packets read (from, to the terminal)",
        seen.len(),
        first_cids.len()
    );
    // It saw everything there is, or what follows would say nothing.
    for kind in [[0x00, 0x01], [0x01, 0x01], [0x01, 0x11]] {
        assert!(seen.iter().any(|seen| seen.bytes.starts_with(&kind)), "no STUN of type {kind:?}");
    }
    let short = |to| seen.iter().any(|seen| seen.to_terminal == to && seen.bytes[0] & 0xc0 == 0x40);
    assert!(short(true) && short(false), "no notification, or no answer");
    assert!(first_cids.len() >= 5 && opened[0] >= 1 && opened[1] >= 5, "{opened:?}");
    let name = SERVER_NAME.as_bytes();
    assert!(
        read.iter().any(|bytes| bytes.windows(name.len()).any(|part| part == name)),
        "no first packet read"
    );

    // A piece of four bytes is somewhere by chance in one run of some thousand; twice it is there.
    for (id, text) in ids {
        let found = pieces(id, &text, &read);
        assert!(found < 2, "{found} pieces of the terminal's id");
    }
    let handles = handles(&seen);
    let distinct: BTreeSet<_> = handles.iter().collect();
    assert!(handles.len() >= 3 && distinct.len() == handles.len(), "a handle comes again: {handles:02x?}");
}

/// Who may not know hears the same of a terminal that sleeps, of one that was never there, and of what is no id at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_ask_hears_the_same_of_every_terminal() {
    let dev = Dev::start();
    let (child, lines) = dev.terminal("t1", &[]);
    let asleep = lines.next_event("disconnected")["terminal"].as_str().unwrap().to_owned();
    drop(child);
    let publish_only = {
        let body = br#"{"name":"publisher","rights":["publish"]}"#;
        let json = [("Content-Type", "application/json")];
        let made = dev.request(1, "POST", "/v1/tokens", &json, body);
        assert_eq!(made.status, 201, "{}", String::from_utf8_lossy(&made.body));
        made.json()["token"].as_str().unwrap().to_owned()
    };
    let unknown = "00112233445566778899aabbccddeeff";
    let answer = |method: &str, path: &str, token: Option<&str>| {
        let bearer = token.map(|token| format!("Bearer {token}"));
        let headers: Vec<_> = bearer.iter().map(|bearer| ("Authorization", bearer.as_str())).collect();
        let answer = http(dev.url(1), method, path, &headers, b"");
        let headers: Vec<_> =
            answer.headers.into_iter().filter(|(name, _)| !name.eq_ignore_ascii_case("date")).collect();
        (answer.status, headers, String::from_utf8_lossy(&answer.body).into_owned())
    };
    // Of one node's publishers and sessions; the only terminal sleeps.
    let looked_up = || -> u64 {
        let kinds = ["command", "query"];
        let names = kinds.map(|kind| format!("reveille_service_list_requests_total{{kind=\"{kind}\"}}"));
        names.iter().map(|name| counter(dev.node(1)["admin"].as_str().unwrap(), name)).sum()
    };
    let until = Instant::now() + PATIENCE;
    while answer("GET", &format!("/v1/terminals/{asleep}"), Some(&publish_only)).0 != 403 {
        assert!(Instant::now() < until, "the token is not known");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let known = answer("GET", &format!("/v1/terminals/{asleep}"), Some(dev.token()));
    assert_eq!(known.0, 200, "who may ask is told: {known:?}");
    for (token, status) in [(None, 401), (Some("wrong"), 401), (Some(publish_only.as_str()), 403)] {
        let mut asked = vec![("GET", ""), ("DELETE", "")];
        if status == 401 {
            // Who may publish is told whether it can.
            asked.push(("POST", "/messages"));
        }
        let before = looked_up();
        for (method, rest) in asked {
            let [first, others @ ..] = [asleep.as_str(), unknown, "nobody"]
                .map(|id| answer(method, &format!("/v1/terminals/{id}{rest}"), token));
            assert_eq!(first.0, status, "{first:?}");
            for other in others {
                assert_eq!(other, first, "{method} {rest}");
            }
        }
        // What was not looked up takes no other time for one that is there, either.
        assert_eq!(looked_up(), before, "a {status} was looked up");
    }
    // Who may ask does ask: the counter would have told.
    let before = looked_up();
    for id in [asleep.as_str(), unknown] {
        answer("GET", &format!("/v1/terminals/{id}"), Some(dev.token()));
        answer("POST", &format!("/v1/terminals/{id}/messages"), Some(&publish_only));
    }
    assert!(looked_up() >= before + 4);
}
