//! Whether the device slept, or came into another network, since it was last looked at: told by two clocks and by the
//! address that the device has on the way to its node. Costs no packet. What follows from it is not decided here.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reveille_protocol::time::Instant;

use crate::aligned::look_at;
use crate::ground::own_address;

/// A device that stood still for less has lost nothing: routers keep a binding for 30 s at least, and a phone dozes for
/// seconds all day. A clock that is set by less is not taken for a sleep either.
const SLEPT: Duration = Duration::from_secs(30);

/// Looks are no closer together, whatever wakes the terminal: the answer to a keepalive follows at once.
const LOOKS_APART: Duration = Duration::from_secs(5);

/// A clock that goes on while the device sleeps, from whatever beginning.
#[derive(Clone)]
pub(crate) struct Clock(pub(crate) Arc<dyn Fn() -> Duration + Send + Sync>);

impl Default for Clock {
    /// The time of day. One that is set back says nothing; one that is set forward is taken for a sleep, once.
    fn default() -> Clock {
        Clock(Arc::new(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()))
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a clock at {:?}", (self.0)())
    }
}

/// How a terminal watches its device.
#[derive(Debug, Clone)]
pub(crate) struct Watching {
    /// At most so long between two looks while the device is awake; `None`: never looked.
    pub(crate) tick: Option<Duration>,
    pub(crate) clock: Clock,
}

/// What is seen at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    /// By a clock that stands while the device sleeps.
    awake: Instant,
    /// By one that does not.
    sleepless: Duration,
    /// The device's own address on the way to its node; `None`: there is no way.
    own: Option<IpAddr>,
}

/// What changed between two looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// The device slept.
    Slept,
    /// It has another address, or one again after it had none.
    Elsewhere,
}

/// Compares looks.
#[derive(Debug, Default)]
struct Watch {
    before: Option<Look>,
}

impl Watch {
    /// A connection is being made: what was before it does not count.
    fn begin(&mut self, look: Look) {
        self.before = Some(look);
    }

    /// What changed since the last look; nothing before there was a first one.
    fn look(&mut self, now: Look) -> Option<Change> {
        let before = self.before.replace(now)?;
        let asleep = now.sleepless.saturating_sub(before.sleepless);
        if now.own != before.own && now.own.is_some() {
            Some(Change::Elsewhere)
        } else if asleep > now.awake.since(before.awake) + SLEPT {
            Some(Change::Slept)
        } else {
            None
        }
    }
}

/// The device, looked at when the terminal is awake.
#[derive(Debug)]
pub(crate) struct Device {
    watching: Watching,
    watch: Watch,
    /// The last node that was connected to, and the last look.
    last: Option<(SocketAddr, Instant)>,
}

impl Device {
    /// Nothing is looked at before there was a connection.
    pub(crate) fn new(watching: Watching) -> Device {
        Device { watching, watch: Watch::default(), last: None }
    }

    /// A connection was made with this node.
    pub(crate) fn connected(&mut self, now: Instant, node: SocketAddr) {
        self.last = Some((node, now));
        let look = self.see(now, node);
        self.watch.begin(look);
    }

    /// When to look if nothing else wakes the terminal.
    pub(crate) fn next_look(&self, keepalive: Option<Instant>) -> Option<Instant> {
        let (tick, (_, looked)) = (self.watching.tick?, self.last?);
        Some(look_at(looked, tick, keepalive))
    }

    /// What changed since the last look; nothing so soon after it.
    pub(crate) fn look(&mut self, now: Instant) -> Option<Change> {
        let (tick, (node, looked)) = (self.watching.tick?, self.last?);
        if now < looked + tick.min(LOOKS_APART) {
            return None;
        }
        self.last = Some((node, now));
        let look = self.see(now, node);
        self.watch.look(look)
    }

    fn see(&self, now: Instant, node: SocketAddr) -> Look {
        Look { awake: now, sleepless: (self.watching.clock.0)(), own: own_address(node) }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const HOME: Option<IpAddr> = Some(IpAddr::V4(Ipv4Addr::new(192, 168, 1, 2)));
    const WORK: Option<IpAddr> = Some(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9)));

    /// Seconds awake and of the time of day, and where.
    fn looks(looks: &[(u64, u64, Option<IpAddr>)]) -> Vec<Option<Change>> {
        let mut watch = Watch::default();
        let look = |&(awake, sleepless, own)| {
            watch.look(Look { awake: Instant(awake * 1000), sleepless: Duration::from_secs(sleepless), own })
        };
        looks.iter().map(look).collect()
    }

    #[test]
    fn a_sleep_is_told_once_from_a_doze_and_from_time_that_passes() {
        let told = looks(&[
            (0, 1000, HOME),
            (30, 1030, HOME),
            // A doze, and a clock that is a little off.
            (60, 1085, HOME),
            // Two hours.
            (61, 8285, HOME),
            (91, 8315, HOME),
            // Set back.
            (121, 100, HOME),
            (151, 130, HOME),
        ]);
        assert_eq!(told, [None, None, None, Some(Change::Slept), None, None, None]);
    }

    #[test]
    fn another_network_is_told_once_there_is_a_way_to_the_node() {
        let told = looks(&[
            (0, 0, HOME),
            (30, 30, WORK),
            (60, 60, WORK),
            (90, 90, None),
            (120, 120, None),
            // The same address may be of another network.
            (150, 150, WORK),
            // Asleep and elsewhere is elsewhere.
            (180, 9000, HOME),
        ]);
        let moved = Some(Change::Elsewhere);
        assert_eq!(told, [None, moved, None, None, None, moved, moved]);
    }

    #[test]
    fn connecting_anew_says_what_is_usual_from_then_on() {
        let mut watch = Watch::default();
        let look = |seconds, own| Look { awake: Instant(0), sleepless: Duration::from_secs(seconds), own };
        assert_eq!(watch.look(look(0, HOME)), None);
        watch.begin(look(5000, WORK));
        assert_eq!(watch.look(look(5000, WORK)), None);
    }
}
