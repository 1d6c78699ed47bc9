//! The native protocol (docs/NATIVE.md): content by digest, a stream for each. One connection is shared by
//! all requests; when it is gone, the next request opens another.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use outrider_artifact::Digest;
use outrider_artifact::native::{self, Answer, Item, Reader, Want, WantKind};
use quinn::RecvStream;
use rustls::RootCertStore;
use tokio::sync::Mutex;
use url::Url;

use super::quic::Dialer;
use super::{Times, Used};
use crate::error::ClientError;
use crate::reference::Place;

/// The code of "no error" (docs/NATIVE.md, "Refusals").
const NO_ERROR: u32 = 0;

/// Content by its digest, as this protocol asks for it.
#[derive(Clone, Debug)]
pub struct Content {
    /// Where it is.
    pub place: Place,
    /// Which it is.
    pub digest: Digest,
    /// Whether it is a manifest, and not a blob.
    pub is_manifest: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Connector {
    dialer: Dialer,
    live: Mutex<Option<(quinn::Connection, bool)>>,
    idle_max: Duration,
}

/// What comes of an answer.
pub(crate) struct Body {
    stream: RecvStream,
    reader: Reader,
    /// What has come in and is not read yet.
    rest: Bytes,
    /// Another frame for the same want follows.
    more: bool,
    /// The text of an error, in place of content.
    text: Option<Bytes>,
    _connection: quinn::Connection,
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
            dialer: Dialer::new(from, authority, roots, (native::ALPN, Used::Native), times)?,
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
        if let Some((connection, _)) = self.live.lock().await.take() {
            connection.close(NO_ERROR.into(), b"");
        }
    }

    /// Asks for content, or for bytes of it, and waits for the frame before it. Status and headers are what
    /// HTTP would say.
    ///
    /// # Errors
    /// [`ClientError::Connect`], [`ClientError::Broken`].
    pub(crate) async fn get(
        &self,
        content: &Content,
        range: Option<(u64, Option<u64>)>,
    ) -> Result<(u16, HeaderMap, Body), ClientError> {
        let request = encode(content, range)?;
        let (connection, early) = self.live().await?;
        match self.exchange(connection, &request).await {
            // What was sent early may be refused, and is then sent again at leisure: once.
            Err(ClientError::Broken { .. }) if early => {
                self.dialer.refuse_early_data();
                self.disconnect().await;
                let (connection, _) = self.live().await?;
                self.exchange(connection, &request).await
            }
            answer => answer,
        }
    }

    async fn exchange(
        &self,
        connection: quinn::Connection,
        request: &[u8],
    ) -> Result<(u16, HeaderMap, Body), ClientError> {
        let asked = async {
            let (mut send, stream) =
                connection.open_bi().await.map_err(|error| error.to_string())?;
            send.write_all(request).await.map_err(|error| error.to_string())?;
            send.finish().map_err(|error| error.to_string())?;
            let mut body = Body {
                stream,
                reader: Reader::client(),
                rest: Bytes::new(),
                more: false,
                text: None,
                _connection: connection.clone(),
            };
            let answer = body.frame().await?;
            Ok::<_, String>((answer, body))
        };
        let broken = |why: String| ClientError::Broken { protocol: Used::Native, why };
        let (answer, mut body) = match tokio::time::timeout(self.idle_max, asked).await {
            Ok(asked) => asked.map_err(broken)?,
            Err(_) => return Err(broken(format!("no answer within {:?}", self.idle_max))),
        };
        if !(200..300).contains(&answer.status) {
            body.text = Some(answer.error.clone().into());
        }
        Ok((answer.status, headers(&answer), body))
    }

    /// The connection, or a new one.
    async fn live(&self) -> Result<(quinn::Connection, bool), ClientError> {
        let mut slot = self.live.lock().await;
        if let Some(live) = slot.as_ref().filter(|(live, _)| live.close_reason().is_none()) {
            return Ok(live.clone());
        }
        let live = self.dialer.dial().await?;
        *slot = Some(live.clone());
        Ok(live)
    }
}

impl Body {
    /// The next piece.
    ///
    /// # Errors
    /// What broke.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, String> {
        if let Some(text) = self.text.take() {
            return Ok(Some(text).filter(|text| !text.is_empty()));
        }
        loop {
            while !self.rest.is_empty() {
                let (taken, item) =
                    self.reader.read(&self.rest).map_err(|error| error.to_string())?;
                let bytes = self.rest.split_to(taken);
                match item {
                    Some(Item::Body) => return Ok(Some(bytes)),
                    Some(Item::Answer(answer)) if self.more && answer.want == 0 => {
                        self.more = answer.more;
                    }
                    Some(Item::Refusal(refusal)) => return Err(refusal.text),
                    Some(_) => return Err("a frame that was not asked for".to_owned()),
                    None => {}
                }
            }
            match self.receive().await? {
                Some(bytes) => self.rest = bytes,
                None if self.more || !self.reader.is_at_boundary() => {
                    return Err("it ended too early".to_owned());
                }
                None => return Ok(None),
            }
        }
    }

    /// The first frame.
    async fn frame(&mut self) -> Result<Answer, String> {
        loop {
            let Some(bytes) = self.receive().await? else {
                return Err("there was no answer".to_owned());
            };
            self.rest = bytes;
            while !self.rest.is_empty() {
                let (taken, item) =
                    self.reader.read(&self.rest).map_err(|error| error.to_string())?;
                let _ = self.rest.split_to(taken);
                match item {
                    Some(Item::Answer(answer)) if answer.want == 0 => {
                        self.more = answer.more;
                        return Ok(answer);
                    }
                    Some(Item::Refusal(refusal)) => {
                        return Err(format!("refused ({}): {}", refusal.code.0, refusal.text));
                    }
                    Some(_) => return Err("a frame that was not asked for".to_owned()),
                    None => {}
                }
            }
        }
    }

    async fn receive(&mut self) -> Result<Option<Bytes>, String> {
        let chunk = self.stream.read_chunk(usize::MAX, true).await;
        Ok(chunk.map_err(|error| error.to_string())?.map(|chunk| chunk.bytes))
    }
}

fn encode(content: &Content, range: Option<(u64, Option<u64>)>) -> Result<Vec<u8>, ClientError> {
    let kind = if content.is_manifest { WantKind::Manifest } else { WantKind::Blob };
    let (first, last) = range.unwrap_or_default();
    let want = Want {
        kind,
        offset: first,
        len: last.map(|last| last.saturating_sub(first).saturating_add(1)),
        ..Want::whole(content.digest)
    };
    let name = |name: Option<&str>| name.unwrap_or_default().to_owned();
    let request = native::Request {
        customer: String::new(),
        region: String::new(),
        repository: name(content.place.repository.as_deref()),
        upstream: name(content.place.ns.as_deref()),
        wants: vec![want],
    };
    request.encode().map_err(|error| ClientError::Answer {
        path: content.digest.to_string(),
        why: error.to_string(),
    })
}

/// What HTTP would say.
fn headers(answer: &Answer) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if matches!(answer.status, 200 | 206) && !answer.more {
        headers.insert(header::CONTENT_LENGTH, answer.len.into());
    }
    if answer.status == 206 && answer.len > 0 {
        let total = match answer.total {
            native::TOTAL_UNKNOWN => "*".to_owned(),
            total => total.to_string(),
        };
        let last = answer.start.saturating_add(answer.len - 1);
        if let Ok(value) = HeaderValue::try_from(format!("bytes {}-{last}/{total}", answer.start)) {
            headers.insert(header::CONTENT_RANGE, value);
        }
    }
    if let Ok(value) = HeaderValue::try_from(&answer.media_type)
        && !answer.media_type.is_empty()
    {
        headers.insert(header::CONTENT_TYPE, value);
    }
    headers
}
