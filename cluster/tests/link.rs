//! Links on real sockets: frames in order, a break that is seen, and everyone who is not a node of this cluster refused.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a test of real sockets, which stops where it is surprised"
)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PKCS_ED25519};
use reveille_cluster::env::Transport;
use reveille_cluster::link::{
    Identity, IdentityError, Inbound, Lane, LinkConfig, Links, SendError, limits, node_name,
};
use reveille_protocol::id::NodeId;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const CLUSTER: u64 = 0xc1;

struct Ca {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Ca {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Ca { certificate, issuer: Issuer::new(params, key) }
    }

    fn sign(&self, name: &str, until: SystemTime) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = (SystemTime::now() - Duration::from_secs(7200)).into();
        params.not_after = until.into();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        (certificate, PrivatePkcs8KeyDer::from(key.serialize_der()).into())
    }

    fn identity(&self, node: u64) -> Identity {
        let (certificate, key) = self.sign(&node_name(NodeId(node), CLUSTER), tomorrow());
        Identity::new(NodeId(node), CLUSTER, vec![self.certificate.clone()], vec![certificate], &key).unwrap()
    }
}

fn tomorrow() -> SystemTime {
    SystemTime::now() + Duration::from_secs(24 * 3600)
}

/// Writes down what comes.
#[derive(Default)]
struct Seen {
    frames: Mutex<Vec<(NodeId, Lane, Bytes)>>,
    links: Mutex<Vec<(NodeId, Lane, bool)>>,
}

impl Inbound for Seen {
    fn frame(&self, from: NodeId, lane: Lane, frame: Bytes) {
        self.frames.lock().unwrap().push((from, lane, frame));
    }

    fn up(&self, peer: NodeId, lane: Lane) {
        self.links.lock().unwrap().push((peer, lane, true));
    }

    fn down(&self, peer: NodeId, lane: Lane) {
        self.links.lock().unwrap().push((peer, lane, false));
    }
}

struct Node {
    links: Links,
    seen: Arc<Seen>,
    address: SocketAddr,
}

async fn node(id: u64, identity: Identity, listener: TcpListener, peers: &[(u64, SocketAddr)]) -> Node {
    let seen = Arc::new(Seen::default());
    let peers: BTreeMap<_, _> =
        peers.iter().map(|(id, address)| (NodeId(*id), address.to_string())).collect();
    let address = listener.local_addr().unwrap();
    let config = LinkConfig { node: NodeId(id), cluster: CLUSTER, peers, identity };
    Node { links: Links::start(config, listener, seen.clone()), seen, address }
}

async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within ten seconds: {what}");
}

/// Two nodes that are linked on every lane.
async fn pair() -> (Ca, Node, Node) {
    let ca = Ca::new();
    let (one, two) = (listener().await, listener().await);
    let (at_one, at_two) = (one.local_addr().unwrap(), two.local_addr().unwrap());
    let one = node(1, ca.identity(1), one, &[(2, at_two)]).await;
    let two = node(2, ca.identity(2), two, &[(1, at_one)]).await;
    for lane in Lane::ALL {
        until("links are up", || one.links.is_up(NodeId(2), lane) && two.links.is_up(NodeId(1), lane)).await;
    }
    (ca, one, two)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_come_in_order_both_ways_and_one_connection_serves_a_lane() {
    let (_ca, one, two) = pair().await;
    for number in 0u32..5000 {
        let frame = Bytes::from(number.to_le_bytes().to_vec());
        one.links.send(NodeId(2), Lane::Data, frame.clone()).unwrap();
        two.links.send(NodeId(1), Lane::Data, frame).unwrap();
    }
    for (from, to) in [(NodeId(1), &two), (NodeId(2), &one)] {
        until("frames", || to.seen.frames.lock().unwrap().len() == 5000).await;
        let frames = to.seen.frames.lock().unwrap();
        for (number, (sender, lane, frame)) in frames.iter().enumerate() {
            assert_eq!((*sender, *lane, &frame[..]), (from, Lane::Data, &(number as u32).to_le_bytes()[..]));
        }
    }
    let ups =
        two.seen.links.lock().unwrap().iter().filter(|(_, lane, up)| *up && *lane == Lane::Data).count();
    assert_eq!(ups, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_break_is_told_once_and_mended() {
    let (ca, one, two) = pair().await;
    let address = two.address;
    two.links.shutdown();
    until("the break is seen", || !one.links.is_up(NodeId(2), Lane::Control)).await;
    assert_eq!(one.links.send(NodeId(2), Lane::Control, Bytes::new()), Err(SendError::Down));
    drop(two);
    let again = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let two = node(2, ca.identity(2), again, &[(1, one.address)]).await;
    until("the link is back", || one.links.is_up(NodeId(2), Lane::Control)).await;
    one.links.send(NodeId(2), Lane::Control, Bytes::from_static(b"again")).unwrap();
    until("a frame", || !two.seen.frames.lock().unwrap().is_empty()).await;
    let links = one.seen.links.lock().unwrap();
    let control: Vec<bool> =
        links.iter().filter(|(_, lane, _)| *lane == Lane::Control).map(|(_, _, up)| *up).collect();
    assert_eq!(control, [true, false, true]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_is_bounded_and_a_frame_too() {
    let (_ca, one, _two) = pair().await;
    let too_long = Bytes::from(vec![0; limits::max_frame(Lane::Control) + 1]);
    assert_eq!(one.links.send(NodeId(2), Lane::Control, too_long), Err(SendError::TooLong));
    assert_eq!(one.links.send(NodeId(9), Lane::Data, Bytes::new()), Err(SendError::Down));
    // Faster than any reader: the queue fills, and says so.
    let frame = Bytes::from(vec![0; 1 << 20]);
    let full =
        (0..100_000).any(|_| one.links.send(NodeId(2), Lane::Data, frame.clone()) == Err(SendError::Full));
    assert!(full);
    one.links.send(NodeId(2), Lane::Control, Bytes::from_static(b"vote")).unwrap();
    let seen = &_two.seen;
    until("control is not behind data", || {
        seen.frames.lock().unwrap().iter().any(|(_, lane, _)| *lane == Lane::Control)
    })
    .await;
}

/// Node 2 with a certificate of `ca` tries to dial node 3, which trusts another state of affairs.
async fn refused(identity: Identity, cluster: u64, peers_of_three: &[(u64, SocketAddr)], ca: &Ca) {
    let (two, three) = (listener().await, listener().await);
    let at_three = three.local_addr().unwrap();
    let three = node(3, ca.identity(3), three, peers_of_three).await;
    let config = LinkConfig {
        node: NodeId(2),
        cluster,
        peers: BTreeMap::from([(NodeId(3), at_three.to_string())]),
        identity,
    };
    let seen = Arc::new(Seen::default());
    let links = Links::start(config, two, seen.clone());
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(!three.links.is_up(NodeId(2), Lane::Data));
    assert!(three.seen.links.lock().unwrap().is_empty(), "the acceptor was never linked");
    links.shutdown();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_a_node_of_this_cluster_is_refused() {
    let (ca, other) = (Ca::new(), Ca::new());
    let known = [(2, SocketAddr::from(([127, 0, 0, 1], 1)))];
    refused(other.identity(2), CLUSTER, &known, &ca).await;
    // Not in the set of members.
    refused(ca.identity(2), CLUSTER, &[], &ca).await;
    // Another cluster's certificate of the same CA.
    let (certificate, key) = ca.sign(&node_name(NodeId(2), 0xdead), tomorrow());
    let foreign =
        Identity::new(NodeId(2), 0xdead, vec![ca.certificate.clone()], vec![certificate], &key).unwrap();
    refused(foreign, 0xdead, &known, &ca).await;
    // A node that takes another's place: it cannot even be configured.
    let (certificate, key) = ca.sign(&node_name(NodeId(7), CLUSTER), tomorrow());
    let taken = Identity::new(NodeId(2), CLUSTER, vec![ca.certificate.clone()], vec![certificate], &key);
    assert!(matches!(taken, Err(IdentityError::NotOurs { .. })));
    let (certificate, key) =
        ca.sign(&node_name(NodeId(2), CLUSTER), SystemTime::now() - Duration::from_secs(3600));
    let expired = Identity::new(NodeId(2), CLUSTER, vec![ca.certificate.clone()], vec![certificate], &key);
    assert!(matches!(expired, Err(IdentityError::NotNow { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_drips_end_and_harm_nothing() {
    let (_ca, one, two) = pair().await;
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff], &[0; 9000]] {
        let mut stream = TcpStream::connect(two.address).await.unwrap();
        // It may close while it is still being written to.
        let _ = stream.write_all(garbage).await;
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(limits::HANDSHAKE * 2, stream.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "it must not be kept for ever");
    }
    one.links.send(NodeId(2), Lane::Data, Bytes::from_static(b"still here")).unwrap();
    until("a frame", || !two.seen.frames.lock().unwrap().is_empty()).await;
}
