//! What can go wrong: what was being done, to what, and what to do about it.

use std::io;
use std::path::PathBuf;

use outrider_artifact::{Digest, DigestError, NameError};

use crate::connection::Used;

/// Why something could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// What was asked for is not a digest or a reference.
    #[error(
        "{text:?} is neither a digest (sha256:…) nor an image ([HOST/]NAME[:TAG][@DIGEST]): {why}"
    )]
    Reference {
        /// What was asked for.
        text: String,
        /// What is wrong with it.
        why: NameError,
    },
    /// The edge's URL is of no use.
    #[error("{url}: {why}")]
    Url {
        /// The URL.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// Certificates cannot be read, or TLS not be set up.
    #[error("TLS: {0}")]
    Tls(String),
    /// No connection.
    #[error("no connection to {address} over {protocol}: {why}")]
    Connect {
        /// Where to.
        address: String,
        /// By which protocol.
        protocol: Used,
        /// What happened.
        why: String,
        /// Trying again cannot help: the other side is not whom it should be.
        fatal: bool,
    },
    /// The connection broke.
    #[error("the connection over {protocol} broke: {why}")]
    Broken {
        /// The protocol.
        protocol: Used,
        /// What happened.
        why: String,
    },
    /// The edge refused.
    #[error("the edge answered {status} for {path}{}", .message.as_ref().map(|text| format!(": {text}")).unwrap_or_default())]
    Status {
        /// The status.
        status: u16,
        /// What was asked for.
        path: String,
        /// What the edge said about it.
        message: Option<String>,
        /// When it may be asked again, in seconds.
        retry_after_s: Option<u64>,
    },
    /// An answer that makes no sense.
    #[error("the edge's answer for {path} cannot be used: {why}")]
    Answer {
        /// What was asked for.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The content is not what its name says. It was thrown away.
    #[error("what came for {expected} has the digest {found}; it was thrown away")]
    Digest {
        /// What was asked for.
        expected: Digest,
        /// What came.
        found: Box<Digest>,
    },
    /// A manifest that cannot be used.
    #[error("manifest {digest}: {why}")]
    Manifest {
        /// Its digest.
        digest: Digest,
        /// What is wrong with it.
        why: String,
    },
    /// A file cannot be written or read.
    #[error("{doing} {}: {source}", .path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It was tried often enough.
    #[error("gave up after {attempts} attempts without progress: {last}")]
    Exhausted {
        /// How often it was tried since the last byte came in.
        attempts: u32,
        /// What happened the last time.
        last: Box<ClientError>,
    },
}

impl ClientError {
    /// A [`ClientError::File`] from what was being done.
    pub fn file(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { doing, path, source }
    }

    /// Whether the same request may go well later.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Connect { fatal, .. } => !fatal,
            Self::Broken { .. } => true,
            // 425 is a request that came too early (RFC 8470); 408, 429 and the errors of servers pass.
            Self::Status { status, .. } => {
                matches!(status, 408 | 425 | 429) || (500..=599).contains(status)
            }
            _ => false,
        }
    }

    /// Whether this says something about the connection and nothing about what was asked for.
    pub fn is_of_the_connection(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Broken { .. })
    }
}

impl From<url::ParseError> for ClientError {
    fn from(error: url::ParseError) -> Self {
        Self::Url { url: String::new(), why: error.to_string() }
    }
}

impl From<DigestError> for ClientError {
    fn from(error: DigestError) -> Self {
        Self::Reference { text: String::new(), why: NameError::Digest(error) }
    }
}
