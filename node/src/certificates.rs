//! This node's certificates: read from the files of the configuration, and read again on SIGHUP. Who trusts whom is not
//! decided here.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use reveille_cluster::ClusterHandle;
use reveille_cluster::link::Identity;
use reveille_protocol::id::NodeId;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::signal::unix::Signal;
use tokio::sync::watch;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::{Config, Tls};
use crate::notify::dial::{self, Dialler};
use crate::telemetry::Gauge;

/// From this long before the first end on, the log says so: a week, for whoever is away.
const WARN_BEFORE: Duration = Duration::from_secs(7 * 24 * 3600);
/// The log says it this often.
const WARN_EVERY: Duration = Duration::from_secs(3600);
/// How often the metric is worked out: as often as it is scraped.
const LOOK: Duration = Duration::from_secs(60);

/// What the files hold.
pub struct Certificates {
    files: Tls,
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
            files: config.tls.clone(),
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
        let Tls { ca, certificate, key } = &self.files;
        Identity::new(node, cluster, self.ca.clone(), self.chain.clone(), &self.key).with_context(|| {
            let (certificate, key, ca) = (certificate.display(), key.display(), ca.display());
            format!("tls.certificate {certificate} with tls.key {key} and tls.ca {ca}")
        })
    }

    /// As terminals that are notified see them.
    pub fn notifications(&self) -> dial::Identity {
        dial::Identity { chain: self.chain.clone(), key: self.key.clone_key() }
    }

    fn certified(&self) -> anyhow::Result<Arc<CertifiedKey>> {
        let key = any_supported_type(&self.key).with_context(|| {
            format!("tls.key {} is of a kind that is not known", self.files.key.display())
        })?;
        Ok(Arc::new(CertifiedKey::new(self.chain.clone(), key)))
    }

    /// What ends first of all that the node shows or trusts.
    pub fn end(&self) -> Option<End> {
        let all = |file: &PathBuf, certificates: &[CertificateDer<'static>]| {
            let ends = certificates.iter().filter_map(|certificate| {
                let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
                Some(parsed.validity().not_after.timestamp())
            });
            ends.min().map(|at| End { file: file.clone(), at })
        };
        let ends = [all(&self.files.certificate, &self.chain), all(&self.files.ca, &self.ca)];
        ends.into_iter().flatten().min_by_key(|end| end.at)
    }
}

/// When a certificate ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// The file that it is in.
    file: PathBuf,
    /// Unix time in seconds.
    at: i64,
}

impl End {
    /// Seconds until then.
    fn left(&self) -> f64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.at as f64 - now.as_secs_f64()
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

/// Reads the files again on each SIGHUP, and keeps an eye on the first end. What cannot be used changes nothing.
pub async fn keep(
    config: Config,
    certificates: Certificates,
    shown: Arc<Shown>,
    dialler: Arc<Dialler>,
    cluster: ClusterHandle,
    mut hangups: Signal,
) {
    let (replaced, end) = watch::channel(certificates.end());
    let reading = async {
        while let Some(()) = hangups.recv().await {
            match replace(&config, &shown, &dialler, &cluster) {
                Ok(new) => {
                    replaced.send_replace(new);
                    tracing::info!(certificate = %config.tls.certificate.display(), "certificates read again");
                }
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "the certificates stay as they were");
                }
            }
        }
    };
    tokio::join!(reading, watch_end(end, LOOK, |left| Gauge::CertificateExpires.set(left.floor())));
}

fn replace(
    config: &Config,
    shown: &Shown,
    dialler: &Dialler,
    cluster: &ClusterHandle,
) -> anyhow::Result<Option<End>> {
    let new = Certificates::read(config)?;
    let (links, certified) = (new.links(config)?, new.certified()?);
    cluster.set_identity(links);
    *shown.0.write().unwrap_or_else(PoisonError::into_inner) = certified;
    dialler.set_identity(new.notifications());
    Ok(new.end())
}

/// Tells how much time is left, each `every` and when the files are replaced; and the log, once it is little.
async fn watch_end(mut end: watch::Receiver<Option<End>>, every: Duration, tell: impl Fn(f64)) {
    let mut warned: Option<Instant> = None;
    loop {
        let known = end.borrow_and_update().clone();
        if let Some(end) = known {
            let left = end.left();
            tell(left);
            let due = warned.is_none_or(|warned| warned.elapsed() >= WARN_EVERY);
            if left < WARN_BEFORE.as_secs_f64() && due {
                warned = Some(Instant::now());
                let days = (left / (24.0 * 3600.0)).floor() as i64;
                tracing::warn!(days, file = %end.file.display(), "a certificate ends soon; replace it and send SIGHUP");
            }
        }
        // Time is up: the same once more. Nobody is left who replaces: nobody is left to tell either.
        if let Ok(Err(_)) = tokio::time::timeout(every, end.changed()).await {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use std::sync::Mutex;

    fn days(days: u64) -> SystemTime {
        SystemTime::now() + Duration::from_secs(days * 24 * 3600)
    }

    /// A CA, one below it and a certificate, which end in so many days.
    fn certificates(ca: u64, middle: u64, own: u64) -> Certificates {
        let key = || KeyPair::generate().unwrap();
        let params = |end: u64| {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.not_after = days(end).into();
            params
        };
        let authority = |end: u64| {
            let mut params = params(end);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params
        };
        let root_key = key();
        let root = authority(ca).self_signed(&root_key).unwrap();
        let root_issuer = Issuer::new(authority(ca), root_key);
        let middle_key = key();
        let between = authority(middle).signed_by(&middle_key, &root_issuer).unwrap();
        let issuer = Issuer::new(authority(middle), middle_key);
        let own_key = key();
        let own = params(own).signed_by(&own_key, &issuer).unwrap();
        Certificates {
            files: Tls { ca: "ca.pem".into(), certificate: "own.pem".into(), key: "own.key".into() },
            ca: vec![root.der().clone()],
            chain: vec![own.der().clone(), between.der().clone()],
            key: PrivateKeyDer::try_from(own_key.serialize_der()).unwrap(),
        }
    }

    #[test]
    fn the_first_end_of_all_counts() {
        for (ca, middle, own, file) in
            [(90, 60, 30, "own.pem"), (90, 30, 60, "own.pem"), (30, 60, 90, "ca.pem")]
        {
            let end = certificates(ca, middle, own).end().unwrap();
            let left = end.left() / (24.0 * 3600.0);
            assert!((29.9..30.1).contains(&left), "{left} days with {ca}, {middle} and {own}");
            assert_eq!(end.file, PathBuf::from(file));
        }
    }

    #[tokio::test]
    async fn what_is_left_is_told_again_and_again() {
        let told = Mutex::new(Vec::new());
        let (replaced, end) = watch::channel(certificates(90, 60, 30).end());
        let watching = watch_end(end, Duration::from_millis(20), |left| told.lock().unwrap().push(left));
        let mut watching = std::pin::pin!(watching);
        let _ = tokio::time::timeout(Duration::from_millis(500), &mut watching).await;
        let first = std::mem::take(&mut *told.lock().unwrap());
        assert!(first.len() > 3 && first.is_sorted_by(|one, next| next < one), "{first:?}");
        replaced.send_replace(certificates(90, 60, 50).end());
        let _ = tokio::time::timeout(Duration::from_millis(100), &mut watching).await;
        assert!(told.lock().unwrap()[0] > first[0], "the new one's");
    }
}
