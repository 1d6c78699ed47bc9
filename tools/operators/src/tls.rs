//! The TLS of an admin API: HTTP/1.1, with a certificate of its own or with that of who answers.

use std::path::Path;
use std::sync::Arc;

use outrider_certificate::Shown;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ResolvesServerCert;
use tokio_rustls::TlsAcceptor;

use crate::config::TlsSection;

/// Why the API has no TLS.
#[derive(Debug, thiserror::Error)]
#[error("the TLS of the admin API cannot be set up: {0}")]
pub struct TlsError(String);

/// With the certificate of `section`, or with `own` where others than this machine may reach it; nothing where it
/// is plain. Reads files.
///
/// # Errors
/// [`TlsError`]
pub fn acceptor(
    section: Option<&TlsSection>,
    is_loopback: bool,
    own: Arc<dyn ResolvesServerCert>,
) -> Result<Option<TlsAcceptor>, TlsError> {
    let resolver: Arc<dyn ResolvesServerCert> = match section {
        Some(TlsSection { certificate, key }) => {
            let wrong = |path: &Path, error: &dyn std::fmt::Display| {
                TlsError(format!("{}: {error}", path.display()))
            };
            let chain = CertificateDer::pem_file_iter(certificate)
                .and_then(Iterator::collect)
                .map_err(|error| wrong(certificate, &error))?;
            let private = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, &error))?;
            Shown::new(chain, private).map_err(|error| wrong(certificate, &error))?
        }
        None if is_loopback => return Ok(None),
        None => own,
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| TlsError(error.to_string()))?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(tls))))
}
