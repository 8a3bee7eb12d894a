//! Where the nodes of a cluster on one machine stand: on its loopback, or each behind an interface of its own, so that
//! packets from and to it can be dropped as if a cable were cut. The latter needs root, and touches nothing outside the
//! namespaces that it makes; they go with the process.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, bail, ensure};

use crate::random::random;

/// Names the network namespace that the program was called in, once it runs in one of its own. Nodes inherit it, so it is
/// not called like one of their settings.
const OUTER: &str = "NETWORK_UNSHARED_FROM";
/// Every node's first port; nothing else listens in its namespace.
const FIRST_PORT: u16 = 7000;
/// Of this process, on the nodes' network.
const HERE: u8 = 254;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Network {
    /// All on this machine's loopback.
    Loopback,
    /// Each node in a network namespace; this process is in one as well, with a bridge between them.
    Apart {
        /// How many.
        nodes: u64,
    },
}

/// Which packets of a node are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Cut {
    /// Those to it and those from it.
    Both,
    /// Those to it.
    In,
    /// Those from it.
    Out,
}

/// Ports of loopback below those that the kernel takes for outgoing connections (from 32768): one of those may come in
/// between when a node begins, or begins anew.
const RANGE: std::ops::Range<u16> = 12_000..32_000;
/// They are taken in blocks of so many.
const BLOCK: u16 = 32;
/// Whoever listens at the first port of a block has it all, as long as its process lives: so no other cluster on the
/// machine takes the ports of a node that is down for a while.
static BLOCKS: Mutex<Vec<TcpListener>> = Mutex::new(Vec::new());

/// The free ports of a block that is this process's from now on.
fn block() -> anyhow::Result<Vec<SocketAddr>> {
    let listen = |port: u16| TcpListener::bind(("127.0.0.1", port));
    for _ in 0..1000 {
        let first = RANGE.start + u16::from_le_bytes(random()) % ((RANGE.end - RANGE.start) / BLOCK) * BLOCK;
        if let Ok(guard) = listen(first) {
            BLOCKS.lock().unwrap_or_else(PoisonError::into_inner).push(guard);
            let free = (first + 1..first + BLOCK).filter_map(|port| listen(port).ok()?.local_addr().ok());
            return Ok(free.collect());
        }
    }
    bail!("no ports of 127.0.0.1 from {} to {} are free", RANGE.start, RANGE.end)
}

impl Network {
    /// Makes interfaces for so many nodes. Where this process is not in namespaces of its own yet, it is begun again with
    /// the same arguments inside new ones.
    pub(in crate::cli) fn apart(nodes: u64) -> anyhow::Result<Network> {
        let here = fs::read_link("/proc/self/ns/net").context("/proc/self/ns/net")?;
        let outer = std::env::var_os(OUTER);
        if outer.as_deref().is_none_or(|outer| outer == here.as_os_str()) {
            ensure!(
                is_root()?,
                "packets can only be dropped by root: it needs a network namespace of its own"
            );
            for tool in ["unshare", "mount", "sysctl", "ip", "iptables"] {
                ensure!(
                    found(tool),
                    "packets cannot be dropped without `{tool}` (util-linux, procps, iproute2, iptables)"
                );
            }
            let mut inside = Command::new("unshare");
            inside
                .args(["--net", "--mount", "--"])
                .arg(std::env::current_exe()?)
                .args(std::env::args_os().skip(1));
            let error = inside.env(OUTER, here).exec();
            return Err(error).context("unshare");
        }
        // `ip netns` keeps its names below /run; in this mount namespace nobody else sees them.
        run("mount -t tmpfs tmpfs /run")?;
        let network = Network::Apart { nodes };
        // Plaintext and open enrolment are for loopback only, so the addresses are of 127.0.0.0/8, which must be told to
        // leave the machine.
        loopback_host("")?;
        run("ip link add br0 type bridge")?;
        run("sysctl -qw net.ipv4.conf.br0.route_localnet=1")?;
        run(&format!("ip addr add {}/24 dev br0", address(HERE)))?;
        run("ip link set br0 up")?;
        for id in 1..=nodes {
            let inside = format!("ip netns exec {} ", name(id));
            run(&format!("ip netns add {}", name(id)))?;
            run(&format!("ip link add veth{id} type veth peer name eth0 netns {}", name(id)))?;
            run(&format!("ip link set veth{id} master br0 up"))?;
            loopback_host(&inside)?;
            run(&format!("{inside}sysctl -qw net.ipv4.conf.eth0.route_localnet=1"))?;
            run(&format!("{inside}ip addr add {}/24 dev eth0", address(host(id)?)))?;
            run(&format!("{inside}ip link set eth0 up"))?;
        }
        Ok(network)
    }

    /// Loses packets of a node from now on.
    pub(in crate::cli) fn cut(self, node: u64, cut: Cut) -> anyhow::Result<()> {
        let Network::Apart { nodes } = self else { bail!("nodes on loopback cannot be cut off") };
        if cut != Cut::Out {
            run(&format!("ip netns exec {} iptables -w -A INPUT -i eth0 -j DROP", name(node)))?;
        }
        if cut != Cut::In {
            let drop = format!("iptables -w -A INPUT -s {} -j DROP", address(host(node)?));
            for other in (1..=nodes).filter(|other| *other != node) {
                run(&format!("ip netns exec {} {drop}", name(other)))?;
            }
            run(&drop)?;
        }
        Ok(())
    }

    /// Loses no more packets.
    pub(in crate::cli) fn heal(self) -> anyhow::Result<()> {
        let Network::Apart { nodes } = self else { return Ok(()) };
        for node in 1..=nodes {
            run(&format!("ip netns exec {} iptables -w -F INPUT", name(node)))?;
        }
        run("iptables -w -F INPUT")
    }

    /// Addresses for so many ports of each node. On loopback another program may take one before its node does; then
    /// the node says so.
    pub(in crate::cli) fn ports(self, nodes: u64, each: u16) -> anyhow::Result<Vec<SocketAddr>> {
        match self {
            Network::Loopback => {
                let count = nodes as usize * usize::from(each);
                let mut ports = Vec::new();
                while ports.len() < count {
                    ports.extend(block()?);
                }
                ports.truncate(count);
                Ok(ports)
            }
            Network::Apart { .. } => {
                let mut ports = Vec::new();
                for id in 1..=nodes {
                    let ip = address(host(id)?);
                    ports.extend((0..each).map(|port| SocketAddr::new(ip, FIRST_PORT + port)));
                }
                Ok(ports)
            }
        }
    }

    /// A program that shall run where a node stands.
    pub(super) fn command(self, id: u64, program: &Path) -> Command {
        match self {
            Network::Loopback => Command::new(program),
            Network::Apart { .. } => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", &name(id)]).arg(program);
                command
            }
        }
    }
}

/// A loopback interface with one address, so that the others of 127.0.0.0/8 may be elsewhere.
fn loopback_host(inside: &str) -> anyhow::Result<()> {
    run(&format!("{inside}ip link set lo up"))?;
    run(&format!("{inside}ip addr flush dev lo"))?;
    run(&format!("{inside}ip addr add 127.0.0.1/32 dev lo"))
}

fn name(id: u64) -> String {
    format!("node-{id}")
}

fn host(id: u64) -> anyhow::Result<u8> {
    u8::try_from(id).ok().filter(|id| *id < HERE).context("too many nodes for one network")
}

fn address(host: u8) -> IpAddr {
    IpAddr::from([127, 1, 0, host])
}

fn is_root() -> anyhow::Result<bool> {
    let status = fs::read_to_string("/proc/self/status")?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).context("/proc/self/status")?;
    Ok(uids.split_whitespace().nth(1) == Some("0"))
}

fn found(tool: &str) -> bool {
    // `ip` knows no --version, and says so: what counts is that it runs.
    Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// Runs a command whose words hold no spaces.
fn run(line: &str) -> anyhow::Result<()> {
    let mut words = line.split_whitespace();
    let program = words.next().unwrap_or_default();
    let output = Command::new(program).args(words).output().with_context(|| line.to_owned())?;
    ensure!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
