//! Responses: the bytes before a body.

use bytes::Bytes;
use http::StatusCode;
use http::response::Parts;

/// The HEADERS frame of a response. With `body_len` above 0 also the head of the one DATA frame that is the whole
/// body, so that `write_chunks(&mut [head, body])` sends it without a copy.
///
/// `body_len` is what is sent: `Some(0)` for HEAD, 204 and 304, and `None` where the length is not known yet
/// and each piece gets a [`data_head`] of its own. `content-length` is a header like the others and is
/// neither added nor checked. Connection-specific headers (RFC 9114 section 4.2) are left out. Allocates once.
pub fn encode_head(_parts: &Parts, _body_len: Option<u64>) -> Bytes {
    unimplemented!()
}

/// The HEADERS frame of a response with nothing but a status and `content-length: 0`.
pub fn encode_status(_status: StatusCode) -> Bytes {
    unimplemented!()
}

/// The head of a DATA frame of `len` bytes.
pub fn data_head(_len: u64) -> Bytes {
    unimplemented!()
}
