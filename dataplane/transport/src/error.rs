//! What can go wrong before serving starts.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Why a listener or a certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The address could not be bound.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// A file of the TLS folder could not be read or written.
    #[error("{}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A certificate or key could not be made or used.
    #[error("TLS: {0}")]
    Tls(String),
}
