//! Notifications: QUIC datagrams to offline terminals. Carries out what the shard leader orders; when to notify and
//! how often is `protocol::dispatch`'s.

pub mod anchor;
pub mod budget;
pub mod dial;
pub mod own;
pub mod pace;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use reveille_cluster::ClusterHandle;
use reveille_cluster::host::NotifyOrder;
use reveille_protocol::destination::Learned;
use reveille_protocol::directory::{Directory, Secret};
use reveille_protocol::service_list::row::Reachability;
use reveille_protocol::wire::notification::{Notification, notify_secret};
use reveille_protocol::wire::stun::{self, Handle};
use tokio::sync::{Notify, Semaphore, mpsc};

use self::anchor::{AnchorPort, Serves, Waiting};
use self::dial::{Answered, Dialler, Identity, Outcome};
use self::own::Own;
use self::pace::{Pace, Place, Verdict};
use crate::guard::Guard;
use crate::session::admission::Admission;
use crate::telemetry::Count;

/// Orders that wait. The rest stays in the line of the shard's leader, which those leave who come by themselves.
const QUEUE: usize = 1024;
/// Dials at once: a few seconds' worth of terminals that do not answer.
const DIALS: usize = 512;
/// Tries of terminals that find out how they are reached. They have places of their own: most terminals behind NAT do not
/// answer the first, each of those takes 2 s, and after a power cut many come at once; notifications must not wait for them.
const TRIES: usize = 128;

/// Takes orders for notifications.
#[derive(Clone)]
pub struct Notifier {
    orders: mpsc::Sender<Waiting>,
    shared: Arc<Shared>,
}

/// What the notifier's tasks share.
struct Shared {
    cluster: Arc<OnceLock<ClusterHandle>>,
    directory: Arc<RwLock<Arc<Directory>>>,
    dialler: Arc<Dialler>,
    anchor: AnchorPort,
    pace: Arc<Pace>,
    admission: Admission,
    hint: Vec<String>,
    dials: Arc<Semaphore>,
    tries: Semaphore,
    changed: Arc<Notify>,
}

/// What a notifier works with.
pub struct Surroundings {
    /// Dials terminals at their own addresses.
    pub direct: Arc<Dialler>,
    /// Where terminals behind NAT keep their bindings.
    pub anchor: SocketAddr,
    /// What pinned terminals are shown.
    pub identity: Identity,
    /// How many may go out, and where.
    pub pace: Pace,
    /// The cluster's own addresses, as far as they are known.
    pub own: Own,
    /// Where those who are notified will come.
    pub admission: Admission,
    /// Set once it runs.
    pub cluster: Arc<OnceLock<ClusterHandle>>,
    /// Is it any use to keep a binding with this node?
    pub serves: Serves,
    /// The directory, as it changes.
    pub directory: Arc<RwLock<Arc<Directory>>>,
    /// Names the nodes that a terminal tries first.
    pub hint: Vec<String>,
    /// Watches the notifier's tasks.
    pub guard: Guard,
}

impl Notifier {
    /// Opens the anchor's port and starts the notifier's tasks on this runtime.
    pub fn start(around: Surroundings) -> std::io::Result<Notifier> {
        let (orders, waiting) = mpsc::channel(QUEUE);
        let pace = Arc::new(around.pace);
        let directory = around.directory;
        let anchor = AnchorPort::new(
            around.anchor,
            around.identity,
            pace.clone(),
            directory.clone(),
            around.serves,
            orders.clone(),
            &around.guard,
        )?;
        let shared = Arc::new(Shared {
            cluster: around.cluster,
            directory,
            dialler: around.direct,
            anchor,
            pace,
            admission: around.admission,
            hint: around.hint,
            dials: Arc::new(Semaphore::new(DIALS)),
            tries: Semaphore::new(TRIES),
            changed: Arc::default(),
        });
        tokio::spawn(around.guard.watch("notifying terminals", run(shared.clone(), waiting)));
        let follow =
            around.own.follow(shared.directory.clone(), shared.changed.clone(), Arc::downgrade(&shared.pace));
        tokio::spawn(around.guard.watch("following the directory for notifications", follow));
        Ok(Notifier { orders, shared })
    }

    /// Takes an order on; `false` if too many wait, or the node is not assembled and could not tell what came of it.
    pub fn order(&self, order: NotifyOrder) -> bool {
        self.shared.cluster.get().is_some() && self.orders.try_send(Waiting { order, waited: 0 }).is_ok()
    }

    /// The directory is another one.
    pub fn directory_changed(&self) {
        self.shared.changed.notify_one();
    }

    /// Dials a terminal now, with nothing to announce: does it answer?
    pub async fn reaches(&self, order: NotifyOrder) -> bool {
        // Closed never: it is ours.
        let Ok(_permit) = self.shared.tries.acquire().await else { return false };
        let outcome = match self.shared.admit(&order).await {
            Ok(target) => match self.shared.notify(&order, &target).await {
                Ok(answered) => {
                    // Its next ticket saves the first notification a handshake.
                    tokio::spawn(answered.close());
                    Outcome::Answered
                }
                Err(outcome) => outcome,
            },
            Err(outcome) => outcome,
        };
        Count::Probes.one(outcome.label());
        outcome == Outcome::Answered
    }

    /// UDP port at which this node takes keepalives.
    pub fn anchor_port(&self) -> u16 {
        self.shared.anchor.port()
    }

    /// Terminals are shown this from now on.
    pub fn set_identity(&self, identity: Identity) {
        self.shared.anchor.dialler.set_identity(identity.clone());
        self.shared.dialler.set_identity(identity);
    }
}

async fn run(shared: Arc<Shared>, mut waiting: mpsc::Receiver<Waiting>) {
    while let Some(Waiting { order, waited }) = waiting.recv().await {
        // Terminals come to the node that notified them: while it cannot take more, calling more is of no use to anybody.
        shared.admission.short().await;
        let target = match shared.admit(&order).await {
            Ok(target) => target,
            Err(outcome) => {
                shared.tell(&order, outcome);
                shared.wait_for_keepalive(Waiting { order, waited }, outcome);
                continue;
            }
        };
        // Closed never: it is ours.
        let Ok(permit) = shared.dials.clone().acquire_owned().await else { return };
        let shared = shared.clone();
        tokio::spawn(async move {
            let notified = shared.notify(&order, &target).await;
            shared.tell(&order, notified.as_ref().err().copied().unwrap_or(Outcome::Answered));
            match notified {
                Ok(answered) => drop(answered.close().await),
                Err(_) => shared.missed(Waiting { order, waited }, &target),
            }
            drop(permit);
        });
    }
}

fn binding(secret: &Secret, order: &NotifyOrder) -> Handle {
    stun::handle(secret, &order.terminal, order.stream, order.epoch)
}

/// Where a notification goes.
struct Target {
    place: Place,
    secret: Secret,
    /// The binding that it goes through, if it does.
    through: Option<Handle>,
}

impl Shared {
    /// Where the notification goes, once it is this node's turn to send one there.
    async fn admit(&self, order: &NotifyOrder) -> Result<Target, Outcome> {
        let secret = self.secret(order)?;
        let (place, through) = match order.reachability {
            Reachability::Direct { address, listening_key: key }
            | Reachability::Former { address, listening_key: key, .. } => {
                (Place { address, learned: Learned::Claimed, key }, None)
            }
            Reachability::Pinned { listening_key: key, .. } => {
                let handle = binding(&secret, order);
                let address = self.anchor.address(&handle).ok_or(Outcome::NoBinding)?;
                (Place { address, learned: Learned::Echoed, key }, Some(handle))
            }
            Reachability::None => return Err(Outcome::NoWay),
        };
        match self.pace.turn(&place).await {
            Verdict::Yes => Ok(Target { place, secret, through }),
            Verdict::Forbidden => Err(Outcome::Forbidden),
            Verdict::Spent => Err(Outcome::Budget),
            Verdict::Busy => Err(Outcome::Busy),
        }
    }

    /// The secret that the terminal's proof derives from.
    fn secret(&self, order: &NotifyOrder) -> Result<Secret, Outcome> {
        let directory = self.directory.read().unwrap_or_else(PoisonError::into_inner);
        let secret = directory.secrets.iter().find(|secret| secret.generation == order.secret).cloned();
        // Rotated out since the terminal's last session: it waits for its check-in.
        secret.ok_or(Outcome::NoWay)
    }

    /// Counts how it ended, and tells the shard's leader.
    fn tell(&self, order: &NotifyOrder, outcome: Outcome) {
        Count::Notifications.one(outcome.label());
        tracing::debug!(terminal = %order.terminal, outcome = outcome.label(), "a notification is over");
        if let Some(cluster) = self.cluster.get() {
            cluster.notified(order, outcome.told());
        }
    }

    /// What cannot go through a binding now waits for its next keepalive: that proves the address again, and its answer
    /// may wake the terminal without a dial.
    fn wait_for_keepalive(&self, waiting: Waiting, outcome: Outcome) {
        let order = &waiting.order;
        let pinned = matches!(order.reachability, Reachability::Pinned { .. });
        if pinned
            && waiting.waited == 0
            && matches!(outcome, Outcome::NoBinding | Outcome::Budget)
            && let Ok(secret) = self.secret(order)
        {
            self.anchor.wait(binding(&secret, order), waiting);
        }
    }

    /// Nobody answered behind a binding: it may have moved, which the next keepalive shows. Whoever sends keepalives and answers
    /// no dial is left to the ladder.
    fn missed(&self, waiting: Waiting, target: &Target) {
        if let Some(handle) = target.through {
            self.anchor.failed(&handle, target.place.address);
            if waiting.waited <= 1 {
                self.anchor.wait(handle, waiting);
            }
        }
    }

    async fn notify(&self, order: &NotifyOrder, target: &Target) -> Result<Answered, Outcome> {
        let (stream, epoch) = match order.reachability {
            Reachability::Former { stream, epoch, .. } => (stream, epoch),
            _ => (order.stream, order.epoch),
        };
        let proof = notify_secret(&target.secret, &order.terminal, stream, epoch);
        let notification = Notification {
            id: u64::from_le_bytes(crate::random::random()),
            epoch: order.epoch,
            pending: order.pending,
            urgency: order.urgency,
            hints: self.hint.clone(),
        };
        // A binding lets in only what comes from where it leads.
        let dialler = if target.through.is_some() { &self.anchor.dialler } else { &self.dialler };
        let Place { address, key, .. } = target.place;
        let notified = dialler.dial(order.terminal, address, key, &proof, &notification).await;
        self.pace.over(&target.place, notified.as_ref().err().copied().unwrap_or(Outcome::Answered));
        notified
    }
}

#[cfg(test)]
mod tests;
