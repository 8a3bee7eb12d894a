//! How many inbound connections may be in their handshake: all together, and of one source, so that a stranger cannot keep
//! the peers out. Who a connection is of is decided elsewhere.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::limits::{HANDSHAKES, HANDSHAKES_EACH};

/// Those that are under way; clones share them.
#[derive(Clone, Default)]
pub(super) struct Handshakes(Arc<Mutex<Counts>>);

#[derive(Default)]
struct Counts {
    all: usize,
    /// At most [`HANDSHAKES`].
    of: BTreeMap<IpAddr, usize>,
}

/// One of them; it is over when this is dropped.
pub(super) struct Handshake {
    of: Handshakes,
    source: IpAddr,
}

impl Handshakes {
    /// Begins one, if there is room for it.
    pub(super) fn begin(&self, from: IpAddr) -> Option<Handshake> {
        let source = source(from);
        let mut counts = self.counts();
        let each = counts.of.get(&source).copied().unwrap_or(0);
        // On loopback many nodes of a trial are one source, and no stranger is.
        if counts.all >= HANDSHAKES || (each >= HANDSHAKES_EACH && !source.is_loopback()) {
            return None;
        }
        counts.all += 1;
        counts.of.insert(source, each + 1);
        Some(Handshake { of: self.clone(), source })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut counts = self.of.counts();
        counts.all -= 1;
        let each = counts.of.get(&self.source).copied().unwrap_or(0);
        match each {
            0 | 1 => counts.of.remove(&self.source),
            _ => counts.of.insert(self.source, each - 1),
        };
    }
}

/// An IPv4 address, or an IPv6 /64: who has one address of it has all.
fn source(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) if !ip.is_loopback() => {
            let mut octets = ip.octets();
            octets[8..].fill(0);
            octets.into()
        }
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(handshakes: &Handshakes, from: &str, times: usize) -> Vec<Handshake> {
        let from: IpAddr = from.parse().expect("an address");
        (0..times).map_while(|_| handshakes.begin(from)).collect()
    }

    #[test]
    fn one_source_leaves_room_for_others_and_all_together_are_bounded() {
        let handshakes = Handshakes::default();
        let silent = begin(&handshakes, "192.0.2.1", 100);
        assert_eq!(silent.len(), HANDSHAKES_EACH);
        let near = begin(&handshakes, "2001:db8::1", 2);
        let far = begin(&handshakes, "2001:db8::ffff", 100);
        assert_eq!(near.len() + far.len(), HANDSHAKES_EACH, "one network");
        assert_eq!(begin(&handshakes, "192.0.2.2", 3).len(), 3, "a peer");
        drop(silent);
        let own = begin(&handshakes, "::1", 100);
        assert_eq!(own.len(), HANDSHAKES - near.len() - far.len());
        drop((near, far, own));
        let counts = handshakes.counts();
        assert!(counts.all == 0 && counts.of.is_empty(), "nothing is remembered of who has gone");
    }
}
