//! The engine: ties index, RAM and SSD together. Everything that moves, moves in [`Engine::turn`].
//!
//! It owns all state of a shard's cache. It never wakes anyone while it is borrowed: wakers are
//! collected and handed to the caller.

mod filling;
mod flushing;
mod marks;
mod places;
mod reading;
mod scoring;
mod slots;
mod writing;

pub(crate) use slots::SlotOrWaiter;

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;
use std::time::Duration;

use hashbrown::HashMap;
use outrider_artifact::Digest;

use crate::admission::Doorkeeper;
use crate::arena::{ChunkWriter, SlotMut};
use crate::cache::Chunk;
use crate::config::{CacheConfig, ImportanceWeights};
use crate::disk::record;
use crate::disk::segment::SegmentState;
use crate::disk::{Completion, Operation};
use crate::error::CacheError;
use crate::index::{Index, Location, ObjectId};
use crate::metrics::CacheMetrics;
use crate::policy::ImportancePolicy;
use crate::ram::Ram;
use crate::store::{Action, Job, Mark, Store};
use crate::upload::{Recovered, UploadId, UploadState};
use crate::wait::Waiter;

/// Disk operations that one turn finishes; the others are finished in the next.
const COMPLETIONS_PER_TURN_MAX: usize = 8;

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
    /// Flips with each change of the weights.
    weighed: bool,
    walk: Option<scoring::Walk>,
    /// Weights that came while a walk was under way.
    weights_next: Option<ImportanceWeights>,
    /// Who waits until everything is forgotten: for a walk that has not begun, and for the one under way.
    forget_waiters: Vec<Rc<Waiter<u64>>>,
    forgetting: Vec<Rc<Waiter<u64>>>,
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
            weighed: false,
            walk: None,
            weights_next: None,
            forget_waiters: Vec::new(),
            forgetting: Vec::new(),
        }
    }

    pub(crate) fn next_sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed)
    }

    /// All later sequences are higher than this one.
    pub(crate) fn raise_sequence(&self, seen: u64) {
        self.sequence.fetch_max(seen + 1, Ordering::Relaxed);
    }

    /// Collects what is done and starts what can be started; `true` when something moved.
    pub(crate) fn turn(&mut self) -> bool {
        let mut moved = self.ram.collect(&mut self.index);
        self.hand_over();
        // The hash of a chunk takes some 30 µs: a burst of them must not hold the shard up.
        for _ in 0..COMPLETIONS_PER_TURN_MAX {
            let next = self.store.as_mut().and_then(|store| store.done.pop_front());
            let Some(completion) = next else { break };
            self.complete(completion);
            moved = true;
        }
        moved |= self.serve_waiters();
        moved |= self.pump();
        moved |= self.walk();
        self.drop_empties();
        moved
    }

    pub(crate) fn in_flight(&self) -> bool {
        !self.slot_waiters.is_empty()
            || self.walk.is_some()
            || !self.forget_waiters.is_empty()
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
            store.disk.turn(&mut store.done);
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
            (Action::EndSegment { location }, _) => {
                if let Some(store) = &mut self.store {
                    store.write_ended(location);
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
        let number = store.numbers[stripe as usize];
        let target = &mut store.stripes[stripe as usize];
        if error.kind() == io::ErrorKind::StorageFull {
            if !target.read_only {
                tracing::error!(
                    stripe = number,
                    "the disk is full: this stripe takes no more writes"
                );
            }
            target.read_only = true;
            return;
        }
        target.errors += 1;
        tracing::error!(stripe = number, operation = name, %error, errors = target.errors, "stripe error");
    }

    /// Takes a stripe out of service after too many errors: its content becomes misses.
    fn check_stripe(&mut self, stripe: u16) {
        let Some(store) = &mut self.store else { return };
        let number = store.numbers[stripe as usize];
        let target = &mut store.stripes[stripe as usize];
        if !target.out && target.errors >= store.errors_max {
            tracing::error!(stripe = number, errors = target.errors, "stripe taken out of service");
            target.out = true;
            // A reclaim that is under way would find nothing alive once the index has let go of it, and
            // erase what a restart still finds: pushed content.
            if let Some(reclaim) = target.reclaim.take() {
                let segment = &mut target.segments[reclaim.segment as usize];
                segment.state = SegmentState::Closed;
                segment.unreadable = true;
            }
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

    fn is_out(&self, stripe: u16) -> bool {
        self.store.as_ref().is_none_or(|store| {
            let stripe = &store.stripes[stripe as usize];
            stripe.out || stripe.errors >= store.errors_max
        })
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
