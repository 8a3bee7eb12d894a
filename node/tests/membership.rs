//! Nodes come and go while publishers publish and terminals receive: added, drained, removed, replaced after their data
//! was lost; and every command that cannot be done says why.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

mod support;

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::load::Load;
use support::name::ServiceName;
use support::{Dev, REVEILLE, Running, free_addresses, http_try, output_of};

/// The exit code of an end that starting again does not mend.
const NO_RESTART_HELPS: i32 = 78;

/// A node beside those that `dev` started.
struct Node {
    running: Running,
    id: u64,
    http: String,
    session: String,
    admin: String,
    folder: PathBuf,
}

fn cluster(admin: &str, args: &[&str]) -> Output {
    output_of(Command::new(REVEILLE).args(["cluster", "--url", admin]).args(args))
}

fn done(admin: &str, args: &[&str]) -> String {
    let output = cluster(admin, args);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn refused(admin: &str, args: &[&str], why: &str) {
    let output = cluster(admin, args);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains(why), "{args:?}: {text}");
}

fn overview(admin: &str) -> Value {
    serde_json::from_str(&done(admin, &["status", "--json"])).unwrap()
}

fn settled(admin: &str, what: &str) -> Value {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let overview = overview(admin);
        if overview["settled"] == true {
            return overview;
        }
        assert!(Instant::now() < deadline, "{what}: not settled: {overview}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Takes part as an operator's new machine would: `how` is `add`, or `replace` and a node.
fn join(dev: &Dev, admin: &str, how: &[&str]) -> Node {
    let at = free_addresses(4);
    let dev_folder = dev.folder.path();
    let folder = dev_folder.join(format!("joined-{}", at[0].replace(':', "-")));
    let like = dev_folder.join("node-3.toml");
    let paths = [dev_folder.to_str().unwrap(), like.to_str().unwrap(), folder.to_str().unwrap()];
    let mut args = vec!["--json"];
    args.extend(how);
    args.extend(["--peer", &at[0], "--session", &at[1], "--http", &at[2], "--admin", &at[3]]);
    args.extend(["--listen", "127.0.0.1", "--names", "localhost"]);
    args.extend(["--ca", paths[0], "--like", paths[1], "--out", paths[2]]);
    let told: Value = serde_json::from_str(&done(admin, &args)).unwrap();
    let id = told["node"].as_u64().unwrap();
    let running = start(&folder, id);
    let (http, admin) = (format!("http://{}", at[2]), format!("http://{}", at[3]));
    Node { running, id, http, session: at[1].clone(), admin, folder }
}

fn start(folder: &std::path::Path, id: u64) -> Running {
    let log = std::fs::File::options().append(true).create(true).open(folder.join("log.txt")).unwrap();
    let child = Command::new(REVEILLE)
        .args(["node", "--create", "--log-level", "warn,reveille=info,reveille_cluster=info", "--config"])
        .arg(format!("node-{id}.toml"))
        .current_dir(folder)
        .stderr(log)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    Running(child)
}

fn ready(admin: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while http_try(admin, "GET", "/readyz", &[], b"").is_none_or(|answer| answer.status != 200) {
        assert!(Instant::now() < deadline, "{admin} is not ready");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn nodes_come_and_go_under_load_and_nothing_is_lost() {
    let dev = Dev::start();
    let admin = |node: usize| dev.node(node)["admin"].as_str().unwrap().to_owned();
    settled(&admin(1), "a new cluster");
    let session = |node: usize| dev.node(node)["session"].as_str().unwrap();
    let name = ServiceName::new(&[session(1), session(2), session(3)]);
    let load = Load::start_at(&dev, &name.address, &["t1", "t2", "t3"]);
    load.take(Duration::from_millis(500));

    load.fault("node 4 joins");
    let four = join(&dev, &admin(1), &["add"]);
    assert_eq!(four.id, 4);
    ready(&four.admin);
    let overview = settled(&four.admin, "node 4 joins");
    assert_eq!(overview["nodes"].as_array().unwrap().len(), 4);
    assert!(overview["nodes"][3]["votes"].as_u64() > Some(0), "{overview}");
    load.publish_through(&[dev.url(2), dev.url(3), &four.http]);
    name.set(&[session(1), session(2), session(3), &four.session]);
    load.take(Duration::from_millis(500));

    load.fault("node 1 is removed");
    done(&four.admin, &["remove", "1"]);
    done(&four.admin, &["remove", "1"]);
    load.take(Duration::from_millis(500));

    load.fault("node 2 loses its data and is replaced");
    load.publish_through(&[dev.url(3), &four.http]);
    dev.kill_node(2);
    dev.wait_ended(2);
    let data = PathBuf::from(dev.node(2)["data"].as_str().unwrap());
    std::fs::remove_dir_all(&data).unwrap();
    let config = dev.node(2)["config"].as_str().unwrap();
    let emptied = output_of(Command::new(REVEILLE).args(["node", "--create", "--config", config]));
    let said = String::from_utf8_lossy(&emptied.stderr).into_owned();
    assert_eq!(emptied.status.code(), Some(NO_RESTART_HELPS), "{said}");
    let at = |port: &str| dev.node(2)[port].as_str().unwrap().trim_start_matches("http://").to_owned();
    let whole = format!(
        "reveille cluster replace 2 --ca ca --peer {} --session {} --http {} --admin {} --listen 127.0.0.1 \
         --names 127.0.0.1,localhost --like CONFIG-OF-ANY-NODE --out node-2-replaced",
        at("peer"),
        at("session"),
        at("http"),
        at("admin"),
    );
    assert!(said.contains(&whole), "{whole} is not in {said}");
    assert!(!data.join("log").exists(), "it did not begin");
    let five = join(&dev, &four.admin, &["replace", "2"]);
    ready(&five.admin);
    let overview = settled(&five.admin, "node 2 is replaced");
    let nodes: Vec<_> =
        overview["nodes"].as_array().unwrap().iter().map(|node| node["node"].as_u64()).collect();
    assert_eq!(nodes, [Some(3), Some(4), Some(5)]);
    load.publish_through(&[dev.url(3), &four.http, &five.http]);
    name.set(&[session(3), &four.session, &five.session]);
    load.take(Duration::from_secs(1));

    load.fault("all that began with the cluster are gone");
    let six = join(&dev, &five.admin, &["replace", "3"]);
    load.publish_through(&[&four.http, &five.http]);
    ready(&six.admin);
    let overview = settled(&six.admin, "node 3 is replaced");
    assert!(
        overview["groups"]
            .as_array()
            .unwrap()
            .iter()
            .all(|group| group["voters"] == serde_json::json!([4, 5, 6]))
    );
    load.publish_through(&[&four.http, &six.http]);
    name.set(&[&four.session, &five.session, &six.session]);

    load.fault("a node that was away meets nodes that it does not know");
    let Node { running, folder, .. } = five;
    drop(running);
    load.take(Duration::from_secs(1));
    let _five = start(&folder, 5);
    ready(&five.admin);
    load.publish_through(&[&four.http, &five.http, &six.http]);
    load.take(Duration::from_millis(500));
    load.end(200);
}

/// A node that is asked for its own removal ends by it, and that is how the command knows.
#[test]
fn a_node_that_is_asked_removes_itself() {
    let dev = Dev::start();
    let admin = dev.admin(1).to_owned();
    settled(&admin, "a new cluster");
    let told = done(&admin, &["remove", "1", "--force-fewer-replicas"]);
    assert!(told.contains("done: remove node 1"), "{told}");
    dev.wait_ended(1);
    let nodes = overview(dev.admin(2))["nodes"].clone();
    assert_eq!(nodes.as_array().unwrap().len(), 2, "{nodes}");
}

/// Who reads "settled" restarts the next node: so it must not be said while one is down.
#[test]
fn what_is_down_is_said() {
    let dev = Dev::start();
    let admin = dev.admin(1).to_owned();
    let told = done(&admin, &["status", "--wait", "60s"]);
    assert!(told.contains("· settled") && !told.contains("NOT"), "{told}");
    done(&admin, &["status", "--check"]);
    let says = |what: &[&str]| {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let told = done(&admin, &["status"]);
            if what.iter().all(|what| told.contains(what)) {
                return;
            }
            assert!(Instant::now() < deadline, "not {what:?}: {told}");
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    dev.kill_node(3);
    says(&["NOT settled", "node 3 is down", "SILENT 3"]);
    refused(&admin, &["status", "--check"], "the cluster is not settled: node 3 is down");
    let began = Instant::now();
    refused(&admin, &["status", "--wait", "2s"], "the cluster is not settled within 2s: node 3 is down");
    assert!(began.elapsed() >= Duration::from_secs(2), "after {:?}", began.elapsed());
    let as_ever = cluster(&admin, &["status", "--check"]).stdout;
    assert!(String::from_utf8_lossy(&as_ever).contains("NOT settled"), "it is shown all the same");
    dev.kill_node(2);
    says(&["4 groups without a leader", "node 2 is down, node 3 is down", "SILENT 2 3"]);
    let deadline = Instant::now() + Duration::from_secs(30);
    for gone in ["reveille_groups_led 0", "reveille_links_up 0"] {
        let metrics = || http_try(&admin, "GET", "/metrics", &[], b"").unwrap().body;
        while !String::from_utf8(metrics()).unwrap().contains(gone) {
            assert!(Instant::now() < deadline, "{gone} is not there");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Limits are the cluster's: set through one node, they hold for what is published through any, and after a restart.
#[test]
fn limits_are_set_for_all_shards_and_kept() {
    let mut dev = Dev::start();
    let keys: String =
        (0..12).map(|key| format!("{{\"key\":\"{}\"}}\n", format!("{key:02x}").repeat(32))).collect();
    let answer = dev.request(1, "POST", "/v1/terminals", &[], keys.as_bytes());
    let lines = String::from_utf8(answer.body).unwrap();
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let terminals: Vec<String> = lines.map(|line| line["terminal"].as_str().unwrap().to_owned()).collect();
    let accepted = |dev: &Dev, size: usize| -> Vec<u16> {
        let each = terminals.iter().zip((1..=3).cycle());
        each.map(|(id, node)| dev.publish(node, id, &[], &vec![0; size]).status).collect()
    };
    let admin = |dev: &Dev, node| dev.admin(node).to_owned();
    assert!(done(&admin(&dev, 1), &["limits"]).contains("max-payload            4096 B"));
    assert_eq!(accepted(&dev, 5000), [413; 12]);
    let told = done(&admin(&dev, 2), &["limits", "--max-payload", "8192", "--memory-of-ends", "1h"]);
    assert!(
        told.contains("max-payload            8192 B") && told.contains("memory-of-ends         1h"),
        "{told}"
    );
    assert!(told.contains("max-ttl                28d"), "the others stay: {told}");
    assert_eq!(accepted(&dev, 5000), [201; 12]);
    assert_eq!(accepted(&dev, 9000), [413; 12]);
    for node in 1..=3 {
        dev.kill_node(node);
    }
    for node in 1..=3 {
        dev.wait_ended(node);
        dev.start_node(node);
    }
    (1..=3).for_each(|node| dev.wait_ready(node));
    assert_eq!(done(&admin(&dev, 3), &["limits"]), told);
    assert_eq!(accepted(&dev, 5000), [201; 12]);
}

/// Two operators at once, through different nodes: neither takes back what the other set, and all shards have the same.
#[test]
fn limits_that_two_operators_set_at_once_are_the_same_in_all_shards() {
    let dev = Dev::start();
    let key = |key: usize| format!("{{\"key\":\"{}\"}}\n", format!("{key:02x}").repeat(32));
    let keys: String = (0..32).map(|number| key(number * 8)).collect();
    let answer = dev.request(1, "POST", "/v1/terminals", &[], keys.as_bytes());
    let lines = String::from_utf8(answer.body).unwrap();
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let terminals: Vec<String> = lines.map(|line| line["terminal"].as_str().unwrap().to_owned()).collect();
    let json_type = [("Content-Type", "application/json")];
    let set = |node: usize, limits: Value| {
        let answer =
            http_try(dev.admin(node), "POST", "/cluster/limits", &json_type, limits.to_string().as_bytes())
                .unwrap();
        assert_eq!(answer.status, 200, "{limits}: {}", answer.json());
    };
    for round in 1..=10u64 {
        std::thread::scope(|scope| {
            scope.spawn(|| set(1, json!({ "max_payload": 1000 + 10 * round, "max_pending": 200 + round })));
            scope.spawn(|| {
                set(2, json!({ "max_payload": 1005 + 10 * round, "max_pending_bytes": 50_000 + round }));
            });
        });
        let limits = http_try(dev.admin(3), "GET", "/cluster/limits", &[], b"").unwrap().json();
        assert_eq!(limits["max_pending"], 200 + round, "{limits}");
        assert_eq!(limits["max_pending_bytes"], 50_000 + round, "{limits}");
        // One of the two limits on the payload holds, and everywhere the same.
        let between = vec![0; 1003 + 10 * round as usize];
        let heard = terminals.iter().map(|id| dev.publish(3, id, &[], &between).status);
        let heard: std::collections::BTreeSet<u16> = heard.collect();
        assert_eq!(heard.len(), 1, "round {round}: {heard:?}");
    }
}

#[test]
fn what_cannot_be_done_says_why_and_what_can() {
    let dev = Dev::start();
    let admin = dev.node(1)["admin"].as_str().unwrap().to_owned();
    settled(&admin, "a new cluster");
    refused(&admin, &["remove", "9"], "node 9 is not a member");
    refused(&admin, &["drain", "9"], "node 9 is not a member");
    refused(&admin, &["resume", "9"], "node 9 is not a member");
    refused(&admin, &["move-leaders", "--from", "9"], "node 9 is not a member");
    refused(&admin, &["remove", "1"], "2 nodes would be left for 3 replicas");
    refused(&admin, &["drain", "1"], "add a node first");
    refused(&admin, &["replicas", "5"], "5 replicas cannot be");
    refused(&admin, &["replicas", "2", "--force-fewer-replicas"], "2 replicas cannot be");
    let means = "outlives the loss of 1 nodes; with 1 it would outlive that of 0: ask for it with --force-fewer-replicas";
    refused(&admin, &["replicas", "1"], means);
    assert_eq!(overview(&admin)["replicas"], 3);
    done(&admin, &["replicas", "3"]);
    refused(&admin, &["limits", "--max-payload", "70000"], "max_payload is 70000; it may be 1 to 65536");
    refused(
        &admin,
        &["limits", "--max-ttl", "1h"],
        "default_ttl is 86400000 ms; it may be 1000 to 3600000 ms",
    );
    refused(&admin, &["limits", "--memory-of-ends", "1m"], "memory_of_ends is 60000 ms; it may be 120000 to");
    let (folder, out) = (dev.folder.path().to_str().unwrap().to_owned(), dev.folder.path().join("out"));
    let add = |peer: &str, out: &str| -> Vec<String> {
        let text = format!("add --peer {peer} --session h:1 --http h:2 --ca {folder} --out {out}");
        text.split(' ').map(str::to_owned).collect()
    };
    let (out, full) = (out.to_str().unwrap().to_owned(), folder.clone());
    for (peer, out, why) in [
        ("nowhere", &out, "--peer must be HOST:PORT"),
        ("h:99999", &out, "--peer must be HOST:PORT"),
        ("h:3", &full, "is not empty"),
        (dev.node(2)["peer"].as_str().unwrap(), &out, "node 2 has this peer address already"),
    ] {
        let args = add(peer, out);
        refused(&admin, &args.iter().map(String::as_str).collect::<Vec<_>>(), why);
    }
    // Another cluster's CA: what it makes could never join.
    let (wrong, copy) = (dev.folder.path().join("wrong-ca"), dev.folder.path().join("copy.toml"));
    let made = Command::new(REVEILLE).args(["certs", "ca", "--out"]).arg(&wrong).output().unwrap();
    assert!(made.status.success());
    let wrong = wrong.to_str().unwrap();
    let mut args = add("h:3", &out);
    args[8] = wrong.to_owned();
    refused(&admin, &args.iter().map(String::as_str).collect::<Vec<_>>(), "is not the cluster's CA");
    std::fs::copy(dev.node(2)["config"].as_str().unwrap(), &copy).unwrap();
    args.extend(["--listen", "127.0.0.1", "--like", copy.to_str().unwrap()].map(str::to_owned));
    refused(
        &admin,
        &args.iter().map(String::as_str).collect::<Vec<_>>(),
        "that the configuration of --like names",
    );
    assert_eq!(overview(&admin)["nodes"].as_array().unwrap().len(), 3, "no id was given for them");
    let replace: Vec<String> = add("h:3", &out);
    let mut replace: Vec<&str> = replace.iter().map(String::as_str).collect();
    replace.splice(0..1, ["replace", "7"]);
    refused(&admin, &replace, "node 7 is not a member");

    // A drain is taken back; leaders move; a node that was only invited is simply forgotten.
    done(&admin, &["drain", "3", "--force-fewer-replicas"]);
    let votes = |overview: &Value, at: usize| overview["nodes"][at]["votes"].as_u64().unwrap();
    assert_eq!(votes(&overview(&admin), 2), 0);
    done(&admin, &["drain", "3", "--force-fewer-replicas"]);
    done(&admin, &["resume", "3"]);
    let deadline = Instant::now() + Duration::from_secs(60);
    while votes(&settled(&admin, "resumed"), 2) != 4 {
        assert!(Instant::now() < deadline, "not resumed: {}", overview(&admin));
    }
    done(&admin, &["move-leaders", "--from", "1"]);
    let args = add("127.0.0.1:9", &out);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    assert!(!done(&admin, &args).contains("void"), "there was no token before");
    std::fs::remove_dir_all(&out).unwrap();
    let again = done(&admin, &args);
    assert!(again.contains("the token given out for it before is void"), "{again}");
    // A node that is asked may hear of what it was asked for a moment after it was done.
    let seen = |what: &str, is: &dyn Fn(&Value) -> bool| {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is(&overview(&admin)) {
            assert!(Instant::now() < deadline, "{what}: {}", overview(&admin));
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    seen("invited", &|overview| overview["nodes"][3]["standing"] == "invited");
    done(&admin, &["remove", "4"]);
    done(&admin, &["remove", "4"]);
    seen("forgotten", &|overview| overview["nodes"].as_array().unwrap().len() == 3);
    done(&admin, &["snapshot"]);

    // A join token of another node, cut short, or of another cluster's CA.
    let joined = join(&dev, &admin, &["add"]);
    assert_eq!(joined.id, 5, "ids are not given twice");
    ready(&joined.admin);
    let Node { running, folder, .. } = joined;
    drop(running);
    let path = folder.join("node-5.toml");
    let good = std::fs::read_to_string(&path).unwrap();
    let start = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let mut command = Command::new(REVEILLE);
        command.args(["node", "--create", "--config", "node-5.toml"]).current_dir(&folder);
        let output = output_of(&mut command);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(NO_RESTART_HELPS), "{said}");
        said
    };
    assert!(start(&good.replace("join-5-", "join-4-")).contains("the token of node 4, and this is node 5"));
    assert!(start(&good.replace("join-5-", "join-5")).contains("a join token looks like"));
    let at = good.find("join-5-").unwrap() + "join-5-".len();
    let other_ca = format!("{}0123456789abcdef{}", &good[..at], &good[at + 16..]);
    assert!(start(&other_ca).contains("another CA"));
    // The token was used, and the folder that used it is gone.
    let (data, kept) = (folder.join("data"), folder.join("kept"));
    std::fs::rename(&data, &kept).unwrap();
    let said = start(&good);
    assert!(said.contains("reveille cluster replace 5"), "{said}");

    // It was removed while it was away, and its own folder does not know.
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&kept, &data).unwrap();
    done(&admin, &["remove", "5"]);
    // A node that only just went may hear of it as it would of any change.
    let knows = |overview: &Value| {
        let groups = overview["groups"].as_array().unwrap();
        groups.iter().any(|group| group["learners"].as_array().unwrap().contains(&5.into()))
    };
    seen("out of every group", &|overview| !knows(overview));
    std::thread::sleep(Duration::from_secs(2));
    let began = Instant::now();
    let said = start(&good);
    assert!(said.contains("node 5 is not a member of this cluster") && said.contains("says node"), "{said}");
    assert!(began.elapsed() < Duration::from_secs(20), "after {:?}: {said}", began.elapsed());
}
