//! The operator: adds nodes, replaces, drains and removes them, through any node that answers, until it is done.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use reveille_protocol::directory::{Change, Directory, Outcome, Refused, Standing};
use reveille_protocol::id::*;
use reveille_protocol::service_list::{Refusal, Reply};
use reveille_protocol::time::GroupTime;

use crate::node::SimNode;
use crate::world::{World, lock, pause, true_wall};

const META: GroupId = GroupId(0);
/// Nodes that a run adds at most.
const NEWCOMERS: u64 = 2;

impl World {
    /// Works until the faults are over, and ends what it is at.
    pub async fn operate(self: &Arc<World>) {
        self.operating.store(true, Ordering::Relaxed);
        self.work().await;
        self.operating.store(false, Ordering::Relaxed);
    }

    pub fn operates(&self) -> bool {
        self.operating.load(Ordering::Relaxed)
    }

    async fn work(self: &Arc<World>) {
        let mut added = 0;
        while self.is_chaos() {
            pause(self.between(300, 2500)).await;
            if !self.is_chaos() {
                return;
            }
            let nodes: Vec<NodeId> = self.present();
            let node = self.pick(&nodes);
            match self.below(10) {
                0..=3 if added < NEWCOMERS => {
                    added += 1;
                    self.add(None).await;
                }
                4..=5 if added < NEWCOMERS => {
                    added += 1;
                    // A machine that is lost, or one that is there.
                    let lost = self.permille(500) && self.may_lose();
                    if lost {
                        self.say(format!("n{node} is lost for good"));
                        self.saw("nodes lost");
                        self.node(node).set_gone("lost");
                        self.order_crash(node);
                    }
                    self.add(Some(node)).await;
                }
                6..=7 => self.wish(Change::Remove { node, fewer: false }).await,
                8 => self.wish(Change::Drain { node, fewer: false }).await,
                _ => self.wish(Change::Resume { node }).await,
            }
        }
    }

    /// Nodes that are not gone.
    fn present(&self) -> Vec<NodeId> {
        self.all_nodes().iter().filter(|node| node.gone().is_none()).map(|node| node.id).collect()
    }

    /// One machine may be lost in a run, and only while every other one is there to take its part.
    fn may_lose(&self) -> bool {
        self.all_nodes().iter().all(|node| node.gone().is_none() && node.member().is_some())
    }

    async fn wish(self: &Arc<World>, change: Change) {
        self.say(format!("the operator asks for {change:?}"));
        let answer = self.change(change.clone()).await;
        self.say(format!("the operator hears {answer:?}"));
        if answer.is_ok() {
            self.saw(match change {
                Change::Remove { .. } => "removals",
                Change::Drain { .. } => "drains",
                _ => "other changes",
            });
        }
    }

    /// Invites a node; it joins and starts, or the invitation is taken back.
    async fn add(self: &Arc<World>, replaces: Option<NodeId>) {
        let number = self.number();
        let token = KeyFingerprint([number as u8; 32]);
        let expires = GroupTime(true_wall() + 600_000);
        let peer = format!("machine{number}");
        let invite = Change::Invite { peer: peer.clone(), token, expires, replaces };
        self.say(format!("the operator invites {peer}, replacing {replaces:?}"));
        let node = match self.change(invite).await {
            Ok(Outcome::Invited(node)) => node,
            other => return self.say(format!("the operator hears {other:?}")),
        };
        let join = |store| Change::Join { node, token, store };
        if replaces.is_none() && self.permille(150) {
            self.wish(Change::Remove { node, fewer: false }).await;
            let refused = self.change(join(number)).await;
            assert_eq!(refused, Err(Refused::UnknownNode(node)), "an invitation that was taken back");
            self.saw("invitations taken back");
            return;
        }
        pause(self.between(1, 1500)).await;
        let joined = self.change(join(number)).await;
        assert_eq!(joined, Ok(Outcome::Done), "n{node} joins");
        if self.permille(200) {
            let refused = self.change(join(number + 1)).await;
            assert!(refused.is_err(), "another folder used the token of n{node}");
        }
        self.saw(if replaces.is_some() { "replacements" } else { "joins" });
        let newcomer = SimNode::new(node, number, self.setting, peer, self.addresses());
        lock(&self.nodes).insert(node, Arc::new(newcomer));
        // Started by the loop of the faults, as one that crashed would be.
        let wait = self.below(500);
        self.order_start(node, wait);
        // Now of all times.
        if self.bad_luck(300) {
            let victim = self.pick(&[Some(node), replaces, self.leader(META)]);
            let wait = self.between(1, 1500);
            if let Some(victim) = victim {
                self.after(wait, move |world| world.order_crash(victim));
            }
        }
    }

    /// A node takes another one's place, as soon as it is started.
    pub async fn replace(self: &Arc<World>, node: NodeId) -> NodeId {
        self.enrol(Some(node)).await.expect("invited")
    }

    /// A node joins, in another one's place if one is named, as soon as it is started.
    pub async fn enrol(self: &Arc<World>, replaces: Option<NodeId>) -> Result<NodeId, Refused> {
        let number = self.number();
        let token = KeyFingerprint([number as u8; 32]);
        let (peer, expires) = (format!("machine{number}"), GroupTime(true_wall() + 600_000));
        let invite = Change::Invite { peer: peer.clone(), token, expires, replaces };
        let Outcome::Invited(newcomer) = self.change(invite).await? else { panic!("not invited") };
        self.change(Change::Join { node: newcomer, token, store: number }).await?;
        let node = SimNode::new(newcomer, number, self.setting, peer, self.addresses());
        lock(&self.nodes).insert(newcomer, Arc::new(node));
        Ok(newcomer)
    }

    /// Nodes that belong to the cluster, as it says, and those that are about to.
    pub fn belonging(&self) -> Vec<Arc<SimNode>> {
        let known = self.members().first().map(|member| member.directory());
        let belongs = |node: &Arc<SimNode>| {
            known.as_ref().is_none_or(|known| {
                node.id > known.roster.last_node || known.roster.records.contains_key(&node.id)
            })
        };
        self.all_nodes().into_iter().filter(|node| node.gone().is_none() && belongs(node)).collect()
    }

    /// Who leads a group, as any node knows it.
    pub fn leader(&self, group: GroupId) -> Option<NodeId> {
        self.any_member()?.leader(group)
    }

    /// Has the directory changed, however often it must be tried.
    pub async fn change(self: &Arc<World>, change: Change) -> Result<Outcome, Refused> {
        loop {
            pause(20).await;
            let Some(member) = self.any_member() else { continue };
            match member.change(change.clone(), Duration::from_secs(2)).await {
                Ok(Reply::Directory(outcome)) => return Ok(outcome),
                Ok(Reply::Refused(Refusal::Directory(Refused::Format(_)))) | Err(_) => {}
                Ok(Reply::Refused(Refusal::Directory(refused))) => return Err(refused),
                Ok(other) => panic!("{change:?} was answered {other:?}"),
            }
        }
    }
}

/// Is nobody coming or going?
pub fn is_settled(directory: &Directory) -> bool {
    let passing = |standing: &Standing| matches!(standing, Standing::Leaving | Standing::Invited { .. });
    directory.cluster != 0 && !directory.roster.records.values().any(|record| passing(&record.standing))
}
