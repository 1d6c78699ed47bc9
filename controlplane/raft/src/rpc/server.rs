//! The answering side.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader, BufWriter};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;

use super::frame::{self, BODY_BYTES_MAX, Frame, Kind, STRANGER_BODY_BYTES_MAX};
use super::tls::{Caller, TlsContext, caller_of};

/// Connections at a time; more wait in the listener's backlog.
pub const CONNECTIONS_MAX: usize = 512;
/// Connections at a time of those who have no certificate.
const STRANGERS_MAX: usize = 16;
/// Calls of one connection that are being answered; more are not read.
const CALLS_MAX: usize = 256;
/// For a TLS handshake.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(5);
/// For all that somebody without a certificate does.
const STRANGER_TIME_MAX: Duration = Duration::from_secs(30);
/// After an error of accept (no more file descriptors), before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The longest reason that is sent.
const REASON_BYTES_MAX: usize = 1_024;

/// What answers.
pub trait Service: Send + Sync + 'static {
    /// Answers one call, or says why not.
    fn call(
        self: Arc<Self>,
        caller: Caller,
        kind: Kind,
        body: Bytes,
    ) -> impl Future<Output = Result<Bytes, String>> + Send;
}

/// Serves until it is dropped.
pub async fn serve<S: Service>(
    listener: TcpListener,
    tls: TlsContext,
    service: Arc<S>,
) -> Infallible {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
    let acceptor = TlsAcceptor::from(tls.server);
    // Dropped with this future, and the connections with it.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            unreachable!("nobody closes the semaphore")
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the listener for members cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (acceptor, service) = (acceptor.clone(), Arc::clone(&service));
        let strangers = Arc::clone(&strangers);
        connections.spawn(async move {
            let _place = place;
            connection(stream, &acceptor, &strangers, service).await;
        });
    }
}

async fn connection<S: Service>(
    stream: TcpStream,
    acceptor: &TlsAcceptor,
    strangers: &Semaphore,
    service: Arc<S>,
) {
    let _ = stream.set_nodelay(true);
    let handshake = tokio::time::timeout(HANDSHAKE_TIME_MAX, acceptor.accept(stream));
    let stream = match handshake.await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, "a handshake failed");
            return;
        }
        Err(_) => return,
    };
    let certificates = stream.get_ref().1.peer_certificates();
    match certificates.and_then(<[_]>::first).map(|certificate| caller_of(certificate)) {
        None => {
            let Ok(_place) = strangers.try_acquire() else { return };
            let answers = answer_all(stream, Caller::Stranger, STRANGER_BODY_BYTES_MAX, service);
            let _ = tokio::time::timeout(STRANGER_TIME_MAX, answers).await;
        }
        Some(Ok(caller)) => answer_all(stream, caller, BODY_BYTES_MAX, service).await,
        Some(Err(error)) => tracing::warn!(%error, "a certificate of our own is none of a member"),
    }
}

async fn answer_all<S: Service, T: AsyncRead + AsyncWrite + Send + 'static>(
    stream: T,
    caller: Caller,
    body_bytes_max: usize,
    service: Arc<S>,
) {
    let (read_half, write_half) = tokio::io::split(stream);
    let (answers, mut waiting) = mpsc::channel::<Frame>(CALLS_MAX);
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        let mut out = BufWriter::with_capacity(64 << 10, write_half);
        while let Some(frame) = waiting.recv().await {
            if frame::write(&mut out, &frame).await.is_err()
                || (waiting.is_empty() && out.flush().await.is_err())
            {
                break;
            }
        }
    });
    let places = Arc::new(Semaphore::new(CALLS_MAX));
    let mut from = BufReader::with_capacity(64 << 10, read_half);
    loop {
        while tasks.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let frame = match frame::read(&mut from, body_bytes_max).await {
            Ok(Some(frame)) => frame,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%error, ?caller, "a connection ends");
                return;
            }
        };
        let (service, answers) = (Arc::clone(&service), answers.clone());
        tasks.spawn(async move {
            let Frame { call, kind, body } = frame;
            let allowed = caller != Caller::Stranger || kind == Kind::JOIN;
            let answer = if allowed {
                service.call(caller, kind, body).await
            } else {
                Err("only members may ask this".to_owned())
            };
            let frame = match answer {
                Ok(body) => Frame { call, kind: Kind::OK, body },
                Err(mut reason) => {
                    reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
                    Frame { call, kind: Kind::ERROR, body: reason.into() }
                }
            };
            // The connection may be gone.
            let _ = answers.send(frame).await;
            drop(place);
        });
    }
}
