//! Leadership that moves before a timer would move it: at once when the link to the leader breaks, and by itself when a
//! node leaves. Votes, terms and log rules stay raft's.
//!
//! A process that dies closes its sockets within a millisecond. A follower that sees it drops its own lease of the dead
//! leader and asks for a Pre-Vote, which succeeds only if a majority has done the same: one node's false alarm never
//! moves a leader that others still hear. (Without a break, silence alone takes 340 to 440 ms.)
//!
//! A leader that hears nothing of a majority breaks those links itself. Others may hear it all the same, and would wait
//! for a leader that can commit nothing: a link may be cut one way only.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use openraft::raft::TransferLeaderRequest;
use openraft::type_config::TypeConfigExt;
use reveille_protocol::canary::{Canary, canary};
use reveille_protocol::fail_point::Point;
use reveille_protocol::id::*;

use super::{Group, Member, incarnation};
use crate::env::{Env, Transport};
use crate::propose::GroupRaft;
use crate::{fail, guard};

/// The first survivor asks this long after the break, so that the others have seen it, too; each further one this much
/// later, so that they do not split the votes.
const FIRST: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(28));
/// Until the second survivor asks, the first one repeats a Pre-Vote that failed this often: the second may only be about to
/// see the break. It changes nothing until it succeeds.
const SOON: (Duration, u64) = (Duration::from_millis(5), 5);
/// Later ones are repeated after this and up to as much again; timers take over when all have failed.
const AGAIN: Duration = Duration::from_millis(20);
const TRIES: u64 = 20;
/// A leader that has heard of less than a majority for this long breaks its links to the others. Six heartbeats without
/// an answer, and no less than a follower's lease: a stall that costs no election by timers costs none by this.
const UNHEARD: Duration = Duration::from_millis(250);
/// Who is to lead has answered this leader within this: two heartbeats and a bit.
const ANSWERED: Duration = Duration::from_millis(100);
/// How often it looks. A look that comes later than twice this says that this node itself stood still: then what it did
/// not hear says nothing of the others.
const LOOK: Duration = Duration::from_millis(50);
/// A leaving node waits this long for others to lead its groups.
const HAND_OVER: Duration = Duration::from_millis(500);

impl<E: Env> Member<E> {
    /// The link to a peer broke: has it died? Groups that it leads elect at once, if a majority sees it so.
    pub(super) fn peer_lost(&self, peer: NodeId) {
        // It is this node that goes.
        if self.is_stopping() {
            return;
        }
        for (group, Group { raft, .. }) in &self.groups {
            let metrics = raft.server_metrics().borrow_watched().clone();
            let voters: Vec<u64> =
                metrics.membership_config.voter_ids().filter(|voter| *voter != peer.0).collect();
            let rank = voters.iter().position(|voter| *voter == self.config.node.0);
            if let Some(rank) = rank.filter(|_| metrics.current_leader == Some(peer.0)) {
                tracing::info!(group = group.0, leader = peer.0, "the link to the leader broke; electing");
                let spread = u64::from(group.0) * 7 + self.config.node.0 * 13;
                let election = elect::<E>(raft.clone(), peer, rank as u32, spread);
                guard::spawn::<E>(self.shared.host.clone(), "an election", election);
            }
        }
    }

    /// Lets others lead the groups that this node leads, as far as there are any and they take it in time.
    pub async fn hand_over(self: &Arc<Self>) {
        let led = self.groups.iter().filter(|(group, _)| self.leads(**group));
        for (number, (group, Group { raft, .. })) in led.enumerate() {
            let Some(to) = self.shape_here(*group).and_then(|shape| shape.heir(number)) else { continue };
            if let Err(error) = Self::transfer(raft, to).await {
                tracing::info!(group = group.0, %error, "leadership could not be handed over");
            }
        }
        let until = E::Cfg::now() + HAND_OVER;
        let leads = || self.groups.keys().any(|group| self.leads(*group));
        while leads() && E::Cfg::now() < until {
            E::Cfg::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Looks whether this node, where it leads, still hears a majority. Runs until the member is gone.
pub(super) async fn mind_quorum<E: Env>(member: Weak<Member<E>>) {
    let mut awake_since = E::Cfg::now();
    let mut last = awake_since;
    loop {
        E::Cfg::sleep(LOOK).await;
        fail::at::<E::Cfg>(Point::Quorum).await;
        let Some(member) = member.upgrade() else { return };
        let now = E::Cfg::now();
        if now - last > LOOK * 2 {
            awake_since = now;
        }
        last = now;
        if now - awake_since >= UNHEARD {
            member.abandon_unheard();
        }
        if now - awake_since >= incarnation::CUT_OFF {
            member.leave_if_cut_off();
        }
    }
}

impl<E: Env> Member<E> {
    /// Has another lead a group that this node leads, if it answers: one that was cut off just now would leave the group to
    /// a timer.
    pub(super) async fn transfer(raft: &GroupRaft<E>, heir: NodeId) -> Result<(), String> {
        fail::try_at::<E::Cfg>(Point::Transfer).await.map_err(|error| error.to_string())?;
        let answered =
            raft.metrics().borrow_watched().heartbeat.as_ref().and_then(|acks| *acks.get(&heir.0)?);
        match answered {
            Some(at) if E::Cfg::now() - *at < ANSWERED => {
                raft.trigger().transfer_leader(heir.0).await.map_err(|error| error.to_string())
            }
            _ => Err(format!("node {heir}, which was to lead it, has not answered for {ANSWERED:?}")),
        }
    }

    fn abandon_unheard(&self) {
        let mut unheard = BTreeSet::new();
        for (group, Group { raft, .. }) in self.groups.iter().filter(|(group, _)| self.leads(**group)) {
            let membership = raft.server_metrics().borrow_watched().membership_config.clone();
            let others = membership.voter_ids().map(NodeId).filter(|voter| *voter != self.config.node);
            let (heard, silent): (Vec<_>, Vec<_>) =
                others.partition(|voter| self.heard_within(*voter, UNHEARD));
            let voters = heard.len() + silent.len() + 1;
            if (heard.len() + 1) * 2 <= voters {
                tracing::debug!(group = group.0, ?silent, "leading, but no majority is heard");
                unheard.extend(silent);
            }
        }
        for peer in unheard {
            self.shared.calls.transport().abandon(peer);
        }
    }
}

async fn elect<E: Env>(raft: GroupRaft<E>, dead: NodeId, rank: u32, spread: u64) {
    let vote = raft.server_metrics().borrow_watched().vote;
    if vote.leader_id.node_id != dead.0 || canary(Canary::SlowElection) {
        return;
    }
    // To another node than this one it does no more than drop our lease under this vote.
    let lease = TransferLeaderRequest::new(vote, dead.0, None);
    if raft.handle_transfer_leader(lease).await.is_err() {
        return;
    }
    E::Cfg::sleep(FIRST.0 + FIRST.1 * rank).await;
    fail::at::<E::Cfg>(Point::Elect).await;
    for number in 0..TRIES {
        let now = raft.server_metrics().borrow_watched().clone();
        if now.vote != vote || now.state == ServerState::Leader || raft.trigger().elect(true).await.is_err() {
            return;
        }
        let wait = match rank == 0 && number < SOON.1 {
            true => SOON.0,
            false => AGAIN + Duration::from_millis((spread + number * 5) % 20),
        };
        E::Cfg::sleep(wait).await;
    }
}
