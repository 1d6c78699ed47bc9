//! Start: reads the headers of every segment and record, and rebuilds the index from them.
//!
//! Segments are walked side by side, each from record to record. Where no record is, a write was torn
//! or never came: the blocks behind are searched, since records behind it may have been finished
//! (and an upload among them may have been answered for). Nothing is written.
//!
//! Of cached content, what is not newer than [`crate::SsdConfig::void_through`] counts for nothing.
//! Of a digest, only the newest life counts, only what is newer than its tombstone, and a chunk is
//! verified only under a newer seal of the same life. Cached records of digests that are at home on a
//! stripe of another shard are garbage; uploads lie where they lie.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::io;

use hashbrown::HashMap;
use outrider_artifact::Digest;

use super::record::{self, FLAG_LAST, Kind, Owner, Record, RecordError};
use super::segment::{Layout, SegmentHeader, SegmentState, Use, byte_of};
use super::{Completion, Operation, Request};
use crate::arena::{BLOCK_BYTES, HEADER_BYTES, SlotMut, record_bytes};
use crate::cache::Origin;
use crate::customers::Class;
use crate::engine::{Engine, clip};
use crate::index::{Location, NewObject, flag};
use crate::store::Store;
use crate::upload::{Recovered, UploadId};

/// The token of a flush.
const FLUSH: u64 = u64::MAX;
/// Segments that are walked at the same time.
const WALKS_MAX: usize = 64;
/// Searches (with large buffers) at the same time.
const SEARCHES_MAX: usize = 2;
/// A chunk number beyond this is not believed: it would be an object of terabytes.
const CHUNKS_MAX: u32 = 1 << 24;

/// What a scan found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) segments: u64,
    pub(crate) records: u64,
    pub(crate) chunks: u64,
    pub(crate) objects: u64,
    pub(crate) uploads: u64,
    /// Digests of which records lie here that are at home on another shard: garbage.
    pub(crate) strays: u64,
    pub(crate) damaged: u64,
    pub(crate) errors: u64,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Header,
    Walk(u32),
    Search(u32),
}

#[derive(Clone, Copy, Debug)]
struct Walk {
    stripe: u16,
    segment: u32,
    sequence: u64,
    step: Step,
}

struct Found {
    location: Location,
    segment_sequence: u64,
    record: Record,
}

impl Found {
    /// Which of two records of the same chunk counts: the newer one, and of two copies the one that
    /// was there first, since only that is known to have been written to its end.
    fn rank(&self) -> (u64, Reverse<u64>) {
        (self.record.sequence, Reverse(self.segment_sequence))
    }
}

/// Scans the stripes (but those that were made just now) into an empty engine. Blocks.
pub(crate) fn scan(engine: &mut Engine, made: &[bool]) -> Summary {
    let mut summary = Summary::default();
    let found = read_headers(engine, made, &mut summary);
    let segments = engine.store.iter().flat_map(|store| &store.stripes).flat_map(|s| &s.segments);
    let newest = found
        .iter()
        .map(|found| found.record.sequence)
        .chain(segments.map(|segment| segment.sequence))
        .max();
    let void_through = engine.config.ssd.as_ref().map_or(0, |ssd| ssd.void_through);
    engine.raise_sequence(newest.unwrap_or(0).max(void_through));
    rebuild(engine, found, &mut summary);
    summary
}

fn read_headers(engine: &mut Engine, made: &[bool], summary: &mut Summary) -> Vec<Found> {
    let mut found = Vec::new();
    let Some(store) = &mut engine.store else { return found };
    let mut waiting = Vec::new();
    for (number, stripe) in store.stripes.iter_mut().enumerate() {
        for segment in 0..stripe.segments.len() as u32 {
            if made.get(number).copied().unwrap_or(false) {
                stripe.free.push_back(segment);
            } else {
                let stripe = number as u16;
                waiting.push(Walk { stripe, segment, sequence: 0, step: Step::Header });
            }
        }
    }
    waiting.reverse();
    let layout = store.layout;
    let seed = store.seed;
    let search_blocks = (record_bytes(store.geometry.chunk_bytes as usize) / BLOCK_BYTES) as u32;
    let mut running: Vec<Option<Walk>> = vec![None; WALKS_MAX];
    let mut done = VecDeque::new();
    let mut searches = 0;
    loop {
        // Start what can be started.
        for (token, place) in running.iter_mut().enumerate() {
            if place.is_some() {
                continue;
            }
            let next = waiting
                .iter()
                .rposition(|walk| searches < SEARCHES_MAX || !matches!(walk.step, Step::Search(_)));
            let Some(walk) = next.map(|next| waiting.remove(next)) else { break };
            let (block, blocks) = match walk.step {
                Step::Header => (layout.first_block(walk.segment), 1),
                Step::Walk(block) => (block, 1),
                Step::Search(block) => (block, search_blocks.min(layout.end(walk.segment) - block)),
            };
            let bytes = blocks as usize * BLOCK_BYTES;
            let slot = engine.ram.slot(bytes - HEADER_BYTES, &mut engine.index);
            let Some(slot) = slot else {
                waiting.push(walk);
                break;
            };
            searches += usize::from(matches!(walk.step, Step::Search(_)));
            let operation = Operation::Read { slot, offset: byte_of(block), len: bytes as u32 };
            *place = Some(walk);
            let Some(store) = &mut engine.store else { return found };
            store.disk.submit(Request { token: token as u64, stripe: walk.stripe, operation });
        }
        let Some(store) = &mut engine.store else { return found };
        store.disk.turn(&mut done);
        if done.is_empty() {
            if store.disk.in_flight() == 0 {
                break;
            }
            store.disk.wait();
            continue;
        }
        for Completion { request, result } in done.drain(..) {
            let Some(walk) = running[request.token as usize].take() else { continue };
            let Operation::Read { slot, len, .. } = request.operation else { continue };
            searches -= usize::from(matches!(walk.step, Step::Search(_)));
            if result.is_err() {
                summary.errors += 1;
                engine.metrics.errors_read.inc();
                let target = &mut store.stripes[walk.stripe as usize];
                target.segments[walk.segment as usize].unreadable = true;
            }
            let next = advance(store, &layout, seed, walk, &slot, len, result, summary, &mut found);
            waiting.extend(next);
        }
    }
    engine.ram.collect(&mut engine.index);
    flush(engine, summary);
    found
}

/// Makes durable what was seen: after a kill, a former process's last writes may still be in the
/// disk's cache, and decisions are taken from here on that rely on them.
fn flush(engine: &mut Engine, summary: &mut Summary) {
    let Some(store) = &mut engine.store else { return };
    for stripe in 0..store.stripes.len() as u16 {
        store.disk.submit(Request { token: FLUSH, stripe, operation: Operation::Sync });
    }
    let mut done = VecDeque::new();
    while store.disk.in_flight() > 0 {
        store.disk.turn(&mut done);
        if done.is_empty() {
            store.disk.wait();
        }
        summary.errors += done.drain(..).filter(|done| done.result.is_err()).count() as u64;
    }
}

/// Looks at what was read; returns where to go on in this segment.
#[expect(clippy::too_many_arguments)]
fn advance(
    store: &mut Store,
    layout: &Layout,
    seed: u64,
    walk: Walk,
    slot: &SlotMut,
    len: u32,
    result: io::Result<()>,
    summary: &mut Summary,
    found: &mut Vec<Found>,
) -> Option<Walk> {
    let Walk { stripe, segment, sequence, step } = walk;
    let number = store.numbers[stripe as usize];
    let target = &mut store.stripes[stripe as usize];
    let end = layout.end(segment);
    let go_on = |block: u32, step: fn(u32) -> Step| {
        (block < end).then(|| Walk { step: step(block), ..walk })
    };
    match step {
        Step::Header => {
            let state = &mut target.segments[segment as usize];
            if result.is_err() {
                state.state = SegmentState::Bad;
                return None;
            }
            let Some(header) = SegmentHeader::parse(slot.bytes(), seed, number, segment) else {
                target.free.push_back(segment);
                return None;
            };
            summary.segments += 1;
            state.state = SegmentState::Closed;
            state.content = header.content;
            state.sequence = header.sequence;
            state.cursor = end;
            target.upload_segments += u32::from(header.content == Use::Uploads);
            let step = Step::Walk(layout.first_record(segment));
            Some(Walk { sequence: header.sequence, step, ..walk })
        }
        Step::Walk(block) => {
            if result.is_err() {
                return go_on(block + 1, Step::Search);
            }
            match record::parse(slot.bytes(), seed, sequence) {
                Ok(record) => take(store, layout, walk, block, record, summary, found),
                Err(error) => {
                    if !matches!(error, RecordError::Absent | RecordError::Stale) {
                        summary.damaged += 1;
                    }
                    go_on(block + 1, Step::Search)
                }
            }
        }
        Step::Search(block) => {
            let blocks = len / BLOCK_BYTES as u32;
            if result.is_ok() {
                for (offset, bytes) in
                    slot.bytes()[..len as usize].chunks_exact(BLOCK_BYTES).enumerate()
                {
                    if let Ok(record) = record::parse(bytes, seed, sequence) {
                        let block = block + offset as u32;
                        return take(store, layout, walk, block, record, summary, found);
                    }
                }
            }
            go_on(block + blocks, Step::Search)
        }
    }
}

/// Notes a record; returns where the next one may be.
fn take(
    store: &mut Store,
    layout: &Layout,
    walk: Walk,
    block: u32,
    record: Record,
    summary: &mut Summary,
    found: &mut Vec<Found>,
) -> Option<Walk> {
    if record.kind == Kind::End {
        return None;
    }
    let blocks = (record.len_bytes() / BLOCK_BYTES) as u32;
    let end = layout.end(walk.segment);
    let Some(next) = block.checked_add(blocks).filter(|next| *next <= end) else {
        summary.damaged += 1;
        return (block + 1 < end).then(|| Walk { step: Step::Search(block + 1), ..walk });
    };
    summary.records += 1;
    let segment = &mut store.stripes[walk.stripe as usize].segments[walk.segment as usize];
    segment.records.push(block);
    segment.written_blocks += u64::from(blocks);
    segment.marks += u32::from(matches!(record.kind, Kind::Seal | Kind::Tombstone));
    let location = Location { stripe: walk.stripe, block };
    found.push(Found { location, segment_sequence: walk.sequence, record });
    (next < end).then_some(Walk { step: Step::Walk(next), ..walk })
}

#[derive(Default)]
struct OfDigest {
    tombstone: u64,
    records: Vec<Found>,
}

fn rebuild(engine: &mut Engine, mut found: Vec<Found>, summary: &mut Summary) {
    // A fixed order, so that the same disks give the same index.
    found.sort_by_key(|found| (found.rank(), found.location.stripe, found.location.block));
    let mut digests: HashMap<Digest, usize> = HashMap::new();
    let mut objects: Vec<(Digest, OfDigest)> = Vec::new();
    let mut ids: HashMap<UploadId, usize> = HashMap::new();
    let mut uploads: Vec<(UploadId, Vec<Found>)> = Vec::new();
    let void_through = engine.config.ssd.as_ref().map_or(0, |ssd| ssd.void_through);
    for found in found {
        match found.record.owner {
            Owner::Object(_) if found.record.sequence <= void_through => {}
            Owner::Object(digest) => {
                let place = *digests.entry(digest).or_insert_with(|| {
                    objects.push((digest, OfDigest::default()));
                    objects.len() - 1
                });
                let object = &mut objects[place].1;
                if found.record.kind == Kind::Tombstone {
                    object.tombstone = object.tombstone.max(found.record.sequence);
                } else {
                    object.records.push(found);
                }
            }
            Owner::Upload(id) => {
                let place = *ids.entry(id).or_insert_with(|| {
                    uploads.push((id, Vec::new()));
                    uploads.len() - 1
                });
                uploads[place].1.push(found);
            }
            Owner::Nobody => {}
        }
    }
    for (digest, object) in objects {
        let at_home = engine.store.as_ref().is_some_and(|store| store.home(&digest).is_some());
        if !at_home {
            // From when these stripes were another shard's: its home has what counts.
            summary.strays += 1;
            continue;
        }
        rebuild_object(engine, &digest, object, summary);
    }
    for (id, records) in uploads {
        rebuild_upload(engine, id, records, summary);
    }
}

/// The records are in rising order of rank.
fn rebuild_object(engine: &mut Engine, digest: &Digest, object: OfDigest, summary: &mut Summary) {
    let mut records = object.records;
    records.retain(|found| found.record.sequence > object.tombstone);
    let Some(newest) = records.last() else { return };
    let (life, size) = (newest.record.life, newest.record.object_size);
    let media_type = newest.record.media_type.clone();
    let origin = Origin(newest.record.origin);
    records.retain(|found| found.record.life == life && found.record.object_size == size);
    let seal = records
        .iter()
        .filter(|found| found.record.kind == Kind::Seal)
        .map(|found| found.record.sequence)
        .max();
    let chunk_bytes = engine.config.geometry.chunk_bytes;
    if size.div_ceil(chunk_bytes) > u64::from(CHUNKS_MAX) {
        summary.damaged += 1;
        return;
    }
    // An object without bytes is known by its seal alone; any other by its chunks.
    let any_chunk = records.iter().any(|found| found.record.kind == Kind::Chunk);
    if !any_chunk && (size > 0 || seal.is_none()) {
        return;
    }
    let (class, life) = (Class::NEUTRAL, life as u32);
    let new = NewObject { size, media_type: clip(&media_type), origin, life, class };
    let Ok(id) = engine.index.add(digest, &new) else { return };
    let customer = records.iter().rev().map(|found| found.record.customer).find(|key| *key != 0);
    let account = engine.index.accounts.find_or_open(customer.unwrap_or(0));
    engine.index.set_account(id, account);
    engine.rescore(id);
    summary.objects += 1;
    engine.index.set(id, flag::SEALED, seal.is_some());
    engine.index.set(id, flag::EMPTY_VERIFIED, size == 0);
    let seal = seal.unwrap_or(0);
    let mut best: HashMap<u32, &Found> = HashMap::new();
    let mut tainted = false;
    for found in records.iter().filter(|found| found.record.kind == Kind::Chunk) {
        let chunk = found.record.chunk;
        if chunk >= engine.index.chunks(id)
            || found.record.payload_bytes as usize != engine.index.chunk_len(id, chunk)
        {
            summary.damaged += 1;
            continue;
        }
        if let Some(older) = best.insert(chunk, found) {
            // A copy that reclaim made is the same record; any other unverified one must never
            // come under a later seal.
            let copy = older.record.sequence == found.record.sequence;
            tainted |= !copy && older.record.sequence > seal;
        }
    }
    engine.index.set(id, flag::TAINTED, tainted);
    for chunk in 0..engine.index.chunks(id) {
        let Some(found) = best.get(&chunk) else { continue };
        engine.set_location(id, chunk, found.location);
        let entry = engine.index.entry(id, chunk);
        engine.index.set_entry(id, chunk, entry.with_verified(found.record.sequence < seal));
        summary.chunks += 1;
    }
}

/// The records are in rising order of rank.
fn rebuild_upload(engine: &mut Engine, id: UploadId, records: Vec<Found>, summary: &mut Summary) {
    let chunk_bytes = engine.config.geometry.chunk_bytes;
    let mut candidates: BTreeMap<u32, Vec<Found>> = BTreeMap::new();
    let mut size = None;
    let mut last_chunk = 0;
    for found in records {
        let chunk = found.record.chunk;
        if chunk >= CHUNKS_MAX || u64::from(found.record.payload_bytes) > chunk_bytes {
            summary.damaged += 1;
            continue;
        }
        if found.record.flags & FLAG_LAST != 0 {
            size = Some(found.record.object_size);
        }
        last_chunk = last_chunk.max(chunk);
        candidates.entry(chunk).or_default().push(found);
    }
    if candidates.is_empty() {
        return;
    }
    let life = engine.next_sequence() as u32;
    let Ok(object) = engine.index.add_upload(life) else { return };
    engine.upload_ids.insert(object, id);
    engine.objects_of_uploads.insert(id, object);
    engine.index.grow_upload(object, last_chunk + 1);
    let known = size.unwrap_or(u64::from(last_chunk + 1) * chunk_bytes);
    engine.index.set_size(object, known);
    for (chunk, found) in candidates {
        let Some(found) = choose(engine, found) else { continue };
        if found.record.payload_bytes as usize == engine.index.chunk_len(object, chunk) {
            engine.set_location(object, chunk, found.location);
        } else {
            summary.damaged += u64::from(size.is_some());
        }
    }
    summary.uploads += 1;
    engine.recovered.insert(id, Recovered { object, size, named: false });
}

/// Of several records of one chunk of an upload the newest one whose payload is whole: a copy may
/// have been torn, or its write have failed half-way. The records are in rising order of rank.
fn choose(engine: &mut Engine, mut found: Vec<Found>) -> Option<Found> {
    if found.len() > 1
        && let Some(whole) = (0..found.len()).rev().find(|index| is_whole(engine, &found[*index]))
    {
        return Some(found.swap_remove(whole));
    }
    found.pop()
}

/// Reads a record in full and checks it. Blocks.
fn is_whole(engine: &mut Engine, found: &Found) -> bool {
    let len = found.record.len_bytes() as u32;
    let payload_bytes = len as usize - HEADER_BYTES;
    let Some(slot) = engine.ram.slot(payload_bytes, &mut engine.index) else { return false };
    let Some(store) = &mut engine.store else { return false };
    let Location { stripe, block } = found.location;
    let operation = Operation::Read { slot, offset: byte_of(block), len };
    store.disk.submit(Request { token: 0, stripe, operation });
    let mut done = VecDeque::new();
    while done.is_empty() {
        store.disk.turn(&mut done);
        if done.is_empty() {
            store.disk.wait();
        }
    }
    done.pop_front().is_some_and(|completion| match completion.request.operation {
        Operation::Read { slot, .. } => {
            let whole = record::parse_whole(slot.bytes(), store.seed, found.segment_sequence);
            completion.result.is_ok() && whole.is_ok()
        }
        _ => false,
    })
}
