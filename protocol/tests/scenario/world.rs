//! The world of a scenario: one shard and its dispatcher at a leader, nodes with sessions, terminals with disks, and
//! every message between them in a queue that the scenario can see. It does around the pure machines what the product's
//! shells do, and nothing else.

use std::collections::{BTreeMap, VecDeque};

use reveille_protocol::directory::Secret;
use reveille_protocol::dispatch::{self, Dispatch, Facts, Stored, Touched};
use reveille_protocol::id::*;
use reveille_protocol::limits;
use reveille_protocol::service_list::row::{Linger, Urgency};
use reveille_protocol::service_list::{self as list, Command, Effect, MemoryTable, Reply, apply, view};
use reveille_protocol::session::{server, terminal};
use reveille_protocol::time::{GroupTime, Instant};
use reveille_protocol::wire::entry::Entry;
use reveille_protocol::wire::peer::{Report, Reported, SessionMessage};
use reveille_protocol::wire::session::{Cause, Class, Listening, NodeFrame, Offer, TerminalFrame, Tried};

use crate::show;

pub const GROUP: GroupId = GroupId(1);

/// Something on its way.
#[derive(Debug, Clone)]
pub enum Message {
    FromTerminal { connection: u64, frame: TerminalFrame },
    FromNode { connection: u64, frame: NodeFrame },
    HandOff { node: u64, message: SessionMessage },
    Report { node: u64, report: Report },
}

/// A TCP connection: a server machine at a node and a terminal machine at its other end.
pub struct Connection {
    pub node: u64,
    pub terminal: String,
    pub server: Option<server::Server>,
    pub client: Option<terminal::Terminal>,
}

/// What lets datagrams through to a device.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Everything.
    Open,
    /// A NAT: what comes from where the device keeps a binding.
    Nat,
    /// Nothing.
    Blocked,
}

/// A device.
pub struct Device {
    pub id: TerminalId,
    pub key: KeyFingerprint,
    pub disk: terminal::Memory,
    pub linger: Linger,
    pub min_urgency: Urgency,
    pub listens: bool,
    /// What a device that finds out how it is reached has around it.
    pub network: Option<Network>,
    pub class: Class,
    pub seen: Option<std::net::IpAddr>,
    pub cause: Cause,
    /// Given to the application in this run of the process.
    pub given: Seq,
}

pub struct World {
    pub table: MemoryTable,
    pub dispatch: Dispatch,
    pub term: u64,
    pub now: Instant,
    pub devices: BTreeMap<String, Device>,
    pub connections: BTreeMap<u64, Connection>,
    pub incarnations: BTreeMap<u64, u64>,
    pub queue: VecDeque<Message>,
    /// What sessions propose comes to nothing.
    pub leader_away: bool,
    next_connection: u64,
    trace: Vec<String>,
}

impl World {
    pub fn new() -> World {
        let mut world = World {
            table: MemoryTable::default(),
            dispatch: Dispatch::default(),
            term: 1,
            now: Instant(0),
            devices: BTreeMap::new(),
            connections: BTreeMap::new(),
            incarnations: (1..=3).map(|node| (node, 1)).collect(),
            queue: VecDeque::new(),
            leader_away: false,
            next_connection: 1,
            trace: Vec::new(),
        };
        world.dispatch.handle(world.now, dispatch::Event::Lead { term: 1 });
        world
    }

    pub fn take_trace(&mut self) -> Vec<String> {
        std::mem::take(&mut self.trace)
    }

    pub fn say(&mut self, line: String) {
        let line = show::names(self, line);
        self.trace.push(line);
    }

    pub fn group_time(&self) -> GroupTime {
        GroupTime(1_000_000 + self.now.0)
    }

    pub fn device(&mut self, name: &str) -> &mut Device {
        let number: u8 = name[1..].parse().expect("terminals are named t1, t2, ...");
        self.devices.entry(name.to_owned()).or_insert_with(|| {
            let key = KeyFingerprint([number; 32]);
            Device {
                id: key.terminal(),
                key,
                disk: terminal::Memory::default(),
                linger: Linger::AtOnce,
                min_urgency: Urgency::VeryLow,
                listens: true,
                network: None,
                class: Class::Untried,
                seen: None,
                cause: Cause::Start,
                given: Seq(0),
            }
        })
    }

    fn fenced(&self, node: NodeId, incarnation: Incarnation) -> bool {
        self.incarnations.get(&node.0).is_none_or(|current| incarnation.0 < *current)
    }

    /// One log entry with one command, applied at the leader.
    pub fn propose(&mut self, command: Command) -> Reply {
        let entry = Entry { time: self.group_time(), commands: vec![command] };
        let entry = Entry::decode(&entry.encode()).expect("what is encoded decodes");
        let applied = apply(&mut self.table, GROUP, &entry).expect("memory cannot fail");
        let reply = applied.replies.into_iter().next().expect("one reply for one command");
        let mut touched = Touched::default();
        for effect in applied.effects {
            touched.add(&effect);
            match effect {
                Effect::Ended { message, end } => {
                    self.say(format!(
                        "push {} of {} ends: {}",
                        message.seq,
                        message.terminal,
                        end.stage().name()
                    ));
                }
                Effect::Superseded { terminal, session } => {
                    let message = SessionMessage::Supersede { terminal, epoch: session.epoch };
                    self.queue.push_back(Message::HandOff { node: session.node.0, message });
                }
                _ => {}
            }
        }
        for (terminal, stored) in touched {
            self.look_at(terminal, stored);
        }
        reply
    }

    pub fn look_at(&mut self, terminal: TerminalId, stored: Option<Stored>) {
        let facts = self.facts(&terminal);
        self.dispatch(dispatch::Event::Changed { terminal, facts, stored });
    }

    pub fn facts(&self, terminal: &TerminalId) -> Option<Facts> {
        let row = view::terminal(&self.table, terminal).unwrap();
        row.as_ref().map(|row| Facts::of(row, |node, incarnation| self.fenced(node, incarnation)))
    }

    pub fn dispatch(&mut self, event: dispatch::Event) {
        let mut commands = VecDeque::from(self.dispatch.handle(self.now, event));
        while let Some(command) = commands.pop_front() {
            match command {
                dispatch::Command::HandOff(order) => {
                    let row = view::terminal(&self.table, &order.terminal).unwrap();
                    let row = row.expect("a row to hand off for");
                    let filled = order.fill(&self.table, &row, (GROUP, self.term), self.group_time());
                    let hand_off = filled.unwrap();
                    let upto = hand_off.pushes.last().map(|push| push.seq);
                    let message = SessionMessage::HandOff(hand_off);
                    self.queue.push_back(Message::HandOff { node: order.node.0, message });
                    let event =
                        dispatch::Event::HandedOff { terminal: order.terminal, epoch: order.epoch, upto };
                    commands.extend(self.dispatch.handle(self.now, event));
                }
                dispatch::Command::Notify { terminal, attempt, .. } => {
                    let again = if attempt > 0 { format!(", try {}", attempt + 1) } else { String::new() };
                    self.say(format!("leader notifies {terminal}{again}"));
                }
                dispatch::Command::Detach { terminal, stream, epoch } => {
                    self.say(format!(
                        "leader detaches {terminal}: its node knows no session of epoch {epoch}"
                    ));
                    self.propose(Command::Detach(list::Detach { terminal, stream, epoch, ack: None }));
                }
            }
        }
    }

    /// A terminal's process connects to a node.
    pub fn connect(&mut self, name: &str, node: u64) -> u64 {
        let now = self.now;
        let incarnation = Incarnation(self.incarnations[&node]);
        let device = self.device(name);
        device.disk.attempt = Attempt(device.disk.attempt.0 + 1);
        let client = terminal::Config {
            terminal: device.id,
            memory: device.disk,
            offer: device
                .network
                .map(|_| Offer { class: device.class, cause: std::mem::take(&mut device.cause) }),
            seen: device.seen,
            bound: None,
            listening: device.listens.then_some(Listening { port: 5000, key: device.key }),
            linger: device.linger,
            min_urgency: device.min_urgency,
            enrolment: None,
            given: device.given,
        };
        let server = server::Config {
            node: NodeId(node),
            incarnation,
            session_key: device.key,
            group: GROUP,
            peer_ip: [192, 0, 2, 1].into(),
            secret: Secret { generation: 1, key: [9; 32] },
            check_in: limits::CHECK_IN,
            linger_max: None,
            anchor: Some(server::AnchorAt { port: 7000, period: 25 }),
        };
        let connection = self.next_connection;
        self.next_connection += 1;
        let ends = Connection {
            node,
            terminal: name.to_owned(),
            server: Some(server::Server::new(server, now)),
            client: Some(terminal::Terminal::new(client, now)),
        };
        self.connections.insert(connection, ends);
        self.client(connection, terminal::Event::Connected);
        connection
    }

    /// An event at the terminal's end.
    pub fn client(&mut self, connection: u64, event: terminal::Event) {
        let now = self.now;
        let Some(ends) = self.connections.get_mut(&connection) else { return };
        let (name, Some(client)) = (ends.terminal.clone(), &mut ends.client) else { return };
        let commands = client.handle(now, event);
        let given = client.given();
        self.device(&name).given = given;
        let mut bound = false;
        for command in commands {
            match command {
                terminal::Command::Send(frame) => {
                    self.queue.push_back(Message::FromTerminal { connection, frame })
                }
                terminal::Command::Save(memory) => self.device(&name).disk = memory,
                terminal::Command::Welcomed(welcome) => {
                    self.say(format!("{name} is online at n{}, epoch {}", welcome.node, welcome.epoch));
                }
                terminal::Command::Reset { next } => self.say(format!("{name} begins anew at push {next}")),
                terminal::Command::Deliver(push) => {
                    let mark = if push.maybe_seen { " (maybe seen)" } else { "" };
                    let body = String::from_utf8_lossy(&push.body).into_owned();
                    self.say(format!("{name} receives push {}: {body}{mark}", push.seq));
                }
                terminal::Command::Bind(_) => {
                    self.say(format!("{name} keeps a binding with its anchor"));
                    bound = self.device(&name).network == Some(Network::Nat);
                }
                terminal::Command::Unbind => {}
                terminal::Command::Reached(class, seen) => {
                    self.say(format!("{name} knows how it is reached: {class:?}"));
                    let device = self.device(&name);
                    (device.class, device.seen) = (class, Some(seen));
                }
                terminal::Command::Close(closed) => {
                    self.say(format!("{name} disconnects: {}", show::closed(&closed)));
                    if let Some(ends) = self.connections.get_mut(&connection) {
                        ends.client = None;
                    }
                    self.server(connection, server::Event::PeerClosed);
                }
            }
        }
        if bound {
            self.client(connection, terminal::Event::Bound);
        }
    }

    /// An event at the node's end.
    pub fn server(&mut self, connection: u64, event: server::Event) {
        let now = self.now;
        let Some(ends) = self.connections.get_mut(&connection) else { return };
        let (node, Some(server)) = (ends.node, &mut ends.server) else { return };
        for command in server.handle(now, event) {
            match command {
                server::Command::Send(frame) => self.queue.push_back(Message::FromNode { connection, frame }),
                server::Command::Enrol(_) => self.server(connection, server::Event::Enrolled(Some(false))),
                server::Command::Attach(_) if self.leader_away => {
                    self.server(connection, server::Event::Attached(None));
                }
                server::Command::Attach(attach) => {
                    let answer = match self.propose(Command::Attach(attach)) {
                        Reply::Attached(attached) => Ok(attached),
                        Reply::Refused(refusal) => Err(refusal),
                        other => panic!("{other:?}"),
                    };
                    self.server(connection, server::Event::Attached(Some(answer)));
                }
                server::Command::Try(class, order) => {
                    let network = self.devices.values().find(|device| device.id == order.terminal);
                    let network = network.and_then(|device| device.network);
                    let reached = matches!(
                        (class, network),
                        (Class::Direct, Some(Network::Open)) | (Class::Pinned, Some(Network::Nat))
                    );
                    self.say(format!("n{node} tries {}, {class:?}: {reached}", order.terminal));
                    self.server(connection, server::Event::Tried(Tried { class, reached }));
                }
                server::Command::Reached(set) => {
                    if !self.leader_away {
                        self.propose(Command::SetReachability(set));
                    }
                    self.server(connection, server::Event::ReachedDone(!self.leader_away));
                }
                server::Command::PathBroken => {
                    self.say(format!("n{node} sees that no notification came through"))
                }
                server::Command::Ack(ack) => {
                    let reply = (!self.leader_away).then(|| self.propose(Command::Ack(ack)));
                    self.server(connection, server::Event::AckDone(reply));
                }
                server::Command::Detach(detach) => {
                    if !self.leader_away {
                        self.propose(Command::Detach(detach));
                    }
                    self.server(connection, server::Event::DetachDone);
                }
                server::Command::Report(report) => self.queue.push_back(Message::Report { node, report }),
                server::Command::Online(_) => {}
                server::Command::Close => {
                    if let Some(ends) = self.connections.get_mut(&connection) {
                        ends.server = None;
                    }
                }
            }
        }
    }

    /// Delivers one message.
    pub fn deliver(&mut self, message: Message) {
        match message {
            Message::FromTerminal { connection, frame } => {
                self.server(connection, server::Event::Frame(frame))
            }
            Message::FromNode { connection, frame } => self.client(connection, terminal::Event::Frame(frame)),
            Message::Report { node, report } => {
                let Report { terminal, epoch, what, .. } = report;
                self.dispatch(dispatch::Event::Reported { terminal, epoch, node: NodeId(node), what });
            }
            Message::HandOff { node, message } => self.reach_session(node, message),
        }
    }

    fn reach_session(&mut self, node: u64, message: SessionMessage) {
        let terminal = match &message {
            SessionMessage::HandOff(hand_off) => hand_off.terminal,
            SessionMessage::Supersede { terminal, .. } => *terminal,
            SessionMessage::Report(_) | SessionMessage::Notify(_) => return,
        };
        let at = |attempt: Option<Attempt>| {
            self.connections.iter().filter(move |(_, ends)| {
                ends.node == node
                    && ends.server.as_ref().is_some_and(|server| {
                        server.terminal() == terminal && (attempt.is_none() || server.attempt() == attempt)
                    })
            })
        };
        match message {
            SessionMessage::HandOff(hand_off) => match at(Some(hand_off.attempt)).next().map(|(id, _)| *id) {
                Some(connection) => self.server(connection, server::Event::HandOff(hand_off)),
                None => {
                    let what = Reported::NoSuchSession { incarnation: Incarnation(self.incarnations[&node]) };
                    let report = Report { group: GROUP, terminal, epoch: hand_off.epoch, what };
                    self.queue.push_back(Message::Report { node, report });
                }
            },
            SessionMessage::Supersede { epoch, .. } => {
                for connection in at(None).map(|(id, _)| *id).collect::<Vec<_>>() {
                    self.server(connection, server::Event::Supersede(epoch));
                }
            }
            SessionMessage::Report(_) | SessionMessage::Notify(_) => {}
        }
    }

    /// Time passes; every timer that comes in between fires in its order.
    pub fn advance(&mut self, millis: u64) {
        let until = Instant(self.now.0 + millis);
        loop {
            let ends = self.connections.values();
            let next = ends
                .flat_map(|ends| {
                    let server = ends.server.as_ref().and_then(server::Server::poll_timeout);
                    [server, ends.client.as_ref().and_then(terminal::Terminal::poll_timeout)]
                })
                .chain([self.dispatch.poll_timeout()])
                .flatten()
                .min();
            let Some(next) = next.filter(|next| *next <= until) else { break };
            self.now = self.now.max(next);
            self.dispatch(dispatch::Event::Timeout);
            for connection in self.connections.keys().copied().collect::<Vec<_>>() {
                self.client(connection, terminal::Event::Timeout);
                self.server(connection, server::Event::Timeout);
            }
        }
        self.now = until;
    }
}
