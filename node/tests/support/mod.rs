//! What the tests of the binary share: a `reveille dev` cluster, terminals and publishers as child processes.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

pub mod by_hand;
pub mod compose;
pub mod lab;
pub mod load;
pub mod name;
pub mod raw;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use serde_json::Value;

pub const REVEILLE: &str = env!("CARGO_BIN_EXE_reveille");
const PATIENCE: Duration = Duration::from_secs(60);

/// A child that does not outlive its test.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Lines of JSON from a child.
pub struct Lines {
    lines: std::sync::Mutex<mpsc::Receiver<Value>>,
}

impl Lines {
    pub fn of(child: &mut Child) -> Lines {
        let out = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}"));
                if send.send(value).is_err() {
                    return;
                }
            }
        });
        Lines { lines: lines.into() }
    }

    /// The next line, or a panic after the patience is over.
    pub fn next(&self) -> Value {
        self.lines.lock().unwrap().recv_timeout(PATIENCE).expect("a line of JSON in time")
    }

    pub fn next_within(&self, wait: Duration) -> Option<Value> {
        self.lines.lock().unwrap().recv_timeout(wait).ok()
    }

    /// Skips to the next line of this event.
    pub fn next_event(&self, event: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let value = self
                .lines
                .lock()
                .unwrap()
                .recv_timeout(left)
                .unwrap_or_else(|_| panic!("no {event} in time"));
            if value["event"] == event {
                return value;
            }
        }
    }
}

/// A cluster made by `reveille dev`.
pub struct Dev {
    pub folder: tempfile::TempDir,
    pub ready: Value,
    child: Running,
    lines: Lines,
    /// Nodes that were started again, by the test itself.
    restarted: BTreeMap<usize, Running>,
}

impl Dev {
    pub fn start() -> Dev {
        Dev::start_in(tempfile::tempdir().unwrap())
    }

    pub fn start_in(folder: tempfile::TempDir) -> Dev {
        Dev::run(REVEILLE.as_ref(), folder, &[], &[])
    }

    /// By another version's binary.
    pub fn start_by(reveille: &Path, folder: tempfile::TempDir) -> Dev {
        Dev::run(reveille, folder, &[], &[])
    }

    /// With more arguments: another size.
    pub fn start_like(folder: tempfile::TempDir, more: &[&str]) -> Dev {
        Dev::run(REVEILLE.as_ref(), folder, more, &[])
    }

    /// With variables that its nodes inherit.
    pub fn start_with(folder: tempfile::TempDir, variables: &[(&str, &str)]) -> Dev {
        Dev::run(REVEILLE.as_ref(), folder, &[], variables)
    }

    fn run(reveille: &Path, folder: tempfile::TempDir, more: &[&str], variables: &[(&str, &str)]) -> Dev {
        let mut child = Command::new(reveille)
            .args(["dev", "--no-demo", "--json", "--data"])
            .arg(folder.path())
            .args(more)
            .envs(variables.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = Lines::of(&mut child);
        let child = Running(child);
        let ready = lines.next();
        assert_eq!(ready["event"], "ready");
        Dev { folder, ready, child, lines, restarted: BTreeMap::new() }
    }

    pub fn node(&self, id: usize) -> &Value {
        &self.ready["nodes"][id - 1]
    }

    pub fn token(&self) -> &str {
        self.ready["token"].as_str().unwrap()
    }

    pub fn ca(&self) -> PathBuf {
        PathBuf::from(self.ready["ca"].as_str().unwrap())
    }

    pub fn url(&self, id: usize) -> &str {
        self.node(id)["http"].as_str().unwrap()
    }

    pub fn servers(&self) -> String {
        let nodes = self.ready["nodes"].as_array().unwrap();
        nodes.iter().map(|node| node["session"].as_str().unwrap()).collect::<Vec<_>>().join(",")
    }

    /// The process of a node as it was started last.
    pub fn pid(&self, id: usize) -> u32 {
        match self.restarted.get(&id) {
            Some(running) => running.0.id(),
            None => self.node(id)["pid"].as_u64().unwrap() as u32,
        }
    }

    pub fn signal_node(&self, id: usize, signal: &str) {
        signal_to(self.pid(id), signal);
    }

    pub fn kill_node(&self, id: usize) {
        self.signal_node(id, "KILL");
    }

    /// Waits for the end of a node's process; how long that took.
    pub fn wait_ended(&self, id: usize) -> Duration {
        let (began, process) = (Instant::now(), PathBuf::from(format!("/proc/{}", self.pid(id))));
        // One that nobody has waited for is a zombie. It holds its ports until the last of its threads is one.
        let lives = || {
            let threads = std::fs::read_dir(process.join("task")).map_or(0, Iterator::count);
            let stat = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
            threads > 1 || stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.starts_with(" Z"))
        };
        while lives() {
            assert!(began.elapsed() < PATIENCE, "node {id} does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
        began.elapsed()
    }

    /// Stops a node's process without ending it, until the answer is dropped.
    pub fn pause_node(&self, id: usize) -> Paused {
        self.signal_node(id, "STOP");
        Paused(self.pid(id))
    }

    /// Starts a killed node again, as its operator would.
    pub fn start_node(&mut self, id: usize) -> u32 {
        self.start_node_by(id, Command::new(REVEILLE))
    }

    /// The same by a program that begins the binary in its own way.
    pub fn start_node_by(&mut self, id: usize, mut program: Command) -> u32 {
        let config = self.node(id)["config"].as_str().unwrap();
        let log = std::fs::File::options().append(true).create(true).open(self.log_of(id)).unwrap();
        let child =
            program.args(["node", "--config", config]).stderr(log).stdin(Stdio::null()).spawn().unwrap();
        let pid = child.id();
        self.restarted.insert(id, Running(child));
        pid
    }

    fn log_of(&self, id: usize) -> PathBuf {
        self.folder.path().join(format!("node-{id}.log"))
    }

    /// What a node has logged so far.
    pub fn log(&self, id: usize) -> String {
        std::fs::read_to_string(self.log_of(id)).unwrap_or_default()
    }

    pub fn admin(&self, id: usize) -> &str {
        self.node(id)["admin"].as_str().unwrap()
    }

    pub fn is_ready(&self, id: usize) -> bool {
        http_try(self.admin(id), "GET", "/readyz", &[], b"").is_some_and(|answer| answer.status == 200)
    }

    pub fn wait_ready(&self, id: usize) {
        let deadline = Instant::now() + PATIENCE;
        while !self.is_ready(id) {
            if Instant::now() >= deadline {
                let answer = http_try(self.admin(id), "GET", "/readyz", &[], b"").map(|answer| answer.body);
                let answer = String::from_utf8_lossy(&answer.unwrap_or_default()).into_owned();
                let log = self.log(id);
                let last: Vec<&str> = log.lines().rev().take(5).collect();
                panic!("node {id} is not ready: {answer:?}; the end of its log, last line first: {last:#?}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn terminal(&self, name: &str, more: &[&str]) -> (Running, Lines) {
        self.terminal_of(&self.servers(), name, more)
    }

    pub fn terminal_of(&self, servers: &str, name: &str, more: &[&str]) -> (Running, Lines) {
        let mut child = Command::new(REVEILLE)
            .args(["terminal", "--json", "--server", servers, "--ca"])
            .arg(self.ca())
            .arg("--state")
            .arg(self.folder.path().join(name))
            .args(more)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = Lines::of(&mut child);
        (Running(child), lines)
    }

    pub fn publish(&self, node: usize, terminal: &str, headers: &[(&str, &str)], body: &[u8]) -> Http {
        let path = format!("/v1/terminals/{terminal}/messages");
        self.request(node, "POST", &path, headers, body)
    }

    pub fn request(
        &self,
        node: usize,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Http {
        let bearer = format!("Bearer {}", self.token());
        let mut all = vec![("Authorization", bearer.as_str())];
        all.extend_from_slice(headers);
        http(self.url(node), method, path, &all, body)
    }
}

/// What a command comes to that ends by itself. One that does not is a failed test, not one without an end.
#[track_caller]
pub fn output_of(command: &mut Command) -> Output {
    let what = format!("{command:?}");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let pid = child.id();
    let (send, ended) = mpsc::channel();
    let waits = std::thread::spawn(move || send.send(child.wait_with_output().unwrap()));
    ended.recv_timeout(PATIENCE * 2).unwrap_or_else(|_| {
        signal_to(pid, "KILL");
        let _ = waits.join();
        let said = ended.recv().unwrap();
        panic!("{what} does not end: {}", String::from_utf8_lossy(&said.stderr))
    })
}

/// A process that is stopped.
pub struct Paused(u32);

impl Drop for Paused {
    fn drop(&mut self) {
        // Killed meanwhile: then there is nothing to wake.
        let _ = Command::new("kill").args(["-s", "CONT", &self.0.to_string()]).status();
    }
}

fn signal_to(pid: u32, signal: &str) {
    let sent = Command::new("kill").args(["-s", signal, &pid.to_string()]).status().unwrap();
    assert!(sent.success(), "kill -s {signal} {pid}");
}

/// An answer.
#[derive(Debug)]
pub struct Http {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Http {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&self.body)))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

pub fn http(url: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Http {
    http_try(url, method, path, headers, body).expect("an answer")
}

/// One request on a connection of its own, written byte by byte: what is tested is the server, not a client.
pub fn http_try(url: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Option<Http> {
    let authority = url.strip_prefix("http://").expect("plain http in dev");
    let mut stream = TcpStream::connect(authority).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
    let mut request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    // The server may answer and close before it has read all of a body that it refuses.
    let _ = stream.write_all(body);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let mut lines = head.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers =
        lines.filter_map(|line| line.split_once(": ")).map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    Some(Http { status, headers, body: answer[end + 4..].to_vec() })
}

/// Addresses on loopback that nobody listens at, and that neither the kernel nor another cluster on this machine takes:
/// from blocks of ports that are this process's, as those of `reveille dev` are.
pub fn free_addresses(count: usize) -> Vec<String> {
    /// Who listens at the first port of a block has it all.
    static BLOCKS: Mutex<(Vec<TcpListener>, Vec<String>)> = Mutex::new((Vec::new(), Vec::new()));
    let mut blocks = BLOCKS.lock().unwrap();
    let (guards, free) = &mut *blocks;
    let mut draw = std::process::id();
    while free.len() < count {
        draw = draw.wrapping_mul(97).wrapping_add(7);
        let first = 12_000 + draw % (20_000 / 32) * 32;
        if let Ok(guard) = TcpListener::bind(format!("127.0.0.1:{first}")) {
            guards.push(guard);
            let addresses = (first + 1..first + 32).map(|port| format!("127.0.0.1:{port}"));
            free.extend(addresses.filter(|address| TcpListener::bind(address).is_ok()));
        }
    }
    free.drain(..count).collect()
}

pub fn folder_is_gone(path: &Path) -> bool {
    !path.exists()
}
