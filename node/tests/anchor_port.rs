//! A node's anchor port in the hands of those who mean no good: what they send has no effect but a counter, nothing that
//! is not a terminal's own gets an answer, and no answer is longer than what it answers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

mod support;

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use reveille_protocol::id::KeyFingerprint;
use reveille_protocol::wire::session::{Anchor, Cause, Class, Listening, NodeFrame, Offer, TerminalFrame};
use reveille_protocol::wire::stun::{self, Handle, Message, Packet, Pin, PinSlot, Proof, Transaction};
use support::Dev;
use support::raw::{Connection, Raw, counter};

const PATIENCE: Duration = Duration::from_secs(20);
const PIN: Pin =
    Pin { handle: Handle([0; 16]), generation: 0, period: 25, slot: PinSlot::Primary, ring: false };

/// What it is, the counter that must rise for each (`None`: it is QUIC's to ignore), and datagrams of it.
type Bad = (&'static str, Option<usize>, Vec<Vec<u8>>);

/// A terminal's end of a binding, every keepalive the test's.
struct Bound {
    anchor: Anchor,
    at: SocketAddr,
    socket: UdpSocket,
    number: u64,
    _session: Connection,
}

impl Bound {
    async fn of(dev: &Dev) -> Bound {
        let raw = Raw::speaking(&dev.ca(), reveille_terminal::identity::SESSION_ALPN[0]);
        let address = dev.node(1)["session"].as_str().unwrap();
        for attempt in 1..100 {
            let mut session = raw.connect(address).await;
            let offer = Offer { class: Class::Untried, cause: Cause::Start };
            session.say(TerminalFrame::Offer(offer)).await;
            let listening = Some(Listening { port: 9999, key: KeyFingerprint([1; 32]) });
            let hello = reveille_protocol::wire::session::Hello { listening, ..raw.hello(attempt) };
            session.say(TerminalFrame::Hello(hello)).await;
            // A cluster that has just started has not taken its format yet: then there is none.
            if let Some(NodeFrame::Anchor(anchor)) = session.hear(PATIENCE).await {
                let at = SocketAddr::new(address.parse::<SocketAddr>().unwrap().ip(), anchor.port);
                let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                return Bound { anchor, at, socket, number: 0, _session: session };
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        panic!("no anchor in 20 s");
    }

    fn pin(&self) -> Pin {
        Pin { handle: Handle(self.anchor.handle), generation: self.anchor.generation, ..PIN }
    }

    fn sealed(&self, message: &Message, number: u64) -> Packet {
        stun::encode(message, Transaction { number, tail: [0; 4] }, &self.anchor.key)
    }

    /// The next keepalive, not sent.
    fn next(&mut self, proof: Option<Proof>) -> Packet {
        self.number += 1;
        self.sealed(&Message::Keepalive { pin: self.pin(), wants_answer: true, proof }, self.number)
    }

    fn hear(&self, socket: &UdpSocket) -> (Message, usize) {
        let mut buffer = [0; 2048];
        let (len, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(from, self.at);
        (stun::decode(&buffer[..len]).unwrap().open(&self.anchor.key).unwrap().0, len)
    }

    fn say(&mut self, proof: Option<Proof>) -> Message {
        let keepalive = self.next(proof);
        self.socket.send_to(&keepalive, self.at).unwrap();
        let (message, len) = self.hear(&self.socket);
        assert!(len <= keepalive.len(), "{len} bytes for {}", keepalive.len());
        message
    }

    fn prove(&mut self) {
        let Message::Challenge(proof) = self.say(None) else { panic!("no challenge") };
        let address = self.socket.local_addr().unwrap();
        assert_eq!(self.say(Some(proof)), Message::Mapped { address, waiting: false });
    }

    /// Everything that was sent to the node before has been looked at.
    fn fence(&mut self, admin: &str) {
        // Whether it is answered or not: few are in a second.
        let kinds = ["answered", "taken"];
        let heard =
            || kinds.map(|kind| counter(admin, &format!("reveille_keepalives_total{{kind=\"{kind}\"}}")));
        let (before, deadline) = (heard(), std::time::Instant::now() + PATIENCE);
        let keepalive = self.next(None);
        self.socket.send_to(&keepalive, self.at).unwrap();
        while heard() == before {
            assert!(std::time::Instant::now() < deadline, "a keepalive was not counted");
        }
    }
}

fn silent(socket: &UdpSocket) -> bool {
    socket.set_nonblocking(true).unwrap();
    let heard = socket.recv_from(&mut [0; 2048]);
    socket.set_nonblocking(false).unwrap();
    heard.is_err()
}

/// With optional attributes between the last one and the seal that `key` makes anew.
fn stretched(packet: &[u8], by: usize) -> Vec<u8> {
    let mut bytes = packet.to_vec();
    for _ in 0..by {
        bytes.extend_from_slice(&[0xff, 0x00, 0, 0]);
    }
    let length = (bytes.len() - 20) as u16;
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
    bytes
}

#[tokio::test]
async fn what_is_no_keepalive_has_no_effect_and_no_answer() {
    let dev = Dev::start();
    let (mut terminal, mut other) = (Bound::of(&dev).await, Bound::of(&dev).await);
    assert_ne!(terminal.anchor.handle, other.anchor.handle);
    terminal.prove();
    other.prove();
    let admin = dev.node(1)["admin"].as_str().unwrap().to_owned();
    let kinds = ["not_stun", "malformed", "unknown_secret", "forged", "replayed"];
    let ignored =
        || kinds.map(|kind| counter(&admin, &format!("reveille_keepalives_total{{kind=\"{kind}\"}}")));

    let good = terminal.next(None);
    let seen = {
        let keepalive = terminal.next(None);
        terminal.socket.send_to(&keepalive, terminal.at).unwrap();
        assert!(matches!(terminal.hear(&terminal.socket).0, Message::Mapped { .. }));
        keepalive
    };
    let pin = terminal.pin();
    let keepalive = |pin| Message::Keepalive { pin, wants_answer: true, proof: None };
    let far = u64::MAX / 2;
    let forged_by = |key: [u8; 32]| {
        stun::encode(&keepalive(pin), Transaction { number: far, tail: [0; 4] }, &key).to_vec()
    };
    let first = |byte: u8| {
        let mut bytes = terminal.sealed(&keepalive(pin), far).to_vec();
        bytes[0] = byte;
        bytes
    };
    let initial = |version: [u8; 4]| {
        let mut bytes = [&[0xc3][..], &version, &[20], &[7; 20], &[0, 0, 0x44, 0x96]].concat();
        bytes.resize(1200, 0);
        bytes
    };
    let mut bad: Vec<Bad> = vec![
        ("cut short", Some(0), (1..good.len()).map(|len| good[..len].to_vec()).collect()),
        ("stretched beyond what is read", Some(0), vec![stretched(&good, 30)]),
        ("stretched behind the seal", Some(1), vec![stretched(&good, 1)]),
        ("noise that begins like STUN", Some(0), (0..64).map(|byte| vec![byte % 4; 76]).collect()),
        (
            "what the anchor itself says",
            Some(1),
            [
                Message::Mapped { address: terminal.at, waiting: true },
                Message::Challenge([1; 8]),
                Message::Ring { waiting: true },
            ]
            .map(|message| terminal.sealed(&message, far).to_vec())
            .to_vec(),
        ),
        (
            "of another secret",
            Some(2),
            vec![terminal.sealed(&keepalive(Pin { generation: 99, ..pin }), far).to_vec()],
        ),
        ("forged", Some(3), (0..=255).map(|byte| forged_by([byte; 32])).collect()),
        ("sealed by another terminal", Some(3), vec![forged_by(other.anchor.key)]),
        (
            "of another terminal's handle",
            Some(3),
            vec![
                terminal.sealed(&keepalive(Pin { handle: Handle(other.anchor.handle), ..pin }), far).to_vec(),
            ],
        ),
        ("replayed", Some(4), vec![seen.to_vec(); 100]),
        ("overtaken", Some(4), vec![good.to_vec()]),
        ("QUIC by the first byte", None, [0x40, 0x44, 0x60, 0x7f, 0xc0, 0xe0, 0xff].map(first).to_vec()),
        (
            "real QUIC",
            None,
            vec![
                initial([0, 0, 0, 1]),
                initial([0x0a; 4]),
                initial([0; 4]),
                vec![0x41; 1200],
                vec![0xff; 1200],
            ],
        ),
    ];
    let flipped = terminal.sealed(&keepalive(pin), far);
    let bits = (8..flipped.len() * 8).map(|bit| {
        let mut bytes = flipped.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        bytes
    });
    bad.push(("one bit flipped", None, bits.collect()));

    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    for (what, kind, datagrams) in &bad {
        let before = ignored();
        // No more than the node's socket holds.
        for some in datagrams.chunks(16) {
            for datagram in some {
                stranger.send_to(datagram, terminal.at).unwrap();
                // From the terminal's own address no more than from another.
                terminal.socket.send_to(datagram, terminal.at).unwrap();
            }
            other.fence(&admin);
        }
        let after = ignored();
        let rose = 2 * datagrams.len() as u64;
        match kind {
            Some(kind) => assert_eq!(after[*kind] - before[*kind], rose, "{what}: {before:?} {after:?}"),
            None if *what == "one bit flipped" => {
                let all = |counts: [u64; 5]| counts.iter().sum::<u64>();
                assert_eq!(all(after) - all(before), rose, "{what}: {before:?} {after:?}");
            }
            None => assert_eq!(after, before, "{what}"),
        }
        assert!(silent(&stranger) && silent(&terminal.socket), "{what} was answered");
    }
    let address = terminal.socket.local_addr().unwrap();
    assert_eq!(terminal.say(None), Message::Mapped { address, waiting: false }, "all is as it was");
}

/// A keepalive that nobody has heard yet, sent with the victim's address for its sender: the victim gets one datagram, not
/// longer than that, and the binding stays where it is.
#[tokio::test]
async fn a_false_sender_address_gets_a_challenge_no_longer_than_what_caused_it() {
    let dev = Dev::start();
    let mut terminal = Bound::of(&dev).await;
    terminal.prove();
    let victim = UdpSocket::bind("127.0.0.1:0").unwrap();
    victim.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut sent, mut got) = (0, 0);
    for wants_answer in [true, false] {
        terminal.number += 1;
        let message = Message::Keepalive { pin: terminal.pin(), wants_answer, proof: None };
        let keepalive = terminal.sealed(&message, terminal.number);
        for _ in 0..100 {
            victim.send_to(&keepalive, terminal.at).unwrap();
            sent += keepalive.len();
        }
        let (message, len) = terminal.hear(&victim);
        assert!(matches!(message, Message::Challenge(_)), "{message:?}");
        assert!(len <= keepalive.len(), "{len} bytes for {}", keepalive.len());
        got += len;
    }
    let address = terminal.socket.local_addr().unwrap();
    assert_eq!(terminal.say(None), Message::Mapped { address, waiting: false });
    assert!(silent(&victim), "a copy was answered");
    eprintln!("{sent} bytes under a false address made {got} arrive there");
}

#[tokio::test]
async fn a_node_that_is_cut_off_is_nobodys_anchor() {
    let dev = Dev::start();
    let mut terminal = Bound::of(&dev).await;
    terminal.prove();
    let admin = dev.node(1)["admin"].as_str().unwrap().to_owned();
    let ignored = || counter(&admin, "reveille_keepalives_total{kind=\"cut_off\"}");
    assert_eq!(ignored(), 0);
    let others = [dev.pause_node(2), dev.pause_node(3)];
    let deadline = std::time::Instant::now() + PATIENCE * 2;
    terminal.socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    // Silence alone says nothing: no more than four a second are answered by a node that serves, either.
    while ignored() == 0 {
        assert!(std::time::Instant::now() < deadline, "keepalives are taken still");
        let keepalive = terminal.next(None);
        terminal.socket.send_to(&keepalive, terminal.at).unwrap();
        std::thread::sleep(Duration::from_millis(300));
    }
    // The answers to those before.
    while terminal.socket.recv_from(&mut [0; 2048]).is_ok() {}
    let mut answer = || {
        let keepalive = terminal.next(None);
        terminal.socket.send_to(&keepalive, terminal.at).unwrap();
        terminal.socket.recv_from(&mut [0; 2048]).is_ok()
    };
    assert!(!answer(), "it is cut off and answers");
    drop(others);
    while !answer() {
        assert!(std::time::Instant::now() < deadline, "not answered again");
    }
}
