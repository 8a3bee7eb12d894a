//! Datagrams between terminals and nodes: what the networks do to them, what an attacker does, and what both ends do
//! with what they bring. Judges where notifications go.

use std::net::SocketAddr;

use reveille_protocol::directory::Secret;
use reveille_protocol::id::*;
use reveille_protocol::service_list::row::Reachability;
use reveille_protocol::session::{server, terminal};
use reveille_protocol::time::Instant;
use reveille_protocol::wire::notification::Notification;
use reveille_protocol::wire::peer::{Notified, NotifyOrder, Report, Reported};
use reveille_protocol::wire::session::{Anchor, Cause, Class, Tried};

use crate::device::Doing;
use crate::history::Bounds;
use crate::ledger::{change_of_class, check_class};
use crate::listener::{self, Told};
use crate::nat::Kind;
use crate::notifier::{self, Asked, Packet};
use crate::world::{CALM, CHAOS, GROUP, Happening, World};

pub const SECRET: Secret = Secret { generation: 1, key: [9; 32] };

impl World {
    pub fn saw(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    fn device_of(&self, terminal: &TerminalId) -> usize {
        let found = self.devices.iter().position(|known| known.key.terminal() == *terminal);
        found.expect("only these terminals are registered")
    }

    /// A session of a terminal comes from where that is.
    pub fn note_peer(&mut self, device: usize) {
        let known = &self.devices[device];
        let ip = self.networks.address(known.network);
        self.ledger.note_peer(device, SocketAddr::new(ip, known.port));
    }

    fn fly(&mut self, packet: Packet) {
        if self.ledger.is_cut(&self.networks, &packet) || self.bad_luck(self.storm.datagrams) {
            self.saw("datagrams lost");
            self.ledger.watch(&packet, true);
            return;
        }
        let copies = 1 + u64::from(self.bad_luck(50));
        for _ in 0..copies {
            let late = if self.bad_luck(50) { self.dice.below(1500) } else { 0 };
            let wait = self.dice.between(1, 30) + late;
            self.after(wait, Happening::Arrives(Box::new(packet.clone())));
        }
        if copies > 1 {
            self.saw("datagrams doubled");
        }
    }

    pub fn arrives(&mut self, packet: &Packet) {
        if self.ledger.is_cut(&self.networks, packet) {
            return self.saw("datagrams lost");
        }
        if let Some(node) = notifier::node_at(packet.to) {
            if self.nodes[&node].alive {
                self.ledger.watch(packet, false);
                let now = self.instant();
                let known = self.nodes.get_mut(&node).expect("a node");
                let deeds = known.notifier.received(now, &[SECRET], packet);
                self.notifier_did(node, deeds);
            }
            return;
        }
        let Some((network, (device, port))) = self.networks.inward(self.now, packet.from, packet.to) else {
            return;
        };
        let known = &mut self.devices[device];
        let there = known.network == network && known.port == port && known.doing != Doing::Nothing;
        if !there || !known.listens {
            return;
        }
        let deeds = known.listener.received(Instant(self.now), packet.from, &packet.what);
        if let Some(node) = notifier::node_at(packet.from) {
            self.ledger.arrived(device, (node, self.nodes[&node].boot()), packet);
        }
        self.listener_did(device, deeds);
    }

    /// The terminal's socket does what its rules decided.
    pub fn listener_did(&mut self, device: usize, deeds: Vec<listener::Deed>) {
        for deed in deeds {
            match deed {
                listener::Deed::Send(to, what) => {
                    let (network, port) = (self.devices[device].network, self.devices[device].port);
                    if let Some(from) = self.networks.out(self.now, network, (device, port), to) {
                        self.fly(Packet { from, to, what });
                    }
                }
                listener::Deed::Notified(notification) => self.notification(device, &notification),
                listener::Deed::Told(told) => self.told(device, told),
            }
        }
        self.arm_listener(device);
    }

    pub fn arm_listener(&mut self, device: usize) {
        let known = &self.devices[device];
        let life = known.life;
        if let Some(at) = known.listener.poll_timeout() {
            self.at(at.0, Happening::ListenerTimer { device, life });
        }
    }

    pub fn listener_timer(&mut self, device: usize, life: u32) {
        let now = self.instant();
        let known = &mut self.devices[device];
        let due = known.listener.poll_timeout().is_some_and(|at| at <= now);
        if due && known.life == life && known.doing != Doing::Nothing {
            let deeds = known.listener.timeout(now);
            self.listener_did(device, deeds);
        }
    }

    pub fn bind(&mut self, device: usize, node: u64, anchor: &Anchor) {
        let (now, seed) = (self.instant(), self.dice.next());
        let at = SocketAddr::new(notifier::address(node), anchor.port);
        let known = &mut self.devices[device];
        known.held.clear();
        known.reach.bind(anchor.seen);
        known.listener.bind(now, anchor, at, seed);
        self.arm_listener(device);
    }

    /// What the binding tells is taken in a session, or while the terminal listens.
    pub fn told(&mut self, device: usize, told: Told) {
        let known = &mut self.devices[device];
        match known.doing {
            Doing::Nothing => {}
            Doing::BackingOff => known.held.push(told),
            Doing::Session(number) => {
                self.reach_told(device, told);
                if let Told::Mapped(_) = told {
                    self.terminal_event(number, terminal::Event::Bound);
                }
            }
            Doing::Listening => {
                self.reach_told(device, told);
                match told {
                    Told::Mapped(address) => {
                        let known = &mut self.devices[device];
                        let moved = known.mapped.replace(address).is_some_and(|before| before != address);
                        if moved {
                            self.saw("bindings that changed their port");
                        }
                    }
                    Told::Waiting => {
                        self.saw("terminals woken by an anchor's answer");
                        self.come(device, Cause::Notified);
                    }
                    Told::Lost => {
                        self.saw("anchors given up");
                        self.say(|| format!("t{device} hears nothing of its anchor"));
                        let known = &mut self.devices[device];
                        known.avoid = known.last_node;
                        self.come(device, Cause::Moved);
                    }
                }
            }
        }
    }

    pub fn reach_told(&mut self, device: usize, told: Told) {
        let reach = &mut self.devices[device].reach;
        let before = reach.class();
        match told {
            Told::Mapped(_) => reach.mapped(),
            Told::Lost => drop(reach.lost()),
            Told::Waiting => {}
        }
        if reach.class() != before {
            self.saw("classes doubted");
        }
    }

    fn notification(&mut self, device: usize, notification: &Notification) {
        let known = &self.devices[device];
        if notification.pending == 0 || notification.epoch < known.disk.epoch {
            return;
        }
        match known.doing {
            Doing::Listening => self.come(device, Cause::Notified),
            Doing::Session(number) => self.terminal_event(number, terminal::Event::Notified),
            Doing::BackingOff | Doing::Nothing => {}
        }
    }

    /// A node is to notify a terminal, or to try whether it is reached.
    pub fn order(&mut self, node: u64, order: NotifyOrder, asked: Asked) {
        let now = self.instant();
        let Some(known) = self.nodes.get_mut(&node) else { return };
        let deeds = known.notifier.order(now, &[SECRET], order, asked);
        self.notifier_did(node, deeds);
    }

    fn notifier_did(&mut self, node: u64, deeds: Vec<notifier::Deed>) {
        let boot = self.nodes[&node].boot();
        for deed in deeds {
            match deed {
                notifier::Deed::Send(packet) => self.fly(packet),
                notifier::Deed::Dial(order, to) => self.check_dial(node, &order, to),
                notifier::Deed::Told(order, notified) => {
                    self.after(0, Happening::Told { node, boot, order: Box::new(order), notified });
                }
                notifier::Deed::Tried(number, reached) => self.after(0, Happening::Tried { number, reached }),
                notifier::Deed::Waits => self.saw("orders that wait for a keepalive"),
                notifier::Deed::Due => self.saw("orders that a keepalive brought to their terminal"),
                notifier::Deed::Challenges => self.saw("addresses that must prove themselves"),
            }
        }
        if let Some(at) = self.nodes[&node].notifier.poll_timeout() {
            self.at(at.0, Happening::NotifierTimer { node, boot });
        }
    }

    pub fn notifier_timer(&mut self, node: u64, boot: u64) {
        let now = self.instant();
        let Some(known) = self.nodes.get_mut(&node).filter(|known| known.boot() == boot && known.alive)
        else {
            return;
        };
        if known.notifier.poll_timeout().is_some_and(|at| at <= now) {
            let deeds = known.notifier.timeout(now);
            self.notifier_did(node, deeds);
        }
    }

    fn check_dial(&mut self, node: u64, order: &NotifyOrder, to: SocketAddr) {
        let device = self.device_of(&order.terminal);
        self.say(|| format!("n{node} dials t{device} at {to}, {} wait", order.pending));
        let pinned = matches!(order.reachability, Reachability::Pinned { .. });
        self.ledger.check_dial(device, (node, self.nodes[&node].boot()), pinned, to);
        self.saw(if pinned { "dials through a binding" } else { "dials of an address" });
    }

    /// A notification is over: the leader that ordered it is told.
    pub fn notification_over(&mut self, node: u64, boot: u64, order: &NotifyOrder, notified: Notified) {
        if !self.nodes[&node].alive || self.nodes[&node].boot() != boot {
            return;
        }
        let pinned = matches!(order.reachability, Reachability::Pinned { .. });
        let leads = self.leaders.values().any(|leader| leader.node == node);
        if pinned || leads {
            let NotifyOrder { terminal, epoch, .. } = *order;
            let what = Reported::Notified(notified);
            self.report(node, Report { group: GROUP, terminal, epoch, what });
        }
    }

    /// The dial that a session wanted is over.
    pub fn tried(&mut self, number: u64, reached: bool) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let Some(class) = connection.trying.take() else { return };
        connection.tried.push((class, reached));
        self.saw(match (class, reached) {
            (Class::Direct, true) => "tried directly, and reached",
            (Class::Direct, false) => "tried directly, and not reached",
            (_, true) => "tried through the binding, and reached",
            (_, false) => "tried through the binding, and not reached",
        });
        self.server_event(number, server::Event::Tried(Tried { class, reached }));
    }

    fn check_class(&self, number: u64, class: Class) {
        check_class(&self.connections[&number].tried, class);
    }

    /// What the service list is told.
    pub fn check_row_class(&self, number: u64, reachability: &Reachability) {
        match reachability {
            Reachability::None => self.check_class(number, Class::None),
            Reachability::Direct { .. } => self.check_class(number, Class::Direct),
            Reachability::Pinned { .. } => self.check_class(number, Class::Pinned),
            Reachability::Former { .. } => panic!("no terminal came by a backup"),
        }
    }

    /// It was found out how a terminal is reached.
    pub fn found(&mut self, number: u64, device: usize, class: Class, seen: std::net::IpAddr) {
        self.check_class(number, class);
        let before = self.devices[device].reach.class();
        self.say(|| format!("t{device} was {before:?}, is {class:?}"));
        self.saw(change_of_class(before, class));
        self.devices[device].reach.found(class, seen);
    }

    /// Does every push wake the terminal, where it is now?
    pub fn is_woken(&self, device: usize) -> bool {
        let known = &self.devices[device];
        known.hears_all() && self.networks.of(known.network).kind != Kind::Blocked
    }

    /// What pushes may take longer when something happens to a binding.
    pub fn bounds(&self) -> Bounds {
        // With its jitter.
        let period = u64::from(self.period) * 1100;
        // An anchor that is dead is given up within two periods and 11 s, by which the others should have a leader.
        let killed = 2 * period + 11_000 + self.storm.election;
        // A dial of where it was is given up after 2 s. The keepalive that makes the binding anew may come later: then
        // what waits goes out at once.
        Bounds { forgotten: period.max(2500), killed, killed_in_session: 62_000 + self.storm.election }
    }

    /// How long a terminal that listens waits before it connects by itself.
    pub fn check_in_after(&mut self, device: usize) -> u64 {
        const LONG: u64 = 6 * 3_600_000;
        if self.history.unregistered.contains(&device) || !self.is_woken(device) {
            return 30_000;
        }
        match self.devices[device].speaks {
            2 if self.now < CHAOS && self.storm.patient => CHAOS - self.now + self.dice.below(30_000),
            2 if self.now < CHAOS => self.dice.between(10_000, 30_000),
            2 if self.now < CALM - 60_000 || self.devices[device].reach.class() == Class::None => 30_000,
            _ => LONG,
        }
    }
}
