//! What a third party hears from notifiers when terminals claim its address: real sockets on loopback, counted.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::UdpSocket;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reveille_protocol::id::*;
use reveille_protocol::service_list::row::Urgency;
use reveille_protocol::wire::stun::{Message, Pin, PinSlot, Transaction};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::*;
use crate::cli::certs::Ca;
use crate::notify::pace::Rates;
use crate::session::admission::Limits;

const SECRET: Secret = Secret { generation: 1, key: [3; 32] };
/// Terminals that claim one address.
const CLAIMS: u32 = 10_000;

/// A notifier of a node, with the budgets of a network that is not loopback.
fn notifier(node: u64, ca: &Ca) -> Notifier {
    let (certificate, key) = ca.node(node, 7, Vec::new(), 1).unwrap();
    let identity = Identity {
        chain: vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
        key: PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
    };
    let any = NonZeroU32::MAX;
    let directory = Directory { secrets: vec![SECRET], ..Directory::default() };
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    Notifier::start(Surroundings {
        direct: Arc::new(Dialler::new(loopback, identity.clone()).unwrap()),
        anchor: loopback,
        identity,
        pace: Pace::with_budgets_on_loopback(Rates { per_second: any, per_prefix: any }),
        own: Own::default(),
        admission: Admission::new(Limits { at_once: 1, per_second: any, per_source: None }),
        cluster: Arc::new(OnceLock::new()),
        serves: Box::new(|| true),
        directory: Arc::new(RwLock::new(Arc::new(directory))),
        hint: vec!["n1.example.org:8443".to_owned()],
        guard: Guard::new(mpsc::channel(1).0),
    })
    .unwrap()
}

fn order(number: u32, reachability: Reachability) -> NotifyOrder {
    let mut terminal = TerminalId([0; 16]);
    terminal.0[..4].copy_from_slice(&number.to_be_bytes());
    NotifyOrder {
        group: GroupId(1),
        terminal,
        stream: Stream(1),
        epoch: Epoch(1),
        reachability,
        secret: SECRET.generation,
        pending: 1,
        urgency: Urgency::High,
        attempt: 0,
    }
}

fn key(number: u32) -> KeyFingerprint {
    let mut key = KeyFingerprint([0; 32]);
    key.0[..4].copy_from_slice(&number.to_be_bytes());
    key
}

/// Dials, datagrams and bytes by their sender.
type Received = BTreeMap<SocketAddr, (BTreeSet<Vec<u8>>, usize, usize)>;

/// Someone who never asked for anything. Counts what arrives.
struct Victim {
    address: SocketAddr,
    over: Arc<AtomicBool>,
    counting: std::thread::JoinHandle<Received>,
}

impl Victim {
    fn at(socket: UdpSocket) -> Victim {
        let over = Arc::new(AtomicBool::new(false));
        let address = socket.local_addr().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let enough = over.clone();
        let counting = std::thread::spawn(move || {
            let mut heard = Received::new();
            let mut buffer = [0; 2048];
            loop {
                match socket.recv_from(&mut buffer) {
                    Ok((len, from)) => {
                        let (dials, datagrams, bytes) = heard.entry(from).or_default();
                        // A dial keeps its first connection id, 20 bytes behind the version.
                        assert_eq!(buffer[5], 20);
                        dials.insert(buffer[6..26].to_vec());
                        (*datagrams, *bytes) = (*datagrams + 1, *bytes + len);
                    }
                    Err(_) if enough.load(Ordering::Relaxed) => return heard,
                    Err(_) => {}
                }
            }
        });
        Victim { address, over, counting }
    }

    fn heard(self) -> Received {
        self.over.store(true, Ordering::Relaxed);
        self.counting.join().unwrap()
    }
}

/// As many terminals as anyone has say that they listen at one address, and a push waits for each, at three nodes: the
/// address hears one dial from each node in a period.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_ten_thousand_terminals_claim_is_dialled_once_by_each_node() {
    let (ca, _) = Ca::new().unwrap();
    let victim = Victim::at(UdpSocket::bind("127.0.0.1:0").unwrap());
    let mut asking = tokio::task::JoinSet::new();
    for node in 1..=3 {
        let notifier = notifier(node, &ca);
        let address = victim.address;
        asking.spawn(async move {
            let claims = (0..CLAIMS).map(|number| {
                let listening_key = key(number);
                notifier.reaches(order(number, Reachability::Direct { address, listening_key }))
            });
            futures::future::join_all(claims).await.into_iter().filter(|reached| *reached).count()
        });
    }
    assert_eq!(asking.join_all().await, [0, 0, 0]);
    let heard = victim.heard();
    eprintln!(
        "{CLAIMS} claims at each of 3 nodes: {:?} (dials, datagrams, bytes)",
        heard.values().map(|(dials, datagrams, bytes)| (dials.len(), datagrams, bytes)).collect::<Vec<_>>()
    );
    assert_eq!(heard.len(), 3);
    for (dials, datagrams, bytes) in heard.into_values() {
        assert_eq!(dials.len(), 1);
        // A first packet, and its repeats within 2 s.
        assert!(datagrams <= 8 && bytes <= 8 * 1200, "{datagrams} datagrams, {bytes} bytes");
    }
}

/// Bindings that were proven from an address which its terminals then left: a few dials, and no more while keepalives come
/// from there under a false sender address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_many_bindings_were_kept_from_is_dialled_a_few_times() {
    const BINDINGS: u32 = 200;
    let (ca, _) = Ca::new().unwrap();
    let notifier = notifier(1, &ca);
    let anchor = SocketAddr::from(([127, 0, 0, 1], notifier.anchor_port()));
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let pinned =
        |number| order(number, Reachability::Pinned { anchor: NodeId(1), listening_key: key(number) });
    let keepalive = |number: u32, count, proof| {
        let handle = binding(&SECRET, &pinned(number));
        let key = stun::pin_key(&SECRET, &handle);
        let pin = Pin { handle, generation: 1, period: 25, slot: PinSlot::Primary, ring: false };
        let message = Message::Keepalive { pin, wants_answer: true, proof };
        let transaction = Transaction { number: count, tail: [0; 4] };
        socket.send_to(&stun::encode(&message, transaction, &key), anchor).unwrap();
        let mut buffer = [0; 2048];
        loop {
            let (len, _) = socket.recv_from(&mut buffer).unwrap();
            // Dials may come in between.
            if stun::is_stun(&buffer[..len]) {
                return stun::decode(&buffer[..len]).unwrap().open(&key).unwrap().0;
            }
        }
    };
    for number in 0..BINDINGS {
        let Message::Challenge(proof) = keepalive(number, 1, None) else { panic!("no challenge") };
        let mapped = keepalive(number, 2, Some(proof));
        assert!(matches!(mapped, Message::Mapped { waiting: false, .. }), "{mapped:?}");
    }
    let victim = Victim::at(socket.try_clone().unwrap());
    for number in 0..BINDINGS {
        notifier.orders.send(Waiting { order: pinned(number), waited: 0 }).await.unwrap();
    }
    let gone = |number: &u32| notifier.shared.anchor.address(&binding(&SECRET, &pinned(*number))).is_none();
    while (0..BINDINGS).filter(gone).count() == 0 || notifier.shared.dials.available_permits() < DIALS {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let heard = victim.heard();
    let (dials, datagrams, bytes) = &heard[&anchor];
    eprintln!("{BINDINGS} bindings: {} dials, {datagrams} datagrams, {bytes} bytes", dials.len());
    assert!((1..=5).contains(&dials.len()), "{}", dials.len());

    // Those that were dialled must prove themselves anew: a keepalive alone makes nothing due and gets a challenge.
    let mut challenged = 0;
    for number in 0..BINDINGS {
        challenged += usize::from(matches!(keepalive(number, 3, None), Message::Challenge(_)));
    }
    assert_eq!(challenged, dials.len());
}

/// Keepalives that nobody has heard before, of as many terminals, all with the victim's address for their sender: it gets
/// no more than was sent, and no more than its prefix does in that time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn false_senders_make_no_more_arrive_than_was_sent() {
    const KEEPALIVES: u32 = 5000;
    let (ca, _) = Ca::new().unwrap();
    let notifier = notifier(1, &ca);
    let anchor = SocketAddr::from(([127, 0, 0, 1], notifier.anchor_port()));
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let receiving = socket.try_clone().unwrap();
    let received = std::thread::spawn(move || {
        let (mut datagrams, mut bytes, mut buffer) = (0, 0, [0; 2048]);
        while let Ok(len) = receiving.recv(&mut buffer) {
            assert!(matches!(buffer[..2], [1, 0x11]), "only challenges");
            (datagrams, bytes) = (datagrams + 1, bytes + len);
        }
        (datagrams, bytes)
    });
    let began = std::time::Instant::now();
    let mut sent = 0;
    for number in 0..KEEPALIVES {
        let reachability = Reachability::Pinned { anchor: NodeId(1), listening_key: key(number) };
        let handle = binding(&SECRET, &order(number, reachability));
        let pin = Pin { handle, generation: 1, period: 25, slot: PinSlot::Primary, ring: false };
        let message = Message::Keepalive { pin, wants_answer: true, proof: None };
        let transaction = Transaction { number: 1, tail: [0; 4] };
        let keepalive = stun::encode(&message, transaction, &stun::pin_key(&SECRET, &handle));
        sent += socket.send_to(&keepalive, anchor).unwrap();
    }
    let (datagrams, bytes) = received.join().unwrap();
    let most = 1000.0 * (1.0 + began.elapsed().as_secs_f64());
    eprintln!("{sent} bytes under a false address made {datagrams} datagrams, {bytes} bytes arrive there");
    assert!(datagrams > 0 && bytes <= sent, "{bytes} bytes for {sent}");
    assert!(f64::from(datagrams) <= most.ceil(), "{datagrams} of at most {most}");
}
