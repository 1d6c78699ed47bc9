//! Listening sockets.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Mutex, PoisonError};

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};

use crate::TransportError;

/// Connections that the kernel holds ready to be accepted.
const BACKLOG: i32 = 1024;

/// The addresses that this process listens on. SO_REUSEPORT lets any process of the same user share
/// a port, and a second instance started by mistake would silently get half of the connections; so
/// the first socket on an address has to get it for itself.
static BOUND: Mutex<Vec<SocketAddr>> = Mutex::new(Vec::new());

/// A bound socket, to be served on one shard. It is made before the shards start, so that a port
/// that is taken is an error of the start. SO_REUSEPORT is set: each shard binds the same address,
/// and the kernel spreads the connections.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    http3_port: Option<u16>,
}

impl Listener {
    /// Binds and listens. Accepted sockets have TCP_NODELAY.
    ///
    /// # Errors
    /// [`TransportError::Bind`], also when another process already listens there.
    pub fn bind(address: SocketAddr) -> Result<Self, TransportError> {
        Self::try_bind(address)
            .map_err(|error| TransportError::Bind { address, source: error.into() })
    }

    fn try_bind(address: SocketAddr) -> rustix::io::Result<Self> {
        let mut bound = BOUND.lock().unwrap_or_else(PoisonError::into_inner);
        if address.port() != 0 && !bound.contains(&address) {
            drop(bind_socket(address, false)?);
        }
        let socket = bind_socket(address, true)?;
        rustix::net::listen(&socket, BACKLOG)?;
        let socket = TcpListener::from(socket);
        let address = socket.local_addr().map_err(|error| {
            rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO)
        })?;
        bound.push(address);
        Ok(Self { socket, address, http3_port: None })
    }

    /// The address, with the port that was chosen when 0 was asked for.
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// Has every answer say that HTTP/3 is served on this UDP port of the same address, for a day
    /// (`Alt-Svc`, RFC 7838).
    pub fn advertise_http3(&mut self, port: u16) {
        self.http3_port = Some(port);
    }

    pub(crate) fn alt_svc(&self) -> Option<http::HeaderValue> {
        let value = format!("h3=\":{}\"; ma=86400", self.http3_port?);
        Some(http::HeaderValue::try_from(value).expect("digits and quotes are allowed"))
    }

    pub(crate) fn socket(&self) -> &TcpListener {
        &self.socket
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut bound = BOUND.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = bound.iter().position(|address| *address == self.address) {
            bound.swap_remove(index);
        }
    }
}

fn bind_socket(address: SocketAddr, shared: bool) -> rustix::io::Result<rustix::fd::OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(
        family,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        Some(ipproto::TCP),
    )?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if shared {
        sockopt::set_socket_reuseport(&socket, true)?;
        // Accepted sockets inherit it, which saves a system call for each.
        sockopt::set_tcp_nodelay(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_share_an_address_and_other_processes_do_not() {
        let first = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let second = Listener::bind(first.local_address()).unwrap();
        assert_eq!(first.local_address(), second.local_address());
        drop((first, second));

        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let error = Listener::bind(other.local_addr().unwrap()).unwrap_err();
        assert!(error.to_string().contains("cannot listen on 127.0.0.1:"), "{error}");
    }

    #[test]
    fn a_shared_socket_of_another_owner_is_not_joined() {
        // As another process would have it: shared, but not in this process's list.
        let other = bind_socket("127.0.0.1:0".parse().unwrap(), true).unwrap();
        rustix::net::listen(&other, 1).unwrap();
        let address = TcpListener::from(other.try_clone().unwrap()).local_addr().unwrap();
        assert!(Listener::bind(address).is_err());
    }
}
