//! What ails nodes, links and datagrams while somebody wants it so: faults that are ordered one by one, where `faults`
//! draws them. Nothing here ends by itself.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::BoxFuture;
use openraft::async_runtime::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use reveille_protocol::id::NodeId;
use reveille_protocol::wire::session::Cause;

use crate::nat::Kind;
use crate::network::SILENCE;
use crate::node::End;
use crate::notifier::{self, Datagram, Packet};
use crate::process::Process;
use crate::session::Connection;
use crate::terminal::Doing;
use crate::world::{Happening, World, lock, now};

/// A lost packet is sent again within so many microseconds.
const AGAIN: (u64, u64) = (20_000, 250_000);
/// One that comes out of order holds the others up for at most so many.
const OUT_OF_ORDER: u64 = 20_000;
/// Bytes in a second of a link that nothing ails.
const BANDWIDTH: f64 = 125e6;
/// Microseconds of the period in which a process that is short of a processor has its share of it.
const QUOTA: u64 = 100_000;
/// A node that stops has moved its groups within this, or goes all the same.
const LEAVING: Duration = Duration::from_secs(3);

/// What ails a link in one direction. A stream repeats what is lost and sorts what comes late, so a frame is never lost,
/// repeated or changed by these: it is late.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ill {
    /// Later by so many microseconds.
    Delay(u64),
    /// This share is lost, or damaged and thrown away, and comes again.
    Loss(f64),
    /// This share comes late.
    Reorder(f64),
    /// Only this share of what it carries otherwise.
    Bandwidth(f64),
}

/// What ails whom, by the number of the fault.
#[derive(Debug, Default)]
pub struct Ills {
    links: Vec<(u64, NodeId, NodeId, Ill)>,
    /// This share of the notifications for these terminals is lost.
    notifications: Vec<(u64, BTreeSet<usize>, f64)>,
    /// Notifications for these come again after so many milliseconds.
    replayed: Vec<(u64, BTreeSet<usize>, u64)>,
}

impl World {
    /// From now on this ails the way from one node to another, until it is cured.
    pub fn ail_link(&self, fault: u64, from: NodeId, to: NodeId, ill: Ill) {
        lock(&self.ills).links.push((fault, from, to, ill));
    }

    pub fn lose_notifications(&self, fault: u64, devices: BTreeSet<usize>, share: f64) {
        lock(&self.ills).notifications.push((fault, devices, share));
    }

    pub fn replay_notifications(&self, fault: u64, devices: BTreeSet<usize>, after: u64) {
        lock(&self.ills).replayed.push((fault, devices, after));
    }

    /// What a fault did to links and notifications is over.
    pub fn cure(&self, fault: u64) {
        let mut ills = lock(&self.ills);
        ills.links.retain(|(of, ..)| *of != fault);
        ills.notifications.retain(|(of, ..)| *of != fault);
        ills.replayed.retain(|(of, ..)| *of != fault);
    }

    fn share(&self, share: f64) -> bool {
        self.below(1_000_000) < (share * 1e6) as u64
    }

    /// How much later a frame is for what ails its link, in microseconds: on its way, and what follows it, too.
    pub(crate) fn late(&self, from: NodeId, to: NodeId, bytes: usize) -> (u64, u64) {
        let ills: Vec<Ill> = {
            let ills = lock(&self.ills);
            let of = ills.links.iter().filter(|(_, f, t, _)| (*f, *t) == (from, to));
            of.map(|(.., ill)| *ill).collect()
        };
        let (mut late, mut busy) = (0, 0);
        for ill in ills {
            match ill {
                Ill::Delay(by) => late += by,
                // The third time it is through: a stream does not give up sooner.
                Ill::Loss(share) => {
                    late += (0..3)
                        .take_while(|_| self.share(share))
                        .map(|_| self.between(AGAIN.0, AGAIN.1))
                        .sum::<u64>();
                }
                Ill::Reorder(share) => {
                    if self.share(share) {
                        late += self.below(OUT_OF_ORDER);
                    }
                }
                Ill::Bandwidth(share) => {
                    busy += (bytes as f64 * 1e6 / (BANDWIDTH * share.max(1e-6))) as u64;
                }
            }
        }
        (late, busy)
    }

    /// Terminals that are seen at an address.
    fn devices_at(&self, packet: &Packet) -> Vec<usize> {
        let networks = lock(&self.networks);
        let devices = lock(&self.devices);
        let there = devices.iter().enumerate();
        let there = there.filter(|(_, known)| networks.address(known.network) == packet.to.ip());
        there.map(|(device, _)| device).collect()
    }

    /// A datagram is about to fly: it may be lost, or come again.
    pub(crate) fn notification_ails(self: &Arc<World>, packet: &Packet) -> bool {
        if !matches!(packet.what, Datagram::Notify { .. }) {
            return false;
        }
        let (shares, again): (Vec<f64>, Vec<u64>) = {
            let devices = self.devices_at(packet);
            let ills = lock(&self.ills);
            let hit = |whom: &BTreeSet<usize>| devices.iter().any(|device| whom.contains(device));
            let shares = ills.notifications.iter().filter(|(_, whom, _)| hit(whom));
            let again = ills.replayed.iter().filter(|(_, whom, _)| hit(whom));
            (shares.map(|(.., share)| *share).collect(), again.map(|(.., after)| *after).collect())
        };
        for after in again {
            let packet = packet.clone();
            self.after(after, move |world| world.datagram_arrives(&packet));
        }
        let mut lost = false;
        for share in shares {
            lost |= self.share(share);
        }
        lost
    }

    /// An attacker sends nodes what terminals once sent, from addresses of its own.
    pub fn forge_keepalive(self: &Arc<World>) {
        let forged = lock(&self.ledger).forge(&mut lock(&self.dice));
        if let Some(packet) = forged {
            self.saw("keepalives from elsewhere");
            self.after(1, move |world| world.datagram_arrives(&packet));
        }
    }

    /// An attacker sends a terminal what looks like a notification and is none.
    pub fn forge_notification(self: &Arc<World>, device: usize) {
        let (network, port) = {
            let known = &lock(&self.devices)[device];
            (known.network, known.port)
        };
        let to = std::net::SocketAddr::new(lock(&self.networks).address(network), port);
        let from = std::net::SocketAddr::new(notifier::address(1), notifier::ANCHOR);
        let mut cid = vec![0; 20];
        cid.iter_mut().for_each(|byte| *byte = self.below(256) as u8);
        let what = Datagram::Notify { cid, bytes: vec![0; 64] };
        let packet = Packet { from, to, what };
        self.after(1, move |world| world.datagram_arrives(&packet));
    }

    pub fn process(&self, node: NodeId) -> Option<Arc<Process>> {
        lock(&self.nodes).get(&node)?.process()
    }

    pub fn is_paused(&self, node: NodeId) -> bool {
        self.process(node).is_some_and(|process| process.is_paused())
    }

    /// For a node that stands still: it finds this when it runs again, in the order in which it came.
    pub(crate) fn later(&self, node: NodeId, happening: impl FnOnce(&Arc<World>) + Send + 'static) {
        lock(&self.backlog).entry(node).or_default().push(Box::new(happening));
    }

    /// A node stands still. What its peers sent waits in its sockets; after a while they take its links for dead.
    pub fn pause_node(self: &Arc<World>, node: NodeId) {
        let Some(process) = self.process(node) else { return };
        self.say(format!("n{node} stands still"));
        process.pause();
        let life = self.life(node);
        self.after(SILENCE, move |world| {
            if world.is_life(node, life) && world.is_paused(node) {
                world.break_links_of(node);
            }
        });
    }

    /// It goes on, and finds everything that came meanwhile.
    pub fn resume_node(self: &Arc<World>, node: NodeId) {
        if self.is_paused(node) {
            self.say(format!("n{node} goes on"));
            self.go_on(node);
        }
    }

    fn go_on(self: &Arc<World>, node: NodeId) {
        let Some(process) = self.process(node).filter(|process| process.is_paused()) else { return };
        process.resume();
        let missed: Vec<Happening> = lock(&self.backlog).remove(&node).unwrap_or_default();
        missed.into_iter().for_each(|happening| happening(self));
    }

    /// It was told to stand still, and is not only short of a processor.
    pub fn stands_still(&self, node: NodeId) -> bool {
        self.is_paused(node) && self.node(node).quota.load(Ordering::Relaxed) == 0
    }

    /// From now on a node's process runs only for this share of each tenth of a second, as under a quota of its system.
    pub fn throttle(self: &Arc<World>, node: NodeId, share: f64) {
        let runs = ((share * QUOTA as f64) as u64).clamp(1, QUOTA);
        if self.node(node).quota.swap(runs, Ordering::Relaxed) == 0 {
            self.quota_used(node);
        }
    }

    /// It has a processor again.
    pub fn let_run(&self, node: NodeId) {
        self.node(node).quota.store(0, Ordering::Relaxed);
    }

    fn quota_used(self: &Arc<World>, node: NodeId) {
        let runs = self.node(node).quota.load(Ordering::Relaxed);
        if runs == 0 {
            return;
        }
        if let Some(process) = self.process(node) {
            process.pause();
        }
        self.at(now() + QUOTA - runs, move |world| {
            world.go_on(node);
            world.at(now() + runs, move |world| world.quota_used(node));
        });
    }

    /// From now on a terminal does not read what comes to it.
    pub fn stop_reading(&self, device: usize) {
        lock(&self.unread).entry(device).or_default();
    }

    /// It reads again, and finds all that came meanwhile.
    pub fn read_again(self: &Arc<World>, device: usize) {
        let unread = lock(&self.unread).remove(&device).unwrap_or_default();
        unread.into_iter().for_each(|happening| happening(self));
    }

    /// A node is told to stop: it says goodbye to its sessions, gives its groups away, and ends.
    pub fn stop_gently(self: &Arc<World>, node: NodeId) -> BoxFuture<'_, ()> {
        Box::pin(self.leave(node))
    }

    async fn leave(self: &Arc<World>, node: NodeId) {
        let running = self.node(node).member().zip(self.process(node));
        let Some((member, process)) = running else { return };
        self.say(format!("n{node} is told to stop"));
        let stopping = process.run(async {
            member.move_leaders(node).await;
            self.leave_sessions(node, &|_| true);
            SimRuntime::sleep(Duration::from_millis(200)).await;
            member.shutdown().await;
        });
        // One that cannot give them away ends all the same.
        let _ = SimRuntime::timeout(LEAVING, stopping).await;
        drop(member);
        self.stop(node, End::Kill).await;
    }

    /// A terminal connects anew: its sessions end, and its application knows that the network is another.
    pub fn reconnect(self: &Arc<World>, device: usize) {
        let open: Vec<u64> = {
            let connections = lock(&self.connections);
            let of = |known: &Connection| known.device == device && known.terminal.is_some();
            connections.iter().filter(|(_, known)| of(known)).map(|(number, _)| *number).collect()
        };
        for number in open {
            self.break_connection(number);
        }
        if lock(&self.devices)[device].doing == Doing::Listening {
            lock(&self.devices)[device].reach.forget();
            self.come(device, Cause::Moved);
        }
    }

    fn break_connection(self: &Arc<World>, number: u64) {
        if let Some(known) = lock(&self.connections).get_mut(&number) {
            known.broken = true;
        }
        self.after(1, move |world| world.lost_at_terminal(number));
        self.after(10, move |world| world.lost_at_node(number));
    }

    /// A terminal's NAT gives it another address; one without a NAT gets another by its network, and notices.
    pub fn rebind(self: &Arc<World>, device: usize) {
        let network = lock(&self.devices)[device].network;
        let kind = lock(&self.networks).of(network).kind;
        match kind {
            Kind::Nat => self.forget_bindings(network),
            Kind::Public | Kind::Blocked => self.reconnect(device),
        }
    }

    /// The application of a terminal confirms nothing from now on, or again and all that it has.
    pub fn withhold(self: &Arc<World>, device: usize, withholds: bool) {
        let owed = {
            let known = &mut lock(&self.devices)[device];
            known.withholds = withholds;
            if withholds { Vec::new() } else { std::mem::take(&mut known.owed) }
        };
        for (life, stream, seq) in owed {
            self.after(0, move |world| world.confirm(device, life, stream, seq));
        }
    }
}
