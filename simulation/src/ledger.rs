//! What is known from outside of who is where: by this it is judged where notifications go and what a class was decided
//! by. Shares no rule with the machines that it judges. And the attacker's copies.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use reveille_protocol::wire::session::Class;

use crate::dice::Dice;
use crate::nat::Networks;
use crate::notifier::{self, Datagram, Packet};

/// Copies that the attacker keeps.
const KEPT: usize = 200;

#[derive(Debug, Default)]
pub struct Ledger {
    /// What a node, in one life of it, sent to an address arrived at the terminal.
    proven: BTreeSet<(usize, (u64, u64), SocketAddr)>,
    /// A session of the terminal came from there, where it listens on that port.
    peers: BTreeSet<(usize, SocketAddr)>,
    /// Ways between a node and a network that nothing gets through.
    pub cut: BTreeSet<(u64, usize)>,
    /// Keepalives that the attacker saw arrive, and such as only it has a copy of.
    seen: Vec<Packet>,
    lost: Vec<Packet>,
}

impl Ledger {
    pub fn note_peer(&mut self, device: usize, address: SocketAddr) {
        self.peers.insert((device, address));
    }

    /// A node's datagram arrived at a terminal.
    pub fn arrived(&mut self, device: usize, node: (u64, u64), packet: &Packet) {
        if matches!(packet.what, Datagram::Stun(_)) {
            self.proven.insert((device, node, packet.to));
        }
    }

    /// A notification goes only to an address that has proven itself to this very life of the node, or to one that a
    /// session of the terminal came from.
    pub fn check_dial(&self, device: usize, node: (u64, u64), pinned: bool, to: SocketAddr) {
        let right = self.is_proven(device, node, pinned, to);
        assert!(right, "n{} dials t{device} at {to}, which nobody has proven", node.0);
    }

    /// Is it?
    pub fn is_proven(&self, device: usize, node: (u64, u64), pinned: bool, to: SocketAddr) -> bool {
        match pinned {
            true => self.proven.contains(&(device, node, to)),
            false => self.peers.contains(&(device, to)),
        }
    }

    pub fn is_cut(&self, networks: &Networks, packet: &Packet) -> bool {
        let (node, outside) = match notifier::node_at(packet.from) {
            Some(node) => (Some(node), packet.to),
            None => (notifier::node_at(packet.to), packet.from),
        };
        let cuts =
            |(cut, network): &(u64, usize)| Some(*cut) == node && networks.address(*network) == outside.ip();
        self.cut.iter().any(cuts)
    }

    /// The attacker sees what arrives at a node, and what is lost on the way there.
    pub fn watch(&mut self, packet: &Packet, lost: bool) {
        let kept = if lost { &mut self.lost } else { &mut self.seen };
        if matches!(packet.what, Datagram::Stun(_)) && kept.len() < KEPT {
            kept.push(packet.clone());
        }
    }

    /// A keepalive that the attacker has a copy of, from an address of its choice.
    pub fn forge(&self, dice: &mut Dice) -> Option<Packet> {
        let kept = if dice.permille(500) { &self.lost } else { &self.seen };
        if kept.is_empty() {
            return None;
        }
        let mut packet = kept[dice.below(kept.len() as u64) as usize].clone();
        let third = [[203, 0, 113, 250], [198, 51, 100, 1], [198, 51, 100, 2]];
        packet.from = SocketAddr::from((dice.pick(&third), 5000 + dice.below(3) as u16));
        Some(packet)
    }
}

/// A class is what was tried in this session: `none` only after both ways, each other one only if it worked.
pub fn check_class(tried: &[(Class, bool)], class: Class) {
    let right = match class {
        Class::Untried => false,
        Class::Direct | Class::Pinned => tried.contains(&(class, true)),
        Class::None => [Class::Direct, Class::Pinned].iter().all(|way| tried.contains(&(*way, false))),
    };
    assert!(right, "{class:?} is decided after {tried:?}");
}

/// What a terminal knew of how it is reached, and what it found: for the test that the runs mean something.
pub fn change_of_class(before: Class, class: Class) -> &'static str {
    match (before, class) {
        (Class::Direct, Class::Pinned) => "classes that fell from direct to pinned",
        (Class::Pinned, Class::Direct) => "classes that rose from pinned to direct",
        (_, Class::None) => "classes found to be none",
        (_, Class::Direct) => "classes found to be direct",
        (_, Class::Pinned) => "classes found to be pinned",
        (_, Class::Untried) => "classes that nobody knows",
    }
}
