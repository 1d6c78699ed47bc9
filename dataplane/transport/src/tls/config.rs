//! The server's TLS configuration.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{CipherSuite, ServerConfig, version};

use super::authority::TlsFiles;
use crate::TransportError;

/// What is spoken over TLS, dearest first.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The server's configuration, from the folder's certificate and key. TLS 1.3 and 1.2, AES-128-GCM
/// first in the server's order (it is the fastest where the CPU knows AES, and no client lacks it),
/// h2 and http/1.1, resumption by tickets that any shard can read.
///
/// # Errors
/// [`TransportError::Certificate`] when the files are missing, malformed, or do not belong together.
pub fn server_config(dir: &Path) -> Result<Arc<ServerConfig>, TransportError> {
    let files = TlsFiles::in_dir(dir);
    let certificates = CertificateDer::pem_file_iter(&files.certificate_pem)
        .and_then(|certificates| certificates.collect::<Result<Vec<_>, _>>())
        .map_err(|error| failed(&files.certificate_pem, &error))?;
    let key = PrivateKeyDer::from_pem_file(&files.key_pem)
        .map_err(|error| failed(&files.key_pem, &error))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(certificates, key))
        .map_err(|error| failed(&files.certificate_pem, &error))?;
    config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
    config.ignore_client_order = true;
    config.ticketer = aws_lc_rs::Ticketer::new().map_err(|error| failed(dir, &error))?;
    Ok(Arc::new(config))
}

/// aws-lc-rs, named here: with another provider in the process rustls would not know which to take.
fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| {
        !matches!(
            suite.suite(),
            CipherSuite::TLS13_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        )
    });
    provider
}

fn failed(path: &Path, reason: &dyn std::fmt::Display) -> TransportError {
    TransportError::Certificate {
        what: format!("cannot use {}", path.display()),
        reason: reason.to_string(),
    }
}
