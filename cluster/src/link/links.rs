//! All links of a node: the listener, the diallers, and which connection is whose.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use reveille_protocol::id::NodeId;
use socket2::Socket;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::connection::{self, Outgoing};
use super::handshakes::Handshakes;
use super::hello::{self, Answer, Hello};
use super::identity::{Identity, node_of, server_name};
use super::limits::{CONNECT, HANDSHAKE, PATIENCE, REDIAL};
use super::metrics::{Refusal, Refused, Told};
use super::{Inbound, Lane, SendError, TurnedAway};
use crate::env::Transport;
use crate::ground::{self, TcpListener, TcpStream};
use crate::guard;

/// What links must know.
#[derive(Clone)]
pub struct LinkConfig {
    /// This node.
    pub node: NodeId,
    /// The cluster's random name.
    pub cluster: u64,
    /// The other nodes at first, `host:port`; resolved at each dial. Only they are linked with.
    pub peers: BTreeMap<NodeId, String>,
    /// Who this node is.
    pub identity: Identity,
}

/// The links of a node; clones share them.
#[derive(Clone)]
pub struct Links(Arc<Shared>);

struct Shared {
    config: LinkConfig,
    identity: RwLock<Identity>,
    inbound: Arc<dyn Inbound>,
    peers: Mutex<Peers>,
    /// The lowest version of links, and so of formats, that is spoken.
    lowest: AtomicU8,
    connections: RwLock<BTreeMap<(NodeId, Lane), Arc<Outgoing>>>,
    /// One connection at a time becomes a peer's on a lane.
    changing: Mutex<()>,
    stop: watch::Sender<bool>,
}

/// Who the other nodes are, and which of them are being dialled.
#[derive(Default)]
struct Peers {
    addresses: BTreeMap<NodeId, String>,
    /// Ids above this may be nodes that this one has not heard of: it was away while they came.
    known: NodeId,
    /// Who belongs to the cluster, and the highest id that it ever gave; nobody knows before the directory is here.
    members: Option<(BTreeSet<NodeId>, NodeId)>,
    dialling: BTreeSet<(NodeId, Lane)>,
}

impl Peers {
    fn may_be(&self, peer: NodeId) -> bool {
        self.addresses.contains_key(&peer) || peer > self.known
    }

    /// Was it removed for good?
    fn is_gone(&self, peer: NodeId) -> bool {
        self.members.as_ref().is_some_and(|(members, last)| peer <= *last && !members.contains(&peer))
    }
}

impl Shared {
    fn peers(&self) -> MutexGuard<'_, Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a peer is; for one that is no peer any more, its dialler ends.
    fn address(&self, peer: NodeId, lane: Lane) -> Option<String> {
        let mut peers = self.peers();
        let address = peers.addresses.get(&peer).cloned();
        if address.is_none() {
            peers.dialling.remove(&(peer, lane));
        }
        address
    }

    fn is_up(&self, peer: NodeId, lane: Lane) -> bool {
        self.connections.read().unwrap_or_else(PoisonError::into_inner).contains_key(&(peer, lane))
    }

    /// Takes these for the other nodes, and dials those that it does not dial yet.
    fn set_peers(self: &Arc<Self>, addresses: BTreeMap<NodeId, String>, known: NodeId) {
        let mut peers = self.peers();
        peers.addresses = addresses;
        peers.known = known;
        let others: Vec<NodeId> = peers.addresses.keys().copied().collect();
        for (peer, lane) in others.into_iter().flat_map(|peer| Lane::ALL.map(|lane| (peer, lane))) {
            if peers.dialling.insert((peer, lane)) {
                tokio::spawn(until_stopped(self.clone(), dial(self.clone(), peer, lane)));
            }
        }
        let connections = self.connections.read().unwrap_or_else(PoisonError::into_inner);
        for ((peer, _), outgoing) in connections.iter() {
            if !peers.may_be(*peer) {
                outgoing.end.notify_one();
            }
        }
    }
}

impl Links {
    /// Starts to accept on `listener` and to dial the peers.
    pub fn start(mut config: LinkConfig, listener: TcpListener, inbound: Arc<dyn Inbound>) -> Links {
        let peers = std::mem::take(&mut config.peers);
        let shared = Arc::new(Shared {
            identity: RwLock::new(config.identity.clone()),
            config,
            inbound,
            peers: Mutex::default(),
            lowest: AtomicU8::new(hello::VERSIONS.0),
            connections: RwLock::default(),
            changing: Mutex::new(()),
            stop: watch::Sender::new(false),
        });
        tokio::spawn(until_stopped(shared.clone(), accept(shared.clone(), listener)));
        let known = peers.keys().copied().max().unwrap_or_default().max(shared.config.node);
        shared.set_peers(peers, known);
        Links(shared)
    }

    /// New connections present this from now on; the old ones go on.
    pub fn set_identity(&self, identity: Identity) {
        *self.0.identity.write().unwrap_or_else(PoisonError::into_inner) = identity;
    }

    /// Is the link there?
    pub fn is_up(&self, peer: NodeId, lane: Lane) -> bool {
        self.0.is_up(peer, lane)
    }

    /// The nodes that there is a link to.
    pub fn linked(&self) -> Vec<NodeId> {
        let connections = self.0.connections.read().unwrap_or_else(PoisonError::into_inner);
        connections.keys().filter(|(_, lane)| *lane == Lane::Control).map(|(peer, _)| *peer).collect()
    }

    /// Ends every connection and accepts no more.
    pub fn shutdown(&self) {
        self.0.stop.send_replace(true);
    }
}

fn tell_linked(connections: &BTreeMap<(NodeId, Lane), Arc<Outgoing>>) {
    let linked = connections.keys().filter(|(_, lane)| *lane == Lane::Control).count();
    metrics::gauge!("reveille_links_up").set(linked as f64);
}

impl Transport for Links {
    fn send(&self, to: NodeId, lane: Lane, frame: Bytes) -> Result<(), SendError> {
        let connections = self.0.connections.read().unwrap_or_else(PoisonError::into_inner);
        connections.get(&(to, lane)).ok_or(SendError::Down)?.send(frame)
    }

    fn set_peers(&self, peers: BTreeMap<NodeId, String>, known: NodeId) {
        self.0.set_peers(peers, known);
    }

    fn set_members(&self, members: BTreeSet<NodeId>, last: NodeId) {
        self.0.peers().members = Some((members, last));
    }

    fn format(&self, peer: NodeId) -> Option<u32> {
        let connections = self.0.connections.read().unwrap_or_else(PoisonError::into_inner);
        connections.get(&(peer, Lane::Control)).map(|outgoing| u32::from(outgoing.version))
    }

    fn abandon(&self, peer: NodeId) {
        let connections = self.0.connections.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(outgoing) = connections.get(&(peer, Lane::Control)) {
            outgoing.abandon();
        }
    }

    fn set_format(&self, format: u32) {
        let version = u8::try_from(format).unwrap_or(u8::MAX).min(hello::VERSIONS.1);
        self.0.lowest.fetch_max(version, Ordering::Relaxed);
    }
}

async fn until_stopped(shared: Arc<Shared>, work: impl Future<Output = ()>) {
    let mut stop = shared.stop.subscribe();
    tokio::select! {
        _ = guard::watch("a link", work, |why| shared.inbound.panicked(why)) => {}
        // An error says that the links are gone, which is a stop as well.
        _ = stop.wait_for(|stop| *stop) => {}
    }
}

async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    let handshakes = Handshakes::default();
    let told = Arc::new(Mutex::new(Told::default()));
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely; what ends soon frees some.
                tracing::error!(%error, "peers cannot be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(handshake) = handshakes.begin(from.ip()) else {
            Refusal::Crowded.count();
            continue;
        };
        let (shared, told) = (shared.clone(), told.clone());
        tokio::spawn(until_stopped(shared.clone(), async move {
            let greeted = tokio::time::timeout(HANDSHAKE, greet(&shared, stream)).await;
            drop(handshake);
            match greeted.unwrap_or(Err(Refusal::Slow.into())) {
                Ok((stream, peer, lane, version)) => {
                    let socket = handle(stream.get_ref().0, lane);
                    serve(&shared, stream, socket, peer, lane, version).await;
                }
                Err(refused) => {
                    let told = told.lock().unwrap_or_else(PoisonError::into_inner).counts(refused.refusal);
                    if let Some(untold) = told {
                        tracing::warn!(%from, refusal = %refused, untold, "a peer connection was refused");
                    }
                }
            }
        }));
    }
}

type Server = tokio_rustls::server::TlsStream<TcpStream>;

/// The acceptor's half of the handshake: who is it, and may it?
async fn greet(shared: &Shared, stream: TcpStream) -> Result<(Server, NodeId, Lane, u8), Refused> {
    let config = shared.identity.read().unwrap_or_else(PoisonError::into_inner).server.clone();
    let tls = |error| Refused::because(Refusal::Tls, error);
    ground::prepare(&stream).map_err(tls)?;
    let mut stream = TlsAcceptor::from(config).accept(stream).await.map_err(tls)?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let peer = certificate.and_then(|certificate| node_of(certificate, shared.config.cluster));
    let peer = peer.ok_or(Refusal::Identity)?;
    if peer == shared.config.node {
        return Err(Refusal::NotMember.into());
    }
    let mut bytes = [0; hello::LEN];
    let lost = |error| Refused::because(Refusal::Hello, error);
    stream.read_exact(&mut bytes).await.map_err(lost)?;
    let (hello, version) = Hello::decode(&bytes).ok_or(Refusal::Hello)?;
    let meant = hello.cluster == shared.config.cluster && hello.to == shared.config.node;
    if !meant || hello.from != peer {
        return Err(Refusal::Hello.into());
    }
    let answer = answer(&shared.peers(), peer, version, shared.lowest.load(Ordering::Relaxed));
    stream.write_all(&[answer.encode()]).await.map_err(lost)?;
    stream.flush().await.map_err(lost)?;
    let refusal = match answer {
        Answer::Speak(version) => return Ok((stream, peer, hello.lane, version)),
        Answer::NotMember | Answer::Unknown => Refusal::NotMember,
        Answer::Old => Refusal::Old,
    };
    // Closed in order, so that the reason arrives. The peer may be gone already.
    let _ = stream.shutdown().await;
    Err(refusal.into())
}

/// What a node of this cluster is told that would speak this version.
fn answer(peers: &Peers, peer: NodeId, version: u8, lowest: u8) -> Answer {
    if !peers.may_be(peer) {
        return if peers.is_gone(peer) { Answer::NotMember } else { Answer::Unknown };
    }
    if version < lowest { Answer::Old } else { Answer::Speak(version) }
}

/// Keeps one lane to one peer: dials, serves, and dials again.
async fn dial(shared: Arc<Shared>, peer: NodeId, lane: Lane) {
    let (mut pause, mut told) = (REDIAL.0, None);
    while let Some(address) = shared.address(peer, lane) {
        if peer < shared.config.node {
            // It is for the peer to dial. But it may have been away, and not know where this node is.
            tokio::time::sleep(PATIENCE).await;
            if shared.is_up(peer, lane) {
                continue;
            }
        }
        let dialled = tokio::time::timeout(HANDSHAKE, connect(&shared, peer, address, lane)).await;
        match dialled.unwrap_or(Err(Refusal::Slow.into())) {
            Ok((stream, version)) => {
                (pause, told) = (REDIAL.0, None);
                let socket = handle(stream.get_ref().0, lane);
                serve(&shared, stream, socket, peer, lane, version).await;
            }
            Err(error) => {
                let refusal = match &error {
                    DialError::Refused(refused) => Some(refused.refusal.count()),
                    _ => None,
                };
                if let DialError::TurnedAway(why) = &error {
                    shared.inbound.turned_away(peer, *why);
                } else if lane == Lane::Control && told.replace(refusal) != Some(refusal) {
                    tracing::warn!(node = peer.0, %error, "a peer cannot be linked with; trying until it can");
                }
            }
        }
        // Spread by lane and ids, so that not everyone dials a returning node in the same moment.
        let spread = (shared.config.node.0 * 7 + peer.0 * 3 + lane as u64) % 8;
        tokio::time::sleep(pause + pause * spread as u32 / 16).await;
        pause = (pause * 2).min(REDIAL.1);
    }
}

#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Refused(#[from] Refused),
    #[error("it does not let this node in any more")]
    TurnedAway(TurnedAway),
    #[error(
        "it does not know this node: is this node among cluster.nodes of its configuration, or was it invited with `reveille cluster add`?"
    )]
    Unknown,
}

impl From<Refusal> for DialError {
    fn from(refusal: Refusal) -> DialError {
        DialError::Refused(refusal.into())
    }
}

type Client = tokio_rustls::client::TlsStream<TcpStream>;

async fn connect(
    shared: &Shared,
    peer: NodeId,
    address: String,
    lane: Lane,
) -> Result<(Client, u8), DialError> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host(address).await?.collect();
    let connecting = tokio::time::timeout(CONNECT, ground::connect(&addresses));
    let stream = connecting.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    ground::prepare(&stream)?;
    let cluster = shared.config.cluster;
    let name = server_name(peer, cluster).ok_or(Refusal::Identity)?;
    let config = shared.identity.read().unwrap_or_else(PoisonError::into_inner).client.clone();
    let stream = TlsConnector::from(config).connect(name, stream).await;
    let mut stream =
        stream.map_err(|error| match error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) {
            true => Refused::because(Refusal::Tls, error).into(),
            false => DialError::Io(error),
        })?;
    let hello = Hello { cluster, from: shared.config.node, to: peer, lane };
    stream.write_all(&hello.encode()).await?;
    stream.flush().await?;
    let version = match Answer::decode(stream.read_u8().await?) {
        Answer::Speak(version) => version,
        Answer::NotMember => return Err(DialError::TurnedAway(TurnedAway::NotMember)),
        Answer::Old => return Err(DialError::TurnedAway(TurnedAway::Old)),
        Answer::Unknown => return Err(DialError::Unknown),
    };
    if !Hello::speaks(version) {
        return Err(Refusal::Hello.into());
    }
    if version < shared.lowest.load(Ordering::Relaxed) {
        return Err(Refusal::Old.into());
    }
    Ok((stream, version))
}

/// A second handle of a control lane's socket.
fn handle(stream: &TcpStream, lane: Lane) -> Option<Socket> {
    (lane == Lane::Control).then(|| ground::handle(stream)).flatten()
}

/// Makes a connection its peer's on the lane, and runs it to its end.
async fn serve<S>(
    shared: &Arc<Shared>,
    stream: S,
    socket: Option<Socket>,
    peer: NodeId,
    lane: Lane,
    version: u8,
) where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + 'static,
{
    let outgoing = Arc::new(Outgoing::new(lane, version));
    {
        let _one = shared.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let old = {
            let mut connections = shared.connections.write().unwrap_or_else(PoisonError::into_inner);
            let old = connections.insert((peer, lane), outgoing.clone());
            tell_linked(&connections);
            old
        };
        if let Some(old) = old {
            // The peer dialled anew, so it has given the old one up before we saw its end.
            old.end.notify_one();
            shared.inbound.down(peer, lane);
        }
        shared.inbound.up(peer, lane);
    }
    let guard = Down { shared: shared.clone(), peer, lane, outgoing: outgoing.clone() };
    if let Err(refusal) = connection::run(stream, peer, outgoing.clone(), shared.inbound.clone()).await {
        tracing::warn!(node = peer.0, ?lane, %refusal, "a peer connection was ended");
        refusal.count();
    }
    if let Some(socket) = socket.filter(|_| outgoing.abandoned.load(Ordering::Relaxed)) {
        // It closes with a reset. Its end in order would wait behind what the peer does not acknowledge. If it cannot be
        // told so, that is how it ends.
        let _ = socket.set_linger(Some(Duration::ZERO));
    }
    drop(guard);
}

/// Takes a connection out when it ends, also when its task is stopped.
struct Down {
    shared: Arc<Shared>,
    peer: NodeId,
    lane: Lane,
    outgoing: Arc<Outgoing>,
}

impl Drop for Down {
    fn drop(&mut self) {
        let _one = self.shared.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = {
            let mut connections = self.shared.connections.write().unwrap_or_else(PoisonError::into_inner);
            let known = connections.get(&(self.peer, self.lane));
            let mine = known.is_some_and(|known| Arc::ptr_eq(known, &self.outgoing));
            if mine {
                connections.remove(&(self.peer, self.lane));
                tell_linked(&connections);
            }
            mine
        };
        if mine {
            self.shared.inbound.down(self.peer, self.lane);
        }
    }
}
