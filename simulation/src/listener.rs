//! A terminal's UDP socket: the gate before notifications, and the binding with the anchor, as `terminal/src/listen.rs`
//! has it. No session, and no network.

use std::net::SocketAddr;
use std::time::Duration;

use reveille_protocol::anchor::keeper::{self, Identity, Keeper, Keeping};
use reveille_protocol::id::KeyFingerprint;
use reveille_protocol::time::Instant;
use reveille_protocol::wire::notification::{Notification, NotificationAck, check_first_cid};
use reveille_protocol::wire::session::Anchor;
use reveille_protocol::wire::stun::Handle;

use crate::notifier::Datagram;

/// What came of something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    Send(SocketAddr, Datagram),
    Notified(Notification),
    Told(Told),
}

/// What the binding came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    Mapped(SocketAddr),
    Waiting,
    Lost,
}

/// One life of the socket.
#[derive(Debug)]
pub struct Listener {
    key: KeyFingerprint,
    secrets: [Option<[u8; 32]>; 2],
    nonces: Vec<(u64, SocketAddr)>,
    keeper: Option<(Keeper, SocketAddr)>,
    in_session: bool,
    /// The last one taken; a copy of it is only answered.
    taken: Option<u64>,
}

impl Listener {
    pub fn new(key: KeyFingerprint) -> Listener {
        Listener { key, secrets: [None; 2], nonces: Vec::new(), keeper: None, in_session: true, taken: None }
    }

    pub fn set_secret(&mut self, secret: [u8; 32]) {
        if self.secrets[0] != Some(secret) {
            self.secrets = [Some(secret), self.secrets[0]];
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.keeper.as_ref().and_then(|(keeper, _)| keeper.poll_timeout())
    }

    /// With whom it keeps a binding.
    pub fn anchor(&self) -> Option<SocketAddr> {
        self.keeper.as_ref().map(|(_, at)| *at)
    }

    pub fn bind(&mut self, now: Instant, anchor: &Anchor, at: SocketAddr, seed: u64) {
        let Anchor { handle, generation, key, period, .. } = *anchor;
        let identity = Identity { handle: Handle(handle), generation, key };
        let period = Duration::from_secs(period.into());
        self.keeper = Some((Keeper::new(now, &Keeping { identity, number: 0, period, seed }), at));
    }

    pub fn unbind(&mut self) {
        self.keeper = None;
    }

    pub fn session(&mut self, now: Instant, open: bool) -> Vec<Deed> {
        self.in_session = open;
        self.keep(now, if open { keeper::Event::SessionOpened } else { keeper::Event::SessionClosed })
    }

    pub fn timeout(&mut self, now: Instant) -> Vec<Deed> {
        self.keep(now, keeper::Event::Timeout)
    }

    fn keep(&mut self, now: Instant, event: keeper::Event<'_>) -> Vec<Deed> {
        let Some((keeper, at)) = &mut self.keeper else { return Vec::new() };
        let (mut deeds, mut mapped) = (Vec::new(), false);
        for command in keeper.handle(now, event) {
            deeds.push(match command {
                keeper::Command::Send(packet) => Deed::Send(*at, Datagram::Stun(packet.to_vec())),
                keeper::Command::Mapped(address) => {
                    mapped = true;
                    Deed::Told(Told::Mapped(address))
                }
                keeper::Command::Waiting => Deed::Told(Told::Waiting),
                keeper::Command::Lost => Deed::Told(Told::Lost),
            });
        }
        if mapped && self.in_session {
            keeper.handle(now, keeper::Event::SessionOpened);
        }
        deeds
    }

    pub fn received(&mut self, now: Instant, from: SocketAddr, datagram: &Datagram) -> Vec<Deed> {
        match datagram {
            Datagram::Stun(bytes) => match self.anchor() == Some(from) {
                true => self.keep(now, keeper::Event::Received(bytes)),
                false => Vec::new(),
            },
            Datagram::Notify { cid, bytes } => self.notified(from, cid, bytes),
            Datagram::Ack { .. } => Vec::new(),
        }
    }

    fn notified(&mut self, from: SocketAddr, cid: &[u8], bytes: &[u8]) -> Vec<Deed> {
        let nonce = self.secrets.iter().flatten().find_map(|secret| check_first_cid(secret, cid));
        let Some(nonce) = nonce else { return Vec::new() };
        match self.nonces.iter().find(|(known, _)| *known == nonce) {
            Some((_, source)) if *source != from => return Vec::new(),
            Some(_) => {}
            None => self.nonces.push((nonce, from)),
        }
        let notification = Notification::decode(bytes).expect("a notification");
        let bytes = NotificationAck { id: notification.id }.encode();
        let mut deeds = vec![Deed::Send(from, Datagram::Ack { key: self.key, bytes })];
        if self.taken != Some(notification.id) {
            self.taken = Some(notification.id);
            deeds.push(Deed::Notified(notification));
        }
        deeds
    }
}
