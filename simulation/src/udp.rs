//! Datagrams between terminals and nodes: what the networks do to them, and what both ends do with what they bring.

use std::net::SocketAddr;
use std::sync::Arc;

use reveille_cluster::host::{Notified, NotifyOrder};
use reveille_protocol::directory::Secret;
use reveille_protocol::id::*;
use reveille_protocol::service_list::row::Reachability;
use reveille_protocol::session::{server, terminal};
use reveille_protocol::wire::notification::Notification;
use reveille_protocol::wire::session::{Anchor, Cause, Class, Tried};

use crate::ledger::{change_of_class, check_class};
use crate::listener::{self, Told};
use crate::nat::Kind;
use crate::notifier::{self, Asked, Datagram, Notifier, Packet};
use crate::seen::Seen;
use crate::terminal::Doing;
use crate::world::{World, instant, lock, now};

/// Datagrams that are lost while faults go on, in a thousand.
const LOSS: u64 = 80;

fn millis() -> u64 {
    now() / 1000
}

impl World {
    /// A node's sockets, in this life of it.
    pub fn open_sockets(&self, node: NodeId, life: u64) {
        let seed = self.below(u64::MAX);
        lock(&self.notifiers).insert(node, (life, Notifier::new(node.0, seed)));
    }

    /// Its process is gone, and with it what its anchor knew.
    pub fn close_sockets(&self, node: NodeId) {
        let gone = lock(&self.notifiers).remove(&node);
        if gone.is_some_and(|(_, notifier)| notifier.has_waiting(instant())) {
            self.saw("anchors killed with an order waiting");
        }
    }

    fn secrets_of(&self, node: NodeId) -> Vec<Secret> {
        self.node(node).member().map(|member| member.directory().secrets.clone()).unwrap_or_default()
    }

    fn fly(self: &Arc<World>, packet: Packet) {
        let cut = lock(&self.ledger).is_cut(&lock(&self.networks), &packet);
        if cut || self.bad_luck(LOSS) || self.notification_ails(&packet) {
            self.saw("datagrams lost");
            return lock(&self.ledger).watch(&packet, true);
        }
        let copies = 1 + u64::from(self.bad_luck(40));
        for _ in 0..copies {
            let late = if self.bad_luck(40) { self.below(1500) } else { 0 };
            let (wait, packet) = (self.between(1, 30) + late, packet.clone());
            self.after(wait, move |world| world.datagram_arrives(&packet));
        }
    }

    pub(crate) fn datagram_arrives(self: &Arc<World>, packet: &Packet) {
        if lock(&self.ledger).is_cut(&lock(&self.networks), packet) {
            return self.saw("datagrams lost");
        }
        if let Some(node) = notifier::node_at(packet.to).map(NodeId) {
            if self.is_paused(node) {
                let packet = packet.clone();
                return self.later(node, move |world| world.datagram_arrives(&packet));
            }
            lock(&self.ledger).watch(packet, false);
            let member = self.node(node).member();
            let cut_off = member.is_none_or(|member| member.incarnation() == Incarnation(0));
            if cut_off && matches!(packet.what, Datagram::Stun(_)) {
                return self.saw("keepalives to a node that is cut off");
            }
            return self.at_node(node, |notifier, secrets| notifier.received(instant(), secrets, packet));
        }
        let inward = lock(&self.networks).inward(millis(), packet.from, packet.to);
        let Some((network, (device, port))) = inward else { return };
        let deeds = {
            let mut devices = lock(&self.devices);
            let Some(known) = devices.get_mut(device) else { return };
            let there = known.network == network && known.port == port && known.doing != Doing::Nothing;
            if !there || !known.listens {
                return;
            }
            known.listener.received(instant(), packet.from, &packet.what)
        };
        if let Some(node) = notifier::node_at(packet.from) {
            let life = self.life(NodeId(node));
            lock(&self.ledger).arrived(self.identity(device), (node, life), packet);
        }
        self.listener_did(device, deeds);
    }

    fn at_node(
        self: &Arc<World>,
        node: NodeId,
        event: impl FnOnce(&mut Notifier, &[Secret]) -> Vec<notifier::Deed>,
    ) {
        let secrets = self.secrets_of(node);
        let (life, deeds, next) = {
            let mut notifiers = lock(&self.notifiers);
            let Some((life, notifier)) = notifiers.get_mut(&node) else { return };
            let deeds = event(notifier, &secrets);
            (*life, deeds, notifier.poll_timeout())
        };
        for deed in deeds {
            self.notifier_deed(node, life, deed);
        }
        if let Some(at) = next {
            self.at(at.0 * 1000, move |world| world.notifier_timer(node, life));
        }
    }

    fn notifier_timer(self: &Arc<World>, node: NodeId, life: u64) {
        if self.is_paused(node) {
            return self.later(node, move |world| world.notifier_timer(node, life));
        }
        let due = lock(&self.notifiers).get(&node).is_some_and(|(of, notifier)| {
            *of == life && notifier.poll_timeout().is_some_and(|at| at <= instant())
        });
        if due {
            self.at_node(node, |notifier, _| notifier.timeout(instant()));
        }
    }

    fn notifier_deed(self: &Arc<World>, node: NodeId, life: u64, deed: notifier::Deed) {
        match deed {
            notifier::Deed::Send(packet) => self.fly(packet),
            notifier::Deed::Dial(order, to) => {
                let device = self.device_of(&order.terminal);
                let pinned = matches!(order.reachability, Reachability::Pinned { .. });
                self.say(format!("n{node} dials t{device} at {to}, {} wait", order.pending));
                let of = (node.0, life);
                if self.setting.strict {
                    lock(&self.ledger).check_dial(device, of, pinned, to);
                }
                // What a session tries has nothing pending, and wakes nobody.
                if order.pending > 0 {
                    let proven = lock(&self.ledger).is_proven(device, of, pinned, to);
                    self.tell(Seen::Notifying { device, node, pending: order.pending.into(), proven });
                }
                self.saw(if pinned { "dials through a binding" } else { "dials of an address" });
            }
            notifier::Deed::Told(order, notified) => {
                self.after(0, move |world| world.notification_over(node, life, &order, notified));
            }
            notifier::Deed::Tried(number, reached) => {
                self.after(0, move |world| world.tried(number, reached));
            }
            notifier::Deed::Waits => self.saw("orders that wait for a keepalive"),
            notifier::Deed::Due => self.saw("orders that a keepalive brought to their terminal"),
            notifier::Deed::Challenges => self.saw("addresses that must prove themselves"),
        }
    }

    fn notification_over(&self, node: NodeId, life: u64, order: &NotifyOrder, notified: Notified) {
        if notified == Notified::Answered {
            self.saw("notifications");
        }
        let member = self.node(node).member().filter(|_| self.is_life(node, life));
        if let Some((member, process)) = member.zip(self.process(node)) {
            process.does(|| member.notified(order, notified));
        }
    }

    pub fn device_of(&self, terminal: &TerminalId) -> usize {
        let found = lock(&self.devices).iter().position(|known| known.key.terminal() == *terminal);
        found.expect("only these terminals are registered")
    }

    /// A leader has a terminal notified. It waits in the notifier's queue: the member that brings it must not meet itself.
    pub fn notify(self: &Arc<World>, node: NodeId, life: u64, order: &NotifyOrder) -> bool {
        if order.reachability == Reachability::None || self.bad_luck(20) {
            return false;
        }
        let order = order.clone();
        self.after(0, move |world| {
            if world.is_life(node, life) {
                world.send_notification(node, order, Asked::Leader);
            }
        });
        true
    }

    pub fn send_notification(self: &Arc<World>, node: NodeId, order: NotifyOrder, asked: Asked) {
        if self.is_paused(node) {
            return self.later(node, move |world| world.send_notification(node, order, asked));
        }
        self.at_node(node, |notifier, secrets| notifier.order(instant(), secrets, order, asked));
    }

    /// The dial that a session wanted is over.
    fn tried(self: &Arc<World>, number: u64, reached: bool) {
        let class = {
            let mut connections = lock(&self.connections);
            let Some(connection) = connections.get_mut(&number) else { return };
            let Some(class) = connection.trying.take() else { return };
            connection.tried.push((class, reached));
            class
        };
        self.server_event(number, server::Event::Tried(Tried { class, reached }));
    }

    fn check_class(&self, number: u64, class: Class) {
        if !self.setting.strict {
            return;
        }
        let tried = lock(&self.connections)[&number].tried.clone();
        check_class(&tried, class);
    }

    /// What the service list is told.
    pub fn check_row_class(&self, number: u64, reachability: &Reachability) {
        self.check_class(
            number,
            match reachability {
                Reachability::None => Class::None,
                Reachability::Direct { .. } => Class::Direct,
                Reachability::Pinned { .. } => Class::Pinned,
                Reachability::Former { .. } => panic!("no terminal came by a backup"),
            },
        );
    }

    /// It was found out how a terminal is reached.
    pub fn found_class(&self, number: u64, device: usize, class: Class, seen: std::net::IpAddr) {
        self.check_class(number, class);
        let before = lock(&self.devices)[device].reach.class();
        self.say(format!("t{device} was {before:?}, is {class:?}"));
        self.saw(change_of_class(before, class));
        lock(&self.devices)[device].reach.found(class, seen);
    }

    /// The terminal's socket does what its rules decided.
    pub fn listener_did(self: &Arc<World>, device: usize, deeds: Vec<listener::Deed>) {
        for deed in deeds {
            match deed {
                listener::Deed::Send(to, what) => {
                    let (network, port) = {
                        let known = &lock(&self.devices)[device];
                        (known.network, known.port)
                    };
                    let from = lock(&self.networks).out(millis(), network, (device, port), to);
                    if let Some(from) = from {
                        self.fly(Packet { from, to, what });
                    }
                }
                listener::Deed::Notified(notification) => self.notification(device, &notification),
                listener::Deed::Told(told) => self.told(device, told),
            }
        }
        self.arm_listener(device);
    }

    fn arm_listener(&self, device: usize) {
        let (life, next) = {
            let known = &lock(&self.devices)[device];
            (known.life, known.listener.poll_timeout())
        };
        let Some(at) = next else { return };
        self.at(at.0 * 1000, move |world| {
            let deeds = {
                let known = &mut lock(&world.devices)[device];
                let due = known.listener.poll_timeout().is_some_and(|at| at <= instant());
                if !due || known.life != life || known.doing == Doing::Nothing {
                    return;
                }
                known.listener.timeout(instant())
            };
            world.listener_did(device, deeds);
        });
    }

    /// A session begins or ends at the terminal.
    pub fn listener_session(self: &Arc<World>, device: usize, open: bool) {
        let deeds = lock(&self.devices)[device].listener.session(instant(), open);
        self.listener_did(device, deeds);
    }

    pub fn bind(&self, device: usize, node: NodeId, anchor: &Anchor) {
        let seed = self.below(u64::MAX);
        let at = SocketAddr::new(notifier::address(node.0), anchor.port);
        {
            let known = &mut lock(&self.devices)[device];
            known.held.clear();
            known.reach.bind(anchor.seen);
            known.listener.bind(instant(), anchor, at, seed);
        }
        self.arm_listener(device);
    }

    pub fn unbind(&self, device: usize) {
        let known = &mut lock(&self.devices)[device];
        known.listener.unbind();
        known.reach.unbind(instant());
        known.held.clear();
    }

    pub fn reach_told(&self, device: usize, told: Told) {
        let doubted = {
            let reach = &mut lock(&self.devices)[device].reach;
            let before = reach.class();
            match told {
                Told::Mapped(_) => reach.mapped(),
                Told::Lost => drop(reach.lost()),
                Told::Waiting => {}
            }
            reach.class() != before
        };
        if doubted {
            self.saw("classes doubted");
        }
    }

    /// What the binding tells is taken in a session, or while the terminal listens.
    pub fn told(self: &Arc<World>, device: usize, told: Told) {
        let doing = lock(&self.devices)[device].doing;
        match doing {
            Doing::Nothing => {}
            Doing::BackingOff => lock(&self.devices)[device].held.push(told),
            Doing::Session(number) => {
                self.reach_told(device, told);
                if let Told::Mapped(_) = told {
                    self.terminal_event(number, terminal::Event::Bound);
                }
            }
            Doing::Listening => {
                self.reach_told(device, told);
                match told {
                    Told::Mapped(_) => {}
                    Told::Waiting => {
                        self.saw("terminals woken by an anchor's answer");
                        self.come(device, Cause::Notified);
                    }
                    Told::Lost => {
                        self.saw("anchors given up");
                        self.say(format!("t{device} hears nothing of its anchor"));
                        {
                            let known = &mut lock(&self.devices)[device];
                            known.avoid = known.last_node;
                        }
                        self.come(device, Cause::Moved);
                    }
                }
            }
        }
    }

    fn notification(self: &Arc<World>, device: usize, notification: &Notification) {
        let (doing, known_epoch) = {
            let known = &lock(&self.devices)[device];
            (known.doing, known.disk.epoch)
        };
        if notification.pending == 0 || notification.epoch < known_epoch {
            return;
        }
        match doing {
            Doing::Listening => {
                self.tell(Seen::Notified { device });
                self.come(device, Cause::Notified);
            }
            Doing::Session(number) => self.terminal_event(number, terminal::Event::Notified),
            Doing::BackingOff | Doing::Nothing => {}
        }
    }

    /// Does every push wake the terminal, where it is now?
    pub fn is_woken(&self, device: usize) -> bool {
        let (listens, network, class) = {
            let known = &lock(&self.devices)[device];
            (known.listens, known.network, known.reach.class())
        };
        listens
            && match lock(&self.networks).of(network).kind {
                Kind::Public => true,
                // The first sessions of a new cluster end without a class: its nodes are not anchors yet.
                Kind::Nat => class != Class::Untried,
                Kind::Blocked => false,
            }
    }

    /// Something happens to the networks.
    pub fn weather(self: &Arc<World>) {
        let device = self.below(lock(&self.devices).len() as u64) as usize;
        match self.below(8) {
            0..=2 => {
                let nat = lock(&self.networks).draw_nat(&mut lock(&self.dice));
                self.forget_bindings(nat);
            }
            3 | 4 => self.moves(device),
            5 => {
                let nodes: Vec<u64> = self.addresses().keys().map(|node| node.0).collect();
                let all = self.permille(400);
                let one = self.pick(&nodes);
                let network = lock(&self.devices)[device].network;
                self.cut_datagrams(nodes.into_iter().filter(|node| all || *node == one).collect(), network);
            }
            _ => self.forge_keepalive(),
        }
    }

    fn cut_datagrams(&self, nodes: Vec<u64>, network: usize) {
        let wait = self.pick(&[1000, 6000, 30_000]);
        self.say(format!("no datagram passes between network {network} and nodes {nodes:?}"));
        self.saw("ways cut");
        for node in nodes {
            lock(&self.ledger).cut.insert((node, network));
            self.after(wait, move |world| {
                lock(&world.ledger).cut.remove(&(node, network));
            });
        }
    }

    /// A node is cut off: so it may be from terminals, too.
    pub fn cut_from_terminals(&self, node: NodeId) {
        let networks: Vec<usize> = lock(&self.devices).iter().map(|known| known.network).collect();
        let waits = lock(&self.notifiers).get(&node).is_some_and(|(_, known)| known.has_waiting(instant()));
        if waits {
            self.saw("anchors cut off with an order waiting");
        }
        for network in networks {
            self.cut_datagrams(vec![node.0], network);
        }
    }

    pub fn forget_bindings(&self, nat: usize) {
        let ip = lock(&self.networks).address(nat);
        let under_way = lock(&self.notifiers).values().any(|(_, notifier)| notifier.dials(ip));
        if lock(&self.networks).forget(nat) > 0 {
            self.say(format!("network {nat} forgets its bindings"));
            self.saw("bindings forgotten");
            if under_way {
                self.saw("bindings forgotten with a notification under way");
            }
        }
    }

    /// The terminal is in another network: its connections break, and its application says so, or does not know.
    fn moves(self: &Arc<World>, device: usize) {
        let network = lock(&self.networks).draw(device, &mut lock(&self.dice));
        let told = self.permille(400);
        {
            let known = &mut lock(&self.devices)[device];
            if known.speaks < 2 || known.network == network {
                return;
            }
            known.network = network;
            known.moved |= told;
        }
        self.say(format!("t{device} is in network {network}"));
        self.saw("terminals that moved");
        self.break_connections_of(device);
        self.look_moved(device);
    }

    /// The application may have said that the network is another.
    pub fn look_moved(self: &Arc<World>, device: usize) {
        let moved = {
            let known = &mut lock(&self.devices)[device];
            let moved = known.doing == Doing::Listening && std::mem::take(&mut known.moved);
            if moved {
                known.reach.forget();
            }
            moved
        };
        if moved {
            self.come(device, Cause::Moved);
        }
    }

    /// The node that a terminal keeps a binding with.
    pub fn anchor_of(&self, device: usize) -> Option<NodeId> {
        let at = lock(&self.devices)[device].listener.anchor()?;
        notifier::node_at(at).map(NodeId)
    }

    /// Nodes that are anchors of terminals which wait for what they bring.
    pub fn anchors(&self) -> Vec<NodeId> {
        let listening = |device: &usize| lock(&self.devices)[*device].doing == Doing::Listening;
        let devices = (0..self.terminals().len()).filter(listening);
        let mut anchors: Vec<NodeId> = devices.filter_map(|device| self.anchor_of(device)).collect();
        anchors.sort();
        anchors.dedup();
        anchors
    }
}
