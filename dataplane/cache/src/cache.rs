//! The public handle of a shard's cache.

use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use outrider_artifact::Digest;

use crate::arena::{Arena, ChunkWriter};
use crate::config::{CacheConfig, ImportanceWeights};
use crate::customers::{Customer, Share, Terms};
use crate::disk::ring::Ring;
use crate::disk::stripe::Stripes;
use crate::disk::{Disk, scan};
use crate::engine::{Engine, Sequence, SlotOrWaiter, Time};
use crate::error::CacheError;
use crate::index::{ObjectId, flag};
use crate::metrics::CacheMetrics;
use crate::ram::{Ram, plan};
use crate::store::Store;
use crate::upload::{StoredUpload, Upload, UploadId};

/// A media type, shared by all objects that have it.
pub type MediaType = Arc<str>;

/// Where an object came from: an opaque hash of (upstream, repository).
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

/// A chunk in memory. The slot is reused only after the last clone of `bytes` is gone, on whatever
/// thread that happens.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// The payload, in the arena.
    pub bytes: Bytes,
    /// Where it was found.
    pub tier: Tier,
    /// Whether the whole object was hashed with this chunk in it.
    pub verified: bool,
}

/// What is known about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectStat {
    /// Its size in bytes.
    pub size: u64,
    /// Its media type, cut to 96 bytes.
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
    /// Who asked.
    pub customer: Customer,
    /// When, in seconds of a clock that never goes back. Nothing of it is kept on disk.
    pub time_s: u64,
}

/// Measured costs of having the object again; 1 ms to 10 s count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Costs {
    /// Time to fetch it.
    pub fetch_ms: u32,
    /// Time to compile or run it.
    pub execute_ms: u32,
}

/// How much depends on an object, as eighths of `log2(1 + dependants)`: 0 for nothing, 255 at the most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Depth(u8);

impl Depth {
    /// Of so many artifacts (the caller counts at most 4 of one customer's).
    pub fn of_dependants(dependants: u32) -> Self {
        Self::of_log2((1.0 + f64::from(dependants)).log2())
    }

    /// Of a logarithm to the base 2, rounded to eighths; what is none counts as 0.
    pub fn of_log2(depth_log2: f64) -> Self {
        // A cast saturates, and makes 0 of what is no number.
        Self((depth_log2 * 8.0).round() as u8)
    }

    /// As it was made small: eighths.
    pub fn from_eighths(eighths: u8) -> Self {
        Self(eighths)
    }

    /// Eighths of the logarithm.
    pub fn eighths(self) -> u8 {
        self.0
    }
}

/// Sizes, for status pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of slots that are in use.
    pub ram_used_bytes: u64,
    /// Bytes of all slots.
    pub ram_total_bytes: u64,
    /// Bytes of records on the stripes that are in use.
    pub ssd_used_bytes: u64,
    /// Bytes of all segments.
    pub ssd_total_bytes: u64,
    /// Bytes of segments that hold uploads.
    pub uploads_bytes: u64,
    /// Bytes of segments that uploads may take.
    pub uploads_total_bytes: u64,
    /// Objects in the index.
    pub objects: u64,
    /// Hosted objects.
    pub hosted: u64,
    /// Stripes in service.
    pub stripes: u16,
    /// Stripes that were taken out of service after errors, or take no more writes.
    pub stripes_out: u16,
    /// Whether the arena is registered with the kernel.
    pub registered: bool,
}

/// The engine behind its borrow, and the rule that nobody is woken inside of one.
pub(crate) struct Shared {
    engine: RefCell<Engine>,
}

impl Shared {
    pub(crate) fn with<R>(&self, act: impl FnOnce(&mut Engine) -> R) -> R {
        let (result, wakers) = {
            let mut engine = self.engine.borrow_mut();
            let result = act(&mut engine);
            (result, std::mem::take(&mut engine.wakers))
        };
        for waker in wakers {
            waker.wake();
        }
        result
    }

    pub(crate) async fn slot(&self, payload_bytes: usize) -> Result<ChunkWriter, CacheError> {
        match self.with(|engine| engine.slot(payload_bytes))? {
            SlotOrWaiter::Slot(writer) => Ok(writer),
            SlotOrWaiter::Waiter(waiter) => waiter.wait().await,
        }
    }

    pub(crate) async fn read(
        &self,
        object: ObjectId,
        chunk: u32,
    ) -> Result<Option<Chunk>, CacheError> {
        let found = self.with(|engine| match engine.resident_of(object, chunk) {
            Some(chunk) => Ok(Ok(Some(chunk))),
            None => engine
                .read(object, chunk)
                .map(|waiter| waiter.ok_or(()).map_or_else(|()| Ok(None), Err)),
        })?;
        match found {
            Ok(answer) => {
                if answer.is_none() {
                    self.with(|engine| engine.metrics.misses.inc());
                }
                Ok(answer)
            }
            Err(waiter) => waiter.wait().await,
        }
    }
}

/// One shard's cache. Clones share it; it stays on the thread that opened it.
///
/// Its futures use standard wakers only and make progress when [`Cache::turn`] is called. A loop
/// without any runtime is enough to drive it: poll the futures (with a waker that does nothing),
/// call `turn`, and when `turn` returned `false` wait on the doorbell (an eventfd), repeat.
#[derive(Clone)]
pub struct Cache {
    shared: Rc<Shared>,
}

struct RealTime(Instant);

impl Time for RealTime {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// One for all caches of the process, so that what several shards hold of one digest can be ordered.
static SEQUENCE: LazyLock<Sequence> = LazyLock::new(|| Arc::new(AtomicU64::new(1)));

/// How the parts of a cache are put together; a simulation brings its own disk and time.
pub(crate) struct Parts {
    pub(crate) arena: Arena,
    pub(crate) store: Option<Store>,
    pub(crate) made: Vec<bool>,
    pub(crate) sequence: Sequence,
    pub(crate) time: Box<dyn Time>,
}

impl Cache {
    /// Opens the cache on the thread that will use it: maps the arena, opens (or makes) the stripes,
    /// scans them, rebuilds the index. Blocks: 0.3 s for 12,500 records (3 GB) on a busy machine.
    /// `doorbell` is an eventfd that is rung when a disk operation is done, or a slot is free that
    /// someone waits for.
    ///
    /// # Errors
    /// `Config`, `Stripe` (a file that is not ours or has other sizes: nothing was changed), `Os`.
    pub fn open(
        config: CacheConfig,
        doorbell: Option<BorrowedFd<'_>>,
        metrics: CacheMetrics,
    ) -> Result<Self, CacheError> {
        check(&config)?;
        let ssd = config.ssd.as_ref();
        let stripes = ssd.map(|ssd| Stripes::open(ssd, config.geometry)).transpose()?;
        Self::open_on(config, stripes, doorbell, metrics)
    }

    /// [`Cache::open`] on stripes that are open: those of one shard. Without any it is a cache in
    /// memory that takes no uploads. Writes nothing before the first [`Cache::turn`], which must wait
    /// until the caches of all shards are open: what is written later has to be newer than all that is
    /// on any stripe.
    ///
    /// # Errors
    /// `Config`, `Os`.
    pub fn open_on(
        config: CacheConfig,
        stripes: Option<Stripes>,
        doorbell: Option<BorrowedFd<'_>>,
        metrics: CacheMetrics,
    ) -> Result<Self, CacheError> {
        check(&config)?;
        let chunk_bytes = config.geometry.chunk_bytes as usize;
        let plan = plan(config.arena_bytes, chunk_bytes).ok_or_else(|| too_small(&config))?;
        let own_doorbell = doorbell
            .map(|doorbell| doorbell.try_clone_to_owned())
            .transpose()
            .map_err(|error| CacheError::os("duplicating the doorbell", &error))?;
        let arena = Arena::map(plan.map_bytes, plan.big_bytes, plan.slots_max, own_doorbell)
            .map_err(|error| {
                CacheError::os(format!("mapping {} bytes for the cache", plan.map_bytes), &error)
            })?;
        let mut made = Vec::new();
        let stripes = stripes.filter(|stripes| !stripes.is_empty());
        let store = match config.ssd.as_ref().zip(stripes) {
            None => None,
            Some((ssd, stripes)) => {
                metrics.scan_stripes_recreated.inc_by(stripes.recreated as u64);
                let ring = Ring::new(
                    stripes.files,
                    &arena,
                    plan.big_bytes,
                    ssd.register_buffers,
                    doorbell.as_ref().map(AsFd::as_fd),
                )
                .map_err(|error| CacheError::os("making the disk's io_uring", &error))?;
                let registered = ring.registered();
                tracing::info!(
                    stripes = stripes.superblocks.len(),
                    direct = stripes.direct,
                    registered,
                    "the SSD store is open"
                );
                let sizes: Vec<u64> =
                    stripes.superblocks.iter().map(|superblock| superblock.stripe_bytes).collect();
                let numbers = stripes.superblocks.iter().map(|superblock| superblock.stripe);
                let numbers = (numbers.collect(), stripes.superblocks[0].stripes);
                let seed = stripes.superblocks[0].seed();
                let disk: Box<dyn Disk> = Box::new(ring);
                let mut store = Store::new(disk, seed, config.geometry, numbers, &sizes, ssd);
                store.registered = registered;
                made = stripes.made;
                Some(store)
            }
        };
        let parts = Parts {
            arena,
            store,
            made,
            sequence: SEQUENCE.clone(),
            time: Box::new(RealTime(Instant::now())),
        };
        Self::assemble(config, parts, metrics)
    }

    pub(crate) fn assemble(
        config: CacheConfig,
        parts: Parts,
        metrics: CacheMetrics,
    ) -> Result<Self, CacheError> {
        let chunk_bytes = config.geometry.chunk_bytes as usize;
        let plan = plan(config.arena_bytes, chunk_bytes).ok_or_else(|| too_small(&config))?;
        let ram = Ram::new(parts.arena, &plan, chunk_bytes, metrics.clone());
        let mut engine = Engine::new(config, ram, parts.store, parts.sequence, parts.time, metrics);
        if engine.store.is_some() {
            let started = Instant::now();
            let summary = scan::scan(&mut engine, &parts.made);
            let seconds = started.elapsed().as_secs_f64();
            let metrics = &engine.metrics;
            metrics.scan_seconds.set(seconds);
            metrics.scan_chunks.inc_by(summary.chunks);
            metrics.scan_uploads.inc_by(summary.uploads);
            metrics.scan_damaged.inc_by(summary.damaged);
            tracing::info!(?summary, seconds, "the SSD store was scanned");
        }
        Ok(Self { shared: Rc::new(Shared { engine: RefCell::new(engine) }) })
    }

    /// Moves everything that can move: collects finished disk operations, starts waiting ones, wakes
    /// futures. `true` when something moved. Costs a few loads when idle.
    pub fn turn(&self) -> bool {
        self.shared.with(Engine::turn)
    }

    /// Whether disk operations run or wait, or someone waits for a slot: keep turning.
    pub fn in_flight(&self) -> bool {
        self.shared.engine.borrow().in_flight()
    }

    /// What is known about an object. O(1), no allocation.
    pub fn stat(&self, digest: &Digest) -> Option<ObjectStat> {
        let engine = self.shared.engine.borrow();
        let object = engine.index.find(digest)?;
        let hosted = engine.index.has(object, flag::HOSTED);
        Some(ObjectStat {
            size: engine.index.size(object),
            media_type: engine.index.media_type(object).clone(),
            verified: engine.index.verified(object),
            hosted,
            complete: engine.index.complete(object),
            origin: (!hosted).then(|| engine.index.origin(object)),
        })
    }

    /// A chunk that is in RAM. O(1), no allocation. An object without bytes has an empty chunk 0.
    pub fn resident(&self, digest: &Digest, chunk: u32) -> Option<Chunk> {
        self.shared.with(|engine| engine.resident(digest, chunk))
    }

    /// A chunk from RAM or SSD; `None` is a miss. A record that turns out to be damaged is dropped
    /// and is a miss. Reads of the same chunk at the same time are one.
    ///
    /// # Errors
    /// `Busy` when no slot came free in time.
    pub async fn read(&self, digest: &Digest, chunk: u32) -> Result<Option<Chunk>, CacheError> {
        let object = self.shared.with(|engine| engine.index.find(digest));
        match object {
            Some(object) => self.shared.read(object, chunk).await,
            None => {
                self.shared.with(|engine| engine.metrics.misses.inc());
                Ok(None)
            }
        }
    }

    /// Counts an access, once per request. The second customer-minute of an object sends what is
    /// only in RAM of it to SSD.
    pub fn touch(&self, digest: &Digest, access: Access) {
        self.shared.with(|engine| engine.touch(digest, access));
    }

    /// Makes an object known, to be filled chunk by chunk, for a customer who is charged for it. Idempotent: an object that is known keeps
    /// its origin and media type.
    ///
    /// # Errors
    /// `SizeDiffers`, `TooLarge`, `TooMany`.
    pub fn begin(
        &self,
        digest: &Digest,
        size: u64,
        media_type: &str,
        origin: Origin,
        customer: Customer,
    ) -> Result<(), CacheError> {
        self.shared.with(|engine| engine.begin(digest, size, media_type, origin, customer))
    }

    /// An empty slot for exactly `payload_bytes` bytes. Waits (bounded) while everything is pinned.
    ///
    /// # Errors
    /// `Busy`; `TooLarge` when it is more than a chunk.
    pub async fn slot(&self, payload_bytes: usize) -> Result<ChunkWriter, CacheError> {
        self.shared.slot(payload_bytes).await
    }

    /// Makes a filled slot the chunk `chunk` of a begun object: resident at once, unverified, and
    /// queued for SSD if admission says so. Unverified bytes that were there before are replaced.
    /// When the object is not known (forgotten meanwhile), the length is not that of the chunk, or
    /// a verified chunk is there, the bytes are handed back and not kept.
    pub fn insert(&self, digest: &Digest, chunk: u32, writer: ChunkWriter) -> Chunk {
        self.shared.with(|engine| {
            let chunk = engine.insert(digest, chunk, writer);
            engine.pump();
            chunk
        })
    }

    /// Every chunk that is present was hashed in order, and the digest is right. Survives a restart
    /// when the seal was written, which happens after the chunks were. O(chunks).
    pub fn set_verified(&self, digest: &Digest) {
        self.shared.with(|engine| engine.set_verified(digest));
    }

    /// Drops an object, and sees to it that a restart does not bring it back (await [`Cache::flush`]
    /// to know that a power cut does not either). Hosted objects stay: that is refused and counted.
    pub fn forget(&self, digest: &Digest) {
        self.shared.with(|engine| engine.forget(digest));
    }

    /// Resolves when every tombstone and seal that was asked for so far is durable.
    pub async fn flush(&self) {
        if let Some(waiter) = self.shared.with(Engine::flush) {
            waiter.wait().await;
        }
    }

    /// Chunks of `from..to` that are neither in RAM nor on SSD; all of them when the object is not
    /// known. Looks at the moment of each step.
    pub fn missing(
        &self,
        digest: &Digest,
        from: u32,
        to: u32,
    ) -> impl Iterator<Item = u32> + use<> {
        let (shared, digest) = (self.shared.clone(), *digest);
        (from..to).filter(move |chunk| {
            let engine = shared.engine.borrow();
            let object = engine.index.find(&digest);
            !object.is_some_and(|object| engine.index.entry(object, *chunk).present())
        })
    }

    /// Sets what having the object again would cost.
    pub fn set_costs(&self, digest: &Digest, costs: Costs) {
        self.shared.with(|engine| engine.set_costs(digest, costs.fetch_ms, costs.execute_ms));
    }

    /// Sets how much depends on an object; `false` when it is not known here, and nothing is remembered.
    /// Lost with the object and at a restart. O(1), no allocation; it counts from the next eviction on.
    pub fn set_depth(&self, digest: &Digest, depth: Depth) -> bool {
        self.shared.with(|engine| engine.set_depth(digest, depth))
    }

    /// Makes an object one of the first victims until it is used again; `false` when it is not known here. Hosted
    /// objects stay on the disk, as ever. O(chunks).
    pub fn demote(&self, digest: &Digest) -> bool {
        self.shared.with(|engine| engine.demote(digest))
    }

    /// Sets what is kept for a customer on this shard; `false` when there are too many with a guarantee or a time
    /// to live, and nothing is set.
    pub fn set_terms(&self, customer: Customer, terms: Terms) -> bool {
        self.shared.with(|engine| engine.set_terms(customer, terms))
    }

    /// Sets after how many minutes without use content of an origin is one of the first victims, where its customer
    /// has no time of its own. Known as long as something of the origin is here, and not over a restart.
    pub fn set_origin_ttl(&self, origin: Origin, ttl_minutes: Option<u16>) {
        self.shared.with(|engine| engine.index.set_origin_ttl(origin, ttl_minutes));
    }

    /// Demotes what was not used for longer than its time to live, within the next turns. Call it once a minute,
    /// with the clock of [`Access::time_s`].
    pub fn expire(&self, time_s: u64) {
        self.shared.with(|engine| engine.expire(time_s));
    }

    /// How those with a guarantee stand. At most [`crate::customers::ACCOUNTS_MAX`].
    pub fn shares(&self) -> Vec<Share> {
        self.shared.engine.borrow().index.accounts.shares().collect()
    }

    /// Weighs by these from now on, also what is here already: within the next turns, a slice in each.
    pub fn set_weights(&self, weights: ImportanceWeights) {
        self.shared.with(|engine| engine.set_weights(weights));
    }

    /// Starts an upload. `id` must never have been used before.
    ///
    /// # Errors
    /// `StoreFull`, `NoDisk`.
    pub fn upload(&self, id: UploadId) -> Result<Upload, CacheError> {
        let (object, life, len_max) = self.shared.with(|engine| engine.start_upload(id))?;
        let chunk_bytes = self.shared.engine.borrow().config.geometry.chunk_bytes as usize;
        Ok(Upload::new(self.shared.clone(), object, life, id, chunk_bytes, len_max))
    }

    /// Whether [`Cache::upload`] would find room now.
    pub fn takes_uploads(&self) -> bool {
        self.shared.engine.borrow().upload_stripe(None).is_ok()
    }

    /// The upload that a hosted object lies under; `None` when it is not hosted.
    pub fn hosted_under(&self, digest: &Digest) -> Option<UploadId> {
        let engine = self.shared.engine.borrow();
        let object = engine.index.find(digest)?;
        if !engine.index.has(object, flag::HOSTED) {
            return None;
        }
        engine.upload_ids.get(&object).copied()
    }

    /// Makes a stored upload visible, verified and hosted. Call it only after the names have been
    /// committed with the upload's id. When the digest was hosted before, the newer upload takes its
    /// place (so the names must have the newer id).
    pub fn host(&self, stored: StoredUpload, digest: &Digest, media_type: &str) {
        let (object, size) = stored.release();
        self.shared.with(|engine| {
            if let Err(error) = engine.host(object, digest, size, media_type) {
                tracing::error!(%digest, %error, "an upload is stored and cannot be shown");
            }
        });
    }

    /// Finished uploads that the scan found whole and that nobody has adopted, with their sizes.
    pub fn recovered_uploads(&self) -> Vec<(UploadId, u64)> {
        let engine = self.shared.engine.borrow();
        let whole = engine
            .recovered
            .iter()
            .filter(|(_, recovered)| engine.index.complete(recovered.object));
        let mut found: Vec<_> =
            whole.filter_map(|(id, recovered)| Some((*id, recovered.size?))).collect();
        found.sort_unstable();
        found
    }

    /// Makes a recovered upload visible again, as the names database says.
    ///
    /// # Errors
    /// `UploadMissing` when no part of it was found, `UploadDamaged` when a part is missing or its
    /// header is damaged (payloads are checked whenever they are read).
    pub fn adopt(
        &self,
        id: UploadId,
        digest: &Digest,
        size: u64,
        media_type: &str,
    ) -> Result<(), CacheError> {
        self.shared.with(|engine| engine.adopt(id, digest, size, media_type))
    }

    /// Gives the space of recovered uploads back that nobody adopted. After the last `adopt`.
    pub fn drop_unadopted(&self) {
        self.shared.with(Engine::drop_unadopted);
    }

    /// Gives a hosted object's space back, after its delete was committed. An object that lies under
    /// another upload is left alone: it was uploaded again meanwhile.
    pub fn unhost(&self, digest: &Digest, id: UploadId) {
        self.shared.with(|engine| {
            if let Some(object) = engine.index.find(digest)
                && engine.index.has(object, flag::HOSTED)
                && engine.upload_ids.get(&object).is_none_or(|held| *held == id)
            {
                engine.drop_object(object);
                engine.pump();
            }
        });
    }

    /// Sizes. O(segments).
    pub fn usage(&self) -> Usage {
        let engine = self.shared.engine.borrow();
        let mut usage = Usage {
            ram_used_bytes: engine.ram.used_bytes(),
            ram_total_bytes: engine.ram.total_bytes(),
            objects: engine.index.len() as u64,
            hosted: engine.hosted,
            ..Usage::default()
        };
        if let Some(store) = &engine.store {
            let segment_bytes = store.geometry.segment_bytes;
            usage.registered = store.registered;
            for stripe in &store.stripes {
                let live = |segment: &crate::disk::segment::Segment| segment.live_bytes;
                usage.ssd_used_bytes += stripe.segments.iter().map(live).sum::<u64>();
                usage.ssd_total_bytes += stripe.segments.len() as u64 * segment_bytes;
                usage.uploads_bytes += u64::from(stripe.upload_segments) * segment_bytes;
                usage.uploads_total_bytes += u64::from(stripe.upload_segments_max) * segment_bytes;
                if stripe.writable() {
                    usage.stripes += 1;
                } else {
                    usage.stripes_out += 1;
                }
            }
        }
        usage
    }

    #[cfg(test)]
    pub(crate) fn engine(&self) -> std::cell::RefMut<'_, Engine> {
        self.shared.engine.borrow_mut()
    }
}

fn too_small(config: &CacheConfig) -> CacheError {
    CacheError::Config(format!("{} bytes of arena are too few", config.arena_bytes))
}

fn check(config: &CacheConfig) -> Result<(), CacheError> {
    let geometry = &config.geometry;
    let block = crate::arena::BLOCK_BYTES as u64;
    let fits = geometry.chunk_bytes >= block
        && geometry.segment_bytes.is_multiple_of(block)
        && geometry.segment_bytes
            >= 2 * crate::arena::record_bytes(geometry.chunk_bytes as usize) as u64 + block;
    if !fits {
        return Err(CacheError::Config(format!("{geometry:?} does not fit together")));
    }
    Ok(())
}
