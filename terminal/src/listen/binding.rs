//! The terminal's binding with its anchor, on the listening socket: sends keepalives, gives the anchor's answers to the
//! keeper, and tells what follows; and a second socket by which it is measured how long the network keeps a binding. When
//! to send and what counts is `reveille_protocol::anchor`'s. As this is what wakes while the terminal listens, it looks
//! on the way whether the device slept or moved.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::AsyncUdpSocket;
use quinn::udp::Transmit;
use reveille_protocol::anchor::keeper::{Command, Event, Identity, Keeper, Keeping};
use reveille_protocol::anchor::life::{self, Life};
use reveille_protocol::limits;
use reveille_protocol::time::Instant;
use reveille_protocol::wire::session::Anchor;
use reveille_protocol::wire::stun::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant as Clock;

use super::Gate;
use super::networks::Networks;
use crate::aligned::check_in_at;
use crate::ground::UdpSocket;
use crate::network::{Change, Device, Watching};

/// Orders that wait: a session gives a few at most.
const ORDERS: usize = 16;
/// What the terminal has not taken yet. Full, it has enough reason to connect, or is in a session.
const TOLD: usize = 16;
/// Before the second socket is read again after an error.
const AFTER_ERROR: Duration = Duration::from_secs(1);
/// What was measured of the network is doubted once in this time: where a device dozes, or the shortest period is too long,
/// that finds the same again.
const DOUBT: Duration = Duration::from_secs(3600);
/// Datagrams of the anchor that wait for the keeper.
const ANSWERS: usize = 16;

/// What a binding came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// The anchor sees the terminal at this address.
    Mapped(SocketAddr),
    /// A notification waits at the anchor.
    Waiting,
    /// The anchor does not answer.
    Lost,
    /// From now on a keepalive is sent so often.
    Period {
        period: Duration,
        /// In this network, and not what the cluster asks for.
        measured: bool,
    },
    /// It is time to check in.
    CheckIn,
}

#[derive(Debug)]
enum Order {
    Bind(Box<Anchor>, SocketAddr),
    Unbind,
    Session(bool),
    Towards(SocketAddr),
    CheckIn(Duration),
}

/// The terminal's hold on its binding's task.
#[derive(Debug)]
pub(crate) struct Binding {
    orders: mpsc::Sender<Order>,
    pub(crate) told: mpsc::Receiver<Told>,
}

impl Binding {
    /// Starts the task; it sends nothing before it is told with whom.
    /// `moved`: what it says when the network may be another.
    pub(super) fn start(
        socket: Arc<dyn AsyncUdpSocket>,
        gate: Arc<Gate>,
        state: &Path,
        watching: Watching,
        moved: watch::Sender<()>,
    ) -> Binding {
        let (orders, ordered) = mpsc::channel(ORDERS);
        let (tell, told) = mpsc::channel(TOLD);
        let (answered, answers) = mpsc::channel(ANSWERS);
        let task = Task {
            socket,
            gate,
            answered,
            tell,
            networks: Networks::open(state),
            keeper: None,
            life: None,
            origin: Clock::now(),
            in_session: false,
            device: Device::new(watching),
            check_in: None,
            doubted: None,
            moved,
        };
        tokio::spawn(task.run(ordered, answers));
        Binding { orders, told }
    }

    /// Keeps a binding with this anchor from now on, and with no other.
    pub(crate) fn bind(&mut self, anchor: Anchor, at: SocketAddr) {
        // What the one before came to says nothing of this one.
        while self.told.try_recv().is_ok() {}
        self.order(Order::Bind(Box::new(anchor), at));
    }

    /// Keeps none.
    pub(crate) fn unbind(&mut self) {
        self.order(Order::Unbind);
        while self.told.try_recv().is_ok() {}
    }

    /// A session is open: nothing needs to be kept meanwhile.
    pub(crate) fn session(&self, open: bool) {
        self.order(Order::Session(open));
    }

    /// A connection was made with this node: the way to it tells networks apart from now on.
    pub(crate) fn towards(&self, node: SocketAddr) {
        self.order(Order::Towards(node));
    }

    /// Tells, unless a session comes before, when it is time to check in: after so long, or with a keepalive that is due
    /// at about that time, in its place.
    pub(crate) fn check_in(&self, after: Duration) {
        self.order(Order::CheckIn(after));
    }

    fn order(&self, order: Order) {
        // The task takes them as they come, and ends with this.
        if self.orders.try_send(order).is_err() {
            tracing::warn!("the binding's task does not take its orders");
        }
    }
}

/// A binding, and with whom.
struct Kept {
    keeper: Keeper,
    at: SocketAddr,
    identity: Identity,
    /// The address that nodes see: names the network.
    seen: IpAddr,
    /// The keepalive period that the cluster asks for.
    asked: Duration,
    /// How long bindings live here is known, or could not be found out.
    measured: bool,
    /// Where the anchor saw it; `None` also after a session or a sleep, in which the binding may end.
    mapped_at: Option<SocketAddr>,
    /// The anchor answers.
    mapped: bool,
}

struct Task {
    socket: Arc<dyn AsyncUdpSocket>,
    gate: Arc<Gate>,
    answered: mpsc::Sender<Bytes>,
    tell: mpsc::Sender<Told>,
    networks: Networks,
    keeper: Option<Kept>,
    life: Option<(Life, UdpSocket)>,
    origin: Clock,
    in_session: bool,
    device: Device,
    check_in: Option<Instant>,
    /// When a measured period was doubted last.
    doubted: Option<Instant>,
    moved: watch::Sender<()>,
}

impl Task {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>, mut answers: mpsc::Receiver<Bytes>) {
        loop {
            let keeper = self.keeper.as_ref().and_then(|kept| kept.keeper.poll_timeout());
            let life = self.life.as_ref().and_then(|(life, _)| life.poll_timeout());
            let look = self.device.next_look(keeper);
            let check_in = self.next_check_in(keeper);
            let now = self.now();
            let timer = async {
                match keeper.into_iter().chain(life).chain(look).chain(check_in).min() {
                    Some(at) => tokio::time::sleep(at.since(now)).await,
                    None => std::future::pending().await,
                }
            };
            let mut second = [0; limits::MAX_STUN];
            tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => self.obey(order).await,
                    None => return,
                },
                Some(datagram) = answers.recv() => self.handle(Event::Received(&datagram)).await,
                (read, from) = heard(self.life.as_ref(), &mut second) => {
                    if self.keeper.as_ref().is_some_and(|kept| kept.at == from) {
                        self.measure(life::Event::Received(&second[..read])).await;
                    }
                }
                () = timer => {
                    self.look().await;
                    if check_in.is_some_and(|at| at <= self.now()) {
                        self.check_in().await;
                    }
                    if keeper.is_some_and(|at| at <= self.now()) {
                        self.handle(Event::Timeout).await;
                    }
                    self.measure(life::Event::Timeout).await;
                }
            }
        }
    }

    async fn obey(&mut self, order: Order) {
        match order {
            Order::Bind(anchor, at) => {
                self.gate.set_anchor(Some((at, self.answered.clone())));
                let Anchor { handle, generation, key, period, seen, .. } = *anchor;
                let identity = Identity { handle: Handle(handle), generation, key };
                let known = self.networks.period(seen);
                let asked = Duration::from_secs(period.into());
                let period = known.unwrap_or(asked);
                self.life = None;
                self.tell(Told::Period { period, measured: known.is_some() });
                // Each session has a handle of its own, so its numbers begin anew.
                let keeping = Keeping { identity, number: 0, period, seed: rand::random() };
                // At once, also in a session: it is to be known that the anchor answers.
                let keeper = Keeper::new(self.now(), &keeping);
                let measured = known.is_some();
                let (mapped, mapped_at) = (false, None);
                self.keeper = Some(Kept { keeper, at, identity, seen, asked, measured, mapped_at, mapped });
            }
            Order::Unbind => {
                self.gate.set_anchor(None);
                (self.keeper, self.life) = (None, None);
            }
            Order::Towards(node) => self.device.connected(self.now(), node),
            Order::CheckIn(after) => self.check_in = Some(self.now() + after),
            Order::Session(open) => {
                self.in_session = open;
                self.check_in = None;
                // Its handle's time is over, and its silence may have been none.
                self.life = None;
                self.handle(if open { Event::SessionOpened } else { Event::SessionClosed }).await;
            }
        }
    }

    fn next_check_in(&self, keepalive: Option<Instant>) -> Option<Instant> {
        let jitter = self.keeper.as_ref().map_or(Duration::ZERO, |kept| kept.keeper.jitter());
        self.check_in.map(|due| check_in_at(due, keepalive, jitter))
    }

    /// Says so, and sends no keepalive for the session that is about to open.
    async fn check_in(&mut self) {
        self.check_in = None;
        if self.tell.try_send(Told::CheckIn).is_ok() {
            self.handle(Event::SessionOpened).await;
        }
    }

    /// Looks whether the device slept or moved, as the terminal is awake anyway.
    async fn look(&mut self) {
        let answered = self.keeper.as_ref().is_some_and(|kept| kept.mapped) && !self.in_session;
        match self.device.look(self.now()) {
            None => {}
            // What waits, and whether the binding still holds, its anchor says at the price of two datagrams.
            Some(Change::Slept) if answered => {
                tracing::info!("the device slept; asking the anchor what waits");
                self.handle(Event::Resumed).await;
            }
            Some(change) => {
                tracing::info!(?change, "the device slept, or has another network");
                self.moved.send_replace(());
            }
        }
    }

    async fn handle(&mut self, event: Event<'_>) {
        let now = self.now();
        let Some(kept) = &mut self.keeper else { return };
        let (at, mut mapped, mut lost) = (kept.at, None, false);
        if matches!(event, Event::SessionOpened | Event::SessionClosed | Event::Resumed) {
            kept.mapped_at = None;
        }
        for command in kept.keeper.handle(now, event) {
            match command {
                Command::Send(packet) => {
                    if let Err(error) = send(&self.socket, at, &packet).await {
                        // As good as lost on the way: it is repeated.
                        tracing::debug!(%error, anchor = %at, "a keepalive could not be sent");
                    }
                }
                Command::Mapped(address) => {
                    self.tell(Told::Mapped(address));
                    mapped = Some(address);
                }
                Command::Waiting => {
                    self.gate.has_answered();
                    self.tell(Told::Waiting);
                }
                Command::Lost => {
                    self.tell(Told::Lost);
                    lost = true;
                }
            }
        }
        let Some(kept) = &mut self.keeper else { return };
        if mapped.is_some() && self.in_session {
            // Until the session's end it holds by itself, or is made anew.
            kept.keeper.handle(now, Event::SessionOpened);
        }
        kept.mapped = (kept.mapped || mapped.is_some()) && !lost;
        kept.mapped_at = kept.mapped_at.filter(|_| !lost);
        if let Some(address) = mapped {
            self.mapped(now, address);
        }
        let Some(kept) = &mut self.keeper else { return };
        if kept.mapped && !self.in_session && !kept.measured && self.life.is_none() {
            self.begin_to_measure().await;
        }
    }

    /// The binding is at this address. Where it ended between two keepalives the network did not bear the silence that it was
    /// seen to bear.
    fn mapped(&mut self, now: Instant, address: SocketAddr) {
        let Some(kept) = &mut self.keeper else { return };
        let before = kept.mapped_at.replace(address);
        // At another IP it is another network, of which this says nothing.
        let another = before.is_some_and(|before| before.ip() == address.ip() && before != address);
        let lately = self.doubted.is_some_and(|at| now.since(at) < DOUBT);
        if another && !lately && self.networks.period(kept.seen).is_some() {
            self.doubted = Some(now);
            tracing::info!(network = %kept.seen, "the binding ended between two keepalives; measuring again");
            self.networks.forget(kept.seen);
            kept.measured = false;
            let period = kept.asked;
            kept.keeper.handle(now, Event::Period(period));
            self.tell(Told::Period { period, measured: false });
        }
    }

    /// Nothing is known of this network: a second socket finds out how long it keeps a silent binding. Some twenty
    /// datagrams in a quarter of an hour, once, and again where what it found does not hold; a session in between ends it.
    async fn begin_to_measure(&mut self) {
        let now = self.now();
        let Some(kept) = &mut self.keeper else { return };
        let any: SocketAddr = match kept.at {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        match UdpSocket::bind(any).await {
            Ok(socket) => {
                // The clock's number is above those of a measuring that was begun before under this handle.
                let life = Life::new(now, kept.identity, now.0, kept.keeper.number(), rand::random());
                self.life = Some((life, socket));
            }
            Err(error) => {
                tracing::debug!(%error, "the network cannot be measured");
                kept.measured = true;
            }
        }
    }

    async fn measure(&mut self, event: life::Event<'_>) {
        let now = self.now();
        let (Some((life, socket)), Some(kept)) = (&mut self.life, &mut self.keeper) else { return };
        match life.handle(now, event) {
            None => {}
            Some(life::Command::SendFromSecond(packet)) => {
                // Lost, as on the way: it is repeated.
                let _ = socket.send_to(&packet, kept.at).await;
            }
            Some(life::Command::RingSecond) => self.handle(Event::RingSecond).await,
            Some(life::Command::Done(found)) => {
                kept.measured = true;
                let seen = kept.seen;
                self.life = None;
                if let Some(period) = found {
                    tracing::info!(?period, network = %seen, "measured how often the binding must be refreshed");
                    self.networks.remember(seen, period);
                    self.tell(Told::Period { period, measured: true });
                    self.handle(Event::Period(period)).await;
                }
            }
        }
    }

    fn tell(&self, told: Told) {
        // Full: there is reason enough to connect already.
        let _ = self.tell.try_send(told);
    }

    fn now(&self) -> Instant {
        Instant(self.origin.elapsed().as_millis() as u64)
    }
}

/// A datagram on the second socket, if there is one.
async fn heard(life: Option<&(Life, UdpSocket)>, buffer: &mut [u8]) -> (usize, SocketAddr) {
    loop {
        match life {
            Some((_, socket)) => {
                if let Ok(heard) = socket.recv_from(buffer).await {
                    return heard;
                }
                // An error is of a datagram sent before, or the network is gone for a while.
                tokio::time::sleep(AFTER_ERROR).await;
            }
            None => std::future::pending().await,
        }
    }
}

/// Sends one datagram; waits until the socket takes it.
async fn send(socket: &Arc<dyn AsyncUdpSocket>, to: SocketAddr, datagram: &[u8]) -> std::io::Result<()> {
    let transmit =
        Transmit { destination: to, ecn: None, contents: datagram, segment_size: None, src_ip: None };
    let mut poller = socket.clone().create_io_poller();
    loop {
        match socket.try_send(&transmit) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                // A new socket says so until its runtime has looked at it once.
                std::future::poll_fn(|context| poller.as_mut().poll_writable(context)).await?;
            }
            sent => return sent,
        }
    }
}

#[cfg(test)]
mod tests;
