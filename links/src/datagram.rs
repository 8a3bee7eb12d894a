//! Datagrams through a link, and the NAT that it is: each sender has a port of its own towards the destination. Which
//! datagram has which fate is drawn by `fate`.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::counts::Done;
use super::fate::{self, Direction};
use super::faults::Pass;
use super::pace::Pace;
use super::{Shared, sleep_until_about};

/// Senders at once, each with a socket: a run has thousands of terminals at most, and a link is one's, or all nodes'.
const FLOWS: usize = 256;
/// A sender from which nothing came for so long is forgotten where no NAT's time is given: longer than any keepalive.
const FORGET: Duration = Duration::from_secs(120);
/// Datagrams on their way, and their bytes: a second of a busy node's. What has no room is lost, as in a router.
const ON_THE_WAY: (usize, usize) = (4096, 8 << 20);
/// Datagrams that were taken and have no place on the way yet: they come in bursts.
const TAKEN: usize = 256;
/// The largest datagram there is.
const LARGEST: usize = 65_536;
/// What would wait longer than this for a link's rate is lost: routers keep no more.
const QUEUE: Duration = Duration::from_secs(1);
/// How often it is seen whom the NAT forgets.
const LOOK: Duration = Duration::from_millis(100);

/// A copy of a datagram that goes on.
struct Passing {
    due: Instant,
    direction: Direction,
    /// Whose flow it belongs to.
    sender: SocketAddr,
    bytes: Vec<u8>,
    by: Arc<UdpSocket>,
}

/// One sender's port towards the destination.
struct Flow {
    socket: Arc<UdpSocket>,
    heard: Instant,
    back: AbortHandle,
}

/// Draws fates and sends what has one on its way.
struct Carrier {
    shared: Arc<Shared>,
    way: mpsc::Sender<Passing>,
    /// By direction: how many came so far.
    numbers: [AtomicU64; 2],
    paces: [std::sync::Mutex<Pace>; 2],
}

/// Carries datagrams for as long as the link is there.
pub(super) async fn serve(
    shared: Arc<Shared>,
    socket: UdpSocket,
    mut rebinds: mpsc::Receiver<Option<SocketAddr>>,
) {
    let socket = Arc::new(socket);
    let (way, passing) = mpsc::channel(TAKEN);
    let mut tasks = JoinSet::new();
    tasks.spawn(on_the_way(shared.clone(), passing));
    let carrier = Arc::new(Carrier {
        shared: shared.clone(),
        way,
        numbers: Default::default(),
        paces: Default::default(),
    });
    let mut flows: HashMap<SocketAddr, Flow> = HashMap::new();
    let mut buffer = vec![0; LARGEST];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            Some(whose) = rebinds.recv() => {
                forget(&shared, &mut flows, |sender, _| whose.is_none_or(|whose| whose == *sender));
                continue;
            }
            () = tokio::time::sleep(LOOK), if !flows.is_empty() => {
                forget_silent(&shared, &mut flows);
                while tasks.try_join_next().is_some() {}
                continue;
            }
        };
        // What a receiver refused comes back as an error of the socket, and says nothing of the next one.
        let Ok((length, from)) = received else { continue };
        forget_silent(&shared, &mut flows);
        if !flows.contains_key(&from) {
            match port(&carrier, &mut tasks, &socket, from, flows.len()).await {
                Some(flow) => flows.insert(from, flow),
                None => {
                    shared.counts.add(&[Done::Refused]);
                    continue;
                }
            };
        }
        let Some(flow) = flows.get_mut(&from) else { continue };
        flow.heard = Instant::now();
        carrier.take(Direction::Up, from, &buffer[..length], flow.socket.clone()).await;
    }
}

fn forget_silent(shared: &Shared, flows: &mut HashMap<SocketAddr, Flow>) {
    let silent = |sender: &SocketAddr, flow: &Flow| {
        flow.heard.elapsed() > shared.faults_of(*sender).nat_timeout.unwrap_or(FORGET)
    };
    forget(shared, flows, silent);
}

fn forget(shared: &Shared, flows: &mut HashMap<SocketAddr, Flow>, whom: impl Fn(&SocketAddr, &Flow) -> bool) {
    flows.retain(|sender, flow| {
        let goes = whom(sender, flow);
        if goes {
            flow.back.abort();
            shared.counts.add(&[Done::Unmapped]);
        }
        !goes
    });
}

/// Gives a sender a port towards the destination, if there is one to be had.
async fn port(
    carrier: &Arc<Carrier>,
    tasks: &mut JoinSet<()>,
    back: &Arc<UdpSocket>,
    from: SocketAddr,
    flows: usize,
) -> Option<Flow> {
    let shared = &carrier.shared;
    let to = shared.to();
    let any = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    let socket = match flows < FLOWS {
        true => UdpSocket::bind(SocketAddr::new(shared.from.unwrap_or(any), 0)).await.ok()?,
        false => return None,
    };
    // Only the destination's datagrams come in, as through most NATs.
    socket.connect(to).await.ok()?;
    let socket = Arc::new(socket);
    shared.counts.add(&[Done::Mapped]);
    let (carrier, back, own) = (carrier.clone(), back.clone(), socket.clone());
    let back = tasks.spawn(async move {
        let mut buffer = vec![0; LARGEST];
        loop {
            match own.recv(&mut buffer).await {
                Ok(length) => carrier.take(Direction::Down, from, &buffer[..length], back.clone()).await,
                // The destination does not listen, now; the sender sees nothing of that, as through the Internet.
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    });
    Some(Flow { socket, heard: Instant::now(), back })
}

impl Carrier {
    async fn take(&self, direction: Direction, sender: SocketAddr, bytes: &[u8], by: Arc<UdpSocket>) {
        let n = self.numbers[direction as usize].fetch_add(1, Ordering::Relaxed);
        let way = self.shared.faults_of(sender).way(direction);
        let fate = fate::datagram(&self.shared.lot, direction, n, bytes.len(), &way);
        let now = Instant::now();
        let carried = {
            let pace = &self.paces[direction as usize];
            let mut pace = pace.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let before = *pace;
            let carried = pace.carried(now, bytes.len(), &way);
            if carried > now + QUEUE {
                *pace = before;
                self.shared.counts.add(&[Done::Crowded]);
                return;
            }
            carried
        };
        self.shared.counts.add(&fate.done);
        for copy in fate.copies {
            let passing = Passing {
                due: carried + copy.after,
                direction,
                sender,
                bytes: copy.of(bytes),
                by: by.clone(),
            };
            // Room comes at once: who takes them never waits. An error is the link's end.
            let _ = self.way.send(passing).await;
        }
    }
}

/// Has each datagram wait for its time, and while its direction is held.
async fn on_the_way(shared: Arc<Shared>, mut taken: mpsc::Receiver<Passing>) {
    let mut faults = shared.faults.subscribe();
    // In the order of their times, and of their coming.
    let mut waiting: BTreeMap<(Instant, u64), Passing> = BTreeMap::new();
    let mut held: VecDeque<Passing> = VecDeque::new();
    let (mut number, mut bytes) = (0, 0);
    loop {
        let next = waiting.keys().next().map(|(due, _)| *due);
        tokio::select! {
            passing = taken.recv() => {
                let Some(passing) = passing else { return };
                if waiting.len() + held.len() >= ON_THE_WAY.0 || bytes + passing.bytes.len() > ON_THE_WAY.1 {
                    shared.counts.add(&[Done::Crowded]);
                    continue;
                }
                bytes += passing.bytes.len();
                number += 1;
                waiting.insert((passing.due, number), passing);
            }
            () = sleep_until_about(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                let Some((_, passing)) = waiting.pop_first() else { continue };
                match shared.faults_of(passing.sender).way(passing.direction).pass {
                    Pass::Held => {
                        shared.counts.add(&[Done::Held]);
                        held.push_back(passing);
                    }
                    Pass::Open | Pass::Lost => {
                        bytes -= passing.bytes.len();
                        send(passing).await;
                    }
                }
            }
            _ = faults.changed() => {
                faults.borrow_and_update();
                for passing in std::mem::take(&mut held) {
                    if shared.faults_of(passing.sender).way(passing.direction).pass == Pass::Held {
                        held.push_back(passing);
                    } else {
                        bytes -= passing.bytes.len();
                        send(passing).await;
                    }
                }
            }
        }
    }
}

/// What cannot be sent is lost, as on any way.
async fn send(passing: Passing) {
    let _ = match passing.direction {
        Direction::Up => passing.by.send(&passing.bytes).await,
        Direction::Down => passing.by.send_to(&passing.bytes, passing.sender).await,
    };
}
