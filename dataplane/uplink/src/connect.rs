//! Connections: names are looked up, addresses are judged, TCP and TLS are set up, all within one
//! time limit.
//!
//! The address that is judged is the one that is then connected to, so a name that changes its
//! meaning between the two changes nothing. Owns the count of open connections.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http_body_util::Empty;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tower_service::Service;

use crate::address::{AddressClass, Classifier, Reach};

/// How many addresses of a name are tried.
const ADDRESSES_MAX: usize = 8;

/// How long one address has before the next one is tried beside it (RFC 8305 recommends 250 ms).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// How long a connection that nobody uses is kept. Less than the keep-alive time of common servers
/// (60 to 75 s), so that it is seldom the server that closes it.
const POOL_IDLE: Duration = Duration::from_secs(30);

/// Largest read of a body at a time over HTTP/1, and largest head of an answer.
const READ_BYTES_MAX: usize = 128 << 10;

/// Largest list of headers of an answer over HTTP/2.
const H2_HEADERS_BYTES_MAX: u32 = 64 << 10;

/// How often an HTTP/2 connection with open streams is asked whether it lives, and how long the
/// answer may take: a dead one would otherwise be chosen for each new request.
const H2_PING: Duration = Duration::from_secs(10);

/// The most that HTTP/2 flow control can be set to.
const H2_WINDOW_BYTES_MAX: usize = (1 << 31) - 1;

/// What an HTTP client of the uplink is.
pub(crate) type HttpClient = Client<Limited<HttpsConnector<Dialer>>, Empty<Bytes>>;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The class of the address at the other end; stands in the extensions of each response.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerClass(pub(crate) AddressClass);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("connecting took too long")]
    Timeout,
    #[error("{host} is at a {} address, where an upstream may not send us", .class.as_str())]
    Refused { host: String, class: AddressClass },
    #[error("too many connections to this upstream are open")]
    Budget,
    #[error("the URL cannot be dialled")]
    Url,
    #[error("looking up {host}: {error}")]
    Lookup { host: String, error: io::Error },
    #[error("{host}: {error}")]
    Tcp { host: String, error: io::Error },
}

/// How the HTTP clients of one upstream are made.
#[derive(Clone)]
pub(crate) struct ClientSettings {
    pub(crate) tls: rustls::ClientConfig,
    pub(crate) classifier: Classifier,
    pub(crate) connect_timeout: Duration,
    pub(crate) window_bytes: usize,
    /// The most requests at a time, for what flow control must allow.
    pub(crate) requests_max: usize,
    /// Open connections of all clients of this upstream.
    pub(crate) connections: Arc<Semaphore>,
}

/// Makes a client whose connections go no further than `reach`. It keeps at most `idle_max` unused
/// connections per host.
pub(crate) fn client(settings: &ClientSettings, reach: Reach, idle_max: usize) -> HttpClient {
    let dialer = Dialer {
        classifier: settings.classifier,
        connections: Arc::clone(&settings.connections),
        reach,
    };
    let secure = HttpsConnectorBuilder::new()
        .with_tls_config(settings.tls.clone())
        .https_or_http()
        .enable_all_versions()
        .wrap_connector(dialer);
    let window = |bytes: usize| u32::try_from(bytes.min(H2_WINDOW_BYTES_MAX)).unwrap_or(u32::MAX);
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE)
        .pool_max_idle_per_host(idle_max)
        .http1_max_buf_size(READ_BYTES_MAX)
        .http2_initial_stream_window_size(window(settings.window_bytes))
        // As wide as all streams together: a stream that nobody reads must not stop the others.
        .http2_initial_connection_window_size(window(
            settings.window_bytes.saturating_mul(settings.requests_max),
        ))
        .http2_max_header_list_size(H2_HEADERS_BYTES_MAX)
        .http2_keep_alive_interval(H2_PING)
        .http2_keep_alive_timeout(H2_PING)
        .build(Limited { inner: secure, limit: settings.connect_timeout })
}

/// A connector with a time limit on all that it does.
#[derive(Clone)]
pub(crate) struct Limited<C> {
    inner: C,
    limit: Duration,
}

impl<C> Service<Uri> for Limited<C>
where
    C: Service<Uri>,
    C::Error: Into<BoxError>,
    C::Future: Send + 'static,
{
    type Response = C::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<C::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let limit = self.limit;
        let connecting = self.inner.call(uri);
        Box::pin(async move {
            match tokio::time::timeout(limit, connecting).await {
                Ok(connected) => connected.map_err(Into::into),
                Err(_) => Err(DialError::Timeout.into()),
            }
        })
    }
}

/// Looks up, judges and connects.
#[derive(Clone)]
pub(crate) struct Dialer {
    classifier: Classifier,
    connections: Arc<Semaphore>,
    reach: Reach,
}

impl Service<Uri> for Dialer {
    type Response = Dialed;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<Dialed, DialError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dialer = self.clone();
        Box::pin(async move { dialer.dial(&uri).await })
    }
}

impl Dialer {
    async fn dial(self, uri: &Uri) -> Result<Dialed, DialError> {
        let host = uri.host().ok_or(DialError::Url)?;
        let port = match (uri.port_u16(), uri.scheme_str()) {
            (Some(port), _) => port,
            (None, Some("https")) => 443,
            (None, Some("http")) => 80,
            (None, _) => return Err(DialError::Url),
        };
        let place =
            Arc::clone(&self.connections).try_acquire_owned().map_err(|_| DialError::Budget)?;
        let addresses = self.judge(host, resolve(host, port).await?)?;
        let (stream, address) = connect_any(host, addresses).await?;
        // Without it, a request that follows a response would wait for a delayed acknowledgement.
        // A socket that refuses the option works all the same.
        let _ = stream.set_nodelay(true);
        let class = (self.classifier)(address.ip());
        Ok(Dialed { io: TokioIo::new(stream), class, _place: place })
    }

    /// The addresses that may be connected to.
    fn judge(&self, host: &str, addresses: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, DialError> {
        let mut refused = None;
        let mut allowed = Vec::new();
        for address in addresses {
            let class = (self.classifier)(address.ip());
            if self.reach.allows(class) {
                allowed.push(address);
            } else {
                refused = Some(class);
            }
        }
        match refused {
            Some(class) if allowed.is_empty() => {
                Err(DialError::Refused { host: host.to_owned(), class })
            }
            _ => Ok(allowed),
        }
    }
}

/// The addresses of a host, in the resolver's order, families in turn.
async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, DialError> {
    let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = literal.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let failed = |error| DialError::Lookup { host: host.to_owned(), error };
    let found: Vec<_> = tokio::net::lookup_host((host, port)).await.map_err(failed)?.collect();
    let prefer_v6 = found.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|address| address.is_ipv6() == prefer_v6);
    let mut second = second.into_iter();
    let mut addresses = Vec::new();
    for address in first {
        addresses.push(address);
        addresses.extend(second.next());
    }
    addresses.extend(second);
    addresses.truncate(ADDRESSES_MAX);
    if addresses.is_empty() {
        return Err(failed(io::Error::new(io::ErrorKind::NotFound, "it has no address")));
    }
    Ok(addresses)
}

/// The first of several addresses that answers; each has a head start before the next.
async fn connect_any(
    host: &str,
    addresses: Vec<SocketAddr>,
) -> Result<(TcpStream, SocketAddr), DialError> {
    let mut waiting = addresses.into_iter();
    let mut attempts = JoinSet::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "there is no address to try");
    loop {
        match waiting.next() {
            Some(address) => {
                attempts.spawn(async move { (TcpStream::connect(address).await, address) });
            }
            None if attempts.is_empty() => {
                return Err(DialError::Tcp { host: host.to_owned(), error: last });
            }
            None => {}
        }
        let more = waiting.len() > 0;
        tokio::select! {
            Some(ended) = attempts.join_next() => match ended {
                Ok((Ok(stream), address)) => return Ok((stream, address)),
                Ok((Err(error), _)) => last = error,
                Err(error) => last = io::Error::other(error),
            },
            () = tokio::time::sleep(ATTEMPT_DELAY), if more => {}
        }
    }
}

/// A TCP connection that counts while it is open.
pub(crate) struct Dialed {
    io: TokioIo<TcpStream>,
    class: AddressClass,
    _place: OwnedSemaphorePermit,
}

impl Connection for Dialed {
    fn connected(&self) -> Connected {
        Connected::new().extra(PeerClass(self.class))
    }
}

impl Read for Dialed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl Write for Dialed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bytes)
    }
}
