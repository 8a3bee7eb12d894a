//! A link that can be made worse while it runs: a listener on loopback that carries TCP streams or UDP datagrams to one
//! destination. What happens to each packet is drawn by `fate`, which knows no socket, from (seed, link, direction, number of
//! the packet); `stream` and `datagram` carry it out. Nothing here knows nodes, terminals or scenarios. `draw` is what all
//! draws of chaos runs come from.

pub mod counts;
pub mod datagram;
pub mod draw;
pub mod fate;
pub mod faults;
mod pace;
mod stream;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub use self::counts::{Counts, Done};
pub use self::fate::{Direction, Lot};
pub use self::faults::{Faults, Pass, Way};

/// Rebinds that wait to be done: each is done at once.
const REBINDS: usize = 64;

/// Where a link listens, and where it leads.
#[derive(Debug, Clone)]
pub struct Route {
    /// Its name, which its draws come from, too.
    pub name: String,
    /// What its draws come from.
    pub seed: u64,
    /// Where it listens; port 0 for a free one.
    pub listen: SocketAddr,
    /// Where it leads.
    pub to: SocketAddr,
    /// The address that the destination sees everything come from. Missing: the system's choice.
    pub from: Option<IpAddr>,
}

/// What connections and flows are told to do once; each number counts how often.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Orders {
    reset: u64,
    /// By the end that is gone: the one that opened the connection, and the destination.
    gone: [u64; 2],
}

/// What the tasks of a link share.
#[derive(Debug)]
struct Shared {
    lot: Lot,
    to: Mutex<SocketAddr>,
    from: Option<IpAddr>,
    faults: watch::Sender<Faults>,
    /// What is wrong for these senders alone, instead.
    apart: Mutex<HashMap<SocketAddr, Faults>>,
    orders: watch::Sender<Orders>,
    counts: Arc<Counts>,
}

/// A link. It ends, with everything that goes through it, when it is dropped.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    shared: Arc<Shared>,
    /// Who gets another port, of a link of datagrams; `None`: everybody.
    rebinds: Option<mpsc::Sender<Option<SocketAddr>>>,
    task: JoinHandle<()>,
}

impl Link {
    /// One that carries TCP.
    ///
    /// # Errors
    /// If its address cannot be listened on.
    pub async fn tcp(route: Route) -> io::Result<Link> {
        let listener = TcpListener::bind(route.listen).await?;
        let (address, shared) = (listener.local_addr()?, Shared::of(route));
        let task = tokio::spawn(stream::serve(shared.clone(), listener));
        Ok(Link { address, shared, rebinds: None, task })
    }

    /// One that carries UDP. Each sender has a port of its own towards the destination, as behind a NAT.
    ///
    /// # Errors
    /// If its address cannot be listened on.
    pub async fn udp(route: Route) -> io::Result<Link> {
        let socket = UdpSocket::bind(route.listen).await?;
        let (address, shared) = (socket.local_addr()?, Shared::of(route));
        let (rebinds, rebound) = mpsc::channel(REBINDS);
        let task = tokio::spawn(datagram::serve(shared.clone(), socket, rebound));
        Ok(Link { address, shared, rebinds: Some(rebinds), task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What is wrong with it now.
    pub fn faults(&self) -> Faults {
        *self.shared.faults.borrow()
    }

    /// What is wrong with it from now on. What is on its way already keeps its fate, but for being held.
    pub fn set(&self, faults: Faults) {
        self.shared.faults.send_replace(faults);
    }

    /// What is wrong for this sender alone, instead of what is wrong with the link; `None`: nothing else any more. Of
    /// links of datagrams, which know their senders.
    pub fn set_apart(&self, sender: SocketAddr, faults: Option<Faults>) {
        match faults {
            Some(faults) => self.shared.apart().insert(sender, faults),
            None => self.shared.apart().remove(&sender),
        };
        // What is held looks again.
        self.shared.faults.send_modify(|_| ());
    }

    /// Breaks all its connections, as a RST does at both ends.
    pub fn reset(&self) {
        self.shared.orders.send_modify(|orders| orders.reset += 1);
    }

    /// One end's connections are gone, and the other end does not learn of it: what it sends is taken and leads nowhere.
    /// `Up`: those of who opened them are gone; `Down`: those of the destination.
    pub fn half_open(&self, gone: Direction) {
        self.shared.orders.send_modify(|orders| orders.gone[gone as usize] += 1);
    }

    /// The NAT gives this sender, or everybody, another port; what is sent to the former one leads nowhere.
    pub fn rebind(&self, sender: Option<SocketAddr>) {
        if let Some(rebinds) = &self.rebinds {
            // One that is told so often at once needs no more.
            let _ = rebinds.try_send(sender);
        }
    }

    /// Leads there from now on; what goes through it already stays where it is.
    pub fn lead(&self, to: SocketAddr) {
        *self.shared.to.lock().unwrap_or_else(PoisonError::into_inner) = to;
    }

    /// How often what happened.
    pub fn counts(&self) -> Arc<Counts> {
        self.shared.counts.clone()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn of(route: Route) -> Arc<Shared> {
        Arc::new(Shared {
            lot: Lot { seed: route.seed, name: route.name },
            to: Mutex::new(route.to),
            from: route.from,
            faults: watch::Sender::default(),
            apart: Mutex::default(),
            orders: watch::Sender::default(),
            counts: Arc::default(),
        })
    }

    fn to(&self) -> SocketAddr {
        *self.to.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn way(&self, direction: Direction) -> Way {
        self.faults.borrow().way(direction)
    }

    fn apart(&self) -> MutexGuard<'_, HashMap<SocketAddr, Faults>> {
        self.apart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is wrong for this sender.
    fn faults_of(&self, sender: SocketAddr) -> Faults {
        let apart = self.apart().get(&sender).copied();
        apart.unwrap_or_else(|| *self.faults.borrow())
    }
}

/// The runtime's clock ticks by the millisecond, and wakes at the tick after: half of that earlier is right in the mean.
const HALF_A_TICK: Duration = Duration::from_micros(500);

async fn sleep_until_about(due: Instant) {
    let early = due - HALF_A_TICK.min(due.saturating_duration_since(Instant::now()));
    if early > Instant::now() {
        tokio::time::sleep_until(early).await;
    }
}
