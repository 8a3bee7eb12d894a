//! The receiver's SDK: a terminal that holds no connection while idle, listens for a notification, connects because
//! of it, receives its pushes and disconnects.
//!
//! The four modules of the source are four files: [`listen`] (notification listening), [`connect`] (connection
//! establishing), [`receive`] (message receiving), [`disconnect`] (disconnecting). The rules of a session are
//! `reveille_protocol::session::terminal`; here are the sockets, the disk and the clock around them.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use reveille_terminal::{Builder, Event};
//! let mut terminal = Builder::new(["push.example.org:8443"], "ca.pem", "state").start().await?;
//! while let Some(event) = terminal.next().await {
//!     if let Event::Received(push) = event {
//!         println!("{} {:?}", push.seq, push.body);
//!         push.confirm();
//!     }
//! }
//! # Ok(()) }
//! ```
//!
//! How it is reached, for a page of settings or a support desk:
//!
//! ```no_run
//! use reveille_terminal::{Class, Terminal, Unreachable};
//! fn show(terminal: &Terminal) {
//!     let known = terminal.reachability();
//!     match (known.class, known.why) {
//!         (Class::Untried, _) => println!("not found out yet"),
//!         (Class::Direct, _) => println!("any node reaches {:?}", known.seen),
//!         (Class::Pinned, _) => println!(
//!             "through {:?}, which sees this device at {:?}; a keepalive each {:?}, {}",
//!             known.anchor,
//!             known.mapped,
//!             known.period,
//!             if known.measured { "measured here" } else { "as the cluster asks" },
//!         ),
//!         (Class::None, Some(Unreachable::AnswersOnly)) => println!("a firewall drops QUIC"),
//!         (Class::None, _) => println!("no UDP passes: ask for UDP to the nodes' session port"),
//!     }
//!     match known.notified {
//!         Some(at) => println!("last notified {:?} ago", at.elapsed().unwrap_or_default()),
//!         None => println!("not notified yet"),
//!     }
//! }
//! ```

#[cfg(all(feature = "turmoil", not(debug_assertions)))]
compile_error!(
    "no device is on a simulated network: the feature `turmoil` is for tests of a debug build alone"
);

mod aligned;
pub mod connect;
pub mod disconnect;
mod event;
pub mod ground;
pub mod identity;
pub mod listen;
mod network;
mod reach;
pub mod receive;
pub mod resolve;
mod run;
pub mod store;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reveille_protocol::id::TerminalId;
pub use reveille_protocol::service_list::row::{Linger, Urgency};
use reveille_protocol::session::linger::Learned;
use tokio::sync::{mpsc, watch};

pub use reveille_protocol::wire::session::Class;

pub use self::event::{Event, Received};
pub use self::listen::ListenStats;
pub use self::reach::{Reachability, Unreachable};

/// Events that may wait for the application. When it does not take them, its pushes stay with the cluster.
const EVENTS: usize = 128;

/// How long a change of the network goes unnoticed at most while the device is awake. As often as a router that forgets
/// bindings early makes a terminal send anyway.
const WATCH: Duration = Duration::from_secs(30);

/// The terminal cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its state on disk.
    #[error(transparent)]
    Store(#[from] store::StoreError),
    /// Its keys.
    #[error(transparent)]
    Identity(#[from] identity::IdentityError),
    /// Its socket for notifications.
    #[error("cannot listen for notifications on {address}: {error}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
}

/// How a terminal is made.
#[derive(Debug, Clone)]
pub struct Builder {
    servers: Vec<String>,
    ca: PathBuf,
    state: PathBuf,
    linger: Linger,
    learned: Option<Learned>,
    min_urgency: Urgency,
    enrolment: Option<Vec<u8>>,
    listen: SocketAddr,
    check_in: Option<Duration>,
    resumption: bool,
    stay_if_unreachable: bool,
    watching: network::Watching,
}

impl Builder {
    /// A terminal of the cluster behind `servers` (`host:port`, each name standing for all of its addresses), that
    /// trusts the CA in the PEM file `ca` and keeps its keys and its memory in the folder `state`.
    pub fn new<S: Into<String>>(
        servers: impl IntoIterator<Item = S>,
        ca: impl Into<PathBuf>,
        state: impl Into<PathBuf>,
    ) -> Builder {
        Builder {
            servers: servers.into_iter().map(Into::into).collect(),
            ca: ca.into(),
            state: state.into(),
            linger: Linger::AtOnce,
            learned: None,
            min_urgency: Urgency::VeryLow,
            enrolment: None,
            listen: SocketAddr::from(([0, 0, 0, 0], 0)),
            check_in: None,
            resumption: true,
            stay_if_unreachable: false,
            watching: network::Watching { tick: Some(WATCH), clock: network::Clock::default() },
        }
    }

    /// How long a session stays open after its last push. Default: it ends at once.
    pub fn linger(mut self, linger: Linger) -> Builder {
        self.linger = linger;
        self.learned = None;
        self
    }

    /// Learns from the gaps between pushes how long to stay: where the next one is expected within ten seconds for three
    /// such gaps, else not at all. Never longer than `most`, nor than the cluster grants. Begins anew with each process.
    pub fn linger_learned(mut self, most: Duration) -> Builder {
        self.learned = Some(Learned::new(most));
        self
    }

    /// Pushes below this urgency need not wake the terminal. Default: all do.
    pub fn min_urgency(mut self, urgency: Urgency) -> Builder {
        self.min_urgency = urgency;
        self
    }

    /// The tenant's token that lets an unknown terminal in.
    pub fn enrolment(mut self, token: impl Into<Vec<u8>>) -> Builder {
        self.enrolment = Some(token.into());
        self
    }

    /// Where to listen for notifications. Default: a free UDP port on every address. The cluster dials the address
    /// that it sees sessions come from, with this port.
    pub fn listen(mut self, address: SocketAddr) -> Builder {
        self.listen = address;
        self
    }

    /// How often to connect without being notified, instead of what the cluster asks for: from a minute to 30 days.
    pub fn check_in(mut self, period: Duration) -> Builder {
        self.check_in = Some(period);
        self
    }

    /// Keep TLS tickets in memory, so that the next session costs less. Default: yes.
    pub fn resumption(mut self, resumption: bool) -> Builder {
        self.resumption = resumption;
        self
    }

    /// Where no notification reaches the terminal ([`Class::None`]), stay connected. Default: no, it checks in.
    pub fn stay_if_unreachable(mut self, stay: bool) -> Builder {
        self.stay_if_unreachable = stay;
        self
    }

    /// How long the terminal may not notice, while the device is awake, that this slept or came into another network:
    /// a second at the least, 30 s by default. It looks when it wakes anyway, at the latest after this, at its clocks
    /// and at the address that it has on the way to its last node; nothing is sent for it. `None`: it never looks, and
    /// the application says so by [`Terminal::network_changed`].
    pub fn watch_network(mut self, tick: Option<Duration>) -> Builder {
        self.watching.tick = tick.map(|tick| tick.max(Duration::from_secs(1)));
        self
    }

    /// A clock that goes on while the device sleeps, from whatever beginning, as `CLOCK_BOOTTIME` of Linux: from what it
    /// is ahead of the monotonic one the terminal tells that the device slept. Default: the time of day. On systems
    /// whose monotonic clock goes on as well a sleep is told by the address alone, or not at all.
    pub fn sleepless_clock(mut self, clock: impl Fn() -> Duration + Send + Sync + 'static) -> Builder {
        self.watching.clock = network::Clock(Arc::new(clock));
        self
    }

    /// Opens the state, starts to listen, and connects once.
    pub async fn start(self) -> Result<Terminal, StartError> {
        let store = store::Store::open(&self.state)?;
        let identity = identity::Identity::open(&self.state, &self.ca, self.resumption)?;
        let (move_on, moved) = watch::channel(());
        let watching = self.watching.clone();
        let listener =
            listen::Listener::start(self.listen, &identity, &self.state, watching, move_on.clone())
                .map_err(|error| StartError::Listen { address: self.listen, error })?;
        let (events, received) = mpsc::channel(EVENTS);
        let (leave, leaving) = watch::channel(false);
        let (reach, reachability) = watch::channel(Reachability::default());
        let id = identity.terminal();
        let stats = listener.gate();
        let application = run::Application { events, leaving, moved, reachability: reach };
        let run = run::Run::new(self.into_config(), identity, store, listener, application);
        let task = tokio::spawn(run.run());
        Ok(Terminal { id, events: received, leave, move_on, reachability, task, gate: stats })
    }

    fn into_config(self) -> run::Config {
        run::Config {
            servers: self.servers,
            linger: self.linger,
            learned: self.learned,
            min_urgency: self.min_urgency,
            enrolment: self.enrolment.map(Into::into),
            check_in: self.check_in,
            stay_if_unreachable: self.stay_if_unreachable,
        }
    }
}

/// A running terminal.
#[derive(Debug)]
pub struct Terminal {
    id: TerminalId,
    events: mpsc::Receiver<Event>,
    leave: watch::Sender<bool>,
    move_on: watch::Sender<()>,
    reachability: watch::Receiver<Reachability>,
    task: tokio::task::JoinHandle<()>,
    gate: Arc<listen::Gate>,
}

impl Terminal {
    /// Its id: what publishers send to.
    pub fn id(&self) -> TerminalId {
        self.id
    }

    /// What happened next; `None` once the terminal has ended.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// How notifications reach it, as far as that is known.
    pub fn reachability(&self) -> Reachability {
        Reachability { notified: self.gate.notified(), ..*self.reachability.borrow() }
    }

    /// The device has another network, or woke from sleep: the terminal connects and finds out how it is reached now; a
    /// session that is open must prove that it is alive. The terminal notices most of this by itself within half a minute
    /// ([`Builder::watch_network`]); an application that is told by its system says it sooner.
    pub fn network_changed(&self) {
        self.move_on.send_replace(());
    }

    /// What came in on the notification socket, and what was ignored.
    pub fn listen_stats(&self) -> ListenStats {
        self.gate.stats()
    }

    /// Says goodbye if a session is open, and ends. What was confirmed before this is saved, and told to the cluster
    /// now or at the next start; pushes that were not confirmed come again then. A terminal that is only dropped ends
    /// where it stands.
    pub async fn shutdown(mut self) {
        self.leave.send_replace(true);
        // Nobody reads events any more; the task must not wait for room.
        while self.events.recv().await.is_some() {}
        // A panic of the task has been reported by the runtime; there is nothing left to end.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.task.abort();
    }
}
