//! A node's end: its life, its incarnations, and the shell around each session, as `node/src/session` is one.

use reveille_protocol::dispatch;
use reveille_protocol::id::*;
use reveille_protocol::limits;
use reveille_protocol::service_list::{self as list, Refusal, Reply};
use reveille_protocol::session::server::{AnchorAt, Command, Config, Event, Server};
use reveille_protocol::session::terminal::Terminal;
use reveille_protocol::time::Instant;
use reveille_protocol::wire::peer::{Report, Reported, SessionMessage};
use reveille_protocol::wire::session::{Class, Frame, NodeFrame, TerminalFrame};

use crate::faults::Fault;
use crate::notifier::{ANCHOR, Asked, Notifier};
use crate::route::Origin;
use crate::udp::SECRET;
use crate::world::{GROUP, Happening, World};

/// How long a session's proposals are tried.
const PROPOSAL: u64 = 8_000;
/// Silence after which a node is marked down.
const SILENT: u64 = 3_000;

pub struct Node {
    pub alive: bool,
    pub paused_until: Option<u64>,
    /// Its own; zero: none yet.
    pub incarnation: u64,
    /// The highest one in the directory.
    known: u64,
    /// The highest one that the directory marks down.
    down: u64,
    /// Tells one start of its process from the next.
    boot: u64,
    pub notifier: Notifier,
}

impl Node {
    pub fn new(number: u64, seed: u64) -> Node {
        let notifier = Notifier::new(number, seed);
        Node { alive: true, paused_until: None, incarnation: 1, known: 1, down: 0, boot: 1, notifier }
    }

    pub fn boot(&self) -> u64 {
        self.boot
    }
}

/// A TCP connection with both its ends.
pub struct Connection {
    pub node: u64,
    pub device: usize,
    pub terminal: Option<Terminal>,
    pub server: Option<Server>,
    /// The server's session is registered: hand-offs find it by this.
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
    pub fn new(node: u64, device: usize, terminal: Terminal) -> Connection {
        Connection {
            node,
            device,
            terminal: Some(terminal),
            server: None,
            registered: None,
            trying: None,
            tried: Vec::new(),
            broken: false,
            to_node: 0,
            to_terminal: 0,
        }
    }
}

impl Node {
    /// Its latest incarnation, as the directory has it.
    pub fn known(&self) -> u64 {
        self.known
    }
}

impl World {
    pub fn able_nodes(&self) -> Vec<u64> {
        let able = self.nodes.iter().filter(|(_, node)| node.alive && node.paused_until.is_none());
        able.map(|(number, _)| *number).collect()
    }

    pub fn fenced(&self, node: NodeId, incarnation: Incarnation) -> bool {
        self.nodes.get(&node.0).is_none_or(|known| incarnation.0 < known.known || incarnation.0 <= known.down)
    }

    /// TCP and TLS came to an end at the node: a session begins, or the terminal learns that it does not.
    pub fn connected(&mut self, number: u64) {
        let now = self.instant();
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let node = &self.nodes[&connection.node];
        if !node.alive || node.incarnation == 0 || connection.terminal.is_none() {
            return self.after(20, Happening::LostAtTerminal(number));
        }
        let device = connection.device;
        let anchor = (now.0 >= self.ready).then_some(AnchorAt { port: ANCHOR, period: self.period });
        let config = Config {
            node: NodeId(connection.node),
            incarnation: Incarnation(node.incarnation),
            session_key: self.devices[connection.device].key,
            group: GROUP,
            peer_ip: self.networks.address(self.devices[device].network),
            secret: SECRET,
            check_in: limits::CHECK_IN,
            linger_max: Some(limits::MAX_LINGER),
            anchor,
        };
        if anchor.is_none() && now.0 >= self.ready / 2 && self.devices[device].speaks == 2 {
            *self.seen.entry("offers that were refused").or_default() += 1;
        }
        connection.server = Some(Server::new(config, now));
        self.note_peer(device);
        self.after_server(number);
        for told in std::mem::take(&mut self.devices[device].held) {
            self.reach_told(device, told);
        }
        self.terminal_event(number, reveille_protocol::session::terminal::Event::Connected);
    }

    pub fn terminal_said(&mut self, number: u64, frame: TerminalFrame) {
        if self.connections.get(&number).is_some_and(|connection| !connection.broken) {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes);
            let frame = TerminalFrame::take(&mut bytes[..].into()).expect("a frame").expect("a whole one");
            self.server_event(number, Event::Frame(frame));
        }
    }

    pub fn lost_at_node(&mut self, number: u64) {
        self.server_event(number, Event::PeerClosed);
    }

    pub fn server_timer(&mut self, number: u64) {
        let server = self.connections.get(&number).and_then(|connection| connection.server.as_ref());
        if server.and_then(Server::poll_timeout).is_some_and(|at| at <= self.instant()) {
            self.server_event(number, Event::Timeout);
        }
    }

    pub fn server_event(&mut self, number: u64, event: Event) {
        let now = self.instant();
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let (node, Some(server)) = (connection.node, &mut connection.server) else { return };
        for command in server.handle(now, event) {
            if self.unlucky(Fault::Node) {
                return self.kill(node);
            }
            self.server_command(number, node, command);
        }
        self.anchor_late(number);
        self.after_server(number);
    }

    /// A session that began before the cluster was ready learns of its anchor with the next thing that happens to it.
    fn anchor_late(&mut self, number: u64) {
        let now = self.instant();
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let (node, Some(server)) = (connection.node, &mut connection.server) else { return };
        if now.0 < self.ready || !server.lacks_anchor() {
            return;
        }
        *self.seen.entry("anchors that came late").or_default() += 1;
        let anchor = AnchorAt { port: ANCHOR, period: self.period };
        for command in server.handle(now, Event::Anchor(anchor)) {
            self.server_command(number, node, command);
        }
    }

    fn after_server(&mut self, number: u64) {
        let server = self.connections.get(&number).and_then(|connection| connection.server.as_ref());
        if let Some(at) = server.and_then(Server::poll_timeout) {
            self.at(at.0, Happening::ServerTimer(number));
        }
    }

    fn server_command(&mut self, number: u64, node: u64, command: Command) {
        let mut propose = |origin, command| self.propose(node, origin, command, PROPOSAL);
        match command {
            Command::Send(frame) => self.send_to_terminal(number, frame),
            Command::Attach(attach) => {
                let attempt = attach.attempt;
                propose(Origin::Attach(number), list::Command::Attach(attach));
                if let Some(connection) = self.connections.get_mut(&number) {
                    connection.registered = Some(attempt);
                }
            }
            Command::Ack(ack) => propose(Origin::Ack(number), list::Command::Ack(ack)),
            Command::Detach(detach) => propose(Origin::Detach(number), list::Command::Detach(detach)),
            Command::Enrol(_) => {
                let Some(connection) = self.connections.get(&number) else { return };
                let session_key = self.devices[connection.device].key;
                let register =
                    list::Register { tenant: TenantId(1), session_key, stream: Stream(self.dice.next() | 1) };
                self.propose(node, Origin::Enrol(number), list::Command::Register(register), PROPOSAL);
            }
            Command::Report(report) => self.report(node, report),
            Command::Try(class, order) => {
                if let Some(connection) = self.connections.get_mut(&number) {
                    connection.trying = Some(class);
                }
                self.order(node, *order, Asked::Session(number));
            }
            Command::Reached(set) => {
                self.check_row_class(number, &set.reachability);
                self.propose(node, Origin::Reached(number), list::Command::SetReachability(set), PROPOSAL);
            }
            Command::PathBroken => self.saw("pushes found at a check-in"),
            Command::Online(_) => {}
            Command::Close => {
                self.forget_session(number);
                let Some(connection) = self.connections.get_mut(&number) else { return };
                connection.server = None;
                let time = connection.to_terminal.max(self.now);
                self.at(time, Happening::LostAtTerminal(number));
            }
        }
    }

    fn send_to_terminal(&mut self, number: u64, frame: NodeFrame) {
        let delay = self.dice.between(1, 20);
        let Some(connection) = self.connections.get_mut(&number) else { return };
        if connection.broken || connection.terminal.is_none() {
            // Bytes that nobody acknowledges break the connection in the end.
            return self.after(10_000, Happening::LostAtNode(number));
        }
        connection.to_terminal = connection.to_terminal.max(self.now + delay);
        let time = connection.to_terminal;
        self.at(time, Happening::FromNode(number, frame));
    }

    /// A session's proposal is over; `None`: nobody knows how.
    pub fn session_answered(&mut self, number: u64, origin: Origin, reply: Option<Reply>) {
        let event = match origin {
            Origin::Attach(_) => Event::Attached(match reply {
                Some(Reply::Attached(attached)) => Some(Ok(attached)),
                Some(Reply::Refused(refusal)) => {
                    let ahead = matches!(refusal, Refusal::AckAhead { .. });
                    assert!(!ahead, "a terminal confirmed what was never given out: {refusal}");
                    Some(Err(refusal))
                }
                _ => None,
            }),
            Origin::Enrol(_) => Event::Enrolled(reply.map(|reply| matches!(reply, Reply::Registered { .. }))),
            Origin::Ack(_) => Event::AckDone(reply),
            Origin::Detach(_) => Event::DetachDone,
            Origin::Reached(_) => Event::ReachedDone(matches!(reply, Some(Reply::Done))),
            Origin::Publish(_) | Origin::Nobody => return,
        };
        self.server_event(number, event);
    }

    /// A message from another node.
    pub fn peer(&mut self, from: u64, to: u64, message: SessionMessage) {
        if !self.nodes[&to].alive {
            return;
        }
        let message = SessionMessage::decode(&message.encode()).expect("what is encoded decodes");
        match message {
            SessionMessage::Report(report) => return self.reported(from, to, report),
            SessionMessage::Notify(order) => return self.order(to, order, Asked::Leader),
            _ => {}
        }
        let session = message.session();
        if self.reach_session(to, message) {
            return;
        }
        if let Some((group, terminal, epoch)) = session {
            let incarnation = Incarnation(self.nodes[&to].incarnation);
            let what = Reported::NoSuchSession { incarnation };
            let message = SessionMessage::Report(Report { group, terminal, epoch, what });
            self.send(to, from, Happening::Peer { from: to, to: from, message });
        }
    }

    pub fn has_session(&self, node: u64, terminal: &TerminalId, attempt: Attempt) -> bool {
        self.connections.values().any(|connection| {
            let of_it = connection.server.as_ref().is_some_and(|server| server.terminal() == *terminal);
            connection.node == node && of_it && connection.registered == Some(attempt)
        })
    }

    /// For a session of this node; `false` if there is none for it.
    pub fn reach_session(&mut self, node: u64, message: SessionMessage) -> bool {
        let (terminal, attempt) = match &message {
            SessionMessage::HandOff(hand_off) => (hand_off.terminal, Some(hand_off.attempt)),
            SessionMessage::Supersede { terminal, .. } => (*terminal, None),
            SessionMessage::Report(_) | SessionMessage::Notify(_) => return false,
        };
        let found = self.connections.iter().filter(|(_, connection)| {
            connection.node == node
                && connection.server.as_ref().is_some_and(|server| server.terminal() == terminal)
                && connection.registered.is_some()
                && (attempt.is_none() || connection.registered == attempt)
        });
        let found: Vec<u64> = found.map(|(number, _)| *number).collect();
        for number in &found {
            let event = match message.clone() {
                SessionMessage::HandOff(hand_off) => Event::HandOff(hand_off),
                SessionMessage::Supersede { epoch, .. } => Event::Supersede(epoch),
                SessionMessage::Report(_) | SessionMessage::Notify(_) => continue,
            };
            self.server_event(*number, event);
        }
        !found.is_empty()
    }

    /// The node's process is killed; its connections close, or just fall silent.
    pub fn kill(&mut self, number: u64) {
        let wait = self.dice.between(100, 8000);
        self.kill_for(number, wait);
    }

    pub fn kill_for(&mut self, number: u64, wait: u64) {
        let Some(node) = self.nodes.get_mut(&number).filter(|node| node.alive) else { return };
        (node.alive, node.paused_until, node.boot) = (false, None, node.boot + 1);
        let silent = self.dice.permille(200);
        self.say(|| format!("n{number} is killed{}", if silent { " and falls silent" } else { "" }));
        self.anchor_ends(number);
        self.forget_proposals(number);
        if self.leader().is_some_and(|leader| leader.node == number) {
            self.depose();
        }
        self.leaders.retain(|_, leader| leader.node != number);
        let held: Vec<u64> = self.connections_of(number);
        for held in held {
            let wait = self.dice.between(1, 20);
            let Some(connection) = self.connections.get_mut(&held) else { continue };
            (connection.server, connection.broken) = (None, true);
            if !silent {
                self.after(wait, Happening::LostAtTerminal(held));
            }
        }
        self.watch_silence(number);
        self.after(wait, Happening::Restart(number));
    }

    /// What its anchor knew is gone.
    fn anchor_ends(&mut self, number: u64) {
        let (now, seed) = (self.instant(), self.dice.next());
        let Some(node) = self.nodes.get_mut(&number) else { return };
        let waited = node.notifier.has_waiting(now);
        node.notifier = Notifier::new(number, seed);
        if waited {
            self.saw("anchors killed with an order waiting");
        }
    }

    fn connections_of(&self, node: u64) -> Vec<u64> {
        let held = self.connections.iter().filter(|(_, connection)| connection.node == node);
        held.map(|(number, _)| *number).collect()
    }

    fn watch_silence(&mut self, number: u64) {
        let incarnation = self.nodes[&number].known;
        self.after(SILENT, Happening::Silent { node: number, incarnation });
    }

    /// Marked down if it is still silent.
    pub fn silent(&mut self, number: u64, incarnation: u64) {
        let Some(node) = self.nodes.get_mut(&number) else { return };
        let silent = !node.alive || node.paused_until.is_some();
        if silent && node.known == incarnation && node.down < incarnation {
            node.down = incarnation;
            self.say(|| format!("n{number} is marked down"));
            self.look_again();
        }
    }

    pub fn restart(&mut self, number: u64) {
        let Some(node) = self.nodes.get_mut(&number).filter(|node| !node.alive) else { return };
        (node.alive, node.incarnation) = (true, 0);
        self.say(|| format!("n{number} starts"));
        self.join(number);
    }

    fn join(&mut self, node: u64) {
        let (wait, boot) = (self.dice.between(20, 300), self.nodes[&node].boot);
        self.after(wait, Happening::Joined { node, boot });
    }

    /// A new incarnation: sessions of earlier ones are fenced.
    pub fn joined(&mut self, number: u64, boot: u64) {
        let Some(node) = self.nodes.get_mut(&number).filter(|node| node.alive && node.boot == boot) else {
            return;
        };
        node.known += 1;
        node.incarnation = node.known;
        self.look_again();
        for term in self.leaders.keys().copied().collect::<Vec<_>>() {
            self.dispatch(term, dispatch::Event::Linked { node: NodeId(number) });
        }
    }

    pub fn pause(&mut self, number: u64, wait: u64) {
        let until = self.now + wait;
        let Some(node) = self.nodes.get_mut(&number).filter(|node| node.alive) else { return };
        node.paused_until = Some(until);
        if node.notifier.has_waiting(Instant(self.now)) {
            self.saw("anchors paused with an order waiting");
        }
        self.say(|| format!("n{number} is paused for {wait} ms"));
        // Before everything that was held up until then.
        self.at(until, Happening::Resume(number));
        self.watch_silence(number);
        if wait > 300 && self.leader().is_some_and(|leader| leader.node == number) {
            self.depose();
        }
    }

    /// It goes on, and if it was marked down meanwhile, its sessions end and it begins anew.
    pub fn resume(&mut self, number: u64) {
        let Some(node) = self.nodes.get_mut(&number) else { return };
        if node.paused_until.take().is_none() || node.incarnation == 0 || node.incarnation > node.down {
            return;
        }
        node.incarnation = 0;
        self.say(|| format!("n{number} finds itself marked down"));
        for held in self.connections_of(number) {
            let retry_after = self.dice.below(500);
            self.server_event(held, Event::Leave { retry_after });
        }
        self.join(number);
    }
}
