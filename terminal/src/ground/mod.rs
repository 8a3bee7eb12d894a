//! What a terminal, and a node's notifier, have of the network: the system's sockets, or with the feature `turmoil`, which only
//! tests have, a simulated one's. Knows neither QUIC nor sessions.

#[cfg(not(feature = "turmoil"))]
mod real;
#[cfg(feature = "turmoil")]
mod simulated;

#[cfg(not(feature = "turmoil"))]
pub use self::real::{TcpListener, TcpStream, UdpSocket, own_address, udp};
#[cfg(feature = "turmoil")]
pub use self::simulated::{TcpListener, TcpStream, UdpSocket, own_address, set_loss, udp};
