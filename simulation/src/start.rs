//! How a node's process starts and ends: on its folder, let in by the others where the folder is new, its tables made anew
//! from a peer's where they are behind its log, as `ClusterHandle::start` does it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use openraft::async_runtime::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use reveille_cluster::StartError;
use reveille_cluster::door::{self, Door, Entrance};
use reveille_cluster::env::Transport;
use reveille_cluster::member::{GroupStorage, Member};
use reveille_cluster::wal::Pace;
use reveille_protocol::directory::Refused;
use reveille_protocol::fail_point::{Point, delay};
use reveille_protocol::id::*;

use crate::network::Wire;
use crate::node::{End, Running, SimHost, SimNode, Tear};
use crate::process::Process;
use crate::seen::Seen;
use crate::world::{Sim, World, lock};

/// What a node's groups stand on.
type Storage = BTreeMap<GroupId, GroupStorage<Sim>>;

impl World {
    /// Its process starts, and goes as far as it gets by itself.
    pub fn start(self: &Arc<World>, id: NodeId) -> BoxFuture<'_, ()> {
        // Boxed here, so that all of openraft is compiled with this crate, optimised, and not with whoever waits for it.
        Box::pin(async move {
            if let Err(why) = self.try_start(id).await {
                self.does_not_start(id, why);
            }
        })
    }

    async fn try_start(self: &Arc<World>, id: NodeId) -> Result<(), StartError> {
        let node = self.node(id);
        let life = {
            let mut state = lock(&node.state);
            assert!(state.running.is_none(), "n{id} runs already");
            state.lives += 1;
            (state.failed, state.may_fail, state.panicked) = (None, false, false);
            state.lives
        };
        self.say(format!("n{id} starts, life {life}"));
        let alive = Arc::new(AtomicBool::new(true));
        if !self.setting.strict {
            self.setting.all_groups().for_each(|group| self.watch_tables(&node, group));
        }
        let process = Process::new(id);
        let (wal, storage) = node.open(&alive, pace(&node, &process))?;
        let host = Arc::new(SimHost { world: Arc::downgrade(self), node: id, life });
        let door = Door::<Sim>::new(id, host, false);
        let wire = Wire { world: Arc::downgrade(self), from: id, life };
        let config = node.config(life);
        let entrance = door.clone().open(wire.clone(), config.boot);
        let running =
            Running { member: None, _door: door.clone(), _wal: wal, alive, process: process.clone() };
        let mut asks = !lock(&node.state).admitted;
        for of in storage.values() {
            asks |= door::behind(of)?.is_some();
        }
        if !asks {
            let storage = process.run(enter(&node, &entrance, storage)).await?;
            let member = process.run(entrance.begin(config, storage)).await?;
            lock(&node.state).running = Some(Running { member: Some(member.clone()), ..running });
            self.open_port(id, life, &door);
            return self.begun(id, life, &process, &member).await;
        }
        // Before it has a member it must be reached: the answer may take long.
        lock(&node.state).running = Some(running);
        wire.set_peers(node.configured_others(), node.highest_configured());
        self.open_port(id, life, &door);
        let (world, of) = (self.clone(), process.clone());
        let entering = process.run(async move {
            let storage = enter(&node, &entrance, storage).await?;
            let member = entrance.begin(config, storage).await?;
            let running = {
                let state = &mut *lock(&node.state);
                let mine = state.running.as_mut().filter(|_| state.lives == life);
                mine.map(|running| running.member = Some(member.clone()))
            };
            match running {
                Some(()) => world.begun(id, life, &of, &member).await,
                None => Ok(()),
            }
        });
        let world = self.clone();
        let _detached = SimRuntime::spawn(async move {
            if let Err(why) = entering.await
                && world.is_life(id, life)
            {
                world.end_process(id, End::Kill).await;
                world.does_not_start(id, why);
            }
        });
        Ok(())
    }

    /// It has a member: it takes part, and asks for its incarnation.
    async fn begun(
        self: &Arc<World>,
        id: NodeId,
        life: u64,
        process: &Arc<Process>,
        member: &Arc<Member<Sim>>,
    ) -> Result<(), StartError> {
        self.open_sockets(id, life);
        process.run(member.initialise()).await?;
        let (world, member) = (self.clone(), member.clone());
        let node = self.node(id);
        let joining = SimRuntime::spawn(process.run(async move {
            let joined = member.join().await;
            match joined {
                _ if !world.is_life(id, life) => {}
                Ok(incarnation) => {
                    let mut state = lock(&node.state);
                    let start = state.starts.begun;
                    state.starts.enter(start);
                    drop(state);
                    world.say(format!("n{id} has incarnation {incarnation}"));
                }
                Err(error) => world.failed(id, error.to_string()),
            }
        }));
        let world = self.clone();
        let _detached = SimRuntime::spawn(async move {
            // It is what a node's main thread waits for.
            if let Err(panic) = joining.await
                && world.is_life(id, life)
            {
                world.failed(id, panic.to_string());
            }
        });
        Ok(())
    }

    fn does_not_start(&self, id: NodeId, why: StartError) {
        assert!(!self.setting.strict, "n{id} does not start: {why}");
        self.say(format!("n{id} does not start: {why}"));
        let (lost, why) = (why.is_loss(id), why.to_string());
        let node = self.node(id);
        let expected = {
            let mut state = lock(&node.state);
            state.lost = lost.then(|| why.clone());
            lost && state.damaged
        };
        self.tell(if expected { Seen::Lost { node: id, why } } else { Seen::Fell { node: id, why } });
    }

    /// Its process ends.
    pub fn stop(self: &Arc<World>, id: NodeId, end: End) -> BoxFuture<'_, ()> {
        Box::pin(self.end_process(id, end))
    }

    async fn end_process(self: &Arc<World>, id: NodeId, end: End) {
        let node = self.node(id);
        let Some(running) = lock(&node.state).running.take() else { return };
        self.say(format!("n{id} ends: {end:?}"));
        running.alive.store(false, Ordering::Relaxed);
        // Of one that stands still, too, everything ends.
        running.process.resume();
        lock(&self.backlog).remove(&id);
        let silent = self.bad_luck(200);
        self.close_port(id, silent);
        self.close_sockets(id);
        self.break_sessions(id, silent);
        node.crash_tables();
        if let Some(member) = &running.member {
            member.shutdown().await;
        }
        drop(running);
        let tear = *lock(&node.tear);
        match end {
            End::Kill if tear == Some(Tear::Whole) => node.disk.crash(|_, _| 0),
            End::Kill if tear.is_none() => node.disk.kill(),
            End::Kill | End::Power => {
                let kept = self.below(u64::MAX);
                node.disk.crash(|number, len| (kept.rotate_left(number as u32) % (len as u64 + 1)) as usize);
            }
        }
    }

    /// A node says that it must end.
    pub(crate) fn failed(&self, id: NodeId, why: String) {
        let node = self.node(id);
        let mut state = lock(&node.state);
        let told = why.contains("was removed") || why.contains("not a member");
        let losses = [Refused::OlderCopy(id), Refused::OtherStore(id)];
        let lost = state.damaged && losses.iter().any(|loss| why.contains(&loss.to_string()));
        let expected = state.may_fail || state.gone.is_some() || told || lost;
        if state.failed.is_none() {
            self.say(format!("n{id} must end: {why}"));
            assert!(
                expected || !self.setting.strict,
                "n{id} must end for no reason that was given to it: {why}"
            );
            state.failed = Some(why.clone());
            if lost {
                state.lost = Some(why.clone());
            }
            let panicked = std::mem::take(&mut state.panicked);
            drop(state);
            if panicked {
                self.tell(Seen::Panicked { node: id });
            }
            match (lost, expected) {
                (true, _) => self.tell(Seen::Lost { node: id, why }),
                (false, true) => {}
                (false, false) => self.tell(Seen::Fell { node: id, why }),
            }
        }
    }
}

/// What is let in, with tables that raft may see.
async fn enter(node: &SimNode, entrance: &Entrance<Sim>, storage: Storage) -> Result<Storage, StartError> {
    let others: Vec<NodeId> = node.configured_others().into_keys().collect();
    let store = {
        let state = lock(&node.state);
        (!state.admitted).then_some(state.store)
    };
    if let Some(store) = store {
        entrance.ask(store, None, &others).await?;
        lock(&node.state).admitted = true;
    }
    for (group, of) in &storage {
        entrance.bring_up(*group, of, || others.clone()).await?;
    }
    Ok(storage)
}

/// Syncs take the time that the node's disk wants for them.
fn pace(node: &SimNode, process: &Arc<Process>) -> Pace {
    let (disk, process) = (node.disk.clone(), Arc::downgrade(process));
    Box::new(move |work| {
        // A writer has no task that could wait: what it waits for at a point is its disk.
        let slow = Duration::from_micros(disk.slow()) + delay(Point::LogSync);
        let Some(process) = process.upgrade().filter(|_| !slow.is_zero()) else { return Some(work) };
        let _detached = SimRuntime::spawn(process.run(async move {
            SimRuntime::sleep(slow).await;
            work();
        }));
        None
    })
}
