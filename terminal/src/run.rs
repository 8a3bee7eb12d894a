//! The life of a terminal: connect once, then listen, and connect again because of a notification or a check-in.

use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::Rng;
use reveille_protocol::id::*;
use reveille_protocol::limits;
use reveille_protocol::service_list::row::{Linger, Urgency};
use reveille_protocol::session::terminal::{self as rules, Closed, Memory};
use reveille_protocol::wire::notification::Notification;
use reveille_protocol::wire::session::Listening;
use tokio::sync::{mpsc, watch};

use crate::connect::connect;
use crate::disconnect::{self, Next};
use crate::event::{Confirmed, Event};
use crate::identity::Identity;
use crate::listen::Listener;
use crate::receive::{Surroundings, receive};
use crate::resolve::backoff;
use crate::store::{Store, StoreError};

/// A session that was welcomed and held this long ends a row of failures. A shorter one continues it: else a node that
/// welcomes and then breaks would be connected to, at the price of a handshake and an attach, as fast as it answers.
const HELD: Duration = Duration::from_secs(1);

/// The shortest and the longest check-in period, whoever asks for another. Below a minute it is a connection held open at
/// the price of a handshake each; above a third of a registration's lifetime two that fail end the registration.
const CHECK_IN: (Duration, Duration) =
    (Duration::from_secs(60), Duration::from_secs(limits::REGISTRATION_LIFETIME.as_secs() / 3));

/// How a terminal behaves.
pub(crate) struct Config {
    pub(crate) servers: Vec<String>,
    pub(crate) linger: Linger,
    pub(crate) min_urgency: Urgency,
    pub(crate) enrolment: Option<Bytes>,
    pub(crate) check_in: Option<Duration>,
}

/// A terminal's task.
pub(crate) struct Run {
    config: Config,
    identity: Identity,
    store: Store,
    listener: Listener,
    events: mpsc::Sender<Event>,
    leaving: watch::Receiver<bool>,
    /// What the application has confirmed, said by each push that it was given.
    confirmed: watch::Sender<Confirmed>,
    /// The reading end; one for the whole life, so that what is confirmed between two sessions is not overlooked.
    confirmations: watch::Receiver<Confirmed>,
    /// Highest seq given to the application in this process.
    given: Seq,
    check_in: Duration,
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
        events: mpsc::Sender<Event>,
        leaving: watch::Receiver<bool>,
    ) -> Run {
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
            confirmed,
            confirmations,
            given: memory.last,
            store,
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
            self.sessions(std::mem::take(&mut hints)).await?;
            hints = self.listen().await?;
        }
    }

    /// Waits for a reason to connect; the nodes that a notification hints.
    async fn listen(&mut self) -> Result<Vec<String>, End> {
        // A tenth of spread, so that terminals which started together do not check in together.
        let spread = 0.9 + 0.2 * rand::rng().random::<f64>();
        let check_in = tokio::time::sleep(self.check_in.mul_f64(spread));
        tokio::pin!(check_in);
        loop {
            tokio::select! {
                Some(notification) = self.listener.notifications.recv() => {
                    if self.is_current(&notification) {
                        let Notification { id, pending, hints, .. } = notification;
                        self.tell(Event::Notified { id, pending }).await?;
                        return Ok(hints);
                    }
                }
                () = &mut check_in => {
                    self.tell(Event::CheckIn).await?;
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

    /// Older ones were sent before a session that has been since.
    fn is_current(&self, notification: &Notification) -> bool {
        notification.epoch >= self.store.memory().epoch
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
        // The node whose session broke; a stopped one takes connections, and the time for each.
        let mut avoid = None;
        loop {
            // A round of nodes that do not answer takes most of a minute.
            let connected = tokio::select! {
                connected = connect(&self.identity, &self.config.servers, &hints, avoid) => connected,
                _ = self.leaving.changed() => return Err(End::Left),
            };
            // They have had their turn; a notification that came since names others.
            hints.clear();
            let wait = match connected {
                Ok((stream, address)) => {
                    let began = Instant::now();
                    let config = self.begin()?;
                    let outcome = {
                        let mut around = Surroundings {
                            terminal: self.identity.terminal(),
                            origin: self.origin,
                            gate: &self.listener.gate(),
                            store: &mut self.store,
                            events: &self.events,
                            notifications: &mut self.listener.notifications,
                            confirmed: &self.confirmed,
                            confirmations: &mut self.confirmations,
                            leaving: &self.leaving,
                        };
                        receive(stream, address, config, &mut around).await?
                    };
                    self.given = outcome.given;
                    hints = outcome.hints;
                    avoid = matches!(outcome.closed, Closed::Lost(_)).then_some(address);
                    if let Some(welcome) = &outcome.welcome {
                        let asked = Duration::from_secs(u64::from(welcome.check_in));
                        self.check_in = check_in(&self.config, asked);
                    }
                    if outcome.welcome.is_some() && began.elapsed() >= HELD {
                        failures = 0;
                    }
                    self.disconnected(&outcome.closed).await?;
                    match disconnect::next(&outcome.closed) {
                        Next::Listen => return Ok(()),
                        // The node did answer: what it asked for is waited, and the spread on top.
                        Next::Again(after) if outcome.welcome.is_some() => after + backoff(failures),
                        Next::Again(after) => backoff(failures).max(after),
                        Next::Refused(after, what) => {
                            self.tell(Event::Problem { what }).await?;
                            after
                        }
                    }
                }
                Err(error) => {
                    let wait = backoff(failures);
                    tracing::info!(%error, again_in = ?wait, "cannot connect");
                    if failures == 3 {
                        self.tell(Event::Problem { what: format!("{error}; trying on") }).await?;
                    }
                    wait
                }
            };
            failures = failures.saturating_add(1);
            if tokio::time::timeout(wait, self.leaving.changed()).await.is_ok() {
                return Err(End::Left);
            }
        }
    }

    /// A new attempt, saved before it is used. Its Hello confirms what was confirmed since the last session.
    fn begin(&mut self) -> Result<rules::Config, StoreError> {
        let mut memory = self.store.memory();
        memory.attempt = Attempt(memory.attempt.0.saturating_add(1));
        let confirmed = self.take_confirmed(&mut memory);
        self.store.save(memory, confirmed)?;
        let port = self.listener.address().port();
        Ok(rules::Config {
            terminal: self.identity.terminal(),
            memory,
            listening: Some(Listening { port, key: self.identity.listening_key() }),
            linger: self.config.linger,
            min_urgency: self.config.min_urgency,
            enrolment: self.config.enrolment.clone(),
            given: self.given,
        })
    }

    async fn disconnected(&self, closed: &Closed) -> Result<(), End> {
        self.tell(Event::Disconnected { reason: disconnect::describe(closed) }).await
    }

    async fn tell(&self, event: Event) -> Result<(), End> {
        self.events.send(event).await.map_err(|_| End::Left)
    }
}
