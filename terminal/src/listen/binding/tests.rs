//! When the binding's task says that it is time to check in, against an anchor that does not answer.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where it is surprised")]
use quinn::{Runtime, TokioRuntime};

use super::*;

const MILLI: Duration = Duration::from_millis(1);

/// A binding's task with a socket of its own, and an anchor that does not answer.
async fn start(folder: &Path) -> (Binding, UdpSocket) {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let socket = TokioRuntime.wrap_udp_socket(socket).unwrap();
    let watching = Watching { tick: None, clock: Default::default() };
    let moved = watch::channel(()).0;
    let binding = Binding::start(socket, Arc::default(), folder, watching, moved);
    (binding, UdpSocket::bind("127.0.0.1:0").await.unwrap())
}

async fn told(binding: &mut Binding) -> Told {
    tokio::time::timeout(5000 * MILLI, binding.told.recv()).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_check_in_is_told_once_unless_a_session_comes_before() {
    let folder = tempfile::tempdir().unwrap();
    let (mut binding, _anchor) = start(folder.path()).await;
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
    let (mut binding, anchor) = start(folder.path()).await;
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
