//! What can go wrong before serving starts.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Why a listener or a certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The address could not be bound.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address that was asked for.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// A file of the TLS folder could not be read or written.
    #[error("{what} {}: {source}", .path.display())]
    File {
        /// What was being done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A name for the server's certificate is neither a DNS name nor an IP address.
    #[error("{name:?} cannot stand in a certificate: give a DNS name or an IP address")]
    Name {
        /// The name.
        name: String,
    },
    /// A certificate or key could not be made or used.
    #[error("{what}: {reason}")]
    Certificate {
        /// What was being done, with the file.
        what: String,
        /// Why it failed.
        reason: String,
    },
}
