//! What can go wrong with names, and what the registry's protocol calls it.

use std::path::PathBuf;
use std::time::Duration;

use outrider_artifact::{Digest, RepositoryName};

use super::OverLimit;
use crate::protocol::{ApiError, Code};

/// How many missing references an error names.
const REFERENCES_NAMED_MAX: usize = 16;

/// Why names were not answered or not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NamesError {
    /// A push to a repository that is mirrored.
    #[error(
        "{repository} is mirrored from {upstream}, and a mirrored repository cannot be pushed to; \
         push under another name"
    )]
    Mirrored {
        /// The repository.
        repository: RepositoryName,
        /// The name of the upstream.
        upstream: String,
    },
    /// A tag of an upstream for a repository that is hosted.
    #[error("{repository} is hosted here, so that no upstream has a say in its tags")]
    Hosted {
        /// The repository.
        repository: RepositoryName,
    },
    /// A manifest refers to what the repository does not hold.
    #[error("the manifest refers to {} blobs or manifests that {repository} does not hold; push them first", .missing.len())]
    ReferencesUnknown {
        /// The repository.
        repository: RepositoryName,
        /// What is missing.
        missing: Vec<Digest>,
    },
    /// Content with this digest is hosted with another length: one of the two was never hashed.
    #[error("{digest} is hosted with {hosted} bytes, and was now said to have {given}")]
    SizeConflict {
        /// The content.
        digest: Digest,
        /// Its length here.
        hosted: u64,
        /// Its length as given.
        given: u64,
    },
    /// The customer may not have so much stored.
    #[error(transparent)]
    OverLimit(#[from] OverLimit),
    /// Too many requests wait.
    #[error("too many requests wait for the names database; try again in a second")]
    Busy,
    /// It is shutting down, or its thread ended.
    #[error("the names database is closed")]
    Closed,
    /// The disk failed, or is full. What was asked for was not done.
    #[error("the names database cannot be read or written: {0}")]
    Storage(String),
    /// The disk failed, and the file cannot be opened again yet: whether what was asked for was done
    /// is not known. It may be found later, so that a put must be made again.
    #[error("the names database failed and may or may not have kept this: {0}")]
    Unsettled(String),
    /// The control plane has no majority, or cannot be reached. What was asked for was perhaps done.
    #[error("tags are set by the control plane, which is not available: {0}")]
    Fleet(String),
    /// The control plane does not want it.
    #[error("the control plane refuses this tag: {0}")]
    FleetRefused(String),
    /// Another process has it open.
    #[error("{} is open in another process; stop that one, or use another data directory", .0.display())]
    InUse(PathBuf),
    /// The file cannot be opened.
    #[error("{} cannot be opened: {reason}", .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Something that was pushed was written by another version of this software.
    #[error(
        "{what} in the names database has version {found}, this software reads version {known}; \
         start the version that wrote it"
    )]
    Version {
        /// The kind of record and its key.
        what: String,
        /// The version that stood there.
        found: u16,
        /// The version that is understood.
        known: u16,
    },
    /// Something that was pushed does not validate.
    #[error("{what} in the names database is damaged; restore meta.redb from a copy")]
    Damaged {
        /// The kind of record and its key.
        what: String,
    },
}

/// `DENIED`, which docker, podman and skopeo show with the message and do not try again.
impl From<OverLimit> for ApiError {
    fn from(over: OverLimit) -> Self {
        let detail = serde_json::json!({
            "customer": over.customer, "limit_bytes": over.limit_bytes, "used_bytes": over.used_bytes,
        });
        Self::new(Code::Denied, over.to_string()).with_detail(detail)
    }
}

impl From<NamesError> for ApiError {
    fn from(error: NamesError) -> Self {
        let message = error.to_string();
        match error {
            NamesError::Mirrored { .. } | NamesError::Hosted { .. } => {
                Self::new(Code::Denied, message)
            }
            NamesError::ReferencesUnknown { missing, .. } => {
                let named = missing.iter().take(REFERENCES_NAMED_MAX).map(Digest::to_string);
                Self::new(Code::ManifestBlobUnknown, message)
                    .with_detail(serde_json::json!({ "digests": named.collect::<Vec<_>>() }))
            }
            NamesError::OverLimit(over) => over.into(),
            NamesError::SizeConflict { .. } => Self::new(Code::SizeInvalid, message),
            NamesError::Busy
            | NamesError::Closed
            | NamesError::Storage(_)
            | NamesError::Fleet(_)
            | NamesError::Unsettled(_) => {
                Self::new(Code::Unavailable, message).with_retry_after(Duration::from_secs(1))
            }
            NamesError::FleetRefused(_) => Self::new(Code::Denied, message),
            NamesError::InUse(_)
            | NamesError::Open { .. }
            | NamesError::Version { .. }
            | NamesError::Damaged { .. } => Self::new(Code::Unknown, message),
        }
    }
}
