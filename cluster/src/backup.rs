//! Reading one group's tables out for a backup: from whichever node has them, a chunk at a time, in the backup's format.
//! Writes nothing; where the bytes go is the caller's business.

use std::sync::Arc;
use std::time::Duration;

use openraft::type_config::TypeConfigExt;
use reveille_protocol::id::*;
use reveille_protocol::service_list::{key, row};
use reveille_protocol::time::GroupTime;
use reveille_protocol::wire::backup::{End, Head, Part};

use crate::env::Env;
use crate::member::Member;
use crate::pull::{Pairs, Pull};
use crate::raft::machine::applied_among;
use crate::shape::Shape;

/// A node must have the group's latest tables within this: followers are milliseconds behind, and an election may come
/// in between.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two rounds over the nodes, and two tries for a chunk.
const PAUSE: Duration = Duration::from_millis(100);
/// Times that a chunk is asked for: its answer may be lost with a link that is there again at once.
const TRIES: u32 = 3;

/// A group's tables on their way out.
pub struct Reading<E: Env> {
    member: Arc<Member<E>>,
    from: NodeId,
    pull: Pull,
    /// Read and not given yet.
    next: Pairs,
    time: GroupTime,
    pairs: u64,
    ended: bool,
    /// Whose tables these are.
    pub head: Head,
}

/// Who may give the tables: those that have caught up first, and the leader, who has more to do, last.
fn sources(shape: &Shape) -> Vec<NodeId> {
    let mut nodes = shape.all_voters();
    nodes.extend(&shape.learners);
    let mut nodes: Vec<NodeId> = nodes.into_iter().filter(|node| !shape.silent.contains(node)).collect();
    let matched = |node: &NodeId| shape.matched.get(node).copied().unwrap_or_default();
    nodes.sort_by_key(|node| (*node == shape.leader, std::cmp::Reverse(matched(node)), *node));
    nodes
}

impl<E: Env> Reading<E> {
    pub(crate) async fn begin(member: &Arc<Member<E>>, group: GroupId) -> Result<Reading<E>, String> {
        let until = E::Cfg::now() + PATIENCE;
        let mut why = "no leader is confirmed by a majority of its nodes; are they running?".to_owned();
        loop {
            // Its log has all that was acknowledged before it was asked.
            if let Some(shape) = member.shape(group).await {
                for from in sources(&shape) {
                    match Self::begin_at(member, group, from, shape.last).await {
                        Ok(reading) => return Ok(reading),
                        Err(error) => why = format!("node {from}: {error}"),
                    }
                }
            }
            if E::Cfg::now() >= until {
                return Err(why);
            }
            E::Cfg::sleep(PAUSE).await;
        }
    }

    async fn begin_at(
        member: &Arc<Member<E>>,
        group: GroupId,
        from: NodeId,
        at_least: u64,
    ) -> Result<Reading<E>, String> {
        let pull = Pull { group, transfer: member.shared.calls.unique(), number: 0, at_least };
        let next = member.pull(from, pull).await?;
        let applied = applied_among::<E::Cfg>(&next).ok_or("its tables do not say how far they are")?;
        let (cluster, shards) = (member.config.cluster, member.config.groups);
        let format = member.directory().roster.format.max(1);
        let head = Head { cluster, group, shards, format, index: applied.index };
        let (member, time) = (member.clone(), GroupTime::default());
        Ok(Reading { member, from, pull, next, time, pairs: 0, ended: false, head })
    }

    /// The next part after the head; `None` after the end.
    pub async fn next(&mut self) -> Result<Option<Part>, String> {
        while !self.ended {
            if self.next.is_empty() {
                self.ended = true;
                return Ok(Some(Part::End(End { pairs: self.pairs, time: self.time })));
            }
            let mut pairs = std::mem::take(&mut self.next);
            pairs.retain(|(key, _)| key::is_backed_up(key));
            if let Some((_, time)) = pairs.iter().find(|(key, _)| key::is_clock(key)) {
                self.time = row::load(time).map_err(|error| error.to_string())?;
            }
            self.pairs += pairs.len() as u64;
            self.pull.number += 1;
            self.next = self.chunk().await?;
            if !pairs.is_empty() {
                return Ok(Some(Part::Pairs(pairs)));
            }
        }
        Ok(None)
    }

    async fn chunk(&self) -> Result<Pairs, String> {
        let mut tries = 1;
        loop {
            match self.member.pull(self.from, self.pull).await {
                Err(error) if tries >= TRIES => return Err(format!("node {}: {error}", self.from)),
                Err(_) => E::Cfg::sleep(PAUSE).await,
                Ok(pairs) => return Ok(pairs),
            }
            tries += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn who_is_furthest_gives_and_the_leader_only_if_nobody_else_can() {
        let shape = Shape {
            leader: NodeId(1),
            voters: vec![BTreeSet::from([1, 2, 3].map(NodeId))],
            learners: BTreeSet::from([NodeId(4)]),
            matched: BTreeMap::from([(NodeId(1), 9), (NodeId(2), 7), (NodeId(3), 9)]),
            silent: BTreeSet::from([NodeId(4)]),
            ..Shape::default()
        };
        assert_eq!(sources(&shape), [3, 2, 1].map(NodeId));
    }
}
