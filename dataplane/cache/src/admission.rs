//! Who may be written to SSD: a blob that was asked for once must not push the hot set out.
//!
//! While there are free segments everything is admitted. When something has to be reclaimed first,
//! an object is admitted when it was asked for before: its own frequency says so, or it left a trace
//! in one of two Bloom filters that are swapped when the newer is full (the doorkeeper of TinyLFU:
//! Einziger, Friedman, Manes, "TinyLFU: A Highly Efficient Cache Admission Policy", 2015).

/// Bits of one filter: 2^17 objects at 8 bits each are told apart with about 2 % mistakes.
const FILTER_BITS: usize = 1 << 20;
/// Objects after which the filters are swapped.
const FILTER_OBJECTS_MAX: u32 = 1 << 17;
/// Bits that each object sets.
const HASHES: u32 = 4;

/// Remembers what was asked for lately. 256 KiB.
pub(crate) struct Doorkeeper {
    newer: Box<[u64]>,
    older: Box<[u64]>,
    count: u32,
}

impl Doorkeeper {
    pub(crate) fn new() -> Self {
        let empty = || vec![0; FILTER_BITS / 64].into_boxed_slice();
        Self { newer: empty(), older: empty(), count: 0 }
    }

    /// Whether this key was seen before; remembers it.
    pub(crate) fn seen(&mut self, key: u64) -> bool {
        let in_newer = contains(&self.newer, key);
        let seen = in_newer || contains(&self.older, key);
        if !in_newer {
            for bit in bits(key) {
                self.newer[bit / 64] |= 1 << (bit % 64);
            }
            self.count += 1;
            if self.count >= FILTER_OBJECTS_MAX {
                std::mem::swap(&mut self.newer, &mut self.older);
                self.newer.fill(0);
                self.count = 0;
            }
        }
        seen
    }
}

fn bits(key: u64) -> impl Iterator<Item = usize> {
    let step = (key >> 32) | 1;
    (0..u64::from(HASHES))
        .map(move |i| key.wrapping_add(i.wrapping_mul(step)) as usize % FILTER_BITS)
}

fn contains(filter: &[u64], key: u64) -> bool {
    bits(key).all(|bit| filter[bit / 64] & (1 << (bit % 64)) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_request_is_recognised_and_a_new_object_hardly_ever() {
        let mut keeper = Doorkeeper::new();
        let mut random = fastrand::Rng::with_seed(3);
        let keys: Vec<u64> = (0..50_000).map(|_| random.u64(..)).collect();
        let mistakes = keys.iter().filter(|key| keeper.seen(**key)).count();
        assert!(mistakes < 500, "{mistakes}");
        assert!(keys.iter().all(|key| keeper.seen(*key)));
    }

    #[test]
    fn what_was_seen_long_ago_is_forgotten() {
        let mut keeper = Doorkeeper::new();
        let mut random = fastrand::Rng::with_seed(4);
        keeper.seen(1);
        for _ in 0..FILTER_OBJECTS_MAX * 3 {
            keeper.seen(random.u64(..));
        }
        assert!(!keeper.seen(1));
    }
}
