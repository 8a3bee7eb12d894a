//! Terminals: their disk, the life of their process, their application, notifications, and the shell around the machine
//! at their end of a session, as `terminal/src` is one.

use std::sync::Arc;

use reveille_protocol::id::*;
use reveille_protocol::service_list::row::{Linger, Urgency};
use reveille_protocol::session::reach::Reach;
use reveille_protocol::session::terminal::{Closed, Command, Config, Event, Memory, Terminal};
use reveille_protocol::wire::session::{
    ByeReason, Cause, Class, Frame, Listening, NodeFrame, Push, TerminalFrame,
};

use crate::listener::{Listener, Told};
use crate::seen::Seen;
use crate::session::Connection;
use crate::world::{World, instant, lock, now};

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
    /// Notifications reach it.
    pub listens: bool,
    /// Its application takes up to so many milliseconds to confirm.
    thinks: u64,
    pub doing: Doing,
    pub life: u32,
    /// Given to the application in this life.
    given: Seq,
    /// Which session protocol it speaks.
    pub speaks: u8,
    /// Where it is.
    pub network: usize,
    /// Where it listens, in this life.
    pub port: u16,
    /// The application has said that the network is another one.
    pub moved: bool,
    /// Its socket, in this life.
    pub listener: Listener,
    pub reach: Reach,
    /// Names its latest wait for a check-in.
    check_in: u64,
    /// What its binding came to while it was about to connect.
    pub held: Vec<Told>,
    /// Why it connects next.
    cause: Cause,
    /// The node to try last.
    pub avoid: Option<NodeId>,
    pub last_node: Option<NodeId>,
    /// It stays connected if no notification reaches it.
    stays: bool,
    /// How long it asked to stay in this session.
    asked: Linger,
    /// The epoch that its node gave it, of the session that is open.
    open: Option<Epoch>,
    /// Its application confirms nothing for now, and owes these.
    pub withholds: bool,
    pub owed: Vec<(u32, Stream, Seq)>,
    /// The device that it has its identity from, if that is another one's.
    pub like: Option<usize>,
}

/// What a terminal is like.
#[derive(Debug, Clone, Copy)]
pub struct Nature {
    pub key: KeyFingerprint,
    pub linger: Linger,
    /// Notifications reach it.
    pub listens: bool,
    /// Its application takes up to so many milliseconds to confirm.
    pub thinks: u64,
    /// Which session protocol it speaks.
    pub speaks: u8,
    /// Where it is.
    pub network: usize,
    /// It stays connected if no notification reaches it.
    pub stays: bool,
}

impl Device {
    /// How long it wants to stay.
    pub fn wants(&self) -> Linger {
        if self.reach.class() == Class::None && self.stays { Linger::Forever } else { self.linger }
    }
}

impl World {
    pub fn add_device(&self, number: u8) {
        let mut key = [number + 1; 32];
        // Spread over the slots.
        key[0] = number.wrapping_mul(41);
        let lingers = [Linger::AtOnce, Linger::AtOnce, Linger::Seconds(2), Linger::Forever];
        let (key, linger) = (KeyFingerprint(key), self.pick(&lingers));
        let speaks = if self.permille(700) { 2 } else { 1 };
        let network = match speaks {
            2 => lock(&self.networks).draw(number.into(), &mut lock(&self.dice)),
            _ => usize::from(number),
        };
        let listens = number == 0 || self.permille(750);
        let thinks = self.pick(&[1, 20, 20, 300]);
        let stays = self.permille(500);
        self.enlist(Nature { key, linger, listens, thinks, speaks, network, stays });
    }

    /// Adds a terminal of this nature.
    pub fn enlist(&self, nature: Nature) {
        let Nature { key, linger, listens, thinks, speaks, network, stays } = nature;
        let device = Device {
            key,
            disk: Memory::default(),
            linger,
            listens,
            thinks,
            doing: Doing::Nothing,
            life: 0,
            given: Seq(0),
            speaks,
            network,
            port: 0,
            moved: false,
            listener: Listener::new(key),
            reach: Reach::default(),
            check_in: 0,
            held: Vec::new(),
            cause: Cause::Start,
            avoid: None,
            last_node: None,
            stays,
            asked: linger,
            open: None,
            withholds: false,
            owed: Vec::new(),
            like: None,
        };
        lock(&self.devices).push(device);
    }

    /// Another device with a copy of this one's state, in a network of its own; its number.
    pub fn add_twin(&self, device: usize, network: usize) -> usize {
        let (nature, disk) = {
            let known = &lock(&self.devices)[device];
            let Device { key, linger, listens, thinks, speaks, stays, .. } = *known;
            (Nature { key, linger, listens, thinks, speaks, network, stays }, known.disk)
        };
        self.enlist(nature);
        let mut devices = lock(&self.devices);
        let twin = devices.len() - 1;
        (devices[twin].disk, devices[twin].like) = (disk, Some(device));
        twin
    }

    /// The terminal that a device is, by the number of the first device that had its identity.
    pub(crate) fn identity(&self, device: usize) -> usize {
        lock(&self.devices)[device].like.unwrap_or(device)
    }

    pub fn terminals(&self) -> Vec<TerminalId> {
        lock(&self.devices).iter().map(|device| device.key.terminal()).collect()
    }

    /// The process starts: it connects once, then listens.
    pub fn start_terminal(self: &Arc<World>, device: usize) {
        {
            let known = &mut lock(&self.devices)[device];
            if known.doing != Doing::Nothing {
                return;
            }
            known.life += 1;
            known.given = known.disk.last;
            known.port = 5000 + (known.life % 1000) as u16;
            (known.listener, known.reach, known.moved) = (Listener::new(known.key), Reach::default(), false);
            (known.cause, known.avoid) = (Cause::Start, None);
            known.held.clear();
            known.owed.clear();
        }
        self.tell(Seen::Started { device });
        self.back_off(device, 0);
    }

    fn back_off(self: &Arc<World>, device: usize, wait: u64) {
        let wait = wait + self.between(1, 100);
        let (life, listened) = {
            let known = &mut lock(&self.devices)[device];
            let listened = std::mem::replace(&mut known.doing, Doing::BackingOff) == Doing::Listening;
            (known.life, listened)
        };
        self.after(wait, move |world| world.connect(device, life));
        if listened {
            self.listener_session(device, true);
        }
    }

    /// It has a reason to connect.
    pub fn come(self: &Arc<World>, device: usize, cause: Cause) {
        lock(&self.devices)[device].cause = cause;
        self.back_off(device, 0);
    }

    /// A terminal that only listens connects all the same.
    pub fn check_in(self: &Arc<World>, device: usize) {
        if lock(&self.devices)[device].doing == Doing::Listening {
            self.come(device, Cause::CheckIn);
        }
    }

    fn connect(self: &Arc<World>, device: usize, life: u32) {
        let number = self.number();
        // Its list of nodes has some that are not there.
        let nodes = self.all_nodes();
        let drawn = self.below(nodes.len() as u64) as usize;
        let (mut node, other) = (nodes[drawn].id, nodes[(drawn + 1) % nodes.len()].id);
        let wait = self.between(1, 40);
        let terminal = {
            let known = &mut lock(&self.devices)[device];
            if known.life != life || known.doing != Doing::BackingOff {
                return;
            }
            known.disk.attempt = Attempt(known.disk.attempt.0 + 1);
            known.doing = Doing::Session(number);
            if known.avoid.take() == Some(node) {
                node = other;
            }
            known.last_node = Some(node);
            known.asked = known.wants();
            let cause = std::mem::take(&mut known.cause);
            let offer = (known.speaks == 2).then(|| known.reach.offer(cause));
            let config = Config {
                terminal: known.key.terminal(),
                memory: known.disk,
                offer,
                seen: known.reach.seen(),
                bound: known.reach.bound(instant()),
                listening: known.listens.then_some(Listening { port: known.port, key: known.key }),
                linger: known.asked,
                min_urgency: Urgency::VeryLow,
                enrolment: None,
                given: known.given,
            };
            Terminal::new(config, instant())
        };
        {
            let mut connections = lock(&self.connections);
            // Whoever looks for a session should not have to pass all that ever were.
            connections.retain(|_, known| known.terminal.is_some() || known.server.is_some());
            connections.insert(number, Connection::new(node, device, terminal));
        }
        self.say(format!("t{device} connects to n{node}"));
        self.after(wait, move |world| world.connected(number));
        // The next node is tried when this one does not greet.
        self.after(3000, move |world| {
            let silent = lock(&world.connections).get(&number).is_some_and(|known| {
                known.server.is_none() && known.to_node == 0 && known.terminal.is_some()
            });
            if silent {
                world.lost_at_terminal(number);
            }
        });
    }

    pub fn node_said(self: &Arc<World>, number: u64, frame: NodeFrame) {
        let passes = lock(&self.connections).get(&number).is_some_and(|connection| !connection.broken);
        if passes {
            self.read(number, Event::Frame(frame));
        }
    }

    pub fn lost_at_terminal(self: &Arc<World>, number: u64) {
        self.read(number, Event::PeerClosed);
    }

    /// Its socket has something, for when it reads.
    fn read(self: &Arc<World>, number: u64, event: Event) {
        let device = lock(&self.connections).get(&number).map(|known| known.device);
        let mut unread = lock(&self.unread);
        match device.and_then(|device| unread.get_mut(&device)) {
            Some(unread) => unread.push(Box::new(move |world| world.terminal_event(number, event))),
            None => {
                drop(unread);
                self.terminal_event(number, event);
            }
        }
    }

    pub fn terminal_event(self: &Arc<World>, number: u64, event: Event) {
        let (device, commands, given, next) = {
            let mut connections = lock(&self.connections);
            let Some(connection) = connections.get_mut(&number) else { return };
            let Some(terminal) = &mut connection.terminal else { return };
            let commands = terminal.handle(instant(), event);
            (connection.device, commands, terminal.given(), terminal.poll_timeout())
        };
        for command in commands {
            if self.bad_luck(2) {
                return self.kill_terminal(device);
            }
            self.terminal_command(number, device, command);
        }
        lock(&self.devices)[device].given = given;
        if let Some(at) = next {
            self.at(at.0 * 1000, move |world| world.terminal_timer(number));
        }
    }

    fn terminal_timer(self: &Arc<World>, number: u64) {
        let due = {
            let connections = lock(&self.connections);
            let terminal = connections.get(&number).and_then(|known| known.terminal.as_ref());
            terminal.and_then(Terminal::poll_timeout).is_some_and(|at| at <= instant())
        };
        if due {
            self.terminal_event(number, Event::Timeout);
        }
    }

    fn terminal_command(self: &Arc<World>, number: u64, device: usize, command: Command) {
        match command {
            Command::Send(frame) => self.send_to_node(number, frame),
            Command::Save(memory) => {
                self.save(device, memory);
            }
            Command::Welcomed(welcome) => {
                {
                    let known = &mut lock(&self.devices)[device];
                    known.listener.set_secret(welcome.notify_secret);
                    known.open = Some(welcome.epoch);
                }
                self.tell(Seen::Connected { device, node: welcome.node, epoch: welcome.epoch });
                self.say(format!("t{device} is online at n{}, epoch {}", welcome.node, welcome.epoch));
            }
            // Its one life: a reset says that the cluster knows more than this disk.
            Command::Reset { next } => {
                self.say(format!("t{device} begins anew at {next}"));
                self.tell(Seen::Reset { device, next });
            }
            Command::Deliver(push) => self.delivered(number, device, push),
            Command::Bind(anchor) => {
                let node = lock(&self.connections)[&number].node;
                self.bind(device, node, &anchor);
            }
            Command::Unbind => self.unbind(device),
            Command::Reached(class, seen) => self.found_class(number, device, class, seen),
            Command::Close(closed) => self.disconnected(number, device, &closed),
        }
    }

    fn save(&self, device: usize, memory: Memory) {
        lock(&self.devices)[device].disk = memory;
        lock(&self.history).saved(device, memory);
        self.tell(Seen::Saved { device, seq: memory.last });
    }

    fn delivered(self: &Arc<World>, number: u64, device: usize, push: Push) {
        self.say(format!("t{device} receives {}", push.seq));
        let (life, stream, thinks, open, withholds) = {
            let known = &lock(&self.devices)[device];
            (known.life, known.disk.stream, known.thinks, known.open, known.withholds)
        };
        if self.setting.strict {
            lock(&self.history).received(device, life, stream, &push);
        }
        let (wait, seq) = (self.below(thinks), push.seq);
        if let Some(node) = lock(&self.connections).get(&number).map(|known| known.node) {
            self.tell(Seen::Delivered { device, push, node, epoch: open.unwrap_or_default() });
        }
        match withholds {
            true => lock(&self.devices)[device].owed.push((life, stream, seq)),
            false => self.after(wait, move |world| world.confirm(device, life, stream, seq)),
        }
    }

    fn send_to_node(&self, number: u64, frame: TerminalFrame) {
        let delay = self.between(200, 20_000);
        let at = {
            let mut connections = lock(&self.connections);
            let Some(connection) = connections.get_mut(&number) else { return };
            if connection.broken {
                return self.after(5000, move |world| world.lost_at_terminal(number));
            }
            connection.to_node = (connection.to_node + 1).max(now() + delay);
            connection.to_node
        };
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        let frame = TerminalFrame::take(&mut bytes[..].into()).expect("a frame").expect("a whole one");
        self.at(at, move |world| world.terminal_said(number, frame));
    }

    /// The application confirms everything up to a push of this life.
    pub(crate) fn confirm(self: &Arc<World>, device: usize, life: u32, stream: Stream, seq: Seq) {
        let doing = {
            let known = &lock(&self.devices)[device];
            if known.life != life || known.doing == Doing::Nothing || known.disk.stream != stream {
                return;
            }
            known.doing
        };
        lock(&self.history).confirmed(device, stream, seq);
        self.tell(Seen::Confirmed { device, seq });
        if let Doing::Session(number) = doing {
            return self.terminal_event(number, Event::Confirmed(seq));
        }
        // After its session was gone: saved now, and said by connecting.
        let memory = {
            let known = &mut lock(&self.devices)[device];
            if seq <= known.disk.last || seq > known.given {
                return;
            }
            known.disk.last = seq;
            known.disk
        };
        self.save(device, memory);
        self.check_in(device);
    }

    /// The terminal closed its end; what it does next is `terminal/src/disconnect.rs`.
    fn disconnected(self: &Arc<World>, number: u64, device: usize, closed: &Closed) {
        self.say(format!("t{device} disconnects: {closed:?}"));
        if lock(&self.devices)[device].open.take().is_some() {
            self.tell(Seen::Disconnected { device });
        }
        self.drop_terminal_end(number, false);
        let node = lock(&self.connections).get(&number).map(|known| known.node);
        let stays = {
            let known = &mut lock(&self.devices)[device];
            known.avoid = node.filter(|_| matches!(closed, Closed::Lost(_)));
            known.wants() != known.asked
        };
        let wait = match closed {
            Closed::Done if stays => 0,
            Closed::Bye(bye) if bye.reason == ByeReason::Done && stays => 0,
            Closed::Done => return self.listen(device),
            Closed::Lost(why) => {
                assert!(!(why.contains("protocol") && self.setting.strict), "t{device}: {why}");
                0
            }
            Closed::Bye(bye) => match bye.reason {
                ByeReason::Done | ByeReason::Superseded => return self.listen(device),
                ByeReason::Protocol | ByeReason::AckAhead if self.setting.strict => {
                    panic!("t{device}: {:?}", bye.reason)
                }
                ByeReason::NotEnrolled => 2000,
                _ => bye.retry_after,
            },
        };
        self.back_off(device, wait);
    }

    fn drop_terminal_end(&self, number: u64, silent: bool) {
        let at = {
            let mut connections = lock(&self.connections);
            let Some(connection) = connections.get_mut(&number) else { return };
            connection.terminal = None;
            connection.broken |= silent;
            if connection.broken {
                return;
            }
            connection.to_node + 1
        };
        self.at(at, move |world| world.lost_at_node(number));
    }

    fn listen(self: &Arc<World>, device: usize) {
        let number = self.number();
        let (life, by_itself, held, in_doubt) = {
            let known = &mut lock(&self.devices)[device];
            (known.doing, known.check_in) = (Doing::Listening, number);
            let by_itself = !known.listens || known.reach.class() == Class::None;
            let in_doubt = (known.speaks == 2).then(|| known.reach.in_doubt()).flatten();
            (known.life, by_itself, std::mem::take(&mut known.held), in_doubt)
        };
        self.listener_session(device, false);
        // Other check-ins are further away than a run is long.
        if let Some(wait) = in_doubt {
            let wait = wait.as_millis() as u64 * self.between(900, 1100) / 1000;
            self.after(wait, move |world| {
                if lock(&world.devices)[device].check_in == number {
                    world.check_in(device);
                }
            });
        }
        held.into_iter().for_each(|told| self.told(device, told));
        self.look_moved(device);
        if !by_itself {
            return;
        }
        let wait = self.between(4000, 9000);
        self.after(wait, move |world| {
            if world.is_chaos() && lock(&world.devices)[device].life == life {
                world.check_in(device);
            }
        });
    }

    /// The process is killed: its disk stays. Its node learns so at once, or by silence.
    pub fn end_terminal(self: &Arc<World>, device: usize) {
        let doing = {
            let known = &mut lock(&self.devices)[device];
            known.open = None;
            std::mem::replace(&mut known.doing, Doing::Nothing)
        };
        self.say(format!("t{device} is killed"));
        if let Doing::Session(number) = doing {
            let silent = self.permille(200);
            self.drop_terminal_end(number, silent);
        }
        self.tell(Seen::Stopped { device });
    }

    /// The same, and its next life begins soon.
    pub fn kill_terminal(self: &Arc<World>, device: usize) {
        self.end_terminal(device);
        let wait = self.between(50, 3000);
        self.after(wait, move |world| world.start_terminal(device));
    }
}
