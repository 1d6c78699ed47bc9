//! Who gets which slot: big slots of one full chunk each, some of them cut into smaller ones so
//! that a manifest does not cost the room of a chunk.
//!
//! Owns the free lists of a range of big slots; no memory, no locks. A big slot is cut for one class
//! at a time and becomes whole again when all of its parts are free. At most `cut_max` are cut, so
//! that small objects cannot take the arena over.

use super::{BLOCK_BYTES, HEADER_BYTES, PARTS_MAX, Place, record_bytes};

/// Sizes of the small slots, with their header room.
const SMALL_BYTES: [usize; 4] = [4 << 10, 8 << 10, 32 << 10, 128 << 10];

/// What has to be evicted so that a slot of a class becomes free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shortage {
    /// Something of this class.
    Class(usize),
    /// All that is in this big slot, which is cut for another class.
    Drain(u32),
}

#[derive(Clone, Debug)]
enum Big {
    Free,
    Whole,
    Cut { class: usize, used: u32, free: u64 },
}

/// The free lists.
pub(crate) struct Slab {
    first: u32,
    big_bytes: usize,
    bigs: Vec<Big>,
    free: Vec<u32>,
    /// Slot sizes by class; the last is the big one.
    classes: Vec<usize>,
    /// Per small class: big slots that are cut for it and have a free part.
    partly: Vec<Vec<u32>>,
    used: Vec<u32>,
    cut: u32,
    cut_max: u32,
}

impl Slab {
    /// Manages `count` big slots from number `first` on, each for `chunk_bytes` of payload.
    pub(crate) fn new(first: u32, count: u32, chunk_bytes: usize, cut_max: u32) -> Self {
        let big_bytes = record_bytes(chunk_bytes);
        let mut classes: Vec<usize> =
            SMALL_BYTES.into_iter().filter(|bytes| bytes * 2 <= big_bytes).collect();
        classes.push(big_bytes);
        Self {
            first,
            big_bytes,
            bigs: vec![Big::Free; count as usize],
            // The lowest slot is given out first.
            free: (0..count).rev().collect(),
            partly: vec![Vec::new(); classes.len()],
            used: vec![0; classes.len()],
            classes,
            cut: 0,
            cut_max,
        }
    }

    /// How many classes there are; the last one is the big one.
    pub(crate) fn classes(&self) -> usize {
        self.classes.len()
    }

    /// Slot bytes of a class.
    pub(crate) fn class_bytes(&self, class: usize) -> usize {
        self.classes[class]
    }

    /// Slots of a class that are out.
    pub(crate) fn used(&self, class: usize) -> u32 {
        self.used[class]
    }

    /// Bytes of slots that are out.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.classes
            .iter()
            .zip(&self.used)
            .map(|(bytes, used)| *bytes as u64 * u64::from(*used))
            .sum()
    }

    /// Bytes of all slots.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.bigs.len() as u64 * self.big_bytes as u64
    }

    /// The class of a payload, `None` when it is more than a chunk.
    pub(crate) fn class_of(&self, payload_bytes: usize) -> Option<usize> {
        self.classes.iter().position(|bytes| HEADER_BYTES + payload_bytes <= *bytes)
    }

    /// The class of a slot that is out.
    pub(crate) fn class_of_slot(&self, id: u32) -> usize {
        match self.bigs[self.big_of(id)] {
            Big::Cut { class, .. } => class,
            Big::Free | Big::Whole => self.classes.len() - 1,
        }
    }

    /// Whether the slot is one of this slab's.
    pub(crate) fn owns(&self, id: u32) -> bool {
        (id / PARTS_MAX).checked_sub(self.first).is_some_and(|big| (big as usize) < self.bigs.len())
    }

    /// Whether the slot is a part of the big slot that [`Shortage::Drain`] named.
    pub(crate) fn is_part_of(&self, id: u32, big: u32) -> bool {
        self.big_of(id) == big as usize
    }

    fn big_of(&self, id: u32) -> usize {
        (id / PARTS_MAX - self.first) as usize
    }

    fn parts(&self, class: usize) -> u32 {
        ((self.big_bytes / self.classes[class]) as u32).min(PARTS_MAX)
    }

    fn place(&self, big: u32, part: u32, bytes: usize) -> Place {
        Place {
            id: (self.first + big) * PARTS_MAX + part,
            offset: (self.first + big) as usize * self.big_bytes + part as usize * bytes,
            bytes: bytes as u32,
        }
    }

    /// A free slot for the payload, `None` when something has to be evicted first.
    pub(crate) fn take(&mut self, payload_bytes: usize) -> Option<Place> {
        let class = self.class_of(payload_bytes)?;
        let bytes = self.classes[class];
        debug_assert_eq!(bytes % BLOCK_BYTES, 0);
        if class == self.classes.len() - 1 {
            let big = self.free.pop()?;
            self.bigs[big as usize] = Big::Whole;
            self.used[class] += 1;
            return Some(self.place(big, 0, bytes));
        }
        let parts = self.parts(class);
        if self.partly[class].is_empty() && self.cut < self.cut_max {
            let big = self.free.pop()?;
            let free = u64::MAX >> (64 - parts);
            self.bigs[big as usize] = Big::Cut { class, used: 0, free };
            self.partly[class].push(big);
            self.cut += 1;
        }
        let big = *self.partly[class].last()?;
        let Big::Cut { used, free, .. } = &mut self.bigs[big as usize] else {
            unreachable!("only cut slots are listed as partly free")
        };
        let part = free.trailing_zeros();
        *free &= !(1 << part);
        *used += 1;
        if *free == 0 {
            self.partly[class].pop();
        }
        self.used[class] += 1;
        Some(self.place(big, part, bytes))
    }

    /// Takes a slot back.
    pub(crate) fn release(&mut self, id: u32) {
        let index = self.big_of(id);
        match &mut self.bigs[index] {
            Big::Free => unreachable!("a free slot was given back"),
            state @ Big::Whole => {
                *state = Big::Free;
                self.free.push(index as u32);
                let last = self.used.len() - 1;
                self.used[last] -= 1;
            }
            Big::Cut { class, used, free } => {
                let class = *class;
                let was_full = *free == 0;
                *free |= 1 << (id % PARTS_MAX);
                *used -= 1;
                let now_empty = *used == 0;
                self.used[class] -= 1;
                if now_empty {
                    self.partly[class].retain(|big| *big != index as u32);
                    self.bigs[index] = Big::Free;
                    self.free.push(index as u32);
                    self.cut -= 1;
                } else if was_full {
                    self.partly[class].push(index as u32);
                }
            }
        }
    }

    /// What to evict so that `take` of this class can succeed.
    pub(crate) fn shortage(&self, class: usize) -> Shortage {
        let big = self.classes.len() - 1;
        if class == big || self.cut < self.cut_max {
            // Without a whole slot in use, what is cut has to go.
            if self.used[big] > 0 {
                return Shortage::Class(big);
            }
        } else if self.used[class] > 0 {
            return Shortage::Class(class);
        }
        let emptiest = self
            .bigs
            .iter()
            .enumerate()
            .filter_map(|(index, state)| match state {
                Big::Cut { used, class, .. } => {
                    Some((*used as usize * self.classes[*class], index as u32))
                }
                Big::Free | Big::Whole => None,
            })
            .min();
        emptiest.map_or(Shortage::Class(big), |(_, index)| Shortage::Drain(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    const CHUNK: usize = 256 << 10;

    #[test]
    fn each_payload_gets_the_smallest_slot_that_holds_it_and_its_header() {
        let slab = Slab::new(0, 8, CHUNK, 2);
        let bytes = |payload| slab.class_of(payload).map(|class| slab.class_bytes(class));
        assert_eq!(bytes(0), Some(4096));
        assert_eq!(bytes(4096 - HEADER_BYTES), Some(4096));
        assert_eq!(bytes(4096 - HEADER_BYTES + 1), Some(8192));
        assert_eq!(bytes(CHUNK), Some(CHUNK + 4096));
        assert_eq!(bytes(CHUNK + 3585), None);
    }

    #[test]
    fn small_slots_never_take_more_than_their_share_of_the_big_ones() {
        let mut slab = Slab::new(0, 8, CHUNK, 2);
        let mut taken = Vec::new();
        while let Some(place) = slab.take(100) {
            taken.push(place);
        }
        assert_eq!(taken.len(), 128);
        assert_eq!(slab.shortage(0), Shortage::Class(0));
        let bigs = std::iter::from_fn(|| slab.take(CHUNK)).count();
        assert_eq!(bigs, 6);
    }

    #[test]
    fn slots_never_overlap_and_all_of_them_come_back() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut slab = Slab::new(3, 16, CHUNK, 5);
        let mut out: HashMap<u32, Place> = HashMap::new();
        for _ in 0..20_000 {
            if random.bool() {
                let payload = [10, 5_000, 20_000, 100_000, CHUNK][random.usize(..5)];
                if let Some(place) = slab.take(payload) {
                    let (start, end) = (place.offset, place.offset + place.bytes as usize);
                    for other in out.values() {
                        let other_end = other.offset + other.bytes as usize;
                        assert!(end <= other.offset || other_end <= start, "overlap");
                    }
                    assert!(out.insert(place.id, place).is_none());
                }
            } else if let Some(id) = out.keys().min().copied() {
                out.remove(&id);
                slab.release(id);
            }
        }
        for id in out.into_keys() {
            slab.release(id);
        }
        assert_eq!(slab.used_bytes(), 0);
        assert_eq!(std::iter::from_fn(|| slab.take(CHUNK)).count(), 16);
    }
}
