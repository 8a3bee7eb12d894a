//! Many terminals at once, at real processes: after all nodes were killed each push still comes, once, and nobody is notified
//! over and over; and one source of connections cannot keep the others out.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

mod support;

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use reveille_protocol::id::TerminalId;
use reveille_terminal::{Builder, Event, Terminal};
use support::{Dev, http};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

const PATIENCE: Duration = Duration::from_secs(120);
/// Terminals of the herd: some minutes' worth of a phone cell, and little enough for a small machine.
const HERD: usize = 300;
/// Notifications for one push to one terminal: by the leader that was killed and the one after it, by one more if leadership
/// moves when all is up again, and a rung of the ladder for each five seconds that a connection takes on a busy machine.
const MOST: u64 = 6;

/// The sum of a counter over the nodes.
fn counted(dev: &Dev, name: &str) -> u64 {
    let of_node = |node| {
        let metrics = http(dev.admin(node), "GET", "/metrics", &[], b"");
        let text = String::from_utf8_lossy(&metrics.body).into_owned();
        let values =
            text.lines().filter_map(|line| line.strip_prefix(name)?.rsplit(' ').next()?.parse::<u64>().ok());
        values.sum::<u64>()
    };
    (1..=3).map(of_node).sum()
}

async fn asleep(terminal: &mut Terminal) {
    let asleep =
        async { while !matches!(terminal.next().await.expect("it lives"), Event::Disconnected { .. }) {} };
    tokio::time::timeout(PATIENCE, asleep).await.expect("it sleeps in time");
}

/// What a terminal saw until its push came and it slept again.
struct Saw {
    received: u64,
    notified: u64,
}

async fn take(terminal: &mut Terminal) -> Saw {
    let mut saw = Saw { received: 0, notified: 0 };
    loop {
        match terminal.next().await.expect("it lives") {
            Event::Received(push) => {
                saw.received += 1;
                push.confirm();
            }
            Event::Notified { .. } => saw.notified += 1,
            Event::Disconnected { .. } if saw.received > 0 => return saw,
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_all_nodes_were_killed_a_herd_is_notified_once_and_gets_everything() {
    // Slow, so that most of the pushes are pending when the nodes die.
    let mut dev = Dev::start_with(tempfile::tempdir().unwrap(), &[("REVEILLE_NOTIFY__PER_SECOND", "8")]);
    let servers: Vec<String> = dev.servers().split(',').map(str::to_owned).collect();
    let mut starting = JoinSet::new();
    let mut herd: BTreeMap<TerminalId, Terminal> = BTreeMap::new();
    for number in 0..HERD {
        if starting.len() >= 16 {
            let (id, terminal) = starting.join_next().await.unwrap().unwrap();
            herd.insert(id, terminal);
        }
        let state = dev.folder.path().join(format!("herd-{number}"));
        let builder = Builder::new(servers.clone(), dev.ca(), state).listen("127.0.0.1:0".parse().unwrap());
        starting.spawn(async move {
            let mut terminal = builder.start().await.unwrap();
            asleep(&mut terminal).await;
            (terminal.id(), terminal)
        });
    }
    while let Some(started) = starting.join_next().await {
        let (id, terminal) = started.unwrap();
        herd.insert(id, terminal);
    }

    let ids: Vec<String> = herd.keys().map(ToString::to_string).collect();
    tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            for part in ids.chunks(HERD.div_ceil(6)) {
                let dev = &dev;
                scope.spawn(move || {
                    for (number, id) in part.iter().enumerate() {
                        assert_eq!(dev.publish(1 + number % 3, id, &[], b"wake up").status, 201);
                    }
                });
            }
        });
        (1..=3).for_each(|node| dev.kill_node(node));
        for node in 1..=3 {
            dev.wait_ended(node);
            let mut again = std::process::Command::new(support::REVEILLE);
            again.env("REVEILLE_NOTIFY__PER_SECOND", "8");
            dev.start_node_by(node, again);
        }
    });

    let mut waking = JoinSet::new();
    for (id, mut terminal) in herd {
        waking.spawn(async move {
            let saw = tokio::time::timeout(PATIENCE, take(&mut terminal)).await;
            (id, terminal, saw)
        });
    }
    let (mut all, mut most, mut terminals) = (0, 0, Vec::new());
    while let Some(woken) = waking.join_next().await {
        let (id, terminal, saw) = woken.unwrap();
        let saw = saw.unwrap_or_else(|_| panic!("{id} has not got its push"));
        assert_eq!(saw.received, 1, "{id}");
        (all, most) = (all + saw.notified, most.max(saw.notified));
        terminals.push(terminal);
    }
    // What is late would come by now: a rung of the ladder after a connection that was taken for one that fails.
    tokio::time::sleep(Duration::from_secs(6)).await;
    for terminal in &mut terminals {
        while let Ok(Some(event)) = tokio::time::timeout(Duration::from_millis(1), terminal.next()).await {
            assert!(!matches!(event, Event::Received(_)), "{} got its push twice", terminal.id());
        }
    }
    let sent = counted(&dev, "reveille_notifications_total");
    eprintln!("{HERD} terminals: {all} notifications seen, {most} by one; {sent} sent since the restart");
    assert!(most <= MOST, "one terminal was notified {most} times");
    assert!(sent <= 2 * HERD as u64, "{sent} notifications sent after the restart");
    let waiting = counted(&dev, "reveille_terminals_waiting");
    assert_eq!(waiting, 0, "something still waits");
}

/// Connections from one address that say nothing.
async fn silent(from: [u8; 4], to: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut open = Vec::new();
    for _ in 0..count {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        // One that is turned away may be reset before it is there.
        if let Ok(stream) = socket.connect(to).await {
            open.push(stream);
        }
    }
    open
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    let read = tokio::time::timeout(Duration::from_millis(500), stream.read(&mut [0])).await;
    matches!(read, Ok(Ok(0) | Err(_)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_source_cannot_keep_the_others_out() {
    let few = [("REVEILLE_ADMISSION__CONNECTING", "6"), ("REVEILLE_ADMISSION__PER_SOURCE", "4")];
    let dev = Dev::start_with(tempfile::tempdir().unwrap(), &few);
    let servers: Vec<String> = dev.servers().split(',').map(str::to_owned).collect();
    let mut held = Vec::new();
    for server in &servers {
        held.push(silent([127, 0, 0, 9], server.parse().unwrap(), 40).await);
    }
    // Those beyond its share were reset at once; its share is still there.
    tokio::time::sleep(Duration::from_millis(500)).await;
    for of_node in &mut held {
        let mut open = 0;
        for stream in of_node {
            open += usize::from(!is_closed(stream).await);
            if open > 4 {
                break;
            }
        }
        assert!(open <= 4, "{open} connections of one source are kept");
    }
    let refused = counted(&dev, "reveille_sessions_refused_total{kind=\"source\"}");
    assert!(refused >= 3 * 30, "{refused} turned away");
    // All the while there is room for another.
    for server in &servers {
        held.push(silent([127, 0, 0, 9], server.parse().unwrap(), 40).await);
    }
    let mut terminal = Builder::new(servers, dev.ca(), dev.folder.path().join("t"))
        .listen("127.0.0.1:0".parse().unwrap())
        .start()
        .await
        .unwrap();
    let before = counted(&dev, "reveille_sessions_refused_total{kind=\"slow\"}");
    asleep(&mut terminal).await;
    assert_eq!(
        tokio::task::block_in_place(|| dev.publish(1, &terminal.id().to_string(), &[], b"hi")).status,
        201
    );
    tokio::time::timeout(PATIENCE, take(&mut terminal)).await.expect("its push");
    let after = counted(&dev, "reveille_sessions_refused_total{kind=\"slow\"}");
    eprintln!("silent connections that were given up: {before} before, {after} after");
    terminal.shutdown().await;
}

/// The sockets from which nodes dial only dial: whoever sends them something gets nothing for it, but for one reset an hour,
/// shorter than what caused it (RFC 9000 section 10.3), which the library cannot be made to leave out.
#[test]
fn the_nodes_udp_port_answers_no_stranger() {
    let dev = Dev::start();
    let node: SocketAddr = dev.node(1)["session"].as_str().unwrap().parse().unwrap();
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    stranger.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let long = |first: u8, version: [u8; 4]| {
        let mut packet = vec![first];
        packet.extend_from_slice(&version);
        packet.push(20);
        packet.extend_from_slice(&[7; 20]);
        packet.resize(1200, 0);
        packet
    };
    let probes = [
        long(0xc3, [0, 0, 0, 1]),
        long(0xd3, [0, 0, 0, 1]),
        long(0xe3, [0, 0, 0, 1]),
        long(0xc3, [10; 4]),
        vec![0x40; 1200],
        vec![0x40; 60],
        vec![0x40; 20],
    ];
    let mut answers = Vec::new();
    let mut buffer = [0; 2048];
    for probe in &probes {
        stranger.send_to(probe, node).unwrap();
        while let Ok((answer, _)) = stranger.recv_from(&mut buffer) {
            answers.push((answer, probe.len()));
        }
    }
    assert!(answers.len() <= 1 && answers.iter().all(|(answer, probe)| answer < probe), "{answers:?}");
}
