//! Heads of requests: from an encoded field section to [`http::request::Parts`], with everything that makes a
//! request malformed (RFC 9114 sections 4.1.2, 4.2 and 4.3).

use std::ops::Range;
use std::rc::Rc;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, StatusCode, Uri, Version};

use crate::connection::Limits;
use crate::error::{Code, ConnectionError, StreamError};
use crate::memo::HeadMemo;
use crate::qpack::decode::{Decoder, Line};
use crate::qpack::table;

/// Bytes that are kept between requests for their decoding, in each of two buffers.
const KEPT_BYTES_MAX: usize = 2 << 10;
/// What a field costs beside its bytes (RFC 9114 section 4.2.2).
const FIELD_OVERHEAD_BYTES: u64 = 32;

/// Why there is no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeadError {
    Connection(ConnectionError),
    Stream(StreamError),
    Refused(StatusCode),
}

const fn malformed(reason: &'static str) -> HeadError {
    HeadError::Stream(StreamError::malformed(reason))
}

/// A request, and what it says of its body's length.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) parts: Rc<Parts>,
    pub(crate) content_length: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pseudo {
    Method,
    Scheme,
    Authority,
    Path,
}

/// Which pseudo-header field of a request an entry of the static table is; `Some(None)` is one of a response.
const fn pseudo(index: u8) -> Option<Option<Pseudo>> {
    match index {
        0 => Some(Some(Pseudo::Authority)),
        1 => Some(Some(Pseudo::Path)),
        15..=21 => Some(Some(Pseudo::Method)),
        22..=23 => Some(Some(Pseudo::Scheme)),
        24..=28 | 63..=71 => Some(None),
        _ => None,
    }
}

/// Decodes heads, one after the other, with the same two buffers.
#[derive(Debug, Default)]
pub(crate) struct HeadDecoder {
    text: Vec<u8>,
    lines: Vec<Line>,
    memo: Option<HeadMemo>,
}

impl HeadDecoder {
    /// One that remembers what it has decoded.
    pub(crate) fn with_memo(memo: HeadMemo) -> Self {
        Self { memo: Some(memo), ..Self::default() }
    }

    /// The request in a field section.
    pub(crate) fn request(&mut self, section: &[u8], limits: &Limits) -> Result<Head, HeadError> {
        let hash = match self.memo.as_ref().map(|memo| memo.find(section)) {
            Some(Ok(head)) => return Ok(head),
            Some(Err(hash)) => hash,
            None => None,
        };
        let result = self.read(section, limits).and_then(|()| {
            // One copy of all literals; names and values are slices of it.
            Request::default().build(Bytes::copy_from_slice(&self.text), &self.lines)
        });
        self.clear();
        if let (Some(memo), Some(hash), Ok(head)) = (&self.memo, hash, &result) {
            memo.keep(hash, section, head);
        }
        result
    }

    /// Checks a field section that is trailers. Their fields are of no use here.
    pub(crate) fn trailers(&mut self, section: &[u8], limits: &Limits) -> Result<(), HeadError> {
        let result = self.read(section, limits).and_then(|()| {
            let text = Bytes::copy_from_slice(&self.text);
            self.lines.iter().try_for_each(|line| {
                let (name, value) = line.resolve(&text);
                if name.first() == Some(&b':') {
                    return Err(malformed("a pseudo-header field in trailers"));
                }
                let name = HeaderName::from_lowercase(name)
                    .map_err(|_| malformed("a field name is not a token in lower case"))?;
                check_name(&name, value)?;
                check_value(value)?;
                HeaderValue::from_bytes(value)
                    .map(drop)
                    .map_err(|_| malformed("a control character in a field value"))
            })
        });
        self.clear();
        result
    }

    fn read(&mut self, section: &[u8], limits: &Limits) -> Result<(), HeadError> {
        let failed = |error: crate::qpack::decode::DecodeError| {
            let code = Code::QPACK_DECOMPRESSION_FAILED;
            HeadError::Connection(ConnectionError::new(code, error.reason()))
        };
        let too_large = HeadError::Refused(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        let mut decoder = Decoder::new(section).map_err(failed)?;
        let mut bytes = 0;
        while let Some(line) = decoder.next_line(&mut self.text).map_err(failed)? {
            bytes += line.len_bytes() as u64 + FIELD_OVERHEAD_BYTES;
            // Four pseudo-header fields of a request.
            if bytes > limits.field_section_bytes_max || self.lines.len() >= limits.fields_max + 4 {
                return Err(too_large);
            }
            self.lines.push(line);
        }
        Ok(())
    }

    fn clear(&mut self) {
        self.text.clear();
        self.lines.clear();
        self.text.shrink_to(KEPT_BYTES_MAX);
        self.lines.shrink_to(KEPT_BYTES_MAX / size_of::<Line>());
    }
}

/// A request that is being put together.
#[derive(Default)]
struct Request {
    method: Option<Method>,
    scheme: Option<Scheme>,
    authority: Option<Bytes>,
    path: Option<Bytes>,
    content_length: Option<u64>,
    cookies: usize,
}

impl Request {
    fn build(mut self, text: Bytes, lines: &[Line]) -> Result<Head, HeadError> {
        let mut lines = lines.iter();
        let mut headers = None;
        while let Some(line) = lines.next() {
            let (name, value) = match line {
                Line::Indexed(index) => match pseudo(*index) {
                    Some(pseudo) => {
                        let value = table::TABLE[usize::from(*index)].1.as_bytes();
                        self.pseudo(pseudo, Bytes::from_static(value), headers.is_some())?;
                        continue;
                    }
                    None => (table::header_name(*index), table::header_value(*index)),
                },
                Line::Named(index, value) => match pseudo(*index) {
                    Some(pseudo) => {
                        self.pseudo(pseudo, text.slice(value.clone()), headers.is_some())?;
                        continue;
                    }
                    None => (table::header_name(*index), Some(field_value(&text, value)?)),
                },
                Line::Literal(name, value) if text[name.clone()].first() == Some(&b':') => {
                    let pseudo = match &text[name.clone()] {
                        b":method" => Some(Pseudo::Method),
                        b":scheme" => Some(Pseudo::Scheme),
                        b":authority" => Some(Pseudo::Authority),
                        b":path" => Some(Pseudo::Path),
                        _ => None,
                    };
                    self.pseudo(pseudo, text.slice(value.clone()), headers.is_some())?;
                    continue;
                }
                Line::Literal(name, value) => {
                    let name = HeaderName::from_lowercase(&text[name.clone()])
                        .map_err(|_| malformed("a field name is not a token in lower case"))?;
                    check_name(&name, &text[value.clone()])?;
                    (Some(name), Some(field_value(&text, value)?))
                }
            };
            // An entry of the static table that is no pseudo-header field has both.
            let (Some(name), Some(value)) = (name, value) else {
                return Err(malformed("a pseudo-header field of a response"));
            };
            // This field and those behind it.
            let headers = headers.get_or_insert_with(|| HeaderMap::with_capacity(1 + lines.len()));
            self.field(headers, name, value)?;
        }
        let mut headers = headers.unwrap_or_default();
        if self.cookies > 1 {
            join_cookies(&mut headers)?;
        }
        self.finish(headers)
    }

    fn pseudo(
        &mut self,
        pseudo: Option<Pseudo>,
        value: Bytes,
        fields_began: bool,
    ) -> Result<(), HeadError> {
        if fields_began {
            return Err(malformed("a pseudo-header field behind other fields"));
        }
        let twice = match pseudo {
            Some(Pseudo::Method) => {
                let method = Method::from_bytes(&value)
                    .map_err(|_| malformed("the method is not a token"))?;
                self.method.replace(method).is_some()
            }
            Some(Pseudo::Scheme) => {
                let scheme = match &value[..] {
                    b"https" => Scheme::HTTPS,
                    b"http" => Scheme::HTTP,
                    other => Scheme::try_from(other)
                        .map_err(|_| malformed("the scheme is not that of a URI"))?,
                };
                self.scheme.replace(scheme).is_some()
            }
            Some(Pseudo::Authority) => self.authority.replace(value).is_some(),
            Some(Pseudo::Path) => self.path.replace(value).is_some(),
            None => return Err(malformed("a pseudo-header field that requests do not have")),
        };
        if twice {
            return Err(malformed("a pseudo-header field stands twice"));
        }
        Ok(())
    }

    fn field(
        &mut self,
        headers: &mut HeaderMap,
        name: HeaderName,
        value: HeaderValue,
    ) -> Result<(), HeadError> {
        if name == header::CONTENT_LENGTH {
            let length = number(value.as_bytes())
                .ok_or(malformed("content-length is not a number of bytes"))?;
            match self.content_length.replace(length) {
                None => {}
                // The same again says nothing new (RFC 9110 section 8.6), and stays out.
                Some(before) if before == length => return Ok(()),
                Some(_) => return Err(malformed("content-length stands twice, with two values")),
            }
        } else if name == header::COOKIE {
            self.cookies += 1;
        }
        // The map holds 32,768 entries; more fields than that are a misconfigured limit.
        headers
            .try_append(name, value)
            .map(drop)
            .map_err(|_| HeadError::Refused(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE))
    }

    fn finish(self, headers: HeaderMap) -> Result<Head, HeadError> {
        let method = self.method.ok_or(malformed("no :method"))?;
        if method == Method::CONNECT {
            // Section 4.4: a target and nothing else. Nobody is connected to anything here.
            if self.scheme.is_some() || self.path.is_some() || self.authority.is_none() {
                return Err(malformed("CONNECT with :scheme or :path, or without :authority"));
            }
            return Err(HeadError::Refused(StatusCode::NOT_IMPLEMENTED));
        }
        let scheme = self.scheme.ok_or(malformed("no :scheme"))?;
        let path = self.path.ok_or(malformed("no :path"))?;
        let is_asterisk = &path[..] == b"*" && method == Method::OPTIONS;
        if path.first() != Some(&b'/') && !is_asterisk {
            return Err(malformed(":path does not begin with a slash"));
        }
        if path.contains(&b'#') {
            return Err(malformed(":path has a fragment"));
        }
        let mut hosts = headers.get_all(header::HOST).iter();
        let host = hosts.next();
        if hosts.next().is_some() {
            return Err(malformed("host stands twice"));
        }
        let authority = match (self.authority, host) {
            (Some(authority), Some(host)) if host.as_bytes() != &authority[..] => {
                return Err(malformed("host is not :authority"));
            }
            (Some(authority), _) => authority,
            (None, Some(host)) => Bytes::copy_from_slice(host.as_bytes()),
            (None, None) => return Err(malformed("neither :authority nor host")),
        };
        if authority.contains(&b'@') {
            return Err(malformed(":authority has user information"));
        }
        let authority = Authority::from_maybe_shared(authority)
            .map_err(|_| malformed(":authority is not a host and a port"))?;
        // Bytes above 127 are allowed there; what is left are characters that no URI has.
        let path = PathAndQuery::from_maybe_shared(path)
            .map_err(|_| malformed(":path is not a path and a query"))?;
        if scheme != Scheme::HTTPS && scheme != Scheme::HTTP {
            return Err(HeadError::Refused(StatusCode::BAD_REQUEST));
        }
        let mut target = http::uri::Parts::default();
        target.scheme = Some(scheme);
        target.authority = Some(authority);
        target.path_and_query = Some(path);
        let uri =
            Uri::from_parts(target).map_err(|_| HeadError::Refused(StatusCode::BAD_REQUEST))?;
        let (mut parts, ()) = http::Request::new(()).into_parts();
        parts.method = method;
        parts.uri = uri;
        parts.version = Version::HTTP_3;
        parts.headers = headers;
        Ok(Head { parts: Rc::new(parts), content_length: self.content_length })
    }
}

fn field_value(text: &Bytes, range: &Range<usize>) -> Result<HeaderValue, HeadError> {
    check_value(&text[range.clone()])?;
    HeaderValue::from_maybe_shared(text.slice(range.clone()))
        .map_err(|_| malformed("a control character in a field value"))
}

/// A field value neither begins nor ends with white space (RFC 9110 section 5.5).
fn check_value(value: &[u8]) -> Result<(), HeadError> {
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    if blank(value.first()) || blank(value.last()) {
        return Err(malformed("a field value begins or ends with white space"));
    }
    Ok(())
}

/// Fields of HTTP/1.1 connections (RFC 9114 section 4.2).
pub(crate) fn is_connection_specific(name: &HeaderName) -> bool {
    *name == header::CONNECTION
        || *name == header::TRANSFER_ENCODING
        || *name == header::UPGRADE
        || name.as_str() == "keep-alive"
        || name.as_str() == "proxy-connection"
}

fn check_name(name: &HeaderName, value: &[u8]) -> Result<(), HeadError> {
    if is_connection_specific(name) {
        return Err(malformed("a connection-specific field"));
    }
    if *name == header::TE && value != b"trailers" {
        return Err(malformed("te with something else than trailers"));
    }
    Ok(())
}

/// Several cookie fields are one field for those who read them (RFC 9114 section 4.2.1). Empty ones stay out: the
/// white space beside them would stand at an end of the value, where none may be.
fn join_cookies(headers: &mut HeaderMap) -> Result<(), HeadError> {
    let all: Vec<&[u8]> = headers
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .filter(|crumb| !crumb.is_empty())
        .collect();
    let joined = HeaderValue::from_maybe_shared(Bytes::from(all.join(&b"; "[..])))
        .map_err(|_| malformed("a control character in a field value"))?;
    headers.insert(header::COOKIE, joined);
    Ok(())
}

/// A decimal number without a sign.
pub(crate) fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |value, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}
