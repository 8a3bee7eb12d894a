//! Join tokens: what an operator gives to a machine that shall become a node. Text and check; what one allows is the
//! directory's.
//!
//! `join-NODE-CA-SECRET`: the node's id, the first 8 bytes of the SHA-256 of the cluster's CA certificate, and 16 random
//! bytes, both in hex. The cluster knows only the hash of the secret.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, ensure};
use reveille_protocol::hash::sha256;
use reveille_protocol::id::KeyFingerprint;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Whom it is for.
    pub node: u64,
    /// Under which CA it was made.
    pub ca: String,
    /// Random.
    secret: String,
}

/// The first 8 bytes of the SHA-256 of a certificate, in hex.
pub fn ca_fingerprint(certificate: &[u8]) -> String {
    hex(&sha256(certificate)[..8])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl JoinToken {
    /// A token of this secret; the node's id is known only when the cluster has given it.
    pub fn new(node: u64, ca: String, secret: [u8; 16]) -> JoinToken {
        JoinToken { node, ca, secret: hex(&secret) }
    }

    /// What the cluster knows of it.
    pub fn hash(&self) -> KeyFingerprint {
        KeyFingerprint(sha256(self.secret.as_bytes()))
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "join-{}-{}-{}", self.node, self.ca, self.secret)
    }
}

impl FromStr for JoinToken {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<JoinToken> {
        let parts: Vec<&str> = text.split('-').collect();
        let ["join", node, ca, secret] = parts[..] else {
            anyhow::bail!("a join token looks like join-NODE-CA-SECRET; `reveille cluster add` makes one");
        };
        let node = node.parse().context("the join token names no node")?;
        let is_hex =
            |text: &str, len: usize| text.len() == len && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        ensure!(is_hex(ca, 16) && is_hex(secret, 32), "the join token is cut short or changed");
        Ok(JoinToken { node, ca: ca.to_owned(), secret: secret.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_token_reads_back_and_a_changed_one_does_not() {
        let token = JoinToken::new(4, ca_fingerprint(b"certificate"), [7; 16]);
        let text = token.to_string();
        assert_eq!(text.parse::<JoinToken>().unwrap(), token);
        for bad in ["", "join-4", &text[1..], &text[..text.len() - 1], &text.replace("join-4", "join-x")] {
            assert!(bad.parse::<JoinToken>().is_err(), "{bad}");
        }
    }
}
