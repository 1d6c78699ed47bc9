//! The client when connections break, servers come and go, and early data is refused.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use outrider_artifact::Digest;
use outrider_bench_h3_peer::{Blobs, endpoint};
use outrider_client::{Client, ClientError, Options, Place, Protocol, Roots, Silent, Used};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

const SIZE: usize = 400_000;

/// What the `n`th answer does.
#[derive(Clone, Copy)]
enum Fault {
    /// Nothing wrong.
    None,
    /// Resets the stream after so many bytes.
    Reset(usize),
    /// Closes the connection after so many bytes.
    Close(usize),
    /// Answers with this status.
    Status(u16),
}

struct Edge {
    address: SocketAddr,
    folder: tempfile::TempDir,
    requests: Arc<AtomicU32>,
}

fn content() -> Bytes {
    let mut random = fastrand::Rng::with_seed(1);
    (0..SIZE).map(|_| random.u8(..)).collect::<Vec<_>>().into()
}

fn path() -> String {
    format!("/v2/team/app/blobs/{}", Digest::sha256(&content()))
}

fn edge(fault: fn(u32) -> Fault) -> Edge {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    fs::write(folder.path().join("ca.pem"), made.cert.pem()).unwrap();
    let certificate: CertificateDer<'static> = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let requests = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&requests);
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let any = "127.0.0.1:0".parse().unwrap();
            let endpoint = endpoint(any, vec![certificate], key, None).unwrap();
            tell.send(endpoint.local_addr().unwrap()).unwrap();
            while let Some(incoming) = endpoint.accept().await {
                tokio::spawn(serve(incoming, Arc::clone(&counter), fault));
            }
        });
    });
    Edge { address: told.recv().unwrap(), folder, requests }
}

async fn serve(incoming: quinn::Incoming, counter: Arc<AtomicU32>, fault: fn(u32) -> Fault) {
    let mut blobs = Blobs::default();
    blobs.insert(&path(), content());
    let connection = incoming.await.unwrap();
    let quic = h3_quinn::Connection::new(connection.clone());
    let mut h3 = h3::server::Connection::<_, Bytes>::new(quic).await.unwrap();
    while let Ok(Some(resolver)) = h3.accept().await {
        let Ok((request, mut stream)) = resolver.resolve_request().await else { continue };
        let (mut head, body) = blobs.answer(&request);
        let fault = fault(counter.fetch_add(1, Ordering::Relaxed));
        if let Fault::Status(status) = fault {
            *head.status_mut() = status.try_into().unwrap();
            head.headers_mut().insert("content-length", 0.into());
            stream.send_response(head).await.unwrap();
            let _ = stream.finish().await;
            continue;
        }
        let whole = body.len();
        let sent = match fault {
            Fault::Reset(bytes) | Fault::Close(bytes) => bytes.min(whole),
            _ => whole,
        };
        if stream.send_response(head).await.is_err()
            || stream.send_data(body.slice(..sent)).await.is_err()
        {
            return;
        }
        match fault {
            Fault::Reset(_) => {
                // So that the client has what was sent before.
                tokio::time::sleep(Duration::from_millis(100)).await;
                stream.stop_stream(h3::error::Code::H3_INTERNAL_ERROR);
            }
            Fault::Close(_) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                connection.close(1_u32.into(), b"gone");
                return;
            }
            _ => {
                let _ = stream.finish().await;
            }
        }
    }
}

impl Edge {
    fn client(&self) -> Client {
        let url = format!("https://{}", self.address).parse().unwrap();
        let mut options = Options::new(url);
        options.protocol = Protocol::H3;
        options.roots = Roots::File(self.folder.path().join("ca.pem"));
        options.attempts_max = 3;
        Client::new(options).unwrap()
    }

    async fn fetch(&self, client: &Client, name: &str) -> Result<u64, ClientError> {
        let place = Place { repository: Some("team/app".parse().unwrap()), ns: None };
        let file = self.folder.path().join(name);
        let fetched = client.fetch(&place, &Digest::sha256(&content()), &file, &Silent).await?;
        assert_eq!(fs::read(&file).unwrap(), content());
        assert_eq!(fetched.protocol, Some(Used::H3));
        Ok(fetched.received_bytes)
    }
}

#[tokio::test]
async fn a_fetch_that_breaks_goes_on_where_it_was_however_often_as_long_as_something_comes() {
    let edge = edge(|n| match n {
        0..5 if n % 2 == 0 => Fault::Reset(50_000),
        0..5 => Fault::Close(50_000),
        _ => Fault::None,
    });
    let client = edge.client();
    // Nothing came twice.
    assert_eq!(edge.fetch(&client, "a").await.unwrap(), SIZE as u64);
    assert_eq!(edge.requests.load(Ordering::Relaxed), 6);
}

#[tokio::test]
async fn a_fetch_that_gets_nothing_is_given_up_and_what_was_there_is_kept() {
    let edge = edge(|n| if n == 0 { Fault::Reset(120_000) } else { Fault::Reset(0) });
    let client = edge.client();
    let error = edge.fetch(&client, "a").await.unwrap_err();
    assert!(matches!(error, ClientError::Exhausted { attempts: 3, .. }), "{error}");
    let partial = fs::read(edge.folder.path().join("a.partial")).unwrap();
    assert_eq!(partial, content()[..partial.len()]);
    assert!(partial.len() >= 100_000, "{}", partial.len());
    assert!(!edge.folder.path().join("a").exists());
}

#[tokio::test]
async fn a_busy_edge_is_asked_again_and_one_that_refuses_is_not() {
    let busy = edge(|n| if n < 2 { Fault::Status(503) } else { Fault::None });
    busy.fetch(&busy.client(), "a").await.unwrap();
    assert_eq!(busy.requests.load(Ordering::Relaxed), 3);
    let refusing = edge(|_| Fault::Status(403));
    let error = refusing.fetch(&refusing.client(), "a").await.unwrap_err();
    assert!(matches!(error, ClientError::Status { status: 403, .. }), "{error}");
    assert_eq!(refusing.requests.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn the_second_connection_asks_with_its_first_packet() {
    let edge = edge(|_| Fault::None);
    let client = edge.client();
    edge.fetch(&client, "a").await.unwrap();
    assert_eq!(client.early_connections(), 0);
    client.disconnect().await;
    edge.fetch(&client, "b").await.unwrap();
    assert_eq!(client.early_connections(), 1);
}

#[tokio::test]
async fn what_came_too_early_is_sent_again_after_the_handshake() {
    // The second request is the one that goes out early.
    let edge = edge(|n| if n == 1 { Fault::Status(425) } else { Fault::None });
    let client = edge.client();
    edge.fetch(&client, "a").await.unwrap();
    client.disconnect().await;
    edge.fetch(&client, "b").await.unwrap();
    assert_eq!(client.early_connections(), 1);
    assert_eq!(edge.requests.load(Ordering::Relaxed), 3);
    // From then on nothing is sent early.
    client.disconnect().await;
    edge.fetch(&client, "c").await.unwrap();
    assert_eq!(client.early_connections(), 1);
}
