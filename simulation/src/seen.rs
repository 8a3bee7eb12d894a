//! What happens in the world, for whoever watches it from outside: the chaos suite writes a history of it. Judges nothing.

use reveille_protocol::fail_point::{Action, Point};
use reveille_protocol::id::*;
use reveille_protocol::wire::session::Push;

use crate::world::{World, lock, now};

/// Something that happened. Terminals by their numbers, from 0.
#[derive(Debug, Clone)]
pub enum Seen {
    /// A terminal's process began.
    Started { device: usize },
    /// It is no more.
    Stopped { device: usize },
    /// A notification came to a terminal.
    Notified { device: usize },
    /// Pushes for it have come from its group's leader to the node of its session, which has not looked at them yet.
    HandedOff { device: usize, group: GroupId, node: NodeId },
    /// A terminal's session is open.
    Connected { device: usize, node: NodeId, epoch: Epoch },
    /// It is closed, so far as the terminal knows.
    Disconnected { device: usize },
    /// A terminal's stream begins anew.
    Reset { device: usize, next: Seq },
    /// A push was given to the application.
    Delivered { device: usize, push: Push, node: NodeId, epoch: Epoch },
    /// The application confirms.
    Confirmed { device: usize, seq: Seq },
    /// So says the terminal's disk.
    Saved { device: usize, seq: Seq },
    /// A node sends a notification; whether the address is one that was proven.
    Notifying { device: usize, node: NodeId, pending: u64, proven: bool },
    /// A node sends a part of a snapshot.
    Snapshot { from: NodeId, to: NodeId },
    /// A node says that it has lost what it had promised, after something was done to its folder.
    Lost { node: NodeId, why: String },
    /// A node came to a fail point, and this happened there.
    FailPoint { node: NodeId, point: Point, action: Action },
    /// A node that must end by what happened at a fail point says so.
    Due { node: NodeId },
    /// A node that must end by what happened at a fail point goes on.
    Outlived { node: NodeId, what: String },
    /// A node ended by itself, and nothing was done to it that explains it.
    Fell { node: NodeId, why: String },
}

/// Told of everything, with the time in microseconds. It must not call the world.
pub type Watch = Box<dyn FnMut(u64, Seen) + Send>;

impl World {
    /// From now on this is told of what happens.
    pub fn watch(&self, watch: Watch) {
        *lock(&self.watch) = Some(watch);
    }

    pub(crate) fn tell(&self, seen: Seen) {
        if let Some(watch) = &mut *lock(&self.watch) {
            watch(now(), seen);
        }
    }
}
