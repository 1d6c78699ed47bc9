//! What is asked and answered, in the words of handlers.

use std::sync::Arc;

use outrider_artifact::event::UploadEvent;
use outrider_artifact::{Digest, RepositoryName, Tag};

/// The id of the upload that holds a content, as the cache knows it.
pub type UploadId = [u8; 16];

/// What a repository is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repository {
    /// Nothing is known of it.
    Unknown,
    /// Something was pushed to it once.
    Hosted,
    /// Tags of an upstream are remembered for it.
    Mirrored {
        /// The name of the upstream that was asked last.
        upstream: Arc<str>,
    },
}

/// What a tag points to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagRecord {
    /// The manifest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size_bytes: u64,
    /// Its media type.
    pub media_type: Arc<str>,
    /// Who says so.
    pub origin: TagOrigin,
}

/// Who says what a tag points to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TagOrigin {
    /// It was pushed here.
    Hosted,
    /// An upstream said so.
    Mirrored {
        /// The name of the upstream.
        upstream: Arc<str>,
        /// When it said so last, in milliseconds since 1970.
        checked_unix_ms: u64,
        /// The entity tag that it gave.
        etag: Option<Arc<str>>,
        /// Another edge was told something else since: it is to be asked again, however fresh this is.
        overtaken: bool,
    },
}

/// As what a repository holds a content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// As a blob, of this length.
    pub blob: Option<u64>,
    /// As a manifest.
    pub manifest: Option<ManifestLink>,
}

/// A manifest that a repository holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestLink {
    /// Its length in bytes.
    pub size_bytes: u64,
    /// Its media type.
    pub media_type: Arc<str>,
}

/// Content that was pushed here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hosted {
    /// The content.
    pub digest: Digest,
    /// The upload that holds it.
    pub upload_id: UploadId,
    /// Its length in bytes.
    pub size_bytes: u64,
    /// Its media type when it came first.
    pub media_type: String,
}

/// A page of tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagsPage {
    /// What the repository is.
    pub repository: Repository,
    /// The tags, in byte order.
    pub tags: Vec<String>,
    /// There are more behind the last one.
    pub more: bool,
}

/// A page of referrers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReferrersPage {
    /// The descriptors, in JSON, as they were given.
    pub descriptors: Vec<Vec<u8>>,
    /// The digest of the last one, if there are more behind it.
    pub more_after: Option<Digest>,
}

/// A manifest that is stored and to be named.
#[derive(Clone, Debug)]
pub struct PutManifest {
    /// The repository.
    pub repository: RepositoryName,
    /// The tags that point to it from now on.
    pub tags: Vec<Tag>,
    /// The content.
    pub digest: Digest,
    /// Its length in bytes.
    pub size_bytes: u64,
    /// Its media type.
    pub media_type: String,
    /// The upload that holds it.
    pub upload_id: UploadId,
    /// The caller found that the upload which held this content is gone: this one takes its place.
    pub previous_is_lost: bool,
    /// What it refers to.
    pub references: Vec<Digest>,
    /// Refuse it unless the repository holds all that it refers to.
    pub references_required: bool,
    /// What it is about.
    pub referrer: Option<Referrer>,
    /// Go to the outbox in the same transaction: one for each tag.
    pub events: Vec<UploadEvent>,
}

/// A manifest's part in the list of referrers of its subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Referrer {
    /// What it is about.
    pub subject: Digest,
    /// Its type, by which lists are filtered.
    pub artifact_type: Option<String>,
    /// Its descriptor, in JSON.
    pub descriptor: Vec<u8>,
}

/// A blob that is stored and to be named.
#[derive(Clone, Debug)]
pub struct PutBlob {
    /// The repository.
    pub repository: RepositoryName,
    /// The content.
    pub digest: Digest,
    /// Its length in bytes.
    pub size_bytes: u64,
    /// Its media type, or empty.
    pub media_type: String,
    /// The upload that holds it.
    pub upload_id: UploadId,
    /// The caller found that the upload which held this content is gone: this one takes its place.
    pub previous_is_lost: bool,
    /// Goes to the outbox in the same transaction.
    pub event: Option<UploadEvent>,
}

/// The answer to a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Put {
    /// The upload that holds the content from now on.
    pub upload_id: UploadId,
    /// It is not the one that was given: the content was here, and the new upload can be dropped.
    pub superfluous: bool,
}

/// The answer to a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// The length of the blob in bytes.
    pub size_bytes: u64,
}

/// The answer to the removal of a content from a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// No repository holds the content any more, and this upload, which held it, can be deleted.
    /// Only this one: the same content may come back by another upload before it is.
    pub unreferenced: Option<UploadId>,
    /// How many tags went with it.
    pub tags: usize,
}

/// Tags that are set for all edges of a fleet.
#[derive(Clone, Debug)]
pub struct SharedTags {
    /// The repository.
    pub repository: RepositoryName,
    /// The tags.
    pub tags: Vec<Tag>,
    /// The manifest. It is stored and named here.
    pub digest: Digest,
    /// Its length in bytes.
    pub size_bytes: u64,
    /// Its media type.
    pub media_type: String,
    /// Other edges that have it, and all that it names, on their disks.
    pub others: Vec<u64>,
}

/// What a tag points to at an upstream.
#[derive(Clone, Debug)]
pub struct MirroredTag {
    /// The repository, as it is called here.
    pub repository: RepositoryName,
    /// The tag.
    pub tag: Tag,
    /// The name of the upstream.
    pub upstream: String,
    /// The manifest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size_bytes: u64,
    /// Its media type.
    pub media_type: String,
    /// When the upstream said so, in milliseconds since 1970.
    pub checked_unix_ms: u64,
    /// The entity tag that it gave.
    pub etag: Option<String>,
}

/// The state of the outbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutboxStatus {
    /// How many events wait.
    pub pending: u64,
    /// How many were dropped since the file was made, since nobody took them.
    pub dropped: u64,
    /// The number that the last event was given.
    pub given: u64,
    /// Known by it are the numbers of this file: those of another file have another one.
    pub epoch: u64,
    /// Grows with every opening of the file.
    pub opening: u64,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxRecord {
    /// Its number: one more than the event before.
    pub sequence: u64,
    /// The archive, as [`UploadEvent::to_archive`] made it.
    pub archive: Vec<u8>,
}
