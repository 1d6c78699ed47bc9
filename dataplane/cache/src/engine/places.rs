//! Where chunks are: every change of a location goes through here, so that the segments' counts of
//! what is alive in them stay true.

use super::Engine;
use crate::arena::record_bytes;
use crate::customers::Charged;
use crate::index::{Location, ObjectId, flag};

/// Objects without any chunk that are remembered (a fill may be on its way), at most.
const EMPTY_OBJECTS_MAX: usize = 4096;

impl Engine {
    /// Points the index at a record.
    pub(crate) fn set_location(&mut self, object: ObjectId, chunk: u32, location: Location) {
        if self.index.entry(object, chunk).location().is_some() {
            self.drop_location(object, chunk);
        }
        let bytes = record_bytes(self.index.chunk_len(object, chunk));
        let score = self.index.get(object).score;
        if let Some(store) = &mut self.store {
            let guarded = self.index.accounts.guarded_part(self.index.account(object));
            store.attach(location, bytes, score, guarded);
        }
        self.metrics.ssd_live_bytes.inc_by(bytes as i64);
        if self.upload_ids.contains_key(&object) {
            self.metrics.upload_bytes.inc_by(bytes as i64);
        } else {
            self.index.accounts.charge(self.index.account(object), Charged::Ssd, bytes);
        }
        let entry = self.index.entry(object, chunk);
        self.index.set_entry(object, chunk, entry.with_location(Some(location)));
    }

    /// Points the index at a copy of the same record.
    pub(super) fn relocate(&mut self, object: ObjectId, chunk: u32, location: Location) {
        let entry = self.index.entry(object, chunk);
        let Some(old) = entry.location() else { return };
        let bytes = record_bytes(self.index.chunk_len(object, chunk));
        let score = self.index.get(object).score;
        if let Some(store) = &mut self.store {
            let guarded = self.index.accounts.guarded_part(self.index.account(object));
            store.detach(old, bytes, score, guarded);
            store.attach(location, bytes, score, guarded);
        }
        self.index.set_entry(object, chunk, entry.with_location(Some(location)));
    }

    /// Takes a chunk's record out of the index; the bytes stay on disk until reclaim.
    pub(crate) fn drop_location(&mut self, object: ObjectId, chunk: u32) {
        let entry = self.index.entry(object, chunk);
        let Some(location) = entry.location() else { return };
        let bytes = record_bytes(self.index.chunk_len(object, chunk));
        let score = self.index.get(object).score;
        if let Some(store) = &mut self.store {
            let guarded = self.index.accounts.guarded_part(self.index.account(object));
            store.detach(location, bytes, score, guarded);
        }
        self.metrics.ssd_live_bytes.dec_by(bytes as i64);
        if self.upload_ids.contains_key(&object) {
            self.metrics.upload_bytes.dec_by(bytes as i64);
        } else {
            self.index.accounts.credit(self.index.account(object), Charged::Ssd, bytes);
            if !entry.verified() {
                self.index.set(object, flag::TAINTED, true);
            }
        }
        self.index.set_entry(object, chunk, entry.with_location(None));
        if self.index.empty(object) {
            self.ram.emptied.push((object, self.index.get(object).life));
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

    /// Forgets objects without chunks when there are too many of them.
    pub(super) fn drop_empties(&mut self) {
        self.empties.extend(self.ram.emptied.drain(..));
        while self.empties.len() > EMPTY_OBJECTS_MAX {
            let Some((object, life)) = self.empties.pop_front() else { break };
            let droppable = self.index.alive(object, life)
                && !self.index.has(object, flag::HOSTED | flag::UPLOAD)
                && self.index.empty(object)
                && self.index.size(object) > 0
                && !self.pending.contains_key(&object);
            if droppable {
                self.index.remove(object);
            }
        }
    }
}
