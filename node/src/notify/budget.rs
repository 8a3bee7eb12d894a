//! How many notifications an address gets: what counts is what nobody answers. Tables and numbers; time is an argument,
//! and nothing is sent from here.
//!
//! A terminal can claim any port at the address that its session comes from, and that address may be shared: by a router's
//! customers, by who leaves the network through a proxy. So an address at which a terminal has not lately answered with
//! its key gets one notification in a period, however many terminals claim it, and a host with any number of such
//! addresses a few. What is answered is given back: where terminals answer, these budgets are not felt.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use reveille_protocol::destination::Learned;
use reveille_protocol::dispatch::ladder::BUDGET_PERIOD;
use reveille_protocol::id::KeyFingerprint;
use reveille_protocol::time::Instant;

/// What a budget is for, from its first notification on.
pub const PERIOD: Duration = BUDGET_PERIOD;
/// Unanswered notifications to an address at which nobody has answered with this terminal's key.
const UNPROVEN: u32 = 1;
/// To one at which it has, or from which its keepalives come: as many as the retry ladder has in its first minute.
const PROVEN: u32 = 5;
/// From all nodes together, each its share, to all claimed ports of a host at which no terminal has ever answered: a router,
/// whose terminals find out one after the other that they are behind it, must not hear from all of them.
const STRANGE_HOST: u32 = 16;
/// The same of a host at which one has: some of its terminals may be switched off.
const KNOWN_HOST: u32 = 64;
/// A node's share is no less, however many there are: terminals come to them at random, and a claim that must wait for another
/// period has its terminal taken for one behind NAT.
const SHARE: u32 = 2;
/// To one address, whatever comes of them: pushes that are published and cancelled in turn begin the ladder anew each
/// time, and must not keep a terminal awake. One that is wanted more often than twice a second should linger.
const OFTEN: u32 = 120;
/// An answer counts for so long: an address may be another's tomorrow.
const PROOF_LASTS: Duration = Duration::from_secs(24 * 3600);
/// Addresses and hosts that have not answered within the period, and those that have: 64 bytes each at most. All
/// unanswered ones at 1600 a second; beyond that no more are tried. Of answers the latest.
const REMEMBERED: usize = 100_000;

/// May it go?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Budget {
    /// Yes; it is counted.
    Granted,
    /// This address or host has had what it gets in the period.
    Spent,
    /// The terminal is notified too often, though it answers: soon.
    Often,
}

/// What is known of addresses.
#[derive(Debug)]
pub struct Budgets {
    addresses: Unanswered<SocketAddr>,
    hosts: Unanswered<IpAddr>,
    proofs: Recent<SocketAddr, Proof>,
    known: Recent<IpAddr, Instant>,
    granted: Recent<SocketAddr, (Instant, u32)>,
    /// The cluster's nodes.
    nodes: u32,
}

/// Who answered at an address last, and when.
#[derive(Debug, Clone, Copy)]
struct Proof {
    key: KeyFingerprint,
    at: Instant,
}

impl Default for Budgets {
    fn default() -> Self {
        Budgets::of(REMEMBERED)
    }
}

impl Budgets {
    fn of(remembered: usize) -> Budgets {
        Budgets {
            addresses: Unanswered::of(remembered),
            hosts: Unanswered::of(remembered),
            proofs: Recent::of(remembered),
            known: Recent::of(remembered),
            granted: Recent::of(remembered),
            nodes: 1,
        }
    }

    /// So many nodes share what a host gets from now on.
    pub fn set_nodes(&mut self, nodes: usize) {
        self.nodes = u32::try_from(nodes).unwrap_or(u32::MAX).max(1);
    }

    /// What a host gets from this node of what it gets from all.
    fn share(&self, of: u32) -> u32 {
        of.div_ceil(self.nodes).max(SHARE)
    }

    /// Has the terminal with this key answered there lately?
    fn proven(&self, now: Instant, address: &SocketAddr, key: &KeyFingerprint) -> bool {
        let proof = self.proofs.get(address);
        proof.is_some_and(|proof| proof.key == *key && now.since(proof.at) < PROOF_LASTS)
    }

    /// Asks for one notification. `address` is canonical.
    pub fn ask(
        &mut self,
        now: Instant,
        address: SocketAddr,
        key: &KeyFingerprint,
        learned: Learned,
    ) -> Budget {
        let proven = learned == Learned::Echoed || self.proven(now, &address, key);
        let limit = if proven { PROVEN } else { UNPROVEN };
        if !self.addresses.room(now, &address, limit) {
            return Budget::Spent;
        }
        let granted = self.granted.get(&address).copied();
        let (since, count) = granted.filter(|(since, _)| now.since(*since) < PERIOD).unwrap_or((now, 0));
        if count >= OFTEN {
            return Budget::Often;
        }
        // Behind a carrier's address are thousands of terminals, each at a port from which it was just heard.
        if learned == Learned::Claimed {
            let known = self.known.get(&address.ip()).is_some_and(|at| now.since(*at) < PROOF_LASTS);
            let limit = self.share(if known { KNOWN_HOST } else { STRANGE_HOST });
            if !self.hosts.room(now, &address.ip(), limit) {
                return Budget::Spent;
            }
            self.hosts.count(now, address.ip());
        }
        self.addresses.count(now, address);
        self.granted.put(address, (since, count + 1));
        Budget::Granted
    }

    /// Takes back what was asked for and not sent.
    pub fn unsent(&mut self, address: SocketAddr, learned: Learned) {
        self.addresses.give_back(&address);
        if learned == Learned::Claimed {
            self.hosts.give_back(&address.ip());
        }
    }

    /// The terminal with this key answered there.
    pub fn answered(&mut self, now: Instant, address: SocketAddr, key: KeyFingerprint, learned: Learned) {
        self.unsent(address, learned);
        // What answers through a binding says nothing of what a claim would find.
        if learned == Learned::Claimed {
            self.proofs.put(address, Proof { key, at: now });
            self.known.put(address.ip(), now);
        }
    }

    /// It did not.
    pub fn unanswered(&mut self, now: Instant, address: SocketAddr, key: &KeyFingerprint) {
        if self.proven(now, &address, key) && !self.addresses.room(now, &address, PROVEN) {
            self.proofs.forget(&address);
        }
    }
}

/// Counts what went out and is not answered, each key in a period of its own.
#[derive(Debug)]
struct Unanswered<K> {
    counts: HashMap<K, (Instant, u32)>,
    most: usize,
    swept: Instant,
}

impl<K: Eq + Hash> Unanswered<K> {
    fn of(most: usize) -> Unanswered<K> {
        Unanswered { counts: HashMap::new(), most, swept: Instant(0) }
    }

    /// May one more go out?
    fn room(&mut self, now: Instant, key: &K, limit: u32) -> bool {
        match self.counts.get(key) {
            Some((since, count)) if now.since(*since) < PERIOD => *count < limit,
            Some(_) => true,
            None if self.counts.len() < self.most => true,
            None => {
                // A look at all of them costs milliseconds: at most once a second.
                if now.since(self.swept) >= Duration::from_secs(1) {
                    self.swept = now;
                    self.counts.retain(|_, (since, _)| now.since(*since) < PERIOD);
                }
                self.counts.len() < self.most
            }
        }
    }

    fn count(&mut self, now: Instant, key: K) {
        let (since, count) = self.counts.entry(key).or_insert((now, 0));
        if now.since(*since) >= PERIOD {
            (*since, *count) = (now, 0);
        }
        *count += 1;
    }

    fn give_back(&mut self, key: &K) {
        if let Some((_, count)) = self.counts.get_mut(key) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.counts.remove(key);
            }
        }
    }
}

/// Keeps at least the last `most / 2` that were put in, and at most `most`.
#[derive(Debug)]
struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    most: usize,
}

impl<K: Eq + Hash, V> Recent<K, V> {
    fn of(most: usize) -> Recent<K, V> {
        Recent { young: HashMap::new(), old: HashMap::new(), most }
    }

    fn get(&self, key: &K) -> Option<&V> {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    fn put(&mut self, key: K, value: V) {
        if self.young.len() >= self.most / 2 && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    fn forget(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use Learned::{Claimed, Echoed};

    fn key(number: u32) -> KeyFingerprint {
        let mut key = KeyFingerprint([0; 32]);
        key.0[..4].copy_from_slice(&number.to_be_bytes());
        key
    }

    fn at(host: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, host], port))
    }

    fn seconds(seconds: u64) -> Instant {
        Instant(seconds * 1000)
    }

    #[test]
    fn many_claims_of_one_address_are_one_notification_a_period() {
        let mut budgets = Budgets::default();
        let mut sent = Vec::new();
        // An hour of 10,000 terminals, each by the ladder at its most eager: all of them every ten seconds.
        for second in (0..3600).step_by(10) {
            for terminal in 0..10_000 {
                if budgets.ask(seconds(second), at(1, 5000), &key(terminal), Claimed) == Budget::Granted {
                    sent.push(second);
                    budgets.unanswered(seconds(second), at(1, 5000), &key(terminal));
                }
            }
        }
        assert_eq!(sent, (0..60).map(|minute| minute * 60).collect::<Vec<_>>());
    }

    #[test]
    fn many_claimed_ports_of_one_host_are_a_few() {
        let mut budgets = Budgets::default();
        let hit = |budgets: &mut Budgets, second, ports: std::ops::Range<u16>| {
            ports
                .filter(|port| {
                    budgets.ask(seconds(second), at(1, *port), &key(u32::from(*port)), Claimed)
                        == Budget::Granted
                })
                .count() as u32
        };
        assert_eq!(hit(&mut budgets, 0, 2000..12_000), STRANGE_HOST);
        assert_eq!(hit(&mut budgets, 59, 12_000..22_000), 0);
        assert_eq!(hit(&mut budgets, 60, 2000..12_000), STRANGE_HOST);
        // A terminal of the attacker's own that answers makes it no more than that of a known host.
        budgets.answered(seconds(60), at(1, 2000), key(2000), Claimed);
        assert_eq!(hit(&mut budgets, 61, 12_000..22_000), KNOWN_HOST - STRANGE_HOST + 1);
        for _ in 0..100 {
            assert_eq!(budgets.ask(seconds(62), at(1, 2000), &key(2000), Claimed), Budget::Spent);
        }
    }

    #[test]
    fn nodes_share_what_a_host_gets() {
        for (nodes, each) in [(0, 16), (1, 16), (3, 6), (5, 4), (8, 2), (100, SHARE)] {
            let mut budgets = Budgets::default();
            budgets.set_nodes(nodes);
            let mut hit = |second, from: u16| {
                let ports = (from..from + 1000).filter(|port| {
                    let asked = budgets.ask(seconds(second), at(1, *port), &key(u32::from(*port)), Claimed);
                    asked == Budget::Granted
                });
                ports.count()
            };
            assert_eq!(hit(0, 2000), each as usize, "{nodes} nodes");
            assert_eq!((hit(59, 4000), hit(60, 4000)), (0, each as usize), "{nodes} nodes");
        }
    }

    #[test]
    fn where_terminals_answer_no_budget_is_felt() {
        let mut budgets = Budgets::default();
        for terminal in 0..2000 {
            let address = at(1, 2000 + terminal as u16);
            assert_eq!(budgets.ask(seconds(0), address, &key(terminal), Claimed), Budget::Granted);
            budgets.answered(seconds(0), address, key(terminal), Claimed);
        }
    }

    #[test]
    fn nobody_is_kept_awake() {
        for learned in [Claimed, Echoed] {
            let mut budgets = Budgets::default();
            let mut granted = 0;
            for second in 0..120 {
                for _ in 0..100 {
                    let asked = budgets.ask(seconds(second), at(1, 2000), &key(0), learned);
                    if asked == Budget::Granted {
                        granted += 1;
                        budgets.answered(seconds(second), at(1, 2000), key(0), learned);
                    } else {
                        assert_eq!(asked, Budget::Often);
                    }
                }
            }
            assert_eq!(granted, 2 * OFTEN);
        }
    }

    #[test]
    fn a_proof_is_a_keys_at_an_address_and_ends() {
        let mut budgets = Budgets::default();
        let sent = |budgets: &mut Budgets, second, address, terminal| {
            (0..100)
                .filter(|_| budgets.ask(seconds(second), address, &key(terminal), Claimed) == Budget::Granted)
                .count() as u32
        };
        assert_eq!(budgets.ask(seconds(0), at(1, 5000), &key(1), Claimed), Budget::Granted);
        budgets.answered(seconds(0), at(1, 5000), key(1), Claimed);
        assert_eq!(sent(&mut budgets, 0, at(1, 5000), 2), UNPROVEN, "another's claim there");
        assert_eq!(sent(&mut budgets, 0, at(1, 5000), 1), PROVEN - UNPROVEN, "besides that claim");
        assert_eq!(sent(&mut budgets, 0, at(1, 5001), 1), UNPROVEN, "it moved: prove it again");
        budgets.unanswered(seconds(0), at(1, 5000), &key(1));
        assert_eq!(sent(&mut budgets, 60, at(1, 5000), 1), UNPROVEN, "nobody answers there any more");
        budgets.answered(seconds(60), at(1, 5000), key(1), Claimed);
        let later = 60 + PROOF_LASTS.as_secs();
        assert_eq!(sent(&mut budgets, later - 1, at(1, 5000), 1), PROVEN);
        assert_eq!(sent(&mut budgets, later + 60, at(1, 5000), 1), UNPROVEN, "too long ago");
    }

    #[test]
    fn what_was_not_sent_is_not_counted() {
        let mut budgets = Budgets::default();
        for _ in 0..OFTEN - 1 {
            assert_eq!(budgets.ask(seconds(0), at(1, 5000), &key(1), Claimed), Budget::Granted);
            budgets.unsent(at(1, 5000), Claimed);
        }
        assert_eq!(budgets.ask(seconds(0), at(1, 5000), &key(1), Claimed), Budget::Granted);
        assert_eq!(budgets.ask(seconds(0), at(1, 5000), &key(1), Claimed), Budget::Spent);
    }

    #[test]
    fn terminals_behind_one_router_do_not_share_a_budget() {
        let mut budgets = Budgets::default();
        for terminal in 0..60_000 {
            let address = at(1, 2000 + terminal as u16);
            for _ in 0..PROVEN {
                assert_eq!(budgets.ask(seconds(0), address, &key(terminal), Echoed), Budget::Granted);
            }
            assert_eq!(budgets.ask(seconds(0), address, &key(terminal), Echoed), Budget::Spent);
        }
    }

    #[test]
    fn tables_are_bounded_and_full_ones_grant_nothing_new() {
        let mut budgets = Budgets::of(100);
        let far = |host: u32| SocketAddr::from((host.to_be_bytes(), 5000));
        let granted = |budgets: &mut Budgets, now, hosts: std::ops::Range<u32>| {
            hosts.filter(|host| budgets.ask(now, far(*host), &key(*host), Claimed) == Budget::Granted).count()
        };
        assert_eq!(granted(&mut budgets, seconds(0), 0..1000), 100);
        assert_eq!(granted(&mut budgets, seconds(59), 1000..2000), 0);
        assert_eq!(granted(&mut budgets, seconds(61), 0..1000), 100);
        for host in 0..1000 {
            budgets.answered(seconds(61), far(host), key(host), Claimed);
            assert!(budgets.proofs.young.len() + budgets.proofs.old.len() <= 100);
            assert!(budgets.known.young.len() + budgets.known.old.len() <= 100);
        }
        assert_eq!((budgets.addresses.counts.len(), budgets.hosts.counts.len()), (0, 0));
        for host in 951..1000 {
            assert!(budgets.proven(seconds(61), &far(host), &key(host)), "the latest are kept");
        }
    }
}
