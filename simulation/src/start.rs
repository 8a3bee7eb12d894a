//! How a node's process starts and ends: on its folder, let in by the others where the folder is new, its tables made anew
//! from a peer's where they are behind its log, as `ClusterHandle::start` does it.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use openraft::async_runtime::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use reveille_cluster::StartError;
use reveille_cluster::door::{self, Door, Entrance};
use reveille_cluster::env::Transport;
use reveille_cluster::member::{GroupStorage, Member};
use reveille_cluster::wal::Pace;
use reveille_protocol::directory::Refused;
use reveille_protocol::fail_point::{Point, delay, is_kill};
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
            let started = self.try_start(id).await;
            if let Err(why) = started {
                self.does_not_start(id, self.life(id), why).await;
            }
        })
    }

    async fn try_start(self: &Arc<World>, id: NodeId) -> Result<(), StartError> {
        let node = self.node(id);
        let alive = Arc::new(AtomicBool::new(true));
        let process = Process::new(id);
        let (life, door) = {
            let mut state = lock(&node.state);
            assert!(state.running.is_none(), "n{id} runs already");
            let life = state.lives + 1;
            let host = Arc::new(SimHost { world: Arc::downgrade(self), node: id, life });
            let door = Door::<Sim>::new(id, host, false);
            (state.lives, state.failed, state.may_fail) = (life, None, false);
            (state.due, state.begun) = (false, false);
            let (alive, process) = (alive.clone(), process.clone());
            state.running = Some(Running { member: None, _door: door.clone(), _wal: None, alive, process });
            (life, door)
        };
        self.say(format!("n{id} starts, life {life}"));
        if !self.setting.strict {
            self.setting.all_groups().for_each(|group| self.watch_tables(&node, group));
        }
        let opened = async {
            let (wal, storage) = node.open(&alive, pace(&node, &process))?;
            let mut asks = !lock(&node.state).admitted;
            for of in storage.values() {
                asks |= door::behind(of)?.is_some();
            }
            Ok((wal, storage, asks))
        };
        let Some(opened) = unless_killed(process.run(opened)).await else { return Ok(()) };
        let (wal, storage, asks) = opened?;
        self.with_life(id, life, |running| running._wal = Some(wal));
        let wire = Wire { world: Arc::downgrade(self), from: id, life };
        let config = node.config(life);
        let entrance = door.clone().open(wire.clone(), config.boot);
        let (world, of, ports) = (self.clone(), process.clone(), door.clone());
        let entering = process.run(async move {
            let storage = enter(&node, &entrance, storage).await?;
            let member = entrance.begin(config, storage).await?;
            if !world.with_life(id, life, |running| running.member = Some(member.clone())) {
                return Ok(());
            }
            if !asks {
                world.open_port(id, life, &ports);
            }
            world.begun(id, life, &of, &member).await
        });
        if !asks {
            return unless_killed(entering).await.unwrap_or(Ok(()));
        }
        // Before it has a member it must be reached: the answer may take long.
        wire.set_peers(self.node(id).configured_others(), self.node(id).highest_configured());
        self.open_port(id, life, &door);
        let world = self.clone();
        let _detached = SimRuntime::spawn(async move {
            if let Some(Err(why)) = unless_killed(entering).await {
                world.does_not_start(id, life, why).await;
            }
        });
        Ok(())
    }

    /// Does something to what runs of this life of a node, if it still does; whether it does.
    fn with_life(&self, id: NodeId, life: u64, what: impl FnOnce(&mut Running)) -> bool {
        let node = self.node(id);
        let state = &mut *lock(&node.state);
        state.running.as_mut().filter(|_| state.lives == life).map(what).is_some()
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
                    state.begun = true;
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

    /// A start came to this. If its node has ended meanwhile, that says nothing.
    async fn does_not_start(self: &Arc<World>, id: NodeId, life: u64, why: StartError) {
        if !self.is_life(id, life) {
            return;
        }
        assert!(!self.setting.strict, "n{id} does not start: {why}");
        self.end_process(id, End::Kill).await;
        self.say(format!("n{id} does not start: {why}"));
        let (lost, why) = (why.is_loss(id), why.to_string());
        let node = self.node(id);
        let (due, expected) = {
            let mut state = lock(&node.state);
            let due = std::mem::take(&mut state.due);
            state.lost = lost.then(|| why.clone());
            // Its system starts it again.
            state.failed = due.then(|| why.clone());
            (due, lost && state.damaged)
        };
        self.tell(match () {
            () if due => Seen::Due { node: id },
            () if expected => Seen::Lost { node: id, why },
            () => Seen::Fell { node: id, why },
        });
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
        let expected = state.may_fail || state.due || state.gone.is_some() || told || lost;
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
            let due = std::mem::take(&mut state.due);
            drop(state);
            if due {
                self.tell(Seen::Due { node: id });
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

/// A step of a start, which its own thread waits for: a panic there ends it. `None`: its node was killed at a fail point.
async fn unless_killed<T>(
    step: impl Future<Output = Result<T, StartError>>,
) -> Option<Result<T, StartError>> {
    match AssertUnwindSafe(step).catch_unwind().await {
        Ok(came_to) => Some(came_to),
        Err(panic) if is_kill(&*panic) => None,
        Err(_) => Some(Err(std::io::Error::other("a step of its start panicked").into())),
    }
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
