//! The system's sockets.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdSocket};
use std::sync::Arc;

use quinn::{AsyncUdpSocket, Runtime, TokioRuntime};
use socket2::SockRef;
pub use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// A socket for QUIC, and for what shares its port; with room for so many received bytes, as far as the system allows.
pub fn udp(at: SocketAddr, room: Option<usize>) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    let socket = StdSocket::bind(at)?;
    if let Some(bytes) = room {
        // It is no error to have less.
        let _ = SockRef::from(&socket).set_recv_buffer_size(bytes);
    }
    TokioRuntime.wrap_udp_socket(socket)
}

/// The device's own address on the way to a node. Only asks the routing table: connecting a UDP socket sends nothing.
pub fn own_address(node: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match node {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = StdSocket::bind((any, 0)).ok()?;
    socket.connect(node).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_address_is_the_one_towards_the_node() {
        let own = own_address(SocketAddr::from(([127, 0, 0, 1], 9)));
        assert_eq!(own, Some(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }
}
