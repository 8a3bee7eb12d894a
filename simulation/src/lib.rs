//! A world on virtual time for real members of `reveille_cluster`: their disks, links and clocks, sessions and terminals,
//! networks and NATs, and everything that can go wrong with them, by seed. One seed is one run, the same each time. Tests
//! and the chaos suite live in it; the product never imports it.
//!
//! `dice`, `ledger`, `listener`, `nat` and `notifier` know no member: `protocol/tests/interleavings.rs` takes these files,
//! too, so that both worlds have the same networks.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a world for tests: it stops where it is surprised, and tells its story"
)]

pub mod ask;
pub mod commands;
pub mod dice;
pub mod fail_points;
pub mod faults;
pub mod folder;
pub mod history;
pub mod ills;
pub mod ledger;
pub mod listener;
pub mod nat;
pub mod network;
pub mod node;
pub mod notifier;
pub mod operator;
pub mod process;
pub mod rest;
pub mod run;
pub mod seen;
pub mod session;
pub mod start;
pub mod terminal;
pub mod udp;
pub mod world;
