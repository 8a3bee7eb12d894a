//! The rules of pinned reachability, one by one: anchor and keeper face to face, without a network between them.
//! A network that loses, repeats and moves is in `anchor_network.rs`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

use std::net::SocketAddr;
use std::time::Duration;

use reveille_protocol::anchor::keeper::{Command, Event, Identity, Keeper, Keeping};
use reveille_protocol::anchor::life::{self, Life};
use reveille_protocol::anchor::table::{Accepted, Anchor, Answer, Heard, Ignored};
use reveille_protocol::directory::Secret;
use reveille_protocol::limits;
use reveille_protocol::time::Instant;
use reveille_protocol::wire::stun::{self, Handle, Packet, Pin, PinSlot, Transaction};

const SECRET: Secret = Secret { generation: 7, key: [3; 32] };
const HANDLE: Handle = Handle([0xaa; 16]);

fn at(seconds: f64) -> Instant {
    Instant((seconds * 1000.0) as u64)
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn home() -> SocketAddr {
    address("192.0.2.1:4000")
}

fn identity() -> Identity {
    Identity { handle: HANDLE, generation: 7, key: stun::pin_key(&SECRET, &HANDLE) }
}

fn keeper(now: Instant) -> Keeper {
    Keeper::new(now, &Keeping { identity: identity(), number: 0, period: limits::KEEPALIVE, seed: 1 })
}

fn anchor() -> Anchor<&'static str> {
    Anchor::new([9; 32], 10)
}

fn send(commands: &[Command]) -> Packet {
    match commands {
        [Command::Send(packet)] => *packet,
        _ => panic!("expected one packet: {commands:?}"),
    }
}

fn answer(heard: &Heard<&'static str>) -> Packet {
    match heard.as_ref().unwrap().answer.as_ref().unwrap() {
        Answer::Mapped(packet) | Answer::Challenge(packet) => *packet,
    }
}

/// A keepalive as a keeper would not send it.
fn raw(number: u64, period: u16, proof: Option<stun::Proof>) -> Packet {
    let pin = Pin { handle: HANDLE, generation: 7, period, slot: PinSlot::Primary, ring: false };
    let message = stun::Message::Keepalive { pin, wants_answer: true, proof };
    stun::encode(&message, Transaction { number, tail: [0; 4] }, &stun::pin_key(&SECRET, &HANDLE))
}

fn hear(
    anchor: &mut Anchor<&'static str>,
    now: Instant,
    from: SocketAddr,
    packet: &[u8],
) -> Heard<&'static str> {
    anchor.heard(now, from, packet, &[SECRET])
}

fn challenged(heard: &Heard<&'static str>) -> bool {
    matches!(heard, Ok(Accepted { answer: Some(Answer::Challenge(_)), ring: None, due: None, .. }))
}

fn mapped(heard: &Heard<&'static str>) -> bool {
    matches!(heard, Ok(Accepted { answer: Some(Answer::Mapped(_)), .. }))
}

/// Gives the keeper what the anchor answers until it falls silent.
fn converse(
    anchor: &mut Anchor<&'static str>,
    keeper: &mut Keeper,
    now: Instant,
    first: Packet,
) -> Vec<Command> {
    let mut packet = first;
    loop {
        let heard = hear(anchor, now, home(), &packet);
        let commands = keeper.handle(now, Event::Received(&answer(&heard)));
        match commands[..] {
            [Command::Send(next)] => packet = next,
            _ => return commands,
        }
    }
}

/// A mapped pair at time 0.
fn pair() -> (Anchor<&'static str>, Keeper) {
    let (mut anchor, mut keeper) = (anchor(), keeper(at(0.0)));
    let first = send(&keeper.handle(at(0.0), Event::Timeout));
    assert_eq!(converse(&mut anchor, &mut keeper, at(0.0), first), [Command::Mapped(home())]);
    (anchor, keeper)
}

/// The next keepalive and when it comes.
fn next(keeper: &mut Keeper) -> (Instant, Vec<Command>) {
    let now = keeper.poll_timeout().unwrap();
    (now, keeper.handle(now, Event::Timeout))
}

fn is_request(packet: &Packet) -> bool {
    packet[1] == 1
}

#[test]
fn an_address_counts_once_its_proof_came_back() {
    let (mut anchor, mut keeper) = (anchor(), keeper(at(0.0)));
    let first = send(&keeper.handle(at(0.0), Event::Timeout));
    let heard = hear(&mut anchor, at(0.0), home(), &first);
    assert!(challenged(&heard) && answer(&heard).len() <= first.len());
    assert_eq!(anchor.address(at(0.0), &HANDLE), None);
    let echo = send(&keeper.handle(at(0.0), Event::Received(&answer(&heard))));
    assert!(mapped(&hear(&mut anchor, at(0.0), address("[::ffff:192.0.2.1]:4000"), &echo)));
    assert_eq!(anchor.address(at(0.0), &HANDLE), Some(home()));
    assert_eq!(anchor.address(at(57.0), &HANDLE), None, "two periods of 28 s without a keepalive");
}

#[test]
fn a_proof_is_good_at_its_address_for_two_minutes() {
    let mut anchor = anchor();
    let elsewhere = address("[2001:db8::7]:4000");
    let challenge = answer(&hear(&mut anchor, at(59.0), home(), &raw(1, 990, None)));
    let Some((stun::Message::Challenge(proof), _)) = stun::decode(&challenge).unwrap().open(&identity().key)
    else {
        panic!("no challenge");
    };
    assert!(challenged(&hear(&mut anchor, at(60.0), elsewhere, &raw(2, 990, Some(proof)))));
    assert!(challenged(&hear(&mut anchor, at(120.0), home(), &raw(3, 990, Some(proof)))));
    assert!(mapped(&hear(&mut anchor, at(119.0), home(), &raw(4, 990, Some(proof)))));
    assert!(challenged(&hear(&mut anchor, at(120.0), elsewhere, &raw(5, 990, Some(proof)))));
    assert_eq!(anchor.address(at(120.0), &HANDLE), Some(home()), "the old address stays");
}

#[test]
fn what_is_not_a_new_keepalive_is_ignored() {
    let (mut anchor, mut keeper) = pair();
    let (now, commands) = next(&mut keeper);
    let packet = send(&commands);
    let heard = hear(&mut anchor, now, home(), &packet);
    assert!(mapped(&heard));
    let ignored = |anchor: &mut Anchor<_>, datagram: &[u8]| hear(anchor, now, home(), datagram).unwrap_err();
    assert_eq!(ignored(&mut anchor, &packet), Ignored::Replayed);
    assert_eq!(ignored(&mut anchor, &answer(&heard)), Ignored::Malformed, "reflected");
    assert_eq!(ignored(&mut anchor, b"\x00\x01"), Ignored::NotStun);
    let mut forged = send(&next(&mut keeper).1).to_vec();
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(ignored(&mut anchor, &forged), Ignored::Forged);
    let packet = send(&next(&mut keeper).1);
    assert_eq!(anchor.heard(now, home(), &packet, &[]).unwrap_err(), Ignored::UnknownSecret);
    assert!(keeper.handle(now, Event::Received(&packet)).is_empty(), "a reflected keepalive is no answer");
}

#[test]
fn a_full_table_refuses_new_handles_and_keeps_the_old() {
    let mut anchor: Anchor<()> = Anchor::new([9; 32], 2);
    let hear = |anchor: &mut Anchor<()>, n: u8, number| {
        let pin =
            Pin { handle: Handle([n; 16]), generation: 7, period: 25, slot: PinSlot::Primary, ring: false };
        let message = stun::Message::Keepalive { pin, wants_answer: true, proof: None };
        let key = stun::pin_key(&SECRET, &pin.handle);
        let packet = stun::encode(&message, Transaction { number, tail: [0; 4] }, &key);
        anchor.heard(at(0.0), home(), &packet, &[SECRET]).map(|accepted| accepted.handle)
    };
    assert!(hear(&mut anchor, 1, 1).is_ok() && hear(&mut anchor, 2, 1).is_ok());
    assert_eq!(hear(&mut anchor, 3, 1), Err(Ignored::Full));
    assert!(hear(&mut anchor, 1, 2).is_ok());
    assert_eq!(anchor.len(), 2);
    assert_eq!(anchor.sweep(at(76.0), 1).forgotten + anchor.sweep(at(76.0), 1).forgotten, 2);
    assert!(anchor.is_empty());
}

#[test]
fn what_waits_is_due_with_the_next_keepalive() {
    let (mut anchor, mut keeper) = pair();
    anchor.failed(&HANDLE, address("192.0.2.1:4001"));
    assert!(anchor.address(at(1.0), &HANDLE).is_some(), "another address failed");
    anchor.failed(&HANDLE, home());
    assert_eq!(anchor.address(at(1.0), &HANDLE), None);
    assert_eq!(anchor.wait(at(1.0), HANDLE, "first"), None);
    assert_eq!(anchor.wait(at(1.0), HANDLE, "second"), Some("first"));
    let (now, commands) = next(&mut keeper);
    let heard = hear(&mut anchor, now, home(), &send(&commands));
    assert!(challenged(&heard), "nobody answered there: is it still the terminal's?");
    assert_eq!(anchor.address(now, &HANDLE), None);
    let echo = send(&keeper.handle(now, Event::Received(&answer(&heard))));
    let heard = hear(&mut anchor, now, home(), &echo);
    assert_eq!(heard.as_ref().unwrap().due, Some("second"));
    assert_eq!(anchor.address(now, &HANDLE), Some(home()));
    assert_eq!(keeper.handle(now, Event::Received(&answer(&heard))), [Command::Waiting]);
    assert_eq!(anchor.wait(at(10.0), HANDLE, "third"), None);
    // The device slept so long that its binding is forgotten, but less than its leader waits before it orders again.
    let later = at(10.0) + Duration::from_secs(72 * 60);
    assert_eq!((anchor.sweep(later, 10).forgotten, anchor.len()), (1, 0));
    let heard = hear(&mut anchor, later, home(), &send(&keeper.handle(later, Event::Resumed)));
    let echo = send(&keeper.handle(later, Event::Received(&answer(&heard))));
    assert_eq!(hear(&mut anchor, later, home(), &echo).unwrap().due, Some("third"));

    assert_eq!(anchor.wait(at(10.0), HANDLE, "fourth"), None);
    let over = at(10.0) + Duration::from_secs(75 * 60);
    assert!(anchor.sweep(Instant(over.0 - 1), 10).expired.is_empty());
    assert_eq!(anchor.sweep(over, 10).expired, ["fourth"]);
}

#[test]
fn who_left_its_address_cannot_aim_notifications_at_it() {
    let (mut anchor, keeper) = pair();
    anchor.failed(&HANDLE, home());
    anchor.wait(at(1.0), HANDLE, "a push");
    // The terminal's own keepalives under a false sender address: it knows everything but what arrives there.
    for number in keeper.number() + 1..keeper.number() + 1000 {
        let heard = hear(&mut anchor, at(1.0 + number as f64), home(), &raw(number, 990, None));
        assert!(challenged(&heard) && answer(&heard).len() <= raw(number, 990, None).len());
        assert_eq!(anchor.address(at(1.0 + number as f64), &HANDLE), None);
    }
}

#[test]
fn who_left_its_address_has_little_sent_to_it() {
    let (mut anchor, keeper) = pair();
    let mut number = keeper.number();
    let mut answered = |anchor: &mut Anchor<_>, now| {
        let mut say = || {
            number += 1;
            u32::from(hear(anchor, now, home(), &raw(number, 28, None)).unwrap().answer.is_some())
        };
        (0..100).map(|_| say()).sum::<u32>()
    };
    assert_eq!(answered(&mut anchor, at(30.0)), 4, "in a second");
    assert_eq!(answered(&mut anchor, at(31.0)), 4);
    anchor.wait(at(31.0), HANDLE, "a push");
    let heard = hear(&mut anchor, at(31.0), home(), &raw(1000, 28, None)).unwrap();
    assert_eq!((heard.answer, heard.due), (None, Some("a push")), "it is dialled all the same");
}

/// A second binding that is proven at 1 s, with the silence that it promises: how often it is rung at a time after, of a
/// hundred times that its terminal asks for it; `again`: with a keepalive of the second binding before each.
fn rings(silence: u16, after: u16, again: bool) -> usize {
    let (mut anchor, mut keeper) = pair();
    let key = identity().key;
    let second = |number, proof| {
        let pin = Pin { handle: HANDLE, generation: 7, period: silence, slot: PinSlot::Second, ring: false };
        let keepalive = stun::Message::Keepalive { pin, wants_answer: true, proof };
        stun::encode(&keepalive, Transaction { number, tail: [0; 4] }, &key)
    };
    let challenge = answer(&hear(&mut anchor, at(1.0), home(), &second(1, None)));
    let Some((stun::Message::Challenge(proof), _)) = stun::decode(&challenge).unwrap().open(&key) else {
        panic!("no challenge");
    };
    assert!(mapped(&hear(&mut anchor, at(1.0), home(), &second(2, Some(proof)))));
    let now = at(1.0 + f64::from(after));
    let mut rung = |number| {
        if again {
            // From the same place, or under its name: it proves nothing.
            hear(&mut anchor, now, home(), &second(number, None)).unwrap();
        }
        let packet = send(&keeper.handle(now, Event::RingSecond));
        hear(&mut anchor, now, home(), &packet).unwrap().ring.is_some()
    };
    (0..100).filter(|number| rung(number + 3)).count()
}

#[test]
fn a_second_binding_is_rung_a_few_times_in_its_time() {
    assert_eq!(rings(120, 120, false), 60);
    assert_eq!(rings(120, 151, false), 0, "who is there now?");
    assert_eq!(rings(120, 120, true), 60);
    assert_eq!(rings(120, 151, true), 60, "a terminal goes on measuring from where it was");
}

#[test]
fn a_terminal_that_proves_nothing_is_not_forgotten_while_it_speaks() {
    let (mut anchor, keeper) = pair();
    let first = raw(keeper.number() + 1, 28, None);
    let elsewhere = address("192.0.2.9:4000");
    assert!(challenged(&hear(&mut anchor, at(25.0), elsewhere, &first)));
    for number in keeper.number() + 2..keeper.number() + 50 {
        let now = at(25.0 * number as f64);
        assert!(challenged(&hear(&mut anchor, now, elsewhere, &raw(number, 28, None))));
        assert_eq!(anchor.sweep(now, 10).forgotten, 0);
    }
    let now = at(25.0 * (keeper.number() + 50) as f64);
    assert_eq!(hear(&mut anchor, now, elsewhere, &first), Err(Ignored::Replayed));
    assert_eq!(anchor.address(now, &HANDLE), None);
    assert_eq!(anchor.sweep(now + Duration::from_secs(200), 10).forgotten, 1);
}

#[test]
fn two_keepalives_at_once_then_one_a_period_each_with_an_answer() {
    let (mut anchor, mut keeper) = pair();
    let mut last = at(0.0);
    for n in 0..9 {
        let (now, commands) = next(&mut keeper);
        let gap = now.since(last);
        let jitter = Duration::from_millis(22_500)..=Duration::from_millis(27_500);
        assert!(if n == 0 { gap == Duration::from_secs(3) } else { jitter.contains(&gap) }, "{gap:?}");
        let packet = send(&commands);
        assert_eq!(packet.len(), 68, "no proof is needed any more");
        assert!(is_request(&packet));
        let heard = hear(&mut anchor, now, home(), &packet);
        assert!(keeper.handle(now, Event::Received(&answer(&heard))).is_empty());
        last = now;
    }
}

#[test]
fn an_indication_holds_the_binding_and_gets_no_answer() {
    let (mut anchor, _) = pair();
    let pin = Pin { handle: HANDLE, generation: 7, period: 28, slot: PinSlot::Primary, ring: false };
    let message = stun::Message::Keepalive { pin, wants_answer: false, proof: None };
    let packet = stun::encode(&message, Transaction { number: 9, tail: [0; 4] }, &identity().key);
    assert_eq!(hear(&mut anchor, at(50.0), home(), &packet).unwrap().answer, None);
    assert_eq!(anchor.address(at(100.0), &HANDLE), Some(home()));
}

#[test]
fn a_silent_anchor_is_lost_within_seven_seconds() {
    let (_, mut keeper) = pair();
    let (start, _) = next(&mut keeper);
    for (millis, last) in [(500, false), (1000, false), (2000, false), (4000, false), (6500, true)] {
        let (now, commands) = next(&mut keeper);
        assert_eq!(now.since(start), Duration::from_millis(millis));
        if last {
            assert_eq!(commands, [Command::Lost]);
        } else {
            assert!(is_request(&send(&commands)));
        }
    }
    assert!(is_request(&send(&next(&mut keeper).1)), "it goes on asking");
}

#[test]
fn an_anchor_that_only_challenges_is_lost() {
    let (mut anchor, mut keeper) = (anchor(), keeper(at(0.0)));
    let mut packet = send(&keeper.handle(at(0.0), Event::Timeout));
    let mut echoes = 0;
    for n in 0..100 {
        // From another port each time: no proof ever fits.
        let from = SocketAddr::new(home().ip(), 5000 + n);
        let challenge = answer(&hear(&mut anchor, at(0.1), from, &packet));
        let commands = keeper.handle(at(0.1), Event::Received(&challenge));
        match commands.is_empty() {
            false => (packet, echoes) = (send(&commands), echoes + 1),
            true => packet = raw(1000 + u64::from(n), 28, None),
        }
    }
    assert_eq!(echoes, limits::MAX_CHALLENGES);
    assert!((0..5).any(|_| next(&mut keeper).1 == [Command::Lost]));
}

#[test]
fn a_session_stops_keepalives_and_its_end_renews_the_binding() {
    let (_, mut keeper) = pair();
    assert!(keeper.handle(at(1.0), Event::SessionOpened).is_empty());
    assert_eq!(keeper.poll_timeout(), None);
    assert!(keeper.handle(at(10.0), Event::SessionClosed).is_empty(), "less than half a period");
    keeper.handle(at(11.0), Event::SessionOpened);
    assert!(keeper.handle(at(12.0), Event::Resumed).is_empty());
    assert!(is_request(&send(&keeper.handle(at(12.5), Event::SessionClosed))), "it may have moved");
    assert!(is_request(&send(&keeper.handle(at(13.0), Event::Resumed))));
    assert_eq!(keeper.poll_timeout(), Some(at(13.5)));
}

/// Runs a measuring against a NAT that forgets after `lifetime` seconds; `deaf` rings are lost.
fn measure(lifetime: u64, mut deaf: u32) -> Option<Duration> {
    let (mut anchor, mut keeper) = pair();
    let mut now = at(1.0);
    let mut life = Life::new(now, identity(), 0, keeper.number(), 2);
    let (mut port, mut last) = (7000, now);
    loop {
        now = now.max(life.poll_timeout().unwrap());
        let mut command = life.handle(now, life::Event::Timeout);
        while let Some(step) = command.take() {
            match step {
                life::Command::Done(period) => return period,
                life::Command::SendFromSecond(packet) => {
                    port += u16::from(now.since(last) > Duration::from_secs(lifetime));
                    last = now;
                    let heard = hear(&mut anchor, now, SocketAddr::new(home().ip(), port), &packet);
                    command = life.handle(now, life::Event::Received(&answer(&heard)));
                }
                life::Command::RingSecond => {
                    let packet = send(&keeper.handle(now, Event::RingSecond));
                    let heard = hear(&mut anchor, now, home(), &packet);
                    let (to, ring) = heard.as_ref().unwrap().ring.unwrap();
                    assert_eq!(to.port(), port);
                    keeper.handle(now, Event::Received(&answer(&heard)));
                    let alive = now.since(last) <= Duration::from_secs(lifetime);
                    if alive && deaf == 0 {
                        last = now;
                        assert_eq!(
                            keeper.handle(now, Event::Received(&ring)),
                            [],
                            "no business of the keeper's"
                        );
                        command = life.handle(now, life::Event::Received(&ring));
                        assert_eq!(life.handle(now, life::Event::Received(&ring)), None, "a copy");
                    } else {
                        deaf = deaf.saturating_sub(u32::from(alive));
                    }
                }
            }
        }
    }
}

#[test]
fn the_longest_outlived_silence_sets_the_period() {
    for (lifetime, period) in [(20, 15), (30, 24), (119, 48), (180, 96), (300, 192), (100_000, 384)] {
        assert_eq!(measure(lifetime, 0), Some(Duration::from_secs(period)), "{lifetime}");
    }
    assert_eq!(measure(180, 1), Some(Duration::from_secs(96)), "one lost ring is no failure");
    assert_eq!(measure(180, 2), Some(limits::KEEPALIVE_SHORTEST));
}

#[test]
fn a_measuring_without_answers_learns_nothing() {
    let mut life = Life::new(at(0.0), identity(), 0, 0, 2);
    let commands: Vec<_> =
        (0..6).map(|_| life.handle(life.poll_timeout().unwrap(), life::Event::Timeout).unwrap()).collect();
    assert_eq!(commands[5], life::Command::Done(None));
    assert_eq!(life.poll_timeout(), None);
}
