//! What goes wrong, and who publishes: drawn from the seed until the heal, after which everything works.

use std::net::SocketAddr;

use bytes::Bytes;
use reveille_protocol::id::*;
use reveille_protocol::service_list::row::{Settings, Urgency};
use reveille_protocol::service_list::{self as list, Command, Reply, view};
use reveille_protocol::time::GroupTime;

use crate::dice::Dice;
use crate::history::{Publication, When};
use crate::notifier;
use crate::route::Origin;
use crate::world::{CALM, CHAOS, Happening, NODES, World};

const DEADLINE: u64 = 5_000;

/// What can break in one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Leader,
    Node,
    Pause,
    Terminal,
    Connection,
    /// Datagrams, NATs, and where terminals are.
    Network,
}

/// The faults of one run. Few kinds leave what one of them spoilt as it is; many kinds meet in the middle of something.
pub struct Storm {
    pub faults: Vec<Fault>,
    /// Messages between nodes that are lost, in a thousand.
    pub loss: u64,
    /// The longest that a shard is without a leader.
    pub election: u64,
    /// Datagrams that are lost, in a thousand.
    pub datagrams: u64,
    /// Terminals come by themselves only after the faults.
    pub patient: bool,
}

impl Storm {
    pub fn new(dice: &mut Dice) -> Storm {
        let all =
            [Fault::Leader, Fault::Node, Fault::Pause, Fault::Terminal, Fault::Connection, Fault::Network];
        let most = dice.pick(&[200, 500, 1000]);
        let faults = all.into_iter().filter(|_| dice.permille(most)).collect();
        Storm {
            faults,
            loss: dice.pick(&[0, 20, 100]),
            election: dice.pick(&[1500, 1500, 12_000]),
            datagrams: dice.pick(&[0, 50, 250]),
            patient: dice.permille(600),
        }
    }
}

impl World {
    /// Everything of a run is drawn here: when who publishes, and when what breaks.
    pub fn set_up(&mut self) {
        self.elect();
        if self.dice.permille(300) {
            let settings =
                Settings { max_pending: 6, max_pending_bytes: 600, wake_window: 1500, ..Settings::default() };
            self.propose(1, Origin::Nobody, Command::Settings(settings), DEADLINE);
        }
        for device in 0..self.devices.len() {
            // While something waits, whoever comes by itself finds out that its class does not hold. Most find out so or so.
            if self.dice.permille(500) {
                let (number, wait) = (self.number(), self.dice.below(30_000));
                self.draw_push(number, device, CHAOS + 60_000 + wait, When::Storm);
            }
            self.after(0, Happening::Start(device));
        }
        let pushes = self.dice.between(20, 120);
        for _ in 0..pushes {
            let (number, time) = (self.number(), self.dice.between(500, CHAOS));
            self.draw_publication(number, time);
        }
        if self.dice.permille(500) {
            let (device, wait) = (self.dice.below(self.devices.len() as u64), self.dice.below(60_000));
            self.at(CHAOS + 120_000 + wait, Happening::Move(device as usize));
        }
        if self.dice.permille(150) {
            self.burst();
        }
        for _ in 0..4 {
            self.draw_calm_pair();
        }
        self.draw_bindings_forgotten();
        if self.dice.permille(200) {
            let (device, time) = (self.dice.below(self.devices.len() as u64), self.dice.below(CHAOS));
            self.at(time, Happening::Unregister(device as usize));
        }
        self.after(300, Happening::Fault);
        self.at(CHAOS, Happening::Heal);
        self.at(CALM - 1, Happening::Calm);
    }

    /// More than a session's window at once.
    fn burst(&mut self) {
        let (device, time) = (self.dice.below(self.devices.len() as u64), self.dice.between(1000, CHAOS));
        for _ in 0..self.dice.between(60, 150) {
            let (number, spread) = (self.number(), self.dice.below(100));
            self.draw_publication(number, time + spread);
            if let Some(publication) = self.history.publications.get_mut(&number) {
                publication.device = device as usize;
            }
        }
    }

    /// Two pushes for one terminal, the second of which may come while it leaves with the first.
    fn draw_calm_pair(&mut self) {
        let device = self.dice.below(self.devices.len() as u64) as usize;
        let mut time = CALM + self.dice.below(30_000);
        for _ in 0..2 {
            let number = self.number();
            self.draw_push(number, device, time, When::Calm);
            time += self.dice.below(200);
        }
    }

    fn draw_push(&mut self, number: u64, device: usize, time: u64, when: When) {
        let publication = Publication { device, urgency: Urgency::Normal, when, ..Publication::default() };
        self.history.publications.insert(number, publication);
        self.at(time, Happening::Publish(number));
    }

    /// Pushes for everybody when bindings have just been forgotten, and when an anchor has just died.
    fn draw_bindings_forgotten(&mut self) {
        for (fault, time, when) in [
            (Happening::ForgetAll, CALM + 40_000, When::Forgotten),
            (Happening::KillAnchor, CALM + 60_000, When::Killed),
        ] {
            self.at(time, fault);
            for device in 0..self.devices.len() {
                let (number, wait) = (self.number(), self.dice.below(500));
                self.draw_push(number, device, time + wait, when);
            }
        }
    }

    pub fn forget_all(&mut self) {
        for nat in self.networks.nats() {
            self.forget_bindings(nat);
        }
    }

    pub fn kill_anchor(&mut self) {
        let anchors: Vec<u64> = (1..=NODES)
            .filter(|node| {
                let at = SocketAddr::new(notifier::address(*node), notifier::ANCHOR);
                self.devices.iter().any(|known| known.listener.anchor() == Some(at))
            })
            .collect();
        if !anchors.is_empty() {
            let node = self.dice.pick(&anchors);
            let held =
                self.connections.values().filter(|known| known.node == node && known.terminal.is_some());
            self.history.in_session = held.map(|known| known.device).collect();
            self.kill_for(node, 80_000);
        }
    }

    fn draw_publication(&mut self, number: u64, time: u64) {
        let device = self.dice.below(self.devices.len() as u64) as usize;
        let ttl = match self.dice.below(10) {
            0 => Some(0),
            1 => Some(self.dice.between(1, 2000)),
            2 => Some(self.dice.between(1, 60_000)),
            _ => None,
        };
        let urgency = self.dice.pick(&[Urgency::Normal, Urgency::Normal, Urgency::High, Urgency::Low]);
        let topic = self.dice.permille(250).then(|| format!("topic{}", self.dice.below(2)));
        let keyed = self.dice.permille(400);
        let publication = Publication { device, ttl, urgency, topic, keyed, ..Publication::default() };
        self.history.publications.insert(number, publication);
        self.at(time, Happening::Publish(number));
        if self.dice.permille(100) {
            let wait = self.dice.below(3000);
            self.at(time + wait, Happening::Cancel(number));
        }
    }

    pub fn publish(&mut self, number: u64) {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.dice.next().to_be_bytes());
        let home = self.dice.between(1, NODES + 1);
        let Some(publication) = self.history.publications.get_mut(&number) else { return };
        publication.tries += 1;
        let terminal = self.devices[publication.device].key.terminal();
        let key = publication.keyed.then(|| list::Idempotency {
            key: list::key::idempotency_hash(TenantId(1), &terminal, &number.to_string()),
            body_hash: [1; 16],
        });
        let enqueue = list::Enqueue {
            id: CommandId(id),
            not_after: GroupTime(0),
            retry: false,
            terminal,
            tenant: TenantId(1),
            ttl: publication.ttl,
            urgency: publication.urgency,
            channel: Channel(number as u32 % 2),
            topic: publication.topic.clone(),
            idempotency: key,
            headers: Vec::new(),
            body: Bytes::from(format!("{number:0>width$}", width = 10 + number as usize % 90)),
        };
        if !self.nodes[&home].alive {
            return self.published(number, None);
        }
        self.propose(home, Origin::Publish(number), Command::Enqueue(Box::new(enqueue)), DEADLINE);
    }

    /// What a publisher hears. One that does not know publishes again under its key, if it has one.
    pub fn published(&mut self, number: u64, reply: Option<Reply>) {
        let wait = self.dice.between(50, 2000);
        let Some(publication) = self.history.publications.get_mut(&number) else { return };
        match reply {
            Some(Reply::Enqueued { message, .. }) => publication.accepted = Some(message),
            Some(Reply::Refused(refusal)) => publication.refused = Some(refusal),
            Some(other) => panic!("push {number} was answered {other:?}"),
            None if publication.keyed && publication.tries < 5 => {
                self.after(wait, Happening::Publish(number));
            }
            None => {}
        }
    }

    pub fn cancel(&mut self, number: u64) {
        let home = self.dice.between(1, NODES + 1);
        let Some(publication) = self.history.publications.get_mut(&number) else { return };
        let Some(message) = publication.accepted else { return };
        publication.cancelled = true;
        let cancel = list::Cancel { message, tenant: TenantId(1) };
        self.propose(home, Origin::Nobody, Command::Cancel(cancel), DEADLINE);
    }

    pub fn unregister(&mut self, device: usize) {
        let terminal = self.devices[device].key.terminal();
        self.say(|| format!("t{device} is unregistered"));
        self.history.unregistered.insert(device);
        self.history.hard_of_hearing.insert(device);
        self.at(CHAOS + 1, Happening::CheckIn { device, since: None });
        let unregister = list::Unregister { terminal, tenant: TenantId(1) };
        self.propose(1, Origin::Nobody, Command::Unregister(unregister), DEADLINE);
    }

    /// One fault, and the time of the next.
    pub fn fault(&mut self) {
        if !self.chaos {
            return;
        }
        self.sweep();
        let node = self.dice.between(1, NODES + 1);
        let device = self.dice.below(self.devices.len() as u64) as usize;
        if self.storm.faults.is_empty() {
            return;
        }
        match self.dice.pick(&self.storm.faults) {
            Fault::Leader => self.depose(),
            Fault::Node => self.kill(node),
            Fault::Pause => {
                let wait = self.dice.pick(&[50, 500, 2000, 4500, 9000]);
                self.pause(node, wait);
            }
            Fault::Terminal => self.kill_terminal(device),
            Fault::Connection => {
                let open: Vec<u64> = self.connections.keys().copied().collect();
                if !open.is_empty() {
                    let number = self.dice.pick(&open);
                    self.break_connection(number);
                }
            }
            Fault::Network => self.weather(),
        }
        let wait = self.dice.between(50, 2500);
        self.after(wait, Happening::Fault);
    }

    /// A connection breaks; each end learns of it in its own time, the node's perhaps very late.
    pub fn break_connection(&mut self, number: u64) {
        self.say(|| format!("connection {number} breaks"));
        let at_terminal = self.dice.pick(&[1, 10, 2000]);
        let at_node = self.dice.pick(&[1, 10, 2000, 50_000]);
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.broken = true;
        }
        self.after(at_terminal, Happening::LostAtTerminal(number));
        self.after(at_node, Happening::LostAtNode(number));
    }

    /// Faults are over: what is down or paused comes back.
    pub fn heal(&mut self) {
        self.say(|| "heals".to_owned());
        self.chaos = false;
        self.mend_all();
        for device in 0..self.devices.len() {
            if !self.is_woken(device) {
                self.history.hard_of_hearing.insert(device);
            }
        }
        for node in 1..=NODES {
            self.resume(node);
            self.after(1, Happening::Restart(node));
        }
    }

    /// Long after the faults nothing waits for a terminal that every push can wake.
    pub fn calm(&mut self) {
        for (number, device) in self.devices.iter().enumerate() {
            let row = view::terminal(&self.table, &device.key.terminal()).expect("memory cannot fail");
            let waits = row.is_some_and(|row| row.pending > 0);
            let wakes = !self.history.hard_of_hearing.contains(&number);
            assert!(!(waits && wakes), "something waits for t{number} long after the faults");
        }
    }

    /// Is nothing left to do but to wait?
    pub fn rests(&mut self) -> bool {
        self.leaders_rest() && self.proposals.is_empty() && self.terminals_rest()
    }
}
