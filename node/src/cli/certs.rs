//! `reveille certs`: the cluster's CA, its nodes' certificates, enrolment tokens. Files only; nothing is sent.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519,
};
use reveille_cluster::link::node_name;
use reveille_protocol::id::{NodeId, TenantId};
use ring::signature::Ed25519KeyPair;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::output;
use crate::enrolment;

/// Make the certificates of a cluster. The CA's key belongs on no node.
#[derive(Debug, Args)]
pub(super) struct Certs {
    #[command(subcommand)]
    command: CertsCommand,
}

#[derive(Debug, Subcommand)]
enum CertsCommand {
    /// Make a CA: ca.pem and ca.key.
    Ca {
        /// Folder to write to.
        #[arg(long, default_value = ".")]
        out: PathBuf,
    },
    /// Make a node's certificate: node-ID.pem and node-ID.key.
    Node {
        /// Folder with ca.pem and ca.key.
        #[arg(long, default_value = ".")]
        ca: PathBuf,
        /// The node's id.
        #[arg(long)]
        id: u64,
        /// The cluster's id, 16 hex digits.
        #[arg(long)]
        cluster: String,
        /// Names and addresses that terminals and publishers use, separated by commas.
        #[arg(long, value_delimiter = ',')]
        names: Vec<String>,
        /// Days that it is valid.
        #[arg(long, default_value_t = 30)]
        days: u32,
        /// Folder to write to.
        #[arg(long, default_value = ".")]
        out: PathBuf,
    },
    /// Make a key that signs enrolment tokens: enrolment.key; prints the public key for `cluster.tenant`.
    EnrolmentKey {
        /// Folder to write to.
        #[arg(long, default_value = ".")]
        out: PathBuf,
    },
    /// Print a token that lets unknown terminals enrol for a time.
    EnrolmentToken {
        /// The key file of `enrolment-key`.
        #[arg(long)]
        key: PathBuf,
        /// The tenant's number.
        #[arg(long, default_value_t = 1)]
        tenant: u32,
        /// How long it is valid, as 30d or 12h.
        #[arg(long, default_value = "30d", value_parser = humantime::parse_duration)]
        valid: Duration,
    },
}

/// A cluster's CA, with its key.
pub(crate) struct Ca {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    /// A new one, and its key's PEM.
    pub(crate) fn new() -> anyhow::Result<(Ca, String)> {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let key_pem = key.serialize_pem();
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "Reveille cluster CA");
        let pem = params.self_signed(&key)?.pem();
        let issuer = Issuer::new(params, key);
        Ok((Ca { pem, issuer }, key_pem))
    }

    pub(super) fn read(folder: &Path) -> anyhow::Result<Ca> {
        let file = folder.join("ca.pem");
        let key = read_key(&folder.join("ca.key"))?;
        let pem = fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key).with_context(|| format!("{}", file.display()))?;
        Ok(Ca { pem, issuer })
    }

    /// Its certificate.
    pub(super) fn der(&self) -> anyhow::Result<Vec<u8>> {
        Ok(CertificateDer::from_pem_slice(self.pem.as_bytes()).context("ca.pem")?.to_vec())
    }

    /// A node's certificate and key, as PEM.
    pub(crate) fn node(
        &self,
        id: u64,
        cluster: u64,
        mut names: Vec<String>,
        days: u32,
    ) -> anyhow::Result<(String, String)> {
        ensure!(id != 0, "a node's id is a number above zero");
        ensure!(days != 0, "a certificate must be valid for a day at least: --days 1");
        for name in &names {
            // A wildcard would be read, and no client looks for one.
            let usable = !name.contains('*') && ServerName::try_from(name.as_str()).is_ok();
            ensure!(usable, "--names: {name:?} is neither a host's name nor an address");
        }
        names.push(node_name(NodeId(id), cluster));
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, format!("reveille node {id}"));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let now = SystemTime::now();
        // An hour back: clocks differ.
        params.not_before = (now - Duration::from_secs(3600)).into();
        params.not_after = (now + Duration::from_secs(u64::from(days) * 24 * 3600)).into();
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }
}

fn read_key(path: &Path) -> anyhow::Result<KeyPair> {
    let pem = fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
    KeyPair::from_pem(&pem).with_context(|| format!("{} holds no usable key", path.display()))
}

/// Is it that of the CA in the same folder?
fn is_a_cas(path: &Path, key: &KeyPair) -> bool {
    let Ok(ca) = CertificateDer::from_pem_file(path.with_file_name("ca.pem")) else { return false };
    let parsed = X509Certificate::from_der(&ca);
    parsed.is_ok_and(|(_, ca)| ca.public_key().subject_public_key.data.as_ref() == key.public_key_raw())
}

fn make_folder(path: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(path).with_context(|| format!("{}", path.display()))
}

/// Writes a file that only its owner reads; refuses to replace one.
pub(super) fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    if file.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists) {
        bail!("{} is there already, and is not written over; give --out another folder", path.display());
    }
    file.and_then(|mut file| file.write_all(text.as_bytes())).with_context(|| format!("{}", path.display()))
}

pub(super) fn write_public(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("{}", path.display()))
}

impl Certs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self.command {
            CertsCommand::Ca { out } => {
                make_folder(&out)?;
                let (ca, key) = Ca::new()?;
                write_secret(&out.join("ca.key"), &key)?;
                write_public(&out.join("ca.pem"), &ca.pem)?;
                output::line(format!(
                    "wrote ca.pem and ca.key to {}; keep ca.key off the nodes",
                    out.display()
                ));
            }
            CertsCommand::Node { ca, id, cluster, names, days, out } => {
                ensure!(cluster.len() == 16, "--cluster must be 16 hex digits");
                let cluster = u64::from_str_radix(&cluster, 16).context("--cluster must be 16 hex digits")?;
                let (certificate, key) = Ca::read(&ca)?.node(id, cluster, names, days)?;
                make_folder(&out)?;
                write_secret(&out.join(format!("node-{id}.key")), &key)?;
                write_public(&out.join(format!("node-{id}.pem")), &certificate)?;
                output::line(format!(
                    "wrote node-{id}.pem and node-{id}.key to {}, valid {days} days",
                    out.display()
                ));
            }
            CertsCommand::EnrolmentKey { out } => {
                let key = KeyPair::generate_for(&PKCS_ED25519)?;
                make_folder(&out)?;
                write_secret(&out.join("enrolment.key"), &key.serialize_pem())?;
                let public: String = key.public_key_raw().iter().map(|byte| format!("{byte:02x}")).collect();
                output::line(format!("enrolment_key = \"{public}\""));
            }
            CertsCommand::EnrolmentToken { key, tenant, valid } => {
                ensure!(valid >= Duration::from_secs(1), "--valid must be a second at least");
                let own = read_key(&key)?;
                ensure!(
                    !is_a_cas(&key, &own),
                    "{} is the key of the CA beside it, and signs certificates; enrolment tokens have a key of their own: \
                     reveille certs enrolment-key",
                    key.display()
                );
                let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&own.serialize_der())
                    .map_err(|error| anyhow::anyhow!("{}: {error}", key.display()))?;
                let expires = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() + valid.as_secs();
                output::line(enrolment::sign(&pair, TenantId(tenant), expires)?);
            }
        }
        Ok(())
    }
}
