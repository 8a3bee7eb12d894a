//! A terminal's end: its disk, the life of its process, its application, and the shell around each session, as
//! `terminal/src` is one.

use reveille_protocol::id::*;
use reveille_protocol::service_list::row::{Linger, Urgency};
use reveille_protocol::service_list::view;
use reveille_protocol::session::terminal::{Closed, Command, Config, Event, Memory, Terminal};
use reveille_protocol::wire::session::{ByeReason, Frame, Listening, NodeFrame, TerminalFrame};

use crate::dice::Dice;
use crate::faults::Fault;
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
}

impl Device {
    pub fn new(number: u8, dice: &mut Dice) -> Device {
        let linger = dice.pick(&[
            Linger::AtOnce,
            Linger::AtOnce,
            Linger::Seconds(2),
            Linger::Seconds(20),
            Linger::Forever,
            Linger::Forever,
        ]);
        Device {
            key: KeyFingerprint([number + 1; 32]),
            disk: Memory::default(),
            linger,
            min_urgency: dice.pick(&[Urgency::VeryLow, Urgency::VeryLow, Urgency::Normal]),
            listens: dice.permille(800),
            thinks: dice.pick(&[1, 20, 20, 500, 5_000]),
            doing: Doing::Nothing,
            since: 0,
            life: 0,
            given: Seq(0),
        }
    }

    /// Does every push reach it by notification? If not, it must come by itself.
    pub fn hears_all(&self) -> bool {
        self.listens && self.min_urgency == Urgency::VeryLow
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
        let life = known.life;
        self.say(|| format!("t{device} starts, life {life}"));
        self.back_off(device, 0);
    }

    fn back_off(&mut self, device: usize, wait: u64) {
        let wait = wait + self.dice.between(1, 200);
        let known = &mut self.devices[device];
        known.doing = Doing::BackingOff;
        let life = known.life;
        self.after(wait, Happening::Connect { device, life });
    }

    pub fn connect(&mut self, device: usize, life: u32) {
        let now = self.instant();
        let number = self.number();
        let node = self.dice.between(1, NODES + 1);
        let known = &mut self.devices[device];
        if known.life != life || known.doing != Doing::BackingOff {
            return;
        }
        known.disk.attempt = Attempt(known.disk.attempt.0 + 1);
        (known.doing, known.since) = (Doing::Session(number), now.0);
        let config = Config {
            terminal: known.key.terminal(),
            memory: known.disk,
            listening: known.listens.then_some(Listening { port: 5000, key: known.key }),
            linger: known.linger,
            min_urgency: known.min_urgency,
            enrolment: None,
            given: known.given,
        };
        self.say(|| format!("t{device} connects to n{node}"));
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
            self.back_off(device, 0);
        }
    }

    pub fn notification(&mut self, device: usize, epoch: Epoch, node: u64) {
        let known = &self.devices[device];
        let heard = known.doing != Doing::Nothing && known.listens && !self.bad_luck(200);
        let terminal = self.devices[device].key.terminal();
        let wait = if heard { self.dice.between(1, 30) } else { 2000 };
        self.after(wait, Happening::Notified { node, terminal, answered: heard });
        let known = &self.devices[device];
        if !heard || epoch < known.disk.epoch {
            return;
        }
        match known.doing {
            Doing::Listening => self.back_off(device, 0),
            Doing::Session(number) => self.terminal_event(number, Event::Notified),
            Doing::BackingOff | Doing::Nothing => {}
        }
    }

    /// Without faults nobody is notified who is away and has confirmed all there is.
    fn check_worth_waking(&self, device: usize) {
        let disk = self.devices[device].disk;
        let terminal = self.devices[device].key.terminal();
        let row = view::terminal(&self.table, &terminal).expect("memory cannot fail");
        let over = row.is_some_and(|row| {
            row.current.is_none() && row.stream == disk.stream && row.next_seq <= disk.last.next()
        });
        assert!(!(over && self.now > CALM), "t{device} is woken for what it has confirmed");
    }

    /// A leader has a terminal notified.
    pub fn notify(&mut self, node: u64, terminal: TerminalId, epoch: Epoch) {
        let device = self.devices.iter().position(|known| known.key.terminal() == terminal);
        let device = device.expect("only these terminals are registered");
        self.say(|| format!("n{node} notifies t{device}"));
        self.check_worth_waking(device);
        let wait = self.dice.between(1, 30);
        self.after(wait, Happening::Notification { device, epoch, node });
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
        match command {
            Command::Send(frame) => self.send_to_node(number, frame),
            Command::Save(memory) => {
                self.devices[device].disk = memory;
                self.history.saved(device, memory);
            }
            Command::Welcomed(welcome) => {
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
        let time = connection.to_node.max(self.now);
        if !connection.broken {
            self.at(time, Happening::LostAtNode(number));
        }
        let wait = match closed {
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
        let since = self.now;
        let known = &mut self.devices[device];
        (known.doing, known.since) = (Doing::Listening, since);
        // A connection that the terminal gave up long ago may have registered it anew: it believes in its old stream.
        let deaf = !known.hears_all() || self.history.unregistered.contains(&device);
        let wait = if deaf { 30_000 } else { 6 * 3_600_000 };
        self.after(wait, Happening::CheckIn { device, since: Some(since) });
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
        self.devices.iter().all(|device| match (device.doing, device.linger) {
            (Doing::Listening, _) | (Doing::Session(_), Linger::Forever) => true,
            (Doing::Session(_), Linger::AtOnce) => self.now - device.since < 10_000,
            (Doing::Session(_), Linger::Seconds(_)) => self.now - device.since < 60_000,
            (Doing::Nothing | Doing::BackingOff, _) => false,
        })
    }
}
