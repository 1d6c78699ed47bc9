//! Metrics, health and status over plain HTTP/1.1, for the operator's tools.
//!
//! Owns the admin listener and its connections, on the uplink's runtime; knows nothing of what it shows
//! but the trait [`Panel`]. It must never make a shard wait: a panel asks a shard by a message and stops
//! waiting for the answer after a while.
//!
//! Nothing here changes anything: only GET and HEAD are answered. Who may read is said by `[admin.auth]`, as for nodes.
//! State fragments are read from what the edge has been told (`fragments`).

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use outrider_follower::Monitor;
use outrider_operators::{Needs, Operators, why_a_page};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::fragments;

/// Connections at a time; more wait in the listener's backlog.
pub const CONNECTIONS_MAX: usize = 32;
/// The head of one request; a longer one is answered 431.
const HEADER_BYTES_MAX: usize = 16 << 10;
/// For the head of one request, and so also how long a connection may idle between two.
const HEADER_TIME_MAX: Duration = Duration::from_secs(30);
/// For one connection altogether, so that one which takes nothing of its answer ends too.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(300);
/// After an error of accept (no more file descriptors), before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The description of the whole admin API, that of nodes too (OpenAPI 3.1).
const OPENAPI: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json"));

const TEXT_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT_PLAIN: &str = "text/plain; charset=utf-8";
pub(crate) const JSON: &str = "application/json";

/// What the admin server shows.
pub trait Panel: Send + Sync + 'static {
    /// Every metric in the OpenMetrics text format.
    fn metrics(&self) -> impl Future<Output = String> + Send;
    /// Why this process should be started again; nothing when it need not.
    fn health(&self) -> impl Future<Output = Vec<String>> + Send;
    /// Why no request should be sent here now; nothing when they may.
    fn readiness(&self) -> impl Future<Output = Vec<String>> + Send;
    /// What is worth to be known beside that, and no reason against it.
    fn remarks(&self) -> Vec<String>;
    /// How it stands to the control plane, if it follows one.
    fn control(&self) -> Option<&Monitor>;
    /// Everything that an operator would ask first.
    fn status(&self) -> impl Future<Output = Value> + Send;
}

/// Who is let in to the pages, and how.
#[derive(Clone, Default)]
pub struct Door {
    /// Whose tokens are wanted; nothing: everybody may read.
    pub operators: Option<Arc<Operators>>,
    /// TLS, where it is not plain.
    pub acceptor: Option<TlsAcceptor>,
}

/// Serves until it is dropped. To be called, and polled, in a tokio runtime with I/O and time.
///
/// # Errors
/// When the listener cannot be handed to the runtime.
pub fn serve<P: Panel>(
    listener: TcpListener,
    panel: Arc<P>,
    door: Door,
) -> io::Result<impl Future<Output = Infallible> + Send> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    Ok(accept(listener, panel, door))
}

async fn accept<P: Panel>(
    listener: tokio::net::TcpListener,
    panel: Arc<P>,
    door: Door,
) -> Infallible {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            unreachable!("nobody closes the semaphore")
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the admin listener cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (panel, door) = (Arc::clone(&panel), door.clone());
        tokio::spawn(async move {
            let operators = door.operators.as_deref();
            let answering = async {
                match door.acceptor {
                    None => converse(stream, panel.as_ref(), operators).await,
                    Some(acceptor) => match acceptor.accept(stream).await {
                        Ok(stream) => converse(stream, panel.as_ref(), operators).await,
                        Err(error) => {
                            tracing::debug!(%error, "a handshake of the admin pages failed")
                        }
                    },
                }
            };
            let _ = tokio::time::timeout(CONNECTION_TIME_MAX, answering).await;
            drop(place);
        });
    }
}

/// Answers what comes over one connection.
async fn converse<P: Panel>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    panel: &P,
    operators: Option<&Operators>,
) {
    let service = service_fn(|request| async move {
        Ok::<_, Infallible>(answer(&request, panel, operators).await)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME_MAX)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    // How a client's connection ends is the client's business.
    let _ = connection.await;
}

async fn answer<B, P: Panel>(
    request: &Request<B>,
    panel: &P,
    operators: Option<&Operators>,
) -> Response<Full<Bytes>> {
    // Supervisors ask without a token.
    if let Some(operators) = operators
        && !matches!(request.uri().path(), "/healthz" | "/readyz")
        && let Err(refused) = operators.check(request.headers(), Needs::Read)
    {
        let body = pretty(&json!({ "error": refused.why }));
        let mut response = respond(refused.status, JSON, body);
        let challenge = HeaderValue::from_static(refused.challenge);
        response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        return response;
    }
    if fragments::is_there(request.uri().path()) {
        if operators.is_none()
            && let Some(why) = why_a_page(request)
        {
            return respond(StatusCode::FORBIDDEN, JSON, pretty(&json!({ "error": why })));
        }
        return fragments::answer(request, panel.control());
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response =
            respond(StatusCode::METHOD_NOT_ALLOWED, TEXT_PLAIN, "only GET and HEAD\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/metrics" => respond(StatusCode::OK, TEXT_METRICS, panel.metrics().await),
        "/healthz" => verdict("healthy", panel.health().await, None),
        "/readyz" => verdict("ready", panel.readiness().await, Some(panel.remarks())),
        "/v1/openapi.json" => respond(StatusCode::OK, JSON, OPENAPI),
        "/status" => respond(StatusCode::OK, JSON, pretty(&panel.status().await)),
        _ => respond(
            StatusCode::NOT_FOUND,
            TEXT_PLAIN,
            "there is /metrics, /healthz, /readyz, /status, /v1/state and /v1/openapi.json\n",
        ),
    }
}

fn verdict(
    name: &str,
    reasons: Vec<String>,
    remarks: Option<Vec<String>>,
) -> Response<Full<Bytes>> {
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut body = json!({ name: reasons.is_empty(), "reasons": reasons });
    if let Some(remarks) = remarks {
        body["remarks"] = json!(remarks);
    }
    respond(status, JSON, pretty(&body))
}

pub(crate) fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

pub(crate) fn respond(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpStream};
    use std::sync::Mutex;

    #[derive(Default)]
    struct Shown {
        reasons: Mutex<Vec<String>>,
    }

    impl Panel for Shown {
        async fn metrics(&self) -> String {
            "# EOF\n".to_owned()
        }
        async fn health(&self) -> Vec<String> {
            Vec::new()
        }
        async fn readiness(&self) -> Vec<String> {
            self.reasons.lock().unwrap().clone()
        }
        fn remarks(&self) -> Vec<String> {
            Vec::new()
        }

        fn control(&self) -> Option<&Monitor> {
            None
        }

        async fn status(&self) -> Value {
            json!({ "version": "1" })
        }
    }

    fn started() -> (tokio::runtime::Runtime, SocketAddr, Arc<Shown>) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shown = Arc::new(Shown::default());
        {
            let _inside = runtime.enter();
            runtime.spawn(serve(listener, Arc::clone(&shown), Door::default()).unwrap());
        }
        (runtime, address, shown)
    }

    fn ask(address: SocketAddr, head: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "{head}\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn each_page_is_answered_with_its_type() {
        let (_runtime, address, _) = started();
        for (path, wanted) in [
            ("/metrics", "application/openmetrics-text"),
            ("/healthz", "\"healthy\": true"),
            ("/readyz", "\"ready\": true"),
            ("/status", "\"version\": \"1\""),
        ] {
            let answer = ask(address, &format!("GET {path} HTTP/1.1"));
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            assert!(answer.contains(wanted), "{answer}");
        }
    }

    #[test]
    fn not_being_ready_is_a_503_that_says_why() {
        let (_runtime, address, shown) = started();
        shown.reasons.lock().unwrap().push("draining".to_owned());
        let answer = ask(address, "GET /readyz HTTP/1.1");
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.contains("\"ready\": false") && answer.contains("\"draining\""), "{answer}");
    }

    #[test]
    fn nothing_can_be_changed_and_nothing_else_is_there() {
        let (_runtime, address, _) = started();
        let answer = ask(address, "POST /status HTTP/1.1\r\ncontent-length: 0");
        assert!(answer.starts_with("HTTP/1.1 405") && answer.contains("GET, HEAD"), "{answer}");
        assert!(ask(address, "GET /../etc/passwd HTTP/1.1").starts_with("HTTP/1.1 404"));
        let head = ask(address, "HEAD /status HTTP/1.1");
        assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
    }

    #[test]
    fn an_endless_request_head_is_refused() {
        let (_runtime, address, _) = started();
        let answer = ask(address, &format!("GET /{} HTTP/1.1", "x".repeat(HEADER_BYTES_MAX)));
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    }
}
