//! The life of a terminal: connect once, then listen, and connect again because of a notification or a check-in.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use rand::Rng;
use reveille_protocol::id::*;
use reveille_protocol::limits;
use reveille_protocol::service_list::row::{Linger, Urgency};
use reveille_protocol::session::linger::Learned;
use reveille_protocol::session::pointless::{Found, Pointless};
use reveille_protocol::session::terminal::{self as rules, Closed, Memory};
use reveille_protocol::wire::notification::Notification;
use reveille_protocol::wire::session::{Cause, Class, Listening};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::connect::connect;
use crate::disconnect::{self, Next};
use crate::event::{Confirmed, Event};
use crate::identity::{Identity, SESSION_ALPN};
use crate::listen::{Listener, Told};
use crate::reach::{Reach, Reachability};
use crate::receive::{Outcome, Surroundings, now, receive};
use crate::resolve::backoff;
use crate::store::{Store, StoreError};

/// A session that was welcomed and held this long ends a row of failures. A shorter one continues it: else a node that
/// welcomes and then breaks would be connected to, at the price of a handshake and an attach, as fast as it answers.
const HELD: Duration = Duration::from_secs(1);

/// The shortest and the longest check-in period, whoever asks for another; one in doubt how it is reached comes sooner
/// (`Reach::in_doubt`). Below a minute it is a connection held open at
/// the price of a handshake each; above a third of a registration's lifetime two that fail end the registration.
const CHECK_IN: (Duration, Duration) =
    (Duration::from_secs(60), Duration::from_secs(limits::REGISTRATION_LIFETIME.as_secs() / 3));

/// How a terminal behaves.
pub(crate) struct Config {
    pub(crate) servers: Vec<String>,
    pub(crate) linger: Linger,
    /// Instead: what was learned, and nothing yet.
    pub(crate) learned: Option<Learned>,
    pub(crate) min_urgency: Urgency,
    pub(crate) enrolment: Option<Bytes>,
    pub(crate) check_in: Option<Duration>,
    pub(crate) stay_if_unreachable: bool,
}

/// What ties a terminal's task to its application.
pub(crate) struct Application {
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) leaving: watch::Receiver<bool>,
    /// It says that the network is another.
    pub(crate) moved: watch::Receiver<()>,
    pub(crate) reachability: watch::Sender<Reachability>,
}

/// A terminal's task.
pub(crate) struct Run {
    config: Config,
    identity: Identity,
    store: Store,
    listener: Listener,
    events: mpsc::Sender<Event>,
    leaving: watch::Receiver<bool>,
    moved: watch::Receiver<()>,
    /// What the application has confirmed, said by each push that it was given.
    confirmed: watch::Sender<Confirmed>,
    /// The reading end; one for the whole life, so that what is confirmed between two sessions is not overlooked.
    confirmations: watch::Receiver<Confirmed>,
    /// Highest seq given to the application in this process.
    given: Seq,
    check_in: Duration,
    reach: Reach,
    /// The last node that it reached finds out with it how it is reached.
    asks: bool,
    /// Why it connects next.
    cause: Cause,
    /// The node to try last.
    avoid: Option<SocketAddr>,
    last_node: Option<SocketAddr>,
    pointless: Pointless,
    origin: Instant,
}

/// The task must end.
enum End {
    /// As the application wished.
    Left,
    /// The disk failed.
    Store(StoreError),
}

impl From<StoreError> for End {
    fn from(error: StoreError) -> End {
        End::Store(error)
    }
}

/// The terminal's own period, or what its cluster asks for.
fn check_in(config: &Config, asked: Duration) -> Duration {
    config.check_in.unwrap_or(asked).clamp(CHECK_IN.0, CHECK_IN.1)
}

impl Run {
    pub(crate) fn new(
        config: Config,
        identity: Identity,
        store: Store,
        listener: Listener,
        application: Application,
    ) -> Run {
        let Application { events, leaving, moved, reachability } = application;
        let memory = store.memory();
        let (confirmed, confirmations) =
            watch::channel(Confirmed { stream: memory.stream, seq: memory.last });
        Run {
            check_in: check_in(&config, limits::CHECK_IN),
            config,
            identity,
            listener,
            events,
            leaving,
            moved,
            confirmed,
            confirmations,
            given: memory.last,
            store,
            reach: Reach::new(reachability),
            asks: false,
            cause: Cause::Start,
            avoid: None,
            last_node: None,
            pointless: Pointless::default(),
            origin: Instant::now(),
        }
    }

    pub(crate) async fn run(mut self) {
        let end = match self.live().await {
            // Without a session the disk hears it alone; the next Hello says it.
            Ok(()) | Err(End::Left) => self.keep_confirmed().err(),
            Err(End::Store(error)) => Some(error),
        };
        if let Some(error) = end {
            // Without its memory it could not tell old from new: it rather ends.
            let what = format!("the terminal's memory cannot be saved: {error}");
            tracing::error!(%what);
            let _ = self.events.send(Event::Problem { what }).await;
        }
    }

    async fn live(&mut self) -> Result<(), End> {
        self.tell(Event::Listening { address: self.listener.address() }).await?;
        let mut hints = Vec::new();
        loop {
            self.listener.binding.session(true);
            self.sessions(std::mem::take(&mut hints)).await?;
            self.listener.binding.session(false);
            hints = self.listen().await?;
        }
    }

    /// Waits for a reason to connect, which it notes; the nodes that a notification hints.
    async fn listen(&mut self) -> Result<Vec<String>, End> {
        let in_doubt = if self.asks { self.reach.in_doubt() } else { None };
        let check_in = in_doubt.map_or(self.check_in, |soon| soon.min(self.check_in));
        // A tenth of spread, so that terminals which started together do not check in together.
        let spread = 0.9 + 0.2 * rand::rng().random::<f64>();
        self.listener.binding.check_in(check_in.mul_f64(spread));
        // The nodes that a notification named which has to wait, and until when.
        let mut held: Option<(Vec<String>, Instant)> = None;
        loop {
            let until = held.as_ref().map(|(_, until)| *until);
            let waited = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(notification) = self.listener.notifications.recv() => {
                    if self.is_current(&notification) {
                        let Notification { id, pending, hints, .. } = notification;
                        match self.notified(id, pending, until).await? {
                            None => return Ok(hints),
                            Some(until) => held = Some((hints, until)),
                        }
                    }
                }
                () = waited => {
                    self.cause = Cause::Notified;
                    return Ok(held.map(|(hints, _)| hints).unwrap_or_default());
                }
                Some(told) = self.listener.binding.told.recv() => {
                    self.reach.told(told);
                    match told {
                        Told::Mapped(_) | Told::Period { .. } => {}
                        Told::Waiting => match self.notified(0, 1, until).await? {
                            None => return Ok(Vec::new()),
                            Some(until) => held = held.or(Some((Vec::new(), until))),
                        },
                        Told::CheckIn => {
                            self.tell(Event::CheckIn).await?;
                            self.cause = Cause::CheckIn;
                            return Ok(Vec::new());
                        }
                        Told::Lost => {
                            tracing::info!("the anchor does not answer; looking for another one");
                            self.avoid = self.last_node;
                            self.cause = Cause::Moved;
                            return Ok(Vec::new());
                        }
                    }
                }
                Ok(()) = self.moved.changed() => {
                    self.has_moved();
                    return Ok(Vec::new());
                }
                // Confirmed after its session was gone: saved now, and said by connecting.
                Ok(()) = self.confirmations.changed() => {
                    if self.keep_confirmed()? {
                        return Ok(Vec::new());
                    }
                }
                // Set, or the handle is gone: the same.
                _ = self.leaving.changed() => return Err(End::Left),
            }
        }
    }

    /// A notification came: it makes the terminal connect now, unless those before it were pointless; then it waits until
    /// the time that comes back, if it does not already.
    async fn notified(
        &mut self,
        id: u64,
        pending: u32,
        held: Option<Instant>,
    ) -> Result<Option<Instant>, End> {
        if held.is_some() {
            return Ok(held);
        }
        self.tell(Event::Notified { id, pending }).await?;
        let wait = self.pointless.wait(now(self.origin));
        if wait.is_zero() {
            self.cause = Cause::Notified;
            return Ok(None);
        }
        self.listener.gate().count_held();
        tracing::info!(?wait, "the last notifications brought nothing; this one waits");
        Ok(Some(Instant::now() + wait))
    }

    /// What a session that a notification caused came to.
    fn found(&mut self, outcome: &Outcome) {
        let found = match &outcome.welcome {
            Some(_) if outcome.pushed => Found::Push,
            Some(welcome) if welcome.pending == 0 => Found::Nothing,
            _ => Found::Unclear,
        };
        if self.pointless.ended(now(self.origin), found) {
            self.listener.gate().count_pointless();
        }
    }

    /// Older ones were sent before a session that has been since; one with nothing behind it only tried the way.
    fn is_current(&self, notification: &Notification) -> bool {
        notification.epoch >= self.store.memory().epoch && notification.pending > 0
    }

    /// Saves what was confirmed while no session was there to take it; `false` if nothing was.
    fn keep_confirmed(&mut self) -> Result<bool, StoreError> {
        let mut memory = self.store.memory();
        let new = self.take_confirmed(&mut memory);
        if new {
            self.store.save(memory, true)?;
        }
        Ok(new)
    }

    /// Takes what was confirmed since it was last looked at into the memory; `false` if that is nothing new.
    fn take_confirmed(&mut self, memory: &mut Memory) -> bool {
        let confirmed = *self.confirmations.borrow_and_update();
        match confirmed.beyond(memory) {
            Some(seq) => {
                memory.last = seq;
                true
            }
            None => false,
        }
    }

    /// Connects until a session has come to a good end.
    async fn sessions(&mut self, mut hints: Vec<String>) -> Result<(), End> {
        let mut failures = 0;
        let mut notified = self.cause == Cause::Notified;
        loop {
            // The node whose session broke, or whose anchor fell silent: a stopped one takes connections, and the time for
            // each.
            let avoid = self.avoid.take();
            // A round of nodes that do not answer takes most of a minute.
            let connected = tokio::select! {
                connected = connect(&self.identity, &self.config.servers, &hints, avoid) => connected,
                _ = self.leaving.changed() => return Err(End::Left),
            };
            // They have had their turn; a notification that came since names others.
            hints.clear();
            // What a node asked for, and what the terminal adds by itself.
            let wait = match connected {
                Ok((stream, address)) => {
                    let began = Instant::now();
                    self.asks = stream.get_ref().1.alpn_protocol() == Some(SESSION_ALPN[0]);
                    self.listener.binding.towards(address);
                    let config = self.begin()?;
                    let cause = config.offer.map(|offer| offer.cause);
                    let stayed = self.stays();
                    self.last_node = Some(address);
                    let gate = self.listener.gate();
                    let outcome = {
                        let mut around = Surroundings {
                            terminal: self.identity.terminal(),
                            origin: self.origin,
                            gate: &gate,
                            store: &mut self.store,
                            events: &self.events,
                            notifications: &mut self.listener.notifications,
                            binding: &mut self.listener.binding,
                            reach: &mut self.reach,
                            learned: self.config.learned.as_mut(),
                            confirmed: &self.confirmed,
                            confirmations: &mut self.confirmations,
                            leaving: &self.leaving,
                            moved: &self.moved,
                        };
                        receive(stream, address, config, &mut around).await?
                    };
                    self.given = outcome.given;
                    // Nobody took note of why it came: that is for the next one to say, if nothing newer is.
                    if outcome.welcome.is_none() && self.cause == Cause::default() {
                        self.cause = cause.unwrap_or_default();
                    }
                    if notified || outcome.pushed {
                        self.found(&outcome);
                    }
                    // A notification in a session that broke, or was left for it, is what the next one is for.
                    notified = outcome.notified;
                    let held = if notified { self.pointless.wait(now(self.origin)) } else { Duration::ZERO };
                    hints = outcome.hints;
                    self.avoid = matches!(outcome.closed, Closed::Lost(_)).then_some(address);
                    if let Some(welcome) = &outcome.welcome {
                        let asked = Duration::from_secs(u64::from(welcome.check_in));
                        self.check_in = check_in(&self.config, asked);
                    }
                    if outcome.welcome.is_some() && began.elapsed() >= HELD {
                        failures = 0;
                    }
                    self.disconnected(&outcome.closed).await?;
                    match disconnect::next(&outcome.closed, self.config.enrolment.is_some()) {
                        // It was found out in this very session that no notification will come: it stays in the next.
                        Next::Listen if self.stays() != stayed => continue,
                        Next::Listen => return Ok(()),
                        // The node did answer: what it asked for is waited, and the spread on top.
                        Next::Again(after) if outcome.welcome.is_some() => {
                            (after, backoff(failures).max(held))
                        }
                        Next::Again(after) => (after, backoff(failures).saturating_sub(after)),
                        Next::Refused(after, what) => {
                            self.tell(Event::Problem { what }).await?;
                            (after, Duration::ZERO)
                        }
                    }
                }
                Err(error) => {
                    let wait = backoff(failures);
                    tracing::info!(%error, again_in = ?wait, "cannot connect");
                    if failures == 3 {
                        self.tell(Event::Problem { what: format!("{error}; trying on") }).await?;
                    }
                    (Duration::ZERO, wait)
                }
            };
            failures = failures.saturating_add(1);
            self.wait(wait).await?;
        }
    }

    /// Waits before it connects again; another network ends what was no node's wish.
    async fn wait(&mut self, (asked, own): (Duration, Duration)) -> Result<(), End> {
        if !asked.is_zero() && tokio::time::timeout(asked, self.leaving.changed()).await.is_ok() {
            return Err(End::Left);
        }
        tokio::select! {
            () = tokio::time::sleep(own) => Ok(()),
            Ok(()) = self.moved.changed() => {
                self.has_moved();
                Ok(())
            }
            _ = self.leaving.changed() => Err(End::Left),
        }
    }

    /// What was known of the network does not hold any more; the next Hello says so.
    fn has_moved(&mut self) {
        self.reach.forget();
        self.cause = Cause::Moved;
    }

    /// A new attempt, saved before it is used. Its Hello confirms what was confirmed since the last session.
    fn begin(&mut self) -> Result<rules::Config, StoreError> {
        if self.moved.has_changed().unwrap_or(false) {
            // Said while it was connecting: this session is the one that it asks for.
            self.moved.mark_unchanged();
            self.has_moved();
        }
        let mut memory = self.store.memory();
        memory.attempt = Attempt(memory.attempt.0.saturating_add(1));
        let confirmed = self.take_confirmed(&mut memory);
        self.store.save(memory, confirmed)?;
        let port = self.listener.address().port();
        Ok(rules::Config {
            terminal: self.identity.terminal(),
            memory,
            listening: Some(Listening { port, key: self.identity.listening_key() }),
            offer: self.asks.then(|| self.reach.offer(std::mem::take(&mut self.cause))),
            seen: self.reach.seen(),
            bound: self.reach.bound(),
            linger: self.linger(),
            min_urgency: self.config.min_urgency,
            enrolment: self.config.enrolment.clone(),
            given: self.given,
        })
    }

    /// Whether it stays connected because no notification reaches it.
    fn stays(&self) -> bool {
        self.reach.class() == Class::None && self.config.stay_if_unreachable
    }

    fn linger(&self) -> Linger {
        match &self.config.learned {
            _ if self.stays() => Linger::Forever,
            Some(learned) => learned.wish(now(self.origin)),
            None => self.config.linger,
        }
    }

    async fn disconnected(&self, closed: &Closed) -> Result<(), End> {
        self.tell(Event::Disconnected { reason: disconnect::describe(closed) }).await
    }

    async fn tell(&self, event: Event) -> Result<(), End> {
        self.events.send(event).await.map_err(|_| End::Left)
    }
}
