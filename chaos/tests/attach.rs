//! Runs on a cluster that is somebody's own: real nodes that this test starts, with hooks that are small commands of its.
//! The binary `reveille` is looked for beside `chaos`, where `cargo test --workspace` puts it; where it is not, these say so
//! and skip.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use reveille_chaos::facts;
use serde_json::Value;

#[allow(dead_code, reason = "the runs on processes use more of it")]
#[path = "support/real.rs"]
mod real;

use real::{CHAOS, reveille};

const PATIENCE: Duration = Duration::from_secs(60);

const SCENARIO: &str = r#"
name = "short"
about = "one node stands still, another dies"
claims = ["safety", "coverage", "logs"]
[workload]
terminals = 4
connected = 0.5
rate = 20
[phases]
warmup = "1s"
chaos = "7s"
heal = "2s"
drain = "30s"
[[fault]]
at = "500ms"
kind = "pause"
target = "n2"
for = "1s"
[[fault]]
at = "4s"
kind = "kill"
target = "n3"
for = "500ms"
[[fault]]
at = "2500ms"
kind = "cut"
from = "n1"
to = "n2+n3"
for = "200ms"
[expect]
cover = { "fault.pause" = 1, "fault.kill" = 1, "fault.cut" = 1 }
"#;

/// What the user of a cluster would write: a program that does things to its nodes. `done` tells what it did.
const HOOK: &str = r#"#!/bin/sh
set -eu
cd "$(dirname "$0")"
what=$1 node=$2
echo "$*" >> done
pid=$(cat "pid-$node")
lives() { grep -q '^State:[[:space:]]*[^ZX[:space:]]' "/proc/$pid/status" 2>/dev/null; }
case $what in
kill) kill -s KILL "$pid"; while lives; do sleep 0.05; done ;;
pause) kill -s STOP "$pid" ;;
resume) kill -s CONT "$pid" 2>/dev/null || true ;;
start)
    lives && exit 0
    REVEILLE node --config "data/node-$node.toml" </dev/null >/dev/null 2>>"node-$node.log" &
    echo $! > "pid-$node" ;;
logs) cat "node-$node.log" ;;
# Told, and not done: that needs rights which a test has not.
cut | heal) ;;
esac
"#;

/// A certificate whose key nobody has: what is tested with it never gets as far as TLS.
const CA: &str = "\
-----BEGIN CERTIFICATE-----\n\
MIIBdjCCARugAwIBAgIUTvEchnM6TLLCQIGSvw/OA25f28EwCgYIKoZIzj0EAwIw\n\
DzENMAsGA1UEAwwEdGVzdDAgFw0yNjExMzAxNTA3NDdaGA8yMTI2MTEwNjE1MDc0\n\
N1owDzENMAsGA1UEAwwEdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABJ/S\n\
YNE3VSuxW7EZUqH7PnTkJE15Ij5JHoecwbMu/lFlyZelVamRgQvy/S0n77/6XRWP\n\
xtvkgnewooDYal5JeN+jUzBRMB0GA1UdDgQWBBQ0FHHwQ83O8UBgzYrkkZK5NH4O\n\
xzAfBgNVHSMEGDAWgBQ0FHHwQ83O8UBgzYrkkZK5NH4OxzAPBgNVHRMBAf8EBTAD\n\
AQH/MAoGCCqGSM49BAMCA0kAMEYCIQDhoLmFbeMv76I+FgOLEZvLjJcqcpPOw5wX\n\
LgkGQJWmzQIhAO1cCadmRt+aaO4dVLM0wsQKfxkPAfi7xkEJtDZjMbsu\n\
-----END CERTIFICATE-----\n";

/// Three nodes that nobody of `chaos` has started.
struct Lab {
    folder: tempfile::TempDir,
    ready: Value,
}

impl Lab {
    fn start(reveille: &Path) -> Lab {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let mut dev = Command::new(reveille)
            .args(["dev", "--no-demo", "--json", "--data"])
            .arg(&data)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(dev.stdout.take().unwrap()).read_line(&mut line).unwrap();
        signal("TERM", dev.id());
        dev.wait().unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap();
        let lab = Lab { folder, ready };
        lab.write("hook.sh", &HOOK.replace("REVEILLE", reveille.to_str().unwrap()));
        lab.write("token", lab.ready["token"].as_str().unwrap());
        lab.write("short.toml", SCENARIO);
        lab.write("cluster.toml", &lab.cluster());
        for node in lab.ready["nodes"].as_array().unwrap() {
            let id = &node["id"];
            let config = lab.path(&format!("data/node-{id}.toml"));
            assert_eq!(node["config"].as_str(), config.to_str());
            // Publishers speak TLS, as they do wherever nodes are not on loopback.
            let text = std::fs::read_to_string(&config).unwrap();
            std::fs::write(&config, text.replace("tls = false", "tls = true")).unwrap();
            // Nobody has this number.
            lab.write(&format!("pid-{id}"), "999999999");
            lab.write(&format!("node-{id}.log"), "");
            assert!(lab.hook("start", id.as_u64().unwrap()).status.success());
        }
        lab.write("done", "");
        lab
    }

    fn cluster(&self) -> String {
        let mut text = format!(
            "name = \"lab\"\nca = {}\ntoken = \"token\"\nadmin_token = \"token\"\n[hooks]\nwithin = \"20s\"\n",
            self.ready["ca"]
        );
        for hook in ["kill", "start", "pause", "resume", "logs"] {
            text.push_str(&format!("{hook} = [\"sh\", \"hook.sh\", \"{hook}\", \"{{node}}\"]\n"));
        }
        for hook in ["cut", "heal"] {
            text.push_str(&format!("{hook} = [\"sh\", \"hook.sh\", \"{hook}\", \"{{from}}\", \"{{to}}\"]\n"));
        }
        for node in self.ready["nodes"].as_array().unwrap() {
            let (id, http) = (&node["id"], https(node));
            let admin = node["admin"].as_str().unwrap();
            let admin = format!("http://{}", admin.trim_start_matches("http://"));
            let session = &node["session"];
            text.push_str(&format!(
                "[[node]]\nid = {id}\nhttp = \"{http}\"\nsession = {session}\nadmin = \"{admin}\"\n"
            ));
        }
        text
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    fn hook(&self, what: &str, node: u64) -> Output {
        Command::new("sh").arg(self.path("hook.sh")).args([what, &node.to_string()]).output().unwrap()
    }

    fn pid(&self, node: u64) -> u32 {
        self.read(&format!("pid-{node}")).trim().parse().unwrap()
    }

    /// Whether its process stands still.
    fn stands(&self, node: u64) -> bool {
        stands(self.pid(node))
    }

    fn run(&self, scenario: &str, out: &str, more: &[&str]) -> Command {
        let mut run = Command::new(CHAOS);
        run.arg("run").arg(self.path(scenario)).args(["--backend", "attach", "--seed", "3", "--cluster"]);
        run.arg(self.path("cluster.toml")).arg("--out").arg(self.path(out)).args(more);
        run
    }

    fn heal(&self) -> (Option<i32>, String) {
        said(Command::new(CHAOS).arg("heal").arg("--cluster").arg(self.path("cluster.toml")))
    }

    /// How many terminals the cluster knows.
    fn terminals(&self) -> usize {
        let output = Command::new(Path::new(CHAOS).with_file_name("reveille"))
            .args(["terminals", "--url", &https(&self.ready["nodes"][0]), "--ca"])
            .arg(self.ready["ca"].as_str().unwrap())
            .args(["--token", self.ready["token"].as_str().unwrap()])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        text.lines().count()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for node in 1..=3 {
            let pid = std::fs::read_to_string(self.path(&format!("pid-{node}"))).unwrap_or_default();
            // One that is gone already.
            let _ = Command::new("kill").args(["-s", "KILL", pid.trim()]).stderr(Stdio::null()).status();
        }
    }
}

/// A node's URL for publishers.
fn https(node: &Value) -> String {
    node["http"].as_str().unwrap().replace("http://", "https://")
}

/// Whether a process stands still.
fn stands(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.starts_with(" T")
}

fn signal(signal: &str, pid: u32) {
    assert!(Command::new("kill").args(["-s", signal, &pid.to_string()]).status().unwrap().success());
}

/// Its exit code, and everything that it said.
fn said(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

/// The same of a command whose output is a terminal.
fn seen(command: &Command) -> (Option<i32>, String) {
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    let line = format!("stty cols 160 rows 40; exec {}", words.join(" "));
    let (code, text) = said(Command::new("script").args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()));
    // What draws is no word: each begins with an escape, and ends with a letter.
    let words = text.split('\x1b').enumerate().map(|(at, part)| match at {
        0 => part,
        _ => part.split_once(|letter: char| letter.is_ascii_alphabetic()).map_or("", |(_, rest)| rest),
    });
    (code, words.collect::<String>().replace('\r', "\n"))
}

/// Waits until a run says this.
fn until(run: &mut Child, what: &str) -> impl Iterator<Item = String> + use<> {
    let mut lines = BufReader::new(run.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains(what)), "it ended before {what:?}");
    lines
}

#[test]
fn a_cluster_of_ones_own_is_struck_and_left_as_it_was() {
    let Some(reveille) = reveille() else { return };
    let lab = Lab::start(&reveille);
    ready(&lab);

    // A dry run touches nothing, and says what it would do.
    let (code, told) = said(&mut lab.run("short.toml", "dry", &[]));
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("pause of n2 for 1.0 s") && told.contains("sh hook.sh pause 2"), "{told}");
    assert!(told.contains("--confirm lab"), "{told}");
    assert!(!lab.path("dry").exists() && !lab.path("cluster.toml.journal").exists(), "{told}");
    assert_eq!((lab.read("done").as_str(), lab.terminals()), ("", 0));
    let unknown = "there is no hook `logs`";
    assert!(!told.contains(unknown), "{told}");
    lab.write("cluster.toml", &lab.cluster().replace("logs = ", "# "));
    let (code, told) = said(&mut lab.run("short.toml", "dry", &[]));
    assert!(code == Some(0) && told.contains(unknown), "{told}");
    lab.write("cluster.toml", &lab.cluster());
    let (code, told) = said(&mut lab.run("short.toml", "dry", &["--confirm", "other"]));
    assert!(code == Some(3) && told.contains("\"lab\""), "{told}");

    // A run.
    let (code, told) = seen(&lab.run("short.toml", "out", &["--confirm", "lab"]));
    // As on every backend: the phase, and the load of the last second.
    assert!(told.contains("chaos: ") && told.contains("publishes a second: "), "{told}");
    // On a machine that has too much to do a run may be late, which is no fault of the suite's, nor hidden by it.
    let late = code == Some(3) && told.contains("the machine stood still");
    assert!(code == Some(0) || (late && !told.lines().any(|line| line.starts_with("FAIL"))), "{told}");
    let history = std::fs::read(lab.path("out/history.jsonl")).unwrap();
    let facts = facts::read(&history[..]).unwrap();
    assert_eq!((facts.cut.as_ref(), facts.begin.backend.as_str()), (None, "attach"));
    assert!(!facts.pushes.is_empty() && facts.faults.iter().all(|fault| fault.ended.is_some()));
    let done = lab.read("done");
    let done: Vec<&str> = done.lines().collect();
    let cuts = ["cut 1 2", "cut 1 3", "cut 2 1", "cut 3 1", "heal 3 1", "heal 2 1", "heal 1 3", "heal 1 2"];
    assert_eq!(done[..2], ["pause 2", "resume 2"]);
    assert_eq!(done[2..10], cuts);
    assert_eq!(done[10..], ["kill 3", "start 3", "logs 1", "logs 2", "logs 3"]);
    assert_eq!((lab.read("cluster.toml.journal").as_str(), lab.terminals()), ("", 0), "{told}");

    // One that is killed in the middle of a pause.
    lab.write("done", "");
    let scenario =
        SCENARIO.replace("chaos = \"7s\"", "chaos = \"30s\"").replace("for = \"1s\"", "for = \"25s\"");
    lab.write("long.toml", &scenario);
    let mut run =
        lab.run("long.toml", "killed", &["--confirm", "lab"]).stdout(Stdio::piped()).spawn().unwrap();
    let _rest = until(&mut run, "FAULT pause node 2");
    let deadline = Instant::now() + PATIENCE;
    while !lab.stands(2) {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(20));
    }
    let (code, told) = lab.heal();
    assert!(code == Some(3) && told.contains("goes on"), "{told}");
    run.kill().unwrap();
    run.wait().unwrap();
    assert!(lab.stands(2) && !lab.read("cluster.toml.journal").is_empty());
    let (code, told) = lab.heal();
    assert_eq!(code, Some(0), "{told}");
    assert!(!lab.stands(2), "{told}");
    assert_eq!((lab.read("done").as_str(), lab.terminals()), ("pause 2\nresume 2\n", 0), "{told}");
    let (code, told) = lab.heal();
    assert!(code == Some(0) && told.contains("nothing was left"), "{told}");
}

#[test]
fn what_stops_a_run_undoes_it() {
    let Some(reveille) = reveille() else { return };
    let lab = Lab::start(&reveille);
    ready(&lab);
    let scenario =
        SCENARIO.replace("chaos = \"7s\"", "chaos = \"30s\"").replace("for = \"1s\"", "for = \"25s\"");
    lab.write("long.toml", &scenario);

    // Its user.
    let mut run = lab.run("long.toml", "out", &["--confirm", "lab"]).stdout(Stdio::piped()).spawn().unwrap();
    let rest = until(&mut run, "FAULT pause node 2");
    // Ctrl-Z would leave the node as it is.
    signal("TSTP", run.id());
    std::thread::sleep(Duration::from_millis(200));
    assert!(!stands(run.id()));
    signal("TERM", run.id());
    let rest: Vec<String> = rest.collect();
    assert_eq!(run.wait().unwrap().code(), Some(3), "{rest:#?}");
    assert!(rest.iter().any(|line| line.contains("HEAL  pause node 2")), "{rest:#?}");
    assert!(rest.iter().any(|line| line.starts_with("HARNESS") && line.contains("interrupted")), "{rest:#?}");
    assert_eq!(lab.read("cluster.toml.journal"), "", "{rest:#?}");
    assert!(!lab.stands(2));

    // A node that nobody struck: the cluster has troubles of its own.
    lab.write("cluster.toml", &(lab.cluster() + "[stop]\nunready = \"1s\"\n"));
    let mut run =
        lab.run("long.toml", "stopped", &["--confirm", "lab"]).stdout(Stdio::piped()).spawn().unwrap();
    let rest = until(&mut run, "FAULT pause node 2");
    signal("STOP", lab.pid(3));
    let rest: Vec<String> = rest.collect();
    signal("CONT", lab.pid(3));
    assert_eq!(run.wait().unwrap().code(), Some(3), "{rest:#?}");
    assert!(
        rest.iter().any(|line| line.starts_with("HARNESS") && line.contains("node 3, which was not struck")),
        "{rest:#?}"
    );
    assert_eq!(lab.read("cluster.toml.journal"), "", "{rest:#?}");
    assert!(!lab.stands(2));
}

/// All nodes are.
fn ready(lab: &Lab) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (code, told) = said(&mut lab.run("short.toml", "dry", &[]));
        if code == Some(0) {
            return;
        }
        assert!(Instant::now() < deadline, "{told}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn limits_and_mistakes_are_said_before_anything_is_touched() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let node = |id: u64| {
        format!(
            "[[node]]\nid = {id}\nhttp = \"http://127.0.0.1:1\"\nsession = \"127.0.0.1:1\"\nadmin = \"http://127.0.0.1:1\"\n"
        )
    };
    let cluster = format!(
        "name = \"lab\"\nca = \"ca.pem\"\ntoken = \"token\"\n[hooks]\npause = [\"true\", \"{{node}}\"]\nresume = [\"true\"]\n{}{}{}",
        node(1),
        node(2),
        node(3)
    );
    std::fs::write(at("token"), "secret\n").unwrap();
    std::fs::write(at("ca.pem"), CA).unwrap();
    let attempt = |cluster: &str, scenario: &str| {
        std::fs::write(at("cluster.toml"), cluster).unwrap();
        std::fs::write(at("scenario.toml"), scenario).unwrap();
        let (code, told) = said(
            Command::new(CHAOS)
                .arg("run")
                .arg(at("scenario.toml"))
                .args(["--backend", "attach", "--confirm", "lab", "--cluster"])
                .arg(at("cluster.toml"))
                .arg("--out")
                .arg(at("out")),
        );
        assert_eq!(code, Some(3), "{told}");
        assert!(!at("cluster.toml.journal").exists(), "{told}");
        told
    };
    let pause = SCENARIO
        .replace("kind = \"kill\"", "kind = \"pause\"")
        .replace("\"fault.kill\" = 1", "\"fault.pause\" = 2");
    let pause =
        pause.replace("kind = \"cut\"\nfrom = \"n1\"\nto = \"n2+n3\"", "kind = \"pause\"\ntarget = \"n1\"");
    let pause = pause.replace(", \"fault.cut\" = 1", "");
    let pause = pause.replace("\"fault.pause\" = 1, ", "");
    let two = pause.replace("target = \"n2\"", "target = \"n1+n2\"");
    let said = attempt(&cluster, &two);
    assert!(said.contains("pause of n1+n2: it hits 2 of 3 nodes at once, and [limits] nodes = 1"), "{said}");
    let said = attempt(
        &cluster,
        &pause.replace("for = \"1s\"", "for = \"5s\"").replace("heal = \"2s\"", "heal = \"20m\""),
    );
    assert!(said.contains("[limits] run = \"10m\""), "{said}");
    let said = attempt(&format!("{cluster}[limits]\nfault = \"900ms\"\n"), &pause);
    assert!(said.contains("pause of n2: it lasts longer than [limits] fault = \"900ms\""), "{said}");
    let said = attempt(&cluster, SCENARIO);
    assert!(said.contains("kill of n3: the cluster's file has no hook `kill`"), "{said}");
    let said = attempt(&format!("{cluster}[limits]\nnodes = 2\n"), &pause);
    assert!(said.contains("of 3 nodes at most 1 may be away at once"), "{said}");
    let said = attempt(&cluster.replace("pause =", "pauze ="), &pause);
    assert!(said.contains("cluster.toml:5: there is no key \"pauze\"; did you mean \"pause\"?"), "{said}");
    let said = attempt(&cluster.replace("{node}", "{nod}"), &pause);
    assert!(said.contains("there is no placeholder \"nod\"; did you mean \"node\"?"), "{said}");
    let said = attempt(&cluster.replace("\"secret\"", ""), &pause.replace("n2", "n4"));
    assert!(said.contains("n4: the cluster has 3 nodes"), "{said}");
}
