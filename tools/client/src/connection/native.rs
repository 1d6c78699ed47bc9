//! The native protocol (docs/NATIVE.md): content by digest, a stream for each request, of one content or of many.
//! One connection is shared by all requests; when it is gone, the next request opens another.

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
    /// The frame of the token, or nothing.
    pub(super) credential: Vec<u8>,
}

/// What comes of the answers to one request: of one want after the other.
pub(crate) struct Body {
    stream: RecvStream,
    reader: Reader,
    /// What has come in and is not read yet.
    rest: Bytes,
    /// The want that is being answered, and how many there are.
    want: u32,
    wants: u32,
    /// Bytes of content before the next frame.
    left: u64,
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
            credential: Vec::new(),
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

    /// Asks for contents of one place, at most 256, and waits for the frame before the first of them. Status
    /// and headers are what HTTP would say.
    ///
    /// # Errors
    /// [`ClientError::Connect`], [`ClientError::Broken`], [`ClientError::Answer`] for a request that cannot be.
    pub(crate) async fn get(
        &self,
        place: &Place,
        wants: Vec<Want>,
    ) -> Result<(u16, HeaderMap, Body), ClientError> {
        // Its own bound, when it is encoded, is far below.
        let count = u32::try_from(wants.len()).unwrap_or(u32::MAX);
        let request = encode(place, wants)?;
        let (connection, early) = self.live().await?;
        match self.exchange(connection, &request, count).await {
            // What was sent early may be refused, and is then sent again at leisure: once.
            Err(ClientError::Broken { .. }) if early => {
                self.dialer.refuse_early_data();
                self.disconnect().await;
                let (connection, _) = self.live().await?;
                self.exchange(connection, &request, count).await
            }
            answer => answer,
        }
    }

    async fn exchange(
        &self,
        connection: quinn::Connection,
        request: &[u8],
        wants: u32,
    ) -> Result<(u16, HeaderMap, Body), ClientError> {
        let asked = async {
            let (mut send, stream) =
                connection.open_bi().await.map_err(|error| error.to_string())?;
            send.write_all(&self.credential).await.map_err(|error| error.to_string())?;
            send.write_all(request).await.map_err(|error| error.to_string())?;
            send.finish().map_err(|error| error.to_string())?;
            let mut body = Body {
                stream,
                reader: Reader::client(),
                rest: Bytes::new(),
                want: 0,
                wants,
                left: 0,
                more: false,
                text: None,
                _connection: connection.clone(),
            };
            let (status, headers) = body.head().await?;
            Ok::<_, String>((status, headers, body))
        };
        let broken = |why: String| ClientError::Broken { protocol: Used::Native, why };
        match tokio::time::timeout(self.idle_max, asked).await {
            Ok(asked) => asked.map_err(broken),
            Err(_) => Err(broken(format!("no answer within {:?}", self.idle_max))),
        }
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
    /// The next piece of this want's content.
    ///
    /// # Errors
    /// What broke.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, String> {
        if let Some(text) = self.text.take() {
            return Ok(Some(text).filter(|text| !text.is_empty()));
        }
        loop {
            let is_over = self.left == 0 && !self.more;
            if is_over && self.want + 1 < self.wants {
                return Ok(None);
            }
            while !self.rest.is_empty() {
                match self.item()? {
                    (Some(Item::Body), bytes) => {
                        self.left = self.left.saturating_sub(bytes.len() as u64);
                        return Ok(Some(bytes));
                    }
                    (Some(Item::Answer(answer)), _) if self.more && answer.want == self.want => {
                        (self.more, self.left) = (answer.more, answer.body_len);
                        break;
                    }
                    (Some(Item::Refusal(refusal)), _) => return Err(refusal.text),
                    (Some(_), _) => return Err("a frame that was not asked for".to_owned()),
                    (None, _) => {}
                }
            }
            if !self.rest.is_empty() {
                continue;
            }
            match self.receive().await? {
                Some(bytes) => self.rest = bytes,
                None if !is_over || !self.reader.is_at_boundary() => {
                    return Err("it ended too early".to_owned());
                }
                None => return Ok(None),
            }
        }
    }

    /// What stands before the next want's content; what is left of this one's is skipped. `None` behind the
    /// last want.
    ///
    /// # Errors
    /// What broke.
    pub(crate) async fn turn(&mut self) -> Result<Option<(u16, HeaderMap)>, String> {
        while self.next().await?.is_some() {}
        if self.want + 1 >= self.wants {
            return Ok(None);
        }
        self.want += 1;
        self.head().await.map(Some)
    }

    /// The first frame of a want.
    async fn head(&mut self) -> Result<(u16, HeaderMap), String> {
        loop {
            while !self.rest.is_empty() {
                match self.item()? {
                    (Some(Item::Answer(answer)), _) if answer.want == self.want => {
                        (self.more, self.left) = (answer.more, answer.body_len);
                        if !(200..300).contains(&answer.status) {
                            self.text = Some(answer.error.clone().into());
                        }
                        return Ok((answer.status, headers(&answer)));
                    }
                    (Some(Item::Refusal(refusal)), _) => {
                        return Err(format!("refused ({}): {}", refusal.code.0, refusal.text));
                    }
                    (Some(_), _) => return Err("a frame that was not asked for".to_owned()),
                    (None, _) => {}
                }
            }
            match self.receive().await? {
                Some(bytes) => self.rest = bytes,
                None => return Err("there was no answer".to_owned()),
            }
        }
    }

    /// Reads on in what has come: what was found, and its bytes.
    fn item(&mut self) -> Result<(Option<Item>, Bytes), String> {
        let (taken, item) = self.reader.read(&self.rest).map_err(|error| error.to_string())?;
        Ok((item, self.rest.split_to(taken)))
    }

    async fn receive(&mut self) -> Result<Option<Bytes>, String> {
        let chunk = self.stream.read_chunk(usize::MAX, true).await;
        Ok(chunk.map_err(|error| error.to_string())?.map(|chunk| chunk.bytes))
    }
}

impl Content {
    /// As a want, of these bytes of it.
    pub(crate) fn want(&self, range: Option<(u64, Option<u64>)>) -> Want {
        let kind = if self.is_manifest { WantKind::Manifest } else { WantKind::Blob };
        let (first, last) = range.unwrap_or_default();
        let len = last.map(|last| last.saturating_sub(first).saturating_add(1));
        Want { kind, offset: first, len, ..Want::whole(self.digest) }
    }
}

fn encode(place: &Place, wants: Vec<Want>) -> Result<Vec<u8>, ClientError> {
    let name = |name: Option<&str>| name.unwrap_or_default().to_owned();
    let first = wants.first().map_or_else(String::new, |want| want.digest.to_string());
    let request = native::Request {
        customer: String::new(),
        region: String::new(),
        repository: name(place.repository.as_deref()),
        upstream: name(place.ns.as_deref()),
        wants,
    };
    request.encode().map_err(|error| ClientError::Answer { path: first, why: error.to_string() })
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
