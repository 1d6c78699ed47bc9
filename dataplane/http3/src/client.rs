//! The client's half, as small as a load generator wants it: heads of requests out, responses in.

use bytes::Bytes;
use http::Method;

use crate::error::{ConnectionError, StreamError};

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
pub fn encode_head(_request: &RequestHead<'_>) -> Bytes {
    unimplemented!()
}

/// What a client writes on its control stream: the type and SETTINGS.
pub fn control_preface() -> Bytes {
    unimplemented!()
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
    /// The fields, decoded anew, `:status` left out. Calls `each` with name and value.
    pub fn fields(&self, _each: impl FnMut(&[u8], &[u8])) {
        let _ = &self.section;
        unimplemented!()
    }
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

/// One response, as its chunks come.
#[derive(Debug, Default)]
pub struct Response {
    head: Option<Head>,
}

impl Response {
    /// A response; `head_only` for the answer to HEAD, whose `content-length` is not that of a body. A field section
    /// of more than `section_bytes_max` encoded bytes is an error.
    pub fn new(_head_only: bool, _section_bytes_max: usize) -> Self {
        unimplemented!()
    }

    /// A chunk of the stream, in order. `body` gets the pieces of the body in it, without a copy; a chunk that is
    /// all body is passed on as it is. Interim responses (1xx) are skipped.
    ///
    /// # Errors
    /// [`ResponseError`]; the response is of no use then.
    pub fn on_data(&mut self, _data: Bytes, _body: impl FnMut(Bytes)) -> Result<(), ResponseError> {
        unimplemented!()
    }

    /// The stream has ended.
    ///
    /// # Errors
    /// [`ResponseError`] if the response is not whole.
    pub fn on_end(&mut self) -> Result<(), ResponseError> {
        unimplemented!()
    }

    /// The head, as soon as it is there.
    pub fn head(&self) -> Option<&Head> {
        self.head.as_ref()
    }

    /// Bytes of the body so far.
    pub fn body_bytes(&self) -> u64 {
        unimplemented!()
    }
}
