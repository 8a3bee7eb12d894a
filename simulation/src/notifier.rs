//! A node's UDP sockets, in one life of its process: the anchor with its table, and the dials of notifications, as
//! `node/src/notify` has them. A dial is one datagram that is repeated until it is answered, as one that QUIC sends in its
//! first flight. No network, and no leader.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use reveille_protocol::anchor::table::{Anchor, Answer, Heard};
use reveille_protocol::directory::Secret;
use reveille_protocol::id::KeyFingerprint;
use reveille_protocol::service_list::row::Reachability;
use reveille_protocol::time::Instant;
use reveille_protocol::wire::notification::{Notification, NotificationAck, first_cid, notify_secret};
use reveille_protocol::wire::peer::{Notified, NotifyOrder, Why};
use reveille_protocol::wire::stun::{self, Handle};

/// Where keepalives come, and pinned terminals are dialled from.
pub const ANCHOR: u16 = 7000;
/// Where others are dialled from.
const DIRECT: u16 = 40_000;
/// A dial is given up after this.
const DEADLINE: Duration = Duration::from_secs(2);
const REPEAT: Duration = Duration::from_millis(200);

/// What a datagram says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Datagram {
    Stun(Vec<u8>),
    Notify { cid: Vec<u8>, bytes: Vec<u8> },
    Ack { key: KeyFingerprint, bytes: Vec<u8> },
}

/// One on its way, with the addresses that whoever meets it outside sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub what: Datagram,
}

/// Who wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    Leader,
    /// A session of this node, for its terminal.
    Session(u64),
}

/// What came of something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    Send(Packet),
    /// A dial begins: for whom, and where to.
    Dial(NotifyOrder, SocketAddr),
    Told(NotifyOrder, Notified),
    Tried(u64, bool),
    /// An order waits for its terminal to be heard.
    Waits,
    /// It was heard, and is dialled.
    Due,
    /// An address must prove itself first.
    Challenges,
}

struct Dial {
    order: NotifyOrder,
    asked: Asked,
    packet: Packet,
    key: KeyFingerprint,
    id: u64,
    through: Option<Handle>,
    until: Instant,
    again: Instant,
    wait: Duration,
}

pub struct Notifier {
    ip: IpAddr,
    table: Anchor<NotifyOrder>,
    dials: Vec<Dial>,
    numbers: u64,
    /// By each terminal's binding: what waits.
    waiting: BTreeMap<Handle, Instant>,
}

/// Where a node is.
pub fn address(node: u64) -> IpAddr {
    [10, 0, 0, node as u8].into()
}

/// Which node is there.
pub fn node_at(address: SocketAddr) -> Option<u64> {
    match address.ip() {
        IpAddr::V4(ip) if ip.octets()[..3] == [10, 0, 0] => Some(u64::from(ip.octets()[3])),
        _ => None,
    }
}

/// Bindings that a node remembers: each session has another, of which those of the last minutes count.
const BINDINGS: usize = 100_000;

impl Notifier {
    /// `seed` is random: nothing of an earlier life is good in this one.
    pub fn new(node: u64, seed: u64) -> Notifier {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_be_bytes());
        Notifier {
            ip: address(node),
            table: Anchor::new(key, BINDINGS),
            dials: Vec::new(),
            numbers: seed,
            waiting: BTreeMap::new(),
        }
    }

    /// Does an order wait here for its terminal to be heard?
    pub fn has_waiting(&self, now: Instant) -> bool {
        self.waiting.values().any(|until| *until > now)
    }

    /// Is a dial under way to this address?
    pub fn dials(&self, ip: IpAddr) -> bool {
        self.dials.iter().any(|dial| dial.packet.to.ip() == ip)
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.dials.iter().map(|dial| dial.again.min(dial.until)).min()
    }

    pub fn order(&mut self, now: Instant, secrets: &[Secret], order: NotifyOrder, asked: Asked) -> Vec<Deed> {
        let mut deeds = Vec::new();
        self.dial(now, secrets, order, asked, &mut deeds);
        deeds
    }

    fn dial(
        &mut self,
        now: Instant,
        secrets: &[Secret],
        order: NotifyOrder,
        asked: Asked,
        deeds: &mut Vec<Deed>,
    ) {
        let Some(secret) = secrets.iter().find(|secret| secret.generation == order.secret) else {
            return self.over(order, asked, Notified::Unanswered(Why::NoProof), deeds);
        };
        let (to, key, through) = match order.reachability {
            Reachability::Direct { address, listening_key } => (address, listening_key, None),
            Reachability::Pinned { listening_key, .. } => {
                let handle = stun::handle(secret, &order.terminal, order.stream, order.epoch);
                let Some(address) = self.table.address(now, &handle) else {
                    self.over(order.clone(), asked, Notified::Unanswered(Why::NoBinding), deeds);
                    if asked == Asked::Leader {
                        self.wait(now, handle, order, deeds);
                    }
                    return;
                };
                (address, listening_key, Some(handle))
            }
            Reachability::None | Reachability::Former { .. } => {
                return self.over(order, asked, Notified::Unanswered(Why::NoProof), deeds);
            }
        };
        self.numbers = self.numbers.wrapping_add(1);
        let id = self.numbers;
        let secret = notify_secret(secret, &order.terminal, order.stream, order.epoch);
        let NotifyOrder { epoch, pending, urgency, .. } = order;
        let bytes = Notification { id, epoch, pending, urgency, hints: Vec::new() }.encode();
        let cid = first_cid(&secret, id.rotate_left(32)).to_vec();
        let from = SocketAddr::new(self.ip, if through.is_some() { ANCHOR } else { DIRECT });
        let packet = Packet { from, to, what: Datagram::Notify { cid, bytes } };
        deeds.push(Deed::Dial(order.clone(), to));
        deeds.push(Deed::Send(packet.clone()));
        let (until, again, wait) = (now + DEADLINE, now + REPEAT, REPEAT);
        self.dials.push(Dial { order, asked, packet, key, id, through, until, again, wait });
    }

    fn over(&self, order: NotifyOrder, asked: Asked, outcome: Notified, deeds: &mut Vec<Deed>) {
        deeds.push(match asked {
            Asked::Leader => Deed::Told(order, outcome),
            Asked::Session(number) => Deed::Tried(number, outcome == Notified::Answered),
        });
    }

    fn wait(&mut self, now: Instant, handle: Handle, order: NotifyOrder, deeds: &mut Vec<Deed>) {
        let _given_up = self.table.wait(now, handle, order);
        self.waiting.insert(handle, now + Duration::from_secs(60));
        deeds.push(Deed::Waits);
    }

    pub fn timeout(&mut self, now: Instant) -> Vec<Deed> {
        let mut deeds = Vec::new();
        let (over, on): (Vec<Dial>, Vec<Dial>) =
            std::mem::take(&mut self.dials).into_iter().partition(|dial| dial.until <= now);
        self.dials = on;
        for dial in self.dials.iter_mut().filter(|dial| dial.again <= now) {
            dial.wait *= 2;
            dial.again = now + dial.wait;
            deeds.push(Deed::Send(dial.packet.clone()));
        }
        for dial in over {
            self.over(dial.order.clone(), dial.asked, Notified::Unanswered(Why::NoAnswer), &mut deeds);
            if let (Some(handle), Asked::Leader) = (dial.through, dial.asked) {
                self.table.failed(&handle, dial.packet.to);
                self.wait(now, handle, dial.order, &mut deeds);
            }
        }
        self.table.sweep(now, 10);
        deeds
    }

    pub fn received(&mut self, now: Instant, secrets: &[Secret], packet: &Packet) -> Vec<Deed> {
        let mut deeds = Vec::new();
        match &packet.what {
            Datagram::Stun(bytes) if packet.to.port() == ANCHOR => {
                let heard = self.table.heard(now, packet.from, bytes, secrets);
                self.heard(now, secrets, packet, heard, &mut deeds);
            }
            Datagram::Ack { key, bytes } => self.answered(packet, *key, bytes, &mut deeds),
            Datagram::Stun(_) | Datagram::Notify { .. } => {}
        }
        deeds
    }

    fn heard(
        &mut self,
        now: Instant,
        secrets: &[Secret],
        packet: &Packet,
        heard: Heard<NotifyOrder>,
        deeds: &mut Vec<Deed>,
    ) {
        let Ok(accepted) = heard else { return };
        if let Some(Answer::Mapped(answer) | Answer::Challenge(answer)) = &accepted.answer {
            let what = Datagram::Stun(answer.to_vec());
            deeds.push(Deed::Send(Packet { from: packet.to, to: packet.from, what }));
        }
        if let Some(Answer::Challenge(_)) = accepted.answer {
            deeds.push(Deed::Challenges);
        }
        if let Some(order) = accepted.due {
            self.waiting.remove(&accepted.handle);
            deeds.push(Deed::Due);
            self.dial(now, secrets, order, Asked::Leader, deeds);
        }
    }

    fn answered(&mut self, packet: &Packet, key: KeyFingerprint, bytes: &[u8], deeds: &mut Vec<Deed>) {
        let Ok(NotificationAck { id }) = NotificationAck::decode(bytes) else { return };
        let is_it =
            |dial: &Dial| dial.id == id && dial.packet.to == packet.from && dial.packet.from == packet.to;
        let Some(at) = self.dials.iter().position(is_it) else { return };
        let dial = self.dials.swap_remove(at);
        let right = key == dial.key;
        let outcome = if right { Notified::Answered } else { Notified::Unanswered(Why::WrongKey) };
        self.over(dial.order, dial.asked, outcome, deeds);
    }
}
