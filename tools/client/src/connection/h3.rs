//! HTTP/3 by the crates h3 and quinn. One connection is shared by all requests; when it is gone, the
//! next request opens another, with early data if the edge gave a ticket.

use std::future::poll_fn;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes};
use h3::client::{RequestStream, SendRequest};
use http::HeaderMap;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, ConnectionError, Endpoint, EndpointConfig, TransportConfig};
use rustix::net::sockopt;
use rustls::RootCertStore;
use tokio::sync::Mutex;
use url::Url;

use super::{Request, Times, Used};
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
/// TLS alerts about certificates (RFC 8446, section 6.2: 42 to 48), as QUIC carries them
/// (RFC 9001, section 4.8).
const CERTIFICATE_ALERTS: std::ops::RangeInclusive<u64> = 0x12a..=0x130;

type Sender = SendRequest<h3_quinn::OpenStreams, Bytes>;
type Stream = RequestStream<h3_quinn::BidiStream<Bytes>, Bytes>;

/// See the module.
#[derive(Debug)]
pub struct Connector {
    host: String,
    port: u16,
    authority: String,
    config: ClientConfig,
    live: Mutex<Option<Live>>,
    times: Times,
    /// The edge refused early data once; it is not sent again.
    no_early_data: AtomicBool,
    early_connections: AtomicU64,
}

#[derive(Clone)]
struct Live {
    sender: Sender,
    connection: quinn::Connection,
    /// Its requests go out before the handshake has ended.
    early: bool,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("connection", &self.connection).finish_non_exhaustive()
    }
}

/// What comes of an answer. It keeps the connection.
pub struct Body {
    stream: Stream,
    _sender: Sender,
}

impl Body {
    /// The next piece.
    ///
    /// # Errors
    /// What broke.
    pub async fn next(&mut self) -> Result<Option<Bytes>, String> {
        match self.stream.recv_data().await {
            // The pieces of the h3 crate are one `Bytes` each, which this takes over without a copy.
            Ok(Some(mut piece)) => Ok(Some(piece.copy_to_bytes(piece.remaining()))),
            Ok(None) => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Connector {
    /// A connector to the host and port of `from`.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(
        from: &Url,
        authority: &str,
        roots: &Arc<RootCertStore>,
        times: Times,
    ) -> Result<Self, ClientError> {
        let tls = tls::quic(roots, b"h3")?;
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
            config,
            live: Mutex::new(None),
            times,
            no_early_data: AtomicBool::new(false),
            early_connections: AtomicU64::new(0),
        })
    }

    /// Connections whose first requests went out with their first packet.
    pub fn early_connections(&self) -> u64 {
        self.early_connections.load(Ordering::Relaxed)
    }

    /// Closes the connection, if there is one; the next request opens another.
    pub async fn disconnect(&self) {
        if let Some(live) = self.live.lock().await.take() {
            live.connection.close(H3_NO_ERROR.into(), b"");
        }
    }

    /// Sends a request and waits for the head of its answer.
    ///
    /// # Errors
    /// [`ClientError::Connect`], [`ClientError::Broken`].
    pub async fn get(&self, request: &Request) -> Result<(u16, HeaderMap, Body), ClientError> {
        let live = self.live().await?;
        let early = live.early;
        match self.exchange(live, request).await {
            // What was sent early may be refused, and is then sent again at leisure: once.
            Ok((425, ..)) | Err(ClientError::Broken { .. }) if early => {
                self.no_early_data.store(true, Ordering::Relaxed);
                self.disconnect().await;
                let live = self.live().await?;
                self.exchange(live, request).await
            }
            answer => answer,
        }
    }

    async fn exchange(
        &self,
        mut live: Live,
        request: &Request,
    ) -> Result<(u16, HeaderMap, Body), ClientError> {
        let uri = format!("https://{}{}", self.authority, request.path);
        let wrong =
            |error: http::Error| ClientError::Url { url: uri.clone(), why: error.to_string() };
        let mut message = http::Request::get(&uri).body(()).map_err(wrong)?;
        *message.headers_mut() = request.headers();
        let sent = async {
            let mut stream = live.sender.send_request(message).await?;
            stream.finish().await?;
            let head = stream.recv_response().await?;
            Ok::<_, h3::error::StreamError>((head, stream))
        };
        let broken = |why: String| ClientError::Broken { protocol: Used::H3, why };
        let (head, stream) = match tokio::time::timeout(self.times.idle_max, sent).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(broken(error.to_string())),
            Err(_) => return Err(broken(format!("no answer within {:?}", self.times.idle_max))),
        };
        let (parts, ()) = head.into_parts();
        Ok((parts.status.as_u16(), parts.headers, Body { stream, _sender: live.sender }))
    }

    /// The connection, or a new one.
    async fn live(&self) -> Result<Live, ClientError> {
        let mut slot = self.live.lock().await;
        if let Some(live) = slot.as_ref().filter(|live| live.connection.close_reason().is_none()) {
            return Ok(live.clone());
        }
        let live = self.connect().await?;
        *slot = Some(live.clone());
        Ok(live)
    }

    async fn connect(&self) -> Result<Live, ClientError> {
        let time = self.times.connect_max;
        let attempt = async {
            let addresses = tokio::net::lookup_host((self.host.as_str(), self.port))
                .await
                .map_err(|error| self.refused(format!("its address: {error}"), false))?;
            let mut last = self.refused("it has no address".to_owned(), false);
            for address in addresses.take(ADDRESSES_MAX) {
                match self.connect_to(address).await {
                    Ok(live) => return Ok(live),
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

    async fn connect_to(&self, address: SocketAddr) -> Result<Live, ClientError> {
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
        let (mut driver, sender) = h3::client::new(h3_quinn::Connection::new(connection.clone()))
            .await
            .map_err(|error| self.refused(error.to_string(), false))?;
        if early {
            self.early_connections.fetch_add(1, Ordering::Relaxed);
        }
        tokio::spawn(async move {
            // Its errors reach whoever waits for an answer.
            let _ = poll_fn(|context| driver.poll_close(context)).await;
        });
        Ok(Live { sender, connection, early })
    }

    fn refused(&self, why: String, fatal: bool) -> ClientError {
        ClientError::Connect { address: self.authority.clone(), protocol: Used::H3, why, fatal }
    }
}

/// H3_NO_ERROR (RFC 9114, section 8.1).
const H3_NO_ERROR: u32 = 0x100;

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
