//! What an operator must be able to trust when processes fail: killed, all at once, stopped and woken, told to leave, left
//! without a majority. Judged by the chaos suite's checkers of delivery. FAULTS=100 makes the random kills a long run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

mod support;

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use reveille_protocol::hash::sha256;
use support::load::Load;
use support::{Dev, http_try};

/// Random kills in a short run.
const FAULTS: u64 = 8;
/// Longer than the 3 s after which a silent node is marked down, with an election and a proposal on top.
const PAUSE: Duration = Duration::from_millis(4500);
/// A request without a leader is refused after 5 s; this is for a machine that is busy with other tests.
const REFUSED_WITHIN: Duration = Duration::from_secs(15);
/// A node that leaves gives itself 5 s.
const LEFT_WITHIN: Duration = Duration::from_secs(10);
/// Service comes back by itself; how soon it really does is printed.
const BACK_WITHIN: Duration = Duration::from_secs(30);

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Draws that a seed fixes; what the processes make of them it does not.
struct Draws(u64, u64);

impl Draws {
    fn below(&mut self, limit: u64) -> u64 {
        self.1 += 1;
        let hash = sha256(&[self.0.to_le_bytes(), self.1.to_le_bytes()].concat());
        u64::from_le_bytes(*hash.first_chunk().unwrap()) % limit
    }
}

#[test]
fn killed_at_random_and_all_at_once_they_lose_and_repeat_nothing() {
    let faults = setting("FAULTS", FAULTS);
    let seed = setting("SEED", u64::from(std::process::id()));
    eprintln!("FAULTS={faults} SEED={seed}");
    let mut draws = Draws(seed, 0);
    let mut dev = Dev::start();
    let load = Load::start(&dev, &["t1", "t2", "t3"]);
    for number in 1..=faults {
        load.take(Duration::from_millis(draws.below(800)));
        let victims = if number % 4 == 0 { vec![1, 2, 3] } else { vec![1 + draws.below(3) as usize] };
        load.fault(format!("kill -9 {victims:?}"));
        victims.iter().for_each(|victim| dev.kill_node(*victim));
        for victim in &victims {
            dev.wait_ended(*victim);
            dev.start_node(*victim);
        }
        // Sometimes the next one dies while this one is still on its way back.
        if draws.below(2) == 0 || victims.len() == 3 {
            (1..=3).for_each(|node| dev.wait_ready(node));
        }
    }
    (1..=3).for_each(|node| dev.wait_ready(node));
    load.take(Duration::from_secs(1));
    load.end(5 * faults as usize);
}

#[test]
fn a_node_that_was_stopped_wakes_to_a_cluster_that_went_on() {
    let dev = Dev::start();
    let load = Load::start_with(&dev, &dev.servers(), &["t1", "t2"], &["t3", "t4", "t5"]);
    for victim in 1..=3 {
        load.take(Duration::from_millis(500));
        load.fault(format!("SIGSTOP node {victim}"));
        let paused = dev.pause_node(victim);
        let others: Vec<&str> = (1..=3).filter(|node| *node != victim).map(|node| dev.url(node)).collect();
        load.publish_through(&others);
        load.take(PAUSE);
        load.fault(format!("SIGCONT node {victim}"));
        drop(paused);
        load.take(Duration::from_secs(1));
        dev.wait_ready(victim);
        load.publish_through(&[dev.url(1), dev.url(2), dev.url(3)]);
        let fenced = "this node was marked down; its sessions end and it begins anew";
        // It may be ready by its old copy of the directory for a moment.
        let until = Instant::now() + BACK_WITHIN;
        while !dev.log(victim).contains(fenced) {
            assert!(Instant::now() < until, "node {victim} did not learn that it was down");
            std::thread::sleep(Duration::from_millis(50));
        }
        dev.wait_ready(victim);
    }
    load.end(200);
}

#[test]
fn without_a_majority_nobody_is_lied_to_and_with_it_all_is_well_again() {
    let mut dev = Dev::start();
    let load = Load::start(&dev, &["t1", "t2"]);
    load.take(Duration::from_millis(500));
    let key = format!("{{\"key\":\"{}\"}}", "ab".repeat(32));
    let terminal = dev.request(1, "POST", "/v1/terminals", &[], key.as_bytes()).json()["terminal"].clone();
    let terminal = terminal.as_str().unwrap();

    load.fault("kill -9 two of three");
    dev.kill_node(1);
    dev.kill_node(2);
    for (method, path) in
        [("POST", format!("/v1/terminals/{terminal}/messages")), ("GET", format!("/v1/terminals/{terminal}"))]
    {
        let began = Instant::now();
        let answer = dev.request(3, method, &path, &[], b"");
        let took = began.elapsed();
        assert_eq!(answer.status, 503, "{method}: {answer:?}");
        assert!(answer.header("Retry-After").is_some(), "{method}: {answer:?}");
        assert!(took < REFUSED_WITHIN, "{method}: {took:?}");
        eprintln!("{method} without a majority: 503 after {took:.1?}");
    }
    assert!(!dev.is_ready(3), "it says that it serves");

    load.fault("the majority is back");
    for node in [1, 2] {
        dev.wait_ended(node);
        dev.start_node(node);
    }
    let began = Instant::now();
    for node in [3, 1, 2] {
        let path = format!("/v1/terminals/{terminal}/messages");
        let bearer = format!("Bearer {}", dev.token());
        let publish = || http_try(dev.url(node), "POST", &path, &[("Authorization", &bearer)], b"");
        while publish().is_none_or(|answer| answer.status != 201) {
            assert!(began.elapsed() < BACK_WITHIN, "no service through node {node}");
            std::thread::sleep(Duration::from_millis(10));
        }
        eprintln!("service through node {node} after {:.2?}", began.elapsed());
    }
    (1..=3).for_each(|node| dev.wait_ready(node));
    load.take(Duration::from_secs(1));
    load.end(50);
}

/// Never ready while publishers are not taken any more: a balancer that goes by readiness sends nobody to a closed door.
fn watch_readiness(dev: &Dev, node: usize, stop: &AtomicBool) {
    let publishers = dev.url(node).strip_prefix("http://").unwrap();
    while !stop.load(Ordering::Relaxed) {
        let open = TcpStream::connect(publishers).is_ok();
        assert!(open || !dev.is_ready(node), "node {node} takes no publishers and says that it is ready");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn nodes_that_leave_in_turn_are_not_noticed() {
    let mut dev = Dev::start();
    let load = Load::start_with(&dev, &dev.servers(), &["t1", "t2"], &["t3", "t4"]);
    for leaver in 1..=3 {
        load.take(Duration::from_millis(500));
        load.fault(format!("SIGTERM node {leaver}"));
        let stop = AtomicBool::new(false);
        let before = dev.log(leaver).len();
        std::thread::scope(|scope| {
            scope.spawn(|| watch_readiness(&dev, leaver, &stop));
            dev.signal_node(leaver, "TERM");
            let took = dev.wait_ended(leaver);
            stop.store(true, Ordering::Relaxed);
            eprintln!("node {leaver} left in {took:.2?}");
            assert!(took < LEFT_WITHIN, "{took:?}");
        });
        let log = dev.log(leaver);
        let leaving = &log[before..];
        let alarms = |line: &&str| line.contains(" ERROR ") || line.contains(" WARN ");
        // What comes to a group just as it stops is an error to openraft, and a connection that comes as the last worker goes
        // one to actix; to nobody else.
        let theirs = ["error: raft stopped", "actix_server::accept: No workers"];
        let alarms =
            leaving.lines().filter(alarms).find(|line| !theirs.iter().any(|their| line.contains(their)));
        assert_eq!(alarms, None, "{leaving}");
        dev.start_node(leaver);
        dev.wait_ready(leaver);
    }
    load.take(Duration::from_millis(500));
    let failed = load.not_acknowledged();
    assert!(failed.is_empty(), "publishers that try again saw errors: {failed:?}");
    load.end(100);
}

/// A node that its peers do not reach, and terminals do, holds no session for longer than that can be an accident: its
/// peers take the terminals for offline, and one that no notification reaches would wait there for ever.
#[test]
fn a_node_that_is_cut_off_sends_its_terminals_away() {
    let dev = Dev::start();
    let at_first = dev.node(1)["session"].as_str().unwrap().to_owned();
    let (_terminal, lines) = dev.terminal_of(&at_first, "t1", &["--linger", "forever"]);
    lines.next_event("connected");
    let others = [dev.pause_node(2), dev.pause_node(3)];
    assert_eq!(lines.next_event("disconnected")["event"], "disconnected");
    assert!(dev.log(1).contains("this node hears nothing of a majority of the others"), "{}", dev.log(1));
    drop(others);
    // Both ends find each other again by themselves.
    lines.next_event("connected");
    (1..=3).for_each(|node| dev.wait_ready(node));
}
