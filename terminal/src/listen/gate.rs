//! The gate before the QUIC endpoint: drops every datagram that is not from the terminal's cluster, so that a
//! scanner, a stranger or a replay gets no answer at all, not even an error.
//!
//! A first packet passes if its destination connection id was made with the terminal's notify secret
//! (`wire::notification::first_cid`) and its nonce was not seen from another address. That admits its source for as
//! long as the exchange takes; whatever else that source sends goes to QUIC.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use reveille_protocol::wire::notification::check_first_cid;

/// How long an admitted source may speak: a handshake, a notification, its acknowledgement, the close.
const ADMITTED: Duration = Duration::from_secs(10);
/// Sources admitted at once.
const MAX_SOURCES: usize = 64;
/// Nonces remembered. The secret changes with each session, so these are notifications without a session between.
const MAX_NONCES: usize = 1024;

/// What came in on the notification socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ListenStats {
    /// Datagrams given to QUIC.
    pub passed: u64,
    /// Datagrams dropped without an answer: not from the cluster.
    pub strangers: u64,
    /// Datagrams dropped without an answer: a first packet seen before, from elsewhere.
    pub replays: u64,
}

/// Decides which datagrams pass.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<State>,
    passed: AtomicU64,
    strangers: AtomicU64,
    replays: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Of the last Welcome, and of the one before: its cluster may not know yet that the newer one arrived.
    secrets: [Option<[u8; 32]>; 2],
    nonces: VecDeque<(u64, SocketAddr)>,
    sources: VecDeque<(SocketAddr, Instant)>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} nonces, {} sources, secrets not shown", self.nonces.len(), self.sources.len())
    }
}

impl Gate {
    /// A Welcome brought a new secret.
    pub(crate) fn set_secret(&self, secret: [u8; 32]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.secrets[0] != Some(secret) {
            state.secrets = [Some(secret), state.secrets[0]];
        }
    }

    /// What came in so far.
    pub fn stats(&self) -> ListenStats {
        ListenStats {
            passed: self.passed.load(Ordering::Relaxed),
            strangers: self.strangers.load(Ordering::Relaxed),
            replays: self.replays.load(Ordering::Relaxed),
        }
    }

    fn passes(&self, datagram: &[u8], from: SocketAddr) -> bool {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let nonce = first_cid_of(datagram)
            .and_then(|cid| state.secrets.iter().flatten().find_map(|secret| check_first_cid(secret, cid)));
        let counter = match nonce {
            Some(nonce) => match state.nonces.iter().find(|(known, _)| *known == nonce) {
                Some((_, source)) if *source != from => &self.replays,
                Some(_) => &self.passed,
                None => {
                    if state.nonces.len() >= MAX_NONCES {
                        state.nonces.pop_front();
                    }
                    state.nonces.push_back((nonce, from));
                    if state.sources.len() >= MAX_SOURCES {
                        state.sources.pop_front();
                    }
                    state.sources.push_back((from, now + ADMITTED));
                    &self.passed
                }
            },
            None if state.sources.iter().any(|(source, until)| *source == from && *until > now) => {
                &self.passed
            }
            None => &self.strangers,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        std::ptr::eq(counter, &self.passed)
    }
}

/// The destination connection id of a QUIC v1 Initial or 0-RTT packet (RFC 9000 section 17.2).
fn first_cid_of(datagram: &[u8]) -> Option<&[u8]> {
    let (head, rest) = datagram.split_first_chunk::<6>()?;
    let [first, version @ .., length] = *head;
    let long_and_fixed = first & 0xc0 == 0xc0;
    let initial_or_0rtt = first & 0x30 <= 0x10;
    if !long_and_fixed || !initial_or_0rtt || version != [0, 0, 0, 1] {
        return None;
    }
    rest.get(..usize::from(length))
}

/// A socket behind the gate.
#[derive(Debug)]
pub(super) struct Gated {
    socket: Arc<dyn AsyncUdpSocket>,
    gate: Arc<Gate>,
}

impl Gated {
    pub(super) fn new(socket: Arc<dyn AsyncUdpSocket>, gate: Arc<Gate>) -> Gated {
        Gated { socket, gate }
    }

    /// Moves the datagrams of a buffer that pass to its front; the kernel may have joined several of one source
    /// (GRO), each `stride` bytes long but the last.
    fn filter(&self, buffer: &mut [u8], meta: &mut RecvMeta) {
        let stride = meta.stride.max(1);
        let (mut read, mut kept) = (0, 0);
        while read < meta.len {
            let end = (read + stride).min(meta.len);
            if self.gate.passes(&buffer[read..end], meta.addr) {
                buffer.copy_within(read..end, kept);
                kept += end - read;
            }
            read = end;
        }
        // quinn skips a buffer of length zero; returning no buffers at all would confuse its work limit.
        meta.len = kept;
    }
}

impl AsyncUdpSocket for Gated {
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
        let count = ready!(self.socket.poll_recv(context, buffers, metas))?;
        for (buffer, meta) in buffers.iter_mut().zip(metas.iter_mut()).take(count) {
            self.filter(buffer, meta);
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use reveille_protocol::wire::notification::first_cid;

    fn initial(cid: &[u8]) -> Vec<u8> {
        let mut packet = vec![0xc3, 0, 0, 0, 1, cid.len() as u8];
        packet.extend_from_slice(cid);
        packet.resize(1200, 0);
        packet
    }

    #[test]
    fn only_first_packets_of_the_cluster_and_what_follows_them_pass() {
        let gate = Gate::default();
        let (node, other): (SocketAddr, SocketAddr) =
            (([127, 0, 0, 1], 1).into(), ([127, 0, 0, 1], 2).into());
        let secret = [5; 32];
        let good = initial(&first_cid(&secret, 1));
        assert!(!gate.passes(&good, node), "before the first Welcome nothing passes");
        gate.set_secret(secret);
        assert!(!gate.passes(&[0x40; 50], node), "a short header of a stranger");
        assert!(!gate.passes(&initial(&[7; 20]), node), "a made-up connection id");
        let mut version = good.clone();
        version[4] = 2;
        assert!(!gate.passes(&version, node), "an unknown version would be answered by QUIC");
        assert!(!gate.passes(&[], node));
        assert!(gate.passes(&good, node));
        assert!(gate.passes(&good, node), "repeated by QUIC itself");
        assert!(gate.passes(&[0x40; 50], node), "the rest of the exchange");
        assert!(!gate.passes(&good, other), "replayed from elsewhere");
        assert!(!gate.passes(&[0x40; 50], other));
        gate.set_secret([6; 32]);
        gate.set_secret([7; 32]);
        assert!(!gate.passes(&initial(&first_cid(&secret, 2)), other), "of an epoch long over");
        let stats = gate.stats();
        assert_eq!((stats.passed, stats.replays), (3, 1));
    }
}
