//! HTTP/2 over TLS, by hyper's client.

#![allow(clippy::unwrap_used)]

mod common;

use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::{Server, eventually, pattern};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrider_transport::Limits;

type Client = SendRequest<Full<Bytes>>;

fn in_tokio<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

async fn connect(server: &Server) -> Client {
    let stream = TcpStream::connect(server.https).unwrap();
    stream.set_nonblocking(true).unwrap();
    let stream = tokio::net::TcpStream::from_std(stream).unwrap();
    let connector = tokio_rustls::TlsConnector::from(server.client_config(&[b"h2", b"http/1.1"]));
    let stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]), "h2 is preferred");
    let (client, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    client
}

fn request(path: &str, body: Vec<u8>) -> http::Request<Full<Bytes>> {
    http::Request::builder()
        .method(if body.is_empty() { "GET" } else { "POST" })
        .uri(format!("https://localhost{path}"))
        .body(Full::new(Bytes::from(body)))
        .unwrap()
}

async fn get(client: &Client, path: &str) -> Result<Bytes, hyper::Error> {
    let response = client.clone().send_request(request(path, Vec::new())).await?;
    Ok(response.into_body().collect().await?.to_bytes())
}

#[test]
fn many_streams_share_one_connection() {
    let server = Server::start();
    in_tokio(async {
        let client = connect(&server).await;
        assert_eq!(get(&client, "/peer").await.unwrap(), "true Http2");
        let tasks: Vec<_> = (0..200usize)
            .map(|index| {
                let client = client.clone();
                tokio::spawn(async move {
                    let count = index * 1009;
                    let got = get(&client, &format!("/bytes/{count}")).await.unwrap();
                    assert_eq!(got, pattern(count));
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(get(&client, "/chunked/2500").await.unwrap(), pattern(2500));
    });
    assert_eq!(server.metric("transport_requests_total{protocol=\"http2\"}"), 202);
    assert_eq!(server.metric("transport_connections_total{scheme=\"https\"}"), 1);
    server.stop();
}

#[test]
fn large_bodies_go_both_ways() {
    let server = Server::start();
    in_tokio(async {
        let client = connect(&server).await;
        let (down, up) = tokio::join!(
            get(&client, "/bytes/16000000"),
            client.clone().send_request(request("/count", pattern(5_000_000)))
        );
        assert!(down.unwrap() == pattern(16_000_000));
        let up = up.unwrap().into_body().collect().await.unwrap().to_bytes();
        assert_eq!(up, "5000000 whole");
    });
    server.stop();
}

#[test]
fn a_fault_resets_its_stream_and_no_other() {
    let server = Server::start();
    in_tokio(async {
        let client = connect(&server).await;
        let (fault, other) =
            tokio::join!(get(&client, "/fault/100000"), get(&client, "/bytes/3000000"));
        assert!(fault.is_err());
        assert!(other.unwrap() == pattern(3_000_000));
        assert!(get(&client, "/faultchunked/10").await.is_err());
        assert_eq!(get(&client, "/bytes/10").await.unwrap(), pattern(10));
    });
    assert_eq!(server.closed("fault"), 0);
    server.stop();
}

#[test]
fn an_upload_that_is_refused_unread_gets_its_answer() {
    let server = Server::start();
    in_tokio(async {
        let client = connect(&server).await;
        for length in [10, 100_000, 20_000_000] {
            let response =
                client.clone().send_request(request("/refuse", pattern(length))).await.unwrap();
            assert_eq!(response.status(), 403, "{length} bytes");
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, "refused", "{length} bytes");
        }
        assert_eq!(get(&client, "/bytes/10").await.unwrap(), pattern(10));
    });
    server.stop();
}

#[test]
fn streams_beyond_the_bound_wait_and_are_served() {
    let server = Server::with_limits(Limits { streams_max: 4, ..Limits::default() });
    in_tokio(async {
        let client = connect(&server).await;
        // With the first answer the client knows the bound.
        assert_eq!(get(&client, "/bytes/1").await.unwrap().len(), 1);
        let tasks: Vec<_> = (0..20)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { get(&client, "/sleep/20").await.unwrap() })
            })
            .collect();
        for task in tasks {
            assert_eq!(task.await.unwrap(), "slept");
        }
    });
    server.stop();
}

#[test]
fn an_idle_connection_is_ended_and_one_at_work_is_not() {
    let server = Server::with_limits(Limits {
        idle_time: Duration::from_millis(300),
        header_time: Duration::from_millis(300),
        ..Limits::default()
    });
    in_tokio(async {
        let client = connect(&server).await;
        let slow = get(&client, "/sleep/1000").await.unwrap();
        assert_eq!(slow, "slept");
        while !client.is_closed() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert_eq!(server.closed("header_time"), 0);
    server.stop();
}

#[test]
fn a_drain_lets_streams_finish_and_refuses_new_ones() {
    let server = Arc::new(Server::start());
    in_tokio(async {
        let client = connect(&server).await;
        assert_eq!(get(&client, "/bytes/1").await.unwrap().len(), 1);
        let sleeping = tokio::spawn({
            let client = client.clone();
            async move { get(&client, "/sleep/300").await }
        });
        while server.handled.load(std::sync::atomic::Ordering::SeqCst) < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        server.drain.start();
        assert_eq!(sleeping.await.unwrap().unwrap(), "slept");
        while !client.is_closed() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(get(&client, "/bytes/1").await.is_err());
    });
    Arc::into_inner(server).unwrap().stop();
}

#[test]
fn a_client_that_resets_its_streams_at_once_is_ended() {
    let server = Server::start();
    in_tokio(async {
        let client = connect(&server).await;
        let mut failed = false;
        for _ in 0..2000 {
            let mut client = client.clone();
            // Dropping the future resets the stream.
            let sent = tokio::time::timeout(
                Duration::from_micros(1),
                client.send_request(request("/sleep/10000", Vec::new())),
            );
            if matches!(sent.await, Ok(Err(_))) || client.is_closed() {
                failed = true;
                break;
            }
        }
        // Either it was ended, or each reset was seen in time: then nothing is left behind.
        if !failed {
            assert_eq!(get(&client, "/bytes/10").await.unwrap(), pattern(10));
        }
    });
    assert_eq!(
        common::get(&mut server.plain(), "/bytes/5").body,
        pattern(5),
        "nobody else is harmed"
    );
    eventually("no request is left", || {
        server.metric("transport_connections_open{scheme=\"https\"}") == 0
    });
    server.stop();
}
