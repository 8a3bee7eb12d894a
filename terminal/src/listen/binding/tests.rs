//! The binding's task, against an anchor that is the test's: when it says that it is time to check in, and when it doubts what
//! was measured.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where it is surprised")]
use quinn::{Runtime, TokioRuntime};
use reveille_protocol::wire::stun::{self, Message};

use super::super::sieve::Sieve;
use super::*;

const MILLI: Duration = Duration::from_millis(1);

/// A binding's task with a socket of its own, and an anchor's socket.
async fn start(folder: &Path) -> (Binding, UdpSocket, Arc<Gate>) {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let socket = TokioRuntime.wrap_udp_socket(socket).unwrap();
    let watching = Watching { tick: None, clock: Default::default() };
    let moved = watch::channel(()).0;
    let gate = Arc::new(Gate::default());
    let binding = Binding::start(socket, gate.clone(), folder, watching, moved);
    (binding, UdpSocket::bind("127.0.0.1:0").await.unwrap(), gate)
}

async fn told(binding: &mut Binding) -> Told {
    tokio::time::timeout(5000 * MILLI, binding.told.recv()).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_check_in_is_told_once_unless_a_session_comes_before() {
    let folder = tempfile::tempdir().unwrap();
    let (mut binding, ..) = start(folder.path()).await;
    binding.check_in(10 * MILLI);
    assert_eq!(told(&mut binding).await, Told::CheckIn);
    binding.check_in(300 * MILLI);
    binding.session(true);
    binding.session(false);
    let again = tokio::time::timeout(1000 * MILLI, binding.told.recv()).await;
    assert!(again.is_err(), "{again:?}");
}

#[tokio::test]
async fn no_keepalive_is_sent_when_it_is_time_to_check_in() {
    let folder = tempfile::tempdir().unwrap();
    let (mut binding, anchor, _) = start(folder.path()).await;
    let seen = [127, 0, 0, 1].into();
    let keeping = Anchor { port: 1, handle: [1; 16], generation: 1, key: [2; 32], period: 10, seen };
    binding.bind(keeping, anchor.local_addr().unwrap());
    // The first, and a repeat after half a second; the next is due half a second later, and a check-in near it.
    let mut datagram = [0; limits::MAX_STUN];
    let mut heard = async || {
        let heard = tokio::time::timeout(2500 * MILLI, anchor.recv_from(&mut datagram)).await;
        heard.is_ok()
    };
    assert!(heard().await && heard().await);
    binding.check_in(700 * MILLI);
    assert!(!heard().await, "a keepalive although a session is about to open");
    let what = loop {
        match told(&mut binding).await {
            Told::Period { .. } => {}
            what => break what,
        }
    };
    assert_eq!(what, Told::CheckIn);
    // The session's end begins anew.
    binding.session(true);
    binding.session(false);
    assert!(heard().await);
}

#[tokio::test]
async fn a_network_whose_binding_ends_between_keepalives_is_measured_again() {
    let folder = tempfile::tempdir().unwrap();
    let networks = folder.path().join("networks");
    std::fs::write(&networks, "127.0.0.1 96\n192.0.2.1 24\n").unwrap();
    let (mut binding, anchor, gate) = start(folder.path()).await;
    let seen = [127, 0, 0, 1].into();
    let keeping = Anchor { port: 1, handle: [1; 16], generation: 1, key: [2; 32], period: 25, seen };
    binding.bind(keeping.clone(), anchor.local_addr().unwrap());
    // Answers the next keepalive: the anchor sees it at this port.
    let answers = async |port: u16| {
        let mut datagram = [0; limits::MAX_STUN];
        let heard = tokio::time::timeout(5000 * MILLI, anchor.recv_from(&mut datagram)).await;
        let (len, _) = heard.unwrap().unwrap();
        let (_, transaction) = stun::decode(&datagram[..len]).unwrap().open(&[2; 32]).unwrap();
        let mapped = Message::Mapped { address: (seen, port).into(), waiting: false };
        // Nobody reads the terminal's socket here.
        let answer = stun::encode(&mapped, transaction, &[2; 32]);
        assert!(!gate.passes(&answer, anchor.local_addr().unwrap()));
    };
    let period = |seconds, measured| Told::Period { period: Duration::from_secs(seconds), measured };
    let mapped = |port: u16| Told::Mapped((seen, port).into());

    answers(4000).await;
    assert_eq!([told(&mut binding).await, told(&mut binding).await], [period(96, true), mapped(4000)]);
    // The second keepalive follows the first after three seconds. After a session it may be another binding: that says nothing.
    binding.session(true);
    binding.session(false);
    answers(5000).await;
    assert_eq!(told(&mut binding).await, mapped(5000));

    binding.bind(keeping, anchor.local_addr().unwrap());
    answers(6000).await;
    assert_eq!([told(&mut binding).await, told(&mut binding).await], [period(96, true), mapped(6000)]);
    answers(7000).await;
    assert_eq!([told(&mut binding).await, told(&mut binding).await], [mapped(7000), period(25, false)]);
    assert_eq!(std::fs::read_to_string(networks).unwrap(), "192.0.2.1 24\n");
}
