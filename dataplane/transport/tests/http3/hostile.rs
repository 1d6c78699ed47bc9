//! Clients that do what they should not, and what the network does to them.

use std::net::UdpSocket;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use outrider_transport::quic::QuicSettings;
use outrider_transport::{Limits, PinBudget};

use crate::client::{Client, answer, config, endpoint, request};
use crate::common::{eventually, pattern};
use crate::run;
use crate::server::{Options, Server};

#[test]
fn a_client_that_resets_its_requests_over_and_over_is_closed() {
    let settings = QuicSettings { resets_per_second_max: 10, ..QuicSettings::default() };
    let server = Server::with(Options { settings, ..Options::default() });
    run(async {
        let client = Client::connect(&server).await;
        let mut begun = 0;
        while client.quic.close_reason().is_none() && begun < 10_000 {
            begun += 1;
            let Ok(mut stream) =
                client.send.clone().send_request(request(Method::GET, "/sleep/60000")).await
            else {
                break;
            };
            stream.stop_sending(h3::error::Code::H3_REQUEST_CANCELLED);
            stream.stop_stream(h3::error::Code::H3_REQUEST_CANCELLED);
            tokio::task::yield_now().await;
        }
        let reason = client.quic.closed().await;
        let quinn::ConnectionError::ApplicationClosed(close) = &reason else { panic!("{reason}") };
        assert_eq!(close.error_code.into_inner(), 0x107, "H3_EXCESSIVE_LOAD");
        // Fifty are forgiven, and as many as the client has streams come in at once.
        assert!(begun < 500, "{begun} requests were taken");
        let other = Client::connect(&server).await;
        assert_eq!(other.get("/bytes/10").await.body, pattern(10));
        other.close().await;
    });
    assert_eq!(server.closed("resets"), 1);
    server.stop();
}

#[test]
fn more_streams_than_allowed_wait_at_the_client() {
    let limits = Limits { streams_max: 4, ..Limits::default() };
    let server = Server::with(Options { limits, ..Options::default() });
    run(async {
        let client = Client::connect(&server).await;
        let many = (0..40).map(|_| async { client.get("/sleep/10").await.text().to_owned() });
        let answers = futures_util::future::join_all(many).await;
        assert!(answers.iter().all(|answer| answer == "slept"));
        client.close().await;
    });
    server.stop();
}

#[test]
fn a_head_that_is_too_large_is_answered_431() {
    let server = Server::start();
    run(async {
        let client = Client::connect(&server).await;
        // The client would refuse it itself if it took our limit to heart.
        let mut head = request(Method::GET, "/bytes/10");
        for n in 0..30 {
            let name = http::HeaderName::try_from(format!("x-{n}")).unwrap();
            head.headers_mut().insert(name, "v".repeat(1200).try_into().unwrap());
        }
        let sent = client.send.clone().send_request(head).await;
        if let Ok(mut stream) = sent {
            let _ = stream.finish().await;
            assert_eq!(answer(&mut stream).await.unwrap().status(), 431);
        }
        assert_eq!(client.get("/bytes/10").await.body, pattern(10));
        client.close().await;
    });
    server.stop();
}

#[test]
fn garbage_is_not_answered_and_hurts_nobody() {
    let server = Server::start();
    let garbage = UdpSocket::bind("127.0.0.1:0").unwrap();
    garbage.set_nonblocking(true).unwrap();
    let mut random = fastrand::Rng::with_seed(3);
    for n in 0..5000 {
        let mut datagram = vec![0; random.usize(0..1472)];
        random.fill(&mut datagram);
        if n % 2 == 0 && datagram.len() > 6 {
            // A long header of this version, so that it is looked into.
            let first = 0xc0 | datagram[0] & 0x3f;
            datagram[..6].copy_from_slice(&[first, 0, 0, 0, 1, 8]);
        }
        let _ = garbage.send_to(&datagram, server.address);
    }
    run(async {
        let client = Client::connect(&server).await;
        assert_eq!(client.get("/bytes/100000").await.body, pattern(100_000));
        client.close().await;
    });
    assert!(server.quic_metric("received_datagrams") > 1000);
    eventually("no connection is left of it", || server.open() == 0);
    server.stop();
}

/// A first packet as a client sends it, with a connection ID of its own. It says nothing.
fn initial(random: &mut fastrand::Rng) -> Vec<u8> {
    let mut datagram = vec![0xc0, 0, 0, 0, 1, 8];
    datagram.extend((0..8).map(|_| random.u8(..)));
    datagram.extend([8, 1, 2, 3, 4, 5, 6, 7, 8, 0]);
    let rest = 1200 - datagram.len() - 2;
    datagram.extend((0x4000 | rest as u16).to_be_bytes());
    datagram.resize_with(1200, || random.u8(..));
    datagram
}

#[test]
fn a_flood_of_first_packets_leaves_nothing_behind_and_others_are_served() {
    let server = Server::start();
    let flood = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut random = fastrand::Rng::with_seed(4);
    for _ in 0..20_000 {
        let _ = flood.send_to(&initial(&mut random), server.address);
    }
    run(async {
        let client = Client::connect(&server).await;
        assert_eq!(client.get("/bytes/1000").await.body, pattern(1000));
        client.close().await;
    });
    eventually("no connection is left of it", || server.open() == 0);
    server.stop();
}

#[test]
fn above_the_threshold_a_client_has_to_show_its_address() {
    let settings = QuicSettings { retry_above: 0, ..QuicSettings::default() };
    let server = Server::with(Options { settings, ..Options::default() });
    run(async {
        let client = Client::connect(&server).await;
        assert_eq!(client.get("/bytes/1000").await.body, pattern(1000));
        client.close().await;
    });
    assert_eq!(server.quic_metric("retries"), 1);
    assert_eq!(server.quic_metric("handshakes"), 1);
    server.stop();
}

#[test]
fn more_connections_than_allowed_are_refused() {
    let limits = Limits { connections_max: 1, ..Limits::default() };
    let server = Server::with(Options { limits, ..Options::default() });
    run(async {
        let client = Client::connect(&server).await;
        let second = endpoint()
            .connect_with(config(server.tls()), server.address, "localhost")
            .unwrap()
            .await;
        let quinn::ConnectionError::ConnectionClosed(close) = second.unwrap_err() else { panic!() };
        assert_eq!(u64::from(close.error_code), 2, "CONNECTION_REFUSED");
        assert_eq!(client.get("/bytes/10").await.body, pattern(10));
        client.close().await;
    });
    assert_eq!(server.closed("too_many"), 1);
    server.stop();
}

#[test]
fn a_connection_without_requests_is_closed_after_its_idle_time() {
    let limits = Limits { idle_time: Duration::from_millis(300), ..Limits::default() };
    let server = Server::with(Options { limits, ..Options::default() });
    run(async {
        let mut config = config(server.tls());
        let mut transport = quinn::TransportConfig::default();
        // It keeps itself alive, as QUIC sees it.
        transport.keep_alive_interval(Some(Duration::from_millis(50)));
        config.transport_config(std::sync::Arc::new(transport));
        let client = Client::with(endpoint(), server.address, config).await;
        assert_eq!(client.get("/bytes/10").await.body, pattern(10));
        let reason = client.quic.closed().await;
        let quinn::ConnectionError::ApplicationClosed(close) = &reason else { panic!("{reason}") };
        assert_eq!(close.error_code.into_inner(), 0x100, "H3_NO_ERROR");
    });
    eventually("the connection is gone", || server.open() == 0);
    server.stop();
}

#[test]
fn a_client_that_has_gone_without_a_word_is_forgotten() {
    let limits = Limits { idle_time: Duration::from_millis(300), ..Limits::default() };
    let server = Server::with(Options { limits, ..Options::default() });
    run(async {
        let client = Client::connect(&server).await;
        let mut stream = client.begin(request(Method::GET, "/bytes/16777216")).await;
        stream.recv_response().await.unwrap();
        // No runtime, no packets.
        std::mem::forget(client);
        std::mem::forget(stream);
    });
    eventually("the connection is gone", || server.open() == 0);
    eventually("nothing is pinned", || server.pins.pinned_bytes() == 0);
    server.stop();
}

#[test]
fn a_connection_goes_on_from_another_address() {
    let server = Server::start();
    run(async {
        let client = Client::connect(&server).await;
        assert_eq!(client.get("/bytes/10").await.body, pattern(10));
        let mut stream = client.begin(request(Method::GET, "/bytes/8000000")).await;
        stream.finish().await.unwrap();
        stream.recv_response().await.unwrap();
        client.endpoint.rebind(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
        let mut received = 0;
        while let Some(data) = stream.recv_data().await.unwrap() {
            received += bytes::Buf::remaining(&data);
        }
        assert_eq!(received, 8_000_000);
        assert_eq!(client.get("/bytes/1000").await.body, pattern(1000));
        client.close().await;
    });
    assert_eq!(server.quic_metric("migrations"), 1);
    server.stop();
}

#[test]
fn slow_readers_stay_within_the_pins_and_are_closed_when_they_take_too_little() {
    let pins = PinBudget::new(2 << 20, 1 << 20);
    let server = Server::with(Options { pins, ..Options::default() });
    run(async {
        let mut slow = Vec::new();
        for _ in 0..16 {
            let client = Client::connect(&server).await;
            let mut stream = client.begin(request(Method::GET, "/bytes/16777216")).await;
            stream.finish().await.unwrap();
            stream.recv_response().await.unwrap();
            slow.push((client, stream));
        }
        for _ in 0..100 {
            assert!(server.pins.pinned_bytes() <= server.pins.total_bytes_max());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(server.pins.pinned_bytes() > 0, "slow readers hold something");
        // One that reads gets all of it nevertheless.
        let client = Client::connect(&server).await;
        let answer = client.get("/bytes/8000000").await;
        assert!(answer.body == pattern(8_000_000));
        client.close().await;
        // They answer pings and take nothing.
        while server.closed("slow_reader") == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        drop(slow);
    });
    server.stop();
}

#[test]
fn an_upload_may_not_fill_the_memory() {
    let settings = QuicSettings { upload_bytes_max: 0, ..QuicSettings::default() };
    let server = Server::with(Options { settings, ..Options::default() });
    run(async {
        let client = Client::connect(&server).await;
        let mut stream = client.begin(request(Method::PUT, "/count")).await;
        for _ in 0..20 {
            stream.send_data(Bytes::from(vec![0; 60_000])).await.unwrap();
        }
        stream.finish().await.unwrap();
        assert_eq!(answer(&mut stream).await.unwrap().text(), "1200000 whole");
        client.close().await;
    });
    server.stop();
}
