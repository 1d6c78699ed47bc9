//! Emptying segments: of cached content the segment that is worth least, of uploads one that is more
//! than half garbage.
//!
//! The headers of a segment's records say what it holds. At most a quarter of a cache segment is
//! written again (what scores above the mean), the rest is dropped, but for what is within a customer's guarantee:
//! that is moved too. Of an upload segment everything
//! that is alive is moved, and the segment is only let go of when nothing points at it. What was
//! moved is flushed before the old place may be written again. One segment per stripe at a time.

use std::collections::VecDeque;

use hashbrown::HashMap;

use crate::arena::{BLOCK_BYTES, SlotMut, record_bytes};
use crate::customers::{AccountId, Charged};
use crate::disk::Operation;
use crate::disk::record::{self, Kind, Owner, Record};
use crate::disk::segment::{SegmentState, Use};
use crate::engine::Engine;
use crate::index::{Index, Location, ObjectId, flag};
use crate::store::{Action, FREE_TARGET, Job, Purpose, Store, SyncFor, What};

/// Header reads of one reclaim in flight.
const HEADERS_IN_FLIGHT_MAX: u32 = 16;
/// Records of one reclaim that are being moved at once; each holds a slot of the engine's own.
const MOVES_IN_FLIGHT_MAX: u32 = 2;
/// One part in this many of a cache segment may be written again.
const REWRITE_PART: u64 = 4;
/// Objects that one turn of a sweep looks at.
const SWEEP_OBJECTS_PER_TURN: u32 = 512;
/// A sweep is due after as many reclaims as this part of all segments, and not before the minimum.
const SWEEP_SEGMENTS_PART: u32 = 16;
const SWEEP_RECLAIMS_MIN: u32 = 8;

#[derive(Clone, Copy, Debug)]
enum Kept {
    Chunk { object: ObjectId, life: u32, chunk: u32 },
    Mark,
}

/// A record that is still needed.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    location: Location,
    bytes: u32,
    score: f64,
    kept: Kept,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Headers,
    Moving,
    Syncing,
    Draining,
    Erasing,
}

/// One segment that is being emptied.
#[derive(Debug)]
pub(crate) struct Reclaim {
    serial: u64,
    pub(crate) segment: u32,
    content: Use,
    phase: Phase,
    headers: VecDeque<u32>,
    found: Vec<Candidate>,
    moves: VecDeque<Candidate>,
    moving: Vec<Candidate>,
    outstanding: u32,
    /// Blocks of the records that are to be moved and have no place yet.
    owed_blocks: u32,
    /// Stripes that hold moved records, one bit each; those that must still be flushed.
    touched: u64,
}

impl Reclaim {
    pub(crate) fn content(&self) -> Use {
        self.content
    }

    /// Room that it still needs in the open segment of this content.
    pub(crate) fn owed_blocks(&self, content: Use) -> u32 {
        if self.content == content { self.owed_blocks } else { 0 }
    }

    pub(crate) fn moved_blocks(&mut self, blocks: u32) {
        self.owed_blocks = self.owed_blocks.saturating_sub(blocks);
    }
}

/// A walk over the index that sums the scores of each segment anew.
pub(crate) struct Sweep {
    next: ObjectId,
    scores: Vec<Vec<f64>>,
    guarded: Vec<Vec<f64>>,
    sum: f64,
    count: u64,
}

impl Engine {
    pub(crate) fn pump_reclaim(&mut self) -> bool {
        let stripes = self.store.as_ref().map_or(0, |store| store.stripes.len()) as u16;
        let mut moved = self.sweep();
        for stripe in 0..stripes {
            moved |= self.start_reclaim(stripe);
            while self.step_reclaim(stripe) {
                moved = true;
            }
        }
        moved
    }

    fn start_reclaim(&mut self, stripe: u16) -> bool {
        let serial = self.reclaims;
        let Some(store) = &self.store else { return false };
        if store.stripes[stripe as usize].look {
            self.set_capacities();
        }
        let Some(store) = &mut self.store else { return false };
        let target = &store.stripes[stripe as usize];
        if target.reclaim.is_some() || !target.writable() || !target.look {
            return false;
        }
        let pressed = target.free.len() < FREE_TARGET;
        let oldest = if pressed { store.oldest() } else { 0 };
        let layout = store.layout;
        let target = &mut store.stripes[stripe as usize];
        target.look = false;
        let candidate = match target.candidate(Use::Uploads, oldest, layout) {
            Some(segment) => Some(segment),
            None if pressed => target.candidate(Use::Cache, oldest, layout),
            None => None,
        };
        let Some(index) = candidate else { return false };
        let segment = &mut target.segments[index as usize];
        segment.state = SegmentState::Reclaiming;
        let content = segment.content;
        // Nothing alive and no marks: there is nothing to look at.
        let empty = segment.live_records == 0 && (content == Use::Uploads || segment.marks == 0);
        let headers =
            if empty { VecDeque::new() } else { segment.records.iter().copied().collect() };
        let touched = segment.unflushed;
        self.reclaims += 1;
        target.reclaim = Some(Reclaim {
            serial,
            segment: index,
            content,
            phase: Phase::Headers,
            headers,
            found: Vec::new(),
            moves: VecDeque::new(),
            moving: Vec::new(),
            outstanding: 0,
            owed_blocks: 0,
            touched,
        });
        store.reclaims_since_sweep += 1;
        let segments: usize = store.stripes.iter().map(|stripe| stripe.segments.len()).sum();
        let due = (segments as u32 / SWEEP_SEGMENTS_PART).max(SWEEP_RECLAIMS_MIN);
        if content == Use::Cache && store.sweep.is_none() && store.reclaims_since_sweep >= due {
            self.start_sweep();
        }
        true
    }

    /// Has the segments summed anew with the next reclaim: something changed for many of them.
    pub(crate) fn want_sweep(&mut self) {
        if let Some(store) = &mut self.store {
            store.reclaims_since_sweep = u32::MAX / 2;
        }
    }

    /// Sums the segments anew, a slice in each turn.
    fn start_sweep(&mut self) {
        let Some(store) = &mut self.store else { return };
        store.reclaims_since_sweep = 0;
        let zeros = || store.stripes.iter().map(|s| vec![0.0; s.segments.len()]).collect();
        store.sweep =
            Some(Sweep { next: 0, scores: zeros(), guarded: zeros(), sum: 0.0, count: 0 });
    }

    /// How much room the tiers have for what is cached: guarantees are a part of that.
    pub(crate) fn set_capacities(&mut self) {
        let ssd = self.store.as_ref().map_or(0, |store| {
            let segments = |stripe: &crate::store::Stripe| {
                if stripe.writable() { stripe.cache_segments() } else { 0 }
            };
            let segments: usize = store.stripes.iter().map(segments).sum();
            segments as u64 * store.geometry.segment_bytes
        });
        self.index.accounts.set_capacities(self.ram.total_bytes(), ssd);
    }

    /// Moves one reclaim on by one step; `false` when it waits for the disk (or there is none).
    fn step_reclaim(&mut self, stripe: u16) -> bool {
        let Some(store) = &mut self.store else { return false };
        let target = &mut store.stripes[stripe as usize];
        let Some(reclaim) = &mut target.reclaim else { return false };
        let segment = reclaim.segment;
        match reclaim.phase {
            Phase::Headers => {
                if reclaim.headers.is_empty() && reclaim.outstanding == 0 {
                    self.choose_moves(stripe);
                    return true;
                }
                if reclaim.outstanding >= HEADERS_IN_FLIGHT_MAX {
                    return false;
                }
                let Some(block) = reclaim.headers.front().copied() else { return false };
                let Some(slot) = self.ram.system_slot(0) else { return false };
                reclaim.headers.pop_front();
                reclaim.outstanding += 1;
                let location = Location { stripe, block };
                store.submit(
                    stripe,
                    Action::ReclaimHeader { location },
                    Operation::Read {
                        slot,
                        offset: Store::offset(location),
                        len: BLOCK_BYTES as u32,
                    },
                );
                true
            }
            Phase::Moving => {
                if reclaim.moves.is_empty() && reclaim.outstanding == 0 {
                    self.finish_moves(stripe);
                    return true;
                }
                if reclaim.outstanding >= MOVES_IN_FLIGHT_MAX {
                    return false;
                }
                let Some(candidate) = reclaim.moves.front().copied() else { return false };
                // Always a big slot: small ones are for what never waits for another operation.
                let chunk_bytes = self.config.geometry.chunk_bytes as usize;
                let Some(slot) = self.ram.system_slot(chunk_bytes) else { return false };
                reclaim.moves.pop_front();
                reclaim.outstanding += 1;
                reclaim.moving.push(candidate);
                let location = candidate.location;
                store.submit(
                    stripe,
                    Action::ReclaimRead { location },
                    Operation::Read { slot, offset: Store::offset(location), len: candidate.bytes },
                );
                true
            }
            Phase::Draining => {
                let emptied = &target.segments[segment as usize];
                if emptied.readers > 0 || emptied.writers > 0 {
                    return false;
                }
                self.erase(stripe, segment)
            }
            Phase::Syncing | Phase::Erasing => false,
        }
    }

    /// Clears the header of an emptied segment, so that a restart sees it free, and lets it go.
    fn erase(&mut self, stripe: u16, segment: u32) -> bool {
        let Some(mut slot) = self.ram.system_slot(0) else { return false };
        slot.bytes_mut().fill(0);
        let frozen = slot.freeze(0);
        let Some(store) = &mut self.store else { return false };
        if let Some(reclaim) = &mut store.stripes[stripe as usize].reclaim {
            reclaim.phase = Phase::Erasing;
        }
        self.metrics.reclaimed_segments.inc();
        let location = Location { stripe, block: store.layout.first_block(segment) };
        store.submit(
            stripe,
            Action::EraseSegment { segment },
            Operation::Write { frozen, offset: Store::offset(location) },
        );
        true
    }

    pub(crate) fn erased(&mut self, stripe: u16, index: u32, ok: bool) {
        let Some(store) = &mut self.store else { return };
        let target = &mut store.stripes[stripe as usize];
        target.reclaim = None;
        target.look = true;
        if ok {
            store.release(stripe, index);
        } else {
            target.segments[index as usize].state = SegmentState::Bad;
        }
    }

    /// A header has come in: notes the record if it is still needed.
    pub(crate) fn reclaim_header(&mut self, location: Location, slot: SlotMut, ok: bool) {
        let Some(store) = &mut self.store else { return };
        let sequence = store.segment_mut(location).sequence;
        let seed = store.seed;
        let record = ok.then(|| record::parse(slot.bytes(), seed, sequence).ok()).flatten();
        let candidate = record.and_then(|record| self.still_needed(location, &record));
        let Some(store) = &mut self.store else { return };
        if let Some(reclaim) = &mut store.stripes[location.stripe as usize].reclaim {
            reclaim.outstanding -= 1;
            reclaim.found.extend(candidate);
        }
    }

    fn still_needed(&self, location: Location, record: &Record) -> Option<Candidate> {
        let store = self.store.as_ref()?;
        let bytes = record.len_bytes() as u32;
        let mark = Some(Candidate { location, bytes, score: f64::INFINITY, kept: Kept::Mark });
        match (record.kind, &record.owner) {
            (Kind::Chunk, Owner::Object(digest)) => {
                self.live_chunk(self.index.find(digest)?, location, record)
            }
            (Kind::UploadChunk, Owner::Upload(id)) => {
                self.live_chunk(self.object_of_upload(*id)?, location, record)
            }
            (Kind::Seal, Owner::Object(digest)) => {
                let object = self.index.find(digest)?;
                let current = self.index.get(object).life == record.life as u32
                    && self.index.has(object, flag::SEALED);
                // What is written of it later gets a seal of its own.
                let seals = self.index.size(object) == 0 || self.ssd_bytes(object) > 0;
                if current && seals { mark } else { None }
            }
            (Kind::Tombstone, _) => {
                let segment = store.layout.segment_of(location.block);
                let needed = store.older_than(record.sequence, (location.stripe, segment));
                if needed { mark } else { None }
            }
            _ => None,
        }
    }

    fn live_chunk(
        &self,
        object: ObjectId,
        location: Location,
        record: &Record,
    ) -> Option<Candidate> {
        if self.index.entry(object, record.chunk).location() != Some(location) {
            return None;
        }
        let known = self.index.get(object);
        Some(Candidate {
            location,
            bytes: record.len_bytes() as u32,
            score: known.score,
            kept: Kept::Chunk { object, life: known.life, chunk: record.chunk },
        })
    }

    /// All headers are in: decides what is moved, and drops the rest.
    fn choose_moves(&mut self, stripe: u16) {
        let Some(store) = &mut self.store else { return };
        let budget = store.geometry.segment_bytes / REWRITE_PART;
        let mean = store.mean_score;
        let Some(reclaim) = &mut store.stripes[stripe as usize].reclaim else { return };
        reclaim.phase = Phase::Moving;
        let mut found = std::mem::take(&mut reclaim.found);
        if reclaim.content == Use::Uploads {
            reclaim.moves = found.into();
            return;
        }
        // Marks first (infinite score), then what is worth most.
        found.sort_by(|a, b| {
            b.score.total_cmp(&a.score).then(a.location.block.cmp(&b.location.block))
        });
        let segment = reclaim.segment;
        let marks =
            found.iter().filter(|candidate| matches!(candidate.kept, Kept::Mark)).count() as u32;
        let guarded = guarded(&mut found, &self.index);
        let mut bytes: u64 = guarded.iter().map(|candidate| u64::from(candidate.bytes)).sum();
        let layout = store.layout;
        let half = layout.segment_bytes() / 2;
        let target = &mut store.stripes[stripe as usize];
        let state = &mut target.segments[segment as usize];
        if bytes > half && !state.mostly_guarded(layout) {
            // More of it has to stay than was thought: another one is looked for.
            state.guarded_bytes = bytes as f64;
            state.state = SegmentState::Closed;
            target.reclaim = None;
            target.look = true;
            return;
        }
        // Where a stripe has more within guarantees than it can bear, some of that has to go.
        let blocks = (bytes / BLOCK_BYTES as u64) as u32;
        let most = if target.moves_too_much(blocks + marks, layout) { half } else { u64::MAX };
        let Some(reclaim) = &mut target.reclaim else { return };
        bytes = 0;
        let mut forced = Vec::new();
        for candidate in guarded {
            if bytes + u64::from(candidate.bytes) <= most {
                bytes += u64::from(candidate.bytes);
                reclaim.moves.push_back(candidate);
            } else {
                forced.push(candidate);
            }
        }
        let mut dropped = Vec::new();
        for candidate in found {
            let size = u64::from(candidate.bytes);
            let worth = match candidate.kept {
                Kept::Mark => true,
                Kept::Chunk { .. } => candidate.score > mean && bytes + size <= budget,
            };
            if worth {
                bytes += size;
                reclaim.moves.push_back(candidate);
            } else {
                dropped.push(candidate);
            }
        }
        let blocks = reclaim.moves.iter().map(|candidate| candidate.bytes / BLOCK_BYTES as u32);
        reclaim.owed_blocks = blocks.sum();
        for candidate in forced {
            self.metrics.evicted_guaranteed.inc();
            self.drop_candidate(&candidate);
        }
        for candidate in dropped {
            self.drop_candidate(&candidate);
        }
    }

    fn drop_candidate(&mut self, candidate: &Candidate) {
        if let Kept::Chunk { object, life, chunk } = candidate.kept
            && self.index.alive(object, life)
            && self.index.entry(object, chunk).location() == Some(candidate.location)
        {
            let account = self.index.account(object);
            let reason = match (candidate.score == 0.0, self.index.accounts.is_guaranteed(account))
            {
                (true, _) => &self.metrics.evicted_ssd_demoted,
                (false, true) => &self.metrics.evicted_ssd_share,
                (false, false) => &self.metrics.evicted_ssd,
            };
            reason.inc();
            self.drop_location(object, chunk);
        }
    }

    /// A record that is to be moved has been read: checks it and queues it at its new place.
    pub(crate) fn reclaim_read(&mut self, location: Location, slot: SlotMut, ok: bool) {
        let Some(store) = &mut self.store else { return };
        let sequence = store.segment_mut(location).sequence;
        let seed = store.seed;
        let Some(reclaim) = &mut store.stripes[location.stripe as usize].reclaim else { return };
        let content = reclaim.content;
        let position = reclaim.moving.iter().position(|moving| moving.location == location);
        let Some(candidate) = position.map(|position| reclaim.moving.swap_remove(position)) else {
            return;
        };
        let record = ok.then(|| record::parse_whole(slot.bytes(), seed, sequence).ok()).flatten();
        let Some(record) = record else {
            let hosted = content == Use::Uploads;
            if ok {
                self.count_damage(location, hosted);
            }
            if !hosted {
                self.drop_candidate(&candidate);
            }
            return self.reclaim_moved(location, None, 0);
        };
        let frozen = slot.freeze(record.payload_bytes as usize);
        let what = match candidate.kept {
            Kept::Chunk { object, life, chunk } => {
                What::MoveChunk { from: location, object, life, chunk }
            }
            Kept::Mark => What::MoveMark { from: location, attempts: 0 },
        };
        let purpose = match content {
            Use::Cache => Purpose::CacheMove,
            Use::Uploads => Purpose::UploadMove,
        };
        store.stripes[location.stripe as usize].moves.push_back(Job { frozen, purpose, what });
    }

    /// A record was moved (`to` is where), or could not be.
    pub(crate) fn reclaim_moved(&mut self, from: Location, to: Option<Location>, bytes: usize) {
        self.metrics.reclaim_rewritten_bytes.inc_by(bytes as u64);
        let Some(store) = &mut self.store else { return };
        if let Some(reclaim) = &mut store.stripes[from.stripe as usize].reclaim {
            reclaim.outstanding = reclaim.outstanding.saturating_sub(1);
            if let Some(to) = to {
                reclaim.touched |= 1 << to.stripe;
            }
        }
    }

    fn finish_moves(&mut self, stripe: u16) {
        let Some(store) = &mut self.store else { return };
        let target = &mut store.stripes[stripe as usize];
        let Some(reclaim) = &mut target.reclaim else { return };
        let index = reclaim.segment;
        let segment = &mut target.segments[index as usize];
        if segment.live_records > 0 && segment.content == Use::Uploads {
            // Something of an upload could not be moved: it stays where it is.
            tracing::warn!(stripe, segment = index, "an upload segment could not be emptied");
            segment.state = SegmentState::Closed;
            segment.stuck = true;
            segment.unflushed = reclaim.touched;
            target.reclaim = None;
            target.look = true;
            return;
        }
        reclaim.phase = if reclaim.touched == 0 { Phase::Draining } else { Phase::Syncing };
        let (touched, serial) = (reclaim.touched, reclaim.serial);
        for (other, target) in store.stripes.iter_mut().enumerate() {
            if touched & (1 << other) != 0 {
                target.sync_next.push(SyncFor::Reclaim { stripe, serial });
            }
        }
        let layout = store.layout;
        if store.stripes[stripe as usize].segments[index as usize].live_records > 0 {
            // Records that could not be read or moved: their chunks are misses from now on.
            self.drop_locations(
                |location| location.stripe == stripe && layout.segment_of(location.block) == index,
                "damaged",
            );
        }
    }

    /// What was moved to `flushed` is durable (or could not be made so).
    pub(crate) fn reclaim_synced(&mut self, stripe: u16, serial: u64, flushed: u16, ok: bool) {
        let Some(store) = &mut self.store else { return };
        let target = &mut store.stripes[stripe as usize];
        let Some(reclaim) = &mut target.reclaim else { return };
        if reclaim.serial != serial || reclaim.phase != Phase::Syncing {
            return;
        }
        if !ok {
            // Without the flush the old copies are all there is to rely on, although nothing
            // points at them any more: left alone until the next start has looked at both.
            let segment = &mut target.segments[reclaim.segment as usize];
            segment.state = SegmentState::Closed;
            segment.unreadable = true;
            target.reclaim = None;
            target.look = true;
            return;
        }
        reclaim.touched &= !(1 << flushed);
        if reclaim.touched == 0 {
            reclaim.phase = Phase::Draining;
        }
    }

    /// One slice of a running sweep.
    fn sweep(&mut self) -> bool {
        let Some(store) = &mut self.store else { return false };
        let Some(sweep) = &mut store.sweep else { return false };
        let end = (sweep.next + SWEEP_OBJECTS_PER_TURN).min(self.index.slots());
        for object in sweep.next..end {
            if self.index.is_free(object) {
                continue;
            }
            let score = self.index.get(object).score;
            let guarded = self.index.accounts.guarded_part(self.index.account(object));
            for chunk in 0..self.index.chunks(object) {
                if let Some(location) = self.index.entry(object, chunk).location() {
                    let segment = store.layout.segment_of(location.block);
                    sweep.scores[location.stripe as usize][segment as usize] += score;
                    let bytes = record_bytes(self.index.chunk_len(object, chunk)) as f64;
                    sweep.guarded[location.stripe as usize][segment as usize] += bytes * guarded;
                    sweep.sum += score;
                    sweep.count += 1;
                }
            }
        }
        sweep.next = end;
        if end == self.index.slots()
            && let Some(sweep) = store.sweep.take()
        {
            store.mean_score = sweep.sum / sweep.count.max(1) as f64;
            let sums = sweep.scores.into_iter().zip(sweep.guarded);
            for (stripe, (scores, guarded)) in store.stripes.iter_mut().zip(sums) {
                let sums = scores.into_iter().zip(guarded);
                for (segment, (score, guarded)) in stripe.segments.iter_mut().zip(sums) {
                    (segment.score, segment.guarded_bytes) = (score, guarded);
                }
            }
        }
        true
    }
}

/// Takes out what has to stay: all of customers that have no more than their guarantee, and of the others what is
/// worth most of it. `found` has what is worth most first.
fn guarded(found: &mut Vec<Candidate>, index: &Index) -> Vec<Candidate> {
    let mut over: HashMap<AccountId, u64> = HashMap::new();
    let mut stay = Vec::new();
    // From the end: what is worth least is given up first.
    let mut position = found.len();
    while position > 0 {
        position -= 1;
        let candidate = found[position];
        let Kept::Chunk { object, .. } = candidate.kept else { continue };
        let account = index.account(object);
        let Some(room) = index.accounts.room(account, Charged::Ssd) else { continue };
        let over = over.entry(account).or_insert(room);
        if *over == 0 {
            stay.push(found.remove(position));
        } else {
            *over = over.saturating_sub(u64::from(candidate.bytes));
        }
    }
    stay.reverse();
    stay
}
