//! Where notifications may go, and how many: Reveille must not be usable to send traffic at a third party, and a burst
//! of pushes must not become a flood.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;

use governor::clock::DefaultClock;
use governor::state::keyed::HashMapStateStore;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

/// Addresses whose budgets are remembered before the ones that are full again are forgotten.
const REMEMBERED: usize = 100_000;

type PerPrefix = RateLimiter<IpAddr, HashMapStateStore<IpAddr>, DefaultClock>;

/// May a notification go there?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Yes.
    Yes,
    /// Never.
    Forbidden,
    /// Not now.
    TooMany,
}

/// Budgets, and destinations that are never dialled.
pub struct Pace {
    node: RateLimiter<NotKeyed, InMemoryState, DefaultClock>,
    prefixes: PerPrefix,
    own: Vec<IpAddr>,
    loopback: bool,
}

impl Pace {
    /// `per_second` notifications from this node, `per_prefix` a second to one IPv4 /24 or IPv6 /64. `own` addresses
    /// are the cluster's. `loopback` allows loopback, without a budget: for `reveille dev` and tests.
    pub fn new(per_second: NonZeroU32, per_prefix: NonZeroU32, own: Vec<IpAddr>, loopback: bool) -> Pace {
        Pace {
            node: RateLimiter::direct(Quota::per_second(per_second)),
            prefixes: RateLimiter::hashmap(Quota::per_second(per_prefix)),
            own,
            loopback,
        }
    }

    /// May a notification go there? If so, waits for this node's turn. What may not go takes no turn: a burst at one
    /// prefix must not hold up the others.
    pub async fn turn(&self, address: SocketAddr) -> Verdict {
        let verdict = self.allows(address);
        if verdict == Verdict::Yes {
            while let Err(not_yet) = self.node.check() {
                let wait = not_yet.wait_time_from(governor::clock::Clock::now(&DefaultClock::default()));
                tokio::time::sleep(wait).await;
            }
        }
        verdict
    }

    /// May a notification go there now?
    fn allows(&self, address: SocketAddr) -> Verdict {
        let ip = address.ip().to_canonical();
        if self.loopback && ip.is_loopback() {
            return Verdict::Yes;
        }
        if forbidden(ip) || address.port() < 1024 || self.own.contains(&ip) {
            return Verdict::Forbidden;
        }
        if self.prefixes.len() > REMEMBERED {
            self.prefixes.retain_recent();
        }
        match self.prefixes.check_key(&prefix(ip)) {
            Ok(()) => Verdict::Yes,
            Err(_) => Verdict::TooMany,
        }
    }
}

/// Addresses that no terminal has: this host, this link, everyone, no one.
fn forbidden(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let first = ip.octets()[0];
            ip.is_loopback() || ip.is_link_local() || ip.is_multicast() || ip.is_unspecified() || ip.is_broadcast()
                // "This network" (RFC 1122 section 3.2.1.3) and reserved (RFC 1112 section 4).
                || first == 0 || first >= 240
        }
        IpAddr::V6(ip) => {
            ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() || ip.is_unicast_link_local()
        }
    }
}

/// What one household or company has: a /24 or a /64.
fn prefix(ip: IpAddr) -> IpAddr {
    match ip {
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
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn pace(loopback: bool) -> Pace {
        let (many, few) = (NonZeroU32::new(1000).unwrap(), NonZeroU32::new(2).unwrap());
        Pace::new(many, few, vec!["192.0.2.9".parse().unwrap()], loopback)
    }

    #[test]
    fn forbidden_destinations_are_never_dialled() {
        let pace = pace(false);
        for address in [
            "127.0.0.1:5000",
            "169.254.1.1:5000",
            "224.0.0.1:5000",
            "0.0.0.0:5000",
            "0.1.2.3:5000",
            "255.255.255.255:5000",
            "240.0.0.1:5000",
            "[::1]:5000",
            "[::]:5000",
            "[ff02::1]:5000",
            "[fe80::1]:5000",
            "[::ffff:127.0.0.1]:5000",
            "[::ffff:169.254.169.254]:5000",
            "192.0.2.9:5000",
            "198.51.100.1:53",
            "198.51.100.1:1023",
        ] {
            assert_eq!(pace.allows(address.parse().unwrap()), Verdict::Forbidden, "{address}");
        }
    }

    #[test]
    fn a_prefix_has_one_budget() {
        let pace = pace(true);
        let verdicts = ["198.51.100.1:5000", "198.51.100.2:5000", "198.51.100.3:5000", "198.51.101.1:5000"]
            .map(|address| pace.allows(address.parse().unwrap()));
        assert_eq!(verdicts, [Verdict::Yes, Verdict::Yes, Verdict::TooMany, Verdict::Yes]);
        for _ in 0..10 {
            assert_eq!(pace.allows("127.0.0.1:5000".parse().unwrap()), Verdict::Yes, "dev has no budget");
        }
    }

    #[tokio::test]
    async fn a_burst_at_one_prefix_takes_no_turns() {
        // A turn each 100 ms, after the first ten.
        let (ten, two) = (NonZeroU32::new(10).unwrap(), NonZeroU32::new(2).unwrap());
        let pace = Pace::new(ten, two, Vec::new(), false);
        let began = std::time::Instant::now();
        let mut yes = 0;
        for host in 0..200 {
            yes += u32::from(pace.turn(SocketAddr::from(([198, 51, 100, host], 5000))).await == Verdict::Yes);
        }
        assert_eq!(pace.turn("127.0.0.1:5000".parse().unwrap()).await, Verdict::Forbidden);
        assert_eq!(pace.turn("203.0.113.1:5000".parse().unwrap()).await, Verdict::Yes);
        assert_eq!(yes, 2);
        assert!(began.elapsed() < std::time::Duration::from_millis(400), "{:?}", began.elapsed());
        // Those that may go have turns.
        for host in 0..10 {
            assert_eq!(pace.turn(SocketAddr::from(([203, 0, host, 1], 5000))).await, Verdict::Yes);
        }
        assert!(began.elapsed() >= std::time::Duration::from_millis(200), "{:?}", began.elapsed());
    }
}
