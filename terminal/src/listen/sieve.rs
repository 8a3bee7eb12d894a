//! A UDP socket that gives QUIC only the datagrams that a sieve lets pass: what shares the port with QUIC is taken out
//! here. Knows nothing of what it sieves.

use std::fmt::Debug;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::time::{Instant, Sleep, sleep};

/// A socket that was read less than this ago is busy.
const BUSY: Duration = Duration::from_millis(2);
/// What comes to a busy socket is left to gather for this long: else each datagram wakes a thread, which costs several times
/// what the datagram does. QUIC waits as long, but only where nothing of it came with the last datagrams.
const REST: Duration = Duration::from_millis(1);

/// Looks at each datagram that comes in. Called under the endpoint's lock: it must not block.
pub trait Sieve: Debug + Send + Sync + 'static {
    /// Is it for QUIC? What is not has been dealt with.
    fn passes(&self, datagram: &[u8], from: SocketAddr) -> bool;
}

/// A socket behind a sieve.
#[derive(Debug)]
pub struct Sieved<S> {
    socket: Arc<dyn AsyncUdpSocket>,
    sieve: Arc<S>,
    pace: Mutex<Pace>,
}

/// How often the socket is read.
#[derive(Debug, Default)]
struct Pace {
    read: Option<Instant>,
    rest: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    /// Waits out a rest.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Some(rest) = &mut self.rest {
            ready!(rest.as_mut().poll(context));
            self.rest = None;
        }
        Poll::Ready(())
    }

    /// The socket was read; `dry`: it has no more, and nothing that it had was for QUIC.
    fn has_read(&mut self, dry: bool) {
        let now = Instant::now();
        let before = self.read.replace(now);
        let busy = before.is_some_and(|before| now - before < BUSY);
        self.rest = (dry && busy).then(|| Box::pin(sleep(REST)));
    }
}

impl<S: Sieve> Sieved<S> {
    /// Puts the sieve before the socket.
    pub fn new(socket: Arc<dyn AsyncUdpSocket>, sieve: Arc<S>) -> Sieved<S> {
        Sieved { socket, sieve, pace: Mutex::default() }
    }

    /// Moves the datagrams of a buffer that pass to its front; the kernel may have joined several of one source
    /// (GRO), each `stride` bytes long but the last.
    fn filter(&self, buffer: &mut [u8], meta: &mut RecvMeta) {
        let stride = meta.stride.max(1);
        let (mut read, mut kept) = (0, 0);
        while read < meta.len {
            let end = (read + stride).min(meta.len);
            if self.sieve.passes(&buffer[read..end], meta.addr) {
                buffer.copy_within(read..end, kept);
                kept += end - read;
            }
            read = end;
        }
        // quinn skips a buffer of length zero; returning no buffers at all would confuse its work limit.
        meta.len = kept;
    }
}

impl<S: Sieve> AsyncUdpSocket for Sieved<S> {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.socket.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.socket.try_send(transmit)
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        ready!(pace.poll(context));
        let count = ready!(self.socket.poll_recv(context, buffers, metas))?;
        let room = buffers.len();
        for (buffer, meta) in buffers.iter_mut().zip(metas.iter_mut()).take(count) {
            self.filter(buffer, meta);
        }
        let passed = metas.iter().take(count).any(|meta| meta.len > 0);
        pace.has_read(!passed && count < room);
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}
