//! Is a CA that of the cluster? Held against a node's configuration, and against what the nodes show. Certificates are made
//! elsewhere.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use reveille_cluster::link::node_name;
use reveille_cluster::overview::{NodeOverview, Overview};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{CertificateError, ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::config::Config;

/// A node that has not shown its certificate by then is not asked: others are.
const SHOW: Duration = Duration::from_secs(3);

fn certificates(pem: &str) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    Ok(CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>()?)
}

/// Refuses a CA that `like`'s node does not trust, or that made none of the certificates that the cluster's nodes show. Where
/// none of them is reached it is not known, and not refused.
pub(super) async fn belongs(
    folder: &Path,
    pem: &str,
    like: Option<&Config>,
    overview: &Overview,
) -> anyhow::Result<()> {
    let file = folder.join("ca.pem");
    let own = certificates(pem).with_context(|| format!("{}", file.display()))?;
    // The configuration may be a copy, without what lies beside it.
    if let Some(known) = like.and_then(|like| fs::read_to_string(&like.tls.ca).ok()) {
        let known = certificates(&known)?;
        ensure!(
            own.iter().any(|own| known.contains(own)),
            "{} is not the CA that the configuration of --like names; give --ca the folder of the cluster's own",
            file.display()
        );
    }
    let mut roots = RootCertStore::empty();
    for certificate in own {
        roots.add(certificate).with_context(|| format!("{}", file.display()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let cluster = u64::from_str_radix(&overview.cluster, 16).context("the cluster's id")?;
    let mut strange = Vec::new();
    for node in overview.nodes.iter().filter(|node| node.up && !node.session.is_empty()) {
        match tokio::time::timeout(SHOW, shows(&connector, node, cluster)).await {
            Ok(Ok(true)) => return Ok(()),
            Ok(Ok(false)) => strange.push(node.node.to_string()),
            Ok(Err(_)) | Err(_) => {}
        }
    }
    if strange.is_empty() {
        return Ok(());
    }
    bail!(
        "{} is not the cluster's CA: the certificates of nodes {} were not made by it, and a node with one of it could never \
         join; give --ca the folder of the cluster's own",
        file.display(),
        strange.join(", ")
    )
}

/// Does a node show a certificate that the CA made?
async fn shows(connector: &TlsConnector, node: &NodeOverview, cluster: u64) -> anyhow::Result<bool> {
    // At the terminals' port, which always speaks TLS, and by the name that every node's certificate has.
    let name = ServerName::try_from(node_name(node.node, cluster))?;
    let stream = TcpStream::connect(&node.session).await?;
    let Err(error) = connector.connect(name, stream).await else { return Ok(true) };
    match error.get_ref().and_then(|error| error.downcast_ref()) {
        // The latter where both CAs have one name.
        Some(rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        )) => Ok(false),
        _ => Err(error.into()),
    }
}
