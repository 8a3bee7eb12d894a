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

pub mod connect;
pub mod disconnect;
mod event;
pub mod identity;
pub mod listen;
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
use tokio::sync::{mpsc, watch};

pub use self::event::{Event, Received};
pub use self::listen::ListenStats;

/// Events that may wait for the application. When it does not take them, its pushes stay with the cluster.
const EVENTS: usize = 128;

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
    min_urgency: Urgency,
    enrolment: Option<Vec<u8>>,
    listen: SocketAddr,
    check_in: Option<Duration>,
    resumption: bool,
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
            min_urgency: Urgency::VeryLow,
            enrolment: None,
            listen: SocketAddr::from(([0, 0, 0, 0], 0)),
            check_in: None,
            resumption: true,
        }
    }

    /// How long a session stays open after its last push. Default: it ends at once.
    pub fn linger(mut self, linger: Linger) -> Builder {
        self.linger = linger;
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

    /// Opens the state, starts to listen, and connects once.
    pub async fn start(self) -> Result<Terminal, StartError> {
        let store = store::Store::open(&self.state)?;
        let identity = identity::Identity::open(&self.state, &self.ca, self.resumption)?;
        let listener = listen::Listener::start(self.listen, &identity)
            .map_err(|error| StartError::Listen { address: self.listen, error })?;
        let (events, received) = mpsc::channel(EVENTS);
        let (leave, leaving) = watch::channel(false);
        let id = identity.terminal();
        let stats = listener.gate();
        let run = run::Run::new(self.into_config(), identity, store, listener, events, leaving);
        let task = tokio::spawn(run.run());
        Ok(Terminal { id, events: received, leave, task, gate: stats })
    }

    fn into_config(self) -> run::Config {
        run::Config {
            servers: self.servers,
            linger: self.linger,
            min_urgency: self.min_urgency,
            enrolment: self.enrolment.map(Into::into),
            check_in: self.check_in,
        }
    }
}

/// A running terminal.
#[derive(Debug)]
pub struct Terminal {
    id: TerminalId,
    events: mpsc::Receiver<Event>,
    leave: watch::Sender<bool>,
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
