//! Connections over QUIC by quinn, for whichever protocol runs on them: sessions are remembered, and the
//! next connection's requests go out with its first packet.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, ConnectionError, Endpoint, EndpointConfig, TransportConfig};
use rustix::net::sockopt;
use rustls::RootCertStore;
use url::Url;

use super::{Times, Used};
use crate::error::ClientError;
use crate::tls;

/// What the edge may send on one stream before it hears back.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
/// What it may send on one connection.
const CONNECTION_WINDOW_BYTES: u32 = 24 << 20;
/// Packets that may wait in the kernel. With the usual 208 KiB a fast edge's packets are lost.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;
/// A connection without a request is kept alive, since a fetch may wait for its disk.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Of several addresses of an edge, so many are tried.
const ADDRESSES_MAX: usize = 4;
/// TLS alerts (RFC 8446, section 6.2) of who does not like a certificate, bad_certificate (42) to
/// unknown_ca (48) and decrypt_error (51), as QUIC carries them (RFC 9001, section 4.8).
const CERTIFICATE_ALERTS: [u64; 8] = [0x12a, 0x12b, 0x12c, 0x12d, 0x12e, 0x12f, 0x130, 0x133];

/// Opens connections to one edge.
#[derive(Debug)]
pub(crate) struct Dialer {
    host: String,
    port: u16,
    authority: String,
    used: Used,
    config: ClientConfig,
    connect_max: Duration,
    /// The edge refused early data once; it is not sent again.
    no_early_data: AtomicBool,
    early_connections: AtomicU64,
}

impl Dialer {
    /// A dialer to the host and port of `from`, for the protocol `alpn`, which is called `used`.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub(crate) fn new(
        from: &Url,
        authority: &str,
        roots: &Arc<RootCertStore>,
        (alpn, used): (&[u8], Used),
        times: Times,
    ) -> Result<Self, ClientError> {
        let tls = tls::quic(roots, alpn)?;
        let crypto =
            QuicClientConfig::try_from(tls).map_err(|error| ClientError::Tls(error.to_string()))?;
        let mut transport = TransportConfig::default();
        transport.stream_receive_window(STREAM_WINDOW_BYTES.into());
        transport.receive_window(CONNECTION_WINDOW_BYTES.into());
        transport.keep_alive_interval(Some(KEEP_ALIVE));
        let mut config = ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(transport));
        let host = from.host_str().unwrap_or_default();
        Ok(Self {
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: from.port_or_known_default().unwrap_or(443),
            authority: authority.to_owned(),
            used,
            config,
            connect_max: times.connect_max,
            no_early_data: AtomicBool::new(false),
            early_connections: AtomicU64::new(0),
        })
    }

    /// Connections whose first requests went out with their first packet.
    pub(crate) fn early_connections(&self) -> u64 {
        self.early_connections.load(Ordering::Relaxed)
    }

    /// The edge refused early data: it is not sent again.
    pub(crate) fn refuse_early_data(&self) {
        self.no_early_data.store(true, Ordering::Relaxed);
    }

    /// Opens a connection. True when its requests go out before the handshake has ended.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub(crate) async fn dial(&self) -> Result<(quinn::Connection, bool), ClientError> {
        let time = self.connect_max;
        let attempt = async {
            let addresses = tokio::net::lookup_host((self.host.as_str(), self.port))
                .await
                .map_err(|error| self.refused(format!("its address: {error}"), false))?;
            let mut last = self.refused("it has no address".to_owned(), false);
            for address in addresses.take(ADDRESSES_MAX) {
                match self.dial_to(address).await {
                    Ok(connection) => return Ok(connection),
                    Err(error) => last = error,
                }
            }
            Err(last)
        };
        match tokio::time::timeout(time, attempt).await {
            Ok(result) => result,
            Err(_) => Err(self.refused(format!("no handshake within {time:?}"), false)),
        }
    }

    async fn dial_to(&self, address: SocketAddr) -> Result<(quinn::Connection, bool), ClientError> {
        let endpoint = endpoint(address).map_err(|error| self.refused(error.to_string(), false))?;
        let connecting = endpoint
            .connect_with(self.config.clone(), address, &self.host)
            .map_err(|error| self.refused(error.to_string(), false))?;
        let (connection, early) = if self.no_early_data.load(Ordering::Relaxed) {
            (connecting.await, false)
        } else {
            match connecting.into_0rtt() {
                Ok((connection, _accepted)) => (Ok(connection), true),
                Err(connecting) => (connecting.await, false),
            }
        };
        let connection = connection.map_err(|error| {
            let fatal = matches!(&error, ConnectionError::TransportError(error)
                if CERTIFICATE_ALERTS.contains(&u64::from(error.code)));
            self.refused(error.to_string(), fatal)
        })?;
        if early {
            self.early_connections.fetch_add(1, Ordering::Relaxed);
        }
        Ok((connection, early))
    }

    /// No connection.
    pub(crate) fn refused(&self, why: String, fatal: bool) -> ClientError {
        ClientError::Connect { address: self.authority.clone(), protocol: self.used, why, fatal }
    }
}

fn endpoint(to: SocketAddr) -> std::io::Result<Endpoint> {
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    // As much as the system allows.
    let _ = sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER_BYTES);
    Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(quinn::TokioRuntime))
}
