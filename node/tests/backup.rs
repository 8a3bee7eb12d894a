//! A backup of a cluster under load comes into a new cluster of another size: terminals get what waited for them, once and
//! in order, and are woken by the new one; what is damaged is refused before anything is sent; what is broken off is
//! finished by the same command.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use reveille_protocol::directory::{Directory, Secret};
use reveille_protocol::id::*;
use reveille_protocol::service_list::Imported;
use reveille_protocol::service_list::row::{Reachability, Row, Urgency};
use reveille_protocol::time::GroupTime;
use reveille_protocol::wire::codec;
use serde_json::{Value, json};
use support::load::{Load, body};
use support::name::ServiceName;
use support::{Dev, Lines, REVEILLE, Running, http};

/// Terminals that were registered by their keys and never come.
const ABSENT: usize = 6000;
/// Pushes that wait for one of them: more bytes than go in one part.
const MANY: usize = 300;

fn command(admin: &str, args: &[&str]) -> Command {
    let mut command = Command::new(REVEILLE);
    command.args(["cluster", "--url", admin]).args(args);
    command
}

fn cluster(admin: &str, args: &[&str]) -> Output {
    command(admin, args).output().unwrap()
}

fn done(admin: &str, args: &[&str]) -> Value {
    let output = cluster(admin, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn refused(admin: &str, args: &[&str], why: &str) {
    let output = cluster(admin, args);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains(why), "{args:?}, {why}: {text}");
}

fn admin(dev: &Dev, node: usize) -> String {
    dev.node(node)["admin"].as_str().unwrap().to_owned()
}

fn absent(number: usize) -> String {
    let first = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    format!("{first:016x}{number:048x}")
}

/// A terminal that has been online once and sleeps now.
fn asleep(dev: &Dev, servers: &str, name: &str) -> (String, Running, Lines) {
    let (child, lines) = dev.terminal_of(servers, name, &[]);
    let id = lines.next_event("listening")["terminal"].as_str().unwrap().to_owned();
    lines.next_event("disconnected");
    (id, child, lines)
}

fn received(lines: &Lines) -> (String, u64, bool) {
    let event = lines.next_event("received");
    (body(&event), event["seq"].as_u64().unwrap(), event["maybe_seen"].as_bool().unwrap())
}

/// Asks a node of `dev` with the token of an earlier cluster.
fn with_token(dev: &Dev, token: &str, method: &str, path: &str, body: &[u8]) -> support::Http {
    let bearer = format!("Bearer {token}");
    http(dev.url(1), method, path, &[("Authorization", &bearer)], body)
}

fn listed(dev: &Dev, token: &str) -> usize {
    let (mut count, mut after) = (0, String::new());
    loop {
        let page = with_token(dev, token, "GET", &format!("/v1/terminals?limit=1000{after}"), b"").json();
        count += page["terminals"].as_array().unwrap().len();
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return count,
        }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Every way in which a backup can be no whole backup is seen before anything is sent.
fn damage_is_refused(backup: &Path, scratch: &Path, admin: &str) {
    let bad = scratch.join("bad");
    let from = bad.to_str().unwrap();
    let restore = ["restore", "--from", from];
    for entry in fs::read_dir(backup).unwrap() {
        let name = entry.unwrap().file_name();
        let good = fs::read(backup.join(&name)).unwrap();
        let last = good.len() - 1;
        for (at, bit) in [(0, 0), (9, 1), (13, 2), (last / 3, 5), (last / 2, 0), (last - 9, 3), (last, 7)] {
            copy(backup, &bad);
            let mut flipped = good.clone();
            flipped[at] ^= 1 << bit;
            fs::write(bad.join(&name), flipped).unwrap();
            refused(admin, &restore, "nothing was sent");
        }
        for left in [0, 7, last / 2, last] {
            copy(backup, &bad);
            fs::write(bad.join(&name), &good[..left]).unwrap();
            refused(admin, &restore, "nothing was sent");
        }
        fs::remove_file(bad.join(&name)).unwrap();
        refused(admin, &restore, "nothing was sent");
    }
    copy(backup, &bad);
    fs::copy(backup.join("group-001.backup"), bad.join("group-002.backup")).unwrap();
    refused(admin, &restore, "its checksum is not that of the manifest");
    fs::remove_file(bad.join("manifest.json")).unwrap();
    refused(admin, &restore, "a backup into it was not finished");
    refused(admin, &["restore", "--from", scratch.to_str().unwrap()], "it holds no manifest.json");
}

/// Restores until the first shard is there, then ends as if killed.
fn broken_off(admin: &str, backup: &str, meanwhile: impl FnOnce()) {
    let mut child = command(admin, &["restore", "--from", backup])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first = lines.map_while(Result::ok).find(|line| line.starts_with("the backup's shard 1"));
    assert!(first.is_some(), "it did not come to the first shard");
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success(), "it was through before it could be killed");
    meanwhile();
}

#[test]
fn a_backup_under_load_is_restored_into_a_cluster_of_another_size() {
    let mut old = Dev::start();
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    let token = old.token().to_owned();

    // Who sleeps at home, who listens, and who never comes.
    let (sleeper, child, _) = asleep(&old, &old.servers(), "sleeper");
    drop(child);
    let name = ServiceName::new(&[old.node(1)["session"].as_str().unwrap()]);
    let (listener, _listening, heard) = asleep(&old, &name.address, "listener");
    assert_eq!(old.publish(2, &listener, &[], b"l1").status, 201);
    assert_eq!(received(&heard), ("l1".to_owned(), 1, false));
    let keys: Vec<String> =
        (0..ABSENT).map(|number| format!("{{\"key\": \"{}\"}}", absent(number))).collect();
    for some in keys.chunks(ABSENT / 2) {
        // A busy machine may need more than one request.
        let all = || {
            let answer = old.request(1, "POST", "/v1/terminals", &[], some.join("\n").as_bytes());
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            answer.status == 200 && text.matches("\"existed\"").count() == some.len()
        };
        assert!((0..10).any(|_| all()), "they cannot be registered");
    }
    let crowded = absent(3)[..32].to_owned();
    for number in 0..MANY {
        let headers = [("TTL", "86400"), ("Urgency", "high")];
        let text = format!("{number:04}").repeat(750);
        assert_eq!(old.publish(number % 3 + 1, &crowded, &headers, text.as_bytes()).status, 201);
    }
    for (text, ttl, topic) in [
        ("s1", "86400", "-"),
        ("short", "1", "-"),
        ("replaced", "86400", "news"),
        ("s2", "86400", "news"),
        ("s3", "86400", "-"),
    ] {
        let headers = [("TTL", ttl), ("Topic", topic)];
        let headers = &headers[..if topic == "-" { 1 } else { 2 }];
        assert_eq!(old.publish(1, &sleeper, headers, text.as_bytes()).status, 201);
    }

    // A backup under load, with a node that dies as it begins.
    let load = Load::start(&old, &["t1", "t2"]);
    load.take(Duration::from_millis(500));
    let backup = path("backup");
    let mut running = command(&admin(&old, 1), &["backup", "--json", "--to", &backup]).spawn().unwrap();
    load.fault("node 3 is killed during a backup");
    old.kill_node(3);
    assert!(running.wait().unwrap().success());
    refused(&admin(&old, 1), &["backup", "--to", &backup], "holds a whole backup already");
    refused(&admin(&old, 1), &["backup", "--to", scratch.path().to_str().unwrap()], "holds something else");
    let third = old.start_node(3);
    old.wait_ready(3);
    // It is not for a cluster that has terminals, which serves on.
    refused(&admin(&old, 2), &["restore", "--from", &backup], "has terminals of its own");
    load.take(Duration::from_millis(500));
    load.end(50);
    let (_, late, _) = asleep(&old, &old.servers(), "late");
    drop(late);
    assert_eq!(old.publish(1, &sleeper, &[], b"after the backup").status, 201);
    // Nobody can tell how far a group is without a majority of it.
    old.kill_node(2);
    assert!(Command::new("kill").args(["-9", &third.to_string()]).status().unwrap().success());
    let late = path("late");
    refused(&admin(&old, 1), &["backup", "--patience", "1s", "--to", &late], "repeat the command");
    old.kill_node(1);
    drop(std::mem::replace(&mut old.ready, Value::Null));

    let folder = tempfile::tempdir().unwrap();
    for file in ["ca.pem", "ca.key"] {
        fs::copy(old.folder.path().join(file), folder.path().join(file)).unwrap();
    }
    let mut new = Dev::start_like(folder, &["--nodes", "5", "--groups", "5"]);
    damage_is_refused(Path::new(&backup), scratch.path(), &admin(&new, 1));
    assert_eq!(listed(&new, new.token()), 0);

    // The command and a node die in the middle: nobody is served until the same command has finished.
    broken_off(&admin(&new, 1), &backup, || {
        new.kill_node(4);
        let path = format!("/v1/terminals/{sleeper}/messages");
        let answer = with_token(&new, &token, "POST", &path, b"too early");
        assert_eq!((answer.status, answer.json()["error"].as_str()), (503, Some("restoring")));
    });
    let restored = done(&admin(&new, 1), &["restore", "--json", "--from", &backup]);
    assert_eq!(restored["content"]["terminals"], ABSENT + 4, "{restored}");
    assert!(restored["content"]["pushes"].as_u64().unwrap() >= MANY as u64 + 3, "{restored}");
    assert_eq!(restored["before"], false);
    let again = done(&admin(&new, 2), &["restore", "--json", "--from", &backup]);
    assert_eq!((&again["before"], &again["restored"]), (&Value::Bool(true), &restored["restored"]));
    new.start_node(4);
    new.wait_ready(4);
    assert_eq!(listed(&new, &token), ABSENT + 4);
    let entry = with_token(&new, &token, "GET", &format!("/v1/terminals/{crowded}"), b"").json();
    assert_eq!((&entry["pending"], &entry["next_seq"]), (&MANY.into(), &(MANY + 1).into()), "{entry}");

    // Who slept at home gets what waited, marked, and then what is new.
    let mut child = Command::new(REVEILLE);
    child.args(["terminal", "--json", "--server", &new.servers(), "--ca"]).arg(new.ca()).arg("--state");
    let mut child = child.arg(old.folder.path().join("sleeper")).stdout(Stdio::piped()).spawn().unwrap();
    let lines = Lines::of(&mut child);
    let _child = Running(child);
    let got: Vec<_> = (0..3).map(|_| received(&lines)).collect();
    assert!(got.iter().map(|(text, _, _)| text.as_str()).eq(["s1", "s2", "s3"]), "{got:?}");
    assert!(got.is_sorted_by_key(|(_, seq, _)| *seq) && got.iter().all(|(_, _, marked)| *marked), "{got:?}");
    lines.next_event("disconnected");
    let publish = |terminal: &str, text: &str| {
        let answer =
            with_token(&new, &token, "POST", &format!("/v1/terminals/{terminal}/messages"), text.as_bytes());
        assert_eq!(answer.status, 201, "{}", String::from_utf8_lossy(&answer.body));
    };
    publish(&sleeper, "s4");
    let (text, _, marked) = received(&lines);
    assert_eq!((text.as_str(), marked), ("s4", false));

    // Who listened all the time has never talked to the new cluster: what wakes it are the old one's secrets.
    let sessions: Vec<_> = (1..=5).map(|node| new.node(node)["session"].as_str().unwrap()).collect();
    name.set(&sessions);
    let asked = Instant::now();
    publish(&listener, "l2");
    assert_eq!(received(&heard), ("l2".to_owned(), 1, false));
    assert!(asked.elapsed() < Duration::from_secs(10), "it was not woken: {:?}", asked.elapsed());
}

/// A terminal as a backup has it.
fn of_a_backup(key: u8) -> Imported {
    let row = Row {
        tenant: TenantId(1),
        stream: Stream(7),
        session_key: KeyFingerprint([key; 32]),
        epoch: Epoch(1),
        attempt: Attempt(1),
        current: None,
        reachability: Reachability::None,
        secret: 1,
        next_seq: Seq(1),
        acked: Seq(0),
        pending: 0,
        pending_bytes: 0,
        linger: Default::default(),
        min_urgency: Urgency::VeryLow,
        registered: GroupTime(1),
        last_seen: GroupTime(1),
    };
    Imported { row, from: Seq(1), pushes: Vec::new() }
}

#[test]
fn a_restore_whose_backup_is_gone_is_seen_and_given_up_unless_it_brought_terminals() {
    let dev = Dev::start_like(tempfile::tempdir().unwrap(), &["--nodes", "1", "--groups", "2"]);
    let admin = admin(&dev, 1);
    let restore = "0123456789abcdef0123456789abcdef";
    let post = |step: &str, body: &[u8]| {
        let answer = http(&admin, "POST", &format!("/cluster/restore/{restore}{step}"), &[], body);
        assert!(answer.status < 300, "{step}: {}", String::from_utf8_lossy(&answer.body));
    };
    let register = |number: usize| {
        let line = format!("{{\"key\": \"{}\"}}", absent(number));
        let answer = dev.request(1, "POST", "/v1/terminals", &[], line.as_bytes());
        String::from_utf8_lossy(&answer.body).into_owned()
    };
    let status = || String::from_utf8(cluster(&admin, &["status"]).stdout).unwrap();
    let settled = || done(&admin, &["status", "--json"])["settled"] == true;
    let until_settled = || {
        let until = Instant::now() + Duration::from_secs(20);
        while !settled() {
            assert!(Instant::now() < until, "{}", status());
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    let secrets = vec![Secret { generation: 1, key: [9; 32] }];
    let directory = Directory { secrets, ..Directory::default() }.encode();
    until_settled();

    post("", &directory);
    assert!(!settled());
    let told = status();
    assert!(told.contains("NOT settled: a restore is open in 2 groups"), "{told}");
    assert!(told.contains(&format!("RESTORING {restore}")), "{told}");
    assert!(register(1).contains("being restored"), "{}", register(1));
    let given_up = done(&admin, &["restore", "--give-up", "--json"]);
    assert_eq!(given_up, json!({ "given_up": [restore], "finished": [] }));
    assert!(settled(), "{}", status());
    let nothing = done(&admin, &["restore", "--give-up", "--json"]);
    assert_eq!(nothing, json!({ "given_up": [], "finished": [] }), "repeated, it finds nothing");

    // The same backup again, and this time it brings something.
    post("", &directory);
    post("/terminals", &codec::encode(&vec![of_a_backup(1)]));
    refused(&admin, &["restore", "--give-up"], "terminals have come by this restore");
    assert!(!settled(), "{}", status());
    post("/finish", b"");
    assert!(settled(), "{}", status());
    assert!(register(1).contains("existed"), "{}", register(1));
}
