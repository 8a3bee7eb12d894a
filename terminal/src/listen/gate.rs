//! The gate before the QUIC endpoint: drops every datagram that is not from the terminal's cluster, so that a
//! scanner, a stranger or a replay gets no answer at all, not even an error.
//!
//! A first packet passes if its destination connection id was made with the terminal's notify secret
//! (`wire::notification::first_cid`) and its nonce was not seen from another address, or long ago. That admits its source
//! for as long as the exchange takes; whatever else that source sends goes to QUIC. What the anchor answers to keepalives
//! goes to the binding, which checks its seal.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reveille_protocol::wire::notification::check_first_cid;
use reveille_protocol::wire::stun;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::sieve::Sieve;

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
    /// Datagrams dropped without an answer: a first packet seen before, from elsewhere or more than 10 s ago.
    pub replays: u64,
    /// Datagrams of the anchor's, given to the binding.
    pub bindings: u64,
    /// Notifications after which the node knew of no push.
    pub pointless: u64,
    /// Notifications that waited because several before were pointless.
    pub held: u64,
}

/// Decides which datagrams pass.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<State>,
    passed: AtomicU64,
    strangers: AtomicU64,
    replays: AtomicU64,
    bindings: AtomicU64,
    pointless: AtomicU64,
    held: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Of the last Welcome, and of the one before: its cluster may not know yet that the newer one arrived.
    secrets: [Option<[u8; 32]>; 2],
    /// Nonce, the source whose first packet had it, and when that came.
    nonces: VecDeque<(u64, SocketAddr, Instant)>,
    sources: VecDeque<(SocketAddr, Instant)>,
    anchor: Option<(SocketAddr, mpsc::Sender<Bytes>)>,
    /// When the last notification was answered.
    notified: Option<SystemTime>,
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
            bindings: self.bindings.load(Ordering::Relaxed),
            pointless: self.pointless.load(Ordering::Relaxed),
            held: self.held.load(Ordering::Relaxed),
        }
    }

    /// A notification brought nothing.
    pub(crate) fn count_pointless(&self) {
        self.pointless.fetch_add(1, Ordering::Relaxed);
    }

    /// A notification waits.
    pub(crate) fn count_held(&self) {
        self.held.fetch_add(1, Ordering::Relaxed);
    }

    /// A notification was answered, or the anchor said that one waits.
    pub(super) fn has_answered(&self) {
        let now = SystemTime::now();
        self.state.lock().unwrap_or_else(PoisonError::into_inner).notified = Some(now);
    }

    /// When that was the last time.
    pub(crate) fn notified(&self) -> Option<SystemTime> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).notified
    }

    /// Where the anchor's answers come from, and who takes them.
    pub(super) fn set_anchor(&self, anchor: Option<(SocketAddr, mpsc::Sender<Bytes>)>) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).anchor = anchor;
    }

    /// For the binding, if it is from its anchor.
    fn binding(&self, datagram: &[u8], from: SocketAddr) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let counter = match &state.anchor {
            Some((anchor, answers)) if *anchor == from => {
                // Full: more than an anchor has to say; a keepalive is repeated.
                let _ = answers.try_send(Bytes::copy_from_slice(datagram));
                &self.bindings
            }
            _ => &self.strangers,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn admits(&self, now: Instant, datagram: &[u8], from: SocketAddr) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let nonce = first_cid_of(datagram)
            .and_then(|cid| state.secrets.iter().flatten().find_map(|secret| check_first_cid(secret, cid)));
        let counter = match nonce {
            Some(nonce) => match state.nonces.iter().find(|(known, ..)| *known == nonce) {
                Some((_, source, since)) if *source != from || now >= *since + ADMITTED => &self.replays,
                Some(_) => &self.passed,
                None => {
                    if state.nonces.len() >= MAX_NONCES {
                        state.nonces.pop_front();
                    }
                    state.nonces.push_back((nonce, from, now));
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

impl Sieve for Gate {
    fn passes(&self, datagram: &[u8], from: SocketAddr) -> bool {
        if stun::is_stun(datagram) {
            self.binding(datagram, from);
            return false;
        }
        self.admits(Instant::now(), datagram, from)
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
        let (gate, now) = (Gate::default(), Instant::now());
        let (node, other): (SocketAddr, SocketAddr) =
            (([127, 0, 0, 1], 1).into(), ([127, 0, 0, 1], 2).into());
        let secret = [5; 32];
        let good = initial(&first_cid(&secret, 1));
        assert!(!gate.admits(now, &good, node), "before the first Welcome nothing passes");
        gate.set_secret(secret);
        assert!(!gate.admits(now, &[0x40; 50], node), "a short header of a stranger");
        assert!(!gate.admits(now, &initial(&[7; 20]), node), "a made-up connection id");
        let mut version = good.clone();
        version[4] = 2;
        assert!(!gate.admits(now, &version, node), "an unknown version would be answered by QUIC");
        assert!(!gate.admits(now, &[], node));
        assert!(gate.admits(now, &good, node));
        assert!(gate.admits(now, &good, node), "repeated by QUIC itself");
        assert!(gate.admits(now, &[0x40; 50], node), "the rest of the exchange");
        assert!(!gate.admits(now, &good, other), "replayed from elsewhere");
        assert!(!gate.admits(now, &[0x40; 50], other));
        assert!(gate.admits(now + ADMITTED - Duration::from_millis(1), &good, node));
        let later = now + ADMITTED;
        assert!(!gate.admits(later, &good, node), "replayed from there, after the exchange");
        assert!(!gate.admits(later, &[0x40; 50], node));
        gate.set_secret([6; 32]);
        gate.set_secret([7; 32]);
        assert!(!gate.admits(now, &initial(&first_cid(&secret, 2)), other), "of an epoch long over");
        let stats = gate.stats();
        assert_eq!((stats.passed, stats.replays), (4, 2));
    }
}
