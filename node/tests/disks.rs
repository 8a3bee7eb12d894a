//! Disks that lie, on a minority of the nodes: tables that are gone, rolled back or have a flipped bit are made anew from
//! the peers'; a log or a page that was changed is refused, with the command that helps. Judged under load.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::load::Load;
use support::{Dev, REVEILLE, Running, http_try, output_of};

/// The node whose disk lies.
const VICTIM: usize = 2;

struct Victim<'a> {
    dev: &'a Dev,
    running: Option<Running>,
}

impl Victim<'_> {
    fn data(&self) -> PathBuf {
        PathBuf::from(self.dev.node(VICTIM)["data"].as_str().unwrap())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dev.folder.path().join("victim.log")).unwrap_or_default()
    }

    fn start(&mut self) {
        let log = self.dev.folder.path().join("victim.log");
        let log = fs::File::options().append(true).create(true).open(log).unwrap();
        let config = self.dev.node(VICTIM)["config"].as_str().unwrap();
        let child = Command::new(REVEILLE)
            .args(["node", "--log-level", "warn,reveille=info,reveille_cluster=info", "--config", config])
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        self.running = Some(Running(child));
    }

    fn kill(&mut self) {
        match self.running.take() {
            Some(running) => drop(running),
            None => self.dev.kill_node(VICTIM),
        }
        // Its socket to the others breaks a moment later.
        std::thread::sleep(Duration::from_millis(100));
    }

    /// Starts it until it is ready; it may find damage only as it reads, and end.
    fn bring_back(&mut self, what: &str) {
        let admin = self.dev.node(VICTIM)["admin"].as_str().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut starts = 0;
        loop {
            let over = match &mut self.running {
                Some(running) => running.0.try_wait().unwrap().is_some(),
                None => true,
            };
            if over {
                starts += 1;
                assert!(starts <= 3, "{what}: it does not stay: {}", self.log());
                self.start();
            }
            if http_try(admin, "GET", "/readyz", &[], b"").is_some_and(|answer| answer.status == 200) {
                return;
            }
            assert!(Instant::now() < deadline, "{what}: not ready: {}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Has it lead everything: then every read and every decision is made from its tables.
    fn lead(&self) {
        for other in [1, 3] {
            let mut command = Command::new(REVEILLE);
            command.args(["cluster", "--url", self.dev.node(1)["admin"].as_str().unwrap()]);
            let output = output_of(command.args(["move-leaders", "--from", &other.to_string()]));
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    }

    /// Waits until the cluster has come to rest: a new one takes its format then.
    fn settles(&self) {
        let admin = self.dev.node(1)["admin"].as_str().unwrap();
        let mut command = Command::new(REVEILLE);
        let output = output_of(command.args(["cluster", "--url", admin, "status", "--wait", "60s"]));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Starts it where it must not start; what it says.
    fn refuses(&self) -> String {
        let config = self.dev.node(VICTIM)["config"].as_str().unwrap();
        let output = output_of(Command::new(REVEILLE).args(["node", "--create", "--config", config]));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{text}");
        text
    }
}

fn status(dev: &Dev, node: usize) -> Value {
    let admin = dev.node(node)["admin"].as_str().unwrap();
    http_try(admin, "GET", "/status", &[], b"").expect("a status").json()
}

/// Publishes until a log has been cut at every node: from then on tables cannot follow from it alone.
fn fill(dev: &Dev) {
    let payload = vec![b'x'; 4096];
    // A terminal that never comes; each push replaces the one before.
    let key = format!("{{\"key\":\"{}\"}}", "ab".repeat(32));
    let registered = dev.request(1, "POST", "/v1/terminals", &[], key.as_bytes()).json();
    let terminal = registered["terminal"].as_str().unwrap_or_else(|| panic!("{registered}")).to_owned();
    for round in 0..40 {
        std::thread::scope(|scope| {
            for publisher in 0..4 {
                let (payload, terminal) = (&payload, &terminal);
                scope.spawn(move || {
                    for number in 0..250 {
                        // As a careful publisher: what is unknown or refused for now is tried again.
                        let stored = (0..30).any(|again| {
                            let node = 1 + (publisher + number + again) % 3;
                            let answer = dev.publish(node, terminal, &[("Topic", "fill")], payload);
                            assert!([201, 503].contains(&answer.status), "{answer:?}");
                            answer.status == 201
                        });
                        assert!(stored, "no node takes a push");
                    }
                });
            }
        });
        let cut = |node: usize| {
            let status = status(dev, node);
            let groups = status["cluster"]["groups"].as_array().unwrap();
            groups.iter().any(|group| group["purged"].as_u64() > Some(0))
        };
        if (1..=3).all(cut) {
            return;
        }
        assert!(round < 39, "no log was cut");
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found.sort();
    found
}

fn flip(file: &Path, at: usize) {
    let mut bytes = fs::read(file).unwrap();
    bytes[at] ^= 0x10;
    fs::write(file, bytes).unwrap();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in files(from) {
        let target = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(&file, target).unwrap();
    }
}

#[test]
fn tables_that_lie_are_made_anew_from_the_peers() {
    let dev = Dev::start();
    let load = Load::start(&dev, &["t1", "t2"]);
    let mut victim = Victim { dev: &dev, running: None };
    let tables = victim.data().join("tables");

    // As they are before the log is cut: what an operator's mistake, or a copy of a disk, brings back later.
    load.take(Duration::from_millis(300));
    victim.kill();
    let earlier = dev.folder.path().join("earlier");
    copy(&tables, &earlier);
    victim.bring_back("nothing is wrong");
    fill(&dev);

    load.fault("tables rolled back");
    victim.kill();
    fs::remove_dir_all(&tables).unwrap();
    copy(&earlier, &tables);
    victim.bring_back("rolled back");
    assert!(victim.log().contains("tables were rebuilt from a peer's"), "{}", victim.log());
    victim.lead();
    load.take(Duration::from_millis(500));

    load.fault("tables gone");
    victim.kill();
    fs::remove_dir_all(&tables).unwrap();
    victim.bring_back("gone");
    assert!(victim.log().contains("no tables in"), "{}", victim.log());
    victim.lead();
    load.take(Duration::from_millis(500));

    // One bit of each file in turn; some are read at once, some later, some never.
    let mut flipped = 0;
    victim.kill();
    let kinds = files(&tables).into_iter().filter(|file| {
        // The first and the second of many: `tables/0`, `v1`, ...
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        name.trim_start_matches('v').parse().map_or(true, |number: u32| number < 2)
    });
    let kinds: Vec<PathBuf> = kinds.collect();
    victim.bring_back("nothing is wrong");
    for file in kinds {
        victim.kill();
        let Ok(len) = fs::metadata(&file).map(|meta| meta.len() as usize) else {
            // Compaction has replaced it.
            victim.bring_back("nothing is wrong");
            continue;
        };
        if len > 0 {
            load.fault(format!("one bit of {}", file.display()));
            flip(&file, len / 2);
            flipped += 1;
        }
        victim.bring_back(&format!("one bit of {}", file.display()));
        victim.lead();
        load.take(Duration::from_millis(200));
    }
    assert!(flipped >= 5, "too few files for the run to mean anything: {flipped}");
    assert!(!tables.with_extension("damaged").exists(), "a mark is left: {}", victim.log());
    load.take(Duration::from_secs(1));
    load.end(200);
}

#[test]
fn a_log_or_a_page_that_was_changed_is_refused_with_what_helps() {
    let dev = Dev::start();
    let mut victim = Victim { dev: &dev, running: None };
    let load = Load::start(&dev, &["t1"]);
    load.take(Duration::from_millis(500));
    victim.kill();
    let (log, page) = (victim.data().join("log"), victim.data().join("folder"));
    let whole = dev.folder.path().join("whole");
    copy(&victim.data(), &whole);

    let segment =
        files(&log).into_iter().find(|file| file.extension().is_some_and(|kind| kind == "wal")).unwrap();
    // In the first records: many sealed batches come after them.
    flip(&segment, 400);
    let said = victim.refuses();
    assert!(said.contains("damage") && said.contains("reveille cluster replace 2"), "{said}");
    fs::copy(whole.join("log").join(segment.file_name().unwrap()), &segment).unwrap();

    let len = fs::metadata(&page).unwrap().len() as usize;
    flip(&page, len / 2);
    let said = victim.refuses();
    assert!(said.contains("reveille cluster replace") || said.contains("belongs to"), "{said}");
    fs::copy(whole.join("folder"), &page).unwrap();

    fs::remove_dir_all(&log).unwrap();
    let said = victim.refuses();
    assert!(said.contains("its log is gone") && said.contains("reveille cluster replace"), "{said}");
    copy(&whole.join("log"), &log);
    victim.bring_back("made good");
    load.end(50);
}

#[test]
fn an_older_copy_of_a_folder_is_refused_and_harms_nobody() {
    let dev = Dev::start();
    let mut victim = Victim { dev: &dev, running: None };
    let load = Load::start(&dev, &["t1"]);
    load.take(Duration::from_millis(300));
    victim.settles();
    // A new cluster asks for an account of starts while its nodes run.
    let starts = victim.data().join("starts");
    let deadline = Instant::now() + Duration::from_secs(60);
    while fs::read_to_string(&starts).unwrap().starts_with("entered 0000000000000000") {
        assert!(Instant::now() < deadline, "no account is kept: {}", victim.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    victim.kill();
    let (earlier, later) = (dev.folder.path().join("earlier"), dev.folder.path().join("later"));
    copy(&victim.data(), &earlier);
    victim.bring_back("nothing is wrong");
    load.take(Duration::from_millis(500));
    victim.kill();

    fs::rename(victim.data(), &later).unwrap();
    copy(&earlier, &victim.data());
    load.fault("an older copy");
    let said = victim.refuses();
    assert!(said.contains("this one is older") && said.contains("reveille cluster replace 2"), "{said}");
    for node in [1, 3] {
        dev.wait_ready(node);
    }
    fs::remove_dir_all(victim.data()).unwrap();
    fs::rename(&later, victim.data()).unwrap();
    victim.bring_back("the later one");
    load.take(Duration::from_millis(500));
    load.end(50);
}
