//! Links: the fate of each packet, exactly, and what real sockets on loopback see of it. No test asserts a short time:
//! deadlines only end a wait.
#![allow(clippy::unwrap_used, reason = "a test stops where it is surprised")]

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use reveille_links::fate::{self, Copy, OVERTAKEN};
use reveille_links::{Direction, Done, Faults, Link, Lot, Pass, Route, Way};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(20);
const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

fn lot() -> Lot {
    Lot { seed: 7, name: "t1".to_owned() }
}

fn route(to: SocketAddr) -> Route {
    Route { name: "t1".to_owned(), seed: 7, listen: LOCAL, to, from: None }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn a_link_without_faults_does_nothing() {
    for n in 0..1000 {
        let fate = fate::datagram(&lot(), Direction::Up, n, 100, &Way::default());
        assert_eq!(fate.copies, [Copy { after: Duration::ZERO, flip: None, keep: 100 }]);
        let part = fate::part(&lot(), Direction::Down, n, 100, &Way::default());
        assert_eq!((part.after, part.flip, part.done.len()), (Duration::ZERO, None, 0));
    }
}

#[test]
fn the_fate_of_a_datagram_is_the_same_everywhere() {
    let way =
        Way { loss: 0.3, duplicate: 0.2, corrupt: 0.2, truncate: 0.1, jitter: ms(10), ..Way::default() };
    let lost: Vec<u64> =
        (0..30).filter(|n| fate::datagram(&lot(), Direction::Up, *n, 100, &way).copies.is_empty()).collect();
    assert_eq!(lost, LOST, "draws by (seed, link, direction, number) are what histories are replayed by");
    assert_ne!(
        lost,
        (0..30)
            .filter(|n| fate::datagram(&lot(), Direction::Down, *n, 100, &way).copies.is_empty())
            .collect::<Vec<_>>()
    );
}

/// Of the first thirty datagrams of seed 7 on link "t1".
const LOST: &[u64] = &[5, 7, 9, 14, 15, 16, 18, 29];

#[test]
fn a_fault_that_is_added_changes_no_other() {
    let only = Way { corrupt: 0.3, jitter: ms(5), ..Way::default() };
    let more = Way { duplicate: 0.5, reorder: 0.5, replay: 0.5, replay_after: ms(1000), ..only };
    let mut late = 0;
    for n in 0..500 {
        let (only, more) = (
            fate::datagram(&lot(), Direction::Up, n, 64, &only),
            fate::datagram(&lot(), Direction::Up, n, 64, &more),
        );
        assert_eq!(only.copies[0].flip, more.copies[0].flip);
        let after = more.copies[0].after - only.copies[0].after;
        assert!(after == Duration::ZERO || after == OVERTAKEN);
        late += usize::from(after == OVERTAKEN);
    }
    assert!((200..300).contains(&late), "{late}");
}

#[test]
fn shares_are_about_what_they_say_and_copies_are_what_was_done_to_them() {
    let way = Way {
        loss: 0.2,
        duplicate: 0.1,
        truncate: 0.3,
        corrupt: 0.25,
        replay: 0.05,
        replay_after: ms(500),
        ..Way::default()
    };
    let sent: Vec<u8> = (0..=99).collect();
    let mut counts = std::collections::BTreeMap::new();
    for n in 0..4000 {
        let fate = fate::datagram(&lot(), Direction::Up, n, sent.len(), &way);
        for done in &fate.done {
            *counts.entry(*done).or_insert(0u64) += 1;
        }
        let replayed = fate.done.contains(&Done::Replayed);
        for copy in &fate.copies {
            let got = copy.of(&sent);
            let wrong = got.iter().zip(&sent).filter(|(a, b)| a != b).count();
            assert!(!got.is_empty() && got.len() <= sent.len() && wrong <= 1);
            if copy.after >= ms(500) {
                assert!(replayed && got == sent, "what comes again is what was captured");
            }
        }
    }
    let about = |done: Done, share: f64| {
        let expected = 4000.0 * share;
        let got = *counts.get(&done).unwrap_or(&0) as f64;
        assert!((got - expected).abs() < expected.mul_add(0.15, 20.0), "{done:?}: {got} of {expected}");
    };
    about(Done::Lost, 0.2);
    about(Done::Passed, 0.8);
    about(Done::Duplicated, 0.08);
    about(Done::Truncated, 0.24);
    about(Done::Corrupted, 0.2);
    about(Done::Replayed, 0.04);
}

#[test]
fn lost_parts_of_a_stream_come_late_and_never_not_at_all() {
    let way = Way { loss: 1.0, ..Way::default() };
    assert_eq!(
        fate::part(&lot(), Direction::Up, 0, 10, &way).after,
        ms(200 * 63),
        "six times in a row at most"
    );
    let way = Way { loss: 0.5, ..Way::default() };
    let mut seen: Vec<u64> = (0..200)
        .map(|n| fate::part(&lot(), Direction::Up, n, 10, &way).after.as_millis() as u64 / 200)
        .collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, [0, 1, 3, 7, 15, 31, 63]);
}

/// A destination of streams that sends back what it gets, with all its connections.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind(LOCAL).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

async fn tcp() -> (Link, TcpStream) {
    let link = Link::tcp(route(echo().await)).await.unwrap();
    let stream = TcpStream::connect(link.address()).await.unwrap();
    (link, stream)
}

async fn asks(stream: &mut TcpStream, text: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.write_all(text).await?;
    let mut got = vec![0; text.len()];
    match timeout(LONG, stream.read_exact(&mut got)).await {
        Ok(read) => read.map(|_| got),
        Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
    }
}

#[tokio::test]
async fn streams_go_through_whole_with_their_end() {
    let (link, mut stream) = tcp().await;
    let sent: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let (mut read, mut write) = stream.split();
    let (put, get) = (async { (write.write_all(&sent).await, write.shutdown().await) }, async {
        let mut got = Vec::new();
        read.read_to_end(&mut got).await.map(|_| got)
    });
    let ((_, _), got) = timeout(LONG, async { tokio::join!(put, get) }).await.unwrap();
    assert!(got.unwrap() == sent);
    assert_eq!(link.counts().of(Done::Connected), 1);
}

#[tokio::test]
async fn a_link_leads_elsewhere_and_leaves_what_goes_through_it() {
    let (link, mut before) = tcp().await;
    assert_eq!(asks(&mut before, b"one").await.unwrap(), b"one");
    let other = TcpListener::bind(LOCAL).await.unwrap();
    link.lead(other.local_addr().unwrap());
    let _after = TcpStream::connect(link.address()).await.unwrap();
    timeout(LONG, other.accept()).await.unwrap().unwrap();
    assert_eq!(asks(&mut before, b"two").await.unwrap(), b"two");
}

#[tokio::test]
async fn a_stream_takes_its_round_trips() {
    let (link, mut stream) = tcp().await;
    let way = Way { delay: ms(50), jitter: ms(20), ..Way::default() };
    asks(&mut stream, b"before").await.unwrap();
    link.set(Faults::both(way));
    let began = Instant::now();
    assert_eq!(asks(&mut stream, b"hello").await.unwrap(), b"hello");
    assert!(began.elapsed() >= ms(98), "{:?}", began.elapsed());
    // A new one takes another for its beginning.
    let began = Instant::now();
    let mut stream = TcpStream::connect(link.address()).await.unwrap();
    asks(&mut stream, b"hello").await.unwrap();
    assert!(began.elapsed() >= ms(196), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_rate_bounds_a_stream() {
    let (link, mut stream) = tcp().await;
    let up = Way { rate: NonZeroU64::new(100_000), ..Way::default() };
    link.set(Faults { up, ..Faults::default() });
    let began = Instant::now();
    asks(&mut stream, &[7; 50_000]).await.unwrap();
    assert!(began.elapsed() >= ms(480), "{:?}", began.elapsed());
}

#[tokio::test]
async fn what_was_held_goes_on_and_new_connections_wait() {
    let (link, mut stream) = tcp().await;
    asks(&mut stream, b"before").await.unwrap();
    for held in [
        Faults { up: Way { pass: Pass::Held, ..Way::default() }, ..Faults::default() },
        Faults { down: Way { pass: Pass::Held, ..Way::default() }, ..Faults::default() },
    ] {
        link.set(held);
        stream.write_all(b"x").await.unwrap();
        let mut other = TcpStream::connect(link.address()).await.unwrap();
        other.write_all(b"y").await.unwrap();
        let mut one = [0];
        assert!(timeout(ms(300), stream.read_exact(&mut one)).await.is_err(), "nothing passes");
        assert!(timeout(ms(100), other.read_exact(&mut one)).await.is_err(), "no new one is made");
        link.set(Faults::default());
        timeout(LONG, stream.read_exact(&mut one)).await.unwrap().unwrap();
        assert_eq!(&one, b"x");
        timeout(LONG, other.read_exact(&mut one)).await.unwrap().unwrap();
        assert_eq!(&one, b"y");
    }
    assert!(link.counts().of(Done::Held) >= 2);
}

#[tokio::test]
async fn who_gives_up_while_a_link_is_held_never_reaches_the_destination() {
    let listener = TcpListener::bind(LOCAL).await.unwrap();
    let link = Link::tcp(route(listener.local_addr().unwrap())).await.unwrap();
    link.set(Faults::both(Way { pass: Pass::Held, ..Way::default() }));
    let mut stream = TcpStream::connect(link.address()).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    drop(stream);
    tokio::time::sleep(ms(300)).await;
    link.set(Faults::default());
    assert!(timeout(ms(500), listener.accept()).await.is_err());
}

#[tokio::test]
async fn a_stream_that_lost_bytes_does_not_go_on() {
    let (link, mut stream) = tcp().await;
    asks(&mut stream, b"before").await.unwrap();
    link.set(Faults { up: Way { pass: Pass::Lost, ..Way::default() }, ..Faults::default() });
    stream.write_all(b"gone").await.unwrap();
    let mut one = [0];
    assert!(timeout(ms(300), stream.read_exact(&mut one)).await.is_err());
    link.set(Faults::default());
    let broken = timeout(LONG, stream.read_exact(&mut one)).await.expect("it is broken, not silent");
    assert!(broken.is_err());
    assert_eq!((link.counts().of(Done::Swallowed), link.counts().of(Done::Reset)), (1, 1));
}

#[tokio::test]
async fn bytes_of_a_stream_are_changed() {
    let (link, mut stream) = tcp().await;
    link.set(Faults { up: Way { corrupt: 1.0, ..Way::default() }, ..Faults::default() });
    let got = asks(&mut stream, &[0; 1000]).await.unwrap();
    assert_ne!(got, [0; 1000]);
    assert!(link.counts().of(Done::Corrupted) >= 1);
}

#[tokio::test]
async fn connections_are_broken_at_both_ends_or_at_one() {
    let listener = TcpListener::bind(LOCAL).await.unwrap();
    let link = Link::tcp(route(listener.local_addr().unwrap())).await.unwrap();
    let mut one = [0];
    let pair = async || {
        let mut client = TcpStream::connect(link.address()).await.unwrap();
        let mut server = timeout(LONG, listener.accept()).await.unwrap().unwrap().0;
        // Only what has passed says that the link, too, has both.
        server.write_all(&[7]).await.unwrap();
        timeout(LONG, client.read_exact(&mut [0])).await.unwrap().unwrap();
        (client, server)
    };
    let (mut client, mut server) = pair().await;
    link.reset();
    assert!(timeout(LONG, client.read_exact(&mut one)).await.unwrap().is_err());
    assert!(timeout(LONG, server.read_exact(&mut one)).await.unwrap().is_err());

    let (mut client, mut server) = pair().await;
    link.half_open(Direction::Up);
    assert!(timeout(LONG, client.read_exact(&mut one)).await.unwrap().is_err());
    server.write_all(b"is anybody there?").await.unwrap();
    assert!(timeout(ms(500), server.read_exact(&mut one)).await.is_err(), "it does not know");

    let (mut client, mut server) = pair().await;
    link.half_open(Direction::Down);
    assert!(timeout(LONG, server.read_exact(&mut one)).await.unwrap().is_err());
    client.write_all(b"is anybody there?").await.unwrap();
    assert!(timeout(ms(500), client.read_exact(&mut one)).await.is_err());
    assert_eq!((link.counts().of(Done::Reset), link.counts().of(Done::HalfOpen)), (1, 2));
}

/// A destination of datagrams, a link to it, and a sender.
async fn udp() -> (UdpSocket, Link, UdpSocket) {
    let server = UdpSocket::bind(LOCAL).await.unwrap();
    let link = Link::udp(route(server.local_addr().unwrap())).await.unwrap();
    let client = UdpSocket::bind(LOCAL).await.unwrap();
    client.connect(link.address()).await.unwrap();
    (server, link, client)
}

async fn got(socket: &UdpSocket) -> Option<(Vec<u8>, SocketAddr)> {
    let mut buffer = [0; 2000];
    let (length, from) = timeout(ms(500), socket.recv_from(&mut buffer)).await.ok()?.unwrap();
    Some((buffer[..length].to_vec(), from))
}

#[tokio::test]
async fn datagrams_go_both_ways_and_their_fates_are_those_that_were_drawn() {
    let (server, link, client) = udp().await;
    let way = Way { loss: 0.3, duplicate: 0.2, corrupt: 0.2, truncate: 0.2, ..Way::default() };
    link.set(Faults { up: way, ..Faults::default() });
    let (mut expected, mut came) = (Vec::new(), Vec::new());
    for n in 0..50u8 {
        let sent = vec![n; 64];
        client.send(&sent).await.unwrap();
        let fate = fate::datagram(&lot(), Direction::Up, n.into(), 64, &way);
        for copy in &fate.copies {
            expected.push(copy.of(&sent));
            came.push(got(&server).await.expect("it was not to be lost"));
        }
    }
    assert_eq!(came.iter().map(|(bytes, _)| bytes.clone()).collect::<Vec<_>>(), expected);
    assert!(got(&server).await.is_none());
    server.send_to(b"back", came[0].1).await.unwrap();
    assert_eq!(got(&client).await.unwrap(), (b"back".to_vec(), link.address()));
}

#[tokio::test]
async fn a_nat_gives_other_ports_and_forgets() {
    let (server, link, client) = udp().await;
    client.send(b"1").await.unwrap();
    let (_, first) = got(&server).await.unwrap();
    client.send(b"2").await.unwrap();
    assert_eq!(got(&server).await.unwrap().1, first);
    link.rebind(None);
    while link.counts().of(Done::Unmapped) == 0 {
        tokio::time::sleep(ms(5)).await;
    }
    server.send_to(b"to the former port", first).await.unwrap();
    assert!(got(&client).await.is_none());
    client.send(b"3").await.unwrap();
    let (_, second) = got(&server).await.unwrap();
    assert_ne!(second, first);
    link.set(Faults { nat_timeout: Some(ms(200)), ..Faults::default() });
    tokio::time::sleep(ms(500)).await;
    server.send_to(b"too late", second).await.unwrap();
    assert!(got(&client).await.is_none());
    client.send(b"4").await.unwrap();
    assert_ne!(got(&server).await.unwrap().1, second);
    // Of one sender alone: another one's port stays, and what is wrong for it is not so for others.
    link.set(Faults::default());
    let other = UdpSocket::bind(LOCAL).await.unwrap();
    other.connect(link.address()).await.unwrap();
    other.send(b"5").await.unwrap();
    let (_, others) = got(&server).await.unwrap();
    link.set_apart(
        client.local_addr().unwrap(),
        Some(Faults { up: Way { pass: Pass::Lost, ..Way::default() }, ..Faults::default() }),
    );
    let unmapped = link.counts().of(Done::Unmapped);
    link.rebind(Some(client.local_addr().unwrap()));
    while link.counts().of(Done::Unmapped) == unmapped {
        tokio::time::sleep(ms(5)).await;
    }
    client.send(b"6").await.unwrap();
    other.send(b"7").await.unwrap();
    assert_eq!(got(&server).await.unwrap(), (b"7".to_vec(), others));
    assert!(got(&server).await.is_none());
    link.set_apart(client.local_addr().unwrap(), None);
    client.send(b"8").await.unwrap();
    assert_eq!(got(&server).await.unwrap().0, b"8");
    // A stranger does not come in through it.
    let stranger = UdpSocket::bind(LOCAL).await.unwrap();
    stranger.send_to(b"hello?", second).await.unwrap();
    assert!(got(&client).await.is_none());
}

#[tokio::test]
async fn datagrams_are_overtaken_replayed_held_and_swallowed() {
    let (server, link, client) = udp().await;
    link.set(Faults { up: Way { delay: ms(100), ..Way::default() }, ..Faults::default() });
    client.send(b"slow").await.unwrap();
    while link.counts().of(Done::Passed) == 0 {
        tokio::time::sleep(ms(1)).await;
    }
    link.set(Faults::default());
    client.send(b"fast").await.unwrap();
    assert_eq!(got(&server).await.unwrap().0, b"fast");
    assert_eq!(got(&server).await.unwrap().0, b"slow");

    let up = Way { replay: 1.0, replay_after: ms(200), ..Way::default() };
    link.set(Faults { up, ..Faults::default() });
    client.send(b"again").await.unwrap();
    assert_eq!(got(&server).await.unwrap().0, b"again");
    assert_eq!(got(&server).await.unwrap().0, b"again");

    link.set(Faults { up: Way { pass: Pass::Held, ..Way::default() }, ..Faults::default() });
    client.send(b"a").await.unwrap();
    client.send(b"b").await.unwrap();
    assert!(got(&server).await.is_none());
    link.set(Faults::default());
    assert_eq!(got(&server).await.unwrap().0, b"a");
    assert_eq!(got(&server).await.unwrap().0, b"b");

    link.set(Faults { up: Way { pass: Pass::Lost, ..Way::default() }, ..Faults::default() });
    client.send(b"gone").await.unwrap();
    assert!(got(&server).await.is_none());
    assert_eq!(link.counts().of(Done::Swallowed), 1);
}

#[tokio::test]
async fn what_is_on_its_way_is_bounded() {
    let (server, link, client) = udp().await;
    link.set(Faults { up: Way { pass: Pass::Held, ..Way::default() }, ..Faults::default() });
    let many = 6000;
    for n in 0..many {
        client.send(b"x").await.unwrap();
        if n % 64 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let counts = link.counts();
    let until = Instant::now() + LONG;
    // The kernel's buffer may have lost some before they came to the link.
    while counts.of(Done::Crowded) == 0 && Instant::now() < until {
        client.send(b"x").await.unwrap();
        tokio::time::sleep(ms(1)).await;
    }
    assert!(counts.of(Done::Crowded) > 0 && counts.of(Done::Held) <= 4096, "{:?}", counts.seen());
    drop(server);
}
