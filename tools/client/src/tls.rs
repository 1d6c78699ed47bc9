//! Whom is trusted, and how TLS is spoken. TLS 1.3 with early data in QUIC; 1.2 and 1.3 over TCP.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use crate::error::ClientError;

/// Sessions that are remembered, for resumption and early data. A client talks to one edge.
const SESSIONS_MAX: usize = 8;

/// Who vouches for the edge's certificate.
#[derive(Clone, Debug, Default)]
pub enum Roots {
    /// Whom the system trusts.
    #[default]
    System,
    /// The certificates of a PEM file, and no others.
    File(PathBuf),
}

impl Roots {
    /// Reads them.
    ///
    /// # Errors
    /// When there are none.
    pub fn load(&self) -> Result<Arc<RootCertStore>, ClientError> {
        let mut roots = RootCertStore::empty();
        match self {
            Self::System => {
                let found = rustls_native_certs::load_native_certs();
                // A system's store may hold some that are of no use.
                roots.add_parsable_certificates(found.certs);
            }
            Self::File(file) => add_file(&mut roots, file)?,
        }
        if roots.is_empty() {
            let whose = match self {
                Self::System => "the system trusts no certificate; name a file".to_owned(),
                Self::File(file) => format!("there is no certificate in {}", file.display()),
            };
            return Err(ClientError::Tls(whose));
        }
        Ok(Arc::new(roots))
    }
}

fn add_file(roots: &mut RootCertStore, file: &Path) -> Result<(), ClientError> {
    let wrong = |error: String| ClientError::Tls(format!("{}: {error}", file.display()));
    for certificate in CertificateDer::pem_file_iter(file).map_err(|e| wrong(e.to_string()))? {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    Ok(())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// For QUIC with the protocol `alpn`: sessions are remembered, and requests may be sent with the first
/// packet.
///
/// # Errors
/// When rustls refuses.
pub fn quic(roots: &Arc<RootCertStore>, alpn: &[u8]) -> Result<ClientConfig, ClientError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| ClientError::Tls(error.to_string()))?
        .with_root_certificates(Arc::clone(roots))
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
    config.enable_early_data = true;
    Ok(config)
}

/// For HTTPS; the connector adds the protocols.
///
/// # Errors
/// When rustls refuses.
pub fn tcp(roots: &Arc<RootCertStore>) -> Result<ClientConfig, ClientError> {
    Ok(ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| ClientError::Tls(error.to_string()))?
        .with_root_certificates(Arc::clone(roots))
        .with_no_client_auth())
}
