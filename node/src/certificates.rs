//! This node's certificates: read from the files of the configuration, and read again on SIGHUP. Who trusts whom is not
//! decided here.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use reveille_cluster::ClusterHandle;
use reveille_cluster::link::Identity;
use reveille_protocol::id::NodeId;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::signal::unix::{SignalKind, signal};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::Config;
use crate::notify::dial::{self, Dialler};
use crate::telemetry::Gauge;

/// From this long before the end on, each look at the certificate says so.
const WARN_BEFORE: Duration = Duration::from_secs(7 * 24 * 3600);
/// How often the certificate's end is looked at.
const LOOK: Duration = Duration::from_secs(3600);

/// What the files hold.
pub struct Certificates {
    ca: Vec<CertificateDer<'static>>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Certificates {
    /// Reads the files that `tls` names.
    pub fn read(config: &Config) -> anyhow::Result<Certificates> {
        let certificates = |path: &Path| -> anyhow::Result<Vec<CertificateDer<'static>>> {
            let found = CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .with_context(|| format!("certificates in {}", path.display()))?;
            anyhow::ensure!(!found.is_empty(), "{} holds no certificate", path.display());
            Ok(found)
        };
        let key = PrivateKeyDer::from_pem_file(&config.tls.key)
            .with_context(|| format!("key in {}", config.tls.key.display()))?;
        Ok(Certificates {
            ca: certificates(&config.tls.ca)?,
            chain: certificates(&config.tls.certificate)?,
            key,
        })
    }

    /// Of each CA certificate: the first 8 bytes of its SHA-256, in hex.
    pub fn ca_fingerprints(&self) -> impl Iterator<Item = String> + '_ {
        self.ca.iter().map(|certificate| crate::join::ca_fingerprint(certificate))
    }

    /// As links to other nodes show them; checks that they are this node's and valid now.
    pub fn links(&self, config: &Config) -> anyhow::Result<Identity> {
        let (node, cluster) = (NodeId(config.node), config.cluster_id()?);
        Identity::new(node, cluster, self.ca.clone(), self.chain.clone(), &self.key)
            .with_context(|| format!("tls.certificate {}", config.tls.certificate.display()))
    }

    /// As terminals that are notified see them.
    pub fn notifications(&self) -> dial::Identity {
        dial::Identity { chain: self.chain.clone(), key: self.key.clone_key() }
    }

    fn certified(&self) -> anyhow::Result<Arc<CertifiedKey>> {
        let key = any_supported_type(&self.key).context("tls.key is of a kind that is not known")?;
        Ok(Arc::new(CertifiedKey::new(self.chain.clone(), key)))
    }

    /// Until when the node's certificate is valid, as Unix time in seconds.
    pub fn ends(&self) -> Option<i64> {
        let (_, parsed) = X509Certificate::from_der(self.chain.first()?).ok()?;
        Some(parsed.validity().not_after.timestamp())
    }
}

/// What terminals and publishers are shown; can change while the node runs.
#[derive(Debug)]
pub struct Shown(RwLock<Arc<CertifiedKey>>);

impl Shown {
    /// Shows these.
    pub fn new(certificates: &Certificates) -> anyhow::Result<Arc<Shown>> {
        Ok(Arc::new(Shown(RwLock::new(certificates.certified()?))))
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// Reads the files again on each SIGHUP, and keeps an eye on the certificate's end. What cannot be used changes nothing.
pub async fn keep(
    config: Config,
    mut ends: Option<i64>,
    shown: Arc<Shown>,
    dialler: Arc<Dialler>,
    cluster: ClusterHandle,
) {
    let mut hangups = match signal(SignalKind::hangup()) {
        Ok(hangups) => hangups,
        Err(error) => {
            return tracing::error!(%error, "SIGHUP cannot be received; certificates are not read again");
        }
    };
    loop {
        look_at_end(ends);
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            Some(()) = hangups.recv() => match replace(&config, &shown, &dialler, &cluster) {
                Ok(new) => {
                    ends = new;
                    tracing::info!(certificate = %config.tls.certificate.display(), "certificates read again");
                }
                Err(error) => tracing::error!(error = format!("{error:#}"), "the certificates stay as they were"),
            },
        }
    }
}

fn replace(
    config: &Config,
    shown: &Shown,
    dialler: &Dialler,
    cluster: &ClusterHandle,
) -> anyhow::Result<Option<i64>> {
    let new = Certificates::read(config)?;
    let (links, certified) = (new.links(config)?, new.certified()?);
    cluster.set_identity(links);
    *shown.0.write().unwrap_or_else(PoisonError::into_inner) = certified;
    dialler.set_identity(new.notifications());
    Ok(new.ends())
}

fn look_at_end(ends: Option<i64>) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    let Some(left) = ends.map(|ends| ends - now) else { return };
    Gauge::CertificateExpires.set(left as f64);
    if left < WARN_BEFORE.as_secs() as i64 {
        let days = left / (24 * 3600);
        tracing::warn!(days, "the node's certificate ends soon; replace its files and send SIGHUP");
    }
}
