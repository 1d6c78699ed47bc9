//! Responses: the bytes before a body.

use bytes::Bytes;
use http::StatusCode;
use http::response::Parts;

use crate::frame::{FrameHead, kind};
use crate::head::is_connection_specific;
use crate::qpack::encode::{self, Strings};
use crate::qpack::table;
use crate::varint;

/// Room for most heads with a few fields.
const HEAD_BYTES: usize = 256;
/// The type of HEADERS, and a length of 2 bytes: what most need, so that the section is written in its place.
const HEADERS_HEAD_BYTES: usize = 3;
const SHORT_SECTION_BYTES_MAX: usize = (1 << 14) - 1;

/// The HEADERS frame of a response. With `body_len` above 0 also the head of the one DATA frame that is the whole
/// body, so that `write_chunks(&mut [head, body])` sends it without a copy.
///
/// `body_len` is what is sent: `Some(0)` for HEAD, 204 and 304, and `None` where the length is not known yet
/// and each piece gets a [`data_head`] of its own. `content-length` is a header like the others and is
/// neither added nor checked. Connection-specific headers (RFC 9114 section 4.2) are left out. Allocates once
/// for a head of common size.
pub fn encode_head(parts: &Parts, body_len: Option<u64>) -> Bytes {
    let mut bytes = begin_headers();
    status(&mut bytes, parts.status);
    for (name, value) in &parts.headers {
        if !is_connection_specific(name) {
            encode::field(&mut bytes, name.as_str(), value.as_bytes(), Strings::Plain);
        }
    }
    end_headers(&mut bytes);
    if let Some(len) = body_len.filter(|len| *len > 0) {
        FrameHead { kind: kind::DATA, len }.put(&mut bytes);
    }
    Bytes::from(bytes)
}

/// The HEADERS frame of a response with nothing but a status and `content-length: 0`.
pub fn encode_status(code: StatusCode) -> Bytes {
    let mut bytes = begin_headers();
    status(&mut bytes, code);
    encode::field(&mut bytes, "content-length", b"0", Strings::Plain);
    end_headers(&mut bytes);
    Bytes::from(bytes)
}

/// The head of a DATA frame of `len` bytes.
pub fn data_head(len: u64) -> Bytes {
    let mut bytes = Vec::with_capacity(1 + varint::size(len));
    FrameHead { kind: kind::DATA, len }.put(&mut bytes);
    Bytes::from(bytes)
}

fn status(section: &mut Vec<u8>, status: StatusCode) {
    match table::find_status(status.as_u16()) {
        Some(index) => encode::indexed(section, index),
        // 24 is the first entry of the name.
        None => encode::named(section, 24, status.as_str().as_bytes(), Strings::Plain),
    }
}

/// Room for the frame's head, and the prefix of its section.
pub(crate) fn begin_headers() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES);
    bytes.resize(HEADERS_HEAD_BYTES, 0);
    encode::begin(&mut bytes);
    bytes
}

/// Puts the frame's head before the section.
pub(crate) fn end_headers(bytes: &mut Vec<u8>) {
    let len = bytes.len() - HEADERS_HEAD_BYTES;
    if len <= SHORT_SECTION_BYTES_MAX {
        bytes[0] = kind::HEADERS as u8;
        bytes[1..HEADERS_HEAD_BYTES].copy_from_slice(&(0x4000 | len as u16).to_be_bytes());
    } else {
        let mut head = Vec::with_capacity(16);
        FrameHead { kind: kind::HEADERS, len: len as u64 }.put(&mut head);
        bytes.splice(..HEADERS_HEAD_BYTES, head);
    }
}
