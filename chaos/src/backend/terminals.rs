//! Terminals, made of the SDK as a device maker's are, and what their applications see.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use reveille_chaos::history::Observation;
use reveille_chaos::scenario::{Kind, When};
use reveille_terminal::{Builder, Event, Linger, Received, Terminal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::live::Run;
use super::payload::name;

/// A new process of a terminal can open its state within this: the one before lets go of it.
const OPEN: Duration = Duration::from_secs(10);

/// What is done to a terminal.
#[derive(Debug)]
pub(super) enum Order {
    /// Its process ends where it stands; the next one starts when this turns true.
    Kill(watch::Receiver<bool>),
    /// Its application confirms nothing until this turns true.
    Withhold(watch::Receiver<bool>),
    /// It connects anew, as a device does that has another network.
    Reconnect,
    /// Its application takes nothing until this turns true, so that the SDK soon reads no more.
    Slow(watch::Receiver<bool>),
    /// Another device has a copy of its state, and lives until this turns true.
    Twin(watch::Receiver<bool>),
}

impl Order {
    /// That a kind of faults comes to, until `door` turns true; none if it is not done to terminals.
    pub(super) fn of(kind: Kind, door: &watch::Receiver<bool>) -> Option<Order> {
        Some(match kind.name() {
            "terminal-kill" => Order::Kill(door.clone()),
            "ack-withheld" => Order::Withhold(door.clone()),
            "reconnect" => Order::Reconnect,
            "slow-reader" => Order::Slow(door.clone()),
            "twin" => Order::Twin(door.clone()),
            _ => return None,
        })
    }
}

/// Confirmations that are held back, until when.
#[derive(Default)]
struct Held {
    until: Option<watch::Receiver<bool>>,
    /// At most a session's window: no more come without a confirmation.
    pushes: Vec<Received>,
}

impl Held {
    /// Waits for the end of it; for ever, if nothing is held back.
    async fn over(&mut self) {
        match &mut self.until {
            // An error is the run's end, which ends this, too.
            Some(until) => drop(until.wait_for(|over| *over).await),
            None => std::future::pending().await,
        }
    }
}

/// All terminals have said goodbye within this.
const GOODBYE: Duration = Duration::from_secs(20);
/// Orders to one terminal that wait.
const ORDERS: usize = 4;

/// The terminals of a run.
pub(super) struct Devices {
    tasks: JoinSet<()>,
    end: watch::Sender<bool>,
}

impl Devices {
    /// Starts as many as the workload has, their states under `states`; and for each what is done to it.
    pub(super) fn start(run: &Arc<Run>, states: &Path) -> (Devices, Vec<mpsc::Sender<Order>>) {
        let (end, ending) = watch::channel(false);
        let (mut tasks, mut orders) = (JoinSet::new(), Vec::new());
        let workload = &run.scenario.workload;
        for number in 0..workload.terminals as usize {
            let (order, ordered) = mpsc::channel(ORDERS);
            orders.push(order);
            let device = Device {
                run: run.clone(),
                number,
                copy: 0,
                twins: 0,
                stays: (number as f64) < workload.connected.0 * workload.terminals as f64,
                state: states.join(format!("t{}", number + 1)),
                orders: ordered,
                end: ending.clone(),
            };
            tasks.spawn(device.live());
        }
        (Devices { tasks, end }, orders)
    }

    /// They say goodbye and end, or are ended.
    pub(super) async fn end(mut self) {
        self.end.send_replace(true);
        let goodbye = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(GOODBYE, goodbye).await.is_err() {
            self.tasks.shutdown().await;
        }
    }
}

/// A device's life. Dropped before its end, it ends where it stands.
type Life = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// One terminal, through all its processes.
struct Device {
    run: Arc<Run>,
    number: usize,
    /// Tells devices of one identity apart: 0 for the one that was there first.
    copy: u64,
    /// Copies that there were of it.
    twins: u64,
    stays: bool,
    state: PathBuf,
    orders: mpsc::Receiver<Order>,
    end: watch::Receiver<bool>,
}

impl Device {
    /// Lives until the run is over.
    fn live(mut self) -> Life {
        Box::pin(async move {
            loop {
                let Some(mut terminal) = self.start().await else { return };
                let id = terminal.id().to_string();
                self.run.registered(self.number, &id);
                self.run.see(Observation::Started { terminal: id.clone(), copy: self.copy });
                let mut epoch = 0;
                let mut held = Held::default();
                let mut twin: Option<Life> = None;
                let killed = loop {
                    tokio::select! {
                        event = terminal.next() => match event {
                            Some(event) => {
                                self.seen(&id, event, &mut epoch, &mut held);
                                self.run.bound(self.number, terminal.reachability().anchor);
                            }
                            None => {
                                self.run.trouble(format!("terminal {} has ended by itself", self.number + 1));
                                return;
                            }
                        },
                        Some(order) = self.orders.recv() => match order {
                            Order::Kill(back) => break Some(back),
                            Order::Withhold(until) => held.until = Some(until),
                            Order::Reconnect => terminal.network_changed(),
                            Order::Slow(mut until) => {
                                // An error is the run's end, which opens the door, too.
                                let _ = until.wait_for(|over| *over).await;
                            }
                            Order::Twin(until) if twin.is_none() => twin = self.twin(until),
                            // There is one already.
                            Order::Twin(_) => {}
                        },
                        () = over(&mut twin) => {
                            twin = None;
                            // Whoever takes the first device up again has it look for what came.
                            terminal.network_changed();
                        }
                        () = held.over() => {
                            held.until = None;
                            held.pushes.drain(..).for_each(|push| self.confirm(&id, push));
                        }
                        _ = self.end.changed() => break None,
                    }
                };
                self.run.session(self.number, None);
                match killed {
                    Some(mut back) => {
                        drop(terminal);
                        self.run.see(Observation::Stopped { terminal: id, copy: self.copy });
                        // An error is the run's end, which opens the door, too.
                        let _ = back.wait_for(|back| *back).await;
                    }
                    None => {
                        terminal.shutdown().await;
                        self.run.see(Observation::Stopped { terminal: id, copy: self.copy });
                        return;
                    }
                }
                if *self.end.borrow() {
                    return;
                }
            }
        })
    }

    /// Another device with a copy of this one's state, beside it.
    fn twin(&mut self, until: watch::Receiver<bool>) -> Option<Life> {
        self.twins += 1;
        let state = self.state.with_extension(format!("twin{}", self.twins));
        if let Err(error) = copy(&self.state, &state) {
            self.run.trouble(format!("the state of terminal {} cannot be copied: {error}", self.number + 1));
            return None;
        }
        let twin = Device {
            run: self.run.clone(),
            number: self.number,
            copy: self.twins,
            twins: 0,
            stays: self.stays,
            state,
            orders: mpsc::channel(ORDERS).1,
            end: until,
        };
        Some(twin.live())
    }

    async fn start(&self) -> Option<Terminal> {
        let linger = if self.stays { Linger::Forever } else { Linger::AtOnce };
        // A port is one device's.
        let listen =
            self.run.links().listens(self.number).filter(|_| self.copy == 0).unwrap_or(self.run.listen);
        let started = tokio::time::timeout(OPEN, async {
            loop {
                let mut builder = Builder::new(self.run.sessions.clone(), &self.run.ca, &self.state);
                if let Some(token) = &self.run.enrolment {
                    builder = builder.enrolment(token.as_str());
                }
                match builder.linger(linger).listen(listen).start().await {
                    Ok(terminal) => return terminal,
                    // Its former process has the state's lock until its task is dropped.
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        });
        let started = started.await.ok();
        if started.is_none() {
            self.run.trouble(format!("terminal {} cannot open its state", self.number + 1));
        }
        started
    }

    fn seen(&self, id: &str, event: Event, epoch: &mut u64, held: &mut Held) {
        let terminal = id.to_owned();
        match event {
            Event::Notified { .. } => self.run.see(Observation::Notified { terminal, copy: self.copy }),
            Event::Connected { node, epoch: new, .. } => {
                *epoch = new.0;
                self.run.see(Observation::Connected {
                    terminal,
                    copy: self.copy,
                    node: node.0,
                    epoch: new.0,
                });
                self.run.session(self.number, Some(node.0));
                self.run.happened(When::Attached);
            }
            Event::Disconnected { .. } => {
                self.run.session(self.number, None);
                self.run.see(Observation::Disconnected { terminal, copy: self.copy });
            }
            Event::Reset { next } => {
                self.run.see(Observation::Reset { terminal, copy: self.copy, next: next.0 })
            }
            Event::Received(push) => {
                self.received(id, &push, *epoch);
                match held.until {
                    Some(_) => held.pushes.push(push),
                    None => self.confirm(id, push),
                }
            }
            Event::CheckIn => self.run.cover("terminal.check-in"),
            Event::Problem { .. } => self.run.cover("terminal.problem"),
            Event::Reachable { class } => self.run.cover(&format!("terminal.{class:?}").to_lowercase()),
            Event::Listening { .. } => {}
        }
    }

    fn received(&self, terminal: &str, push: &Received, epoch: u64) {
        let payload = name(&push.body);
        self.run.delivered(&payload);
        self.run.see(Observation::Delivered {
            terminal: terminal.to_owned(),
            copy: self.copy,
            payload,
            seq: push.seq.0,
            prev: Some(push.prev.0),
            maybe_seen: push.maybe_seen,
            node: push.node.0,
            epoch: Some(epoch),
        });
    }

    fn confirm(&self, terminal: &str, push: Received) {
        let seq = push.seq.0;
        self.run.see(Observation::Confirmed { terminal: terminal.to_owned(), copy: self.copy, seq });
        push.confirm();
    }
}

/// Waits for the end of a twin; for ever, if there is none.
async fn over(twin: &mut Option<Life>) {
    match twin {
        Some(twin) => twin.await,
        None => std::future::pending().await,
    }
}

/// Copies the files of a folder.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        fs::copy(&path, to.join(path.file_name().unwrap_or_default()))?;
    }
    Ok(())
}
