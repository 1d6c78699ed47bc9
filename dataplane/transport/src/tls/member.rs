//! A second certificate: that of a member of a cluster, for other members, who ask for it by its name (SNI).

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::TransportError;

/// The certificate of a member.
#[derive(Debug)]
pub struct MemberCertificate {
    /// The name by which members ask for it.
    pub name: String,
    /// The certificate, and the authority's behind it.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
}

/// The configuration with this certificate for who asks by its name; everybody else gets what they got before.
///
/// # Errors
/// [`TransportError::Certificate`] when it cannot be used.
pub fn with_member(
    config: &ServerConfig,
    member: MemberCertificate,
) -> Result<Arc<ServerConfig>, TransportError> {
    let MemberCertificate { name, chain, key } = member;
    let provider = aws_lc_rs::default_provider();
    let certified = CertifiedKey::from_der(chain, key, &provider);
    let certified = certified.map_err(|error| TransportError::Certificate {
        what: format!("cannot use the certificate of {name}"),
        reason: error.to_string(),
    })?;
    let mut config = config.clone();
    let others = Arc::clone(&config.cert_resolver);
    config.cert_resolver = Arc::new(ByName { name, member: Arc::new(certified), others });
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct ByName {
    name: String,
    member: Arc<CertifiedKey>,
    others: Arc<dyn ResolvesServerCert>,
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match hello.server_name() {
            Some(name) if name.eq_ignore_ascii_case(&self.name) => Some(Arc::clone(&self.member)),
            _ => self.others.resolve(hello),
        }
    }
}
