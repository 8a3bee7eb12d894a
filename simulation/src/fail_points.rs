//! Fail points that are armed in this world: at which nodes, and what happens there. A node is known by the task that runs
//! when a point is passed. What the points are is `reveille_protocol::fail_point`; in a build without them none is passed.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};

use openraft::async_runtime::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use reveille_protocol::fail_point::{Action, Point};
use reveille_protocol::id::NodeId;

use crate::node::End;
use crate::process;
use crate::seen::Seen;
use crate::world::{World, lock};

/// A node that must end by what happened has said so within this, in milliseconds: it looks at itself each second.
const PATIENCE: u64 = 5000;

/// What happens at a point.
#[derive(Debug, Clone)]
pub struct Armed {
    /// The fault that it belongs to.
    pub fault: u64,
    /// At these nodes.
    pub nodes: BTreeSet<NodeId>,
    pub point: Point,
    pub action: Action,
    /// How likely, each time that a node comes there.
    pub share: f64,
    /// How often it may yet happen.
    pub left: u64,
    /// Only while a node starts: until it has its incarnation.
    pub starting: bool,
}

/// Has this thread's nodes ask this world. Whether they can be asked: only in a build with the feature `canary`.
fn watch(world: &Weak<World>) {
    #[cfg(feature = "canary")]
    {
        let world = world.clone();
        let passes = move |point, can: fn(Action) -> bool| world.upgrade()?.passes(point, can);
        reveille_protocol::fail_point::watch(Some(std::rc::Rc::new(passes)));
    }
    #[cfg(not(feature = "canary"))]
    let _ = world;
}

impl World {
    /// From now on this happens.
    pub fn arm(self: &Arc<World>, armed: Armed) {
        watch(&Arc::downgrade(self));
        lock(&self.armed).push(armed);
    }

    /// What belongs to this fault happens no more.
    pub fn disarm(&self, fault: u64) {
        lock(&self.armed).retain(|armed| armed.fault != fault);
    }

    #[cfg_attr(not(feature = "canary"), expect(dead_code, reason = "nobody asks"))]
    fn passes(self: &Arc<World>, point: Point, can: fn(Action) -> bool) -> Option<Action> {
        let process = process::running()?;
        let id = process.node;
        let node = self.node(id);
        // Nothing happens to what a life that is over has left.
        node.process().filter(|runs| Arc::ptr_eq(runs, &process))?;
        let starting = !lock(&node.state).begun;
        let action = {
            let mut all = lock(&self.armed);
            let fits = all.iter_mut().filter(|armed| {
                armed.point == point
                    && armed.left > 0
                    && armed.nodes.contains(&id)
                    && (starting || !armed.starting)
                    && can(armed.action)
            });
            // Each has its own draw, and the first that happens is the one that does.
            let armed = { fits }.find(|armed| armed.share >= 1.0 || self.chance(armed.share))?;
            armed.left -= 1;
            armed.action
        };
        let of = if starting { ", starting," } else { "" };
        self.say(format!("n{id}{of} is at {}: {action:?}", point.name()));
        self.tell(Seen::FailPoint { node: id, point, action });
        if action == Action::Kill {
            // What unwinds now only lets go of what it holds.
            process.end();
            lock(&node.state).failed = Some(format!("killed at {}", point.name()));
            let world = self.clone();
            let _detached = SimRuntime::spawn(async move { world.stop(id, End::Kill).await });
        } else if point.ends(action) {
            let life = {
                let mut state = lock(&node.state);
                state.due = true;
                state.lives
            };
            let what = format!("{action:?} at {}", point.name());
            self.after(PATIENCE, move |world| world.should_have_ended(id, life, what));
        }
        Some(action)
    }

    /// A node that something has happened to by which it must end has ended by now.
    fn should_have_ended(self: &Arc<World>, id: NodeId, life: u64, what: String) {
        let node = self.node(id);
        if !self.is_life(id, life) || !node.is_due() {
            return;
        }
        if self.stands_still(id) {
            self.after(PATIENCE, move |world| world.should_have_ended(id, life, what));
        } else {
            self.tell(Seen::Outlived { node: id, what });
        }
    }
}
