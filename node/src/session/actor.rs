//! The actor of one open session: carries out what `protocol::session::server` decides. Lives from the end of the
//! TLS handshake until the session's end is known to the service list.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use actix::{
    Actor, ActorContext, ActorFutureExt, AsyncContext, Context as ActorCtx, Handler, Message, SpawnHandle,
    WrapFuture,
};
use reveille_cluster::ClusterHandle;
use reveille_protocol::directory::NOTIFY_ANCHORS;
use reveille_protocol::id::*;
use reveille_protocol::limits;
use reveille_protocol::service_list::{self as list, Command, Reply};
use reveille_protocol::session::server::{self as rules, AnchorAt, Event, Server};
use reveille_protocol::time::Instant;
use reveille_protocol::wire::peer::{NotifyOrder, SessionMessage};
use reveille_protocol::wire::session::{Class, Frame, TerminalFrame, Tried};
use tokio::sync::mpsc;
use tokio::time::Instant as Clock;

use super::admission::Place;
use super::registry::Registry;
use crate::enrolment;
use crate::notify::Notifier;
use crate::telemetry::{Count, Gauge};

/// Messages that may wait for an actor: a window of hand-offs and what its own connection brings.
const MAILBOX: usize = 256;

/// What the sessions of a node share.
pub struct Context {
    /// The cluster; set once it runs, before the first session is accepted.
    pub cluster: OnceLock<ClusterHandle>,
    /// The sessions.
    pub registry: Registry,
    /// This node.
    pub node: NodeId,
    /// What terminals are told.
    pub check_in: Duration,
    /// The longest linger that a terminal gets, if the operator says so.
    pub linger_max: Option<Duration>,
    /// Dials terminals that want to know whether they are reached.
    pub notifier: Option<Notifier>,
    /// Where this node takes keepalives.
    pub anchor: AnchorAt,
    /// Origin of the monotonic clock.
    pub origin: Clock,
}

impl Context {
    fn now(&self) -> Instant {
        Instant(self.origin.elapsed().as_millis() as u64)
    }

    /// Where terminals keep their bindings, once the cluster is ready for that: its format comes some time after its first
    /// start, and after the last node of an upgrade.
    fn anchor(&self) -> Option<AnchorAt> {
        let format = self.cluster.get()?.directory().roster.format;
        (format >= NOTIFY_ANCHORS).then_some(self.anchor)
    }
}

/// Frames from the terminal.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Incoming {
    pub(super) frames: Vec<TerminalFrame>,
    pub(super) malformed: bool,
}

/// The terminal's side of the connection is closed.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Closed;

/// The terminal takes no bytes.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Stalled;

/// From the shard's leader.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ToSession(pub SessionMessage);

/// The node is leaving, or its incarnation is over.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Leave {
    /// Milliseconds for the terminal to wait.
    pub retry_after: u64,
}

/// See the module.
pub struct SessionActor {
    context: Arc<Context>,
    session_key: KeyFingerprint,
    peer_ip: IpAddr,
    outgoing: Option<mpsc::Sender<Vec<u8>>>,
    /// Among those who connect, until it is online.
    place: Option<Place>,
    rules: Option<Server>,
    registered: Option<Attempt>,
    timer: Option<(Instant, SpawnHandle)>,
    online: bool,
}

impl SessionActor {
    pub(super) fn new(
        context: Arc<Context>,
        session_key: KeyFingerprint,
        peer_ip: IpAddr,
        outgoing: mpsc::Sender<Vec<u8>>,
        place: Option<Place>,
    ) -> SessionActor {
        SessionActor {
            context,
            session_key,
            peer_ip,
            outgoing: Some(outgoing),
            place,
            rules: None,
            registered: None,
            timer: None,
            online: false,
        }
    }

    fn terminal(&self) -> TerminalId {
        self.session_key.terminal()
    }

    fn begin(&self) -> Option<Server> {
        let cluster = self.context.cluster.get()?;
        let incarnation = cluster.incarnation();
        let secret = cluster.directory().secret().cloned()?;
        if incarnation == Incarnation(0) {
            return None;
        }
        let config = rules::Config {
            node: self.context.node,
            incarnation,
            session_key: self.session_key,
            group: cluster.group_of(&self.terminal()),
            // A v4 address that came by a v6 socket is the v4 address.
            peer_ip: self.peer_ip.to_canonical(),
            secret,
            check_in: self.context.check_in,
            linger_max: self.context.linger_max,
            anchor: self.context.anchor(),
        };
        Some(Server::new(config, self.context.now()))
    }

    fn handle_event(&mut self, event: Event, ctx: &mut ActorCtx<Self>) {
        let Some(rules) = &mut self.rules else { return };
        let now = self.context.now();
        let mut commands = rules.handle(now, event);
        // Asked whenever something happens, a ping each minute at least, so that not all sessions ask at once.
        if rules.lacks_anchor()
            && let Some(anchor) = self.context.anchor()
        {
            commands.extend(rules.handle(now, Event::Anchor(anchor)));
        }
        let mut bytes = Vec::new();
        for command in commands {
            self.execute(command, &mut bytes, ctx);
        }
        self.write(bytes, ctx);
        self.set_timer(ctx);
    }

    fn execute(&mut self, command: rules::Command, bytes: &mut Vec<u8>, ctx: &mut ActorCtx<Self>) {
        match command {
            rules::Command::Send(frame) => frame.encode(bytes),
            rules::Command::Attach(attach) => {
                self.leave_works();
                let current = attach.attempt;
                let registry = &self.context.registry;
                if self.registered.is_none() && !registry.insert(self.terminal(), current, ctx.address()) {
                    // The same attempt at the same node gets the same epoch. A terminal that lost its memory, or a copy
                    // of one, takes the next.
                    let refusal = list::Refusal::StaleAttempt { current };
                    return self.soon([Event::Attached(Some(Err(refusal)))], ctx);
                }
                self.registered = Some(current);
                self.attach(attach, ctx);
            }
            rules::Command::Ack(ack) => {
                self.propose(Command::Ack(ack), ctx, |_, reply| Event::AckDone(reply))
            }
            rules::Command::Detach(detach) => {
                self.propose(Command::Detach(detach), ctx, |_, _| Event::DetachDone);
            }
            rules::Command::Enrol(token) => {
                self.leave_works();
                self.enrol(token, ctx);
            }
            rules::Command::Report(report) => {
                if let Some(cluster) = self.context.cluster.get() {
                    cluster.report(report);
                }
            }
            rules::Command::Try(class, order) => self.try_to_reach(class, *order, ctx),
            rules::Command::Reached(set) => {
                // The session holds its outcome; the row is looked at when it ends.
                self.propose(Command::SetReachability(set), ctx, |_, reply| {
                    Event::ReachedDone(matches!(reply, Some(Reply::Done)))
                });
            }
            rules::Command::PathBroken => {
                Count::NotificationPathBroken.one("check_in");
                tracing::debug!(terminal = %self.terminal(), "pushes waited that no notification announced");
            }
            rules::Command::Online(epoch) => {
                self.online = true;
                self.place = None;
                Gauge::Sessions.add(1.0);
                tracing::debug!(terminal = %self.terminal(), epoch = epoch.0, "terminal is online");
            }
            rules::Command::Close => {
                let last = std::mem::take(bytes);
                self.write(last, ctx);
                // The writer sends what waits and closes the connection.
                self.outgoing = None;
                ctx.stop();
            }
        }
    }

    fn leave_works(&mut self) {
        if let Some(place) = &mut self.place {
            place.leave_works();
        }
    }

    /// Dials the terminal; what that comes to is an event of the session.
    fn try_to_reach(&self, class: Class, order: NotifyOrder, ctx: &mut ActorCtx<Self>) {
        let notifier = self.context.notifier.clone();
        let dial = async move {
            match notifier {
                Some(notifier) => notifier.reaches(order).await,
                None => false,
            }
        };
        ctx.spawn(dial.into_actor(self).map(move |reached, session, ctx| {
            session.handle_event(Event::Tried(Tried { class, reached }), ctx);
        }));
    }

    /// Asks for the session's epoch.
    fn attach(&self, attach: Box<list::Attach>, ctx: &mut ActorCtx<Self>) {
        // Looked at after the insert: a leave or a fence that comes later finds this session there.
        if self.context.registry.leaving() {
            // Nothing was proposed.
            return self.soon([Event::Leave { retry_after: 0 }, Event::Attached(None)], ctx);
        }
        let incarnation = self.context.cluster.get().map(ClusterHandle::incarnation);
        if incarnation != Some(attach.incarnation) {
            return self.soon([Event::Attached(None)], ctx);
        }
        self.propose(Command::Attach(attach), ctx, |_, outcome| {
            Event::Attached(match outcome {
                Some(Reply::Attached(attached)) => Some(Ok(attached)),
                Some(Reply::Refused(refusal)) => Some(Err(refusal)),
                _ => None,
            })
        });
    }

    /// Not at once: the rules are in the middle of an event.
    fn soon<const N: usize>(&self, events: [Event; N], ctx: &mut ActorCtx<Self>) {
        let soon = async {}.into_actor(self);
        ctx.spawn(soon.map(|(), session, ctx| {
            events.into_iter().for_each(|event| session.handle_event(event, ctx));
        }));
    }

    /// Proposes to the terminal's group; what it comes to is an event of the session.
    fn propose(
        &self,
        command: Command,
        ctx: &mut ActorCtx<Self>,
        event: impl FnOnce(&mut Self, Option<Reply>) -> Event + 'static,
    ) {
        let Some(cluster) = self.context.cluster.get().cloned() else { return };
        let group = cluster.group_of(&self.terminal());
        let proposal = async move { cluster.propose(group, command, limits::SESSION_PROPOSAL).await.ok() };
        ctx.spawn(proposal.into_actor(self).map(|outcome, session, ctx| {
            let event = event(session, outcome);
            session.handle_event(event, ctx);
        }));
    }

    /// Registers an unknown key, if its token or an open tenant allows it.
    fn enrol(&self, token: Option<bytes::Bytes>, ctx: &mut ActorCtx<Self>) {
        let Some(cluster) = self.context.cluster.get() else { return };
        let Some(tenant) = enrolment::admit(&cluster.directory(), token.as_deref()) else {
            Count::SessionsRefused.one("not_enrolled");
            return self.soon([Event::Enrolled(Some(false))], ctx);
        };
        let register =
            list::Register { tenant, session_key: self.session_key, stream: crate::random::new_stream() };
        self.propose(Command::Register(register), ctx, |_, outcome| {
            Event::Enrolled(match outcome {
                // The terminal may be in the part of a backup that is not there yet.
                Some(Reply::Refused(list::Refusal::Restoring)) => None,
                outcome => outcome.map(|reply| matches!(reply, Reply::Registered { .. })),
            })
        });
    }

    fn write(&mut self, bytes: Vec<u8>, ctx: &mut ActorCtx<Self>) {
        if bytes.is_empty() {
            return;
        }
        let full = self.outgoing.as_ref().is_some_and(|outgoing| outgoing.try_send(bytes).is_err());
        if full {
            // Its frames are more than a window's: the terminal does not read. It is told by the close.
            self.outgoing = None;
            self.soon([Event::WriteStalled], ctx);
        }
    }

    /// Arms one timer for the rules' next deadline, if it changed.
    fn set_timer(&mut self, ctx: &mut ActorCtx<Self>) {
        let next = self.rules.as_ref().and_then(Server::poll_timeout);
        if self.timer.map(|(at, _)| at) == next {
            return;
        }
        if let Some((_, old)) = self.timer.take() {
            ctx.cancel_future(old);
        }
        if let Some(at) = next {
            let handle = ctx.run_later(at.since(self.context.now()), |session, ctx| {
                session.timer = None;
                session.handle_event(Event::Timeout, ctx);
            });
            self.timer = Some((at, handle));
        }
    }
}

impl Actor for SessionActor {
    type Context = ActorCtx<Self>;

    fn started(&mut self, ctx: &mut ActorCtx<Self>) {
        ctx.set_mailbox_capacity(MAILBOX);
        self.rules = self.begin();
        match self.rules {
            Some(_) => self.set_timer(ctx),
            // No incarnation: the node is starting or was fenced. The terminal tries another one.
            None => ctx.stop(),
        }
    }

    fn stopped(&mut self, _: &mut ActorCtx<Self>) {
        if let Some(attempt) = self.registered {
            self.context.registry.remove(&self.terminal(), attempt);
        }
        if self.online {
            Gauge::Sessions.add(-1.0);
        }
    }
}

impl Handler<Incoming> for SessionActor {
    type Result = ();

    fn handle(&mut self, incoming: Incoming, ctx: &mut ActorCtx<Self>) {
        for frame in incoming.frames {
            self.handle_event(Event::Frame(frame), ctx);
        }
        if incoming.malformed {
            self.handle_event(Event::Malformed, ctx);
        }
    }
}

impl Handler<Closed> for SessionActor {
    type Result = ();

    fn handle(&mut self, _: Closed, ctx: &mut ActorCtx<Self>) {
        self.handle_event(Event::PeerClosed, ctx);
    }
}

impl Handler<Stalled> for SessionActor {
    type Result = ();

    fn handle(&mut self, _: Stalled, ctx: &mut ActorCtx<Self>) {
        self.outgoing = None;
        self.handle_event(Event::WriteStalled, ctx);
    }
}

impl Handler<ToSession> for SessionActor {
    type Result = ();

    fn handle(&mut self, ToSession(message): ToSession, ctx: &mut ActorCtx<Self>) {
        match message {
            SessionMessage::HandOff(hand_off) => self.handle_event(Event::HandOff(hand_off), ctx),
            SessionMessage::Supersede { epoch, .. } => self.handle_event(Event::Supersede(epoch), ctx),
            SessionMessage::Report(_) | SessionMessage::Notify(_) => {}
        }
    }
}

impl Handler<Leave> for SessionActor {
    type Result = ();

    fn handle(&mut self, Leave { retry_after }: Leave, ctx: &mut ActorCtx<Self>) {
        self.handle_event(Event::Leave { retry_after }, ctx);
    }
}
