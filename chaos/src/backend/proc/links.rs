//! The links of a cluster on this machine: from each node to each other one, from terminals to nodes, and from nodes to
//! terminals; and what the faults of a scenario mean to them. A cluster whose scenario has no such faults has none.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use reveille_chaos::scenario::kind::On;
use reveille_chaos::scenario::{Fault, Role, Scenario};
use reveille_links::draw::Draws;
use reveille_links::{Counts, Direction, Faults, Link, Pass, Route, Way};
use toml::{Table, Value};

/// Where nodes and terminals are: the address that certificates name.
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Where nodes see terminals; what they send there goes to the terminals' links.
const TERMINALS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 1, 1));
/// Where nodes take keepalives; terminals send them to a link at the address that they know, with the same port.
const ANCHORS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 2, 1));
/// Where a node finds the links to the others.
const PEERS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 3, 1));
/// Where who forges notifications is.
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 7, 7));
/// Ports for terminals and anchors: below those that the system gives out, so that no socket that any port is good for takes one.
const PORTS: (u16, u16) = (10_000, 30_000);
/// What a link carries otherwise, in bytes a second: 100 Mbit/s. Of this, `bandwidth` leaves a share.
const CARRIES: f64 = 12_500_000.0;
/// The least that it leaves: with less, nothing but silence is tested.
const LEAST: u64 = 1_000;

/// One end of a way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    Node(u64),
    Terminals,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Node(id) => id.fmt(f),
            Place::Terminals => f.write_str("terminals"),
        }
    }
}

/// Whom a fault on the way hits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum OnWay {
    /// What goes from the first to the second.
    Ways(BTreeSet<(Place, Place)>),
    /// What goes between these terminals, from 0, and the nodes, besides sessions.
    Terminals(Vec<usize>),
}

/// A fault that is there.
struct There {
    on: OnWay,
    streams: Way,
    datagrams: Way,
    nat_timeout: Option<Duration>,
    /// Of the links that it is on, when it came.
    before: BTreeMap<&'static str, u64>,
}

/// Where a terminal listens, and the link that nodes reach it through, unless it is behind a NAT.
struct Terminal {
    listen: SocketAddr,
    link: Option<Link>,
}

/// See the module.
#[derive(Default)]
pub(in crate::backend) struct Links {
    peers: BTreeMap<(u64, u64), Link>,
    sessions: BTreeMap<u64, Link>,
    anchors: BTreeMap<u64, Link>,
    terminals: Vec<Terminal>,
    there: BTreeMap<u64, There>,
    stranger: Option<std::net::UdpSocket>,
}

/// Terminals of this scenario are behind a NAT.
pub(super) fn behind_nat(scenario: &Scenario) -> bool {
    scenario.faults().any(|fault| matches!(fault.kind.name(), "rebind" | "nat-timeout"))
}

/// The scenario has faults between nodes, and between terminals and nodes.
fn needs(scenario: &Scenario) -> (bool, bool) {
    let on_link = |fault: &&Fault| fault.kind.info().on == On::Link;
    let of_terminals = |fault: &Fault| {
        let ends = [&fault.from, &fault.to].into_iter().flatten();
        let ends = ends.flat_map(|target| &target.0).any(|role| role.is_client());
        fault.kind.info().is_on_the_way() && (fault.kind.info().on == On::Clients || ends)
    };
    (scenario.faults().any(|fault| on_link(&fault)), scenario.faults().any(of_terminals))
}

impl Links {
    /// Opens the links that the scenario needs, and has the nodes' configurations lead through them.
    pub(super) async fn open(
        scenario: &Scenario,
        seed: u64,
        configs: &[(u64, &Path)],
    ) -> anyhow::Result<Links> {
        let mut links = Links::default();
        let (peers, terminals) = needs(scenario);
        let mut files = BTreeMap::new();
        for (id, path) in configs {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            files.insert(*id, (*path, text.parse::<Table>()?));
        }
        let listens = |id: u64, port: &str| -> anyhow::Result<SocketAddr> {
            let (path, table) = files.get(&id).context("a node without a file")?;
            let listen = table.get(port).and_then(|port| port.get("listen")).and_then(Value::as_str);
            Ok(listen.with_context(|| format!("{}: no {port}.listen", path.display()))?.parse()?)
        };
        // Ports that nodes will want again.
        let mut taken = BTreeSet::new();
        for id in files.keys() {
            for port in ["peer", "session", "http", "admin"] {
                taken.insert(listens(*id, port)?.port());
            }
        }
        let ids: Vec<u64> = files.keys().copied().collect();
        if peers {
            for (one, other) in ids.iter().flat_map(|one| ids.iter().map(move |other| (*one, *other))) {
                if one != other {
                    let to = listens(other, "peer")?;
                    let route = Route {
                        name: format!("node {one} to node {other}"),
                        seed,
                        listen: SocketAddr::new(PEERS, 0),
                        to,
                        from: None,
                    };
                    links.peers.insert((one, other), Link::tcp(route).await?);
                }
            }
        }
        if terminals {
            let mut free = free_ports();
            for id in &ids {
                let to = listens(*id, "session")?;
                links.sessions.insert(*id, sessions(seed, *id, to, &taken).await?);
                let name = format!("terminals to anchor {id}");
                // The same port: it is the one that the node names.
                let port = free.next().context("there is no free port")?;
                let (listen, to) = (SocketAddr::new(HERE, port), SocketAddr::new(ANCHORS, port));
                let route = Route { name, seed, listen, to, from: Some(TERMINALS) };
                links.anchors.insert(*id, Link::udp(route).await?);
            }
            let nat = behind_nat(scenario);
            links.listen(scenario.workload.terminals, seed, nat, free).await?;
            links.stranger = Some(stranger()?);
        }
        for (id, (path, mut table)) in files {
            links.lead(id, &mut table)?;
            std::fs::write(path, toml::to_string(&table)?).with_context(|| path.display().to_string())?;
        }
        Ok(links)
    }

    /// Finds a port for each terminal, and opens the links to them.
    async fn listen(
        &mut self,
        terminals: u64,
        seed: u64,
        nat: bool,
        mut free: impl Iterator<Item = u16>,
    ) -> anyhow::Result<()> {
        for number in 1..=terminals {
            let port = free.next().context("there are not so many free ports")?;
            let listen = SocketAddr::new(HERE, port);
            let name = format!("nodes to terminal {number}");
            let route =
                Route { name, seed, listen: SocketAddr::new(TERMINALS, port), to: listen, from: None };
            let link = if nat { None } else { Some(Link::udp(route).await?) };
            self.terminals.push(Terminal { listen, link });
        }
        Ok(())
    }

    /// Has a node's configuration lead through its links.
    fn lead(&self, id: u64, table: &mut Table) -> anyhow::Result<()> {
        let mut set = |section: &str, key: &str, value: Value| -> anyhow::Result<()> {
            let section = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            section.as_table_mut().context("no section")?.insert(key.to_owned(), value);
            Ok(())
        };
        if let (Some(session), Some(anchor)) = (self.sessions.get(&id), self.anchors.get(&id)) {
            set("session", "advertise", session.address().to_string().into())?;
            set("notify", "anchor", SocketAddr::new(ANCHORS, anchor.address().port()).to_string().into())?;
        }
        let nodes = table.get_mut("cluster").and_then(|cluster| cluster.get_mut("nodes"));
        let nodes = nodes.and_then(Value::as_table_mut).context("no cluster.nodes")?;
        for ((_, other), link) in self.peers.iter().filter(|((one, _), _)| *one == id) {
            nodes.insert(other.to_string(), link.address().to_string().into());
        }
        Ok(())
    }

    /// Where terminals find the nodes, if not at the nodes themselves.
    pub(super) fn sessions(&self) -> Option<Vec<String>> {
        let sessions = self.sessions.values().map(|link| link.address().to_string());
        (!self.sessions.is_empty()).then(|| sessions.collect())
    }

    /// Where a terminal, from 0, has to listen, if that matters.
    pub(in crate::backend) fn listens(&self, number: usize) -> Option<SocketAddr> {
        self.terminals.get(number).map(|terminal| terminal.listen)
    }

    /// The node that has its keepalives taken at this address.
    pub(in crate::backend) fn anchor(&self, at: SocketAddr) -> Option<u64> {
        self.anchors.iter().find(|(_, link)| link.address() == at).map(|(id, _)| *id)
    }

    /// Does a fault.
    pub(super) fn strike(&mut self, id: u64, fault: &Fault, mut on: OnWay) {
        if let ("cut", OnWay::Ways(ways)) = (fault.kind.name(), &mut on) {
            ways.extend(ways.clone().into_iter().map(|(from, to)| (to, from)));
        }
        match (fault.kind.name(), &on) {
            ("reset", OnWay::Ways(ways)) => self.between(ways).for_each(|(_, link)| link.reset()),
            ("half-open", OnWay::Ways(ways)) => {
                for ((one, _), link) in self.between(ways) {
                    let from = ways.iter().any(|(from, _)| *from == one);
                    link.half_open(if from { Direction::Up } else { Direction::Down });
                }
            }
            ("rebind", OnWay::Terminals(numbers)) => {
                for listen in numbers.iter().filter_map(|number| self.listens(*number)) {
                    self.anchors.values().for_each(|link| link.rebind(Some(listen)));
                }
            }
            _ => {
                let (streams, datagrams) = ways(fault);
                let nat_timeout =
                    (fault.kind.name() == "nat-timeout").then(|| fault.by.map_or(Duration::ZERO, |by| by.0));
                let before = self.counted(&on);
                self.there.insert(id, There { on, streams, datagrams, nat_timeout, before });
                self.apply();
            }
        }
    }

    /// Takes a fault back; what was done meanwhile on the links that it was on.
    pub(super) fn heal(&mut self, id: u64) -> String {
        let Some(there) = self.there.remove(&id) else { return String::new() };
        self.apply();
        let now = self.counted(&there.on);
        let since = |name: &str| now.get(name).unwrap_or(&0) - there.before.get(name).unwrap_or(&0);
        let done = now.keys().map(|name| (name, since(name))).filter(|(_, count)| *count > 0);
        done.map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
    }

    /// The links of streams that these ways are parts of, with who opens their connections and who takes them.
    fn between<'a>(
        &'a self,
        ways: &'a BTreeSet<(Place, Place)>,
    ) -> impl Iterator<Item = ((Place, Place), &'a Link)> {
        let peers =
            self.peers.iter().map(|((one, other), link)| ((Place::Node(*one), Place::Node(*other)), link));
        let sessions = self.sessions.iter().map(|(id, link)| ((Place::Terminals, Place::Node(*id)), link));
        peers
            .chain(sessions)
            .filter(|((one, other), _)| ways.contains(&(*one, *other)) || ways.contains(&(*other, *one)))
    }

    fn counted(&self, on: &OnWay) -> BTreeMap<&'static str, u64> {
        let mut counts: Vec<Arc<Counts>> = Vec::new();
        match on {
            OnWay::Ways(ways) => {
                counts.extend(self.between(ways).map(|(_, link)| link.counts()));
                if ways.iter().any(|(from, to)| *from == Place::Terminals || *to == Place::Terminals) {
                    counts.extend(self.anchors.values().map(Link::counts));
                    counts.extend(self.terminals.iter().filter_map(|t| Some(t.link.as_ref()?.counts())));
                }
            }
            OnWay::Terminals(numbers) => {
                let links = numbers.iter().filter_map(|number| self.terminals.get(*number)?.link.as_ref());
                counts.extend(links.map(Link::counts));
                counts.extend(self.anchors.values().map(Link::counts));
            }
        }
        let mut sum = BTreeMap::new();
        for (name, count) in counts.iter().flat_map(|counts| counts.seen()) {
            *sum.entry(name).or_insert(0) += count;
        }
        sum
    }

    /// What goes from one place to another: of streams, and of datagrams.
    fn way(&self, from: Place, to: Place) -> (Way, Way) {
        let mut both = (Way::default(), Way::default());
        for there in self.there.values() {
            if matches!(&there.on, OnWay::Ways(ways) if ways.contains(&(from, to))) {
                both = (both.0.and(there.streams), both.1.and(there.datagrams));
            }
        }
        both
    }

    /// Has every link be as all faults that are there make it.
    fn apply(&self) {
        for ((one, other), link) in &self.peers {
            let (one, other) = (Place::Node(*one), Place::Node(*other));
            let (up, down) = (self.way(one, other).0, self.way(other, one).0);
            link.set(Faults { up, down, nat_timeout: None });
        }
        let mut to_terminals = Vec::new();
        for (id, link) in &self.sessions {
            let up = self.way(Place::Terminals, Place::Node(*id));
            let down = self.way(Place::Node(*id), Place::Terminals);
            link.set(Faults { up: up.0, down: down.0, nat_timeout: None });
            to_terminals.push(down.1);
            let Some(anchor) = self.anchors.get(id) else { continue };
            let all = Faults { up: up.1, down: down.1, nat_timeout: None };
            anchor.set(all);
            for (number, terminal) in self.terminals.iter().enumerate() {
                let own = self.own(number);
                let faults =
                    own.map(|(way, nat_timeout)| Faults { up: all.up, down: all.down.and(way), nat_timeout });
                anchor.set_apart(terminal.listen, faults);
            }
        }
        // Which node a notification comes from, its link does not see: it has what all of them have.
        let common = match to_terminals.split_first() {
            Some((first, rest)) if rest.iter().all(|way| way == first) => *first,
            _ => Way::default(),
        };
        for (number, terminal) in self.terminals.iter().enumerate() {
            if let Some(link) = &terminal.link {
                let way = self.own(number).map_or(common, |(way, _)| common.and(way));
                link.set(Faults { up: way, ..Faults::default() });
            }
        }
    }

    /// What is wrong with the notifications of one terminal.
    fn own(&self, number: usize) -> Option<(Way, Option<Duration>)> {
        let mut own = None;
        for there in self.there.values() {
            if matches!(&there.on, OnWay::Terminals(numbers) if numbers.contains(&number)) {
                let (way, timeout) = own.unwrap_or_default();
                own = Some((there.datagrams.and(way), there.nat_timeout.or(timeout)));
            }
        }
        own
    }

    /// Sends a terminal what looks like the first packet of a notification, and none of its nodes has sent; whether it can
    /// be reached like that.
    pub(super) fn forge(&self, number: usize, draws: &mut Draws) -> bool {
        let link = self.terminals.get(number).and_then(|terminal| terminal.link.as_ref());
        let (Some(link), Some(stranger)) = (link, &self.stranger) else { return false };
        // What is lost was sent all the same.
        let _ = stranger.send_to(&forged(draws), link.address());
        true
    }
}

/// Ports that nobody has at any of the addresses. Runs that go on at once begin elsewhere.
fn free_ports() -> impl Iterator<Item = u16> {
    let all = PORTS.1 - PORTS.0;
    let first = Draws::new(u64::from(std::process::id()), "ports").below(u64::from(all)) as u16;
    let is_free = |port: &u16| {
        let at = |ip| std::net::UdpSocket::bind(SocketAddr::new(ip, *port)).is_ok();
        [HERE, TERMINALS, ANCHORS].into_iter().all(at)
    };
    (0..all).map(move |at| PORTS.0 + (first + at) % all).filter(is_free)
}

/// A link to a node's session port, at a port that no node will want.
async fn sessions(seed: u64, id: u64, to: SocketAddr, taken: &BTreeSet<u16>) -> anyhow::Result<Link> {
    for _ in 0..100 {
        let name = format!("terminals to node {id}");
        let listen = SocketAddr::new(HERE, 0);
        let link = Link::tcp(Route { name, seed, listen, to, from: Some(TERMINALS) }).await?;
        if !taken.contains(&link.address().port()) {
            return Ok(link);
        }
    }
    anyhow::bail!("there is no port for a link to node {id}")
}

fn stranger() -> anyhow::Result<std::net::UdpSocket> {
    let socket = std::net::UdpSocket::bind(SocketAddr::new(STRANGER, 0))?;
    socket.set_nonblocking(true)?;
    ensure!(socket.local_addr()?.ip() == STRANGER, "the stranger is somebody else");
    Ok(socket)
}

/// The beginning of a QUIC connection (RFC 9000 section 17.2.2), of a version that terminals speak, with random ids and
/// contents; one in four is not even that.
fn forged(draws: &mut Draws) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..150).flat_map(|_| draws.draw().to_le_bytes()).collect();
    if !draws.chance(0.25) {
        // Long header, Initial; version 1; ids of 20 and 8 bytes.
        bytes[..6].copy_from_slice(&[0xc0, 0, 0, 0, 1, 20]);
        bytes[26] = 8;
    }
    bytes
}

/// How much of it, for a reader of the history.
pub(super) fn detail(fault: &Fault) -> String {
    let by = fault.by.map(|by| format!("by {by}"));
    let share = fault.share.map(|share| format!("share {}", share.0));
    by.or(share).unwrap_or_default()
}

/// What a fault does to streams, and to datagrams.
fn ways(fault: &Fault) -> (Way, Way) {
    let (open, share) = (Way::default(), fault.share.map_or(0.0, |share| share.0));
    let by = fault.by.map_or(Duration::ZERO, |by| by.0);
    let same = |way: Way| (way, way);
    match fault.kind.name() {
        // What a network loses, senders of streams repeat: held is what comes of it. Nobody repeats datagrams.
        "cut" | "cut-one-way" => (Way { pass: Pass::Held, ..open }, Way { pass: Pass::Lost, ..open }),
        "jam" => same(Way { pass: Pass::Held, ..open }),
        "delay" => same(Way { delay: by, ..open }),
        "loss" | "notification-loss" => same(Way { loss: share, ..open }),
        "duplicate" => same(Way { duplicate: share, ..open }),
        "reorder" => same(Way { reorder: share, ..open }),
        "corrupt" => same(Way { corrupt: share, ..open }),
        "bandwidth" => same(Way { rate: NonZeroU64::new(((CARRIES * share) as u64).max(LEAST)), ..open }),
        "notification-replay" => (open, Way { replay: 1.0, replay_after: by, ..open }),
        _ => same(open),
    }
}

/// What of a fault on the way this backend cannot do, in words.
pub(super) fn cannot(scenario: &Scenario, fault: &Fault) -> Option<String> {
    let ends = [&fault.from, &fault.to];
    for target in ends.into_iter().flatten() {
        let clients = target.0.iter().filter(|role| role.is_client()).count();
        if clients > 0 && target.0 != [Role::Terminals] {
            return Some(
                "its links are those of nodes, and of all terminals: \"terminals\" alone".to_owned(),
            );
        }
    }
    let both = ends.iter().all(|end| end.as_ref().is_some_and(|target| target.0 == [Role::Terminals]));
    if both {
        return Some("terminals do not talk to each other".to_owned());
    }
    let nat = behind_nat(scenario);
    (nat && fault.kind.name() == "notification-forged").then(|| {
        "no stranger reaches terminals behind a NAT, as `rebind` and `nat-timeout` have them".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(line: &str) -> Fault {
        let text = format!(
            "name = \"x\"\nabout = \"x\"\n[phases]\nwarmup = \"1s\"\nchaos = \"9s\"\nheal = \"1s\"\ndrain = \"1s\"\n\
             [[fault]]\nat = \"1s\"\n{line}"
        );
        reveille_chaos::scenario::load("x.toml", &text).unwrap().faults().next().unwrap().clone()
    }

    #[test]
    fn a_cut_loses_datagrams_and_holds_streams() {
        let (streams, datagrams) = ways(&fault("kind = \"cut\"\nfrom = \"n1\"\nto = \"n2\""));
        assert_eq!((streams.pass, datagrams.pass), (Pass::Held, Pass::Lost));
        let (streams, _) = ways(&fault("kind = \"bandwidth\"\nfrom = \"n1\"\nto = \"n2\"\nshare = 0.5"));
        assert_eq!(streams.rate, NonZeroU64::new(6_250_000));
        let replay = ways(&fault("kind = \"notification-replay\"\ntarget = \"t\"\nby = \"3s\""));
        assert_eq!((replay.0, replay.1.replay_after), (Way::default(), Duration::from_secs(3)));
    }

    #[test]
    fn what_is_forged_looks_like_the_beginning_of_a_connection() {
        let mut draws = Draws::new(7, "forged");
        let all: Vec<Vec<u8>> = (0..100).map(|_| forged(&mut draws)).collect();
        assert!(all.iter().all(|bytes| bytes.len() == 1200));
        let like = all.iter().filter(|bytes| bytes[..6] == [0xc0, 0, 0, 0, 1, 20]).count();
        assert!((60..90).contains(&like), "{like}");
    }
}
