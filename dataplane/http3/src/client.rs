//! The client's half, as small as a load generator wants it: heads of requests out, responses in.

use bytes::{Buf, Bytes};
use http::Method;

use crate::budget::Budget;
use crate::error::{Code, ConnectionError, StreamError};
use crate::frame::{FrameHead, HeadReader, kind};
use crate::head::number;
use crate::qpack::decode::Decoder;
use crate::qpack::encode::{self, Strings};
use crate::response::{begin_headers, end_headers};
use crate::settings::{self, Settings};
use crate::uni::{Role, UniEvent, UniStreams};

/// Largest field section that a client here takes, advertised.
pub const FIELD_SECTION_BYTES_MAX: u64 = 64 << 10;
/// Interim responses (1xx) before a response, at most.
const INTERIM_MAX: u8 = 16;
/// Frames and bytes of no use in one response, and on the server's unidirectional streams.
const SKIPPED_FRAMES_MAX: u64 = 1_000;
const SKIPPED_BYTES_MAX: u64 = 1 << 20;
const UNI_STREAMS_MAX: u64 = 64;
const SETTINGS_BYTES_MAX: usize = 4 << 10;

/// What a request's HEADERS frame is made from.
#[derive(Clone, Debug)]
pub struct RequestHead<'a> {
    /// Any method but CONNECT.
    pub method: &'a Method,
    /// Host and port.
    pub authority: &'a str,
    /// Path and query.
    pub path: &'a str,
    /// More fields: names in lower case.
    pub fields: &'a [(&'a str, &'a str)],
}

impl<'a> RequestHead<'a> {
    /// A GET without further fields.
    pub const fn get(authority: &'a str, path: &'a str) -> Self {
        Self { method: &Method::GET, authority, path, fields: &[] }
    }
}

/// The HEADERS frame of a request over https. It is the whole request if the stream is finished after it.
/// Nothing is checked: a server says what is wrong.
pub fn encode_head(request: &RequestHead<'_>) -> Bytes {
    let mut bytes = begin_headers();
    let method = match *request.method {
        Method::DELETE => Some(16),
        Method::GET => Some(17),
        Method::HEAD => Some(18),
        Method::OPTIONS => Some(19),
        Method::POST => Some(20),
        Method::PUT => Some(21),
        _ => None,
    };
    match method {
        Some(index) => encode::indexed(&mut bytes, index),
        None => {
            encode::named(&mut bytes, 15, request.method.as_str().as_bytes(), Strings::Plain);
        }
    }
    // :scheme https, :authority, :path.
    encode::indexed(&mut bytes, 23);
    encode::named(&mut bytes, 0, request.authority.as_bytes(), Strings::Plain);
    encode::named(&mut bytes, 1, request.path.as_bytes(), Strings::Plain);
    for (name, value) in request.fields {
        encode::field(&mut bytes, name, value.as_bytes(), Strings::Plain);
    }
    end_headers(&mut bytes);
    Bytes::from(bytes)
}

/// What a client writes on its control stream: the type and SETTINGS.
pub fn control_preface() -> Bytes {
    settings::preface(FIELD_SECTION_BYTES_MAX)
}

/// The head of a response.
#[derive(Clone, Debug)]
pub struct Head {
    /// The status.
    pub status: u16,
    /// As it was said.
    pub content_length: Option<u64>,
    section: Bytes,
}

impl Head {
    /// Reads a field section. Interim responses are heads too.
    fn parse(section: Bytes) -> Result<Self, ResponseError> {
        let malformed = |reason| ResponseError::Stream(StreamError::malformed(reason));
        let (mut status, mut content_length) = (None, None);
        let mut fields_began = false;
        let mut problem = None;
        let mut note = |reason| {
            problem.get_or_insert(malformed(reason));
        };
        each_field(&section, |name, value| match name {
            b":status" if status.is_some() || fields_began => note("a second or late :status"),
            b":status" => {
                let three = value.len() == 3;
                status = number(value).filter(|status| three && (100..=999).contains(status));
                if status.is_none() {
                    note(":status is not a number of three digits");
                }
            }
            [b':', ..] => note("a pseudo-header field that responses do not have"),
            name => {
                fields_began = true;
                if name.is_empty() || name.iter().any(u8::is_ascii_uppercase) {
                    note("a field name is not a token in lower case");
                }
                if matches!(
                    name,
                    b"connection"
                        | b"keep-alive"
                        | b"proxy-connection"
                        | b"transfer-encoding"
                        | b"upgrade"
                ) {
                    note("a connection-specific field");
                }
                if name == b"content-length" {
                    match (content_length, number(value)) {
                        (None, Some(length)) => content_length = Some(length),
                        (before, length) if before == length && length.is_some() => {}
                        _ => note("content-length is not one number"),
                    }
                }
            }
        })?;
        if let Some(problem) = problem {
            return Err(problem);
        }
        let status = status.ok_or(malformed("no :status"))? as u16;
        if status == 101 {
            return Err(malformed("101 is not for HTTP/3"));
        }
        Ok(Self { status, content_length, section })
    }

    /// Calls `each` with name and value of every field, `:status` left out. Decodes them anew.
    pub fn fields(&self, mut each: impl FnMut(&[u8], &[u8])) {
        // It was decoded before: there are no errors.
        let _ = each_field(&self.section, |name, value| {
            if name.first() != Some(&b':') {
                each(name, value);
            }
        });
    }
}

/// Decodes a field section.
fn each_field(section: &[u8], mut each: impl FnMut(&[u8], &[u8])) -> Result<(), ConnectionError> {
    let failed = |error: crate::qpack::decode::DecodeError| {
        ConnectionError::new(Code::QPACK_DECOMPRESSION_FAILED, error.reason())
    };
    let mut text = Vec::new();
    let mut decoder = Decoder::new(section).map_err(failed)?;
    while let Some(line) = decoder.next_line(&mut text).map_err(failed)? {
        let (name, value) = line.resolve(&text);
        each(name, value);
        text.clear();
    }
    Ok(())
}

/// Why a response cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResponseError {
    /// The connection must be closed.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The stream must be reset.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

#[derive(Debug)]
enum Reading {
    Head(HeadReader),
    Section { left: usize, partial: Vec<u8> },
    Data { left: u64 },
    Skipped { left: u64 },
}

/// One response, as its chunks come.
#[derive(Debug)]
pub struct Response {
    head_only: bool,
    section_bytes_max: usize,
    reading: Reading,
    head: Option<Head>,
    trailers_came: bool,
    interim_left: u8,
    /// Payloads of all DATA frames that have begun, and what of it has come.
    announced_bytes: u64,
    body_bytes: u64,
    budget: Budget,
}

impl Response {
    /// A response; `head_only` for the answer to HEAD, whose `content-length` is not that of a body. A field section
    /// of more than `section_bytes_max` encoded bytes is an error.
    pub const fn new(head_only: bool, section_bytes_max: usize) -> Self {
        Self {
            head_only,
            section_bytes_max,
            reading: Reading::Skipped { left: 0 },
            head: None,
            trailers_came: false,
            interim_left: INTERIM_MAX,
            announced_bytes: 0,
            body_bytes: 0,
            budget: Budget::new(SKIPPED_FRAMES_MAX, SKIPPED_BYTES_MAX),
        }
    }

    /// A chunk of the stream, in order. `body` gets the pieces of the body in it, without a copy; a chunk that is
    /// all body is passed on as it is. Interim responses (1xx) are skipped.
    ///
    /// # Errors
    /// [`ResponseError`]; the response is of no use then.
    pub fn on_data(
        &mut self,
        mut data: Bytes,
        mut body: impl FnMut(Bytes),
    ) -> Result<(), ResponseError> {
        while !data.is_empty() {
            match &mut self.reading {
                Reading::Data { left: 0 } | Reading::Skipped { left: 0 } => {
                    self.reading = Reading::Head(HeadReader::default());
                }
                Reading::Head(reader) => {
                    let Some(head) = reader.read(&mut data) else { return Ok(()) };
                    self.frame(head, &mut data)?;
                }
                Reading::Section { left, partial } => {
                    let len = data.len().min(*left);
                    partial.extend_from_slice(&data[..len]);
                    data.advance(len);
                    *left -= len;
                    if *left == 0 {
                        let section = Bytes::from(std::mem::take(partial));
                        self.section(section)?;
                    }
                }
                Reading::Data { left } => {
                    if data.len() as u64 <= *left {
                        *left -= data.len() as u64;
                        self.body_bytes += data.len() as u64;
                        body(data);
                        return Ok(());
                    }
                    // Shorter than the chunk.
                    let len = *left as usize;
                    *left = 0;
                    self.body_bytes += len as u64;
                    body(data.split_to(len));
                }
                Reading::Skipped { left } => {
                    let len = data.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    self.budget.bytes(len)?;
                    data.advance(len);
                    *left -= len as u64;
                }
            }
        }
        Ok(())
    }

    fn frame(&mut self, head: FrameHead, data: &mut Bytes) -> Result<(), ResponseError> {
        let unexpected =
            |reason| Err(ConnectionError::new(Code::H3_FRAME_UNEXPECTED, reason).into());
        match head.kind {
            kind::HEADERS if self.trailers_came => unexpected("HEADERS behind trailers"),
            kind::HEADERS => {
                let len = usize::try_from(head.len).unwrap_or(usize::MAX);
                if len > self.section_bytes_max {
                    let code = Code::H3_EXCESSIVE_LOAD;
                    return Err(StreamError::new(code, "a field section is too large").into());
                }
                if data.len() >= len {
                    let section = data.split_to(len);
                    return self.section(section);
                }
                self.reading = Reading::Section { left: len, partial: Vec::with_capacity(len) };
                Ok(())
            }
            kind::DATA => {
                let Some(response) = &self.head else { return unexpected("DATA before HEADERS") };
                if self.trailers_came {
                    return unexpected("DATA behind trailers");
                }
                if head.len == 0 {
                    return Ok(self.budget.frame()?);
                }
                self.announced_bytes = self.announced_bytes.saturating_add(head.len);
                if self.head_only || matches!(response.status, 204 | 304) {
                    return Err(StreamError::malformed("a body where there can be none").into());
                }
                if response.content_length.is_some_and(|length| self.announced_bytes > length) {
                    return Err(StreamError::malformed("the body is longer than said").into());
                }
                self.reading = Reading::Data { left: head.len };
                Ok(())
            }
            kind::PUSH_PROMISE => {
                let code = Code::H3_ID_ERROR;
                Err(ConnectionError::new(code, "a push that was not allowed").into())
            }
            kind::CANCEL_PUSH | kind::SETTINGS | kind::GOAWAY | kind::MAX_PUSH_ID => {
                unexpected("a frame that responses do not have")
            }
            kind if kind::is_reserved(kind) => unexpected("a frame type of HTTP/2"),
            _ => {
                self.budget.frame()?;
                self.reading = Reading::Skipped { left: head.len };
                Ok(())
            }
        }
    }

    fn section(&mut self, section: Bytes) -> Result<(), ResponseError> {
        self.reading = Reading::Head(HeadReader::default());
        if self.head.is_some() {
            self.trailers_came = true;
            let mut is_wrong = false;
            each_field(&section, |name, _| is_wrong |= name.first().is_none_or(|c| *c == b':'))?;
            if is_wrong {
                return Err(StreamError::malformed("a pseudo-header field in trailers").into());
            }
            return Ok(());
        }
        let head = Head::parse(section)?;
        if head.status < 200 {
            self.interim_left = self
                .interim_left
                .checked_sub(1)
                .ok_or(StreamError::new(Code::H3_EXCESSIVE_LOAD, "too many interim responses"))?;
            return Ok(());
        }
        self.head = Some(head);
        Ok(())
    }

    /// The stream has ended.
    ///
    /// # Errors
    /// [`ResponseError`] if the response is not whole.
    pub fn on_end(&mut self) -> Result<(), ResponseError> {
        match &self.reading {
            Reading::Head(reader) if reader.is_empty() => {}
            Reading::Data { left: 0 } | Reading::Skipped { left: 0 } => {}
            _ => {
                let code = Code::H3_FRAME_ERROR;
                return Err(ConnectionError::new(code, "a stream ends inside of a frame").into());
            }
        }
        let Some(head) = &self.head else {
            return Err(StreamError::malformed("the stream ends before a response").into());
        };
        let has_body = !self.head_only && !matches!(head.status, 204 | 304);
        if has_body && head.content_length.is_some_and(|length| length != self.body_bytes) {
            return Err(StreamError::malformed("the body is shorter than said").into());
        }
        Ok(())
    }

    /// The head, as soon as it is there.
    pub const fn head(&self) -> Option<&Head> {
        self.head.as_ref()
    }

    /// Bytes of the body so far.
    pub const fn body_bytes(&self) -> u64 {
        self.body_bytes
    }
}

/// What a server says about the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerEvent {
    /// Requests on streams from `id` on are not answered: repeat them elsewhere.
    GoAway {
        /// A request stream.
        id: u64,
    },
    /// Stop reading this unidirectional stream, with this code.
    Stop {
        /// The stream.
        stream: u64,
        /// For STOP_SENDING.
        code: Code,
    },
}

/// The server's unidirectional streams, as a client sees them.
#[derive(Debug)]
pub struct ServerStreams {
    uni: UniStreams,
    budget: Budget,
}

impl Default for ServerStreams {
    fn default() -> Self {
        Self {
            uni: UniStreams::new(Role::Client, UNI_STREAMS_MAX, SETTINGS_BYTES_MAX),
            budget: Budget::new(SKIPPED_FRAMES_MAX, SKIPPED_BYTES_MAX),
        }
    }
}

impl ServerStreams {
    /// A chunk of one of them.
    ///
    /// # Errors
    /// What ends the connection.
    pub fn on_data(
        &mut self,
        stream: u64,
        data: Bytes,
        fin: bool,
        mut each: impl FnMut(ServerEvent),
    ) -> Result<(), ConnectionError> {
        self.uni.on_data(stream, data, fin, &mut self.budget, |event| {
            each(match event {
                UniEvent::Stop { stream, code } => ServerEvent::Stop { stream, code },
                UniEvent::GoAway { id } => ServerEvent::GoAway { id },
            });
        })
    }

    /// One of them was reset.
    ///
    /// # Errors
    /// If it was one that must stay open.
    pub fn on_reset(&mut self, stream: u64) -> Result<(), ConnectionError> {
        self.uni.on_reset(stream)
    }

    /// What the server has set, once its SETTINGS are there.
    pub const fn settings(&self) -> Option<&Settings> {
        self.uni.settings()
    }
}
