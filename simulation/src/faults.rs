//! What goes wrong, by seed: crashes of one or all, cuts, disks that fail, a clock that jumps by a day, leaders and
//! snapshots at bad moments. While it does, publishers publish.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use openraft::async_runtime::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use reveille_cluster::wal::disk::Fault;
use reveille_protocol::id::*;

use crate::node::{End, GROUPS};
use crate::world::{World, lock, now, pause};

const DAY: i64 = 24 * 3600 * 1000;

/// Something to be done to a node's process.
#[derive(Debug, Clone, Copy)]
pub enum Order {
    Crash(NodeId),
    Start(NodeId),
}

impl World {
    fn order(&self, wait: u64, order: Order) {
        let key = (now() + wait * 1000, self.number());
        lock(&self.orders).insert(key, order);
    }

    pub fn order_crash(&self, node: NodeId) {
        self.order(0, Order::Crash(node));
    }

    pub fn order_start(&self, node: NodeId, wait: u64) {
        self.order(wait, Order::Start(node));
    }

    /// So many milliseconds of it.
    pub async fn storm(self: &Arc<World>, millis: u64) {
        let until = now() + millis * 1000;
        let devices = lock(&self.devices).len() as u64;
        let mut ticks = 0;
        while now() < until {
            pause(self.between(10, 60)).await;
            self.obey().await;
            ticks += 1;
            if ticks % 8 == 0 {
                self.check_time();
            }
            if self.permille(400) {
                let ttl = self.permille(150).then(|| self.between(1, 5) * 1000);
                self.publish(self.below(devices) as usize, ttl);
            }
            if self.permille(45) {
                self.fault().await;
            }
            if self.permille(40) {
                self.weather();
            }
            if self.permille(10) {
                self.kill_terminal(self.below(devices) as usize);
            }
        }
    }

    /// Carries out what is due to processes, and clears away those that said they must end.
    pub async fn obey(self: &Arc<World>) {
        for node in self.all_nodes() {
            let Some(why) = node.take_failure() else { continue };
            let end = self.pick(&[End::Kill, End::Power]);
            self.stop(node.id, end).await;
            if why.contains("was removed") || why.contains("not a member") {
                node.set_gone("removed");
                self.saw("nodes that heard of their removal");
            } else {
                self.saw("nodes stopped by their disk");
                self.order_start(node.id, self.between(100, 3000));
            }
        }
        loop {
            let due = {
                let mut orders = lock(&self.orders);
                orders.first_entry().filter(|first| first.key().0 <= now()).map(|first| first.remove())
            };
            match due {
                None => return,
                Some(Order::Crash(node)) => self.crash(node).await,
                Some(Order::Start(node)) => {
                    let known = self.node(node);
                    if known.member().is_none() && known.gone().is_none() {
                        self.start(node).await;
                    }
                }
            }
        }
    }

    async fn crash(self: &Arc<World>, node: NodeId) {
        if self.node(node).member().is_some() {
            let end = self.pick(&[End::Kill, End::Power, End::Power]);
            self.stop(node, end).await;
            self.saw("crashes");
            let away = if self.permille(200) { self.between(4000, 7000) } else { self.between(50, 2000) };
            self.order_start(node, away);
        }
    }

    async fn fault(self: &Arc<World>) {
        let nodes: Vec<NodeId> = self.members().iter().map(|member| member.node()).collect();
        if nodes.is_empty() {
            return;
        }
        let leader = self.leader(GroupId(self.below(u64::from(GROUPS) + 1) as u16));
        let leader = leader.filter(|leader| nodes.contains(leader) && self.permille(400));
        let node = leader.unwrap_or_else(|| self.pick(&nodes));
        match self.below(20) {
            0..=4 => self.crash(node).await,
            5 => {
                self.say("the power goes everywhere".to_owned());
                self.saw("power cuts of all");
                for node in nodes {
                    self.stop(node, End::Power).await;
                    self.order_start(node, self.between(50, 1500));
                }
            }
            6..=10 => self.cut_some(node, &nodes),
            11..=13 => {
                let after = self.below(6) as usize;
                let write = Fault::Write { after, keep: self.below(80) as usize };
                let fault = self.pick(&[write, Fault::Sync { after }, Fault::Sync { after }]);
                self.say(format!("n{node} has a disk that fails: {fault:?}"));
                self.node(node).break_disk(fault);
            }
            14..=15 => self.jump(node),
            16..=17 => {
                self.say(format!("n{node} cuts its logs"));
                let member = self.node(node).member();
                let _detached = SimRuntime::spawn(async move {
                    if let Some(member) = member {
                        // It may crash in the middle.
                        let _ = member.snapshot().await;
                    }
                });
            }
            _ => self.move_leaders(node),
        }
    }

    fn cut_some(self: &Arc<World>, node: NodeId, nodes: &[NodeId]) {
        let other = self.pick(nodes);
        let (out, back) = self.pick(&[(true, true), (true, true), (true, false), (false, true)]);
        let whole = self.permille(600);
        self.say(format!("n{node} is cut off: all {whole}, out {out}, in {back}"));
        self.saw("cuts");
        for peer in self.addresses().into_keys() {
            if peer == node || (!whole && peer != other) {
                continue;
            }
            if out {
                self.cut(node, peer);
            }
            if back {
                self.cut(peer, node);
            }
        }
        if whole && self.permille(500) {
            self.cut_from_terminals(node);
        }
        let wait = if self.permille(300) { self.between(3000, 6000) } else { self.between(100, 2000) };
        self.after(wait, |world| {
            world.say("the network is whole".to_owned());
            world.mend();
        });
    }

    /// One node's wall clock jumps, always the same one's, and an election may come before its peers hear of it.
    fn jump(self: &Arc<World>, node: NodeId) {
        let node = *lock(&self.wrong).get_or_insert(node);
        let ahead = self.pick(&[DAY, DAY, -DAY, 0]);
        self.say(format!("n{node}'s clock is {ahead} ms ahead"));
        self.saw("clock jumps");
        self.node(node).ahead.store(ahead, Ordering::Relaxed);
        if self.permille(600)
            && let Some(leader) = self.leader(GroupId(1))
        {
            self.move_leaders(leader);
        }
    }

    fn move_leaders(self: &Arc<World>, from: NodeId) {
        let Some(member) = self.any_member() else { return };
        self.say(format!("n{from} shall lead nothing"));
        let _detached = SimRuntime::spawn(async move { member.move_leaders(from).await });
    }
}
