//! This node's certificates: read from the files of the configuration, and read again on SIGHUP. Who trusts whom is not
//! decided here.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use reveille_cluster::ClusterHandle;
use reveille_cluster::link::{Identity, IdentityError, node_name};
use reveille_protocol::id::{KeyFingerprint, NodeId};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, InconsistentKeys, RootCertStore};
use tokio::signal::unix::Signal;
use tokio::sync::watch;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::config::{Config, Tls};
use crate::join::{JoinToken, ca_fingerprint};
use crate::notify::{Notifier, dial};
use crate::telemetry::Gauge;

/// From this long before the first end on, the log says so: a week, for whoever is away.
const WARN_BEFORE: Duration = Duration::from_secs(7 * 24 * 3600);
/// The log says it this often.
const WARN_EVERY: Duration = Duration::from_secs(3600);
/// How the names end by which nodes know each other.
const INTERNAL: &str = ".reveille.internal";
/// How often the metric is worked out: as often as it is scraped.
const LOOK: Duration = Duration::from_secs(60);

/// What the files hold.
pub struct Certificates {
    files: Tls,
    ca: Vec<CertificateDer<'static>>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

fn certificates_in(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("certificates in {}", path.display()))?;
    ensure!(!found.is_empty(), "{} holds no certificate", path.display());
    Ok(found)
}

fn key_in(path: &Path) -> anyhow::Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(path).with_context(|| format!("key in {}", path.display()))
}

impl Certificates {
    /// Reads the files that `tls` names.
    pub fn read(config: &Config) -> anyhow::Result<Certificates> {
        Ok(Certificates {
            files: config.tls.clone(),
            key: key_in(&config.tls.key)?,
            ca: certificates_in(&config.tls.ca)?,
            chain: certificates_in(&config.tls.certificate)?,
        })
    }

    /// What the join token stands for, if this node has one; refuses one that was made under another CA.
    pub fn joins_by(&self, config: &Config) -> anyhow::Result<Option<KeyFingerprint>> {
        joins_by(config, &self.ca)
    }

    /// As links to other nodes show them; checks that they are this node's and valid now.
    pub fn links(&self, config: &Config) -> anyhow::Result<Identity> {
        let (node, cluster) = (NodeId(config.node), config.cluster_id()?);
        fits(config, &self.chain, &self.key)?;
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

    fn names(&self) -> Vec<String> {
        self.chain.first().map(names).unwrap_or_default()
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

/// Looks at everything that `tls` names, without starting anything: each problem, or when the first certificate ends.
pub fn check(config: &Config) -> Result<Option<End>, Vec<String>> {
    let Tls { ca, certificate, key } = &config.tls;
    let (roots, chain, key) = (certificates_in(ca), certificates_in(certificate), key_in(key));
    let mut problems = Vec::new();
    if let Ok(chain) = &chain {
        let known_key = key.as_ref().ok();
        let looks = [
            belongs(config, &chain[0]),
            is_valid(config, &chain[0]),
            known_key.map_or(Ok(()), |key| fits(config, chain, key)),
            roots.as_ref().map_or(Ok(()), |roots| leads_to(config, chain, roots)),
            roots.as_ref().map_or(Ok(()), |roots| joins_by(config, roots).map(drop)),
        ];
        problems.extend(looks.into_iter().filter_map(Result::err));
    }
    match (roots, chain, key) {
        (Ok(ca), Ok(chain), Ok(key)) if problems.is_empty() => {
            Ok(Certificates { files: config.tls.clone(), ca, chain, key }.end())
        }
        (ca, chain, key) => {
            let unread = [ca.err(), chain.err(), key.err()];
            problems.splice(0..0, unread.into_iter().flatten());
            Err(problems.iter().map(|problem| format!("{problem:#}")).collect())
        }
    }
}

/// Is it the certificate of the node and the cluster of the configuration?
fn belongs(config: &Config, own: &CertificateDer<'_>) -> anyhow::Result<()> {
    let expected = node_name(NodeId(config.node), config.cluster_id()?);
    let all = dns_names(own);
    if all.contains(&expected) {
        return Ok(());
    }
    let file = config.tls.certificate.display();
    let other =
        all.iter().find_map(|name| name.strip_suffix(INTERNAL)?.strip_prefix("node-")?.split_once('.'));
    match other {
        Some((node, cluster)) => bail!(
            "certificate {file} is of node {node} of cluster {cluster}, and the configuration of node {} of cluster {}",
            config.node,
            config.cluster.id
        ),
        None => bail!("certificate {file} does not name {expected}; make one with `reveille certs node`"),
    }
}

fn is_valid(config: &Config, own: &CertificateDer<'_>) -> anyhow::Result<()> {
    let file = config.tls.certificate.display();
    let (_, parsed) = X509Certificate::from_der(own).with_context(|| format!("certificate {file}"))?;
    let validity = parsed.validity();
    ensure!(
        validity.is_valid(),
        "certificate {file} is not valid now, only from {} to {}; renew it with `reveille certs node`, or check the clock",
        validity.not_before,
        validity.not_after
    );
    Ok(())
}

/// Is the key that of the certificate?
fn fits(config: &Config, chain: &[CertificateDer<'static>], key: &PrivateKeyDer<'_>) -> anyhow::Result<()> {
    let (certificate, file) = (config.tls.certificate.display(), config.tls.key.display());
    let key =
        any_supported_type(key).with_context(|| format!("key {file} is of a kind that is not known"))?;
    match CertifiedKey::new(chain.to_vec(), key).keys_match() {
        Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            bail!("key {file} is not that of certificate {certificate}; they are made together")
        }
        // Of a kind that does not tell; a certificate that cannot be read is told of elsewhere.
        _ => Ok(()),
    }
}

fn joins_by(config: &Config, ca: &[CertificateDer<'_>]) -> anyhow::Result<Option<KeyFingerprint>> {
    let Some(text) = &config.cluster.join else { return Ok(None) };
    let token: JoinToken = text.parse().context("cluster.join")?;
    let known = ca.iter().any(|certificate| ca_fingerprint(certificate) == token.ca);
    ensure!(known, "cluster.join was made under another CA than that of {}", config.tls.ca.display());
    Ok(Some(token.hash()))
}

/// Did the CA make it?
fn leads_to(
    config: &Config,
    chain: &[CertificateDer<'static>],
    ca: &[CertificateDer<'static>],
) -> anyhow::Result<()> {
    let (certificate, file) = (config.tls.certificate.display(), config.tls.ca.display());
    let mut roots = RootCertStore::empty();
    for certificate in ca {
        roots.add(certificate.clone()).with_context(|| format!("CA {file}"))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .with_context(|| format!("CA {file}"))?;
    let name = ServerName::try_from(node_name(NodeId(config.node), config.cluster_id()?))?;
    match verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], UnixTime::now()) {
        // The latter where both CAs have one name, as all that `reveille certs ca` makes.
        Err(rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        )) => {
            bail!(
                "certificate {certificate} was not made by the CA in {file}; make it with that CA: reveille certs node"
            )
        }
        Err(rustls::Error::InvalidCertificate(
            // Of these is told elsewhere.
            CertificateError::NotValidForName
            | CertificateError::NotValidForNameContext { .. }
            | CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ))
        | Ok(_) => Ok(()),
        Err(error) => bail!("certificate {certificate} does not lead to the CA in {file}: {error}"),
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

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = UNIX_EPOCH + Duration::from_secs(self.at.max(0).unsigned_abs());
        let days = (self.left() / (24.0 * 3600.0)).floor();
        write!(f, "{} ends {}, in {days} days", self.file.display(), humantime::format_rfc3339_seconds(at))
    }
}

impl End {
    /// Seconds until then.
    fn left(&self) -> f64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.at as f64 - now.as_secs_f64()
    }
}

/// Can a certificate be refused today and be good at another time? The clock may be wrong, or its successor on its way.
pub fn may_pass(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(IdentityError::NotNow { .. }))
}

/// What a certificate names in one of the ways that there are.
fn named<T>(certificate: &CertificateDer<'_>, way: impl Fn(&GeneralName<'_>) -> Option<T>) -> Vec<T> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some(found)) = parsed.subject_alternative_name() else { return Vec::new() };
    found.value.general_names.iter().filter_map(way).collect()
}

fn dns_names(certificate: &CertificateDer<'_>) -> Vec<String> {
    named(certificate, |name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    })
}

fn addresses(certificate: &CertificateDer<'_>) -> Vec<IpAddr> {
    named(certificate, |name| match name {
        GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
            Ok(v4) => Some(v4.into()),
            Err(_) => <[u8; 16]>::try_from(*bytes).ok().map(IpAddr::from),
        },
        _ => None,
    })
}

/// The names and addresses in a certificate by which clients know the node, sorted; not the one that its peers demand.
fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let mut named = dns_names(certificate);
    named.retain(|name| !name.ends_with(INTERNAL));
    named.extend(addresses(certificate).iter().map(IpAddr::to_string));
    named.sort();
    named
}

/// The same of a file; none if it cannot be read.
pub fn names_in(file: &Path) -> Vec<String> {
    let certificate = CertificateDer::from_pem_file(file).ok();
    certificate.map(|certificate| names(&certificate)).unwrap_or_default()
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
    mut certificates: Certificates,
    shown: Arc<Shown>,
    notifier: Notifier,
    cluster: ClusterHandle,
    hangups: Option<Signal>,
) {
    let (replaced, end) = watch::channel(certificates.end());
    let reading = async {
        let Some(mut hangups) = hangups else { return };
        while let Some(()) = hangups.recv().await {
            match replace(&config, &certificates, &shown, &notifier, &cluster) {
                Ok(new) => {
                    replaced.send_replace(new.end());
                    certificates = new;
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
    present: &Certificates,
    shown: &Shown,
    notifier: &Notifier,
    cluster: &ClusterHandle,
) -> anyhow::Result<Certificates> {
    let new = Certificates::read(config)?;
    let (links, certified) = (new.links(config)?, new.certified()?);
    keeps_names(config, &present.names(), &new.names())?;
    cluster.set_identity(links);
    *shown.0.write().unwrap_or_else(PoisonError::into_inner) = certified;
    notifier.set_identity(new.notifications());
    Ok(new)
}

/// Clients find a node by the names in its certificate: one that lacks some makes them take the node for another.
fn keeps_names(config: &Config, present: &[String], new: &[String]) -> anyhow::Result<()> {
    let missing: Vec<&str> =
        present.iter().filter(|name| !new.contains(name)).map(|name| name.as_str()).collect();
    ensure!(
        missing.is_empty(),
        "the certificate in {} lacks {}, which the present one has, so that clients would refuse this node. Make it with all \
         names: reveille certs node --ca ca --id {} --cluster {} --names {} --out renewed; to give names up, start the node \
         again",
        config.tls.certificate.display(),
        missing.join(", "),
        config.node,
        config.cluster.id,
        [present, new]
            .concat()
            .into_iter()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
            .join(","),
    );
    Ok(())
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
                let days = (left.abs() / (24.0 * 3600.0)).floor();
                let file = end.file.display();
                match left > 0.0 {
                    true => {
                        tracing::warn!(days, %file, "a certificate ends soon; replace it and send SIGHUP")
                    }
                    false => tracing::error!(
                        days,
                        %file,
                        "a certificate has ended so many days ago: no new link or session is accepted; replace it and send SIGHUP"
                    ),
                }
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
