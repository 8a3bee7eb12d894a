//! The terminal's keys and whom it trusts: the session key that names it, the listening key that answers
//! notifications, the cluster's CA. TLS settings for both directions.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair, PKCS_ED25519, PublicKeyData};
use reveille_protocol::id::{KeyFingerprint, TerminalId};
use reveille_protocol::wire::notification;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{CipherSuite, ClientConfig, RootCertStore, ServerConfig};

/// Application protocols of sessions (RFC 7301), the best first. The second finds out how a terminal is reached.
pub const SESSION_ALPN: [&[u8]; 2] = [b"reveille-session/2", b"reveille-session/1"];
/// Nodes whose QUIC sessions are remembered for 0-RTT: each of a large cluster, once.
const REMEMBERED_NODES: usize = 64;

/// The cryptography of sessions and notifications, the same at both ends: rustls' own choice, but AES-128 with SHA-256
/// first. A resumed handshake is little else than hashing, and of SHA-256 most processors have instructions.
pub fn provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

/// Keys or certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A key file holds no key.
    #[error(
        "{path} holds no usable key: {error}; without it the terminal is another one: restore it, or delete the state and enrol anew"
    )]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        error: rcgen::Error,
    },
    /// The CA file holds no certificate.
    #[error("{path} holds no CA certificate: {why}")]
    Ca {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// rustls refuses.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// Who a terminal is.
#[derive(Debug, Clone)]
pub struct Identity {
    session_key: KeyFingerprint,
    listening_key: KeyFingerprint,
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) server: Arc<ServerConfig>,
}

impl Identity {
    /// Reads the keys in a folder, or makes them, and the CA's certificate. With `resumption` TLS tickets are kept
    /// in memory.
    pub fn open(folder: &Path, ca: &Path, resumption: bool) -> Result<Identity, IdentityError> {
        let session = Key::open(&folder.join("session.key"))?;
        let listening = Key::open(&folder.join("listening.key"))?;
        let roots = Arc::new(roots(ca)?);
        let provider = provider();
        let tls13 = &[&rustls::version::TLS13];
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(tls13)?
            .with_root_certificates(roots.clone())
            .with_client_auth_cert(vec![session.certificate], session.private)?;
        client.alpn_protocols = SESSION_ALPN.map(<[u8]>::to_vec).to_vec();
        if !resumption {
            client.resumption = rustls::client::Resumption::disabled();
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|error| IdentityError::Ca { path: ca.to_owned(), why: error.to_string() })?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(tls13)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![listening.certificate], listening.private)?;
        server.alpn_protocols = vec![notification::ALPN.to_vec()];
        // 0-RTT needs sessions that the server remembers, and QUIC this very number (RFC 9001 section 4.6.1). What
        // arrives by it can be replayed; a notification can only cause a connection.
        server.max_early_data_size = u32::MAX;
        server.session_storage = rustls::server::ServerSessionMemoryCache::new(REMEMBERED_NODES);
        // A node keeps one. Of two, rustls' usual number, the other would take a place among those remembered.
        server.send_tls13_tickets = 1;
        Ok(Identity {
            session_key: session.fingerprint,
            listening_key: listening.fingerprint,
            client: Arc::new(client),
            server: Arc::new(server),
        })
    }

    /// The id that the session key gives.
    pub fn terminal(&self) -> TerminalId {
        self.session_key.terminal()
    }

    /// The fingerprint of the session key: what bulk pre-registration takes.
    pub fn session_key(&self) -> KeyFingerprint {
        self.session_key
    }

    /// The fingerprint of the key that answers notifications.
    pub fn listening_key(&self) -> KeyFingerprint {
        self.listening_key
    }
}

struct Key {
    fingerprint: KeyFingerprint,
    certificate: CertificateDer<'static>,
    private: PrivateKeyDer<'static>,
}

impl Key {
    fn open(path: &Path) -> Result<Key, IdentityError> {
        let broken = |error| IdentityError::Key { path: path.to_owned(), error };
        let pair = match fs::read_to_string(path) {
            Ok(pem) => KeyPair::from_pem(&pem).map_err(broken)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let pair = KeyPair::generate_for(&PKCS_ED25519).map_err(broken)?;
                save(path, &pair.serialize_pem())
                    .map_err(|error| IdentityError::Io { path: path.to_owned(), error })?;
                pair
            }
            Err(error) => return Err(IdentityError::Io { path: path.to_owned(), error }),
        };
        // Only its key is looked at, so the certificate needs no name and lives as long as the process.
        let params = CertificateParams::new(Vec::new()).map_err(broken)?;
        let certificate = params.self_signed(&pair).map_err(broken)?;
        Ok(Key {
            fingerprint: KeyFingerprint::of_spki(&pair.subject_public_key_info()),
            certificate: certificate.der().clone(),
            private: PrivatePkcs8KeyDer::from(pair.serialize_der()).into(),
        })
    }
}

/// Written beside and renamed, so that a kill in the middle leaves no half of a key.
fn save(path: &Path, pem: &str) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(pem.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    match path.parent() {
        Some(folder) => fs::File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

fn roots(ca: &Path) -> Result<RootCertStore, IdentityError> {
    let bad = |why: String| IdentityError::Ca { path: ca.to_owned(), why };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).map_err(|error| bad(error.to_string()))? {
        roots
            .add(certificate.map_err(|error| bad(error.to_string()))?)
            .map_err(|error| bad(error.to_string()))?;
    }
    if roots.is_empty() { Err(bad("the file has no certificate".to_owned())) } else { Ok(roots) }
}
