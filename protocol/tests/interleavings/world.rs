//! The world around the machines: virtual time, what is on its way, and who gets it. Knows when things happen, not
//! what they mean: that is in `shard`, `route`, `node` and `device`.

use std::collections::BTreeMap;

use reveille_protocol::id::*;
use reveille_protocol::service_list::{Command, MemoryTable};
use reveille_protocol::time::{GroupTime, Instant};
use reveille_protocol::wire::peer::{Notified, NotifyOrder, SessionMessage};
use reveille_protocol::wire::session::{NodeFrame, TerminalFrame};

use crate::device::Device;
use crate::dice::Dice;
use crate::faults::{Fault, Storm};
use crate::history::History;
use crate::ledger::Ledger;
use crate::nat::Networks;
use crate::node::{Connection, Node};
use crate::notifier::{self, Packet};
use crate::route::{Outcome, Proposal};
use crate::shard::Leader;

pub const GROUP: GroupId = GroupId(1);
pub const NODES: u64 = 3;
/// Faults and publishers stop after this much virtual time.
pub const CHAOS: u64 = 40_000;
/// From here on a few more are published: what the faults left behind must not be felt any more.
pub const CALM: u64 = CHAOS + 300_000;
/// By then everything must have come to rest: longer than the ladder's waits after what the faults undid.
pub const REST: u64 = CHAOS + 45 * 60_000;

/// Everything that can happen next.
#[derive(Debug, Clone)]
pub enum Happening {
    /// A connection is there, or its node was not.
    Connected(u64),
    FromTerminal(u64, TerminalFrame),
    FromNode(u64, NodeFrame),
    /// The node learns that a connection is gone.
    LostAtNode(u64),
    /// The terminal learns so.
    LostAtTerminal(u64),
    ServerTimer(u64),
    TerminalTimer(u64),
    /// Between nodes, beside raft.
    Peer {
        from: u64,
        to: u64,
        message: SessionMessage,
    },
    /// A copy of a proposal reaches a node.
    Copy {
        proposal: u64,
        copy: u32,
        from: u64,
        to: u64,
        command: Box<Command>,
    },
    Answer {
        proposal: u64,
        copy: u32,
        outcome: Outcome,
    },
    /// Nobody answered this copy in time.
    Impatient {
        proposal: u64,
        copy: u32,
    },
    TryAgain(u64),
    /// What waits at the leader becomes an entry.
    Gather {
        term: u64,
    },
    /// Its oldest entry is on a majority of disks.
    Commit {
        term: u64,
    },
    DispatchTimer {
        term: u64,
    },
    ExpiryTick {
        term: u64,
    },
    Rebuild {
        term: u64,
        after: Option<TerminalId>,
    },
    /// A deposed leader learns that it is one.
    Deposed {
        term: u64,
    },
    Elect,
    /// A datagram is where it was sent to.
    Arrives(Box<Packet>),
    ListenerTimer {
        device: usize,
        life: u32,
    },
    NotifierTimer {
        node: u64,
        boot: u64,
    },
    /// A notification is over at the node that sent it.
    Told {
        node: u64,
        boot: u64,
        order: Box<NotifyOrder>,
        notified: Notified,
    },
    /// A dial that a session wanted is over.
    Tried {
        number: u64,
        reached: bool,
    },
    /// Datagrams pass again between a node and a network.
    Mended(u64, usize),
    /// The application confirms, in this life of the process.
    Confirm {
        device: usize,
        life: u32,
        stream: Stream,
        seq: Seq,
    },
    /// The terminal's process starts.
    Start(usize),
    Connect {
        device: usize,
        life: u32,
    },
    CheckIn {
        device: usize,
        since: Option<u64>,
    },
    Restart(u64),
    Joined {
        node: u64,
        boot: u64,
    },
    /// The meta group's leader finds a node silent.
    Silent {
        node: u64,
        incarnation: u64,
    },
    /// A paused node goes on.
    Resume(u64),
    /// A publisher publishes this number, once more if the outcome was unknown.
    Publish(u64),
    Cancel(u64),
    Unregister(usize),
    /// A terminal is behind a NAT from now on, and does not know.
    Move(usize),
    /// All NATs forget what they know.
    ForgetAll,
    /// The node that is a pinned terminal's anchor is killed.
    KillAnchor,
    Fault,
    Heal,
    /// What the faults left behind must be over.
    Calm,
}

pub struct World {
    pub now: u64,
    pub dice: Dice,
    happenings: BTreeMap<(u64, u64), Happening>,
    order: u64,
    /// Faults go on.
    pub chaos: bool,
    pub storm: Storm,
    /// What is committed. A deposed leader has a copy of its own.
    pub table: MemoryTable,
    pub term: u64,
    pub leaders: BTreeMap<u64, Leader>,
    pub nodes: BTreeMap<u64, Node>,
    pub devices: Vec<Device>,
    pub connections: BTreeMap<u64, Connection>,
    pub proposals: BTreeMap<u64, Proposal>,
    pub links: BTreeMap<(u64, u64), u64>,
    pub networks: Networks,
    pub ledger: Ledger,
    /// Seconds between two keepalives.
    pub period: u16,
    /// From when on nodes are anchors; half of that time on they speak protocol 2.
    pub ready: u64,
    /// How often each thing happened that the runs are for.
    pub seen: BTreeMap<&'static str, u64>,
    pub history: History,
    pub numbers: u64,
    /// Told while one seed is replayed.
    pub loud: bool,
}

impl World {
    pub fn new(seed: u64, loud: bool) -> World {
        let mut dice = Dice::new(seed);
        let count = dice.between(2, 5);
        let period = dice.pick(&[1, 2, 3, 5]);
        let networks = Networks::new(count as usize, u64::from(period) * 1000, &mut dice);
        let devices = (0..count as u8).map(|number| Device::new(number, &networks, &mut dice)).collect();
        let storm = Storm::new(&mut dice);
        let ready = if dice.permille(200) { dice.below(CHAOS) } else { 0 };
        let nodes = (1..=NODES).map(|node| (node, Node::new(node, dice.next()))).collect();
        World {
            now: 0,
            dice,
            happenings: BTreeMap::new(),
            order: 0,
            chaos: true,
            storm,
            table: MemoryTable::default(),
            term: 0,
            leaders: BTreeMap::new(),
            nodes,
            devices,
            connections: BTreeMap::new(),
            proposals: BTreeMap::new(),
            links: BTreeMap::new(),
            networks,
            ledger: Ledger::default(),
            period,
            ready,
            seen: BTreeMap::new(),
            history: History::default(),
            numbers: 0,
            loud,
        }
    }

    pub fn instant(&self) -> Instant {
        Instant(self.now)
    }

    pub fn group_time(&self) -> GroupTime {
        GroupTime(1_000_000 + self.now)
    }

    /// A number never used before in this run.
    pub fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub fn at(&mut self, time: u64, happening: Happening) {
        self.order += 1;
        self.happenings.insert((time.max(self.now), self.order), happening);
    }

    pub fn after(&mut self, wait: u64, happening: Happening) {
        self.at(self.now + wait, happening);
    }

    pub fn say(&self, line: impl FnOnce() -> String) {
        if self.loud {
            println!("{:>8} {}", self.now, line());
        }
    }

    /// A fault with this chance in a thousand, while faults go on.
    pub fn bad_luck(&mut self, permille: u64) -> bool {
        self.chaos && self.dice.permille(permille)
    }

    /// Is this the place where a process is killed, between one command and the next?
    pub fn unlucky(&mut self, fault: Fault) -> bool {
        self.storm.faults.contains(&fault) && self.bad_luck(2)
    }

    /// Runs until everything has come to rest, or must have.
    pub fn run(&mut self) {
        while let Some(((time, _), happening)) = self.happenings.pop_first() {
            if time > REST || (time > CALM + 160_000 && self.rests()) {
                break;
            }
            self.now = time;
            self.happens(happening);
        }
    }

    fn happens(&mut self, happening: Happening) {
        if let Some(until) = self.held_up(&happening) {
            return self.at(until, happening);
        }
        match happening {
            Happening::Connected(connection) => self.connected(connection),
            Happening::FromTerminal(connection, frame) => self.terminal_said(connection, frame),
            Happening::FromNode(connection, frame) => self.node_said(connection, frame),
            Happening::LostAtNode(connection) => self.lost_at_node(connection),
            Happening::LostAtTerminal(connection) => self.lost_at_terminal(connection),
            Happening::ServerTimer(connection) => self.server_timer(connection),
            Happening::TerminalTimer(connection) => self.terminal_timer(connection),
            Happening::Peer { from, to, message } => self.peer(from, to, message),
            Happening::Copy { proposal, copy, from, to, command } => {
                self.copy_arrives(proposal, copy, from, to, *command);
            }
            Happening::Answer { proposal, copy, outcome } => self.answer(proposal, copy, outcome),
            Happening::Impatient { proposal, copy } => self.answer(proposal, copy, Outcome::Unknown),
            Happening::TryAgain(proposal) => self.try_at_leader(proposal),
            Happening::Gather { term } => self.gather(term),
            Happening::Commit { term } => self.commit(term),
            Happening::DispatchTimer { term } => self.dispatch_timer(term),
            Happening::ExpiryTick { term } => self.expiry_tick(term),
            Happening::Rebuild { term, after } => self.rebuild(term, after),
            Happening::Deposed { term } => {
                self.leaders.remove(&term);
            }
            Happening::Elect => self.elect(),
            Happening::Arrives(packet) => self.arrives(&packet),
            Happening::ListenerTimer { device, life } => self.listener_timer(device, life),
            Happening::NotifierTimer { node, boot } => self.notifier_timer(node, boot),
            Happening::Told { node, boot, order, notified } => {
                self.notification_over(node, boot, &order, notified);
            }
            Happening::Tried { number, reached } => self.tried(number, reached),
            Happening::Mended(node, network) => self.mended(node, network),
            Happening::Move(device) => self.moves_at_rest(device),
            Happening::ForgetAll => self.forget_all(),
            Happening::KillAnchor => self.kill_anchor(),
            Happening::Confirm { device, life, stream, seq } => self.confirm(device, life, stream, seq),
            Happening::Start(device) => self.start(device),
            Happening::Connect { device, life } => self.connect(device, life),
            Happening::CheckIn { device, since } => self.check_in(device, since),
            Happening::Restart(node) => self.restart(node),
            Happening::Joined { node, boot } => self.joined(node, boot),
            Happening::Silent { node, incarnation } => self.silent(node, incarnation),
            Happening::Resume(node) => self.resume(node),
            Happening::Publish(number) => self.publish(number),
            Happening::Cancel(number) => self.cancel(number),
            Happening::Unregister(device) => self.unregister(device),
            Happening::Fault => self.fault(),
            Happening::Heal => self.heal(),
            Happening::Calm => self.calm(),
        }
    }

    /// What a paused node should do waits until it goes on.
    fn held_up(&self, happening: &Happening) -> Option<u64> {
        let of = |connection: &u64| self.connections.get(connection).map(|known| known.node);
        let leads = |term: &u64| self.leaders.get(term).map(|leader| leader.node);
        let node = match happening {
            Happening::Connected(connection)
            | Happening::FromTerminal(connection, _)
            | Happening::LostAtNode(connection)
            | Happening::ServerTimer(connection) => of(connection),
            Happening::Peer { to, .. } | Happening::Copy { to, .. } => Some(*to),
            Happening::Answer { proposal, .. }
            | Happening::Impatient { proposal, .. }
            | Happening::TryAgain(proposal) => self.proposals.get(proposal).map(|known| known.home),
            Happening::Gather { term }
            | Happening::Commit { term }
            | Happening::DispatchTimer { term }
            | Happening::ExpiryTick { term }
            | Happening::Deposed { term }
            | Happening::Rebuild { term, .. } => leads(term),
            Happening::Arrives(packet) => notifier::node_at(packet.to),
            Happening::Tried { number, .. } => of(number),
            Happening::NotifierTimer { node, .. }
            | Happening::Told { node, .. }
            | Happening::Joined { node, .. } => Some(*node),
            _ => None,
        };
        self.nodes.get(&node?).and_then(|node| node.paused_until).filter(|until| *until > self.now)
    }
}
