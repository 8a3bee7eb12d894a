//! The terminal's end of a session: from Hello to Goodbye, and what it must have saved before it says so.
//! Decides, never performs.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;

use crate::canary::{Canary, canary};
use crate::id::*;
use crate::limits;
use crate::service_list::row::{Linger, Urgency};
use crate::time::Instant;
use crate::wire::session::*;

/// What a terminal keeps on its disk. Saved before anything that depends on it is said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Raised and saved before each connection.
    pub attempt: Attempt,
    /// The life it knows.
    pub stream: Stream,
    /// Last granted epoch in that life; notifications of lower ones are ignored.
    pub epoch: Epoch,
    /// Everything up to here has been confirmed by the application.
    pub last: Seq,
}

/// A dial is given up within this, and the node has said so.
const DIAL: Duration = Duration::from_secs(4);

/// What a session is begun with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Who.
    pub terminal: TerminalId,
    /// The memory, its attempt raised and saved.
    pub memory: Memory,
    /// Where it listens for notifications.
    pub listening: Option<Listening>,
    /// How it believes to be reached; `None`: the node speaks a protocol that does not ask.
    pub offer: Option<Offer>,
    /// The address that nodes saw it come from when that was found out.
    pub seen: Option<IpAddr>,
    /// The address that nodes saw it come from when it last kept a binding, if it did so within [`limits::BINDING_LASTS`].
    pub bound: Option<IpAddr>,
    /// How long it would like to stay.
    pub linger: Linger,
    /// Pushes below this need not wake it.
    pub min_urgency: Urgency,
    /// Its tenant's enrolment token.
    pub enrolment: Option<Bytes>,
    /// Pushes up to here were given to the application by an earlier session of this process and are not yet
    /// confirmed; they are not given again.
    pub given: Seq,
}

/// Everything that can happen to a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The connection is there.
    Connected,
    /// The node said something.
    Frame(NodeFrame),
    /// The bytes it sent are no frame.
    Malformed,
    /// The connection is gone.
    PeerClosed,
    /// The application has confirmed every push up to this one.
    Confirmed(Seq),
    /// A notification came although there is a session: is it still alive?
    Notified,
    /// The device slept, or has another network: is the session still alive?
    Moved,
    /// The anchor has taken the binding.
    Bound,
    /// The application wants the session to end.
    Leave,
    /// [`Terminal::poll_timeout`] has come.
    Timeout,
}

/// What the shell must do, in order; a `Save` must be on disk before what follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Write a frame.
    Send(TerminalFrame),
    /// Make the memory durable.
    Save(Memory),
    /// The session is open.
    Welcomed(Welcome),
    /// Everything before was lost with the old stream, or jumped over: the application should know.
    Reset {
        /// The first seq that is to come.
        next: Seq,
    },
    /// Give a push to the application.
    Deliver(Push),
    /// Keep a binding with this anchor from now on, and with no other; say so by `Bound`.
    Bind(Anchor),
    /// Keep none: notifications come without.
    Unbind,
    /// It was tried how notifications reach the terminal; where nodes see it come from.
    Reached(Class, IpAddr),
    /// Close the connection; the reason why.
    Close(Closed),
}

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closed {
    /// As the terminal wished.
    Done,
    /// The node said Bye.
    Bye(Bye),
    /// The connection broke, the node fell silent or broke the protocol, or more came while the terminal was leaving:
    /// connect again.
    Lost(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting,
    AwaitWelcome,
    Open,
    Leaving,
    Closed,
}

/// Is the session still the terminal's current one?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doubt {
    None,
    /// A notification came in the session, and no push since.
    Asked,
    /// The node has answered a ping since then.
    Answered,
}

/// The machine.
#[derive(Debug)]
pub struct Terminal {
    config: Config,
    memory: Memory,
    phase: Phase,
    /// Highest seq given to the application.
    given: Seq,
    /// Highest seq that the node has named in this session: it takes no confirmation above.
    named: Seq,
    linger: Linger,
    /// Pushes that the node says are still to come.
    remaining: u32,
    asked_again: Option<Seq>,
    pinged: bool,
    doubt: Doubt,
    /// A notification came while it was leaving.
    woken: bool,
    /// With whom it may keep a binding.
    anchor: Option<Anchor>,
    /// The way that is being tried, and by when that must be over.
    trying: Option<(Class, Instant)>,
    /// It is the second way that is tried.
    second: bool,
    asked_pinned: bool,
    last_push: Instant,
    /// The Welcome must have come by then.
    welcome_by: Instant,
    deadline: Option<Instant>,
}

impl Terminal {
    /// A session whose connection is being made.
    pub fn new(config: Config, now: Instant) -> Terminal {
        Terminal {
            memory: config.memory,
            given: config.given.max(config.memory.last),
            named: Seq(0),
            phase: Phase::Connecting,
            linger: Linger::AtOnce,
            remaining: 0,
            asked_again: None,
            pinged: false,
            doubt: Doubt::None,
            woken: false,
            anchor: None,
            trying: None,
            second: false,
            asked_pinned: false,
            last_push: now,
            welcome_by: now,
            deadline: None,
            config,
        }
    }

    /// When to call again with [`Event::Timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadline
    }

    /// What it remembers now.
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// Highest seq given to the application, for the next session of this process.
    pub fn given(&self) -> Seq {
        self.given
    }

    /// Takes one event in. After a `Close` nothing more comes out but what the application confirms.
    pub fn handle(&mut self, now: Instant, event: Event) -> Vec<Command> {
        let mut out = Vec::new();
        match (self.phase, event) {
            (_, Event::Confirmed(seq)) => self.confirmed(now, seq, &mut out),
            (Phase::Closed, _) => {}
            (Phase::Connecting, Event::Connected) => self.connected(now, &mut out),
            (Phase::Leaving, Event::PeerClosed) => self.left(&mut out),
            (_, Event::PeerClosed) => self.close(Closed::Lost("the connection broke"), &mut out),
            (_, Event::Malformed) => self.close(Closed::Lost("the node sent no frame"), &mut out),
            (_, Event::Frame(frame)) => self.frame(now, frame, &mut out),
            (Phase::Open, Event::Notified) => self.notified(now, &mut out),
            (Phase::Open, Event::Moved) => self.ping(now, &mut out),
            (Phase::Leaving, Event::Notified) => self.woken = true,
            (Phase::Open, Event::Bound) => {
                if let Some((Class::Pinned, _)) = self.trying
                    && !std::mem::replace(&mut self.asked_pinned, true)
                {
                    out.push(Command::Send(TerminalFrame::Try(Try { class: Class::Pinned })));
                }
            }
            (Phase::Open, Event::Leave) => self.goodbye(now, &mut out),
            (_, Event::Leave) => self.close(Closed::Done, &mut out),
            (_, Event::Timeout) => self.timeout(now, &mut out),
            (_, Event::Connected | Event::Notified | Event::Moved | Event::Bound) => {}
        }
        out
    }

    fn connected(&mut self, now: Instant, out: &mut Vec<Command>) {
        self.phase = Phase::AwaitWelcome;
        // An attach may wait for an election; the node answers Unavailable before this.
        self.welcome_by = now + limits::HELLO_DEADLINE * 2;
        self.await_welcome(now, limits::WELCOME_DOUBT);
        if let Some(offer) = self.config.offer {
            out.push(Command::Send(TerminalFrame::Offer(offer)));
        }
        out.push(Command::Send(TerminalFrame::Hello(Hello {
            terminal: self.config.terminal,
            attempt: self.memory.attempt,
            stream: self.memory.stream,
            last: self.memory.last,
            listening: self.config.listening,
            linger: self.config.linger,
            min_urgency: self.config.min_urgency,
            enrolment: self.config.enrolment.clone(),
        })));
    }

    fn await_welcome(&mut self, now: Instant, wait: Duration) {
        self.deadline = Some((now + wait).min(self.welcome_by));
    }

    fn frame(&mut self, now: Instant, frame: NodeFrame, out: &mut Vec<Command>) {
        match (self.phase, frame) {
            (Phase::AwaitWelcome, NodeFrame::Welcome(welcome)) => self.welcome(now, welcome, out),
            (Phase::Open, NodeFrame::Push(push)) => self.push(now, push, out),
            (Phase::Open, NodeFrame::Gap(gap)) => self.gap(now, gap, out),
            (Phase::AwaitWelcome, NodeFrame::Anchor(anchor)) => self.anchor = Some(anchor),
            (Phase::Open, NodeFrame::Anchor(anchor)) if self.anchor.is_none() => {
                self.anchor = Some(anchor);
                self.anchored(now, out);
                self.settle(now, out);
            }
            (Phase::Open, NodeFrame::Tried(tried)) => self.tried(now, tried, out),
            (_, NodeFrame::Ping(nonce)) => out.push(Command::Send(TerminalFrame::Pong(nonce))),
            (_, NodeFrame::Pong(_)) => {
                self.pinged = false;
                if self.doubt == Doubt::Asked {
                    self.doubt = Doubt::Answered;
                }
                if self.phase == Phase::AwaitWelcome {
                    self.await_welcome(now, limits::WELCOME_DOUBT);
                }
                self.settle(now, out);
            }
            (Phase::AwaitWelcome, NodeFrame::Bye(bye)) => {
                if let ByeReason::StaleAttempt(current) = bye.reason {
                    // The node knows a later attempt of ours than our disk does: go on from there.
                    self.memory.attempt = self.memory.attempt.max(current);
                    out.push(Command::Save(self.memory));
                }
                self.close(Closed::Bye(bye), out);
            }
            (Phase::Leaving, NodeFrame::Bye(Bye { reason: ByeReason::Done, .. })) => {
                self.left(out);
            }
            (_, NodeFrame::Bye(bye)) => self.close(Closed::Bye(bye), out),
            (Phase::Leaving, _) => {}
            _ => self.close(Closed::Lost("the node broke the protocol"), out),
        }
    }

    fn welcome(&mut self, now: Instant, welcome: Welcome, out: &mut Vec<Command>) {
        self.phase = Phase::Open;
        self.linger = welcome.linger;
        self.remaining = welcome.pending;
        self.named = welcome.acked;
        self.last_push = now;
        let reset = welcome.stream != self.memory.stream;
        if reset {
            self.memory.last = welcome.acked;
            self.given = welcome.acked;
        }
        let jump = welcome.acked > self.memory.last;
        if jump {
            // The cluster holds confirmations that our disk does not: what lies between is over.
            self.memory.last = welcome.acked;
            self.given = self.given.max(welcome.acked);
        }
        let known_before = self.memory.stream != Stream(0);
        self.memory.stream = welcome.stream;
        self.memory.epoch = welcome.epoch;
        out.push(Command::Save(self.memory));
        out.push(Command::Welcomed(welcome));
        if (reset && known_before) || jump {
            out.push(Command::Reset { next: self.memory.last.next() });
        }
        self.anchored(now, out);
        self.settle(now, out);
    }

    /// Keeps its binding as before, unless it must be found out first how it is reached: it is new here, its address is
    /// another, or nothing has reached it for long.
    fn anchored(&mut self, now: Instant, out: &mut Vec<Command>) {
        let Some(anchor) = &self.anchor else { return };
        let Offer { class, cause } = self.config.offer.unwrap_or_default();
        // Through a NAT it may come from one address after the other, and the binding does not mind.
        let moved = class != Class::Pinned && self.config.seen != Some(anchor.seen);
        let broken = cause == Cause::CheckIn && self.remaining > 0;
        if class == Class::Pinned && !broken {
            return out.push(Command::Bind(anchor.clone()));
        }
        if self.config.listening.is_none() || !(class == Class::Untried || moved || broken) {
            return out.push(Command::Unbind);
        }
        // A NAT that lets everybody in through a binding does so until it forgets it: directly the terminal would be
        // reached now, and not any more when it is needed.
        match self.config.bound == Some(anchor.seen) {
            true => self.try_way(Class::Pinned, now + (limits::TRYING - DIAL), out),
            false => self.try_way(Class::Direct, now + limits::TRYING, out),
        }
    }

    fn try_way(&mut self, class: Class, by: Instant, out: &mut Vec<Command>) {
        self.trying = Some((class, by));
        match (class, &self.anchor) {
            (Class::Pinned, Some(anchor)) => out.push(Command::Bind(anchor.clone())),
            _ => {
                // While it is tried whether any node can dial, a binding would let this one in, and not others.
                out.push(Command::Unbind);
                out.push(Command::Send(TerminalFrame::Try(Try { class: Class::Direct })));
            }
        }
    }

    fn tried(&mut self, now: Instant, tried: Tried, out: &mut Vec<Command>) {
        let (Some((trying, by)), Some(anchor)) = (self.trying, self.anchor.clone()) else { return };
        if trying != tried.class {
            return;
        }
        match (trying, tried.reached) {
            (class, true) => self.found(class, &anchor, out),
            (_, false) if std::mem::replace(&mut self.second, true) => self.found(Class::None, &anchor, out),
            (Class::Direct, false) => self.try_way(Class::Pinned, by, out),
            (_, false) => self.try_way(Class::Direct, now + DIAL, out),
        }
        self.settle(now, out);
    }

    fn found(&mut self, class: Class, anchor: &Anchor, out: &mut Vec<Command>) {
        self.trying = None;
        if class == Class::None {
            out.push(Command::Unbind);
        }
        out.push(Command::Reached(class, anchor.seen));
    }

    /// What was tried took too long: the node says nothing of its dial, and the next session asks again. Or the anchor says
    /// nothing: the node is asked all the same, so that it knows.
    fn tried_in_vain(&mut self, now: Instant, out: &mut Vec<Command>) {
        let trying = self.trying.take();
        if let Some((Class::Pinned, _)) = trying
            && !std::mem::replace(&mut self.asked_pinned, true)
        {
            self.trying = Some((Class::Pinned, now + limits::BYE_WAIT));
            out.push(Command::Send(TerminalFrame::Try(Try { class: Class::Pinned })));
        }
    }

    fn push(&mut self, now: Instant, push: Push, out: &mut Vec<Command>) {
        self.last_push = now;
        self.doubt = Doubt::None;
        self.named = self.named.max(push.seq);
        let late = canary(Canary::SwapInHandOff) && push.seq.next() == self.given;
        if late || canary(Canary::DeliverAfterAck) && push.seq <= self.given {
            out.push(Command::Deliver(push.clone()));
        }
        if push.seq <= self.memory.last {
            self.remaining = push.remaining;
            if !self.leaves_now() {
                out.push(Command::Send(TerminalFrame::Ack(self.ack())));
            }
        } else if push.seq <= self.given {
            self.remaining = push.remaining;
        } else if push.prev <= self.given || canary(Canary::AcceptGap) {
            self.given = push.seq;
            self.remaining = push.remaining;
            self.asked_again = None;
            out.push(Command::Deliver(push));
            if canary(Canary::AckBeforeConfirm) {
                self.confirmed(now, self.given, out);
            }
        } else if self.asked_again != Some(self.given.next()) {
            self.asked_again = Some(self.given.next());
            out.push(Command::Send(TerminalFrame::Resend(Resend { from: self.given.next() })));
        }
        self.settle(now, out);
    }

    /// Nothing more is to come for now. Later pushes name what they follow, so nothing needs to be jumped over, and a
    /// Gap that something overtook costs a wait instead of a push.
    fn gap(&mut self, now: Instant, gap: Gap, out: &mut Vec<Command>) {
        self.asked_again = None;
        if gap.from <= self.given.next() && gap.to > self.given {
            self.remaining = 0;
        }
        self.settle(now, out);
    }

    /// Saved first, then said: after a crash between the two the push comes again, never goes missing.
    fn confirmed(&mut self, now: Instant, seq: Seq, out: &mut Vec<Command>) {
        if seq <= self.memory.last || seq > self.given {
            return;
        }
        let told = self.ack();
        self.memory.last = seq;
        out.push(Command::Save(self.memory));
        if self.phase == Phase::Open && !self.leaves_now() && self.ack() != told {
            out.push(Command::Send(TerminalFrame::Ack(self.ack())));
        }
        self.settle(now, out);
    }

    /// What the node may be told. What an earlier session gave may be confirmed before this one sends it again; then
    /// the push that comes is answered.
    fn ack(&self) -> Ack {
        Ack { seq: self.memory.last.min(self.named) }
    }

    fn leaves_now(&self) -> bool {
        let all = self.remaining == 0 && self.given == self.memory.last;
        self.linger == Linger::AtOnce && all && self.trying.is_none()
    }

    /// Leaves if it is time to, else sets the deadline that fits the state.
    fn settle(&mut self, now: Instant, out: &mut Vec<Command>) {
        if self.phase != Phase::Open {
            return;
        }
        if self.leaves_now() {
            return self.goodbye(now, out);
        }
        if self.pinged {
            return;
        }
        let unconfirmed = self.given > self.memory.last;
        let by = self.trying.map(|(_, by)| by);
        let deadline = match self.linger.duration() {
            // The application takes its time; the node's own deadline bounds it.
            _ if unconfirmed => None,
            Some(_) if self.remaining > 0 => Some(self.last_push + limits::PROMISED_PUSH_WAIT),
            // A connection that broke without a word would keep it deaf for as long as it lingers.
            Some(linger) => Some((self.last_push + linger).min(now + limits::PING_AFTER)),
            None => Some(now + limits::PING_AFTER),
        };
        self.deadline = match (deadline, by) {
            // It lingers at least until it knows how it is reached.
            (Some(deadline), Some(by)) if self.linger != Linger::Forever => Some(deadline.max(by)),
            (deadline, by) => deadline.into_iter().chain(by).min(),
        };
    }

    /// Nothing is to come for now, and its time is not over.
    fn lingers(&self, now: Instant) -> bool {
        let over = |linger| self.remaining > 0 || now >= self.last_push + linger;
        !self.linger.duration().is_some_and(over)
    }

    fn goodbye(&mut self, now: Instant, out: &mut Vec<Command>) {
        self.phase = Phase::Leaving;
        self.deadline = Some(now + limits::BYE_WAIT);
        out.push(Command::Send(TerminalFrame::Goodbye(self.ack())));
    }

    /// The leader notifies a terminal with a session when that seems dead to it. A node that answers a ping may be the
    /// wrong one all the same: fenced without knowing it, or cut off from the leader.
    fn notified(&mut self, now: Instant, out: &mut Vec<Command>) {
        let confirmed_all = self.given == self.memory.last;
        if self.doubt == Doubt::Answered && confirmed_all {
            return self.close(Closed::Lost("notified again, but no push came by this session"), out);
        }
        self.doubt = Doubt::Asked;
        self.ping(now, out);
    }

    fn ping(&mut self, now: Instant, out: &mut Vec<Command>) {
        if !self.pinged {
            self.pinged = true;
            // A stopped node still holds the connection: only its answer counts.
            self.deadline = Some(now + Duration::from_secs(1));
            out.push(Command::Send(TerminalFrame::Ping(Nonce(now.0))));
        }
    }

    fn timeout(&mut self, now: Instant, out: &mut Vec<Command>) {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        match self.phase {
            Phase::Leaving => self.left(out),
            Phase::AwaitWelcome if now >= self.welcome_by => {
                self.close(Closed::Lost("no Welcome came"), out);
            }
            Phase::AwaitWelcome if !self.pinged => {
                self.ping(now, out);
                self.await_welcome(now, limits::WELCOME_PONG);
            }
            Phase::AwaitWelcome | Phase::Open if self.pinged => {
                self.close(Closed::Lost("no answer to a ping"), out)
            }
            Phase::Open if self.trying.is_some_and(|(_, by)| now >= by) => {
                self.tried_in_vain(now, out);
                self.settle(now, out);
            }
            Phase::Open if self.lingers(now) => self.ping(now, out),
            Phase::Open => self.goodbye(now, out),
            Phase::Connecting | Phase::AwaitWelcome | Phase::Closed => self.deadline = None,
        }
    }

    /// It has left as it wished; but what it was notified of meanwhile came too late for this session.
    fn left(&mut self, out: &mut Vec<Command>) {
        let why = if self.woken { Closed::Lost("notified while it was leaving") } else { Closed::Done };
        self.close(why, out);
    }

    fn close(&mut self, why: Closed, out: &mut Vec<Command>) {
        self.phase = Phase::Closed;
        self.deadline = None;
        out.push(Command::Close(why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(seq: u64, prev: u64) -> Event {
        Event::Frame(NodeFrame::Push(Push {
            seq: Seq(seq),
            prev: Seq(prev),
            maybe_seen: false,
            remaining: 0,
            lives_for: 1000,
            channel: Channel(0),
            headers: Vec::new(),
            body: Bytes::new(),
        }))
    }

    fn config() -> Config {
        Config {
            terminal: TerminalId([1; 16]),
            memory: Memory::default(),
            listening: None,
            offer: None,
            seen: None,
            bound: None,
            linger: Linger::Forever,
            min_urgency: Urgency::VeryLow,
            enrolment: None,
            given: Seq(0),
        }
    }

    fn connected() -> Terminal {
        let mut terminal = Terminal::new(config(), Instant(0));
        terminal.handle(Instant(0), Event::Connected);
        terminal
    }

    fn open(pending: u32) -> Terminal {
        let mut terminal = connected();
        terminal.handle(Instant(0), Event::Frame(NodeFrame::Welcome(welcome(pending))));
        terminal
    }

    fn welcome(pending: u32) -> Welcome {
        Welcome {
            node: NodeId(1),
            stream: Stream(7),
            epoch: Epoch(1),
            acked: Seq(0),
            pending,
            linger: Linger::AtOnce,
            notify_secret: [0; 32],
            check_in: 1,
        }
    }

    #[test]
    fn a_node_that_says_nothing_to_a_hello_is_asked_and_left() {
        let (mut stopped, mut slow) = (connected(), connected());
        let doubt = Instant(0) + limits::WELCOME_DOUBT;
        for terminal in [&mut stopped, &mut slow] {
            assert_eq!(terminal.poll_timeout(), Some(doubt));
            let asked = terminal.handle(doubt, Event::Timeout);
            assert!(matches!(asked[..], [Command::Send(TerminalFrame::Ping(_))]), "{asked:?}");
        }
        let left = stopped.handle(doubt + limits::WELCOME_PONG, Event::Timeout);
        assert_eq!(left, [Command::Close(Closed::Lost("no answer to a ping"))]);

        // One that answers is waited for, but not for ever.
        let mut now = doubt;
        let left = loop {
            slow.handle(now, Event::Frame(NodeFrame::Pong(Nonce(now.0))));
            now = slow.poll_timeout().expect("a deadline");
            let commands = slow.handle(now, Event::Timeout);
            if !matches!(commands[..], [Command::Send(TerminalFrame::Ping(_))]) {
                break commands;
            }
        };
        assert_eq!(left, [Command::Close(Closed::Lost("no Welcome came"))]);
        assert_eq!(now, Instant(0) + limits::HELLO_DEADLINE * 2);
    }

    #[test]
    fn a_session_that_brings_nothing_although_notified_twice_is_left() {
        let mut terminal = open(0);
        let closed = |commands: &[Command]| {
            commands.iter().any(|command| matches!(command, Command::Close(Closed::Lost(_))))
        };
        let mut lingering = open(1);
        lingering.handle(Instant(1), push(1, 0));
        for terminal in [&mut terminal, &mut lingering] {
            terminal.linger = Linger::Forever;
            terminal.phase = Phase::Open;
        }
        assert!(!closed(&terminal.handle(Instant(1), Event::Notified)));
        terminal.handle(Instant(2), Event::Frame(NodeFrame::Pong(Nonce(1))));
        assert!(closed(&terminal.handle(Instant(3), Event::Notified)), "the node answers, but no push comes");

        lingering.handle(Instant(2), Event::Notified);
        lingering.handle(Instant(3), Event::Frame(NodeFrame::Pong(Nonce(2))));
        assert!(!closed(&lingering.handle(Instant(4), Event::Notified)), "the application is slow");
        lingering.handle(Instant(5), Event::Confirmed(Seq(1)));
        lingering.handle(Instant(6), Event::Frame(NodeFrame::Pong(Nonce(4))));
        lingering.handle(Instant(7), push(2, 1));
        lingering.handle(Instant(8), Event::Confirmed(Seq(2)));
        assert!(!closed(&lingering.handle(Instant(9), Event::Notified)), "a push came since");
    }

    #[test]
    fn one_that_kept_a_binding_here_just_now_tries_that_first() {
        let seen = IpAddr::from([192, 0, 2, 1]);
        let anchor = Anchor { port: 7000, handle: [1; 16], generation: 1, key: [2; 32], period: 25, seen };
        let elsewhere = IpAddr::from([192, 0, 2, 2]);
        for (bound, ways) in [
            (None, [Class::Direct, Class::Pinned]),
            (Some(elsewhere), [Class::Direct, Class::Pinned]),
            (Some(seen), [Class::Pinned, Class::Direct]),
        ] {
            let listening = Some(Listening { port: 5000, key: KeyFingerprint([1; 32]) });
            let config = Config { listening, offer: Some(Offer::default()), bound, ..config() };
            let mut terminal = Terminal::new(config, Instant(0));
            terminal.handle(Instant(0), Event::Connected);
            terminal.handle(Instant(0), Event::Frame(NodeFrame::Anchor(anchor.clone())));
            let mut said = terminal.handle(Instant(0), Event::Frame(NodeFrame::Welcome(welcome(0))));
            for (at, class) in ways.into_iter().enumerate() {
                let now = Instant(3000 * at as u64);
                if class == Class::Pinned {
                    assert!(said.contains(&Command::Bind(anchor.clone())), "{said:?}");
                    said = terminal.handle(now, Event::Bound);
                } else {
                    assert!(said.contains(&Command::Unbind), "{said:?}");
                }
                assert!(said.contains(&Command::Send(TerminalFrame::Try(Try { class }))), "{said:?}");
                said = terminal.handle(now, Event::Frame(NodeFrame::Tried(Tried { class, reached: false })));
            }
            assert!(said.contains(&Command::Reached(Class::None, seen)), "{said:?}");
        }
    }

    #[test]
    fn one_that_lingers_asks_now_and_then_whether_its_node_is_there() {
        let mut terminal = open(1);
        terminal.linger = Linger::Seconds(3600);
        terminal.handle(Instant(0), push(1, 0));
        terminal.handle(Instant(0), Event::Confirmed(Seq(1)));
        for minute in 1..60 {
            let now = terminal.poll_timeout().expect("a deadline");
            assert_eq!(now, Instant(minute * 60_000));
            let asked = terminal.handle(now, Event::Timeout);
            assert!(matches!(asked[..], [Command::Send(TerminalFrame::Ping(_))]), "{asked:?}");
            terminal.handle(now, Event::Frame(NodeFrame::Pong(Nonce(now.0))));
        }
        let over = terminal.poll_timeout().expect("a deadline");
        assert_eq!(over, Instant(3_600_000));
        let left = terminal.handle(over, Event::Timeout);
        assert_eq!(left, [Command::Send(TerminalFrame::Goodbye(Ack { seq: Seq(1) }))]);
    }

    #[test]
    fn a_gap_is_not_jumped_over_and_does_not_hold_the_session_open() {
        let mut terminal = open(3);
        terminal.handle(Instant(1), push(1, 0));
        terminal.handle(Instant(1), push(3, 2));
        let gap = NodeFrame::Gap(Gap { from: Seq(2), to: Seq(4) });
        assert_eq!(terminal.handle(Instant(2), Event::Frame(gap)), []);
        assert_eq!(terminal.given(), Seq(1));
        // The gap was true, and all that was given is confirmed: it leaves.
        let said = terminal.handle(Instant(3), Event::Confirmed(Seq(1)));
        assert!(said.contains(&Command::Send(TerminalFrame::Goodbye(Ack { seq: Seq(1) }))), "{said:?}");
        // It was not: what comes is taken.
        let mut terminal = open(3);
        terminal.handle(Instant(1), push(2, 1));
        let gap = NodeFrame::Gap(Gap { from: Seq(1), to: Seq(3) });
        terminal.handle(Instant(2), Event::Frame(gap));
        assert_eq!(terminal.memory().last, Seq(0));
    }
}
