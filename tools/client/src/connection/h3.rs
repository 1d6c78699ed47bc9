//! HTTP/3 by the crate h3. One connection is shared by all requests; when it is gone, the next request
//! opens another.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use h3::client::{RequestStream, SendRequest};
use http::HeaderMap;
use rustls::RootCertStore;
use tokio::sync::Mutex;
use url::Url;

use super::quic::Dialer;
use super::{Request, Times, Used};
use crate::error::ClientError;

/// H3_NO_ERROR (RFC 9114, section 8.1).
const H3_NO_ERROR: u32 = 0x100;

type Sender = SendRequest<h3_quinn::OpenStreams, Bytes>;
type Stream = RequestStream<h3_quinn::BidiStream<Bytes>, Bytes>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Connector {
    dialer: Dialer,
    authority: String,
    live: Mutex<Option<Live>>,
    idle_max: Duration,
}

#[derive(Clone)]
struct Live {
    sender: Sender,
    connection: quinn::Connection,
    /// Its requests go out before the handshake has ended.
    early: bool,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("connection", &self.connection).finish_non_exhaustive()
    }
}

/// What comes of an answer. It keeps the connection.
pub(crate) struct Body {
    stream: Stream,
    _sender: Sender,
}

impl Body {
    /// The next piece.
    ///
    /// # Errors
    /// What broke.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, String> {
        match self.stream.recv_data().await {
            // The pieces of the h3 crate are one `Bytes` each, which this takes over without a copy.
            Ok(Some(mut piece)) => Ok(Some(piece.copy_to_bytes(piece.remaining()))),
            Ok(None) => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Connector {
    /// A connector to the host and port of `from`.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub(crate) fn new(
        from: &Url,
        authority: &str,
        roots: &Arc<RootCertStore>,
        times: Times,
    ) -> Result<Self, ClientError> {
        Ok(Self {
            dialer: Dialer::new(from, authority, roots, (b"h3", Used::H3), times)?,
            authority: authority.to_owned(),
            live: Mutex::new(None),
            idle_max: times.idle_max,
        })
    }

    /// Connections whose first requests went out with their first packet.
    pub(crate) fn early_connections(&self) -> u64 {
        self.dialer.early_connections()
    }

    /// Closes the connection, if there is one; the next request opens another.
    pub(crate) async fn disconnect(&self) {
        if let Some(live) = self.live.lock().await.take() {
            live.connection.close(H3_NO_ERROR.into(), b"");
        }
    }

    /// Sends a request and waits for the head of its answer.
    ///
    /// # Errors
    /// [`ClientError::Connect`], [`ClientError::Broken`].
    pub(crate) async fn get(
        &self,
        request: &Request,
    ) -> Result<(u16, HeaderMap, Body), ClientError> {
        let live = self.live().await?;
        let early = live.early;
        match self.exchange(live, request).await {
            // What was sent early may be refused, and is then sent again at leisure: once.
            Ok((425, ..)) | Err(ClientError::Broken { .. }) if early => {
                self.dialer.refuse_early_data();
                self.disconnect().await;
                let live = self.live().await?;
                self.exchange(live, request).await
            }
            answer => answer,
        }
    }

    async fn exchange(
        &self,
        mut live: Live,
        request: &Request,
    ) -> Result<(u16, HeaderMap, Body), ClientError> {
        let uri = format!("https://{}{}", self.authority, request.path);
        let wrong =
            |error: http::Error| ClientError::Url { url: uri.clone(), why: error.to_string() };
        let mut message = http::Request::get(&uri).body(()).map_err(wrong)?;
        *message.headers_mut() = request.headers();
        let sent = async {
            let mut stream = live.sender.send_request(message).await?;
            stream.finish().await?;
            let head = stream.recv_response().await?;
            Ok::<_, h3::error::StreamError>((head, stream))
        };
        let broken = |why: String| ClientError::Broken { protocol: Used::H3, why };
        let (head, stream) = match tokio::time::timeout(self.idle_max, sent).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(broken(error.to_string())),
            Err(_) => return Err(broken(format!("no answer within {:?}", self.idle_max))),
        };
        let (parts, ()) = head.into_parts();
        Ok((parts.status.as_u16(), parts.headers, Body { stream, _sender: live.sender }))
    }

    /// The connection, or a new one.
    async fn live(&self) -> Result<Live, ClientError> {
        let mut slot = self.live.lock().await;
        if let Some(live) = slot.as_ref().filter(|live| live.connection.close_reason().is_none()) {
            return Ok(live.clone());
        }
        let (connection, early) = self.dialer.dial().await?;
        let (mut driver, sender) = h3::client::new(h3_quinn::Connection::new(connection.clone()))
            .await
            .map_err(|error| self.dialer.refused(error.to_string(), false))?;
        tokio::spawn(async move {
            // Its errors reach whoever waits for an answer.
            let _ = poll_fn(|context| driver.poll_close(context)).await;
        });
        let live = Live { sender, connection, early };
        *slot = Some(live.clone());
        Ok(live)
    }
}
