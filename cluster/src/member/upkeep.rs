//! What a member does by itself at intervals: tell the time, mark silent nodes, flush tables, cut the log.

mod cut;

use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::type_config::TypeConfigExt;
use reveille_protocol::fail_point::Point;
use reveille_protocol::id::*;
use reveille_protocol::time::Instant;

pub(super) use self::cut::KEEP_ENTRIES;
use self::cut::Load;
use super::{Group, Member};
use crate::clock::EXCHANGE;
use crate::env::{Env, Transport};
use crate::fail;
use crate::link::Lane;
use crate::rpc::Frame;
use crate::tables::Tables;
use crate::wal::LogStore;

/// Ticks after which it is seen whether tables want a flush, and those after which they get one in any case. A push
/// that lives shorter never reaches them; a restart replays the log of this time.
const FLUSH: (u32, u32) = (5, 60);
/// Bytes that are worth a flush of their own: each is a table on disk that compaction must merge later.
const WORTH_A_FLUSH: usize = 1 << 20;
/// A clock further than this, in milliseconds, from the median raises an alarm. It need not give up leadership: within a
/// term the monotonic clock counts, and a term begins at the median.
const CLOCK_ALARM: i64 = 1000;
/// While it lasts the alarm is repeated this often.
const CLOCK_AGAIN: Duration = Duration::from_secs(600);

/// Runs until the member is gone. Four things beside each other: a slow disk or a meta group without a leader must not
/// keep this node from telling the time.
pub(super) async fn run<E: Env>(member: Weak<Member<E>>) {
    futures::join!(
        mind_clocks(member.clone()),
        mind_silence(member.clone()),
        mind_groups(member.clone()),
        mind_disks(member)
    );
}

async fn mind_clocks<E: Env>(member: Weak<Member<E>>) {
    let mut told = None;
    loop {
        E::Cfg::sleep(EXCHANGE).await;
        fail::at::<E::Cfg>(Point::Clocks).await;
        let Some(member) = member.upgrade() else { return };
        if let Some(why) = member.stopped() {
            member.shared.host.failed(why);
            return;
        }
        member.mind_nodes();
        member.tell_folder();
        member.retire_left_behind();
        tell_time(&member);
        member.mind_tears();
        check_clock(&member, &mut told);
    }
}

async fn mind_silence<E: Env>(member: Weak<Member<E>>) {
    let mut leads_meta_since = None;
    loop {
        E::Cfg::sleep(EXCHANGE).await;
        fail::at::<E::Cfg>(Point::Silence).await;
        let Some(member) = member.upgrade() else { return };
        let now = member.shared.clocks.monotonic();
        if member.leads(GroupId::META) {
            member.mark_silent(*leads_meta_since.get_or_insert(now)).await;
        } else {
            leads_meta_since = None;
        }
    }
}

async fn mind_groups<E: Env>(member: Weak<Member<E>>) {
    loop {
        E::Cfg::sleep(EXCHANGE).await;
        fail::at::<E::Cfg>(Point::Groups).await;
        let Some(member) = member.upgrade() else { return };
        if let Some(why) = member.dead().await {
            member.shared.host.failed(why);
            return;
        }
    }
}

async fn mind_disks<E: Env>(member: Weak<Member<E>>) {
    for tick in 0u32.. {
        E::Cfg::sleep(EXCHANGE).await;
        fail::at::<E::Cfg>(Point::Disks).await;
        let Some(member) = member.upgrade() else { return };
        if tick % FLUSH.0 == FLUSH.0 - 1 {
            let worth = if tick % FLUSH.1 == FLUSH.1 - 1 { 1 } else { WORTH_A_FLUSH };
            flush(&member, worth).await;
        }
        cut(&member).await;
        member.views.prune();
        member.prune_snapshots();
    }
}

fn tell_time<E: Env>(member: &Member<E>) {
    let frame = Frame::Clock(member.shared.clocks.wall()).encode();
    for peer in member.others().into_keys() {
        // A peer that cannot be reached is told again in a second.
        let _ = member.shared.calls.transport().send(peer, Lane::Control, frame.clone());
    }
}

/// `told`: when it was last said that the clock is off, while it is.
fn check_clock<E: Env>(member: &Member<E>, told: &mut Option<Instant>) {
    let peers = member.shared.peers.load(Ordering::Relaxed);
    let offset = member.shared.clocks.offset_from_median(peers).unwrap_or(0);
    metrics::gauge!("reveille_clock_offset_seconds").set(offset as f64 / 1000.0);
    let now = member.shared.clocks.monotonic();
    match (offset.abs() > CLOCK_ALARM, *told) {
        (true, Some(before)) if now.since(before) < CLOCK_AGAIN => {}
        (true, _) => {
            *told = Some(now);
            tracing::error!(
                offset_ms = offset,
                "this node's clock is off the median of its peers; check its time service"
            );
        }
        (false, Some(_)) => {
            *told = None;
            tracing::info!(offset_ms = offset, "this node's clock is near its peers' again");
        }
        (false, None) => {}
    }
}

/// Flushes tables that hold at least so many bytes.
async fn flush<E: Env>(member: &Member<E>, worth: usize) {
    for (id, Group { shard, .. }) in &member.groups {
        if shard.tables().unflushed() >= worth
            && let Err(error) = flush_group::<E>(shard.tables()).await
        {
            tracing::error!(group = id.0, %error, "tables could not be flushed");
        }
    }
}

async fn flush_group<E: Env>(tables: &E::Tables) -> Result<(), String> {
    fail::try_at::<E::Cfg>(Point::Flush).await.map_err(|error| error.to_string())?;
    tables.flush().await.map_err(|error| error.to_string())?;
    fail::try_at::<E::Cfg>(Point::Flushed).await.map_err(|error| error.to_string())
}

/// Cuts logs that hold much, each tick: between two, the log takes what its disk does in a second.
async fn cut<E: Env>(member: &Member<E>) {
    let groups: Vec<_> = member.groups.iter().collect();
    let load = |group: &Group<E>| {
        let metrics = group.raft.metrics().borrow_watched().clone();
        let applied = metrics.last_applied.map_or(0, |id| id.index);
        let snapshot = metrics.snapshot.map_or(0, |id| id.index);
        Load { held: group.log.held(), entries: applied.saturating_sub(snapshot) }
    };
    let loads: Vec<Load> = groups.iter().map(|(_, group)| load(group)).collect();
    for at in cut::plan(&loads) {
        let (id, group) = groups[at];
        // A member that gets a snapshot, or what came since, would have to begin anew.
        let may_wait = loads[at].held.span < loads[at].held.capacity / 4 * 3;
        if may_wait && member.shape_here(*id).is_some_and(|shape| shape.catches_up()) {
            continue;
        }
        if let Err(error) = cut_group(group, &loads[at], groups.len()).await {
            tracing::error!(group = id.0, %error, "the log could not be cut");
        }
    }
}

/// Cuts every group's log now as far as it may be, so that a node that is away longer gets tables instead of entries.
pub(super) async fn cut_all<E: Env>(member: &Member<E>) -> Result<(), String> {
    for (id, group) in &member.groups {
        let covered = cover(group).await;
        covered.map_err(|error| format!("group {id}: {error}"))?;
    }
    Ok(())
}

/// Has a snapshot cover what was applied so far.
async fn cover<E: Env>(Group { raft, shard, .. }: &Group<E>) -> Result<(), String> {
    // Raft takes tables that cannot be flushed for its death if it is the one to find out.
    shard.tables().flush().await.map_err(|error| format!("its tables are not flushed: {error}"))?;
    raft.trigger().snapshot().await.map_err(|error| error.to_string())
}

/// Goes one step: purges what a snapshot covers, or if that is gone has the next snapshot made. openraft purges
/// behind a snapshot by entries alone, so what those bytes are is told to it here. It puts off what a replication
/// is reading; a later tick asks again.
async fn cut_group<E: Env>(group: &Group<E>, load: &Load, groups: usize) -> Result<(), String> {
    let Group { raft, log, .. } = group;
    let capacity = load.held.capacity;
    let excess = log.excess(cut::keep(capacity, groups), cut::span(capacity));
    let snapshot = raft.metrics().borrow_watched().snapshot.map(|id| id.index);
    let covered = snapshot.filter(|snapshot| log.purged().is_none_or(|(purged, _)| *snapshot > purged));
    if let (Some(excess), Some(covered)) = (excess, covered) {
        raft.trigger().purge_log(excess.min(covered)).await.map_err(|error| error.to_string())?;
    }
    if load.many_entries() || (excess.is_some() && covered.is_none()) {
        cover(group).await?;
    }
    Ok(())
}
