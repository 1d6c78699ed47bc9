//! A server on a shard of its own, and clients that are nothing but sockets.

#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use outrider_shard::{ShardConfig, ShardThread, start, task, time};
use outrider_transport::{
    BodyFault, Drain, Handler, Immediate, Limits, Listener, Peer, PinBudget, PreparedHead,
    RequestBody, TransportMetrics, serve, tls,
};
use prometheus_client::registry::Registry;
use rustls::pki_types::pem::PemObject;

pub const FRAME_BYTES: usize = 256 * 1024;

/// The body of the `n`th byte on: what `/bytes/COUNT` gives.
pub fn pattern(count: usize) -> Vec<u8> {
    (0..count).map(|index| (index / 7 % 251) as u8).collect()
}

pub enum Script {
    /// Frames of 256 KiB, with a known length.
    Known(Bytes),
    /// The same, but of 64 KiB under pressure.
    Considerate(Bytes, PinBudget),
    /// Frames of this many bytes, with an unknown length.
    Chunked(Bytes, usize),
    /// These bytes of the length that was announced, and then a fault.
    Fault(Bytes, Option<u64>),
}

impl Body for Script {
    type Data = Bytes;
    type Error = BodyFault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        let (bytes, step, fault) = match &mut *self {
            Self::Known(bytes) => (bytes, FRAME_BYTES, false),
            Self::Considerate(bytes, pins) => {
                let step = if pins.is_under_pressure() { 64 * 1024 } else { FRAME_BYTES };
                (bytes, step, false)
            }
            Self::Chunked(bytes, step) => (bytes, *step, false),
            Self::Fault(bytes, _) => (bytes, FRAME_BYTES, true),
        };
        Poll::Ready(if !bytes.is_empty() {
            let count = bytes.len().min(step);
            Some(Ok(Frame::data(bytes.split_to(count))))
        } else if fault {
            Some(Err(BodyFault::new("as the test wants it")))
        } else {
            None
        })
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Known(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Known(bytes) | Self::Considerate(bytes, _) => {
                SizeHint::with_exact(bytes.len() as u64)
            }
            Self::Chunked(..) | Self::Fault(_, None) => SizeHint::default(),
            Self::Fault(_, Some(length)) => SizeHint::with_exact(*length),
        }
    }
}

pub struct Scripted {
    pub bytes: Bytes,
    pub pins: PinBudget,
    pub handled: Arc<AtomicUsize>,
}

impl Handler for Scripted {
    type Body = Script;

    async fn handle(
        self: Rc<Self>,
        request: http::Request<RequestBody>,
        peer: Peer,
    ) -> http::Response<Script> {
        assert!(peer.is_loopback());
        self.handled.fetch_add(1, Ordering::SeqCst);
        let path = request.uri().path().to_owned();
        let (verb, argument) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
        let count: usize = argument.parse().unwrap_or(0);
        let mut status = http::StatusCode::OK;
        let body = match verb {
            "bytes" => Script::Known(self.bytes.slice(..count)),
            "considerate" => Script::Considerate(self.bytes.slice(..count), self.pins.clone()),
            "chunked" => Script::Chunked(self.bytes.slice(..count), 1000),
            "fault" => Script::Fault(self.bytes.slice(..count), Some(2 * count as u64)),
            "faultchunked" => Script::Fault(self.bytes.slice(..count), None),
            "sleep" => {
                time::sleep(Duration::from_millis(count as u64)).await;
                Script::Known(Bytes::from_static(b"slept"))
            }
            "count" => {
                let mut body = request.into_body();
                let mut total = 0;
                let mut end = "whole".to_owned();
                while let Some(part) = body.next().await {
                    match part {
                        Ok(bytes) => total += bytes.len(),
                        Err(error) => end = error.to_string(),
                    }
                }
                Script::Known(Bytes::from(format!("{total} {end}")))
            }
            "peer" => Script::Known(Bytes::from(format!("{} {:?}", peer.secure, peer.protocol))),
            "early" => Script::Known(Bytes::from(peer.early.to_string())),
            // The body is not looked at.
            "refuse" => {
                status = http::StatusCode::FORBIDDEN;
                Script::Known(Bytes::from_static(b"refused"))
            }
            _ => {
                status = http::StatusCode::NOT_FOUND;
                Script::Known(Bytes::new())
            }
        };
        let mut response = http::Response::new(body);
        *response.status_mut() = status;
        response
    }

    /// `/ready/COUNT` lies ready.
    fn immediate(&self, request: &http::request::Parts, _peer: Peer) -> Option<Immediate> {
        let count: usize = request.uri.path().strip_prefix("/ready/")?.parse().ok()?;
        let (mut parts, ()) = http::Response::new(()).into_parts();
        parts.headers.insert("x-ready", http::HeaderValue::from_static("yes"));
        Some(Immediate {
            head: Rc::new(PreparedHead::new(parts, count as u64)),
            body: self.bytes.slice(..count),
            held_bytes: count,
        })
    }
}

pub struct Server {
    pub http: SocketAddr,
    pub https: SocketAddr,
    pub drain: Drain,
    pub pins: PinBudget,
    pub handled: Arc<AtomicUsize>,
    pub registry: Registry,
    pub ca_pem: PathBuf,
    pub shard: ShardThread,
    _dir: tempfile::TempDir,
}

/// How long a drain may take before the test calls it hung.
const DRAIN_TIME: Duration = Duration::from_secs(30);

impl Server {
    pub fn start() -> Self {
        Self::with(Limits::default(), PinBudget::new(64 << 20, PinBudget::CONNECTION_BYTES_MAX))
    }

    pub fn with_limits(limits: Limits) -> Self {
        Self::with(limits, PinBudget::new(64 << 20, PinBudget::CONNECTION_BYTES_MAX))
    }

    pub fn with(limits: Limits, pins: PinBudget) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let files = tls::load_or_create(dir.path(), &[]).unwrap();
        let config = tls::server_config(dir.path()).unwrap();
        let plain = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let secure = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let (http, https) = (plain.local_address(), secure.local_address());
        let metrics = TransportMetrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let drain = Drain::new();
        let handled = Arc::new(AtomicUsize::new(0));
        let shard = {
            let (pins, drain, handled) = (pins.clone(), drain.clone(), handled.clone());
            start(ShardConfig::new(0), move |_| async move {
                let bytes = Bytes::from(pattern(16 << 20));
                let handler = Rc::new(Scripted { bytes, pins: pins.clone(), handled });
                task::spawn(serve(
                    plain,
                    None,
                    handler.clone(),
                    limits.clone(),
                    pins.clone(),
                    drain.clone(),
                    metrics.clone(),
                ));
                serve(secure, Some(config), handler, limits, pins, drain.clone(), metrics).await;
                assert_eq!(drain.wait(DRAIN_TIME).await, 0, "connections are left");
            })
            .unwrap()
        };
        Self { http, https, drain, pins, handled, registry, ca_pem: files.ca_pem, shard, _dir: dir }
    }

    /// Drains, and checks that nothing is left behind.
    pub fn stop(self) {
        self.drain.start();
        self.shard.join().unwrap();
        assert_eq!(self.pins.pinned_bytes(), 0, "something is still pinned");
    }

    pub fn metric(&self, line: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let value = text
            .lines()
            .find_map(|found| found.strip_prefix(line))
            .unwrap_or_else(|| panic!("{line} not in:\n{text}"));
        value.trim().parse().unwrap()
    }

    pub fn closed(&self, reason: &str) -> u64 {
        self.metric(&format!("transport_connections_closed_total{{reason=\"{reason}\"}}"))
    }

    pub fn plain(&self) -> TcpStream {
        TcpStream::connect(self.http).unwrap()
    }

    pub fn client_config(&self, alpn: &[&[u8]]) -> Arc<rustls::ClientConfig> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(rustls::pki_types::CertificateDer::from_pem_file(&self.ca_pem).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Arc::new(config)
    }

    pub fn secure(&self) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
        let config = self.client_config(&[b"http/1.1"]);
        let tls = rustls::ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
        rustls::StreamOwned::new(tls, TcpStream::connect(self.https).unwrap())
    }
}

/// An answer with a known length.
#[derive(Debug)]
pub struct Answer {
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn status(&self) -> u16 {
        self.head[9..12].parse().unwrap()
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

pub fn send(stream: &mut impl Write, text: &str) {
    stream.write_all(text.as_bytes()).unwrap();
    stream.flush().unwrap();
}

pub fn get(stream: &mut (impl Read + Write), path: &str) -> Answer {
    send(stream, &format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n"));
    read_answer(stream)
}

/// A head, up to and with its empty line.
pub fn read_head(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("the head is whole");
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

pub fn read_answer(stream: &mut impl Read) -> Answer {
    let head = read_head(stream);
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .expect("a known length");
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).expect("the body is whole");
    Answer { head, body }
}

/// Everything up to the end, and whether that was a clean one.
pub fn read_to_end(stream: &mut impl Read) -> (Vec<u8>, bool) {
    let mut all = Vec::new();
    let clean = stream.read_to_end(&mut all).is_ok();
    (all, clean)
}

/// Waits until it holds, for as long as any machine may need.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("it never came: {what}");
}
