//! What one terminal costs its anchor in memory, as the system counts it. Alone in its process, so that nothing else
//! allocates meanwhile.
#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

use std::net::SocketAddr;

use reveille_protocol::anchor::table::Anchor;
use reveille_protocol::directory::Secret;
use reveille_protocol::hash;
use reveille_protocol::time::Instant;
use reveille_protocol::wire::stun::{self, Handle, Message, Pin, PinSlot, Transaction};

const SECRET: Secret = Secret { generation: 7, key: [3; 32] };
const TERMINALS: u64 = 200_000;
/// Bytes per terminal, of the design: a million terminals in 100 MB.
const BUDGET: u64 = 100;

/// Resident bytes that no file backs.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn a_terminal_costs_its_anchor_at_most_100_bytes() {
    let mut anchor: Anchor<u64> = Anchor::new([9; 32], TERMINALS as usize);
    let from: SocketAddr = "192.0.2.1:4000".parse().unwrap();
    let before = resident();
    for n in 0..TERMINALS {
        let mut handle = Handle([0; 16]);
        handle.0.copy_from_slice(&hash::sha256(&n.to_be_bytes())[..16]);
        let pin = Pin { handle, generation: 7, period: 28, slot: PinSlot::Primary, ring: false };
        let message = Message::Keepalive { pin, wants_answer: true, proof: None };
        let key = stun::pin_key(&SECRET, &handle);
        let packet = stun::encode(&message, Transaction { number: 1, tail: [0; 4] }, &key);
        assert!(anchor.heard(Instant(0), from, &packet, &[SECRET]).is_ok());
    }
    let each = (resident() - before) / TERMINALS;
    println!("{each} bytes per terminal");
    assert_eq!(anchor.len() as u64, TERMINALS);
    assert!(each <= BUDGET, "{each} bytes per terminal");
}
