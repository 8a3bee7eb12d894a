//! One cluster has one set of limits: those of its first shard. The meta group's leader gives them to shards that have
//! others: two operators may have set them at once, or one may not have come to the end. It never changes the first one's,
//! so whatever it meets, all come to be the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::join_all;
use reveille_protocol::id::GroupId;
use reveille_protocol::service_list::Command;
use reveille_protocol::service_list::row::Settings;

use super::Member;
use super::steward::QUERY;
use crate::env::Env;
use crate::query::{Answer, Query};

/// Every cluster has it.
pub const FIRST: GroupId = GroupId(1);

/// The shards whose limits are not those of the first. Without the first one's nothing is known.
fn others(limits: &BTreeMap<GroupId, Settings>) -> Vec<GroupId> {
    let Some(first) = limits.get(&FIRST) else { return Vec::new() };
    limits.iter().filter(|(_, settings)| *settings != first).map(|(shard, _)| *shard).collect()
}

impl<E: Env> Member<E> {
    /// Gives every shard the limits of the first.
    pub(super) async fn level_limits(self: &Arc<Self>) {
        let asked = (FIRST.0..=self.config.groups).map(GroupId).map(|shard| async move {
            match self.query(shard, Query::Limits, QUERY).await {
                Ok(Answer::Limits(limits)) => Some((shard, *limits)),
                _ => None,
            }
        });
        let limits: BTreeMap<_, _> = join_all(asked).await.into_iter().flatten().collect();
        for shard in others(&limits) {
            tracing::info!(shard = shard.0, "a shard has other limits than the first; it gets those");
            let outcome = self.propose(shard, Command::Settings(limits[&FIRST].clone()), QUERY).await;
            if let Err(error) = outcome {
                tracing::warn!(shard = shard.0, %error, "a shard's limits could not be set; trying again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_shards_limits_are_the_clusters() {
        let settings = |max_payload| Settings { max_payload, ..Settings::default() };
        let all = |limits: &[(u16, u32)]| {
            let limits = limits.iter().map(|(shard, payload)| (GroupId(*shard), settings(*payload)));
            others(&limits.collect())
        };
        assert_eq!(all(&[(1, 5), (2, 5), (3, 5)]), []);
        assert_eq!(all(&[(1, 5), (2, 6), (3, 5), (4, 6)]), [GroupId(2), GroupId(4)]);
        assert_eq!(all(&[(2, 6), (3, 5)]), [], "the first does not answer");
    }
}
