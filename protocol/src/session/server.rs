//! The node's end of a session: from Hello to Bye. Decides, never performs.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;

use crate::directory::Secret;
use crate::id::*;
use crate::limits;
use crate::service_list::row::{Linger, Reachability, Urgency};
use crate::service_list::{self as list, Attached, Refusal, Reply};
use crate::time::Instant;
use crate::wire::notification::notify_secret;
use crate::wire::peer::{HandOff, NotifyOrder, Report, Reported};
use crate::wire::session::*;
use crate::wire::stun;

/// What a session is born with.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// The key that the terminal proved in the TLS handshake.
    pub session_key: KeyFingerprint,
    /// The group that keeps the terminal.
    pub group: GroupId,
    /// The terminal's address as seen by the node.
    pub peer_ip: IpAddr,
    /// The cluster secret that this session's notify secret derives from.
    pub secret: Secret,
    /// Told to the terminal in its Welcome.
    pub check_in: Duration,
    /// The longest linger that a terminal gets, however long it would like to stay; `None`: what the service list grants.
    pub linger_max: Option<Duration>,
    /// Where this node takes keepalives, and how often it wants them; `None`: the cluster is not ready for them.
    pub anchor: Option<AnchorAt>,
}

/// See [`Config::anchor`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnchorAt {
    /// UDP port.
    pub port: u16,
    /// Seconds between two keepalives.
    pub period: u16,
}

/// Everything that can happen to a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The terminal said something.
    Frame(TerminalFrame),
    /// The bytes it sent are no frame.
    Malformed,
    /// The connection is gone.
    PeerClosed,
    /// The connection takes no more: its outgoing bytes make no progress.
    WriteStalled,
    /// What the proposed attach came to; `None`: unknown, the service list could not be reached in time.
    Attached(Option<Result<Attached, Refusal>>),
    /// What enrolling the unknown key came to: `true` if it is registered now, `None` if that is unknown.
    Enrolled(Option<bool>),
    /// What the proposed ack came to; `None`: unknown.
    AckDone(Option<Reply>),
    /// The proposed detach is done with, one way or the other.
    DetachDone,
    /// What a dial that the terminal wanted came to.
    Tried(Tried),
    /// The proposed reachability is done with: whether the row has it. `false` as well if nobody knows.
    ReachedDone(bool),
    /// The shard leader gives pushes.
    HandOff(HandOff),
    /// The cluster is ready for keepalives now ([`Server::lacks_anchor`]).
    Anchor(AnchorAt),
    /// Another session took over; the epoch that is over.
    Supersede(Epoch),
    /// The node is leaving, or was fenced.
    Leave {
        /// Milliseconds for the terminal to wait.
        retry_after: u64,
    },
    /// [`Server::poll_timeout`] has come.
    Timeout,
}

/// What the shell must do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Write a frame.
    Send(NodeFrame),
    /// Register the terminal's key if this token, or an open tenant, allows it.
    Enrol(Option<Bytes>),
    /// Propose to the terminal's group; the answer is `Attached`.
    Attach(Box<list::Attach>),
    /// Propose; the answer is `AckDone`.
    Ack(list::Ack),
    /// Propose; the answer is `DetachDone`.
    Detach(list::Detach),
    /// Dial the terminal, this way; the answer is `Tried`.
    Try(Class, Box<NotifyOrder>),
    /// Propose; the answer is `ReachedDone`, and the terminal is told after it.
    Reached(list::SetReachability),
    /// The terminal came by itself and found pushes waiting: no notification has reached it.
    PathBroken,
    /// Tell the shard leader.
    Report(Report),
    /// The session is online under this epoch.
    Online(Epoch),
    /// Close the connection once what was sent has left; nothing follows.
    Close,
}

/// How often what was found is proposed again after an outcome that is not known: a proposal lasts seconds, and the terminal
/// does not wait much longer than for two.
const AGAIN: u8 = 2;

/// Dials that one session may ask for: direct, pinned, and each once more after a change of the network.
const TRIES: u8 = 4;

/// Hand-offs that may overtake the answer to an attach: the leader sends one window, rarely in two parts. More are asked for again.
const EARLY: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    AwaitHello,
    Attaching {
        enrolled: bool,
    },
    /// The terminal is gone, or was told to go, before its attach was answered: what that granted is given back.
    Abandoned,
    Online,
    /// The detach is proposed; if `bye`, its answer is told to the terminal.
    Leaving {
        bye: bool,
    },
    Closed,
}

/// What a terminal is told with the reason.
fn bye(reason: ByeReason) -> Bye {
    let retry_after = if reason == ByeReason::Unavailable { 1000 } else { 0 };
    Bye { reason, retry_after }
}

/// The machine.
#[derive(Debug)]
pub struct Server {
    config: Config,
    terminal: TerminalId,
    phase: Phase,
    offer: Option<Offer>,
    hello: Option<Hello>,
    /// Dials that the terminal has asked for, and whether one is under way.
    tries: (u8, bool),
    /// What was found, what is to be told once the row has it, and how often it was proposed again.
    found: Option<(Class, Option<Tried>, u8)>,
    /// It was not reached directly; it was not reached through its binding.
    missed: (bool, bool),
    stream: Stream,
    epoch: Epoch,
    linger: Linger,
    /// Highest leader's term seen; hand-offs of lower ones are refused.
    term: u64,
    /// Highest seq written to the terminal.
    sent: Seq,
    /// Highest seq the terminal confirmed.
    confirmed: Seq,
    /// An ack is proposed and not answered; later ones wait and go as one.
    ack_in_flight: Option<Seq>,
    /// Hand-offs for this session's attempt that overtook the answer to its attach; at most [`EARLY`].
    early: Vec<HandOff>,
    /// There were more.
    too_early: bool,
    /// Epochs up to here are over; known before this session's own is.
    over: Epoch,
    /// The terminal asked for what is missing from here on.
    missing: Option<Seq>,
    /// When the current wait ends: for Hello, an ack, a pong, or the next ping.
    deadline: Option<Instant>,
    pinged: bool,
    last_traffic: Instant,
}

impl Server {
    /// A session whose TLS handshake is done; it waits for Hello.
    pub fn new(config: Config, now: Instant) -> Server {
        Server {
            terminal: config.session_key.terminal(),
            config,
            phase: Phase::AwaitHello,
            offer: None,
            hello: None,
            tries: (0, false),
            found: None,
            missed: (false, false),
            stream: Stream(0),
            epoch: Epoch(0),
            linger: Linger::AtOnce,
            term: 0,
            sent: Seq(0),
            confirmed: Seq(0),
            ack_in_flight: None,
            early: Vec::new(),
            too_early: false,
            over: Epoch(0),
            missing: None,
            deadline: Some(now + limits::HELLO_DEADLINE),
            pinged: false,
            last_traffic: now,
        }
    }

    /// Whose session it is.
    pub fn terminal(&self) -> TerminalId {
        self.terminal
    }

    /// Its epoch; zero until it is granted.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The attempt that this session asked its epoch with, once it said Hello.
    pub fn attempt(&self) -> Option<Attempt> {
        self.hello.as_ref().map(|hello| hello.attempt)
    }

    /// It is online, and its terminal would like to hear of an anchor, but the cluster was not ready when it began.
    pub fn lacks_anchor(&self) -> bool {
        self.phase == Phase::Online && self.config.anchor.is_none() && self.offer.is_some()
    }

    /// When to call again with [`Event::Timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadline
    }

    /// Takes one event in. After a `Close` nothing more comes out.
    pub fn handle(&mut self, now: Instant, event: Event) -> Vec<Command> {
        let mut out = Vec::new();
        match (self.phase, event) {
            (Phase::Closed, _) => {}
            (_, Event::PeerClosed) => self.leave(None, &mut out),
            (_, Event::Malformed) => self.leave(Some(ByeReason::Protocol), &mut out),
            (_, Event::WriteStalled) => self.leave(Some(ByeReason::TooSlow), &mut out),
            (_, Event::Leave { retry_after }) => {
                self.leave_with(Bye { reason: ByeReason::GoElsewhere, retry_after }, &mut out);
            }
            (_, Event::Frame(frame)) => {
                self.last_traffic = now;
                self.frame(now, frame, &mut out);
            }
            (Phase::Attaching { .. }, Event::Attached(answer)) => self.attached(now, answer, &mut out),
            (Phase::Attaching { .. }, Event::Enrolled(answer)) => self.enrolled(answer, &mut out),
            (Phase::Abandoned, Event::Attached(Some(Ok(attached)))) => {
                self.granted(&attached);
                self.propose_detach(false, &mut out);
            }
            (Phase::Abandoned, Event::Attached(_) | Event::Enrolled(_)) => self.close(&mut out),
            (_, Event::HandOff(hand_off)) => self.hand_off(now, hand_off, &mut out),
            (_, Event::AckDone(reply)) => self.ack_done(reply, &mut out),
            (Phase::Leaving { bye }, Event::DetachDone) => {
                if bye {
                    out.push(Command::Send(NodeFrame::Bye(self::bye(ByeReason::Done))));
                }
                self.close(&mut out);
            }
            (_, Event::Supersede(epoch)) if epoch == self.epoch && self.epoch != Epoch(0) => {
                self.end(ByeReason::Superseded, &mut out);
            }
            (_, Event::Timeout) => self.timeout(now, &mut out),
            (phase, Event::Tried(tried)) => {
                self.tries.1 = false;
                if phase == Phase::Online {
                    self.tried(tried, &mut out);
                }
            }
            (_, Event::Anchor(anchor)) => self.anchor_late(anchor, &mut out),
            (_, Event::Attached(_) | Event::Enrolled(_) | Event::DetachDone) => {}
            (Phase::Online, Event::ReachedDone(written)) => self.reached_done(written, &mut out),
            // It may overtake the answer to the attach.
            (Phase::Attaching { .. }, Event::Supersede(epoch)) => self.over = self.over.max(epoch),
            (_, Event::Supersede(_) | Event::ReachedDone(_)) => {}
        }
        out
    }

    fn frame(&mut self, now: Instant, frame: TerminalFrame, out: &mut Vec<Command>) {
        match (self.phase, frame) {
            (Phase::AwaitHello, TerminalFrame::Offer(offer)) if self.offer.is_none() => {
                self.offer = Some(offer)
            }
            (Phase::AwaitHello, TerminalFrame::Hello(hello)) => self.hello(hello, out),
            (Phase::Online, TerminalFrame::Try(Try { class })) => self.try_it(class, out),
            (_, TerminalFrame::Ping(nonce)) => out.push(Command::Send(NodeFrame::Pong(nonce))),
            (Phase::Online, TerminalFrame::Pong(_)) => {
                self.pinged = false;
                self.arm(now);
            }
            (Phase::Online, TerminalFrame::Ack(Ack { seq })) => {
                if self.confirm(seq, out) {
                    self.propose_ack(out);
                    self.arm(now);
                }
            }
            (Phase::Online, TerminalFrame::Resend(Resend { from })) => {
                if from <= self.confirmed || from > self.sent {
                    return self.leave(Some(ByeReason::Protocol), out);
                }
                self.missing = Some(from);
                self.report(Reported::Resend { from }, out);
            }
            (Phase::Online, TerminalFrame::Goodbye(Ack { seq })) => {
                if self.confirm(seq, out) {
                    self.propose_detach(true, out);
                }
            }
            (Phase::Abandoned | Phase::Leaving { .. } | Phase::Closed, _) => {}
            _ => self.leave(Some(ByeReason::Protocol), out),
        }
    }

    fn hello(&mut self, hello: Hello, out: &mut Vec<Command>) {
        let port_ok = hello.listening.is_none_or(|listening| listening.port >= 1024);
        if hello.terminal != self.terminal || !port_ok {
            return self.leave(Some(ByeReason::Protocol), out);
        }
        self.hello = Some(hello);
        self.phase = Phase::Attaching { enrolled: false };
        // The proposal has its own deadline, after which `Attached(None)` comes.
        self.deadline = None;
        self.propose_attach(out);
    }

    fn propose_attach(&mut self, out: &mut Vec<Command>) {
        let Some(hello) = &self.hello else { return };
        // One that is new to its network is taken to be reachable until it was tried.
        let class = self.offer.map_or(Class::Direct, |offer| offer.class);
        let reachability = self.reachability(class);
        out.push(Command::Attach(Box::new(list::Attach {
            terminal: self.terminal,
            attempt: hello.attempt,
            node: self.config.node,
            incarnation: self.config.incarnation,
            stream: hello.stream,
            last: hello.last,
            reachability,
            secret: self.config.secret.generation,
            linger: self.linger(hello.linger),
            min_urgency: hello.min_urgency,
        })));
    }

    /// What it gets of its wish. One that no notification reaches, or of which that is not known, may stay for ever: if it
    /// left, its pushes would wait for its check-in.
    fn linger(&self, wish: Linger) -> Linger {
        let reached = self.offer.is_some_and(|offer| matches!(offer.class, Class::Direct | Class::Pinned));
        match self.config.linger_max {
            Some(most) if wish != Linger::Forever || reached => wish.within(most),
            _ => wish,
        }
    }

    /// What the service list says of a terminal of this class.
    fn reachability(&self, class: Class) -> Reachability {
        let Some(Listening { port, key }) = self.hello.as_ref().and_then(|hello| hello.listening) else {
            return Reachability::None;
        };
        match class {
            Class::Untried | Class::Direct => {
                let address = std::net::SocketAddr::new(self.config.peer_ip, port);
                Reachability::Direct { address, listening_key: key }
            }
            Class::Pinned if self.config.anchor.is_some() => {
                Reachability::Pinned { anchor: self.config.node, listening_key: key }
            }
            Class::Pinned | Class::None => Reachability::None,
        }
    }

    /// The terminal wants to know whether it is reached this way.
    fn try_it(&mut self, class: Class, out: &mut Vec<Command>) {
        let reachability = self.reachability(class);
        let asked = matches!(class, Class::Direct | Class::Pinned) && self.offer.is_some();
        if !asked || self.tries.1 || self.tries.0 >= TRIES {
            return self.leave(Some(ByeReason::Protocol), out);
        }
        if reachability == Reachability::None {
            return out.push(Command::Send(NodeFrame::Tried(Tried { class, reached: false })));
        }
        self.tries = (self.tries.0 + 1, true);
        let order = NotifyOrder {
            group: self.config.group,
            terminal: self.terminal,
            stream: self.stream,
            epoch: self.epoch,
            reachability,
            secret: self.config.secret.generation,
            // Nothing waits: the terminal takes it for what it is.
            pending: 0,
            urgency: Urgency::High,
            attempt: 0,
        };
        out.push(Command::Try(class, Box::new(order)));
    }

    fn tried(&mut self, tried: Tried, out: &mut Vec<Command>) {
        // It is not reached at all once both ways were in vain. It may try either one first.
        let found = if tried.reached {
            Some(tried.class)
        } else {
            self.missed.0 |= tried.class == Class::Direct;
            self.missed.1 |= tried.class == Class::Pinned;
            (self.missed == (true, true)).then_some(Class::None)
        };
        // The terminal keeps to what it hears, and offers it from then on: the row must have it before.
        match found {
            Some(class) => {
                self.found = Some((class, Some(tried), 0));
                self.propose_reached(class, out);
            }
            None => out.push(Command::Send(NodeFrame::Tried(tried))),
        }
    }

    fn propose_reached(&self, class: Class, out: &mut Vec<Command>) {
        out.push(Command::Reached(list::SetReachability {
            terminal: self.terminal,
            stream: self.stream,
            epoch: self.epoch,
            reachability: self.reachability(class),
        }));
    }

    fn reached_done(&mut self, written: bool, out: &mut Vec<Command>) {
        match self.found.take() {
            Some((_, tried, _)) if written => {
                out.extend(tried.map(|tried| Command::Send(NodeFrame::Tried(tried))));
            }
            Some((class, tried, again)) if again < AGAIN => {
                self.found = Some((class, tried, again + 1));
                self.propose_reached(class, out);
            }
            // The terminal hears nothing of it, and asks in its next session.
            _ => {}
        }
    }

    /// What a Welcome would have begun with, had the cluster been ready.
    fn anchor_late(&mut self, anchor: AnchorAt, out: &mut Vec<Command>) {
        if !self.lacks_anchor() {
            return;
        }
        self.config.anchor = Some(anchor);
        self.offer_anchor(out);
        // It keeps its binding with this node from now on, of which the row knows nothing yet.
        if self.offer.is_some_and(|offer| offer.class == Class::Pinned) {
            self.found = Some((Class::Pinned, None, 0));
            self.propose_reached(Class::Pinned, out);
        }
    }

    /// With whom the terminal keeps its binding, if it knows what that is.
    fn offer_anchor(&self, out: &mut Vec<Command>) {
        let Some(AnchorAt { port, period }) = self.config.anchor.filter(|_| self.offer.is_some()) else {
            return;
        };
        let secret = &self.config.secret;
        let handle = stun::handle(secret, &self.terminal, self.stream, self.epoch);
        out.push(Command::Send(NodeFrame::Anchor(Anchor {
            port,
            key: stun::pin_key(secret, &handle),
            handle: handle.0,
            generation: secret.generation,
            period,
            seen: self.config.peer_ip,
        })));
    }

    fn attached(&mut self, now: Instant, answer: Option<Result<Attached, Refusal>>, out: &mut Vec<Command>) {
        match answer {
            Some(Ok(attached)) => self.welcome(now, attached, out),
            Some(Err(Refusal::UnknownTerminal)) if self.phase == (Phase::Attaching { enrolled: false }) => {
                out.push(Command::Enrol(self.hello.as_ref().and_then(|hello| hello.enrolment.clone())));
            }
            // A backup is being restored, and the terminal may be in a part that is not there yet. Or this node is fenced, and
            // another one serves it.
            Some(Err(Refusal::Restoring | Refusal::Fenced)) => self.end(ByeReason::Unavailable, out),
            Some(Err(Refusal::StaleAttempt { current })) => {
                self.end(ByeReason::StaleAttempt(current), out);
            }
            Some(Err(Refusal::AckAhead { .. })) => self.end(ByeReason::AckAhead, out),
            Some(Err(_)) => self.end(ByeReason::NotEnrolled, out),
            None => self.end(ByeReason::Unavailable, out),
        }
    }

    fn enrolled(&mut self, answer: Option<bool>, out: &mut Vec<Command>) {
        match answer {
            Some(true) => {
                self.phase = Phase::Attaching { enrolled: true };
                self.propose_attach(out);
            }
            Some(false) => self.end(ByeReason::NotEnrolled, out),
            None => self.end(ByeReason::Unavailable, out),
        }
    }

    /// There is nothing to detach: no session came of it, or its epoch is over.
    fn end(&mut self, reason: ByeReason, out: &mut Vec<Command>) {
        out.push(Command::Send(NodeFrame::Bye(bye(reason))));
        self.close(out);
    }

    fn granted(&mut self, attached: &Attached) {
        self.stream = attached.stream;
        self.epoch = attached.epoch;
        self.linger = attached.linger;
        self.sent = attached.acked;
        self.confirmed = attached.acked;
    }

    fn welcome(&mut self, now: Instant, attached: Attached, out: &mut Vec<Command>) {
        self.granted(&attached);
        if attached.epoch <= self.over {
            return self.end(ByeReason::Superseded, out);
        }
        self.phase = Phase::Online;
        out.push(Command::Online(attached.epoch));
        self.offer_anchor(out);
        out.push(Command::Send(NodeFrame::Welcome(Welcome {
            node: self.config.node,
            stream: attached.stream,
            epoch: attached.epoch,
            acked: attached.acked,
            pending: attached.pending,
            linger: attached.linger,
            notify_secret: notify_secret(
                &self.config.secret,
                &self.terminal,
                attached.stream,
                attached.epoch,
            ),
            check_in: self.config.check_in.as_secs() as u32,
        })));
        // One that does not know how it is reached comes by itself for that.
        let is_reached = |class| matches!(class, Class::Direct | Class::Pinned);
        let came_by_itself = |offer: Offer| offer.cause == Cause::CheckIn && is_reached(offer.class);
        // Below its least urgency pushes may wait without a notification.
        let any_urgency = self.hello.as_ref().is_some_and(|hello| hello.min_urgency == Urgency::VeryLow);
        if attached.pending > 0 && any_urgency && self.offer.is_some_and(came_by_itself) {
            out.push(Command::PathBroken);
        }
        self.arm(now);
        for hand_off in std::mem::take(&mut self.early) {
            self.hand_off(now, hand_off, out);
        }
        // The leader takes what was dropped for handed off.
        if std::mem::take(&mut self.too_early) {
            self.report(Reported::Resend { from: self.sent.next() }, out);
        }
    }

    fn hand_off(&mut self, now: Instant, hand_off: HandOff, out: &mut Vec<Command>) {
        if hand_off.term < self.term {
            return;
        }
        let mine =
            self.phase == Phase::Online && hand_off.epoch == self.epoch && hand_off.stream == self.stream;
        if !mine {
            let early =
                matches!(self.phase, Phase::Attaching { .. }) && self.attempt() == Some(hand_off.attempt);
            match early {
                true if self.early.len() < EARLY => self.early.push(hand_off),
                true => self.too_early = true,
                false => {}
            }
            // Any other is of an epoch that is over; the leader learns of that from the log.
            return;
        }
        self.term = hand_off.term;
        // The leader does not know of an ack whose proposal came to nothing; others wait for their answer.
        if self.ack_in_flight.is_none() && hand_off.pushes.iter().any(|push| push.seq <= self.confirmed) {
            self.propose_ack(out);
        }
        // A hand-off may be a repeated one. What was written is on its way, unless the terminal misses it.
        let after = self.answered(&hand_off, out).unwrap_or(self.sent);
        let had_unacked = self.sent > self.confirmed;
        let mut upto = None;
        for push in hand_off.pushes {
            if push.seq <= after {
                continue;
            }
            self.sent = self.sent.max(push.seq);
            upto = Some(push.seq);
            out.push(Command::Send(NodeFrame::Push(Push {
                seq: push.seq,
                prev: push.prev,
                maybe_seen: push.maybe_seen,
                remaining: push.remaining,
                lives_for: push.lives_for,
                channel: push.channel,
                headers: push.headers,
                body: push.body,
            })));
        }
        if let Some(upto) = upto {
            self.report(Reported::Delivered { upto }, out);
            self.last_traffic = now;
            if !had_unacked {
                self.arm(now);
            }
        }
    }

    /// Does this hand-off bring what the terminal asked for again? Then everything above the result goes out.
    fn answered(&mut self, hand_off: &HandOff, out: &mut Vec<Command>) -> Option<Seq> {
        let from = self.missing.filter(|from| hand_off.covers >= *from)?;
        match hand_off.pushes.first() {
            // One that was on its way already begins later: what is missing waits before its first push.
            Some(first) if first.prev >= from => None,
            Some(_) => {
                self.missing = None;
                Some(Seq(from.0 - 1))
            }
            // It may have been on its way as well, so this is the answer only until pushes come.
            None => {
                out.push(Command::Send(NodeFrame::Gap(Gap { from, to: hand_off.covers })));
                None
            }
        }
    }

    /// Notes a confirmation; `false` if it was of something never sent, which ends the session.
    fn confirm(&mut self, seq: Seq, out: &mut Vec<Command>) -> bool {
        if seq > self.sent {
            self.leave(Some(ByeReason::Protocol), out);
            return false;
        }
        self.confirmed = self.confirmed.max(seq);
        true
    }

    fn propose_ack(&mut self, out: &mut Vec<Command>) {
        if self.ack_in_flight.is_none() {
            self.ack_in_flight = Some(self.confirmed);
            out.push(Command::Ack(list::Ack {
                terminal: self.terminal,
                stream: self.stream,
                epoch: self.epoch,
                seq: self.confirmed,
            }));
        }
    }

    fn ack_done(&mut self, reply: Option<Reply>, out: &mut Vec<Command>) {
        let done = self.ack_in_flight.take();
        // The word that another session took over can be lost.
        if self.phase == Phase::Online
            && matches!(&reply, Some(Reply::Refused(refusal)) if refusal.ends_session())
        {
            return self.end(ByeReason::Superseded, out);
        }
        if self.phase == Phase::Online && done.is_some_and(|done| done < self.confirmed) {
            self.propose_ack(out);
        }
    }

    fn propose_detach(&mut self, bye: bool, out: &mut Vec<Command>) {
        self.phase = Phase::Leaving { bye };
        self.deadline = None;
        out.push(Command::Detach(list::Detach {
            terminal: self.terminal,
            stream: self.stream,
            epoch: self.epoch,
            ack: (self.confirmed > Seq(0)).then_some(self.confirmed),
        }));
    }

    fn leave(&mut self, reason: Option<ByeReason>, out: &mut Vec<Command>) {
        match reason {
            Some(reason) => self.leave_with(bye(reason), out),
            None => self.detach_or_close(out),
        }
    }

    fn leave_with(&mut self, bye: Bye, out: &mut Vec<Command>) {
        out.push(Command::Send(NodeFrame::Bye(bye)));
        self.detach_or_close(out);
    }

    fn detach_or_close(&mut self, out: &mut Vec<Command>) {
        match self.phase {
            Phase::Online => self.propose_detach(false, out),
            // The terminal left without waiting for its Bye; the detach is on its way.
            Phase::Leaving { .. } => self.phase = Phase::Leaving { bye: false },
            // The attach is on its way, and would leave a terminal online that nobody has a session with.
            Phase::Attaching { .. } => (self.phase, self.deadline) = (Phase::Abandoned, None),
            Phase::Abandoned => {}
            Phase::AwaitHello | Phase::Closed => self.close(out),
        }
    }

    fn close(&mut self, out: &mut Vec<Command>) {
        self.phase = Phase::Closed;
        self.deadline = None;
        out.push(Command::Close);
    }

    fn report(&self, what: Reported, out: &mut Vec<Command>) {
        let (group, terminal, epoch) = (self.config.group, self.terminal, self.epoch);
        out.push(Command::Report(Report { group, terminal, epoch, what }));
    }

    /// Sets the deadline that fits the state: an ack, a pong, the end of the linger, or the next ping.
    fn arm(&mut self, now: Instant) {
        if self.phase != Phase::Online {
            return;
        }
        self.deadline = Some(if self.sent > self.confirmed {
            now + limits::ACK_DEADLINE
        } else if self.pinged {
            now + limits::PONG_DEADLINE
        } else {
            now + limits::PING_AFTER
        });
    }

    fn timeout(&mut self, now: Instant, out: &mut Vec<Command>) {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        match self.phase {
            Phase::AwaitHello => self.leave(Some(ByeReason::TooSlow), out),
            Phase::Online if self.sent > self.confirmed || self.pinged => {
                self.leave(Some(ByeReason::TooSlow), out);
            }
            Phase::Online if now.since(self.last_traffic) < limits::PING_AFTER => self.arm(now),
            Phase::Online => {
                self.pinged = true;
                out.push(Command::Send(NodeFrame::Ping(Nonce(now.0))));
                self.arm(now);
            }
            Phase::Attaching { .. } | Phase::Abandoned | Phase::Leaving { .. } | Phase::Closed => {
                self.deadline = None;
            }
        }
    }
}
