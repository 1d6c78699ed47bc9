//! A certificate for a server on loopback, signed by itself: ECDSA P-256, as Outrider's own.

use std::fs;
use std::path::{Path, PathBuf};

use crate::BenchError;

/// Where the certificate and its key are.
#[derive(Clone, Debug)]
pub struct CertificateFiles {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Makes a certificate for `localhost` and `127.0.0.1` in `folder`.
///
/// # Errors
/// When it cannot be made or written.
pub fn make(folder: &Path) -> Result<CertificateFiles, BenchError> {
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names)
        .map_err(|error| BenchError::Tls(format!("making a certificate: {error}")))?;
    let files =
        CertificateFiles { certificate: folder.join("cert.pem"), key: folder.join("key.pem") };
    fs::write(&files.certificate, made.cert.pem())
        .and_then(|()| fs::write(&files.key, made.signing_key.serialize_pem()))
        .map_err(BenchError::io("writing a certificate"))?;
    Ok(files)
}
