//! The terminal's side: when to send keepalives, and what to make of the answers. Which anchor, which socket, and
//! what to do without an anchor are not decided here.

use std::net::SocketAddr;
use std::time::Duration;

pub use super::talk::Identity;
use super::talk::{Missing, Reply, Talk, mix};
use crate::limits;
use crate::time::Instant;
use crate::wire::stun::{Packet, PinSlot};

/// The second keepalive follows the first after this: a router that has seen traffic both ways for more than 2 s
/// keeps the binding four times longer (Linux conntrack, "assured").
const SECOND: Duration = Duration::from_secs(3);

/// What a keeper is born with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keeping {
    /// Who it speaks for.
    pub identity: Identity,
    /// Number of the last keepalive that was sent under this handle, by an earlier keeper: 0 if the handle is new.
    /// An anchor ignores what is not above the last that it heard.
    pub number: u64,
    /// Time between keepalives, 1 s to [`limits::KEEPALIVE_LONGEST`], less or more by a tenth.
    pub period: Duration,
    /// Random: for jitter, and for transaction ids that cannot be guessed.
    pub seed: u64,
}

/// Everything that can happen to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// [`Keeper::poll_timeout`] has come.
    Timeout,
    /// STUN from the anchor's address.
    Received(&'a [u8]),
    /// A session is open: the terminal needs no binding.
    SessionOpened,
    /// It is over.
    SessionClosed,
    /// The device slept, or its network may be another.
    Resumed,
    /// [`super::life`] wants the second binding rung: asked for at once, even while a session is open.
    RingSecond,
    /// The time between keepalives is another from the next on.
    Period(Duration),
}

/// What the shell must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Send this to the anchor.
    Send(Packet),
    /// The anchor can dial this address: told when it is first known, changed, or known again after a session, a sleep or a
    /// loss.
    Mapped(SocketAddr),
    /// A notification waits: connect now.
    Waiting,
    /// No answers: look for another anchor. Told again each period while it lasts.
    Lost,
}

/// Keeps one binding with one anchor.
#[derive(Debug)]
pub struct Keeper {
    talk: Talk,
    period: Duration,
    random: u64,
    session: bool,
    /// Keepalives, repeats not counted.
    sent: u64,
    /// `None`: the binding may be gone, or never was.
    last: Option<Instant>,
    next: Instant,
    mapped: Option<SocketAddr>,
}

impl Keeper {
    /// Without a session, and due at once; tell it of a session that is open before the first timeout.
    pub fn new(now: Instant, keeping: &Keeping) -> Keeper {
        let mut keeper = Keeper {
            talk: Talk::new(keeping.identity, PinSlot::Primary, keeping.number, mix(keeping.seed)),
            period: Duration::ZERO,
            random: keeping.seed,
            session: false,
            sent: 0,
            last: None,
            next: now,
            mapped: None,
        };
        keeper.set_period(keeping.period);
        keeper
    }

    /// Number of the last keepalive: for the keeper after this one, and for [`super::life::Life::new`].
    pub fn number(&self) -> u64 {
        self.talk.number()
    }

    /// By how much a keepalive may be earlier or later than its period.
    pub fn jitter(&self) -> Duration {
        self.period / 10
    }

    /// When it next wants [`Event::Timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.talk.poll_timeout().or((!self.session).then_some(self.next))
    }

    /// Takes an event.
    pub fn handle(&mut self, now: Instant, event: Event<'_>) -> Vec<Command> {
        match event {
            Event::Timeout => self.timeout(now),
            Event::Received(datagram) => return self.received(now, datagram),
            Event::SessionOpened => {
                if self.talk.poll_timeout().is_some() {
                    self.last = None;
                }
                self.session = true;
                self.talk.forget();
                None
            }
            Event::SessionClosed => {
                self.session = false;
                self.mapped = None;
                let old = self.last.is_none_or(|last| now.since(last) > self.period / 2);
                old.then(|| self.start_anew(now))
            }
            Event::Resumed => {
                (self.last, self.mapped) = (None, None);
                (!self.session).then(|| self.start_anew(now))
            }
            Event::RingSecond => {
                self.talk.ring = true;
                Some(self.request(now))
            }
            Event::Period(period) => {
                self.set_period(period);
                None
            }
        }
        .into_iter()
        .collect()
    }

    fn timeout(&mut self, now: Instant) -> Option<Command> {
        match self.talk.missing(now) {
            Some(Missing::Repeat(packet)) => {
                self.spoke(now);
                Some(Command::Send(packet))
            }
            Some(Missing::Lost) => {
                self.mapped = None;
                self.talk.ring = false;
                self.next = now + self.gap();
                Some(Command::Lost)
            }
            None if self.session || self.talk.poll_timeout().is_some() || now < self.next => None,
            None => {
                self.sent += 1;
                Some(self.request(now))
            }
        }
    }

    fn received(&mut self, now: Instant, datagram: &[u8]) -> Vec<Command> {
        let waits = self.talk.poll_timeout().is_some();
        match self.talk.received(now, datagram, self.period) {
            Some(Reply::Mapped { address, waiting }) => {
                self.talk.ring = false;
                let changed = self.mapped.replace(address) != Some(address);
                let mapped = changed.then_some(Command::Mapped(address));
                let waiting = (waiting && !self.session).then_some(Command::Waiting);
                mapped.into_iter().chain(waiting).collect()
            }
            Some(Reply::Challenged) if waits || !self.session => vec![self.request(now)],
            Some(Reply::Challenged | Reply::Ring { .. }) | None => Vec::new(),
        }
    }

    /// As with the first keepalive: a second one follows soon.
    fn start_anew(&mut self, now: Instant) -> Command {
        self.sent = 1;
        self.request(now)
    }

    fn request(&mut self, now: Instant) -> Command {
        self.spoke(now);
        Command::Send(self.talk.request(now))
    }

    fn spoke(&mut self, now: Instant) {
        self.last = Some(now);
        self.next = now + if self.sent < 2 { SECOND.min(self.period) } else { self.gap() };
    }

    /// The period, less or more by up to a tenth.
    fn gap(&mut self) -> Duration {
        self.random = mix(self.random);
        self.period * (900 + (self.random % 201) as u32) / 1000
    }

    fn set_period(&mut self, period: Duration) {
        self.period = period.clamp(Duration::from_secs(1), limits::KEEPALIVE_LONGEST);
        // The longest gap, rounded up: then two of what was promised always outlast one lost keepalive.
        let promised = (self.period * 11 / 10).as_millis().div_ceil(1000);
        self.talk.period = u16::try_from(promised).unwrap_or(limits::MAX_KEEPALIVE_GAP);
    }
}
