//! A second certificate: that of a member of a cluster, for other members, who ask for it by its name (SNI); and theirs,
//! where clients are asked who they are.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig, version};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::TransportError;

/// The certificate of a member.
#[derive(Debug)]
pub struct MemberCertificate {
    /// The name by which members ask for it.
    pub name: String,
    /// The certificate, which may be another one each time.
    pub shown: Arc<dyn ResolvesServerCert>,
}

/// The configuration with this certificate for who asks by its name; everybody else gets what they got before.
#[must_use]
pub fn with_member(config: &ServerConfig, member: MemberCertificate) -> Arc<ServerConfig> {
    let MemberCertificate { name, shown } = member;
    let mut config = config.clone();
    let others = Arc::clone(&config.cert_resolver);
    config.cert_resolver = Arc::new(ByName { name, shown, others });
    Arc::new(config)
}

/// The configuration that takes, and asks for, the certificates of members; a client without one is served all the same.
///
/// # Errors
/// [`TransportError::Certificate`] when `roots`, who vouch for members, cannot be used.
pub fn asking_members(
    config: &ServerConfig,
    roots: RootCertStore,
) -> Result<Arc<ServerConfig>, TransportError> {
    let failed = |reason: String| TransportError::Certificate {
        what: "cannot ask for the certificates of members".to_owned(),
        reason,
    };
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .allow_unauthenticated()
        .build()
        .map_err(|error| failed(error.to_string()))?;
    let mut asking = ServerConfig::builder_with_provider(Arc::clone(config.crypto_provider()))
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])
        .map_err(|error| failed(error.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::clone(&config.cert_resolver));
    asking.alpn_protocols.clone_from(&config.alpn_protocols);
    asking.ignore_client_order = config.ignore_client_order;
    asking.ticketer = Arc::clone(&config.ticketer);
    Ok(Arc::new(asking))
}

/// The names of hosts in a certificate that was verified.
pub(crate) fn names_in(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    };
    names.value.general_names.iter().filter_map(name).collect()
}

#[derive(Debug)]
struct ByName {
    name: String,
    shown: Arc<dyn ResolvesServerCert>,
    others: Arc<dyn ResolvesServerCert>,
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match hello.server_name() {
            Some(name) if name.eq_ignore_ascii_case(&self.name) => self.shown.resolve(hello),
            _ => self.others.resolve(hello),
        }
    }
}
