//! One notification: dial the terminal's QUIC endpoint, send the datagram until it is acknowledged, close. No QUIC
//! connection outlives it.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    ClientConfig, Connection, ConnectionId, Endpoint, EndpointConfig, IdleTimeout, TokioRuntime,
    TransportConfig,
};
use reveille_protocol::id::{KeyFingerprint, TerminalId};
use reveille_protocol::wire::notification::{ALPN, Notification, NotificationAck, SERVER_NAME, first_cid};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientSessionMemoryCache, Resumption};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, SignatureScheme};

use crate::session::tls::fingerprint;

/// A dial is given up after this: Initials at 0, 0.3 and 0.9 s.
const DEADLINE: Duration = Duration::from_secs(2);
/// The datagram is repeated after this, doubling: QUIC does not repeat datagrams, and one that overtakes the
/// handshake is dropped.
const REPEAT: Duration = Duration::from_millis(200);
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
    /// The address is never dialled.
    Forbidden,
    /// The address's budget is used up.
    Budget,
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
            Outcome::Forbidden => "forbidden",
            Outcome::Budget => "budget",
        }
    }
}

/// Dials terminals from one UDP socket.
pub struct Dialler {
    endpoint: Endpoint,
    transport: Arc<TransportConfig>,
    identity: Identity,
    remembered: Cache<TerminalId, (KeyFingerprint, Arc<QuicClientConfig>)>,
}

/// What the node shows terminals, so that they know it for one of their cluster.
pub struct Identity {
    /// Its certificate.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
}

impl Dialler {
    /// A dialler on its own socket.
    pub fn new(bind: SocketAddr, identity: Identity) -> std::io::Result<Dialler> {
        let mut config = EndpointConfig::default();
        config.grease_quic_bit(false);
        let endpoint = Endpoint::new(config, None, UdpSocket::bind(bind)?, Arc::new(TokioRuntime))?;
        let mut transport = TransportConfig::default();
        transport
            .max_concurrent_bidi_streams(0u32.into())
            .max_concurrent_uni_streams(0u32.into())
            .datagram_receive_buffer_size(Some(8 * 1024))
            .datagram_send_buffer_size(8 * 1024)
            .initial_rtt(Duration::from_millis(100))
            .mtu_discovery_config(None)
            .max_idle_timeout(IdleTimeout::try_from(DEADLINE).ok());
        let remembered = Cache::new(REMEMBERED);
        Ok(Dialler { endpoint, transport: Arc::new(transport), identity, remembered })
    }

    /// Sends one notification.
    pub async fn dial(
        &self,
        terminal: TerminalId,
        address: SocketAddr,
        listening_key: KeyFingerprint,
        notify_secret: &[u8; 32],
        notification: &Notification,
    ) -> Outcome {
        let Ok(crypto) = self.crypto(terminal, listening_key) else { return Outcome::Socket };
        let mut config = ClientConfig::new(crypto);
        config.transport_config(self.transport.clone());
        let cid = first_cid(notify_secret, u64::from_le_bytes(crate::enrolment::random()));
        config.initial_dst_cid_provider(Arc::new(move || ConnectionId::new(&cid)));
        let connecting = match self.endpoint.connect_with(config, address, SERVER_NAME) {
            Ok(connecting) => connecting,
            Err(error) => {
                tracing::debug!(%terminal, %address, %error, "terminal cannot be dialled");
                return Outcome::Socket;
            }
        };
        let outcome = tokio::time::timeout(DEADLINE, async {
            // With a ticket from an earlier dial the datagram goes out with the first packet.
            let connection = match connecting.into_0rtt() {
                Ok((connection, _accepted)) => connection,
                Err(connecting) => match connecting.await {
                    Ok(connection) => connection,
                    Err(quinn::ConnectionError::TransportError(_)) => return Outcome::WrongKey,
                    Err(_) => return Outcome::Silence,
                },
            };
            let outcome = exchange(&connection, notification).await;
            connection.close(0u32.into(), b"");
            outcome
        });
        outcome.await.unwrap_or(Outcome::Silence)
    }

    /// The TLS settings for a terminal, kept with its ticket: rustls resumes only under the settings that got it.
    fn crypto(&self, terminal: TerminalId, key: KeyFingerprint) -> Result<Arc<QuicClientConfig>, Error> {
        if let Some((known, crypto)) = self.remembered.get(&terminal)
            && known == key
        {
            return Ok(crypto);
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let pinned = Pinned { key, provider: provider.clone() };
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(pinned))
            .with_client_auth_cert(self.identity.chain.clone(), self.identity.key.clone_key())?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        tls.enable_early_data = true;
        tls.resumption = Resumption::store(Arc::new(ClientSessionMemoryCache::new(1)));
        let crypto = QuicClientConfig::try_from(tls).map_err(|error| Error::General(error.to_string()))?;
        let crypto = Arc::new(crypto);
        self.remembered.insert(terminal, (key, crypto.clone()));
        Ok(crypto)
    }
}

/// Sends the datagram until its acknowledgement comes.
async fn exchange(connection: &Connection, notification: &Notification) -> Outcome {
    let datagram: bytes::Bytes = notification.encode().into();
    let mut repeat = REPEAT;
    loop {
        if connection.send_datagram(datagram.clone()).is_err() && connection.close_reason().is_some() {
            return Outcome::Silence;
        }
        let answer = tokio::time::timeout(repeat, connection.read_datagram()).await;
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

/// Accepts exactly one key, whatever certificate it comes in.
#[derive(Debug)]
struct Pinned {
    key: KeyFingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match fingerprint(end_entity) == Some(self.key) {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(Error::General("not the key that the terminal registered".to_owned())),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("QUIC speaks TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
