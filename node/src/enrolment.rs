//! Who may register a new terminal key: holders of a token that the tenant signed, or anyone where a tenant is open
//! (only `reveille dev`).
//!
//! Token, base64url without padding: `1 | tenant u32 | expires u64 | nonce 8 | Ed25519 signature of all before`,
//! integers big endian, `expires` in seconds since the Unix epoch.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::random::random;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reveille_protocol::directory::Directory;
use reveille_protocol::id::TenantId;
use ring::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};

const VERSION: u8 = 1;
const SIGNED: usize = 21;

/// The tenant that a new terminal belongs to; `None`: it is not let in.
pub fn admit(directory: &Directory, token: Option<&[u8]>) -> Option<TenantId> {
    match token {
        Some(token) => verify(directory, token, seconds_now()),
        None => directory.tenants.iter().find(|(_, tenant)| tenant.open).map(|(id, _)| *id),
    }
}

fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn verify(directory: &Directory, token: &[u8], now: u64) -> Option<TenantId> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
    let (signed, signature) = bytes.split_at_checked(SIGNED)?;
    let (&version, rest) = signed.split_first()?;
    let (tenant, rest) = rest.split_first_chunk::<4>()?;
    let (expires, _) = rest.split_first_chunk::<8>()?;
    if version != VERSION || u64::from_be_bytes(*expires) <= now {
        return None;
    }
    let tenant = TenantId(u32::from_be_bytes(*tenant));
    let key = directory.tenants.get(&tenant)?.enrolment_key?;
    UnparsedPublicKey::new(&ED25519, key).verify(signed, signature).ok().map(|()| tenant)
}

/// Makes a token that lets terminals in until `expires`.
pub fn sign(key: &Ed25519KeyPair, tenant: TenantId, expires: u64) -> anyhow::Result<String> {
    let mut token = Vec::with_capacity(SIGNED + 64);
    token.push(VERSION);
    token.extend_from_slice(&tenant.0.to_be_bytes());
    token.extend_from_slice(&expires.to_be_bytes());
    token.extend_from_slice(&random::<8>());
    let signature = key.sign(&token);
    token.extend_from_slice(signature.as_ref());
    Ok(URL_SAFE_NO_PAD.encode(token))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use reveille_protocol::directory::Tenant;
    use ring::signature::KeyPair;

    #[test]
    fn tokens_let_in_until_they_end_and_only_their_tenants() {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new()).unwrap();
        let key = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        let public: [u8; 32] = key.public_key().as_ref().try_into().unwrap();
        let tenant = Tenant { name: "a".to_owned(), enrolment_key: Some(public), open: false };
        let mut directory = Directory::default();
        directory.tenants.insert(TenantId(5), tenant);
        let token = sign(&key, TenantId(5), 1000).unwrap();
        assert_eq!(verify(&directory, token.as_bytes(), 999), Some(TenantId(5)));
        assert_eq!(verify(&directory, token.as_bytes(), 1000), None, "expired");
        assert_eq!(verify(&directory, &token.as_bytes()[1..], 1), None);
        let other = sign(&key, TenantId(6), 1000).unwrap();
        assert_eq!(verify(&directory, other.as_bytes(), 1), None, "no such tenant");
        assert_eq!(admit(&directory, None), None, "no tenant is open");
    }
}
