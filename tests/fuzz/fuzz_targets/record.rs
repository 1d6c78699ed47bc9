//! What stands on a stripe: its superblock, headers of segments, records. The hash of a record is made right
//! for a second look, since no fuzzer guesses one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrider_cache::disk::record;
use outrider_cache::disk::segment::SegmentHeader;
use outrider_cache::disk::superblock::Superblock;

const SEED: u64 = 7;
const SEGMENT: u64 = 9;

fuzz_target!(|bytes: &[u8]| {
    let _ = record::parse_whole(bytes, SEED, SEGMENT);
    if let Ok(superblock) = Superblock::parse(bytes) {
        assert_eq!(Superblock::parse(&superblock.to_block()), Ok(superblock));
    }
    if let Some(header) = SegmentHeader::parse(bytes, SEED, 1, 2) {
        assert_eq!((header.stripe, header.index), (1, 2));
    }
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().max(4096), 0);
    let archive = usize::from(u16::from_le_bytes([bytes[40], bytes[41]]));
    if archive > 512 - 64 {
        return;
    }
    record::bind(&mut bytes[..512], SEED, SEGMENT);
    let Ok(parsed) = record::parse(&bytes, SEED, SEGMENT) else { return };
    assert!(parsed.len_bytes().is_multiple_of(4096));
    // What was read is what would be written again.
    let mut written = vec![0; 512];
    parsed.write(&mut written);
    record::bind(&mut written, SEED, SEGMENT);
    assert_eq!(record::parse(&written, SEED, SEGMENT).expect("its own record"), parsed);
    // And it belongs to this store and this life of the segment alone.
    assert!(record::parse(&written, SEED + 1, SEGMENT).is_err());
    assert!(record::parse(&written, SEED, SEGMENT + 1).is_err());
});
