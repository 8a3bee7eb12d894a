//! `201` means on disk on a majority: every publish is preceded by its syncs, none is acknowledged while a majority cannot
//! sync, and a disk that is full stops its node with a word and loses nothing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::load::Load;
use support::{Dev, REVEILLE, Running, http_try};

/// Stands before fdatasync in a node: waits while a file is there, and counts.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int fdatasync(int file) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fdatasync");
    const char *folder = getenv("SHIM");
    char path[4096];
    snprintf(path, sizeof path, "%s/block.%d", folder, getpid());
    while (access(path, F_OK) == 0) usleep(1000);
    int done = real(file);
    snprintf(path, sizeof path, "%s/count.%d", folder, getpid());
    int count = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (count >= 0) {
        if (write(count, ".", 1) != 1) abort();
        close(count);
    }
    return done;
}
"#;
/// One after the other.
const PUBLISHES: u64 = 100;
/// A request without an outcome is answered after 5 s.
const ANSWERED_WITHIN: Duration = Duration::from_secs(30);

/// A cluster whose nodes sync through the shim; `None`, with a word, where it cannot be built.
struct Shimmed {
    dev: Dev,
    folder: tempfile::TempDir,
}

impl Shimmed {
    fn start() -> Option<Shimmed> {
        let folder = tempfile::tempdir().unwrap();
        let (source, shim) = (folder.path().join("shim.c"), folder.path().join("shim.so"));
        fs::write(&source, SHIM).unwrap();
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&shim, &source])
            .arg("-ldl")
            .status();
        if !compiled.is_ok_and(|status| status.success()) {
            eprintln!("skipped: no C compiler makes a shared library here");
            return None;
        }
        let variables = [("LD_PRELOAD", shim.to_str().unwrap()), ("SHIM", folder.path().to_str().unwrap())];
        let dev = Dev::start_with(tempfile::tempdir().unwrap(), &variables);
        Some(Shimmed { dev, folder })
    }

    fn file(&self, what: &str, node: usize) -> PathBuf {
        self.folder.path().join(format!("{what}.{}", self.dev.pid(node)))
    }

    fn syncs(&self, node: usize) -> u64 {
        // None yet: it has synced nothing.
        fs::metadata(self.file("count", node)).map_or(0, |counted| counted.len())
    }

    fn block(&self, node: usize) {
        fs::write(self.file("block", node), "").unwrap();
    }

    fn unblock(&self, node: usize) {
        fs::remove_file(self.file("block", node)).unwrap();
    }

    /// A terminal that never comes.
    fn terminal(&self) -> String {
        let key = format!("{{\"key\":\"{}\"}}", "ab".repeat(32));
        let registered = self.dev.request(1, "POST", "/v1/terminals", &[], key.as_bytes()).json();
        registered["terminal"].as_str().unwrap().to_owned()
    }

    fn leader(&self, terminal: &str) -> usize {
        let slot = terminal.parse::<reveille_protocol::id::TerminalId>().unwrap().slot();
        let status = http_try(self.dev.admin(1), "GET", "/status", &[], b"").unwrap().json();
        let groups = status["cluster"]["groups"].as_array().unwrap();
        let group = reveille_protocol::directory::group_of_slot(slot, groups.len() as u16 - 1).0;
        groups[usize::from(group)]["leader"].as_u64().unwrap() as usize
    }
}

#[test]
fn every_acknowledged_push_was_synced_by_a_majority() {
    let Some(shimmed) = Shimmed::start() else { return };
    let terminal = shimmed.terminal();
    let before: Vec<u64> = (1..=3).map(|node| shimmed.syncs(node)).collect();
    for number in 0..PUBLISHES {
        let answer = shimmed.dev.publish(1 + number as usize % 3, &terminal, &[], b"hello");
        assert_eq!(answer.status, 201, "{answer:?}");
    }
    let mut syncs: Vec<u64> = (1..=3).map(|node| shimmed.syncs(node) - before[node - 1]).collect();
    eprintln!("{PUBLISHES} pushes one after the other: {syncs:?} fdatasync");
    syncs.sort_unstable();
    assert!(syncs[1] + syncs[0] >= PUBLISHES && syncs[2] >= PUBLISHES, "{syncs:?}");
}

#[test]
fn nothing_is_acknowledged_while_a_majority_cannot_sync() {
    let Some(shimmed) = Shimmed::start() else { return };
    let dev = &shimmed.dev;
    let terminal = shimmed.terminal();
    let leader = shimmed.leader(&terminal);
    let others: Vec<usize> = (1..=3).filter(|node| *node != leader).collect();

    // One disk that hangs is a minority.
    shimmed.block(others[0]);
    assert_eq!(dev.publish(leader, &terminal, &[], b"one hangs").status, 201);
    shimmed.unblock(others[0]);

    for blocked in [vec![others[0], others[1]], vec![leader, others[1]]] {
        let key = format!("blocked {blocked:?}");
        blocked.iter().for_each(|node| shimmed.block(*node));
        let began = Instant::now();
        let answer = dev.publish(leader, &terminal, &[("Idempotency-Key", &key)], b"two hang");
        assert_eq!(answer.status, 503, "{blocked:?}: {answer:?}");
        assert!(began.elapsed() < ANSWERED_WITHIN, "{blocked:?}: {:?}", began.elapsed());
        blocked.iter().for_each(|node| shimmed.unblock(*node));
        let deadline = Instant::now() + ANSWERED_WITHIN;
        while dev.publish(leader, &terminal, &[("Idempotency-Key", &key)], b"two hang").status != 201 {
            assert!(
                Instant::now() < deadline,
                "{blocked:?}: the disks sync again, and nothing is acknowledged"
            );
        }
    }
}

/// A small disk in a mount namespace of its own, which this process keeps.
struct SmallDisk {
    keeper: Running,
    at: PathBuf,
}

/// Three groups' tables and a few segments of 16 MiB.
const DISK: &str = "size=96m";

impl SmallDisk {
    /// Holds what the folder held; `None`, with a word, where mounts are not allowed.
    fn in_place_of(folder: &Path) -> Option<SmallDisk> {
        let script = format!(
            "cp -a {at} {at}.kept && mount -t tmpfs -o {DISK} tmpfs {at} && cp -a {at}.kept/. {at}/ && echo \
             mounted && exec sleep infinity",
            at = folder.display()
        );
        let keeper = Command::new("unshare")
            .args(["--mount", "--", "sh", "-c", &script])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mounted = keeper.ok().and_then(|mut keeper| {
            let out = BufReader::new(keeper.stdout.take().unwrap());
            let said = out.lines().next().and_then(Result::ok);
            let keeper = Running(keeper);
            (said.as_deref() == Some("mounted")).then_some(keeper)
        });
        let Some(keeper) = mounted else {
            eprintln!("skipped: a small disk cannot be mounted here; it takes root and unshare");
            return None;
        };
        Some(SmallDisk { keeper, at: folder.to_owned() })
    }

    /// A program that sees the disk.
    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--target", &self.keeper.0.id().to_string(), "--", program]);
        command
    }

    fn fill(&self) {
        let at = self.at.join("filler");
        // Ends when the disk is full, which is what it is for.
        let _ =
            self.inside("dd").args(["if=/dev/zero", "bs=64k"]).arg(format!("of={}", at.display())).output();
    }

    fn make_room(&self) {
        assert!(self.inside("rm").arg(self.at.join("filler")).status().unwrap().success());
    }
}

#[test]
fn a_full_disk_stops_its_node_and_loses_nothing() {
    const VICTIM: usize = 2;
    /// Bytes that fill the segment that is there and ask for the next.
    const ENOUGH: usize = 40 << 20;
    let mut dev = Dev::start();
    let load = Load::start(&dev, &["t1", "t2"]);
    load.take(Duration::from_millis(300));
    dev.kill_node(VICTIM);
    dev.wait_ended(VICTIM);
    let data = PathBuf::from(dev.node(VICTIM)["data"].as_str().unwrap());
    let Some(disk) = SmallDisk::in_place_of(&data) else { return };
    dev.start_node_by(VICTIM, disk.inside(REVEILLE));
    dev.wait_ready(VICTIM);

    load.fault("the disk of node 2 is full");
    disk.fill();
    let key = format!("{{\"key\":\"{}\"}}", "ab".repeat(32));
    let terminal = dev.request(1, "POST", "/v1/terminals", &[], key.as_bytes()).json()["terminal"].clone();
    let (body, mut published) = (vec![b'x'; 4096], 0);
    let over = |dev: &Dev| !dev.is_ready(VICTIM) && dev.log(VICTIM).contains("No space left on device");
    while !over(&dev) {
        for node in [1, 3, 1, 3, 1, 3, 1, 3] {
            let answer = dev.publish(node, terminal.as_str().unwrap(), &[("Topic", "fill")], &body);
            // While the leader stops, as at any failover, it may be that nobody knows.
            assert!([201, 503].contains(&answer.status), "{answer:?}");
            published += body.len();
        }
        assert!(published < ENOUGH, "node {VICTIM} goes on with a full disk: {}", dev.log(VICTIM));
    }
    dev.wait_ended(VICTIM);
    let log = dev.log(VICTIM);
    let said: Vec<&str> = log.lines().rev().take(2).collect();
    eprintln!("after {published} bytes, last line first: {said:#?}");
    assert_eq!(dev.publish(1, terminal.as_str().unwrap(), &[("Topic", "fill")], &body).status, 201);
    load.take(Duration::from_millis(500));

    load.fault("there is room again");
    disk.make_room();
    dev.start_node_by(VICTIM, disk.inside(REVEILLE));
    dev.wait_ready(VICTIM);
    // It counts again: without it there is no majority.
    load.fault("kill -9 node 1");
    dev.kill_node(1);
    load.take(Duration::from_secs(1));
    dev.wait_ended(1);
    dev.start_node(1);
    dev.wait_ready(1);
    load.end(50);
}
