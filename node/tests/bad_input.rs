//! Bad input, and what it gets: every row of the table that the product answers for.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use rcgen::{CertificateParams, Issuer, KeyPair};
use reveille_protocol::directory::group_of_slot;
use reveille_protocol::id::TerminalId;
use support::{Dev, REVEILLE, free_addresses, http, http_try, output_of};

/// As in `http::limits` of the product.
const OPERATOR_CONNECTIONS: usize = 64;
const HEAD_DEADLINE: Duration = Duration::from_secs(5);

fn terminal_of(dev: &Dev, name: &str) -> String {
    let (_child, lines) = dev.terminal(name, &[]);
    let id = lines.next_event("listening")["terminal"].as_str().unwrap().to_owned();
    lines.next_event("disconnected");
    id
}

/// The exit code of an end that starting again may mend, and of one that it does not.
const FAILED: i32 = 1;
const NO_RESTART_HELPS: i32 = 78;

/// Runs a command that must refuse; what it said.
fn refused(code: i32, arguments: &[&str]) -> String {
    let output = output_of(Command::new(REVEILLE).args(arguments));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    // What its links still log meanwhile does not matter.
    let last = said.lines().rfind(|line| !line.starts_with("20")).unwrap_or_default().to_owned();
    assert!(last.starts_with("reveille: "), "one clear line, not {said:?}");
    last
}

/// The status of a POST of which only the head is sent.
fn by_head_alone(url: &str, path: &str, headers: &str) -> String {
    let authority = url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(authority).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "POST {path} HTTP/1.1\r\nHost: {authority}\r\n{headers}\r\n").unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[9..]).into_owned()
}

/// Bodies that never come, and connections that say nothing, hold what they hold for a time only.
#[test]
fn whoever_does_not_go_on_gives_the_place_free() {
    let dev = Dev::start();
    let admin = dev.node(1)["admin"].as_str().unwrap().to_owned();
    let authority = admin.trim_start_matches("http://");
    let began = Instant::now();
    let silent: Vec<_> = (0..OPERATOR_CONNECTIONS).map(|_| TcpStream::connect(authority).unwrap()).collect();
    // Every place is taken: the next one waits until they are thrown out.
    assert_eq!(http(&admin, "GET", "/healthz", &[], b"").status, 200);
    assert!(began.elapsed() >= HEAD_DEADLINE / 2, "{:?} after {} others", began.elapsed(), silent.len());

    let bearer = format!("Authorization: Bearer {}\r\n", dev.token());
    let head = format!("{bearer}Content-Type: application/json\r\nContent-Length: 100\r\n");
    let began = Instant::now();
    assert_eq!(by_head_alone(dev.url(1), "/v1/tokens", &head), "408", "{:?}", began.elapsed());
}

/// The operator's listener asks for no token on loopback, and a browser there opens any page.
#[test]
fn a_page_in_a_browser_is_no_operator() {
    let dev = Dev::start();
    let admin = dev.node(1)["admin"].as_str().unwrap();
    let port = admin.rsplit_once(':').unwrap().1;
    let drain = "/cluster/nodes/2/drain";
    for origin in ["https://example.com", "null"] {
        let answer = http(admin, "POST", drain, &[("Origin", origin)], b"");
        assert_eq!((answer.status, answer.json()["error"].as_str()), (403, Some("by_a_page")));
    }
    let asked_as = |host: &str| {
        let mut stream = TcpStream::connect(admin.trim_start_matches("http://")).unwrap();
        write!(stream, "GET /status HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[9..]).into_owned()
    };
    for rebound in
        [format!("example.com:{port}"), "127.0.0.1.example.com".to_owned(), format!("10.0.0.1:{port}")]
    {
        assert_eq!(asked_as(&rebound), "403", "{rebound}");
    }
    for own in [
        format!("localhost:{port}"),
        format!("127.0.0.1:{port}"),
        format!("[::1]:{port}"),
        "[::1]".to_owned(),
    ] {
        assert_eq!(asked_as(&own), "200", "{own}");
    }
}

#[test]
fn the_publishers_api_refuses_and_says_why() {
    let dev = Dev::start();
    let id = terminal_of(&dev, "t1");
    let unknown = "00".repeat(16);
    let case = |status: u16, error: &str, answer: support::Http| {
        let body = answer.json();
        assert_eq!((answer.status, body["error"].as_str()), (status, Some(error)), "{body}");
        assert_eq!(body["code"], status, "{body}");
        assert!(body["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
        answer
    };
    case(404, "unknown_terminal", dev.publish(1, &unknown, &[], b"x"));
    case(400, "malformed_id", dev.publish(1, "not-an-id", &[], b"x"));
    case(400, "malformed_id", dev.request(1, "GET", "/v1/messages/nonsense", &[], b""));
    case(404, "unknown_message", dev.request(2, "GET", &format!("/v1/messages/{id}-00000000-7"), &[], b""));
    let large = case(413, "payload_too_large", dev.publish(1, &id, &[], &[0; 4097]));
    assert!(large.json()["message"].as_str().unwrap().contains("4096"));
    assert_eq!(dev.publish(1, &id, &[], &[0; 4096]).status, 201);
    for ttl in ["-1", "abc", "1.5", "+3", ""] {
        let answer = case(400, "bad_ttl", dev.publish(1, &id, &[("TTL", ttl)], b"x"));
        assert!(answer.json()["message"].as_str().unwrap().contains("TTL"));
    }
    let zero = dev.publish(1, &id, &[("TTL", "0")], b"x");
    assert_eq!((zero.status, zero.header("TTL")), (201, Some("0")));
    let long = dev.publish(1, &id, &[("TTL", "99999999999999999999")], b"x");
    assert_eq!((long.status, long.header("TTL")), (201, Some("2419200")), "clamped to 28 days");
    assert_eq!(dev.publish(1, &id, &[], b"x").header("TTL"), Some("86400"), "missing: a day");
    case(400, "bad_urgency", dev.publish(1, &id, &[("Urgency", "extreme")], b"x"));
    case(400, "bad_header", dev.publish(1, &id, &[("Urgency", "low"), ("Urgency", "high")], b"x"));
    case(400, "bad_topic", dev.publish(1, &id, &[("Topic", &"t".repeat(33))], b"x"));
    case(400, "bad_topic", dev.publish(1, &id, &[("Topic", "a b")], b"x"));
    case(400, "headers_too_long", dev.publish(1, &id, &[("X-Push-Long", &"x".repeat(300))], b"x"));
    case(404, "no_such_page", dev.request(1, "GET", "/v2", &[], b""));

    let path = format!("/v1/terminals/{id}/messages");
    let none = case(401, "no_token", http(dev.url(1), "POST", &path, &[], b"x"));
    assert_eq!(none.header("WWW-Authenticate"), Some("Bearer"));
    case(401, "unknown_token", http(dev.url(1), "POST", &path, &[("Authorization", "Bearer wrong")], b"x"));

    // Refused by its head alone: nobody waits for a body from a stranger, nor for one that is too large anyway.
    let bearer = format!("Authorization: Bearer {}\r\n", dev.token());
    let json = "Content-Type: application/json\r\n";
    for (path, token, length, status) in [
        (path.as_str(), "", 1_000, "401"),
        (path.as_str(), bearer.as_str(), 1_000_000, "413"),
        ("/v1/terminals", "", 1_000, "401"),
        ("/v1/terminals", &bearer, 10_000_000, "413"),
        ("/v1/tokens", "", 1_000, "401"),
        ("/v1/tokens", &bearer, 100_000, "413"),
    ] {
        let said = by_head_alone(dev.url(1), path, &format!("{token}{json}Content-Length: {length}\r\n"));
        assert_eq!(said, status, "{path} with {length} bytes");
    }
    case(413, "payload_too_large", dev.publish(1, &id, &[], &[0; 70_000]));

    let first = dev.publish(1, &id, &[("Idempotency-Key", "k1")], b"one");
    let again = dev.publish(2, &id, &[("Idempotency-Key", "k1")], b"one");
    assert_eq!((first.status, again.status), (201, 201));
    assert_eq!(first.json()["message"], again.json()["message"], "the same key gives the one message");
    case(409, "idempotency_key_reused", dev.publish(3, &id, &[("Idempotency-Key", "k1")], b"two"));
}

#[test]
fn tokens_allow_what_they_say_until_they_are_revoked() {
    let dev = Dev::start();
    let id = terminal_of(&dev, "t1");
    let json = [("Content-Type", "application/json")];
    let make = |body: &str| dev.request(1, "POST", "/v1/tokens", &json, body.as_bytes());
    for (body, error) in [
        ("not json", "bad_json"),
        ("{\"name\":\"x\",\"rights\":[\"fly\"]}", "bad_json"),
        ("{\"name\":\"x\",\"rights\":[],\"surprise\":1}", "bad_json"),
        ("{\"name\":\"x\",\"rights\":[]}", "bad_rights"),
        ("{\"name\":\"\",\"rights\":[\"read\"]}", "bad_name"),
    ] {
        let answer = make(body);
        assert_eq!((answer.status, answer.json()["error"].as_str()), (400, Some(error)), "{body}");
    }
    let made = make("{\"name\":\"sender\",\"rights\":[\"publish\"]}");
    assert_eq!(made.status, 201);
    let (token, name) = (made.json()["token"].clone(), made.json()["id"].clone());
    let bearer = format!("Bearer {}", token.as_str().unwrap());
    let with = |node: usize, method: &str, path: &str| {
        http(dev.url(node), method, path, &[("Authorization", bearer.as_str())], b"x")
    };
    let publish = format!("/v1/terminals/{id}/messages");
    let until = Instant::now() + Duration::from_secs(5);
    while with(3, "POST", &publish).status == 401 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(with(3, "POST", &publish).status, 201);
    let refused = with(3, "GET", "/v1/terminals");
    assert_eq!((refused.status, refused.json()["error"].as_str()), (403, Some("no_right")));
    assert_eq!(with(3, "GET", "/v1/tokens").status, 403);
    let listed = dev.request(1, "GET", "/v1/tokens", &[], b"");
    let text = String::from_utf8_lossy(&listed.body).into_owned();
    assert!(text.contains("sender") && !text.contains(token.as_str().unwrap()), "{text}");
    let path = format!("/v1/tokens/{}", name.as_str().unwrap());
    assert_eq!(dev.request(1, "DELETE", &path, &[], b"").status, 204);
    while with(3, "POST", &publish).status != 401 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(with(3, "POST", &publish).status, 401);
    assert_eq!(dev.request(1, "DELETE", &path, &[], b"").status, 404);
}

#[test]
fn a_full_queue_refuses_and_drops_nothing() {
    let dev = Dev::start();
    let key = "ab".repeat(32);
    let registered =
        dev.request(1, "POST", "/v1/terminals", &[], format!("{{\"key\":\"{key}\"}}\n").as_bytes());
    assert_eq!(registered.status, 200);
    let id = &key[..32];
    let body = [0; 4096];
    let full =
        (0..).map(|number| dev.publish(1 + number % 3, id, &[], &body)).find(|answer| answer.status != 201);
    let full = full.unwrap();
    assert_eq!((full.status, full.json()["error"].as_str()), (429, Some("queue_full")));
    assert!(full.header("Retry-After").is_some());
    let entry = dev.request(2, "GET", &format!("/v1/terminals/{id}"), &[], b"").json();
    assert_eq!(
        (entry["pending"].as_u64(), entry["pending_bytes"].as_u64()),
        (Some(256), Some(1024 * 1024)),
        "{entry}"
    );
    let bad = dev.request(1, "POST", "/v1/terminals", &[], b"{\"key\":\"zz\"}\nnot json\n");
    let lines: Vec<_> = bad.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    assert_eq!(lines.len(), 2, "a line for each line");
    assert!(lines.iter().all(|line| String::from_utf8_lossy(line).contains("error")));
}

/// The node tries a command again whose outcome it does not know; whoever asked once hears of one.
#[test]
fn unregistering_that_is_tried_again_is_done_once() {
    let dev = Dev::start();
    let key = "cd".repeat(32);
    let line = format!("{{\"key\":\"{key}\"}}\n");
    assert_eq!(dev.request(1, "POST", "/v1/terminals", &[], line.as_bytes()).status, 200);
    let path = format!("/v1/terminals/{}", &key[..32]);
    let terminal: TerminalId = key[..32].parse().unwrap();
    let status = http(dev.node(1)["admin"].as_str().unwrap(), "GET", "/status", &[], b"").json();
    let groups = status["cluster"]["groups"].as_array().unwrap();
    let group = group_of_slot(terminal.slot(), groups.len() as u16 - 1);
    let leader = groups.iter().find(|known| known["group"] == group.0).unwrap()["leader"].as_u64().unwrap();
    let leader = leader as usize;
    // Nothing is decided for longer than one try takes, and then all that waits at the leader is.
    let paused: Vec<_> = (1..=3).filter(|id| *id != leader).map(|id| dev.pause_node(id)).collect();
    let resuming = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(1600));
        drop(paused);
    });
    let answer = dev.request(leader, "DELETE", &path, &[], b"");
    resuming.join().unwrap();
    assert_eq!(answer.status, 204, "{}", String::from_utf8_lossy(&answer.body));
    assert_eq!(dev.request(2, "GET", &path, &[], b"").status, 404);
    let again = dev.request(3, "DELETE", &path, &[], b"");
    assert_eq!((again.status, again.json()["error"].as_str()), (404, Some("unknown_terminal")));
}

#[test]
fn garbage_on_every_port_harms_nothing() {
    let dev = Dev::start();
    let id = terminal_of(&dev, "t1");
    for port in ["session", "peer", "http", "admin"] {
        let address = dev.node(1)[port].as_str().unwrap().trim_start_matches("http://").to_owned();
        for garbage in [&b"\x00\x01\x02garbage that is no TLS and no HTTP\r\n\r\n"[..], &[0xff; 70_000], b""]
        {
            let mut stream = TcpStream::connect(&address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            // It may close while it is still being written to.
            let _ = stream.write_all(garbage);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
        }
    }
    assert_eq!(dev.publish(1, &id, &[], b"still here").status, 201);
    let metrics = http(dev.node(1)["admin"].as_str().unwrap(), "GET", "/metrics", &[], b"");
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    assert!(metrics.contains("reveille_sessions_refused_total{kind=\"tls\"}"), "{metrics}");
    assert!(metrics.contains("reveille_link_refused_total{reason=\"tls\"}"), "{metrics}");
    for duration in ["reveille_publish_seconds", "reveille_log_sync_seconds"] {
        assert!(metrics.contains(&format!("{duration}_bucket{{le=\"0.001\"}}")), "{duration} in {metrics}");
    }
}

#[test]
fn a_node_refuses_what_is_not_its_own() {
    let mut dev = Dev::start();
    let config = |id: usize| dev.node(id)["config"].as_str().unwrap().to_owned();
    // Its ports and its folder are in use by the first one.
    let said = refused(FAILED, &["node", "--config", &config(1)]);
    assert!(said.contains("cannot listen on") || said.contains("in use"), "{said}");
    let text = std::fs::read_to_string(config(1)).unwrap();
    let path = dev.folder.path().join("other.toml");
    // The command line's own variables are no settings; others are.
    let check = |name: &str, value: &str| {
        let command = ["config", "check", "--config", &config(1)].map(str::to_owned);
        output_of(Command::new(REVEILLE).args(command).env(name, value))
    };
    assert!(check("REVEILLE_TOKEN", "x").status.success());
    assert!(check("REVEILLE_NOTIFY__CHECK_IN", "3600").status.success());
    let output = check("REVEILLE_NOTIFY__CHECK_IN", "0");
    assert!(String::from_utf8_lossy(&output.stderr).contains("notify.check_in"), "{output:?}");
    assert!(!check("REVEILLE_SURPRISE", "1").status.success());
    let with = |from: &str, to: &str| {
        assert!(text.contains(from), "{from} in {text}");
        std::fs::write(&path, text.replace(from, to)).unwrap();
        refused(NO_RESTART_HELPS, &["node", "--config", path.to_str().unwrap()])
    };
    let said = with("node = 1\n", "node = 1\nsurprise = true\n");
    assert!(said.contains("surprise"), "an unknown key is named: {said}");
    let said = with("node = 1\n", "node = 2\n");
    assert!(said.contains("cluster.nodes has node 2 at"), "another node's ports: {said}");
    let (own, other) = (dev.folder.path().join("node-1."), dev.folder.path().join("node-2."));
    let (own, other) = (own.to_str().unwrap(), other.to_str().unwrap());
    let said = with(own, other);
    assert!(said.contains("does not name") && said.contains("node-1"), "another node's certificate: {said}");
    let said = with("node = 1\n", "node = 9\n");
    assert!(said.contains("not among cluster.nodes"), "{said}");
    let said = with("groups = 3", "groups = 0");
    assert!(said.contains("cluster.groups"), "{said}");

    let ports: Vec<String> = ["peer", "session", "http", "admin"]
        .iter()
        .map(|port| dev.node(1)[*port].as_str().unwrap().trim_start_matches("http://").to_owned())
        .collect();
    // The same node on free ports: now only the folder is in the way.
    let mut moved = text.clone();
    for (port, free) in ports.iter().zip(free_addresses(4)) {
        moved = moved.replace(port, &free);
    }
    std::fs::write(&path, &moved).unwrap();
    let said = refused(FAILED, &["node", "--config", path.to_str().unwrap()]);
    assert!(said.contains("in use by another process"), "{said}");

    dev.kill_node(1);
    let one = dev.node(1)["data"].as_str().unwrap().to_owned();
    let two = dev.node(2)["data"].as_str().unwrap().to_owned();
    let data = |folder: &str| moved.replace(&format!("data = {one:?}"), &format!("data = {folder:?}"));
    dev.kill_node(2);
    std::fs::write(&path, data(&two)).unwrap();
    let said = refused(NO_RESTART_HELPS, &["node", "--config", path.to_str().unwrap()]);
    assert!(said.contains("belongs to node 2"), "another node's folder: {said}");
    std::fs::write(&path, data(&format!("{one}-gone"))).unwrap();
    let said = refused(NO_RESTART_HELPS, &["node", "--config", path.to_str().unwrap()]);
    assert!(said.contains("no data in"), "an empty folder is not a new node: {said}");

    // Damage in the middle of the log: refused with the file, and what to do.
    let log = std::path::Path::new(&one).join("log");
    let segment = std::fs::read_dir(&log)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|ending| ending == "wal"))
        .unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[200] ^= 0x10;
    std::fs::write(&segment, bytes).unwrap();
    std::fs::write(&path, &moved).unwrap();
    let said = refused(NO_RESTART_HELPS, &["node", "--config", path.to_str().unwrap()]);
    assert!(said.contains("is damaged at byte") && said.contains("reveille cluster replace 1"), "{said}");
    dev.start_node(2);
    dev.wait_ready(2);
}

/// Ends the cluster, and keeps its folder.
fn folder_of(dev: Dev) -> tempfile::TempDir {
    dev.folder
}

/// A second cluster on a folder is none; and a node that cannot start is not waited for.
#[test]
fn dev_says_what_keeps_it_from_running() {
    let dev = Dev::start();
    let folder = dev.folder.path().to_str().unwrap().to_owned();
    let again = ["dev", "--no-demo", "--data", &folder];
    assert!(refused(FAILED, &again).contains("a cluster runs on"));
    // Its ports are free when its processes are gone.
    for node in 1..=3 {
        dev.kill_node(node);
        dev.wait_ended(node);
    }
    let kept = folder_of(dev);
    let path = kept.path().join("node-2.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("groups = 3", "groups = 3\nsurprise = 1")).unwrap();
    assert!(refused(FAILED, &again).contains("surprise"));
    std::fs::write(&path, text).unwrap();
    std::fs::write(kept.path().join("node-3.pem"), "noise").unwrap();
    let said = refused(FAILED, &again);
    assert!(said.contains("node 3 has ended (exit status: 78)") && said.contains("node-3.pem"), "{said}");
}

/// Whatever is wrong with a file, its name is in what is said.
#[test]
fn a_bad_file_is_named() {
    let dev = Dev::start();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let named = |path: &str, arguments: &[&str]| {
        let output = output_of(Command::new(REVEILLE).args(arguments));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(path), "{arguments:?} without {path}: {said}");
    };
    let no_der = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let state = folder.path().join("state").to_str().unwrap().to_owned();
    for text in ["noise", no_der] {
        let ca = file("some.pem", text);
        named(&ca, &["status", "--url", "https://127.0.0.1:9", "--ca", &ca]);
        named(&ca, &["terminal", "--server", "127.0.0.1:9", "--ca", &ca, "--state", &state]);
    }
    let key = file("enrolment.key", "noise");
    named(&key, &["certs", "enrolment-token", "--key", &key]);
    let (good_ca, good_key) = (dev.ca(), dev.folder.path().join("ca.key"));
    for bad in ["ca.pem", "ca.key"] {
        std::fs::copy(&good_ca, folder.path().join("ca.pem")).unwrap();
        let _ = std::fs::remove_file(folder.path().join("ca.key"));
        std::fs::copy(&good_key, folder.path().join("ca.key")).unwrap();
        let (bad, ca) = (file(bad, "noise"), folder.path().to_str().unwrap());
        named(&bad, &["certs", "node", "--ca", ca, "--id", "1", "--cluster", "00c0ffee00c0ffee"]);
    }
    let occupied = file("occupied", "");
    named(&occupied, &["certs", "ca", "--out", &format!("{occupied}/folder")]);

    let text = std::fs::read_to_string(dev.node(1)["config"].as_str().unwrap()).unwrap();
    let missing = folder.path().join("missing.toml").to_str().unwrap().to_owned();
    named(&missing, &["config", "check", "--config", &missing]);
    for bad in ["x = [", "node = \"x\"", "node = 1"] {
        let config = file("bad.toml", bad);
        named(&config, &["config", "check", "--config", &config]);
    }
    let ca = dev.ca().to_str().unwrap().to_owned();
    let own = |ending: &str| ca.replace("ca.pem", &format!("node-1.{ending}"));
    let noise = file("noise", "noise");
    let odd = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    for (from, to) in [
        (ca.clone(), noise.clone()),
        (ca.clone(), file("no-der.pem", no_der)),
        (own("pem"), noise.clone()),
        (own("pem"), file("no-der-own.pem", no_der)),
        (own("key"), noise),
        (own("key"), file("odd.key", odd)),
        (own("key"), ca.replace("ca.pem", "node-2.key")),
    ] {
        let config = file("changed.toml", &text.replace(&format!("{from:?}"), &format!("{to:?}")));
        named(&to, &["node", "--config", &config]);
    }
}

/// Puts a certificate that has ended in the place of one.
fn end(ca: &str, own: &str, name: &str) {
    let read = |path: String| std::fs::read_to_string(path).unwrap();
    let key = KeyPair::from_pem(&read(format!("{ca}/ca.key"))).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read(format!("{ca}/ca.pem")), key).unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.not_before = (SystemTime::now() - Duration::from_secs(7200)).into();
    params.not_after = (SystemTime::now() - Duration::from_secs(3600)).into();
    let key = KeyPair::from_pem(&read(format!("{own}.key"))).unwrap();
    std::fs::write(format!("{own}.pem"), params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
}

/// What is made for nobody, or would do harm, is not made; and what is there is not written over.
#[test]
fn certs_refuses_what_is_of_no_use() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let run = |arguments: &[&str]| Command::new(REVEILLE).arg("certs").args(arguments).output().unwrap();
    let ca = at("ca");
    assert!(run(&["ca", "--out", &ca]).status.success());
    assert!(run(&["enrolment-key", "--out", &ca]).status.success());
    let no = |why: &str, arguments: &[&str]| {
        let mut all = vec!["certs"];
        all.extend(arguments);
        let said = refused(FAILED, &all);
        assert!(said.contains(why), "{why} is not in {said}");
    };
    let (key, enrolment) = (at("ca/ca.key"), at("ca/enrolment.key"));
    no("ca.key is there already", &["ca", "--out", &ca]);
    no("is the key of the CA beside it", &["enrolment-token", "--key", &key]);
    no("a second at least", &["enrolment-token", "--key", &enrolment, "--valid", "0s"]);
    assert!(run(&["enrolment-token", "--key", &enrolment]).status.success());
    let out = at("n1");
    let node = |more: &[&str]| {
        let mut all = vec!["node", "--ca", &ca, "--cluster", "00c0ffee00c0ffee", "--out", &out];
        all.extend(more);
        all.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    for (more, why) in [
        (&["--id", "0"][..], "above zero"),
        (&["--id", "1", "--days", "0"], "a day at least"),
        (&["--id", "1", "--names", "a b"], "\"a b\" is neither"),
        (&["--id", "1", "--names", "good.example.org,*.example.org"], "\"*.example.org\" is neither"),
    ] {
        no(why, &node(more).iter().map(String::as_str).collect::<Vec<_>>());
    }
    let good = node(&["--id", "1", "--names", "good.example.org,127.0.0.1,::1"]);
    let good: Vec<&str> = good.iter().map(String::as_str).collect();
    assert!(run(&good).status.success());
    no("node-1.key is there already", &good);
}

/// A client that is pointed at the wrong thing says what is likely wrong.
#[test]
fn the_likely_mistake_is_named() {
    let dev = Dev::start();
    let folder = tempfile::tempdir().unwrap();
    let made = Command::new(REVEILLE).args(["certs", "ca", "--out"]).arg(folder.path()).output().unwrap();
    assert!(made.status.success());
    let wrong = folder.path().join("ca.pem").to_str().unwrap().to_owned();
    let right = dev.ca().to_str().unwrap().to_owned();
    let (session, http) = (dev.node(1)["session"].as_str().unwrap(), dev.url(1));
    let publish = |url: &str, ca: &str| {
        let id = "00".repeat(16);
        refused(FAILED, &["publish", "--url", url, "--ca", ca, "--token", "t", "--to", &id, "hi"])
    };
    let said = publish(&format!("https://{session}"), &wrong);
    assert!(said.contains("was not made by the CA in") && said.contains(&wrong), "{said}");
    let said = publish(&format!("http://{session}"), &right);
    assert!(said.contains("begins with https://"), "{said}");
    let said = publish(&format!("https://{session}"), &right);
    assert!(said.contains("is it the terminals' or the peers' port?"), "{said}");
    let said = publish(&http.replace("http://", "https://"), &right);
    assert!(said.contains("does not speak TLS"), "{said}");
    let said = publish(http, "/nonexistent");
    assert!(said.contains("/nonexistent"), "{said}");
    let state = folder.path().join("state").to_str().unwrap().to_owned();
    let arguments = ["terminal", "--server", "127.0.0.1", "--ca", &right, "--state", &state];
    let output = output_of(Command::new(REVEILLE).args(arguments));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && said.contains("must be HOST:PORT"), "{said}");
    let answer = dev.request(1, "DELETE", "/v1/tokens/zzz", &[], b"");
    let said = answer.json()["message"].as_str().unwrap().to_owned();
    assert!(answer.status == 400 && said.contains("token id"), "{said}");
    let metrics = http_try(dev.admin(1), "GET", "/metrics", &[], b"").unwrap().body;
    let metrics = String::from_utf8(metrics).unwrap();
    for never in
        ["reveille_publishes_total{kind=\"unavailable\"} 0", "reveille_keepalives_total{kind=\"forged\"} 0"]
    {
        assert!(metrics.contains(never), "{never} is not in {metrics}");
    }
}

/// A configuration is checked with its certificates, and all that is wrong with them is said at once.
#[test]
fn certificates_are_checked_with_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let run = |arguments: &[&str]| {
        let output = output_of(Command::new(REVEILLE).args(arguments));
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.code(), said)
    };
    let make = |ca: &str, id: &str, cluster: &str, out: &str, days: &str| {
        let (ca, out) = (at(ca), at(out));
        let made = run(&[
            "certs",
            "node",
            "--ca",
            &ca,
            "--id",
            id,
            "--cluster",
            cluster,
            "--days",
            days,
            "--out",
            &out,
        ]);
        assert_eq!(made.0, Some(0), "{}", made.1);
    };
    let (ours, theirs) = ("00c0ffee00c0ffee", "00c0ffee00c0fff0");
    for ca in ["ca", "other-ca"] {
        assert_eq!(run(&["certs", "ca", "--out", &at(ca)]).0, Some(0));
    }
    make("ca", "1", ours, "good", "30");
    make("ca", "1", ours, "again", "30");
    make("ca", "2", theirs, "another", "30");
    make("other-ca", "1", ours, "stranger", "30");
    make("ca", "1", ours, "ended", "1");
    end(&at("ca"), &at("ended/node-1"), &format!("node-1.{ours}.reveille.internal"));
    let check = |ca: &str, certificate: &str, key: &str| {
        let text = format!(
            "node = 1\ndata = \"data\"\n[cluster]\nid = {ours:?}\nnodes = {{ 1 = \"127.0.0.1:1\" }}\n\
             [cluster.tenant]\nadmin_token_sha256 = \"{}\"\n\
             [tls]\nca = {ca:?}\ncertificate = {certificate:?}\nkey = {key:?}\n\
             [peer]\nlisten = \"127.0.0.1:1\"\n[session]\nlisten = \"127.0.0.1:2\"\n\
             [http]\nlisten = \"127.0.0.1:3\"\n[admin]\nlisten = \"127.0.0.1:4\"\n",
            "ab".repeat(32)
        );
        std::fs::write(at("node.toml"), text).unwrap();
        run(&["config", "check", "--config", &at("node.toml")])
    };
    let (code, said) = check("ca/ca.pem", "good/node-1.pem", "good/node-1.key");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("good/node-1.pem ends 20") && said.contains("in 29 days"), "{said}");
    assert!(said.contains("# no terminal can enrol"), "{said}");
    for (ca, certificate, key, problems) in [
        (
            "ca/ca.pem",
            "good/node-1.pem",
            "again/node-1.key",
            &["again/node-1.key is not that of certificate"][..],
        ),
        (
            "ca/ca.pem",
            "another/node-2.pem",
            "another/node-2.key",
            &[
                "another/node-2.pem is of node 2 of cluster 00c0ffee00c0fff0, and the configuration of node 1 of cluster 00c0ffee00c0ffee",
            ],
        ),
        (
            "ca/ca.pem",
            "stranger/node-1.pem",
            "stranger/node-1.key",
            &["stranger/node-1.pem was not made by the CA in"],
        ),
        ("ca/ca.pem", "ended/node-1.pem", "ended/node-1.key", &["ended/node-1.pem is not valid now"]),
        (
            "ca/none.pem",
            "another/node-2.pem",
            "good/node-1.key",
            &["ca/none.pem", "is of node 2", "good/node-1.key is not that of certificate"],
        ),
        ("ca/ca.pem", "node.toml", "none.key", &["node.toml holds no certificate", "none.key"]),
    ] {
        let (code, said) = check(ca, certificate, key);
        assert_eq!(code, Some(FAILED), "{said}");
        let lines: Vec<&str> = said.lines().skip(1).collect();
        assert_eq!(lines.len(), problems.len(), "a line for each: {said}");
        for (line, problem) in lines.iter().zip(problems) {
            assert!(line.contains(problem), "{problem:?} is not in {line:?}");
        }
    }
}

#[test]
fn quorum_lost_is_said_and_passes() {
    let mut dev = Dev::start();
    let id = terminal_of(&dev, "t1");
    dev.kill_node(1);
    dev.kill_node(2);
    std::thread::sleep(Duration::from_millis(500));
    let answer = dev.publish(3, &id, &[("Idempotency-Key", "lost-quorum")], b"x");
    assert_eq!((answer.status, answer.json()["error"].as_str()), (503, Some("unavailable")));
    assert!(answer.header("Retry-After").is_some());
    let ready = http_try(dev.node(3)["admin"].as_str().unwrap(), "GET", "/readyz", &[], b"").unwrap();
    assert_eq!(ready.status, 503);
    assert_eq!(http(dev.node(3)["admin"].as_str().unwrap(), "GET", "/healthz", &[], b"").status, 200);
    dev.start_node(1);
    dev.wait_ready(1);
    let first = dev.publish(3, &id, &[("Idempotency-Key", "lost-quorum")], b"x");
    let again = dev.publish(1, &id, &[("Idempotency-Key", "lost-quorum")], b"x");
    assert_eq!((first.status, again.status), (201, 201));
    assert_eq!(first.json()["message"], again.json()["message"], "the retried key gives one message");
}
