//! The calling side: one connection for each node and lane, made when it is needed and made anew when it is
//! gone or silent.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader, BufWriter};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;

use super::frame::{self, BODY_BYTES_MAX, Frame, Kind};
use super::tls::{Role, TlsContext, member_name};

/// For a connection and its handshake.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(2);
/// Calls of one connection that wait to be written.
const WAITING_MAX: usize = 256;
/// A connection with calls on it that brings nothing for so long is given up: behind a partition TCP would
/// wait for minutes.
const SILENCE_MAX: Duration = Duration::from_secs(1);

/// Why a call has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// There is no connection.
    #[error("{address} cannot be reached: {reason}")]
    Unreachable {
        /// Whom.
        address: String,
        /// Why.
        reason: String,
    },
    /// There was one; whether the call was carried out is not known.
    #[error("{address} did not answer: {reason}")]
    NoAnswer {
        /// Who.
        address: String,
        /// Why.
        reason: String,
    },
    /// The other side says no.
    #[error("{0}")]
    Refused(String),
}

/// Connections of one kind do not wait behind those of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Votes, log entries, heartbeats.
    Raft,
    /// Snapshots.
    Snapshot,
    /// What is forwarded for clients.
    Forward,
}

/// The connections of one node to the others.
#[derive(Debug)]
pub struct Pool {
    tls: TlsContext,
    /// The address that calls come from, where it matters.
    source: Option<IpAddr>,
    places: Mutex<HashMap<(u64, Lane), Arc<Place>>>,
}

#[derive(Debug, Default)]
struct Place {
    /// Held while a connection is made, so that there is one.
    connection: tokio::sync::Mutex<Option<Arc<Connection>>>,
}

impl Pool {
    /// Without any connection yet.
    pub fn new(tls: TlsContext, source: Option<IpAddr>) -> Self {
        Self { tls, source, places: Mutex::default() }
    }

    /// Calls a node and waits for its answer, for at most `time_max`.
    ///
    /// # Errors
    /// [`CallError`]
    pub async fn call(
        &self,
        (node, address): (u64, &str),
        lane: Lane,
        kind: Kind,
        body: Bytes,
        time_max: Duration,
    ) -> Result<Bytes, CallError> {
        let work = async {
            let connection = self.connection(node, address, lane).await?;
            connection.call(kind, body, address).await
        };
        match tokio::time::timeout(time_max, work).await {
            Ok(result) => result,
            Err(_) => Err(no_answer(address, format!("for {time_max:?}"))),
        }
    }

    async fn connection(
        &self,
        node: u64,
        address: &str,
        lane: Lane,
    ) -> Result<Arc<Connection>, CallError> {
        let place = Arc::clone(lock(&self.places).entry((node, lane)).or_default());
        let mut connection = place.connection.lock().await;
        if let Some(connection) = &*connection
            && connection.is_good(address)
        {
            return Ok(Arc::clone(connection));
        }
        *connection = None;
        let name = member_name(Role::Node, node);
        let made = connect(&self.tls.client, name, address, self.source).await?;
        Ok(Arc::clone(connection.insert(Arc::new(made))))
    }
}

/// One call on a connection of its own, for a newcomer.
///
/// # Errors
/// [`CallError`]
pub async fn call_once(
    tls: &Arc<ClientConfig>,
    name: String,
    address: &str,
    kind: Kind,
    body: Bytes,
    time_max: Duration,
) -> Result<Bytes, CallError> {
    let work = async {
        let connection = connect(tls, name, address, None).await?;
        connection.call(kind, body, address).await
    };
    match tokio::time::timeout(time_max, work).await {
        Ok(result) => result,
        Err(_) => Err(no_answer(address, format!("for {time_max:?}"))),
    }
}

async fn connect(
    tls: &Arc<ClientConfig>,
    name: String,
    address: &str,
    source: Option<IpAddr>,
) -> Result<Connection, CallError> {
    let unreachable =
        |reason: String| CallError::Unreachable { address: address.to_owned(), reason };
    let name = ServerName::try_from(name).map_err(|error| unreachable(error.to_string()))?;
    let work = async {
        let stream = tcp(address, source).await?;
        stream.set_nodelay(true)?;
        TlsConnector::from(Arc::clone(tls)).connect(name, stream).await
    };
    match tokio::time::timeout(CONNECT_TIME_MAX, work).await {
        Ok(Ok(stream)) => Ok(Connection::start(stream, address)),
        Ok(Err(error)) => Err(unreachable(error.to_string())),
        Err(_) => Err(unreachable(format!("nothing for {CONNECT_TIME_MAX:?}"))),
    }
}

async fn tcp(address: &str, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let mut last = io::Error::other("the name has no address");
    for target in tokio::net::lookup_host(address).await? {
        let socket = if target.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(source) = source
            && source.is_ipv4() == target.is_ipv4()
        {
            socket.bind(SocketAddr::new(source, 0))?;
        }
        match socket.connect(target).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// What both tasks of a connection and its callers share.
#[derive(Debug, Default)]
struct Calls {
    waiting: Mutex<HashMap<u64, oneshot::Sender<Result<Bytes, String>>>>,
    /// Since when calls are on it without anything that came.
    silent_since: Mutex<Option<Instant>>,
    gone: AtomicBool,
}

#[derive(Debug)]
struct Connection {
    address: String,
    calls: Arc<Calls>,
    next: AtomicU64,
    frames: mpsc::Sender<Frame>,
    tasks: [AbortHandle; 2],
}

impl Connection {
    fn start<S: AsyncRead + AsyncWrite + Send + 'static>(stream: S, address: &str) -> Self {
        let (read_half, write_half) = tokio::io::split(stream);
        let calls = Arc::new(Calls::default());
        let (frames, mut waiting) = mpsc::channel::<Frame>(WAITING_MAX);
        let state = Arc::clone(&calls);
        let writer = tokio::spawn(async move {
            let mut out = BufWriter::with_capacity(64 << 10, write_half);
            while let Some(frame) = waiting.recv().await {
                if frame::write(&mut out, &frame).await.is_err()
                    || (waiting.is_empty() && out.flush().await.is_err())
                {
                    break;
                }
            }
            state.end();
        });
        let state = Arc::clone(&calls);
        let reader = tokio::spawn(async move {
            let mut from = BufReader::with_capacity(64 << 10, read_half);
            while let Ok(Some(frame)) = frame::read(&mut from, BODY_BYTES_MAX).await {
                state.answer(frame);
            }
            state.end();
        });
        Self {
            address: address.to_owned(),
            calls,
            next: AtomicU64::new(0),
            frames,
            tasks: [writer.abort_handle(), reader.abort_handle()],
        }
    }

    fn is_good(&self, address: &str) -> bool {
        let silent = lock(&self.calls.silent_since).is_some_and(|at| at.elapsed() > SILENCE_MAX);
        !silent && !self.calls.gone.load(Ordering::Acquire) && self.address == address
    }

    async fn call(&self, kind: Kind, body: Bytes, address: &str) -> Result<Bytes, CallError> {
        let call = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        lock(&self.calls.waiting).insert(call, sender);
        // Whoever stops waiting takes its place away.
        let _place = Waiting { calls: &self.calls, call };
        lock(&self.calls.silent_since).get_or_insert_with(Instant::now);
        let closed = || no_answer(address, "the connection was closed".to_owned());
        self.frames.send(Frame { call, kind, body }).await.map_err(|_| closed())?;
        if self.calls.gone.load(Ordering::Acquire) {
            return Err(closed());
        }
        match answer.await {
            Ok(Ok(body)) => Ok(body),
            Ok(Err(reason)) => Err(CallError::Refused(reason)),
            Err(_) => Err(closed()),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Calls {
    fn answer(&self, frame: Frame) {
        *lock(&self.silent_since) = None;
        let Some(sender) = lock(&self.waiting).remove(&frame.call) else { return };
        let answer = match frame.kind {
            Kind::OK => Ok(frame.body),
            _ => Err(String::from_utf8_lossy(&frame.body).into_owned()),
        };
        // Who called may have gone.
        let _ = sender.send(answer);
    }

    fn end(&self) {
        self.gone.store(true, Ordering::Release);
        lock(&self.waiting).clear();
    }
}

struct Waiting<'a> {
    calls: &'a Calls,
    call: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        lock(&self.calls.waiting).remove(&self.call);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn no_answer(address: &str, reason: String) -> CallError {
    CallError::NoAnswer { address: address.to_owned(), reason }
}
