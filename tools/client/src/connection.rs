//! How the edge is asked: one request, one answer, over whichever protocol can be had.
//!
//! - `h3`, [`native`], `https`: the protocols; `quic`: what the first two run on. This module chooses, and
//!   changes its mind: where QUIC does not get through, HTTPS does.

mod h3;
mod https;
pub mod native;
mod quic;

use std::fmt;
use std::str::FromStr;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use outrider_artifact::Digest;
use outrider_artifact::native::Want;
use url::Url;

use crate::credential::Credential;
use crate::error::ClientError;
use crate::progress::Progress;
use crate::reference::Place;
use crate::tls::Roots;

/// So many connections over QUIC in a row that break before they bring anything, and HTTPS takes over.
const STRIKES_MAX: u32 = 2;
/// Of an error's body, so much is read.
const MESSAGE_BYTES_MAX: usize = 4 << 10;

/// The protocol that is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/3 if it can be had, else HTTPS.
    #[default]
    Auto,
    /// HTTP/3 and nothing else.
    H3,
    /// The native protocol for what is asked by digest, and HTTP/3 for tags, which it does not have.
    Native,
    /// HTTPS (HTTP/2 or 1.1), or plain HTTP where the URL says so.
    Https,
}

impl FromStr for Protocol {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "auto" => Ok(Self::Auto),
            "h3" => Ok(Self::H3),
            "native" => Ok(Self::Native),
            "https" => Ok(Self::Https),
            _ => Err("a protocol is auto, h3, native or https"),
        }
    }
}

/// The protocol that is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Used {
    /// HTTP/3.
    H3,
    /// The native protocol.
    Native,
    /// HTTPS.
    Https,
    /// HTTP without TLS.
    Http,
}

impl fmt::Display for Used {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::H3 => "HTTP/3",
            Self::Native => "the native protocol",
            Self::Https => "HTTPS",
            Self::Http => "HTTP",
        })
    }
}

/// A GET.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Path and query.
    pub path: String,
    /// The media types that are wanted.
    pub accept: Option<&'static str>,
    /// The first byte that is wanted, and the last one if it is not the end.
    pub range: Option<(u64, Option<u64>)>,
    /// The same by digest, if it has one.
    pub content: Option<native::Content>,
    /// Who asks, which the connector says.
    pub authorization: Option<HeaderValue>,
}

impl Request {
    /// Its headers.
    pub(crate) fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let agent = concat!("outrider-client/", env!("CARGO_PKG_VERSION"));
        headers.insert(header::USER_AGENT, HeaderValue::from_static(agent));
        if let Some(accept) = self.accept {
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
        }
        if let Some((first, last)) = self.range {
            let last = last.map_or_else(String::new, |last| last.to_string());
            if let Ok(value) = HeaderValue::try_from(format!("bytes={first}-{last}")) {
                headers.insert(header::RANGE, value);
            }
        }
        if let Some(authorization) = &self.authorization {
            headers.insert(header::AUTHORIZATION, authorization.clone());
        }
        headers
    }
}

/// An answer, its body still to come.
#[derive(Debug)]
pub struct Answer {
    /// What was asked for.
    pub path: String,
    /// Over which protocol it comes.
    pub used: Used,
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    body: Body,
    idle_max: Duration,
}

/// What comes.
pub(crate) enum Body {
    H3(Box<h3::Body>),
    Native(Box<native::Body>),
    Https(hyper::body::Incoming),
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::H3(_) => "H3",
            Self::Native(_) => "Native",
            Self::Https(_) => "Https",
        })
    }
}

impl Answer {
    /// The next piece of the body; `None` at its end.
    ///
    /// # Errors
    /// [`ClientError::Broken`], also when nothing comes for too long.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        let (used, idle_max) = (self.used, self.idle_max);
        let piece = async {
            match &mut self.body {
                Body::H3(body) => body.next().await,
                Body::Native(body) => body.next().await,
                Body::Https(body) => https::next(body).await,
            }
        };
        match tokio::time::timeout(idle_max, piece).await {
            Ok(piece) => piece.map_err(|why| ClientError::Broken { protocol: used, why }),
            Err(_) => {
                let why = format!("nothing came for {idle_max:?}");
                Err(ClientError::Broken { protocol: used, why })
            }
        }
    }

    /// Goes on to the next content of a request for many; what is left of this one is skipped. False behind
    /// the last.
    ///
    /// # Errors
    /// As [`Answer::next`].
    pub async fn turn(&mut self, path: String) -> Result<bool, ClientError> {
        let (used, idle_max) = (self.used, self.idle_max);
        let Body::Native(body) = &mut self.body else { return Ok(false) };
        let broken = |why| ClientError::Broken { protocol: used, why };
        match tokio::time::timeout(idle_max, body.turn()).await {
            Ok(Ok(Some((status, headers)))) => {
                (self.path, self.status, self.headers) = (path, status, headers);
                Ok(true)
            }
            Ok(Ok(None)) => Ok(false),
            Ok(Err(why)) => Err(broken(why)),
            Err(_) => Err(broken(format!("nothing came for {idle_max:?}"))),
        }
    }

    /// The whole body, of at most `bytes_max`.
    ///
    /// # Errors
    /// As [`Answer::next`], and [`ClientError::Answer`] when it is longer.
    pub async fn all(&mut self, bytes_max: usize) -> Result<Vec<u8>, ClientError> {
        let mut all = Vec::new();
        while let Some(piece) = self.next().await? {
            if all.len() + piece.len() > bytes_max {
                let why = format!("it is longer than {bytes_max} bytes");
                return Err(ClientError::Answer { path: self.path.clone(), why });
            }
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }

    /// A header that is a number.
    pub fn number(&self, name: &HeaderName) -> Option<u64> {
        self.text(name)?.parse().ok()
    }

    /// A header that is text.
    pub fn text(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The error that this answer is.
    pub async fn into_error(mut self) -> ClientError {
        self.error().await
    }

    /// The same of an answer that goes on to others.
    pub(crate) async fn error(&mut self) -> ClientError {
        let retry_after_s = self.number(&header::RETRY_AFTER);
        // What it says about itself helps, and is not needed.
        let body = self.all(MESSAGE_BYTES_MAX).await.unwrap_or_default();
        let message = message(&body);
        ClientError::Status { status: self.status, path: self.path.clone(), message, retry_after_s }
    }
}

/// What the body of an error says: the messages of the registry protocol, or its first line. Control
/// characters are left out, since it is shown on a terminal.
fn message(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<Error>,
    }
    #[derive(serde::Deserialize)]
    struct Error {
        code: Option<String>,
        message: Option<String>,
    }
    let text = match serde_json::from_slice::<Errors>(body) {
        Ok(errors) => errors
            .errors
            .into_iter()
            .map(|error| [error.code, error.message].into_iter().flatten().collect::<Vec<_>>())
            .map(|parts| parts.join(": "))
            .collect::<Vec<_>>()
            .join("; "),
        Err(_) => String::from_utf8_lossy(body).lines().next().unwrap_or_default().to_owned(),
    };
    let text: String = text.chars().filter(|c| !c.is_control()).take(300).collect();
    Some(text).filter(|text| !text.is_empty())
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// For a connection.
    pub connect_max: Duration,
    /// Without a byte of an answer.
    pub idle_max: Duration,
}

/// Asks the edge.
#[derive(Debug)]
pub struct Connector {
    wanted: Protocol,
    h3: Option<h3::Connector>,
    native: Option<native::Connector>,
    https: https::Connector,
    times: Times,
    /// Connections over QUIC that broke one after another; `STRIKES_MAX` of them and it is given up.
    strikes: Mutex<u32>,
    authority: String,
    authorization: Option<HeaderValue>,
}

impl Connector {
    /// A connector to the edge at `from`, a URL of http or https without a path.
    ///
    /// # Errors
    /// When the URL or the certificates are of no use.
    pub fn new(
        from: &Url,
        roots: &Roots,
        wanted: Protocol,
        times: Times,
    ) -> Result<Self, ClientError> {
        let wrong = |why: &str| ClientError::Url { url: from.to_string(), why: why.to_owned() };
        let secure = match from.scheme() {
            "https" => true,
            "http" => false,
            _ => return Err(wrong("an edge's URL starts with https:// or http://")),
        };
        let host = from.host_str().ok_or_else(|| wrong("there is no host in it"))?;
        if !matches!(from.path(), "" | "/") || from.query().is_some() || !from.username().is_empty()
        {
            return Err(wrong("an edge's URL is https://HOST[:PORT] and nothing more"));
        }
        if !secure && matches!(wanted, Protocol::H3 | Protocol::Native) {
            return Err(wrong("QUIC is always encrypted; write https://"));
        }
        let authority = match from.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        let roots = if secure { Some(roots.load()?) } else { None };
        let h3 = match (&roots, wanted) {
            (Some(roots), Protocol::Auto | Protocol::H3 | Protocol::Native) => {
                Some(h3::Connector::new(from, &authority, roots, times)?)
            }
            _ => None,
        };
        let native = match (&roots, wanted) {
            (Some(roots), Protocol::Native) => {
                Some(native::Connector::new(from, &authority, roots, times)?)
            }
            _ => None,
        };
        let https = https::Connector::new(&authority, roots.as_ref(), times)?;
        Ok(Self {
            wanted,
            h3,
            native,
            https,
            times,
            strikes: Mutex::new(0),
            authority,
            authorization: None,
        })
    }

    /// With this in each of its requests.
    ///
    /// # Errors
    /// [`ClientError::Url`] for what the protocol does not take.
    pub fn asking_as(mut self, credential: &Credential) -> Result<Self, ClientError> {
        let wrong =
            |why: &str| ClientError::Url { url: self.authority.clone(), why: why.to_owned() };
        let header = credential.header();
        self.authorization = Some(header.ok_or_else(|| wrong("the token cannot be sent"))?);
        if let Some(native) = &mut self.native {
            let Credential::Bearer(token) = credential else {
                return Err(wrong("the native protocol takes a token, and no name and secret"));
            };
            let frame = outrider_artifact::native::encode_credential(token);
            native.credential = frame.map_err(|error| wrong(&error.to_string()))?;
        }
        Ok(self)
    }

    /// Where it connects to: host, and port if it is not the scheme's own.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Sends a request and waits for the head of its answer. With [`Protocol::Auto`] a connection over
    /// QUIC that cannot be had is no error: HTTPS is tried.
    ///
    /// # Errors
    /// [`ClientError::Connect`], [`ClientError::Broken`].
    pub async fn get(
        &self,
        request: &Request,
        progress: &dyn Progress,
    ) -> Result<Answer, ClientError> {
        if let (Some(native), Some(content)) = (&self.native, &request.content) {
            let wants = vec![content.want(request.range)];
            let (status, headers, body) = native.get(&content.place, wants).await?;
            let body = Body::Native(body.into());
            return Ok(self.answer(&request.path, Used::Native, status, headers, body));
        }
        let request = &Request { authorization: self.authorization.clone(), ..request.clone() };
        if let Some(h3) = self.h3.as_ref().filter(|_| !self.given_up()) {
            match h3.get(request).await {
                Err(error @ ClientError::Connect { fatal: false, .. })
                    if self.wanted == Protocol::Auto =>
                {
                    self.set_strikes(STRIKES_MAX);
                    progress.note(&format!("{error}; going on over HTTPS"));
                }
                Err(error) => {
                    self.broke(&error);
                    return Err(error);
                }
                Ok((status, headers, body)) => {
                    let body = Body::H3(body.into());
                    return Ok(self.answer(&request.path, Used::H3, status, headers, body));
                }
            }
        }
        let (status, headers, body) = self.https.get(request).await?;
        let body = Body::Https(body);
        Ok(self.answer(&request.path, self.https.used(), status, headers, body))
    }

    /// Whether many contents can be asked for in one request.
    pub fn asks_for_many(&self) -> bool {
        self.native.is_some()
    }

    /// Asks for whole blobs of one place, at most 256 of them, in one round trip by the native protocol. The
    /// answer is that to the first; [`Answer::turn`] goes on to the next.
    ///
    /// # Errors
    /// [`ClientError::Connect`], [`ClientError::Broken`]; [`ClientError::Answer`] for none, for too many, and
    /// where the native protocol is not spoken.
    pub async fn get_many(&self, place: &Place, digests: &[Digest]) -> Result<Answer, ClientError> {
        let Some(native) = &self.native else {
            let why = "many contents are asked for by the native protocol".to_owned();
            return Err(ClientError::Answer { path: String::new(), why });
        };
        let wants = digests.iter().map(|digest| Want::whole(*digest)).collect();
        let (status, headers, body) = native.get(place, wants).await?;
        let path = digests.first().map(|digest| place.blob(digest)).unwrap_or_default();
        Ok(self.answer(&path, Used::Native, status, headers, Body::Native(body.into())))
    }

    fn answer(
        &self,
        path: &str,
        used: Used,
        status: u16,
        headers: HeaderMap,
        body: Body,
    ) -> Answer {
        let (path, idle_max) = (path.to_owned(), self.times.idle_max);
        Answer { path, used, status, headers, body, idle_max }
    }

    /// Closes the connection over QUIC.
    pub async fn disconnect(&self) {
        if let Some(h3) = &self.h3 {
            h3.disconnect().await;
        }
        if let Some(native) = &self.native {
            native.disconnect().await;
        }
    }

    /// As [`crate::Client::early_connections`].
    pub fn early_connections(&self) -> u64 {
        let h3 = self.h3.as_ref().map_or(0, h3::Connector::early_connections);
        h3 + self.native.as_ref().map_or(0, native::Connector::early_connections)
    }

    /// Something came in: the protocol works.
    pub fn works(&self) {
        if !self.given_up() {
            self.set_strikes(0);
        }
    }

    /// A connection broke. With [`Protocol::Auto`] QUIC is given up when that goes on.
    pub fn broke(&self, error: &ClientError) {
        if let ClientError::Broken { protocol: Used::H3, .. } = error
            && let Ok(mut strikes) = self.strikes.lock()
        {
            *strikes = strikes.saturating_add(1);
        }
    }

    fn given_up(&self) -> bool {
        self.wanted == Protocol::Auto
            && self.strikes.lock().is_ok_and(|strikes| *strikes >= STRIKES_MAX)
    }

    fn set_strikes(&self, count: u32) {
        if let Ok(mut strikes) = self.strikes.lock() {
            *strikes = count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_open_or_closed() {
        let range = |range| {
            let request = Request { range: Some(range), ..Request::default() };
            request.headers()[header::RANGE].to_str().unwrap().to_owned()
        };
        assert_eq!(range((5, None)), "bytes=5-");
        assert_eq!(range((0, Some(9))), "bytes=0-9");
    }

    #[test]
    fn an_error_says_what_the_registry_said() {
        let body = br#"{"errors":[{"code":"BLOB_UNKNOWN","message":"not here\u001b[31m"}]}"#;
        assert_eq!(message(body).unwrap(), "BLOB_UNKNOWN: not here[31m");
        assert_eq!(message(b"plain\nmore").unwrap(), "plain");
        assert_eq!(message(b""), None);
    }

    #[test]
    fn an_edge_is_a_host_and_nothing_more() {
        let times = Times { connect_max: Duration::from_secs(1), idle_max: Duration::from_secs(1) };
        let new = |url: &str, wanted| {
            Connector::new(&url.parse().unwrap(), &Roots::System, wanted, times)
        };
        for url in ["ftp://a", "http://a/b", "http://u@a", "http://a/?b"] {
            assert!(new(url, Protocol::Auto).is_err(), "{url}");
        }
        assert!(new("http://a:1", Protocol::H3).is_err());
        assert_eq!(new("http://a:1", Protocol::Auto).unwrap().authority(), "a:1");
    }
}
