//! What goes wrong: with the whole connection, or with one request.

use std::fmt;

/// An error code of HTTP/3 (RFC 9114 section 8.1) or QPACK (RFC 9204 section 6), as it stands in
/// CONNECTION_CLOSE, RESET_STREAM and STOP_SENDING.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code(pub u64);

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $value:literal,)*) => {
        impl Code {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            /// The name in the RFC, or nothing for a code that is not in it.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

codes! {
    /// There is no error: a graceful end.
    H3_NO_ERROR = 0x100,
    /// A violation of the protocol that has no code of its own.
    H3_GENERAL_PROTOCOL_ERROR = 0x101,
    /// Our own fault.
    H3_INTERNAL_ERROR = 0x102,
    /// A stream that the peer may not open.
    H3_STREAM_CREATION_ERROR = 0x103,
    /// A stream that must stay open was closed.
    H3_CLOSED_CRITICAL_STREAM = 0x104,
    /// A frame where it must not stand.
    H3_FRAME_UNEXPECTED = 0x105,
    /// A frame of the wrong shape or length.
    H3_FRAME_ERROR = 0x106,
    /// The peer costs more than it may.
    H3_EXCESSIVE_LOAD = 0x107,
    /// A stream or push ID that cannot be.
    H3_ID_ERROR = 0x108,
    /// A setting that cannot be.
    H3_SETTINGS_ERROR = 0x109,
    /// The control stream does not begin with SETTINGS.
    H3_MISSING_SETTINGS = 0x10a,
    /// The request was not looked at and may be repeated.
    H3_REQUEST_REJECTED = 0x10b,
    /// The request or its answer is not wanted any more.
    H3_REQUEST_CANCELLED = 0x10c,
    /// The stream ended before the request was whole.
    H3_REQUEST_INCOMPLETE = 0x10d,
    /// The message is malformed (RFC 9114 section 4.1.2).
    H3_MESSAGE_ERROR = 0x10e,
    /// The connection of a CONNECT failed.
    H3_CONNECT_ERROR = 0x10f,
    /// The peer should come back with another version of HTTP.
    H3_VERSION_FALLBACK = 0x110,
    /// A field section cannot be decoded.
    QPACK_DECOMPRESSION_FAILED = 0x200,
    /// An instruction on the encoder stream cannot be followed.
    QPACK_ENCODER_STREAM_ERROR = 0x201,
    /// An instruction on the decoder stream cannot be followed.
    QPACK_DECODER_STREAM_ERROR = 0x202,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "{:#x}", self.0),
        }
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The connection is over: close it with this code and this reason. Nothing more may be asked of a
/// [`Connection`](crate::Connection) that has returned one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {reason}")]
pub struct ConnectionError {
    /// For CONNECTION_CLOSE.
    pub code: Code,
    /// What the peer did, for CONNECTION_CLOSE and the log.
    pub reason: &'static str,
}

/// One request is over: reset our side of its stream and stop the other with this code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {reason}")]
pub struct StreamError {
    /// For RESET_STREAM and STOP_SENDING.
    pub code: Code,
    /// What was wrong, for the log.
    pub reason: &'static str,
}

impl ConnectionError {
    pub(crate) const fn new(code: Code, reason: &'static str) -> Self {
        Self { code, reason }
    }
}

impl StreamError {
    pub(crate) const fn new(code: Code, reason: &'static str) -> Self {
        Self { code, reason }
    }

    /// A malformed message.
    pub(crate) const fn malformed(reason: &'static str) -> Self {
        Self::new(Code::H3_MESSAGE_ERROR, reason)
    }
}
