//! The system's TCP, and a log with a thread of its own.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use socket2::{SockRef, Socket, TcpKeepalive};
pub use tokio::net::{TcpListener, TcpStream};

use crate::link::limits::SILENCE;
use crate::wal::disk::Disk;
use crate::wal::{Wal, WalConfig, WalError};

/// Connects to the first of the addresses that answers.
pub(crate) async fn connect(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    TcpStream::connect(addresses).await
}

/// Sets a socket up: frames go at once, and a peer that is gone or cut off is noticed.
pub(crate) fn prepare(stream: &TcpStream) -> io::Result<()> {
    // Without it a small frame waits for the acknowledgement of the one before.
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(SILENCE))?;
    let probe = SILENCE / 3;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(probe).with_interval(probe).with_retries(2))
}

/// A second handle of a socket, so that it can be told how to close after its stream is gone. Without one, for want of
/// descriptors, it closes as others do.
pub(crate) fn handle(stream: &TcpStream) -> Option<Socket> {
    SockRef::from(stream).try_clone().ok()
}

/// Opens the node's log.
pub(crate) fn open_log(disk: Arc<dyn Disk>, config: WalConfig) -> Result<Wal, WalError> {
    Wal::open(disk, config)
}
