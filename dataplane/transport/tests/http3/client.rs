//! A client that nobody here has written: quinn and the crate `h3`.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use h3::client::{RequestStream, SendRequest};
use h3_quinn::{BidiStream, OpenStreams};
use quinn::crypto::rustls::QuicClientConfig;

use crate::server::Server;

pub(crate) struct Client {
    pub(crate) endpoint: quinn::Endpoint,
    pub(crate) quic: quinn::Connection,
    pub(crate) send: SendRequest<OpenStreams, Bytes>,
}

pub(crate) struct Answer {
    pub(crate) head: http::Response<()>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn status(&self) -> u16 {
        self.head.status().as_u16()
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

pub(crate) fn endpoint() -> quinn::Endpoint {
    quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap()
}

pub(crate) fn config(tls: Arc<QuicClientConfig>) -> quinn::ClientConfig {
    quinn::ClientConfig::new(tls)
}

impl Client {
    pub(crate) async fn connect(server: &Server) -> Self {
        Self::with(endpoint(), server.address, config(server.tls())).await
    }

    pub(crate) async fn with(
        endpoint: quinn::Endpoint,
        address: SocketAddr,
        config: quinn::ClientConfig,
    ) -> Self {
        let quic = endpoint.connect_with(config, address, "localhost").unwrap().await.unwrap();
        Self::over(endpoint, quic).await
    }

    pub(crate) async fn over(endpoint: quinn::Endpoint, quic: quinn::Connection) -> Self {
        let (mut driver, send) =
            h3::client::new(h3_quinn::Connection::new(quic.clone())).await.unwrap();
        tokio::spawn(async move { std::future::poll_fn(|cx| driver.poll_close(cx)).await });
        Self { endpoint, quic, send }
    }

    pub(crate) async fn begin(
        &self,
        request: http::Request<()>,
    ) -> RequestStream<BidiStream<Bytes>, Bytes> {
        self.send.clone().send_request(request).await.unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask(http::Method::GET, path).await
    }

    pub(crate) async fn ask(&self, method: http::Method, path: &str) -> Answer {
        let mut stream = self.begin(request(method, path)).await;
        stream.finish().await.unwrap();
        answer(&mut stream).await.unwrap()
    }

    /// Ends the connection as a client does.
    pub(crate) async fn close(self) {
        self.quic.close(0x100u32.into(), b"");
        self.endpoint.wait_idle().await;
    }
}

pub(crate) fn request(method: http::Method, path: &str) -> http::Request<()> {
    http::Request::builder()
        .method(method)
        .uri(format!("https://localhost{path}"))
        .body(())
        .unwrap()
}

/// An answer, whole.
pub(crate) async fn answer(
    stream: &mut RequestStream<BidiStream<Bytes>, Bytes>,
) -> Result<Answer, h3::error::StreamError> {
    let head = stream.recv_response().await?;
    let mut body = Vec::new();
    while let Some(mut data) = stream.recv_data().await? {
        while data.has_remaining() {
            let chunk = data.chunk();
            body.extend_from_slice(chunk);
            let count = chunk.len();
            data.advance(count);
        }
    }
    Ok(Answer { head, body })
}
