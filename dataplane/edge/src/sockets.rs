//! All sockets of the edge, bound before anything that takes time, so that a port in use is an error of
//! the first second and nothing has been changed by then.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use outrider_transport::quic::QuicSocket;
use outrider_transport::{Listener, TransportError};

use crate::config::{Config, Listen};
use crate::shard_main::Serve;
use crate::state::Addresses;

/// An address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("{key}: cannot listen on {address}: {source}; {}", remedy(.source))]
pub struct BindError {
    /// The key of the address.
    pub key: &'static str,
    /// The address.
    pub address: SocketAddr,
    /// What the system said.
    pub source: io::Error,
}

fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => "stop what listens there, or choose another address",
        io::ErrorKind::PermissionDenied => {
            "choose a port above 1023, or allow it (CAP_NET_BIND_SERVICE)"
        }
        io::ErrorKind::AddrNotAvailable => {
            "no interface of this machine has that address, so choose another"
        }
        _ => "choose another address",
    }
}

/// The bound sockets.
pub(crate) struct Sockets {
    /// For each shard one, or none at all.
    https: Vec<Option<Listener>>,
    http: Vec<Option<Listener>>,
    quic: Vec<Option<QuicSocket>>,
    pub(crate) admin: Option<TcpListener>,
    pub(crate) addresses: Addresses,
}

impl Sockets {
    pub(crate) fn bind(config: &Config) -> Result<Sockets, BindError> {
        let shards = config.shards.count;
        let (https_address, https, quic) = bind_https(config)?;
        let (http_address, http) = bind_shards("listen.http", config.listen.http, shards)?;
        let (admin_address, admin) = match config.listen.admin.address() {
            None => (None, None),
            Some(address) => {
                let (address, listener) = bind_alone("listen.admin", address)?;
                (Some(address), Some(listener))
            }
        };
        let addresses =
            Addresses { https: https_address, http: http_address, admin: admin_address };
        Ok(Sockets { https, http, quic, admin, addresses })
    }

    /// How many listeners clients connect to.
    pub(crate) fn serving(&self) -> usize {
        usize::from(self.addresses.https.is_some()) + usize::from(self.addresses.http.is_some())
    }

    /// Gives a shard its UDP socket. Once.
    pub(crate) fn quic_of_shard(&mut self, id: usize) -> Option<QuicSocket> {
        self.quic.get_mut(id).and_then(Option::take)
    }

    /// Gives a shard its listeners. Once.
    pub(crate) fn of_shard(&mut self, id: usize, tls: &Arc<rustls::ServerConfig>) -> Vec<Serve> {
        let take =
            |listeners: &mut Vec<Option<Listener>>| listeners.get_mut(id).and_then(Option::take);
        let https =
            take(&mut self.https).map(|l| Serve { listener: l, tls: Some(Arc::clone(tls)) });
        let http = take(&mut self.http).map(|l| Serve { listener: l, tls: None });
        https.into_iter().chain(http).collect()
    }
}

/// How often another port is tried when the system has chosen one for TCP that is taken for UDP.
const PORT_TRIES_MAX: usize = 16;

type BoundHttps = (Option<SocketAddr>, Vec<Option<Listener>>, Vec<Option<QuicSocket>>);

/// The listeners of HTTPS, and the UDP sockets on the same port.
fn bind_https(config: &Config) -> Result<BoundHttps, BindError> {
    const KEY: &str = "listen.https";
    let listen = config.listen.https;
    let shards = config.shards.count;
    let mut tries = 1;
    loop {
        let (address, mut https) = bind_shards(KEY, listen, shards)?;
        let Some(bound) = address.filter(|_| config.quic.enabled) else {
            return Ok((address, https, Vec::new()));
        };
        let buffer_bytes = usize::try_from(config.quic.socket_buffer.0).unwrap_or(usize::MAX);
        match QuicSocket::bind_shards(bound, shards, buffer_bytes) {
            Ok(sockets) => {
                for listener in https.iter_mut().flatten() {
                    listener.advertise_http3(bound.port());
                }
                return Ok((address, https, sockets.into_iter().map(Some).collect()));
            }
            Err(_) if listen.address().is_some_and(|a| a.port() == 0) && tries < PORT_TRIES_MAX => {
                tries += 1;
            }
            Err(error) => return Err(of_transport("listen.https (UDP)", bound, error)),
        }
    }
}

type Bound = (Option<SocketAddr>, Vec<Option<Listener>>);

/// A listener for each shard on one address.
fn bind_shards(key: &'static str, listen: Listen, shards: usize) -> Result<Bound, BindError> {
    let Some(mut address) = listen.address() else { return Ok((None, Vec::new())) };
    // The shards' sockets share their port (SO_REUSEPORT), and the system would let a second instance of
    // the same user share it too, each getting some of the connections. A socket that does not share
    // finds that out.
    if address.port() != 0 {
        drop(bind_alone(key, address)?);
    }
    let mut listeners = Vec::with_capacity(shards);
    for _ in 0..shards {
        let listener =
            Listener::bind(address).map_err(|error| of_transport(key, address, error))?;
        // Port 0 is chosen by the first.
        address = listener.local_address();
        listeners.push(Some(listener));
    }
    Ok((Some(address), listeners))
}

fn bind_alone(
    key: &'static str,
    address: SocketAddr,
) -> Result<(SocketAddr, TcpListener), BindError> {
    let error = |source| BindError { key, address, source };
    let listener = TcpListener::bind(address).map_err(error)?;
    Ok((listener.local_addr().map_err(error)?, listener))
}

fn of_transport(key: &'static str, address: SocketAddr, error: TransportError) -> BindError {
    let source = match error {
        TransportError::Bind { source, .. } => source,
        other => io::Error::other(other.to_string()),
    };
    BindError { key, address, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(https: &str, admin: &str) -> Config {
        let text = format!("[listen]\nhttps = \"{https}\"\nhttp = \"off\"\nadmin = \"{admin}\"\n");
        Config::parse(&text, "edge.toml").unwrap()
    }

    #[test]
    fn a_port_in_use_is_named_with_its_key_and_what_to_do() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        for (https, admin, key) in
            [(address.as_str(), "off", "listen.https"), ("127.0.0.1:0", &address, "listen.admin")]
        {
            let error = Sockets::bind(&config(https, admin)).err().unwrap().to_string();
            assert!(error.starts_with(&format!("{key}: cannot listen on {address}")), "{error}");
            assert!(error.contains("choose another address"), "{error}");
        }
    }

    #[test]
    fn a_second_instance_does_not_share_the_port_of_the_first() {
        let first = Sockets::bind(&config("127.0.0.1:0", "off")).unwrap();
        let address = first.addresses.https.unwrap();
        assert_ne!(address.port(), 0);
        let second = Sockets::bind(&config(&address.to_string(), "off"));
        assert!(second.is_err());
    }
}
