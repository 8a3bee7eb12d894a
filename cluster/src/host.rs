//! What the cluster asks of the node it runs in: deliver to sessions, notify terminals, hear of the directory.
//! The node decides nothing about delivery; it carries these out.

use std::sync::Arc;

use reveille_protocol::directory::Directory;
use reveille_protocol::id::*;
use reveille_protocol::service_list::row::{Reachability, Urgency};
use reveille_protocol::wire::peer::SessionMessage;

/// A notification that the shard leader wants sent; answered through `Cluster::notified`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotifyOrder {
    /// The shard.
    pub group: GroupId,
    /// To whom.
    pub terminal: TerminalId,
    /// Its life.
    pub stream: Stream,
    /// Its last granted epoch.
    pub epoch: Epoch,
    /// How to reach it.
    pub reachability: Reachability,
    /// Generation of the cluster secret that its notify secret derives from.
    pub secret: u32,
    /// Pushes that wait.
    pub pending: u32,
    /// The highest urgency among them.
    pub urgency: Urgency,
    /// Tries made before for the same pushes.
    pub attempt: u32,
}

/// What became of a message for a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// The session has it.
    Yes,
    /// Not now: it does not keep up. The leader sends again.
    Full,
    /// There is no such session on this node.
    NoSession,
}

/// What a notification came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notified {
    /// The terminal acknowledged it.
    Answered,
    /// It did not.
    Unanswered,
    /// It could not go out now; that says nothing of the terminal.
    NotTried,
}

/// The node around the cluster. Every call returns at once: it queues, or refuses.
pub trait Host: Send + Sync + 'static {
    /// For a session of this node.
    fn session(&self, message: SessionMessage) -> Taken;
    /// Send a notification; `false` if that cannot be taken on now.
    fn notify(&self, order: NotifyOrder) -> bool;
    /// The directory changed.
    fn directory(&self, directory: Arc<Directory>);
    /// This node's incarnation is over: its sessions must close.
    fn fenced(&self);
    /// A disk failed or a group stopped: the node must end, saying why.
    fn failed(&self, why: String);
}
