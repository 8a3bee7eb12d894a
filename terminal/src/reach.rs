//! What a terminal knows of how it is reached from the network it is in, and what it says of that when it connects. How it
//! is found out is decided in `reveille_protocol::session::terminal`.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant, SystemTime};

use reveille_protocol::limits;
use reveille_protocol::wire::session::{Cause, Class, Offer};
use tokio::sync::watch;

use crate::listen::Told;

/// Anchors that do not answer one after the other before it is taken that none does from here.
const LOSSES: u32 = 2;
/// A terminal of which no session found out how it is reached comes again after this, then after twice as long, and so on, its
/// check-in period at most: it stands in the service list as if any node could dial it, and behind a NAT none can.
const IN_DOUBT: Duration = Duration::from_secs(10);
/// So does one that was found not to be reached at all: a node or a network that was too busy for two dials looks the same.
const UNREACHED: Duration = Duration::from_secs(30);

/// How notifications reach a terminal, for an application to show.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reachability {
    /// In short.
    pub class: Class,
    /// The address that nodes see its sessions come from.
    pub seen: Option<IpAddr>,
    /// The anchor, if it keeps a binding with one.
    pub anchor: Option<SocketAddr>,
    /// Where the anchor sees it; `None`: it has not answered yet.
    pub mapped: Option<SocketAddr>,
    /// Time between two keepalives to the anchor.
    pub period: Option<Duration>,
    /// That time was measured in this network: it is four fifths of a silence that the network was seen to bear. `false`: it
    /// is what the cluster asks for, until it is measured.
    pub measured: bool,
    /// When the last notification was answered, or the last dial that only tried the way; `None`: none in this process.
    pub notified: Option<SystemTime>,
    /// Why the class is [`Class::None`], if it is.
    pub why: Option<Unreachable>,
}

/// Why no notification reaches a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreachable {
    /// Neither a node's dial came in nor an anchor's answer: UDP does not pass, or not to the nodes' port.
    NothingPasses,
    /// An anchor answers, but its dial does not come in: something lets STUN pass and QUIC not, or the path changes ports
    /// with each packet.
    AnswersOnly,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Reach {
    known: watch::Sender<Reachability>,
    losses: u32,
    /// Sessions in a row after which no way was known.
    doubts: u32,
    /// The anchor of the last binding has answered.
    answered: bool,
    /// The address that nodes saw it come from when it last kept a binding, and since when it keeps none.
    bound: Option<(IpAddr, Option<Instant>)>,
}

impl Reach {
    /// Nothing is known yet; what is comes by the receivers of `known`.
    pub(crate) fn new(known: watch::Sender<Reachability>) -> Reach {
        Reach { known, losses: 0, doubts: 0, answered: false, bound: None }
    }

    pub(crate) fn class(&self) -> Class {
        self.known.borrow().class
    }

    /// The address that nodes saw when the class was found out.
    pub(crate) fn seen(&self) -> Option<IpAddr> {
        self.known.borrow().seen
    }

    /// Where nodes saw it when it last kept a binding, while a NAT there may not have forgotten that.
    pub(crate) fn bound(&self) -> Option<IpAddr> {
        let lasts = |since: Instant| since.elapsed() < limits::BINDING_LASTS;
        self.bound.filter(|(_, since)| since.is_none_or(lasts)).map(|(seen, _)| seen)
    }

    /// What the next Hello says.
    pub(crate) fn offer(&self, cause: Cause) -> Offer {
        // What did not work a while ago may work now.
        let again = self.class() == Class::None && cause == Cause::CheckIn;
        Offer { class: if again { Class::Untried } else { self.class() }, cause }
    }

    /// A session is over in which the node was asked, and no way is known by which the terminal is reached: how soon it should
    /// come again.
    pub(crate) fn in_doubt(&mut self) -> Option<Duration> {
        let first = match self.class() {
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
    pub(crate) fn found(&mut self, class: Class, seen: IpAddr) {
        let why = if self.answered { Unreachable::AnswersOnly } else { Unreachable::NothingPasses };
        let why = (class == Class::None).then_some(why);
        self.known.send_modify(|known| (known.class, known.seen, known.why) = (class, Some(seen), why));
    }

    /// It keeps a binding with this anchor, whose node sees it come from there.
    pub(crate) fn bind(&mut self, anchor: SocketAddr, seen: IpAddr) {
        self.bound = Some((seen, None));
        self.answered = false;
        self.known.send_modify(|known| (known.anchor, known.mapped) = (Some(anchor), None));
    }

    /// It keeps none.
    pub(crate) fn unbind(&mut self) {
        if let Some((_, since @ None)) = &mut self.bound {
            *since = Some(Instant::now());
        }
        self.known.send_modify(|known| {
            (known.anchor, known.mapped, known.period, known.measured) = (None, None, None, false);
        });
    }

    /// What its binding came to.
    pub(crate) fn told(&mut self, told: Told) {
        match told {
            Told::Mapped(address) => {
                self.losses = 0;
                self.answered = true;
                self.known.send_modify(|known| known.mapped = Some(address));
            }
            Told::Period { period, measured } => {
                self.known.send_modify(|known| (known.period, known.measured) = (Some(period), measured));
            }
            Told::Lost => {
                self.losses += 1;
                match self.losses >= LOSSES {
                    true => self.forget(),
                    // One node may be gone.
                    false => self.known.send_modify(|known| known.mapped = None),
                }
            }
            Told::Waiting | Told::CheckIn => {}
        }
    }

    /// What was known does not hold any more.
    pub(crate) fn forget(&mut self) {
        (self.losses, self.doubts, self.answered) = (0, 0, false);
        self.known.send_replace(Reachability::default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(class: Class) -> Reach {
        Reach::new(watch::channel(Reachability { class, ..Reachability::default() }).0)
    }

    #[test]
    fn anchors_that_do_not_answer_put_the_class_in_doubt() {
        let mut reach = reach(Class::Pinned);
        reach.told(Told::Lost);
        assert_eq!(reach.offer(Cause::Moved).class, Class::Pinned, "one node may be gone");
        reach.told(Told::Mapped(SocketAddr::from(([192, 0, 2, 1], 5000))));
        reach.told(Told::Lost);
        assert_eq!(reach.offer(Cause::Moved).class, Class::Pinned);
        reach.told(Told::Lost);
        assert_eq!(reach.offer(Cause::Moved).class, Class::Untried);
    }

    #[test]
    fn it_says_why_nothing_reaches_it() {
        let (anchor, seen) = (SocketAddr::from(([192, 0, 2, 1], 8443)), IpAddr::from([192, 0, 2, 9]));
        let mut reach = reach(Class::Untried);
        let why = |reach: &Reach| reach.known.borrow().why;
        reach.bind(anchor, seen);
        reach.unbind();
        reach.found(Class::None, seen);
        assert_eq!(why(&reach), Some(Unreachable::NothingPasses));
        reach.bind(anchor, seen);
        reach.told(Told::Mapped(SocketAddr::from(([192, 0, 2, 9], 5000))));
        // It goes on to try whether it is dialled directly, without a binding.
        reach.unbind();
        reach.found(Class::None, seen);
        assert_eq!(why(&reach), Some(Unreachable::AnswersOnly));
        reach.bind(anchor, seen);
        reach.found(Class::Pinned, seen);
        assert_eq!(why(&reach), None);
    }

    #[test]
    fn one_that_does_not_know_how_it_is_reached_comes_again_soon() {
        let mut reach = reach(Class::Untried);
        for seconds in [10, 20, 40] {
            assert_eq!(reach.in_doubt(), Some(Duration::from_secs(seconds)));
        }
        reach.found(Class::Direct, IpAddr::from([192, 0, 2, 9]));
        assert_eq!(reach.in_doubt(), None);
        reach.found(Class::None, IpAddr::from([192, 0, 2, 9]));
        assert_eq!(reach.in_doubt(), Some(Duration::from_secs(30)));
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
