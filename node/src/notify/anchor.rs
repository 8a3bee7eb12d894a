//! The anchor: one UDP socket that takes keepalives and from which pinned terminals are dialled, through the very bindings
//! that their keepalives hold open. Who is known, and what is answered, is `reveille_protocol::anchor::table`'s;
//! that nothing is while the node is cut off is decided here.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use metrics::Counter;
use quinn::AsyncUdpSocket;
use quinn::udp::Transmit;
use reveille_protocol::anchor::table::{Anchor, Answer};
use reveille_protocol::directory::Directory;
use reveille_protocol::time::Instant;
use reveille_protocol::wire::peer::NotifyOrder;
use reveille_protocol::wire::stun::{self, Handle};
use reveille_terminal::ground;
use reveille_terminal::listen::sieve::{Sieve, Sieved};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::Instant as Clock;

use super::dial::{Dialler, Identity};
use super::pace::Pace;
use crate::guard::Guard;
use crate::random::random;
use crate::telemetry::{Count, Gauge};

/// Terminals that one node may be the anchor of; some 90 bytes each.
const TERMINALS: usize = 4_000_000;
/// Bytes that may wait in the socket, as far as the system allows: keepalives gather between two reads, and what has no
/// room is lost. A tenth of a second of a million terminals' keepalives, with the kernel's own part.
const RECEIVE_BUFFER: usize = 4 << 20;
/// How often silent terminals are forgotten, and how many are looked at: all of them within a few minutes.
const SWEEP: (Duration, usize) = (Duration::from_secs(1), 20_000);

/// Has this node an incarnation, so that orders come here?
pub type Serves = Box<dyn Fn() -> bool + Send + Sync>;

/// An order, at the notifier or at the anchor.
#[derive(Debug)]
pub struct Waiting {
    pub(super) order: NotifyOrder,
    /// How often a keepalive had it carried out.
    pub(super) waited: u8,
}

/// The socket, its dialler, and the terminals whose bindings it holds.
pub struct AnchorPort {
    pub(super) dialler: Arc<Dialler>,
    keepalives: Arc<Keepalives>,
    port: u16,
}

impl AnchorPort {
    /// Takes keepalives at `bind`; answers none unless it `serves`. Orders that waited for a
    /// terminal come by `due` when it is heard of. Fails if the address cannot be bound, or the identity's key does not fit its
    /// certificate.
    pub fn new(
        bind: SocketAddr,
        identity: Identity,
        pace: Arc<Pace>,
        directory: Arc<RwLock<Arc<Directory>>>,
        serves: Serves,
        due: mpsc::Sender<Waiting>,
        guard: &Guard,
    ) -> std::io::Result<AnchorPort> {
        let socket = ground::udp(bind, Some(RECEIVE_BUFFER))?;
        let port = socket.local_addr()?.port();
        let keepalives = Arc::new(Keepalives {
            socket: socket.clone(),
            table: Mutex::new(Anchor::new(random(), TERMINALS)),
            directory,
            serves,
            pace,
            due,
            origin: Clock::now(),
            answered: Count::Keepalives.of("answered"),
        });
        let dialler = Arc::new(Dialler::over(Sieved::new(socket, keepalives.clone()), identity)?);
        tokio::spawn(guard.watch("sweeping bindings", sweep(Arc::downgrade(&keepalives))));
        Ok(AnchorPort { dialler, keepalives, port })
    }

    /// Its UDP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where a terminal's binding is, if it was heard lately.
    pub(super) fn address(&self, handle: &Handle) -> Option<SocketAddr> {
        self.keepalives.table().address(self.keepalives.now(), handle)
    }

    /// The terminal did not answer there: nothing but challenges is sent there until the address is proven again.
    pub(super) fn failed(&self, handle: &Handle, address: SocketAddr) {
        self.keepalives.table().failed(handle, address);
    }

    /// Has an order wait until the terminal is heard of.
    pub(super) fn wait(&self, handle: Handle, order: Waiting) {
        let now = self.keepalives.now();
        // What is given up for it is the leader's to order again: it was told that nothing came of it.
        let _given_up = self.keepalives.table().wait(now, handle, order);
    }
}

/// Takes keepalives out of what comes to the socket.
struct Keepalives {
    socket: Arc<dyn AsyncUdpSocket>,
    table: Mutex<Anchor<Waiting>>,
    directory: Arc<RwLock<Arc<Directory>>>,
    serves: Serves,
    pace: Arc<Pace>,
    due: mpsc::Sender<Waiting>,
    origin: Clock,
    /// Most of them are.
    answered: Counter,
}

impl fmt::Debug for Keepalives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.table().fmt(f)
    }
}

impl Keepalives {
    fn table(&self) -> MutexGuard<'_, Anchor<Waiting>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Instant {
        Instant(self.origin.elapsed().as_millis() as u64)
    }

    fn heard(&self, datagram: &[u8], from: SocketAddr) {
        // No order comes here. Silence makes its terminals look for another anchor; where no majority is left they find none
        // until it is back.
        if !(self.serves)() {
            return Count::Keepalives.one("cut_off");
        }
        let directory = self.directory.read().unwrap_or_else(PoisonError::into_inner).clone();
        let heard = self.table().heard(self.now(), from, datagram, &directory.secrets);
        let accepted = match heard {
            Ok(accepted) => accepted,
            Err(ignored) => return Count::Keepalives.one(ignored.label()),
        };
        match accepted.answer {
            Some(Answer::Mapped(answer)) => {
                self.send(from, &answer);
                self.answered.increment(1);
            }
            Some(Answer::Challenge(challenge)) if self.pace.may_challenge(from) => {
                self.send(from, &challenge);
                Count::Keepalives.one("challenged");
            }
            Some(Answer::Challenge(_)) => Count::Keepalives.one("budget"),
            None => Count::Keepalives.one("taken"),
        }
        if let Some((second, ring)) = accepted.ring {
            self.send(second, &ring);
        }
        if let Some(order) = accepted.due {
            self.is_due(accepted.handle, order);
        }
    }

    fn is_due(&self, handle: Handle, order: Waiting) {
        let order = Waiting { waited: order.waited.saturating_add(1), ..order };
        if let Err(TrySendError::Full(order)) = self.due.try_send(order) {
            // It goes with the next keepalive.
            let _given_up = self.table().wait(self.now(), handle, order);
        }
    }

    fn send(&self, to: SocketAddr, datagram: &[u8]) {
        let transmit =
            Transmit { destination: to, ecn: None, contents: datagram, segment_size: None, src_ip: None };
        // A full socket loses it, as the network might: the terminal asks again.
        let _ = self.socket.try_send(&transmit);
    }
}

impl Sieve for Keepalives {
    fn passes(&self, datagram: &[u8], from: SocketAddr) -> bool {
        let keepalive = stun::is_stun(datagram);
        if keepalive {
            self.heard(datagram, from);
        }
        !keepalive
    }
}

async fn sweep(keepalives: std::sync::Weak<Keepalives>) {
    loop {
        tokio::time::sleep(SWEEP.0).await;
        let Some(keepalives) = keepalives.upgrade() else { return };
        let now = keepalives.now();
        let mut table = keepalives.table();
        table.sweep(now, SWEEP.1);
        Gauge::Pinned.set(table.len() as f64);
    }
}
