//! Anchor and keeper over a network that loses, delays, reorders and doubles, behind a NAT that moves in mid-life,
//! with an attacker who sees everything. By seed; a failing seed is named. Single rules are in `anchor.rs`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use reveille_protocol::anchor::keeper::{Command, Event, Identity, Keeper, Keeping};
use reveille_protocol::anchor::table::{Anchor, Answer};
use reveille_protocol::directory::Secret;
use reveille_protocol::limits;
use reveille_protocol::time::Instant;
use reveille_protocol::wire::stun::{self, Handle};

const SECRET: Secret = Secret { generation: 7, key: [3; 32] };
const HANDLE: Handle = Handle([0xaa; 16]);
/// How long the network and the attacker are at it, and then how long nobody disturbs: three periods.
const NOISE: Duration = Duration::from_secs(1200);
const QUIET: Duration = Duration::from_secs(75);

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        (!from.is_empty()).then(|| &from[self.below(from.len() as u64) as usize])
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Flight {
    /// With the source that the anchor sees.
    ToAnchor(SocketAddr),
    /// With the destination that the NAT sees.
    ToTerminal(SocketAddr),
}

struct World {
    dice: Dice,
    now: Instant,
    noisy: bool,
    anchor: Anchor<()>,
    keeper: Keeper,
    /// What the NAT makes of the terminal's socket now, and every address that was ever it.
    mapping: SocketAddr,
    mappings: BTreeSet<SocketAddr>,
    /// What the keeper was told last.
    told: Option<SocketAddr>,
    flights: BTreeMap<(Instant, u64), (Flight, Vec<u8>)>,
    serial: u64,
    /// What the attacker saw arrive, and saw lost: of the latter nobody has a copy but it.
    seen: Vec<Vec<u8>>,
    kept: Vec<Vec<u8>>,
}

impl World {
    fn new(seed: u64) -> World {
        let identity = Identity { handle: HANDLE, generation: 7, key: stun::pin_key(&SECRET, &HANDLE) };
        let keeping = Keeping { identity, number: 0, period: limits::KEEPALIVE, seed };
        let mapping: SocketAddr = "192.0.2.1:4000".parse().unwrap();
        World {
            dice: Dice(seed),
            now: Instant(0),
            noisy: true,
            anchor: Anchor::new([9; 32], 10),
            keeper: Keeper::new(Instant(0), &keeping),
            mapping,
            mappings: BTreeSet::from([mapping]),
            told: None,
            flights: BTreeMap::new(),
            serial: 0,
            seen: Vec::new(),
            kept: Vec::new(),
        }
    }

    fn fly(&mut self, flight: Flight, bytes: &[u8]) {
        if self.noisy && self.dice.percent(15) {
            self.kept.push(bytes.to_vec());
            return;
        }
        for _ in 0..1 + u64::from(self.noisy && self.dice.percent(10)) {
            let delay = if self.noisy { 5 + self.dice.below(600) } else { 20 };
            self.serial += 1;
            let arrival = self.now + Duration::from_millis(delay);
            self.flights.insert((arrival, self.serial), (flight, bytes.to_vec()));
        }
    }

    fn carry_out(&mut self, commands: Vec<Command>) {
        for command in commands {
            match command {
                Command::Send(packet) => self.fly(Flight::ToAnchor(self.mapping), &packet),
                Command::Mapped(address) => {
                    assert!(self.mappings.contains(&address), "told of {address}");
                    self.told = Some(address);
                }
                Command::Lost => self.told = None,
                Command::Waiting => panic!("nothing waits"),
            }
        }
    }

    fn arrive(&mut self, flight: Flight, bytes: &[u8]) {
        self.seen.push(bytes.to_vec());
        match flight {
            Flight::ToAnchor(from) => {
                let heard = self.anchor.heard(self.now, from, bytes, &[SECRET]);
                if let Some(Answer::Mapped(packet) | Answer::Challenge(packet)) =
                    heard.ok().and_then(|accepted| accepted.answer)
                {
                    self.fly(Flight::ToTerminal(from), &packet);
                }
            }
            Flight::ToTerminal(to) if to == self.mapping => {
                let commands = self.keeper.handle(self.now, Event::Received(bytes));
                self.carry_out(commands);
            }
            Flight::ToTerminal(_) => {}
        }
    }

    /// The NAT gives the socket another port, or the terminal is in another network.
    fn rebind(&mut self) {
        let (host, port) = (1 + self.dice.below(3), 4000 + self.dice.below(1000));
        self.mapping = format!("192.0.2.{host}:{port}").parse().unwrap();
        self.mappings.insert(self.mapping);
        if self.dice.percent(30) {
            let commands = self.keeper.handle(self.now, Event::Resumed);
            self.carry_out(commands);
        }
    }

    fn attack(&mut self) {
        let third_parties: [SocketAddr; 2] =
            ["203.0.113.6:443".parse().unwrap(), "[2001:db8::6]:4000".parse().unwrap()];
        let before = self.anchor.address(self.now, &HANDLE);
        let kept = self.dice.percent(30);
        let Some(mut bytes) = self.dice.pick(if kept { &self.kept } else { &self.seen }).cloned() else {
            return;
        };
        if self.dice.percent(30) {
            let at = self.dice.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << self.dice.below(8);
        } else if !kept && self.dice.percent(30) {
            // Everything that arrived, again, at the terminal: copies, and its own keepalives reflected.
            let commands = self.keeper.handle(self.now, Event::Received(&bytes));
            let late = matches!(commands[..], [] | [Command::Send(_)]) || self.told != Some(self.mapping);
            assert!(late, "a replay told {commands:?}");
            return self.carry_out(commands);
        }
        let old: Vec<SocketAddr> = self.mappings.iter().copied().filter(|a| *a != self.mapping).collect();
        let spoofed = if kept { None } else { self.dice.pick(&old).copied() };
        let from = spoofed.unwrap_or(third_parties[self.dice.below(2) as usize]);
        let heard = self.anchor.heard(self.now, from, &bytes, &[SECRET]);
        if let Ok(accepted) = heard {
            assert!(kept, "a copy was accepted");
            assert!(accepted.ring.is_none() && accepted.due.is_none());
            let Some(Answer::Challenge(packet)) = accepted.answer else {
                panic!("an answer to a third party")
            };
            assert!(packet.len() <= bytes.len(), "amplified");
        }
        assert_eq!(self.anchor.address(self.now, &HANDLE), before, "an attack changed the address");
    }

    fn run(&mut self, until: Instant) {
        let mut disturbance = self.now;
        loop {
            let flight = self.flights.first_key_value().map(|((at, _), _)| *at);
            let disturbed = self.noisy.then_some(disturbance);
            let due = [flight, self.keeper.poll_timeout(), disturbed];
            let next = due.into_iter().flatten().min().unwrap();
            if next >= until {
                self.now = until;
                return;
            }
            self.now = self.now.max(next);
            if Some(next) == flight {
                let (_, (flight, bytes)) = self.flights.pop_first().unwrap();
                self.arrive(flight, &bytes);
            } else if Some(next) == disturbed {
                disturbance = self.now + Duration::from_millis(self.dice.below(2000));
                match self.dice.below(20) {
                    0 => self.rebind(),
                    1 => self.anchor.failed(&HANDLE, self.mapping),
                    2 => assert_eq!(self.anchor.sweep(self.now, 3).expired, []),
                    _ => self.attack(),
                }
            } else {
                let commands = self.keeper.handle(self.now, Event::Timeout);
                self.carry_out(commands);
            }
            if let Some(address) = self.anchor.address(self.now, &HANDLE) {
                assert!(self.mappings.contains(&address), "would dial {address}");
            }
        }
    }
}

#[test]
fn whatever_the_network_does_the_true_mapping_is_found_and_nobody_else_is() {
    for seed in 0..200 {
        let result = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            world.run(Instant(0) + NOISE);
            world.noisy = false;
            world.run(Instant(0) + NOISE + QUIET);
            assert_eq!(world.told, Some(world.mapping), "the keeper");
            assert_eq!(world.anchor.address(world.now, &HANDLE), Some(world.mapping), "the anchor");
        });
        assert!(result.is_ok(), "seed {seed}");
    }
}
