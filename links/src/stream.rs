//! Streams through a link: connections, and what each direction carries. Which part has which fate is drawn by `fate`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::counts::Done;
use super::fate::{self, Direction};
use super::faults::{Faults, Pass};
use super::pace::Pace;
use super::{Orders, Shared, sleep_until_about};

/// Connections of a link at once: two descriptors each, of a run's few tens of thousand.
const CONNECTIONS: usize = 1024;
/// The most of a stream that has one fate.
const PART: usize = 16 * 1024;
/// Parts of one direction of a connection that are on their way: 1 MiB at most, about what a kernel keeps for it.
const PARTS: usize = 64;
/// The destination takes a connection within this or never.
const CONNECT: Duration = Duration::from_secs(5);
/// How often it is seen whether somebody who waits has given up.
const LOOK: Duration = Duration::from_millis(250);
/// What one end of a connection whose other end is gone may go on for: longer than any run waits for it.
const ALONE: Duration = Duration::from_secs(600);

/// Numbers of parts, for the link as a whole.
#[derive(Debug, Default)]
struct Numbers([AtomicU64; 2]);

/// Takes connections for as long as the link is there.
pub(super) async fn serve(shared: Arc<Shared>, listener: TcpListener) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let numbers = Arc::new(Numbers::default());
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let (Ok((client, _)), Ok(permit)) = (accepted, permits.clone().try_acquire_owned()) else {
            shared.counts.add(&[Done::Refused]);
            // Of descriptors there may be some again soon; who came is refused by being dropped.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let (shared, numbers) = (shared.clone(), numbers.clone());
        connections.spawn(async move {
            carry(&shared, &numbers, client).await;
            drop(permit);
        });
    }
}

/// One connection, from its beginning to its end.
async fn carry(shared: &Shared, numbers: &Numbers, mut client: TcpStream) {
    let (mut faults, mut orders) = (shared.faults.subscribe(), shared.orders.subscribe());
    let before = *orders.borrow_and_update();
    let began = Instant::now();
    let opened = tokio::select! {
        opened = open(shared, &client, &mut faults, began) => opened,
        _ = orders.wait_for(|now| now.reset > before.reset) => None,
    };
    let Some(mut server) = opened else {
        shared.counts.add(&[Done::Refused]);
        break_off(&client);
        return;
    };
    shared.counts.add(&[Done::Connected]);
    // Failing, they only make it slower.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    // A connection takes a round trip before its first byte; the client's kernel has it at once, so its bytes wait here.
    let round = shared.way(Direction::Up).delay + shared.way(Direction::Down).delay;
    let ended = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let pumps = async {
            let up = Pump { shared, numbers, direction: Direction::Up, begin: began + round };
            let down = Pump { shared, numbers, direction: Direction::Down, begin: began };
            tokio::try_join!(up.run(from_client, to_server), down.run(from_server, to_client)).map(drop)
        };
        tokio::select! {
            ended = pumps => match ended {
                Ok(()) => End::Closed,
                Err(Broken) => End::Broken,
            },
            ordered = ordered(&mut orders, before) => ordered,
        }
    };
    match ended {
        End::Closed => {}
        End::Broken => {
            shared.counts.add(&[Done::Reset]);
            break_off(&client);
            break_off(&server);
        }
        End::Gone(end) => {
            shared.counts.add(&[Done::HalfOpen]);
            let (gone, left) = match end {
                Direction::Up => (client, server),
                Direction::Down => (server, client),
            };
            break_off(&gone);
            drop(gone);
            let _ = timeout(ALONE, closed(&left)).await;
        }
    }
}

/// How a connection ended.
enum End {
    Closed,
    Broken,
    /// That of this end.
    Gone(Direction),
}

/// It was broken off by one of its ends, or lost bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Broken;

/// Waits for an order that ends the connection.
async fn ordered(orders: &mut watch::Receiver<Orders>, before: Orders) -> End {
    let changed = |now: &Orders| now.reset > before.reset || now.gone != before.gone;
    match orders.wait_for(changed).await {
        Ok(now) if now.gone[Direction::Up as usize] > before.gone[Direction::Up as usize] => {
            End::Gone(Direction::Up)
        }
        Ok(now) if now.gone != before.gone => End::Gone(Direction::Down),
        Ok(_) | Err(_) => End::Broken,
    }
}

/// Ends a socket by a RST when it is dropped.
fn break_off(stream: &TcpStream) {
    // A socket that cannot is dead already.
    let _ = stream.set_zero_linger();
}

/// Connects to the destination when the link passes both ways; `None`: it takes no connection, or the client is gone.
async fn open(
    shared: &Shared,
    client: &TcpStream,
    faults: &mut watch::Receiver<Faults>,
    began: Instant,
) -> Option<TcpStream> {
    let passes = |faults: &Faults| faults.up.pass == Pass::Open && faults.down.pass == Pass::Open;
    while timeout(LOOK, faults.wait_for(passes)).await.is_err() {
        if is_closed(client) {
            return None;
        }
    }
    sleep_until_about(began + shared.way(Direction::Up).delay).await;
    if is_closed(client) {
        return None;
    }
    timeout(CONNECT, dial(shared)).await.ok()?.ok()
}

async fn dial(shared: &Shared) -> io::Result<TcpStream> {
    let to = shared.to();
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(from) = shared.from {
        socket.bind(SocketAddr::new(from, 0))?;
    }
    socket.connect(to).await
}

/// Its peer has closed or broken it, whether or not something is still to be read.
fn is_closed(stream: &TcpStream) -> bool {
    let ready = async { stream.ready(Interest::READABLE | Interest::ERROR).await };
    match futures::FutureExt::now_or_never(ready) {
        Some(Ok(ready)) => ready.is_read_closed() || ready.is_error(),
        Some(Err(_)) => true,
        None => false,
    }
}

async fn closed(stream: &TcpStream) {
    while !is_closed(stream) {
        tokio::time::sleep(LOOK).await;
    }
}

/// One direction of a connection.
struct Pump<'a> {
    shared: &'a Shared,
    numbers: &'a Numbers,
    direction: Direction,
    /// Nothing is read before.
    begin: Instant,
}

/// What is on its way.
struct Passing {
    due: Instant,
    what: What,
}

enum What {
    Bytes(Vec<u8>),
    End,
    Broken,
}

impl Pump<'_> {
    async fn run(&self, from: ReadHalf<'_>, to: WriteHalf<'_>) -> Result<(), Broken> {
        let (put, get) = mpsc::channel(PARTS);
        tokio::try_join!(self.read(from, put), self.write(to, get)).map(drop)
    }

    async fn read(&self, mut from: ReadHalf<'_>, put: mpsc::Sender<Passing>) -> Result<(), Broken> {
        sleep_until_about(self.begin).await;
        let mut pace = Pace::default();
        let mut buffer = vec![0; PART];
        loop {
            let read = from.read(&mut buffer).await;
            let now = Instant::now();
            let way = self.shared.way(self.direction);
            let (what, after) = match read {
                Ok(0) => (What::End, way.delay),
                Err(_) => (What::Broken, way.delay),
                Ok(length) => {
                    let n = self.numbers.0[self.direction as usize].fetch_add(1, Ordering::Relaxed);
                    let part = fate::part(&self.shared.lot, self.direction, n, length, &way);
                    fate::turn(&mut buffer[..length], part.flip);
                    self.shared.counts.add(&part.done);
                    (What::Bytes(buffer[..length].to_vec()), part.after)
                }
            };
            let length = if let What::Bytes(bytes) = &what { bytes.len() } else { 0 };
            let last = length == 0;
            let due = pace.in_order(now, length, &way, after);
            // No room, as where the receiver's window is full: the sender waits. Nobody takes it: it cannot be written.
            if put.send(Passing { due, what }).await.is_err() || last {
                return Ok(());
            }
        }
    }

    async fn write(&self, mut to: WriteHalf<'_>, mut get: mpsc::Receiver<Passing>) -> Result<(), Broken> {
        let mut faults = self.shared.faults.subscribe();
        let pass = |faults: &Faults| faults.way(self.direction).pass;
        let mut lost = false;
        loop {
            let next = tokio::select! {
                next = get.recv() => next,
                // What lost bytes cannot go on when the link passes again.
                _ = faults.wait_for(|faults| pass(faults) != Pass::Lost), if lost => return Err(Broken),
            };
            let Some(Passing { due, what }) = next else { return Ok(()) };
            sleep_until_about(due).await;
            if pass(&faults.borrow()) == Pass::Held {
                self.shared.counts.add(&[Done::Held]);
                // An error is the link's end, which ends this, too.
                let _ = faults.wait_for(|faults| pass(faults) != Pass::Held).await;
            }
            if pass(&faults.borrow()) == Pass::Lost {
                self.shared.counts.add(&[Done::Swallowed]);
                lost = true;
                continue;
            }
            if lost {
                return Err(Broken);
            }
            let written = match &what {
                What::Bytes(bytes) => {
                    self.shared.counts.add(&[Done::Passed]);
                    to.write_all(bytes).await
                }
                What::End => to.shutdown().await,
                What::Broken => return Err(Broken),
            };
            if written.is_err() {
                // The receiver is gone, which the sender learns the other way round, when and if that passes.
                return Ok(());
            }
        }
    }
}
