//! Sessions: connections of terminals to nodes, and the shell around the machine at their node's end, as
//! `node/src/session` is one.

use std::net::SocketAddr;
use std::sync::Arc;

use openraft::async_runtime::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use reveille_cluster::host::Taken;
use reveille_protocol::directory::NOTIFY_ANCHORS;
use reveille_protocol::id::*;
use reveille_protocol::limits;
use reveille_protocol::service_list::{self as list, Refusal, Reply};
use reveille_protocol::session::server::{AnchorAt, Command, Config, Event, Server};
use reveille_protocol::session::terminal::Terminal;
use reveille_protocol::wire::peer::SessionMessage;
use reveille_protocol::wire::session::{Class, Frame, NodeFrame, TerminalFrame};

use crate::notifier::{ANCHOR, Asked};
use crate::seen::Seen;
use crate::world::{PERIOD, World, instant, lock, now};

/// A connection with both its ends.
pub struct Connection {
    pub node: NodeId,
    pub device: usize,
    pub terminal: Option<Terminal>,
    pub server: Option<Server>,
    /// The node's end can be found by this.
    registered: Option<Attempt>,
    /// The dial that the terminal wants, and what those before came to.
    pub trying: Option<Class>,
    pub tried: Vec<(Class, bool)>,
    /// Nothing passes any more, and somebody has yet to notice.
    pub broken: bool,
    /// When the last frame of each direction arrives: they keep their order.
    pub to_node: u64,
    pub to_terminal: u64,
}

impl Connection {
    pub fn new(node: NodeId, device: usize, terminal: Terminal) -> Connection {
        let (server, registered, broken) = (None, None, false);
        let (trying, tried) = (None, Vec::new());
        let terminal = Some(terminal);
        let (to_node, to_terminal) = (0, 0);
        Connection { node, device, terminal, server, registered, trying, tried, broken, to_node, to_terminal }
    }
}

impl World {
    /// TCP and TLS came to an end at the node: a session begins, or the terminal learns that it does not.
    pub fn connected(self: &Arc<World>, number: u64) {
        let Some((node, device)) = self.ends_of(number) else { return };
        if self.is_paused(node) {
            return self.later(node, move |world| world.connected(number));
        }
        let (key, network, port) = {
            let known = &lock(&self.devices)[device];
            (known.key, known.network, known.port)
        };
        let peer_ip = lock(&self.networks).address(network);
        lock(&self.ledger).note_peer(self.identity(device), SocketAddr::new(peer_ip, port));
        let member = self.node(node).member().filter(|member| member.incarnation() != Incarnation(0));
        let begun = member.and_then(|member| {
            let secret = member.directory().secret().cloned()?;
            let config = Config {
                node,
                incarnation: member.incarnation(),
                session_key: key,
                group: member.group_of(&key.terminal()),
                peer_ip,
                secret,
                check_in: limits::CHECK_IN,
                linger_max: None,
                anchor: (member.directory().roster.format >= NOTIFY_ANCHORS)
                    .then_some(AnchorAt { port: ANCHOR, period: PERIOD }),
            };
            if config.anchor.is_none() {
                self.saw("offers that were refused");
            }
            Some(Server::new(config, instant()))
        });
        let Some(server) = begun else {
            return self.after(20, move |world| world.lost_at_terminal(number));
        };
        if let Some(connection) = lock(&self.connections).get_mut(&number) {
            connection.server = Some(server);
        }
        self.arm_server(number);
        let held = std::mem::take(&mut lock(&self.devices)[device].held);
        held.into_iter().for_each(|told| self.reach_told(device, told));
        self.terminal_event(number, reveille_protocol::session::terminal::Event::Connected);
    }

    fn ends_of(&self, number: u64) -> Option<(NodeId, usize)> {
        let connections = lock(&self.connections);
        let connection =
            connections.get(&number).filter(|known| known.terminal.is_some() && !known.broken)?;
        Some((connection.node, connection.device))
    }

    pub fn server_event(self: &Arc<World>, number: u64, event: Event) {
        let node = lock(&self.connections).get(&number).map(|known| known.node);
        if let Some(node) = node.filter(|node| self.is_paused(*node)) {
            return self.later(node, move |world| world.server_event(number, event));
        }
        let (node, commands) = {
            let mut connections = lock(&self.connections);
            let Some(connection) = connections.get_mut(&number) else { return };
            let Some(server) = &mut connection.server else { return };
            (connection.node, server.handle(instant(), event))
        };
        for command in commands {
            self.server_command(number, node, command);
        }
        self.arm_server(number);
    }

    fn arm_server(&self, number: u64) {
        let at = lock(&self.connections).get(&number).and_then(|known| known.server.as_ref()?.poll_timeout());
        let Some(at) = at else { return };
        self.at(at.0 * 1000, move |world| {
            let due = {
                let connections = lock(&world.connections);
                let server = connections.get(&number).and_then(|known| known.server.as_ref());
                server.and_then(Server::poll_timeout).is_some_and(|at| at <= instant())
            };
            if due {
                world.server_event(number, Event::Timeout);
            }
        });
    }

    /// A session asks for its epoch; not if another one at its node has asked with this attempt.
    fn register(&self, number: u64, node: NodeId, attempt: Attempt) -> bool {
        let mut connections = lock(&self.connections);
        let terminal = |known: &Connection| known.server.as_ref().map(Server::terminal);
        let Some(mine) = connections.get(&number).and_then(terminal) else { return true };
        let taken = connections.iter().any(|(other, known)| {
            *other != number
                && known.node == node
                && known.registered == Some(attempt)
                && terminal(known) == Some(mine)
        });
        if !taken && let Some(connection) = connections.get_mut(&number) {
            connection.registered = Some(attempt);
        }
        !taken
    }

    fn server_command(self: &Arc<World>, number: u64, node: NodeId, command: Command) {
        match command {
            Command::Send(frame) => self.send_to_terminal(number, frame),
            Command::Attach(attach) => {
                if !self.register(number, node, attach.attempt) {
                    let refusal = Refusal::StaleAttempt { current: attach.attempt };
                    return self.after(0, move |world| {
                        world.server_event(number, Event::Attached(Some(Err(refusal))));
                    });
                }
                let member = self.node(node).member();
                if member.is_none_or(|member| member.incarnation() != attach.incarnation) {
                    return self.after(0, move |world| world.server_event(number, Event::Attached(None)));
                }
                let strict = self.setting.strict;
                self.propose(number, node, list::Command::Attach(attach), move |reply| {
                    Event::Attached(match reply {
                        Some(Reply::Attached(attached)) => Some(Ok(attached)),
                        Some(Reply::Refused(refusal)) => {
                            let ahead = matches!(refusal, Refusal::AckAhead { .. });
                            assert!(
                                !(ahead && strict),
                                "a terminal confirmed what was never given out: {refusal}"
                            );
                            Some(Err(refusal))
                        }
                        _ => None,
                    })
                });
            }
            Command::Ack(ack) => self.propose(number, node, list::Command::Ack(ack), Event::AckDone),
            Command::Detach(detach) => {
                self.propose(number, node, list::Command::Detach(detach), |_| Event::DetachDone);
            }
            Command::Enrol(_) => {
                let Some(session_key) =
                    self.ends_of(number).map(|(_, device)| lock(&self.devices)[device].key)
                else {
                    return;
                };
                let stream = Stream(self.below(u64::MAX) | 1);
                let register = list::Register { tenant: TenantId(1), session_key, stream };
                self.propose(number, node, list::Command::Register(register), |reply| {
                    Event::Enrolled(reply.map(|reply| matches!(reply, Reply::Registered { .. })))
                });
            }
            Command::Try(class, order) => {
                if let Some(connection) = lock(&self.connections).get_mut(&number) {
                    connection.trying = Some(class);
                }
                self.send_notification(node, *order, Asked::Session(number));
            }
            Command::Reached(set) => {
                self.check_row_class(number, &set.reachability);
                self.propose(number, node, list::Command::SetReachability(set), |reply| {
                    Event::ReachedDone(matches!(reply, Some(Reply::Done)))
                });
            }
            Command::PathBroken => self.saw("pushes found at a check-in"),
            Command::Report(report) => {
                if let Some((member, process)) = self.node(node).member().zip(self.process(node)) {
                    process.does(|| member.report(report));
                }
            }
            Command::Online(_) => self.saw("sessions"),
            Command::Close => {
                let at = {
                    let mut connections = lock(&self.connections);
                    let Some(connection) = connections.get_mut(&number) else { return };
                    connection.server = None;
                    connection.to_terminal
                };
                self.at(at, move |world| world.lost_at_terminal(number));
            }
        }
    }

    /// Proposes to the terminal's group; what it comes to is an event of the session, if it still is there.
    fn propose(
        self: &Arc<World>,
        number: u64,
        node: NodeId,
        command: list::Command,
        event: impl FnOnce(Option<Reply>) -> Event + Send + 'static,
    ) {
        let Some(member) = self.node(node).member() else { return };
        let Some(device) = lock(&self.connections).get(&number).map(|known| known.device) else { return };
        let group = member.group_of(&lock(&self.devices)[device].key.terminal());
        let Some(process) = self.process(node) else { return };
        let world = self.clone();
        let _detached = SimRuntime::spawn(process.run(async move {
            let reply = member.propose(group, command, limits::SESSION_PROPOSAL).await.ok();
            world.server_event(number, event(reply));
        }));
    }

    fn send_to_terminal(&self, number: u64, frame: NodeFrame) {
        let delay = self.between(200, 20_000);
        let at = {
            let mut connections = lock(&self.connections);
            let Some(connection) = connections.get_mut(&number) else { return };
            if connection.broken || connection.terminal.is_none() {
                // Bytes that nobody acknowledges break the connection in the end.
                return self.after(10_000, move |world| world.server_event(number, Event::PeerClosed));
            }
            connection.to_terminal = (connection.to_terminal + 1).max(now() + delay);
            connection.to_terminal
        };
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        let frame = NodeFrame::take(&mut bytes[..].into()).expect("a frame").expect("a whole one");
        self.at(at, move |world| world.node_said(number, frame));
    }

    pub fn terminal_said(self: &Arc<World>, number: u64, frame: TerminalFrame) {
        let passes = lock(&self.connections).get(&number).is_some_and(|connection| !connection.broken);
        if passes {
            self.server_event(number, Event::Frame(frame));
        }
    }

    pub fn lost_at_node(self: &Arc<World>, number: u64) {
        self.server_event(number, Event::PeerClosed);
    }

    /// A message for a session of this node. It waits in the session's mailbox: the member that brings it must not
    /// meet itself.
    pub fn to_session(self: &Arc<World>, node: NodeId, message: SessionMessage) -> Taken {
        let (terminal, attempt) = match &message {
            SessionMessage::HandOff(hand_off) => (hand_off.terminal, Some(hand_off.attempt)),
            SessionMessage::Supersede { terminal, .. } => (*terminal, None),
            SessionMessage::Report(_) | SessionMessage::Notify(_) => return Taken::NoSession,
        };
        let is_it = |connection: &Connection| {
            connection.node == node
                && connection.server.as_ref().is_some_and(|server| server.terminal() == terminal)
                && connection.registered.is_some()
                && (attempt.is_none() || connection.registered == attempt)
        };
        let found: Vec<u64> = {
            let connections = lock(&self.connections);
            connections.iter().filter(|(_, known)| is_it(known)).map(|(number, _)| *number).collect()
        };
        if found.is_empty() {
            return Taken::NoSession;
        }
        if self.bad_luck(5) {
            return Taken::Full;
        }
        if let SessionMessage::HandOff(hand_off) = &message
            && !hand_off.pushes.is_empty()
            && let Some(device) = self.ends_of(found[0]).map(|(_, device)| device)
        {
            self.tell(Seen::HandedOff { device, group: hand_off.group, node });
        }
        for number in found {
            let event = match message.clone() {
                SessionMessage::HandOff(hand_off) => Event::HandOff(hand_off),
                SessionMessage::Supersede { epoch, .. } => Event::Supersede(epoch),
                SessionMessage::Report(_) | SessionMessage::Notify(_) => continue,
            };
            self.after(0, move |world| world.server_event(number, event));
        }
        Taken::Yes
    }

    /// The node's incarnation is over.
    pub fn leave_sessions(self: &Arc<World>, node: NodeId, whose: &dyn Fn(&TerminalId) -> bool) {
        for number in self.connections_of(node) {
            if !self.terminal_of(number).is_some_and(|terminal| whose(&terminal)) {
                continue;
            }
            let retry_after = self.below(500);
            self.after(0, move |world| world.server_event(number, Event::Leave { retry_after }));
        }
    }

    fn terminal_of(&self, number: u64) -> Option<TerminalId> {
        let device = lock(&self.connections).get(&number)?.device;
        Some(lock(&self.devices)[device].key.terminal())
    }

    fn connections_of(&self, node: NodeId) -> Vec<u64> {
        let connections = lock(&self.connections);
        connections.iter().filter(|(_, known)| known.node == node).map(|(number, _)| *number).collect()
    }

    /// The node's process is gone, and its ends of sessions with it.
    pub fn break_sessions(self: &Arc<World>, node: NodeId, silent: bool) {
        for number in self.connections_of(node) {
            let wait = self.between(1, 20);
            if let Some(connection) = lock(&self.connections).get_mut(&number) {
                (connection.server, connection.broken) = (None, true);
            }
            if !silent {
                self.after(wait, move |world| world.lost_at_terminal(number));
            }
        }
    }

    /// Those of a terminal that is in another network now. Both ends learn so in their own time.
    pub fn break_connections_of(&self, device: usize) {
        let open: Vec<u64> = {
            let mut connections = lock(&self.connections);
            let open = connections.iter_mut().filter(|(_, known)| known.device == device);
            open.map(|(number, known)| {
                known.broken = true;
                *number
            })
            .collect()
        };
        for number in open {
            let (at_terminal, at_node) = (self.pick(&[1, 10, 2000]), self.pick(&[1, 10, 2000]));
            self.after(at_terminal, move |world| world.lost_at_terminal(number));
            self.after(at_node, move |world| world.lost_at_node(number));
        }
    }

    /// Whoever has not noticed yet that a connection is broken notices now.
    pub fn notice_broken(self: &Arc<World>) {
        let broken: Vec<u64> = {
            let connections = lock(&self.connections);
            connections.iter().filter(|(_, known)| known.broken).map(|(number, _)| *number).collect()
        };
        for number in broken {
            self.lost_at_terminal(number);
            self.lost_at_node(number);
        }
        lock(&self.connections).retain(|_, known| known.terminal.is_some() || known.server.is_some());
    }
}
