//! How connections begin, with and without a session from before, and how they end.

use std::time::Duration;

use http::Method;
use outrider_transport::quic::QuicSettings;

use crate::client::{Client, answer, config, endpoint, request};
use crate::common::pattern;
use crate::run;
use crate::server::{Options, Server};

/// Connects, asks, and asks again in the first flight of a second connection; gives what the handler
/// was told of the second, and whether the server took it early.
async fn come_back(server: &Server) -> (String, bool) {
    let config = config(server.tls());
    let first = Client::with(endpoint(), server.address, config.clone()).await;
    assert_eq!(first.get("/early").await.text(), "false");
    // The ticket comes after the handshake.
    tokio::time::sleep(Duration::from_millis(50)).await;
    first.close().await;

    let endpoint = endpoint();
    let connecting = endpoint.connect_with(config, server.address, "localhost").unwrap();
    let (quic, accepted) = match connecting.into_0rtt() {
        Ok(early) => early,
        Err(connecting) => {
            let client = Client::over(endpoint, connecting.await.unwrap()).await;
            let said = client.get("/early").await.text().to_owned();
            client.close().await;
            return (said, false);
        }
    };
    let client = Client::over(endpoint, quic).await;
    let said = client.get("/early").await.text().to_owned();
    let accepted = accepted.await;
    client.close().await;
    (said, accepted)
}

#[test]
fn a_client_that_was_here_before_is_answered_in_its_first_flight() {
    let server = Server::start();
    let (said, accepted) = run(come_back(&server));
    assert!(accepted);
    assert_eq!(said, "true");
    assert_eq!(server.quic_metric("early_data_accepted"), 1);
    server.stop();
}

#[test]
fn without_early_data_it_is_answered_after_the_handshake() {
    let settings = QuicSettings { early_data: false, ..QuicSettings::default() };
    let server = Server::with(Options { settings, ..Options::default() });
    assert_eq!(run(come_back(&server)), ("false".to_owned(), false));
    assert_eq!(server.quic_metric("early_data_accepted"), 0);
    server.stop();
}

#[test]
fn a_drain_finishes_what_has_begun_and_takes_nothing_more() {
    let server = Server::start();
    run(async {
        let client = Client::connect(&server).await;
        let mut begun = client.begin(request(Method::GET, "/sleep/500")).await;
        begun.finish().await.unwrap();
        assert_eq!(client.get("/bytes/10").await.body, pattern(10));
        server.drain.start();
        tokio::time::sleep(Duration::from_millis(100)).await;
        // After the GOAWAY the client begins nothing more; what it has begun comes in.
        assert!(client.send.clone().send_request(request(Method::GET, "/bytes/10")).await.is_err());
        let second = endpoint()
            .connect_with(config(server.tls()), server.address, "localhost")
            .unwrap()
            .await;
        assert!(second.is_err(), "a connection was taken after the drain had begun");
        assert_eq!(answer(&mut begun).await.unwrap().text(), "slept");
        let reason = client.quic.closed().await;
        let quinn::ConnectionError::ApplicationClosed(close) = &reason else { panic!("{reason}") };
        assert_eq!(close.error_code.into_inner(), 0x100, "H3_NO_ERROR");
    });
    server.stop();
}

#[test]
fn what_is_not_done_when_the_time_for_the_drain_is_over_is_told_so() {
    let server =
        Server::with(Options { drain_time: Duration::from_millis(200), ..Options::default() });
    run(async {
        let client = Client::connect(&server).await;
        let mut begun = client.begin(request(Method::GET, "/sleep/60000")).await;
        begun.finish().await.unwrap();
        assert_eq!(client.get("/bytes/10").await.body, pattern(10));
        server.drain.start();
        let reason = client.quic.closed().await;
        assert!(matches!(reason, quinn::ConnectionError::ApplicationClosed(_)), "{reason}");
    });
    server.stop();
}
