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
use crate::event::{Confirmation, Event};
use crate::identity::Identity;
use crate::listen::Listener;
use crate::receive::{Surroundings, receive};
use crate::resolve::backoff;
use crate::store::{Store, StoreError};

/// Shortest time between check-ins, whoever asks for less: by mistake a cluster could have all its terminals connect in
/// a loop. They are a last resort; what is urgent is notified.
const LEAST_CHECK_IN: Duration = Duration::from_secs(60);

/// Sessions that end sooner than this, and again and again, are made less and less often.
const WORTH: Duration = Duration::from_secs(5);

/// Failures in a row after which the application is told: fewer happen whenever a node restarts.
const TOLD_AFTER: u32 = 4;

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
    confirmed: watch::Sender<Confirmation>,
    /// Kept from session to session: one that is made between two of them must not be taken for seen.
    confirmations: watch::Receiver<Confirmation>,
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
            watch::channel(Confirmation { stream: memory.stream, seq: memory.last });
        Run {
            check_in: bounded_check_in(config.check_in.unwrap_or(limits::CHECK_IN)),
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
        let mut end = self.live().await;
        if let Err(End::Left) = end {
            // Confirmed with no session open: the Hello of the next start tells it.
            end = self.confirm_offline().map(|_| ()).map_err(End::Store);
        }
        if let Err(End::Store(error)) = end {
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
            self.sessions(&std::mem::take(&mut hints)).await?;
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
                // Who leaves does not connect for anything else.
                biased;
                // Set, or the handle is gone: the same.
                _ = self.leaving.changed() => return Err(End::Left),
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
                    if self.confirm_offline()? {
                        return Ok(Vec::new());
                    }
                }
            }
        }
    }

    /// Older ones were sent before a session that has been since.
    fn is_current(&self, notification: &Notification) -> bool {
        notification.epoch >= self.store.memory().epoch
    }

    /// Saves what was confirmed while no session was open; whether that was anything new.
    fn confirm_offline(&mut self) -> Result<bool, StoreError> {
        let mut memory = self.store.memory();
        let new = self.take_confirmed(&mut memory);
        if new {
            self.store.save(memory, true)?;
        }
        Ok(new)
    }

    /// Takes in what was confirmed while no session was open; it must be saved durably if it was anything new.
    fn take_confirmed(&mut self, memory: &mut Memory) -> bool {
        let Confirmation { stream, seq } = *self.confirmations.borrow_and_update();
        let new = stream == memory.stream && seq > memory.last && seq <= self.given;
        if new {
            memory.last = seq;
        }
        new
    }

    /// Connects until a session has come to a good end.
    async fn sessions(&mut self, hints: &[String]) -> Result<(), End> {
        let mut failures: u32 = 0;
        // Sessions in a row that ended as soon as they were welcome.
        let mut short: u32 = 0;
        loop {
            let mut wait = backoff(failures);
            let mut leaving = self.leaving.clone();
            let connected = tokio::select! {
                connected = connect(&self.identity, &self.config.servers, hints) => connected,
                _ = leaving.changed() => return Err(End::Left),
            };
            match connected {
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
                    failures = failures.saturating_add(1);
                    if let Some(welcome) = &outcome.welcome {
                        // A session that lingers for months ends in this loop too; only what fails from now on counts.
                        failures = 0;
                        short = if began.elapsed() < WORTH { short.saturating_add(1) } else { 0 };
                        let asked = Duration::from_secs(u64::from(welcome.check_in));
                        self.check_in = bounded_check_in(self.config.check_in.unwrap_or(asked));
                    }
                    self.disconnected(&outcome.closed).await?;
                    match disconnect::next(&outcome.closed) {
                        Next::Listen => return Ok(()),
                        // The node did answer: only what it asked for is waited, and a little spread.
                        Next::Again(after) if outcome.welcome.is_some() => wait = after + backoff(short),
                        Next::Again(after) => wait = wait.max(after),
                        Next::Refused(after, what) => {
                            self.tell(Event::Problem { what }).await?;
                            wait = after;
                        }
                    }
                }
                Err(error) => {
                    tracing::info!(%error, again_in = ?wait, "cannot connect");
                    failures = failures.saturating_add(1);
                    if failures == TOLD_AFTER {
                        self.tell(Event::Problem { what: format!("{error}; trying on") }).await?;
                    }
                }
            }
            if tokio::time::timeout(wait, self.leaving.changed()).await.is_ok() {
                return Err(End::Left);
            }
        }
    }

    /// A new attempt, saved before it is used. Its Hello tells what was confirmed since the last session.
    fn begin(&mut self) -> Result<rules::Config, StoreError> {
        let mut memory = self.store.memory();
        let confirmed = self.take_confirmed(&mut memory);
        memory.attempt = Attempt(memory.attempt.0 + 1);
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

/// Above, a registration must not end for want of a sign of its terminal; the jitter fits below that too.
fn bounded_check_in(asked: Duration) -> Duration {
    asked.clamp(LEAST_CHECK_IN, limits::REGISTRATION_LIFETIME / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_check_in_period_makes_a_loop_or_overflows() {
        assert_eq!(bounded_check_in(Duration::ZERO), LEAST_CHECK_IN);
        assert_eq!(bounded_check_in(limits::CHECK_IN), limits::CHECK_IN);
        assert!(bounded_check_in(Duration::MAX).mul_f64(1.1) < limits::REGISTRATION_LIFETIME);
    }
}
