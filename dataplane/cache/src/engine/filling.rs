//! Filling objects from an origin, and sending their chunks to SSD if admission says so.

use outrider_artifact::Digest;

use super::{Engine, clip};
use crate::arena::ChunkWriter;
use crate::cache::{Chunk, Origin, Tier};
use crate::customers::{Charged, Customer};
use crate::disk::record::{self, Kind, Owner, Record};
use crate::error::CacheError;
use crate::index::{NewObject, ObjectId, SIZE_BYTES_MAX, flag};
use crate::store::{Job, Purpose, What};

/// Bytes of cached chunks that may wait for their write, of an arena of this many bytes: one part in.
const WRITE_QUEUE_ARENA_PART: u64 = 4;
/// And never more than this.
const WRITE_QUEUE_BYTES_MAX: u64 = 64 << 20;

impl Engine {
    pub(crate) fn begin(
        &mut self,
        digest: &Digest,
        size: u64,
        media_type: &str,
        origin: Origin,
        customer: Customer,
    ) -> Result<(), CacheError> {
        if let Some(object) = self.index.find(digest) {
            let known = self.index.size(object);
            return if known == size {
                Ok(())
            } else {
                Err(CacheError::SizeDiffers { known, offered: size })
            };
        }
        let limit = self.config.object_bytes_max.min(SIZE_BYTES_MAX);
        if size > limit {
            return Err(CacheError::TooLarge { size, limit });
        }
        let media_type = clip(media_type);
        let life = self.next_sequence() as u32;
        let new = NewObject { size, media_type, origin, life, class: customer.class };
        let object = self.index.add(digest, &new).map_err(CacheError::TooMany)?;
        if self.doorkeeper.seen(self.index.filter_key(digest)) {
            self.index.set(object, flag::ADMITTED, true);
        }
        self.charge(object, customer);
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
        if !self.index.has(object, flag::HOSTED) && self.admits(object, digest) {
            self.enqueue_chunk(object, digest, chunk);
        }
        Chunk { bytes, tier: Tier::Ram, verified: false }
    }

    pub(super) fn admits(&mut self, object: ObjectId, digest: &Digest) -> bool {
        let Some(stripe) = self.stripe_of(digest) else { return false };
        let Some(store) = &self.store else { return false };
        let wanted =
            self.index.get(object).frequency >= 2 || self.index.has(object, flag::ADMITTED);
        // A guarantee is filled also by what is asked for once.
        let account = self.index.account(object);
        let wanted = wanted || self.index.accounts.has_room(account, Charged::Ssd);
        if wanted || store.has_spare(stripe) {
            return true;
        }
        self.metrics.refused_seen_once.inc();
        false
    }

    /// The stripe that takes the records of a digest: its own, or another one here while that takes
    /// no writes.
    pub(super) fn stripe_of(&self, digest: &Digest) -> Option<u16> {
        let store = self.store.as_ref()?;
        let home = store.home(digest).unwrap_or_default();
        store.stripe_for(u64::from(home))
    }

    pub(super) fn write_queue_max(&self) -> u64 {
        (self.ram.total_bytes() / WRITE_QUEUE_ARENA_PART).min(WRITE_QUEUE_BYTES_MAX)
    }

    /// Queues a resident chunk for SSD; `false` when it stays in RAM only.
    pub(super) fn enqueue_chunk(&mut self, object: ObjectId, digest: &Digest, chunk: u32) -> bool {
        let Some(stripe) = self.stripe_of(digest) else { return false };
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
        let (life, size) = (known.life, self.index.size(object));
        let customer = self.index.accounts.key(self.index.account(object));
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
            customer,
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

    pub(super) fn write_settled(&mut self, object: ObjectId) {
        if let Some(pending) = self.pending.get_mut(&object) {
            pending.writes = pending.writes.saturating_sub(1);
            self.settle(object);
        }
    }
}
