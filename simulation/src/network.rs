//! The links between nodes: who may talk to whom, what is on its way, what is cut. A link keeps the order of each lane,
//! holds what a cut keeps back, and breaks when that takes too long; nothing else is lost in it, as in TCP.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use reveille_cluster::door::Door;
use reveille_cluster::env::Transport;
use reveille_cluster::link::{Inbound, Lane, SendError};
use reveille_protocol::directory::FORMAT;
use reveille_protocol::id::NodeId;

use crate::seen::Seen;
use crate::world::{Sim, World, lock, now};

/// Milliseconds after which a link breaks that brings nothing across.
pub(crate) const SILENCE: u64 = 3000;

#[derive(Default)]
pub struct Network {
    ports: BTreeMap<NodeId, Port>,
    /// Whom each node was told to talk to, by its life: the others, and the highest id that it knows of.
    peers: BTreeMap<(NodeId, u64), (BTreeSet<NodeId>, NodeId)>,
    links: BTreeMap<(NodeId, NodeId), Link>,
    dialling: BTreeSet<(NodeId, NodeId)>,
    cut: BTreeMap<(NodeId, NodeId), u64>,
    /// Nodes that have not noticed yet that the other one is gone, and which of its ends that was.
    unaware: BTreeMap<(NodeId, NodeId), u64>,
}

struct Port {
    life: u64,
    door: Weak<Door<Sim>>,
}

struct Link {
    number: u64,
    /// When the last frame to a node arrives, by lane.
    arrivals: BTreeMap<(NodeId, Lane), u64>,
    held: Vec<(NodeId, NodeId, Lane, Bytes)>,
}

/// A node's way into the network, in one of its lives.
#[derive(Clone)]
pub struct Wire {
    pub world: Weak<World>,
    pub from: NodeId,
    pub life: u64,
}

impl Transport for Wire {
    fn send(&self, to: NodeId, lane: Lane, frame: Bytes) -> Result<(), SendError> {
        let world = self.world.upgrade().ok_or(SendError::Down)?;
        world.send(self, to, lane, frame)
    }

    fn set_peers(&self, peers: BTreeMap<NodeId, String>, known: NodeId) {
        let Some(world) = self.world.upgrade() else { return };
        let told = (peers.into_keys().collect(), known);
        let before = lock(&world.network).peers.insert((self.from, self.life), told.clone());
        if before != Some(told) {
            world.mind_links();
        }
    }

    fn format(&self, peer: NodeId) -> Option<u32> {
        let world = self.world.upgrade()?;
        lock(&world.network).links.contains_key(&pair(self.from, peer)).then_some(FORMAT)
    }

    fn abandon(&self, peer: NodeId) {
        let Some(world) = self.world.upgrade() else { return };
        let (from, life) = (self.from, self.life);
        // Not from here: it is a member that says so.
        world.after(0, move |world| {
            if lock(&world.network).ports.get(&from).is_some_and(|port| port.life == life) {
                world.abandon(from, peer);
            }
        });
    }

    fn set_format(&self, _format: u32) {}
}

fn pair(one: NodeId, other: NodeId) -> (NodeId, NodeId) {
    (one.min(other), one.max(other))
}

impl Network {
    fn told(&self, node: NodeId) -> Option<&(BTreeSet<NodeId>, NodeId)> {
        self.peers.get(&(node, self.ports.get(&node)?.life))
    }

    fn may_be(&self, at: NodeId, peer: NodeId) -> bool {
        self.told(at).is_some_and(|(peers, known)| peers.contains(&peer) || peer > *known)
    }

    fn dials(&self, at: NodeId, peer: NodeId) -> bool {
        self.told(at).is_some_and(|(peers, _)| peers.contains(&peer))
    }

    /// Would these two make a link?
    fn wanted(&self, (one, other): (NodeId, NodeId)) -> bool {
        let both = self.may_be(one, other) && self.may_be(other, one);
        both && (self.dials(one, other) || self.dials(other, one))
    }

    fn is_cut(&self, (one, other): (NodeId, NodeId)) -> bool {
        self.cut.contains_key(&(one, other)) || self.cut.contains_key(&(other, one))
    }

    fn pairs(&self) -> Vec<(NodeId, NodeId)> {
        let nodes: Vec<NodeId> = self.ports.keys().copied().collect();
        let pairs = nodes.iter().enumerate();
        pairs.flat_map(|(at, one)| nodes[at + 1..].iter().map(|other| (*one, *other))).collect()
    }

    fn door(&self, node: NodeId) -> Option<Arc<Door<Sim>>> {
        self.ports.get(&node)?.door.upgrade()
    }
}

impl World {
    fn send(self: &Arc<World>, wire: &Wire, to: NodeId, lane: Lane, frame: Bytes) -> Result<(), SendError> {
        let mut delay = self.between(100, 2100);
        if self.bad_luck(10) {
            delay += self.below(100_000);
        }
        let (late, busy) = self.late(wire.from, to, frame.len());
        let mut network = lock(&self.network);
        if network.ports.get(&wire.from).is_none_or(|port| port.life != wire.life) {
            return Err(SendError::Down);
        }
        let link = network.links.get_mut(&pair(wire.from, to)).ok_or(SendError::Down)?;
        let arrival = link.arrivals.entry((to, lane)).or_default();
        *arrival = (*arrival + 1).max(now() + delay + late) + busy;
        let (at, number, from) = (*arrival, link.number, wire.from);
        drop(network);
        if lane == Lane::Bulk {
            self.bulk(from, to);
        }
        self.at(at, move |world| world.arrives(number, from, to, lane, frame));
        Ok(())
    }

    /// A snapshot is on its way: something may happen to it.
    fn bulk(self: &Arc<World>, from: NodeId, to: NodeId) {
        self.saw("frames of snapshots");
        self.tell(Seen::Snapshot { from, to });
        if self.bad_luck(120) {
            self.saw("snapshots cut off");
            self.say(format!("n{from} and n{to} lose their link in a snapshot"));
            let wait = self.below(4);
            self.after(wait, move |world| world.break_link(pair(from, to)));
        }
        if self.bad_luck(60) {
            let victim = if self.permille(500) { from } else { to };
            self.order_crash(victim);
        }
    }

    fn arrives(self: &Arc<World>, number: u64, from: NodeId, to: NodeId, lane: Lane, frame: Bytes) {
        if self.is_paused(to) {
            return self.later(to, move |world| world.arrives(number, from, to, lane, frame));
        }
        let door = {
            let mut network = lock(&self.network);
            let held = network.cut.contains_key(&(from, to));
            let Some(link) = network.links.get_mut(&pair(from, to)).filter(|link| link.number == number)
            else {
                return;
            };
            if held || link.held.iter().any(|(_, other, _, _)| *other == to) {
                link.held.push((from, to, lane, frame));
                return;
            }
            network.door(to)
        };
        if let Some(door) = door {
            self.at_door(to, || door.frame(from, lane, frame));
        }
    }

    /// Something comes to a node: a task of its process takes it in.
    fn at_door(&self, node: NodeId, work: impl FnOnce()) {
        match self.process(node) {
            Some(process) => process.does(work),
            // It is only starting.
            None => work(),
        }
    }

    pub fn linked(&self, one: NodeId, other: NodeId) -> bool {
        lock(&self.network).links.contains_key(&pair(one, other))
    }

    /// A node is there and can be linked with.
    pub fn open_port(self: &Arc<World>, node: NodeId, life: u64, door: &Arc<Door<Sim>>) {
        let port = Port { life, door: Arc::downgrade(door) };
        lock(&self.network).ports.insert(node, port);
        self.mind_links();
    }

    /// Its process is gone; its peers learn so from their sockets, or by silence.
    pub fn close_port(self: &Arc<World>, node: NodeId, silent: bool) {
        let number = self.number();
        let gone: Vec<NodeId> = {
            let mut network = lock(&self.network);
            network.ports.remove(&node);
            network.unaware.retain(|(at, _), _| *at != node);
            let links = network.links.extract_if(.., |(one, other), _| *one == node || *other == node);
            let gone = links.map(|((one, other), _)| if one == node { other } else { one });
            let gone: Vec<NodeId> = gone.collect();
            network.unaware.extend(gone.iter().map(|peer| ((*peer, node), number)));
            gone
        };
        let wait = if silent { SILENCE } else { self.below(3) };
        for peer in gone {
            self.after(wait, move |world| world.notice(peer, node, number));
        }
    }

    /// A node learns that its link of then is gone, unless it knows: it may have lost another one to the same peer since.
    fn notice(&self, node: NodeId, gone: NodeId, number: u64) {
        let unaware = {
            let mut network = lock(&self.network);
            let of_then = network.unaware.get(&(node, gone)) == Some(&number);
            of_then && network.unaware.remove(&(node, gone)).is_some()
        };
        if unaware {
            self.tell_down(node, gone);
        }
    }

    fn tell_down(&self, node: NodeId, peer: NodeId) {
        if self.is_paused(node) {
            return self.later(node, move |world| world.tell_down(node, peer));
        }
        let door = lock(&self.network).door(node);
        if let Some(door) = door {
            self.at_door(node, || Lane::ALL.into_iter().for_each(|lane| door.down(peer, lane)));
        }
    }

    /// Makes the links that are wanted, ends those that are not.
    fn mind_links(self: &Arc<World>) {
        let pairs = lock(&self.network).pairs();
        for pair in pairs {
            let (wanted, there, dialling) = {
                let network = lock(&self.network);
                (network.wanted(pair), network.links.contains_key(&pair), network.dialling.contains(&pair))
            };
            if wanted && !there && !dialling {
                lock(&self.network).dialling.insert(pair);
                let wait = self.between(1, 40);
                self.after(wait, move |world| world.dial(pair));
            }
            if there && !wanted {
                // Not from here: it may be a member that says whom it talks to.
                self.after(0, move |world| {
                    if !lock(&world.network).wanted(pair) {
                        world.break_link(pair);
                    }
                });
            }
        }
    }

    fn dial(self: &Arc<World>, pair: (NodeId, NodeId)) {
        let number = self.number();
        let wait = self.between(20, 300);
        // Nobody shakes hands with one that stands still.
        let still = self.is_paused(pair.0) || self.is_paused(pair.1);
        let doors = {
            let mut network = lock(&self.network);
            if !network.wanted(pair) || network.links.contains_key(&pair) {
                network.dialling.remove(&pair);
                return;
            }
            if still || network.is_cut(pair) {
                return self.after(wait, move |world| world.dial(pair));
            }
            network.dialling.remove(&pair);
            let link = Link { number, arrivals: BTreeMap::new(), held: Vec::new() };
            network.links.insert(pair, link);
            [(pair.0, pair.1, network.door(pair.0)), (pair.1, pair.0, network.door(pair.1))]
        };
        for (node, peer, door) in doors {
            let Some(door) = door else { continue };
            // Before its new link is up.
            if lock(&self.network).unaware.remove(&(node, peer)).is_some() {
                self.tell_down(node, peer);
            }
            self.at_door(node, || Lane::ALL.into_iter().for_each(|lane| door.up(peer, lane)));
        }
    }

    /// What links a node has break.
    pub(crate) fn break_links_of(self: &Arc<World>, node: NodeId) {
        let of: Vec<(NodeId, NodeId)> = {
            let network = lock(&self.network);
            network.links.keys().filter(|(one, other)| *one == node || *other == node).copied().collect()
        };
        of.into_iter().for_each(|pair| self.break_link(pair));
    }

    /// The link between two nodes is reset; it is made anew at once.
    pub fn reset_link(self: &Arc<World>, one: NodeId, other: NodeId) {
        self.break_link(pair(one, other));
    }

    /// A node closes its link to a peer, which learns of it if what the node says gets there. Of a link in production only the
    /// control lane is closed, by which peers judge each other; here all lanes are one link.
    fn abandon(self: &Arc<World>, node: NodeId, peer: NodeId) {
        if lock(&self.network).cut.contains_key(&(node, peer)) {
            return self.half_open(node, peer);
        }
        self.break_link(pair(node, peer));
    }

    /// One end of a link is gone. The other does not know until it has heard nothing for a while.
    pub fn half_open(self: &Arc<World>, gone: NodeId, unaware: NodeId) {
        let number = self.number();
        {
            let mut network = lock(&self.network);
            if network.links.remove(&pair(gone, unaware)).is_none() {
                return;
            }
            network.unaware.insert((unaware, gone), number);
        }
        self.tell_down(gone, unaware);
        self.after(SILENCE, move |world| world.notice(unaware, gone, number));
        self.mind_links();
    }

    fn break_link(self: &Arc<World>, pair: (NodeId, NodeId)) {
        if lock(&self.network).links.remove(&pair).is_none() {
            return;
        }
        self.tell_down(pair.0, pair.1);
        self.tell_down(pair.1, pair.0);
        self.mind_links();
    }

    /// From now on nothing gets from the one to the other.
    pub fn cut(self: &Arc<World>, from: NodeId, to: NodeId) {
        let number = self.number();
        lock(&self.network).cut.insert((from, to), number);
        self.after(SILENCE, move |world| {
            if lock(&world.network).cut.get(&(from, to)) == Some(&number) {
                world.break_link(pair(from, to));
            }
        });
    }

    /// Nothing is cut any more; what was held arrives.
    pub fn mend(self: &Arc<World>) {
        let held: Vec<_> = {
            let mut network = lock(&self.network);
            network.cut.clear();
            network.links.values_mut().flat_map(|link| std::mem::take(&mut link.held)).collect()
        };
        self.let_go(held);
    }

    /// Something gets from the one to the other again; what was held arrives.
    pub fn mend_way(self: &Arc<World>, from: NodeId, to: NodeId) {
        let held: Vec<_> = {
            let mut network = lock(&self.network);
            network.cut.remove(&(from, to));
            let link = network.links.get_mut(&pair(from, to));
            let held =
                link.map(|link| link.held.extract_if(.., |held| (held.0, held.1) == (from, to)).collect());
            held.unwrap_or_default()
        };
        self.let_go(held);
    }

    fn let_go(self: &Arc<World>, held: Vec<(NodeId, NodeId, Lane, Bytes)>) {
        for (from, to, lane, frame) in held {
            let door = lock(&self.network).door(to);
            match door {
                Some(_) if self.is_paused(to) => self.later(to, move |world| {
                    let door = lock(&world.network).door(to);
                    if let Some(door) = door {
                        world.at_door(to, || door.frame(from, lane, frame));
                    }
                }),
                Some(door) => self.at_door(to, || door.frame(from, lane, frame)),
                None => {}
            }
        }
    }
}
