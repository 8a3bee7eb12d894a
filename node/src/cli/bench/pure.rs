//! The yardstick of `bench notify`: the same exchange, with the same keys and settings, by quinn-proto alone, from memory to
//! memory on one thread. No sockets, no runtime, nothing else of ours.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use bytes::{Bytes, BytesMut};
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Endpoint, EndpointConfig, ServerConfig,
};
use reveille_protocol::wire::notification::SERVER_NAME;

const NODE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 2000);
const TERMINAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 2001);
/// Flights of an exchange, both ways; it has five. More would be a loop.
const FLIGHTS: usize = 20;

/// What came of one exchange.
pub(super) struct Exchanged {
    /// What the node's end took, by the clock.
    pub(super) node: Duration,
    /// The notification went out with the first packet, and was taken.
    pub(super) early: bool,
}

/// One end.
struct End {
    endpoint: Endpoint,
    peer: SocketAddr,
    connection: Option<(ConnectionHandle, Connection)>,
    took: Duration,
}

impl End {
    fn new(server: Option<Arc<ServerConfig>>, peer: SocketAddr) -> End {
        let mut config = EndpointConfig::default();
        config.grease_quic_bit(false);
        let endpoint = Endpoint::new(Arc::new(config), server, false, None);
        End { endpoint, peer, connection: None, took: Duration::ZERO }
    }

    /// Takes datagrams in, lets the application at the connection, and gives datagrams out.
    fn turn(
        &mut self,
        came: Vec<BytesMut>,
        application: impl FnOnce(&mut Connection),
    ) -> anyhow::Result<Vec<BytesMut>> {
        let now = Instant::now();
        let mut buffer = Vec::new();
        for datagram in came {
            match self.endpoint.handle(now, self.peer, None, None, datagram, &mut buffer) {
                Some(DatagramEvent::NewConnection(incoming)) => {
                    let accepted = self.endpoint.accept(incoming, now, &mut buffer, None);
                    self.connection = Some(accepted.map_err(|error| anyhow!(error.cause))?);
                }
                Some(DatagramEvent::ConnectionEvent(_, event)) => {
                    let (_, connection) = self.connection.as_mut().context("a datagram of no connection")?;
                    connection.handle_event(event);
                }
                Some(DatagramEvent::Response(_)) | None => {}
            }
        }
        let (handle, connection) = self.connection.as_mut().context("no connection came")?;
        while let Some(event) = connection.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(*handle, event) {
                connection.handle_event(event);
            }
        }
        while connection.poll().is_some() {}
        application(connection);
        let mut goes = Vec::new();
        while let Some(transmit) = connection.poll_transmit(now, FLIGHTS, &mut buffer) {
            let segment = transmit.segment_size.unwrap_or(transmit.size);
            goes.extend(buffer[..transmit.size].chunks(segment).map(BytesMut::from));
            buffer.clear();
        }
        self.took += now.elapsed();
        Ok(goes)
    }
}

/// One notification and its acknowledgement; with the terminal's next ticket the node closes.
pub(super) fn exchange(
    node: ClientConfig,
    terminal: Arc<ServerConfig>,
    notification: Bytes,
    acknowledgement: Bytes,
) -> anyhow::Result<Exchanged> {
    let began = Instant::now();
    let mut dialler = End::new(None, TERMINAL);
    dialler.connection = Some(dialler.endpoint.connect(began, node, TERMINAL, SERVER_NAME)?);
    dialler.took = began.elapsed();
    let mut listener = End::new(Some(terminal), NODE);
    let (mut notification, mut acknowledged, mut early) = (Some(notification), false, false);
    let mut back = Vec::new();
    for _ in 0..FLIGHTS {
        let there = dialler.turn(back, |connection| {
            if (connection.has_0rtt() || !connection.is_handshaking())
                && let Some(notification) = notification.take()
            {
                // Not taken, it is not acknowledged, and that is found below.
                let _ = connection.datagrams().send(notification, false);
            }
            acknowledged |= connection.datagrams().recv().is_some();
            early = connection.accepted_0rtt();
        })?;
        if there.is_empty() {
            break;
        }
        back = listener.turn(there, |connection| {
            while connection.datagrams().recv().is_some() {
                let _ = connection.datagrams().send(acknowledgement.clone(), false);
            }
        })?;
    }
    ensure!(acknowledged, "the notification was not acknowledged");
    let close = dialler.turn(Vec::new(), |connection| {
        connection.close(Instant::now(), 0u32.into(), Bytes::new());
    })?;
    listener.turn(close, |_| {})?;
    Ok(Exchanged { node: dialler.took, early })
}
