//! A minimal HTTP/3 file server as one writes it with the crates `h3` and `h3-quinn` on tokio: blobs
//! in memory by path, whole or by range, GET and HEAD.
//!
//! It is what Outrider is compared with, so it does what these crates do best and nothing beside: one
//! thread, no logging, no metrics, a body is one `Bytes` that is cloned and never copied here. Its
//! transport settings are quinn's defaults but where the defaults would hold it back (windows,
//! streams).
//!
//! - [`Blobs`]: what is served. [`range`]: `Range` of one part. [`endpoint`], [`serve`]: how.

#![forbid(unsafe_code)]

pub mod range;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use h3::server::RequestStream;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Endpoint, EndpointConfig, MtuDiscoveryConfig, TransportConfig};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use range::Range;

/// Bytes of one connection that may be unacknowledged.
const SEND_WINDOW_BYTES: u64 = 64 << 20;
/// Requests at a time on one connection.
const STREAMS_MAX: u32 = 1000;
/// The largest UDP payload of loopback.
const UDP_PAYLOAD_MAX: u16 = 65_527;
/// Folders in folders that are looked at.
const DEPTH_MAX: u32 = 8;

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The system refused something.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
    /// Certificate and key cannot be used.
    #[error("TLS: {0}")]
    Tls(String),
}

impl PeerError {
    fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}

/// What is served, by path.
#[derive(Clone, Debug, Default)]
pub struct Blobs {
    by_path: HashMap<String, Blob>,
}

#[derive(Clone, Debug)]
struct Blob {
    bytes: Bytes,
    content_type: HeaderValue,
}

impl Blobs {
    /// All files below `folder`, at their paths in it.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn load(folder: &Path) -> Result<Self, PeerError> {
        let mut blobs = Self::default();
        blobs.load_folder(folder, "/", DEPTH_MAX)?;
        Ok(blobs)
    }

    fn load_folder(&mut self, folder: &Path, prefix: &str, depth: u32) -> Result<(), PeerError> {
        let reading = || format!("reading {}", folder.display());
        for entry in fs::read_dir(folder).map_err(PeerError::io(reading()))? {
            let entry = entry.map_err(PeerError::io(reading()))?;
            let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if !entry.path().is_dir() {
                let file = entry.path();
                let doing = format!("reading {}", file.display());
                self.insert(&path, fs::read(&file).map_err(PeerError::io(doing))?);
            } else if depth > 0 {
                self.load_folder(&entry.path(), &format!("{path}/"), depth - 1)?;
            }
        }
        Ok(())
    }

    /// Serves `bytes` at `path`.
    pub fn insert(&mut self, path: &str, bytes: impl Into<Bytes>) {
        self.insert_as(path, "application/octet-stream", bytes);
    }

    /// Serves `bytes` of a media type at `path`.
    pub fn insert_as(&mut self, path: &str, content_type: &'static str, bytes: impl Into<Bytes>) {
        let content_type = HeaderValue::from_static(content_type);
        self.by_path.insert(path.to_owned(), Blob { bytes: bytes.into(), content_type });
    }

    /// The answer to a request: its head, and the body that follows.
    pub fn answer(&self, request: &Request<()>) -> (Response<()>, Bytes) {
        let head = request.method() == Method::HEAD;
        if !head && request.method() != Method::GET {
            return empty(StatusCode::METHOD_NOT_ALLOWED);
        }
        let Some(blob) = self.by_path.get(request.uri().path()) else {
            return empty(StatusCode::NOT_FOUND);
        };
        let size = blob.bytes.len() as u64;
        let asked = request.headers().get(header::RANGE);
        let mut response = Response::builder()
            .header(header::CONTENT_TYPE, blob.content_type.clone())
            .header(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        let body = match asked.map_or(Range::Whole, |value| range::parse(value.as_bytes(), size)) {
            Range::Whole => blob.bytes.clone(),
            Range::Part { first, last } => {
                response = response
                    .status(StatusCode::PARTIAL_CONTENT)
                    .header(header::CONTENT_RANGE, format!("bytes {first}-{last}/{size}"));
                // Both lie within the blob, which is in memory.
                blob.bytes.slice(first as usize..=last as usize)
            }
            Range::Unsatisfiable => {
                response = response
                    .status(StatusCode::RANGE_NOT_SATISFIABLE)
                    .header(header::CONTENT_RANGE, format!("bytes */{size}"));
                Bytes::new()
            }
        };
        response = response.header(header::CONTENT_LENGTH, body.len());
        let body = if head { Bytes::new() } else { body };
        match response.body(()) {
            Ok(response) => (response, body),
            Err(_) => empty(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }
}

fn empty(status: StatusCode) -> (Response<()>, Bytes) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    (response, Bytes::new())
}

/// An endpoint on `listen`, HTTP/3 only, 0-RTT accepted. `mtu` is the largest UDP payload that is
/// tried; quinn's default is 1,452. Must be called within a tokio runtime.
///
/// # Errors
/// When the certificate is of no use, or the address is taken.
pub fn endpoint(
    listen: SocketAddr,
    certificates: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    mtu: Option<u16>,
) -> Result<Endpoint, PeerError> {
    let tls_error = |error: &dyn std::fmt::Display| PeerError::Tls(error.to_string());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| tls_error(&error))?
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .map_err(|error| tls_error(&error))?;
    tls.alpn_protocols = vec![b"h3".to_vec()];
    tls.max_early_data_size = u32::MAX;
    let crypto = QuicServerConfig::try_from(tls).map_err(|error| tls_error(&error))?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let mut transport = TransportConfig::default();
    transport.send_window(SEND_WINDOW_BYTES);
    transport.max_concurrent_bidi_streams(STREAMS_MAX.into());
    let mut endpoint = EndpointConfig::default();
    if let Some(mtu) = mtu {
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(mtu);
        transport.mtu_discovery_config(Some(discovery));
        endpoint.max_udp_payload_size(UDP_PAYLOAD_MAX).map_err(|error| tls_error(&error))?;
    }
    config.transport_config(Arc::new(transport));
    let binding = || format!("binding {listen}");
    let socket = std::net::UdpSocket::bind(listen).map_err(PeerError::io(binding()))?;
    Endpoint::new(endpoint, Some(config), socket, Arc::new(quinn::TokioRuntime))
        .map_err(PeerError::io(binding()))
}

/// Serves `blobs` until the endpoint is closed.
pub async fn serve(endpoint: Endpoint, blobs: Arc<Blobs>) {
    while let Some(incoming) = endpoint.accept().await {
        let blobs = Arc::clone(&blobs);
        tokio::spawn(async move {
            if let Ok(connection) = incoming.await {
                serve_connection(connection, blobs).await;
            }
        });
    }
}

async fn serve_connection(connection: quinn::Connection, blobs: Arc<Blobs>) {
    let quic = h3_quinn::Connection::new(connection);
    let Ok(mut connection) = h3::server::Connection::<_, Bytes>::new(quic).await else { return };
    while let Ok(Some(resolver)) = connection.accept().await {
        let blobs = Arc::clone(&blobs);
        tokio::spawn(async move {
            if let Ok((request, stream)) = resolver.resolve_request().await {
                // A client that leaves is no concern of the others.
                let _ = respond(&blobs, &request, stream).await;
            }
        });
    }
}

async fn respond<S: h3::quic::BidiStream<Bytes>>(
    blobs: &Blobs,
    request: &Request<()>,
    mut stream: RequestStream<S, Bytes>,
) -> Result<(), h3::error::StreamError> {
    let (head, body) = blobs.answer(request);
    stream.send_response(head).await?;
    if !body.is_empty() {
        stream.send_data(body).await?;
    }
    stream.finish().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(method: Method, path: &str, range: Option<&str>) -> (Response<()>, Bytes) {
        let mut blobs = Blobs::default();
        blobs.insert("/a", Bytes::from_static(b"0123456789"));
        let mut request = Request::builder().method(method).uri(path);
        if let Some(range) = range {
            request = request.header(header::RANGE, range);
        }
        blobs.answer(&request.body(()).unwrap())
    }

    fn header_of(response: &Response<()>, name: header::HeaderName) -> &str {
        response.headers()[name].to_str().unwrap()
    }

    #[test]
    fn a_head_says_what_a_get_would_send() {
        for (method, body) in [(Method::GET, "0123456789"), (Method::HEAD, "")] {
            let (response, sent) = ask(method, "/a", None);
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(header_of(&response, header::CONTENT_LENGTH), "10");
            assert_eq!(sent, body.as_bytes());
        }
    }

    #[test]
    fn a_range_is_cut_out_and_named() {
        let (response, body) = ask(Method::GET, "/a", Some("bytes=2-4"));
        assert_eq!(response.status(), StatusCode::PARTIAL_CONTENT);
        assert_eq!(header_of(&response, header::CONTENT_RANGE), "bytes 2-4/10");
        assert_eq!((header_of(&response, header::CONTENT_LENGTH), &body[..]), ("3", &b"234"[..]));
        let (response, body) = ask(Method::GET, "/a", Some("bytes=10-"));
        assert_eq!(response.status(), StatusCode::RANGE_NOT_SATISFIABLE);
        assert_eq!((header_of(&response, header::CONTENT_RANGE), body.len()), ("bytes */10", 0));
    }

    #[test]
    fn what_is_not_here_and_what_is_not_done_are_told_apart() {
        assert_eq!(ask(Method::GET, "/b", None).0.status(), StatusCode::NOT_FOUND);
        assert_eq!(ask(Method::PUT, "/a", None).0.status(), StatusCode::METHOD_NOT_ALLOWED);
    }
}
