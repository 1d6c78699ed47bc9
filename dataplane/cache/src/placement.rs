//! Where a digest is at home: on one stripe, and with that on one shard. Pure.
//!
//! The number of stripes is fixed when a store is made, the number of shards is not: with another
//! number of shards the stripes change hands, and what lies on them goes with them. So everything
//! that must survive that lies whole on one stripe.

use outrider_artifact::Digest;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The seed under which digests are spread. Written into every store by what lies where.
const SEED: u64 = 0;

/// Which stripe a digest lies on, and which shard has that stripe. O(1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    stripes: u16,
    shards: u16,
}

impl Placement {
    /// # Panics
    /// When either is zero.
    pub const fn new(stripes: u16, shards: u16) -> Self {
        assert!(stripes > 0 && shards > 0, "there is at least one of each");
        Self { stripes, shards }
    }

    /// How many shards there are.
    pub const fn shards(&self) -> u16 {
        self.shards
    }

    /// The shard that has a stripe.
    pub const fn shard_of_stripe(&self, stripe: u16) -> u16 {
        stripe % self.shards
    }

    /// Whether a shard has any stripe.
    pub const fn has_stripes(&self, shard: u16) -> bool {
        shard < self.shards && shard < self.stripes
    }

    /// The home of a digest.
    pub fn home(&self, digest: &Digest) -> u16 {
        self.shard_of_stripe(stripe_of(digest, self.stripes))
    }
}

/// The stripe of a digest in a store of so many.
pub(crate) fn stripe_of(digest: &Digest, stripes: u16) -> u16 {
    (xxh3_64_with_seed(digest.value(), SEED) % u64::from(stripes)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digests() -> impl Iterator<Item = Digest> {
        (0..1000u32).map(|number| Digest::sha256(&number.to_be_bytes()))
    }

    #[test]
    fn the_stripe_of_a_digest_does_not_depend_on_the_number_of_shards() {
        for digest in digests() {
            let stripe = stripe_of(&digest, 6);
            for shards in 1..8 {
                let placement = Placement::new(6, shards);
                assert_eq!(placement.home(&digest), placement.shard_of_stripe(stripe));
            }
        }
    }

    #[test]
    fn every_shard_with_a_stripe_gets_its_share_and_no_other_gets_any() {
        let placement = Placement::new(4, 6);
        let mut counts = [0; 6];
        digests().for_each(|digest| counts[usize::from(placement.home(&digest))] += 1);
        assert!(counts[..4].iter().all(|count| (200..300).contains(count)), "{counts:?}");
        assert_eq!(counts[4..], [0, 0]);
        assert!(placement.has_stripes(3) && !placement.has_stripes(4));
    }

    #[test]
    fn where_a_digest_lies_never_changes() {
        // What is on disks out there was put by this function.
        let digest = Digest::sha256(b"outrider");
        assert_eq!(stripe_of(&digest, 64), (xxh3_64_with_seed(digest.value(), 0) % 64) as u16);
        assert_eq!([2, 3, 7, 64].map(|stripes| stripe_of(&digest, stripes)), PINNED);
    }

    const PINNED: [u16; 4] = [1, 2, 0, 45];
}
