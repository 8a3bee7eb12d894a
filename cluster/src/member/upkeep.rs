//! What a member does by itself at intervals: tell the time, mark silent nodes, flush tables, cut the log.

use std::sync::Weak;

use openraft::async_runtime::WatchReceiver;
use openraft::type_config::TypeConfigExt;
use reveille_protocol::id::*;

use super::{Group, Member};
use crate::clock::EXCHANGE;
use crate::env::{Env, Transport};
use crate::link::Lane;
use crate::rpc::Frame;
use crate::tables::Tables;

/// Entries that stay in the log behind a snapshot, so that a peer that was away shortly needs no snapshot.
pub(super) const KEEP_ENTRIES: u64 = 10_000;
/// Entries after which the log is cut: a few times what is kept.
const CUT_AFTER: u64 = 50_000;
/// Ticks after which it is seen whether tables want a flush, and those after which they get one in any case. A push
/// that lives shorter never reaches them; a restart replays the log of this time.
const FLUSH: (u32, u32) = (5, 60);
/// Bytes that are worth a flush of their own: each is a table on disk that compaction must merge later.
const WORTH_A_FLUSH: usize = 1 << 20;
/// A clock further than this, in milliseconds, from the median raises an alarm. It need not give up leadership: within a
/// term the monotonic clock counts, and a term begins at the median.
const CLOCK_ALARM: i64 = 1000;

/// Runs until the member is gone.
pub(super) async fn run<E: Env>(member: Weak<Member<E>>) {
    let mut leads_meta_since = None;
    for tick in 0u32.. {
        E::Cfg::sleep(EXCHANGE).await;
        let Some(member) = member.upgrade() else { return };
        if let Some(why) = member.stopped() {
            member.shared.host.failed(why);
            return;
        }
        tell_time(&member);
        check_clock(&member);
        let now = member.shared.clocks.monotonic();
        if member.leader(GroupId(0)) == Some(member.config.node) {
            member.mark_silent(*leads_meta_since.get_or_insert(now)).await;
        } else {
            leads_meta_since = None;
        }
        if tick % FLUSH.0 == FLUSH.0 - 1 {
            let worth = if tick % FLUSH.1 == FLUSH.1 - 1 { 1 } else { WORTH_A_FLUSH };
            flush(&member, worth).await;
        }
    }
}

fn tell_time<E: Env>(member: &Member<E>) {
    let frame = Frame::Clock(member.shared.clocks.wall()).encode();
    for peer in member.config.voters.keys().filter(|peer| **peer != member.config.node) {
        // A peer that cannot be reached is told again in a second.
        let _ = member.shared.calls.transport().send(*peer, Lane::Control, frame.clone());
    }
}

fn check_clock<E: Env>(member: &Member<E>) {
    let offset = member.shared.clocks.offset_from_median(member.shared.peers).unwrap_or(0);
    metrics::gauge!("reveille_clock_offset_seconds").set(offset as f64 / 1000.0);
    if offset.abs() > CLOCK_ALARM {
        tracing::error!(
            offset_ms = offset,
            "this node's clock is off the median of its peers; check its time service"
        );
    }
}

/// Flushes tables that hold at least so many bytes, and cuts logs that are long.
async fn flush<E: Env>(member: &Member<E>, worth: usize) {
    for (id, Group { raft, shard, .. }) in &member.groups {
        if shard.tables().unflushed() >= worth
            && let Err(error) = shard.tables().flush().await
        {
            tracing::error!(group = id.0, %error, "tables could not be flushed; the log is not cut");
            continue;
        }
        let metrics = raft.metrics().borrow_watched().clone();
        let applied = metrics.last_applied.map_or(0, |id| id.index);
        let cut = metrics.snapshot.map_or(0, |id| id.index);
        if applied.saturating_sub(cut) > CUT_AFTER
            && let Err(error) = raft.trigger().snapshot().await
        {
            tracing::error!(group = id.0, %error, "the log could not be cut");
        }
    }
}
