//! Names: what a repository is, what its tags point to, what content it holds, and the events that
//! tell of it.
//!
//! A repository is *hosted* from its first push on, or *mirrored* from an upstream, never both. What
//! a tag of a mirrored repository pointed to when the upstream was last asked is remembered, within
//! a bound; what was pushed is kept until it is deleted. Names hold no content: they say which
//! upload holds it, and the cache has the bytes.
//!
//! The trait [`Names`] is what handlers are written against. [`LocalNames`] is the database of one
//! box: one file, owned by one thread, which answers shards over their channels and commits all
//! writes that wait in one transaction. An answer to a write comes after its commit is on the disk.
//! In a fleet, [`FleetNames`] stands before it: tags belong to all edges then, and content to each.
//!
//! - [`model`]: what is asked and answered.
//! - [`query`], [`command`]: each question and each change, as functions of the tables.
//! - [`record`]: what is stored, as rkyv archives behind a version number.
//! - [`store`]: the database file, its tables, and what is checked when it is opened.
//! - [`thread`]: the queue, group commits, and what is done when the disk fails.
//! - [`placement`]: on how many edges what is pushed has to be. [`fleet`]: what is known of the fleet's tags. [`shared`]: the names of an edge that may be in one.
//! - [`local`]: the client that shards use. [`recent`]: what they were answered a short while ago.
//! - [`stored`]: what each customer has stored. [`metrics`]: what is counted.

mod command;
mod error;
mod fleet;
mod local;
pub mod metrics;
mod model;
mod placement;
mod query;
mod recent;
mod record;
mod shared;
mod store;
mod stored;
mod thread;

pub use error::NamesError;
pub use fleet::{AskAgain, Fleet, FleetRecord, Proposal, ProposalError, Proposed, Proposer};
pub use local::{LocalNames, NamesClient, NamesLimits, NamesThread, open};
pub use metrics::NamesMetrics;
pub use model::{
    Hosted, Link, ManifestLink, MirroredTag, Mounted, OutboxRecord, OutboxStatus, Put, PutBlob,
    PutManifest, Referrer, ReferrersPage, Removed, Repository, SharedTags, TagOrigin, TagRecord,
    TagsPage, UploadId,
};
pub use placement::{Placed, PlacementRule};
pub use shared::{FleetNames, HandedOver};
pub use stored::{Account, OverLimit, Room, StoredBytes, StoredShare};

use std::future::Future;
use std::sync::Arc;

use outrider_artifact::event::UploadEvent;
use outrider_artifact::{Digest, RepositoryName, Tag};

/// What handlers ask and tell. Futures are polled on one shard and need not be `Send`.
///
/// Every method can fail with [`NamesError::Busy`] (the queue is full), [`NamesError::Closed`] (it is
/// shutting down), [`NamesError::Storage`] (the disk failed; a change that got this was not made) and
/// [`NamesError::Unsettled`] (it failed, and whether the change was made is not known).
pub trait Names: 'static {
    /// What the repository is.
    fn repository(
        &self,
        repository: &RepositoryName,
    ) -> impl Future<Output = Result<Repository, NamesError>>;

    /// What the tag points to.
    fn tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> impl Future<Output = Result<Option<Arc<TagRecord>>, NamesError>>;

    /// As what the repository holds this content. Always nothing for a mirrored one.
    fn link(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> impl Future<Output = Result<Link, NamesError>>;

    /// The same, if that is known without asking anyone, and still holds.
    fn link_known(&self, _repository: &RepositoryName, _digest: &Digest) -> Option<Link> {
        None
    }

    /// Which upload holds this content, whatever the repository.
    fn hosted(&self, digest: &Digest) -> impl Future<Output = Result<Option<Hosted>, NamesError>>;

    /// All content that is hosted, in the order of digests, behind `last`: for the start.
    fn hosted_after(
        &self,
        last: Option<Digest>,
        entries_max: usize,
    ) -> impl Future<Output = Result<Vec<Hosted>, NamesError>>;

    /// The tags of a repository that are known here, in byte order, behind `last`.
    fn tags(
        &self,
        repository: &RepositoryName,
        last: Option<&str>,
        entries_max: usize,
    ) -> impl Future<Output = Result<TagsPage, NamesError>>;

    /// The repositories that are known here, hosted and mirrored, in byte order, behind `last`.
    fn repositories(
        &self,
        last: Option<&str>,
        entries_max: usize,
    ) -> impl Future<Output = Result<Vec<String>, NamesError>>;

    /// The descriptors of the manifests in this repository that are about `subject`, in the order of
    /// their digests, behind `last`; only those with this `artifact_type` if one is given. A page
    /// ends at [`REFERRERS_BYTES_MAX`] too.
    fn referrers(
        &self,
        repository: &RepositoryName,
        subject: &Digest,
        artifact_type: Option<&str>,
        last: Option<Digest>,
        entries_max: usize,
    ) -> impl Future<Output = Result<ReferrersPage, NamesError>>;

    /// Notes a manifest whose content is stored. The repository is hosted from then on.
    ///
    /// # Errors
    /// [`NamesError::Mirrored`]; [`NamesError::ReferencesUnknown`] where references are required;
    /// [`NamesError::SizeConflict`].
    fn put_manifest(&self, put: PutManifest) -> impl Future<Output = Result<Put, NamesError>>;

    /// Notes a blob whose content is stored. The repository is hosted from then on.
    ///
    /// # Errors
    /// [`NamesError::Mirrored`], [`NamesError::SizeConflict`].
    fn put_blob(&self, put: PutBlob) -> impl Future<Output = Result<Put, NamesError>>;

    /// Gives a repository a blob that is hosted already: by `from`, or by any. Without `from` who
    /// knows a digest gets the content, so that a caller with customers must ask for `from`.
    ///
    /// # Errors
    /// [`NamesError::Mirrored`].
    fn mount(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        from: Option<&RepositoryName>,
    ) -> impl Future<Output = Result<Option<Mounted>, NamesError>>;

    /// Remembers what a tag points to at an upstream. The repository is mirrored from then on.
    ///
    /// # Errors
    /// [`NamesError::Hosted`].
    fn remember_mirrored_tag(
        &self,
        tag: MirroredTag,
    ) -> impl Future<Output = Result<(), NamesError>>;

    /// Notes that the upstream still says the same. False if the tag is not remembered, or now
    /// points to something else.
    fn touch_mirrored_tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
        digest: &Digest,
        checked_unix_ms: u64,
    ) -> impl Future<Output = Result<bool, NamesError>>;

    /// Forgets a tag that the upstream no longer has. False if it was not remembered.
    fn forget_mirrored_tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> impl Future<Output = Result<bool, NamesError>>;

    /// Deletes a tag that was pushed. False if there is none.
    fn delete_tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> impl Future<Output = Result<bool, NamesError>>;

    /// Deletes a manifest, and all tags of the repository that point to it. None if there is none.
    fn delete_manifest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> impl Future<Output = Result<Option<Removed>, NamesError>>;

    /// Takes a blob from a repository. None if it does not have it.
    fn delete_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> impl Future<Output = Result<Option<Removed>, NamesError>>;

    /// Whether tags belong to a fleet: they are then set by [`Names::share_tags`], once the content that they
    /// point to is stored and named, and not by [`Names::put_manifest`].
    fn tags_are_shared(&self) -> bool {
        false
    }

    /// Sets tags for all edges.
    ///
    /// # Errors
    /// [`NamesError::Fleet`] without a majority; [`NamesError::FleetRefused`].
    fn share_tags(&self, _tags: SharedTags) -> impl Future<Output = Result<(), NamesError>> {
        async { Ok(()) }
    }

    /// The other edges that hold what was pushed to the repository, dearest first.
    fn holders(&self, _repository: &RepositoryName) -> Arc<[u64]> {
        Arc::default()
    }

    /// What a push to the repository takes beside what is done here; nothing where this edge alone is enough.
    fn placed(&self, _repository: &RepositoryName) -> Option<Placed> {
        None
    }

    /// Whether it is another edge of the fleet, as far as is known here.
    fn is_edge(&self, _number: u64) -> bool {
        false
    }

    /// Puts an event into the outbox for itself. False where too many wait already.
    fn note_event(&self, event: UploadEvent) -> impl Future<Output = Result<bool, NamesError>>;

    /// How many events wait.
    fn outbox_status(&self) -> impl Future<Output = Result<OutboxStatus, NamesError>>;

    /// The events from this sequence number on, oldest first.
    fn outbox_read(
        &self,
        from: u64,
        entries_max: usize,
    ) -> impl Future<Output = Result<Vec<OutboxRecord>, NamesError>>;

    /// The events up to this sequence number, itself too, were taken over and are deleted here.
    fn outbox_acknowledge(&self, through: u64) -> impl Future<Output = Result<(), NamesError>>;
}

#[cfg(test)]
mod tests;

/// The most bytes of descriptors on one page of referrers, unless the first alone has more.
pub const REFERRERS_BYTES_MAX: usize = 4 << 20;
