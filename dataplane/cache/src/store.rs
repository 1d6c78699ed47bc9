//! The SSD tier's bookkeeping: stripes, their segments, the queues of records that are to be
//! written, and where each goes.
//!
//! It decides about places and counts what is alive; it does not know what a chunk is. A record
//! goes to the stripe that was asked for, or to the next one that still takes writes.

use std::collections::VecDeque;
use std::io;

use outrider_artifact::Digest;

use crate::arena::{BLOCK_BYTES, Frozen, record_bytes};
use crate::config::{Geometry, SsdConfig};
use crate::disk::record::Record;
use crate::disk::segment::{Layout, Segment, SegmentState, Use, byte_of};
use crate::disk::stripe::SEGMENTS_MIN;
use crate::disk::{Completion, Disk, Operation, Request};
use crate::error::CacheError;
use crate::index::{Location, ObjectId};
use crate::placement;
use crate::reclaim::{Reclaim, Sweep};

/// Free segments below which reclaim starts.
pub(crate) const FREE_TARGET: usize = 3;
/// Segments that cached records leave to uploads and to moves.
const RESERVE_CACHE: usize = 2;
/// Segments that uploads, seals and tombstones leave to moves.
const RESERVE_UPLOADS: usize = 1;
/// Record writes in flight at most, over all stripes.
pub(crate) const WRITES_MAX: u32 = 32;

/// What a record is for: decides which reserve it may touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Cached chunks.
    Cache,
    /// Chunks of uploads.
    Upload,
    /// Seals and tombstones.
    Mark,
    /// Records that reclaim moves within cache segments.
    CacheMove,
    /// Records that compaction moves within upload segments.
    UploadMove,
}

impl Purpose {
    pub(crate) fn content(self) -> Use {
        match self {
            Self::Cache | Self::Mark | Self::CacheMove => Use::Cache,
            Self::Upload | Self::UploadMove => Use::Uploads,
        }
    }

    fn reserve(self) -> usize {
        match self {
            Self::Cache => RESERVE_CACHE,
            Self::Upload | Self::Mark => RESERVE_UPLOADS,
            Self::CacheMove | Self::UploadMove => 0,
        }
    }
}

/// What to do when a record is written.
#[derive(Clone, Copy, Debug)]
pub(crate) enum What {
    Chunk { object: ObjectId, life: u32, chunk: u32, birth: u64 },
    Upload { object: ObjectId, life: u32, chunk: u32, birth: u64 },
    Seal { object: ObjectId, life: u32 },
    Tombstone { attempts: u32 },
    MoveChunk { from: Location, object: ObjectId, life: u32, chunk: u32 },
    MoveMark { from: Location, attempts: u32 },
}

/// A record that is to be written: its header is complete but for the segment.
pub(crate) struct Job {
    pub(crate) frozen: Frozen,
    pub(crate) purpose: Purpose,
    pub(crate) what: What,
}

/// A seal or tombstone that is to be written.
pub(crate) struct Mark {
    pub(crate) record: Record,
    pub(crate) what: What,
}

/// The queues of a stripe whose records have their slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queue {
    Moves,
    Uploads,
    Cache,
}

impl Job {
    pub(crate) fn blocks(&self) -> u32 {
        (self.frozen.record_len() / BLOCK_BYTES) as u32
    }
}

/// Who waits for a flush of a stripe.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SyncFor {
    Upload(ObjectId, u32),
    /// Of one reclaim on this stripe, which may have been given up meanwhile.
    Reclaim {
        stripe: u16,
        serial: u64,
    },
    Flush,
}

/// What a token stands for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Action {
    ReadChunk { object: ObjectId, life: u32, chunk: u32, location: Location },
    WriteRecord { purpose: Purpose, what: What, location: Location, blocks: u32 },
    OpenSegment { segment: u32 },
    EndSegment { location: Location },
    EraseSegment { segment: u32 },
    ReclaimHeader { location: Location },
    ReclaimRead { location: Location },
    Sync,
}

/// One stripe.
pub(crate) struct Stripe {
    pub(crate) segments: Vec<Segment>,
    pub(crate) free: VecDeque<u32>,
    pub(crate) open: [Option<u32>; 2],
    pub(crate) upload_segments: u32,
    pub(crate) upload_segments_max: u32,
    /// Waiting records, the most urgent first: what reclaim moves, marks, uploads, cached chunks.
    /// Marks take a slot only when they are written, so that waiting ones never hold the slots that
    /// opening and erasing segments needs.
    pub(crate) moves: VecDeque<Job>,
    pub(crate) marks: VecDeque<Mark>,
    pub(crate) uploads: VecDeque<Job>,
    pub(crate) cache: VecDeque<Job>,
    pub(crate) errors: u32,
    /// Nothing is written any more (no space left under a file that grows).
    pub(crate) read_only: bool,
    /// Nothing is read any more either.
    pub(crate) out: bool,
    pub(crate) reclaim: Option<Reclaim>,
    /// Reclaims in a row that moved nearly all of their segment.
    futile: u32,
    /// Something has changed since it was last looked for a segment to reclaim.
    pub(crate) look: bool,
    pub(crate) syncing: bool,
    pub(crate) sync_now: Vec<SyncFor>,
    pub(crate) sync_next: Vec<SyncFor>,
}

impl Stripe {
    pub(crate) fn new(segments: u32, upload_share: f64) -> Self {
        let wanted = (f64::from(segments) * upload_share.clamp(0.0, 1.0)) as u32;
        Self {
            segments: (0..segments).map(|_| Segment::free()).collect(),
            free: VecDeque::new(),
            open: [None; 2],
            upload_segments: 0,
            upload_segments_max: wanted.clamp(1, segments - (SEGMENTS_MIN - 3)),
            moves: VecDeque::new(),
            marks: VecDeque::new(),
            uploads: VecDeque::new(),
            cache: VecDeque::new(),
            errors: 0,
            read_only: false,
            out: false,
            reclaim: None,
            futile: 0,
            look: true,
            syncing: false,
            sync_now: Vec::new(),
            sync_next: Vec::new(),
        }
    }

    pub(crate) fn writable(&self) -> bool {
        !self.out && !self.read_only
    }

    /// A queue of waiting records that have their slots.
    pub(crate) fn queue(&mut self, queue: Queue) -> &mut VecDeque<Job> {
        match queue {
            Queue::Moves => &mut self.moves,
            Queue::Uploads => &mut self.uploads,
            Queue::Cache => &mut self.cache,
        }
    }

    pub(crate) fn queued(&self) -> bool {
        !(self.moves.is_empty()
            && self.marks.is_empty()
            && self.uploads.is_empty()
            && self.cache.is_empty())
    }

    /// Whether something may become free: a reclaim runs, or a segment could be reclaimed.
    pub(crate) fn can_reclaim(&self, content: Use, oldest: u64, layout: Layout) -> bool {
        self.reclaim.is_some()
            || self.candidate(content, oldest, layout).is_some()
            || self.settling(content)
    }

    /// A segment that was closed but has operations in flight.
    fn settling(&self, content: Use) -> bool {
        self.segments.iter().any(|segment| {
            segment.state == SegmentState::Closed
                && segment.writers > 0
                && segment.content == content
        })
    }

    /// Segments that cached content may fill.
    pub(crate) fn cache_segments(&self) -> usize {
        self.segments.len().saturating_sub(self.upload_segments as usize + FREE_TARGET)
    }

    /// Notes what a reclaim of a cache segment has to move. `true`: by far too much, for as many reclaims as there
    /// are segments. All guarantees are half of all stripes together, so that this one has more than its part.
    pub(crate) fn moves_too_much(&mut self, blocks: u32, layout: Layout) -> bool {
        let futile = blocks * 8 > layout.segment_blocks() * 7;
        self.futile = if futile { self.futile + 1 } else { 0 };
        self.futile as usize > self.segments.len()
    }

    /// Bytes that the open upload segment still takes.
    fn open_room(&self, layout: Layout) -> u64 {
        self.open[Use::Uploads as usize].map_or(0, |index| {
            let blocks = layout.end(index).saturating_sub(self.segments[index as usize].cursor);
            u64::from(blocks) * BLOCK_BYTES as u64
        })
    }

    /// The segment to empty next: of cached content the one of the lowest score, those last that are mostly
    /// within guarantees; of uploads one that is more than half garbage. `oldest`: the oldest life of a cache segment in the store.
    pub(crate) fn candidate(&self, content: Use, oldest: u64, layout: Layout) -> Option<u32> {
        let closed = self.segments.iter().enumerate().filter(|(_, segment)| {
            segment.state == SegmentState::Closed
                && segment.writers == 0
                && segment.content == content
                && !segment.stuck
                && !segment.unreadable
        });
        match content {
            Use::Cache => closed
                .min_by(|(_, a), (_, b)| {
                    let (held_a, held_b) = (a.held(oldest, layout), b.held(oldest, layout));
                    match (held_a, held_b) {
                        (false, false) => a.score.total_cmp(&b.score),
                        (true, true) => a.sequence.cmp(&b.sequence),
                        _ => held_a.cmp(&held_b),
                    }
                })
                .map(|(index, _)| index as u32),
            Use::Uploads => closed
                .filter(|(_, segment)| segment.live_bytes * 2 < segment.used_bytes())
                .filter(|(_, segment)| {
                    !self.free.is_empty() || segment.live_bytes <= self.open_room(layout)
                })
                .min_by_key(|(_, segment)| segment.live_bytes)
                .map(|(index, _)| index as u32),
        }
    }
}

impl Segment {
    /// Whether emptying it gains little: most of it would have to be moved. Such segments come last, the oldest
    /// first: marks are not needed any more when everything else is younger.
    fn held(&self, oldest: u64, layout: Layout) -> bool {
        let marks = self.marks * 2 >= layout.segment_blocks() && self.sequence > oldest;
        marks || self.mostly_guarded(layout)
    }

    /// Whether more than half of it is within guarantees.
    pub(crate) fn mostly_guarded(&self, layout: Layout) -> bool {
        self.guarded_bytes > (layout.segment_bytes() / 2) as f64
    }

    /// Bytes of records that were written in this life.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.written_blocks * BLOCK_BYTES as u64
    }
}

/// Where a record may go.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    At(Location),
    /// Later: a segment is being opened or emptied.
    Wait,
    /// A segment must be opened first.
    Open(u32),
    /// Not on this stripe.
    Full,
}

/// The stripes and their disk.
pub(crate) struct Store {
    pub(crate) disk: Box<dyn Disk>,
    pub(crate) seed: u64,
    pub(crate) layout: Layout,
    pub(crate) geometry: Geometry,
    pub(crate) stripes: Vec<Stripe>,
    /// The number of each of them in its store.
    pub(crate) numbers: Vec<u16>,
    /// How many the store has, on all shards.
    total: u16,
    pub(crate) queue_depth: u32,
    pub(crate) errors_max: u32,
    pub(crate) registered: bool,
    actions: Vec<Option<Action>>,
    free_tokens: Vec<u32>,
    pub(crate) reads: u32,
    pub(crate) writes: u32,
    pub(crate) queued_bytes: u64,
    pub(crate) done: VecDeque<Completion>,
    /// Mean score of a live chunk, as of the last sweep.
    pub(crate) mean_score: f64,
    pub(crate) reclaims_since_sweep: u32,
    pub(crate) sweep: Option<Sweep>,
}

impl Store {
    pub(crate) fn new(
        disk: Box<dyn Disk>,
        seed: u64,
        geometry: Geometry,
        (numbers, total): (Vec<u16>, u16),
        stripe_bytes: &[u64],
        config: &SsdConfig,
    ) -> Self {
        let layout = Layout::new(&geometry);
        Self {
            disk,
            seed,
            layout,
            geometry,
            stripes: stripe_bytes
                .iter()
                .map(|bytes| Stripe::new(layout.segments(*bytes), config.upload_share))
                .collect(),
            numbers,
            total,
            queue_depth: config.queue_depth.clamp(1, 192),
            errors_max: config.stripe_errors_max.max(1),
            registered: false,
            actions: Vec::new(),
            free_tokens: Vec::new(),
            reads: 0,
            writes: 0,
            queued_bytes: 0,
            done: VecDeque::new(),
            mean_score: 0.0,
            reclaims_since_sweep: 0,
            sweep: None,
        }
    }

    /// Hands an operation to the disk, to be finished by `action`.
    pub(crate) fn submit(&mut self, stripe: u16, action: Action, operation: Operation) {
        let token = match self.free_tokens.pop() {
            Some(token) => {
                self.actions[token as usize] = Some(action);
                token
            }
            None => {
                self.actions.push(Some(action));
                self.actions.len() as u32 - 1
            }
        };
        match &operation {
            Operation::Read { .. } => self.reads += 1,
            Operation::Write { .. } => self.writes += 1,
            Operation::Sync => {}
        }
        self.disk.submit(Request { token: u64::from(token), stripe, operation });
    }

    /// What a completed operation was for.
    pub(crate) fn finished(&mut self, request: &Request) -> Action {
        match &request.operation {
            Operation::Read { .. } => self.reads -= 1,
            Operation::Write { .. } => self.writes -= 1,
            Operation::Sync => {}
        }
        self.free_tokens.push(request.token as u32);
        self.actions[request.token as usize].take().expect("an operation completes once")
    }

    /// The stripe for a hash: its own, or the next that takes writes. `None`: none does.
    pub(crate) fn stripe_for(&self, hash: u64) -> Option<u16> {
        let count = self.stripes.len() as u64;
        (0..count)
            .map(|step| ((hash % count + step) % count) as u16)
            .find(|stripe| self.stripes[*stripe as usize].writable())
    }

    /// The longest upload that a stripe takes, if it holds no other.
    pub(crate) fn upload_bytes_max(&self, stripe: u16) -> u64 {
        let chunk_bytes = self.geometry.chunk_bytes;
        let room = u64::from(self.layout.end(0) - self.layout.first_record(0)) * BLOCK_BYTES as u64;
        let chunks = room / record_bytes(chunk_bytes as usize) as u64;
        u64::from(self.stripes[stripe as usize].upload_segments_max) * chunks * chunk_bytes
    }

    /// The error of an upload whose stripe failed.
    pub(crate) fn lost_to(&self, stripe: u16, kind: io::ErrorKind) -> CacheError {
        match kind {
            io::ErrorKind::StorageFull => CacheError::StoreFull,
            kind => CacheError::Write { stripe: self.numbers[stripe as usize], kind },
        }
    }

    /// The stripe that is a digest's home, if it is one of these.
    pub(crate) fn home(&self, digest: &Digest) -> Option<u16> {
        let home = placement::stripe_of(digest, self.total);
        self.numbers.iter().position(|number| *number == home).map(|stripe| stripe as u16)
    }

    /// The next stripe after this one that takes writes.
    pub(crate) fn stripe_after(&self, stripe: u16) -> Option<u16> {
        self.stripe_for(u64::from(stripe) + 1).filter(|next| *next != stripe)
    }

    pub(crate) fn segment_mut(&mut self, location: Location) -> &mut Segment {
        let index = self.layout.segment_of(location.block);
        &mut self.stripes[location.stripe as usize].segments[index as usize]
    }

    /// The index points at a record.
    /// `guarded`: the part of its customer's bytes that is no victim.
    pub(crate) fn attach(&mut self, location: Location, bytes: usize, score: f64, guarded: f64) {
        let segment = self.segment_mut(location);
        segment.live_records += 1;
        segment.live_bytes += bytes as u64;
        segment.score += score;
        segment.guarded_bytes += bytes as f64 * guarded;
    }

    /// The index does not point at a record any more.
    pub(crate) fn detach(&mut self, location: Location, bytes: usize, score: f64, guarded: f64) {
        self.stripes[location.stripe as usize].look = true;
        let segment = self.segment_mut(location);
        debug_assert!(segment.live_records > 0, "a record died twice");
        segment.live_records = segment.live_records.saturating_sub(1);
        segment.live_bytes = segment.live_bytes.saturating_sub(bytes as u64);
        segment.score = (segment.score - score).max(0.0);
        segment.guarded_bytes = (segment.guarded_bytes - bytes as f64 * guarded).max(0.0);
        if segment.live_records == 0 {
            segment.score = 0.0;
            segment.guarded_bytes = 0.0;
        }
    }

    /// The oldest life of a cache segment that is, or may come back, on the disks.
    pub(crate) fn oldest(&self) -> u64 {
        let lives = self.stripes.iter().flat_map(|stripe| &stripe.segments).flat_map(|segment| {
            let cached = segment.content == Use::Cache && segment.sequence != 0;
            let stale = segment.stale != 0;
            [cached.then_some(segment.sequence), stale.then_some(segment.stale)]
        });
        lives.flatten().min().unwrap_or(u64::MAX)
    }

    /// Finds a place for a record on a stripe, and takes it.
    pub(crate) fn place(&mut self, stripe: u16, purpose: Purpose, blocks: u32) -> Placement {
        let layout = self.layout;
        let target = &mut self.stripes[stripe as usize];
        if !target.writable() {
            return Placement::Full;
        }
        let content = purpose.content();
        if let Some(index) = target.open[content as usize] {
            let segment = &mut target.segments[index as usize];
            if segment.state == SegmentState::Opening {
                return Placement::Wait;
            }
            // The last room is for what a reclaim still has to move.
            let moving = matches!(purpose, Purpose::CacheMove | Purpose::UploadMove);
            let owed = match (&target.reclaim, moving) {
                (Some(reclaim), false) if target.free.is_empty() => reclaim.owed_blocks(content),
                _ => 0,
            };
            if segment.cursor + blocks + owed > layout.end(index) && owed > 0 {
                return Placement::Wait;
            }
            if segment.cursor + blocks <= layout.end(index) {
                let location = Location { stripe, block: segment.cursor };
                segment.cursor += blocks;
                segment.writers += 1;
                if let (Some(reclaim), true) = (&mut target.reclaim, moving) {
                    reclaim.moved_blocks(blocks);
                }
                return Placement::At(location);
            }
        }
        let limited =
            purpose == Purpose::Upload && target.upload_segments >= target.upload_segments_max;
        if !limited && target.free.len() > purpose.reserve() {
            let index = target.free.pop_front().expect("it has more than the reserve");
            target.look = true;
            return Placement::Open(index);
        }
        // The reclaim that moves a record is the only one there is: waiting for it would not end.
        let moving = matches!(purpose, Purpose::CacheMove | Purpose::UploadMove);
        let hope = !moving && self.may_become_free(stripe, limited);
        if hope { Placement::Wait } else { Placement::Full }
    }

    /// Whether a segment may become free. `limited`: only one of uploads helps.
    fn may_become_free(&self, stripe: u16, limited: bool) -> bool {
        let (target, layout) = (&self.stripes[stripe as usize], self.layout);
        if let Some(reclaim) = &target.reclaim {
            return !limited || reclaim.content() == Use::Uploads;
        }
        let oldest = self.oldest();
        target.can_reclaim(Use::Uploads, oldest, layout)
            || !limited && target.can_reclaim(Use::Cache, oldest, layout)
    }

    /// Whether a cached record of an object that was asked for once may be written.
    pub(crate) fn has_spare(&self, stripe: u16) -> bool {
        self.stripes[stripe as usize].free.len() > FREE_TARGET
    }

    /// Closes the open segment of this kind; returns where an end mark fits.
    pub(crate) fn close(&mut self, stripe: u16, content: Use) -> Option<Location> {
        let layout = self.layout;
        let target = &mut self.stripes[stripe as usize];
        let index = target.open[content as usize].take()?;
        let segment = &mut target.segments[index as usize];
        segment.state = SegmentState::Closed;
        if segment.cursor >= layout.end(index) {
            return None;
        }
        let location = Location { stripe, block: segment.cursor };
        segment.cursor = layout.end(index);
        Some(location)
    }

    /// A write to a segment has ended.
    pub(crate) fn write_ended(&mut self, location: Location) -> &mut Segment {
        let index = self.layout.segment_of(location.block) as usize;
        let target = &mut self.stripes[location.stripe as usize];
        let segment = &mut target.segments[index];
        segment.writers -= 1;
        target.look |= segment.state == SegmentState::Closed && segment.writers == 0;
        segment
    }

    /// Makes an empty segment free again.
    pub(crate) fn release(&mut self, stripe: u16, index: u32) {
        let target = &mut self.stripes[stripe as usize];
        let segment = &mut target.segments[index as usize];
        debug_assert_eq!((segment.live_records, segment.readers, segment.writers), (0, 0, 0));
        if segment.content == Use::Uploads {
            target.upload_segments -= 1;
        }
        let stale = match segment.stale {
            0 => segment.sequence,
            stale => stale.min(segment.sequence),
        };
        *segment = Segment { stale, ..Segment::free() };
        target.free.push_back(index);
        for stripe in &mut self.stripes {
            stripe.look = true;
        }
        let target = &mut self.stripes[stripe as usize];
        // There is more room now: what could not be moved before may be tried again.
        for segment in &mut target.segments {
            segment.stuck = false;
        }
    }

    /// A flush is submitted now: what was erased or overwritten until now cannot come back after it.
    pub(crate) fn flush_starts(&mut self, stripe: u16) {
        for segment in &mut self.stripes[stripe as usize].segments {
            segment.clearing = segment.stale != 0
                && matches!(
                    segment.state,
                    SegmentState::Free | SegmentState::Open | SegmentState::Closed
                );
        }
    }

    /// The flush has ended.
    pub(crate) fn flush_ended(&mut self, stripe: u16, ok: bool) {
        let mut cleared = false;
        for segment in &mut self.stripes[stripe as usize].segments {
            if std::mem::take(&mut segment.clearing) && ok {
                segment.stale = 0;
                cleared = true;
            }
        }
        for stripe in self.stripes.iter_mut().filter(|_| cleared) {
            stripe.look = true;
        }
    }

    /// Whether a record with a lower sequence may still be on the disk outside of one segment (or
    /// come back by a power cut): a tombstone is needed as long as it may.
    pub(crate) fn older_than(&self, sequence: u64, except: (u16, u32)) -> bool {
        let older = |life: u64| life != 0 && life < sequence;
        self.stripes.iter().enumerate().any(|(stripe, target)| {
            target.segments.iter().enumerate().any(|(index, segment)| {
                let cached = segment.content == Use::Cache;
                let other = (stripe as u16, index as u32) != except;
                older(segment.stale) || (other && cached && older(segment.sequence))
            })
        })
    }

    /// Whether anything is in flight or waits.
    pub(crate) fn busy(&self) -> bool {
        self.disk.in_flight() > 0
            || !self.done.is_empty()
            || self.stripes.iter().any(|stripe| {
                stripe.writable() && (stripe.queued() || stripe.reclaim.is_some())
                    || !stripe.sync_next.is_empty()
            })
    }

    /// The byte at which a location starts in its file.
    pub(crate) fn offset(location: Location) -> u64 {
        byte_of(location.block)
    }
}
