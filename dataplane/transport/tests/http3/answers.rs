//! What is asked is answered.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::Method;

use crate::client::{Client, answer, request};
use crate::common::pattern;
use crate::run;
use crate::server::Server;

#[test]
fn bodies_of_every_length_come_in_whole() {
    let server = Server::start();
    run(async {
        let client = Client::connect(&server).await;
        for count in [0, 1, 1000, 16 << 10, (16 << 10) + 1, 256 << 10, 1_000_000, 16 << 20] {
            let answer = client.get(&format!("/bytes/{count}")).await;
            assert_eq!(answer.status(), 200);
            assert_eq!(answer.body, pattern(count), "{count} bytes");
        }
        client.close().await;
    });
    assert_eq!(server.metric("transport_requests_total{protocol=\"http3\"}"), 8);
    server.stop();
}

#[test]
fn an_answer_that_lies_ready_is_the_same_and_asks_no_handler() {
    let server = Server::start();
    run(async {
        let client = Client::connect(&server).await;
        for count in [0, 1, 4096, 300_000, 4 << 20] {
            let answer = client.get(&format!("/ready/{count}")).await;
            assert_eq!(answer.head.headers()["x-ready"], "yes");
            assert_eq!(answer.body, pattern(count));
        }
        client.close().await;
    });
    assert_eq!(server.handled.load(Ordering::SeqCst), 0);
    assert_eq!(server.quic_metric("immediate_answers"), 5);
    server.stop();
}

#[test]
fn a_body_of_unknown_length_ends_with_its_stream() {
    let server = Server::start();
    run(async {
        let client = Client::connect(&server).await;
        assert_eq!(client.get("/chunked/12345").await.body, pattern(12345));
        assert_eq!(client.get("/chunked/0").await.body, pattern(0));
        client.close().await;
    });
    server.stop();
}

#[test]
fn head_has_no_body_and_what_is_unknown_is_not_found() {
    let server = Server::start();
    run(async {
        let client = Client::connect(&server).await;
        let head = client.ask(Method::HEAD, "/bytes/1000").await;
        assert_eq!((head.status(), head.body.len()), (200, 0));
        assert_eq!(client.get("/nothing").await.status(), 404);
        assert_eq!(client.get("/peer").await.text(), "true Http3");
        assert_eq!(client.get("/early").await.text(), "false");
        client.close().await;
    });
    server.stop();
}

#[test]
fn requests_of_one_connection_do_not_wait_for_each_other() {
    let server = Server::start();
    run(async {
        let client = Client::connect(&server).await;
        let mut slow = client.begin(request(Method::GET, "/sleep/300")).await;
        slow.finish().await.unwrap();
        let many = (0..200).map(|n| {
            let client = &client;
            async move {
                let count = n * 997;
                assert_eq!(client.get(&format!("/bytes/{count}")).await.body, pattern(count));
            }
        });
        futures_util::future::join_all(many).await;
        assert_eq!(answer(&mut slow).await.unwrap().text(), "slept");
        client.close().await;
    });
    server.stop();
}

#[test]
fn a_body_that_cannot_be_finished_is_reset_and_the_connection_goes_on() {
    let server = Server::start();
    run(async {
        let client = Client::connect(&server).await;
        for path in ["/fault/100000", "/faultchunked/100000"] {
            let mut stream = client.begin(request(Method::GET, path)).await;
            stream.finish().await.unwrap();
            assert!(answer(&mut stream).await.is_err(), "{path} is taken for whole");
        }
        assert_eq!(client.get("/bytes/10").await.body, pattern(10));
        client.close().await;
    });
    assert_eq!(server.closed("fault"), 2);
    server.stop();
}

#[test]
fn uploads_come_in_whole_under_flow_control() {
    let server = Server::start();
    run(async {
        let client = Client::connect(&server).await;
        for (count, length) in [(0, true), (1, true), (5_000_000, true), (5_000_000, false)] {
            let mut head = request(Method::PUT, "/count");
            if length {
                head.headers_mut().insert(http::header::CONTENT_LENGTH, count.into());
            }
            let mut stream = client.begin(head).await;
            for chunk in pattern(count).chunks(60_000) {
                stream.send_data(Bytes::copy_from_slice(chunk)).await.unwrap();
            }
            stream.finish().await.unwrap();
            assert_eq!(answer(&mut stream).await.unwrap().text(), format!("{count} whole"));
        }
        client.close().await;
    });
    server.stop();
}

#[test]
fn an_upload_that_nobody_reads_is_answered_and_stopped() {
    let server = Server::start();
    run(async {
        let client = Client::connect(&server).await;
        let mut stream = client.begin(request(Method::PUT, "/refuse")).await;
        // More than any window: it could not be sent if it were waited for.
        let sent = async {
            for _ in 0..1000 {
                let chunk = Bytes::from(vec![0; 60_000]);
                if stream.send_data(chunk).await.is_err() {
                    return true;
                }
            }
            false
        };
        assert!(sent.await, "60 MB were taken for a request that was refused");
        assert_eq!(answer(&mut stream).await.unwrap().status(), 403);
        assert_eq!(client.get("/bytes/10").await.body, pattern(10));
        client.close().await;
    });
    server.stop();
}

#[test]
fn a_client_may_say_after_the_answer_that_its_request_has_no_body() {
    let server = Server::start();
    run(async {
        let client = Client::connect(&server).await;
        for method in [Method::GET, Method::HEAD, Method::PUT] {
            let path = if method == Method::PUT { "/refuse" } else { "/bytes/10" };
            let mut stream = client.begin(request(method.clone(), path)).await;
            let first = answer(&mut stream).await.unwrap();
            // That the first answer has arrived is known before the second is asked for.
            assert_eq!(client.get("/bytes/10").await.body, pattern(10));
            stream.finish().await.unwrap_or_else(|error| panic!("{method}: {error}"));
            assert_eq!(first.status(), if method == Method::PUT { 403 } else { 200 });
        }
        client.close().await;
    });
    assert_eq!(server.quic_metric("requests_reset"), 0);
    server.stop();
}

#[test]
fn a_body_that_begins_after_the_answer_is_stopped() {
    let server = Server::start();
    run(async {
        let client = Client::connect(&server).await;
        let mut stream = client.begin(request(Method::GET, "/bytes/10")).await;
        assert_eq!(answer(&mut stream).await.unwrap().body, pattern(10));
        assert_eq!(client.get("/bytes/10").await.body, pattern(10));
        // More than any window.
        let sent = async {
            for _ in 0..1000 {
                if stream.send_data(Bytes::from(vec![0; 60_000])).await.is_err() {
                    return true;
                }
            }
            false
        };
        assert!(sent.await, "60 MB were taken after the answer");
        assert_eq!(client.get("/bytes/10").await.body, pattern(10));
        client.close().await;
    });
    server.stop();
}

#[test]
fn clients_that_leave_their_side_open_hold_back_neither_others_nor_a_drain() {
    let server = Server::start();
    run(async {
        let client = Client::connect(&server).await;
        let mut open = Vec::new();
        for _ in 0..20 {
            let mut stream = client.begin(request(Method::GET, "/bytes/300000")).await;
            assert_eq!(answer(&mut stream).await.unwrap().body, pattern(300_000));
            open.push(stream);
        }
        assert_eq!(client.get("/bytes/10").await.body, pattern(10));
        // The last answer may be on its way.
        assert!(server.pins.pinned_bytes() <= 10, "an answer that has arrived holds nothing");
        server.drain.start();
        client.quic.closed().await;
        drop(open);
        client.endpoint.wait_idle().await;
    });
    server.stop();
}

#[test]
fn an_upload_that_is_reset_ends_its_handler() {
    let server = Server::start();
    run(async {
        let client = Client::connect(&server).await;
        let mut stream = client.begin(request(Method::PUT, "/count")).await;
        stream.send_data(Bytes::from(vec![0; 1000])).await.unwrap();
        stream.stop_stream(h3::error::Code::H3_REQUEST_CANCELLED);
        assert!(answer(&mut stream).await.is_err());
        assert_eq!(client.get("/bytes/10").await.body, pattern(10));
        client.close().await;
    });
    assert_eq!(server.quic_metric("requests_reset"), 1);
    server.stop();
}
