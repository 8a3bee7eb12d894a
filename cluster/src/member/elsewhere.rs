//! Sessions between which and their group's leader nothing passes, though others hear both nodes, as long as that lasts: no
//! hand-off comes, no ack and no end of a session leaves. Their node sends the terminals elsewhere, and the leader takes
//! them for offline when it looks at them next, so that what waits is notified, at the latest by its silence timer. Who
//! leads is not decided here.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use openraft::type_config::TypeConfigExt;
use reveille_protocol::id::*;

use super::Member;
use super::incarnation::CUT_OFF;
use crate::env::Env;
use crate::query::{Answer, Query};

/// How often it is looked. While a tear lasts terminals may still find this node, and are refused by it.
const LOOK: Duration = Duration::from_secs(2);
/// Another replica says at once who leads.
const ASK: Duration = Duration::from_millis(700);

/// Sends the terminals of such groups elsewhere. Runs until the member is gone.
pub(super) async fn mind_leaders<E: Env>(member: Weak<Member<E>>) {
    let mut told = BTreeSet::new();
    loop {
        E::Cfg::sleep(LOOK).await;
        let Some(member) = member.upgrade() else { return };
        let away = member.torn_off();
        *member.shared.torn_off.write().unwrap_or_else(PoisonError::into_inner) = away.clone();
        let mut lost = BTreeSet::new();
        if !away.is_empty() {
            for group in (1..=member.config.groups).map(GroupId) {
                if member.who_leads(group).await.is_some_and(|leader| away.contains(&leader)) {
                    lost.insert(group);
                }
            }
        }
        if lost.difference(&told).next().is_some() {
            tracing::warn!(
                groups = ?lost, leaders = ?away,
                "the leaders of these groups are not heard here, though others hear them: their terminals are sent to other \
                 nodes; look at the network between"
            );
        }
        if !lost.is_empty() {
            member.shared.host.go_elsewhere(&|terminal| lost.contains(&member.group_of(terminal)));
        }
        told = lost;
    }
}

impl<E: Env> Member<E> {
    /// The nodes that this one has not heard for as long as it takes to be cut off, though a third hears both.
    fn torn_off(&self) -> BTreeSet<NodeId> {
        let me = self.config.node;
        let ends = self.torn().into_iter().filter_map(|(one, other)| match (one == me, other == me) {
            (true, _) => Some(other),
            (_, true) => Some(one),
            _ => None,
        });
        ends.filter(|node| !self.heard_within(*node, CUT_OFF)).collect()
    }

    /// Who leads a group, as this node's replica knows it, or another one says.
    async fn who_leads(self: &Arc<Self>, group: GroupId) -> Option<NodeId> {
        if self.replicates(group)
            && let Some(leader) = self.leader(group)
        {
            return Some(leader);
        }
        let me = self.config.node;
        let asked =
            self.replicas_of(group).into_iter().find(|node| *node != me && self.heard_lately(*node))?;
        match self.query_at(asked, group, &Query::Limits, ASK).await {
            Answer::NotLeader(leader) => leader,
            Answer::Unavailable | Answer::Unreadable(_) => None,
            _ => Some(asked),
        }
    }
}
