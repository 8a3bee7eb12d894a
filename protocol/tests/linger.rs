//! What a learned linger is worth: the rule over pushes at synthetic gaps, against leaving at once and against staying for
//! ever. Nothing here is measured by a clock.
#![allow(clippy::print_stdout, missing_docs, reason = "the figures are the test's second purpose")]

use std::time::Duration;

use reveille_protocol::service_list::row::Linger;
use reveille_protocol::session::linger::Learned;
use reveille_protocol::time::Instant;

/// What a wake is worth, in seconds of an open session; as the rule has it.
const WAKE: f64 = 10.0;
/// A session without a linger: connecting, the push, and its goodbye.
const SHORT: Duration = Duration::from_millis(100);
const PUSHES: u32 = 20_000;

struct Dice(u64);

impl Dice {
    /// From 0 to 1.
    fn roll(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.roll()).ln()
    }
}

/// Sessions, and seconds of an open session, per push.
#[derive(Debug, Clone, Copy)]
struct Cost {
    sessions: f64,
    open: f64,
}

impl Cost {
    fn in_all(self) -> f64 {
        self.sessions * WAKE + self.open
    }
}

/// Pushes at such gaps, in seconds, to a terminal that learns.
fn learned(gaps: impl Iterator<Item = f64>) -> (Cost, f64) {
    let mut rule = Learned::new(Duration::from_secs(120));
    let (mut now, mut sessions, mut open) = (Instant(0), 0u32, Duration::ZERO);
    // The open session: since when it has no push, and how long it stays.
    let mut session: Option<(Instant, Duration)> = None;
    let (mut pushes, mut gaps_together) = (0u32, 0.0);
    for gap in gaps {
        now = now + Duration::from_secs_f64(gap);
        gaps_together += gap;
        pushes += 1;
        session = session.filter(|(last, linger)| {
            let stays = now <= *last + *linger;
            open += if stays { now.since(*last) } else { *linger };
            stays
        });
        let linger = session.map_or_else(
            || {
                sessions += 1;
                open += SHORT;
                match rule.wish(now) {
                    Linger::Seconds(seconds) => Duration::from_secs(seconds.into()),
                    Linger::AtOnce | Linger::Forever => Duration::ZERO,
                }
            },
            |(_, linger)| linger,
        );
        rule.pushed(now);
        session = Some((now, linger));
    }
    let each = f64::from(pushes);
    let cost = Cost { sessions: f64::from(sessions) / each, open: open.as_secs_f64() / each };
    (cost, gaps_together / each)
}

fn shown(name: &str, gaps: impl Iterator<Item = f64>) -> (Cost, f64, f64) {
    let (cost, mean) = learned(gaps);
    let at_once = Cost { sessions: 1.0, open: SHORT.as_secs_f64() };
    println!(
        "{name:40} learned: {:.3} sessions, {:.2} s open a push; at once: 1 and {:.2}; for ever: 0 and {mean:.0}",
        cost.sessions, cost.open, at_once.open
    );
    (cost, at_once.in_all(), mean)
}

#[test]
fn a_learned_linger_costs_little_more_than_the_better_of_leaving_and_staying() {
    let mut dice = Dice(1);
    for mean in [2.0, 5.0, 20.0, 60.0, 300.0] {
        let even = std::iter::repeat_n(mean, PUSHES as usize);
        let (cost, at_once, for_ever) = shown(&format!("each {mean} s"), even);
        assert!(cost.in_all() <= 1.05 * f64::min(at_once, for_ever), "each {mean} s: {cost:?}");
        let random = (0..PUSHES).map(|_| dice.exponential(mean));
        let (cost, at_once, for_ever) = shown(&format!("at random, each {mean} s in the mean"), random);
        assert!(cost.in_all() <= 1.35 * f64::min(at_once, for_ever), "random, {mean} s: {cost:?}");
    }
}

#[test]
fn a_conversation_is_learned_within_some_pushes_and_its_end_costs_one_linger() {
    // Twenty pushes each two seconds, then none for an hour.
    let talks = (0..PUSHES).map(|n| if n % 20 == 0 { 3600.0 } else { 2.0 });
    let (cost, at_once, _) = shown("20 pushes each 2 s, once an hour", talks);
    assert!(cost.sessions < 0.6 && cost.in_all() < 0.7 * at_once, "{cost:?}");
    // One pair an hour teaches nothing.
    let pairs = (0..PUSHES).map(|n| if n % 2 == 0 { 3600.0 } else { 2.0 });
    let (cost, at_once, _) = shown("2 pushes 2 s apart, once an hour", pairs);
    assert!(cost.in_all() < 1.05 * at_once, "{cost:?}");
}

#[test]
fn it_leaves_at_once_until_it_has_learned_and_never_asks_for_more_than_it_may() {
    let mut rule = Learned::new(Duration::from_secs(4));
    assert_eq!(rule.wish(Instant(0)), Linger::AtOnce);
    // What waited comes together, and is one push.
    for at in 0..100 {
        rule.pushed(Instant(at));
    }
    assert_eq!(rule.wish(Instant(100_000)), Linger::AtOnce);
    for at in 50..100 {
        rule.pushed(Instant(at * 2000));
    }
    assert_eq!(rule.wish(Instant(200_000)), Linger::Seconds(4));
    // A night; the first push of the day pays its wake.
    assert_eq!(rule.wish(Instant(30_000_000)), Linger::AtOnce);
    let mut never = Learned::new(Duration::ZERO);
    for at in 0..100 {
        never.pushed(Instant(at * 1000));
    }
    assert_eq!(never.wish(Instant(100_000)), Linger::AtOnce);
}
