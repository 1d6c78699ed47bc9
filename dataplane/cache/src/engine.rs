//! The engine: ties index, RAM and SSD together. Everything that moves, moves in [`Engine::turn`].
//!
//! It owns all state of a shard's cache. It never wakes anyone while it is borrowed: wakers are
//! collected and handed to the caller.

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashMap;
use outrider_artifact::Digest;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::admission::Doorkeeper;
use crate::arena::{ChunkWriter, HEADER_BYTES, SlotMut, record_bytes};
use crate::cache::{Access, Chunk, Origin, Tier};
use crate::config::CacheConfig;
use crate::disk::record::{self, Kind, Owner, Record};
use crate::disk::segment::{SegmentHeader, SegmentState, Use};
use crate::disk::{Completion, Operation};
use crate::error::CacheError;
use crate::index::{Index, Location, NewObject, ObjectId, flag};
use crate::metrics::CacheMetrics;
use crate::policy::{ImportancePolicy, Policy};
use crate::ram::Ram;
use crate::store::{
    Action, Job, Mark, Placement, Purpose, Queue, Store, SyncFor, WRITES_MAX, What,
};
use crate::upload::{Recovered, UploadId, UploadState};
use crate::wait::{Waiter, abandoned};

/// Waiters for slots (fills and reads) at most; the next one is told `Busy` at once.
const SLOT_WAITERS_MAX: usize = 1024;
/// Bytes of cached chunks that may wait for their write, of an arena of this many bytes: one part in.
const WRITE_QUEUE_ARENA_PART: u64 = 4;
/// And never more than this.
const WRITE_QUEUE_BYTES_MAX: u64 = 64 << 20;
/// Objects without any chunk that are remembered (a fill may be on its way), at most.
const EMPTY_OBJECTS_MAX: usize = 4096;
/// Chunks that one access may send to SSD, when it is the second one of its object.
const PROMOTIONS_PER_TOUCH_MAX: u32 = 64;
/// A stripe's failed writes of one upload chunk before the upload fails.
const UPLOAD_ATTEMPTS_MAX: u32 = 3;
/// Stripes that a tombstone tries one after the other.
const MARK_ATTEMPTS_MAX: u32 = 3;
/// Blocks of a record without payload.
const MARK_BLOCKS: u32 = 1;
/// Seals and tombstones that may wait to be written.
const MARKS_MAX: u32 = 1 << 16;

/// Time since some fixed point, as an argument: a simulation has its own.
pub(crate) trait Time {
    fn now(&self) -> Duration;
}

/// The sequence of records and segments: one for all caches of a process.
pub(crate) type Sequence = Arc<AtomicU64>;

pub(crate) type ReadResult = Result<Option<Chunk>, CacheError>;

/// A read from SSD that several may wait for.
struct Read {
    location: Location,
    bytes: u32,
    waiters: Vec<Rc<Waiter<ReadResult>>>,
}

type ReadKey = (ObjectId, u32, u32);

/// Someone who needs a slot.
enum SlotWait {
    Fill { payload_bytes: usize, waiter: Rc<Waiter<Result<ChunkWriter, CacheError>>> },
    Read(ReadKey),
}

/// Writes of an object that are under way, and the seal that waits for them.
#[derive(Default)]
struct Pending {
    writes: u32,
    seal: Option<(u64, Digest)>,
}

pub(crate) struct Engine {
    pub(crate) config: CacheConfig,
    pub(crate) metrics: CacheMetrics,
    pub(crate) index: Index,
    pub(crate) ram: Ram,
    pub(crate) store: Option<Store>,
    policy: ImportancePolicy,
    doorkeeper: Doorkeeper,
    sequence: Sequence,
    time: Box<dyn Time>,
    reads: HashMap<ReadKey, Read>,
    /// Reads that have their slot and wait for room in the queue of the disk.
    ready: VecDeque<(ReadKey, SlotMut)>,
    slot_waiters: VecDeque<(Duration, SlotWait)>,
    pending: HashMap<ObjectId, Pending>,
    /// Objects without chunks, oldest first.
    empties: VecDeque<(ObjectId, u32)>,
    pub(crate) uploads: HashMap<ObjectId, UploadState>,
    /// Which upload an object (hosted, or still coming in) lies under on disk.
    pub(crate) upload_ids: HashMap<ObjectId, UploadId>,
    pub(crate) objects_of_uploads: HashMap<UploadId, ObjectId>,
    /// Uploads that the scan found and that nobody has adopted yet.
    pub(crate) recovered: HashMap<UploadId, Recovered>,
    pub(crate) hosted: u64,
    /// Reclaims that were started.
    pub(crate) reclaims: u64,
    /// Tombstones and seals that are queued or being written, and who waits for them.
    marks: u32,
    flush_waiters: Vec<Rc<Waiter<()>>>,
    flush_syncs: u32,
    flushing: Vec<Rc<Waiter<()>>>,
    pub(crate) wakers: Vec<Waker>,
}

impl Engine {
    pub(crate) fn new(
        config: CacheConfig,
        ram: Ram,
        store: Option<Store>,
        sequence: Sequence,
        time: Box<dyn Time>,
        metrics: CacheMetrics,
    ) -> Self {
        Self {
            index: Index::new(config.seed, config.geometry.chunk_bytes),
            policy: ImportancePolicy { weights: config.weights },
            config,
            metrics,
            ram,
            store,
            doorkeeper: Doorkeeper::new(),
            sequence,
            time,
            reads: HashMap::new(),
            ready: VecDeque::new(),
            slot_waiters: VecDeque::new(),
            pending: HashMap::new(),
            empties: VecDeque::new(),
            uploads: HashMap::new(),
            upload_ids: HashMap::new(),
            objects_of_uploads: HashMap::new(),
            recovered: HashMap::new(),
            hosted: 0,
            reclaims: 0,
            marks: 0,
            flush_waiters: Vec::new(),
            flush_syncs: 0,
            flushing: Vec::new(),
            wakers: Vec::new(),
        }
    }

    pub(crate) fn next_sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed)
    }

    /// All later sequences are higher than this one.
    pub(crate) fn raise_sequence(&self, seen: u64) {
        self.sequence.fetch_max(seen + 1, Ordering::Relaxed);
    }

    // ---- the turn

    /// Collects what is done and starts what can be started; `true` when something moved.
    pub(crate) fn turn(&mut self) -> bool {
        let mut moved = self.ram.collect(&mut self.index);
        let mut done = Vec::new();
        if let Some(store) = &mut self.store {
            std::mem::swap(&mut done, &mut store.done);
            store.disk.turn(&mut done);
        }
        moved |= !done.is_empty();
        for completion in done.drain(..) {
            self.complete(completion);
        }
        if let Some(store) = &mut self.store
            && store.done.is_empty()
        {
            // Keeps the allocation.
            store.done = done;
        }
        moved |= self.serve_waiters();
        moved |= self.pump();
        self.drop_empties();
        moved
    }

    pub(crate) fn in_flight(&self) -> bool {
        !self.slot_waiters.is_empty()
            || !self.ready.is_empty()
            || self.store.as_ref().is_some_and(Store::busy)
    }

    /// Starts reads, writes, flushes and reclaim as far as the bounds allow, and hands them over.
    pub(crate) fn pump(&mut self) -> bool {
        if self.store.is_none() {
            return false;
        }
        let mut moved = self.pump_reads();
        moved |= self.pump_writes();
        moved |= self.pump_reclaim();
        moved |= self.pump_syncs();
        if moved {
            self.hand_over();
        }
        moved
    }

    fn hand_over(&mut self) {
        if let Some(store) = &mut self.store {
            let mut done = std::mem::take(&mut store.done);
            store.disk.turn(&mut done);
            store.done = done;
        }
    }

    fn complete(&mut self, completion: Completion) {
        let Completion { request, result } = completion;
        let Some(store) = &mut self.store else { return };
        let action = store.finished(&request);
        let stripe = request.stripe;
        if let Err(error) = &result {
            self.count_error(stripe, &request.operation, error);
        }
        match (action, request.operation) {
            (
                Action::ReadChunk { object, life, chunk, location },
                Operation::Read { slot, len, .. },
            ) => {
                self.metrics.disk_read_bytes.inc_by(u64::from(len));
                self.read_done((object, life, chunk), location, slot, result.is_ok());
            }
            (
                Action::WriteRecord { purpose, what, location, blocks },
                Operation::Write { frozen, .. },
            ) => self.write_done(Job { frozen, purpose, what }, location, blocks, result),
            (Action::OpenSegment { segment }, _) => self.open_done(stripe, segment, result.is_ok()),
            (Action::EndSegment { segment }, _) => {
                if let Some(store) = &mut self.store {
                    store.stripes[stripe as usize].segments[segment as usize].writers -= 1;
                }
            }
            (Action::EraseSegment { segment }, _) => {
                self.erased(stripe, segment, result.is_ok());
            }
            (Action::ReclaimHeader { location }, Operation::Read { slot, .. }) => {
                self.reclaim_header(location, slot, result.is_ok());
            }
            (Action::ReclaimRead { location }, Operation::Read { slot, len, .. }) => {
                self.metrics.disk_read_bytes.inc_by(u64::from(len));
                self.reclaim_read(location, slot, result.is_ok());
            }
            (Action::Sync, _) => self.sync_done(stripe, result),
            _ => unreachable!("an action belongs to one kind of operation"),
        }
        self.check_stripe(stripe);
    }

    fn count_error(&mut self, stripe: u16, operation: &Operation, error: &io::Error) {
        let (counter, name) = match operation {
            Operation::Read { .. } => (&self.metrics.errors_read, "read"),
            Operation::Write { .. } => (&self.metrics.errors_write, "write"),
            Operation::Sync => (&self.metrics.errors_sync, "sync"),
        };
        counter.inc();
        let Some(store) = &mut self.store else { return };
        let target = &mut store.stripes[stripe as usize];
        if error.kind() == io::ErrorKind::StorageFull {
            if !target.read_only {
                tracing::error!(stripe, "the disk is full: this stripe takes no more writes");
            }
            target.read_only = true;
            return;
        }
        target.errors += 1;
        tracing::error!(stripe, operation = name, %error, errors = target.errors, "stripe error");
    }

    /// Takes a stripe out of service after too many errors: its content becomes misses.
    fn check_stripe(&mut self, stripe: u16) {
        let Some(store) = &mut self.store else { return };
        let target = &mut store.stripes[stripe as usize];
        if !target.out && target.errors >= store.errors_max {
            tracing::error!(stripe, errors = target.errors, "stripe taken out of service");
            target.out = true;
            self.metrics.stripes_out.inc();
            self.drop_locations(|location| location.stripe == stripe, "stripe");
        }
        let Some(store) = &mut self.store else { return };
        let target = &mut store.stripes[stripe as usize];
        if target.writable() || !target.queued() {
            return;
        }
        let marks = std::mem::take(&mut target.marks);
        let jobs: Vec<Job> = std::mem::take(&mut target.moves)
            .into_iter()
            .chain(std::mem::take(&mut target.uploads))
            .chain(std::mem::take(&mut target.cache))
            .collect();
        target.reclaim = None;
        for job in jobs {
            self.misplaced(stripe, job, None);
        }
        for Mark { record, what } in marks {
            self.mark_misplaced(stripe, record, what);
        }
    }

    /// Drops every location that matches; O(index), for rare events only.
    pub(crate) fn drop_locations(&mut self, matches: impl Fn(Location) -> bool, reason: &str) {
        for object in 0..self.index.slots() {
            if self.index.is_free(object) {
                continue;
            }
            for chunk in 0..self.index.chunks(object) {
                if self.index.entry(object, chunk).location().is_some_and(&matches) {
                    let counter = match reason {
                        "stripe" => &self.metrics.evicted_stripe,
                        _ => &self.metrics.evicted_damaged,
                    };
                    counter.inc();
                    self.drop_location(object, chunk);
                }
            }
        }
    }

    fn is_out(&self, stripe: u16) -> bool {
        self.store.as_ref().is_none_or(|store| {
            let stripe = &store.stripes[stripe as usize];
            stripe.out || stripe.errors >= store.errors_max
        })
    }

    // ---- slots

    fn serve_waiters(&mut self) -> bool {
        let mut moved = false;
        while let Some((since, wait)) = self.slot_waiters.pop_front() {
            let served = match &wait {
                SlotWait::Fill { payload_bytes, waiter } => {
                    if abandoned(waiter) {
                        continue;
                    }
                    self.ram.slot(*payload_bytes, &mut self.index).map(|slot| {
                        let writer = ChunkWriter::new(slot, *payload_bytes);
                        waiter.complete(Ok(writer), &mut self.wakers);
                    })
                }
                SlotWait::Read(key) => match self.reads.get(key) {
                    None => continue,
                    Some(read) => {
                        let payload_bytes = read.bytes as usize - HEADER_BYTES;
                        self.ram.slot(payload_bytes, &mut self.index).map(|slot| {
                            self.ready.push_back((*key, slot));
                        })
                    }
                },
            };
            if served.is_some() {
                moved = true;
                continue;
            }
            if self.time.now() < since + self.config.slot_wait_max {
                self.slot_waiters.push_front((since, wait));
                break;
            }
            moved = true;
            self.metrics.refused_busy.inc();
            match wait {
                SlotWait::Fill { waiter, .. } => {
                    waiter.complete(Err(CacheError::Busy), &mut self.wakers);
                }
                SlotWait::Read(key) => self.answer_read(key, Err(CacheError::Busy)),
            }
        }
        if self.slot_waiters.is_empty() {
            self.ram.set_starving(false);
        }
        moved
    }

    fn wait_for_slot(&mut self, wait: SlotWait) -> Result<(), CacheError> {
        if self.slot_waiters.len() >= SLOT_WAITERS_MAX {
            self.metrics.refused_busy.inc();
            return Err(CacheError::Busy);
        }
        self.slot_waiters.push_back((self.time.now(), wait));
        self.ram.set_starving(true);
        Ok(())
    }

    /// A writer now, or a waiter for one.
    pub(crate) fn slot(
        &mut self,
        payload_bytes: usize,
    ) -> Result<Result<ChunkWriter, Rc<Waiter<Result<ChunkWriter, CacheError>>>>, CacheError> {
        let limit = self.config.geometry.chunk_bytes;
        if payload_bytes as u64 > limit {
            return Err(CacheError::TooLarge { size: payload_bytes as u64, limit });
        }
        if self.slot_waiters.is_empty()
            && let Some(slot) = self.ram.slot(payload_bytes, &mut self.index)
        {
            return Ok(Ok(ChunkWriter::new(slot, payload_bytes)));
        }
        let waiter = Waiter::new();
        self.wait_for_slot(SlotWait::Fill { payload_bytes, waiter: waiter.clone() })?;
        Ok(Err(waiter))
    }

    // ---- reading

    /// A chunk in RAM. O(1).
    pub(crate) fn resident(&mut self, digest: &Digest, chunk: u32) -> Option<Chunk> {
        let object = self.index.find(digest)?;
        self.resident_of(object, chunk)
    }

    pub(crate) fn resident_of(&mut self, object: ObjectId, chunk: u32) -> Option<Chunk> {
        if chunk == 0 && self.index.get(object).size == 0 && !self.index.has(object, flag::UPLOAD) {
            let verified = self.index.verified(object);
            return Some(Chunk { bytes: Bytes::new(), tier: Tier::Ram, verified });
        }
        let bytes = self.ram.hit(object, chunk, &mut self.index)?;
        self.metrics.hits_ram.inc();
        self.metrics.bytes_ram.inc_by(bytes.len() as u64);
        Some(Chunk { bytes, tier: Tier::Ram, verified: self.index.entry(object, chunk).verified() })
    }

    /// Joins or starts a read from SSD. `Ok(None)`: it is not there.
    pub(crate) fn read(
        &mut self,
        object: ObjectId,
        chunk: u32,
    ) -> Result<Option<Rc<Waiter<ReadResult>>>, CacheError> {
        let life = self.index.get(object).life;
        let key = (object, life, chunk);
        let waiter = Waiter::new();
        if let Some(read) = self.reads.get_mut(&key) {
            read.waiters.push(waiter.clone());
            return Ok(Some(waiter));
        }
        let Some(location) = self.index.entry(object, chunk).location() else {
            return Ok(None);
        };
        let bytes = record_bytes(self.index.chunk_len(object, chunk));
        let payload_bytes = bytes - HEADER_BYTES;
        let slot = if self.slot_waiters.is_empty() {
            self.ram.slot(payload_bytes, &mut self.index)
        } else {
            None
        };
        // Making room may have taken the only chunk of this very object, never its location.
        match slot {
            Some(slot) => self.ready.push_back((key, slot)),
            None => self.wait_for_slot(SlotWait::Read(key))?,
        }
        self.reads
            .insert(key, Read { location, bytes: bytes as u32, waiters: vec![waiter.clone()] });
        if self.pump_reads() {
            self.hand_over();
        }
        Ok(Some(waiter))
    }

    fn pump_reads(&mut self) -> bool {
        let mut moved = false;
        while let Some(store) = &mut self.store
            && store.reads < store.queue_depth
            && let Some((key, slot)) = self.ready.pop_front()
        {
            moved = true;
            let (object, life, chunk) = key;
            let Some(read) = self.reads.get(&key) else { continue };
            // Everyone may have left, or the chunk may have moved or gone while the slot was awaited.
            let wanted = read.waiters.iter().any(|waiter| !abandoned(waiter));
            let location = if wanted && self.index.alive(object, life) {
                self.index.entry(object, chunk).location()
            } else {
                None
            };
            let Some(location) = location else {
                self.answer_read(key, Ok(None));
                continue;
            };
            let len = read.bytes;
            if let Some(read) = self.reads.get_mut(&key) {
                read.location = location;
            }
            store.segment_mut(location).readers += 1;
            store.submit(
                location.stripe,
                Action::ReadChunk { object, life, chunk, location },
                Operation::Read { slot, offset: Store::offset(location), len },
            );
        }
        moved
    }

    fn read_done(&mut self, key: ReadKey, location: Location, slot: SlotMut, ok: bool) {
        let (object, life, chunk) = key;
        let Some(store) = &mut self.store else { return };
        let seed = store.seed;
        let segment = store.segment_mut(location);
        segment.readers -= 1;
        let sequence = segment.sequence;
        let now = if self.index.alive(object, life) {
            self.index.entry(object, chunk).location()
        } else {
            None
        };
        if now != Some(location) {
            // Moved meanwhile: read it where it is now. Forgotten or replaced: these bytes answer
            // nobody.
            return match now {
                Some(_) => self.ready.push_back((key, slot)),
                None => self.answer_read(key, Ok(None)),
            };
        }
        let record = ok.then(|| record::parse_whole(slot.bytes(), seed, sequence).ok()).flatten();
        let expected = self.index.chunk_len(object, chunk);
        let record = record.filter(|record| {
            record.payload_bytes as usize == expected
                && record.chunk == chunk
                && self.belongs(object, &record.owner)
        });
        let Some(record) = record else {
            // What was uploaded here is never given up: the next read may fare better.
            let hosted = self.upload_ids.contains_key(&object);
            if ok {
                self.count_damage(location, hosted);
            }
            if !hosted {
                self.metrics.evicted_damaged.inc();
                self.drop_location(object, chunk);
            }
            return self.answer_read(key, Ok(None));
        };
        let frozen = slot.freeze(record.payload_bytes as usize);
        // A fill may have made it resident while the read ran; what is there stays.
        let bytes = match self.ram.hit(object, chunk, &mut self.index) {
            Some(bytes) => bytes,
            None => self.ram.install(object, chunk, frozen, &mut self.index),
        };
        let verified = self.index.entry(object, chunk).verified();
        self.answer_read(key, Ok(Some(Chunk { bytes, tier: Tier::Ssd, verified })));
    }

    pub(crate) fn count_damage(&self, location: Location, hosted: bool) {
        tracing::error!(?location, hosted, "a record on disk is damaged");
        if hosted {
            self.metrics.damaged_hosted.inc();
        } else {
            self.metrics.damaged_cached.inc();
        }
    }

    fn belongs(&self, object: ObjectId, owner: &Owner) -> bool {
        match owner {
            Owner::Object(digest) => {
                !self.upload_ids.contains_key(&object) && self.index.find(digest) == Some(object)
            }
            Owner::Upload(id) => self.upload_ids.get(&object) == Some(id),
            Owner::Nobody => false,
        }
    }

    fn answer_read(&mut self, key: ReadKey, result: ReadResult) {
        let Some(read) = self.reads.remove(&key) else { return };
        for waiter in read.waiters {
            match &result {
                Ok(Some(chunk)) => {
                    self.metrics.hits_ssd.inc();
                    self.metrics.bytes_ssd.inc_by(chunk.bytes.len() as u64);
                }
                Ok(None) => {
                    self.metrics.misses.inc();
                }
                Err(_) => {}
            }
            waiter.complete(result.clone(), &mut self.wakers);
        }
    }

    // ---- scores

    pub(crate) fn rescore(&mut self, object: ObjectId) {
        let score = self.policy.score(self.ram.clock, &self.index.inputs(object));
        self.index.get_mut(object).score = score;
    }

    pub(crate) fn touch(&mut self, digest: &Digest, access: Access) {
        let Some(object) = self.index.find(digest) else { return };
        let rose = self.index.touch(object, access.customer_hash, access.unix_s);
        self.rescore(object);
        if rose && self.index.get(object).frequency == 2 && !self.index.has(object, flag::HOSTED) {
            self.promote(object, digest);
        }
    }

    /// Sends the chunks that are only in RAM to SSD, since the object is asked for again.
    fn promote(&mut self, object: ObjectId, digest: &Digest) {
        let mut promoted = 0;
        for chunk in 0..self.index.chunks(object) {
            if promoted >= PROMOTIONS_PER_TOUCH_MAX {
                break;
            }
            let entry = self.index.entry(object, chunk);
            if entry.location().is_none()
                && self.ram.clean(object, chunk, &self.index)
                && self.enqueue_chunk(object, digest, chunk)
            {
                promoted += 1;
            }
        }
    }

    pub(crate) fn set_costs(&mut self, digest: &Digest, fetch_ms: u32, execute_ms: u32) {
        if let Some(object) = self.index.find(digest) {
            self.index.set_costs(object, fetch_ms, execute_ms);
            self.rescore(object);
        }
    }

    pub(crate) fn set_importance(&mut self, digest: &Digest, class: u8, dependants: u32) {
        if let Some(object) = self.index.find(digest) {
            self.index.set_importance(object, class, dependants);
            self.rescore(object);
        }
    }

    // ---- filling

    pub(crate) fn begin(
        &mut self,
        digest: &Digest,
        size: u64,
        media_type: &str,
        origin: Origin,
    ) -> Result<(), CacheError> {
        if let Some(object) = self.index.find(digest) {
            let known = self.index.get(object).size;
            return if known == size {
                Ok(())
            } else {
                Err(CacheError::SizeDiffers { known, offered: size })
            };
        }
        let limit = self.config.object_bytes_max;
        if size > limit {
            return Err(CacheError::TooLarge { size, limit });
        }
        let media_type = clip(media_type);
        let life = self.next_sequence() as u32;
        let new = NewObject { size, media_type, origin, life };
        let object = self.index.add(digest, &new).map_err(CacheError::TooMany)?;
        if self.doorkeeper.seen(self.index.filter_key(digest)) {
            self.index.set(object, flag::ADMITTED, true);
        }
        self.rescore(object);
        self.empties.push_back((object, life));
        Ok(())
    }

    /// Makes a filled slot a chunk. What is verified already is never replaced.
    pub(crate) fn insert(&mut self, digest: &Digest, chunk: u32, writer: ChunkWriter) -> Chunk {
        let object = self.index.find(digest).filter(|object| {
            writer.len() == self.index.chunk_len(*object, chunk) && !writer.is_empty()
        });
        let Some(object) = object else {
            // Not begun (or forgotten meanwhile), or not the chunk that it says: not kept.
            self.metrics.refused_unknown.inc();
            let bytes = writer.prefix(0, writer.len());
            return Chunk { bytes, tier: Tier::Ram, verified: false };
        };
        if self.index.entry(object, chunk).verified() {
            let bytes = writer.prefix(0, writer.len());
            return Chunk { bytes, tier: Tier::Ram, verified: false };
        }
        let frozen = self.ram.freeze(writer);
        // Unverified bytes of an earlier fill must not be taken for those that come now.
        if self.index.entry(object, chunk).location().is_some() {
            self.drop_location(object, chunk);
        }
        let bytes = self.ram.install(object, chunk, frozen, &mut self.index);
        if !self.index.has(object, flag::HOSTED) && self.admits(object, digest, chunk) {
            self.enqueue_chunk(object, digest, chunk);
        }
        Chunk { bytes, tier: Tier::Ram, verified: false }
    }

    fn admits(&mut self, object: ObjectId, digest: &Digest, chunk: u32) -> bool {
        let Some(stripe) = self.stripe_of(digest, chunk) else { return false };
        let Some(store) = &self.store else { return false };
        let wanted =
            self.index.get(object).frequency >= 2 || self.index.has(object, flag::ADMITTED);
        if wanted || store.has_spare(stripe) {
            return true;
        }
        self.metrics.refused_seen_once.inc();
        false
    }

    fn stripe_of(&self, digest: &Digest, chunk: u32) -> Option<u16> {
        let store = self.store.as_ref()?;
        let extent = u64::from(chunk) * store.geometry.chunk_bytes / store.geometry.extent_bytes;
        store.stripe_for(xxh3_64_with_seed(digest.value(), extent))
    }

    fn write_queue_max(&self) -> u64 {
        (self.ram.total_bytes() / WRITE_QUEUE_ARENA_PART).min(WRITE_QUEUE_BYTES_MAX)
    }

    /// Queues a resident chunk for SSD; `false` when it stays in RAM only.
    fn enqueue_chunk(&mut self, object: ObjectId, digest: &Digest, chunk: u32) -> bool {
        let Some(stripe) = self.stripe_of(digest, chunk) else { return false };
        let max = self.write_queue_max();
        let sequence = self.next_sequence();
        let Some(store) = &mut self.store else { return false };
        if store.queued_bytes >= max {
            self.metrics.refused_queue_full.inc();
            return false;
        }
        let Some((mut frozen, birth)) = self.ram.borrow(object, chunk, &self.index) else {
            return false;
        };
        let known = self.index.get(object);
        let (life, size) = (known.life, known.size);
        let record = Record {
            kind: Kind::Chunk,
            flags: 0,
            payload_bytes: frozen.payload_len() as u32,
            sequence,
            owner: Owner::Object(*digest),
            chunk,
            life: u64::from(life),
            object_size: size,
            origin: self.index.origin(object).0,
            media_type: self.index.media_type(object).to_string(),
            payload_hash: record::payload_hash(store.seed, frozen.payload()),
        };
        record.write(frozen.header_mut());
        frozen.clear_padding();
        store.queued_bytes += frozen.record_len() as u64;
        let what = What::Chunk { object, life, chunk, birth };
        store.stripes[stripe as usize].cache.push_back(Job {
            frozen,
            purpose: Purpose::Cache,
            what,
        });
        let pending = self.pending.entry(object).or_default();
        pending.writes += 1;
        // A verified chunk that reaches the disk after the seal needs a newer seal.
        if self.index.entry(object, chunk).verified() {
            self.want_seal(object, digest);
        }
        true
    }

    pub(crate) fn set_verified(&mut self, digest: &Digest) {
        let Some(object) = self.index.find(digest) else { return };
        if self.index.has(object, flag::HOSTED) {
            return;
        }
        if self.index.get(object).size == 0 {
            self.index.set(object, flag::EMPTY_VERIFIED, true);
        }
        for chunk in 0..self.index.chunks(object) {
            let entry = self.index.entry(object, chunk);
            if entry.present() {
                self.index.set_entry(object, chunk, entry.with_verified(true));
            }
        }
        self.want_seal(object, digest);
        self.pump();
    }

    /// Notes that a seal is to be written when no write of the object is under way. Its sequence is
    /// taken now: what is written later is not under it.
    fn want_seal(&mut self, object: ObjectId, digest: &Digest) {
        if self.store.is_none()
            || self.index.has(object, flag::TAINTED)
            || !self.index.present_verified(object)
        {
            return;
        }
        let sequence = self.next_sequence();
        self.pending.entry(object).or_default().seal = Some((sequence, *digest));
        self.settle(object);
    }

    /// Writes the seal that waits, if nothing else of the object is under way.
    fn settle(&mut self, object: ObjectId) {
        let Some(pending) = self.pending.get_mut(&object) else { return };
        if pending.writes > 0 {
            return;
        }
        let seal = pending.seal.take();
        self.pending.remove(&object);
        let Some((sequence, digest)) = seal else { return };
        if self.index.has(object, flag::TAINTED) {
            return;
        }
        let on_disk = (0..self.index.chunks(object))
            .any(|chunk| self.index.entry(object, chunk).location().is_some());
        if !on_disk && self.index.get(object).size > 0 {
            return;
        }
        let life = self.index.get(object).life;
        self.index.set(object, flag::SEALED, true);
        let record = Record {
            kind: Kind::Seal,
            flags: 0,
            payload_bytes: 0,
            sequence,
            owner: Owner::Object(digest),
            chunk: 0,
            life: u64::from(life),
            object_size: self.index.get(object).size,
            origin: self.index.origin(object).0,
            media_type: self.index.media_type(object).to_string(),
            payload_hash: 0,
        };
        self.enqueue_mark(record, &digest, What::Seal { object, life });
    }

    /// Queues a seal or a tombstone on the stripe of the object's first extent.
    fn enqueue_mark(&mut self, record: Record, digest: &Digest, what: What) {
        self.marks += 1;
        let stripe = self.stripe_of(digest, 0);
        match (stripe, &mut self.store) {
            (Some(stripe), Some(store)) if self.marks <= MARKS_MAX => {
                store.stripes[stripe as usize].marks.push_back(Mark { record, what });
            }
            // Without a seal the object is unverified after a restart, and hashed again.
            _ => self.mark_lost(what),
        }
    }

    fn lost_tombstone(&self) {
        self.metrics.lost_tombstones.inc();
        tracing::error!("a tombstone could not be written: a purge may be undone by a restart");
    }

    /// A mark cannot be written anywhere.
    fn mark_lost(&mut self, what: What) {
        match what {
            What::Seal { object, life } if self.index.alive(object, life) => {
                self.index.set(object, flag::SEALED, false);
            }
            What::Tombstone { .. } => self.lost_tombstone(),
            _ => {}
        }
        self.marks -= 1;
    }

    // ---- forgetting

    pub(crate) fn forget(&mut self, digest: &Digest) {
        if let Some(object) = self.index.find(digest) {
            if self.index.has(object, flag::HOSTED) {
                self.metrics.refused_hosted.inc();
                return;
            }
            self.metrics.evicted_forgotten.inc();
            self.drop_object(object);
        }
        // Also when it is unknown: a segment that was let go of may still hold it.
        self.bury(digest);
        self.pump();
    }

    /// Queues a tombstone.
    pub(crate) fn bury(&mut self, digest: &Digest) {
        if self.store.is_none() {
            return;
        }
        let record = Record {
            kind: Kind::Tombstone,
            flags: 0,
            payload_bytes: 0,
            sequence: self.next_sequence(),
            owner: Owner::Object(*digest),
            chunk: 0,
            life: 0,
            object_size: 0,
            origin: 0,
            media_type: String::new(),
            payload_hash: 0,
        };
        self.enqueue_mark(record, digest, What::Tombstone { attempts: 0 });
    }

    /// Lets go of everything an object has, and of the object.
    pub(crate) fn drop_object(&mut self, object: ObjectId) {
        for chunk in 0..self.index.chunks(object) {
            self.ram.remove(object, chunk, &mut self.index);
            self.drop_location(object, chunk);
        }
        if self.index.has(object, flag::HOSTED) {
            self.hosted -= 1;
        }
        self.pending.remove(&object);
        self.uploads.remove(&object);
        if let Some(id) = self.upload_ids.remove(&object) {
            self.objects_of_uploads.remove(&id);
            self.recovered.remove(&id);
        }
        self.index.remove(object);
    }

    /// Takes a chunk's record out of the index; the bytes stay on disk until reclaim.
    pub(crate) fn drop_location(&mut self, object: ObjectId, chunk: u32) {
        let entry = self.index.entry(object, chunk);
        let Some(location) = entry.location() else { return };
        let bytes = record_bytes(self.index.chunk_len(object, chunk));
        let score = self.index.get(object).score;
        if let Some(store) = &mut self.store {
            store.detach(location, bytes, score);
        }
        self.metrics.ssd_live_bytes.dec_by(bytes as i64);
        if self.upload_ids.contains_key(&object) {
            self.metrics.upload_bytes.dec_by(bytes as i64);
        } else if !entry.verified() {
            self.index.set(object, flag::TAINTED, true);
        }
        self.index.set_entry(object, chunk, entry.with_location(None));
        if self.index.empty(object) {
            self.ram.emptied.push((object, self.index.get(object).life));
        }
    }

    /// Points the index at a record.
    pub(crate) fn set_location(&mut self, object: ObjectId, chunk: u32, location: Location) {
        if self.index.entry(object, chunk).location().is_some() {
            self.drop_location(object, chunk);
        }
        let bytes = record_bytes(self.index.chunk_len(object, chunk));
        let score = self.index.get(object).score;
        if let Some(store) = &mut self.store {
            store.attach(location, bytes, score);
        }
        self.metrics.ssd_live_bytes.inc_by(bytes as i64);
        if self.upload_ids.contains_key(&object) {
            self.metrics.upload_bytes.inc_by(bytes as i64);
        }
        let entry = self.index.entry(object, chunk);
        self.index.set_entry(object, chunk, entry.with_location(Some(location)));
    }

    /// Forgets objects without chunks when there are too many of them.
    fn drop_empties(&mut self) {
        self.empties.extend(self.ram.emptied.drain(..));
        while self.empties.len() > EMPTY_OBJECTS_MAX {
            let Some((object, life)) = self.empties.pop_front() else { break };
            let droppable = self.index.alive(object, life)
                && !self.index.has(object, flag::HOSTED | flag::UPLOAD)
                && self.index.empty(object)
                && self.index.get(object).size > 0
                && !self.pending.contains_key(&object);
            if droppable {
                self.index.remove(object);
            }
        }
    }

    // ---- writing

    fn pump_writes(&mut self) -> bool {
        let stripes = self.store.as_ref().map_or(0, |store| store.stripes.len());
        let mut moved = false;
        for stripe in 0..stripes as u16 {
            while self.write_next(stripe) {
                moved = true;
            }
        }
        moved
    }

    /// Starts the next write of a stripe; `false` when none can start.
    fn write_next(&mut self, stripe: u16) -> bool {
        let Some(store) = &mut self.store else { return false };
        if store.writes >= WRITES_MAX {
            return false;
        }
        let target = &store.stripes[stripe as usize];
        let queued = [
            (Queue::Moves, !target.moves.is_empty()),
            (Queue::Uploads, !target.uploads.is_empty()),
            (Queue::Cache, !target.cache.is_empty()),
        ];
        let marks = !target.marks.is_empty();
        for (queue, waiting) in queued {
            if waiting && self.write_from(stripe, queue) {
                return true;
            }
            if queue == Queue::Moves && marks && self.write_mark(stripe) {
                return true;
            }
        }
        false
    }

    fn write_from(&mut self, stripe: u16, queue: Queue) -> bool {
        let Some(store) = &mut self.store else { return false };
        let Some(job) = store.stripes[stripe as usize].queue(queue).front() else { return false };
        let (purpose, blocks, wanted) = (job.purpose, job.blocks(), is_wanted(&self.index, job));
        let placement = if wanted {
            store.place(stripe, purpose, blocks)
        } else {
            // A record of what was forgotten must not come into a segment that is younger than its
            // tombstone: that may be dropped once all older segments are gone.
            Placement::Full
        };
        match placement {
            Placement::Wait => false,
            Placement::Open(segment) => self.open_segment(stripe, segment, purpose),
            Placement::At(_) | Placement::Full => {
                let job = store.stripes[stripe as usize].queue(queue).pop_front();
                let job = job.expect("it was just looked at");
                match placement {
                    Placement::At(location) => self.write_record(job, location, blocks),
                    _ => self.misplaced(stripe, job, None),
                }
                true
            }
        }
    }

    fn write_mark(&mut self, stripe: u16) -> bool {
        let Some(slot) = self.ram.system_slot(0) else { return false };
        let Some(store) = &mut self.store else { return false };
        match store.place(stripe, Purpose::Mark, MARK_BLOCKS) {
            Placement::Wait => false,
            Placement::Open(segment) => self.open_segment(stripe, segment, Purpose::Mark),
            Placement::Full => {
                let mark = store.stripes[stripe as usize].marks.pop_front();
                if let Some(Mark { record, what }) = mark {
                    self.mark_misplaced(stripe, record, what);
                }
                true
            }
            Placement::At(location) => {
                let mark = store.stripes[stripe as usize].marks.pop_front();
                let Mark { mut record, what } = mark.expect("it was just looked at");
                record.payload_hash = record::payload_hash(store.seed, &[]);
                let mut frozen = slot.freeze(0);
                record.write(frozen.header_mut());
                frozen.clear_padding();
                let job = Job { frozen, purpose: Purpose::Mark, what };
                self.write_record(job, location, MARK_BLOCKS);
                true
            }
        }
    }

    /// A mark that found no place on its stripe (or could not be written there).
    fn mark_misplaced(&mut self, stripe: u16, record: Record, what: What) {
        let elsewhere = self.store.as_ref().and_then(|store| store.stripe_after(stripe));
        match (what, elsewhere, &mut self.store) {
            (What::Tombstone { attempts }, Some(next), Some(store))
                if attempts < MARK_ATTEMPTS_MAX =>
            {
                let what = What::Tombstone { attempts: attempts + 1 };
                store.stripes[next as usize].marks.push_back(Mark { record, what });
            }
            _ => self.mark_lost(what),
        }
    }

    fn write_record(&mut self, job: Job, location: Location, blocks: u32) {
        let Some(store) = &mut self.store else { return };
        let Job { mut frozen, purpose, what } = job;
        let sequence = store.segment_mut(location).sequence;
        record::bind(frozen.header_mut(), store.seed, sequence);
        if purpose == Purpose::Cache {
            store.queued_bytes -= frozen.record_len() as u64;
        }
        self.metrics.disk_written_bytes.inc_by(frozen.record_len() as u64);
        store.submit(
            location.stripe,
            Action::WriteRecord { purpose, what, location, blocks },
            Operation::Write { frozen, offset: Store::offset(location) },
        );
    }

    /// Starts a segment: its header is written before any record. `false`: no slot for the header.
    fn open_segment(&mut self, stripe: u16, index: u32, purpose: Purpose) -> bool {
        let content = purpose.content();
        let slot = self.ram.system_slot(0);
        let sequence = self.next_sequence();
        let Some(store) = &mut self.store else { return false };
        let Some(mut slot) = slot else {
            store.stripes[stripe as usize].free.push_front(index);
            return false;
        };
        let end = store.close(stripe, content);
        let header = SegmentHeader { stripe, index, sequence, content };
        slot.bytes_mut().fill(0);
        header.write(slot.bytes_mut(), store.seed);
        let frozen = slot.freeze(0);
        let first = Location { stripe, block: store.layout.first_block(index) };
        let cursor = store.layout.first_record(index);
        let target = &mut store.stripes[stripe as usize];
        let segment = &mut target.segments[index as usize];
        segment.state = SegmentState::Opening;
        segment.content = content;
        segment.sequence = sequence;
        segment.cursor = cursor;
        segment.writers = 1;
        target.open[content as usize] = Some(index);
        if content == Use::Uploads {
            target.upload_segments += 1;
        }
        store.submit(
            stripe,
            Action::OpenSegment { segment: index },
            Operation::Write { frozen, offset: Store::offset(first) },
        );
        if let Some(end) = end {
            self.end_segment(end);
        }
        true
    }

    /// Marks the end of a segment's records, so that a scan need not look further. Optional.
    fn end_segment(&mut self, location: Location) {
        let Some(slot) = self.ram.system_slot(0) else { return };
        let sequence = self.next_sequence();
        let Some(store) = &mut self.store else { return };
        let mut frozen = slot.freeze(0);
        let record = Record {
            kind: Kind::End,
            flags: 0,
            payload_bytes: 0,
            sequence,
            owner: Owner::Nobody,
            chunk: 0,
            life: 0,
            object_size: 0,
            origin: 0,
            media_type: String::new(),
            payload_hash: record::payload_hash(store.seed, &[]),
        };
        record.write(frozen.header_mut());
        frozen.clear_padding();
        let segment = store.segment_mut(location);
        segment.writers += 1;
        let life = segment.sequence;
        record::bind(frozen.header_mut(), store.seed, life);
        let segment = store.layout.segment_of(location.block);
        store.submit(
            location.stripe,
            Action::EndSegment { segment },
            Operation::Write { frozen, offset: Store::offset(location) },
        );
    }

    fn open_done(&mut self, stripe: u16, index: u32, ok: bool) {
        let Some(store) = &mut self.store else { return };
        let target = &mut store.stripes[stripe as usize];
        let segment = &mut target.segments[index as usize];
        segment.writers -= 1;
        if ok {
            segment.state = SegmentState::Open;
            return;
        }
        segment.state = SegmentState::Bad;
        let content = segment.content;
        target.open[content as usize] = None;
        if content == Use::Uploads {
            target.upload_segments -= 1;
        }
    }

    /// A record that found no place on its stripe (or could not be written there).
    fn misplaced(&mut self, stripe: u16, job: Job, error: Option<io::ErrorKind>) {
        let elsewhere = self.store.as_ref().and_then(|store| store.stripe_after(stripe));
        let newer = self.next_sequence();
        let Job { mut frozen, purpose, what } = job;
        match what {
            What::Chunk { object, life, chunk, birth } => {
                if error.is_none() {
                    self.metrics.refused_no_room.inc();
                    if let Some(store) = &mut self.store {
                        store.queued_bytes -= frozen.record_len() as u64;
                    }
                }
                if self.index.alive(object, life) {
                    let same = self.ram.give_back(object, chunk, birth, frozen, &self.index);
                    if error.is_some() && !(same && self.index.entry(object, chunk).verified()) {
                        // What was written in vain may be on the disk all the same.
                        self.index.set(object, flag::TAINTED, true);
                    }
                    self.write_settled(object);
                }
            }
            What::Upload { object, life, chunk, birth, attempts } => {
                if !self.index.alive(object, life) {
                    return;
                }
                match elsewhere {
                    Some(next) if attempts + 1 < self.upload_attempts_max() => {
                        let what =
                            What::Upload { object, life, chunk, birth, attempts: attempts + 1 };
                        self.upload_moved(object, next);
                        // What was written in vain may be on the disk in part: this one counts.
                        record::renew(frozen.header_mut(), newer);
                        if let Some(store) = &mut self.store {
                            store.stripes[next as usize].uploads.push_back(Job {
                                frozen,
                                purpose,
                                what,
                            });
                        }
                    }
                    _ => {
                        self.ram.give_back(object, chunk, birth, frozen, &self.index);
                        let error = match error {
                            Some(kind) => CacheError::Write { stripe, kind },
                            None => CacheError::StoreFull,
                        };
                        self.upload_failed(object, error);
                    }
                }
            }
            What::Tombstone { .. } | What::Seal { .. } => {
                unreachable!("marks wait without a slot")
            }
            What::MoveChunk { from, .. } => self.reclaim_moved(from, None, 0),
            What::MoveMark { from, attempts } => match elsewhere {
                Some(next) if attempts < MARK_ATTEMPTS_MAX => {
                    // Still as a move, which never waits for a reclaim: two might wait for each other.
                    let what = What::MoveMark { from, attempts: attempts + 1 };
                    if let Some(store) = &mut self.store {
                        store.stripes[next as usize].moves.push_back(Job { frozen, purpose, what });
                    }
                }
                _ => {
                    self.lost_tombstone();
                    self.reclaim_moved(from, None, 0);
                }
            },
        }
    }

    fn upload_attempts_max(&self) -> u32 {
        let stripes = self.store.as_ref().map_or(0, |store| store.stripes.len() as u32);
        UPLOAD_ATTEMPTS_MAX.max(stripes)
    }

    fn write_done(&mut self, job: Job, location: Location, blocks: u32, result: io::Result<()>) {
        let Job { frozen, purpose, what } = job;
        let Some(store) = &mut self.store else { return };
        let segment = store.segment_mut(location);
        segment.writers -= 1;
        segment.written_blocks += u64::from(blocks);
        if let Err(error) = result {
            let sequence = segment.sequence;
            if matches!(what, What::Tombstone { .. } | What::Seal { .. }) {
                return match record::parse(frozen.header(), store.seed, sequence) {
                    Ok(record) => self.mark_misplaced(location.stripe, record, what),
                    Err(_) => self.mark_lost(what),
                };
            }
            let job = Job { frozen, purpose, what };
            return self.misplaced(location.stripe, job, Some(error.kind()));
        }
        segment.records.push(location.block);
        let out = store.stripes[location.stripe as usize].out;
        match what {
            What::Chunk { object, life, chunk, birth } => {
                if !self.index.alive(object, life) {
                    return;
                }
                let same = self.ram.give_back(object, chunk, birth, frozen, &self.index);
                if same && !out {
                    self.set_location(object, chunk, location);
                } else if !same {
                    self.index.set(object, flag::TAINTED, true);
                }
                self.write_settled(object);
            }
            What::Upload { object, life, chunk, birth, .. } => {
                if !self.index.alive(object, life) {
                    return;
                }
                self.ram.give_back(object, chunk, birth, frozen, &self.index);
                if out {
                    let kind = io::ErrorKind::Other;
                    let stripe = location.stripe;
                    return self.upload_failed(object, CacheError::Write { stripe, kind });
                }
                self.set_location(object, chunk, location);
                self.upload_written(object);
            }
            What::Seal { .. } => {
                segment_marks(self.store.as_mut(), location);
                self.marks -= 1;
            }
            What::Tombstone { .. } => {
                segment_marks(self.store.as_mut(), location);
                self.marks -= 1;
            }
            What::MoveChunk { from, object, life, chunk } => {
                let current = self.index.alive(object, life)
                    && self.index.entry(object, chunk).location() == Some(from);
                if current {
                    let entry = self.index.entry(object, chunk);
                    self.relocate(object, chunk, location);
                    debug_assert_eq!(self.index.entry(object, chunk).verified(), entry.verified());
                }
                self.reclaim_moved(from, Some(location), frozen.record_len());
            }
            What::MoveMark { from, .. } => {
                segment_marks(self.store.as_mut(), location);
                self.reclaim_moved(from, Some(location), frozen.record_len());
            }
        }
    }

    /// Points the index at a copy of the same record.
    fn relocate(&mut self, object: ObjectId, chunk: u32, location: Location) {
        let entry = self.index.entry(object, chunk);
        let Some(old) = entry.location() else { return };
        let bytes = record_bytes(self.index.chunk_len(object, chunk));
        let score = self.index.get(object).score;
        if let Some(store) = &mut self.store {
            store.detach(old, bytes, score);
            store.attach(location, bytes, score);
        }
        self.index.set_entry(object, chunk, entry.with_location(Some(location)));
    }

    fn write_settled(&mut self, object: ObjectId) {
        if let Some(pending) = self.pending.get_mut(&object) {
            pending.writes = pending.writes.saturating_sub(1);
            self.settle(object);
        }
    }

    // ---- flushing

    /// A waiter for everything that is queued now of seals and tombstones; `None`: nothing to wait for.
    pub(crate) fn flush(&mut self) -> Option<Rc<Waiter<()>>> {
        self.store.as_ref()?;
        let waiter = Waiter::new();
        self.flush_waiters.push(waiter.clone());
        self.pump();
        Some(waiter)
    }

    fn pump_syncs(&mut self) -> bool {
        let mut moved = false;
        let quiet = self.marks == 0 && self.pending.values().all(|pending| pending.seal.is_none());
        if quiet && self.flush_syncs == 0 && !self.flush_waiters.is_empty() {
            self.flushing = std::mem::take(&mut self.flush_waiters);
            if let Some(store) = &mut self.store {
                for stripe in store.stripes.iter_mut().filter(|stripe| !stripe.out) {
                    stripe.sync_next.push(SyncFor::Flush);
                    self.flush_syncs += 1;
                }
            }
            if self.flush_syncs == 0 {
                self.flush_done();
            }
        }
        let Some(store) = &mut self.store else { return false };
        for stripe in 0..store.stripes.len() {
            let target = &mut store.stripes[stripe];
            if target.syncing || target.sync_next.is_empty() {
                continue;
            }
            // All who asked until now share one flush.
            target.sync_now = std::mem::take(&mut target.sync_next);
            target.syncing = true;
            store.flush_starts(stripe as u16);
            store.submit(stripe as u16, Action::Sync, Operation::Sync);
            moved = true;
        }
        moved
    }

    fn flush_done(&mut self) {
        for waiter in std::mem::take(&mut self.flushing) {
            waiter.complete((), &mut self.wakers);
        }
    }

    fn sync_done(&mut self, stripe: u16, result: io::Result<()>) {
        let Some(store) = &mut self.store else { return };
        let target = &mut store.stripes[stripe as usize];
        target.syncing = false;
        let waiting = std::mem::take(&mut target.sync_now);
        store.flush_ended(stripe, result.is_ok());
        for waiting in waiting {
            match waiting {
                SyncFor::Upload(object, life) => {
                    if self.index.alive(object, life) {
                        match &result {
                            Ok(()) => self.upload_synced(object),
                            Err(error) => {
                                let kind = error.kind();
                                self.upload_failed(object, CacheError::Write { stripe, kind });
                            }
                        }
                    }
                }
                SyncFor::Reclaim { stripe: owner, serial } => {
                    self.reclaim_synced(owner, serial, stripe, result.is_ok());
                }
                // Tried again until it works or the stripe is out.
                SyncFor::Flush if result.is_err() && !self.is_out(stripe) => {
                    if let Some(store) = &mut self.store {
                        store.stripes[stripe as usize].sync_next.push(SyncFor::Flush);
                    }
                }
                SyncFor::Flush => {
                    self.flush_syncs -= 1;
                    if self.flush_syncs == 0 {
                        self.flush_done();
                    }
                }
            }
        }
    }
}

/// Whether what a record belongs to is still there, unchanged.
fn is_wanted(index: &Index, job: &Job) -> bool {
    match job.what {
        What::Chunk { object, life, .. } | What::Upload { object, life, .. } => {
            index.alive(object, life)
        }
        What::MoveChunk { from, object, life, chunk } => {
            index.alive(object, life) && index.entry(object, chunk).location() == Some(from)
        }
        What::Seal { .. } | What::Tombstone { .. } | What::MoveMark { .. } => true,
    }
}

fn segment_marks(store: Option<&mut Store>, location: Location) {
    if let Some(store) = store {
        store.segment_mut(location).marks += 1;
    }
}

/// A media type that fits into a record.
pub(crate) fn clip(media_type: &str) -> &str {
    let mut end = media_type.len().min(record::MEDIA_TYPE_BYTES_MAX);
    while !media_type.is_char_boundary(end) {
        end -= 1;
    }
    &media_type[..end]
}
