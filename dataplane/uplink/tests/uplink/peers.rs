//! Other edges: the native protocol against scripted servers that show certificates of one authority.

use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};

use outrider_artifact::native::{self, Answer, Item, Reader, Refusal, RefusalCode, Want, WantKind};
use outrider_artifact::{Digest, Reference};
use outrider_uplink::{
    ContentRange, FetchError, FetchMethod, FetchRequest, Kept, PeerBook, PeerOptions, Target,
    Uplink, UplinkOptions, Whom,
};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Endpoint, EndpointConfig, ServerConfig, TokioRuntime};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::shard::{blob, drain, error, get, on_shard, part};

const EDGE: u64 = 7;

/// What an edge does with a request: bytes, and whether the stream then breaks.
type Script = fn(&native::Request) -> (Vec<u8>, bool);

/// An authority, where edges are, and what they were asked.
struct Fleet {
    issuer: Issuer<'static, KeyPair>,
    authority: CertificateDer<'static>,
    at: Arc<At>,
    seen: Arc<Mutex<Vec<native::Request>>>,
}

#[derive(Default)]
struct At(Mutex<Option<String>>);

impl PeerBook for At {
    fn address(&self, member: u64) -> Option<String> {
        self.0.lock().unwrap().clone().filter(|_| member == EDGE)
    }
}

/// An edge that runs until it is dropped.
struct Edge {
    address: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Edge {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Fleet {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let authority = params.self_signed(&key).unwrap().der().clone();
        let issuer = Issuer::new(params, key);
        Self { issuer, authority, at: Arc::default(), seen: Arc::default() }
    }

    fn uplink(&self) -> Uplink {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.authority.clone()).unwrap();
        let peers = PeerOptions {
            book: Arc::<At>::clone(&self.at),
            roots,
            name: |member| format!("edge-{member}.test"),
            identity: None,
        };
        let options = UplinkOptions { peers: Some(peers), ..UplinkOptions::default() };
        outrider_uplink::start(Vec::new(), options).unwrap()
    }

    /// Starts an edge that shows a certificate of this name.
    fn edge(&self, name: &str, port: u16, script: Script) -> Edge {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        tls.alpn_protocols = vec![native::ALPN.to_vec()];
        let config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let socket = UdpSocket::bind(("127.0.0.1", port)).unwrap();
        let address = socket.local_addr().unwrap();
        *self.at.0.lock().unwrap() = Some(address.to_string());
        let seen = Arc::clone(&self.seen);
        runtime.spawn(async move {
            let config = Some(config);
            let endpoint =
                Endpoint::new(EndpointConfig::default(), config, socket, Arc::new(TokioRuntime));
            let endpoint = endpoint.unwrap();
            while let Some(incoming) = endpoint.accept().await {
                let seen = Arc::clone(&seen);
                tokio::spawn(async move {
                    let Ok(connection) = incoming.await else { return };
                    while let Ok((mut send, mut receive)) = connection.accept_bi().await {
                        let bytes = receive.read_to_end(1 << 20).await.unwrap();
                        let (_, item) = Reader::server().read(&bytes).unwrap();
                        let Some(Item::Request(request)) = item else { panic!("{item:?}") };
                        let (answer, breaks) = script(&request);
                        seen.lock().unwrap().push(request);
                        send.write_all(&answer).await.unwrap();
                        if breaks {
                            // What was written is read before the stream is broken.
                            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                            let _ = send.reset(native::SOURCE_BROKE.into());
                        } else {
                            send.finish().unwrap();
                        }
                    }
                });
            }
        });
        Edge { address, runtime: Some(runtime) }
    }
}

const CONTENT: &[u8] = b"what another edge holds";

fn of(request: FetchRequest) -> FetchRequest {
    FetchRequest { from: Whom::Peer(EDGE), repository: "team/app".to_owned(), ..request }
}

/// The record of all of `content`, or of a part of it, as it was wanted.
fn record(want: &Want, content: &[u8]) -> (Answer, Vec<u8>) {
    let total = content.len() as u64;
    let len = want.len.unwrap_or(total).min(total - want.offset);
    let is_part = want.offset > 0 || want.len.is_some();
    let body = &content[want.offset as usize..(want.offset + len) as usize];
    let body = if want.metadata_only { Vec::new() } else { body.to_vec() };
    let answer = Answer {
        status: if is_part { 206 } else { 200 },
        total,
        start: want.offset,
        len,
        body_len: body.len() as u64,
        verified: true,
        media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        ..Answer::error(0, want.digest, 200, "")
    };
    (answer, body)
}

fn honest(request: &native::Request) -> (Vec<u8>, bool) {
    let (answer, body) = record(&request.wants[0], CONTENT);
    ([answer.encode().unwrap(), body].concat(), false)
}

#[test]
fn content_comes_by_digest_whole_in_part_and_as_a_head_and_only_what_is_held() {
    let fleet = Fleet::new();
    let uplink = fleet.uplink();
    let _edge = fleet.edge("edge-7.test", 0, honest);
    assert_eq!(get(&uplink, of(blob(CONTENT))).unwrap(), CONTENT);
    assert_eq!(get(&uplink, of(part(CONTENT, 5, Some(8)))).unwrap(), &CONTENT[5..=8]);
    let digest = Digest::sha256(CONTENT);
    on_shard(&uplink, move |client| async move {
        let target = Target::Manifest(Reference::Digest(digest));
        let request = FetchRequest { method: FetchMethod::Head, target, ..of(blob(CONTENT)) };
        let head = client.fetch(request).await.unwrap().head;
        assert_eq!((head.length, head.digest), (Some(CONTENT.len() as u64), Some(digest)));
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        assert_eq!(head.media_type.as_deref(), Some(media_type));
        let fetch = client.fetch(of(part(CONTENT, 5, None))).await.unwrap();
        let (first, last, total) = (5, CONTENT.len() as u64 - 1, Some(CONTENT.len() as u64));
        assert_eq!(fetch.head.range, Some(ContentRange { first, last, total }));
        assert_eq!(drain(fetch).await, (CONTENT[5..].to_vec(), None));
    });
    let seen = fleet.seen.lock().unwrap();
    let wants: Vec<&Want> = seen.iter().map(|request| &request.wants[0]).collect();
    assert_eq!(wants.len(), 4);
    assert!(wants.iter().all(|want| want.held_only && want.digest == digest));
    assert_eq!((wants[2].kind, wants[2].metadata_only), (WantKind::Manifest, true));
    assert!(seen.iter().all(|request| request.repository == "team/app"));
}

#[test]
fn an_edge_that_is_to_keep_a_manifest_says_how_far_it_is_or_why_not() {
    let keeping = |request: &native::Request| {
        let want = &request.wants[0];
        let (answer, _) = match &*request.repository {
            "team/done" => record(want, CONTENT),
            "team/slow" => (Answer::error(0, want.digest, 202, ""), Vec::new()),
            _ => (Answer::error(0, want.digest, 507, "the disk is full"), Vec::new()),
        };
        (answer.encode().unwrap(), false)
    };
    let fleet = Fleet::new();
    let uplink = fleet.uplink();
    let _edge = fleet.edge("edge-7.test", 0, keeping);
    let digest = Digest::sha256(CONTENT);
    on_shard(&uplink, move |client| async move {
        assert_eq!(client.keep(EDGE, "team/done", digest).await, Ok(Kept::Whole));
        assert_eq!(client.keep(EDGE, "team/slow", digest).await, Ok(Kept::UnderWay));
        // Refusals say nothing about the edge: it is asked again at once.
        for _ in 0..20 {
            let refused = client.keep(EDGE, "team/full", digest).await.unwrap_err();
            assert_eq!(refused.to_string(), "it answers 507: the disk is full");
        }
        assert_eq!(client.keep(EDGE, "team/done", digest).await, Ok(Kept::Whole));
    });
    let seen = fleet.seen.lock().unwrap();
    assert!(seen.iter().flat_map(|request| &request.wants).all(|want| {
        want.keep && want.metadata_only && !want.held_only && want.kind == WantKind::Manifest
    }));
}

#[test]
fn what_a_tag_means_no_edge_is_asked() {
    let fleet = Fleet::new();
    let uplink = fleet.uplink();
    let _edge = fleet.edge("edge-7.test", 0, honest);
    let target = Target::Manifest("v1".parse::<Reference>().unwrap());
    let by_tag = FetchRequest { target, ..of(blob(CONTENT)) };
    assert_eq!(error(&uplink, by_tag), FetchError::NotFound);
    assert!(fleet.seen.lock().unwrap().is_empty());
}

#[test]
fn wrong_answers_are_errors_and_no_content() {
    let refusing = |request: &native::Request| {
        let answer = Answer::error(0, request.wants[0].digest, 404, "not here");
        (answer.encode().unwrap(), false)
    };
    let another = |_: &native::Request| {
        let want = Want::whole(Digest::sha256(b"another"));
        let (answer, body) = record(&want, CONTENT);
        ([answer.encode().unwrap(), body].concat(), false)
    };
    let broken = |request: &native::Request| {
        let (answer, body) = record(&request.wants[0], CONTENT);
        ([answer.encode().unwrap(), body[..4].to_vec()].concat(), true)
    };
    let short = |request: &native::Request| {
        let (answer, body) = record(&request.wants[0], CONTENT);
        ([answer.encode().unwrap(), body[..4].to_vec()].concat(), false)
    };
    let busy = |_: &native::Request| {
        (Refusal { code: RefusalCode::BUSY, text: "busy".to_owned() }.encode(), false)
    };
    let noise =
        |_: &native::Request| (b"HTTP/1.1 200 OK\r\n\r\n and so on, for a while".to_vec(), false);
    let fleet = Fleet::new();
    let said = |script: Script| {
        let uplink = fleet.uplink();
        let _edge = fleet.edge("edge-7.test", 0, script);
        error(&uplink, of(blob(CONTENT)))
    };
    assert_eq!(said(refusing), FetchError::NotFound);
    assert!(matches!(said(another), FetchError::Protocol(_)));
    for cut in [said(broken), said(short)] {
        assert!(matches!(cut, FetchError::Cut { received_bytes: 4, .. }), "{cut}");
    }
    assert!(matches!(said(busy), FetchError::Unavailable { status: 503, .. }));
    assert!(matches!(said(noise), FetchError::Protocol(_)));
}

#[test]
fn only_the_member_itself_is_asked_and_it_may_be_started_again() {
    let fleet = Fleet::new();
    let uplink = fleet.uplink();
    let nowhere = error(&uplink, of(blob(CONTENT)));
    assert!(
        matches!(&nowhere, FetchError::Connect(why) if why.contains("nobody knows")),
        "{nowhere}"
    );
    let impostor = fleet.edge("edge-8.test", 0, honest);
    let other = error(&uplink, of(blob(CONTENT)));
    assert!(matches!(other, FetchError::Connect(_)), "{other}");
    drop(impostor);
    assert!(fleet.seen.lock().unwrap().is_empty());
    let edge = fleet.edge("edge-7.test", 0, honest);
    assert_eq!(get(&uplink, of(blob(CONTENT))).unwrap(), CONTENT);
    let port = edge.address.port();
    drop(edge);
    // The connection of before is of no use, and is found out by asking.
    let edge = loop {
        match UdpSocket::bind(("127.0.0.1", port)) {
            Ok(socket) => {
                drop(socket);
                break fleet.edge("edge-7.test", port, honest);
            }
            Err(_) => std::thread::yield_now(),
        }
    };
    assert_eq!(get(&uplink, of(blob(CONTENT))).unwrap(), CONTENT);
    assert_eq!(edge.address.port(), port);
}
