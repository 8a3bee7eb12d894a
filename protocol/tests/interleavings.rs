//! The machines of the core against each other, by seed: service list, dispatch and both ends of sessions, in a model of
//! nodes, links and terminals that die, pause, lose and delay. No IO, and no rule of its own about delivery.
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
#[path = "interleavings/dice.rs"]
mod dice;
#[path = "interleavings/faults.rs"]
mod faults;
#[path = "interleavings/history.rs"]
mod history;
#[path = "interleavings/hostile.rs"]
mod hostile;
#[path = "interleavings/node.rs"]
mod node;
#[path = "interleavings/route.rs"]
mod route;
#[path = "interleavings/shard.rs"]
mod shard;
#[path = "interleavings/world.rs"]
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use reveille_protocol::id::TerminalId;
use world::World;

const SEEDS: u64 = 400;

/// Runs one seed to its rest and judges it; pushes stored and received.
fn run(seed: u64, loud: bool) -> (usize, usize) {
    let mut world = World::new(seed, loud);
    world.set_up();
    world.run();
    let terminals: Vec<TerminalId> = world.devices.iter().map(|device| device.key.terminal()).collect();
    world.history.check(&world.table, &terminals);
    assert!(world.rests(), "it does not come to rest");
    world.history.counts()
}

#[test]
fn nothing_accepted_is_lost_repeated_or_reordered() {
    let only: Option<u64> = std::env::var("SEED").ok().map(|seed| seed.parse().expect("SEED is a number"));
    let seeds = only.map_or(1..=SEEDS, |seed| seed..=seed);
    let (mut stored, mut received) = (0, 0);
    for seed in seeds {
        match catch_unwind(AssertUnwindSafe(|| run(seed, only.is_some()))) {
            Ok(counts) => {
                stored += counts.0;
                received += counts.1;
            }
            Err(panic) => {
                println!("seed {seed} fails; replay it with SEED={seed}");
                resume_unwind(panic);
            }
        }
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
