//! What a terminal knows of how it is reached from the network it is in, and what it says of that when it connects. How it
//! is found out is not here: see `terminal`.

use std::net::IpAddr;
use std::time::Duration;

use crate::limits;
use crate::time::Instant;
use crate::wire::session::{Cause, Class, Offer};

/// Anchors that do not answer one after the other before it is taken that none does from here.
const LOSSES: u32 = 2;
/// A terminal of which no session found out how it is reached comes again after this, then after twice as long, and so on, its
/// check-in period at most: it stands in the service list as if any node could dial it, and behind a NAT none can.
const IN_DOUBT: Duration = Duration::from_secs(10);
/// So does one that was found not to be reached at all: a node or a network that was too busy for two dials, or an anchor
/// without room, looks the same.
const UNREACHED: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reach {
    class: Class,
    seen: Option<IpAddr>,
    losses: u32,
    /// Sessions in a row after which no way was known.
    doubts: u32,
    /// The address that nodes saw it come from when it last kept a binding, and since when it keeps none.
    bound: Option<(IpAddr, Option<Instant>)>,
}

impl Reach {
    /// In short.
    pub fn class(&self) -> Class {
        self.class
    }

    /// The address that nodes saw when the class was found out.
    pub fn seen(&self) -> Option<IpAddr> {
        self.seen
    }

    /// Where nodes saw it when it last kept a binding, while a NAT there may not have forgotten that.
    pub fn bound(&self, now: Instant) -> Option<IpAddr> {
        let lasts = |since: Instant| now.since(since) < limits::BINDING_LASTS;
        self.bound.filter(|(_, since)| since.is_none_or(lasts)).map(|(seen, _)| seen)
    }

    /// What the next Hello says.
    pub fn offer(&self, cause: Cause) -> Offer {
        // What did not work a while ago may work now.
        let again = self.class == Class::None && cause == Cause::CheckIn;
        Offer { class: if again { Class::Untried } else { self.class }, cause }
    }

    /// A session is over in which the node was asked: how soon it should come again if no way is known by which the terminal is
    /// reached.
    pub fn in_doubt(&mut self) -> Option<Duration> {
        let first = match self.class {
            Class::Untried => IN_DOUBT,
            Class::None => UNREACHED,
            Class::Direct | Class::Pinned => {
                self.doubts = 0;
                return None;
            }
        };
        let doublings = self.doubts.min(16);
        self.doubts = self.doubts.saturating_add(1);
        Some(first * 2u32.pow(doublings))
    }

    /// It was tried.
    pub fn found(&mut self, class: Class, seen: IpAddr) {
        (self.class, self.seen) = (class, Some(seen));
    }

    /// It keeps a binding with an anchor, whose node sees it come from there.
    pub fn bind(&mut self, seen: IpAddr) {
        self.bound = Some((seen, None));
    }

    /// It keeps none.
    pub fn unbind(&mut self, now: Instant) {
        if let Some((_, since @ None)) = &mut self.bound {
            *since = Some(now);
        }
    }

    /// Its anchor answers.
    pub fn mapped(&mut self) {
        self.losses = 0;
    }

    /// Its anchor does not; `true`: no more than of a new network is known now.
    pub fn lost(&mut self) -> bool {
        self.losses += 1;
        let doubted = self.losses >= LOSSES;
        if doubted {
            // Where nothing passes each session's binding is lost: that is no reason to come again sooner.
            let doubts = self.doubts;
            self.forget();
            self.doubts = doubts;
        }
        doubted
    }

    /// What was known does not hold any more.
    pub fn forget(&mut self) {
        *self = Reach { bound: self.bound, ..Reach::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEN: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 9));

    fn reach(class: Class) -> Reach {
        Reach { class, ..Reach::default() }
    }

    #[test]
    fn anchors_that_do_not_answer_put_the_class_in_doubt() {
        let mut reach = reach(Class::Pinned);
        assert!(!reach.lost());
        assert_eq!(reach.offer(Cause::Moved).class, Class::Pinned, "one node may be gone");
        reach.mapped();
        assert!(!reach.lost());
        assert_eq!(reach.offer(Cause::Moved).class, Class::Pinned);
        assert!(reach.lost());
        assert_eq!(reach.offer(Cause::Moved).class, Class::Untried);
    }

    #[test]
    fn one_that_does_not_know_how_it_is_reached_comes_again_soon() {
        let mut reach = reach(Class::Untried);
        for seconds in [10, 20, 40] {
            assert_eq!(reach.in_doubt(), Some(Duration::from_secs(seconds)));
        }
        reach.found(Class::Direct, SEEN);
        assert_eq!(reach.in_doubt(), None);
        reach.found(Class::None, SEEN);
        assert_eq!(reach.in_doubt(), Some(Duration::from_secs(30)));
        assert!(!reach.lost() && reach.lost(), "the bindings of two sessions, which tried that way");
        reach.found(Class::None, SEEN);
        assert_eq!(reach.in_doubt(), Some(Duration::from_secs(60)));
        reach.forget();
        assert_eq!(reach.in_doubt(), Some(Duration::from_secs(10)));
    }

    #[test]
    fn one_that_is_not_reached_asks_again_when_it_checks_in() {
        let reach = reach(Class::None);
        assert_eq!(reach.offer(Cause::Start).class, Class::None);
        assert_eq!(reach.offer(Cause::CheckIn).class, Class::Untried);
    }
}
