//! A session that began before its cluster was ready for anchors: both ends of it, and what the row is told.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test stops where it is surprised")]

#[path = "support/session.rs"]
mod session;

use reveille_protocol::id::*;
use reveille_protocol::service_list::row::{Linger, Reachability, Urgency};
use reveille_protocol::service_list::{Attached, SetReachability};
use reveille_protocol::session::server::{self, AnchorAt, Server};
use reveille_protocol::session::terminal::{self, Memory, Terminal};
use reveille_protocol::time::Instant;
use reveille_protocol::wire::session::*;
use session::{KEY, config};

const LISTENING: Listening = Listening { port: 5000, key: KeyFingerprint([1; 32]) };
const ANCHOR: AnchorAt = AnchorAt { port: 7000, period: 25 };

/// Both ends, once the Welcome has come.
struct Session {
    server: Server,
    terminal: Terminal,
}

impl Session {
    fn open(offer: Option<Offer>) -> Session {
        let server = Server::new(config(), Instant(0));
        let terminal = terminal::Config {
            terminal: KEY.terminal(),
            memory: Memory::default(),
            listening: Some(LISTENING),
            offer,
            seen: None,
            bound: None,
            linger: Linger::Forever,
            min_urgency: Urgency::VeryLow,
            enrolment: None,
            given: Seq(0),
        };
        let mut session = Session { server, terminal: Terminal::new(terminal, Instant(0)) };
        for command in session.terminal.handle(Instant(0), terminal::Event::Connected) {
            if let terminal::Command::Send(frame) = command {
                session.server.handle(Instant(0), server::Event::Frame(frame));
            }
        }
        assert!(!session.server.lacks_anchor(), "what comes before the Welcome can wait for it");
        let attached = Attached {
            stream: Stream(7),
            epoch: Epoch(1),
            acked: Seq(0),
            pending: 0,
            linger: Linger::Forever,
        };
        let welcomed = session.server.handle(Instant(0), server::Event::Attached(Some(Ok(attached))));
        session.hears(Instant(0), welcomed);
        session
    }

    /// What the terminal does, and what the service list is to be told.
    fn hears(
        &mut self,
        now: Instant,
        commands: Vec<server::Command>,
    ) -> (Vec<terminal::Command>, Vec<SetReachability>) {
        let (mut does, mut told) = (Vec::new(), Vec::new());
        for command in commands {
            match command {
                server::Command::Send(frame) => {
                    does.extend(self.terminal.handle(now, terminal::Event::Frame(frame)));
                }
                server::Command::Reached(set) => told.push(set),
                _ => {}
            }
        }
        (does, told)
    }

    fn anchor_comes(&mut self, now: Instant) -> (Vec<terminal::Command>, Vec<SetReachability>) {
        let commands = self.server.handle(now, server::Event::Anchor(ANCHOR));
        self.hears(now, commands)
    }
}

fn offering(class: Class) -> Option<Offer> {
    Some(Offer { class, ..Offer::default() })
}

#[test]
fn one_that_was_not_tried_is_tried_in_the_same_session() {
    let mut session = Session::open(offering(Class::Untried));
    assert!(session.server.lacks_anchor());
    let (does, told) = session.anchor_comes(Instant(60_000));
    let tries = Try { class: Class::Direct };
    assert_eq!(does, [terminal::Command::Unbind, terminal::Command::Send(TerminalFrame::Try(tries))]);
    assert_eq!(told, []);
    let tried = session.server.handle(Instant(60_001), server::Event::Frame(TerminalFrame::Try(tries)));
    assert!(matches!(tried[..], [server::Command::Try(Class::Direct, _)]), "{tried:?}");
    assert!(!session.server.lacks_anchor());
    assert_eq!(session.anchor_comes(Instant(60_002)), (vec![], vec![]), "once is enough");
}

#[test]
fn one_that_is_pinned_keeps_a_binding_and_the_row_says_so() {
    let mut session = Session::open(offering(Class::Pinned));
    let (does, told) = session.anchor_comes(Instant(60_000));
    assert!(matches!(does[..], [terminal::Command::Bind(_)]), "{does:?}");
    let pinned = Reachability::Pinned { anchor: NodeId(1), listening_key: LISTENING.key };
    assert_eq!(told.iter().map(|set| &set.reachability).collect::<Vec<_>>(), [&pinned]);
    // Proposed again until it is known, and the terminal, which did not ask, hears nothing of it.
    let unknown = session.server.handle(Instant(60_001), server::Event::ReachedDone(false));
    assert!(matches!(unknown[..], [server::Command::Reached(_)]), "{unknown:?}");
    assert_eq!(session.server.handle(Instant(60_002), server::Event::ReachedDone(true)), []);
}

#[test]
fn one_that_does_not_ask_hears_nothing_of_anchors() {
    let mut session = Session::open(None);
    assert!(!session.server.lacks_anchor());
    assert_eq!(session.anchor_comes(Instant(60_000)), (vec![], vec![]));
}
