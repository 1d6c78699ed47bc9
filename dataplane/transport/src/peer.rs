//! Who asks.

use std::net::SocketAddr;

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// HTTP/3.
    Http3,
    /// The native protocol (`docs/NATIVE.md`).
    Native,
}

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its address; an IPv4 address mapped into IPv6 is given as IPv4.
    pub address: SocketAddr,
    /// Whether it came over TLS.
    pub secure: bool,
    /// What it speaks.
    pub protocol: Protocol,
    /// Whether the request came before the handshake was over (0-RTT): somebody else may have sent
    /// a copy of it, so it must not change anything, nor cost much.
    pub early: bool,
    /// The other edge of the fleet that it is, as its certificate proves.
    pub member: Option<u64>,
}

impl Peer {
    /// Whether it is on this machine.
    pub fn is_loopback(&self) -> bool {
        self.address.ip().is_loopback()
    }
}
