//! Uploads: objects that clients stored here and that must survive everything.
//!
//! An upload is an object of the index that no digest leads to. Its chunks go to segments of their
//! own, all on one stripe. The last chunk says how long the whole is, so it is held back until the end is known. What
//! [`Upload::finish`] has answered for is on the disks and flushed; [`crate::Cache::host`] makes it
//! visible; dropping an upload before that gives its space back.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Poll, Waker};

use bytes::Bytes;
use outrider_artifact::Digest;
use xxhash_rust::xxh3::xxh3_64;

use crate::arena::ChunkWriter;
use crate::cache::Shared;
use crate::disk::record::{self, FLAG_LAST, Kind, Owner, Record};
use crate::disk::segment::Use;
use crate::engine::{Engine, clip};
use crate::error::CacheError;
use crate::index::{ObjectId, flag};
use crate::store::{Job, Purpose, Stripe, SyncFor, What};

/// Chunks of one upload that may wait for the disk; then `append` waits.
const PENDING_CHUNKS_MAX: u32 = 8;

/// The identity of an upload, chosen by the caller; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UploadId(pub [u8; 16]);

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What the engine keeps of an upload that is coming in.
pub(crate) struct UploadState {
    life: u32,
    pending: u32,
    error: Option<CacheError>,
    waker: Option<Waker>,
    /// All of it lies here, so that it stays together when the stripes are spread over shards anew.
    stripe: u16,
    syncs: u32,
}

/// The part of a handle that gives the space back.
struct Owned {
    shared: Rc<Shared>,
    object: ObjectId,
    life: u32,
    id: UploadId,
    /// Hosted: the space belongs to the cache now.
    released: bool,
}

impl Drop for Owned {
    fn drop(&mut self) {
        if !self.released {
            self.shared.with(|engine| engine.abandon(self.object, self.life));
        }
    }
}

impl Owned {
    async fn read_back(&self, chunk: u32) -> Result<Bytes, CacheError> {
        let found = self.shared.read(self.object, chunk).await?;
        found.map(|chunk| chunk.bytes).ok_or_else(|| CacheError::UploadDamaged {
            id: self.id,
            detail: format!("chunk {chunk} cannot be read back"),
        })
    }

    /// Waits until the state of the upload says so.
    async fn wait_until(&self, ready: impl Fn(&UploadState) -> bool) -> Result<(), CacheError> {
        poll_fn(|context| {
            self.shared.with(|engine| {
                let Some(state) = engine.uploads.get_mut(&self.object) else {
                    return Poll::Ready(Err(CacheError::UploadMissing(self.id)));
                };
                if let Some(error) = &state.error {
                    return Poll::Ready(Err(error.clone()));
                }
                if ready(state) {
                    return Poll::Ready(Ok(()));
                }
                state.waker = Some(context.waker().clone());
                Poll::Pending
            })
        })
        .await
    }
}

/// An upload that is coming in. Dropping it gives its space back.
pub struct Upload {
    owned: Owned,
    /// The chunk that is being filled; full ones stay here until more comes, since the last chunk
    /// is marked as such.
    writer: Option<ChunkWriter>,
    chunk_bytes: usize,
    /// Chunks before the writer's.
    chunks: u32,
    len: u64,
    /// What its stripe takes at the most.
    len_max: u64,
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Upload({}, {} bytes)", self.owned.id, self.len)
    }
}

impl Upload {
    pub(crate) fn new(
        shared: Rc<Shared>,
        object: ObjectId,
        life: u32,
        id: UploadId,
        chunk_bytes: usize,
        len_max: u64,
    ) -> Self {
        let owned = Owned { shared, object, life, id, released: false };
        Self { owned, writer: None, chunk_bytes, chunks: 0, len: 0, len_max }
    }

    /// Its identity.
    pub fn id(&self) -> UploadId {
        self.owned.id
    }

    /// Bytes taken so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// How much it can take in all: what its stripe takes.
    pub fn len_max(&self) -> u64 {
        self.len_max
    }

    /// Whether nothing was taken yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes all of `data`; waits while the disks cannot keep up. Copies into the arena. After an
    /// error the upload is only good for dropping: part of `data` may have been taken.
    ///
    /// # Errors
    /// `Busy` when no slot came free in time, `StoreFull`, `Write`; `TooLarge` when it would be more
    /// than any stripe takes.
    pub async fn append(&mut self, mut data: &[u8]) -> Result<(), CacheError> {
        let size = self.len.saturating_add(data.len() as u64);
        if size > self.len_max {
            return Err(CacheError::TooLarge { size, limit: self.len_max });
        }
        while !data.is_empty() {
            if let Some(writer) = self.writer.take_if(|writer| writer.len() == writer.capacity()) {
                self.owned.wait_until(|state| state.pending < PENDING_CHUNKS_MAX).await?;
                self.send(writer, false);
            }
            let writer = match &mut self.writer {
                Some(writer) => writer,
                None => {
                    let writer = self.owned.shared.slot(self.chunk_bytes).await?;
                    self.writer.insert(writer)
                }
            };
            let taken = writer.append(data);
            self.len += taken as u64;
            data = &data[taken..];
        }
        Ok(())
    }

    fn send(&mut self, writer: ChunkWriter, last: bool) {
        let (object, id, chunk, total) = (self.owned.object, self.owned.id, self.chunks, self.len);
        self.owned.shared.with(|engine| {
            engine.upload_chunk(object, id, chunk, writer, last.then_some(total));
        });
        self.chunks += 1;
    }

    /// Chunk `chunk` of what was taken so far (the last one may be short), to be hashed again.
    ///
    /// # Errors
    /// `Busy`; `UploadDamaged` when there is no such chunk or the disk lost it.
    pub async fn read_back(&self, chunk: u32) -> Result<Bytes, CacheError> {
        match &self.writer {
            Some(writer) if chunk == self.chunks => Ok(writer.prefix(0, writer.len())),
            _ => self.owned.read_back(chunk).await,
        }
    }

    /// Resolves when all of it is on the disks and flushed.
    ///
    /// # Errors
    /// As [`Upload::append`]. The space was given back then.
    pub async fn finish(mut self) -> Result<StoredUpload, CacheError> {
        if let Some(writer) = self.writer.take() {
            self.send(writer, true);
        }
        self.owned.wait_until(|state| state.pending == 0).await?;
        self.owned.shared.with(|engine| engine.sync_upload(self.owned.object));
        self.owned.wait_until(|state| state.syncs == 0).await?;
        Ok(StoredUpload { owned: self.owned, size: self.len })
    }
}

/// An upload that is durable and has no name yet. Dropping it gives its space back.
pub struct StoredUpload {
    owned: Owned,
    size: u64,
}

impl fmt::Debug for StoredUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoredUpload({}, {} bytes)", self.owned.id, self.size)
    }
}

impl StoredUpload {
    /// Its identity.
    pub fn id(&self) -> UploadId {
        self.owned.id
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Chunk `chunk`, to be hashed again.
    ///
    /// # Errors
    /// `Busy`; `UploadDamaged` when there is no such chunk or the disk lost it.
    pub async fn read_back(&self, chunk: u32) -> Result<Bytes, CacheError> {
        self.owned.read_back(chunk).await
    }

    /// Hands the space over to the cache.
    pub(crate) fn release(mut self) -> (ObjectId, u64) {
        self.owned.released = true;
        (self.owned.object, self.size)
    }
}

impl Engine {
    /// The stripe that has the most room for an upload; of several those in turn.
    pub(crate) fn upload_stripe(&self, id: Option<UploadId>) -> Result<u16, CacheError> {
        let Some(store) = &self.store else { return Err(CacheError::NoDisk) };
        if store.stripes.iter().all(|stripe| !stripe.writable()) {
            return Err(CacheError::NoDisk);
        }
        let oldest = store.oldest();
        let has_room = |stripe: &Stripe| {
            let may_grow = stripe.upload_segments < stripe.upload_segments_max
                && (stripe.free.len() > 1 || stripe.can_reclaim(Use::Cache, oldest, store.layout));
            let has_open = stripe.open[Use::Uploads as usize].is_some();
            stripe.writable()
                && (may_grow
                    || has_open
                    || stripe.candidate(Use::Uploads, oldest, store.layout).is_some())
        };
        let count = store.stripes.len() as u64;
        let turn = id.map_or(0, |id| xxh3_64(&id.0) % count);
        let roomiest =
            store.stripes.iter().enumerate().filter(|(_, stripe)| has_room(stripe)).max_by_key(
                |(number, stripe)| {
                    let grows = stripe.upload_segments_max.saturating_sub(stripe.upload_segments);
                    (grows, (*number as u64 + count - turn) % count)
                },
            );
        roomiest.map(|(stripe, _)| stripe as u16).ok_or(CacheError::StoreFull)
    }

    pub(crate) fn start_upload(
        &mut self,
        id: UploadId,
    ) -> Result<(ObjectId, u32, u64), CacheError> {
        let stripe = self.upload_stripe(Some(id)).inspect_err(|error| {
            if matches!(error, CacheError::StoreFull) {
                self.metrics.refused_store_full.inc();
            }
        })?;
        let len_max = self.store.as_ref().map_or(0, |store| store.upload_bytes_max(stripe));
        let life = self.next_sequence() as u32;
        let object = self.index.add_upload(life).map_err(CacheError::TooMany)?;
        self.upload_ids.insert(object, id);
        self.objects_of_uploads.insert(id, object);
        let state = UploadState { life, pending: 0, error: None, waker: None, stripe, syncs: 0 };
        self.uploads.insert(object, state);
        Ok((object, life, len_max))
    }

    /// Queues a chunk of an upload. `total`: it is the last one, and this is the size of all.
    fn upload_chunk(
        &mut self,
        object: ObjectId,
        id: UploadId,
        chunk: u32,
        writer: ChunkWriter,
        total: Option<u64>,
    ) {
        let sequence = self.next_sequence();
        let len = writer.len() as u64;
        let frozen = self.ram.freeze(writer);
        self.index.grow_upload(object, chunk + 1);
        let size = u64::from(chunk) * self.config.geometry.chunk_bytes + len;
        self.index.set_size(object, size);
        self.ram.install(object, chunk, frozen, &mut self.index);
        let lent = self.ram.borrow(object, chunk, &self.index);
        let (Some(store), Some((mut frozen, birth))) = (&mut self.store, lent) else { return };
        let record = Record {
            kind: Kind::UploadChunk,
            flags: if total.is_some() { FLAG_LAST } else { 0 },
            payload_bytes: len as u32,
            sequence,
            owner: Owner::Upload(id),
            chunk,
            life: 0,
            object_size: total.unwrap_or(0),
            origin: 0,
            customer: 0,
            media_type: String::new(),
            payload_hash: record::payload_hash(store.seed, frozen.payload()),
        };
        record.write(frozen.header_mut());
        frozen.clear_padding();
        let Some(state) = self.uploads.get_mut(&object) else { return };
        let stripe = state.stripe;
        if !store.stripes[stripe as usize].writable() {
            let error = store.lost_to(stripe, io::ErrorKind::Other);
            self.ram.give_back(object, chunk, birth, frozen, &self.index);
            return self.upload_failed(object, error);
        }
        state.pending += 1;
        let what = What::Upload { object, life: state.life, chunk, birth };
        let job = Job { frozen, purpose: Purpose::Upload, what };
        store.stripes[stripe as usize].uploads.push_back(job);
        self.pump();
    }

    pub(crate) fn upload_written(&mut self, object: ObjectId) {
        if let Some(state) = self.uploads.get_mut(&object) {
            state.pending -= 1;
            self.wakers.extend(state.waker.take());
        }
    }

    pub(crate) fn upload_failed(&mut self, object: ObjectId, error: CacheError) {
        if matches!(error, CacheError::StoreFull) {
            self.metrics.refused_store_full.inc();
        }
        if let Some(state) = self.uploads.get_mut(&object) {
            state.error.get_or_insert(error);
            self.wakers.extend(state.waker.take());
        }
    }

    /// Asks for a flush of the stripe of the upload.
    fn sync_upload(&mut self, object: ObjectId) {
        let (Some(state), Some(store)) = (self.uploads.get_mut(&object), &mut self.store) else {
            return;
        };
        let stripe = &mut store.stripes[state.stripe as usize];
        stripe.sync_next.push(SyncFor::Upload(object, state.life));
        state.syncs += 1;
        self.pump();
    }

    pub(crate) fn upload_synced(&mut self, object: ObjectId) {
        if let Some(state) = self.uploads.get_mut(&object) {
            state.syncs -= 1;
            self.wakers.extend(state.waker.take());
        }
    }

    fn abandon(&mut self, object: ObjectId, life: u32) {
        if self.index.alive(object, life) {
            self.drop_object(object);
        }
    }

    pub(crate) fn object_of_upload(&self, id: UploadId) -> Option<ObjectId> {
        self.objects_of_uploads.get(&id).copied()
    }

    /// Makes an upload (stored now, or recovered) the object of a digest.
    pub(crate) fn host(
        &mut self,
        object: ObjectId,
        digest: &Digest,
        size: u64,
        media_type: &str,
    ) -> Result<(), CacheError> {
        if let Some(other) = self.index.find(digest) {
            // Copies from an origin (or an older upload) make way, and must not come back beside
            // what is hosted when that is deleted.
            let cached = !self.index.has(other, flag::HOSTED);
            let on_disk = (0..self.index.chunks(other))
                .any(|chunk| self.index.entry(other, chunk).location().is_some());
            self.drop_object(other);
            if cached && on_disk {
                self.bury(digest);
            }
        }
        self.uploads.remove(&object);
        self.index.host(object, digest, size, clip(media_type)).map_err(CacheError::TooMany)?;
        self.hosted += 1;
        self.rescore(object);
        Ok(())
    }

    /// Checks a recovered upload and makes it visible.
    pub(crate) fn adopt(
        &mut self,
        id: UploadId,
        digest: &Digest,
        size: u64,
        media_type: &str,
    ) -> Result<(), CacheError> {
        if size == 0 {
            // An empty object has no chunk that could be missing.
            let life = self.next_sequence() as u32;
            let object = self.index.add_upload(life).map_err(CacheError::TooMany)?;
            self.upload_ids.insert(object, id);
            self.objects_of_uploads.insert(id, object);
            return self.host(object, digest, 0, media_type);
        }
        let Some(recovered) = self.recovered.get_mut(&id) else {
            return Err(CacheError::UploadMissing(id));
        };
        // Whatever is left of something with a name is kept: the next start may read more of it.
        recovered.named = true;
        let (object, found) = (recovered.object, recovered.size);
        let damaged = |detail: String| Err(CacheError::UploadDamaged { id, detail });
        let expected = size.div_ceil(self.config.geometry.chunk_bytes) as u32;
        let missing = (0..expected)
            .filter(|chunk| self.index.entry(object, *chunk).location().is_none())
            .count();
        if missing > 0 {
            return damaged(format!("{missing} of its {expected} chunks are missing or damaged"));
        }
        match found {
            Some(found) if found == size => {}
            Some(found) => return damaged(format!("it has {found} bytes, not {size}")),
            None => return damaged("its end is missing".to_owned()),
        }
        self.recovered.remove(&id);
        self.host(object, digest, size, media_type)
    }

    pub(crate) fn drop_unadopted(&mut self) {
        let mut left: Vec<ObjectId> = self
            .recovered
            .values()
            .filter(|recovered| !recovered.named)
            .map(|recovered| recovered.object)
            .collect();
        left.sort_unstable();
        for object in left {
            self.drop_object(object);
        }
        self.pump();
    }
}

/// An upload that the scan found and nobody adopted yet.
pub(crate) struct Recovered {
    pub(crate) object: ObjectId,
    /// What its last chunk says; `None` when that is missing.
    pub(crate) size: Option<u64>,
    /// Someone tried to adopt it.
    pub(crate) named: bool,
}
