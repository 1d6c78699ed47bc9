//! What can go wrong in the cache, with what was being done and to what.
//!
//! A damaged, missing or evicted chunk is *not* an error: it is a miss.

use std::io;
use std::path::PathBuf;

use crate::upload::UploadId;

/// The errors of this crate. Cheap to clone: one failed write may answer several waiters.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// Every slot is pinned by slow readers (or too many wait for one already). Retry later.
    #[error("the memory cache is full of chunks that are in use; try again")]
    Busy,
    /// There is no room for another upload. Nothing that is stored was touched.
    #[error("the store is full: no room for another upload")]
    StoreFull,
    /// Uploads need a disk, and none is configured or none is left.
    #[error("uploads need an SSD store, and there is none")]
    NoDisk,
    /// Another size is known for this digest.
    #[error("this digest is known with {known} bytes, not {offered}")]
    SizeDiffers {
        /// The size that is known, in bytes.
        known: u64,
        /// The size that was offered, in bytes.
        offered: u64,
    },
    /// The object is larger than the configured limit.
    #[error("an object of {size} bytes is larger than the limit of {limit}")]
    TooLarge {
        /// What was asked for, in bytes.
        size: u64,
        /// The limit, in bytes.
        limit: u64,
    },
    /// More distinct media types (or origins) are alive than the index can name.
    #[error("too many distinct {0} are cached at once")]
    TooMany(&'static str),
    /// No upload of this id came back from the disks.
    #[error("the stored upload {0} is not on the disks any more")]
    UploadMissing(UploadId),
    /// An upload came back with a part missing or damaged.
    #[error("the stored upload {id} is damaged: {detail}")]
    UploadDamaged {
        /// Which upload.
        id: UploadId,
        /// What is wrong with it.
        detail: String,
    },
    /// A write or a flush of an upload failed.
    #[error("writing to stripe {stripe} failed: {kind}")]
    Write {
        /// The stripe that failed.
        stripe: u16,
        /// The system's reason.
        kind: io::ErrorKind,
    },
    /// The configuration cannot work.
    #[error("cache configuration: {0}")]
    Config(String),
    /// A stripe file is not one that this configuration or version can use. It was not touched.
    #[error("{}: {problem}. {advice}", .path.display())]
    Stripe {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        advice: &'static str,
    },
    /// The operating system refused something at start.
    #[error("{what}: {kind} ({detail})")]
    Os {
        /// What was being done, and to what.
        what: String,
        /// The kind of error.
        kind: io::ErrorKind,
        /// The system's text.
        detail: String,
    },
}

impl CacheError {
    /// Wraps an error of the operating system.
    pub(crate) fn os(what: impl Into<String>, error: &io::Error) -> Self {
        Self::Os { what: what.into(), kind: error.kind(), detail: error.to_string() }
    }
}
