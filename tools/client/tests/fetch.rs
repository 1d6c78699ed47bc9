//! The client against a server of h3 and h3-quinn, one of hyper over TLS on the same port, and servers
//! that misbehave.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrider_artifact::Digest;
use outrider_bench_h3_peer::{Blobs, endpoint, serve};
use outrider_client::image::Platforms;
use outrider_client::{
    Artifact, Client, ClientError, Image, Options, Place, Progress, Protocol, Roots, Silent, Used,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;

/// What an edge under test serves, and how often it was asked over TCP.
struct Edge {
    address: SocketAddr,
    folder: tempfile::TempDir,
    tcp_requests: Arc<AtomicU32>,
}

#[derive(Clone, Copy, PartialEq)]
enum Serves {
    Both,
    H3,
    Https,
}

fn body(seed: u64, length: usize) -> Bytes {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..length).map(|_| random.u8(..)).collect::<Vec<_>>().into()
}

/// Serves `blobs` over both on one port, from a thread that lives as long as the tests.
fn edge(blobs: Blobs, serves: Serves) -> Edge {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    fs::write(folder.path().join("ca.pem"), made.cert.pem()).unwrap();
    let certificate: CertificateDer<'static> = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let tcp_requests = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&tcp_requests);
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let blobs = Arc::new(blobs);
            let tls = {
                let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
                let mut tls = rustls::ServerConfig::builder_with_provider(provider)
                    .with_safe_default_protocol_versions()
                    .unwrap()
                    .with_no_client_auth()
                    .with_single_cert(vec![certificate.clone()], key.clone_key())
                    .unwrap();
                tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
                tokio_rustls::TlsAcceptor::from(Arc::new(tls))
            };
            if serves != Serves::Https {
                let endpoint = endpoint(address, vec![certificate], key, None).unwrap();
                tokio::spawn(serve(endpoint, Arc::clone(&blobs)));
            }
            tell.send(address).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (tls, blobs) = (tls.clone(), Arc::clone(&blobs));
                let counter = Arc::clone(&counter);
                if serves == Serves::H3 {
                    continue;
                }
                tokio::spawn(async move {
                    let Ok(stream) = tls.accept(stream).await else { return };
                    let service = service_fn(move |request: http::Request<_>| {
                        counter.fetch_add(1, Ordering::Relaxed);
                        let request = request.map(|_: hyper::body::Incoming| ());
                        let (head, body) = blobs.answer(&request);
                        async move { Ok::<_, std::convert::Infallible>(head.map(|()| Full::new(body))) }
                    });
                    let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
    });
    Edge { address: told.recv().unwrap(), folder, tcp_requests }
}

impl Edge {
    fn options(&self, protocol: Protocol) -> Options {
        let url = format!("https://{}", self.address).parse().unwrap();
        Options {
            protocol,
            roots: Roots::File(self.folder.path().join("ca.pem")),
            connect_max: Duration::from_secs(5),
            attempts_max: 3,
            ..Options::new(url)
        }
    }

    fn client(&self, protocol: Protocol) -> Client {
        Client::new(self.options(protocol)).unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn place() -> Place {
    Place { repository: Some("team/app".parse().unwrap()), ns: None }
}

fn blobs(contents: &[&Bytes]) -> Blobs {
    let mut blobs = Blobs::default();
    for content in contents {
        let digest = Digest::sha256(content);
        blobs.insert(&format!("/v2/team/app/blobs/{digest}"), (*content).clone());
        // Paths have no queries here.
        blobs.insert("/layer/request", (*content).clone());
    }
    blobs
}

#[derive(Default)]
struct Heard {
    notes: Mutex<Vec<String>>,
    bytes: AtomicU32,
}

impl Progress for Heard {
    fn add(&self, bytes: u64) {
        self.bytes.fetch_add(u32::try_from(bytes).unwrap(), Ordering::Relaxed);
    }

    fn note(&self, text: &str) {
        self.notes.lock().unwrap().push(text.to_owned());
    }
}

#[tokio::test]
async fn a_blob_comes_whole_over_each_protocol_and_is_not_fetched_twice() {
    let content = body(1, 3_000_000);
    let digest = Digest::sha256(&content);
    let edge = edge(blobs(&[&content]), Serves::Both);
    for (protocol, used) in
        [(Protocol::H3, Used::H3), (Protocol::Https, Used::Https), (Protocol::Auto, Used::H3)]
    {
        let file = edge.file(&format!("{protocol:?}"));
        let client = edge.client(protocol);
        let heard = Heard::default();
        let fetched = client.fetch(&place(), &digest, &file, &heard).await.unwrap();
        assert_eq!(fetched.protocol, Some(used));
        assert_eq!((fetched.size_bytes, fetched.received_bytes), (3_000_000, 3_000_000));
        assert_eq!(heard.bytes.load(Ordering::Relaxed), 3_000_000);
        assert_eq!(fs::read(&file).unwrap(), content);
        assert!(!edge.file(&format!("{protocol:?}.partial")).exists());
        let again = client.fetch(&place(), &digest, &file, &Silent).await.unwrap();
        assert_eq!((again.received_bytes, again.protocol), (0, None));
        let no_repository =
            client.fetch(&Place::default(), &digest, &edge.file("x"), &Silent).await;
        assert_eq!(no_repository.unwrap().size_bytes, 3_000_000);
        fs::remove_file(edge.file("x")).unwrap();
    }
    assert_eq!(edge.tcp_requests.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn where_quic_does_not_get_through_https_does_and_says_so() {
    let content = body(2, 100_000);
    let digest = Digest::sha256(&content);
    let edge = edge(blobs(&[&content]), Serves::Https);
    let mut options = edge.options(Protocol::Auto);
    options.connect_max = Duration::from_millis(300);
    let client = Client::new(options.clone()).unwrap();
    let heard = Heard::default();
    let fetched = client.fetch(&place(), &digest, &edge.file("a"), &heard).await.unwrap();
    assert_eq!(fetched.protocol, Some(Used::Https));
    assert!(heard.notes.lock().unwrap()[0].contains("going on over HTTPS"));
    // It is not tried again and again.
    let heard = Heard::default();
    client.fetch(&place(), &digest, &edge.file("b"), &heard).await.unwrap();
    assert!(heard.notes.lock().unwrap().is_empty());
    // Who wants HTTP/3 gets no other.
    let client = Client::new(Options { protocol: Protocol::H3, ..options }).unwrap();
    let error = client.fetch(&place(), &digest, &edge.file("c"), &Silent).await.unwrap_err();
    assert!(matches!(error, ClientError::Exhausted { attempts: 3, .. }), "{error}");
}

#[tokio::test]
async fn what_an_earlier_run_left_is_gone_on_with() {
    let content = body(3, 500_000);
    let digest = Digest::sha256(&content);
    let edge = edge(blobs(&[&content]), Serves::Both);
    for protocol in [Protocol::H3, Protocol::Https] {
        for present in [1, 499_999, 500_000] {
            let file = edge.file(&format!("{protocol:?}-{present}"));
            fs::write(file.with_extension("partial"), &content[..present]).unwrap();
            let client = edge.client(protocol);
            let fetched = client.fetch(&place(), &digest, &file, &Silent).await.unwrap();
            assert_eq!(fetched.size_bytes, 500_000, "{protocol:?} {present}");
            assert_eq!(fetched.received_bytes, 500_000 - present as u64, "{protocol:?} {present}");
            assert_eq!(fs::read(&file).unwrap(), content);
        }
    }
}

#[tokio::test]
async fn what_an_earlier_run_left_of_something_else_is_thrown_away() {
    let content = body(4, 200_000);
    let digest = Digest::sha256(&content);
    let edge = edge(blobs(&[&content]), Serves::Both);
    // Shorter than it, as long, and longer.
    for present in [100, 200_000, 300_000] {
        let file = edge.file(&format!("a{present}"));
        fs::write(file.with_extension("partial"), body(5, present)).unwrap();
        let client = edge.client(Protocol::H3);
        let fetched = client.fetch(&place(), &digest, &file, &Silent).await.unwrap();
        assert_eq!(fetched.size_bytes, 200_000, "{present}");
        assert_eq!(fs::read(&file).unwrap(), content, "{present}");
    }
}

#[tokio::test]
async fn wrong_content_never_gets_its_name() {
    let (content, other) = (body(6, 50_000), body(7, 50_000));
    let digest = Digest::sha256(&content);
    let mut blobs = Blobs::default();
    blobs.insert(&format!("/v2/team/app/blobs/{digest}"), other.clone());
    let edge = edge(blobs, Serves::Both);
    for protocol in [Protocol::H3, Protocol::Https] {
        let file = edge.file("a");
        fs::write(&file, b"what was here").unwrap();
        let client = edge.client(protocol);
        let error = client.fetch(&place(), &digest, &file, &Silent).await.unwrap_err();
        let found = Digest::sha256(&other);
        let ClientError::Digest { expected, found: came } = error else { panic!("{error}") };
        assert_eq!((expected, *came), (digest, found));
        assert_eq!(fs::read(&file).unwrap(), b"what was here");
        assert!(!edge.file("a.partial").exists());
    }
}

#[tokio::test]
async fn what_is_not_there_is_not_asked_for_again() {
    let edge = edge(Blobs::default(), Serves::Both);
    let digest = Digest::sha256(b"x");
    for protocol in [Protocol::H3, Protocol::Https] {
        let client = edge.client(protocol);
        let error = client.fetch(&place(), &digest, &edge.file("a"), &Silent).await.unwrap_err();
        assert!(matches!(error, ClientError::Status { status: 404, .. }), "{error}");
        assert!(!edge.file("a").exists());
    }
    assert_eq!(edge.tcp_requests.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn an_edge_that_nobody_vouches_for_is_not_asked_and_not_by_other_means_either() {
    let content = body(8, 1000);
    let edge = edge(blobs(&[&content]), Serves::Both);
    let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    fs::write(edge.file("other.pem"), other.cert.pem()).unwrap();
    for protocol in [Protocol::Auto, Protocol::H3, Protocol::Https] {
        let mut options = edge.options(protocol);
        options.roots = Roots::File(edge.file("other.pem"));
        let client = Client::new(options).unwrap();
        let digest = Digest::sha256(&content);
        let error = client.fetch(&place(), &digest, &edge.file("a"), &Silent).await.unwrap_err();
        assert!(matches!(error, ClientError::Connect { fatal: true, .. }), "{protocol:?}: {error}");
    }
    assert_eq!(edge.tcp_requests.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_part_is_cut_out() {
    let content = body(9, 100_000);
    let digest = Digest::sha256(&content);
    let edge = edge(blobs(&[&content]), Serves::Both);
    for protocol in [Protocol::H3, Protocol::Https] {
        let client = edge.client(protocol);
        for (range, expected) in [
            ((10, Some(19)), &content[10..20]),
            ((99_990, None), &content[99_990..]),
            ((99_999, Some(200_000)), &content[99_999..]),
        ] {
            let file = edge.file("part");
            client.fetch_range(&place(), &digest, range, &file, &Silent).await.unwrap();
            assert_eq!(fs::read(&file).unwrap(), expected, "{protocol:?} {range:?}");
        }
        let range = (100_000, None);
        let file = edge.file("none");
        let error = client.fetch_range(&place(), &digest, range, &file, &Silent).await.unwrap_err();
        assert!(matches!(error, ClientError::Status { status: 416, .. }), "{error}");
        assert!(!file.exists());
    }
}

#[tokio::test]
async fn two_runs_at_once_do_not_write_into_one_another() {
    let content = body(10, 1000);
    let digest = Digest::sha256(&content);
    let edge = edge(blobs(&[&content]), Serves::Both);
    let held = fs::File::create(edge.file("a.partial")).unwrap();
    held.lock().unwrap();
    let client = edge.client(Protocol::H3);
    let error = client.fetch(&place(), &digest, &edge.file("a"), &Silent).await.unwrap_err();
    assert!(error.to_string().contains("another process"), "{error}");
    drop(held);
    client.fetch(&place(), &digest, &edge.file("a"), &Silent).await.unwrap();
}

/// A small image, and an index of two of them.
fn image_blobs() -> (Blobs, Vec<Bytes>, Digest, Digest) {
    let mut blobs = Blobs::default();
    let layers: Vec<Bytes> = (0..9).map(|n| body(20 + n, 70_000 * (n as usize + 1))).collect();
    let config = body(19, 500);
    let content: Vec<Bytes> = std::iter::once(&config).chain(&layers).cloned().collect();
    let mut descriptors = Vec::new();
    for bytes in &content {
        let digest = Digest::sha256(bytes);
        blobs.insert(&format!("/v2/team/app/blobs/{digest}"), bytes.clone());
        descriptors
            .push(json!({"mediaType": "x", "digest": digest.to_string(), "size": bytes.len()}));
    }
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    // One layer stands twice, as in images with empty layers.
    let layers_twice = [&descriptors[1..], &descriptors[1..2]].concat();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": manifest_type,
        "config": descriptors[0], "layers": layers_twice,
    })
    .to_string();
    let digest = Digest::sha256(manifest.as_bytes());
    let index_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({
        "schemaVersion": 2, "mediaType": index_type,
        "manifests": [
            {"mediaType": manifest_type, "digest": Digest::sha256(b"elsewhere").to_string(), "size": 1,
             "platform": {"os": "plan9", "architecture": "mips"}},
            {"mediaType": manifest_type, "digest": digest.to_string(), "size": manifest.len(),
             "platform": {"os": "linux", "architecture": "amd64"}},
        ],
    })
    .to_string();
    let index_digest = Digest::sha256(index.as_bytes());
    for reference in ["v1".to_owned(), digest.to_string()] {
        let path = format!("/v2/team/app/manifests/{reference}");
        blobs.insert_as(&path, manifest_type, manifest.clone());
    }
    for reference in ["multi".to_owned(), index_digest.to_string()] {
        let path = format!("/v2/team/app/manifests/{reference}");
        blobs.insert_as(&path, index_type, index.clone());
    }
    (blobs, content, digest, index_digest)
}

fn image(text: &str) -> Image {
    match text.parse().unwrap() {
        Artifact::Image(image) => image,
        Artifact::Digest(_) => panic!("{text} is an image"),
    }
}

#[tokio::test]
async fn an_image_comes_into_a_layout_that_holds_all_of_it_and_is_completed_the_next_time() {
    let (blobs, content, digest, _) = image_blobs();
    let edge = edge(blobs, Serves::Both);
    let total: u64 = content.iter().map(|bytes| bytes.len() as u64).sum();
    for (protocol, tag) in [(Protocol::H3, "v1"), (Protocol::Https, "multi")] {
        let mut options = edge.options(protocol);
        options.platforms = Platforms::One("linux/amd64".parse().unwrap());
        let client = Client::new(options).unwrap();
        let folder = edge.file(tag);
        let wanted = image(&format!("team/app:{tag}"));
        let pulled = client.pull(&wanted, &folder, &Silent).await.unwrap();
        assert_eq!((pulled.digest, pulled.size_bytes), (digest, total), "{tag}");
        assert_eq!(pulled.received_bytes, total);
        for bytes in &content {
            let file = folder.join("blobs/sha256").join(Digest::sha256(bytes).hex());
            assert_eq!(fs::read(file).unwrap(), *bytes);
        }
        let index: serde_json::Value =
            serde_json::from_slice(&fs::read(folder.join("index.json")).unwrap()).unwrap();
        assert_eq!(index["manifests"][0]["digest"], digest.to_string());
        assert!(folder.join("blobs/sha256").join(digest.hex()).exists());
        // One layer is lost, one damaged.
        let layer = |n: usize| folder.join("blobs/sha256").join(Digest::sha256(&content[n]).hex());
        fs::remove_file(layer(1)).unwrap();
        fs::write(layer(2), body(99, content[2].len())).unwrap();
        let again = client.pull(&wanted, &folder, &Silent).await.unwrap();
        assert_eq!(again.received_bytes, (content[1].len() + content[2].len()) as u64);
        assert_eq!(fs::read(layer(2)).unwrap(), content[2]);
    }
}

#[tokio::test]
async fn an_image_for_another_machine_is_no_image() {
    let (blobs, ..) = image_blobs();
    let edge = edge(blobs, Serves::Both);
    let mut options = edge.options(Protocol::H3);
    options.platforms = Platforms::One("linux/s390x".parse().unwrap());
    let client = Client::new(options).unwrap();
    let wanted = image("team/app:multi");
    let error = client.pull(&wanted, &edge.file("out"), &Silent).await.unwrap_err().to_string();
    assert!(error.contains("plan9/mips") && error.contains("linux/s390x"), "{error}");
    assert!(!edge.file("out").join("index.json").exists());
}

#[tokio::test]
async fn a_manifest_that_is_not_what_its_digest_says_is_refused() {
    let (mut blobs, ..) = image_blobs();
    let digest = Digest::sha256(b"another");
    blobs.insert(&format!("/v2/team/app/manifests/{digest}"), "{}");
    let edge = edge(blobs, Serves::Both);
    let wanted = image(&format!("team/app@{digest}"));
    let client = edge.client(Protocol::H3);
    let error = client.pull(&wanted, &edge.file("out"), &Silent).await.unwrap_err();
    assert!(matches!(error, ClientError::Digest { .. }), "{error}");
}
