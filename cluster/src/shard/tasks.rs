//! What a shard's leader does by itself: take up what waits after an election, run the dispatcher's timers, end what is due.
//! Decides nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::async_runtime::Select2;
use openraft::type_config::TypeConfigExt;
use reveille_protocol::canary::{Canary, canary};
use reveille_protocol::dispatch::Event;
use reveille_protocol::fail_point::Point;
use reveille_protocol::service_list::{self, Reply};
use reveille_protocol::time::Instant;
use tokio::sync::mpsc;

use super::Shard;
use crate::env::Env;
use crate::fail;
use crate::propose::Outcome;
use crate::tables::Tables;

/// Terminals that a new leader takes up at once while it rebuilds its soft state; between two such steps other
/// work has its turn.
pub(super) const REBUILD_STEP: usize = 128;
/// How often a leader looks for what has ended by time. Bounds how late an expiry is seen.
const EXPIRY_TICK: Duration = Duration::from_millis(250);

/// A new leader takes up everything that waits, step by step.
pub(super) async fn rebuild<E: Env>(shard: Arc<Shard<E>>, term: u64) {
    let mut after = None;
    if canary(Canary::ForgetPending) {
        return;
    }
    loop {
        fail::at::<E::Cfg>(Point::Rebuild).await;
        let found = shard.checked(shard.next_waiting(after)).unwrap_or_default();
        {
            let mut state = shard.state();
            if found.is_empty() || state.dispatch.term() != Some(term) {
                break;
            }
            for (terminal, urgency) in found {
                shard.look(&mut state, terminal, |facts| Event::Found { terminal, facts, urgency });
                after = Some(terminal);
            }
        }
        shard.rearm();
        E::Cfg::yield_now().await;
    }
    // Also where nothing waits: it is time that ends what is stored, and the timers of a follower sleep.
    shard.rearm();
}

impl<E: Env> Shard<E> {
    /// Fences may have changed: looks at everything that waits, step by step.
    pub(crate) async fn look_again(&self) {
        let waiting: Vec<_> = self.state().dispatch.waiting().collect();
        for some in waiting.chunks(REBUILD_STEP) {
            {
                let mut state = self.state();
                for terminal in some {
                    self.look_at(&mut state, *terminal, None);
                }
            }
            self.rearm();
            E::Cfg::yield_now().await;
        }
    }
}

/// Runs the dispatcher's timers and looks for what has ended by time, until the shard is gone.
pub(super) async fn timers<E: Env>(shard: std::sync::Weak<Shard<E>>, mut woken: mpsc::Receiver<()>) {
    let mut looked = Instant(0);
    loop {
        let wait = {
            let Some(shard) = shard.upgrade() else { return };
            let state = shard.state();
            match (state.dispatch.term(), state.dispatch.poll_timeout()) {
                (None, _) => None,
                (Some(_), None) => Some(EXPIRY_TICK),
                (Some(_), Some(at)) => Some(at.since(shard.now()).min(EXPIRY_TICK)),
            }
        };
        match wait {
            // A follower sleeps until it leads.
            None if woken.recv().await.is_none() => return,
            None => {}
            Some(wait) => {
                if let Select2::First(None) = E::Cfg::select2(woken.recv(), E::Cfg::sleep(wait)).await {
                    return;
                }
            }
        }
        fail::at::<E::Cfg>(Point::Timers).await;
        let Some(shard) = shard.upgrade() else { return };
        let leads = {
            let mut state = shard.state();
            shard.pace(&mut state);
            let commands = state.dispatch.handle(shard.now(), Event::Timeout);
            shard.execute(&mut state, commands);
            state.dispatch.term().is_some()
        };
        if leads && shard.now().since(looked) >= EXPIRY_TICK {
            looked = shard.now();
            // Beside this: an entry takes its time, and the dispatcher's timers must not wait for it.
            if !shard.expiring.swap(true, Ordering::Relaxed) {
                let mine = shard.clone();
                shard.begin("what ends by time", async move {
                    expire(&mine).await;
                    mine.expiring.store(false, Ordering::Relaxed);
                });
            }
        }
    }
}

/// Proposes Expires until nothing is due; an entry takes up a bounded number of matters.
async fn expire<E: Env>(shard: &Arc<Shard<E>>) {
    loop {
        fail::at::<E::Cfg>(Point::Expire).await;
        let next = shard.checked(service_list::next_deadline(&shard.tables.read())).flatten();
        let (Some(proposer), true) = (shard.proposer(), next.is_some_and(|at| at <= shard.group_time()))
        else {
            return;
        };
        // Refused or unknown: what is due then is due at the next look as well.
        match proposer.propose(service_list::Command::Expire).await {
            Outcome::Applied(Reply::Expired { count }) if count > 0 => {}
            _ => return,
        }
    }
}
