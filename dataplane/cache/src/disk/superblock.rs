//! The first block of a stripe file: what it is, and with which sizes it was made. Written once,
//! twice in a row (blocks 0 and 1), so that one bad block does not cost the stripe.

use xxhash_rust::xxh3::xxh3_64;

use crate::arena::BLOCK_BYTES;
use crate::config::Geometry;

const MAGIC: [u8; 8] = *b"OUTRSTR1";
/// The version of the stripe format.
pub const VERSION: u16 = 2;
const USED_BYTES: usize = 104;

/// What a stripe file says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The store that it belongs to; also the secret of its hashes.
    pub store: [u8; 16],
    /// Its number.
    pub stripe: u16,
    /// How many stripes the store has.
    pub stripes: u16,
    /// Bytes that the operator asked for, for all stripes together.
    pub asked_bytes: u64,
    /// Bytes of this file (less than its share when the disk was full).
    pub stripe_bytes: u64,
    /// The sizes of chunks and segments.
    pub geometry: Geometry,
}

/// Why a block is not a superblock of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// All zero: preallocated, never initialised.
    #[error("it was never initialised")]
    Blank,
    /// Something else.
    #[error("it is not a stripe of Outrider")]
    Foreign,
    /// Ours, of another version.
    #[error("it was written in version {0} of the format, this program knows version {VERSION}")]
    Version(u16),
    /// Ours, and damaged.
    #[error("its superblock is damaged")]
    Damaged,
}

impl Superblock {
    /// The seed of every hash in the store.
    pub fn seed(&self) -> u64 {
        xxh3_64(&self.store)
    }

    /// The block as it stands on disk.
    pub fn to_block(self) -> Vec<u8> {
        let mut block = vec![0; BLOCK_BYTES];
        block[..8].copy_from_slice(&MAGIC);
        block[8..10].copy_from_slice(&VERSION.to_le_bytes());
        block[10..12].copy_from_slice(&self.stripe.to_le_bytes());
        block[12..14].copy_from_slice(&self.stripes.to_le_bytes());
        block[16..32].copy_from_slice(&self.store);
        let numbers = [
            self.asked_bytes,
            self.stripe_bytes,
            self.geometry.chunk_bytes,
            self.geometry.segment_bytes,
        ];
        for (index, number) in numbers.into_iter().enumerate() {
            block[32 + index * 8..40 + index * 8].copy_from_slice(&number.to_le_bytes());
        }
        let hash = xxh3_64(&block[..USED_BYTES - 8]);
        block[USED_BYTES - 8..USED_BYTES].copy_from_slice(&hash.to_le_bytes());
        block
    }

    /// Reads a block. Pure, takes any bytes.
    ///
    /// # Errors
    /// Every [`SuperblockError`].
    pub fn parse(block: &[u8]) -> Result<Self, SuperblockError> {
        if block.iter().all(|byte| *byte == 0) {
            return Err(SuperblockError::Blank);
        }
        let block = block.get(..USED_BYTES).ok_or(SuperblockError::Foreign)?;
        if block[..8] != MAGIC {
            return Err(SuperblockError::Foreign);
        }
        let u16_at = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
        if u16_at(8) != VERSION {
            return Err(SuperblockError::Version(u16_at(8)));
        }
        let u64_at = |at: usize| {
            let mut value = [0; 8];
            value.copy_from_slice(&block[at..at + 8]);
            u64::from_le_bytes(value)
        };
        if xxh3_64(&block[..USED_BYTES - 8]) != u64_at(USED_BYTES - 8) {
            return Err(SuperblockError::Damaged);
        }
        let mut store = [0; 16];
        store.copy_from_slice(&block[16..32]);
        Ok(Self {
            store,
            stripe: u16_at(10),
            stripes: u16_at(12),
            asked_bytes: u64_at(32),
            stripe_bytes: u64_at(40),
            geometry: Geometry { chunk_bytes: u64_at(48), segment_bytes: u64_at(56) },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: Superblock = Superblock {
        store: [7; 16],
        stripe: 1,
        stripes: 4,
        asked_bytes: 1 << 34,
        stripe_bytes: 1 << 32,
        geometry: Geometry { chunk_bytes: 1, segment_bytes: 3 },
    };

    #[test]
    fn what_is_written_is_read_back_and_damage_is_noticed() {
        let block = SAMPLE.to_block();
        assert_eq!(Superblock::parse(&block), Ok(SAMPLE));
        for at in 0..USED_BYTES {
            let mut bad = block.clone();
            bad[at] ^= 4;
            assert!(Superblock::parse(&bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn blank_and_foreign_blocks_are_told_apart() {
        assert_eq!(Superblock::parse(&[0; 4096]), Err(SuperblockError::Blank));
        assert_eq!(Superblock::parse(&[1; 4096]), Err(SuperblockError::Foreign));
        assert_eq!(Superblock::parse(b"OUTR"), Err(SuperblockError::Foreign));
    }
}
