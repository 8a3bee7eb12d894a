//! Certificates of which only the key counts: terminals sign their own. Who may be whom is not decided here.

use std::sync::Arc;

use reveille_protocol::id::KeyFingerprint;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use x509_parser::prelude::{FromDer, X509Certificate};

/// The fingerprint of a certificate's key; `None` if it is no certificate.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> Option<KeyFingerprint> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(KeyFingerprint::of_spki(parsed.public_key().raw))
}

/// Accepts a key that its holder proves: any, or exactly one.
#[derive(Debug)]
pub struct BareKey {
    expected: Option<KeyFingerprint>,
    provider: Arc<CryptoProvider>,
}

impl BareKey {
    /// Any key. Whether it is enrolled is asked after Hello.
    pub fn any(provider: Arc<CryptoProvider>) -> Arc<BareKey> {
        Arc::new(BareKey { expected: None, provider })
    }

    /// Exactly this key, whatever certificate it comes in.
    pub fn exactly(key: KeyFingerprint, provider: Arc<CryptoProvider>) -> Arc<BareKey> {
        Arc::new(BareKey { expected: Some(key), provider })
    }

    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let key = fingerprint(certificate).ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        match self.expected {
            Some(expected) if expected != key => {
                Err(Error::General("not the key that the terminal registered".to_owned()))
            }
            _ => Ok(()),
        }
    }

    fn signed(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }
}

/// The proof of the key is the same in both directions, but rustls asks for it by two traits.
macro_rules! proof {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _certificate: &CertificateDer<'_>,
            _signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("only TLS 1.3 is spoken here".to_owned()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            self.signed(message, certificate, signed)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.provider.signature_verification_algorithms.supported_schemes()
        }
    };
}

impl ClientCertVerifier for BareKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    proof!();
}

impl ServerCertVerifier for BareKey {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    proof!();
}
