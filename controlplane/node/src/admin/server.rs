//! Connections of the admin API, their bounds, and how the server ends.

use std::convert::Infallible;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::Admin;
use super::patience::Patient;

/// The head of one request; a longer one is answered 431.
const HEADER_BYTES_MAX: usize = 16 << 10;
/// For a handshake.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
/// After an error of accept (no more file descriptors), before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The bounds of the server.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections at a time; more wait in the listener's backlog.
    pub connections: usize,
    /// For the head of one request, and so also how long a connection may idle between two; and how long one may
    /// take nothing of an answer.
    pub idle_time: Duration,
}

/// Serves until `stop` is true, and then until what is being answered is answered.
///
/// # Errors
/// When the listener cannot be handed to the runtime.
pub async fn serve(
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    admin: Arc<Admin>,
    bounds: Bounds,
    mut stop: watch::Receiver<bool>,
) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(bounds.connections));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, stream) = tokio::select! {
            biased;
            () = told(&mut stop) => break,
            (place, accepted) = accepted => match accepted {
                Ok((stream, _)) => (place, stream),
                Err(error) => {
                    tracing::warn!(%error, "the admin listener cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let _ = stream.set_nodelay(true);
        let (admin, stop, acceptor) = (Arc::clone(&admin), stop.clone(), acceptor.clone());
        connections.spawn(async move {
            let _place = place;
            let Some(acceptor) = acceptor else {
                return answer(stream, admin, bounds, stop).await;
            };
            match tokio::time::timeout(HANDSHAKE_TIME_MAX, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => answer(stream, admin, bounds, stop).await,
                Ok(Err(error)) => tracing::debug!(%error, "a handshake of the admin API failed"),
                Err(_) => {}
            }
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
    Ok(())
}

/// Answers what comes over one connection, until it ends or the server does.
async fn answer<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    admin: Arc<Admin>,
    bounds: Bounds,
    mut stop: watch::Receiver<bool>,
) {
    let service = service_fn(move |request| {
        let admin = Arc::clone(&admin);
        async move { Ok::<_, Infallible>(admin.answer(request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.idle_time)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(Patient::new(stream, bounds.idle_time)), service);
    let mut connection = std::pin::pin!(connection);
    // How a client's connection ends is the client's business.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = told(&mut stop) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

async fn told(stop: &mut watch::Receiver<bool>) {
    // An error means that nobody is left who could tell.
    drop(stop.wait_for(|stop| *stop).await);
}
