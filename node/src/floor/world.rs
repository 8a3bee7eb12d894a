//! The hosts of a run: nodes that are the whole program but for its threads, terminals that are the SDK as a device has it, and
//! publishers' machine. Strikes nobody.

use std::cell::Cell;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use reveille_chaos::history::Observation;
use reveille_protocol::hash::sha256;
use reveille_terminal::{Builder, Event, Linger};
use tokio::sync::watch;
use tokio::time::timeout;
use turmoil::Sim;

use super::record::Record;
use crate::assemble;
use crate::cli::certs::Ca;
use crate::config::{
    Admin, Admission, Cluster, Config, FirstTenant, Http, Log, Notify, Port, Session, Storage, Tls,
};

const CLUSTER: u64 = 0x000f_1004;
/// What publishers show.
pub const TOKEN: &str = "a-token-of-the-floor";
const SESSIONS: u16 = 8443;
const PEERS: u16 = 7100;
/// The publishers' port.
pub const HTTP: u16 = 8080;
/// One terminal in so many stays connected.
const STAYS: usize = 3;
/// A node that is told to end has ended within this.
const LEAVE: Duration = Duration::from_secs(8);
/// A terminal to which nothing happens for so long says how it stands, in the log.
const LOOK: Duration = Duration::from_secs(10);
/// What waits in the kernels of the hosts.
const ROOM: usize = 4096;

/// A run's hosts.
pub struct World {
    pub sim: Sim<'static>,
    pub record: Rc<Record>,
    /// The nodes' names; `n1` is node 1.
    pub nodes: Vec<String>,
    /// Where publishers find them.
    pub publishing: Vec<SocketAddr>,
    pub terminals: Vec<String>,
    folder: PathBuf,
    sessions: Vec<String>,
    /// What tells each node to end.
    stops: Vec<watch::Sender<bool>>,
}

impl World {
    /// So many nodes, on a network without faults.
    pub fn new(seed: u64, nodes: u64, folder: &Path, record: Rc<Record>) -> World {
        let mut sim = turmoil::Builder::new()
            .rng_seed(seed)
            .epoch(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000))
            .simulation_duration(Duration::from_secs(3600))
            .tick_duration(Duration::from_millis(2))
            .min_message_latency(Duration::from_micros(500))
            .max_message_latency(super::QUICK)
            .tcp_capacity(ROOM)
            .udp_capacity(ROOM)
            .enable_random_order()
            .build();
        let names: Vec<String> = (1..=nodes).map(|id| format!("n{id}")).collect();
        let ips: Vec<IpAddr> = names.iter().map(|name| sim.lookup(name.as_str())).collect();
        let (ca, _) = Ca::new().unwrap();
        fs::write(folder.join("ca.pem"), &ca.pem).unwrap();
        let mut stops = Vec::new();
        for (id, name) in (1..).zip(&names) {
            let (stop, stopped) = watch::channel(false);
            stops.push(stop);
            let ip = ips[id as usize - 1];
            let (certificate, key) = ca.node(id, CLUSTER, vec![ip.to_string()], 1).unwrap();
            fs::write(folder.join(format!("{name}.pem")), certificate).unwrap();
            fs::write(folder.join(format!("{name}.key")), key).unwrap();
            let config = config(id, &ips, folder);
            let starts = Cell::new(0u32);
            sim.host(name.as_str(), move || {
                starts.set(starts.get() + 1);
                let config = Config { data: data(&config.data, starts.get()), ..config.clone() };
                let mut stopped = stopped.clone();
                async move {
                    // An error is the end of the run.
                    let stop = async move { drop(stopped.wait_for(|stopped| *stopped).await) };
                    Ok(Box::pin(assemble::run(config, true, None, stop)).await?)
                }
            });
        }
        World {
            sim,
            record,
            nodes: names,
            publishing: ips.iter().map(|ip| SocketAddr::new(*ip, HTTP)).collect(),
            terminals: Vec::new(),
            folder: folder.to_owned(),
            sessions: ips.iter().map(|ip| SocketAddr::new(*ip, SESSIONS).to_string()).collect(),
            stops,
        }
    }

    /// So many terminals come, each a host.
    pub fn enlist(&mut self, count: usize) {
        for number in 1..=count {
            let name = format!("t{number}");
            let builder =
                Builder::new(self.sessions.clone(), self.folder.join("ca.pem"), self.folder.join(&name));
            let builder = builder.linger(match number % STAYS {
                0 => Linger::Forever,
                _ => Linger::AtOnce,
            });
            let record = self.record.clone();
            let host = name.clone();
            self.sim.host(name.as_str(), move || live(host.clone(), builder.clone(), record.clone()));
            self.terminals.push(name);
        }
    }

    /// Tells a node to end, and lets time pass until it has.
    pub fn stop(&mut self, node: &str) {
        let at = self.nodes.iter().position(|name| name == node).unwrap();
        self.stops[at].send_replace(true);
        let end = self.sim.elapsed() + LEAVE;
        while self.sim.is_host_running(node) {
            assert!(self.sim.elapsed() < end, "{node} does not end");
            self.step();
        }
        self.stops[at].send_replace(false);
    }

    /// Lets time pass until this is so; false if it is not so in time.
    pub fn until(&mut self, within: Duration, done: impl Fn(&World) -> bool) -> bool {
        let end = self.sim.elapsed() + within;
        while !done(self) {
            if self.sim.elapsed() >= end {
                return false;
            }
            self.step();
        }
        true
    }

    /// Lets so much time pass.
    pub fn pass(&mut self, time: Duration) {
        let end = self.sim.elapsed() + time;
        while self.sim.elapsed() < end {
            self.step();
        }
    }

    fn step(&mut self) {
        if let Err(error) = self.sim.step() {
            panic!("at {:?} a host ended by itself: {error}", self.sim.elapsed());
        }
    }
}

/// The folder of a node's n-th process. Nothing of a process that is killed runs on, but in this one thread what it held in memory
/// may stay, and with it the locks on its files: the next one has a copy of them, and never sees the difference.
fn data(folder: &Path, start: u32) -> PathBuf {
    let of = |start: u32| folder.join(start.to_string());
    if start > 1 {
        copy(&of(start - 1), &of(start));
    }
    of(start)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

fn config(id: u64, ips: &[IpAddr], folder: &Path) -> Config {
    let any = |port: u16| SocketAddr::from(([0, 0, 0, 0], port));
    let own = |port: u16| Some(SocketAddr::new(ips[id as usize - 1], port).to_string());
    Config {
        file: PathBuf::new(),
        node: id,
        data: folder.join(format!("n{id}")),
        cluster: Cluster {
            id: format!("{CLUSTER:016x}"),
            groups: 2,
            nodes: (1u64..).zip(ips).map(|(id, ip)| (id.to_string(), format!("{ip}:{PEERS}"))).collect(),
            join: None,
            tenant: FirstTenant {
                name: String::new(),
                admin_token_sha256: sha256(TOKEN.as_bytes())
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect(),
                enrolment_key: String::new(),
                open: true,
            },
        },
        tls: Tls {
            ca: folder.join("ca.pem"),
            certificate: folder.join(format!("n{id}.pem")),
            key: folder.join(format!("n{id}.key")),
        },
        peer: Port { listen: any(PEERS), advertise: own(PEERS) },
        session: Session { listen: any(SESSIONS), advertise: own(SESSIONS), linger_max: None },
        http: Http { listen: any(HTTP), advertise: None, tls: false, workers: 1 },
        admin: Admin { listen: any(9090) },
        admission: Admission::default(),
        notify: Notify::default(),
        storage: Storage { segment_bytes: 4 << 20, cache_bytes: 1 << 20, overlay_bytes: 1 << 20 },
        log: Log::default(),
    }
}

/// One process of a terminal: its application confirms each push as it comes.
async fn live(host: String, builder: Builder, record: Rc<Record>) -> turmoil::Result {
    let mut terminal = builder.start().await?;
    let id = terminal.id().to_string();
    record.see(Observation::Started { terminal: id.clone(), copy: 0 });
    let mut epoch = 0;
    loop {
        let event = match timeout(LOOK, terminal.next()).await {
            Ok(Some(event)) => event,
            Ok(None) => return Err("the terminal has ended by itself".into()),
            Err(_) => {
                tracing::debug!(stats = ?terminal.listen_stats(), reach = ?terminal.reachability(), "quiet");
                continue;
            }
        };
        let terminal = id.clone();
        match event {
            Event::Connected { node, epoch: new, .. } => {
                epoch = new.0;
                record.see(Observation::Connected { terminal, copy: 0, node: node.0, epoch });
                record.meet(&host, &id);
            }
            Event::Disconnected { .. } => record.see(Observation::Disconnected { terminal, copy: 0 }),
            Event::Notified { .. } => record.see(Observation::Notified { terminal, copy: 0 }),
            Event::Reset { next } => record.see(Observation::Reset { terminal, copy: 0, next: next.0 }),
            Event::Received(push) => {
                let payload = super::publish::name(&push.body);
                record.given(&payload);
                let seq = push.seq.0;
                record.see(Observation::Delivered {
                    terminal: terminal.clone(),
                    copy: 0,
                    payload,
                    seq,
                    prev: Some(push.prev.0),
                    maybe_seen: push.maybe_seen,
                    node: push.node.0,
                    epoch: Some(epoch),
                });
                record.see(Observation::Confirmed { terminal, copy: 0, seq });
                push.confirm();
            }
            Event::Reachable { class } => {
                let point = format!("terminal.{class:?}").to_lowercase();
                record.see(Observation::Cover { point, count: 1 });
            }
            Event::CheckIn => {
                record.see(Observation::Cover { point: "terminal.check-in".to_owned(), count: 1 });
            }
            Event::Listening { .. } | Event::Problem { .. } => {}
        }
    }
}
