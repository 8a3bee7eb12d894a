//! A NAT laboratory: nodes on one network, a terminal on another, a router between them that does to UDP what routers do.
//! Network namespaces that the test makes and removes; needs root and iproute2 with iptables.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Lines, PATIENCE, REVEILLE, Running};

/// What the router does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Router {
    /// It only routes.
    Open,
    /// NAT that keeps ports where it can, and lets in only what answers.
    Preserving,
    /// NAT with random ports, and lets in only what answers from the very port that was asked.
    Random,
    /// No UDP passes.
    Blocked,
}

const SHARD_GROUPS: &str = "3";
/// Seconds between two keepalives: the least that may be configured.
pub const KEEPALIVE: u64 = 5;

/// See the module.
pub struct Lab {
    names: String,
    pub folder: tempfile::TempDir,
    nodes: Vec<Option<Running>>,
    token: String,
    enrolment: String,
}

fn run(line: &str) {
    let mut words = line.split_whitespace();
    let out = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Why there can be no laboratory here.
pub fn missing() -> Option<String> {
    let root = std::fs::metadata("/proc/self").is_ok_and(|own| {
        use std::os::unix::fs::MetadataExt;
        own.uid() == 0
    });
    if !root {
        return Some("only root can make network namespaces".to_owned());
    }
    let found = |tool: &str| {
        Command::new("sh")
            .args(["-c", &format!("command -v {tool}")])
            .stdout(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    ["ip", "iptables", "sysctl"]
        .into_iter()
        .find(|tool| !found(tool))
        .map(|tool| format!("there is no `{tool}`"))
}

impl Lab {
    /// Nodes 1 to `nodes` run and serve.
    pub fn start(nodes: u64) -> Lab {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let names = format!("rv{}x{number}", std::process::id());
        let mut lab = Lab {
            names,
            folder: tempfile::tempdir().unwrap(),
            nodes: Vec::new(),
            token: "00112233445566778899aabbccddeeff".to_owned(),
            enrolment: String::new(),
        };
        lab.wire();
        lab.certify(nodes);
        for id in 1..=nodes {
            lab.nodes.push(None);
            lab.start_node(id);
        }
        lab.wait_settled();
        lab
    }

    pub fn wait_settled(&self) {
        let until = Instant::now() + PATIENCE;
        // Terminals are told of anchors once the cluster has its format.
        while !self.is_settled() {
            assert!(Instant::now() < until, "the cluster does not settle; node 1 says: {}", self.log(1));
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn is_settled(&self) -> bool {
        let mut command = self.exec("n");
        let out = command.args(["cluster", "--url", "http://127.0.0.1:9101", "status"]).output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        said.contains("settled") && !said.contains("NOT settled")
    }

    fn ns(&self, part: &str) -> String {
        format!("{}{part}", self.names)
    }

    fn inside(&self, part: &str, line: &str) {
        run(&format!("ip netns exec {} {line}", self.ns(part)));
    }

    /// `home` 192.168.77.2 — 192.168.77.1 `router` 10.77.0.2 — 10.77.0.1x `net`.
    fn wire(&self) {
        let (net, router, home) = (self.ns("n"), self.ns("r"), self.ns("h"));
        for name in [&net, &router, &home] {
            run(&format!("ip netns add {name}"));
            run(&format!("ip netns exec {name} ip link set lo up"));
        }
        run(&format!("ip link add wan netns {router} type veth peer name eth0 netns {net}"));
        run(&format!("ip link add lan netns {router} type veth peer name eth0 netns {home}"));
        for node in 1..=3 {
            self.inside("n", &format!("ip addr add 10.77.0.1{node}/24 dev eth0"));
        }
        self.inside("n", "ip link set eth0 up");
        self.inside("n", "ip route add 192.168.77.0/24 via 10.77.0.2");
        self.inside("r", "ip addr add 10.77.0.2/24 dev wan");
        self.inside("r", "ip addr add 192.168.77.1/24 dev lan");
        self.inside("r", "ip link set wan up");
        self.inside("r", "ip link set lan up");
        self.inside("r", "sysctl -qw net.ipv4.ip_forward=1");
        self.inside("h", "ip addr add 192.168.77.2/24 dev eth0");
        self.inside("h", "ip link set eth0 up");
        self.inside("h", "ip route add default via 192.168.77.1");
    }

    /// Makes the router so, from the next packet on; what it knew of flows is forgotten.
    pub fn router(&self, router: Router) {
        self.inside("r", "iptables -w -F");
        self.inside("r", "iptables -w -t nat -F");
        let masquerade = "iptables -w -t nat -A POSTROUTING -o wan -j MASQUERADE";
        match router {
            Router::Open => {}
            Router::Preserving => self.inside("r", masquerade),
            Router::Random => self.inside("r", &format!("{masquerade} --random-fully")),
            Router::Blocked => self.inside("r", "iptables -w -A FORWARD -p udp -j DROP"),
        }
        if matches!(router, Router::Preserving | Router::Random) {
            let answers = "-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT";
            self.inside("r", &format!("iptables -w -A FORWARD -i wan {answers}"));
            self.inside("r", "iptables -w -A FORWARD -i wan -j DROP");
            self.inside("r", "iptables -w -A INPUT -i wan -j DROP");
        }
        self.rebind();
    }

    /// The router forgets every flow: what comes next from inside gets another port.
    pub fn rebind(&self) {
        // A masqueraded flow ends with its interface.
        self.inside("r", "ip link set wan down");
        self.inside("r", "ip link set wan up");
    }

    /// The terminals' side gets another address, and loses the one before; nobody tells them.
    pub fn readdress(&self, from: u8, to: u8) {
        self.inside("h", &format!("ip addr del 192.168.77.{from}/24 dev eth0"));
        self.inside("h", &format!("ip addr add 192.168.77.{to}/24 dev eth0"));
        self.inside("h", "ip route replace default via 192.168.77.1");
    }

    /// The router forgets a silent flow of UDP after so many seconds.
    pub fn forget_after(&self, seconds: u32) {
        for kind in ["udp_timeout", "udp_timeout_stream"] {
            self.inside("r", &format!("sysctl -qw net.netfilter.nf_conntrack_{kind}={seconds}"));
        }
    }

    /// From now on datagrams that arrive at home are counted.
    pub fn count_at_home(&self) {
        self.inside("h", "iptables -w -I INPUT -i eth0 -p udp");
    }

    /// Datagrams and bytes, headers included, since then.
    pub fn heard_at_home(&self) -> (u64, u64) {
        let mut command = Command::new("ip");
        let listing = ["iptables", "-w", "-nvxL", "INPUT"];
        let out = command.args(["netns", "exec", &self.ns("h")]).args(listing).output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        // Other rules there name no interface.
        let rule = text.lines().find(|line| line.contains("eth0")).unwrap_or_else(|| panic!("{text}"));
        let numbers: Vec<u64> = rule.split_whitespace().take(2).map(|word| word.parse().unwrap()).collect();
        (numbers[0], numbers[1])
    }

    /// A line more in a node's `[notify]`, from its next start on.
    pub fn configure(&self, id: u64, line: &str) {
        let path = self.path(&format!("n{id}/node.toml"));
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(path, text.replace("[notify]\n", &format!("[notify]\n{line}\n"))).unwrap();
    }

    /// What a node's service list says of a terminal.
    pub fn entry(&self, node: u64, terminal: &str) -> Value {
        let mut command = self.exec("n");
        let url = format!("https://10.77.0.1{node}:8080");
        command.args(["terminals", terminal, "--url", &url, "--token", &self.token]);
        let out = command.arg("--ca").arg(self.path("ca/ca.pem")).output().unwrap();
        serde_json::from_slice(&out.stdout)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&out.stderr)))
    }

    /// So many of the datagrams between the two networks are lost, each way, in percent.
    pub fn lose(&self, percent: u32) {
        let lost = f64::from(percent) / 100.0;
        let drop = format!("-m statistic --mode random --probability {lost} -j DROP");
        self.inside("r", &format!("iptables -w -t mangle -A FORWARD -p udp {drop}"));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn certs(&self, args: &[&str]) -> String {
        let out =
            Command::new(REVEILLE).arg("certs").args(args).current_dir(self.folder.path()).output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    fn certify(&mut self, nodes: u64) {
        self.certs(&["ca", "--out", "ca"]);
        let line = self.certs(&["enrolment-key", "--out", "ca"]);
        let key = line.split('"').nth(1).unwrap().to_owned();
        self.enrolment = self.certs(&["enrolment-token", "--key", "ca/enrolment.key"]).trim().to_owned();
        let digest = reveille_protocol::hash::sha256(self.token.as_bytes());
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let cluster = "93b1c0ffee15dead";
        let peers: Vec<String> = (1..=nodes).map(|id| format!("{id} = \"10.77.0.1{id}:7100\"")).collect();
        for id in 1..=nodes {
            let (number, folder) = (id.to_string(), format!("n{id}"));
            let names = format!("10.77.0.1{id}");
            self.certs(&[
                "node",
                "--ca",
                "ca",
                "--id",
                &number,
                "--cluster",
                cluster,
                "--names",
                &names,
                "--out",
                &folder,
            ]);
            let config = format!(
                r#"
node = {id}
data = "data"
[cluster]
id = "{cluster}"
groups = {SHARD_GROUPS}
nodes = {{ {} }}
[cluster.tenant]
name = "lab"
admin_token_sha256 = "{digest}"
enrolment_key = "{key}"
[tls]
ca = "../ca/ca.pem"
certificate = "node-{id}.pem"
key = "node-{id}.key"
[peer]
listen = "10.77.0.1{id}:7100"
[session]
listen = "10.77.0.1{id}:8443"
[http]
listen = "10.77.0.1{id}:8080"
[admin]
listen = "127.0.0.1:910{id}"
[notify]
keepalive = {KEEPALIVE}
[storage]
segment_bytes = 10485760
"#,
                peers.join(", ")
            );
            std::fs::write(self.path(&folder).join("node.toml"), config).unwrap();
        }
    }

    fn exec(&self, part: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.ns(part), REVEILLE]);
        command
    }

    pub fn start_node(&mut self, id: u64) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.path(&format!("n{id}.log")))
            .unwrap();
        let mut command = self.exec("n");
        command.args(["node", "--create", "--config"]).arg(self.path(&format!("n{id}/node.toml")));
        self.nodes[id as usize - 1] = Some(Running(command.stderr(log).spawn().unwrap()));
    }

    pub fn kill_node(&mut self, id: u64) {
        self.nodes[id as usize - 1] = None;
    }

    pub fn log(&self, id: u64) -> String {
        std::fs::read_to_string(self.path(&format!("n{id}.log"))).unwrap_or_default()
    }

    /// A terminal at home.
    pub fn terminal(&self, name: &str, more: &[&str]) -> (Running, Lines) {
        let servers =
            (1..=self.nodes.len()).map(|id| format!("10.77.0.1{id}:8443")).collect::<Vec<_>>().join(",");
        let log = std::fs::File::create(self.path(&format!("{name}.log"))).unwrap();
        let mut command = self.exec("h");
        command.args([
            "terminal",
            "--json",
            "--log-level",
            "debug",
            "--server",
            &servers,
            "--enrolment",
            &self.enrolment,
        ]);
        command.arg("--ca").arg(self.path("ca/ca.pem")).arg("--state").arg(self.path(name)).args(more);
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let lines = Lines::of(&mut child);
        (Running(child), lines)
    }

    pub fn terminal_log(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }

    /// What publishing through a node came to.
    pub fn publish(&self, node: u64, terminal: &str, body: &str) -> String {
        let mut command = self.exec("n");
        command.args([
            "publish",
            "--json",
            "--url",
            &format!("https://10.77.0.1{node}:8080"),
            "--token",
            &self.token,
        ]);
        command.arg("--ca").arg(self.path("ca/ca.pem")).args(["--to", terminal, body]);
        let out = command.output().unwrap();
        format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.nodes.clear();
        for part in ["h", "r", "n"] {
            let _ = Command::new("ip").args(["netns", "del", &self.ns(part)]).status();
        }
    }
}
