//! What a session tells its terminal when its attach was refused.
#![allow(clippy::panic, reason = "a test stops where it is surprised")]

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use reveille_protocol::directory::Secret;
use reveille_protocol::id::*;
use reveille_protocol::service_list::Refusal;
use reveille_protocol::service_list::row::{Linger, Urgency};
use reveille_protocol::session::server::{Command, Config, Event, Server};
use reveille_protocol::time::Instant;
use reveille_protocol::wire::session::*;

const KEY: KeyFingerprint = KeyFingerprint([9; 32]);

fn told(refusal: Refusal) -> ByeReason {
    let config = Config {
        node: NodeId(1),
        incarnation: Incarnation(1),
        session_key: KEY,
        group: GroupId(1),
        peer_ip: IpAddr::from([192, 0, 2, 1]),
        secret: Secret { generation: 1, key: [3; 32] },
        check_in: Duration::from_secs(3600),
        linger_max: None,
        anchor: None,
    };
    let mut server = Server::new(config, Instant(0));
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
    server.handle(Instant(0), Event::Frame(TerminalFrame::Hello(hello)));
    let said = server.handle(Instant(1), Event::Attached(Some(Err(refusal))));
    match said.as_slice() {
        [Command::Send(NodeFrame::Bye(Bye { reason, .. })), Command::Close] => *reason,
        other => panic!("{other:?}"),
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
