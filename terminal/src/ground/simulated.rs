//! The sockets of turmoil's network, and QUIC's socket over one of them. Everything in one thread; what is lost is drawn from a
//! seed.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use futures::FutureExt;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinHandle;
pub use turmoil::net::{TcpListener, TcpStream, UdpSocket};

/// Datagrams that wait to be read; the next ones are lost.
const ROOM: usize = 1024;
/// A datagram of Ethernet.
const LONGEST: usize = 1500;

thread_local! {
    static LOSS: RefCell<Option<(f64, SmallRng)>> = const { RefCell::new(None) };
}

/// From now on this share of the datagrams that this thread's hosts send by [`udp`] is lost, by the seed; `0.0`: none.
pub fn set_loss(share: f64, seed: u64) {
    let loss = (share > 0.0).then(|| (share, SmallRng::seed_from_u64(seed)));
    LOSS.with(|known| *known.borrow_mut() = loss);
}

fn is_lost() -> bool {
    LOSS.with(|known| known.borrow_mut().as_mut().is_some_and(|(share, dice)| dice.random::<f64>() < *share))
}

/// A socket for QUIC, and for what shares its port. Must be called on a host of the simulation.
pub fn udp(at: SocketAddr, _room: Option<usize>) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    // It is bound when it is first polled.
    let bound = UdpSocket::bind(at).now_or_never();
    let socket = Arc::new(bound.unwrap_or_else(|| Err(io::ErrorKind::WouldBlock.into()))?);
    let address = socket.local_addr()?;
    let received = Arc::new(Received::default());
    let (sends, into) = (Arc::downgrade(&socket), received.clone());
    let reading = tokio::spawn(async move {
        let mut buffer = [0; LONGEST];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            into.put(&buffer[..length], from);
        }
    });
    Ok(Arc::new(Datagrams { address, sends, received, reading }))
}

/// The device's own address: no host of the simulation has two.
pub fn own_address(_node: SocketAddr) -> Option<IpAddr> {
    None
}

/// The socket itself belongs to the task that reads it. So it is closed with its host's process, whoever still holds this.
struct Datagrams {
    address: SocketAddr,
    sends: Weak<UdpSocket>,
    received: Arc<Received>,
    reading: JoinHandle<()>,
}

#[derive(Default)]
struct Received(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    datagrams: VecDeque<(Vec<u8>, SocketAddr)>,
    reader: Option<Waker>,
}

impl Received {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, datagram: &[u8], from: SocketAddr) {
        let mut waiting = self.lock();
        if waiting.datagrams.len() < ROOM {
            waiting.datagrams.push_back((datagram.to_vec(), from));
        }
        if let Some(reader) = waiting.reader.take() {
            reader.wake();
        }
    }
}

impl fmt::Debug for Datagrams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "simulated UDP at {}", self.address)
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl AsyncUdpSocket for Datagrams {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let socket = self.sends.upgrade().ok_or(io::ErrorKind::NotConnected)?;
        for datagram in transmit.contents.chunks(transmit.segment_size.unwrap_or(LONGEST).max(1)) {
            if !is_lost() {
                socket.try_send_to(datagram, transmit.destination)?;
            }
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut waiting = self.received.lock();
        let mut count = 0;
        for (buffer, meta) in buffers.iter_mut().zip(metas) {
            let Some((datagram, from)) = waiting.datagrams.pop_front() else { break };
            let length = datagram.len().min(buffer.len());
            buffer[..length].copy_from_slice(&datagram[..length]);
            *meta = RecvMeta { addr: from, len: length, stride: length, ecn: None, dst_ip: None };
            count += 1;
        }
        if count > 0 {
            return Poll::Ready(Ok(count));
        }
        waiting.reader = Some(context.waker().clone());
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// A simulated network takes every datagram.
#[derive(Debug)]
struct Writable;

impl UdpPoller for Writable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
