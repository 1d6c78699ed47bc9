//! Seals and tombstones: what a restart may believe.
//!
//! A seal vouches for every record of one life of an object with a lower sequence; a tombstone voids
//! every record of a digest with a lower sequence. So a seal is never written for a life of which
//! unverified records may lie on the disk unseen.

use outrider_artifact::Digest;

use super::Engine;
use crate::disk::record::{Kind, Owner, Record};
use crate::index::{ObjectId, flag};
use crate::store::{Job, Mark, Placement, Purpose, What};

/// Stripes that a tombstone tries one after the other.
pub(super) const MARK_ATTEMPTS_MAX: u32 = 3;
/// Blocks of a record without payload.
pub(super) const MARK_BLOCKS: u32 = 1;
/// Seals and tombstones that may wait to be written.
const MARKS_MAX: u32 = 1 << 16;

impl Engine {
    pub(crate) fn set_verified(&mut self, digest: &Digest) {
        let Some(object) = self.index.find(digest) else { return };
        if self.index.has(object, flag::HOSTED) {
            return;
        }
        if self.index.size(object) == 0 {
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
    pub(super) fn want_seal(&mut self, object: ObjectId, digest: &Digest) {
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
    pub(super) fn settle(&mut self, object: ObjectId) {
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
        if !on_disk && self.index.size(object) > 0 {
            return;
        }
        let life = self.index.get(object).life;
        self.index.set(object, flag::SEALED, true);
        let Some(store) = &self.store else { return };
        let record = Record {
            life: u64::from(life),
            object_size: self.index.size(object),
            origin: self.index.origin(object).0,
            media_type: self.index.media_type(object).to_string(),
            ..Record::mark(Kind::Seal, Owner::Object(digest), sequence, store.seed)
        };
        self.enqueue_mark(record, &digest, What::Seal { object, life });
    }

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
        let Some(seed) = self.store.as_ref().map(|store| store.seed) else { return };
        let sequence = self.next_sequence();
        let record = Record::mark(Kind::Tombstone, Owner::Object(*digest), sequence, seed);
        self.enqueue_mark(record, digest, What::Tombstone { attempts: 0 });
    }

    /// Queues a seal or a tombstone on the stripe of the object.
    pub(super) fn enqueue_mark(&mut self, record: Record, digest: &Digest, what: What) {
        self.marks += 1;
        let stripe = self.stripe_of(digest);
        match (stripe, &mut self.store) {
            (Some(stripe), Some(store)) if self.marks <= MARKS_MAX => {
                store.stripes[stripe as usize].marks.push_back(Mark { record, what });
            }
            // Without a seal the object is unverified after a restart, and hashed again.
            _ => self.mark_lost(what),
        }
    }

    pub(super) fn write_mark(&mut self, stripe: u16) -> bool {
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
                let Mark { record, what } = mark.expect("it was just looked at");
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
    pub(super) fn mark_misplaced(&mut self, stripe: u16, record: Record, what: What) {
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

    pub(super) fn lost_tombstone(&self) {
        self.metrics.lost_tombstones.inc();
        tracing::error!("a tombstone could not be written: a purge may be undone by a restart");
    }

    /// A mark cannot be written anywhere.
    pub(super) fn mark_lost(&mut self, what: What) {
        match what {
            What::Seal { object, life } if self.index.alive(object, life) => {
                self.index.set(object, flag::SEALED, false);
            }
            What::Tombstone { .. } => self.lost_tombstone(),
            _ => {}
        }
        self.marks -= 1;
    }
}
