//! Listening sockets.

use std::net::SocketAddr;

use crate::TransportError;

/// A bound socket, to be served on a shard.
#[derive(Debug)]
pub struct Listener {}

impl Listener {
    /// Binds and listens. SO_REUSEPORT is set, so that each shard may bind the same address.
    ///
    /// # Errors
    /// [`TransportError::Bind`].
    pub fn bind(address: SocketAddr) -> Result<Self, TransportError> {
        let _ = address;
        unimplemented!()
    }

    /// The address, with the port that was chosen when 0 was asked for.
    pub fn local_address(&self) -> SocketAddr {
        unimplemented!()
    }
}
