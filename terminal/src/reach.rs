//! How a terminal is reached, for its application to see: what the rules in `reveille_protocol::session::reach` know, what its
//! binding came to, and why nothing reaches it. Decides nothing.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use reveille_protocol::session::reach as rules;
use reveille_protocol::wire::session::{Cause, Class, Offer};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::listen::Told;
use crate::receive::now;

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
    rules: rules::Reach,
    /// The anchor of the last binding has answered.
    answered: bool,
    origin: Instant,
}

impl Reach {
    /// Nothing is known yet; what is comes by the receivers of `known`.
    pub(crate) fn new(known: watch::Sender<Reachability>) -> Reach {
        Reach { known, rules: rules::Reach::default(), answered: false, origin: Instant::now() }
    }

    pub(crate) fn class(&self) -> Class {
        self.rules.class()
    }

    pub(crate) fn seen(&self) -> Option<IpAddr> {
        self.rules.seen()
    }

    pub(crate) fn bound(&self) -> Option<IpAddr> {
        self.rules.bound(now(self.origin))
    }

    pub(crate) fn offer(&self, cause: Cause) -> Offer {
        self.rules.offer(cause)
    }

    pub(crate) fn in_doubt(&mut self) -> Option<Duration> {
        self.rules.in_doubt()
    }

    /// It was tried.
    pub(crate) fn found(&mut self, class: Class, seen: IpAddr) {
        self.rules.found(class, seen);
        let why = if self.answered { Unreachable::AnswersOnly } else { Unreachable::NothingPasses };
        let why = (class == Class::None).then_some(why);
        self.known.send_modify(|known| (known.class, known.seen, known.why) = (class, Some(seen), why));
    }

    /// It keeps a binding with this anchor, whose node sees it come from there.
    pub(crate) fn bind(&mut self, anchor: SocketAddr, seen: IpAddr) {
        self.rules.bind(seen);
        self.answered = false;
        self.known.send_modify(|known| (known.anchor, known.mapped) = (Some(anchor), None));
    }

    /// It keeps none.
    pub(crate) fn unbind(&mut self) {
        self.rules.unbind(now(self.origin));
        self.known.send_modify(|known| {
            (known.anchor, known.mapped, known.period, known.measured) = (None, None, None, false);
        });
    }

    /// What its binding came to.
    pub(crate) fn told(&mut self, told: Told) {
        match told {
            Told::Mapped(address) => {
                self.rules.mapped();
                self.answered = true;
                self.known.send_modify(|known| known.mapped = Some(address));
            }
            Told::Period { period, measured } => {
                self.known.send_modify(|known| (known.period, known.measured) = (Some(period), measured));
            }
            Told::Lost => match self.rules.lost() {
                true => self.show_nothing(),
                // One node may be gone.
                false => self.known.send_modify(|known| known.mapped = None),
            },
            Told::Waiting | Told::CheckIn => {}
        }
    }

    /// What was known does not hold any more.
    pub(crate) fn forget(&mut self) {
        self.rules.forget();
        self.show_nothing();
    }

    fn show_nothing(&mut self) {
        self.answered = false;
        self.known.send_replace(Reachability::default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_why_nothing_reaches_it() {
        let (anchor, seen) = (SocketAddr::from(([192, 0, 2, 1], 8443)), IpAddr::from([192, 0, 2, 9]));
        let mut reach = Reach::new(watch::channel(Reachability::default()).0);
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
        for class in [Class::Pinned, Class::Untried] {
            assert_eq!((reach.class(), reach.known.borrow().class), (class, class));
            reach.told(Told::Lost);
            reach.told(Told::Lost);
        }
    }
}
