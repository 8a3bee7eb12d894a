//! The node around the cluster: hands what the cluster asks for to sessions, the notifier and the ticket keys.

use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use reveille_cluster::host::{Host, NotifyOrder, Taken};
use reveille_protocol::directory::Directory;
use reveille_protocol::wire::peer::SessionMessage;
use tokio::sync::mpsc;

use crate::notify::Notifier;
use crate::session::registry::Registry;
use crate::session::tls::Tickets;

/// Within this many milliseconds the terminals of a fenced node come back, spread.
const COME_BACK_WITHIN: u64 = 500;

/// See the module.
pub struct NodeHost {
    /// The sessions.
    pub registry: Registry,
    /// Set before the first shard can lead.
    pub notifier: Arc<OnceLock<Notifier>>,
    /// Keys of session tickets.
    pub tickets: Arc<Tickets>,
    /// The directory, for the notifier.
    pub latest: Arc<RwLock<Arc<Directory>>>,
    /// Told why the node must end.
    pub failed: mpsc::Sender<String>,
}

impl Host for NodeHost {
    fn session(&self, message: SessionMessage) -> Taken {
        self.registry.send(message)
    }

    fn notify(&self, order: NotifyOrder) -> bool {
        self.notifier.get().is_some_and(|notifier| notifier.order(order))
    }

    fn directory(&self, directory: Arc<Directory>) {
        self.tickets.update(&directory);
        *self.latest.write().unwrap_or_else(PoisonError::into_inner) = directory;
    }

    fn fenced(&self) {
        self.registry.leave_all(COME_BACK_WITHIN);
    }

    fn failed(&self, why: String) {
        // Full: it is ending already.
        let _ = self.failed.try_send(why);
    }
}
