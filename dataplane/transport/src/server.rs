//! Accepting connections, and serving each in a task of its own.

use std::cell::{Cell, OnceCell};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use outrider_shard::ready::Watched;
use outrider_shard::{task, time};
use prometheus_client::metrics::gauge::Gauge;
use rustix::io::Errno;
use rustix::net::SocketFlags;

use crate::activity::{Activity, InFlight};
use crate::body::{BodyFault, Leftover, RequestBody};
use crate::connection::{Connection, End, Http};
use crate::drain::{Connected, Drain};
use crate::limits::Limits;
use crate::link::TlsLink;
use crate::listener::Listener;
use crate::metrics::{Reason, TransportMetrics};
use crate::peer::{Peer, Protocol};
use crate::pins::{ConnectionPins, PinBudget, PinnedBody};
use crate::socket::Socket;
use crate::stream::{Stream, Transport};

/// Connections accepted before the others have their turn.
const ACCEPT_BATCH: u64 = 32;

/// For how long accepting rests when there are no descriptors or no memory left.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// What hyper buffers of a connection in one direction. A response frame that is larger still goes
/// out as it is, alone.
const BUFFER_BYTES: usize = 64 * 1024;

/// Receive windows of HTTP/2: what a client may send ahead of who reads it.
const STREAM_WINDOW_BYTES: u32 = 512 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// Streams that a client may have reset before they were looked at, and that it may have made this
/// end reset (CVE-2023-44487, CVE-2025-8671): beyond that the connection is ended.
const PENDING_RESETS_MAX: usize = 20;
const LOCAL_RESETS_MAX: usize = 100;

const CLOSE: http::HeaderValue = http::HeaderValue::from_static("close");

/// Answers requests.
pub trait Handler: 'static {
    /// The body of the answers. An error cuts the answer off: over HTTP/1 the connection is reset,
    /// over HTTP/2 the stream.
    type Body: http_body::Body<Data = Bytes, Error = BodyFault> + 'static;

    /// Answers one request. The future is dropped when the client has gone away.
    fn handle(
        self: Rc<Self>,
        request: http::Request<RequestBody>,
        peer: Peer,
    ) -> impl Future<Output = http::Response<Self::Body>> + 'static;

    /// The answer to a request without a body, if it lies ready: without waiting, and in less than
    /// some microseconds. `None` has [`Self::handle`] asked, as it is for everything by default.
    fn immediate(&self, _request: &http::request::Parts, _peer: Peer) -> Option<Immediate> {
        None
    }

    /// Whether a client of the native protocol may ask for this customer, in this region; either is empty
    /// where it has not said so.
    ///
    /// # Errors
    /// What the client is told.
    fn admit(&self, _customer: &str, _region: &str, _peer: Peer) -> Result<(), String> {
        Ok(())
    }
}

/// What an answer's error is, for people: a handler may put it into the extensions of an answer over the
/// native protocol, which does not send the bodies of errors.
#[derive(Clone, Debug)]
pub struct ErrorText(pub String);

/// Stands in the extensions of a request by which another edge asks this one to keep a manifest: content of the
/// repository that its path names, had from who asks. Only the native protocol makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep;

/// An answer that lies ready.
#[derive(Debug)]
pub struct Immediate {
    /// Its head.
    pub head: Rc<PreparedHead>,
    /// Its body, as long as the head says. For HEAD it is empty.
    pub body: Bytes,
    /// How much memory the body keeps from being used for anything else until the client has it, in
    /// bytes.
    pub held_bytes: usize,
}

/// The head of an answer that is given over and over, encoded once.
#[derive(Debug)]
pub struct PreparedHead {
    parts: http::response::Parts,
    body_bytes: u64,
    http3: OnceCell<Bytes>,
    native: OnceCell<Bytes>,
}

impl PreparedHead {
    /// `body_bytes`: the length of the body that is sent behind it.
    pub fn new(parts: http::response::Parts, body_bytes: u64) -> Self {
        Self { parts, body_bytes, http3: OnceCell::new(), native: OnceCell::new() }
    }

    /// The HEADERS frame and the head of the DATA frame.
    pub(crate) fn http3(&self) -> Bytes {
        let encode = || outrider_http3::response::encode_head(&self.parts, Some(self.body_bytes));
        self.http3.get_or_init(encode).clone()
    }

    /// The record of the first want of a request, made by `encode` from the head and the body's length.
    pub(crate) fn native(&self, encode: impl FnOnce(&Self) -> Bytes) -> Bytes {
        self.native.get_or_init(|| encode(self)).clone()
    }

    pub(crate) fn parts(&self) -> &http::response::Parts {
        &self.parts
    }

    pub(crate) fn body_bytes(&self) -> u64 {
        self.body_bytes
    }
}

/// Serves `listener` on this shard until `drain` is started. It returns then; the connections go on
/// as tasks of their own, until they have ended or the shard does (see [`Drain::wait`]).
///
/// # Panics
/// On a thread that is not a shard's.
pub async fn serve<H: Handler>(
    listener: Listener,
    tls: Option<Arc<rustls::ServerConfig>>,
    handler: Rc<H>,
    limits: Limits,
    pins: PinBudget,
    drain: Drain,
    metrics: TransportMetrics,
) {
    metrics.watch_pins(&pins);
    let (accepted, open) = metrics.of_listener(tls.is_some());
    let server = Rc::new(Server {
        tls,
        handler,
        limits: Rc::new(limits),
        pins,
        drain,
        metrics,
        connections: Cell::new(0),
        connections_open: open,
        alt_svc: listener.alt_svc(),
    });
    let acceptor = match Acceptor::new(&listener) {
        Ok(acceptor) => acceptor,
        Err(error) => {
            tracing::error!(%error, address = %listener.local_address(), "cannot listen");
            return;
        }
    };
    let mut drained = pin!(server.drain.watch());
    for turn in 1u64.. {
        let next = std::future::poll_fn(|cx| match drained.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => acceptor.poll_accept(cx).map(Some),
        });
        match next.await {
            None => return,
            Some(Ok((stream, address))) => {
                accepted.inc();
                server.take(stream, address);
            }
            Some(Err(error)) => {
                server.metrics.count_accept_error();
                tracing::warn!(%error, address = %listener.local_address(), "cannot accept");
                // The descriptors or the memory that are missing come back when connections end.
                let _ = time::timeout(ACCEPT_REST, drained.as_mut()).await;
            }
        }
        if turn % ACCEPT_BATCH == 0 {
            task::yield_now().await;
        }
    }
}

/// The listening socket on its shard.
struct Acceptor<'a> {
    watched: Watched<&'a TcpListener>,
}

impl<'a> Acceptor<'a> {
    fn new(listener: &'a Listener) -> io::Result<Self> {
        Ok(Self { watched: Watched::new(listener.socket())? })
    }

    /// Errors are those of this process; what is wrong with a connection is no concern of the others.
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        loop {
            ready!(self.watched.poll_readable(cx));
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match rustix::net::acceptfrom_with(self.watched.get_ref(), flags) {
                Ok((socket, address)) => {
                    // A connection without an address has gone again.
                    if let Some(address) = address.and_then(|any| SocketAddr::try_from(any).ok()) {
                        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
                        return Poll::Ready(Ok((TcpStream::from(socket), address)));
                    }
                }
                Err(Errno::AGAIN) => self.watched.clear_readable(),
                Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                    return Poll::Ready(Err(error.into()));
                }
                Err(_) => {}
            }
        }
    }
}

/// What all connections of one listener share.
struct Server<H> {
    tls: Option<Arc<rustls::ServerConfig>>,
    handler: Rc<H>,
    limits: Rc<Limits>,
    pins: PinBudget,
    drain: Drain,
    metrics: TransportMetrics,
    connections: Cell<usize>,
    connections_open: Gauge,
    alt_svc: Option<http::HeaderValue>,
}

impl<H: Handler> Server<H> {
    /// Serves a connection, or closes it when there are too many.
    fn take(self: &Rc<Self>, stream: TcpStream, address: SocketAddr) {
        if self.connections.get() >= self.limits.connections_max {
            self.metrics.count_closed(Reason::TooMany);
            return;
        }
        let open = Open::new(self);
        task::spawn(async move { open.server.run(stream, address).await });
    }

    async fn run(&self, stream: TcpStream, address: SocketAddr) {
        let Some(transport) = self.connect(stream).await else { return };
        let (secure, protocol) = match &transport {
            Transport::Plain(_) => (false, Protocol::Http1),
            Transport::Tls(link) => (true, link.protocol()),
        };
        let requests = Rc::new(Requests {
            handler: self.handler.clone(),
            peer: Peer { address, secure, protocol, early: false, member: None },
            limits: self.limits.clone(),
            activity: Activity::new(protocol),
            pins: self.pins.connection(),
            metrics: self.metrics.clone(),
            alt_svc: self.alt_svc.clone(),
        });
        let activity = requests.activity.clone();
        let stream = Stream::new(transport, activity.clone(), self.metrics.clone());
        let end = match protocol {
            Protocol::Http1 => self.watch(self.http1(stream, requests.clone()), &requests).await,
            _ => self.watch(self.http2(stream, requests.clone()), &requests).await,
        };
        match end {
            End::Served(Ok(())) => {}
            End::Served(Err(_)) if activity.fault.get() => {
                self.metrics.count_closed(Reason::Fault);
            }
            End::Served(Err(error)) => {
                tracing::debug!(%error, %address, "connection lost");
                self.metrics.count_closed(Reason::Protocol);
            }
            End::Closed(reason) => {
                tracing::debug!(?reason, %address, "connection closed");
                self.metrics.count_closed(reason);
            }
        }
    }

    /// The socket, with TLS if that is spoken here.
    async fn connect(&self, stream: TcpStream) -> Option<Transport> {
        let socket = match Socket::new(stream) {
            Ok(socket) => socket,
            Err(error) => {
                self.metrics.count_accept_error();
                tracing::warn!(%error, "cannot watch a connection");
                return None;
            }
        };
        let Some(config) = &self.tls else { return Some(Transport::Plain(socket)) };
        let mut drained = pin!(self.drain.watch());
        let mut handshake = pin!(TlsLink::accept(socket, config.clone()));
        let shaken = std::future::poll_fn(|cx| match drained.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => handshake.as_mut().poll(cx).map(Some),
        });
        match time::timeout(self.limits.handshake_time, shaken).await {
            Ok(None) => None,
            Ok(Some(Ok(link))) => Some(Transport::Tls(Box::new(link))),
            Ok(Some(Err(error))) => {
                tracing::debug!(%error, "handshake failed");
                self.metrics.count_closed(Reason::Handshake);
                None
            }
            Err(time::Elapsed) => {
                self.metrics.count_closed(Reason::HandshakeTime);
                None
            }
        }
    }

    fn http1(&self, stream: Stream, requests: Rc<Requests<H>>) -> impl Http {
        http1::Builder::new()
            // The watch has its own clock for heads, which needs no timer per request.
            .header_read_timeout(None)
            .max_header_size(self.limits.header_bytes_max)
            .max_buf_size(BUFFER_BYTES.max(self.limits.header_bytes_max))
            .serve_connection(stream, service_fn(move |request| requests.clone().answer(request)))
    }

    fn http2(&self, stream: Stream, requests: Rc<Requests<H>>) -> impl Http {
        http2::Builder::new(OnShard)
            .max_concurrent_streams(self.limits.streams_max)
            .max_header_list_size(u32::try_from(self.limits.header_bytes_max).unwrap_or(u32::MAX))
            .max_send_buf_size(BUFFER_BYTES)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
            .max_local_error_reset_streams(LOCAL_RESETS_MAX)
            .serve_connection(stream, service_fn(move |request| requests.clone().answer(request)))
    }

    async fn watch(&self, http: impl Http, requests: &Requests<H>) -> End {
        Connection::new(
            http,
            requests.activity.clone(),
            requests.pins.clone(),
            self.limits.clone(),
            self.drain.watch(),
        )
        .await
    }
}

/// A connection that counts as one.
struct Open<H: Handler> {
    server: Rc<Server<H>>,
    _connected: Connected,
}

impl<H: Handler> Open<H> {
    fn new(server: &Rc<Server<H>>) -> Self {
        server.connections.set(server.connections.get() + 1);
        server.connections_open.inc();
        Self { server: server.clone(), _connected: server.drain.count_connection() }
    }
}

impl<H: Handler> Drop for Open<H> {
    fn drop(&mut self) {
        self.server.connections.set(self.server.connections.get() - 1);
        self.server.connections_open.dec();
    }
}

/// What all requests of one connection share.
struct Requests<H> {
    handler: Rc<H>,
    peer: Peer,
    limits: Rc<Limits>,
    activity: Rc<Activity>,
    pins: ConnectionPins,
    metrics: TransportMetrics,
    alt_svc: Option<http::HeaderValue>,
}

impl<H: Handler> Requests<H> {
    fn answer(
        self: Rc<Self>,
        request: http::Request<Incoming>,
    ) -> impl Future<Output = Result<http::Response<PinnedBody<H::Body>>, Infallible>> {
        let in_flight = InFlight::new(&self.activity);
        self.metrics.requests_of(self.peer.protocol).inc();
        let (head, incoming) = request.into_parts();
        let mut leftover = None;
        let body = match self.peer.protocol {
            Protocol::Http1 => {
                let expects = head.headers.contains_key(http::header::EXPECT);
                RequestBody::http1(incoming, &self.limits, self.activity.clone(), expects)
            }
            _ => {
                let left = Leftover::default();
                leftover = Some(left.clone());
                RequestBody::http2(incoming, &self.limits, left)
            }
        };
        let request = http::Request::from_parts(head, body);
        let answer = self.handler.clone().handle(request, self.peer);
        let pins = self.pins.clone();
        async move {
            let mut answer = answer.await;
            if in_flight.activity().body_left.get() {
                // Else the client would find out with its next request.
                answer.headers_mut().insert(http::header::CONNECTION, CLOSE);
            }
            if let Some(value) = &self.alt_svc {
                answer.headers_mut().insert(http::header::ALT_SVC, value.clone());
            }
            Ok(answer.map(|body| PinnedBody::new(body, pins, in_flight, leftover)))
        }
    }
}

/// Runs the streams of an HTTP/2 connection.
#[derive(Clone, Copy, Debug)]
struct OnShard;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for OnShard {
    fn execute(&self, future: F) {
        task::spawn(future);
    }
}
