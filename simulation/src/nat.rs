//! The networks that terminals are in, as the rest of the world meets them: public addresses, NATs of several kinds
//! with bindings that are forgotten, and networks through which no UDP passes. Knows nothing of what passes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use crate::dice::Dice;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Everybody can send there.
    Public,
    /// Only what looks like an answer comes in, or what comes to a port that is in use.
    Nat,
    /// Only TCP passes.
    Blocked,
}

/// A terminal's socket: whose, and its port in the network that it is in. A process that starts has another port.
pub type Socket = (usize, u16);

/// What a NAT made of one socket behind it.
#[derive(Debug)]
struct Binding {
    inside: Socket,
    /// Whom it was made for, if each peer gets one of its own.
    only: Option<SocketAddr>,
    spoken_to: BTreeSet<SocketAddr>,
    last: u64,
}

#[derive(Debug)]
pub struct Network {
    pub kind: Kind,
    ip: IpAddr,
    /// Milliseconds after which a binding that nothing went out by is forgotten.
    lifetime: u64,
    /// Whoever sends to a port that is in use comes in.
    open: bool,
    /// Whoever is the first with its port has the same outside.
    keeps_port: bool,
    /// Each peer sees another port.
    per_peer: bool,
    bindings: BTreeMap<u16, Binding>,
    next_port: u16,
}

/// All networks of a run: a public address for each terminal, by its number, and then those that several share.
#[derive(Debug, Default)]
pub struct Networks(Vec<Network>);

/// The public address of a terminal.
fn home(number: usize) -> [u8; 4] {
    let [_, _, high, low] = (number as u32).to_be_bytes();
    match number {
        0..250 => [203, 0, 113, low + 1],
        _ => [11, 0, high, low],
    }
}

impl Networks {
    /// `period`: how often terminals speak, in milliseconds; NATs remember for longer, if nothing is lost.
    pub fn new(terminals: usize, period: u64, dice: &mut Dice) -> Networks {
        let public = (0..terminals).map(|number| Network::new(Kind::Public, home(number), 0));
        let mut all: Vec<Network> = public.collect();
        for number in 0..3 {
            let lifetime = period * 11 / 10 + dice.between(200, period * 2);
            let mut nat = Network::new(Kind::Nat, [198, 51, 100, number + 1], lifetime);
            (nat.open, nat.keeps_port) = (dice.permille(300), dice.permille(500));
            nat.per_peer = !nat.open && dice.permille(300);
            nat.next_port = 20_000 + dice.below(1000) as u16;
            all.push(nat);
        }
        all.push(Network::new(Kind::Blocked, [192, 0, 2, 1], 0));
        Networks(all)
    }

    pub fn of(&self, network: usize) -> &Network {
        &self.0[network]
    }

    /// Where a terminal may be: at home, behind a NAT, mostly, or where no UDP passes.
    pub fn draw(&self, device: usize, dice: &mut Dice) -> usize {
        let first = self.0.len() - 4;
        match dice.below(10) {
            0..=2 => device,
            3..=8 => first + dice.below(3) as usize,
            _ => self.0.len() - 1,
        }
    }

    /// All of the NATs.
    pub fn nats(&self) -> std::ops::Range<usize> {
        self.0.len() - 4..self.0.len() - 1
    }

    /// One of the NATs.
    pub fn draw_nat(&self, dice: &mut Dice) -> usize {
        self.0.len() - 4 + dice.below(3) as usize
    }

    /// Where nodes see a session come from.
    pub fn address(&self, network: usize) -> IpAddr {
        self.0[network].ip
    }

    /// A datagram leaves a terminal: the address that it seems to come from, if it passes.
    pub fn out(&mut self, now: u64, network: usize, inside: Socket, to: SocketAddr) -> Option<SocketAddr> {
        self.0[network].out(now, inside, to)
    }

    /// Into which network, and for which socket there, a datagram passes.
    pub fn inward(&self, now: u64, from: SocketAddr, to: SocketAddr) -> Option<(usize, Socket)> {
        let network = self.0.iter().position(|network| network.ip == to.ip())?;
        let inside = match self.0[network].kind {
            Kind::Public => Some((network, to.port())),
            Kind::Nat => self.0[network].behind(now, from, to.port()),
            Kind::Blocked => None,
        };
        inside.map(|inside| (network, inside))
    }

    /// The router is started again: what it knew is gone, and it begins with other ports.
    pub fn forget(&mut self, network: usize) -> usize {
        let nat = &mut self.0[network];
        nat.next_port += 7;
        nat.keeps_port = false;
        std::mem::take(&mut nat.bindings).len()
    }
}

impl Network {
    fn new(kind: Kind, ip: [u8; 4], lifetime: u64) -> Network {
        let (open, keeps_port, per_peer) = (false, false, false);
        let bindings = BTreeMap::new();
        Network { kind, ip: ip.into(), lifetime, open, keeps_port, per_peer, bindings, next_port: 0 }
    }

    fn lives(&self, now: u64, binding: &Binding) -> bool {
        now - binding.last <= self.lifetime
    }

    fn out(&mut self, now: u64, inside: Socket, to: SocketAddr) -> Option<SocketAddr> {
        match self.kind {
            Kind::Public => return Some(SocketAddr::new(self.ip, inside.1)),
            Kind::Blocked => return None,
            Kind::Nat => {}
        }
        let lifetime = self.lifetime;
        self.bindings.retain(|_, binding| now - binding.last <= lifetime);
        let only = self.per_peer.then_some(to);
        let known = self.bindings.iter().find(|(_, known)| known.inside == inside && known.only == only);
        let port = match known {
            Some((port, _)) => *port,
            None if self.keeps_port && !self.bindings.contains_key(&inside.1) => inside.1,
            None => {
                self.next_port += 1;
                self.next_port
            }
        };
        let fresh = Binding { inside, only, spoken_to: BTreeSet::new(), last: now };
        let binding = self.bindings.entry(port).or_insert(fresh);
        binding.last = now;
        binding.spoken_to.insert(to);
        Some(SocketAddr::new(self.ip, port))
    }

    fn behind(&self, now: u64, from: SocketAddr, port: u16) -> Option<Socket> {
        let binding = self.bindings.get(&port).filter(|binding| self.lives(now, binding))?;
        (self.open || binding.spoken_to.contains(&from)).then_some(binding.inside)
    }
}
