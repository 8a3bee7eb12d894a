//! After the faults: everything is there again, and must come to what was asked for by itself.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use reveille_cluster::query::{Answer, Query};
use reveille_cluster::tables::Tables;
use reveille_protocol::directory::{Change, Directory, Standing};
use reveille_protocol::id::*;
use reveille_protocol::service_list::row::Linger;
use reveille_protocol::service_list::view;
use reveille_protocol::wire::session::Class;

use crate::node::{End, GROUPS};
use crate::operator::is_settled;
use crate::terminal::Doing;
use crate::world::{PERIOD, World, lock, now, pause};

const META: GroupId = GroupId(0);
/// Milliseconds of virtual time within which the cluster must be as it should.
const SETTLED: u64 = 45_000;
/// A terminal that listens has a push within this: a notification, a connection, an attach.
const PROMPT: u64 = 1500;
/// The dial of where it was is given up after 2 s, or the keepalive comes first.
const BINDING: u64 = 2500;
/// An anchor is given up within two periods and 11 s after it died.
const ANCHOR_LOST: u64 = 13_500;

impl World {
    /// Waits until it is so.
    async fn until<F: Future<Output = Result<(), String>>>(self: &Arc<World>, mut so: impl FnMut() -> F) {
        let until = now() + SETTLED * 1000;
        loop {
            self.obey().await;
            if let Some(member) = self.any_member() {
                self.mind_gone(&member.directory()).await;
            }
            match so().await {
                Ok(()) => return,
                Err(why) if now() > until => {
                    self.describe();
                    panic!("after {SETTLED} ms without faults: {why}");
                }
                Err(_) => pause(100).await,
            }
        }
    }

    /// How every node stands, for whoever looks for the cause.
    fn describe(&self) {
        for node in self.all_nodes() {
            let Some(member) = node.member() else { continue };
            self.say(format!("n{} {:?}: {:?}", node.id, node.gone(), member.directory().roster));
            for group in member.status().groups {
                self.say(format!("  placed {:?} {group:?}", member.directory().replicas_of(group.group)));
            }
        }
    }

    /// Every running node knows a leader of every group.
    pub async fn settle(self: &Arc<World>) {
        self.until(|| async {
            for member in self.members() {
                let leaderless = member.leaderless();
                if !leaderless.is_empty() || member.incarnation() == Incarnation(0) {
                    return Err(format!("n{} has no leaders of {leaderless:?}", member.node()));
                }
            }
            if self.members().is_empty() { Err("no node runs".to_owned()) } else { Ok(()) }
        })
        .await;
    }

    /// The operator ends what it is at. For that a node may have to be started that ended after the faults.
    pub async fn operator_ends(self: &Arc<World>) {
        let works = || if self.operates() { Err("the operator is at work".to_owned()) } else { Ok(()) };
        self.until(|| std::future::ready(works())).await;
    }

    /// The faults end. Machines that are lost stay so; nodes that were removed come back and ask for their place.
    pub async fn heal(self: &Arc<World>) {
        self.set_chaos(false);
        self.say("the faults are over".to_owned());
        self.mend();
        lock(&self.ledger).cut.clear();
        self.obey().await;
        for node in self.all_nodes() {
            node.disk.set_fault(None);
            match node.gone() {
                None => self.order_start(node.id, 0),
                Some("removed") if node.member().is_none() => {
                    self.saw("removed nodes that came back");
                    self.start(node.id).await;
                }
                Some(_) => {}
            }
        }
        self.obey().await;
        self.notice_broken();
        for device in 0..self.terminals().len() {
            self.start_terminal(device);
        }
    }

    /// Groups are where the directory wants them; who was to go has gone.
    pub async fn arrive(self: &Arc<World>) {
        self.until(|| async {
            let member = self.any_member().ok_or("no node runs")?;
            let directory = member.directory();
            self.mind_invited(&directory).await;
            if !is_settled(&directory) {
                return Err(format!("nodes come or go: {:?}", directory.roster));
            }
            for group in (0..=GROUPS).map(GroupId) {
                let shape = member.query(group, Query::Shape, Duration::from_secs(1)).await;
                let Ok(Answer::Shape(shape)) = shape else { return Err(format!("group {group}: {shape:?}")) };
                let wanted: BTreeSet<NodeId> = directory.replicas_of(group).into_iter().collect();
                let rest = directory.roster.records.keys().copied().filter(|node| !wanted.contains(node));
                let rest: BTreeSet<NodeId> = rest.filter(|_| group == META).collect();
                if shape.voters != [wanted] || shape.learners != rest {
                    return Err(format!("group {group}: {shape:?} in {:?}", directory.roster));
                }
            }
            Ok(())
        })
        .await;
        self.settle().await;
    }

    /// An invitation whose request came late, so that nobody made its node, is taken back.
    async fn mind_invited(self: &Arc<World>, directory: &Directory) {
        for (node, record) in &directory.roster.records {
            let asked_for = lock(&self.nodes).contains_key(node);
            if matches!(record.standing, Standing::Invited { .. }) && !asked_for {
                let _ = self.change(Change::Remove { node: *node, fewer: false }).await;
            }
        }
    }

    /// Who does not belong any more counts no more, whether or not it knows.
    async fn mind_gone(self: &Arc<World>, directory: &Directory) {
        for node in self.all_nodes() {
            let was =
                node.id <= directory.roster.last_node && !directory.roster.records.contains_key(&node.id);
            if was && node.gone().is_none() && node.member().is_some() {
                self.say(format!("n{} does not know that it was removed", node.id));
                node.set_gone("removed");
                if self.permille(300) {
                    self.stop(node.id, End::Power).await;
                    self.start(node.id).await;
                }
            }
        }
    }

    /// All that waits is delivered, or has expired.
    pub async fn deliver(self: &Arc<World>) {
        let terminals = self.terminals();
        for device in 0..terminals.len() {
            // Who keeps a binding must find out by itself what became of it.
            if lock(&self.devices)[device].reach.class() != Class::Pinned || !self.is_woken(device) {
                self.check_in(device);
            }
        }
        self.until(|| async {
            self.check_time();
            let member = self.any_member().ok_or("no node runs")?;
            let directory = member.directory();
            for (device, terminal) in terminals.iter().enumerate() {
                let group = member.group_of(terminal);
                let replica = self.node(directory.replicas_of(group)[0]);
                let row =
                    view::terminal(&replica.tables(group).read(), terminal).expect("memory cannot fail");
                let row = row.ok_or_else(|| format!("t{device} is not registered"))?;
                if row.pending > 0 {
                    // Nobody can wake it: what came as it left waits for the next time that it comes by itself.
                    if !self.is_woken(device) {
                        self.check_in(device);
                    }
                    return Err(format!("t{device} is {:?}: {row:?}", lock(&self.devices)[device].doing));
                }
            }
            Ok(())
        })
        .await;
    }

    /// Terminals whose anchor is gone find another one by themselves.
    pub async fn find_anchors(self: &Arc<World>) {
        self.until(|| async {
            let running: BTreeSet<NodeId> = self.members().iter().map(|member| member.node()).collect();
            for device in 0..self.terminals().len() {
                let gone = self.anchor_of(device).filter(|node| !running.contains(node));
                if let Some(node) = gone.filter(|_| self.is_woken(device)) {
                    return Err(format!("t{device} keeps its binding with n{node}, which is gone"));
                }
            }
            Ok(())
        })
        .await;
        // One that was started again knows its terminals after a period.
        pause(u64::from(PERIOD) * 1200).await;
    }

    /// What the faults left behind is not felt: a push wakes its terminal at once, one that waits too long expires.
    pub async fn live_on(self: &Arc<World>) {
        let (mut prompt, mut later) = (Vec::new(), Vec::new());
        let mut short = None;
        for device in 0..self.terminals().len() {
            let (listens, away) = {
                let known = &lock(&self.devices)[device];
                let listens = known.doing == Doing::Listening;
                (listens, known.wants() == Linger::AtOnce && listens)
            };
            if self.is_woken(device) {
                // What comes while a session ends is dialled where the terminal was before it, of which its NAT may know nothing
                // any more: in a session no keepalive goes.
                let pushes = if listens { &mut prompt } else { &mut later };
                pushes.push(self.publish(device, None).expect("nodes run"));
            } else if away && short.is_none() {
                short = self.publish(device, Some(1000));
            }
        }
        for _ in 0..(BINDING + PROMPT).div_ceil(150) {
            pause(150).await;
            self.check_time();
        }
        self.check_received(&prompt, PROMPT);
        self.check_received(&later, BINDING + PROMPT);
        if let Some(number) = short {
            let lived = self.lived(number);
            let right = lived.is_some_and(|lived| (1000..2500).contains(&lived));
            assert!(right, "push {number} was to live for a second: {lived:?}");
            self.saw("expired in time");
        }
    }

    fn check_received(&self, pushes: &[u64], bound: u64) {
        let history = lock(&self.history);
        for number in pushes {
            let (received, publication) = (history.received_at(*number), history.publication(*number));
            let late = received.is_none_or(|at| at > publication.at() + bound);
            assert!(!late, "push {number} after the faults: {publication:?}, received {received:?}");
        }
    }

    /// A push for each terminal that one wakes; their numbers.
    fn push_to_all(self: &Arc<World>) -> Vec<u64> {
        let woken = (0..self.terminals().len()).filter(|device| self.is_woken(*device));
        woken.map(|device| self.publish(device, None).expect("nodes run")).collect()
    }

    /// Routers are started again: at most a period later pinned terminals have what came meanwhile.
    pub async fn lose_bindings(self: &Arc<World>) {
        let nats = lock(&self.networks).nats();
        nats.for_each(|nat| self.forget_bindings(nat));
        let pushes = self.push_to_all();
        pause(BINDING + PROMPT).await;
        self.check_received(&pushes, BINDING + PROMPT);
    }

    /// An anchor dies for a while: its terminals find another one, and have what came meanwhile.
    pub async fn lose_an_anchor(self: &Arc<World>) {
        let anchors = self.anchors();
        if anchors.is_empty() || self.permille(500) {
            return;
        }
        let node = self.pick(&anchors);
        self.say(format!("n{node} dies, which is an anchor"));
        self.saw("anchors that died in the end");
        self.stop(node, End::Kill).await;
        let pushes = self.push_to_all();
        pause(ANCHOR_LOST + PROMPT).await;
        self.check_received(&pushes, ANCHOR_LOST + PROMPT);
        self.start(node).await;
        self.settle().await;
    }

    /// Replicas have the same contents.
    pub async fn agree(self: &Arc<World>) {
        self.until(|| async {
            let directory = self.any_member().ok_or("no node runs")?.directory();
            for group in (0..=GROUPS).map(GroupId) {
                let all: Vec<NodeId> = match group {
                    META => directory.roster.records.keys().copied().collect(),
                    _ => directory.replicas_of(group),
                };
                let contents: Vec<_> =
                    all.iter().map(|node| self.node(*node).tables(group).contents()).collect();
                if let Some(at) = contents.windows(2).position(|pair| pair[0] != pair[1]) {
                    let (one, other) = (&contents[at].0, &contents[at + 1].0);
                    let here = one.iter().find(|(key, value)| other.get(*key) != Some(*value));
                    let there = other.iter().find(|(key, value)| one.get(*key) != Some(*value));
                    let (left, right) = (all[at], all[at + 1]);
                    return Err(format!("group {group}: n{left} has {here:02x?}, n{right} {there:02x?}"));
                }
            }
            Ok(())
        })
        .await;
    }

    /// Who was removed leads nothing that anyone follows, and nobody links with it.
    pub fn check_removed(&self) {
        let removed: Vec<NodeId> =
            self.all_nodes().iter().filter(|node| node.gone().is_some()).map(|node| node.id).collect();
        for member in self.members() {
            for group in (0..=GROUPS).map(GroupId) {
                let leader = member.leader(group);
                let wrong = leader.is_some_and(|leader| removed.contains(&leader));
                let copies = member.directory().replicas_of(group).contains(&member.node());
                assert!(!(wrong && copies), "n{} follows {leader:?}, which is gone", member.node());
            }
            for node in &removed {
                assert!(!self.linked(member.node(), *node), "n{} talks to n{node}", member.node());
            }
        }
    }

    /// Everything ends.
    pub async fn close(self: &Arc<World>) {
        for node in self.all_nodes() {
            self.stop(node.id, End::Kill).await;
        }
        self.end();
        // What was spawned sees that it is alone.
        SimRuntime::sleep(Duration::from_secs(10)).await;
        self.end();
        lock(&self.nodes).clear();
    }
}
