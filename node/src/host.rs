//! The node around the cluster: hands what the cluster asks for to sessions, the notifier and the ticket keys.

use std::num::NonZeroU32;
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::anyhow;
use reveille_cluster::host::{Host, NotifyOrder, Taken};
use reveille_protocol::directory::Directory;
use reveille_protocol::id::TerminalId;
use reveille_protocol::wire::peer::SessionMessage;
use tokio::sync::mpsc;

use crate::ending::Final;
use crate::notify::Notifier;
use crate::session::registry::Registry;
use crate::session::tls::Tickets;

/// Within this many milliseconds terminals that are sent elsewhere come there, spread.
const COME_BACK_WITHIN: u64 = 500;

/// See the module.
pub struct NodeHost {
    /// The sessions.
    pub registry: Registry,
    /// Sends notifications; none in tests without terminals.
    pub notifier: Option<Notifier>,
    /// Notifications a second, of all the shards that this node leads.
    pub per_second: NonZeroU32,
    /// Keys of session tickets.
    pub tickets: Arc<Tickets>,
    /// The directory, for the notifier.
    pub latest: Arc<RwLock<Arc<Directory>>>,
    /// Told why the node must end.
    pub failed: mpsc::Sender<anyhow::Error>,
}

impl Host for NodeHost {
    fn session(&self, message: SessionMessage) -> Taken {
        self.registry.send(message)
    }

    fn notify(&self, order: NotifyOrder) -> bool {
        self.notifier.as_ref().is_some_and(|notifier| notifier.order(order))
    }

    fn notifications_per_second(&self) -> Option<NonZeroU32> {
        Some(self.per_second)
    }

    fn directory(&self, directory: Arc<Directory>) {
        self.tickets.update(&directory);
        *self.latest.write().unwrap_or_else(PoisonError::into_inner) = directory;
        if let Some(notifier) = &self.notifier {
            notifier.directory_changed();
        }
    }

    fn go_elsewhere(&self, whose: &dyn Fn(&TerminalId) -> bool) {
        self.registry.leave(COME_BACK_WITHIN, whose);
    }

    fn fenced(&self) {
        self.registry.leave(COME_BACK_WITHIN, &|_| true);
    }

    fn failed(&self, why: String) {
        // Full: it is ending already.
        let _ = self.failed.try_send(anyhow!(why));
    }

    fn dismissed(&self, why: String) {
        let _ = self.failed.try_send(Final::of(anyhow!(why)));
    }
}
