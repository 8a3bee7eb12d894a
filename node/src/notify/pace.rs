//! Where notifications may go, and how many: Reveille must not be usable to send traffic at a third party, and a burst
//! of pushes must not become a flood. What an address gets is `budget`'s; here are the clock, the rates of prefixes and of
//! the node, and the cluster's own addresses.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use governor::clock::DefaultClock;
use governor::state::keyed::HashMapStateStore;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use reveille_protocol::destination::{self, Learned, Network};
use reveille_protocol::id::KeyFingerprint;
use reveille_protocol::time::Instant;
use reveille_protocol::wire::stun::canonical;

use super::budget::{Budget, Budgets};
use super::dial::Outcome;

/// Prefixes whose budgets are remembered before the ones that are full again are forgotten.
const REMEMBERED: usize = 100_000;

/// Challenges a second to one prefix: the terminals of a whole provider's NAT come back within a minute after their anchor was
/// started again.
const CHALLENGES: NonZeroU32 = const { NonZeroU32::new(1000).unwrap() };

type PerPrefix = RateLimiter<IpAddr, HashMapStateStore<IpAddr>, DefaultClock>;

/// May a notification go there?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Yes.
    Yes,
    /// Never.
    Forbidden,
    /// The address has had what it gets for now: by the ladder, later.
    Spent,
    /// Its prefix, or the terminal itself, is notified too often: soon.
    Busy,
}

/// A terminal's place, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Where it is said to listen.
    pub address: SocketAddr,
    /// How that is known.
    pub learned: Learned,
    /// The key that must answer there.
    pub key: KeyFingerprint,
}

/// How many notifications go out.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    /// From this node, a second.
    pub per_second: NonZeroU32,
    /// To claimed addresses in one IPv4 /24 or IPv6 /64, a second.
    pub per_prefix: NonZeroU32,
}

/// Budgets, and destinations that are never dialled.
pub struct Pace {
    node: RateLimiter<NotKeyed, InMemoryState, DefaultClock>,
    prefixes: PerPrefix,
    challenges: PerPrefix,
    budgets: Mutex<Budgets>,
    origin: tokio::time::Instant,
    forbid: Vec<Network>,
    own: RwLock<BTreeSet<IpAddr>>,
    /// Loopback is allowed.
    loopback: bool,
    /// Loopback has no budget.
    free: bool,
}

impl Pace {
    /// `forbid` are networks that the operator forbids besides those where no terminal is. `loopback` allows loopback,
    /// without a budget: for a cluster that is on loopback itself.
    pub fn new(rates: Rates, forbid: Vec<Network>, loopback: bool) -> Pace {
        Pace {
            node: RateLimiter::direct(Quota::per_second(rates.per_second)),
            prefixes: RateLimiter::hashmap(Quota::per_second(rates.per_prefix)),
            challenges: RateLimiter::hashmap(Quota::per_second(CHALLENGES)),
            budgets: Mutex::default(),
            origin: tokio::time::Instant::now(),
            forbid,
            own: RwLock::default(),
            loopback,
            free: loopback,
        }
    }

    /// Loopback with the budgets of any other network, so that a test can count what arrives there.
    #[cfg(test)]
    pub(super) fn with_budgets_on_loopback(rates: Rates) -> Pace {
        Pace { free: false, ..Pace::new(rates, Vec::new(), true) }
    }

    /// The cluster's addresses from now on: nothing is sent there.
    pub fn set_own(&self, own: BTreeSet<IpAddr>) {
        *self.own.write().unwrap_or_else(PoisonError::into_inner) = own;
    }

    /// So many nodes share what one host gets from now on.
    pub fn set_nodes(&self, nodes: usize) {
        self.budgets().set_nodes(nodes);
    }

    /// May a notification go there? If so, it is counted, and waits for this node's turn; [`Pace::over`] must be told of
    /// its end. What may not go takes no turn: a burst at one prefix must not hold up the others.
    pub async fn turn(&self, place: &Place) -> Verdict {
        let verdict = self.allows(place);
        if verdict == Verdict::Yes {
            self.own_turn().await;
        }
        verdict
    }

    /// A notification that had its turn is over.
    pub fn over(&self, place: &Place, outcome: Outcome) {
        if self.is_free(place.address) {
            return;
        }
        let (now, address) = (self.now(), canonical(place.address));
        let mut budgets = self.budgets();
        match outcome {
            Outcome::Answered => budgets.answered(now, address, place.key, place.learned),
            Outcome::Silence | Outcome::WrongKey => budgets.unanswered(now, address, &place.key),
            // The others come before anything is sent.
            Outcome::Socket
            | Outcome::NoWay
            | Outcome::NoBinding
            | Outcome::Forbidden
            | Outcome::Budget
            | Outcome::Busy => budgets.unsent(address, place.learned),
        }
    }

    /// May an address be asked to prove that it is a terminal's? The question is no longer than what caused it.
    pub fn may_challenge(&self, address: SocketAddr) -> bool {
        if self.is_free(address) {
            return true;
        }
        if self.challenges.len() > REMEMBERED {
            self.challenges.retain_recent();
        }
        // The answer would show that the port is the terminal's.
        self.possible(address, Learned::Echoed) && self.challenges.check_key(&prefix(address)).is_ok()
    }

    async fn own_turn(&self) {
        while let Err(not_yet) = self.node.check() {
            let wait = not_yet.wait_time_from(governor::clock::Clock::now(&DefaultClock::default()));
            tokio::time::sleep(wait).await;
        }
    }

    fn now(&self) -> Instant {
        Instant(self.origin.elapsed().as_millis() as u64)
    }

    fn budgets(&self) -> MutexGuard<'_, Budgets> {
        self.budgets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_free(&self, address: SocketAddr) -> bool {
        self.free && address.ip().to_canonical().is_loopback()
    }

    /// Can a terminal be there?
    fn possible(&self, address: SocketAddr, learned: Learned) -> bool {
        let ip = address.ip().to_canonical();
        if self.loopback && ip.is_loopback() {
            return true;
        }
        destination::check(address, learned, &self.forbid).is_ok()
            && !self.own.read().unwrap_or_else(PoisonError::into_inner).contains(&ip)
    }

    /// May a notification go there now? If so, it is counted.
    fn allows(&self, place: &Place) -> Verdict {
        if !self.possible(place.address, place.learned) {
            return Verdict::Forbidden;
        }
        if self.is_free(place.address) {
            return Verdict::Yes;
        }
        let address = canonical(place.address);
        match self.budgets().ask(self.now(), address, &place.key, place.learned) {
            Budget::Granted => {}
            Budget::Spent => return Verdict::Spent,
            Budget::Often => return Verdict::Busy,
        }
        // A terminal that was heard at its address may share its prefix with any number of others.
        if place.learned == Learned::Echoed {
            return Verdict::Yes;
        }
        if self.prefixes.len() > REMEMBERED {
            self.prefixes.retain_recent();
        }
        if self.prefixes.check_key(&prefix(address)).is_err() {
            self.budgets().unsent(address, place.learned);
            return Verdict::Busy;
        }
        Verdict::Yes
    }
}

/// What one household or company has: a /24 or a /64.
fn prefix(address: SocketAddr) -> IpAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            IpAddr::from([a, b, c, 0])
        }
        IpAddr::V6(ip) => {
            let mut octets = ip.octets();
            octets[8..].fill(0);
            IpAddr::from(octets)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use futures::FutureExt;

    use super::*;

    fn rates(per_second: u32, per_prefix: u32) -> Rates {
        Rates {
            per_second: NonZeroU32::new(per_second).unwrap(),
            per_prefix: NonZeroU32::new(per_prefix).unwrap(),
        }
    }

    fn claimed(address: &str) -> Place {
        let address = address.parse().unwrap();
        Place { address, learned: Learned::Claimed, key: KeyFingerprint([1; 32]) }
    }

    #[test]
    fn forbidden_destinations_are_never_dialled() {
        let pace = Pace::new(rates(1000, 2), vec!["10.1.0.0/16".parse().unwrap()], false);
        pace.set_own(BTreeSet::from(["8.8.4.4".parse().unwrap(), "2a00::7".parse().unwrap()]));
        // Of what no terminal has, one form: the others are `destination`'s.
        for address in ["127.0.0.1:5000", "[::ffff:127.0.0.1]:5000", "10.1.2.3:5000", "8.8.8.8:1900"] {
            assert_eq!(pace.allows(&claimed(address)), Verdict::Forbidden, "{address}");
        }
        for address in ["8.8.4.4:5000", "[::ffff:8.8.4.4]:5000", "[2a00::7]:5000"] {
            assert_eq!(pace.allows(&claimed(address)), Verdict::Forbidden, "{address} is a node's");
            let echoed = Place { learned: Learned::Echoed, ..claimed(address) };
            assert_eq!(pace.allows(&echoed), Verdict::Forbidden, "{address} is a node's");
            assert!(!pace.may_challenge(echoed.address));
        }
        pace.set_own(BTreeSet::from(["2a00::8".parse().unwrap()]));
        assert_eq!(pace.allows(&claimed("8.8.4.4:5000")), Verdict::Yes, "a node's no more");
        assert_eq!(pace.allows(&claimed("[2a00::8]:5000")), Verdict::Forbidden, "of a node added later");
        let heard = Place { learned: Learned::Echoed, ..claimed("8.8.8.8:1900") };
        assert_eq!(pace.allows(&heard), Verdict::Yes, "a router gave it that port");
        assert!(pace.may_challenge(heard.address));
    }

    #[test]
    fn a_prefix_has_one_rate() {
        let pace = Pace::new(rates(1000, 2), Vec::new(), true);
        let verdicts = ["10.0.1.1:5000", "10.0.1.2:5000", "10.0.1.3:5000", "10.0.2.1:5000"]
            .map(|address| pace.allows(&claimed(address)));
        assert_eq!(verdicts, [Verdict::Yes, Verdict::Yes, Verdict::Busy, Verdict::Yes]);
        for _ in 0..10 {
            assert_eq!(pace.allows(&claimed("127.0.0.1:5000")), Verdict::Yes, "dev has no budget");
        }
        let heard = Place { learned: Learned::Echoed, ..claimed("10.0.1.4:5000") };
        assert_eq!(pace.allows(&heard), Verdict::Yes, "one that was heard shares it with nobody");
    }

    #[test]
    fn challenges_to_a_prefix_are_bounded() {
        let pace = Pace::new(rates(1, 1), Vec::new(), false);
        let began = std::time::Instant::now();
        let asked = (0..20_000u32).filter(|number| {
            let [.., a, b] = number.to_be_bytes();
            pace.may_challenge(SocketAddr::from(([10, 0, 1, b], 2000 + u16::from(a))))
        });
        let asked = asked.count() as f64;
        let most = f64::from(CHALLENGES.get()) * (1.0 + began.elapsed().as_secs_f64());
        assert!((f64::from(CHALLENGES.get())..=most.ceil()).contains(&asked), "{asked} of at most {most}");
        assert!(pace.may_challenge("10.0.2.1:2000".parse().unwrap()), "another prefix has its own");
    }

    #[test]
    fn what_its_prefix_holds_up_has_not_had_its_share() {
        let pace = Pace::new(rates(1000, 1), Vec::new(), false);
        assert_eq!(pace.allows(&claimed("10.0.1.1:5000")), Verdict::Yes);
        assert_eq!(pace.allows(&claimed("10.0.1.2:5000")), Verdict::Busy);
        assert_eq!(pace.allows(&claimed("10.0.1.2:5000")), Verdict::Busy);
        assert_eq!(pace.allows(&claimed("10.0.1.1:5000")), Verdict::Spent, "that one has");
        pace.over(&claimed("10.0.1.1:5000"), Outcome::Silence);
        assert_eq!(pace.allows(&claimed("10.0.1.1:5000")), Verdict::Spent);
        pace.over(&claimed("10.0.1.1:5000"), Outcome::Socket);
        assert_eq!(pace.allows(&claimed("10.0.1.1:5000")), Verdict::Busy, "nothing was sent");
    }

    #[tokio::test]
    async fn a_burst_at_one_prefix_takes_no_turns() {
        // Turns come back faster than the prefix' share: nobody waits, unless for turns that others took in vain.
        let pace = Pace::new(rates(2, 1), Vec::new(), false);
        let at_once =
            |address: &str| pace.turn(&claimed(address)).now_or_never().expect("it does not wait for a turn");
        let hosts = (0..200).map(|host| at_once(&format!("10.0.1.{host}:5000")));
        assert!(hosts.filter(|verdict| *verdict == Verdict::Yes).count() < 200);
        assert_eq!(at_once("127.0.0.1:5000"), Verdict::Forbidden);
        assert_eq!(at_once("10.0.2.1:5000"), Verdict::Yes);
    }
}
