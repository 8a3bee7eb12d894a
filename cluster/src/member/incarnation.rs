//! Who lives: this node's incarnation, what it tells of its data folder, its own fence, and the Down marks that the meta
//! group's leader sets on nodes that fell silent.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use openraft::type_config::TypeConfigExt;
use reveille_protocol::directory::{Change, Directory, Outcome, Refused};
use reveille_protocol::fail_point::Point;
use reveille_protocol::id::*;
use reveille_protocol::service_list::{Command, Refusal, Reply};

use super::{Member, START_PATIENCE, Unavailable};
use crate::env::Env;
use crate::{fail, guard};

const META: GroupId = GroupId::META;
/// Silence after which a node's sessions are fenced. Much longer than an election, so that a pause which raft
/// survives does not cost its sessions too.
pub(super) const SILENT: Duration = Duration::from_secs(3);
/// A node that hears of no majority for this long ends its sessions itself. Longer than it takes to restart most nodes at
/// once: while none of them leads, nobody takes its terminals for offline.
pub(super) const CUT_OFF: Duration = Duration::from_secs(10);
const PROPOSAL: Duration = Duration::from_secs(5);
/// The format since which the directory compares a node's account of its starts.
const COUNTED: u32 = 3;

/// A node without an incarnation, so without sessions.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// The meta group does not answer.
    #[error(
        "no incarnation from the meta group: {0}; are a majority of the nodes running and reachable, and does this node still belong to the cluster?"
    )]
    Unavailable(#[from] Unavailable),
    /// It was given one, or there is no directory, as far as this node's own copy tells.
    #[error(
        "this node's copy of the directory does not come up to date; is it linked to the others (reveille_links_up)?"
    )]
    Lagging,
    /// The directory does not want it.
    #[error(transparent)]
    Refused(Refused),
}

impl<E: Env> Member<E> {
    /// Creates the directory if this is a new cluster, then takes an incarnation. Sessions may be accepted after.
    pub async fn join(self: &Arc<Self>) -> Result<Incarnation, JoinError> {
        let until = E::Cfg::now() + START_PATIENCE;
        loop {
            match self.take_incarnation().await {
                Err(refused @ JoinError::Refused(_)) => return Err(refused),
                Ok(Some(incarnation)) => return Ok(incarnation),
                outcome if E::Cfg::now() >= until => return Err(outcome.err().unwrap_or(JoinError::Lagging)),
                // Not created yet, or no leader yet: the other nodes may be starting.
                Ok(None) | Err(_) => E::Cfg::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Does the cluster hold the next start against what this one wrote down?
    pub(crate) fn starts_are_counted(&self) -> bool {
        self.directory().roster.format >= COUNTED
    }

    async fn take_incarnation(self: &Arc<Self>) -> Result<Option<Incarnation>, JoinError> {
        if let Some(beginning) = &self.config.beginning
            && self.directory().cluster == 0
        {
            let create = Change::Create {
                cluster: self.config.cluster,
                groups: self.config.groups,
                nodes: beginning.nodes.clone(),
                tenants: beginning.tenants.clone(),
                tokens: beginning.tokens.clone(),
                secret: beginning.secret,
            };
            self.propose(META, Command::Directory(Box::new(create)), PROPOSAL).await?;
        }
        let (node, boot, addresses) =
            (self.config.node, self.config.start.number, self.config.addresses.clone());
        let start = match self.directory().roster.format {
            0 | 1 => Change::Start { node, boot, addresses },
            2..COUNTED => Change::Enter { node, boot, store: self.config.store, addresses },
            COUNTED.. => {
                let (before, store) = (self.config.start.before, self.config.store);
                Change::Return { node, boot, before, store, addresses }
            }
        };
        fail::at::<E::Cfg>(Point::Incarnation).await;
        let granted = self.propose(META, Command::Directory(Box::new(start)), PROPOSAL).await?;
        fail::at::<E::Cfg>(Point::Incarnated).await;
        match granted {
            Reply::Directory(Outcome::Started(incarnation)) => {
                // The leader has applied it; this node decides by its own copy, and must not use an older one.
                let known = |directory: &Directory| {
                    directory.nodes.get(&self.config.node).is_some_and(|node| node.incarnation >= incarnation)
                };
                if !known(&self.directory()) {
                    return Ok(None);
                }
                let before = self.incarnation.fetch_max(incarnation.0, Ordering::AcqRel);
                if before != 0 && before < incarnation.0 {
                    // Marked down, and let in again before it read of the mark.
                    tracing::warn!(incarnation = before, "this node was marked down; its sessions end");
                    self.shared.host.fenced();
                }
                Ok(Some(incarnation))
            }
            Reply::Refused(Refusal::Directory(
                refused @ (Refused::OtherStore(_) | Refused::OlderCopy(_) | Refused::UnknownNode(_)),
            )) => Err(JoinError::Refused(refused)),
            _ => Ok(None),
        }
    }

    /// A node that began before the cluster asked for it tells of its data folder now: its name, and that it keeps an account
    /// of its starts.
    pub(super) fn tell_folder(self: &Arc<Self>) {
        let directory = self.directory();
        let Some(record) = directory.roster.records.get(&self.config.node) else { return };
        let untold = match directory.roster.format {
            0 | 1 => false,
            2..COUNTED => record.store == 0,
            COUNTED.. => record.store == 0 || !directory.counted.contains(&self.config.node),
        };
        if !untold || self.incarnation() == Incarnation(0) {
            return;
        }
        // Before the cluster counts on it. A file's sync on raft's thread, once in the life of a folder.
        if directory.roster.format >= COUNTED
            && let Err(error) = (self.config.start.keep)()
        {
            return tracing::warn!(%error, "the account of starts cannot be kept; trying again");
        }
        let member = self.clone();
        guard::spawn::<E>(
            self.shared.host.clone(),
            "what the cluster is told of the data folder",
            async move {
                if let Err(error) = member.take_incarnation().await {
                    // Tried again in a second.
                    tracing::warn!(%error, "the cluster could not be told of the data folder");
                }
            },
        );
    }

    /// After a change of the directory: a node that reads its own Down mark ends its sessions and begins anew.
    pub(super) fn check_own_fence(self: &Arc<Self>) {
        let mine = self.incarnation();
        if mine == Incarnation(0) || !self.directory().fenced(self.config.node, mine) {
            return;
        }
        self.begin_anew(mine, "this node was marked down");
    }

    /// A node that hears nothing of a majority ends its sessions: the others have marked it down and take its terminals for
    /// offline, which those that no notification reaches would not notice.
    pub(super) fn leave_if_cut_off(self: &Arc<Self>) {
        let mine = self.incarnation();
        let directory = self.directory();
        let others: Vec<NodeId> =
            directory.roster.replicating().filter(|node| *node != self.config.node).collect();
        let heard = others.iter().filter(|node| self.heard_within(**node, CUT_OFF)).count();
        if mine != Incarnation(0) && (heard + 1) * 2 <= others.len() + 1 {
            self.begin_anew(mine, "this node hears nothing of a majority of the others");
        }
    }

    pub(super) fn begin_anew(self: &Arc<Self>, mine: Incarnation, why: &str) {
        // Only one of several looks at the same thing does this.
        let swapped = self.incarnation.compare_exchange(mine.0, 0, Ordering::AcqRel, Ordering::Acquire);
        if swapped.is_err() {
            return;
        }
        tracing::warn!(incarnation = mine.0, "{why}; its sessions end and it begins anew");
        self.shared.host.fenced();
        let member = Arc::downgrade(self);
        guard::spawn::<E>(self.shared.host.clone(), "a new incarnation", async move {
            while let Some(member) = member.upgrade() {
                match member.join().await {
                    Ok(_) => return,
                    Err(JoinError::Refused(refused)) => {
                        return member.shared.host.dismissed(refused.to_string());
                    }
                    Err(error) => {
                        tracing::warn!(%error, "no new incarnation; trying again")
                    }
                }
            }
        });
    }

    pub(super) fn heard_of(&self, from: NodeId) {
        let now = self.shared.clocks.monotonic();
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).insert(from, now);
    }

    /// Has this node said anything within the time after which nodes are marked down?
    pub(crate) fn heard_lately(&self, node: NodeId) -> bool {
        self.heard_within(node, SILENT)
    }

    pub(super) fn heard_within(&self, node: NodeId, time: Duration) -> bool {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner).get(&node).copied();
        heard.is_some_and(|at| self.shared.clocks.monotonic().since(at) < time)
    }

    /// As the meta group's leader: marks nodes down that nothing was heard of. `since` is when it began to lead.
    pub(super) async fn mark_silent(self: &Arc<Self>, since: reveille_protocol::time::Instant) {
        let now = self.shared.clocks.monotonic();
        let directory = self.directory();
        for (node, known) in &directory.nodes {
            let alive = !known.is_down();
            if *node == self.config.node || !alive {
                continue;
            }
            let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner).get(node).copied();
            if now.since(heard.unwrap_or(since).max(since)) < SILENT {
                continue;
            }
            tracing::warn!(
                node = node.0,
                incarnation = known.incarnation.0,
                "node is silent; marking it down"
            );
            let down = Change::Down { node: *node, incarnation: known.incarnation };
            if let Err(error) = self.propose(META, Command::Directory(Box::new(down)), PROPOSAL).await {
                tracing::warn!(node = node.0, %error, "node could not be marked down; trying again");
            }
        }
    }
}
