//! A terminal's end: its disk, the life of its process, its application, and the shell around each session, as
//! `terminal/src` is one.

use reveille_protocol::id::*;
use reveille_protocol::service_list::row::{Linger, Urgency};
use reveille_protocol::service_list::view;
use reveille_protocol::session::reach::Reach;
use reveille_protocol::session::terminal::{Closed, Command, Config, Event, Memory, Terminal};
use reveille_protocol::wire::session::{ByeReason, Cause, Class, Frame, Listening, NodeFrame, TerminalFrame};

use crate::dice::Dice;
use crate::faults::Fault;
use crate::listener::{Listener, Told};
use crate::nat::Networks;
use crate::node::Connection;
use crate::world::{CALM, Happening, NODES, World};

/// What its process is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// It is not there.
    Nothing,
    /// It waits for a notification.
    Listening,
    /// It waits a little, then connects.
    BackingOff,
    /// It has this connection, or is making it.
    Session(u64),
}

pub struct Device {
    pub key: KeyFingerprint,
    pub disk: Memory,
    pub linger: Linger,
    min_urgency: Urgency,
    pub listens: bool,
    /// Its application takes up to so long to confirm.
    thinks: u64,
    pub doing: Doing,
    /// When it began what it is doing.
    since: u64,
    /// Which life of its process this is.
    pub life: u32,
    /// Given to the application in this life.
    given: Seq,
    /// Which session protocol it speaks.
    pub speaks: u8,
    /// Where it is.
    pub network: usize,
    /// Where it listens, in this life.
    pub port: u16,
    /// The application has said that this is another one.
    pub moved: bool,
    /// Its socket, in this life.
    pub listener: Listener,
    pub reach: Reach,
    /// What its binding came to while it was about to connect.
    pub held: Vec<Told>,
    /// Where its anchor sees it.
    pub mapped: Option<std::net::SocketAddr>,
    /// Why it connects next.
    cause: Cause,
    /// The node to try last.
    pub avoid: Option<u64>,
    pub last_node: Option<u64>,
    /// It stays connected if no notification reaches it.
    stays: bool,
    /// What it asked for in this session.
    asked: Linger,
}

impl Device {
    pub fn new(number: u8, networks: &Networks, dice: &mut Dice) -> Device {
        let linger = dice.pick(&[
            Linger::AtOnce,
            Linger::AtOnce,
            Linger::Seconds(2),
            Linger::Seconds(20),
            Linger::Forever,
            Linger::Forever,
        ]);
        let key = KeyFingerprint([number + 1; 32]);
        let speaks = if dice.permille(700) { 2 } else { 1 };
        let network = if speaks == 2 { networks.draw(number.into(), dice) } else { number.into() };
        Device {
            key,
            disk: Memory::default(),
            linger,
            min_urgency: dice.pick(&[Urgency::VeryLow, Urgency::VeryLow, Urgency::Normal]),
            listens: dice.permille(800),
            thinks: dice.pick(&[1, 20, 20, 500, 5_000]),
            doing: Doing::Nothing,
            since: 0,
            life: 0,
            given: Seq(0),
            speaks,
            network,
            port: 0,
            moved: false,
            listener: Listener::new(key),
            reach: Reach::default(),
            held: Vec::new(),
            mapped: None,
            cause: Cause::Start,
            avoid: None,
            last_node: None,
            stays: dice.permille(500),
            asked: linger,
        }
    }

    /// Does every push reach it by notification? If not, it must come by itself.
    pub fn hears_all(&self) -> bool {
        self.listens && self.min_urgency == Urgency::VeryLow
    }

    /// How long it wants to stay.
    pub fn wants(&self) -> Linger {
        if self.reach.class() == Class::None && self.stays { Linger::Forever } else { self.linger }
    }
}

impl World {
    /// The process starts: it connects once, then listens.
    pub fn start(&mut self, device: usize) {
        let known = &mut self.devices[device];
        if known.doing != Doing::Nothing {
            return;
        }
        known.life += 1;
        known.given = known.disk.last;
        (known.listener, known.reach, known.moved) = (Listener::new(known.key), Reach::default(), false);
        (known.cause, known.avoid, known.mapped) = (Cause::Start, None, None);
        known.held.clear();
        let life = known.life;
        known.port = 5000 + (life % 1000) as u16;
        self.say(|| format!("t{device} starts, life {life}"));
        self.back_off(device, 0);
    }

    fn back_off(&mut self, device: usize, wait: u64) {
        let wait = wait + self.dice.between(1, 200);
        let now = self.instant();
        let known = &mut self.devices[device];
        let listened = std::mem::replace(&mut known.doing, Doing::BackingOff) == Doing::Listening;
        let life = known.life;
        self.after(wait, Happening::Connect { device, life });
        if listened {
            let deeds = self.devices[device].listener.session(now, true);
            self.listener_did(device, deeds);
        }
    }

    /// It has a reason to connect.
    pub fn come(&mut self, device: usize, cause: Cause) {
        self.devices[device].cause = cause;
        self.back_off(device, 0);
    }

    pub fn connect(&mut self, device: usize, life: u32) {
        let now = self.instant();
        let number = self.number();
        let mut node = self.dice.between(1, NODES + 1);
        let asks = now.0 >= self.ready / 2;
        let known = &mut self.devices[device];
        if known.life != life || known.doing != Doing::BackingOff {
            return;
        }
        known.disk.attempt = Attempt(known.disk.attempt.0 + 1);
        (known.doing, known.since) = (Doing::Session(number), now.0);
        if known.avoid.take() == Some(node) {
            node = node % NODES + 1;
        }
        known.last_node = Some(node);
        known.asked = known.wants();
        let offers = known.speaks == 2 && asks;
        let offer = offers.then(|| known.reach.offer(std::mem::take(&mut known.cause)));
        let config = Config {
            terminal: known.key.terminal(),
            memory: known.disk,
            offer,
            seen: known.reach.seen(),
            bound: known.reach.bound(now),
            listening: known.listens.then_some(Listening { port: known.port, key: known.key }),
            linger: known.asked,
            min_urgency: known.min_urgency,
            enrolment: None,
            given: known.given,
        };
        self.saw(if offers { "offers" } else { "sessions without an offer" });
        self.say(|| format!("t{device} connects to n{node}, {offer:?}"));
        let connection = Connection::new(node, device, Terminal::new(config, now));
        self.connections.insert(number, connection);
        // The next node is tried when this one does not greet.
        self.after(3000, Happening::TerminalTimer(number));
        let wait = self.dice.between(1, 60);
        self.after(wait, Happening::Connected(number));
    }

    /// A terminal that listened all the while since then connects by itself.
    pub fn check_in(&mut self, device: usize, since: Option<u64>) {
        let known = &self.devices[device];
        if known.doing == Doing::Listening && since.is_none_or(|since| since == known.since) {
            self.come(device, Cause::CheckIn);
        }
    }

    /// Without faults nobody is notified who is away and has confirmed all there is.
    pub fn check_worth_waking(&self, terminal: TerminalId) {
        let device = self.devices.iter().position(|known| known.key.terminal() == terminal);
        let device = device.expect("only these terminals are registered");
        let disk = self.devices[device].disk;
        let row = view::terminal(&self.table, &terminal).expect("memory cannot fail");
        let over = row.is_some_and(|row| {
            row.current.is_none() && row.stream == disk.stream && row.next_seq <= disk.last.next()
        });
        assert!(!(over && self.now > CALM), "t{device} is woken for what it has confirmed");
    }

    pub fn node_said(&mut self, number: u64, frame: NodeFrame) {
        if self.connections.get(&number).is_some_and(|connection| !connection.broken) {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes);
            let frame = NodeFrame::take(&mut bytes[..].into()).expect("a frame").expect("a whole one");
            self.terminal_event(number, Event::Frame(frame));
        }
    }

    pub fn lost_at_terminal(&mut self, number: u64) {
        self.terminal_event(number, Event::PeerClosed);
    }

    pub fn terminal_timer(&mut self, number: u64) {
        let Some(connection) = self.connections.get(&number) else { return };
        let Some(terminal) = &connection.terminal else { return };
        let greeted = connection.server.is_some() || terminal.poll_timeout().is_some() || connection.broken;
        if terminal.poll_timeout().is_some_and(|at| at <= self.instant()) {
            self.terminal_event(number, Event::Timeout);
        } else if !greeted && connection.to_node == 0 {
            self.terminal_event(number, Event::PeerClosed);
        }
    }

    pub fn terminal_event(&mut self, number: u64, event: Event) {
        let now = self.instant();
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let (device, Some(terminal)) = (connection.device, &mut connection.terminal) else { return };
        let commands = terminal.handle(now, event);
        let given = terminal.given();
        for command in commands {
            if self.unlucky(Fault::Terminal) {
                return self.kill_terminal(device);
            }
            // Given with the command that gives, so that a kill before it is one before it was given.
            self.terminal_command(number, device, command);
        }
        self.devices[device].given = given;
        let terminal = self.connections.get(&number).and_then(|connection| connection.terminal.as_ref());
        if let Some(at) = terminal.and_then(Terminal::poll_timeout) {
            self.at(at.0, Happening::TerminalTimer(number));
        }
    }

    fn terminal_command(&mut self, number: u64, device: usize, command: Command) {
        let now = self.instant();
        match command {
            Command::Send(frame) => self.send_to_node(number, frame),
            Command::Save(memory) => {
                self.devices[device].disk = memory;
                self.history.saved(device, memory);
            }
            Command::Welcomed(welcome) => {
                self.devices[device].listener.set_secret(welcome.notify_secret);
                self.say(|| format!("t{device} is online at n{}, epoch {}", welcome.node, welcome.epoch));
            }
            Command::Reset { next } => self.say(|| format!("t{device} begins anew at {next}")),
            Command::Deliver(push) => {
                self.say(|| format!("t{device} receives {}", push.seq));
                let known = &self.devices[device];
                let (life, stream, seq, thinks) = (known.life, known.disk.stream, push.seq, known.thinks);
                self.history.received(self.now, device, life, stream, &push);
                let wait = if self.bad_luck(10) { 40_000 } else { self.dice.below(thinks) };
                self.after(wait, Happening::Confirm { device, life, stream, seq });
            }
            Command::Bind(anchor) => {
                let node = self.connections[&number].node;
                self.bind(device, node, &anchor);
            }
            Command::Unbind => {
                let known = &mut self.devices[device];
                known.listener.unbind();
                known.reach.unbind(now);
                known.held.clear();
            }
            Command::Reached(class, seen) => self.found(number, device, class, seen),
            Command::Close(closed) => self.disconnected(number, device, &closed),
        }
    }

    fn send_to_node(&mut self, number: u64, frame: TerminalFrame) {
        let delay = self.dice.between(1, 20);
        let Some(connection) = self.connections.get_mut(&number) else { return };
        if connection.broken {
            return self.after(5_000, Happening::LostAtTerminal(number));
        }
        connection.to_node = connection.to_node.max(self.now + delay);
        let time = connection.to_node;
        self.at(time, Happening::FromTerminal(number, frame));
    }

    /// The application confirms everything up to a push of this life.
    pub fn confirm(&mut self, device: usize, life: u32, stream: Stream, seq: Seq) {
        let known = &mut self.devices[device];
        if known.life != life || known.doing == Doing::Nothing || known.disk.stream != stream {
            return;
        }
        self.history.confirmed(device, stream, seq);
        if let Doing::Session(number) = known.doing {
            return self.terminal_event(number, Event::Confirmed(seq));
        }
        // After its session was gone: saved now, and said by connecting.
        if seq > known.disk.last && seq <= known.given {
            known.disk.last = seq;
            let (memory, doing) = (known.disk, known.doing);
            self.history.saved(device, memory);
            if doing == Doing::Listening {
                self.back_off(device, 0);
            }
        }
    }

    /// The terminal closed its end; what it does next is `terminal/src/disconnect.rs`.
    fn disconnected(&mut self, number: u64, device: usize, closed: &Closed) {
        self.say(|| format!("t{device} disconnects: {closed:?}"));
        let Some(connection) = self.connections.get_mut(&number) else { return };
        connection.terminal = None;
        let (node, time) = (connection.node, connection.to_node.max(self.now));
        if !connection.broken {
            self.at(time, Happening::LostAtNode(number));
        }
        self.devices[device].avoid = matches!(closed, Closed::Lost(_)).then_some(node);
        let stays = self.devices[device].wants() != self.devices[device].asked;
        let wait = match closed {
            Closed::Done if stays => 0,
            Closed::Bye(bye) if bye.reason == ByeReason::Done && stays => 0,
            Closed::Done => return self.listen(device),
            Closed::Lost(why) => {
                assert!(!why.contains("protocol"), "t{device}: {why}");
                0
            }
            Closed::Bye(bye) => match bye.reason {
                ByeReason::Done | ByeReason::Superseded => return self.listen(device),
                ByeReason::Protocol | ByeReason::AckAhead => panic!("t{device}: {:?}", bye.reason),
                ByeReason::NotEnrolled => 2000,
                _ => bye.retry_after,
            },
        };
        self.back_off(device, wait);
    }

    fn listen(&mut self, device: usize) {
        let (since, now) = (self.now, self.instant());
        let known = &mut self.devices[device];
        (known.doing, known.since) = (Doing::Listening, since);
        let wait = self.check_in_after(device);
        self.after(wait, Happening::CheckIn { device, since: Some(since) });
        let deeds = self.devices[device].listener.session(now, false);
        self.listener_did(device, deeds);
        for told in std::mem::take(&mut self.devices[device].held) {
            self.told(device, told);
        }
        if self.devices[device].doing == Doing::Listening {
            self.look_moved(device);
        }
    }

    /// The process is killed: its disk stays. Its node learns so at once, or by silence.
    pub fn kill_terminal(&mut self, device: usize) {
        let known = &mut self.devices[device];
        let Doing::Session(number) = std::mem::replace(&mut known.doing, Doing::Nothing) else {
            let wait = self.dice.between(50, 5000);
            return self.after(wait, Happening::Start(device));
        };
        self.say(|| format!("t{device} is killed"));
        let silent = self.dice.permille(200);
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.terminal = None;
            let time = connection.to_node.max(self.now) + 1;
            match silent {
                true => connection.broken = true,
                false => self.at(time, Happening::LostAtNode(number)),
            }
        }
        let wait = self.dice.between(50, 5000);
        self.after(wait, Happening::Start(device));
    }

    /// Connections that neither end has any more.
    pub fn sweep(&mut self) {
        let gone = |connection: &Connection| connection.terminal.is_none() && connection.server.is_none();
        self.connections.retain(|_, connection| !gone(connection));
    }

    /// Do all terminals do what they should when nothing waits for them?
    pub fn terminals_rest(&self) -> bool {
        self.devices.iter().all(|device| match (device.doing, device.asked) {
            (Doing::Listening, _) | (Doing::Session(_), Linger::Forever) => true,
            (Doing::Session(_), Linger::AtOnce) => self.now - device.since < 25_000,
            (Doing::Session(_), Linger::Seconds(_)) => self.now - device.since < 60_000,
            (Doing::Nothing | Doing::BackingOff, _) => false,
        })
    }
}
