//! What the cluster asks of the node it runs in: deliver to sessions, notify terminals, hear of the directory.
//! The node decides nothing about delivery; it carries these out.

use std::num::NonZeroU32;
use std::sync::Arc;

use reveille_protocol::directory::Directory;
use reveille_protocol::id::TerminalId;
use reveille_protocol::wire::peer::SessionMessage;
pub use reveille_protocol::wire::peer::{Notified, NotifyOrder};

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

/// The node around the cluster. Every call returns at once: it queues, or refuses.
pub trait Host: Send + Sync + 'static {
    /// For a session of this node.
    fn session(&self, message: SessionMessage) -> Taken;
    /// Send a notification, answered through `Member::notified`; `false` if that cannot be taken on now.
    fn notify(&self, order: NotifyOrder) -> bool;
    /// Notifications that this node sends in a second at most; `None`: no bound. The shards that it leads share them.
    fn notifications_per_second(&self) -> Option<NonZeroU32> {
        None
    }
    /// The directory changed.
    fn directory(&self, directory: Arc<Directory>);
    /// Sessions of these terminals must go to another node: no leader of their group is reached from here.
    fn go_elsewhere(&self, whose: &dyn Fn(&TerminalId) -> bool);
    /// This node's incarnation is over: its sessions must close.
    fn fenced(&self);
    /// A disk failed or a group stopped: the node must end, saying why.
    fn failed(&self, why: String);
    /// The cluster does not let this node in any more: it must end, saying why, and starting it again is of no use.
    fn dismissed(&self, why: String) {
        self.failed(why);
    }
}
