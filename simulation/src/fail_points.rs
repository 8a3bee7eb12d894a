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
    /// From now on this happens. Nodes that are not there yet, or are starting, come to no point.
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
        let id = process::running()?;
        let node = self.node(id);
        node.member()?;
        let action = {
            let mut all = lock(&self.armed);
            let armed = all.iter_mut().find(|armed| {
                armed.point == point && armed.left > 0 && armed.nodes.contains(&id) && can(armed.action)
            })?;
            if armed.share < 1.0 && !self.permille((armed.share * 1000.0) as u64) {
                return None;
            }
            armed.left -= 1;
            armed.action
        };
        self.say(format!("n{id} is at {}: {action:?}", point.name()));
        self.tell(Seen::FailPoint { node: id, point, action });
        lock(&node.state).may_fail |= !matches!(action, Action::Sleep(_));
        match action {
            Action::Kill => {
                // What unwinds now only lets go of what it holds.
                if let Some(process) = node.process() {
                    process.end();
                }
                lock(&node.state).failed = Some(format!("killed at {}", point.name()));
                let world = self.clone();
                let _detached = SimRuntime::spawn(async move { world.stop(id, End::Kill).await });
            }
            Action::Panic => lock(&node.state).panicked = true,
            Action::Error | Action::Sleep(_) => {}
        }
        Some(action)
    }
}
