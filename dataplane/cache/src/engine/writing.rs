//! Writing records: which goes next, where, and what happens when it cannot.

use std::io;

use super::Engine;
use super::marks::MARK_ATTEMPTS_MAX;
use crate::disk::Operation;
use crate::disk::record::{self, Kind, Owner, Record};
use crate::disk::segment::{SegmentHeader, SegmentState, Use};
use crate::error::CacheError;
use crate::index::{Index, Location, flag};
use crate::store::{Action, Job, Placement, Purpose, Queue, Store, WRITES_MAX, What};

impl Engine {
    pub(super) fn pump_writes(&mut self) -> bool {
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
    pub(super) fn write_next(&mut self, stripe: u16) -> bool {
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

    pub(super) fn write_from(&mut self, stripe: u16, queue: Queue) -> bool {
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

    pub(super) fn write_record(&mut self, job: Job, location: Location, blocks: u32) {
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
    pub(super) fn open_segment(&mut self, stripe: u16, index: u32, purpose: Purpose) -> bool {
        let content = purpose.content();
        let slot = self.ram.system_slot(0);
        let sequence = self.next_sequence();
        let Some(store) = &mut self.store else { return false };
        let Some(mut slot) = slot else {
            store.stripes[stripe as usize].free.push_front(index);
            return false;
        };
        let end = store.close(stripe, content);
        let number = store.numbers[stripe as usize];
        let header = SegmentHeader { stripe: number, index, sequence, content };
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
    pub(super) fn end_segment(&mut self, location: Location) {
        let Some(slot) = self.ram.system_slot(0) else { return };
        let sequence = self.next_sequence();
        let Some(store) = &mut self.store else { return };
        let mut frozen = slot.freeze(0);
        let record = Record::mark(Kind::End, Owner::Nobody, sequence, store.seed);
        record.write(frozen.header_mut());
        frozen.clear_padding();
        let segment = store.segment_mut(location);
        segment.writers += 1;
        let life = segment.sequence;
        record::bind(frozen.header_mut(), store.seed, life);
        store.submit(
            location.stripe,
            Action::EndSegment { location },
            Operation::Write { frozen, offset: Store::offset(location) },
        );
    }

    pub(super) fn open_done(&mut self, stripe: u16, index: u32, ok: bool) {
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
    pub(super) fn misplaced(&mut self, stripe: u16, job: Job, error: Option<io::ErrorKind>) {
        let elsewhere = self.store.as_ref().and_then(|store| store.stripe_after(stripe));
        let Job { frozen, purpose, what } = job;
        match what {
            What::Chunk { object, life, chunk, birth } => {
                if error.is_none() {
                    if self.index.alive(object, life) {
                        self.metrics.refused_no_room.inc();
                    }
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
            What::Upload { object, life, chunk, birth } => {
                if !self.index.alive(object, life) {
                    return;
                }
                let Some(store) = &mut self.store else { return };
                // It is not tried again: on another stripe it would be torn apart by another number of
                // shards. The client pushes again.
                let target = &store.stripes[stripe as usize];
                let error = match error {
                    None if target.writable() => CacheError::StoreFull,
                    error => store.lost_to(stripe, error.unwrap_or(io::ErrorKind::Other)),
                };
                self.ram.give_back(object, chunk, birth, frozen, &self.index);
                self.upload_failed(object, error);
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

    pub(super) fn write_done(
        &mut self,
        job: Job,
        location: Location,
        blocks: u32,
        result: io::Result<()>,
    ) {
        let Job { frozen, purpose, what } = job;
        let Some(store) = &mut self.store else { return };
        let segment = store.write_ended(location);
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
            What::Upload { object, life, chunk, birth } => {
                if !self.index.alive(object, life) {
                    return;
                }
                self.ram.give_back(object, chunk, birth, frozen, &self.index);
                if out {
                    let error = store.lost_to(location.stripe, io::ErrorKind::Other);
                    return self.upload_failed(object, error);
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
