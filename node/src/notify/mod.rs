//! Notifications: QUIC datagrams to offline terminals. Carries out what the shard leader orders; when to notify and
//! how often is `protocol::dispatch`'s.

pub mod dial;
pub mod pace;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use reveille_cluster::ClusterHandle;
use reveille_cluster::host::NotifyOrder;
use reveille_protocol::directory::Directory;
use reveille_protocol::id::KeyFingerprint;
use reveille_protocol::service_list::row::Reachability;
use reveille_protocol::wire::notification::{Notification, notify_secret};
use tokio::sync::mpsc;

use self::dial::{Answered, Dialler, Outcome};
use self::pace::{Pace, Verdict};
use crate::telemetry::Count;

/// Orders that wait; beyond that the shard's ladder comes back with them later.
const QUEUE: usize = 8192;
/// Dials at once: a few seconds' worth of terminals that do not answer.
const DIALS: usize = 512;

/// Takes orders for notifications.
#[derive(Clone)]
pub struct Notifier {
    orders: mpsc::Sender<NotifyOrder>,
    cluster: Arc<OnceLock<ClusterHandle>>,
}

/// What the notifier's tasks share.
struct Shared {
    cluster: Arc<OnceLock<ClusterHandle>>,
    directory: Arc<RwLock<Arc<Directory>>>,
    dialler: Arc<Dialler>,
    pace: Pace,
    hint: Vec<String>,
}

impl Notifier {
    /// Starts the notifier's tasks on this runtime. `hint` names the nodes that a terminal tries first.
    pub fn start(
        dialler: Arc<Dialler>,
        pace: Pace,
        cluster: Arc<OnceLock<ClusterHandle>>,
        directory: Arc<RwLock<Arc<Directory>>>,
        hint: Vec<String>,
    ) -> Notifier {
        let (orders, waiting) = mpsc::channel(QUEUE);
        let shared = Arc::new(Shared { cluster: cluster.clone(), directory, dialler, pace, hint });
        tokio::spawn(run(shared, waiting));
        Notifier { orders, cluster }
    }

    /// Takes an order on; `false` if too many wait, or the node is not assembled and could not tell what came of it.
    pub fn order(&self, order: NotifyOrder) -> bool {
        self.cluster.get().is_some() && self.orders.try_send(order).is_ok()
    }
}

async fn run(shared: Arc<Shared>, mut waiting: mpsc::Receiver<NotifyOrder>) {
    let dials = Arc::new(tokio::sync::Semaphore::new(DIALS));
    while let Some(order) = waiting.recv().await {
        let target = match shared.admit(&order).await {
            Ok(target) => target,
            Err(outcome) => {
                shared.tell(&order, outcome);
                continue;
            }
        };
        // Closed never: it is ours.
        let Ok(permit) = dials.clone().acquire_owned().await else { return };
        let shared = shared.clone();
        tokio::spawn(async move {
            let notified = shared.notify(&order, target).await;
            shared.tell(&order, notified.as_ref().err().copied().unwrap_or(Outcome::Answered));
            if let Ok(answered) = notified {
                answered.close().await;
            }
            drop(permit);
        });
    }
}

impl Shared {
    /// Where the notification goes, once it is this node's turn to send one there.
    async fn admit(&self, order: &NotifyOrder) -> Result<(SocketAddr, KeyFingerprint), Outcome> {
        let (address, listening_key) = match order.reachability {
            Reachability::Direct { address, listening_key }
            | Reachability::Former { address, listening_key, .. } => (address, listening_key),
            Reachability::None | Reachability::Pinned { .. } => return Err(Outcome::NoWay),
        };
        match self.pace.turn(address).await {
            Verdict::Yes => Ok((address, listening_key)),
            Verdict::Forbidden => Err(Outcome::Forbidden),
            Verdict::TooMany => Err(Outcome::Budget),
        }
    }

    /// Counts how it ended, and tells the shard's leader.
    fn tell(&self, order: &NotifyOrder, outcome: Outcome) {
        Count::Notifications.one(outcome.label());
        if let Some(cluster) = self.cluster.get() {
            cluster.notified(order.group, order.terminal, outcome.told());
        }
    }

    async fn notify(
        &self,
        order: &NotifyOrder,
        (address, listening_key): (SocketAddr, KeyFingerprint),
    ) -> Result<Answered, Outcome> {
        let secret = {
            let directory = self.directory.read().unwrap_or_else(PoisonError::into_inner);
            directory.secrets.iter().find(|secret| secret.generation == order.secret).cloned()
        };
        // Rotated out since the terminal's last session: it waits for its check-in.
        let Some(secret) = secret else { return Err(Outcome::NoWay) };
        let (stream, epoch) = match order.reachability {
            Reachability::Former { stream, epoch, .. } => (stream, epoch),
            _ => (order.stream, order.epoch),
        };
        let proof = notify_secret(&secret, &order.terminal, stream, epoch);
        let notification = Notification {
            id: u64::from_le_bytes(crate::random::random()),
            epoch: order.epoch,
            pending: order.pending,
            urgency: order.urgency,
            hints: self.hint.clone(),
        };
        self.dialler.dial(order.terminal, address, listening_key, &proof, &notification).await
    }
}
