//! What each kind of fault is in the world, and how it is taken back.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use reveille_chaos::scenario::At;
use reveille_cluster::wal::disk::Fault as DiskFault;
use reveille_protocol::id::NodeId;
use reveille_simulation::fail_points::Armed;
use reveille_simulation::ills::Ill;
use reveille_simulation::node::{End, Tear};
use reveille_simulation::world::{lock, now};

use super::strike::{Striker, There};
use super::whom::Victims;

/// A node in a crash loop is killed again so long after it was started, in microseconds.
const STARTED: u64 = 2_000_000;
/// A clock that strobes jumps so often.
const STROBE: u64 = 200_000;
/// An attacker sends something so often.
const FORGED: u64 = 100_000;
/// Two devices with one identity come in turn, so often.
const TURN: u64 = 1_000_000;
/// A disk that fails does so at one of so many next writes.
const WRITES: u64 = 20;

impl There {
    fn kind(&self) -> &'static str {
        self.fault.kind.name()
    }

    /// Its victim is not to run before it is over.
    pub(super) fn keeps_down(&self, id: u64) -> bool {
        let kinds = ["kill", "stop", "power", "out-of-memory", "io-error", "disk-full"];
        matches!(&self.victims, Victims::Nodes(ids) if ids.contains(&id)) && kinds.contains(&self.kind())
    }

    fn share(&self) -> f64 {
        self.fault.share.map_or(1.0, |share| share.0)
    }

    fn by_ms(&self) -> u64 {
        self.fault.by.map_or(0, |by| by.0.as_millis() as u64)
    }
}

impl Striker {
    pub(super) async fn break_it(&mut self, there: &There) {
        match &there.victims {
            Victims::Nodes(ids) if there.kind() == "fail-point" => self.arm(there, ids),
            Victims::Nodes(ids) => {
                for id in ids.clone() {
                    self.break_node(there, NodeId(id)).await;
                }
            }
            Victims::Ways(ways) => {
                ways.iter().for_each(|(from, to)| self.break_way(there, NodeId(*from), NodeId(*to)))
            }
            Victims::Terminals(devices) => self.break_terminals(there, devices),
            Victims::Publishers => self.run.storm.store(true, Ordering::Relaxed),
            // Its operator has done it.
            Victims::Cluster => {}
        }
    }

    async fn break_node(&mut self, there: &There, id: NodeId) {
        let world = self.run.world.clone();
        let node = world.node(id);
        match there.kind() {
            "kill" | "out-of-memory" => world.stop(id, End::Kill).await,
            "power" => world.stop(id, End::Power).await,
            "stop" => world.stop_gently(id).await,
            "pause" => world.pause_node(id),
            "restart" | "crash-loop" => {
                world.stop(id, End::Kill).await;
                self.start(id.0).await;
            }
            "lose-unsynced" => *lock(&node.tear) = Some(Tear::Whole),
            "torn-write" => *lock(&node.tear) = Some(Tear::Part),
            "io-error" => {
                let after = world.below(WRITES) as usize;
                node.break_disk(DiskFault::Write { after, keep: world.below(80) as usize });
            }
            "sync-error" => node.break_disk(DiskFault::Sync { after: 0 }),
            "disk-full" => node.break_disk(DiskFault::Full),
            "slow-disk" => node.disk.set_slow(there.by_ms() * 1000),
            "cpu" => world.throttle(id, there.share()),
            "wipe" | "bit-flip" | "truncate" | "roll-back" => self.change_folder(there, id).await,
            "clock-step" => node.ahead.store(there.by_ms() as i64, Ordering::Relaxed),
            "move-leaders" => drop(world.have_leaders_moved(id)),
            "snapshot" => drop(world.have_logs_cut(id)),
            // What lasts and comes again and again does so from `again`.
            _ => {}
        }
    }

    /// What is to happen at a fail point does from now on, at any of these nodes.
    fn arm(&self, there: &There, ids: &[u64]) {
        let fault = &there.fault;
        // Both are there: a scenario without them is refused.
        let (Some(At(point)), Some(act)) = (fault.point, fault.action) else { return };
        self.run.world.arm(Armed {
            fault: there.id,
            nodes: ids.iter().copied().map(NodeId).collect(),
            point,
            action: act.action(Duration::from_millis(there.by_ms())),
            share: there.share(),
            left: fault.hits.unwrap_or(1),
            starting: fault.starting == Some(true),
        });
    }

    fn break_way(&self, there: &There, from: NodeId, to: NodeId) {
        let world = &self.run.world;
        let ill = match there.kind() {
            "cut" => {
                world.cut(from, to);
                return world.cut(to, from);
            }
            "cut-one-way" | "jam" => return world.cut(from, to),
            "reset" => return world.reset_link(from, to),
            "half-open" => return world.half_open(from, to),
            "delay" => Ill::Delay(there.by_ms() * 1000),
            "reorder" => Ill::Reorder(there.share()),
            "bandwidth" => Ill::Bandwidth(there.share()),
            // What is changed on its way is thrown away by the seal of the link, and sent again.
            _ => Ill::Loss(there.share()),
        };
        world.ail_link(there.id, from, to, ill);
    }

    fn break_terminals(&self, there: &There, devices: &[usize]) {
        let world = &self.run.world;
        let all: BTreeSet<usize> = devices.iter().copied().collect();
        match there.kind() {
            "notification-loss" => world.lose_notifications(there.id, all, there.share()),
            "notification-replay" => world.replay_notifications(there.id, all, there.by_ms()),
            "terminal-kill" => all.into_iter().for_each(|device| world.end_terminal(device)),
            "ack-withheld" => all.into_iter().for_each(|device| world.withhold(device, true)),
            "reconnect" => all.into_iter().for_each(|device| world.reconnect(device)),
            "twin" => all.into_iter().for_each(|device| self.begin_twin(there.id, device)),
            "slow-reader" => all.into_iter().for_each(|device| world.stop_reading(device)),
            "rebind" => all.into_iter().for_each(|device| world.rebind(device)),
            _ => {}
        }
    }

    /// Another device comes with a copy of a terminal's state.
    fn begin_twin(&self, fault: u64, device: usize) {
        let world = &self.run.world;
        // Behind a NAT that others are behind, too.
        let count = self.run.scenario.workload.terminals as usize;
        let twin = world.add_twin(device, count + fault as usize % 3);
        self.run.known().copies.insert(twin, (device, fault));
        world.start_terminal(twin);
    }

    fn twins(&self, there: &There) -> Vec<(usize, usize)> {
        let known = self.run.known();
        let of = known.copies.iter().filter(|(_, (_, fault))| *fault == there.id);
        of.map(|(twin, (device, _))| (*device, *twin)).collect()
    }

    /// What lasts and comes again and again.
    pub(super) async fn again(&mut self) {
        for at in 0..self.there.len() {
            let there = &self.there[at];
            let (kind, since, began) = (there.kind(), now() - there.last, there.began);
            let (share, by) = (there.share(), there.by_ms() as i64);
            let world = self.run.world.clone();
            match (kind, there.victims.clone()) {
                ("crash-loop", Victims::Nodes(ids)) if since >= STARTED => {
                    for id in ids {
                        world.stop(NodeId(id), End::Kill).await;
                        self.start(id).await;
                    }
                    self.run.cover("crash-loop.killed-again");
                }
                ("clock-strobe", Victims::Nodes(ids)) if since >= STROBE => {
                    for id in ids {
                        let ahead = &world.node(NodeId(id)).ahead;
                        ahead.store(by - ahead.load(Ordering::Relaxed), Ordering::Relaxed);
                    }
                }
                ("clock-drift", Victims::Nodes(ids)) => {
                    let ahead = ((now() - began) as f64 / 1000.0 * share) as i64;
                    ids.iter().for_each(|id| world.node(NodeId(*id)).ahead.store(ahead, Ordering::Relaxed));
                }
                // Whichever has been superseded comes by itself.
                ("twin", Victims::Terminals(_)) if since >= TURN => {
                    for (device, twin) in self.twins(&self.there[at]) {
                        world.check_in(device);
                        world.check_in(twin);
                    }
                }
                ("notification-forged", Victims::Terminals(devices)) if since >= FORGED => {
                    world.forge_keepalive();
                    devices.into_iter().for_each(|device| world.forge_notification(device));
                }
                _ => continue,
            }
            self.there[at].last = now();
        }
    }

    pub(super) async fn undo(&mut self, there: &There) {
        let world = self.run.world.clone();
        world.cure(there.id);
        world.disarm(there.id);
        match &there.victims {
            Victims::Nodes(ids) => {
                for id in ids.iter().map(|id| NodeId(*id)) {
                    let node = world.node(id);
                    match there.kind() {
                        "pause" => world.resume_node(id),
                        "lose-unsynced" | "torn-write" => *lock(&node.tear) = None,
                        "io-error" | "disk-full" => node.disk.set_fault(None),
                        "slow-disk" => node.disk.set_slow(0),
                        "cpu" => world.let_run(id),
                        "drain" => self.resume(id.0).await,
                        "clock-step" | "clock-strobe" | "clock-drift" => {
                            node.ahead.store(0, Ordering::Relaxed)
                        }
                        _ => {}
                    }
                    if there.keeps_down(id.0) {
                        self.ended.remove(&id.0);
                        self.start(id.0).await;
                    }
                }
            }
            Victims::Ways(ways) => {
                for (from, to) in ways.iter().map(|(from, to)| (NodeId(*from), NodeId(*to))) {
                    match there.kind() {
                        "cut" => {
                            world.mend_way(from, to);
                            world.mend_way(to, from);
                        }
                        "cut-one-way" | "jam" => world.mend_way(from, to),
                        _ => {}
                    }
                }
            }
            Victims::Terminals(devices) => match there.kind() {
                "terminal-kill" => devices.iter().for_each(|device| world.start_terminal(*device)),
                "ack-withheld" => devices.iter().for_each(|device| world.withhold(*device, false)),
                "twin" => {
                    for (device, twin) in self.twins(there) {
                        world.end_terminal(twin);
                        world.check_in(device);
                    }
                }
                "slow-reader" => devices.iter().for_each(|device| world.read_again(*device)),
                _ => {}
            },
            Victims::Cluster => {}
            Victims::Publishers => self.run.storm.store(false, Ordering::Relaxed),
        }
    }
}
