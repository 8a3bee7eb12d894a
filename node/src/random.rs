//! Random numbers from the operating system: for secrets, ids, streams. Never for what a seed must repeat.

use reveille_protocol::id::Stream;
use ring::rand::{SecureRandom, SystemRandom};

/// Random bytes from the operating system.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    #[allow(
        clippy::expect_used,
        reason = "getrandom fails only where there is no kernel random source at all"
    )]
    SystemRandom::new().fill(&mut bytes).expect("the operating system has no random source");
    bytes
}

/// A random number for a new stream; zero stands for "none".
pub fn new_stream() -> Stream {
    Stream(u64::from_le_bytes(random()).max(1))
}
