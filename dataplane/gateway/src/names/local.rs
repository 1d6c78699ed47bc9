//! The client that shards use.

use std::path::Path;
use std::sync::Arc;

use outrider_artifact::{Digest, RepositoryName, Tag};
use outrider_shard::ShardHandle;

use super::model::*;
use super::{Names, NamesError, NamesMetrics};

/// Bounds of the names database. The defaults are what is documented.
#[derive(Clone, Debug)]
pub struct NamesLimits {
    /// Requests that wait at the most; one more is refused.
    pub queue_max: usize,
    /// Mirrored tags that are remembered; the one that was checked longest ago is forgotten.
    pub mirrored_tags_max: usize,
    /// Events that wait; the oldest is dropped and counted.
    pub outbox_records_max: u64,
    /// Memory for pages of the database.
    pub page_cache_bytes: usize,
}

impl Default for NamesLimits {
    fn default() -> Self {
        Self {
            queue_max: 1024,
            mirrored_tags_max: 100_000,
            outbox_records_max: 100_000,
            page_cache_bytes: 16 << 20,
        }
    }
}

/// The thread that owns the file.
#[derive(Debug)]
pub struct NamesThread {}

impl NamesThread {
    /// Ends the thread when it has answered what waits, and closes the file. Blocks.
    ///
    /// # Errors
    /// [`NamesError::Closed`] if the thread ended by itself before.
    pub fn stop(self) -> Result<(), NamesError> {
        unimplemented!()
    }
}

/// The way to the thread, from any thread.
#[derive(Clone, Debug)]
pub struct NamesClient {}

impl NamesClient {
    /// The client of a shard.
    pub fn on(&self, _shard: &ShardHandle) -> LocalNames {
        unimplemented!()
    }

    /// A client whose futures block the thread that polls them and are ready at once: for the start
    /// and for tools, never for a shard.
    pub fn blocking(&self) -> LocalNames {
        unimplemented!()
    }
}

/// Opens or makes `DIR/meta.redb` and starts the thread. Blocks while the file is checked.
///
/// # Errors
/// [`NamesError::InUse`], [`NamesError::Open`], [`NamesError::Version`], [`NamesError::Damaged`].
pub fn open(
    _directory: &Path,
    _limits: NamesLimits,
    _metrics: NamesMetrics,
) -> Result<(NamesThread, NamesClient), NamesError> {
    unimplemented!()
}

/// The names of this box. One per shard; not `Send`.
#[derive(Debug)]
pub struct LocalNames {
    _not_send: std::marker::PhantomData<std::rc::Rc<()>>,
}

impl Names for LocalNames {
    async fn repository(&self, _: &RepositoryName) -> Result<Repository, NamesError> {
        unimplemented!()
    }
    async fn tag(&self, _: &RepositoryName, _: &Tag) -> Result<Option<Arc<TagRecord>>, NamesError> {
        unimplemented!()
    }
    async fn link(&self, _: &RepositoryName, _: &Digest) -> Result<Link, NamesError> {
        unimplemented!()
    }
    async fn hosted(&self, _: &Digest) -> Result<Option<Hosted>, NamesError> {
        unimplemented!()
    }
    async fn hosted_after(&self, _: Option<Digest>, _: usize) -> Result<Vec<Hosted>, NamesError> {
        unimplemented!()
    }
    async fn tags(
        &self,
        _: &RepositoryName,
        _: Option<&str>,
        _: usize,
    ) -> Result<TagsPage, NamesError> {
        unimplemented!()
    }
    async fn repositories(&self, _: Option<&str>, _: usize) -> Result<Vec<String>, NamesError> {
        unimplemented!()
    }
    async fn referrers(
        &self,
        _: &RepositoryName,
        _: &Digest,
        _: Option<&str>,
        _: Option<Digest>,
        _: usize,
    ) -> Result<ReferrersPage, NamesError> {
        unimplemented!()
    }
    async fn put_manifest(&self, _: PutManifest) -> Result<Put, NamesError> {
        unimplemented!()
    }
    async fn put_blob(&self, _: PutBlob) -> Result<Put, NamesError> {
        unimplemented!()
    }
    async fn mount(
        &self,
        _: &RepositoryName,
        _: &Digest,
        _: Option<&RepositoryName>,
    ) -> Result<Option<Mounted>, NamesError> {
        unimplemented!()
    }
    async fn remember_mirrored_tag(&self, _: MirroredTag) -> Result<(), NamesError> {
        unimplemented!()
    }
    async fn touch_mirrored_tag(
        &self,
        _: &RepositoryName,
        _: &Tag,
        _: &Digest,
        _: u64,
    ) -> Result<bool, NamesError> {
        unimplemented!()
    }
    async fn forget_mirrored_tag(&self, _: &RepositoryName, _: &Tag) -> Result<bool, NamesError> {
        unimplemented!()
    }
    async fn delete_tag(&self, _: &RepositoryName, _: &Tag) -> Result<bool, NamesError> {
        unimplemented!()
    }
    async fn delete_manifest(
        &self,
        _: &RepositoryName,
        _: &Digest,
    ) -> Result<Option<Removed>, NamesError> {
        unimplemented!()
    }
    async fn delete_blob(
        &self,
        _: &RepositoryName,
        _: &Digest,
    ) -> Result<Option<Removed>, NamesError> {
        unimplemented!()
    }
    async fn outbox_status(&self) -> Result<OutboxStatus, NamesError> {
        unimplemented!()
    }
    async fn outbox_read(&self, _: u64, _: usize) -> Result<Vec<OutboxRecord>, NamesError> {
        unimplemented!()
    }
    async fn outbox_acknowledge(&self, _: u64) -> Result<(), NamesError> {
        unimplemented!()
    }
}
