//! One notification: dial the terminal's QUIC endpoint, send the datagram until it is acknowledged, close. No QUIC
//! connection outlives it.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use futures::FutureExt;
use futures::future::Shared;
use moka::sync::Cache;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    AsyncUdpSocket, ClientConfig, Connection, ConnectionId, Endpoint, EndpointConfig, TokioRuntime,
    TransportConfig, ZeroRttAccepted,
};
use reveille_protocol::id::{KeyFingerprint, TerminalId};
use reveille_protocol::wire::notification::{ALPN, Notification, NotificationAck, SERVER_NAME, first_cid};
use reveille_protocol::wire::peer::{Notified, Why};
use rustls::client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{Error, NamedGroup};
use tokio::sync::Notify;

use reveille_terminal::ground;
use reveille_terminal::identity::provider;
use reveille_terminal::listen::one_datagram_each_way;

use crate::bare_key::BareKey;
use crate::telemetry::Count;

/// A dial is given up after this: Initials at 0, 0.3 and 0.9 s.
const DEADLINE: Duration = Duration::from_secs(2);
/// The datagram is repeated after this, doubling: QUIC does not repeat datagrams, and one that overtakes the
/// handshake is dropped.
const REPEAT: Duration = Duration::from_millis(200);
/// An answered connection stays open this long for the terminal's next ticket, which comes a round trip after the answer
/// to a 0-RTT notification. Closed at once, every second notification would be a full handshake.
const TICKET_WAIT: Duration = Duration::from_millis(500);
/// It only dials: who sends it a packet of a connection that it does not have is a stranger, or a terminal that is too late.
/// Neither needs the stateless reset that QUIC would answer, so one an hour is let through.
const RESETS: Duration = Duration::from_secs(3600);
/// Terminals whose TLS settings and session tickets are kept for 0-RTT; a few kilobytes each.
const REMEMBERED: u64 = 4096;

/// How a notification ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The terminal acknowledged it.
    Answered,
    /// Nothing came back in time.
    Silence,
    /// Something answered, but not with the terminal's key.
    WrongKey,
    /// The socket refused.
    Socket,
    /// The terminal has no address, or its proof has been rotated out.
    NoWay,
    /// Nothing was heard of the terminal's binding lately: the order waits for its next keepalive.
    NoBinding,
    /// The address is never dialled.
    Forbidden,
    /// The address has had what it gets for now.
    Budget,
    /// Its prefix has, others there had their turn just now; or the terminal is notified too often.
    Busy,
}

impl Outcome {
    /// Its label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Outcome::Answered => "answered",
            Outcome::Silence => "silence",
            Outcome::WrongKey => "wrong_key",
            Outcome::Socket => "socket",
            Outcome::NoWay => "no_way",
            Outcome::NoBinding => "no_binding",
            Outcome::Forbidden => "forbidden",
            Outcome::Budget => "budget",
            Outcome::Busy => "busy",
        }
    }

    /// What the shard's leader is told.
    pub fn told(self) -> Notified {
        match self {
            Outcome::Answered => Notified::Answered,
            Outcome::Busy => Notified::NotTried,
            // A step of the ladder all the same: who claims another's address is not to be asked about each second.
            Outcome::Budget => Notified::Unanswered(Why::Budget),
            Outcome::Silence => Notified::Unanswered(Why::NoAnswer),
            Outcome::WrongKey => Notified::Unanswered(Why::WrongKey),
            Outcome::NoBinding => Notified::Unanswered(Why::NoBinding),
            Outcome::NoWay => Notified::Unanswered(Why::NoProof),
            Outcome::Forbidden => Notified::Unanswered(Why::Forbidden),
            Outcome::Socket => Notified::Unanswered(Why::Socket),
        }
    }
}

/// Dials terminals from one UDP socket.
pub struct Dialler {
    endpoint: Endpoint,
    transport: Arc<TransportConfig>,
    /// What is the same for all terminals.
    tls: RwLock<rustls::ClientConfig>,
    remembered: Cache<TerminalId, Remembered>,
    repeat: Duration,
}

/// What is kept of a terminal between two dials.
#[derive(Clone)]
struct Remembered {
    key: KeyFingerprint,
    /// rustls resumes only under the settings that got the ticket.
    crypto: Arc<QuicClientConfig>,
    tickets: Arc<Ticket>,
}

/// How a notification that was answered went out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handshake {
    /// With the first packet (0-RTT).
    Early,
    /// With the first packet, by a ticket that the terminal did not know any more; and again after a full handshake.
    Refused,
    /// After a full handshake: there was no ticket.
    Full,
}

impl Handshake {
    /// Its label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Handshake::Early => "early",
            Handshake::Refused => "refused",
            Handshake::Full => "full",
        }
    }
}

/// A connection whose notification is answered; it is yet to be closed.
pub struct Answered {
    connection: Connection,
    /// It went out with the first packet; whether the terminal took it as that.
    early: Option<Shared<ZeroRttAccepted>>,
    tickets: Arc<Ticket>,
}

impl Answered {
    /// Waits for the terminal's next ticket, then closes.
    pub async fn close(self) -> Handshake {
        // Without it the next dial is a full handshake.
        let _ = tokio::time::timeout(TICKET_WAIT, self.tickets.arrives()).await;
        let handshake = match self.early {
            None => Handshake::Full,
            // Known since the handshake, which is over or has failed by now.
            Some(accepted) => match tokio::time::timeout(TICKET_WAIT, accepted).await {
                Ok(true) => Handshake::Early,
                Ok(false) | Err(_) => Handshake::Refused,
            },
        };
        Count::NotificationHandshakes.one(handshake.label());
        self.connection.close(0u32.into(), b"");
        handshake
    }
}

/// What the node shows terminals, so that they know it for one of their cluster.
pub struct Identity {
    /// Its certificate.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
}

impl Clone for Identity {
    fn clone(&self) -> Identity {
        Identity { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

impl Dialler {
    /// A dialler on a socket of its own.
    pub fn new(bind: SocketAddr, identity: Identity) -> std::io::Result<Dialler> {
        Dialler::on(ground::udp(bind, None)?, identity)
    }

    /// A dialler on a socket that also takes something else.
    pub(super) fn over(socket: impl AsyncUdpSocket, identity: Identity) -> std::io::Result<Dialler> {
        Dialler::on(Arc::new(socket), identity)
    }

    fn on(socket: Arc<dyn AsyncUdpSocket>, identity: Identity) -> std::io::Result<Dialler> {
        let mut config = EndpointConfig::default();
        // Else the first byte would not tell QUIC from STUN (RFC 9443).
        config.grease_quic_bit(false).min_reset_interval(RESETS);
        let endpoint = Endpoint::new_with_abstract_socket(config, None, socket, Arc::new(TokioRuntime))?;
        let transport = Arc::new(one_datagram_each_way(DEADLINE));
        let tls = RwLock::new(shown(identity).map_err(std::io::Error::other)?);
        let remembered = Cache::new(REMEMBERED);
        Ok(Dialler { endpoint, transport, tls, remembered, repeat: REPEAT })
    }

    /// One that repeats nothing by the clock.
    #[cfg(test)]
    pub(super) fn without_repeats(self) -> Dialler {
        Dialler { repeat: DEADLINE, ..self }
    }

    /// Terminals are shown this from now on.
    pub fn set_identity(&self, identity: Identity) {
        match shown(identity) {
            Ok(tls) => {
                *self.tls.write().unwrap_or_else(PoisonError::into_inner) = tls;
                self.remembered.invalidate_all();
            }
            // Whoever reads certificates checks that they fit their key.
            Err(error) => {
                tracing::error!(%error, "terminals are shown the former certificate: the new one is no use")
            }
        }
    }

    /// Sends one notification. An answered connection is the caller's to close, after it has told of the answer.
    pub async fn dial(
        &self,
        terminal: TerminalId,
        address: SocketAddr,
        listening_key: KeyFingerprint,
        notify_secret: &[u8; 32],
        notification: &Notification,
    ) -> Result<Answered, Outcome> {
        let (config, tickets) =
            self.settings(terminal, listening_key, notify_secret).map_err(|_| Outcome::Socket)?;
        let connecting = match self.endpoint.connect_with(config, address, SERVER_NAME) {
            Ok(connecting) => connecting,
            Err(error) => {
                tracing::debug!(%terminal, %address, %error, "terminal cannot be dialled");
                return Err(Outcome::Socket);
            }
        };
        let dialled = tokio::time::timeout(DEADLINE, async {
            // With a ticket from an earlier dial the datagram goes out with the first packet.
            let (connection, early) = match connecting.into_0rtt() {
                Ok((connection, accepted)) => (connection, Some(accepted.shared())),
                Err(connecting) => match connecting.await {
                    Ok(connection) => (connection, None),
                    Err(quinn::ConnectionError::TransportError(_)) => return Err(Outcome::WrongKey),
                    Err(_) => return Err(Outcome::Silence),
                },
            };
            match exchange(&connection, early.clone(), notification, self.repeat).await {
                Outcome::Answered => Ok(Answered { connection, early, tickets }),
                failed => Err(failed),
            }
        });
        dialled.await.unwrap_or(Err(Outcome::Silence))
    }

    /// What a terminal is dialled with, and where its tickets go.
    pub(crate) fn settings(
        &self,
        terminal: TerminalId,
        listening_key: KeyFingerprint,
        notify_secret: &[u8; 32],
    ) -> Result<(ClientConfig, Arc<Ticket>), Error> {
        let Remembered { crypto, tickets, .. } = self.remembered(terminal, listening_key)?;
        let mut config = ClientConfig::new(crypto);
        config.transport_config(self.transport.clone());
        let cid = first_cid(notify_secret, u64::from_le_bytes(crate::random::random()));
        config.initial_dst_cid_provider(Arc::new(move || ConnectionId::new(&cid)));
        Ok((config, tickets))
    }

    /// The TLS settings for a terminal, with its ticket.
    fn remembered(&self, terminal: TerminalId, key: KeyFingerprint) -> Result<Remembered, Error> {
        if let Some(remembered) = self.remembered.get(&terminal).filter(|known| known.key == key) {
            return Ok(remembered);
        }
        let mut tls = self.tls.read().unwrap_or_else(PoisonError::into_inner).clone();
        let only = BareKey::exactly(key, tls.crypto_provider().clone());
        tls.dangerous().set_certificate_verifier(only);
        let tickets = Arc::new(Ticket::default());
        tls.resumption = Resumption::store(tickets.clone());
        let crypto = QuicClientConfig::try_from(tls).map_err(|error| Error::General(error.to_string()))?;
        let remembered = Remembered { key, crypto: Arc::new(crypto), tickets };
        self.remembered.insert(terminal, remembered.clone());
        Ok(remembered)
    }
}

/// TLS with a terminal, but for the terminal's own key: reading a private key takes as long as a signature.
fn shown(identity: Identity) -> Result<rustls::ClientConfig, Error> {
    let provider = provider();
    // None; each terminal's takes its place.
    let nobody = BareKey::exactly(KeyFingerprint([0; 32]), provider.clone());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(nobody)
        .with_client_auth_cert(identity.chain, identity.key)?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.enable_early_data = true;
    Ok(tls)
}

/// The latest ticket of one terminal. A ticket is used once (RFC 8446 appendix C.4).
#[derive(Debug, Default)]
pub(crate) struct Ticket {
    held: Mutex<(Option<NamedGroup>, Option<Tls13ClientSessionValue>)>,
    arrived: Notify,
}

impl Ticket {
    fn held(&self) -> MutexGuard<'_, (Option<NamedGroup>, Option<Tls13ClientSessionValue>)> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn arrives(&self) {
        loop {
            let arrived = self.arrived.notified();
            if self.held().1.is_some() {
                return;
            }
            arrived.await;
        }
    }
}

impl ClientSessionStore for Ticket {
    fn set_kx_hint(&self, _server: ServerName<'static>, group: NamedGroup) {
        self.held().0 = Some(group);
    }

    fn kx_hint(&self, _server: &ServerName<'_>) -> Option<NamedGroup> {
        self.held().0
    }

    fn set_tls12_session(&self, _server: ServerName<'static>, _value: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _server: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _server: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _server: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.held().1 = Some(value);
        self.arrived.notify_waiters();
    }

    fn take_tls13_ticket(&self, _server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.held().1.take()
    }
}

/// Sends the datagram until its acknowledgement comes; `repeat`: after so long for the first time.
async fn exchange(
    connection: &Connection,
    early: Option<Shared<ZeroRttAccepted>>,
    notification: &Notification,
    mut repeat: Duration,
) -> Outcome {
    let datagram: bytes::Bytes = notification.encode().into();
    // A terminal that was started again does not know the ticket, and what came with it is lost: QUIC goes on with a
    // full handshake, but without the datagram.
    let mut refused = pin!(async {
        let taken = match early {
            Some(accepted) => accepted.await,
            None => true,
        };
        if taken {
            std::future::pending().await
        }
    });
    let mut again = false;
    loop {
        if connection.send_datagram(datagram.clone()).is_err() && connection.close_reason().is_some() {
            return Outcome::Silence;
        }
        let answer = tokio::time::timeout(repeat, connection.read_datagram());
        let answer = tokio::select! {
            answer = answer => answer,
            () = &mut refused, if !again => {
                again = true;
                continue;
            }
        };
        match answer {
            Ok(Ok(bytes)) => {
                if NotificationAck::decode(&bytes).is_ok_and(|ack| ack.id == notification.id) {
                    return Outcome::Answered;
                }
            }
            Ok(Err(quinn::ConnectionError::TransportError(_))) => return Outcome::WrongKey,
            Ok(Err(_)) => return Outcome::Silence,
            Err(_) => repeat *= 2,
        }
    }
}

#[cfg(test)]
mod tests;
