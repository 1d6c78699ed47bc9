//! TLS and HTTP/2: whom we trust, and that streams of one connection do not hinder each other.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrider_uplink::{FetchError, TimeoutStage, UpstreamConfig};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use tokio::sync::oneshot;

use crate::shard::{
    blob, content, drain, error, get, manifest, on_shard, start, upstream, wait_until_idle,
};

const CONTENT: &[u8] = b"0123456789";

/// What a secure origin has seen.
#[derive(Default)]
struct Seen {
    versions: Mutex<Vec<Version>>,
    connections: AtomicUsize,
    /// Bytes that were taken from bodies, and bodies that are still there.
    produced: AtomicUsize,
    bodies: AtomicUsize,
}

/// A body of so many bytes in frames of 16 KiB.
struct Produced {
    left: usize,
    seen: Arc<Seen>,
}

impl Produced {
    fn new(bytes: usize, seen: &Arc<Seen>) -> Self {
        seen.bodies.fetch_add(1, Ordering::SeqCst);
        Self { left: bytes, seen: Arc::clone(seen) }
    }
}

impl Drop for Produced {
    fn drop(&mut self) {
        self.seen.bodies.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Body for Produced {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        static BLOCK: [u8; 16 << 10] = [7; 16 << 10];
        let bytes = self.left.min(BLOCK.len());
        if bytes == 0 {
            return Poll::Ready(None);
        }
        self.left -= bytes;
        self.seen.produced.fetch_add(bytes, Ordering::SeqCst);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&BLOCK[..bytes])))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

struct SecureOrigin {
    address: SocketAddr,
    ca_file: tempfile::NamedTempFile,
    seen: Arc<Seen>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

type Script = fn(&Request<Incoming>, &Arc<Seen>) -> Response<Produced>;

impl SecureOrigin {
    /// Serves at 127.0.0.2, under a certificate for that address, with these ALPN protocols.
    fn start(protocols: &[&str], script: Script) -> Self {
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_certificate = ca.self_signed(&ca_key).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["127.0.0.2".to_owned()]).unwrap();
        let certificate = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
        let ca_file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(ca_file.path(), ca_certificate.pem()).unwrap();

        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        tls.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();

        let listener = TcpListener::bind(("127.0.0.2", 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let inside = Arc::clone(&seen);
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                tokio::select! {
                    () = accept(listener, Arc::new(tls), inside, script) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { address, ca_file, seen, stop: Some(stop), thread: Some(thread) }
    }

    fn config(&self) -> UpstreamConfig {
        UpstreamConfig {
            ca_file: Some(self.ca_file.path().to_owned()),
            ..upstream(&format!("https://{}", self.address))
        }
    }
}

impl Drop for SecureOrigin {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    seen: Arc<Seen>,
    script: Script,
) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (acceptor, seen) = (acceptor.clone(), Arc::clone(&seen));
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            seen.connections.fetch_add(1, Ordering::SeqCst);
            let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                seen.versions.lock().unwrap().push(request.version());
                let response = script(&request, &seen);
                async move { Ok::<_, Infallible>(response) }
            });
            let io = TokioIo::new(stream);
            if h2 {
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(io, service).await;
            } else {
                let builder = hyper::server::conn::http1::Builder::new();
                let _ = builder.serve_connection(io, service).await;
            }
        });
    }
}

fn ten(_: &Request<Incoming>, seen: &Arc<Seen>) -> Response<Produced> {
    let body = Produced::new(10, seen);
    Response::builder().header("content-length", 10).body(body).unwrap()
}

/// Bodies of 32 MiB.
fn large(_: &Request<Incoming>, seen: &Arc<Seen>) -> Response<Produced> {
    let body = Produced::new(LARGE, seen);
    Response::builder().header("content-length", LARGE).body(body).unwrap()
}

const LARGE: usize = 32 << 20;

#[test]
fn an_upstream_with_a_certificate_of_its_own_needs_a_ca_file() {
    let origin = SecureOrigin::start(&["h2", "http/1.1"], ten);
    let stranger = upstream(&format!("https://{}", origin.address));
    let found = error(&start(stranger), manifest("v1"));
    assert!(matches!(&found, FetchError::Connect(text) if text.contains("certificate")), "{found}");
    assert_eq!(get(&start(origin.config()), manifest("v1")).unwrap(), [7; 10]);
}

#[test]
fn a_certificate_for_another_name_is_not_believed() {
    let origin = SecureOrigin::start(&["h2"], ten);
    let url = format!("https://localhost:{}", origin.address.port());
    let listener = TcpListener::bind(("127.0.0.1", origin.address.port())).unwrap();
    // What listens at the other name is the same origin, by a relay.
    let target = origin.address;
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (from, to) = (stream.unwrap(), std::net::TcpStream::connect(target).unwrap());
            let (mut from2, mut to2) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            let (mut from, mut to) = (from, to);
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            std::thread::spawn(move || std::io::copy(&mut to2, &mut from2));
        }
    });
    let config =
        UpstreamConfig { ca_file: Some(origin.ca_file.path().to_owned()), ..upstream(&url) };
    let found = error(&start(config), manifest("v1"));
    assert!(matches!(found, FetchError::Connect(_)), "{found}");
}

#[test]
fn a_ca_file_without_a_certificate_is_found_at_the_start() {
    let empty = tempfile::NamedTempFile::new().unwrap();
    for path in [empty.path().to_owned(), "/does/not/exist".into()] {
        let config =
            UpstreamConfig { ca_file: Some(path.clone()), ..upstream("https://127.0.0.2:1") };
        let Err(error) = outrider_uplink::start(vec![config], crate::shard::options()) else {
            panic!("it started with {}", path.display());
        };
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
}

#[test]
fn a_server_that_never_finishes_tls_is_a_timeout_of_connecting() {
    // The kernel accepts for it, and nobody ever reads.
    let listener = TcpListener::bind(("127.0.0.2", 0)).unwrap();
    let mut config = upstream(&format!("https://{}", listener.local_addr().unwrap()));
    config.connect_timeout = Duration::from_millis(300);
    let found = error(&start(config), manifest("v1"));
    assert_eq!(found, FetchError::Timeout { stage: TimeoutStage::Connect });
}

#[test]
fn both_versions_are_spoken_and_the_newer_one_is_preferred() {
    for (protocols, version) in [
        (&["h2", "http/1.1"][..], Version::HTTP_2),
        (&["http/1.1"][..], Version::HTTP_11),
        (&[][..], Version::HTTP_11),
    ] {
        let origin = SecureOrigin::start(protocols, ten);
        let uplink = start(origin.config());
        on_shard(&uplink, |client| async move {
            for _ in 0..5 {
                assert_eq!(content(&client, blob(CONTENT)).await, [7; 10]);
            }
        });
        assert_eq!(*origin.seen.versions.lock().unwrap(), [version; 5]);
    }
}

#[test]
fn a_hundred_fetches_share_few_connections_over_http2() {
    let origin = SecureOrigin::start(&["h2"], ten);
    let uplink = start(origin.config());
    on_shard(&uplink, |client| async move {
        // Once alone, so that the connection is there.
        content(&client, blob(CONTENT)).await;
        let all = (0..100).map(|_| content(&client, blob(CONTENT)));
        assert!(join_all(all).await.iter().all(|content| *content == [7; 10]));
    });
    assert_eq!(origin.seen.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn readers_that_stop_do_not_stop_the_others_on_their_connection() {
    let origin = SecureOrigin::start(&["h2"], large);
    let uplink = start(origin.config());
    on_shard(&uplink, |client| async move {
        let mut stopped = Vec::new();
        for _ in 0..20 {
            stopped.push(client.fetch(blob(CONTENT)).await.unwrap());
        }
        // Long enough for their windows to fill.
        outrider_shard::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(content(&client, blob(CONTENT)).await.len(), LARGE);
        drop(stopped);
    });
    wait_until_idle(&uplink);
}

#[test]
fn a_reader_that_waits_stops_the_origin_over_http2() {
    let origin = SecureOrigin::start(&["h2"], large);
    let uplink = start(origin.config());
    let seen = Arc::clone(&origin.seen);
    on_shard(&uplink, move |client| async move {
        let fetch = client.fetch(blob(CONTENT)).await.unwrap();
        // Until nothing more is produced.
        let mut before = usize::MAX;
        loop {
            let now = seen.produced.load(Ordering::SeqCst);
            if now == before && now > 0 {
                break;
            }
            before = now;
            outrider_shard::time::sleep(Duration::from_millis(300)).await;
        }
        // A window here, one of the protocol, and the server's own send buffer.
        assert!(before < 6 << 20, "{before} bytes were produced");
        assert_eq!(drain(fetch).await.0.len(), LARGE);
    });
}

#[test]
fn dropping_a_body_ends_its_stream_and_keeps_the_connection() {
    let origin = SecureOrigin::start(&["h2"], large);
    let uplink = start(origin.config());
    on_shard(&uplink, |client| async move {
        for _ in 0..100 {
            let mut fetch = client.fetch(blob(CONTENT)).await.unwrap();
            fetch.body.next().await.unwrap().unwrap();
        }
    });
    wait_until_idle(&uplink);
    while origin.seen.bodies.load(Ordering::SeqCst) > 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(origin.seen.connections.load(Ordering::SeqCst) <= 2);
}

#[test]
fn a_length_that_is_not_kept_is_a_cut_over_http2_too() {
    let script: Script = |request, seen| {
        let bytes = if request.uri().path().contains("blobs") { 5 } else { 20 };
        let body = Produced::new(bytes, seen);
        Response::builder().header("content-length", 10).body(body).unwrap()
    };
    let origin = SecureOrigin::start(&["h2"], script);
    let uplink = start(origin.config());
    for request in [blob(CONTENT), manifest("v1")] {
        let found = error(&uplink, request);
        assert!(matches!(found, FetchError::Cut { .. }), "{found}");
    }
}

#[test]
fn a_step_down_to_http_is_not_taken() {
    let script: Script = |_, seen| {
        let response = Response::builder().status(302).header("location", "http://127.0.0.3/x");
        response.body(Produced::new(0, seen)).unwrap()
    };
    let origin = SecureOrigin::start(&["h2"], script);
    let found = error(&start(origin.config()), blob(CONTENT));
    assert!(matches!(&found, FetchError::Redirect(text) if text.contains("from https")), "{found}");
}

#[test]
fn a_token_realm_without_tls_is_not_asked_by_a_secure_registry() {
    let script: Script = |request, seen| {
        let host = request.uri().host().unwrap();
        let challenge = format!("Bearer realm=\"http://{host}/token\"");
        let response = Response::builder().status(401).header("www-authenticate", challenge);
        response.body(Produced::new(0, seen)).unwrap()
    };
    let origin = SecureOrigin::start(&["h2"], script);
    let found = error(&start(origin.config()), blob(CONTENT));
    assert!(matches!(found, FetchError::Redirect(_)), "{found}");
}

#[test]
fn the_runtime_serves_others_too() {
    let uplink = start(upstream("http://127.0.0.2:1"));
    let (said, heard) = mpsc::channel();
    uplink.runtime().spawn(async move {
        tokio::time::sleep(Duration::from_millis(1)).await;
        said.send("hello").unwrap();
    });
    assert_eq!(heard.recv().unwrap(), "hello");
}
