//! How long the terminal's NAT keeps a silent binding, found by trying: a second binding falls silent for a while,
//! then the first asks the anchor to ring it. Whether and when to measure is not decided here, and sockets are the
//! shell's.

use std::time::Duration;

use super::keeper::Identity;
use super::talk::{Missing, Reply, Talk};
use crate::limits;
use crate::time::Instant;
use crate::wire::stun::{Packet, PinSlot};

/// The silences that are tried, upward: the known timeouts of routers lie between.
const SILENCES: [u16; 5] = [30, 60, 120, 240, 480];
/// A ring that was asked for comes within this: longer than the keeper repeats, 6.5 s.
const RING_WAIT: Duration = Duration::from_secs(10);
/// A silence fails for good at the second time: a ring may have been lost.
const TRIES: u32 = 2;

/// Everything that can happen to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// [`Life::poll_timeout`] has come.
    Timeout,
    /// STUN from the anchor's address, on the second socket.
    Received(&'a [u8]),
}

/// What the shell must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Send this to the anchor, from the second socket.
    SendFromSecond(Packet),
    /// Give the keeper [`super::keeper::Event::RingSecond`].
    RingSecond,
    /// Measured; drop this and the second socket. The recommended keepalive period: 0.8 of the longest silence that
    /// the binding outlived, [`limits::KEEPALIVE_SHORTEST`] to [`limits::KEEPALIVE_LONGEST`]. `None`: the anchor never
    /// answered the second socket, so nothing was learned.
    Done(Option<Duration>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// To be started.
    Idle(Instant),
    /// The second binding is made known to the anchor.
    Registering,
    /// It is silent until then.
    Silent(Instant),
    /// The anchor was asked to ring it; without a ring by then the silence was too long.
    Asked(Instant),
    Done,
}

/// One measuring.
#[derive(Debug)]
pub struct Life {
    talk: Talk,
    stage: Stage,
    /// Which of the silences.
    step: usize,
    failures: u32,
    /// Longest silence that was outlived; `None`: none was tried to its end.
    lived: Option<Duration>,
    /// Rings up to this number are old.
    rung: u64,
}

impl Life {
    /// Due at once. `number`: of the last keepalive that an earlier measuring sent under this handle, else 0.
    /// `keeper`: [`super::keeper::Keeper::number`] now; replays of rings that were asked for earlier are ignored.
    pub fn new(now: Instant, identity: Identity, number: u64, keeper: u64, seed: u64) -> Life {
        let talk = Talk::new(identity, PinSlot::Second, number, seed);
        Life { talk, stage: Stage::Idle(now), step: 0, failures: 0, lived: None, rung: keeper }
    }

    /// Number of the last keepalive through the second binding.
    pub fn number(&self) -> u64 {
        self.talk.number()
    }

    /// When it next wants [`Event::Timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.stage {
            Stage::Idle(at) | Stage::Silent(at) | Stage::Asked(at) => Some(at),
            Stage::Registering => self.talk.poll_timeout(),
            Stage::Done => None,
        }
    }

    /// Takes an event.
    pub fn handle(&mut self, now: Instant, event: Event<'_>) -> Option<Command> {
        match event {
            Event::Timeout if self.poll_timeout().is_some_and(|at| at <= now) => self.timeout(now),
            Event::Timeout => None,
            Event::Received(datagram) => {
                let reply = self.talk.received(now, datagram, self.silence())?;
                self.received(now, reply)
            }
        }
    }

    fn timeout(&mut self, now: Instant) -> Option<Command> {
        match self.stage {
            Stage::Idle(_) => Some(self.register(now)),
            Stage::Registering => match self.talk.missing(now)? {
                Missing::Repeat(packet) => Some(Command::SendFromSecond(packet)),
                Missing::Lost => Some(self.done()),
            },
            Stage::Silent(_) => {
                self.stage = Stage::Asked(now + RING_WAIT);
                Some(Command::RingSecond)
            }
            Stage::Asked(_) => {
                self.lived = self.lived.or(Some(Duration::ZERO));
                self.failures += 1;
                Some(if self.failures < TRIES { self.register(now) } else { self.done() })
            }
            Stage::Done => None,
        }
    }

    fn received(&mut self, now: Instant, reply: Reply) -> Option<Command> {
        match (reply, self.stage) {
            (Reply::Mapped { .. }, Stage::Registering) => {
                self.stage = Stage::Silent(now + self.silence());
                None
            }
            (Reply::Challenged, Stage::Registering) => Some(Command::SendFromSecond(self.talk.request(now))),
            (Reply::Ring { number }, stage) if number > self.rung => {
                self.rung = number;
                match stage {
                    // The ring of a repeat: what comes in may keep the binding, so the silence starts anew.
                    Stage::Silent(_) => self.stage = Stage::Silent(now + self.silence()),
                    Stage::Asked(_) => return Some(self.outlived(now)),
                    Stage::Idle(_) | Stage::Registering | Stage::Done => {}
                }
                None
            }
            _ => None,
        }
    }

    fn outlived(&mut self, now: Instant) -> Command {
        self.lived = Some(self.silence());
        (self.step, self.failures) = (self.step + 1, 0);
        if self.step < SILENCES.len() { self.register(now) } else { self.done() }
    }

    fn register(&mut self, now: Instant) -> Command {
        self.stage = Stage::Registering;
        self.talk.period = SILENCES[self.step];
        Command::SendFromSecond(self.talk.request(now))
    }

    fn done(&mut self) -> Command {
        self.stage = Stage::Done;
        let clamp = |d: Duration| d.clamp(limits::KEEPALIVE_SHORTEST, limits::KEEPALIVE_LONGEST);
        Command::Done(self.lived.map(|lived| clamp(lived * 4 / 5)))
    }

    fn silence(&self) -> Duration {
        Duration::from_secs(u64::from(SILENCES[self.step.min(SILENCES.len() - 1)]))
    }
}
