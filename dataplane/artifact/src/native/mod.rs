//! The native protocol (ALPN [`ALPN`]): a client asks on a bidirectional stream of QUIC for a list of digests, and
//! gets for each of them, in order, a record of what it is, followed by its raw bytes.
//!
//! `docs/NATIVE.md` describes it byte by byte. This module makes and reads those bytes; it does no I/O.
//!
//! - [`Request`] and [`Want`], [`Answer`], [`Refusal`]: what is said, with their bounds.
//! - [`Request::encode`], [`Answer::encode`], [`Refusal::encode`]: the frames.
//! - [`Reader`]: frames from the chunks of a stream, as they come.

mod answer;
mod frame;
mod reader;
mod request;

pub use answer::{Answer, TOTAL_UNKNOWN, Tier};
pub use frame::{
    CONTENT_WRONG, FRAME_HEAD_BYTES, FrameKind, MAGIC, Refusal, RefusalCode, SOURCE_BROKE,
    encode_credential,
};
pub use reader::{Item, Reader};
pub use request::{Request, Want, WantKind};

#[cfg(test)]
mod tests;

/// The protocol's name in TLS.
pub const ALPN: &[u8] = b"outrider/1";

/// The version that is written, and the only one that is read.
pub const NATIVE_VERSION: u16 = 1;

/// The largest archive of a frame, in bytes.
pub const ARCHIVE_BYTES_MAX: usize = 64 << 10;
/// The largest archive of a request: the longest names and [`WANTS_MAX`] wants have 23,246 bytes.
pub const REQUEST_ARCHIVE_BYTES_MAX: usize = 24 << 10;
/// Digests that one request may ask for.
pub const WANTS_MAX: usize = 256;
/// The longest repository name, as in [`crate::name`], and the longest name of an upstream.
pub const NAME_BYTES_MAX: usize = crate::name::REPOSITORY_BYTES_MAX;
/// The longest customer, in bytes.
pub const CUSTOMER_BYTES_MAX: usize = 128;
/// The longest region, in bytes.
pub const REGION_BYTES_MAX: usize = 32;
/// The longest token, in bytes.
pub const CREDENTIAL_BYTES_MAX: usize = 8 << 10;
/// The longest media type, in bytes.
pub const MEDIA_TYPE_BYTES_MAX: usize = 255;
/// The longest text of an error, in bytes. A longer one is cut off when it is written.
pub const ERROR_BYTES_MAX: usize = 512;

/// Why bytes are not of this protocol. [`NativeError::refusal`] is what to answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NativeError {
    /// They do not begin with [`MAGIC`].
    #[error("this is not a frame of the native protocol")]
    Magic,
    /// Another version.
    #[error("the frame has version {found}, this software speaks version {NATIVE_VERSION}")]
    Version {
        /// The version in the frame.
        found: u16,
    },
    /// A frame of a kind that is not known, or that the other side does not send.
    #[error("a frame of kind {found} is not expected here")]
    Kind {
        /// The kind in the frame.
        found: u8,
    },
    /// The checksum is another.
    #[error("the checksum of the frame is wrong")]
    Checksum,
    /// More than this protocol allows.
    #[error("{what} is longer than {max}")]
    Limit {
        /// What is too long.
        what: &'static str,
        /// What is allowed.
        max: usize,
    },
    /// The record does not validate, or says what cannot be.
    #[error("the record is damaged: {0}")]
    Record(&'static str),
}

impl NativeError {
    /// The frame that tells the other side.
    pub fn refusal(&self) -> Refusal {
        let code = match self {
            Self::Version { .. } => RefusalCode::VERSION,
            Self::Magic | Self::Kind { .. } => RefusalCode::FRAME,
            Self::Checksum => RefusalCode::CHECKSUM,
            Self::Limit { .. } => RefusalCode::LIMIT,
            Self::Record(_) => RefusalCode::RECORD,
        };
        Refusal { code, text: self.to_string() }
    }
}

/// A text of a record: bounded, and UTF-8.
fn text(bytes: Vec<u8>, what: &'static str, max: usize) -> Result<String, NativeError> {
    if bytes.len() > max {
        return Err(NativeError::Limit { what, max });
    }
    String::from_utf8(bytes).map_err(|_| NativeError::Record("a text is not UTF-8"))
}

/// The bytes of a text that is to be written.
fn bounded(text: &str, what: &'static str, max: usize) -> Result<Vec<u8>, NativeError> {
    if text.len() > max { Err(NativeError::Limit { what, max }) } else { Ok(text.into()) }
}

/// As much of a text as an error may have.
fn shortened(text: &str) -> &str {
    &text[..text.floor_char_boundary(ERROR_BYTES_MAX)]
}
