//! The notification, its acknowledgement, and the secret first connection id by which a terminal knows that a
//! packet comes from its cluster before it answers anything. Our own design; the source does not say how a
//! notification travels.

use serde::{Deserialize, Serialize};

use super::codec::{self, CodecError};
use crate::directory::Secret;
use crate::hash;
use crate::id::*;
use crate::limits;
use crate::service_list::row::Urgency;

/// Application protocol of the QUIC connection that carries notifications (RFC 7301).
pub const ALPN: &[u8] = b"reveille-notify/1";
/// The name that nodes put in their first packet: the same for every terminal, so that it tells nothing.
pub const SERVER_NAME: &str = "terminal.reveille.internal";
/// Bytes of the first connection id: the most that QUIC allows (RFC 9000 section 17.2).
pub const FIRST_CID: usize = 20;
const NONCE: usize = 8;

/// Tells an offline terminal to connect. It carries no authority: all it can cause is a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notification {
    /// Returned in the acknowledgement; repeated copies have the same.
    pub id: u64,
    /// The terminal's last granted epoch; a notification below the one the terminal knows is ignored.
    pub epoch: Epoch,
    /// Pushes that wait.
    pub pending: u32,
    /// The highest urgency among them.
    pub urgency: Urgency,
    /// Nodes to try first, `host:port`.
    pub hints: Vec<String>,
}

/// The terminal has the notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotificationAck {
    /// Of the notification.
    pub id: u64,
}

impl Notification {
    /// The datagram.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Reads a datagram.
    pub fn decode(bytes: &[u8]) -> Result<Notification, CodecError> {
        codec::decode::<Notification, { limits::MAX_NOTIFICATION }>(bytes)
    }
}

impl NotificationAck {
    /// The datagram.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Reads a datagram.
    pub fn decode(bytes: &[u8]) -> Result<NotificationAck, CodecError> {
        codec::decode::<NotificationAck, { limits::MAX_NOTIFICATION }>(bytes)
    }
}

/// What proves notifications to a terminal from one Welcome to the next. Derived, so that nodes store none; bound
/// to the epoch, so that what was captured before a session is worth nothing after it.
pub fn notify_secret(secret: &Secret, terminal: &TerminalId, stream: Stream, epoch: Epoch) -> [u8; 32] {
    let (stream, epoch) = (stream.0.to_be_bytes(), epoch.0.to_be_bytes());
    hash::hmac_sha256(&secret.key, &[b"reveille notify", &terminal.0, &stream, &epoch])
}

/// The destination connection id of a node's first packet: `nonce | HMAC(notify secret, nonce)`, cut to 20 bytes.
pub fn first_cid(notify_secret: &[u8; 32], nonce: u64) -> [u8; FIRST_CID] {
    let mut cid = [0; FIRST_CID];
    cid[..NONCE].copy_from_slice(&nonce.to_be_bytes());
    let mac = hash::hmac_sha256(notify_secret, &[b"first cid", &cid[..NONCE]]);
    cid[NONCE..].copy_from_slice(&mac[..FIRST_CID - NONCE]);
    cid
}

/// The nonce of a first connection id, if it was made with this secret.
pub fn check_first_cid(notify_secret: &[u8; 32], cid: &[u8]) -> Option<u64> {
    let nonce = u64::from_be_bytes(*cid.first_chunk::<NONCE>()?);
    hash::equal(&first_cid(notify_secret, nonce), cid).then_some(nonce)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_cid_is_good_for_its_secret_and_epoch_only() {
        let secret = Secret { generation: 1, key: [3; 32] };
        let terminal = TerminalId([1; 16]);
        let now = notify_secret(&secret, &terminal, Stream(5), Epoch(7));
        let cid = first_cid(&now, 42);
        assert_eq!(check_first_cid(&now, &cid), Some(42));
        let later = notify_secret(&secret, &terminal, Stream(5), Epoch(8));
        assert_eq!(check_first_cid(&later, &cid), None);
        assert_eq!(check_first_cid(&now, &cid[..19]), None);
        let mut bent = cid;
        bent[19] ^= 1;
        assert_eq!(check_first_cid(&now, &bent), None);
    }
}
