//! What was measured of the networks that this terminal was in: how often a binding must be refreshed there. A file of text,
//! a line for each network: the address that nodes see, and seconds. Losing it costs a measurement, so nothing here is an
//! error for anyone.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reveille_protocol::limits;

const NAME: &str = "networks";
/// Networks that are remembered: home, work, and those of a journey.
const REMEMBERED: usize = 16;

/// See the module.
#[derive(Debug)]
pub(super) struct Networks {
    path: PathBuf,
    /// The latest last.
    known: Vec<(IpAddr, Duration)>,
}

impl Networks {
    /// Reads what a folder holds; lines that say nothing are passed over.
    pub(super) fn open(folder: &Path) -> Networks {
        let path = folder.join(NAME);
        let text = fs::read_to_string(&path).unwrap_or_default();
        let known = text.lines().filter_map(line).take(REMEMBERED).collect();
        Networks { path, known }
    }

    /// The measured period between two keepalives where nodes see this address.
    pub(super) fn period(&self, seen: IpAddr) -> Option<Duration> {
        self.known.iter().rev().find(|(known, _)| *known == seen).map(|(_, period)| *period)
    }

    /// Remembers it, and forgets the network that was measured longest ago if there are too many.
    pub(super) fn remember(&mut self, seen: IpAddr, period: Duration) {
        self.known.retain(|(known, _)| *known != seen);
        self.known.push((seen, period));
        let most = self.known.len().saturating_sub(REMEMBERED);
        self.known.drain(..most);
        self.save();
    }

    /// What was measured does not hold any more.
    pub(super) fn forget(&mut self, seen: IpAddr) {
        self.known.retain(|(known, _)| *known != seen);
        self.save();
    }

    fn save(&self) {
        let text: String =
            self.known.iter().map(|(seen, period)| format!("{seen} {}\n", period.as_secs())).collect();
        let fresh = self.path.with_extension("new");
        if let Err(error) = fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, &self.path)) {
            tracing::info!(%error, path = %self.path.display(), "what was measured of the network is not remembered");
        }
    }
}

fn line(line: &str) -> Option<(IpAddr, Duration)> {
    let (seen, seconds) = line.split_once(' ')?;
    let period = Duration::from_secs(seconds.parse().ok()?);
    let sound = (limits::KEEPALIVE_SHORTEST..=limits::KEEPALIVE_LONGEST).contains(&period);
    sound.then_some((seen.parse().ok()?, period))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_latest_networks_are_remembered_and_nonsense_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let seen = |last: u8| IpAddr::from([192, 0, 2, last]);
        let mut networks = Networks::open(folder.path());
        for last in 0..20 {
            networks.remember(seen(last), Duration::from_secs(20 + u64::from(last)));
        }
        networks.remember(seen(19), Duration::from_secs(96));
        let networks = Networks::open(folder.path());
        assert_eq!(networks.period(seen(19)), Some(Duration::from_secs(96)));
        assert_eq!(
            (networks.period(seen(3)), networks.period(seen(4))),
            (None, Some(Duration::from_secs(24)))
        );
        fs::write(folder.path().join(NAME), "192.0.2.1 1\n192.0.2.2 99999\nx 30\n\n192.0.2.3 30\n").unwrap();
        let networks = Networks::open(folder.path());
        let periods = [1, 2, 3].map(|last| networks.period(seen(last)));
        assert_eq!(periods, [None, None, Some(Duration::from_secs(30))]);
    }
}
