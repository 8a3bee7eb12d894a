//! Notification listening: a QUIC endpoint in the server's role on one UDP socket. Idle, it costs a socket and
//! nothing else. Authenticates and answers notifications; what follows from one is not decided here.

mod binding;
mod gate;
mod networks;
pub mod sieve;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Endpoint, EndpointConfig, IdleTimeout, ServerConfig, TokioRuntime, TransportConfig};
use reveille_protocol::wire::notification::{Notification, NotificationAck};
use tokio::sync::{Semaphore, mpsc, watch};

pub(crate) use self::binding::{Binding, Told};
pub use self::gate::{Gate, ListenStats};
use crate::ground;
use crate::identity::Identity;
use crate::network::Watching;

/// Connections with notifications at once: more than one node tries only after a failover.
const CONNECTIONS: usize = 8;
/// From so many on an address must prove itself before the terminal does anything for it: its cluster's nodes do not all call
/// at once, but what was overheard can be sent again under any address.
const UNPROVEN: usize = CONNECTIONS / 2;
/// Bytes that are kept of connections that are not taken up yet, each and together: some packets of a first flight.
const BUFFERED: (u64, u64) = (8 * 1024, 32 * 1024);
/// Notifications that wait to be acted on; one is enough to connect.
const QUEUE: usize = 8;
/// A connection that carries a notification must be done within this.
const DEADLINE: Duration = Duration::from_secs(3);

/// The listening socket.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) notifications: mpsc::Receiver<Notification>,
    pub(crate) binding: Binding,
    gate: Arc<Gate>,
    address: SocketAddr,
    endpoint: Endpoint,
}

impl Listener {
    /// Binds the socket and starts to listen. Until a first session has brought the notify secret, nothing passes.
    /// `moved`: what is told when the device slept or came into another network.
    pub(crate) fn start(
        address: SocketAddr,
        identity: &Identity,
        state: &Path,
        watching: Watching,
        moved: watch::Sender<()>,
    ) -> io::Result<Listener> {
        let socket = ground::udp(address, None)?;
        let address = socket.local_addr()?;
        let gate = Arc::new(Gate::default());
        let binding = Binding::start(socket.clone(), gate.clone(), state, watching, moved);
        let socket = sieve::Sieved::new(socket, gate.clone());
        let crypto = QuicServerConfig::try_from(identity.server.clone()).map_err(io::Error::other)?;
        let mut server = ServerConfig::with_crypto(Arc::new(crypto));
        server
            .transport_config(Arc::new(one_datagram_each_way(DEADLINE)))
            .max_incoming(CONNECTIONS)
            .incoming_buffer_size(BUFFERED.0)
            .incoming_buffer_size_total(BUFFERED.1);
        let mut config = EndpointConfig::default();
        config.grease_quic_bit(false);
        let endpoint = Endpoint::new_with_abstract_socket(
            config,
            Some(server),
            Arc::new(socket),
            Arc::new(TokioRuntime),
        )?;
        let (queue, notifications) = mpsc::channel(QUEUE);
        tokio::spawn(accept(endpoint.clone(), queue, gate.clone()));
        Ok(Listener { notifications, binding, gate, address, endpoint })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn gate(&self) -> Arc<Gate> {
        self.gate.clone()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.endpoint.close(0u32.into(), b"");
    }
}

/// QUIC for a notification, at both ends: one datagram each way, no streams, little memory. `idle` ends a connection on
/// which nothing comes in.
pub fn one_datagram_each_way(idle: Duration) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(0u32.into())
        .max_concurrent_uni_streams(0u32.into())
        .datagram_receive_buffer_size(Some(8 * 1024))
        .datagram_send_buffer_size(8 * 1024)
        .initial_rtt(Duration::from_millis(100))
        .mtu_discovery_config(None)
        .max_idle_timeout(IdleTimeout::try_from(idle).ok());
    transport
}

async fn accept(endpoint: Endpoint, queue: mpsc::Sender<Notification>, gate: Arc<Gate>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    while let Some(incoming) = endpoint.accept().await {
        let Ok(permit) = permits.clone().try_acquire_owned() else {
            incoming.ignore();
            continue;
        };
        let crowded = permits.available_permits() < CONNECTIONS - UNPROVEN;
        if crowded && !incoming.remote_address_validated() && incoming.may_retry() {
            // One packet, shorter than what caused it (RFC 9000 section 8.1.2). It cannot be refused: that was asked.
            let _ = incoming.retry();
            continue;
        }
        let (queue, gate) = (queue.clone(), gate.clone());
        tokio::spawn(async move {
            if tokio::time::timeout(DEADLINE, answer(incoming, queue, &gate)).await.is_err() {
                tracing::debug!("a notification's connection took too long");
            }
            drop(permit);
        });
    }
}

/// Takes the notifications of one connection; each copy is acknowledged, because the acknowledgement of the one
/// before may be lost.
async fn answer(incoming: quinn::Incoming, queue: mpsc::Sender<Notification>, gate: &Gate) {
    let Ok(connecting) = incoming.accept() else { return };
    // With 0-RTT the notification is in the first flight, before the handshake is done.
    let connection = match connecting.into_0rtt() {
        Ok((connection, _)) => connection,
        Err(connecting) => match connecting.await {
            Ok(connection) => connection,
            Err(_) => return,
        },
    };
    let mut taken = None;
    while let Ok(datagram) = connection.read_datagram().await {
        let Ok(notification) = Notification::decode(&datagram) else { continue };
        let ack = NotificationAck { id: notification.id };
        // The node repeats until it hears this; a full buffer is a lost datagram.
        let _ = connection.send_datagram(ack.encode().into());
        gate.has_answered();
        if taken != Some(notification.id) {
            taken = Some(notification.id);
            // Full: enough wait already to make the terminal connect.
            let _ = queue.try_send(notification);
        }
    }
}

#[cfg(test)]
mod tests;
