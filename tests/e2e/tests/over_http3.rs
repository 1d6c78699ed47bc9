//! HTTP/3 of the real program, with a client that nobody here has written: what HTTPS gives, and that
//! HTTPS says where to find it.

#![allow(clippy::unwrap_used)]

use std::process::Command;

use ::http::Method;
use bytes::{Buf, Bytes};
use outrider_e2e::clients::quic as client;
use outrider_e2e::process::run;
use outrider_e2e::registry::*;
use outrider_e2e::*;

/// A connection over HTTP/3.
struct Http3 {
    runtime: tokio::runtime::Runtime,
    send: h3::client::SendRequest<h3_quinn::OpenStreams, Bytes>,
    quic: quinn::Connection,
    authority: String,
}

impl Http3 {
    fn connect(outrider: &Outrider) -> Self {
        let config = client::config(outrider, b"h3");
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap();
        let address = ([127, 0, 0, 1], outrider.https_port()).into();
        let (quic, send) = runtime.block_on(async {
            let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
            let connecting = endpoint.connect_with(config, address, "localhost").unwrap();
            let quic = connecting.await.unwrap();
            let (mut driver, send) =
                h3::client::new(h3_quinn::Connection::new(quic.clone())).await.unwrap();
            tokio::spawn(async move { std::future::poll_fn(|cx| driver.poll_close(cx)).await });
            (quic, send)
        });
        Self { runtime, send, quic, authority: outrider.https_host() }
    }

    fn ask(
        &self,
        method: Method,
        path: &str,
        fields: &[(&str, &str)],
        body: &[u8],
    ) -> (::http::Response<()>, Vec<u8>) {
        let mut request = ::http::Request::builder()
            .method(method)
            .uri(format!("https://{}{path}", self.authority));
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let request = request.body(()).unwrap();
        self.runtime.block_on(async {
            let mut stream = self.send.clone().send_request(request).await.unwrap();
            for chunk in body.chunks(50_000) {
                stream.send_data(Bytes::copy_from_slice(chunk)).await.unwrap();
            }
            stream.finish().await.unwrap();
            let head = stream.recv_response().await.unwrap();
            let mut body = Vec::new();
            while let Some(mut data) = stream.recv_data().await.unwrap() {
                body.extend_from_slice(&data.copy_to_bytes(data.remaining()));
            }
            (head, body)
        })
    }

    fn get(&self, path: &str, fields: &[(&str, &str)]) -> (::http::Response<()>, Vec<u8>) {
        self.ask(Method::GET, path, fields, b"")
    }
}

#[test]
fn a_blob_over_http3_is_what_https_gives_whole_and_by_range_cold_and_warm() {
    for shards in [1, 2] {
        blobs_are_what_https_gives(shards);
    }
}

fn blobs_are_what_https_gives(shards: usize) {
    let upstream = FakeUpstream::start();
    let image = SmallImage::new(31, &[4_000, 3_000_000]);
    upstream.image("team/app", "v1", &image);
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()).shards(shards));
    let client = Http3::connect(&outrider);
    for layer in &image.layers {
        let path = blob_path("team/app", &sha256(layer));
        for time in ["cold", "warm", "again", "and again"] {
            let (head, body) = client.get(&path, &[]);
            assert_eq!(head.status(), 200, "{time}");
            assert!(body == *layer, "{time}: {} bytes", body.len());
            assert_eq!(head.headers()["docker-content-digest"], sha256(layer));
            assert_eq!(head.headers()["content-length"], layer.len().to_string());
            let status = head.headers()["cache-status"].to_str().unwrap().to_owned();
            assert_eq!(status.contains("hit"), time != "cold", "{time}: {status}");
        }
        let (head, body) = client.get(&path, &[("range", "bytes=1000-2999")]);
        assert_eq!(head.status(), 206);
        assert!(body == layer[1000..3000]);
        let (head, body) = client.ask(Method::HEAD, &path, &[], b"");
        assert_eq!((head.status().as_u16(), body.len()), (200, 0));
        assert_eq!(head.headers()["content-length"], layer.len().to_string());
    }
    let (head, _) = client.get(&blob_path("team/app", &sha256(b"unknown")), &[]);
    assert_eq!(head.status(), 404);
    client.quic.close(0x100u32.into(), b"");
}

#[test]
fn an_image_is_pushed_and_pulled_over_http3() {
    let outrider = Outrider::start(Options::default());
    let client = Http3::connect(&outrider);
    let image = SmallImage::new(32, &[5_000, 1_500_000]);
    for blob in image.layers.iter().chain([&image.config]) {
        let (head, _) = client.ask(Method::POST, "/v2/own/app/blobs/uploads/", &[], b"");
        assert_eq!(head.status(), 202);
        let location = head.headers()["location"].to_str().unwrap();
        let path = with_query(location, &format!("digest={}", sha256(blob)));
        let (head, said) = client.ask(Method::PUT, &path, &[], blob);
        assert_eq!(head.status(), 201, "{}", String::from_utf8_lossy(&said));
    }
    let manifest = manifest_path("own/app", "v1");
    let kind = [("content-type", image.media_type.as_str())];
    let (head, _) = client.ask(Method::PUT, &manifest, &kind, &image.manifest);
    assert_eq!(head.status(), 201);
    for _ in 0..2 {
        assert_served(&outrider.client(), "own/app", "v1", &image);
        for layer in &image.layers {
            let (head, body) = client.get(&blob_path("own/app", &sha256(layer)), &[]);
            assert_eq!(head.status(), 200);
            assert!(body == *layer);
        }
        // In another repository it is not known.
        let (head, _) = client.get(&blob_path("other/app", &sha256(&image.layers[0])), &[]);
        assert_eq!(head.status(), 404);
    }
    // What is deleted is not answered from memory either.
    let path = blob_path("own/app", &sha256(&image.layers[0]));
    let (head, _) =
        client.ask(Method::DELETE, &manifest_path("own/app", &image.digest()), &[], b"");
    assert_eq!(head.status(), 202);
    let (head, _) = client.ask(Method::DELETE, &path, &[], b"");
    assert_eq!(head.status(), 202);
    assert_eq!(client.get(&path, &[]).0.status(), 404);
}

/// The head of an answer over HTTPS, in lower case.
fn heads(outrider: &Outrider) -> String {
    let mut curl = Command::new(tools::program("curl"));
    curl.args(["--silent", "--show-error", "--noproxy", "*", "--dump-header", "-"]);
    curl.args(["--output", "/dev/null", "--cacert"]).arg(outrider.ca_pem());
    curl.arg(format!("https://{}/v2/", outrider.https_host()));
    run(curl).ok().to_lowercase()
}

#[test]
fn https_says_where_http3_is_and_plain_http_does_not() {
    let outrider = Outrider::start(Options::default());
    let said = heads(&outrider);
    let wanted = format!("alt-svc: h3=\":{}\"; ma=86400", outrider.https_port());
    assert!(said.contains(&wanted), "{wanted} not in:\n{said}");
    assert_eq!(outrider.client().get("/v2/").expect(200).header("alt-svc"), None);

    let off = Outrider::start(Options::default().config("[quic]\nenabled = false\n"));
    assert!(!heads(&off).contains("alt-svc"));
}

#[test]
fn a_drain_ends_connections_over_http3_and_the_process() {
    let mut outrider = Outrider::start(Options::default());
    let client = Http3::connect(&outrider);
    assert_eq!(client.get("/v2/", &[]).0.status(), 200);
    outrider.begin_termination();
    let reason = client.runtime.block_on(client.quic.closed());
    let quinn::ConnectionError::ApplicationClosed(close) = &reason else { panic!("{reason}") };
    assert_eq!(close.error_code.into_inner(), 0x100, "H3_NO_ERROR");
    assert!(outrider.wait_end().success());
}
