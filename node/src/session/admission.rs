//! Who may begin a session now: so many at once, so many a second, so many of one source; those just behind them wait in a
//! line, and the rest are turned away before any work is done for them. Knows nothing of TLS, and decides nothing about
//! who a terminal is.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::telemetry::Gauge;

/// The longest wait in the line: terminals give TCP and TLS with one node 3 s, and one that has given up before its turn
/// came is work for nothing.
pub const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// Handshakes that may begin together after a pause, as a part of a second's.
const BURST: Duration = Duration::from_millis(100);
/// From this wait on the node's terminals should rather not be told to come.
const CROWDED: Duration = Duration::from_millis(100);
/// How often the line is looked at by those who wait for it to be short, and how often each of them: a line that is never
/// short must not end all notifications.
const LOOK: (Duration, u32) = (Duration::from_millis(10), 5);

/// What a node takes on.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections that are in TLS, or whose Hello is awaited.
    pub at_once: usize,
    /// Handshakes begun in a second.
    pub per_second: NonZeroU32,
    /// Connections in the line and in the works of one IPv4 address or IPv6 /64. `None`: no bound, where everything is on
    /// loopback.
    pub per_source: Option<usize>,
}

/// Why a connection is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The line is full.
    Crowded,
    /// Its source has enough connections here already.
    Source,
    /// Its turn did not come in time.
    Late,
}

impl Refused {
    /// Its label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Refused::Crowded => "crowded",
            Refused::Source => "source",
            Refused::Late => "late",
        }
    }
}

/// The line and who is in the works.
#[derive(Clone)]
pub struct Admission(Arc<Shared>);

struct Shared {
    limits: Limits,
    works: Arc<Semaphore>,
    line: Mutex<Line>,
}

struct Line {
    /// Places taken, by source; all together at most [`Limits::at_once`] and a line of [`LONGEST_WAIT`].
    sources: HashMap<IpAddr, usize>,
    taken: usize,
    /// When the next handshake may begin.
    next: Instant,
}

/// A connection's place; given back when dropped.
pub struct Place {
    admission: Admission,
    source: IpAddr,
    begins: Instant,
    works: Option<OwnedSemaphorePermit>,
}

impl Admission {
    /// With nobody in it.
    pub fn new(limits: Limits) -> Admission {
        let line = Line { sources: HashMap::new(), taken: 0, next: Instant::now() };
        let works = Arc::new(Semaphore::new(limits.at_once));
        Admission(Arc::new(Shared { limits, works, line: Mutex::new(line) }))
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.0.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place at the end of the line, if there is one.
    pub fn enter(&self, now: Instant, from: IpAddr) -> Result<Place, Refused> {
        let limits = &self.0.limits;
        let gap = Duration::from_secs(1) / limits.per_second.get();
        let places = limits.at_once + limits.per_second.get() as usize;
        let mut line = self.line();
        // What was not used for a while is lost, but for a burst.
        let begins = line.next.max(now.checked_sub(BURST).unwrap_or(now));
        if line.taken >= places || begins > now + LONGEST_WAIT {
            return Err(Refused::Crowded);
        }
        let source = source(from);
        let taken = line.sources.entry(source).or_default();
        if limits.per_source.is_some_and(|most| *taken >= most) {
            return Err(Refused::Source);
        }
        *taken += 1;
        line.taken += 1;
        line.next = begins + gap;
        Gauge::SessionsConnecting.set(line.taken as f64);
        Ok(Place { admission: self.clone(), source, begins, works: None })
    }

    /// Would a terminal that came now have to wait?
    pub fn crowded(&self, now: Instant) -> bool {
        self.0.works.available_permits() == 0 || self.line().next > now + CROWDED
    }

    /// Waits for the line to be short, a moment at most.
    pub async fn short(&self) {
        for _ in 0..LOOK.1 {
            if !self.crowded(Instant::now()) {
                return;
            }
            tokio::time::sleep(LOOK.0).await;
        }
    }
}

impl Place {
    /// Waits for its turn. The place is in the works from then on.
    pub async fn turn(&mut self) -> Result<(), Refused> {
        tokio::time::sleep_until(self.begins).await;
        let works = self.admission.0.works.clone().acquire_owned();
        match tokio::time::timeout(LONGEST_WAIT, works).await {
            // Closed never: it is ours.
            Ok(permit) => self.works = permit.ok(),
            Err(_) => return Err(Refused::Late),
        }
        Ok(())
    }

    /// It has done its part, and waits for the cluster: where a group has no leader that takes long, and must not keep out
    /// the terminals of others. It is counted on.
    pub fn leave_works(&mut self) {
        drop(self.works.take());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.works.take());
        let mut line = self.admission.line();
        line.taken -= 1;
        Gauge::SessionsConnecting.set(line.taken as f64);
        if let Some(taken) = line.sources.get_mut(&self.source) {
            *taken -= 1;
            if *taken == 0 {
                line.sources.remove(&self.source);
            }
        }
    }
}

/// What one terminal, or all behind one router, have: an IPv4 address or an IPv6 /64.
fn source(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => {
            let mut octets = ip.octets();
            octets[8..].fill(0);
            octets.into()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn admission(at_once: usize, per_second: u32, per_source: Option<usize>) -> Admission {
        Admission::new(Limits { at_once, per_second: NonZeroU32::new(per_second).unwrap(), per_source })
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_source_cannot_take_all_places() {
        let (admission, now) = (admission(4, 100, Some(2)), Instant::now());
        let enter = |from: &str| admission.enter(now, address(from));
        let first = enter("192.0.2.1").unwrap();
        let _second = enter("192.0.2.1").unwrap();
        assert_eq!(enter("192.0.2.1").err(), Some(Refused::Source));
        assert_eq!(enter("::ffff:192.0.2.1").err(), Some(Refused::Source), "the same address");
        let _neighbour = enter("192.0.2.2").unwrap();
        let _v6 = (enter("2001:db8::1").unwrap(), enter("2001:db8::ffff:1").unwrap());
        assert_eq!(enter("2001:db8::2").err(), Some(Refused::Source), "one /64");
        let _other = enter("2001:db8:0:1::2").unwrap();
        drop(first);
        let _again = enter("192.0.2.1").unwrap();
        assert_eq!(enter("192.0.2.1").err(), Some(Refused::Source));
    }

    #[test]
    fn nothing_is_remembered_of_those_who_have_left() {
        let (admission, now) = (admission(4, 1000, Some(2)), Instant::now());
        let places: Vec<_> =
            (0..50).map(|host| admission.enter(now, [192, 0, 2, host].into()).unwrap()).collect();
        assert_eq!(admission.line().sources.len(), 50);
        drop(places);
        let line = admission.line();
        assert_eq!((line.sources.len(), line.taken), (0, 0));
    }

    #[test]
    fn handshakes_begin_at_the_rate_and_the_line_is_no_longer_than_its_wait() {
        let (admission, now) = (admission(10_000, 100, None), Instant::now() + Duration::from_secs(10));
        let mut places = Vec::new();
        let refused = loop {
            match admission.enter(now, address("192.0.2.1")) {
                Ok(place) => places.push(place),
                Err(refused) => break refused,
            }
        };
        assert_eq!(refused, Refused::Crowded);
        // A tenth of a second's at once, then one each hundredth, and none that would wait longer than a second.
        let begins: Vec<Duration> =
            places.iter().map(|place| place.begins.saturating_duration_since(now)).collect();
        assert_eq!(begins.iter().filter(|wait| wait.is_zero()).count(), 11);
        assert_eq!(begins.len(), 111);
        assert_eq!(*begins.last().unwrap(), LONGEST_WAIT);
        assert!(admission.crowded(now) && !admission.crowded(now + LONGEST_WAIT));
        // Those who were turned away took no turns.
        let later = now + LONGEST_WAIT;
        assert!(
            admission.enter(later, address("192.0.2.1")).unwrap().begins <= later + Duration::from_millis(10)
        );
    }

    #[tokio::test]
    async fn so_many_are_in_the_works_and_the_next_comes_when_one_leaves() {
        let admission = admission(2, 1000, None);
        let mut places: Vec<_> =
            (0..4).map(|_| admission.enter(Instant::now(), address("::1")).unwrap()).collect();
        let mut last = places.pop().unwrap();
        let mut third = places.pop().unwrap();
        for place in &mut places {
            place.turn().await.unwrap();
        }
        assert!(admission.crowded(Instant::now() + LONGEST_WAIT));
        let mut turn = Box::pin(third.turn());
        assert!(futures::poll!(&mut turn).is_pending());
        drop(places.pop());
        turn.await.unwrap();
        assert_eq!(last.turn().await, Err(Refused::Late));
    }
}
