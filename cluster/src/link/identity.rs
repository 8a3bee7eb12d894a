//! Who a node is to its peers: a certificate of the cluster's CA that names the cluster and the node's id.

use std::path::PathBuf;
use std::sync::Arc;

use reveille_protocol::id::NodeId;
use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Application protocol of links (RFC 7301).
const ALPN: &[u8] = b"reveille-link/1";

/// The DNS name in a node's certificate by which its peers know it.
pub fn node_name(node: NodeId, cluster: u64) -> String {
    format!("node-{node}.{cluster:016x}.reveille.internal")
}

/// Certificates that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read.
    #[error("{file} cannot be read: {error}")]
    File {
        /// The file.
        file: PathBuf,
        /// Why.
        error: rustls::pki_types::pem::Error,
    },
    /// rustls refuses them.
    #[error("certificate or key cannot be used: {0}")]
    Tls(#[from] rustls::Error),
    /// They make no verifier.
    #[error("the CA certificate cannot be used: {0}")]
    Ca(String),
    /// The certificate is not this node's.
    #[error(
        "the certificate does not name {expected}; it names {found}. Make one with `reveille certs node`"
    )]
    NotOurs {
        /// The name it should have.
        expected: String,
        /// The names it has.
        found: String,
    },
    /// It is not valid now.
    #[error(
        "the certificate is not valid at this time (valid {not_before} to {not_after}); renew it with `reveille certs node`, or check the clock"
    )]
    NotNow {
        /// Begin.
        not_before: String,
        /// End.
        not_after: String,
    },
}

/// A node's certificate and key, and the CA that it trusts.
#[derive(Clone)]
pub struct Identity {
    pub(super) server: Arc<ServerConfig>,
    pub(super) client: Arc<ClientConfig>,
}

impl Identity {
    /// Checks that the certificate is this node's and valid now, and prepares both directions.
    pub fn new(
        node: NodeId,
        cluster: u64,
        ca: Vec<CertificateDer<'static>>,
        chain: Vec<CertificateDer<'static>>,
        key: &PrivateKeyDer<'static>,
    ) -> Result<Identity, IdentityError> {
        let expected = node_name(node, cluster);
        check(chain.first(), &expected)?;
        let mut roots = RootCertStore::empty();
        for certificate in ca {
            roots.add(certificate)?;
        }
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let bad_ca = |error: rustls::client::VerifierBuilderError| IdentityError::Ca(error.to_string());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(bad_ca)?;
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        let verifier =
            WebPkiServerVerifier::builder_with_provider(roots, provider.clone()).build().map_err(bad_ca)?;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_webpki_verifier(verifier)
            .with_client_auth_cert(chain, key.clone_key())?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Identity { server: Arc::new(server), client: Arc::new(client) })
    }
}

fn check(certificate: Option<&CertificateDer<'_>>, expected: &str) -> Result<(), IdentityError> {
    let found = certificate.map(names).unwrap_or_default();
    if !found.iter().any(|name| name == expected) {
        let found = if found.is_empty() { "nothing".to_owned() } else { found.join(", ") };
        return Err(IdentityError::NotOurs { expected: expected.to_owned(), found });
    }
    if let Some((_, parsed)) = certificate.and_then(|der| X509Certificate::from_der(der).ok())
        && !parsed.validity().is_valid()
    {
        return Err(IdentityError::NotNow {
            not_before: parsed.validity().not_before.to_string(),
            not_after: parsed.validity().not_after.to_string(),
        });
    }
    Ok(())
}

/// The DNS names in a certificate.
fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some(names)) = parsed.subject_alternative_name() else { return Vec::new() };
    let dns = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    });
    dns.collect()
}

/// The node that a verified certificate names, if it is one of this cluster.
pub(super) fn node_of(certificate: &CertificateDer<'_>, cluster: u64) -> Option<NodeId> {
    let suffix = format!(".{cluster:016x}.reveille.internal");
    names(certificate)
        .iter()
        .find_map(|name| name.strip_prefix("node-")?.strip_suffix(&suffix)?.parse().ok().map(NodeId))
}

/// The name that a dialler demands of a peer.
pub(super) fn server_name(node: NodeId, cluster: u64) -> Option<ServerName<'static>> {
    ServerName::try_from(node_name(node, cluster)).ok()
}
