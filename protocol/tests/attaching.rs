//! A session between its terminal's Hello and its Welcome: what is refused, and what overtakes the answer to its attach.
#![allow(clippy::panic, reason = "a test stops where it is surprised")]

#[path = "support/session.rs"]
mod session;

use bytes::Bytes;
use reveille_protocol::id::*;
use reveille_protocol::service_list::row::{Linger, Urgency};
use reveille_protocol::service_list::{Attached, Refusal};
use reveille_protocol::session::server::{Command, Event, Server};
use reveille_protocol::time::Instant;
use reveille_protocol::wire::peer::{HandOff, HandedPush, Report, Reported};
use reveille_protocol::wire::session::*;
use session::{KEY, config};

/// A session whose terminal has said Hello.
fn attaching() -> Server {
    let mut server = Server::new(config(), Instant(0));
    let hello = Hello {
        terminal: KEY.terminal(),
        attempt: Attempt(1),
        stream: Stream(0),
        last: Seq(0),
        listening: None,
        linger: Linger::AtOnce,
        min_urgency: Urgency::VeryLow,
        enrolment: None::<Bytes>,
    };
    let asked = server.handle(Instant(0), Event::Frame(TerminalFrame::Hello(hello)));
    assert!(matches!(asked[..], [Command::Attach(_)]), "{asked:?}");
    server
}

fn granted(epoch: u64) -> Event {
    Event::Attached(Some(Ok(Attached {
        stream: Stream(7),
        epoch: Epoch(epoch),
        acked: Seq(0),
        pending: 0,
        linger: Linger::AtOnce,
    })))
}

fn told(refusal: Refusal) -> ByeReason {
    let said = attaching().handle(Instant(1), Event::Attached(Some(Err(refusal))));
    match said.as_slice() {
        [Command::Send(NodeFrame::Bye(Bye { reason, .. })), Command::Close] => *reason,
        other => panic!("{other:?}"),
    }
}

/// Else the service list would say that it is online until something is pushed to it.
#[test]
fn what_is_granted_to_a_terminal_that_has_gone_is_given_back() {
    for gone in [Event::PeerClosed, Event::Leave { retry_after: 0 }] {
        let mut server = attaching();
        let said = server.handle(Instant(1), gone.clone());
        assert!(!said.contains(&Command::Close), "{said:?}");
        let given_back = server.handle(Instant(2), granted(1));
        let [Command::Detach(detach)] = &given_back[..] else { panic!("{given_back:?}") };
        assert_eq!((detach.epoch, detach.stream, detach.ack), (Epoch(1), Stream(7), None));
        assert_eq!(server.handle(Instant(3), Event::DetachDone), [Command::Close]);

        let mut server = attaching();
        server.handle(Instant(1), gone);
        assert_eq!(server.handle(Instant(2), Event::Attached(None)), [Command::Close]);
    }
}

#[test]
fn the_word_that_another_session_took_over_counts_before_the_epoch_is_known() {
    let mut server = attaching();
    assert_eq!(server.handle(Instant(1), Event::Supersede(Epoch(3))), []);
    let said = server.handle(Instant(2), granted(3));
    let over = Bye { reason: ByeReason::Superseded, retry_after: 0 };
    assert_eq!(said, [Command::Send(NodeFrame::Bye(over)), Command::Close]);

    let mut server = attaching();
    server.handle(Instant(1), Event::Supersede(Epoch(3)));
    assert!(server.handle(Instant(2), granted(4)).contains(&Command::Online(Epoch(4))));
}

#[test]
fn what_overtook_the_answer_and_had_no_room_is_asked_for() {
    let hand_off = |seq| {
        Event::HandOff(HandOff {
            group: GroupId(1),
            term: 1,
            terminal: KEY.terminal(),
            stream: Stream(7),
            epoch: Epoch(1),
            attempt: Attempt(1),
            pushes: vec![HandedPush {
                seq: Seq(seq),
                prev: Seq(seq - 1),
                maybe_seen: false,
                remaining: 0,
                lives_for: 1000,
                channel: Channel(0),
                headers: Vec::new(),
                body: Bytes::from_static(b"push"),
            }],
            covers: Seq(seq),
        })
    };
    for (early, missing) in [(2, None), (3, Some(Seq(3)))] {
        let mut server = attaching();
        for seq in 1..=early {
            assert_eq!(server.handle(Instant(1), hand_off(seq)), []);
        }
        let mut asked = None;
        for command in server.handle(Instant(2), granted(1)) {
            if let Command::Report(Report { what: Reported::Resend { from }, .. }) = command {
                asked = Some(from);
            }
        }
        assert_eq!(asked, missing, "of {early}");
    }
}

/// "Not enrolled" has it wait for ten minutes, and tells its application.
#[test]
fn a_terminal_is_sent_to_another_node_by_one_that_is_fenced_or_being_restored() {
    assert_eq!(told(Refusal::Fenced), ByeReason::Unavailable);
    assert_eq!(told(Refusal::Restoring), ByeReason::Unavailable);
    assert_eq!(told(Refusal::UnknownMessage), ByeReason::NotEnrolled);
    assert_eq!(told(Refusal::StaleAttempt { current: Attempt(4) }), ByeReason::StaleAttempt(Attempt(4)));
}
