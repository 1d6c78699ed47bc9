//! A segment: the unit of writing in order and of reclaim. Its first block names its present life,
//! so that records of a former one are recognised.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::arena::BLOCK_BYTES;
use crate::config::Geometry;

const MAGIC: [u8; 8] = *b"OUTRSEG1";
const USED_BYTES: usize = 40;

/// Where the first segment of a stripe starts.
pub(crate) const DATA_OFFSET: u64 = 1 << 20;
/// Blocks of a segment's header.
const HEADER_BLOCKS: u32 = 1;

/// What may lie in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Cached chunks, seals, tombstones: may be dropped.
    Cache = 0,
    /// Uploads: never dropped.
    Uploads = 1,
}

/// The first block of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The stripe that it lies on.
    pub stripe: u16,
    /// Its number in the stripe.
    pub index: u32,
    /// The sequence at which this life began.
    pub sequence: u64,
    /// What may lie in it.
    pub content: Use,
}

impl SegmentHeader {
    /// Writes it to the start of `block`; the rest is left alone.
    pub fn write(&self, block: &mut [u8], seed: u64) {
        block[..USED_BYTES].fill(0);
        block[..8].copy_from_slice(&MAGIC);
        block[8..10].copy_from_slice(&self.stripe.to_le_bytes());
        block[10] = self.content as u8;
        block[12..16].copy_from_slice(&self.index.to_le_bytes());
        block[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        let hash = xxh3_64_with_seed(&block[..32], seed);
        block[32..40].copy_from_slice(&hash.to_le_bytes());
    }

    /// Reads it; `None` when this segment was never used (or its header is torn). Pure.
    pub fn parse(block: &[u8], seed: u64, stripe: u16, index: u32) -> Option<Self> {
        let block = block.get(..USED_BYTES)?;
        let mut hash = [0; 8];
        hash.copy_from_slice(&block[32..40]);
        if block[..8] != MAGIC || xxh3_64_with_seed(&block[..32], seed) != u64::from_le_bytes(hash)
        {
            return None;
        }
        let mut sequence = [0; 8];
        sequence.copy_from_slice(&block[16..24]);
        let header = Self {
            stripe: u16::from_le_bytes([block[8], block[9]]),
            index: u32::from_le_bytes([block[12], block[13], block[14], block[15]]),
            sequence: u64::from_le_bytes(sequence),
            content: match block[10] {
                0 => Use::Cache,
                1 => Use::Uploads,
                _ => return None,
            },
        };
        (header.stripe == stripe && header.index == index).then_some(header)
    }
}

/// Arithmetic between blocks of a stripe and its segments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    segment_blocks: u32,
}

impl Layout {
    pub(crate) fn new(geometry: &Geometry) -> Self {
        Self { segment_blocks: (geometry.segment_bytes / BLOCK_BYTES as u64) as u32 }
    }

    pub(crate) fn segment_blocks(&self) -> u32 {
        self.segment_blocks
    }

    /// Bytes of a segment.
    pub(crate) fn segment_bytes(&self) -> u64 {
        u64::from(self.segment_blocks) * BLOCK_BYTES as u64
    }

    /// How many segments fit into a stripe file.
    pub(crate) fn segments(&self, stripe_bytes: u64) -> u32 {
        let blocks = stripe_bytes.saturating_sub(DATA_OFFSET) / BLOCK_BYTES as u64;
        (blocks / u64::from(self.segment_blocks)) as u32
    }

    /// The first block of a segment: its header.
    pub(crate) fn first_block(&self, segment: u32) -> u32 {
        (DATA_OFFSET / BLOCK_BYTES as u64) as u32 + segment * self.segment_blocks
    }

    /// The first block of a segment that may hold a record.
    pub(crate) fn first_record(&self, segment: u32) -> u32 {
        self.first_block(segment) + HEADER_BLOCKS
    }

    /// One behind the last block of a segment.
    pub(crate) fn end(&self, segment: u32) -> u32 {
        self.first_block(segment) + self.segment_blocks
    }

    /// The segment in which a block lies.
    pub(crate) fn segment_of(&self, block: u32) -> u32 {
        (block - (DATA_OFFSET / BLOCK_BYTES as u64) as u32) / self.segment_blocks
    }
}

/// The byte at which a block starts.
pub(crate) const fn byte_of(block: u32) -> u64 {
    block as u64 * BLOCK_BYTES as u64
}

/// What a segment is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SegmentState {
    /// May be taken.
    Free,
    /// Its header is being written.
    Opening,
    /// Takes records.
    Open,
    /// Full, or found at the scan.
    Closed,
    /// Being emptied.
    Reclaiming,
    /// Its header could not be written: never used again.
    Bad,
}

/// A segment as the engine knows it.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) state: SegmentState,
    pub(crate) content: Use,
    /// Sequence of the life that is on the disk; 0 when there is none.
    pub(crate) sequence: u64,
    /// The oldest former life whose header a power cut could bring back: erased or overwritten, and
    /// not flushed yet. 0: none.
    pub(crate) stale: u64,
    /// A flush is under way after which nothing is stale.
    pub(crate) clearing: bool,
    /// The next block that a record may take.
    pub(crate) cursor: u32,
    /// Blocks that records of this life have taken.
    pub(crate) written_blocks: u64,
    /// Blocks where records start, for reclaim.
    pub(crate) records: Vec<u32>,
    /// Records and bytes that the index points at.
    pub(crate) live_records: u32,
    pub(crate) live_bytes: u64,
    /// Sum of the scores of the live chunks, as of the last sweep and what was added since.
    pub(crate) score: f64,
    /// About how many of the live bytes are within guarantees, likewise.
    pub(crate) guarded_bytes: f64,
    /// Seals and tombstones, which nothing points at.
    pub(crate) marks: u32,
    /// Reads and writes in flight.
    pub(crate) readers: u32,
    pub(crate) writers: u32,
    /// It could not be emptied; not tried again until another one was.
    pub(crate) stuck: bool,
    /// Stripes that hold what was moved out of it before it got stuck, one bit each: they must be flushed
    /// before it is erased.
    pub(crate) unflushed: u64,
    /// It may hold more than is known (the scan could not read all of it, or what was moved out of
    /// it could not be flushed), and is left alone.
    pub(crate) unreadable: bool,
}

impl Segment {
    pub(crate) fn free() -> Self {
        Self {
            state: SegmentState::Free,
            content: Use::Cache,
            sequence: 0,
            stale: 0,
            clearing: false,
            cursor: 0,
            written_blocks: 0,
            records: Vec::new(),
            live_records: 0,
            live_bytes: 0,
            score: 0.0,
            guarded_bytes: 0.0,
            marks: 0,
            readers: 0,
            writers: 0,
            stuck: false,
            unflushed: 0,
            unreadable: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_only_taken_in_its_own_place_and_store() {
        let header = SegmentHeader { stripe: 2, index: 9, sequence: 77, content: Use::Uploads };
        let mut block = vec![0xee; BLOCK_BYTES];
        header.write(&mut block, 5);
        assert_eq!(SegmentHeader::parse(&block, 5, 2, 9), Some(header));
        assert_eq!(SegmentHeader::parse(&block, 6, 2, 9), None);
        assert_eq!(SegmentHeader::parse(&block, 5, 3, 9), None);
        assert_eq!(SegmentHeader::parse(&block, 5, 2, 8), None);
        block[17] ^= 1;
        assert_eq!(SegmentHeader::parse(&block, 5, 2, 9), None);
    }

    #[test]
    fn full_chunks_fill_a_segment_to_the_last_block() {
        let layout = Layout::new(&Geometry::default());
        let record = (crate::arena::record_bytes(256 << 10) / BLOCK_BYTES) as u32;
        assert_eq!((layout.end(3) - layout.first_record(3)) % record, 0);
        assert_eq!(layout.segment_of(layout.first_block(3)), 3);
        assert_eq!(layout.segment_of(layout.end(3) - 1), 3);
        assert_eq!(layout.segments(DATA_OFFSET + (64 << 20)), 4);
    }
}
