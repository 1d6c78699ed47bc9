//! Reading: from RAM at once, from SSD by joining or starting a read. Whatever comes from the disk
//! is checked before anyone sees it: whose record it is, which chunk, and the hash of its payload.

use std::rc::Rc;

use bytes::Bytes;
use outrider_artifact::Digest;

use super::{Engine, Read, ReadKey, ReadResult, SlotWait};
use crate::arena::{HEADER_BYTES, SlotMut, record_bytes};
use crate::cache::{Chunk, Tier};
use crate::disk::Operation;
use crate::disk::record::{self, Owner};
use crate::error::CacheError;
use crate::index::{Location, ObjectId, flag};
use crate::store::{Action, Store};
use crate::wait::{Waiter, abandoned};

impl Engine {
    /// A chunk in RAM. O(1).
    pub(crate) fn resident(&mut self, digest: &Digest, chunk: u32) -> Option<Chunk> {
        let object = self.index.find(digest)?;
        self.resident_of(object, chunk)
    }

    pub(crate) fn resident_of(&mut self, object: ObjectId, chunk: u32) -> Option<Chunk> {
        if chunk == 0 && self.index.size(object) == 0 && !self.index.has(object, flag::UPLOAD) {
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

    pub(super) fn pump_reads(&mut self) -> bool {
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

    pub(super) fn read_done(&mut self, key: ReadKey, location: Location, slot: SlotMut, ok: bool) {
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
                None if self.index.alive(object, life) => {
                    let resident = self.resident_of(object, chunk);
                    self.answer_read(key, Ok(resident));
                }
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

    pub(super) fn belongs(&self, object: ObjectId, owner: &Owner) -> bool {
        match owner {
            Owner::Object(digest) => {
                !self.upload_ids.contains_key(&object) && self.index.find(digest) == Some(object)
            }
            Owner::Upload(id) => self.upload_ids.get(&object) == Some(id),
            Owner::Nobody => false,
        }
    }

    pub(super) fn answer_read(&mut self, key: ReadKey, result: ReadResult) {
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
}
