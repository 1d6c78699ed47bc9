//! Bodies: what comes in, and why one ends early.

use bytes::Bytes;

/// Why a request body ended early.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The client went away, or broke the protocol.
    #[error("the request body was cut off: {0}")]
    Cut(String),
    /// The client sent too slowly.
    #[error("the request body came in too slowly")]
    Slow,
}

/// Why a response body cannot be finished. The transport cuts the response off.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the response body cannot be finished: {reason}")]
pub struct BodyFault {
    reason: String,
}

impl BodyFault {
    /// A fault with its reason, for the log.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into() }
    }
}

/// The body of a request.
#[derive(Debug)]
pub struct RequestBody {}

impl RequestBody {
    /// The next bytes; None at the end.
    pub async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        unimplemented!()
    }

    /// How many bytes are still to come, if the client said so.
    pub fn size_hint(&self) -> Option<u64> {
        unimplemented!()
    }
}
