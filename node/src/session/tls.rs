//! TLS of sessions: terminals prove a key, not a name. Resumption by tickets that every node of the cluster can open.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use reveille_protocol::directory::{Directory, Secret};
use reveille_protocol::hash::hmac_sha256;
use reveille_terminal::identity::{SESSION_ALPN, provider};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::server::{ProducesTickets, ResolvesServerCert};
use rustls::{Error, ServerConfig};

use crate::bare_key::BareKey;

/// How long a ticket is good, in seconds. TLS allows at most seven days (RFC 8446 section 4.6.1).
const TICKET_LIFETIME: u32 = 24 * 3600;

/// Settings for the session listener.
pub fn server_config(
    shown: Arc<dyn ResolvesServerCert>,
    tickets: Arc<Tickets>,
) -> Result<ServerConfig, Error> {
    let provider = provider();
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(BareKey::any(provider))
        .with_cert_resolver(shown);
    config.alpn_protocols = SESSION_ALPN.map(<[u8]>::to_vec).to_vec();
    config.ticketer = tickets;
    // One is enough for the next connection; each costs a seal and 400 bytes.
    config.send_tls13_tickets = 1;
    Ok(config)
}

/// Tickets under keys that derive from the cluster's secrets, so that any node opens what another one sealed and no
/// node remembers anything for a terminal.
///
/// Ticket: `generation u32 | nonce 12 | sealed`. Nonces are random: at 2^32 tickets per secret the chance of a
/// repeated one is 2^-33, and secrets rotate long before.
pub struct Tickets {
    keys: RwLock<Vec<(u32, LessSafeKey)>>,
    random: SystemRandom,
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tickets(keys not shown)")
    }
}

impl Default for Tickets {
    fn default() -> Self {
        Tickets { keys: RwLock::default(), random: SystemRandom::new() }
    }
}

impl Tickets {
    /// The directory changed: its secrets may have been rotated.
    pub fn update(&self, directory: &Directory) {
        let keys = directory.secrets.iter().filter_map(|secret| Some((secret.generation, key(secret)?)));
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys.collect();
    }
}

fn key(secret: &Secret) -> Option<LessSafeKey> {
    let bytes = hmac_sha256(&secret.key, &[b"session tickets"]);
    UnboundKey::new(&AES_256_GCM, &bytes).ok().map(LessSafeKey::new)
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        !self.keys.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn lifetime(&self) -> u32 {
        TICKET_LIFETIME
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let (generation, key) = keys.last()?;
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).ok()?;
        let mut sealed = plain.to_vec();
        let aad = Aad::from(generation.to_le_bytes());
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed).ok()?;
        Some([&generation.to_le_bytes()[..], &nonce, &sealed].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (generation, rest) = ticket.split_first_chunk::<4>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let (_, key) = keys.iter().find(|(known, _)| known.to_le_bytes() == *generation)?;
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let plain = key.open_in_place(nonce, Aad::from(*generation), &mut sealed).ok()?;
        Some(plain.to_vec())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn tickets(secrets: &[(u32, u8)]) -> Tickets {
        let secrets =
            secrets.iter().map(|(generation, byte)| Secret { generation: *generation, key: [*byte; 32] });
        let tickets = Tickets::default();
        tickets.update(&Directory { secrets: secrets.collect(), ..Directory::default() });
        tickets
    }

    #[test]
    fn any_node_opens_a_ticket_until_its_secret_is_gone() {
        let (one, other) = (tickets(&[(1, 7)]), tickets(&[(1, 7), (2, 8)]));
        let ticket = one.encrypt(b"session").unwrap();
        assert_eq!(other.decrypt(&ticket).unwrap(), b"session");
        assert_eq!(tickets(&[(2, 8)]).decrypt(&ticket), None, "rotated out");
        assert_eq!(tickets(&[(1, 9)]).decrypt(&ticket), None, "another cluster");
        let mut bent = ticket.clone();
        *bent.last_mut().unwrap() ^= 1;
        assert_eq!(one.decrypt(&bent), None);
        assert_eq!(one.decrypt(&ticket[..10]), None);
    }
}
