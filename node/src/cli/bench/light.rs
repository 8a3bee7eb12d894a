//! Terminals that are light enough for ten thousand of them in one process: a UDP socket each, real QUIC and TLS, the frames
//! of a session by hand. They keep no state on disk, and do not look at a first packet before QUIC does; for measuring only.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context as Polled, Poll};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::BytesMut;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Endpoint, EndpointConfig, Runtime, TokioRuntime, TransportConfig, UdpPoller};
use rand::seq::SliceRandom;
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519, PublicKeyData};
use reveille_protocol::id::*;
use reveille_protocol::service_list::row::{Linger, Urgency};
use reveille_protocol::wire::notification::{ALPN, Notification, NotificationAck};
use reveille_protocol::wire::session::{
    Ack, Bye, ByeReason, Frame, Hello, Listening, NodeFrame, TerminalFrame,
};
use reveille_terminal::identity::{SESSION_ALPN, provider};
use reveille_terminal::listen::one_datagram_each_way;
use reveille_terminal::resolve::backoff;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::{ServerSessionMemoryCache, WebPkiClientVerifier};
use rustls::{ClientConfig, HandshakeKind, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// TCP and TLS with one node, as the SDK has it.
const ONE_NODE: Duration = Duration::from_secs(3);
/// A session without a word from the node is given up.
const SILENCE: Duration = Duration::from_secs(15);
/// A QUIC endpoint without a connection is closed: what is left of it is the socket.
const LINGER: Duration = Duration::from_secs(3);
/// Nodes that a terminal has tickets for; a cluster of the bench has three.
const NODES: usize = 4;
/// Terminals of one address: their sockets, and the connections that they leave behind, take ports of it.
const OF_ONE_ADDRESS: usize = 1000;

/// What all of them share.
pub(super) struct World {
    servers: Vec<String>,
    roots: Arc<RootCertStore>,
    /// One listening key for all: each is told apart by its port.
    listening: KeyFingerprint,
    tls: rustls::ServerConfig,
    transport: Arc<TransportConfig>,
    pub(super) told: Told,
    received: mpsc::UnboundedSender<(usize, Instant)>,
}

/// What they count together.
#[derive(Default)]
pub(super) struct Told {
    pub(super) notifications: AtomicU64,
    pub(super) sessions: AtomicU64,
    pub(super) resumed: AtomicU64,
    /// Connections that came to no session.
    pub(super) turned_away: AtomicU64,
}

impl Told {
    pub(super) fn reset(&self) {
        for count in [&self.notifications, &self.sessions, &self.resumed, &self.turned_away] {
            count.store(0, Ordering::Relaxed);
        }
    }
}

/// One terminal, asleep.
pub(super) struct Light {
    pub(super) id: TerminalId,
    /// Notifications that it was sent, copies of one counted once.
    pub(super) notified: watch::Receiver<u64>,
    task: tokio::task::JoinHandle<()>,
    listening: tokio::task::JoinHandle<()>,
}

impl Drop for Light {
    fn drop(&mut self) {
        self.task.abort();
        self.listening.abort();
    }
}

/// What a terminal remembers from session to session.
#[derive(Default)]
struct Memory {
    attempt: u64,
    stream: Stream,
    last: Seq,
}

/// Which terminals received a push, and when; as many as pushes, which the bench counts.
pub(super) type Receipts = mpsc::UnboundedReceiver<(usize, Instant)>;

impl World {
    /// Terminals of the cluster behind `servers`. Which of them received a push, and when, comes by the receiver.
    pub(super) fn new(servers: Vec<String>, ca: &Path) -> anyhow::Result<(Arc<World>, Receipts)> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(ca)? {
            roots.add(certificate?)?;
        }
        let roots = Arc::new(roots);
        let (listening, certificate, key) = key()?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider()).build()?;
        let mut tls = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate], key.into())?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        tls.max_early_data_size = u32::MAX;
        tls.send_tls13_tickets = 1;
        let transport = Arc::new(one_datagram_each_way(LINGER));
        let (received, receiver) = mpsc::unbounded_channel();
        let told = Told::default();
        Ok((Arc::new(World { servers, roots, listening, tls, transport, told, received }), receiver))
    }

    /// QUIC of one terminal, which remembers its own nodes: in a memory for all of them the oldest tickets would have
    /// to go before they are used, and no first packet would ever be taken.
    pub(super) fn quic(&self) -> anyhow::Result<quinn::ServerConfig> {
        let mut tls = self.tls.clone();
        tls.session_storage = ServerSessionMemoryCache::new(NODES);
        let mut quic = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
        quic.transport_config(self.transport.clone());
        Ok(quic)
    }

    /// The key that answers for all of them.
    pub(super) fn listening(&self) -> KeyFingerprint {
        self.listening
    }

    /// A socket that answers notifications, and nothing more; on the calling runtime, as long as that runs.
    pub(super) fn listener(self: Arc<World>, number: usize) -> anyhow::Result<SocketAddr> {
        let socket = UdpSocket::bind((address_of(number), 0))?;
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        tokio::spawn(listen(self, socket, watch::channel(0).0, watch::channel(None).0));
        Ok(address)
    }

    /// Makes the `number`-th terminal, and waits until its first session is over.
    pub(super) async fn terminal(self: Arc<World>, number: usize) -> anyhow::Result<Light> {
        let (session_key, certificate, key) = key()?;
        let mut tls = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(self.roots.clone())
            .with_client_auth_cert(vec![certificate], key.into())?;
        // Without Offer: the node notifies it at the address that its sessions come from.
        tls.alpn_protocols = vec![SESSION_ALPN[1].to_vec()];
        let address = address_of(number);
        let socket = UdpSocket::bind((address, 0))?;
        socket.set_nonblocking(true)?;
        let (notify, notified) = watch::channel(0);
        let (hint, hints) = watch::channel(None);
        let mut device = Device {
            world: self.clone(),
            number,
            id: session_key.terminal(),
            address,
            port: socket.local_addr()?.port(),
            tls: TlsConnector::from(Arc::new(tls)),
            memory: Memory::default(),
            hints,
        };
        device.sessions().await;
        let id = device.id;
        let listening = tokio::spawn(listen(self, socket, notify, hint));
        let mut wake = notified.clone();
        let task = tokio::spawn(async move {
            while wake.changed().await.is_ok() {
                device.sessions().await;
            }
        });
        Ok(Light { id, notified, task, listening })
    }
}

fn address_of(number: usize) -> IpAddr {
    let own = number / OF_ONE_ADDRESS;
    IpAddr::from([127, 0, (own / 250) as u8 + 1, (own % 250) as u8 + 1])
}

fn key() -> anyhow::Result<(KeyFingerprint, CertificateDer<'static>, PrivatePkcs8KeyDer<'static>)> {
    let pair = KeyPair::generate_for(&PKCS_ED25519)?;
    let certificate = CertificateParams::new(Vec::new())?.self_signed(&pair)?;
    let fingerprint = KeyFingerprint::of_spki(&pair.subject_public_key_info());
    Ok((fingerprint, certificate.der().clone(), PrivatePkcs8KeyDer::from(pair.serialize_der())))
}

/// Idle it is a socket; with the first packet a QUIC endpoint grows on it, which goes again when it is silent.
async fn listen(
    world: Arc<World>,
    socket: UdpSocket,
    notify: watch::Sender<u64>,
    hint: watch::Sender<Option<String>>,
) {
    let mut known = None;
    let Ok(quic) = world.quic() else { return };
    loop {
        let packet = async {
            let waiting = tokio::net::UdpSocket::from_std(socket.try_clone()?)?;
            waiting.readable().await?;
            drop(waiting);
            let socket = TokioRuntime.wrap_udp_socket(socket.try_clone()?)?;
            let socket = Arc::new(AFlight(socket));
            let mut config = EndpointConfig::default();
            config.grease_quic_bit(false);
            Endpoint::new_with_abstract_socket(config, Some(quic.clone()), socket, Arc::new(TokioRuntime))
        };
        let Ok(endpoint) = packet.await else { return };
        while let Ok(Some(incoming)) = tokio::time::timeout(LINGER, endpoint.accept()).await {
            let Ok(connecting) = incoming.accept() else { continue };
            let connection = match connecting.into_0rtt() {
                Ok((connection, _)) => connection,
                Err(connecting) => match connecting.await {
                    Ok(connection) => connection,
                    Err(_) => continue,
                },
            };
            while let Ok(datagram) = connection.read_datagram().await {
                let Ok(notification) = Notification::decode(&datagram) else { continue };
                let ack = NotificationAck { id: notification.id };
                // A full buffer is a lost datagram, which the node repeats.
                let _ = connection.send_datagram(ack.encode().into());
                if known != Some(notification.id) && notification.pending > 0 {
                    known = Some(notification.id);
                    world.told.notifications.fetch_add(1, Ordering::Relaxed);
                    hint.send_replace(notification.hints.into_iter().next());
                    notify.send_modify(|count| *count += 1);
                }
            }
        }
        // Closed without a word: nobody is there.
        drop(endpoint);
    }
}

/// Takes a flight of a handshake at a time from the system, which joins datagrams of one source: otherwise each endpoint would
/// have megabytes for a burst, and with less room than for a flight the end of it would be cut off.
#[derive(Debug)]
struct AFlight(Arc<dyn AsyncUdpSocket>);

impl AsyncUdpSocket for AFlight {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.0.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> std::io::Result<()> {
        self.0.try_send(transmit)
    }

    fn poll_recv(
        &self,
        context: &mut Polled<'_>,
        buffers: &mut [std::io::IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<std::io::Result<usize>> {
        self.0.poll_recv(context, buffers, metas)
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn max_receive_segments(&self) -> usize {
        4
    }
}

struct Device {
    world: Arc<World>,
    number: usize,
    id: TerminalId,
    address: IpAddr,
    port: u16,
    tls: TlsConnector,
    memory: Memory,
    hints: watch::Receiver<Option<String>>,
}

impl Device {
    /// Connects until a session has come to a good end.
    async fn sessions(&mut self) {
        let mut failures = 0;
        loop {
            let mut asked = Duration::ZERO;
            match self.connect().await {
                Ok(stream) => match self.session(stream).await {
                    Ok(None) => return,
                    Ok(Some(wait)) => asked = wait,
                    Err(error) => tracing::debug!(number = self.number, %error, "session broke"),
                },
                Err(error) => tracing::debug!(number = self.number, %error, "no connection"),
            }
            tokio::time::sleep(asked + backoff(failures)).await;
            failures += 1;
        }
    }

    async fn connect(&self) -> anyhow::Result<TlsStream<TcpStream>> {
        let hint = self.hints.borrow().clone();
        let mut servers = self.world.servers.clone();
        servers.shuffle(&mut rand::rng());
        servers.sort_by_key(|server| Some(server) != hint.as_ref());
        for server in &servers {
            if let Ok(Ok(stream)) = tokio::time::timeout(ONE_NODE, self.one(server)).await {
                let resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
                self.world.told.resumed.fetch_add(u64::from(resumed), Ordering::Relaxed);
                self.world.told.sessions.fetch_add(1, Ordering::Relaxed);
                return Ok(stream);
            }
            self.world.told.turned_away.fetch_add(1, Ordering::Relaxed);
        }
        bail!("no node takes it")
    }

    async fn one(&self, server: &str) -> anyhow::Result<TlsStream<TcpStream>> {
        let to: SocketAddr = server.parse()?;
        let socket = TcpSocket::new_v4()?;
        socket.bind((self.address, 0).into())?;
        let stream = socket.connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(self.tls.connect(ServerName::from(to.ip()), stream).await?)
    }

    /// One session: takes what waits, and leaves. `Some`: the node asks to come again after so long.
    async fn session(&mut self, mut stream: TlsStream<TcpStream>) -> anyhow::Result<Option<Duration>> {
        self.memory.attempt += 1;
        let hello = Hello {
            terminal: self.id,
            attempt: Attempt(self.memory.attempt),
            stream: self.memory.stream,
            last: self.memory.last,
            listening: Some(Listening { port: self.port, key: self.world.listening }),
            linger: Linger::AtOnce,
            min_urgency: Urgency::VeryLow,
            enrolment: None,
        };
        say(&mut stream, &TerminalFrame::Hello(hello)).await?;
        let mut buffer = BytesMut::new();
        loop {
            match hear(&mut stream, &mut buffer).await? {
                NodeFrame::Welcome(welcome) => {
                    self.memory.stream = welcome.stream;
                    self.memory.last = welcome.acked;
                    if welcome.pending == 0 {
                        say(&mut stream, &TerminalFrame::Goodbye(Ack { seq: welcome.acked })).await?;
                    }
                }
                NodeFrame::Push(push) => {
                    if push.seq > self.memory.last {
                        self.memory.last = push.seq;
                        // Nobody counts any more: the measurement is over.
                        let _ = self.world.received.send((self.number, Instant::now()));
                    }
                    if push.remaining == 0 {
                        say(&mut stream, &TerminalFrame::Goodbye(Ack { seq: push.seq })).await?;
                    }
                }
                NodeFrame::Ping(nonce) => say(&mut stream, &TerminalFrame::Pong(nonce)).await?,
                NodeFrame::Bye(Bye { reason: ByeReason::Done, .. }) => {
                    // The node closes when it has said so.
                    let _ = stream.shutdown().await;
                    return Ok(None);
                }
                NodeFrame::Bye(Bye { reason, retry_after }) => {
                    if let ByeReason::StaleAttempt(granted) = reason {
                        self.memory.attempt = granted.0;
                    }
                    return Ok(Some(Duration::from_millis(retry_after)));
                }
                NodeFrame::Gap(_) | NodeFrame::Pong(_) | NodeFrame::Anchor(_) | NodeFrame::Tried(_) => {}
            }
        }
    }
}

async fn say(stream: &mut TlsStream<TcpStream>, frame: &TerminalFrame) -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    stream.write_all(&bytes).await?;
    Ok(stream.flush().await?)
}

async fn hear(stream: &mut TlsStream<TcpStream>, buffer: &mut BytesMut) -> anyhow::Result<NodeFrame> {
    loop {
        if let Some(frame) = NodeFrame::take(buffer)? {
            return Ok(frame);
        }
        let read = tokio::time::timeout(SILENCE, stream.read_buf(buffer)).await;
        ensure!(read.context("the node is silent")?? > 0, "the node has closed");
    }
}
