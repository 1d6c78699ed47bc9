//! The local certificate authority, and the TLS configuration of the server.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::TransportError;

/// The files of the TLS folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate that clients have to trust.
    pub ca_pem: PathBuf,
    /// The server's certificate.
    pub certificate_pem: PathBuf,
    /// The server's key, mode 0600.
    pub key_pem: PathBuf,
}

/// Makes the folder's certificates, or renews what has to be.
///
/// # Errors
/// See [`TransportError`].
pub fn load_or_create(dir: &Path, names: &[String]) -> Result<TlsFiles, TransportError> {
    let _ = (dir, names);
    unimplemented!()
}

/// The server's configuration from the folder's certificate and key.
///
/// # Errors
/// See [`TransportError`].
pub fn server_config(dir: &Path) -> Result<Arc<rustls::ServerConfig>, TransportError> {
    let _ = dir;
    unimplemented!()
}
