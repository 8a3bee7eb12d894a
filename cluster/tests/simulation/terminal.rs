//! Terminals: their disk, the life of their process, their application, notifications, and the shell around the machine
//! at their end of a session, as `terminal/src` is one.

use std::sync::Arc;

use reveille_cluster::host::{Notified, NotifyOrder};
use reveille_protocol::id::*;
use reveille_protocol::service_list::row::{Linger, Reachability, Urgency};
use reveille_protocol::session::terminal::{Closed, Command, Config, Event, Memory, Terminal};
use reveille_protocol::wire::session::{ByeReason, Frame, Listening, NodeFrame, TerminalFrame};

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
    life: u32,
    /// Given to the application in this life.
    given: Seq,
}

impl World {
    pub fn add_device(&self, number: u8) {
        let mut key = [number + 1; 32];
        // Spread over the slots.
        key[0] = number.wrapping_mul(41);
        let lingers = [Linger::AtOnce, Linger::AtOnce, Linger::Seconds(2), Linger::Forever];
        let device = Device {
            key: KeyFingerprint(key),
            disk: Memory::default(),
            linger: self.pick(&lingers),
            listens: number == 0 || self.permille(750),
            thinks: self.pick(&[1, 20, 20, 300]),
            doing: Doing::Nothing,
            life: 0,
            given: Seq(0),
        };
        lock(&self.devices).push(device);
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
        }
        self.back_off(device, 0);
    }

    fn back_off(&self, device: usize, wait: u64) {
        let wait = wait + self.between(1, 100);
        let life = {
            let known = &mut lock(&self.devices)[device];
            known.doing = Doing::BackingOff;
            known.life
        };
        self.after(wait, move |world| world.connect(device, life));
    }

    /// A terminal that only listens connects all the same.
    pub fn check_in(&self, device: usize) {
        if lock(&self.devices)[device].doing == Doing::Listening {
            self.back_off(device, 0);
        }
    }

    fn connect(self: &Arc<World>, device: usize, life: u32) {
        let number = self.number();
        // Its list of nodes has some that are not there.
        let nodes = self.all_nodes();
        let node = nodes[self.below(nodes.len() as u64) as usize].id;
        let wait = self.between(1, 40);
        let terminal = {
            let known = &mut lock(&self.devices)[device];
            if known.life != life || known.doing != Doing::BackingOff {
                return;
            }
            known.disk.attempt = Attempt(known.disk.attempt.0 + 1);
            known.doing = Doing::Session(number);
            let config = Config {
                terminal: known.key.terminal(),
                memory: known.disk,
                listening: known.listens.then_some(Listening { port: 5000, key: known.key }),
                linger: known.linger,
                min_urgency: Urgency::VeryLow,
                enrolment: None,
                given: known.given,
            };
            Terminal::new(config, instant())
        };
        lock(&self.connections).insert(number, Connection::new(node, device, terminal));
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

    /// A leader has a terminal notified: a datagram that may be lost, and its acknowledgement.
    pub fn notify(self: &Arc<World>, node: NodeId, life: u64, order: &NotifyOrder) -> bool {
        let Reachability::Direct { address, .. } = order.reachability else { return false };
        let std::net::IpAddr::V4(ip) = address.ip() else { return false };
        if self.bad_luck(20) {
            return false;
        }
        let device = usize::from(ip.octets()[3]);
        let (group, terminal, epoch) = (order.group, order.terminal, order.epoch);
        let (wait, back, lost) = (self.between(1, 30), self.between(1, 30), self.bad_luck(250));
        self.after(wait, move |world| {
            let heard = !lost && lock(&world.devices)[device].doing != Doing::Nothing;
            let back = if heard { back } else { 2000 };
            world.after(back, move |world| {
                let outcome = if heard { Notified::Answered } else { Notified::Unanswered };
                let member = world.node(node).member().filter(|_| world.is_life(node, life));
                if let Some(member) = member {
                    member.notified(group, terminal, outcome);
                }
            });
            if heard {
                world.notification(device, epoch);
            }
        });
        true
    }

    fn notification(self: &Arc<World>, device: usize, epoch: Epoch) {
        self.saw("notifications");
        let (doing, known_epoch) = {
            let known = &lock(&self.devices)[device];
            (known.doing, known.disk.epoch)
        };
        if epoch < known_epoch {
            return;
        }
        match doing {
            Doing::Listening => self.back_off(device, 0),
            Doing::Session(number) => self.terminal_event(number, Event::Notified),
            Doing::BackingOff | Doing::Nothing => {}
        }
    }

    pub fn node_said(self: &Arc<World>, number: u64, frame: NodeFrame) {
        let passes = lock(&self.connections).get(&number).is_some_and(|connection| !connection.broken);
        if passes {
            self.terminal_event(number, Event::Frame(frame));
        }
    }

    pub fn lost_at_terminal(self: &Arc<World>, number: u64) {
        self.terminal_event(number, Event::PeerClosed);
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
                lock(&self.devices)[device].disk = memory;
                lock(&self.history).saved(device, memory);
            }
            Command::Welcomed(welcome) => {
                self.say(format!("t{device} is online at n{}, epoch {}", welcome.node, welcome.epoch));
            }
            // Its one life: a reset says that the cluster knows more than this disk.
            Command::Reset { next } => self.say(format!("t{device} begins anew at {next}")),
            Command::Deliver(push) => {
                self.say(format!("t{device} receives {}", push.seq));
                let (life, stream, thinks) = {
                    let known = &lock(&self.devices)[device];
                    (known.life, known.disk.stream, known.thinks)
                };
                lock(&self.history).received(device, life, stream, &push);
                let (wait, seq) = (self.below(thinks), push.seq);
                self.after(wait, move |world| world.confirm(device, life, stream, seq));
            }
            Command::Close(closed) => self.disconnected(number, device, &closed),
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
    fn confirm(self: &Arc<World>, device: usize, life: u32, stream: Stream, seq: Seq) {
        let doing = {
            let known = &lock(&self.devices)[device];
            if known.life != life || known.doing == Doing::Nothing || known.disk.stream != stream {
                return;
            }
            known.doing
        };
        lock(&self.history).confirmed(device, stream, seq);
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
        lock(&self.history).saved(device, memory);
        self.check_in(device);
    }

    /// The terminal closed its end; what it does next is `terminal/src/disconnect.rs`.
    fn disconnected(self: &Arc<World>, number: u64, device: usize, closed: &Closed) {
        self.say(format!("t{device} disconnects: {closed:?}"));
        self.drop_terminal_end(number, false);
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

    fn listen(&self, device: usize) {
        let life = {
            let known = &mut lock(&self.devices)[device];
            known.doing = Doing::Listening;
            if known.listens {
                return;
            }
            known.life
        };
        let wait = self.between(4000, 9000);
        self.after(wait, move |world| {
            if world.is_chaos() && lock(&world.devices)[device].life == life {
                world.check_in(device);
            }
        });
    }

    /// The process is killed: its disk stays. Its node learns so at once, or by silence.
    pub fn kill_terminal(self: &Arc<World>, device: usize) {
        let doing = std::mem::replace(&mut lock(&self.devices)[device].doing, Doing::Nothing);
        self.say(format!("t{device} is killed"));
        if let Doing::Session(number) = doing {
            let silent = self.permille(200);
            self.drop_terminal_end(number, silent);
        }
        let wait = self.between(50, 3000);
        self.after(wait, move |world| world.start_terminal(device));
    }
}
