//! What a shard keeps of the other shards' content: small, verified, and asked for more than once. It
//! saves the way to the other shard and back.
//!
//! An entry is a copy, made when the digest is asked for the second time, so that nobody holds slots of
//! another shard's arena for longer than an answer takes. An entry counts only while nothing has been
//! taken away since (see [`Hub::epoch`](super::Hub)).

use bytes::Bytes;
use hashbrown::HashMap;
use outrider_artifact::Digest;
use outrider_cache::{CHUNK_BYTES, MediaType, ObjectStat};

/// The largest content that is kept: one chunk.
pub(crate) const ENTRY_BYTES_MAX: u64 = CHUNK_BYTES;
/// How many there are at most.
const ENTRIES_MAX: usize = 8192;
/// What an entry counts besides its bytes.
const ENTRY_OVERHEAD: usize = 256;
/// Digests that were asked for once and are remembered.
const SEEN: usize = 4096;

/// A small content that is all here.
#[derive(Clone, Debug)]
pub(crate) struct Small {
    pub(crate) bytes: Bytes,
    pub(crate) media_type: MediaType,
    pub(crate) hosted: bool,
}

impl Small {
    /// What its shard says of it.
    pub(crate) fn stat(&self) -> ObjectStat {
        ObjectStat {
            size: self.bytes.len() as u64,
            media_type: self.media_type.clone(),
            verified: true,
            hosted: self.hosted,
            complete: true,
            origin: None,
        }
    }
}

struct Slot {
    digest: Digest,
    small: Small,
    epoch: u64,
    /// It was asked for since the hand has passed.
    used: bool,
    /// The minute in which its owner was last told that it is asked for.
    told_minute: u64,
}

/// The table of one shard. Evicts by CLOCK.
pub(crate) struct Table {
    places: HashMap<Digest, usize>,
    slots: Vec<Slot>,
    hand: usize,
    bytes: usize,
    bytes_max: usize,
    /// A part of the hash of what was asked for lately.
    seen: Box<[u32]>,
}

impl Table {
    /// At most `bytes_max` bytes.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            places: HashMap::new(),
            slots: Vec::new(),
            hand: 0,
            bytes: 0,
            bytes_max,
            seen: vec![0; SEEN].into(),
        }
    }

    /// What is kept of the digest and is still right. Allocates nothing.
    pub(crate) fn get(&mut self, digest: &Digest, epoch: u64) -> Option<Small> {
        let place = *self.places.get(digest)?;
        if self.slots[place].epoch != epoch {
            self.remove(place);
            return None;
        }
        let slot = &mut self.slots[place];
        slot.used = true;
        Some(slot.small.clone())
    }

    /// Whether the digest is asked for again and should be kept. Notes that it was asked for.
    pub(crate) fn wants(&mut self, digest: &Digest) -> bool {
        let hash = xxhash(digest);
        let seen = &mut self.seen[hash as usize % SEEN];
        let mark = (hash >> 32) as u32 | 1;
        std::mem::replace(seen, mark) == mark
    }

    /// Keeps a copy, as it was in `epoch`.
    pub(crate) fn keep(&mut self, digest: &Digest, small: &Small, epoch: u64) {
        let weight = weight(small);
        if small.bytes.len() as u64 > ENTRY_BYTES_MAX || weight > self.bytes_max {
            return;
        }
        if let Some(place) = self.places.get(digest) {
            self.remove(*place);
        }
        while self.bytes + weight > self.bytes_max || self.slots.len() >= ENTRIES_MAX {
            self.evict();
        }
        // All of it is copied: counting references together with the owner would cost both of them more.
        let small = Small {
            bytes: Bytes::copy_from_slice(&small.bytes),
            media_type: (*small.media_type).into(),
            hosted: small.hosted,
        };
        self.bytes += weight;
        self.places.insert(*digest, self.slots.len());
        self.slots.push(Slot { digest: *digest, small, epoch, used: false, told_minute: 0 });
    }

    /// Whether the digest's owner is to be told, in this minute, that it is asked for. What is not kept
    /// is always to be told of.
    pub(crate) fn is_news(&mut self, digest: &Digest, minute: u64) -> bool {
        let Some(place) = self.places.get(digest) else { return true };
        std::mem::replace(&mut self.slots[*place].told_minute, minute) != minute
    }

    /// Bytes that are kept.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn evict(&mut self) {
        loop {
            if self.hand >= self.slots.len() {
                self.hand = 0;
            }
            let Some(slot) = self.slots.get_mut(self.hand) else { return };
            if !std::mem::replace(&mut slot.used, false) {
                return self.remove(self.hand);
            }
            self.hand += 1;
        }
    }

    fn remove(&mut self, place: usize) {
        let slot = self.slots.swap_remove(place);
        self.bytes -= weight(&slot.small);
        self.places.remove(&slot.digest);
        if let Some(moved) = self.slots.get(place) {
            self.places.insert(moved.digest, place);
        }
    }
}

fn weight(small: &Small) -> usize {
    small.bytes.len() + ENTRY_OVERHEAD
}

/// Digests are hashes: any part of one is as good as a hash of it.
fn xxhash(digest: &Digest) -> u64 {
    let value = digest.value();
    let mut part = [0; 8];
    part.copy_from_slice(&value[..8]);
    u64::from_le_bytes(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(bytes: usize) -> Small {
        Small { bytes: vec![7; bytes].into(), media_type: "x/y".into(), hosted: false }
    }

    fn digest(number: usize) -> Digest {
        Digest::sha256(&number.to_be_bytes())
    }

    #[test]
    fn it_never_holds_more_than_its_bound_and_keeps_what_is_used() {
        let mut table = Table::new(10 * (1000 + ENTRY_OVERHEAD));
        for number in 0..1000 {
            table.keep(&digest(number), &small(1000), 0);
            assert!(table.bytes() <= 10 * (1000 + ENTRY_OVERHEAD));
            assert_eq!(table.slots.len(), table.places.len());
            assert!(table.get(&digest(0), 0).is_some(), "{number}");
        }
        let held = (0..1000).filter(|number| table.places.contains_key(&digest(*number)));
        assert_eq!(held.count(), 10);
    }

    #[test]
    fn what_is_kept_of_an_earlier_epoch_does_not_count() {
        let mut table = Table::new(1 << 20);
        table.keep(&digest(1), &small(10), 4);
        table.keep(&digest(2), &small(10), 5);
        assert!(table.get(&digest(1), 5).is_none());
        assert_eq!(table.get(&digest(2), 5).unwrap().bytes.len(), 10);
        assert_eq!(table.bytes(), 10 + ENTRY_OVERHEAD);
    }

    #[test]
    fn what_is_too_large_is_not_kept() {
        let mut table = Table::new(1 << 20);
        table.keep(&digest(1), &small(ENTRY_BYTES_MAX as usize + 1), 0);
        table.keep(&digest(2), &small(ENTRY_BYTES_MAX as usize), 0);
        assert!(table.get(&digest(1), 0).is_none() && table.get(&digest(2), 0).is_some());
        let mut none = Table::new(0);
        none.keep(&digest(1), &small(1), 0);
        assert_eq!(none.bytes(), 0);
    }

    #[test]
    fn a_digest_is_wanted_the_second_time_and_its_owner_is_told_once_a_minute() {
        let mut table = Table::new(1 << 20);
        assert!(!table.wants(&digest(1)));
        assert!(table.wants(&digest(1)));
        assert!(table.is_news(&digest(1), 7) && table.is_news(&digest(1), 7));
        table.keep(&digest(1), &small(1), 0);
        assert!(table.is_news(&digest(1), 7) && !table.is_news(&digest(1), 7));
        assert!(table.is_news(&digest(1), 8));
    }
}
