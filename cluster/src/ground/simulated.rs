//! turmoil's TCP, and a log without a thread: virtual time would run on while a thread writes. A batch takes a time of its
//! own instead.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::Socket;
pub use turmoil::net::{TcpListener, TcpStream};

use crate::wal::disk::Disk;
use crate::wal::{Wal, WalConfig, WalError, Work};

/// What a disk takes for a batch.
const SYNC: Duration = Duration::from_millis(2);

pub(crate) async fn connect(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    TcpStream::connect(*addresses.first().ok_or(io::ErrorKind::AddrNotAvailable)?).await
}

/// Its sockets send at once, and lose nothing for long: what is cut off is held.
pub(crate) fn prepare(_: &TcpStream) -> io::Result<()> {
    Ok(())
}

/// Its streams have none, and close in order.
pub(crate) fn handle(_: &TcpStream) -> Option<Socket> {
    None
}

/// Opens the node's log on the real disk. A process that is killed in a batch has not written it.
pub(crate) fn open_log(disk: Arc<dyn Disk>, config: WalConfig) -> Result<Wal, WalError> {
    let pace = |work: Work| {
        tokio::spawn(async move {
            tokio::time::sleep(SYNC).await;
            work();
        });
        None
    };
    Wal::open_paced(disk, config, Box::new(pace))
}
