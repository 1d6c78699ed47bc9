//! The public handle of a shard's cache.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use outrider_artifact::Digest;

use crate::arena::ChunkWriter;
use crate::config::CacheConfig;
use crate::error::CacheError;
use crate::metrics::CacheMetrics;
use crate::upload::{StoredUpload, Upload, UploadId};

/// A media type, shared by all objects that have it.
pub type MediaType = Arc<str>;

/// Where a chunk came from: an opaque hash of (upstream, repository).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin(pub u64);

/// Which tier answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tier {
    /// The memory arena.
    Ram,
    /// A stripe.
    Ssd,
}

/// A chunk in memory. The slot is reused only after the last clone of `bytes` is gone.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// The payload, in the arena.
    pub bytes: Bytes,
    /// Where it was found.
    pub tier: Tier,
    /// Whether all of the object was hashed with this chunk in it.
    pub verified: bool,
}

/// What is known about an object. O(1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectStat {
    /// Its size in bytes.
    pub size: u64,
    /// Its media type.
    pub media_type: MediaType,
    /// All of it is present and was hashed.
    pub verified: bool,
    /// It was uploaded here.
    pub hosted: bool,
    /// All of it is present, in RAM or on SSD.
    pub complete: bool,
    /// Where it came from; `None` when hosted.
    pub origin: Option<Origin>,
}

/// One request's access, for the frequency term of the score.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// A hash of who asked.
    pub customer_hash: u64,
    /// When, in seconds since 1970.
    pub unix_s: u64,
}

/// Measured costs of having the object again. Clamped to 1 ms … 10 s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Costs {
    /// Time to fetch it.
    pub fetch_ms: u32,
    /// Time to compile or run it.
    pub execute_ms: u32,
}

/// What the control plane knows of an object's importance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Importance {
    /// The class of its customer; 1 is neutral.
    pub class: u8,
    /// How many artifacts depend on it (at most 4 of one customer's counted by the caller).
    pub dependants: u32,
}

/// Sizes, for status pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of slots that are in use.
    pub ram_used_bytes: u64,
    /// Bytes of all slots.
    pub ram_total_bytes: u64,
    /// Bytes of live records on the stripes.
    pub ssd_used_bytes: u64,
    /// Bytes of all segments.
    pub ssd_total_bytes: u64,
    /// Bytes of uploads' records, hosted or not.
    pub uploads_bytes: u64,
    /// Bytes that uploads may take.
    pub uploads_total_bytes: u64,
    /// Objects in the index.
    pub objects: u64,
    /// Hosted objects.
    pub hosted: u64,
    /// Stripes in service.
    pub stripes: u16,
    /// Stripes that were taken out of service after errors.
    pub stripes_out: u16,
    /// Whether the arena is registered with the kernel.
    pub registered: bool,
}

/// One shard's cache. Clones share it; it stays on its thread.
#[derive(Clone)]
pub struct Cache {
    _inner: Rc<()>,
}

/// The size and number of stripes with which the store in `dir` was made; `None` when there is none.
///
/// # Errors
/// `Os` when the folder cannot be read, `Stripe` when a file in it is not ours.
pub fn stored_size(_dir: &Path) -> Result<Option<(u64, u16)>, CacheError> {
    unimplemented!()
}

#[expect(clippy::unused_async)]
impl Cache {
    /// Opens the cache on the thread that will use it: maps the arena, opens (or makes) the stripes,
    /// scans them, rebuilds the index. Blocks. `doorbell` is an eventfd that is rung when a disk
    /// operation is done or a slot that someone waits for is free.
    ///
    /// # Errors
    /// `Config`, `Stripe`, `Os`.
    pub fn open(
        _config: CacheConfig,
        _doorbell: Option<BorrowedFd<'_>>,
        _metrics: CacheMetrics,
    ) -> Result<Self, CacheError> {
        unimplemented!()
    }
    /// Moves everything that can move; `true` when something did. Cheap when idle.
    pub fn turn(&self) -> bool {
        unimplemented!()
    }
    /// Whether disk operations run or wait, or someone waits for a slot.
    pub fn in_flight(&self) -> bool {
        unimplemented!()
    }
    /// What is known about an object. O(1).
    pub fn stat(&self, _digest: &Digest) -> Option<ObjectStat> {
        unimplemented!()
    }
    /// A chunk that is in RAM. O(1), no allocation.
    pub fn resident(&self, _digest: &Digest, _chunk: u32) -> Option<Chunk> {
        unimplemented!()
    }
    /// A chunk from RAM or SSD; `None` is a miss.
    ///
    /// # Errors
    /// `Busy`.
    pub async fn read(&self, _digest: &Digest, _chunk: u32) -> Result<Option<Chunk>, CacheError> {
        unimplemented!()
    }
    /// Counts an access; once per request.
    pub fn touch(&self, _digest: &Digest, _access: Access) {
        unimplemented!()
    }
    /// Makes an object known, to be filled chunk by chunk. Idempotent.
    ///
    /// # Errors
    /// `SizeDiffers`, `TooLarge`, `TooMany`.
    pub fn begin(
        &self,
        _digest: &Digest,
        _size: u64,
        _media_type: &str,
        _origin: Origin,
    ) -> Result<(), CacheError> {
        unimplemented!()
    }
    /// An empty slot for `payload_bytes` bytes; waits (bounded) while everything is pinned.
    ///
    /// # Errors
    /// `Busy`; `TooLarge` when it is more than a chunk.
    pub async fn slot(&self, _payload_bytes: usize) -> Result<ChunkWriter, CacheError> {
        unimplemented!()
    }
    /// Makes a filled slot the chunk `chunk` of a begun object: resident and unverified.
    pub fn insert(&self, _digest: &Digest, _chunk: u32, _writer: ChunkWriter) -> Chunk {
        unimplemented!()
    }
    /// All chunks were hashed in order and the digest is right.
    pub fn set_verified(&self, _digest: &Digest) {
        unimplemented!()
    }
    /// Drops an object and sees to it that a restart does not bring it back. Hosted ones stay.
    pub fn forget(&self, _digest: &Digest) {
        unimplemented!()
    }
    /// Resolves when every tombstone and seal asked for so far is durable.
    pub async fn flush(&self) {
        unimplemented!()
    }
    /// Chunks of `from..to` that are neither in RAM nor on SSD. All of them when it is unknown.
    pub fn missing(
        &self,
        _digest: &Digest,
        from: u32,
        to: u32,
    ) -> impl Iterator<Item = u32> + use<> {
        from..to
    }
    /// Measured costs.
    pub fn set_costs(&self, _digest: &Digest, _costs: Costs) {
        unimplemented!()
    }
    /// Importance from the control plane.
    pub fn set_importance(&self, _digest: &Digest, _importance: Importance) {
        unimplemented!()
    }
    /// Starts an upload.
    ///
    /// # Errors
    /// `StoreFull`, `NoDisk`.
    pub fn upload(&self, _id: UploadId) -> Result<Upload, CacheError> {
        unimplemented!()
    }
    /// Makes a stored upload visible, verified and hosted. Call after the names committed. When the
    /// digest was hosted before, the new upload takes its place.
    pub fn host(&self, _stored: StoredUpload, _digest: &Digest, _media_type: &str) {
        unimplemented!()
    }
    /// Finished uploads that the scan found, with their sizes.
    pub fn recovered_uploads(&self) -> Vec<(UploadId, u64)> {
        unimplemented!()
    }
    /// Makes a recovered upload visible again.
    ///
    /// # Errors
    /// `UploadMissing`, `UploadDamaged`.
    pub fn adopt(
        &self,
        _id: UploadId,
        _digest: &Digest,
        _size: u64,
        _media_type: &str,
    ) -> Result<(), CacheError> {
        unimplemented!()
    }
    /// Gives the space of recovered uploads that nobody adopted back.
    pub fn drop_unadopted(&self) {
        unimplemented!()
    }
    /// Gives a hosted object's space back, after its delete was committed.
    pub fn unhost(&self, _digest: &Digest) {
        unimplemented!()
    }
    /// Sizes. O(stripes).
    pub fn usage(&self) -> Usage {
        unimplemented!()
    }
}
