//! From any node to the shard's leader and back: forwarding, leader hints, retries under the same command id.
//!
//! An outcome that is unknown is tried again until the deadline and never reported as a failure of something that
//! may have happened. Every command can be applied twice: most by their nature, an Enqueue because a retry looks
//! for its first copy.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::{Select2, WatchReceiver};
use openraft::type_config::TypeConfigExt;
use reveille_protocol::canary::{Canary, canary};
use reveille_protocol::id::*;
use reveille_protocol::limits;
use reveille_protocol::service_list::{Command, Refusal, Reply};
use reveille_protocol::time::GroupTime;
use reveille_protocol::wire::codec;

use super::Member;
use crate::env::Env;
use crate::link::Lane;
use crate::propose::Outcome;
use crate::query::{Answer, Query};
use crate::raft::network::MAX_MESSAGE;
use crate::rpc::{CallError, Method};

/// One try at one node: longer than a failover by timers takes. It ends before when another leader is known.
const TRY: Duration = Duration::from_millis(700);
/// First and longest pause between tries.
const PAUSE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(80));
/// Tries without a leader, at the pauses above, that an election may take: about a second.
const ELECTION: usize = 16;
/// How long after being sent a command may still be applied; within the lifetime that retries may count on.
const NOT_AFTER: Duration = Duration::from_secs(60);
/// A node that stops goes on asking others for so long: it has handed its groups over, and its end does not wait for an
/// election. Whoever asked it has time left to ask another node.
const LEAVING: Duration = Duration::from_millis(500);

/// Why a command or query came to nothing in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// Certainly not done.
    #[error("no leader for the shard within the deadline; nothing was done, try again")]
    NoLeader,
    /// Certainly not done.
    #[error("the shard's queue is full; nothing was done, try again later")]
    Busy,
    /// Certainly not done.
    #[error("this node is stopping; nothing was done, try again at another node")]
    Stopping,
    /// A query; nothing was to be done. The node that has these tables ends by it, and another leads.
    #[error("the shard's table could not be read: {0}; try again, another replica takes over")]
    Unreadable(String),
    /// It may have been done.
    #[error("no answer within the deadline; it may or may not have been done, try again with the same key")]
    Unknown,
}

impl<E: Env> Member<E> {
    /// Proposes a command to a group and waits for what it comes to.
    pub async fn propose(
        self: &Arc<Self>,
        group: GroupId,
        mut command: Command,
        deadline: Duration,
    ) -> Result<Reply, Unavailable> {
        let mut until = E::Cfg::now() + deadline;
        let mut leaving = None;
        let mut failed = Unavailable::NoLeader;
        let (mut hint, mut pause, mut turn) = (None, PAUSE.0, 0);
        if let Command::Enqueue(enqueue) = &mut command {
            // Our own clock alone may be a day off, and a retry does not look for copies from before its time. Without the
            // others' the command is too late at once, and its leader's answer says what time it is.
            enqueue.not_after = self.shared.median().map_or(GroupTime(0), |now| now + NOT_AFTER);
        }
        loop {
            if self.stops(group) {
                until = until.min(*leaving.get_or_insert_with(|| E::Cfg::now() + LEAVING));
            }
            let left = until - E::Cfg::now().min(until);
            let target = hint.take().or_else(|| self.whereabouts(group, turn));
            turn += 1;
            let outcome = match target {
                Some(target) => self.try_at(target, group, &command, left.min(TRY)).await,
                None => Outcome::NotLeader(None),
            };
            match outcome {
                // Nothing of it was done: the leader's idea of time differs from ours. Its own counts.
                Outcome::Applied(Reply::Refused(Refusal::TooLate { now }))
                    if failed != Unavailable::Unknown && E::Cfg::now() < until =>
                {
                    if let Command::Enqueue(enqueue) = &mut command {
                        enqueue.not_after = now + NOT_AFTER;
                    }
                    continue;
                }
                Outcome::Applied(reply) => {
                    self.learn(group, target);
                    self.learn_fence(&command, &reply);
                    return Ok(reply);
                }
                Outcome::NotLeader(leader) => {
                    self.learn(group, leader);
                    hint = leader.filter(|leader| Some(*leader) != target);
                }
                Outcome::Busy if failed == Unavailable::NoLeader => failed = Unavailable::Busy,
                Outcome::Busy => {}
                Outcome::Unknown => {
                    self.learn(group, None);
                    failed = Unavailable::Unknown;
                    if let Command::Enqueue(enqueue) = &mut command {
                        enqueue.retry = true;
                    }
                }
            }
            tracing::debug!(group = group.0, ?target, ?hint, ?failed, ?pause, "a command is tried again");
            if E::Cfg::now() + pause >= until && !canary(Canary::NoDeadline) {
                return Err(self.reason(group, failed));
            }
            self.pause(group, target, pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// Waits before the next try, but not longer than until this node knows of another leader than the one tried.
    async fn pause(&self, group: GroupId, tried: Option<NodeId>, longest: Duration) {
        let until = E::Cfg::now() + longest;
        let Some(known) = self.groups.get(&group) else { return E::Cfg::sleep(longest).await };
        let mut changes = known.raft.server_metrics();
        loop {
            // At least a moment: two nodes that name each other must not make a storm.
            E::Cfg::sleep(PAUSE.0).await;
            let left = until - E::Cfg::now().min(until);
            let other = self.leader(group).is_some_and(|leader| Some(leader) != tried);
            if other
                || left.is_zero()
                || !matches!(E::Cfg::timeout(left, changes.changed()).await, Ok(Ok(())))
            {
                return;
            }
        }
    }

    /// One try. Given up as soon as this node knows that another leads by now: the one that was asked may be stopped or cut
    /// off, and whether it did anything is found out by trying again.
    async fn try_at(&self, target: NodeId, group: GroupId, command: &Command, patience: Duration) -> Outcome {
        let asked = self.ask_at(target, group, command, patience);
        self.unless_succeeded(group, target, asked).await.unwrap_or(Outcome::Unknown)
    }

    async fn ask_at(&self, target: NodeId, group: GroupId, command: &Command, patience: Duration) -> Outcome {
        if target == self.config.node {
            let Some(proposal) = self.propose_here(group, command.clone()) else {
                return Outcome::NotLeader(None);
            };
            return E::Cfg::timeout(patience, proposal).await.unwrap_or(Outcome::Unknown);
        }
        let body = Self::forward(group, command);
        match self.shared.calls.call(target, Lane::Data, Method::Propose, body, patience).await {
            Ok(answer) => codec::decode::<Outcome, MAX_MESSAGE>(&answer).unwrap_or(Outcome::Unknown),
            Err(CallError::NotSent(_)) => Outcome::NotLeader(None),
            Err(CallError::Broken(_) | CallError::Timeout(_)) => Outcome::Unknown,
        }
    }

    /// What `work` comes to, unless this node's replica learns before of a later leader than that one.
    async fn unless_succeeded<T>(
        &self,
        group: GroupId,
        leader: NodeId,
        work: impl Future<Output = T> + Send,
    ) -> Option<T>
    where
        T: Send,
    {
        let Some(known) = self.groups.get(&group) else { return Some(work.await) };
        let mut changes = known.raft.server_metrics();
        let term = changes.borrow_watched().vote.leader_id.term;
        let succeeded = async {
            loop {
                {
                    let now = changes.borrow_watched();
                    let later = now.vote.leader_id.term > term;
                    if later && now.current_leader.is_some_and(|other| other != leader.0) {
                        return;
                    }
                }
                if changes.changed().await.is_err() {
                    // The group has stopped here and learns no more.
                    std::future::pending::<()>().await;
                }
            }
        };
        match E::Cfg::select2(work, succeeded).await {
            Select2::First(outcome) => Some(outcome),
            Select2::Second(()) => None,
        }
    }

    /// Asks a group's leader.
    pub(super) async fn ask(
        self: &Arc<Self>,
        group: GroupId,
        mut query: Query,
        deadline: Duration,
    ) -> Result<Answer, Unavailable> {
        let mut failed = Unavailable::NoLeader;
        let (mut hint, mut pause, mut turn) = (None, PAUSE.0, 0);
        // A query that waits for a message's end is answered that much later, by however many leaders in turn.
        let mut wait = waits_for(&query);
        let waits_until = E::Cfg::now() + wait;
        let mut until = waits_until + deadline;
        let mut leaving = None;
        loop {
            if self.stops(group) {
                until = until.min(*leaving.get_or_insert_with(|| E::Cfg::now() + LEAVING));
            }
            if let Query::Message { wait: left, .. } = &mut query {
                wait = waits_until - E::Cfg::now().min(waits_until);
                *left = wait.as_millis() as u64;
            }
            let target = hint.take().or_else(|| self.whereabouts(group, turn));
            turn += 1;
            let answer = match target {
                None => Answer::NotLeader(None),
                Some(target) => {
                    let answer = self.query_at(target, group, &query, TRY + wait);
                    let answer = self.unless_succeeded(group, target, answer).await;
                    answer.unwrap_or(Answer::NotLeader(None))
                }
            };
            match answer {
                Answer::NotLeader(leader) => {
                    self.learn(group, leader);
                    hint = leader.filter(|leader| Some(*leader) != target);
                }
                Answer::Unavailable => return Err(Unavailable::Busy),
                // Its node ends by this; who leads next has tables of its own.
                Answer::Unreadable(why) => failed = Unavailable::Unreadable(why),
                answer => {
                    self.learn(group, target);
                    return Ok(answer);
                }
            }
            if E::Cfg::now() + pause >= until {
                return Err(self.reason(group, failed));
            }
            self.pause(group, target, pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    pub(super) async fn query_at(
        self: &Arc<Self>,
        target: NodeId,
        group: GroupId,
        query: &Query,
        patience: Duration,
    ) -> Answer {
        if target == self.config.node {
            let answer = self.answer_here(group, query.clone());
            return E::Cfg::timeout(patience, answer).await.unwrap_or(Answer::NotLeader(None));
        }
        let body = Self::forward(group, query);
        match self.shared.calls.call(target, Lane::Data, Method::Query, body, patience).await {
            Ok(answer) => codec::decode::<Answer, MAX_MESSAGE>(&answer).unwrap_or(Answer::Unavailable),
            Err(_) => Answer::NotLeader(None),
        }
    }

    /// Whom to ask for a group: its leader as this node's replica knows it; for a group that others replicate, the leader
    /// that one of them named last, or each of them in turn.
    pub(super) fn whereabouts(&self, group: GroupId, turn: usize) -> Option<NodeId> {
        let me = self.config.node;
        let stops = self.stops(group);
        let here = self.leader(group).filter(|leader| !stops || *leader != me);
        // An old copy here may know only a leader that is gone. That may be this node: its group left it behind, and wants it
        // back before it has heard of either.
        let leads_on = |leader: &NodeId| match *leader == me {
            true => self.acts_as_leader(group) && self.quorum_acked(group) != Some(false),
            false => self.heard_lately(*leader),
        };
        let here = here.filter(|leader| turn == 0 || leads_on(leader));
        // While its own group elects, asking around costs a try at the one that stopped.
        if self.replicates(group) && (here.is_some() || (turn < ELECTION && !stops && self.has_copy(group))) {
            return here;
        }
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner).get(&group).copied();
        let found = found.or(here).filter(|_| turn == 0);
        found.or_else(|| {
            let replicas = self.replicas_of(group);
            let all = if replicas.is_empty() { self.others().into_keys().collect() } else { replicas };
            let others: Vec<NodeId> = all.into_iter().filter(|node| self.heard_lately(*node)).collect();
            others.get(turn % others.len().max(1)).copied()
        })
    }

    /// Is this node the leader that raft names? It names it also when it was restarted after a term of its own: a group that
    /// goes on without it does not tell it of the next.
    fn acts_as_leader(&self, group: GroupId) -> bool {
        let known = self.groups.get(&group);
        known.is_some_and(|known| known.raft.server_metrics().borrow_watched().state == ServerState::Leader)
    }

    /// Does this node stop to take part in the group?
    fn stops(&self, group: GroupId) -> bool {
        self.groups.get(&group).is_some_and(|known| known.proposer.is_stopping())
    }

    /// Why nothing came of it: while this node stops, that is the reason for what it cannot do.
    fn reason(&self, group: GroupId, failed: Unavailable) -> Unavailable {
        match failed {
            Unavailable::NoLeader | Unavailable::Busy if self.stops(group) => Unavailable::Stopping,
            failed => failed,
        }
    }

    /// Has this node's replica ever heard of the group's members?
    fn has_copy(&self, group: GroupId) -> bool {
        self.groups.get(&group).is_some_and(|known| {
            let metrics = known.raft.server_metrics();
            let membership = metrics.borrow_watched().membership_config.clone();
            membership.voter_ids().next().is_some()
        })
    }

    /// That node leads the group, or nobody knows.
    fn learn(&self, group: GroupId, leader: Option<NodeId>) {
        // What is replicated here is known here.
        if leader.is_some() && self.leader(group) == leader {
            return;
        }
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        match leader {
            Some(leader) => found.insert(group, leader),
            None => found.remove(&group),
        };
    }

    /// The group that keeps a terminal.
    pub fn group_of(&self, terminal: &TerminalId) -> GroupId {
        reveille_protocol::directory::group_of_slot(terminal.slot(), self.config.groups)
    }
}

fn waits_for(query: &Query) -> Duration {
    match query {
        Query::Message { wait, .. } => Duration::from_millis(*wait),
        Query::Terminal { .. } | Query::Terminals { .. } => Duration::ZERO,
        Query::Shape | Query::Limits | Query::Restore | Query::Notifying { .. } => Duration::ZERO,
    }
}

const _: () = assert!(NOT_AFTER.as_millis() <= limits::COMMAND_LIFETIME.as_millis());
