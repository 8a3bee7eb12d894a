//! What a node's end of a session is born with, in tests of it. Says nothing of the terminal's end.

use std::net::IpAddr;
use std::time::Duration;

use reveille_protocol::directory::Secret;
use reveille_protocol::id::*;
use reveille_protocol::session::server::Config;

/// The terminal's session key.
pub const KEY: KeyFingerprint = KeyFingerprint([9; 32]);

/// At a node of a cluster that is not ready for anchors.
pub fn config() -> Config {
    Config {
        node: NodeId(1),
        incarnation: Incarnation(1),
        session_key: KEY,
        group: GroupId(1),
        peer_ip: IpAddr::from([192, 0, 2, 1]),
        secret: Secret { generation: 1, key: [3; 32] },
        check_in: Duration::from_secs(3600),
        linger_max: None,
        anchor: None,
    }
}
