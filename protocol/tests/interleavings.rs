//! The machines of the core against each other, by seed: service list, dispatch, both ends of sessions and of bindings, in
//! a model of nodes, links, networks and terminals that die, pause, lose, delay and move. No IO, and no rule of its own about delivery.
//!
//! Replay one seed, told as it goes: `SEED=7 cargo test -p reveille-protocol --test interleavings -- --nocapture`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

#[path = "interleavings/device.rs"]
mod device;
#[path = "../../simulation/src/dice.rs"]
mod dice;
#[path = "interleavings/faults.rs"]
mod faults;
#[path = "interleavings/history.rs"]
mod history;
#[path = "interleavings/hostile.rs"]
mod hostile;
#[path = "../../simulation/src/ledger.rs"]
mod ledger;
#[path = "../../simulation/src/listener.rs"]
mod listener;
#[path = "../../simulation/src/nat.rs"]
mod nat;
#[path = "interleavings/node.rs"]
mod node;
#[path = "../../simulation/src/notifier.rs"]
mod notifier;
#[path = "interleavings/route.rs"]
mod route;
#[path = "interleavings/shard.rs"]
mod shard;
#[path = "interleavings/udp.rs"]
mod udp;
#[path = "interleavings/weather.rs"]
mod weather;
#[path = "interleavings/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use reveille_protocol::id::TerminalId;
use world::World;

const SEEDS: u64 = 400;

/// What must have happened in some seed: runs that do not come by these mean nothing.
const MUST_BE_SEEN: &[&str] = &[
    "addresses that must prove themselves",
    "anchors given up",
    "anchors killed with an order waiting",
    "anchors paused with an order waiting",
    "bindings forgotten",
    "bindings forgotten with a notification under way",
    "bindings that changed their port",
    "classes doubted",
    "classes found to be direct",
    "classes found to be none",
    "classes found to be pinned",
    "classes that fell from direct to pinned",
    "datagrams doubled",
    "datagrams lost",
    "dials of an address",
    "dials through a binding",
    "keepalives from elsewhere",
    "offers",
    "offers that were refused",
    "anchors that came late",
    "orders for an anchor that is gone",
    "orders that a keepalive brought to their terminal",
    "orders that wait for a keepalive",
    "pushes found at a check-in",
    "sessions without an offer",
    "terminals that moved",
    "terminals woken by an anchor's answer",
    "ways cut",
];

/// Runs one seed to its rest and judges it; pushes stored and received, and what was seen.
fn run(seed: u64, loud: bool) -> (usize, usize, BTreeMap<&'static str, u64>) {
    let mut world = World::new(seed, loud);
    world.set_up();
    world.run();
    let terminals: Vec<TerminalId> = world.devices.iter().map(|device| device.key.terminal()).collect();
    world.history.check(&world.table, &terminals, &world.bounds());
    assert!(world.rests(), "it does not come to rest");
    let (stored, received) = world.history.counts();
    (stored, received, world.seen)
}

fn replay(seed: u64) -> String {
    format!("SEED={seed} cargo test -p reveille-protocol --test interleavings -- --nocapture")
}

#[test]
fn nothing_accepted_is_lost_repeated_or_reordered() {
    let only: Option<u64> = std::env::var("SEED").ok().map(|seed| seed.parse().expect("SEED is a number"));
    let seeds = only.map_or(1..=SEEDS, |seed| seed..=seed);
    let (mut stored, mut received, mut seen) = (0, 0, BTreeMap::<_, u64>::new());
    let mut failed = Vec::new();
    for seed in seeds {
        match catch_unwind(AssertUnwindSafe(|| run(seed, only.is_some()))) {
            Ok(of_it) => {
                stored += of_it.0;
                received += of_it.1;
                of_it.2.into_iter().for_each(|(what, count)| *seen.entry(what).or_default() += count);
            }
            Err(_) => failed.push(replay(seed)),
        }
    }
    assert!(failed.is_empty(), "{} seeds fail:\n{}", failed.len(), failed.join("\n"));
    println!("{seen:?}");
    for what in MUST_BE_SEEN {
        assert!(only.is_some() || seen.contains_key(what), "no {what} in any run: {seen:?}");
    }
    assert!(
        only.is_some() || stored > 10_000 && received > 9000,
        "{stored} stored, {received} received: the runs mean nothing"
    );
}

#[test]
fn no_value_makes_a_machine_panic() {
    for seed in 1..=SEEDS * 2 {
        let all = [hostile::entries, hostile::server, hostile::terminal, hostile::dispatcher];
        let judged = catch_unwind(|| all.iter().for_each(|one| one(seed)));
        judged.unwrap_or_else(|panic| {
            println!("hostile seed {seed}");
            resume_unwind(panic)
        });
    }
}
